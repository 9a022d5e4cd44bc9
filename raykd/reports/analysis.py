"""What the final runs show: gains with their intervals, and whether the student beats its teachers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raykd.common.metrics import decimals
from raykd.reports.arms import Arm, Arms, find_arms, kind_of
from raykd.reports.read import Experiment
from raykd.reports.statistics import Gain, Means, compare, corrected_level

LEVEL = 0.95
FINE = 5000  # with this many test examples or more, scores get one more decimal

Verdict = Literal["shown", "not shown", "the opposite is shown", "nothing learnt", "no student"]


@dataclass(frozen=True)
class LeaderboardRow:
    """One line of the leaderboard, in the metric's own units; NaN where a value is missing.

    sd: over seeds; NaN for one seed.
    gain: over fine-tuning, on test; see `Analysis.gain`.
    kept: that gain as a share of the ensemble's, if that is shown to be above 0.
    ece: expected calibration error on test.
    seconds, gpu_seconds: of one training.
    """

    arm: Arm
    validation: float
    test: float
    sd: float
    gain: Gain | None
    kept: float
    ece: float
    seconds: float
    gpu_seconds: float


@dataclass(frozen=True)
class Analysis:
    """What an experiment's final runs show.

    means: of the test scores, for intervals; None without predictions.
    compared: how many methods and controls are compared with fine-tuning.
    intervals: how many intervals are corrected for together (`count_intervals`); the report shows others, too.
    level: of each of them.
    best: the method with the best validation mean; controls do not count.
    teacher: the teacher with the best validation mean.
    """

    experiment: Experiment
    arms: Arms
    means: Means | None
    compared: int
    intervals: int
    level: float
    best: Arm | None
    teacher: Arm | None
    ensemble: Arm | None
    finetune: Arm | None

    def gain(self, arm: Arm, other: Arm, level: float | None = None) -> Gain:
        """By how much `arm` is better than `other` on test: arm - other, or other - arm if a lower value is better.

        Above 0 is better, whatever the metric.

        level: of the interval; None: `Analysis.level`, with which those that `count_intervals` counts are simultaneous.
            Other pairs have this level without being counted.
        """
        names = {name_of(arm), name_of(other)}
        if self.means and names <= self.means.values.keys():
            return self.improvement(self.means.gain(name_of(arm), name_of(other), level or self.level))
        metric = f"final_test/{self.experiment.primary_metric}"
        return self.improvement(Gain(arm.mean(metric) - other.mean(metric), np.nan, np.nan))

    def improvement(self, difference: Gain) -> Gain:
        """A difference of scores as a gain, above 0 if it is for the better."""
        return difference.negated if self.experiment.lower else difference

    @property
    def verdict(self) -> Verdict:
        """Whether the best student is above *every* teacher.

        Each interval must lie above 0, so together they need no further correction (an intersection-union test:
        Berger 1982). Teachers that have learnt nothing do not count: it says nothing to beat them.
        """
        if self.best is None or self.teacher is None:
            return "no student"
        if not self.learnt(self.best) or not self.competent_teachers:
            return "nothing learnt"
        if all(self.gain(self.best, t).shown == 1 for t in self.competent_teachers):
            return "shown"
        return "the opposite is shown" if self.gain(self.best, self.teacher).shown == -1 else "not shown"

    @property
    def student(self) -> Arm | None:
        """The best method; of `raykd distill` with a method that is a control, what it has trained instead."""
        if self.best or self.experiment.command != "distill":
            return self.best
        controls = self.arms.of("finetune", "control")
        return next((arm for arm in controls if any(run.role == "student" for run in arm.runs)), None)

    @property
    def controls_alone(self) -> bool:
        """Whether the student's trainings are all of controls: nothing that is to beat the teachers was tried."""
        students = self.experiment.of("trial", "student")
        return bool(students) and all(kind_of(run) in ("finetune", "control") for run in students)

    def at_chance(self, arm: Arm) -> int:
        """How many of its runs are at chance on test, or worse."""
        return sum(self.experiment.at_chance(run, "test") for run in arm.runs)

    def learnt(self, arm: Arm) -> bool:
        """Whether one of its runs is better than chance on test, as far as that is known."""
        return self.at_chance(arm) < len(arm.runs)

    @property
    def competent_teachers(self) -> list[Arm]:
        """The teachers that have learnt something."""
        return [t for t in self.arms.of("teacher") if self.learnt(t)]

    @property
    def unbeaten(self) -> list[Arm]:
        """Teachers that the best student is not shown to beat."""
        return [t for t in self.competent_teachers if self.best and self.gain(self.best, t).shown < 1]

    @property
    def seeds(self) -> int:
        return len(self.best.runs) if self.best else 0

    @property
    def test_examples(self) -> int:
        return next((arm.scores["test"].shape[1] for arm in self.arms.all if "test" in arm.scores), 0)

    @property
    def scale(self) -> float:
        """Factor from the primary metric to the numbers of the report: percent, unless the metric is no share."""
        return 100.0 if self.experiment.share and not self.experiment.percent else 1.0

    @property
    def decimals(self) -> int:
        """Decimals of these numbers. Shares have the same everywhere; other metrics can have any size."""
        more = self.test_examples >= FINE
        if self.experiment.share:
            return 1 + more
        best = self.arms.all[0].mean(f"final_test/{self.experiment.primary_metric}") if self.arms.all else np.nan
        return decimals(best, 3) + more

    @property
    def unit(self) -> str:
        """Follows such a number."""
        return "%" if self.experiment.share else ""

    @property
    def points(self) -> str:
        """Follows a difference of such numbers."""
        return " points" if self.experiment.share else ""


