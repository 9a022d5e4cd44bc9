"""Does weighted distillation lift the student above its teachers where KD, annealing and born-again do not?

    python benchmarks/founding_table.py [--quick] [--labels 100 300 600] [--sets 5] [--seeds 4]    # digits
    python benchmarks/founding_table.py --sets 1 --seeds 5 --job jobs/sst2_minilm.yaml data.source=SST2 \\
        teachers.*.model=MINILM student.model=MINILM                                               # any other job

For every setting (number of labels, transfer rows or none) there are several sets of teachers, and each set teaches
several students with every method, once without folds and once with (`folds: 4`). Every training is raykd's own
(`raykd.training.loop.train`), in this process, one after the other, without Ray.

`weighted` is trained with every W below 1 (W = 1 is KD). W is searched without looking at test and without rewarding a
lucky training: for each set of teachers, the W with the best mean validation score over all *other* sets is taken (with
one set: over all other seeds). Where W changes no decision of a set, its students would equal those of KD bit for bit,
so KD's are taken.

Intervals are a bootstrap crossed over sets of teachers and test rows. A set is drawn with all of its students, so that
sets bring their seeds' variance along; with one set, seeds are drawn instead. Since there are few sets, deviations
of the drawn ones are widened by Student's t and by sqrt(n / (n - 1)), as an interval of a mean of n numbers is.
The intervals of a setting's gains hold all at once (Bonferroni over the methods).

Every finished training is a line in OUTPUT/trainings.jsonl, and is never run again: the script resumes, and prints the
table of what is there. Of a setting, only sets are used in which every training of the table is done. The last line is
one JSON object; tables and the figure are in OUTPUT, too.
"""

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raykd.common.environment import set_environment

set_environment()  # before transformers and datasets are imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.stats import norm, t  # noqa: E402

from raykd.common.ranks import DistContext  # noqa: E402
from raykd.config.load import build, override, parse_override, read_yaml  # noqa: E402
from raykd.config.methods import Method  # noqa: E402
from raykd.data.encoding import id_column  # noqa: E402
from raykd.experiment.disagreement import measure  # noqa: E402
from raykd.experiment.scoring import score_teachers  # noqa: E402
from raykd.logits import LogitStore, TeacherLogits  # noqa: E402
from raykd.plan.job import Job  # noqa: E402
from raykd.plan.prepare import Prepared, prepare  # noqa: E402
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs  # noqa: E402
from raykd.training.loop import train  # noqa: E402

