"""A crossed bootstrap over seeds and test examples: how sure a difference between two methods is."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 10_000
BATCH = 4_000_000  # drawn indices at once


@dataclass(frozen=True)
class Gain:
    """A difference of two means and its interval; `low` and `high` are NaN if there is nothing to resample."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> int:
        """1 if the interval lies above 0, -1 if below, 0 if it holds 0 or there is none."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Means:
    """values: each arm's mean score. drawn: the same means in every resample, (resamples,), or None."""

    values: dict[str, float]
    drawn: dict[str, np.ndarray] | None

    def gain(self, arm: str, other: str, level: float = 0.95) -> Gain:
        """arm - other, with its percentile interval."""
        value = self.values[arm] - self.values[other]
        if self.drawn is None:
            return Gain(value, np.nan, np.nan)
        tail = (1 - level) / 2
        low, high = np.quantile(self.drawn[arm] - self.drawn[other], [tail, 1 - tail])
        return Gain(value, float(low), float(high))

    def noise(self, arm: str, other: str) -> float:
        """Standard error of arm - other."""
        return float("nan") if self.drawn is None else float(np.std(self.drawn[arm] - self.drawn[other], ddof=1))


def corrected_level(methods: int, level: float = 0.95) -> float:
    """Bonferroni: intervals at this level hold all at once with the probability `level`, for so many methods."""
    return 1 - (1 - level) / max(1, methods)


def crossed_bootstrap(
    scores: Mapping[str, np.ndarray], contexts: Sequence[Hashable] | None = None, resamples: int = RESAMPLES
) -> Means:
    """Every arm's mean score over seeds and examples, resampled over both (the pigeonhole bootstrap: Owen 2007).

    scores: by arm (seeds, examples), on the same examples in the same order. contexts: (examples,) what is drawn
    instead of single examples, where those that share one depend on each other; None: each stands alone.

    Each resample draws examples (or contexts) once for all arms, which pairs the arms on them, and each arm's
    seeds by themselves, because seed 1 of one method has nothing to do with seed 1 of another. An arm with one
    seed has none to draw. A bootstrap of n seeds understates their variance by (n - 1) / n; so a seed's
    distance from its arm's mean is stretched by sqrt(n / (n - 1)) first (Hesterberg 2015, section 3.3).
    """
    count = len(next(iter(scores.values()))[0])
    _, cluster = np.unique(np.asarray(contexts if contexts is not None else np.arange(count)), return_inverse=True)
    clusters = int(cluster.max()) + 1 if count else 0
    values = {arm: float(np.mean(s)) for arm, s in scores.items()}
    if clusters < 2:
        return Means(values, None)
    sizes = np.bincount(cluster).astype(float)
    sums = {arm: _stretched_sums(s, cluster) for arm, s in scores.items()}
    drawn_seeds = [arm for arm, s in scores.items() if len(s) > 1]

    def means(*drawn: np.ndarray, axis: int) -> np.ndarray:
        """Indices of seeds of each arm in `drawn_seeds`, then of clusters, each (..., n); returns (arms, ...)."""
        assert axis == -1
        counts = _counts(drawn[-1])  # (..., clusters)
        examples = counts @ sizes
        found = []
        for arm, of_arm in sums.items():
            by_seed = counts @ of_arm.T / examples[..., None]
            if arm in drawn_seeds:
                by_seed = np.take_along_axis(by_seed, drawn[drawn_seeds.index(arm)], -1)
            found.append(by_seed.mean(-1))
        return np.stack(found)

    samples: list[Any] = [np.arange(len(scores[arm])) for arm in drawn_seeds]
    result = bootstrap(
        (*samples, np.arange(clusters)),
        means,
        n_resamples=resamples,
        batch=max(1, BATCH // clusters),
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Means(values, dict(zip(sums, result.bootstrap_distribution, strict=True)))


def _stretched_sums(scores: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """(seeds, examples) to (seeds, clusters): the sums, after moving each seed away from the mean of all."""
    seeds = len(scores)
    if seeds > 1:
        of_seed = scores.mean(1, keepdims=True)
        scores = scores + (np.sqrt(seeds / (seeds - 1)) - 1) * (of_seed - of_seed.mean())
    return np.stack([np.bincount(cluster, weights=row) for row in scores])


def _counts(indices: np.ndarray) -> np.ndarray:
    """How often each of n indices was drawn: (..., n) to (..., n)."""
    size = indices.shape[-1]
    flat = indices.reshape(-1, size)
    shifted = flat + size * np.arange(len(flat))[:, None]
    return np.bincount(shifted.ravel(), minlength=flat.size).reshape(indices.shape).astype(float)


def trial_noise(scores: Sequence[np.ndarray]) -> float:
    """Standard error of the difference between two single trainings on one split.

    scores: by arm (seeds, examples). Where arms have several seeds, from those: what another seed changes (twice
    the variance of the seeds' means, pooled) and what other examples would (the variance of paired differences
    between seeds, over the examples). Else as of two independent samples of the examples.
    """
    several = [s for s in scores if len(s) > 1]
    if not several:
        return float(np.sqrt(2 * np.mean([np.var(s[0]) / s.shape[1] for s in scores]))) if scores else float("nan")
    freedom = sum(len(s) - 1 for s in several)
    seeds = sum((len(s) - 1) * np.var(s.mean(1), ddof=1) for s in several) / freedom
    pairs = [s[i] - s[j] for s in several for i in range(len(s)) for j in range(i)]
    return float(np.sqrt(2 * seeds + np.mean([np.var(d) / len(d) for d in pairs])))
