import math

import numpy as np
import pytest
import torch
from distillation_reference import random_batch
from distillation_reference import target as expected_target
from distillation_reference import weights as expected_weights

from raykd.distillation import ensemble_target


def log(*probabilities):
    return [math.log(p) for p in probabilities]


def one_decision(*teachers):
    return torch.tensor(teachers)[:, None, None]  # (M, 1, 1, C)


TWO = one_decision(log(0.8, 0.2), log(0.5, 0.5))
ONES = torch.ones(2, 1, 1)


def test_logits_are_pooled_to_the_geometric_mean():
    # sqrt(.8 * .5) : sqrt(.2 * .5) = 2 : 1
    assert ensemble_target(TWO, ONES, 1.0)[0, 0].tolist() == pytest.approx([2 / 3, 1 / 3], rel=1e-6)


def test_probabilities_are_pooled_to_the_arithmetic_mean():
    got = ensemble_target(TWO, ONES, 1.0, pool="probabilities")
    assert got[0, 0].tolist() == pytest.approx([0.65, 0.35], rel=1e-6)


def test_weights_are_exponents_or_shares():
    weights = torch.tensor([0.5, 1.5])[:, None, None]
    # .8^.25 : .2^.25 = 4^.25 : 1, and .25 * .8 + .75 * .5
    logits = ensemble_target(TWO, weights, 1.0)[0, 0].tolist()
    assert logits == pytest.approx([4**0.25 / (1 + 4**0.25), 1 / (1 + 4**0.25)], rel=1e-6)
    probabilities = ensemble_target(TWO, weights, 1.0, pool="probabilities")[0, 0].tolist()
    assert probabilities == pytest.approx([0.575, 0.425], rel=1e-6)


def test_temperature_softens():
    # At T = 2 odds of 4 become 2; of 1 stay 1. The pooled odds of 2 become sqrt(2).
    odds = math.sqrt(2)
    logits = ensemble_target(TWO, ONES, 2.0)[0, 0].tolist()
    assert logits == pytest.approx([odds / (1 + odds), 1 / (1 + odds)], rel=1e-6)
    probabilities = ensemble_target(TWO, ONES, 2.0, pool="probabilities")[0, 0].tolist()
    assert probabilities == pytest.approx([(2 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 2) / 2], rel=1e-6)


@pytest.mark.parametrize("pool", ["logits", "probabilities"])
@pytest.mark.parametrize("junk", [0.0, 9e4, float("nan"), float("inf"), float("-inf")])
def test_masked_classes_get_no_probability_for_any_value(pool, junk):
    mask = torch.tensor([[[True, False, True]]])
    logits = one_decision([math.log(0.75), junk, math.log(0.25)], [math.log(0.75), junk, math.log(0.25)])
    got = ensemble_target(logits, ONES, 1.0, mask, pool)
    assert got[0, 0, 1] == 0
    assert got[0, 0, [0, 2]].tolist() == pytest.approx([0.75, 0.25], rel=1e-6)


@pytest.mark.parametrize("pool", ["logits", "probabilities"])
def test_masked_classes_stay_out_even_if_allowed_logits_are_very_low(pool):
    # Raw logits all far below the 0 that stands in masked classes.
    mask = torch.tensor([[[True, False, True]]])
    logits = one_decision([-5000.0, 0.0, -5000.0], [-5000.0, 0.0, -5000.0])
    assert ensemble_target(logits, ONES, 1.0, mask, pool).tolist() == [[[0.5, 0, 0.5]]]


@pytest.mark.parametrize("pool", ["logits", "probabilities"])
def test_a_decision_without_classes_is_all_zero(pool):
    mask = torch.zeros(1, 1, 2, dtype=torch.bool)
    assert ensemble_target(TWO * float("nan"), ONES, 1.0, mask, pool).tolist() == [[[0, 0]]]


@pytest.mark.parametrize("pool", ["logits", "probabilities"])
def test_fp16_logits_are_pooled_in_fp32(pool):
    # Their sum over teachers, 3 * 60000, is more than fp16 holds; 65504 / 0.1 is, too.
    logits = torch.tensor([[0.0, -60000.0, -1.0]] * 3).half()[:, None, None]
    got = ensemble_target(logits, torch.ones(3, 1, 1), 0.5, pool=pool)
    assert got.dtype == torch.float32
    assert got[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0, 1 / (1 + math.exp(2))], rel=1e-6)


@pytest.mark.parametrize("pool", ["logits", "probabilities"])
def test_autocast_does_not_touch_it(pool):
    logits, _, labels, mask = random_batch(3)
    weights = torch.ones(3, *labels.shape)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ensemble_target(logits, weights, 2.0, mask, pool)
    assert torch.equal(inside, ensemble_target(logits, weights, 2.0, mask, pool))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("pool", ["logits", "probabilities"])
def test_agrees_with_the_reference(pool, dtype):
    for seed, temperature in enumerate([0.5, 1.0, 4.0]):
        logits, _, labels, mask = random_batch(seed, B=6)
        logits = logits.to(dtype)
        exact = logits.double().numpy()
        weight, _ = expected_weights(exact, labels.numpy(), mask.numpy(), 0.25)
        want = expected_target(exact, weight, mask.numpy(), temperature, pool)
        got = ensemble_target(logits, torch.tensor(weight), temperature, mask, pool)
        np.testing.assert_allclose(got.numpy(), want, rtol=5e-6, atol=1e-9)


def test_a_born_again_teacher_takes_no_gradient():
    student = torch.randn(1, 2, 1, 3, requires_grad=True)
    assert not ensemble_target(student, torch.ones(1, 2, 1), 1.0).requires_grad


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature = "):
        ensemble_target(TWO, ONES, temperature)


def test_bad_pool_and_shapes_are_refused():
    with pytest.raises(ValueError, match="pool = 'max'"):
        ensemble_target(TWO, ONES, 1.0, pool="max")
    with pytest.raises(ValueError, match="weights has shape"):
        ensemble_target(TWO, torch.ones(2, 1), 1.0)
    with pytest.raises(ValueError, match="mask has shape"):
        ensemble_target(TWO, ONES, 1.0, torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="logits has shape"):
        ensemble_target(TWO[:0], ONES[:0], 1.0)
