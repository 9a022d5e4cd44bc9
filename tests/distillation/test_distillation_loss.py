import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distillation_reference import loss as expected_loss
from distillation_reference import random_batch
from distillation_reference import target as expected_target
from torch.utils._python_dispatch import TorchDispatchMode

from raykd.distillation import distillation_loss, ensemble_target, teacher_weights
from raykd.distillation.decisions import NO_LABEL

SETTINGS = {"alpha": 0.6, "temperature": 2.0}


def make(seed, **sizes):
    teachers, student, labels, mask = random_batch(seed, **sizes)
    target = ensemble_target(teachers, torch.ones(teachers.shape[:3]), 2.0, mask)
    return student.requires_grad_(), target, labels, mask


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_loss_and_gradient_agree_with_the_reference(alpha, temperature, epsilon):
    for seed in range(3):
        teachers, student, labels, mask = random_batch(seed, B=6)
        ones = np.ones(teachers.shape[:3])
        p = expected_target(teachers.numpy(), ones, mask.numpy(), temperature)
        distill = mask.any(-1) & (torch.arange(6) != 2)[:, None]  # one row is not distilled
        want = expected_loss(
            student.double().numpy(),
            p,
            labels.numpy(),
            mask.numpy(),
            distill.numpy(),
            alpha,
            temperature,
            epsilon,
        )
        student.requires_grad_()
        got = distillation_loss(
            student,
            torch.tensor(p).float(),
            labels,
            alpha=alpha,
            temperature=temperature,
            mask=mask,
            distill=distill,
            epsilon=epsilon,
        )
        got.loss.backward()
        assert got.loss.item() == pytest.approx(want[0], rel=1e-5)
        assert got.distillation.item() == pytest.approx(want[1] if alpha else 0, rel=1e-5)
        assert got.label.item() == pytest.approx(want[2], rel=1e-5)
        np.testing.assert_allclose(student.grad.numpy(), want[3], atol=2e-6)


def test_without_a_mask_all_classes_are_allowed():
    teachers, student, labels, _ = random_batch(1)
    labels = labels.clamp(min=0)
    target = ensemble_target(teachers, torch.ones(teachers.shape[:3]), 2.0)
    everything = torch.ones(student.shape, dtype=torch.bool)
    plain = distillation_loss(student, target, labels, **SETTINGS, epsilon=0.1)
    masked = distillation_loss(student, target, labels, **SETTINGS, epsilon=0.1, mask=everything)
    for a, b in zip(plain, masked, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-6)


@pytest.mark.parametrize("target", [None, torch.full((4, 2, 5), float("nan"))])
def test_without_alpha_the_target_is_not_looked_at(target, monkeypatch):
    monkeypatch.setattr(F, "kl_div", lambda *a, **k: pytest.fail("the KL was computed"))
    student, _, labels, mask = make(0)
    got = distillation_loss(student, target, labels, alpha=0.0, temperature=2.0, mask=mask)
    got.loss.backward()
    assert got.loss.isfinite()
    assert student.grad.isfinite().all()
    assert got.loss.item() == got.label.item() > 0


