"""The report's sentences: the answer, what it cannot say, and where the weights W had something to act on."""

import math
from collections import Counter, defaultdict

import numpy as np

from raykd.report.arms import Arm
from raykd.report.judgement import LEVEL, Judgement, trained_scores, validation_choice
from raykd.report.read import Child
from raykd.report.statistics import Gain, trial_noise

NOTHING_TO_WEIGH = 0.005  # share of decisions below which W cannot matter
FEW_SEEDS = 10


def signed(value: float, decimals: int) -> str:
    """With a sign, and the minus sign of print."""
    text = f"{value:+.{decimals}f}"
    return ("±" + text[1:] if float(text) == 0 else text).replace("-", "−").replace("±0", "0")


def interval(gain: Gain, found: Judgement) -> str:
    """Both ends in points; "" if there is none."""
    if math.isnan(gain.low):
        return ""
    return " to ".join(signed(end * found.scale, found.decimals) for end in (gain.low, gain.high))


def percent(value: float, found: Judgement) -> str:
    return f"{value * found.scale:.{found.decimals}f}%"


def titled(arm: Arm) -> str:
    return f"{arm.name} ({arm.setting})" if arm.setting else arm.name


def answer(found: Judgement) -> str:
    """One sentence: the best method, its gains on test with their intervals, the verdict."""
    metric = f"final_test/{found.experiment.headline}"
    headline = found.experiment.headline.replace("f1", "F1")
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
        label = f"{LEVEL:.0%} interval " if not parts else ""
        size = signed(gain.value * found.scale, found.decimals)
        parts.append(f"{size}{' points' if not parts else ''} {words} ({label + bounds if bounds else 'no interval'})")
    many = len(found.arms.of("method")) > 1
    opening = f"The best method on validation, {titled(best)}," if many else f"The student, {titled(best)},"
    text = f"{opening} scores {percent(best.mean(metric), found)} test {headline}"
    text += ": " + (", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]) if parts else ""
    return (
        text
        + {
            "holds": "; the student beats its teachers.",
            "not shown": f"; that the student beats its teachers is not shown{_unbeaten(found)}.",
            "the opposite is shown": "; the student does not beat its teachers: it is shown to be below the best of them.",
            "no student": ".",
        }[found.verdict]
    )


def _unbeaten(found: Judgement) -> str:
    """Named only if the best teacher is beaten and another is not."""
    names = [t.name for t in found.unbeaten]
    return f" (not for {' and '.join(names)})" if found.teacher and found.teacher.name not in names else ""


def _no_student(found: Judgement, metric: str, headline: str) -> str:
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


def cannot_say(found: Judgement) -> list[str]:
    """A sentence each; only those that apply."""
    if found.best is None:
        return []
    teachers = len(found.arms.of("teacher"))
    lines = [
        f"One set of {teachers} teachers speaks for that set alone: the intervals are over seeds of the student and "
        "over test examples, not over other teachers, data sets or architectures."
    ]
    if found.means and found.means.drawn is None:
        lines.append("The test set is too small to resample: there are no intervals.")
    if found.seeds == 1:
        lines.append(
            "There is one seed: the intervals are over test examples alone, and another seed may give another order."
        )
    elif found.seeds < FEW_SEEDS:
        lines.append(
            f"A standard deviation over {found.seeds} seeds is rough (its own relative error is about "
            f"{1 / math.sqrt(2 * (found.seeds - 1)):.0%}), and where seeds differ much more than examples do, an "
            "interval from so few is too narrow."
        )
    lines += _choice_of_method(found) + _choice_of_setting(found)
    rival = found.arms.best("control", "finetune")
    key = f"final_validation/{found.experiment.metric}"
    sign = found.experiment.sign
    if rival and sign * rival.mean(key) > sign * found.best.mean(key):
        lines.append(
            f"A control, {titled(rival)}, is better on validation than the best method: nothing "
            "here recommends the ensemble's knowledge."
        )
    if found.ensemble and found.finetune and found.gain(found.ensemble, found.finetune).shown < 1:
        lines.append("The ensemble is not shown to be better than fine-tuning: there was little to hand on.")
    return lines


def _choice_of_method(found: Judgement) -> list[str]:
    choice = validation_choice(found)
    if choice is None or choice[2].shown == 1:
        return []
    first, second, gain = choice
    return [
        f"Validation did not choose the method: {first.name} is {signed(gain.value * found.scale, found.decimals)} "
        f"points above {second.name} there, which its noise covers ({LEVEL:.0%} interval {interval(gain, found)})."
    ]


def _choice_of_setting(found: Judgement) -> list[str]:
    """Methods whose best two settings differ by less than two single trainings do by chance."""
    experiment = found.experiment
    if experiment.metric != experiment.headline:
        return []
    by_arm: dict[str, list[float]] = defaultdict(list)
    for trial in experiment.of("trial"):
        value = trial.validation(experiment.metric)
        if trial.state == "finished" and value is not None:
            by_arm[trial.tags.get("raykd.arm", trial.method)].append(value)
    noise = trial_noise(trained_scores(found.arms.all, "validation"))
    best = {arm: sorted(values)[-2:] for arm, values in by_arm.items() if len(values) > 1}
    close = [arm for arm, (second, first) in best.items() if first - second < 1.96 * noise]
    if not close or math.isnan(noise):
        return []
    many = "every method" if len(close) == len(best) else ", ".join(sorted(close))
    return [
        f"Validation did not choose the setting of {many}: the best two settings differ by less than two single "
        f"trainings do by chance (standard error {noise * found.scale:.{found.decimals}f} points). The values of "
        "its parameters are one choice among equals."
    ]


def weights_changed(found: Judgement) -> float:
    """The share of labelled training decisions whose weights W changes; NaN if it was not measured."""
    return found.ensemble.mean("changed_share") if found.ensemble else math.nan


def folds(found: Judgement) -> str:
    """Such as "4 folds", or "no folds"."""
    counts = Counter(t.runs[0].tags.get("raykd.folds", "1") for t in found.arms.of("teacher"))
    if not counts:
        return "no teachers"
    if set(counts) == {"1"}:
        return "no folds"
    return ", ".join(f"{n} of {counts.total()} with {k} folds" if len(counts) > 1 else f"{k} folds"
                     for k, n in counts.items() if k != "1")  # fmt: skip


def where_w_acts(found: Judgement) -> str:
    """What correctness weighting had to act on. Without it a flat W curve means nothing."""
    share, teachers = weights_changed(found), found.arms.of("teacher")
    right = [t.mean("train_right_share") for t in teachers]
    if math.isnan(share):
        seen = [s for r in found.experiment.of("student", "trial") if (s := _last_changed(r)) is not None]
        if not seen:
            return "The share of decisions whose weights W changes was not measured in this run."
        return f"In the weighted trainings W changed the weights of {np.mean(seen):.1%} of the decisions."
    text = f"W changes the weights of {share:.1%} of the labelled training decisions: those that some teachers get "
    text += f"right and others wrong ({folds(found)}"
    if right and not np.isnan(right).any():
        text += f"; the teachers are right on {min(right):.1%} to {max(right):.1%} of them"
    text += "). "
    if found.ensemble and not math.isnan(wrong := found.ensemble.mean("all_wrong_share")):
        text += f"All teachers are wrong on {wrong:.1%}. "
    if share < NOTHING_TO_WEIGH:
        text += "That is next to nothing: a flat curve over W means nothing here, and weighted is plain KD. "
        if folds(found) == "no folds":
            text += "With teachers.*.folds=4 the teachers answer on rows that they have not seen."
    return text.strip()


def _last_changed(run: Child) -> float | None:
    return run.metrics.get("train/changed_share") if run.params.get("method.weighting") == "correctness" else None
