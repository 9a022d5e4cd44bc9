"""Intervals of differences: by hand, against textbook cases, and by how often they are right."""

import numpy as np
import pytest
from scipy.stats import t, ttest_ind, ttest_rel

from raykd.reports.statistics import Gain, compare, corrected_level, trial_noise


def right(rng: np.random.Generator, easy: np.ndarray, seeds: int, seed_sd: float = 0.0) -> np.ndarray:
    """(seeds, examples): one method's trainings, each with a skill and mistakes of its own. seed_sd: in probits."""
    skill = rng.normal(0, seed_sd, (seeds, 1))
    return (easy + skill + rng.normal(0, 0.4, (seeds, len(easy))) > 0).astype(float)


def test_a_tiny_case_by_hand():
    """Two seeds of `a` against the fixed model `b`, three examples."""
    a = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    b = np.array([[0.0, 0.0, 1.0]])
    means = compare({"a": a, "b": b}, fixed={"b"})
    assert means.values == pytest.approx({"a": 5 / 6, "b": 1 / 3})
    # Differences of the means: 1, 1/2, 0; their variance over 3: (1/4 + 0 + 1/4) / 2 / 3.
    examples = 1 / 12
    # Seeds' means 2/3 and 1: variance 1/18. The seeds differ by 0, 1, 0 on the examples, so half of the variance of
    # that difference over 3 examples, (1/9 + 4/9 + 1/9) / 2 / 3 / 2 = 1/18, is what three examples explain: all of it.
    assert means.spread["a"].between == pytest.approx(1 / 18)
    assert means.spread["a"].within == pytest.approx(1 / 18)
    assert means.noise("a", "b") == pytest.approx(np.sqrt(examples))
    freedom = examples**2 / (examples**2 / 2 + (1 / 18 / 2) ** 2 / 1)
    found = means.gain("a", "b", 0.9)
    assert found.value == pytest.approx(0.5)
    assert found.high - found.value == pytest.approx(t.ppf(0.95, freedom) * np.sqrt(examples))
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_fixed_models_are_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = (rng.random(300) < 0.8).astype(float), (rng.random(300) < 0.7).astype(float)
    found = compare({"a": a[None], "b": b[None]}, fixed={"a", "b"}).gain("a", "b", 0.99)
    expected = ttest_rel(a, b).confidence_interval(0.99)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.seeds_known, "their seeds are part of the question"


def test_where_examples_do_not_matter_it_is_students_t_test():
    """Seeds that move every example alike: two arms that spread alike are the t test with a pooled variance."""
    rng = np.random.default_rng(1)
    easy, a, b = rng.random(50), rng.normal(3, 1, 4), rng.normal(0, 1, 4)
    b = b.mean() + (b - b.mean()) * a.std() / b.std()
    found = compare({"a": easy + a[:, None], "b": easy + b[:, None]}).gain("a", "b")
    expected = ttest_ind(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_other_methods_tell_how_much_seeds_spread():
    """Three seeds alone give an interval many times as wide as with the spread of five more methods."""
    rng = np.random.default_rng(4)
    scores = {str(i): np.zeros(50) + rng.normal(0, 1, (3, 1)) for i in range(7)}
    scores["teacher"] = np.zeros((1, 50))
    width = [
        found.high - found.low
        for names in (("0", "teacher"), scores)
        for found in [compare({n: scores[n] for n in names}, fixed={"teacher"}).gain("0", "teacher", 0.99)]
    ]
    assert width[0] > 2 * width[1]


def test_a_method_whose_seeds_spread_more_has_a_wider_interval():
    rng = np.random.default_rng(4)
    scores = {str(i): np.zeros(50) + rng.normal(0, 1 if i else 4, (3, 1)) for i in range(7)}
    means = compare(scores | {"teacher": np.zeros((1, 50))}, fixed={"teacher"})
    wild, calm = (found.high - found.low for found in (means.gain(n, "teacher") for n in ("0", "1")))
    assert wild > 1.5 * calm


def test_one_seed_shows_nothing():
    """How much another seed changes is unknown, however large the difference and whatever other methods have."""
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 1, 300)
    good, bad = right(rng, easy + 2, 1), right(rng, easy - 2, 3)
    means = compare({"one": good, "three": bad, "teacher": bad[:1]}, fixed={"teacher"})
    for other in ("three", "teacher"):
        found = means.gain("one", other)
        assert found.low > 0.8, "over these examples it is clear"
        assert (found.seeds_known, found.shown) == (False, 0)
    over_examples = ttest_rel(good[0], bad[0]).confidence_interval(0.95)
    found = means.gain("one", "teacher")
    assert (found.low, found.high) == pytest.approx((over_examples.low, over_examples.high))


