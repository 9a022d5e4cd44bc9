"""What the report cannot say, what failed, and how its numbers were made."""

import math
from collections import Counter, defaultdict

from raykd.report.analysis import LEVEL, Analysis, trained_scores, validation_choice
from raykd.report.conclusion import interval, spelled, titled
from raykd.report.statistics import trial_noise
from raykd.tracking.results import SAME_MODEL

FEW_SEEDS = 10


def cannot_say(found: Analysis) -> list[str]:
    """A sentence each; only those that apply."""
    if found.best is None:
        return []
    teachers = len(found.arms.of("teacher"))
    lines = [
        f"One set of {teachers} teachers speaks for that set alone: the intervals are over seeds of the student and "
        "over test examples, not over other teachers, data sets or architectures. Each teacher and the ensemble is the "
        "one model that it is; what another seed would have made of it is not in the intervals."
    ]
    if found.means and found.means.clusters < 2:
        lines.append("The test set is too small: there are no intervals.")
    if found.seeds == 1:
        lines.append(
            "There is one seed: the intervals are over test examples alone. How much another seed changes is unknown, "
            "so nothing about a trained method is called shown; two seeds or more are needed for that."
        )
    elif found.seeds < FEW_SEEDS:
        lines.append(
            f"A standard deviation over {found.seeds} seeds is rough (its own relative error is about "
            f"{1 / math.sqrt(2 * (found.seeds - 1)):.0%}). The intervals are wide enough for that, on the assumption "
            "that the methods' seeds spread about alike; more seeds make them narrower."
        )
    lines += [
        f"{run.name} {SAME_MODEL.format(run.tags['raykd.same_training'])}"
        for run in found.experiment.of("baseline", "student")
        if "raykd.same_training" in run.tags
    ]
    lines += _choice_of_method(found) + _choice_of_setting(found)
    rival = found.arms.best("control", "finetune")
    key = f"final_validation/{found.experiment.metric}"
    sign = found.experiment.sign
    if rival and sign * rival.mean(key) > sign * found.best.mean(key):
        lines.append(
            f"A control, {titled(rival)}, is better on validation than the best method: nothing "
            "here recommends the ensemble's knowledge."
        )
    if found.ensemble and found.finetune and not found.gain(found.ensemble, found.finetune).low > 0:
        lines.append("The ensemble is not shown to be better than fine-tuning: there was little to hand on.")
    return lines


def _choice_of_method(found: Analysis) -> list[str]:
    choice = validation_choice(found)
    if choice is None or choice[2].low > 0:
        return []
    first, second, gain = choice
    return [
        f"Validation did not choose the method: {first.name} is {gain.value * found.scale:.{found.decimals}f} "
        f"points above {second.name} there, which its noise covers ({LEVEL:.0%} interval {interval(gain, found)})."
    ]


def _choice_of_setting(found: Analysis) -> list[str]:
    """Methods whose best two settings differ by less than two single trainings do by chance."""
    experiment = found.experiment
    if experiment.metric != experiment.primary_metric:
        return []
    by_arm: dict[str, list[float]] = defaultdict(list)
    for trial in experiment.of("trial"):
        value = trial.validation(experiment.metric)
        if trial.state == "finished" and value is not None:
            by_arm[trial.arm].append(value)
    noise = trial_noise(trained_scores(found.arms.all, "validation"), found.arms.contexts["validation"])
    best = {arm: sorted(values)[-2:] for arm, values in by_arm.items() if len(values) > 1}
    close = [arm for arm, (second, first) in best.items() if first - second < 1.96 * noise]
    if not close or math.isnan(noise):
        return []
    many = "any method" if len(close) == len(best) else ", ".join(sorted(close))
    return [
        f"Validation did not choose the setting of {many}: the best two settings differ by less than two single "
        f"trainings do by chance (standard error {noise * found.scale:.{found.decimals}f} points). The values of "
        "its parameters are one choice among equals."
    ]


def failures(found: Analysis) -> list[str]:
    """Trials that failed, by their reason."""
    failed = [t for t in found.experiment.of("trial") if t.state == "failed" or "raykd.failure" in t.tags]
    reasons = Counter((t.arm, t.tags.get("raykd.failure", "no reason was logged")) for t in failed)
    return [f"{count} × {arm}: {reason}" for (arm, reason), count in sorted(reasons.items())]


def how_it_was_made(found: Analysis) -> list[str]:
    """A sentence each, for who wants to check."""
    experiment, contexts = found.experiment, found.arms.contexts["test"]
    examples = "contexts (all questions of one at once)" if contexts else "examples"
    metric = spelled(experiment.metric)
    lines = [f"Methods, settings and the best teacher are chosen on validation {metric}; test is only reported."]
    if found.means and found.means.clusters > 1:
        lines.append(
            f"Intervals: two-way random effects of seeds and test {examples}. Two models are compared on the same "
            "examples; the variance of a method's seeds is averaged with the one pooled over all methods (Smyth 2004); "
            "Student's t with Satterthwaite's degrees of freedom."
            if found.means.several_seeds
            else f"Intervals: paired differences over test {examples}, Student's t."
        )
        if found.intervals > 1:
            lines.append(
                f"Corrected for {found.intervals} intervals (Bonferroni): those of {found.compared} methods over "
                f"fine-tuning, and those against the best teacher and the ensemble for every method that validation "
                f"could have chosen. Each is at {found.level:.2%}, so that all of them hold at once in {LEVEL:.0%} of "
                "such experiments. The teachers' and the ensemble's own gains over fine-tuning are not counted."
            )
    if found.best:
        lines.append(
            "“The student beats its teachers” is said only if the interval of its gain over every single teacher lies "
            "above 0. “Not shown” is not “false”."
        )
    lines.append("Share kept: the method's gain over fine-tuning, as a share of the ensemble's; n/a if that has none.")
    if any(arm.values("final_test/ece") for arm in found.arms.all):
        lines.append("ECE: expected calibration error on test, 15 bins (Guo et al. 2017); lower is better.")
    return lines
