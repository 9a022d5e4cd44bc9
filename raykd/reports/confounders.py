"""What besides its method can explain an arm's gain: missing seeds, more trials, other training settings."""

from collections.abc import Sequence

from raykd.common.units import counted
from raykd.reports.analysis import Analysis
from raykd.reports.arms import Arm, trial_counts
from raykd.reports.conclusion import titled

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
    return [*_seeds(analysis), *_searches(analysis), *_trainings(analysis)]


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
    best, base = analysis.best, analysis.finetune
    if best is None or base is None:
        return []
    ours, theirs = trial_counts(analysis.experiment, best)[1], trial_counts(analysis.experiment, base)[1]
    if ours <= theirs:
        return []
    return [
        f"{best.name} had {counted(ours, 'trial')} and fine-tuning {theirs}, so part of the gain over fine-tuning can "
        "come from the larger search. The scores are not the search's own: they are of fresh seeds, on test."
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
        f"{key.partition('.')[2].replace('_', ' ')} {ours[key]} instead of {' or '.join(sorted(values))}"
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
    return section == "training" and name not in _NOT_COMPARED


def _values(arms: Sequence[Arm], key: str) -> set[str]:
    return {_plain(run.params[key]) for arm in arms for run in arm.runs if key in run.params}


def _plain(text: str) -> str:
    """Equal for equal numbers, with all of their digits."""
    try:
        return f"{float(text):.15g}"
    except ValueError:
        return text
