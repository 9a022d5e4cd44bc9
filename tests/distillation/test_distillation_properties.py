"""What must hold for every batch."""

import torch
import torch.nn.functional as F
from distillation_reference import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.distillation import (
    compact_logits,
    distillation_loss,
    ensemble_target,
    teacher_weights,
    weights_changed,
)

# The same batches every time, so that a failure is a change in the code.
quick = settings(max_examples=25, derandomize=True, database=None)

BATCHES = st.builds(
    random_batch,
    seed=st.integers(0, 10**6),
    M=st.integers(2, 4),
    B=st.integers(1, 5),
    H=st.integers(1, 3),
    C=st.integers(2, 6),
)
FRACTION = st.floats(0, 1)
TEMPERATURE = st.floats(0.25, 8)
CHOICES = st.fixed_dictionaries(
    {
        "weighting": st.sampled_from(["mean", "correctness"]),
        "W": FRACTION,
        "all_wrong": st.sampled_from(["mean", "skip"]),
        "correct_by": st.sampled_from(["decision", "example"]),
    }
)
POOL = st.sampled_from(["logits", "probabilities"])


def run(batch, choices, pool, alpha, temperature, epsilon=0.1, counts=None):
    """The whole way from logits to the loss: (weights, distill, target, terms, gradient)."""
    teachers, student, labels, mask = batch
    student = student.clone().requires_grad_()
    weights, distill = teacher_weights(teachers, labels, mask, **choices)
    target = ensemble_target(teachers, weights, temperature, mask, pool)
    terms = distillation_loss(
        student,
        target,
        labels,
        alpha=alpha,
        temperature=temperature,
        mask=mask,
        distill=distill,
        counts=counts,
        epsilon=epsilon,
    )
    terms.loss.backward()
    return weights, distill, target, terms, student.grad


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@quick
@given(BATCHES, CHOICES)
def test_W_one_is_mean_exactly(batch, choices):
    teachers, _, labels, mask = batch
    one = teacher_weights(teachers, labels, mask, **{**choices, "weighting": "correctness", "W": 1.0})
    mean = teacher_weights(teachers, labels, mask, **{**choices, "weighting": "mean"})
    assert torch.equal(one.weights, mean.weights)
    assert torch.equal(one.distill, mean.distill)
    assert not weights_changed(one.weights).any()


@quick
@given(BATCHES, CHOICES)
def test_weights_sum_to_the_number_of_teachers(batch, choices):
    teachers, _, labels, mask = batch
    weights, _ = teacher_weights(teachers, labels, mask, **choices)
    close(weights.sum(0), torch.full(labels.shape, float(len(teachers))))
    assert (weights >= 0).all()


@quick
@given(BATCHES, CHOICES, POOL, TEMPERATURE)
def test_the_target_is_a_distribution_over_allowed_classes(batch, choices, pool, temperature):
    teachers, _, labels, mask = batch
    weights, distill = teacher_weights(teachers, labels, mask, **choices)
    target = ensemble_target(teachers, weights, temperature, mask, pool)
    close(target.sum(-1), mask.any(-1).float())
    assert (target[~mask] == 0).all()
    assert not (distill & ~mask.any(-1)).any()


@quick
@given(BATCHES, CHOICES, POOL, st.randoms())
def test_a_permutation_of_teachers_changes_nothing(batch, choices, pool, random):
    teachers, student, labels, mask = batch
    order = list(range(len(teachers)))
    random.shuffle(order)
    weights, distill, target, terms, grad = run(batch, choices, pool, 0.5, 2.0)
    other = run((teachers[order], student, labels, mask), choices, pool, 0.5, 2.0)
    assert torch.equal(other[0], weights[order])
    assert torch.equal(other[1], distill)
    close(other[2], target)
    close(other[3].loss, terms.loss)
    close(other[4], grad)


@quick
@given(BATCHES, CHOICES, POOL, FRACTION, st.integers(0, 2), st.integers(0, 2), st.integers(0, 3))
def test_padding_changes_nothing(batch, choices, pool, alpha, rows, decisions, classes):
    teachers, student, labels, mask = batch
    B, H, C = student.shape
    pad = (0, classes, 0, decisions, 0, rows)
    padded = (
        F.pad(teachers, pad, value=float("nan")),
        F.pad(student, pad, value=float("nan")),
        F.pad(labels, pad[2:], value=-100),
        F.pad(mask, pad, value=False),
    )
    weights, distill, target, terms, grad = run(batch, choices, pool, alpha, 2.0)
    got_weights, got_distill, got_target, got_terms, got_grad = run(padded, choices, pool, alpha, 2.0)
    assert torch.equal(got_weights[:, :B, :H], weights)
    assert torch.equal(got_distill[:B, :H], distill)
    assert got_distill.sum() == distill.sum()
    close(got_target[:B, :H, :C], target)
    assert got_target.isfinite().all()
    for got, want in zip(got_terms, terms, strict=True):
        close(got, want)
    close(got_grad[:B, :H, :C], grad)
    close(got_grad, F.pad(grad, pad))  # and 0, not NaN, in the padding


