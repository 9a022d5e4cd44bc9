"""Every named method's loss on numbers small enough for a pencil.

Logits are logarithms of small odds, so that every softmax is a simple fraction. Two rows, one decision,
two or three classes.
"""

import math

import pytest
import torch

from raykd.distillation import alpha_at, distillation_loss, ensemble_target, teacher_weights

ln = math.log


def logits(*rows, power=1):
    """Rows of odds to logits (B, 1, C); `power` T makes the odds those at temperature T."""
    return torch.tensor([[power * ln(odd) for odd in row] for row in rows])[:, None]


def kl(p, q):
    return sum(a * ln(a / b) for a, b in zip(p, q, strict=True) if a > 0)


STUDENT = logits([2, 1, 1], [1, 1, 3])  # (1/2, 1/4, 1/4) and (1/5, 1/5, 3/5)
LABELS = torch.tensor([[0], [2]])
CROSS_ENTROPY = (ln(2) + ln(5 / 3)) / 2


def test_finetune():
    got = distillation_loss(STUDENT, None, LABELS, alpha=0.0, temperature=1.0)
    assert got.loss.item() == pytest.approx(CROSS_ENTROPY, rel=1e-6)
    assert got.label.item() == got.loss.item()
    assert got.distillation.item() == 0


def test_label_smoothing():
    got = distillation_loss(STUDENT, None, LABELS, alpha=0.0, temperature=1.0, epsilon=0.3)
    first = 0.7 * ln(2) + 0.1 * (ln(2) + ln(4) + ln(4))
    second = 0.7 * ln(5 / 3) + 0.1 * (ln(5) + ln(5) + ln(5 / 3))
    assert got.loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_label_smoothing_is_uniform_over_allowed_classes():
    mask = torch.tensor([[[True, True, False]], [[True, True, True]]])
    got = distillation_loss(STUDENT, None, LABELS, alpha=0.0, temperature=1.0, epsilon=0.3, mask=mask)
    first = 0.7 * ln(3 / 2) + 0.15 * (ln(3 / 2) + ln(3))  # the first row is (2/3, 1/3, -)
    second = 0.7 * ln(5 / 3) + 0.1 * (ln(5) + ln(5) + ln(5 / 3))
    assert got.loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


TEACHERS = torch.stack([logits([8, 1, 1], [1, 1, 1]), logits([2, 1, 1], [1, 1, 4])])
# Their geometric mean: odds 4:1:1 and 1:1:2.
ENSEMBLE = [[2 / 3, 1 / 6, 1 / 6], [1 / 4, 1 / 4, 1 / 2]]
ENSEMBLE_KL = (kl(ENSEMBLE[0], [1 / 2, 1 / 4, 1 / 4]) + kl(ENSEMBLE[1], [1 / 5, 1 / 5, 3 / 5])) / 2


def mean_target(teachers, temperature):
    weights, distill = teacher_weights(teachers, LABELS)
    assert distill.all()
    return ensemble_target(teachers, weights, temperature)


def test_kd():
    got = distillation_loss(STUDENT, mean_target(TEACHERS, 1.0), LABELS, alpha=0.7, temperature=1.0)
    assert got.distillation.item() == pytest.approx(ENSEMBLE_KL, rel=1e-5)
    assert got.label.item() == pytest.approx(CROSS_ENTROPY, rel=1e-6)
    assert got.loss.item() == pytest.approx(0.7 * ENSEMBLE_KL + 0.3 * CROSS_ENTROPY, rel=1e-5)


@pytest.mark.parametrize(("scale_by_t2", "factor"), [(True, 4), (False, 1)])
def test_kd_at_temperature_two(scale_by_t2, factor):
    # Twice the logits at T = 2 are the same distributions; the label term stays at temperature 1.
    got = distillation_loss(
        2 * STUDENT,
        mean_target(2 * TEACHERS, 2.0),
        LABELS,
        alpha=0.7,
        temperature=2.0,
        scale_by_t2=scale_by_t2,
    )
    label = (-ln(4 / 6) - ln(9 / 11)) / 2  # odds squared: 4:1:1 and 1:1:9
    assert got.distillation.item() == pytest.approx(ENSEMBLE_KL, rel=1e-5)
    assert got.label.item() == pytest.approx(label, rel=1e-6)
    assert got.loss.item() == pytest.approx(0.7 * factor * ENSEMBLE_KL + 0.3 * label, rel=1e-5)


