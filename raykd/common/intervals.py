"""The part of an interval that is due to the test examples, shared by the table, `results.json` and the report.

Examples of one group of rows (the questions on one paragraph, the visits of one patient) depend on each other, so whole
groups are counted and resampled, never single examples.
"""

import functools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
BATCH = 10_000_000  # resampled numbers in memory at once


def group_numbers(row_groups: Sequence[Hashable] | None, examples: int) -> np.ndarray:
    """(examples,) the number of each example's group, from 0; without row_groups, each example is one."""
    if row_groups is None:
        return np.arange(examples)
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in row_groups])


def influence(scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """How far each group of examples moves the mean score.

    scores: (examples,). numbers: (examples,), as from `group_numbers`.

    Returns (groups,): the sum of (score - mean) over the group's examples, divided by the number of all examples.
    The squares of these add up to the variance of the mean over draws of groups, groups of unequal size included
    (the linearised ratio estimator of a mean over clusters: Cochran 1977, chapter 9A; Cameron and Miller 2015).
    """
    return np.bincount(numbers, weights=scores - scores.mean()) / len(scores)


def interval(scores: np.ndarray, row_groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean score over test examples.

    scores: (examples,), or (seeds, examples) for the interval of the seeds' mean over the same examples.
    row_groups: (examples,), equal for examples that depend on each other; whole groups are resampled.

    It generalises to other examples like these for the same models, not to models trained with other seeds.
    Returns NaN twice if all examples are of one group, or score alike: 20 right answers of 20 do not show that all
    others would be right, too.
    """
    mean = np.atleast_2d(scores).mean(0)
    numbers = group_numbers(row_groups, len(mean))
    sums, sizes = np.bincount(numbers, weights=mean), np.bincount(numbers).astype(float)
    if len(sums) < 2 or np.ptp(mean) == 0:
        return float("nan"), float("nan")
    means = np.sort(_resampled_means(sums, sizes))
    return _quantile(means, (1 - LEVEL) / 2), _quantile(means, 1 - (1 - LEVEL) / 2)


def _quantile(ordered: np.ndarray, share: float) -> float:
    """Interpolated linearly. Rounded as by `scipy.stats.quantile`, unlike `np.quantile`, in the last bit."""
    place = share * len(ordered) + (1 - share) - 1
    below, part = int(place // 1), (place + 1) % 1
    return float((1 - part) * ordered[below] + part * ordered[min(below + 1, len(ordered) - 1)])


def _resampled_means(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(RESAMPLES,) the mean score of as many resamples of the groups, with replacement.

    sums, sizes: (groups,), the sum of the scores and the number of examples of each.

    As `scipy.stats.bootstrap` draws them from the same generator, without its import, which takes a second.
    """
    groups = len(sums)
    alike = bool((sizes == sizes[0]).all())  # every resample has as many examples
    draws = [_drawn_at_once(groups)] if RESAMPLES * groups <= BATCH else _draws(groups)
    means = []
    for drawn in draws:
        means.append(sums[drawn].sum(-1) / (sizes.sum() if alike else sizes[drawn].sum(-1)))
    return np.concatenate(means)


def _draws(groups: int) -> Iterator[np.ndarray]:
    """(resamples, groups) the numbers of the groups in RESAMPLES resamples, at most about BATCH numbers a time."""
    rng, at_once = np.random.default_rng(0), max(1, BATCH // groups)
    for start in range(0, RESAMPLES, at_once):
        yield rng.integers(0, groups, (min(at_once, RESAMPLES - start), groups))


@functools.lru_cache(maxsize=1)
def _drawn_at_once(groups: int) -> np.ndarray:
    """The only one of `_draws`: every model of a command is scored on the same examples, and a sweep has dozens."""
    (drawn,) = _draws(groups)
    return drawn
