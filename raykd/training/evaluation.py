"""A job's model, scored on its splits while it trains and at the end."""

from typing import Any

import numpy as np
import torch

from raykd.common.errors import DivergedError
from raykd.common.ranks import DistContext
from raykd.common.row_files import open_rows
from raykd.distillation import NotFiniteError
from raykd.models.prediction import predict_all
from raykd.plan.job import Job
from raykd.tasks import Evaluation, Task

LOWER_IS_BETTER = ("nll", "ece")


def selection_score(job: Job, task: Task, metrics: dict[str, float]) -> float:
    """The value that chooses a checkpoint: higher is better."""
    name = job.training.select or task.primary_metric
    return -metrics[name] if name in LOWER_IS_BETTER else metrics[name]


def predict_split(
    job: Job, split: str, model: torch.nn.Module, task: Task, processor: Any, context: DistContext, dtype: str
) -> list[np.ndarray]:
    """Every row's logits; DivergedError if the training has diverged so far that one is not finite."""
    try:
        rows = context.together(lambda: getattr(job, split).encoded.open(), f"opening {split}")
        return predict_all(model, task, rows, processor, context, dtype, f"the predictions on {split}")
    except NotFiniteError as error:
        raise DivergedError(
            f"{job.name}: on {split} the model answers {error}. Lower {job.key}'s learning_rate"
        ) from error


def evaluate_split(
    job: Job, split: str, task: Task, logits: list[np.ndarray], calibration: dict[str, float] | None = None
) -> Evaluation:
    """Score a split's logits.

    logits: (H, C_i) of each row.
    calibration: thresholds that were chosen on validation; None: choose them here.
    """
    rows = getattr(job, split)
    return task.evaluate(logits, rows.encoded.open(), open_rows(rows.raw), calibration)


def score_splits(job: Job, task: Task, logits: dict[str, list[np.ndarray]]) -> dict[str, Evaluation]:
    """Validation, where thresholds are chosen, then test, where they are only used, if it was predicted."""
    scored = {"validation": evaluate_split(job, "validation", task, logits["validation"])}
    if "test" in logits:
        scored["test"] = evaluate_split(job, "test", task, logits["test"], scored["validation"].calibration)
    return scored


def mean_logits(logits: list[dict[str, list[np.ndarray]]]) -> dict[str, list[np.ndarray]]:
    """The mean over generations, by split, of each row's logits, in fp32."""
    return {
        split: [
            np.mean([row.astype(np.float32) for row in same], axis=0)
            for same in zip(*(generation[split] for generation in logits), strict=True)
        ]
        for split in logits[0]
    }


def flat_metrics(scored: dict[str, Evaluation]) -> dict[str, float]:
    """{"validation/accuracy": 0.9, ...}."""
    return {f"{split}/{name}": value for split, scores in scored.items() for name, value in scores.metrics.items()}
