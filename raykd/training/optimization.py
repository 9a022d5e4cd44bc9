"""AdamW with weight decay on matrices only, and the learning rate over the steps."""

import math

import torch

from raykd.config.schema import TrainingConfig


def make_optimizer(model: torch.nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """Biases and norms (every parameter of one dimension) are not decayed, as is usual for transformers."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def not_finite(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """1.0 if either scalar is infinite or NaN, else 0.0; on their device, in four kernels.

    norm: at least 0, so the sum of two infinite ones is infinite.
    """
    both = loss + norm
    return (both - both).ne(0).float()  # inf - inf is NaN, which equals nothing


def learning_rate(step: int, steps: int, training: TrainingConfig) -> float:
    """The rate of step 0..steps-1: a linear rise over the warm-up, then the decay towards 0.

    A training of a single step has no warm-up, because its only rate would be 0.
    """
    rising = math.ceil(training.warmup * steps) if steps > 1 else 0
    if step < rising:
        return training.learning_rate * step / rising
    x = (step - rising) / max(1, steps - rising)
    shape = {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "constant": 1.0}[training.decay]
    return training.learning_rate * shape
