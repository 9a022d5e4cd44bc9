"""The arms of the comparison: each groups the final runs that differ only in the seed."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raykd.config.methods import PRESETS, TEACHERLESS, Method
from raykd.reports.read import Child, Experiment, RunPredictions
from raykd.tracking.tags import Tag

Kind = Literal["method", "control", "finetune", "teacher", "ensemble"]
SHORT = {
    "method.alpha": "α",
    "method.temperature": "T",
    "method.W": "W",
    "method.epsilon": "ε",
    "training.learning_rate": "learning rate",
}
NUMBERS = ("alpha", "temperature", "W", "floor", "epsilon", "generations")  # shown unless they have their neutral value


@dataclass
class Arm:
    """What is compared: a teacher, the ensemble, or a method at its best setting, trained once per seed.

    setting: as text, such as "α = 0.5, T = 2".
    runs: one per seed.
    scores: by split (seeds, examples), the primary metric of each example; without splits whose predictions are
        missing.
    """

    name: str
    kind: Kind
    setting: str
    runs: list[Child]
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        return self.kind in ("method", "control", "finetune")

    def values(self, metric: str) -> list[float]:
        """One per seed, of the runs that logged it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def mean(self, metric: str) -> float:
        """Mean over seeds; NaN if no run logged it."""
        values = self.values(metric)
        return float(np.mean(values)) if values else float("nan")


@dataclass
class Arms:
    """All arms of an experiment, best first by the validation metric that models are chosen by.

    row_groups: by split (examples,), equal for examples that depend on each other; None if all are independent.
    """

    all: list[Arm]
    row_groups: dict[str, list[str] | None]

    def of(self, *kinds: Kind) -> list[Arm]:
        return [arm for arm in self.all if arm.kind in kinds]

    def best(self, *kinds: Kind) -> Arm | None:
        return next(iter(self.of(*kinds)), None)


def searched(experiment: Experiment) -> list[str]:
    """The parameters that differ between trials, except the method and the seed."""
    values: dict[str, set[str]] = defaultdict(set)
    for trial in experiment.of("trial"):
        for key, value in trial.params.items():
            values[key].add(value)
    return sorted(k for k, v in values.items() if len(v) > 1 and k not in ("method.type", "method.teacher", "seed"))


def searched_trainings(experiment: Experiment) -> list[str]:
    """The searched parameters of the trainings and models, which are not the method's own."""
    return [key for key in searched(experiment) if not key.startswith("method.")]


def find_arms(experiment: Experiment) -> Arms:
    """Group the final runs and read their predictions. Adds to `experiment.missing` what cannot be used."""
    swept = searched_trainings(experiment)
    groups: dict[tuple[str, Kind], list[Child]] = defaultdict(list)
    for run, name in _named(experiment.of("teacher", "ensemble", "baseline", "student")):
        if f"final_test/{experiment.primary_metric}" not in run.metrics:
            reason = run.tags.get(Tag.FAILURE) or f"it is {run.state} and has no final scores"
            reason = "it was stopped" if run.state == "killed" else reason
            experiment.missing.append(f"{run.name} is left out: {reason}.")
            continue
        group = groups[name, kind_of(run)]
        if not any(
            run.params.get("seed") == other.params.get("seed") for other in group
        ):  # a student can be fine-tuned, too
            group.append(run)
    arms = [Arm(name, kind, setting_of(runs[0], swept), runs) for (name, kind), runs in groups.items()]
    row_groups = {split: _read_scores(experiment, arms, split) for split in ("validation", "test")}
    key = f"final_validation/{experiment.metric}"

    def order(arm: Arm) -> tuple[float, str]:  # NaN is last: comparing with it would leave the list unsorted
        value = -experiment.sign * arm.mean(key)
        return value if np.isfinite(value) else np.inf, arm.name

    return Arms(sorted(arms, key=order), row_groups)


def kind_of(run: Child) -> Kind:
    if run.role == "teacher" or run.role == "ensemble":
        return run.role  # type: ignore[return-value]
    if run.method == "finetune":
        return "finetune"
    return "control" if run.control or run.method in TEACHERLESS else "method"


def trial_counts(experiment: Experiment, arm: Arm) -> tuple[int, int]:
    """How many trials of an arm finished, and how many were started. (0, 0) if it was not searched."""
    name = "finetune" if arm.kind == "finetune" else arm.name  # the sweep's name of that arm
    trials = [t for t in experiment.of("trial") if arm.trained and t.arm == name]
    return sum(t.state == "finished" for t in trials), len(trials)


def _named(runs: Sequence[Child]) -> list[tuple[Child, str]]:
    """Each run with its arm's name: the sweep's tag; otherwise its method, or its group if that is ambiguous."""
    groups = {(r.method, r.tags[Tag.GROUP]) for r in runs if Tag.GROUP in r.tags and kind_of(r) == "method"}
    of_method = Counter(method for method, _ in groups)
    named = []
    for run in runs:
        teacher = run.params.get("method.teacher", "None")
        name = run.method + (f" from {teacher}" if teacher not in ("None", "") else "")
        if run.role in ("teacher", "ensemble"):
            name = run.name
        elif Tag.ARM in run.tags:
            name = run.tags[Tag.ARM]
        elif of_method[run.method] > 1:
            name = run.tags.get(Tag.GROUP, name)
        named.append((run, "fine-tuning" if kind_of(run) == "finetune" else name))
    return named


def short_number(text: str) -> str:
    """A parameter's value, to four digits if it is a number, and whole if it is a whole one."""
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:.0f}" if number.is_integer() else f"{number:.4g}"


def setting_of(run: Child, swept: Sequence[str], written: Callable[[str], str] = short_number) -> str:
    """The settings that are not the method's usual ones, such as "α = 0.5, T = 2, W = 0.75".

    swept: see `searched_trainings`.
    written: how a value is written, from MLflow's text.
    """
    if run.role == "ensemble":
        return "uniform"
    if run.role == "teacher":
        folds = run.tags.get(Tag.FOLDS, "1")
        return f"mean of {folds} fold models" if folds != "1" else ""
    parts, preset = [], PRESETS.get(run.method, {})
    for name, option in Method.model_fields.items():
        value = run.params.get(f"method.{name}")
        usual = option.default if name in NUMBERS else preset.get(name, option.default)
        if value is not None and name not in ("type", "teacher") and not _same(value, usual):
            parts.append(f"{SHORT.get(f'method.{name}', name)} = {written(value)}")
    for key in swept:
        if key in run.params:
            name = SHORT.get(key, key.rpartition(".")[2].replace("_", " "))
            parts.append(f"{name} = {written(run.params[key])}")
    return ", ".join(parts)


def _same(text: str, value: Any) -> bool:
    try:
        return float(text) == float(value)
    except (TypeError, ValueError):
        return text == str(value)


def _read_scores(experiment: Experiment, arms: Sequence[Arm], split: str) -> list[str] | None:
    """Set `arm.scores[split]` of each arm; returns the examples' groups."""
    first: RunPredictions | None = None
    for arm in arms:
        scores = []
        for run in arm.runs:
            predictions = experiment.predictions(run, split)
            if predictions is None:
                continue
            first = first or predictions
            if predictions.ids == first.ids:
                scores.append(predictions.scores)
            else:
                experiment.missing.append(f"{run.name}: its {split} examples differ from those of the other runs.")
        if scores and len(scores) == len(arm.runs):  # a mean over seeds needs all of them
            arm.scores[split] = np.stack(scores)
    return first.row_groups if first else None
