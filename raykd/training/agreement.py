"""What the workers of a training agree on before each step: the counts that its losses divide by, and whether to stop.

They agree by one sum of float64 numbers on the host, so a GPU is not waited for.
"""

from dataclasses import dataclass

import torch

from raykd.common.ranks import FAILED, MISSING, STOPPED, DistContext

_COUNTS = 4
AGREEMENT_SIZE = _COUNTS + 4  # the counts below, and the flags of `DistContext`


@dataclass(frozen=True)
class Counts:
    """Numbers of decisions, as scalar tensors on the host.

    distilled: with a teachers' term.
    labelled: with a label.
    changed: labelled ones on which correctness weighting has changed the teachers' weights.
    weighed: labelled ones that correctness weighting has looked at.
    """

    distilled: torch.Tensor
    labelled: torch.Tensor
    changed: torch.Tensor
    weighed: torch.Tensor

    def __add__(self, other: "Counts") -> "Counts":
        return Counts.from_tensor(self.to_tensor() + other.to_tensor())

    def to_tensor(self) -> torch.Tensor:
        """(4,) float64."""
        return torch.stack([self.distilled, self.labelled, self.changed, self.weighed]).double()

    @classmethod
    def from_tensor(cls, values: torch.Tensor) -> "Counts":
        return cls(*values.unbind())

    @classmethod
    def zero(cls) -> "Counts":
        return cls.from_tensor(torch.zeros(_COUNTS, dtype=torch.float64))


@dataclass(frozen=True)
class Agreement:
    """One worker's part, or the sum of all.

    stopped: asked to stop.
    missing: needs logits that nobody is computing.
    failed: has an error that the others do not know of yet.
    """

    counts: Counts
    stopped: bool
    missing: bool
    failed: bool

    def to_tensor(self) -> torch.Tensor:
        """(AGREEMENT_SIZE,) float64."""
        values = torch.zeros(AGREEMENT_SIZE, dtype=torch.float64)
        values[:_COUNTS] = self.counts.to_tensor()
        values[STOPPED], values[MISSING], values[FAILED] = self.stopped, self.missing, self.failed
        return values

    @classmethod
    def from_tensor(cls, values: torch.Tensor) -> "Agreement":
        flags = (bool(values[flag]) for flag in (STOPPED, MISSING, FAILED))
        return cls(Counts.from_tensor(values[:_COUNTS]), *flags)

    def of_all(self, context: DistContext, name: str) -> "Agreement":
        """The sum over the workers, once none of them waits for logits any more."""
        if context.world == 1:
            return self
        return Agreement.from_tensor(context.agree(self.to_tensor(), name))


def still_waiting(context: DistContext) -> Agreement:
    """What the others agree on while this worker waits for logits; it adds nothing, and they wait on."""
    return Agreement.from_tensor(context.still_waiting(AGREEMENT_SIZE, "waiting for logits"))
