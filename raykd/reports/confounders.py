"""What besides its method can explain an arm's gain: seeds, trials, steps, size, precision, settings."""

from collections.abc import Sequence

from raykd.common.units import counted
from raykd.reports.analysis import Analysis
from raykd.reports.arms import Arm, trial_counts
from raykd.reports.conclusion import titled
from raykd.tracking.tags import Tag

# Not compared: they change rounding, the order of rows or what is evaluated, and epochs are in "steps", too.
_NOT_COMPARED = {
    "precision",
    "compile",
    "accumulation",
    "gradient_checkpointing",
    "eval_every",
    "group_by_length",
    "epochs",
}


def confounders(analysis: Analysis) -> list[str]:
    """Where a difference between two arms can come from something else than their methods, a line each."""
    return [
        *_seeds(analysis),
        *_searches(analysis),
        *_generations(analysis),
        *_size(analysis),
        *_precisions(analysis),
        *_trainings(analysis),
    ]


def _most_seeds(analysis: Analysis) -> int:
    """Of the trained arm that has the most."""
    return max((len(arm.runs) for arm in analysis.arms.all if arm.trained), default=0)


def _seeds(analysis: Analysis) -> list[str]:
    all_seeds = _most_seeds(analysis)
    fewer = [a for a in analysis.arms.of("method", "control", "finetune") if len(a.runs) < all_seeds]
    if not fewer:
        return []
    named = ", ".join(f"{arm.name} {len(arm.runs)}" for arm in fewer)
    return [
        f"Not every method has {counted(all_seeds, 'seed')}: {named}. If the missing ones failed, for example because "
        "they diverged, the mean is over those that finished."
    ]


def _searches(analysis: Analysis) -> list[str]:
    best = analysis.best
    if best is None:
        return []
    ours = trial_counts(analysis.experiment, best)[1]
    others = [arm for arm in analysis.arms.of("method", "control", "finetune") if arm is not best]
    fewer = {arm.name: trials for arm in others if (trials := trial_counts(analysis.experiment, arm)[1]) < ours}
    if not fewer:
        return []
    named = ", ".join(f"{name} {trials}" for name, trials in fewer.items())
    return [
        f"{best.name} had {counted(ours, 'trial')}, more than others ({named}), so part of its gain over them can come "
        "from the larger search. The scores are not the search's own: they are of fresh seeds, on test."
    ]


def _generations(analysis: Analysis) -> list[str]:
    best = analysis.best
    count = int(best.runs[0].number("method.generations", 1)) if best else 1
    if best is None or count < 2:
        return []
    return [
        f"{best.name} trained {count} models one after another, each for as many steps as the other methods train one, "
        "and has the scores of the one that is best on validation. Part of its gain can come from that."
    ]


def _size(analysis: Analysis) -> list[str]:
    """A student that is larger than its teachers: it may be better without them, too."""
    if analysis.best is None:
        return []
    sizes = {name: cost["parameters"] for name, cost in analysis.experiment.serving.items() if "parameters" in cost}
    ours = max((sizes.get(run.name, 0) for run in analysis.best.runs), default=0)
    smaller = [t.name for t in analysis.arms.of("teacher") if t.name in sizes and sizes[t.name] < ours]
    if not smaller:
        return []
    return [
        f"The student has {ours:,} parameters, more than {' and '.join(smaller)}, so its gain over "
        f"{'it' if len(smaller) == 1 else 'them'} need not be due to distillation."
    ]


def _precisions(analysis: Analysis) -> list[str]:
    """`training.precision: auto` measures which is faster, and can find another one for another GPU or batch size."""
    tags = [run.tags for arm in analysis.arms.all for run in arm.runs]
    found = sorted({of_run[Tag.DTYPE] for of_run in tags if Tag.DTYPE in of_run})
    if len(found) < 2:
        return []
    return [
        f"Not all models were trained in the same precision ({' and '.join(found)}). Set training.precision to compare "
        "them without this difference."
    ]


def _trainings(analysis: Analysis) -> list[str]:
    best = analysis.best
    teachers = [t for t in analysis.arms.of("teacher") if t.runs[0].params.get("training.steps")]  # trained here
    if best is None or not teachers:
        return []
    ours = {key: _plain(value) for key, value in sorted(best.runs[0].params.items()) if _is_compared(key)}
    others = {key: _values(teachers, key) - {value} for key, value in ours.items()}
    if not any(others.values()):
        return []
    named = [
        f"{_name(key)} {ours[key] or 'none'} instead of {' or '.join(value or 'none' for value in sorted(values))}"
        for key, values in others.items()
        if values
    ]
    text = f"{titled(best)} was trained with other settings than its teachers ({', '.join(named)}), so its gain over "
    text += "them need not be due to distillation alone."
    if analysis.finetune:
        searched = trial_counts(analysis.experiment, best)[1]
        how = "could choose from the same training settings" if searched else "was trained as the student was"
        text += f" Fine-tuning {how}."
    return [text]


def _is_compared(key: str) -> bool:
    section, _, name = key.partition(".")
    return key in ("lora.r", "lora.alpha", "lora.dropout") or (section == "training" and name not in _NOT_COMPARED)


def _name(key: str) -> str:
    section, _, name = key.partition(".")
    return (f"LoRA's {name}" if section == "lora" else name).replace("_", " ")


def _values(arms: Sequence[Arm], key: str) -> set[str]:
    return {_plain(run.params[key]) for arm in arms for run in arm.runs if key in run.params}


def _plain(text: str) -> str:
    """Equal for equal numbers, with all of their digits."""
    try:
        return f"{float(text):.15g}"
    except ValueError:
        return text
