import warnings

import numpy as np
import pytest
import torch
from distillation_reference import random_batch
from distillation_reference import weights as expected_weights

from raykd.distillation import teacher_weights, weights_changed

CORRECTNESS = {"weighting": "correctness", "W": 0.75}


def answers(*teachers):
    """Logits (M, B, H, C) of teachers whose argmax is given as nested lists (M, B, H)."""
    return torch.nn.functional.one_hot(torch.tensor(teachers), 4).half() * 3


# The design's example: three teachers, start wrong {1}, end wrong {1, 2}; gold (1, 2).
QA = answers([[0, 0]], [[1, 3]], [[1, 2]])
QA_GOLD = torch.tensor([[1, 2]])


def test_design_example_by_decision():
    weights, distill = teacher_weights(QA, QA_GOLD, **CORRECTNESS)
    assert weights[:, 0, 0].tolist() == [0.75, 1.125, 1.125]
    assert weights[:, 0, 1].tolist() == [0.75, 0.75, 1.5]
    assert weights.dtype == torch.float32
    assert distill.tolist() == [[True, True]]


def test_design_example_by_example():
    weights, _ = teacher_weights(QA, QA_GOLD, **CORRECTNESS, correct_by="example")
    assert weights[:, 0].T.tolist() == [[0.75, 0.75, 1.5]] * 2


def test_by_example_looks_at_labelled_decisions_only():
    gold = torch.tensor([[1, -100]])  # teachers 2 and 3 are right on all that is labelled
    weights, _ = teacher_weights(QA, gold, **CORRECTNESS, correct_by="example")
    assert weights[:, 0, 0].tolist() == [0.75, 1.125, 1.125]
    assert weights[:, 0, 1].tolist() == [1, 1, 1]


def test_W_zero_silences_the_wrong_teachers():
    weights, _ = teacher_weights(QA, QA_GOLD, weighting="correctness", W=0.0)
    assert weights[:, 0].T.tolist() == [[0, 1.5, 1.5], [0, 0, 3]]


def test_all_right_all_wrong_and_unlabelled_keep_weight_one():
    logits = answers([[1], [0], [2]], [[1], [3], [0]])
    weights, distill = teacher_weights(logits, torch.tensor([[1], [2], [-100]]), **CORRECTNESS)
    assert weights.tolist() == [[[1], [1], [1]]] * 2
    assert distill.all()


@pytest.mark.parametrize("weighting", ["mean", "correctness"])
def test_skip_drops_what_every_teacher_gets_wrong(weighting):
    logits = answers([[1], [0], [2], [0]], [[1], [3], [0], [2]])
    gold = torch.tensor([[1], [2], [-100], [2]])  # right, all wrong, unlabelled, mixed
    weights, distill = teacher_weights(logits, gold, weighting=weighting, W=0.5, all_wrong="skip")
    assert distill.tolist() == [[True], [False], [True], [True]]
    assert weights[:, 1].tolist() == [[1], [1]]
    assert weights[:, 3].tolist() == ([[1], [1]] if weighting == "mean" else [[0.5], [1.5]])


def test_skip_by_example_spares_unlabelled_decisions():
    # Each teacher is right on one of the two labelled decisions: every teacher is wrong on the row.
    logits = answers([[1, 0, 3]], [[0, 2, 3]])
    gold = torch.tensor([[1, 2, -100]])
    settings = {**CORRECTNESS, "all_wrong": "skip"}
    assert teacher_weights(logits, gold, **settings, correct_by="example").distill.tolist() == [[False, False, True]]
    assert teacher_weights(logits, gold, **settings, correct_by="decision").distill.all()


def test_masked_classes_never_win_the_argmax():
    # Stored logits: the largest allowed one is 0 at most, and masked classes hold 0 as well.
    logits = torch.tensor([[[[0.0, -1.0, 0.0, 0.0]]], [[[0.0, 0.0, -0.5, 0.0]]]]).half()
    mask = torch.tensor([[[False, True, True, False]]])
    weights, _ = teacher_weights(logits, torch.tensor([[2]]), mask, **CORRECTNESS)
    assert weights[:, 0, 0].tolist() == [1.25, 0.75]
    logits = torch.tensor([[[[0.0, -1.0, -2.0, 0.0]]], [[[0.0, -3.0, -0.5, 0.0]]]]).half()
    weights, _ = teacher_weights(logits, torch.tensor([[1]]), mask, **CORRECTNESS)
    assert weights[:, 0, 0].tolist() == [1.25, 0.75]


