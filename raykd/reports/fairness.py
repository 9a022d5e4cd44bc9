"""Whether the arms had the same chances: settings tried, seeds that finished, and how the teachers were trained."""

from collections.abc import Sequence

from raykd.common.units import counted
from raykd.reports.analysis import Analysis
from raykd.reports.arms import Arm
from raykd.reports.conclusion import titled

# Keys of a training that change no result, or only how often it is looked at.
_ASIDE = {"precision", "compile", "accumulation", "gradient_checkpointing", "eval_every", "group_by_length", "epochs"}


def tried(analysis: Analysis, arm: Arm) -> tuple[int, int]:
    """How many trials of a trained arm finished, and how many were started. (0, 0) without a search."""
    name = "finetune" if arm.kind == "finetune" else arm.name
    trials = [t for t in analysis.experiment.of("trial") if arm.trained and t.arm == name]
    return sum(t.state == "finished" for t in trials), len(trials)


def planned_seeds(analysis: Analysis) -> int:
    """Of the arm that has the most of them."""
    return max((len(arm.runs) for arm in analysis.arms.all if arm.trained), default=0)


def unequal_chances(analysis: Analysis) -> list[str]:
    """Where a difference between two arms can come from something else than their methods, a line each."""
    return [*_seeds(analysis), *_searches(analysis), *_trainings(analysis)]


def _seeds(analysis: Analysis) -> list[str]:
    all_seeds = planned_seeds(analysis)
    fewer = [a for a in analysis.arms.of("method", "control", "finetune") if len(a.runs) < all_seeds]
    if not fewer:
        return []
    named = ", ".join(f"{arm.name} {len(arm.runs)}" for arm in fewer)
    return [
        f"Not every arm has {counted(all_seeds, 'seed')}: {named}. If the others failed, for example because they "
        "diverged, its mean is that of the trainings that did not."
    ]


def _searches(analysis: Analysis) -> list[str]:
    best, base = analysis.best, analysis.finetune
    if best is None or base is None:
        return []
    ours, theirs = tried(analysis, best)[1], tried(analysis, base)[1]
    if ours <= theirs:
        return []
    return [
        f"{best.name} is the best of {counted(ours, 'setting')}, and fine-tuning of {theirs}, so part of the gain over "
        "it can come from the search. On fresh seeds and on test the best setting was not chosen again."
    ]


def _trainings(analysis: Analysis) -> list[str]:
    best = analysis.best
    teachers = [t for t in analysis.arms.of("teacher") if t.runs[0].params.get("training.steps")]  # trained here
    if best is None or not teachers:
        return []
    ours = {key: _plain(value) for key, value in sorted(best.runs[0].params.items()) if _counts(key)}
    others = {key: _values(teachers, key) - {value} for key, value in ours.items()}
    if not any(others.values()):
        return []
    named = [
        f"{key.partition('.')[2].replace('_', ' ')} {ours[key]} instead of {' or '.join(sorted(values))}"
        for key, values in others.items()
        if values
    ]
    text = f"{titled(best)} was trained otherwise than its teachers ({', '.join(named)}), so its gain over them is not "
    text += "due to distillation alone."
    if analysis.finetune:
        searched = tried(analysis, best)[1]
        how = "could choose from the same training settings" if searched else "was trained as the student was"
        text += f" Fine-tuning {how}."
    return [text]


def _counts(key: str) -> bool:
    section, _, name = key.partition(".")
    return section == "training" and name not in _ASIDE


def _values(arms: Sequence[Arm], key: str) -> set[str]:
    return {_plain(run.params[key]) for arm in arms for run in arm.runs if key in run.params}


def _plain(text: str) -> str:
    """Equal for equal numbers, with all of their digits."""
    try:
        return f"{float(text):.15g}"
    except ValueError:
        return text
