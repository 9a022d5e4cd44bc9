"""The crossed bootstrap: against all resamples of a tiny case, against plain loops, and by how often it is right."""

import itertools

import numpy as np
import pytest
from scipy.stats import bootstrap

from raykd.report.read import LOWER_IS_BETTER
from raykd.report.statistics import Gain, corrected_level, crossed_bootstrap, trial_noise
from raykd.training import evaluation


def test_a_tiny_case_against_every_resample():
    """Two seeds against one, three examples: 2^2 draws of seeds times 3^3 of examples are all there is."""
    a = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    b = np.array([[0.0, 0.0, 1.0]])
    # The seeds' means are 2/3 and 1, their mean 5/6; stretched by sqrt(2) they are 5/6 -+ sqrt(2)/6.
    move = (np.sqrt(2) - 1) / 6
    stretched = np.array([a[0] - move, a[1] + move])
    differences = [
        np.mean([stretched[s][list(e)].mean() for s in seeds]) - b[0][list(e)].mean()
        for seeds in itertools.product((0, 1), repeat=2)
        for e in itertools.product((0, 1, 2), repeat=3)
    ]
    means = crossed_bootstrap({"a": a, "b": b})
    assert means.values == pytest.approx({"a": 5 / 6, "b": 1 / 3})
    drawn = means.drawn["a"] - means.drawn["b"]
    assert drawn.mean() == pytest.approx(np.mean(differences), abs=0.01)
    assert drawn.std() == pytest.approx(np.std(differences), abs=0.01)
    values, counts = np.unique(np.round(differences, 9), return_counts=True)
    found, often = np.unique(np.round(drawn, 9), return_counts=True)
    assert found.tolist() == values.tolist()
    assert often / len(drawn) == pytest.approx(counts / len(differences), abs=0.015)
    assert means.noise("a", "b") == pytest.approx(np.std(differences), abs=0.01)


def by_loops(a, b, contexts, level, resamples=4000):
    """The same interval, written as one would say it."""
    rng = np.random.default_rng(7)
    members = [np.flatnonzero(contexts == c) for c in np.unique(contexts)]

    def stretch(s):
        of_seed = s.mean(1)
        return s + (np.sqrt(len(s) / (len(s) - 1)) - 1) * (of_seed - of_seed.mean())[:, None]

    a, b = stretch(a), stretch(b)
    found = []
    for _ in range(resamples):
        examples = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        of_a = a[rng.integers(0, len(a), len(a))][:, examples]
        of_b = b[rng.integers(0, len(b), len(b))][:, examples]
        found.append(np.mean(of_a[:, None] - of_b[None]))  # the matrix of paired differences, over all pairs of seeds
    return np.quantile(found, [(1 - level) / 2, (1 + level) / 2])


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_against_plain_loops_with_contexts_of_unequal_size(level):
    rng = np.random.default_rng(3)
    contexts = rng.integers(0, 40, 150)
    easy = rng.normal(0, 1, 40)[contexts]
    a, b = (100.0 * (easy + shift + rng.normal(0, 0.7, (n, 150)) > 0) for shift, n in ((0.4, 3), (0.0, 4)))
    found = crossed_bootstrap({"a": a, "b": b}, contexts.tolist()).gain("a", "b", level)
    low, high = by_loops(a, b, contexts, level)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    alone = crossed_bootstrap({"a": a, "b": b}).gain("a", "b", level)
    assert found.high - found.low > 1.1 * (alone.high - alone.low), "questions of one context are not independent"


def test_one_seed_is_the_paired_bootstrap_of_examples():
    rng = np.random.default_rng(0)
    a, b = (rng.random(300) < 0.8).astype(float), (rng.random(300) < 0.7).astype(float)
    found = crossed_bootstrap({"a": a[None], "b": b[None]}).gain("a", "b")
    expected = bootstrap((a - b,), np.mean, method="percentile", n_resamples=9999, rng=rng).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_arms_are_paired_on_examples():
    a = (np.random.default_rng(0).random((1, 200)) < 0.5).astype(float)
    means = crossed_bootstrap({"a": a, "same": a.copy(), "other": 1 - a})
    assert means.gain("a", "same") == Gain(0.0, 0.0, 0.0)
    other = means.gain("a", "other")
    assert other.high - other.low > 0.2, "they differ on every example"


