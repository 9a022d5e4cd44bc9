"""The schedule of alpha, the weight of the teachers' term, over a training."""

import math
from typing import Literal

from raykd.distillation.decisions import check_choice, check_fraction

Schedule = Literal["constant", "linear", "cosine"]


def alpha_at(progress: float, alpha: float, schedule: Schedule = "constant", floor: float = 0.0) -> float:
    """alpha at a point of the training.

    progress: optimizer steps done, as a share of those planned (0 to 1).
    alpha: at the start.
    schedule: "constant": alpha.
        "linear" (teacher annealing, Clark et al. 2019, BAM): `alpha (1 - progress)`.
        "cosine": `alpha (1 + cos(pi progress)) / 2`.
    floor: the last two never go below it. With 0 both end at exactly 0, where only gold labels count.

    Raises ValueError for an unknown schedule, or a number outside 0 to 1.
    """
    check_choice("schedule", schedule, ("constant", "linear", "cosine"))
    check_fraction("progress", progress)
    check_fraction("alpha", alpha)
    check_fraction("floor", floor)
    if schedule == "linear":
        return max(floor, alpha * (1 - progress))
    if schedule == "cosine":
        return max(floor, alpha * (1 + math.cos(math.pi * progress)) / 2)
    return alpha
