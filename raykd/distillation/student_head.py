"""The student's head inside the loss: a chunk's logits, and from their gradient those of what they come from."""

from collections.abc import Callable, Sequence

import torch

from raykd.distillation.linear_head import LinearHead
from raykd.distillation.taught import Scratch

Head = Callable[[torch.Tensor], torch.Tensor]


class AnyHead:
    """By autograd, through the head alone.

    trained: its parameters that get a gradient.
    classes: C, of which the head may give more; None: all that it gives.
    """

    def __init__(self, head: Head, trained: Sequence[torch.Tensor], classes: int | None) -> None:
        self.head, self.trained, self.classes = head, trained, classes
        self._states, self._logits = torch.empty(0), torch.empty(0)  # of the last chunk

    def width(self, states: torch.Tensor) -> int:
        """C. states: (D, d), at least one."""
        return self.head(states[:1])[:, : self.classes].shape[-1]

    def logits(self, states: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """(c, C) fp32; if the head is a matmul, in the buffer "a". states: (c, d)."""
        with torch.enable_grad():
            self._states = states.detach().requires_grad_()
            self._logits = self.head(self._states)[:, : self.classes].float()
        return self._logits.detach()

    def add_gradients(self, of_logits: torch.Tensor, of_states: torch.Tensor, of_trained: list[torch.Tensor]) -> None:
        """From the gradient of the last chunk's logits.

        of_logits: (c, C).
        of_states: (c, d), written.
        of_trained: a tensor for each of `trained`, to which this chunk's gradient is added.
        """
        found = torch.autograd.grad(self._logits, [self._states, *self.trained], of_logits, allow_unused=True)
        of_states.copy_(found[0])
        for total, gradient in zip(of_trained, found[1:], strict=True):
            if gradient is not None:
                total += gradient


class MatmulHead(AnyHead):
    """`W h + b`: three matmuls that write where their results belong, without a copy of the size of W or of logits."""

    def __init__(self, head: LinearHead, trained: Sequence[torch.Tensor], classes: int | None) -> None:
        super().__init__(head, trained, classes)
        self.weight = head.weight.detach()[:classes]
        self.bias = None if head.bias is None else head.bias.detach()[:classes]
        self.own = (head.weight, head.bias)

    def width(self, states: torch.Tensor) -> int:
        return len(self.weight)

    def logits(self, states: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        self._states, out = states.detach().float(), scratch.take("a", len(states))
        torch.mm(self._states, self.weight.T, out=out)
        return out if self.bias is None else out.add_(self.bias)

    def add_gradients(self, of_logits: torch.Tensor, of_states: torch.Tensor, of_trained: list[torch.Tensor]) -> None:
        of_states.copy_(of_logits @ self.weight)
        weight, bias = self.own
        for parameter, total in zip(self.trained, of_trained, strict=True):
            if parameter is weight:
                total[: len(self.weight)].addmm_(of_logits.T, self._states)
            elif parameter is bias:
                total[: len(self.weight)] += of_logits.sum(0)


def student_head(head: Head, trained: Sequence[torch.Tensor], classes: int | None, states: torch.Tensor) -> AnyHead:
    """`MatmulHead` where the head is no more than that, in the precision of the loss."""
    if (
        isinstance(head, LinearHead)
        and (head.scale, head.softcap) == (1.0, None)
        and head.weight.dtype == torch.float32
        and not torch.is_autocast_enabled(states.device.type)
    ):
        return MatmulHead(head, trained, classes)
    return AnyHead(head, trained, classes)
