"""The lines of the leaderboard: final runs that differ in nothing but the seed, together."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raykd.config.methods import PRESETS, Method
from raykd.report.read import Child, Experiment, Predictions

Kind = Literal["method", "control", "finetune", "teacher", "ensemble"]
SHORT = {
    "method.alpha": "α",
    "method.temperature": "T",
    "method.W": "W",
    "method.epsilon": "ε",
    "training.learning_rate": "learning rate",
}
NUMBERS = ("alpha", "temperature", "W", "floor", "epsilon", "generations")  # shown wherever they are not neutral


@dataclass
class Arm:
    """One way to a model: a teacher, the ensemble, or a method at its best setting, trained once a seed.

    scores: by split (seeds, examples), the headline of each example; a split without usable predictions is not
    there. contexts: (test examples,) which of them depend on each other, or None.
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
        """One a seed, of the runs that have it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def mean(self, metric: str) -> float:
        """NaN where no run has it."""
        found = self.values(metric)
        return float(np.mean(found)) if found else float("nan")


@dataclass
class Arms:
    """All arms of an experiment, best first by the validation metric that chooses.

    contexts: by split, of its examples.
    """

    all: list[Arm]
    contexts: dict[str, list[str] | None]

    def of(self, *kinds: Kind) -> list[Arm]:
        return [arm for arm in self.all if arm.kind in kinds]

    def best(self, *kinds: Kind) -> Arm | None:
        return next(iter(self.of(*kinds)), None)


def searched(experiment: Experiment) -> list[str]:
    """The parameters that differ between trials, methods and seeds apart."""
    values: dict[str, set[str]] = defaultdict(set)
    for trial in experiment.of("trial"):
        for key, value in trial.params.items():
            values[key].add(value)
    return sorted(k for k, v in values.items() if len(v) > 1 and k not in ("method.type", "method.teacher", "seed"))


def find_arms(experiment: Experiment) -> Arms:
    """Groups the final runs and reads what each predicted. What cannot be used is said in `experiment.missing`."""
    also = [key for key in searched(experiment) if not key.startswith("method.")]
    groups: dict[tuple[str, Kind], list[Child]] = defaultdict(list)
    for run, name in _named(experiment.of("teacher", "ensemble", "baseline", "student")):
        if f"final_test/{experiment.primary_metric}" not in run.metrics:
            why = run.tags.get("raykd.failure") or f"it is {run.state} and has no final scores"
            experiment.missing.append(f"{run.name} is left out: {why}.")
            continue
        group = groups[name, _kind(run)]
        if not any(run.params.get("seed") == other.params.get("seed") for other in group):  # a student may be finetune
            group.append(run)
    arms = [Arm(name, kind, _setting(runs[0], also), runs) for (name, kind), runs in groups.items()]
    contexts = {split: _read_scores(experiment, arms, split) for split in ("validation", "test")}
    key = f"final_validation/{experiment.metric}"
    arms.sort(key=lambda arm: (-experiment.sign * arm.mean(key), arm.name) if arm.values(key) else (np.inf, arm.name))
    return Arms(arms, contexts)


def _kind(run: Child) -> Kind:
    if run.role == "teacher" or run.role == "ensemble":
        return run.role  # type: ignore[return-value]
    if run.method == "finetune":
        return "finetune"
    return "control" if run.control else "method"


def _named(runs: Sequence[Child]) -> list[tuple[Child, str]]:
    """Each run with the name of its arm: the sweep's tag; else its method, or its group if that is ambiguous."""
    groups = {(r.method, r.tags["raykd.group"]) for r in runs if "raykd.group" in r.tags and _kind(r) == "method"}
    of_method = Counter(method for method, _ in groups)
    found = []
    for run in runs:
        teacher = run.params.get("method.teacher", "None")
        name = run.method + (f" from {teacher}" if teacher not in ("None", "") else "")
        if run.role in ("teacher", "ensemble"):
            name = run.name
        elif "raykd.arm" in run.tags:
            name = run.tags["raykd.arm"]
        elif of_method[run.method] > 1:
            name = run.tags.get("raykd.group", name)
        found.append((run, "fine-tuning" if _kind(run) == "finetune" else name))
    return found


def _setting(run: Child, also: Sequence[str]) -> str:
    """What the method uses and where it stands, such as "α = 0.5, T = 2, W = 0.75"."""
    if run.role == "ensemble":
        return "uniform"
    if run.role == "teacher":
        folds = run.tags.get("raykd.folds", "1")
        return f"{folds} folds" if folds != "1" else ""
    parts, preset = [], PRESETS.get(run.method, {})
    for name, about in Method.model_fields.items():
        value = run.params.get(f"method.{name}")
        usual = about.default if name in NUMBERS else preset.get(name, about.default)
        if value is not None and name not in ("type", "teacher") and not _same(value, usual):
            parts.append(f"{SHORT.get(f'method.{name}', name)} = {shown(value)}")
    for key in also:
        if key in run.params:
            parts.append(f"{SHORT.get(key, key.rpartition('.')[2].replace('_', ' '))} = {shown(run.params[key])}")
    return ", ".join(parts)


def _same(text: str, value: Any) -> bool:
    try:
        return float(text) == float(value)
    except (TypeError, ValueError):
        return text == str(value)


def shown(text: str) -> str:
    """A parameter's value, to three digits if it is a number."""
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text


def _read_scores(experiment: Experiment, arms: Sequence[Arm], split: str) -> list[str] | None:
    """Fills `arm.scores[split]`; returns the examples' contexts."""
    first: Predictions | None = None
    for arm in arms:
        found = []
        for run in arm.runs:
            predictions = experiment.predictions(run, split)
            if predictions is None:
                continue
            first = first or predictions
            if predictions.ids == first.ids:
                found.append(predictions.scores)
            else:
                experiment.missing.append(f"{run.name}: its {split} examples are not those of the others.")
        if found and len(found) == len(arm.runs):  # a mean over seeds is over all of them or none
            arm.scores[split] = np.stack(found)
    return first.contexts if first else None
