"""What MLflow's page of a command shows of its report: the answer, the leaderboard and the winner's metrics."""

from raykd.reports.analysis import Analysis, leaderboard
from raykd.reports.conclusion import conclusion
from raykd.reports.format import best_gains, cells, table_text

LIMIT = 2000  # characters of the table: a tag holds 5,000, and the links to reused runs follow in it


def note(analysis: Analysis) -> str:
    """The answer and the leaderboard, as Markdown."""
    rows = leaderboard(analysis)
    lines = ["| | validation | test | gain over fine-tuning |", "| --- | ---: | ---: | ---: |"]
    left = len(rows)
    for row in rows:
        shown = cells(analysis, row, rows)
        name = " – ".join(filter(None, (shown["name"], shown["chance"])))
        name = table_text(f"{name} ({shown['setting']})" if shown["setting"] else name)
        test = shown["test"] + (f" ± {shown['sd']}" if shown["sd"] else "")
        gain = shown["gain"] or {"value": "", "interval": ""}
        text = f"{gain['value']} ({gain['interval']})" if gain["interval"] else gain["value"]
        line = f"| {f'**{name}**' if shown['best'] else name} | {shown['validation']} | {test} | {text} |"
        if sum(map(len, lines)) + len(line) > LIMIT:
            lines.append(f"| and {left} more, in report/report.md | | | |")
            break
        lines.append(line)
        left -= 1
    return f"**{conclusion(analysis)}**\n\n" + "\n".join(lines)


def winner_metrics(analysis: Analysis) -> dict[str, float]:
    """Of the student: its final metrics, means over seeds, and its gains in the primary metric's unit."""
    best = analysis.student
    if best is None:
        return {}
    names = sorted({name for run in best.runs for name in run.metrics if name.startswith("final_")})
    gains = {
        f"gain/{text.replace(' ', '_').replace('-', '_')}": gain.value for text, gain in best_gains(analysis).items()
    }
    return {name: best.mean(name) for name in names} | gains