def test_distillation_alone_still_reports_the_label_term():
    student = STUDENT.clone().requires_grad_()
    got = distillation_loss(student, mean_target(TEACHERS, 1.0), LABELS, alpha=1.0, temperature=1.0)
    assert got.loss.item() == pytest.approx(ENSEMBLE_KL, rel=1e-5)
    assert got.label.item() == pytest.approx(CROSS_ENTROPY, rel=1e-6)
    got.loss.backward()  # (softmax(s) - p) / 2 decisions; nothing of the labels
    assert student.grad[0, 0].tolist() == pytest.approx([-1 / 12, 1 / 24, 1 / 24], abs=1e-6)


def test_annealing_starts_with_the_teachers_and_ends_on_the_labels():
    target = mean_target(TEACHERS, 1.0)
    for progress, share in [(0.0, 0.8), (0.5, 0.4), (1.0, 0.0)]:
        alpha = alpha_at(progress, 0.8, "linear")
        got = distillation_loss(STUDENT, target, LABELS, alpha=alpha, temperature=1.0)
        assert got.loss.item() == pytest.approx(share * ENSEMBLE_KL + (1 - share) * CROSS_ENTROPY, rel=1e-5)


def test_weighted():
    # Two teachers, gold (0, 2). Row 1: both right, weights 1. Row 2: the first says 1 (odds 1:16:1), wrong.
    teachers = torch.stack([logits([8, 1, 1], [1, 16, 1]), logits([2, 1, 1], [1, 1, 16])])
    weights, _ = teacher_weights(teachers, LABELS, weighting="correctness", W=0.5)
    assert weights[:, :, 0].tolist() == [[1, 0.5], [1, 1.5]]
    target = ensemble_target(teachers, weights, 1.0)
    # Row 2 pooled: odds 1 : 16^(1/4) : 16^(3/4) = 1 : 2 : 8.
    assert target[1, 0].tolist() == pytest.approx([1 / 11, 2 / 11, 8 / 11], rel=1e-5)
    got = distillation_loss(STUDENT, target, LABELS, alpha=0.5, temperature=1.0)
    divergence = kl(ENSEMBLE[0], [1 / 2, 1 / 4, 1 / 4]) + kl([1 / 11, 2 / 11, 8 / 11], [1 / 5, 1 / 5, 3 / 5])
    assert got.loss.item() == pytest.approx(0.5 * divergence / 2 + 0.5 * CROSS_ENTROPY, rel=1e-5)


def test_weighted_with_skip_leaves_a_hopeless_row_to_its_label():
    teachers = torch.stack([logits([8, 1, 1], [1, 16, 1]), logits([2, 1, 1], [4, 1, 1])])
    weights, distill = teacher_weights(teachers, LABELS, weighting="correctness", W=0.5, all_wrong="skip")
    target = ensemble_target(teachers, weights, 1.0)
    got = distillation_loss(STUDENT, target, LABELS, alpha=0.5, temperature=1.0, distill=distill)
    divergence = kl(ENSEMBLE[0], [1 / 2, 1 / 4, 1 / 4])  # out of the sum and out of its count
    assert got.loss.item() == pytest.approx(0.5 * divergence + 0.5 * CROSS_ENTROPY, rel=1e-5)


def test_born_again_learns_from_one_former_student():
    former = logits([6, 1, 1], [2, 1, 1])
    target = ensemble_target(former[None], torch.ones(1, 2, 1), 1.0)
    got = distillation_loss(STUDENT, target, LABELS, alpha=0.5, temperature=1.0)
    divergence = (
        kl([3 / 4, 1 / 8, 1 / 8], [1 / 2, 1 / 4, 1 / 4]) + kl([1 / 2, 1 / 4, 1 / 4], [1 / 5, 1 / 5, 3 / 5])
    ) / 2
    assert got.loss.item() == pytest.approx(0.5 * divergence + 0.5 * CROSS_ENTROPY, rel=1e-5)