def test_arms_are_paired_on_examples():
    a = (np.random.default_rng(0).random((1, 200)) < 0.5).astype(float)
    means = compare({"a": a, "same": a.copy(), "other": 1 - a}, fixed={"a", "same", "other"})
    assert means.gain("a", "same") == Gain(0.0, 0.0, 0.0)
    other = means.gain("a", "other")
    assert other.high - other.low > 0.2, "they differ on every example"


def test_repeated_examples_of_one_context_add_nothing():
    a, b = (np.random.default_rng(s).random((3, 60)).round() for s in (1, 2))
    once = compare({"a": a, "b": b}).gain("a", "b")
    contexts = [f"context {i // 5}" for i in range(300)]
    five = {name: np.repeat(s, 5, axis=1) for name, s in (("a", a), ("b", b))}
    found = compare(five, contexts).gain("a", "b")
    assert (found.low, found.high) == pytest.approx((once.low, once.high))
    alone = compare(five).gain("a", "b")
    assert found.high - found.low > 1.1 * (alone.high - alone.low), "questions of one context are not independent"


def test_contexts_of_unequal_size_against_their_spread():
    """The standard error is the spread of the difference over fresh test sets of as many contexts."""
    rng = np.random.default_rng(3)

    def drawn():
        contexts = np.repeat(np.arange(60), rng.integers(1, 8, 60))
        easy = rng.normal(0.5, 1, 60)[contexts] + rng.normal(0, 1, len(contexts))
        own = rng.normal(0, 1, (2, 60))[:, contexts]  # each model's own trouble with a context
        return {name: (easy + own[i] > 0).astype(float)[None] for i, name in enumerate("ab")}, contexts.tolist()

    means = [compare(scores, contexts, {"a", "b"}) for scores, contexts in (drawn() for _ in range(400))]
    truth = np.std([m.values["a"] - m.values["b"] for m in means])
    assert np.mean([m.noise("a", "b") for m in means]) == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("a", [np.ones((2, 1)), np.ones((1, 3))])
def test_no_interval_from_what_does_not_vary(a):
    found = compare({"a": a, "b": np.zeros((1, a.shape[1]))}, fixed={"a", "b"}).gain("a", "b")
    assert found.value == 1
    assert np.isnan([found.low, found.high]).all()
    assert found.shown == 0, "without an interval nothing is shown"


def test_families_of_methods_that_do_not_differ():
    """Six methods, three seeds that spread by two points, 5,000 rows: hardly any family has a false gain.

    benchmarks/coverage.py measures this over rows, deviations and seeds.
    """
    rng, false, narrow, times = np.random.default_rng(5), 0, 0, 200
    level = corrected_level(6)
    for _ in range(times):
        easy = rng.normal(1.2, 1.3, 5000)
        means = compare({str(i): right(rng, easy, 3, 0.1) for i in range(7)})
        gains = [means.gain(str(i), "0", level) for i in range(1, 7)]
        false += any(gain.shown for gain in gains)
        narrow += any(abs(gain.value) > 2.6 * means.noise(str(i), "0") for i, gain in enumerate(gains, 1))
    assert false <= 0.07 * times
    assert narrow > 1.5 * false, "a normal quantile would be too small"


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


def test_trial_noise_of_contexts():
    """Rows that are repeated within their context say nothing more of what other examples would change."""
    scores = [right(np.random.default_rng(3), np.zeros(80), 3) for _ in range(2)]
    repeated = [np.repeat(s, 4, axis=1) for s in scores]
    assert trial_noise(repeated, [i // 4 for i in range(320)]) == pytest.approx(trial_noise(scores))
    assert trial_noise(repeated) < 0.9 * trial_noise(scores)


def test_trainings_that_score_alike_have_no_interval():
    """What is left of their variance is rounding, and its degrees of freedom would be about 0."""
    for draw in range(100):
        a = (np.random.default_rng(draw).random((2, 30)) < 0.6).astype(float)
        for b in (a, a[::-1]):
            means = compare({"a": a, "b": b})
            found = means.gain("a", "b")
            assert found.value == 0
            assert np.isnan([found.low, found.high]).all() or means.noise("a", "b") > 1e-4
            assert not found.high > t.ppf(0.975, 1) * means.noise("a", "b") * (1 + 1e-9)


def test_no_interval_is_wider_than_that_of_two_trainings():
    """One degree of freedom is the least that any part has. The arms differ in one row, so they nearly tie."""
    bounds = []
    for draw in range(300):
        rng = np.random.default_rng(draw)
        a = (rng.random((2, 30)) < 0.6).astype(float)
        b = a[::-1].copy()
        b[0, 0] = 1 - b[0, 0]
        means = compare({"a": a, "b": b})
        found, noise = means.gain("a", "b"), means.noise("a", "b")
        if noise:
            bounds.append((found.high - found.value) / noise)
    assert len(bounds) > 100
    assert max(bounds) <= t.ppf(0.975, 1) * (1 + 1e-9)
