"""The objective and the agreement of workers: losses and counts of parts add up to those of the whole."""

import numpy as np
import pytest
import torch

from raykd.common.ranks import DistContext
from raykd.config.methods import Method
from raykd.tasks import Batch
from raykd.training.agreement import Agreement, Counts
from raykd.training.loader import MicroBatch
from raykd.training.objective import Objective, Targets

ROWS, TEACHERS, CLASSES = 6, 3, 4
CPU = torch.device("cpu")


def micro_batch(rows: slice, with_logits: bool = True) -> MicroBatch:
    """Some of the same six rows, the last two without a label."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(TEACHERS, ROWS, 1, CLASSES, generator=random).half()
    labels = torch.randint(CLASSES, (ROWS, 1), generator=random)
    labels[4:] = -100
    positions = np.arange(ROWS)[rows]
    return MicroBatch(positions, Batch({}, labels[rows]), logits[:, rows] if with_logits else None)


@pytest.mark.parametrize(
    "method", [Method(type="weighted", W=0.2, alpha=0.5), Method(type="kd"), Method(type="finetune")]
)
def test_losses_of_micro_batches_add_up(method):
    objective = Objective(method, steps=4)
    student = torch.randn(ROWS, 1, CLASSES, generator=torch.Generator().manual_seed(1))
    distils = objective.alpha(0) > 0

    def targets(rows: slice) -> Targets:
        return objective.targets(micro_batch(rows, distils), CPU)

    shares = [slice(0, 1), slice(1, 6)]
    whole, parts = targets(slice(None)), [targets(rows) for rows in shares]
    counts = sum((part.counts for part in parts), Counts.zero())
    torch.testing.assert_close(counts.to_tensor(), whole.counts.to_tensor())
    assert int(counts.labelled) == 4
    assert int(counts.distilled) == (ROWS if distils else 0)
    assert int(counts.weighed) == (4 if method.weighting == "correctness" else 0)
    assert (0 < int(counts.changed) <= 4) == (method.weighting == "correctness")
    alpha = objective.alpha(0)
    losses = [objective.loss(student[rows], part, counts, alpha).loss for rows, part in zip(shares, parts, strict=True)]
    torch.testing.assert_close(sum(losses), objective.loss(student, whole, counts, alpha).loss)


@pytest.mark.parametrize("flag", ["stopped", "missing", "failed"])
def test_an_agreement_keeps_its_counts_and_flags(flag):
    counts = Counts.from_tensor(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    flags = {"stopped": False, "missing": False, "failed": False} | {flag: True}
    agreed = Agreement.from_tensor(DistContext().agree(Agreement(counts, **flags).to_tensor(), "counts"))
    assert {name: getattr(agreed, name) for name in flags} == flags
    torch.testing.assert_close(agreed.counts.to_tensor(), counts.to_tensor().double())