@quick
@given(BATCHES, CHOICES, POOL, TEMPERATURE, st.sampled_from([0.0, 0.1]))
def test_alpha_zero_is_finetuning_bit_for_bit(batch, choices, pool, temperature, epsilon):
    _, student, labels, mask = batch
    *_, terms, grad = run(batch, choices, pool, 0.0, temperature, epsilon)
    plain = student.clone().requires_grad_()
    alone = distillation_loss(plain, None, labels, alpha=0.0, temperature=1.0, mask=mask, epsilon=epsilon)
    alone.loss.backward()
    assert torch.equal(terms.loss, alone.loss)
    assert torch.equal(grad, plain.grad)
    if epsilon == 0 and (labels != -100).any():
        other = student.clone().requires_grad_()
        allowed = other.masked_fill(~mask, torch.finfo(torch.float32).min)
        loss = F.cross_entropy(allowed.flatten(0, 1), labels.flatten())
        loss.backward()
        assert torch.equal(terms.loss, loss.detach())
        assert torch.equal(grad, other.grad)


@quick
@given(BATCHES, CHOICES, POOL, FRACTION, TEMPERATURE, st.integers(0, 5))
def test_two_uneven_ranks_equal_one(batch, choices, pool, alpha, temperature, split):
    teachers, student, labels, mask = batch
    split = min(split, len(labels))
    labels = labels.clone()
    labels[split:] = -100  # the second rank has no labels at all, and either may have no rows
    batch = (teachers, student, labels, mask)
    _, distill, _, whole, grad = run(batch, choices, pool, alpha, temperature)
    counts = (distill.sum(), (labels != -100).sum())
    ranks = [
        run(
            (teachers[:, part], student[part], labels[part], mask[part]),
            choices,
            pool,
            alpha,
            temperature,
            counts=counts,
        )
        for part in (slice(None, split), slice(split, None))
    ]
    for i, want in enumerate(whole):
        close(ranks[0][3][i] + ranks[1][3][i], want)
    close(torch.cat([ranks[0][4], ranks[1][4]]), grad)
    assert ranks[1][3].label == 0


@quick
@given(BATCHES, st.floats(0, 1e5), st.floats(-1e5, 1e5))
def test_compact_logits_keep_the_softmax(batch, scale, shift):
    _, student, _, mask = batch
    logits = student * scale / 8 + shift
    compact = compact_logits(logits, mask)
    assert compact.isfinite().all()
    assert (compact <= 0).all()
    assert (compact[~mask] == 0).all()
    exists = mask.any(-1)
    assert (compact.masked_fill(~mask, -9).amax(-1)[exists] == 0).all()
    minus_inf = float("-inf")
    exact = torch.softmax(logits.double().masked_fill(~mask, minus_inf), -1)[exists]
    got = torch.softmax(compact.double().masked_fill(~mask, minus_inf), -1)[exists]
    # d e^-d / 2048 a class at most, d the distance from the largest; and the classes share a divisor.
    assert ((got - exact).abs() < 1e-3).all()


@quick
@given(BATCHES, st.sampled_from([(0,), (1, 2)]), TEMPERATURE)
def test_a_constant_on_a_teachers_logits_changes_nothing(batch, dims, temperature):
    # What compact_logits subtracts must not matter to the weights or to the target.
    teachers, _, labels, mask = batch
    logits = teachers.float().masked_fill(~mask, 0)
    shifted = logits + torch.arange(1.0, logits.shape[dims[0]] + 1).reshape(
        [-1 if d == dims[0] else 1 for d in range(4)]
    )
    before = teacher_weights(logits, labels, mask, weighting="correctness", W=0.25)
    after = teacher_weights(shifted, labels, mask, weighting="correctness", W=0.25)
    assert torch.equal(before.weights, after.weights)
    close(
        ensemble_target(shifted, after.weights, temperature, mask),
        ensemble_target(logits, before.weights, temperature, mask),
    )


def test_the_batches_are_worth_testing():
    # The properties above say little unless these cases turn up among the random batches.
    seen = {"changed": 0, "skipped": 0, "unlabelled": 0, "absent": 0, "masked": 0}
    for seed in range(20):
        teachers, _, labels, mask = random_batch(seed)
        weights, distill = teacher_weights(teachers, labels, mask, weighting="correctness", all_wrong="skip")
        exists = mask.any(-1)
        seen["changed"] += int(weights_changed(weights).sum())
        seen["skipped"] += int((exists & ~distill).sum())
        seen["unlabelled"] += int((exists & (labels == -100)).sum())
        seen["absent"] += int((~exists).sum())
        seen["masked"] += int((exists & ~mask.all(-1)).sum())
    assert min(seen.values()) > 10, seen