WS = (0.0, 0.25, 0.5, 0.75)  # and 1, which is KD
RESAMPLES = 4000
LEVEL = 0.95
TEACHERS = 3
VIT = {
    "config": {
        "model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256,
    }
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {  # alpha and T are the same for all
    "KD from the best teacher": {"type": "kd"},
    "KD from the ensemble": {"type": "kd"},
    "annealing": {"type": "annealing"},
    "born-again, 3 generations": {"type": "born_again", "generations": 3},
}
CONTROLS = {"fine-tuning": {"type": "finetune"}, "label smoothing": {"type": "label_smoothing"}}
WEIGHTED = "weighted, W searched"
TAUGHT = (*METHODS, WEIGHTED)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One table. tree: the job without teachers; teacher: what each one has in common; folds: of the second half."""

    name: str
    tree: dict[str, Any]
    teacher: dict[str, Any]
    alpha: float
    temperature: float
    folds: int = 4


def digits(labels: int, transfer: bool, quick: bool) -> Setting:
    data = {
        "source": "builtin:digits",
        "train": f"train[:{labels}]",
        "validation": "train[900:1100]",
        "test": "train[1100:]",
    } | ({"transfer": "train[600:900]"} if transfer else {})
    steps = 10 if quick else 200
    tree = {
        "task": {"type": "image-classification"},
        "data": data,
        "training": {"steps": steps, "batch_size": 64, "learning_rate": 0.005, "eval_every": max(1, steps // 2)},
        "student": {"model": VIT},
    }
    return Setting(f"{labels} labels, {'300' if transfer else 'no'} transfer rows", tree, {"model": VIT}, 0.9, 2.0)


def of_job(path: Path, overrides: Sequence[str]) -> Setting:
    tree = override(read_yaml(path), dict(parse_override(text) for text in overrides))
    teacher = {key: value for key, value in tree.pop("teachers")[0].items() if key != "name"}
    given = Method.model_validate(tree.pop("method", "weighted"))
    tree = {key: value for key, value in tree.items() if key not in ("search", "output")}
    return Setting(tree["name"], tree, teacher, given.alpha, given.temperature)


class Known:
    """What was trained so far, by name: (validation score, test scores of the rows)."""

    def __init__(self, path: Path, until: float) -> None:
        self.path, self.until = path, until
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines = {line["name"]: line for line in map(json.loads, lines)}
        self.seconds = 0.0

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make and keep what is not known yet. Raises TimeoutError if there is no time for it."""
        if name in self.lines:
            return
        if time.time() > self.until:
            raise TimeoutError(name)
        since = time.process_time()
        line = {"name": name} | make()
        self.seconds += time.process_time() - since
        self.lines[name] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def validation(self, name: str) -> tuple[float, float]:
        return tuple(self.lines[name]["validation"])

    def test(self, name: str) -> np.ndarray:
        return np.asarray(self.lines[name]["test"], float)


def scores_of(validation: dict[str, float], test: np.ndarray, metric: str) -> dict[str, Any]:
    # Second, for ties: the negative log-likelihood, where the task has one.
    return {"validation": [validation[metric], -validation.get("nll", 0.0)], "test": np.round(test, 4).tolist()}


def run(job: Job) -> None:
    if not job.done:
        for _ in train(job, DistContext()):
            pass


def trained(job: Job) -> dict[str, Any]:
    """Train a student and forget its model."""
    run(job)
    result = job.result()
    with np.load(job.folder / "scores.npz") as scores:
        test = scores["test"]
    line = scores_of(result["generations"][result["best"]]["validation"], test, result["headline"])
    line |= {"seconds": round(result["seconds"], 2)}
    shutil.rmtree(job.folder)
    return line


class TeacherSet:
    """A set of teachers of one setting, with folds or without, trained when it is first needed."""

    def __init__(self, setting: Setting, number: int, folds: int, output: Path, count: int = TEACHERS) -> None:
        seeds = [100 * (number + 1) + i for i in range(count)]
        recipe = setting.teacher.get("recipe") or {}
        teachers = [
            setting.teacher | {"name": f"teacher-{i + 1}", "folds": folds, "recipe": recipe | {"seed": seed}}
            for i, seed in enumerate(seeds)
        ]
        name = {"name": "founding", "output": str(output)}
        self.config = build({**setting.tree, **name, "teachers": teachers, "method": "kd"})
        self.prepared: Prepared = prepare(self.config)
        self._served: list[Any] = []

    def train(self) -> list[Any]:
        """The trained teachers, ready to serve."""
        jobs = teacher_jobs(self.config, self.prepared)
        found = []
        for teacher in self.config.teachers:
            for job in jobs[teacher.name]:
                run(job)
            models = [job.result()["model"] for job in jobs[teacher.name]]
            found.append(served_teacher(self.config, self.prepared, teacher, models, "float32"))
        return found

    @property
    def served(self) -> list[Any]:
        if not self._served:
            self._served = self.train()
            for one in self._served:
                self._store(one)
        return self._served

    def _store(self, one: Any) -> None:
        """Its logits of every row, as the teacher service computes and stores them."""
        store, model = TeacherLogits(LogitStore.of(self.config), one.key), None
        for name, encoded in self.prepared.teachers[one.name].splits.items():
            rows = encoded.open()
            ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
            missing = store.missing(ids, inputs)
            folds = one.folds_of_rows(self.prepared.splits[name].ids, rows)
            for start in range(0, len(missing), 512):
                part = missing[start : start + 512]
                model = model or one.load(0)
                store.add(ids[part], inputs[part], model.logits([encoded.folder], part, folds[part]))

    def scores(self) -> list[dict[str, Any]]:
        """Of each teacher and, last, of the ensemble, with how much W can change."""
        metric = self.prepared.task.primary_metric
        found = score_teachers(self.prepared, self.served, LogitStore.of(self.config))
        changed = measure(self.prepared, self.served, LogitStore.of(self.config), "decision")
        shares = {"changed": changed.changed, "all_wrong": changed.all_wrong}
        return [scores_of(one["validation"].metrics, one["test"].scores, metric) | shares for one in found]

    def student(self, method: dict[str, Any], seed: int) -> Job:
        student = self.config.student.model_copy(update={"seed": [seed]})
        config = self.config.model_copy(update={"student": student})
        given = Method.model_validate(method)
        [job] = student_jobs(config, self.prepared, given, self.served if given.distils else [])
        return job


def all_of(setting: Setting, sets: int, seeds: int, output: Path, known: Known) -> Iterator[int]:
    """Train everything, set by set. Yields the number of each set that is complete."""
    axes: dict[str, Any] = {"alpha": setting.alpha, "temperature": setting.temperature}
    for number in range(sets):
        for folds in (1, setting.folds):
            at = f"{setting.name} | set {number + 1} | folds {folds}"
            taught_by = None

            def teachers(folds: int = folds, number: int = number) -> TeacherSet:
                nonlocal taught_by
                taught_by = taught_by or TeacherSet(setting, number, folds, output)
                return taught_by

            for i in range(TEACHERS + 1):
                name = f"teacher-{i + 1}" if i < TEACHERS else "ensemble"
                known.get(f"{at} | {name}", lambda i=i, of=teachers: of().scores()[i])  # type: ignore[misc]
            best = max(range(TEACHERS), key=lambda i: known.validation(f"{at} | teacher-{i + 1}"))
            changed = known.lines[f"{at} | ensemble"]["changed"]
            for seed in seeds_of(number, seeds):
                for row, method in CONTROLS.items():
                    control = f"{row} | seed {seed}"
                    # Without teachers, transfer rows and folds make no difference.
                    name = f"{setting.name.split(', ')[0]} | {control}"
                    known.get(name, lambda m=method, s=seed, of=teachers: trained(of().student(m, s)))  # type: ignore[misc]
                for row, method in METHODS.items():
                    own = axes | method
                    if row == "annealing":
                        own["alpha"] = 1.0  # it falls to 0
                    if row == "KD from the best teacher":
                        own["teacher"] = f"teacher-{best + 1}"
                    name = f"{at} | {row} | seed {seed}"
                    known.get(name, lambda m=own, s=seed, of=teachers: trained(of().student(m, s)))  # type: ignore[misc]
                for w in WS if changed else ():
                    own = axes | {"type": "weighted", "W": w}
                    name = f"{at} | W = {w:g} | seed {seed}"
                    known.get(name, lambda m=own, s=seed, of=teachers: trained(of().student(m, s)))  # type: ignore[misc]
        print(f"{setting.name}: set {number + 1} done, {known.seconds:.0f} CPU seconds so far", flush=True)
        yield number


def seeds_of(number: int, seeds: int) -> range:
    """Of one set's students. Those of different sets differ, so that sets are independent."""
    return range(10_000 + 100 * number, 10_000 + 100 * number + seeds)


@dataclasses.dataclass
class Table:
    """The scores of one setting: by row (sets, seeds, test rows), of a teacher (sets, 1, test rows)."""

    setting: str
    scores: dict[str, np.ndarray]
    chosen: dict[str, list[float]]  # the W of each set, or of each seed, by row
    changed: dict[str, float]
    by_w: dict[str, dict[float, np.ndarray]]


def assemble(setting: Setting, sets: Sequence[int], seeds: int, known: Known) -> Table:
    table = Table(setting.name, {}, {}, {}, {})
    for row in CONTROLS:
        start = setting.name.split(", ")[0]
        table.scores[row] = _stack(known, [[f"{start} | {row} | seed {s}" for s in seeds_of(n, seeds)] for n in sets])
    for folds in (1, setting.folds):
        ends = "" if folds == 1 else f", folds {folds}"
        at = [f"{setting.name} | set {n + 1} | folds {folds}" for n in sets]
        best = [max(range(TEACHERS), key=lambda i, a=a: known.validation(f"{a} | teacher-{i + 1}")) for a in at]  # type: ignore[misc]
        for i in range(TEACHERS):
            table.scores[f"teacher-{i + 1}{ends}"] = _stack(known, [[f"{a} | teacher-{i + 1}"] for a in at])
        table.scores[f"best teacher{ends}"] = _stack(
            known, [[f"{a} | teacher-{b + 1}"] for a, b in zip(at, best, strict=True)]
        )
        table.scores[f"ensemble{ends}"] = _stack(known, [[f"{a} | ensemble"] for a in at])
        table.changed[f"W{ends}"] = float(np.mean([known.lines[f"{a} | ensemble"]["changed"] for a in at]))
        for row in METHODS:
            names = [[f"{a} | {row} | seed {s}" for s in seeds_of(n, seeds)] for n, a in zip(sets, at, strict=True)]
            table.scores[row + ends] = _stack(known, names)
        by_w: dict[float, list[list[str]]] = {}
        for w in (*WS, 1.0):
            by_w[w] = []
            for n, a in zip(sets, at, strict=True):
                row = f"W = {w:g}" if known.lines[f"{a} | ensemble"]["changed"] and w < 1 else "KD from the ensemble"
                by_w[w].append([f"{a} | {row} | seed {s}" for s in seeds_of(n, seeds)])
        table.by_w[ends] = {w: _stack(known, names) for w, names in by_w.items()}
        table.scores[WEIGHTED + ends], table.chosen[WEIGHTED + ends] = search_w(by_w, table.by_w[ends], known)
    return table


def search_w(
    names: dict[float, list[list[str]]], test: dict[float, np.ndarray], known: Known
) -> tuple[np.ndarray, list[float]]:
    """(sets, seeds, rows) of the searched W, and the W's that were chosen.

    The W of a set is chosen on the validation scores of the other sets; with one set, that of a seed on other seeds'.
    """
    validation = {w: np.array([[known.validation(n) for n in one] for one in sets]) for w, sets in names.items()}
    sets, seeds, _ = test[1.0].shape
    found, chosen = np.empty_like(test[1.0]), []
    for i in range(sets if sets > 1 else seeds):
        where = (i, slice(None)) if sets > 1 else (0, slice(i, i + 1))

        def elsewhere(w: float, i: int = i) -> tuple[float, ...]:
            values = validation[w] if sets > 1 else validation[w].swapaxes(0, 1)
            return tuple(np.round(np.delete(values, i, 0).mean((0, 1)), 9)) if len(values) > 1 else (0.0,)

        w = max(validation, key=lambda w: (*elsewhere(w), w))  # of equal ones, the nearest to KD
        found[where] = test[w][where]
        chosen.append(w)
    return found, chosen


def _stack(known: Known, names: list[list[str]]) -> np.ndarray:
    return np.array([[known.test(name) for name in one] for one in names])


def interval(scores: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean and interval of (sets, seeds, rows) of scores or differences, see the module's docstring."""
    rng, (sets, seeds, rows) = np.random.default_rng(0), scores.shape
    if sets == 1:  # the interval is about this set
        scores, (sets, seeds) = scores.transpose(1, 0, 2), (seeds, 1)
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).T / rows  # (rows, resamples)
    means = scores @ counts  # (sets, seeds, resamples)
    whole = means.mean((0, 1))
    again = means.mean(1)[rng.integers(sets, size=(sets, RESAMPLES)), np.arange(RESAMPLES)].mean(0)
    tail = (1 + level) / 2
    wide = float(t.ppf(tail, sets - 1) / norm.ppf(tail) * np.sqrt(sets / (sets - 1))) if sets > 1 else 1.0
    low, high = np.quantile(whole + wide * (again - whole), [1 - tail, tail])
    return float(scores.mean()), float(low), float(high)


def verdict(low: float, high: float, shown: str, opposite: str) -> str:
    return shown if low > 0 else opposite if high < 0 else "not shown"


def lines_of(table: Table) -> tuple[list[str], dict[str, Any]]:
    """The setting as Markdown, and its part of the JSON object."""
    sets, seeds, rows = table.scores["fine-tuning"].shape
    level = 1 - (1 - LEVEL) / (2 * len(TAUGHT))
    fold_rows = [name for name in table.scores if ", folds " in name]
    ends = ", folds " + fold_rows[0].rsplit(" ", 1)[1]
    lines = [
        f"### {table.setting}",
        "",
        f"{sets} sets of {TEACHERS} teachers, {seeds} students of each set and row, {rows} test rows. W changes "
        f"{table.changed['W']:.2%} of the labelled decisions without folds, {table.changed['W' + ends]:.2%} with.",
        "",
        "| | test score (95%) | over its best teacher | | over the best teacher without folds | over KD from the "
        "same ensemble |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    found: dict[str, Any] = {"sets": sets, "seeds": seeds, "changed": table.changed, "W": table.chosen, "rows": {}}
    for row, scores in table.scores.items():
        folds = ends if row.endswith(ends) else ""
        mean, low, high = interval(scores)
        cells = [f"{100 * mean:.2f} ({100 * low:.1f} to {100 * high:.1f})"]
        entry: dict[str, Any] = {"test": mean, "interval": [low, high]}
        taught = row.removesuffix(ends) in TAUGHT
        against = {
            "over_best_teacher": f"best teacher{folds}" if taught or row in CONTROLS or "ensemble" in row else "",
            "over_single_teacher": "best teacher" if folds and taught else "",
            "over_kd": f"KD from the ensemble{folds}" if taught and "KD" not in row else "",
        }
        for key, other in against.items():
            if not other:
                cells.append("")
            else:
                gain, below, above = interval(scores - table.scores[other], level)
                entry[key] = [gain, below, above]
                cells.append(f"{100 * gain:+.2f} ({100 * below:+.2f} to {100 * above:+.2f})")
            if key == "over_best_teacher":
                entry["verdict"] = verdict(below, above, "beats it", "is below it") if taught else ""
                cells.append(entry["verdict"])
        found["rows"][row] = entry
        lines.append(f"| {row} | {' | '.join(cells)} |")
    chosen = "; ".join(f"{row}: {', '.join(f'{w:g}' for w in ws)}" for row, ws in table.chosen.items())
    return [*lines, "", f"Chosen W: {chosen}.", ""], found


def summary(tables: dict[str, Any]) -> list[str]:
    """All settings as one Markdown table: what W changes and gains, beside what annealing does."""

    def gain(rows: dict[str, Any], row: str, key: str) -> str:
        value, low, high = (100 * part for part in rows[row][key])
        return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"

    lines = [
        "| setting | W changes | weighted over its best teacher, without folds | with folds | weighted over KD, with "
        "folds | annealing over KD, with folds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, table in tables.items():
        rows, [plain, folds] = table["rows"], (key.removeprefix("W") for key in table["changed"])
        cells = [
            f"{table['changed']['W' + plain]:.1%}, with folds {table['changed']['W' + folds]:.1%}",
            gain(rows, WEIGHTED + plain, "over_best_teacher"),
            gain(rows, WEIGHTED + folds, "over_best_teacher"),
            gain(rows, WEIGHTED + folds, "over_kd"),
            gain(rows, "annealing" + folds, "over_kd"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def answer(tables: dict[str, Any]) -> str:
    """The claim under test, against the settings' verdicts."""
    above, lifted = [], []
    for name, table in tables.items():
        rows = table["rows"]
        for row in (row for row in rows if row.startswith(WEIGHTED)):
            others = [rows[other + row.removeprefix(WEIGHTED)]["verdict"] for other in METHODS]
            if rows[row]["verdict"] == "beats it" and "beats it" not in others:
                above.append(f"{name} ({row})")
            if rows[row]["over_kd"][1] > 0:
                lifted.append(f"{name} ({row})")
    text = "weighted alone is shown to beat its best teacher in: " + ("; ".join(above) or "no setting")
    return f"{text}. Weighted is shown to be better than KD in: {'; '.join(lifted) or 'no setting'}."


def draw(tables: list[Table], path: Path) -> None:
    """Score against W with folds, and each method's gain over its best teacher, for each setting."""
    from matplotlib.figure import Figure

    columns = min(3, len(tables))  # settings side by side; the others go below
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(4 * max(2, columns), 6 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    pairs = [pair for row in range(0, 2 * rows, 2) for pair in zip(axes[row], axes[row + 1], strict=True)]
    for top, bottom in pairs[len(tables) :]:
        top.remove()
        bottom.remove()
    for (top, bottom), table in zip(pairs, tables, strict=False):
        for colour, (ends, by_w) in zip(("#888888", "#1b6ca8"), table.by_w.items(), strict=True):
            found = np.array([interval(scores - by_w[1.0]) for scores in by_w.values()]) * 100
            top.fill_between(list(by_w), found[:, 1], found[:, 2], color=colour, alpha=0.2, linewidth=0)
            top.plot(list(by_w), found[:, 0], "-o", color=colour, label=ends.removeprefix(", ") or "no folds")
        top.axhline(0, color="black", linewidth=0.8)
        top.set(title=table.setting, xlabel="W, the weight of a wrong teacher")
        level = 1 - (1 - LEVEL) / (2 * len(TAUGHT))
        for offset, colour, ends in ((0.15, "#888888", ""), (-0.15, "#1b6ca8", next(e for e in table.by_w if e))):
            for i, row in enumerate(TAUGHT):
                scores = table.scores[row + ends] - table.scores["best teacher" + ends]
                mean, low, high = (100 * value for value in interval(scores, level))
                bottom.plot([low, high], [-i + offset] * 2, color=colour)
                bottom.plot(mean, -i + offset, "o", color=colour)
        bottom.axvline(0, color="black", linewidth=0.8)
        bottom.set(xlabel="points over the best teacher of the set")
        bottom.set_yticks([-i for i in range(len(TAUGHT))], [row.split(",")[0] for row in TAUGHT], fontsize=7)
    axes[0][0].set(ylabel="points over W = 1 (KD), test")
    axes[0][0].legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help="a job's YAML instead of the digits; key=value changes it")
    parser.add_argument("--labels", type=int, nargs="*", default=[300, 100, 600], help="of the digits, in this order")
    parser.add_argument("--transfer", choices=["no", "yes", "both"], default="both", help="of the digits")
    parser.add_argument("--sets", type=int, default=5, help="of three teachers each")
    parser.add_argument("--seeds", type=int, default=4, help="students of each set and row")
    parser.add_argument("--hours", type=float, default=24.0, help="no training is started after that")
    parser.add_argument("--output", type=Path, default=Path("runs/founding_table"))
    parser.add_argument("--quick", action="store_true", help="a smoke test: the figures mean nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets, seeds, output = (2, 2, given.output / "quick") if given.quick else (given.sets, given.seeds, given.output)
    if given.job:
        settings = [of_job(given.job, given.overrides)]
    else:
        choices = {"no": [False], "yes": [True], "both": [False, True]}["no" if given.quick else given.transfer]
        settings = [
            digits(n, transfer, given.quick) for n in given.labels[: 1 if given.quick else None] for transfer in choices
        ]
    known = Known(output / "trainings.jsonl", time.time() + 3600 * given.hours)
    missing, complete = [], {setting.name: list[int]() for setting in settings}
    for setting in settings:
        try:
            for number in all_of(setting, sets, seeds, output.absolute(), known):
                complete[setting.name].append(number)
        except TimeoutError:
            missing.append(f"{setting.name}: sets {len(complete[setting.name]) + 1} to {sets}")
    tables = [assemble(s, complete[s.name], seeds, known) for s in settings if complete[s.name]]
    results: dict[str, Any] = {}
    text: list[str] = []
    for table in tables:
        lines, results[table.setting] = lines_of(table)
        text += lines
    text = [*(summary(results) if results else ()), *text]
    print("\n".join(text))
    (output / "tables.md").write_text("\n".join(text))
    if tables:
        draw(tables, output / "founding.png")
    print(f"not run: {'; '.join(missing) or 'nothing'}")
    print(answer(results))
    print(json.dumps({"missing": missing, "answer": answer(results), "settings": results}))


if __name__ == "__main__":
    main()