def name_of(arm: Arm) -> str:
    """Unique name: a teacher can have the name of a method."""
    return f"{arm.kind}/{arm.name}"


def analyze(experiment: Experiment) -> Analysis:
    return analyze_arms(experiment, find_arms(experiment))


def analyze_arms(experiment: Experiment, arms: Arms) -> Analysis:
    """Compare the arms of an experiment."""
    scores = {name_of(arm): arm.scores["test"] for arm in arms.all if "test" in arm.scores}
    compared, intervals = len(arms.of("method", "control")), count_intervals(arms)
    return Analysis(
        experiment=experiment,
        arms=arms,
        means=compare(scores, arms.row_groups["test"], fixed_names(arms)) if scores else None,
        compared=compared,
        intervals=intervals,
        level=corrected_level(intervals, LEVEL),
        best=arms.best("method"),
        teacher=arms.best("teacher"),
        ensemble=arms.best("ensemble"),
        finetune=arms.best("finetune"),
    )


def count_intervals(arms: Arms) -> int:
    """The number of intervals that must hold at once.

    These are the gains of all methods and controls over fine-tuning, and the best method's gains over the best
    teacher and over the ensemble. The best method is chosen by the same seeds that it is then evaluated with, so its
    two intervals count once for every method that could have been chosen. The best teacher needs no such count,
    because it is one model and is chosen on other examples than those it is compared on.
    """
    others = bool(arms.of("teacher")) + bool(arms.of("ensemble"))
    over_finetuning = len(arms.of("method", "control")) if arms.of("finetune") else 0
    return over_finetuning + others * len(arms.of("method"))


def fixed_names(arms: Arms) -> set[str]:
    """The arms that are one given model each, so that their training seed is not a source of variance."""
    return {name_of(arm) for arm in arms.all if not arm.trained}


def leaderboard(analysis: Analysis) -> list[LeaderboardRow]:
    """The rows of the leaderboard, best first on validation. Test is only reported."""
    experiment, base, ensemble = analysis.experiment, analysis.finetune, analysis.ensemble
    test = f"final_test/{experiment.primary_metric}"
    whole = analysis.gain(ensemble, base) if ensemble and base else None
    rows = []
    for arm in analysis.arms.all:
        gain = analysis.gain(arm, base) if base and arm is not base else None
        kept = np.nan
        if gain and whole and whole.shown == 1 and arm.kind in ("method", "control"):
            kept = gain.value / whole.value
        rows.append(
            LeaderboardRow(
                arm=arm,
                validation=arm.mean(f"final_validation/{experiment.metric}"),
                test=arm.mean(test),
                sd=float(np.std(arm.values(test), ddof=1)) if len(arm.values(test)) > 1 else np.nan,
                gain=gain,
                kept=kept,
                ece=arm.mean("final_test/ece"),
                seconds=arm.mean("seconds"),
                gpu_seconds=arm.mean("gpu_seconds"),
            )
        )
    return rows


def over_others(analysis: Analysis) -> tuple[list[tuple[Arm, Gain]], float]:
    """The best method's gain over each other method and control, as in `Analysis.gain`, and the intervals' level.

    The level is corrected for these intervals alone, each counted once for every method that could have been chosen.
    ([], nan) without intervals, or if there are no others.
    """
    best, means = analysis.best, analysis.means
    others = [arm for arm in analysis.arms.of("method", "control") if arm is not best]
    if best is None or means is None or not {name_of(arm) for arm in [best, *others]} <= means.values.keys():
        return [], np.nan
    level = corrected_level(len(others) * len(analysis.arms.of("method")), LEVEL)
    gains = [(o, analysis.improvement(means.gain(name_of(best), name_of(o), level))) for o in others]
    return gains, level if others else np.nan


def validation_choice(analysis: Analysis) -> tuple[Arm, Arm, Gain] | None:
    """The best two methods and the first one's gain over the second on validation, at 95%, as in `Analysis.gain`.

    None if there was no choice to make.
    """
    best = [arm for arm in analysis.arms.of("method") if "validation" in arm.scores][:2]
    if len(best) < 2 or analysis.experiment.metric != analysis.experiment.primary_metric:
        return None
    scores = {name_of(arm): arm.scores["validation"] for arm in analysis.arms.all if "validation" in arm.scores}
    means = compare(scores, analysis.arms.row_groups["validation"], fixed_names(analysis.arms))
    difference = means.gain(name_of(best[0]), name_of(best[1]), LEVEL)
    return best[0], best[1], analysis.improvement(difference)


def trained_scores(arms: Sequence[Arm], split: str) -> list[np.ndarray]:
    return [arm.scores[split] for arm in arms if arm.trained and split in arm.scores]
