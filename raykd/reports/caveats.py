"""The limits of what the report shows, the failed trials, and how the numbers were computed."""

import math
from collections import Counter, defaultdict

from scipy.special import fdtri

from raykd.common.units import counted
from raykd.reports.analysis import LEVEL, Analysis, name_of, trained_scores, validation_choice
from raykd.reports.arms import Arm
from raykd.reports.conclusion import chance_on, gain_interval, points, spelled, titled
from raykd.reports.confounders import confounders
from raykd.reports.statistics import trial_noise
from raykd.tracking.chance import at_or_worse
from raykd.tracking.results import SAME_MODEL
from raykd.tracking.tags import Tag

FEW_SEEDS = 10
RARE = 0.01  # how often the seeds of one arm would be called uneven though all vary equally
UNEVEN = 4.0  # times the standard deviation of every other arm; up to it, benchmarks/coverage.py shows good intervals


def caveats(analysis: Analysis) -> list[str]:
    """The caveats that apply, one sentence or two each."""
    if analysis.best is None:
        return []
    teachers = counted(len(analysis.arms.of("teacher")), "teacher")
    lines = [
        f"The results hold for this set of {teachers}: the intervals cover other seeds of the student and "
        "other test examples, but no other teachers, data sets or architectures. Each teacher and the ensemble counts "
        "as one given model; the intervals do not cover training it with another seed."
    ]
    if analysis.means and analysis.means.groups < 2:
        lines.append("The test set is too small for intervals.")
    if analysis.seeds == 1:
        lines.append(
            "There is one seed: the intervals are over test examples alone. The variation between seeds is unknown, "
            "so no claim about a trained method is called shown. Use two seeds or more."
        )
    elif analysis.seeds < FEW_SEEDS:
        lines.append(
            f"A standard deviation over {analysis.seeds} seeds is rough (its own relative error is about "
            f"{1 / math.sqrt(2 * (analysis.seeds - 1)):.0%}). The intervals allow for that, assuming that the seeds of "
            "all methods vary about equally; more seeds make them narrower."
        )
    lines += _single_seeds(analysis) + _uneven_seeds(analysis)
    lines += [f"{note.rstrip('.')}." for note in analysis.experiment.data_notes]
    if extended := analysis.experiment.extended:
        lines.append(
            f"The sweep was extended {counted(extended, 'time')} after it had been scored on test. Going on until a "
            "result pleases makes a false claim more likely than the intervals say."
        )
    lines += _at_chance(analysis)
    lines += [
        f"{run.name} {SAME_MODEL.format(run.tags[Tag.SAME_TRAINING])}"
        for run in analysis.experiment.of("baseline", "student")
        if Tag.SAME_TRAINING in run.tags
    ]
    lines += confounders(analysis) + _choice_of_method(analysis) + _choice_of_setting(analysis)
    lines += _better_controls(analysis, analysis.best)
    if analysis.ensemble and analysis.finetune:
        gain = analysis.gain(analysis.ensemble, analysis.finetune)
        if not gain.low > 0:
            bounds = gain_interval(gain, analysis)
            lines.append(
                f"The ensemble is not shown to be better than fine-tuning{f' ({bounds})' if bounds else ''}: perhaps "
                "there was little to distill."
            )
    return lines


def _better_controls(analysis: Analysis, best: Arm) -> list[str]:
    """What a control that is better on validation than the best method speaks against."""
    experiment, key = analysis.experiment, f"final_validation/{analysis.experiment.metric}"
    better = [
        arm
        for arm in analysis.arms.of("control", "finetune")
        if experiment.sign * arm.mean(key) > experiment.sign * best.mean(key)
    ]
    distils = [arm for arm in better if arm.runs[0].number("method.alpha") > 0]
    without = [arm for arm in better if arm not in distils]
    if not better:
        return []
    rival, what = (without or distils)[0], "distillation"
    if not without:
        alone = rival.runs[0].params.get("method.teacher", "None") not in ("None", "")
        what = "several teachers instead of one" if alone else "the methods that were searched instead of plain KD"
    return [
        f"A control, {titled(rival)}, is better on validation than the best method, so these results do not speak for "
        f"{what}."
    ]