def test_repeated_examples_of_one_context_add_nothing():
    a, b = (np.random.default_rng(s).random((3, 60)).round() for s in (1, 2))
    once = crossed_bootstrap({"a": a, "b": b})
    contexts = [f"context {i // 5}" for i in range(300)]
    five = crossed_bootstrap({n: np.repeat(s, 5, axis=1) for n, s in (("a", a), ("b", b))}, contexts)
    width = [m.gain("a", "b").high - m.gain("a", "b").low for m in (once, five)]
    assert width[0] == pytest.approx(width[1], rel=0.05)


def test_intervals_do_not_depend_on_chance():
    scores = {"a": np.random.default_rng(0).random((2, 50)), "b": np.random.default_rng(1).random((3, 50))}
    assert crossed_bootstrap(scores).gain("a", "b") == crossed_bootstrap(scores).gain("a", "b")


def test_nothing_to_resample():
    found = crossed_bootstrap({"a": np.ones((2, 1)), "b": np.zeros((1, 1))}).gain("a", "b")
    assert found.value == 1
    assert np.isnan([found.low, found.high]).all()
    assert found.shown == 0, "without an interval nothing is shown"


def test_coverage():
    """How often a 95% interval holds the true difference, where seeds matter as much as examples.

    Looking at examples alone would be right in 75% of these cases, or less.
    """
    rng, right, too_sure, times = np.random.default_rng(11), 0, 0, 250
    for _ in range(times):
        easy = rng.normal(1.2, 1.3, 200)
        a, b = (
            (easy + rng.normal(0, 0.25, (4, 1)) + rng.normal(0, 0.4, (4, 200)) > 0).astype(float) for _ in range(2)
        )  # of equal skill
        found = crossed_bootstrap({"a": a, "b": b}, resamples=400).gain("a", "b")
        right += found.low <= 0 <= found.high
        of_examples = a.mean(0) - b.mean(0)
        too_sure += abs(of_examples.mean()) > 1.96 * of_examples.std() / np.sqrt(200)
    assert too_sure / times > 0.15
    assert 0.89 <= right / times <= 0.99


def test_all_intervals_hold_at_once():
    """Ten methods that are no better than fine-tuning: corrected, hardly any family has a false gain."""
    rng, false = np.random.default_rng(5), {0.95: 0, corrected_level(10): 0}
    for _ in range(60):
        easy = rng.normal(1.0, 1.0, 200)
        scores = {str(i): (easy + rng.normal(0, 0.6, (3, 200)) > 0).astype(float) for i in range(11)}
        means = crossed_bootstrap(scores, resamples=1000)
        for level in false:
            false[level] += any(means.gain(str(i), "0", level).shown for i in range(1, 11))
    assert false[corrected_level(10)] <= 0.1 * 60 < 60
    assert false[0.95] > false[corrected_level(10)]


def test_corrected_level():
    assert corrected_level(1) == corrected_level(0) == 0.95
    assert corrected_level(5) == pytest.approx(0.99)


def test_trial_noise_is_the_spread_of_differences():
    """Against the spread of 4,000 differences of two fresh trainings, each pair on fresh examples."""
    rng, rows, seed_sd = np.random.default_rng(2), 250, 0.2

    def trainings(count, easy):
        return (easy + rng.normal(0, seed_sd, (count, 1)) + rng.normal(0, 0.6, (count, rows)) > 0).astype(float)

    truth = np.std([np.subtract(*trainings(2, rng.normal(1, 1, rows)).mean(1)) for _ in range(4000)])
    found = [trial_noise([trainings(4, e), trainings(4, e)]) for e in rng.normal(1, 1, (60, rows))]
    assert truth < np.mean(found) < 1.45 * truth, "a part of it counts twice: on the safe side"
    assert trial_noise([np.array([[1.0, 0.0] * 50])]) == pytest.approx(np.sqrt(2 * 0.25 / 100)), "one seed: binomial"
    assert np.isnan(trial_noise([]))


def test_which_metrics_are_better_when_low():
    assert LOWER_IS_BETTER == evaluation.LOWER_IS_BETTER
