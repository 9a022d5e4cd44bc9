"""A job's model, scored on its splits while it trains and at the end."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from raykd.common.errors import DivergedError
from raykd.common.metrics import higher_is_better
from raykd.common.ranks import DistContext
from raykd.common.row_files import open_rows
from raykd.distillation import NotFiniteError
from raykd.logits.keep import ALL, SCORES
from raykd.models.inputs import InputRows
from raykd.models.prediction import predict
from raykd.plan.job import Job, settings_key
from raykd.tasks import Evaluation, Task
from raykd.tasks.generated import chosen_rows, with_generated
from raykd.training.setup import Setup

_AT_ONCE = 256  # rows

Batches = Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]  # positions (B,) and their logits, (H, C_i) each


def selection_score(job: Job, task: Task, metrics: dict[str, float]) -> float:
    """The value that chooses a checkpoint: higher is better."""
    name = job.training.select or task.primary_metric
    return higher_is_better(name, metrics[name])


class EvaluationStopped(Exception):
    """The training was asked to stop while a split was being predicted."""


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on a split.

    summaries: what the task keeps of each row's logits, in the order of the rows, on every worker.
    logits: (H, C_i) of this worker's rows alone, by their positions; {} unless the generations are averaged.
    texts: what the model has generated, by the raw rows' positions, on every worker; {} without `task.generate`.
    """

    summaries: list[Any]
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)


def predict_split(
    setup: Setup, split: str, model: torch.nn.Module, stop: Callable[[], bool] = lambda: False
) -> Predictions:
    """A model's predictions on a split, whose rows the workers share.

    stop: called between two batches. If it returns True on any worker, EvaluationStopped is raised on all.

    Raises DivergedError if the training has diverged so far that a logit is not finite.
    """
    job, task, context = setup.job, setup.task, setup.context
    kept: dict[int, np.ndarray] = {}
    name = f"the predictions on {split}"
    try:
        rows = context.together(lambda: getattr(job, split).encoded.open(), f"opening {split}")
        mine = np.arange(context.rank, len(rows), context.world)
        inference = setup.inference(model, SCORES if task.predicts_tokens else ALL)
        batches = _unless_stopped(predict(inference, InputRows(rows, task), mine), stop)
        if job.method.average_generations:
            batches = _keep(batches, kept)
        return Predictions(_summarize(task, rows, batches, context, name), kept)
    except NotFiniteError as error:
        raise DivergedError(
            f"{job.name}: on {split} the model answers {error}. Lower {settings_key(job.key)}.training.learning_rate"
        ) from error


def generate_texts(setup: Setup, model: torch.nn.Module) -> dict[int, str]:
    """What the model writes after the prompts of test rows, by their positions in the raw rows. Workers share them."""
    from raykd.models.decoding import generate

    job, context = setup.job, setup.context
    settings = job.task.generate
    if settings is None:
        return {}
    raw = open_rows(job.test.raw)
    mine = chosen_rows(len(raw), settings.rows)[context.rank :: context.world]

    def write() -> dict[int, str]:
        prompts = setup.task.prompts(raw[mine], setup.processor) if len(mine) else []
        most = settings.max_new_tokens
        texts = generate(model, setup.processor, prompts, most, context.device, setup.dtype)
        return dict(zip(mine.tolist(), texts, strict=True))

    return {at: text for part in context.each(write, "the generated texts") for at, text in part.items()}


def _unless_stopped(batches: Batches, stop: Callable[[], bool]) -> Batches:
    for batch in batches:
        if stop():
            raise EvaluationStopped
        yield batch


def _keep(batches: Batches, kept: dict[int, np.ndarray]) -> Batches:
    for positions, logits in batches:
        kept |= zip(positions.tolist(), logits, strict=True)
        yield positions, logits


def _summarize(task: Task, rows: Dataset, batches: Batches, context: DistContext, name: str) -> list[Any]:
    """The summary of every row, from the batches of all workers. What fails on one worker is raised on all.

    name: of the work, for an error message.
    """
    read = rows.select_columns([*task.summary_columns])
    summaries: list[Any] = [None] * len(rows)
    for part in context.each(lambda: [(at, task.summarize(logits, read[at])) for at, logits in batches], name):
        for positions, found in part:
            for position, summary in zip(positions.tolist(), found, strict=True):
                summaries[position] = summary
    return summaries


def evaluate_split(
    job: Job, split: str, task: Task, predictions: Predictions, calibration: dict[str, float] | None = None
) -> Evaluation:
    """Score a split.

    calibration: thresholds that were chosen on validation; None: choose them here.
    """
    rows = getattr(job, split)
    raw = open_rows(rows.raw)
    evaluation = task.evaluate(predictions.summaries, rows.encoded.open(), raw, calibration)
    return with_generated(evaluation, predictions.texts, raw) if predictions.texts else evaluation


def score_splits(job: Job, task: Task, predictions: dict[str, Predictions]) -> dict[str, Evaluation]:
    """Validation, where thresholds are chosen, then test, where they are only used, if it was predicted."""
    scored = {"validation": evaluate_split(job, "validation", task, predictions["validation"])}
    if "test" in predictions:
        scored["test"] = evaluate_split(job, "test", task, predictions["test"], scored["validation"].calibration)
    return scored


def mean_predictions(
    job: Job, task: Task, generations: list[dict[str, Predictions]], context: DistContext
) -> dict[str, Predictions]:
    """By split, the predictions of the mean over generations of each row's logits, in fp32."""
    means = {}
    for split, first in generations[0].items():
        rows = context.together(lambda: getattr(job, split).encoded.open(), f"opening {split}")  # noqa: B023
        batches = _means([generation[split].logits for generation in generations], [*first.logits])
        means[split] = Predictions(_summarize(task, rows, batches, context, f"the generations' average on {split}"))
    return means


def _means(generations: list[dict[int, np.ndarray]], positions: list[int]) -> Batches:
    for start in range(0, len(positions), _AT_ONCE):
        batch = positions[start : start + _AT_ONCE]
        same = ([logits[position].astype(np.float32) for logits in generations] for position in batch)
        yield np.array(batch), [np.mean(rows, axis=0) for rows in same]


def flat_metrics(scored: dict[str, Evaluation]) -> dict[str, float]:
    """{"validation/accuracy": 0.9, ...}."""
    return {f"{split}/{name}": value for split, scores in scored.items() for name, value in scores.metrics.items()}