def _single_seeds(analysis: Analysis) -> list[str]:
    """The arms, besides the best, that have one seed where others have several."""
    single = [arm.name for arm in analysis.arms.all if arm.trained and len(arm.runs) == 1 and arm is not analysis.best]
    if not single or not (analysis.means and analysis.means.several_seeds):
        return []
    its, it = ("its", "it") if len(single) == 1 else ("their", "them")
    return [
        f"Only one seed of {', '.join(single)} was trained and scored: the intervals of {its} gains, and of gains over "
        f"{it}, cover test examples alone, without the variation between seeds. None of these gains is called shown."
    ]


def _uneven_seeds(analysis: Analysis) -> list[str]:
    """The one arm whose seeds differ so much more than all others' that it widens every interval."""
    spread = analysis.means.spread if analysis.means else {}
    found = {name_of(arm): spread[name_of(arm)] for arm in analysis.arms.all if name_of(arm) in spread}
    deviations = {name: math.sqrt(one.between) for name, one in found.items() if not one.fixed and one.freedom}
    *others, most = sorted(deviations, key=lambda name: deviations[name]) or [""]
    if not others or deviations[most] <= UNEVEN * deviations[others[-1]]:
        return []
    freedom = sum(found[name].freedom for name in others)
    # On a coarse test set a few seeds can score alike by chance, so no variance counts as less than examples explain.
    pooled = sum(found[name].freedom * max(found[name].between, found[name].within) for name in others) / freedom
    limit = fdtri(found[most].freedom, freedom, 1 - RARE / len(deviations))  # for the largest of so many
    if not pooled or found[most].between <= limit * pooled:
        return []
    name = most.partition("/")[2]
    return [
        f"The seeds of {name} differ far more (standard deviation {points(deviations[most], analysis)}) than those of "
        f"any other method (at most {points(deviations[others[-1]], analysis)}). The variance of seeds is pooled, so "
        "this makes every interval wide."
    ]


def _at_chance(analysis: Analysis) -> list[str]:
    """Models and trials that have learnt nothing."""
    experiment = analysis.experiment
    counts = [(arm, count) for arm in analysis.arms.all if (count := analysis.at_chance(arm))]
    lines = []
    if counts:
        named = [f"{a.name}{f' ({n} of {len(a.runs)} seeds)' if n < len(a.runs) else ''}" for a, n in counts]
        chance = chance_on("test", analysis)
        lines.append(
            f"{at_or_worse(experiment.primary_metric).capitalize()} chance on test ({chance}), so that nothing was "
            f"learnt: {', '.join(named)}. A teacher like that is not counted among those that the student beats, nor "
            "among those that are wrong."
        )
    return lines + trials_at_chance(analysis)


def trials_at_chance(analysis: Analysis) -> list[str]:
    """How many trials have learnt nothing, if any."""
    experiment = analysis.experiment
    trials = [t for t in experiment.of("trial") if t.state == "finished"]
    failed = [t for t in trials if experiment.at_chance(t, "validation")]
    if not failed:
        return []
    by_arm = ", ".join(f"{count} of {name}" for name, count in sorted(Counter(t.arm for t in failed).items()))
    return [
        f"{len(failed)} of {len(trials)} finished trials ended {at_or_worse(experiment.primary_metric)} chance on "
        f"validation ({chance_on('validation', analysis)}): {by_arm}. They have learnt nothing, often "
        "because of too high a learning rate or too few steps."
    ]


def _choice_of_method(analysis: Analysis) -> list[str]:
    choice = validation_choice(analysis)
    if choice is None or choice[2].shown == 1:
        return []
    first, second, gain = choice
    noise = "within the noise" if gain.seeds_known else "and another seed could reverse it"
    bounds, over = gain_interval(gain, analysis), "" if gain.seeds_known else "over examples alone "
    return [
        f"Validation did not choose the method: {first.name} is {points(gain.value, analysis)} "
        f"{'better than' if analysis.experiment.lower else 'above'} {second.name} there, {noise} "
        f"({f'{LEVEL:.0%} interval {over}{bounds}' if bounds else 'no interval'})."
    ]


