"""The answer in one sentence, and how its numbers are written."""

import math

from raykd.report.analysis import LEVEL, Analysis
from raykd.report.arms import Arm
from raykd.report.statistics import Gain


def signed(value: float, decimals: int) -> str:
    """With a sign, and the minus sign of print."""
    text = f"{value:+.{decimals}f}"
    return ("±" + text[1:] if float(text) == 0 else text).replace("-", "−").replace("±0", "0")


def interval(gain: Gain, found: Analysis) -> str:
    """Both ends in points; "" if there is none."""
    if math.isnan(gain.low):
        return ""
    return " to ".join(signed(end * found.scale, found.decimals) for end in (gain.low, gain.high))


def percent(value: float, found: Analysis) -> str:
    return f"{value * found.scale:.{found.decimals}f}%"


def spelled(metric: str) -> str:
    """As the field writes it."""
    return {"f1": "F1", "macro_f1": "macro F1", "nll": "NLL", "ece": "ECE"}.get(metric, metric)


def titled(arm: Arm) -> str:
    return f"{arm.name} ({arm.setting})" if arm.setting else arm.name


def answer(found: Analysis) -> str:
    """One sentence: the best method, its gains on test with their intervals, the verdict."""
    metric = f"final_test/{found.experiment.primary_metric}"
    headline = spelled(found.experiment.primary_metric)
    best = found.best
    if best is None:
        return _no_student(found, metric, headline)
    parts: list[str] = []
    for other, words in (
        (found.finetune, "over fine-tuning"),
        (found.teacher, f"over its best teacher, {found.teacher.name}" if found.teacher else ""),
        (found.ensemble, "against the uniform ensemble"),
    ):
        if other is None:
            continue
        gain = found.gain(best, other)
        bounds = interval(gain, found)
        over = "" if gain.seeds_known else "over test examples alone "
        label = f"{LEVEL:.0%} interval {over}" if not parts else ""
        size = signed(gain.value * found.scale, found.decimals)
        parts.append(f"{size}{' points' if not parts else ''} {words} ({label + bounds if bounds else 'no interval'})")
    many = len(found.arms.of("method")) > 1
    opening = f"The best method on validation, {titled(best)}," if many else f"The student, {titled(best)},"
    text = f"{opening} scores {percent(best.mean(metric), found)} test {headline}"
    text += ": " + (", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]) if parts else ""
    return (
        text
        + {
            "shown": "; the student beats its teachers.",
            "not shown": _not_shown(found),
            "the opposite is shown": "; the student is shown to be below the best of its teachers.",
            "no student": ".",
        }[found.verdict]
    )


def _not_shown(found: Analysis) -> str:
    if found.seeds == 1:
        return "; with one seed it cannot be shown whether the student beats its teachers."
    names = [t.name for t in found.unbeaten]
    if found.teacher and found.teacher.name not in names:  # another one may do better on test
        return f"; that the student beats all of its teachers is not shown: not for {' and '.join(names)}."
    return "; that the student beats its teachers is not shown."


def _no_student(found: Analysis, metric: str, headline: str) -> str:
    teacher, ensemble = found.teacher, found.ensemble
    why = "this run has teachers only" if found.experiment.command == "teach" else "none has finished"
    text = f"There is no student to judge: {why}"
    if teacher:
        text += f"; the best teacher on validation, {teacher.name}, scores {percent(teacher.mean(metric), found)}"
        text += f" test {headline}"
    if teacher and ensemble:
        gain = found.gain(ensemble, teacher)
        bounds = interval(gain, found)
        text += f", the uniform ensemble {percent(ensemble.mean(metric), found)} ("
        text += f"{signed(gain.value * found.scale, found.decimals)} points"
        text += f", {LEVEL:.0%} interval {bounds})" if bounds else ")"
    return text + "."
