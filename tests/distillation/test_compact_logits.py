import numpy as np
import pytest
import torch

from raykd.distillation import compact_logits


def test_the_largest_allowed_logit_becomes_zero():
    got = compact_logits(torch.tensor([[3.0, 5.0, 1.0], [-7.0, -9.0, -7.5]]))
    assert got.dtype == torch.float16
    assert got.tolist() == [[-2, 0, -4], [0, -2, -0.5]]


def test_masked_classes_are_zero_and_do_not_set_the_shift():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    got = compact_logits(torch.tensor([[3.0, 500.0, 1.0], [1.0, 2.0, 3.0]]), mask)
    assert got.tolist() == [[0, 0, -2], [0, 0, 0]]


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_masked_classes_can_have_any_value(junk):
    mask = torch.tensor([True, False, True])
    assert compact_logits(torch.tensor([3.0, junk, 1.0]), mask).tolist() == [0, 0, -2]


def test_the_mask_broadcasts_over_teachers():
    mask = torch.tensor([[[True, False]], [[True, True]]])  # (B, H, C)
    got = compact_logits(torch.tensor([[[[1.0, 9.0]], [[1.0, 9.0]]]] * 3), mask)
    assert got.tolist() == [[[[0, 0]], [[-8, 0]]]] * 3


def test_large_logits_neither_overflow_nor_tie():
    # fp16 holds up to 65504, and in steps of 32 near there: as they are, both would be infinite.
    got = compact_logits(torch.tensor([1e5, 1e5 - 1, -1e5]))
    assert got.tolist() == [0, -1, -65504]
    assert compact_logits(torch.tensor([3e38, -3e38])).tolist() == [0, -65504]


def test_the_shift_is_subtracted_in_fp32():
    # In bf16, 300 - 297.5 is 2 (its steps near 300 are 2 wide); the inputs are exact, so must be the answer.
    logits = torch.tensor([256.0, 254.0, 1.0], dtype=torch.bfloat16)
    assert compact_logits(logits).tolist() == [0, -2, -255]
    assert compact_logits(torch.tensor([60000.0, -60000.0]).half()).tolist() == [0, -65504]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_softmax_is_kept(dtype):
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 4, (50, 7)) + rng.normal(0, 30, (50, 1))).to(dtype)
    got = torch.softmax(compact_logits(logits).double(), -1)
    exact = torch.softmax(logits.double(), -1)
    # A logit d below the largest is off by d / 2048 at most, and d e^-d is at most 1 / e.
    assert (got - exact).abs().max() < 2 * 2**-11


def test_compacting_twice_changes_nothing():
    once = compact_logits(torch.randn(20, 5) * 100)
    assert torch.equal(compact_logits(once), once)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_logits_are_refused_with_their_position(bad):
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 3] = bad
    with pytest.raises(ValueError, match=rf"logits\[1, 2, 3\] = {bad}"):
        compact_logits(logits)
    with pytest.raises(ValueError, match="not a finite"):
        compact_logits(logits, torch.ones(2, 3, 4, dtype=torch.bool))


def test_a_float64_beyond_fp32_is_refused():
    with pytest.raises(ValueError, match="not a finite fp32"):
        compact_logits(torch.tensor([0.0, 1e300], dtype=torch.float64))


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="mask has shape"):
        compact_logits(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask has shape"):
        compact_logits(torch.zeros(3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask has dtype"):
        compact_logits(torch.zeros(2, 3), torch.ones(2, 3))