def test_without_alpha_training_is_plain_finetuning_bit_for_bit():
    torch.manual_seed(0)
    inputs, labels = torch.randn(5, 16, 8), torch.randint(0, 3, (5, 16))
    labels[:, 3] = -100
    trained = []
    for ours in (True, False):
        torch.manual_seed(1)
        model = torch.nn.Linear(8, 3)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for x, y in zip(inputs, labels, strict=True):
            if ours:
                loss = distillation_loss(model(x)[:, None], None, y[:, None], alpha=0.0, temperature=4.0).loss
            else:
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained.append([loss.detach(), *model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_with_alpha_one_the_label_term_cannot_touch_the_loss():
    # Both rows give their gold 3e38 nats: the label term is more than fp32 holds, and 0 * inf is NaN.
    student = torch.tensor([[[0.0, -3e38]]] * 2, requires_grad=True)
    target, labels = torch.tensor([[[1.0, 0.0]]] * 2), torch.ones(2, 1, dtype=torch.long)
    got = distillation_loss(student, target, labels, alpha=1.0, temperature=1.0)
    assert got.label.isinf()
    assert got.loss.item() == 0
    got.loss.backward()
    assert student.grad.tolist() == [[[0, 0]]] * 2


def test_reported_terms_hold_no_graph_and_the_loss_does():
    student, target, labels, mask = make(0)
    got = distillation_loss(student, target, labels, **SETTINGS, mask=mask)
    assert got.loss.requires_grad
    assert not got.distillation.requires_grad
    assert not got.label.requires_grad


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("given_counts", [None, (7, 5), (torch.tensor(7), torch.tensor(5)), (0, 0)])
def test_a_batch_without_labels_or_distilled_decisions_contributes_zero(alpha, given_counts):
    student, target, labels, mask = make(0)
    got = distillation_loss(
        student,
        target,
        torch.full_like(labels, NO_LABEL),
        alpha=alpha,
        temperature=2.0,
        mask=mask,
        distill=torch.zeros_like(labels, dtype=torch.bool),
        counts=given_counts,
        epsilon=0.1,
    )
    assert [x.item() for x in got] == [0, 0, 0]
    got.loss.backward()  # it has a gradient, so that DDP's ranks stay in step
    assert student.grad.abs().sum() == 0


def test_counts_are_the_divisors():
    student, target, labels, mask = make(0)
    own = distillation_loss(student, target, labels, **SETTINGS, mask=mask)
    distilled, labelled = int(mask.any(-1).sum()), int((labels != -100).sum())
    assert distilled != labelled
    for counts in [(3 * distilled, 7 * labelled), (torch.tensor(3 * distilled), torch.tensor(7 * labelled))]:
        got = distillation_loss(student, target, labels, **SETTINGS, mask=mask, counts=counts)
        assert got.distillation.item() == pytest.approx(own.distillation.item() / 3, rel=1e-6)
        assert got.label.item() == pytest.approx(own.label.item() / 7, rel=1e-6)
        whole = 0.6 * 4 * got.distillation + 0.4 * got.label
        assert got.loss.item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_masked_student_logits_have_no_effect(junk):
    student, target, labels, mask = make(0)
    clean = distillation_loss(student, target, labels, **SETTINGS, mask=mask, epsilon=0.1)
    clean.loss.backward()
    dirty = student.detach().masked_fill(~mask, junk).requires_grad_()
    got = distillation_loss(dirty, target, labels, **SETTINGS, mask=mask, epsilon=0.1)
    got.loss.backward()
    assert got.loss.item() == clean.loss.item()
    assert torch.equal(dirty.grad, student.grad)
    assert dirty.grad.masked_select(~mask).abs().sum() == 0
    assert student.grad.abs().sum() > 0


def test_no_intermediate_gradient_is_nan_either():
    student, target, labels, mask = make(0)
    assert not mask.any(-1).all()
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        distillation_loss(student, target, labels, **SETTINGS, mask=mask, epsilon=0.1).loss.backward()
    assert student.grad.abs().sum() > 0


def test_masked_classes_stay_out_even_if_allowed_logits_are_very_low():
    student, target, labels, mask = make(0)
    got = distillation_loss(student - 4096, target, labels, **SETTINGS, mask=mask)
    want = distillation_loss(student, target, labels, **SETTINGS, mask=mask)
    assert got.loss.item() == pytest.approx(want.loss.item(), rel=1e-2)  # fp32 near 4096: steps of 5e-4


def test_a_decision_that_does_not_exist_is_never_distilled():
    student, target, labels, mask = make(0)
    assert not mask.any(-1).all()
    asked = torch.ones_like(labels, dtype=torch.bool)
    got = distillation_loss(student, target, labels, **SETTINGS, mask=mask, distill=asked)
    assert got.loss.item() == distillation_loss(student, target, labels, **SETTINGS, mask=mask).loss.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_students_get_an_fp32_loss(dtype):
    student, target, labels, mask = make(0)
    half = student.detach().to(dtype).requires_grad_()
    got = distillation_loss(half, target, labels, **SETTINGS, mask=mask)
    assert got.loss.dtype == torch.float32
    want = distillation_loss(half.detach().float(), target, labels, **SETTINGS, mask=mask)
    assert got.loss.item() == want.loss.item()
    got.loss.backward()
    assert half.grad.dtype == dtype


def test_autocast_does_not_touch_it():
    student, target, labels, mask = make(0)
    outside = distillation_loss(student, target, labels, **SETTINGS, mask=mask, epsilon=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distillation_loss(student, target, labels, **SETTINGS, mask=mask, epsilon=0.1)
    assert [x.item() for x in inside] == [x.item() for x in outside]


def test_a_loss_that_is_not_finite_is_not_hidden():
    student, target, labels, mask = make(0)
    broken = student.detach().clone()
    broken[mask] = float("nan")
    assert distillation_loss(broken, target, labels, **SETTINGS, mask=mask).loss.isnan()


@pytest.mark.parametrize("gold", [1, 5, -1, -101])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_label_that_is_not_allowed_is_named(gold, alpha):
    student, target = torch.zeros(3, 2, 5), torch.full((3, 2, 5), 0.2)
    mask = torch.tensor([True, False, True, True, True]).expand(3, 2, 5)
    labels = torch.zeros(3, 2, dtype=torch.long)
    labels[2, 1] = gold
    with pytest.raises(ValueError, match=rf"labels\[2, 1\] = {gold}"):
        distillation_loss(student, target, labels, alpha=alpha, temperature=1.0, mask=mask)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": 1.1}, "alpha = 1.1"),
        ({"alpha": -0.1}, "alpha = -0.1"),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"epsilon": -0.1}, "epsilon = -0.1"),
        ({"epsilon": 1.5}, "epsilon = 1.5"),
        ({"target": None}, "target = None"),
        ({"target": torch.ones(4, 1, 5)}, "target has shape"),
        ({"labels": torch.zeros(4, 1, dtype=torch.long)}, "labels has shape"),
        ({"mask": torch.ones(4, 1, 5, dtype=torch.bool)}, "mask has shape"),
        ({"mask": torch.ones(4, 2, 5)}, "mask has dtype"),
        ({"distill": torch.ones(4, 1, dtype=torch.bool)}, "distill has shape"),
        ({"distill": torch.ones(4, 2)}, "distill has dtype"),
    ],
)
def test_bad_arguments_are_refused(setting, message):
    student, target, labels, mask = make(0)
    arguments = {"target": target, "labels": labels, "mask": mask, **SETTINGS, **setting}
    with pytest.raises(ValueError, match=message):
        distillation_loss(student, **arguments)


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")
        self.count += func.overloadpacket.__name__ in waits
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_at_most_once_a_check():
    teachers, student, labels, mask = random_batch(0)
    counts = (mask.any(-1).sum(), (labels != -100).sum())
    with HostReads() as reads:
        weights, distill = teacher_weights(teachers, labels, mask)
    assert reads.count == 0
    with HostReads() as reads:
        teacher_weights(teachers, labels, mask, weighting="correctness", all_wrong="skip")
    assert reads.count == 1  # the labels' check
    with HostReads() as reads:
        target = ensemble_target(teachers, weights, 2.0, mask, "probabilities")
    assert reads.count == 0
    for given in (counts, None):
        with HostReads() as reads:
            distillation_loss(
                student, target, labels, **SETTINGS, mask=mask, distill=distill, counts=given, epsilon=0.1
            )
        assert reads.count == 1


def test_the_package_needs_torch_alone():
    code = "import sys, raykd.distillation; print({'ray', 'transformers', 'datasets'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_no_label_is_the_tasks():
    from raykd.tasks import common  # imports `datasets`

    assert NO_LABEL == common.NO_LABEL