@pytest.mark.parametrize("weighting", ["mean", "correctness"])
def test_a_decision_without_classes_does_not_exist(weighting):
    logits = answers([[1, 0]], [[0, 0]])
    mask = torch.tensor([[[True] * 4, [False] * 4]])
    weights, distill = teacher_weights(logits, torch.tensor([[1, -100]]), mask, weighting=weighting)
    assert distill.tolist() == [[True, False]]
    assert weights[:, 0, 1].tolist() == [1, 1]


@pytest.mark.parametrize("by", ["decision", "example"])
@pytest.mark.parametrize("skip", [False, True])
def test_agrees_with_the_reference(by, skip):
    for seed in range(8):
        logits, _, labels, mask = random_batch(seed, B=6)
        want, want_distill = expected_weights(logits.numpy(), labels.numpy(), mask.numpy(), 0.4, by, skip)
        got, distill = teacher_weights(
            logits,
            labels,
            mask,
            weighting="correctness",
            W=0.4,
            all_wrong="skip" if skip else "mean",
            correct_by=by,
        )
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)
        assert np.array_equal(distill.numpy(), want_distill)


def test_weights_changed_counts_decisions():
    weights, _ = teacher_weights(QA, QA_GOLD, **CORRECTNESS)
    assert weights_changed(weights).tolist() == [[True, True]]
    weights, _ = teacher_weights(QA, torch.tensor([[1, -100]]), **CORRECTNESS)
    assert weights_changed(weights).tolist() == [[True, False]]
    weights, _ = teacher_weights(QA, QA_GOLD, weighting="correctness", W=1.0)
    assert weights_changed(weights).tolist() == [[False, False]]


def test_one_changed_weight_is_enough():
    weights = torch.tensor([[[1.0, 1.0, 1.0]], [[0.9, 1.1, 1.0]]])
    assert weights_changed(weights).tolist() == [[True, True, False]]


def test_one_teacher_is_kd():
    with warnings.catch_warnings():  # what to tell the user is for the command, once, and only where W is set
        warnings.simplefilter("error")
        weights, distill = teacher_weights(QA[:1], QA_GOLD, **CORRECTNESS)
    assert weights.tolist() == [[[1, 1]]]
    assert distill.all()


@pytest.mark.parametrize(
    ("labels", "place"), [([[1, 2], [0, 4]], r"\[1, 1\] = 4"), ([[1, 2], [-1, 0]], r"\[1, 0\] = -1")]
)
def test_a_label_that_is_no_class_is_named(labels, place):
    logits = answers([[1, 1], [1, 1]], [[0, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"labels" + place):
        teacher_weights(logits, torch.tensor(labels), **CORRECTNESS)


def test_a_label_on_a_masked_class_is_named():
    mask = torch.tensor([[[True] * 4, [True, True, False, True]]])
    with pytest.raises(ValueError, match=r"labels\[0, 1\] = 2"):
        teacher_weights(QA, QA_GOLD, mask, **CORRECTNESS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weighting": "median"}, "weighting = 'median'"),
        ({"W": 1.5}, "W = 1.5"),
        ({"W": -0.1}, "W = -0.1"),
        ({"W": float("nan")}, "W = nan"),
        ({"all_wrong": "drop"}, "all_wrong = 'drop'"),
        ({"correct_by": "row"}, "correct_by = 'row'"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        teacher_weights(QA, QA_GOLD, **setting)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="labels has shape"):
        teacher_weights(QA, QA_GOLD[:, :1])
    with pytest.raises(ValueError, match="mask has shape"):
        teacher_weights(QA, QA_GOLD, torch.ones(1, 1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask has dtype torch\.int64"):
        teacher_weights(QA, QA_GOLD, torch.ones(1, 2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="logits has shape"):
        teacher_weights(QA[0], QA_GOLD)