def _choice_of_setting(analysis: Analysis) -> list[str]:
    """Methods whose best two settings differ by less than two trainings of one setting differ by chance."""
    experiment = analysis.experiment
    if experiment.metric != experiment.primary_metric:
        return []
    by_arm: dict[str, list[float]] = defaultdict(list)
    for trial in experiment.of("trial"):
        value = trial.validation(experiment.metric)
        if trial.state == "finished" and value is not None:
            by_arm[trial.arm].append(experiment.sign * value)
    noise = trial_noise(trained_scores(analysis.arms.all, "validation"), analysis.arms.row_groups["validation"])
    best = {arm: sorted(values)[-2:] for arm, values in by_arm.items() if len(values) > 1}
    close = [arm for arm, (second, first) in best.items() if first - second < 1.96 * noise]
    if not close or math.isnan(noise):
        return []
    many = "any method" if len(close) == len(best) else ", ".join(sorted(close))
    return [
        f"Validation did not choose the setting of {many}: the best two settings differ by less than two trainings "
        f"of one setting differ by chance (standard error {points(noise, analysis)}). "
        "Other values of its parameters can be as good."
    ]


def failures(analysis: Analysis) -> list[str]:
    """Failed trials, counted by method and reason."""
    trials = [t for t in analysis.experiment.of("trial") if t.state != "killed"]  # someone stopped those
    failed = [t for t in trials if t.state == "failed" or Tag.FAILURE in t.tags]
    reasons = Counter((t.arm, t.tags.get(Tag.FAILURE, "no reason was logged")) for t in failed)
    return [f"{count} × {arm}: {reason}" for (arm, reason), count in sorted(reasons.items())]


def _counted_intervals(analysis: Analysis) -> str:
    """Which `raykd.reports.analysis.count_intervals` counts."""
    several = "methods and controls" if analysis.arms.of("control") else ""
    over = f"those of {counted(analysis.compared, 'method', several)} over fine-tuning" if analysis.finetune else ""
    others = ["the best teacher"] if analysis.teacher else []
    others += ["the ensemble"] if analysis.ensemble else []
    against = f"those against {' and '.join(others)} for every method that validation could have chosen"
    return ", and ".join(filter(None, [over, against if others and analysis.best else ""]))


def how_it_was_made(analysis: Analysis) -> list[str]:
    """How the numbers were computed, one item per topic."""
    experiment, row_groups = analysis.experiment, analysis.arms.row_groups["test"]
    by = experiment.grouped_by or "context"
    examples = f"groups of examples (those with the same {by})" if row_groups else "examples"
    metric = spelled(experiment.metric)
    lines = [f"Methods, settings and the best teacher are chosen on validation {metric}; test is only reported."]
    if experiment.lower:
        lines.append(
            f"{spelled(experiment.primary_metric)}: lower is better. A gain is by how much it is lower, so that a "
            "gain above 0 is for the better."
        )
    if analysis.means and analysis.means.groups > 1:
        lines.append(
            f"Intervals: two-way random effects of seeds and test {examples}. Two models are compared on the same "
            "examples; the variance of a method's seeds is averaged with the one pooled over all methods (Smyth 2004); "
            "Student's t with Satterthwaite's degrees of freedom."
            if analysis.means.several_seeds
            else f"Intervals: paired differences over test {examples}, Student's t."
        )
        if analysis.intervals > 1:
            lines.append(
                f"Corrected for {analysis.intervals} intervals (Bonferroni): {_counted_intervals(analysis)}. "
                f"Each has a level of {analysis.level:.2%}, so that they are simultaneous: all hold in at least "
                f"{LEVEL:.0%} of such experiments."
            )
            if analysis.finetune:
                lines[-1] += " The gains of teachers and of the ensemble over fine-tuning are not counted."
    if analysis.best:
        lines.append(
            "The report says that the student beats its teachers only if, for every single teacher, the interval of "
            "its gain lies above 0. “Not shown” does not mean “false”."
        )
    lines.append(
        "Share kept: the method's gain over fine-tuning as a share of the ensemble's; left out unless that is shown to "
        "be above 0."
    )
    if any(arm.values("final_test/ece") for arm in analysis.arms.all):
        lines.append("ECE: expected calibration error on test, 15 bins (Guo et al. 2017); lower is better.")
    return lines
