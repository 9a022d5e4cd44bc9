"""Divergences and soft weights, against values worked out by hand and in float64."""

import numpy as np
import pytest
import torch
from distillation_reference import random_batch, softmax
from distillation_reference import target as expected_target

from raykd.distillation import decision_divergence, distillation_loss, ensemble_target, teacher_weights

KINDS = ("forward_kl", "reverse_kl", "jsd")


def expected(kind, p, q, beta):
    """Of one decision, float64, over the classes with p > 0."""
    m = beta * p + (1 - beta) * q
    if kind == "forward_kl":
        return float((p * np.log(p / q)).sum())
    if kind == "reverse_kl":
        return float((q * np.log(q / p)).sum())
    return float(beta * (p * np.log(p / m)).sum() + (1 - beta) * (q * np.log(q / m)).sum())


@pytest.mark.parametrize(
    ("kind", "value"), [("forward_kl", 0.1308120), ("reverse_kl", 0.1438410), ("jsd", 0.0338222)], ids=KINDS
)
def test_two_classes_by_hand(kind, value):
    """p = (3/4, 1/4), q = (1/2, 1/2), beta = 1/2, so m = (5/8, 3/8)."""
    p, q = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.5, 0.5]]])
    target = p if kind == "forward_kl" else p.log()
    assert decision_divergence(target, q.log(), kind, 0.5).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["logits", "probabilities"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_value_and_gradient_in_float64(kind, pool, temperature):
    """The value from its definition, and the gradient from central differences of it."""
    beta, alpha, step = 0.3, 1.0, 1e-5
    teachers, student, labels, mask = random_batch(5)
    weights = teacher_weights(teachers, labels, mask, weighting="correctness", W=0.0).weights
    exists = mask.any(-1).numpy()
    p = expected_target(teachers.numpy(), weights.double().numpy(), mask.numpy(), temperature, pool)

    def whole(logits):
        values = []
        for b, h in zip(*np.nonzero(exists), strict=True):
            allowed = mask[b, h].numpy()
            q = softmax(logits[b, h], allowed, temperature)[allowed]
            values.append(expected(kind, p[b, h][allowed], q, beta))
        return temperature**2 * np.mean(values)

    target = ensemble_target(teachers, weights, temperature, mask, pool, log=kind != "forward_kl")
    student.requires_grad_()
    settings = {"alpha": alpha, "temperature": temperature, "mask": mask, "divergence": kind, "beta": beta}
    loss = distillation_loss(student, target, labels, **settings).loss
    loss.backward()
    base = student.detach().double().numpy()
    assert loss.item() == pytest.approx(whole(base), rel=2e-5)
    for place in [(0, 0, 0), (1, 1, 2), (2, 0, 4), (3, 1, 1)]:
        up, down = base.copy(), base.copy()
        up[place] += step
        down[place] -= step
        slope = (whole(up) - whole(down)) / (2 * step) if mask[place] else 0.0
        assert student.grad[place].item() == pytest.approx(slope, abs=3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_equals_its_teacher_learns_nothing(kind):
    teachers, _, labels, mask = random_batch(1, M=1)
    student = teachers[0].float().requires_grad_()
    target = ensemble_target(teachers, torch.ones(teachers.shape[:3]), 2.0, mask, log=kind != "forward_kl")
    loss = distillation_loss(student, target, labels, alpha=1.0, temperature=2.0, mask=mask, divergence=kind).loss
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pool", ["logits", "probabilities"])
def test_a_class_that_is_too_improbable_for_a_float(pool):
    """exp(-200) is 0 in fp32, but its logarithm is -200, and so the reverse KL of a student that takes it is 200."""
    teachers = torch.tensor([[[[0.0, -200.0]]]]).half()
    target = ensemble_target(teachers, torch.ones(1, 1, 1), 1.0, None, pool, log=True)
    assert target[0, 0].tolist() == pytest.approx([0, -200])
    q = torch.log_softmax(torch.tensor([[[0.0, 20.0]]]), -1)
    assert decision_divergence(target, q, "reverse_kl", 0.5).item() == pytest.approx(200, rel=1e-3)


def test_a_teacher_of_weight_0_is_left_out_of_a_mixture():
    teachers = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 3.0]]]]).half()
    weights = torch.tensor([2.0, 0.0]).view(2, 1, 1)
    mixture = ensemble_target(teachers, weights, 1.0, None, "probabilities", log=True)
    alone = ensemble_target(teachers[:1], torch.ones(1, 1, 1), 1.0)
    torch.testing.assert_close(mixture.exp(), alone)


def of_probabilities(*values):
    """(M, 1, H, 2) logits of teachers that give class 0 these probabilities."""
    p = torch.tensor(values).unsqueeze(1)
    return torch.stack([p, 1 - p], -1).log()


@pytest.mark.parametrize(
    ("weighting", "temperature", "expected_weights"),
    [
        ("likelihood", 1.0, [1.6, 0.4]),  # 2 * 0.8 / (0.8 + 0.2)
        ("likelihood", 2.0, [4 / 3, 2 / 3]),  # square roots: 0.894 and 0.447
        ("entropy", 1.0, [1.0, 1.0]),  # both have the entropy of (0.8, 0.2)
    ],
)
def test_weights_by_hand(weighting, temperature, expected_weights):
    logits = of_probabilities([0.8], [0.2])
    found = teacher_weights(
        logits, torch.tensor([[0]]), weighting=weighting, weight_temperature=temperature
    ).weights.flatten()
    assert found.tolist() == pytest.approx(expected_weights, rel=1e-5)


def test_the_surer_teacher_has_more_weight():
    """Entropies 0.693147 of (1/2, 1/2) and 0.325083 of (0.9, 0.1); exp(-H): 0.5 and 0.722467. No label is needed."""
    logits, labels = of_probabilities([0.5], [0.9]), torch.tensor([[-100]])
    found = teacher_weights(logits, labels, weighting="entropy").weights.flatten().tolist()
    assert found == pytest.approx([0.818018, 1.181982], rel=1e-5)


def test_a_row_is_weighed_by_its_mean():
    """Log-probabilities of the labels: ln 0.4 on average of (0.8, 0.2), and ln 0.5."""
    logits = of_probabilities([0.8, 0.2], [0.5, 0.5])
    settings = {"weighting": "likelihood", "correct_by": "example"}
    found = teacher_weights(logits, torch.tensor([[0, 0]]), **settings).weights
    assert found[:, 0, 0].tolist() == pytest.approx([0.8 / 0.9, 1 / 0.9], rel=1e-5)
    torch.testing.assert_close(found[..., 0], found[..., 1])
    partly = teacher_weights(logits, torch.tensor([[0, -100]]), **settings).weights
    assert partly[:, 0, 0].tolist() == pytest.approx([1.6 / 1.3, 1 / 1.3], rel=1e-5)
    assert partly[:, 0, 1].tolist() == [1, 1], "no label, no judgement"


@pytest.mark.parametrize("weighting", ["likelihood", "entropy"])
@pytest.mark.parametrize("by", ["decision", "example"])
def test_weights_sum_to_the_number_of_teachers(weighting, by):
    teachers, _, labels, mask = random_batch(3)
    found = teacher_weights(teachers, labels, mask, weighting=weighting, correct_by=by)
    torch.testing.assert_close(found.weights.sum(0), torch.full(labels.shape, float(len(teachers))))
    assert torch.equal(found.distill, mask.any(-1))
