"""The conclusion in one sentence, and how its numbers are written."""

import math

from raykd.reports.analysis import LEVEL, Analysis
from raykd.reports.arms import Arm
from raykd.reports.statistics import Gain

_SPELLED = {"f1": "F1", "macro_f1": "macro F1", "micro_f1": "micro F1", "entity_f1": "entity F1", "nll": "NLL"}
_SPELLED |= {"ece": "ECE", "mean_average_precision": "mean average precision", "bits_per_byte": "bits per byte"}
_SPELLED |= {name: name.upper() for name in ("mse", "rmse", "mae", "wer", "cer")}
_SPELLED |= {"pearson": "Pearson correlation", "spearman": "Spearman correlation"}
_MORE_DECIMALS = 4  # at most, for a number whose sign decides; anything smaller is rounding error


def signed(value: float, decimals: int) -> str:
    """With a sign; the minus is the typographic one."""
    text = f"{value:+.{decimals}f}"
    return ("±" + text[1:] if float(text) == 0 else text).replace("-", "−").replace("±0", "0")


def gain_interval(gain: Gain, analysis: Analysis) -> str:
    """Both ends, such as "−0.5 to +2.1"; "" without an interval. Only 0 and rounding error are written as 0."""
    if math.isnan(gain.low):
        return ""
    return " to ".join(_with_its_sign(end * analysis.scale, analysis.decimals) for end in (gain.low, gain.high))


def gain_size(gain: Gain, analysis: Analysis) -> str:
    """The gain itself, such as "+1.2". It is rounded to 0 only if no gain is shown."""
    written = _with_its_sign if gain.shown else signed
    return written(gain.value * analysis.scale, analysis.decimals)


def _with_its_sign(value: float, decimals: int) -> str:
    """As `signed`, with more decimals where fewer would hide on which side of 0 the value is."""
    written = (signed(value, decimals + more) for more in range(_MORE_DECIMALS + 1))
    return next((text for text in written if text.strip("0.")), signed(value, decimals))


def score(value: float, analysis: Analysis) -> str:
    """A value of the primary metric, such as "87.1%"."""
    return f"{value * analysis.scale:.{analysis.decimals}f}{analysis.unit}"


def chance_on(split: str, analysis: Analysis) -> str:
    """The primary metric of a model that has learnt nothing."""
    return score(analysis.experiment.chance[split][analysis.experiment.primary_metric], analysis)


def spelled(metric: str) -> str:
    """A metric's name as it is usually written."""
    return _SPELLED.get(metric, metric)


def lower_is_better(analysis: Analysis) -> str:
    """Follows the primary metric's name where its direction is not obvious."""
    return " (lower is better)" if analysis.experiment.lower else ""


def points(difference: float, analysis: Analysis) -> str:
    """A difference of the primary metric without its sign, such as "1.2 points"."""
    return f"{difference * analysis.scale:.{analysis.decimals}f}{analysis.points}"


def titled(arm: Arm) -> str:
    return f"{arm.name} ({arm.setting})" if arm.setting else arm.name


