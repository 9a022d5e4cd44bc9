"""Confidence intervals of the difference between two methods, over training seeds and test examples."""

import math
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # scipy.stats.t.ppf calls it, and takes a second longer to import

from raykd.common.intervals import group_numbers, influence

# How many degrees of freedom the pooled variance of the seeds counts for, next to an arm's own seeds - 1. With three
# seeds that is two parts pooled to one part own. A lower value gives wider intervals if all arms vary equally; a higher
# value gives too narrow ones if one arm varies four times as much. benchmarks/coverage.py shows both.
PRIOR_FREEDOM = 4.0
_ROUNDING = 1e-12  # of a variance, relative to what was subtracted in it


@dataclass(frozen=True)
class Gain:
    """A difference of two means and its interval.

    low, high: NaN if there is nothing to estimate them from.
    seeds_known: False if the interval covers test examples alone, because one of the two was trained with one seed.
    """

    value: float
    low: float
    high: float
    seeds_known: bool = True

    @property
    def shown(self) -> int:
        """1 if the interval lies above 0, -1 if below; 0 if it holds 0, covers no seeds, or does not exist."""
        return (int(self.low > 0) - int(self.high < 0)) if self.seeds_known else 0

    @property
    def negated(self) -> "Gain":
        """The difference the other way round."""
        return Gain(-self.value, -self.high, -self.low, self.seeds_known)


@dataclass(frozen=True)
class ArmSpread:
    """What one arm's scores say about the variance of its mean.

    influence: (groups,) of the seeds' mean score, see `raykd.common.intervals.influence`.
    seeds: the number of trainings in the mean.
    between: the variance of the seeds' mean scores; 0 for one seed.
    within: the part of `between` that the finite test set explains: equally good seeds still differ by it.
    fixed: the arm is this one model (a teacher, the ensemble), so that its seed is part of the question.
    """

    influence: np.ndarray
    seeds: int
    between: float
    within: float
    fixed: bool

    @property
    def freedom(self) -> int:
        return self.seeds - 1


@dataclass(frozen=True)
class Means:
    """Each arm's mean score, and what is needed for the interval of a difference of two."""

    values: dict[str, float]
    spread: dict[str, ArmSpread]

    @property
    def groups(self) -> int:
        return len(next(iter(self.spread.values())).influence)

    @property
    def several_seeds(self) -> bool:
        """Whether any trained arm has several seeds."""
        return any(not s.fixed and s.freedom > 0 for s in self.spread.values())

    def gain(self, arm: str, other: str, level: float = 0.95) -> Gain:
        """arm - other, with its interval, by two-way random effects of seeds x examples.

        The variance of the difference is E + S.

        E is the examples' part, from the paired differences of the two arms' mean scores on each example (or
        group of them): G / (G - 1) * sum of squared influences, over G groups.

        S is the seeds' part: for each trained arm, (variance of its seeds' means - what examples explain of it) / its
        seeds. With three seeds an arm's own variance is hardly known, so it is averaged with the one pooled over all
        trained arms, weighted by `PRIOR_FREEDOM` (a moderated variance: Smyth 2004). This assumes that the seeds of
        all arms vary about equally; coverage suffers only if one arm varies several times as much. A fixed arm does
        not contribute to S. Seeds of different arms are independent. An S below 0 counts as 0 (Searle, Casella and
        McCulloch 1992).

        The quantile is Student's t with Satterthwaite's (1946) degrees of freedom,
        (E + S)^2 / (E^2 / (G - 1) + sum over arms of (coefficient * variance of its seeds' means)^2 / (seeds - 1)),
        and at least 1, below which only the subtraction in S can bring it. There is no interval (NaN) where E + S is no
        more than rounding leaves of it, as between trainings that score alike on every example.
        """
        value = self.values[arm] - self.values[other]
        variance, freedom, known = self._variance(arm, other)
        half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance) if freedom > 0 else math.nan
        if value and math.sqrt(variance) <= 1e-9 * abs(value):  # every example gives the same difference
            half = math.nan
        return Gain(value, value - half, value + half, known)

    def noise(self, arm: str, other: str) -> float:
        """Standard error of arm - other."""
        return math.sqrt(self._variance(arm, other)[0])

    def _variance(self, arm: str, other: str) -> tuple[float, float, bool]:
        """Of arm - other: the variance, its degrees of freedom, and whether it includes the seeds' part."""
        if self.groups < 2:
            return math.nan, math.nan, False
        difference = self.spread[arm].influence - self.spread[other].influence
        examples = float(difference @ difference) * self.groups / (self.groups - 1)
        trained = [self.spread[name] for name in (arm, other) if not self.spread[name].fixed]
        if any(s.freedom == 0 for s in trained):
            return examples, self.groups - 1, False
        variance, weights = examples, dict.fromkeys(self.spread, 0.0)  # of each arm's variance between seeds
        for one in trained:
            shares = self._shares(one)
            seeds = sum(w * (self.spread[n].between - self.spread[n].within) for n, w in shares.items())
            variance += max(0.0, seeds)
            for name, weight in shares.items():
                weights[name] += weight
        rough = examples**2 / (self.groups - 1)
        rough += sum((w * self.spread[n].between) ** 2 / self.spread[n].freedom for n, w in weights.items() if w)
        subtracted = sum(w * self.spread[n].within for n, w in weights.items())
        if subtracted and variance <= _ROUNDING * subtracted:
            return 0.0, 0.0, True
        return variance, max(1.0, variance**2 / rough) if rough else math.inf, True

    def _shares(self, arm: ArmSpread) -> dict[str, float]:
        """The weight that each arm's variance between seeds has in the variance of this arm's mean."""
        several = {n: s for n, s in self.spread.items() if not s.fixed and s.freedom > 0}
        total = sum(s.freedom for s in several.values())
        own = arm.freedom / (arm.freedom + PRIOR_FREEDOM)
        return {
            name: (float(s is arm) * own + (1 - own) * s.freedom / total) / arm.seeds for name, s in several.items()
        }