def test_a_student_that_agrees_has_no_divergence():
    target = ensemble_target(STUDENT[None], torch.ones(1, 2, 1), 3.0)
    got = distillation_loss(STUDENT, target, LABELS, alpha=1.0, temperature=3.0)
    assert got.loss.item() == pytest.approx(0, abs=1e-6)


def test_a_transfer_row_counts_for_the_teachers_only():
    # loss = alpha T^2 (KL_1 + KL_2) / 2 + (1 - alpha) CE_1, at T = 2
    labels = torch.tensor([[0], [-100]])
    target = mean_target(2 * TEACHERS, 2.0)
    got = distillation_loss(2 * STUDENT, target, labels, alpha=0.25, temperature=2.0)
    assert got.loss.item() == pytest.approx(0.25 * 4 * ENSEMBLE_KL + 0.75 * -ln(4 / 6), rel=1e-5)


def test_where_annealing_ends_a_transfer_row_teaches_nothing():
    student = STUDENT.clone().requires_grad_()
    target = mean_target(TEACHERS, 1.0)
    labels = torch.tensor([[0], [-100]])
    alpha = alpha_at(1.0, 0.9, "cosine")
    distillation_loss(student, target, labels, alpha=alpha, temperature=1.0).loss.backward()
    assert student.grad[1].tolist() == [[0, 0, 0]]
    assert student.grad[0, 0].tolist() == pytest.approx([-1 / 2, 1 / 4, 1 / 4], rel=1e-6)


def test_question_answering_windows():
    # Two windows of 4 and 3 positions, padded to 4. Allowed: CLS (0) and the context, not the question (1).
    # Start and end are two decisions over the same positions. The second window's gold is CLS, twice.
    mask = torch.tensor([[[True, False, True, True]] * 2, [[True, False, True, False]] * 2])
    labels = torch.tensor([[2, 3], [0, 0]])
    junk = 11.0
    student = torch.tensor(
        [
            [[ln(1), junk, ln(2), ln(1)], [ln(1), junk, ln(1), ln(2)]],
            [[ln(3), junk, ln(1), junk], [ln(1), junk, ln(1), junk]],
        ]
    )
    teachers = torch.tensor(
        [
            [
                [[ln(1), 0, ln(8), ln(1)], [ln(1), 0, ln(1), ln(2)]],  # right, right
                [[ln(3), 0, ln(1), 0], [ln(1), 0, ln(4), 0]],  # right, wrong
            ],
            [
                [[ln(8), 0, ln(1), ln(1)], [ln(1), 0, ln(1), ln(2)]],  # wrong, right
                [[ln(3), 0, ln(1), 0], [ln(4), 0, ln(1), 0]],  # right, right
            ],
        ]
    )
    weights, distill = teacher_weights(teachers, labels, mask, weighting="correctness", W=1 / 3)
    assert weights[0].flatten().tolist() == pytest.approx([5 / 3, 1, 1, 1 / 3])
    assert weights[1].flatten().tolist() == pytest.approx([1 / 3, 1, 1, 5 / 3])
    target = ensemble_target(teachers, weights, 1.0, mask)
    # Start of window 1: 8^(1/6) : 8^(5/6) : 1. End of window 2: 4^(5/6) : 4^(1/6).
    a, b = 8 ** (1 / 6), 8 ** (5 / 6)
    c, d = 4 ** (5 / 6), 4 ** (1 / 6)
    divergence = (
        kl([a / (1 + a + b), b / (1 + a + b), 1 / (1 + a + b)], [1 / 4, 1 / 2, 1 / 4])
        + 0  # the end of window 1: teachers and student agree
        + 0  # and so on the start of window 2
        + kl([c / (c + d), d / (c + d)], [1 / 2, 1 / 2])
    ) / 4
    label = (ln(2) + ln(2) + ln(4 / 3) + ln(2)) / 4
    got = distillation_loss(student, target, labels, alpha=0.6, temperature=1.0, mask=mask, distill=distill)
    assert got.distillation.item() == pytest.approx(divergence, rel=1e-5)
    assert got.label.item() == pytest.approx(label, rel=1e-6)
    assert got.loss.item() == pytest.approx(0.6 * divergence + 0.4 * label, rel=1e-5)