def conclusion(analysis: Analysis) -> str:
    """One sentence: the best method, its gains on test with their intervals, the verdict."""
    metric = f"final_test/{analysis.experiment.primary_metric}"
    headline = spelled(analysis.experiment.primary_metric)
    best = analysis.best
    if best is None:
        return _no_student(analysis, metric, headline)
    parts: list[str] = []
    for other, name in (
        (analysis.finetune, "fine-tuning"),
        (analysis.teacher, _its_teacher(analysis)),
        (analysis.ensemble, "the uniform ensemble"),
    ):
        if other is None:
            continue
        gain = analysis.gain(best, other)
        bounds = gain_interval(gain, analysis)
        over = "" if gain.seeds_known else "over test examples alone "
        at_once = "simultaneous " if analysis.intervals > 1 else ""
        label = f"{at_once}{LEVEL:.0%} interval {over}" if not parts else ""
        size = gain_size(gain, analysis)
        words = f"over {name}"
        if size.startswith("−"):
            size, words = size[1:], f"below {name}"
        if analysis.experiment.lower:  # "over" could be read as a higher value
            size, words = size.lstrip("+"), f"{'worse' if gain.value < 0 else 'better'} than {name}"
        points = "" if parts else analysis.points
        compared = f"{size}{points} {words}" if size.strip("0.") else f"level with {name}"
        parts.append(f"{compared} ({label + bounds if bounds else 'no interval'})")
    several = len(analysis.arms.of("method")) > 1
    opening = f"The best method on validation, {titled(best)}," if several else f"The student, {titled(best)},"
    text = f"{opening} scores {score(best.mean(metric), analysis)} test {headline}{lower_is_better(analysis)}"
    text += ": " + (", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]) if parts else ""
    return text + _closing(analysis)


def _its_teacher(analysis: Analysis) -> str:
    """Where there are several, it says that validation chose this one: another one can be better on test."""
    if analysis.teacher is None:
        return ""
    best = "best teacher on validation" if len(analysis.arms.of("teacher")) > 1 else "teacher"
    return f"its {best}, {analysis.teacher.name}"


def _closing(analysis: Analysis) -> str:
    match analysis.verdict:
        case "shown":
            return "; the student beats its teachers."
        case "not shown":
            return _not_shown(analysis)
        case "the opposite is shown":
            side = "worse than" if analysis.experiment.lower else "below"
            of = "that teacher" if len(analysis.arms.of("teacher")) > 1 else "its teacher"
            return f"; the student is shown to be {side} {of}."
        case "nothing learnt":
            return _nothing_learnt(analysis)
        case "no student":
            return "."


def _not_shown(analysis: Analysis) -> str:
    if analysis.seeds == 1:
        return "; with one seed it cannot be shown whether the student beats its teachers."
    names = [t.name for t in analysis.unbeaten]
    if analysis.teacher and analysis.teacher.name not in names:  # another teacher can be better on test
        return f"; the student is not shown to beat all of its teachers: not {' and '.join(names)}."
    return "; the student is not shown to beat its teachers."


def _nothing_learnt(analysis: Analysis) -> str:
    chance = chance_on("test", analysis)
    side = "below" if analysis.experiment.lower else "above"
    if analysis.best and not analysis.learnt(analysis.best):
        return f"; the student has learnt nothing: it is not {side} chance ({chance})."
    return f"; its teachers have learnt nothing: none is {side} chance ({chance}), so there is nothing to beat."


def _no_student(analysis: Analysis, metric: str, headline: str) -> str:
    teacher, ensemble = analysis.teacher, analysis.ensemble
    reason = "this run has teachers only" if analysis.experiment.command == "teach" else "none has finished"
    control = (analysis.student or analysis.arms.best("finetune", "control")) if analysis.controls_alone else None
    text = f"There is no student to evaluate: {reason}"
    if control:
        text = "There is no distilled student to evaluate: only controls were trained"
        text += f"; {titled(control)} scores {score(control.mean(metric), analysis)} test {headline}"
    if teacher:
        which = "the best teacher on validation" if len(analysis.arms.of("teacher")) > 1 else "its teacher"
        text += f"; {which}, {teacher.name}, scores {score(teacher.mean(metric), analysis)}"
        text += f" test {headline}{lower_is_better(analysis)}"
    if teacher and ensemble:
        gain = analysis.gain(ensemble, teacher, LEVEL)  # the only interval of the sentence
        bounds = gain_interval(gain, analysis)
        text += f", the uniform ensemble {score(ensemble.mean(metric), analysis)} ("
        text += "a gain of " if analysis.experiment.lower else ""
        text += f"{gain_size(gain, analysis)}{analysis.points}"
        text += f", {LEVEL:.0%} interval {bounds})" if bounds else ")"
    return text + "."