def corrected_level(intervals: int, level: float = 0.95) -> float:
    """Bonferroni: intervals that each have the returned level hold all at once with probability `level`."""
    return 1 - (1 - level) / max(1, intervals)


def compare(
    scores: Mapping[str, np.ndarray], row_groups: Sequence[Hashable] | None = None, fixed: Set[str] = frozenset()
) -> Means:
    """Every arm's mean score over seeds and examples, and what `Means.gain` needs for intervals.

    scores: by arm (seeds, examples), on the same examples in the same order.
    row_groups: (examples,), equal for examples that depend on each other; None: all are independent.
    fixed: names of arms that are one given model each.

    The intervals generalise to other seeds of the trained arms and other examples like these, for the same fixed
    models.
    """
    numbers = group_numbers(row_groups, len(next(iter(scores.values()))[0]))
    spread = {name: _spread(s, numbers, name in fixed) for name, s in scores.items()}
    return Means({name: float(np.mean(s)) for name, s in scores.items()}, spread)


def _spread(scores: np.ndarray, numbers: np.ndarray, fixed: bool) -> ArmSpread:
    mean, seeds = influence(scores.mean(0), numbers), len(scores)
    if seeds == 1:
        return ArmSpread(mean, seeds, 0.0, 0.0, fixed)
    own = np.stack([influence(row, numbers) for row in scores]) - mean  # (seeds, groups)
    within = float((own**2).sum()) / (seeds - 1) * len(mean) / max(1, len(mean) - 1)
    return ArmSpread(mean, seeds, float(np.var(scores.mean(1), ddof=1)), within, fixed)


def trial_noise(scores: Sequence[np.ndarray], row_groups: Sequence[Hashable] | None = None) -> float:
    """Standard error of the difference between two single trainings on one split.

    scores: by arm (seeds, examples).
    row_groups: (examples,), equal for examples that depend on each other.

    Estimated from the arms with several seeds: what another seed changes (twice the variance of the seeds' means,
    pooled) plus what other examples would change (the variance of paired differences between seeds, over the
    examples). If no arm has several seeds, as for two independent samples of the examples.
    """
    if not scores:
        return float("nan")
    numbers = group_numbers(row_groups, scores[0].shape[1])

    def over_examples(values: np.ndarray) -> float:
        return float((influence(values, numbers) ** 2).sum())

    several = [s for s in scores if len(s) > 1]
    if not several:
        return float(np.sqrt(2 * np.mean([over_examples(s[0]) for s in scores])))
    freedom = sum(len(s) - 1 for s in several)
    seeds = sum((len(s) - 1) * np.var(s.mean(1), ddof=1) for s in several) / freedom
    pairs = [s[i] - s[j] for s in several for i in range(len(s)) for j in range(i)]
    return float(np.sqrt(2 * seeds + np.mean([over_examples(d) for d in pairs])))
