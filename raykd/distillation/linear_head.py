"""A language model's head: from its last hidden states to its logits."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class LinearHead:
    """`softcap(scale (W h + b))`.

    weight: (V, d).
    bias: (V,) or None.
    scale: by which logits are multiplied (Cohere, Granite).
    softcap: c of `c tanh(x / c)`, which bounds them (Gemma 2); None: not bounded.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., d) float to (..., V), in the precision of the weight."""
        logits = F.linear(states.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def to(self, device: torch.device) -> "LinearHead":
        bias = None if self.bias is None else self.bias.to(device)
        return LinearHead(self.weight.to(device), bias, self.scale, self.softcap)
