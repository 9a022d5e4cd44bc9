"""A training from its job to its result: teachers, baseline and students alike. `trainer.py` has the steps.

`train` is a generator. It yields events; the caller drives it and can stop at any event. So the same code runs in
a reused Ray process, inside a Ray Train worker and in a test. Its events are `Resumed`, `Progressed`, `Evaluated`,
`GenerationEnded`, and at the end `Done`, `Stopped` or `LogitsMissing`; see `raykd.training.events`.
"""

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import torch

from raykd.common.errors import ConfigError
from raykd.common.ranks import DistContext
from raykd.logits.heads import head_on
from raykd.models.loading import load_model
from raykd.models.opened import OpenedModel, open_model
from raykd.plan.job import Job, settings_key
from raykd.tasks import Evaluation, make_task
from raykd.training.access import TeacherAccess
from raykd.training.checkpoint import Stopwatch
from raykd.training.evaluation import (
    Predictions,
    flat_metrics,
    generate_texts,
    mean_predictions,
    predict_split,
    score_splits,
    selection_score,
)
from raykd.training.events import Done, Event, GenerationEnded
from raykd.training.precision import training_dtype
from raykd.training.saving import save_model, save_result
from raykd.training.setup import Setup
from raykd.training.teacher_logits import open_logits, self_logits
from raykd.training.trainer import Trainer


def train(
    job: Job,
    context: DistContext = DistContext(),  # noqa: B008 (frozen)
    stop: Callable[[], bool] = lambda: False,
    access: TeacherAccess = TeacherAccess(),  # noqa: B008 (frozen)
    gpus: float = 0.0,
) -> Iterator[Event]:
    """Train a job's model, generation by generation, and leave the result in its folder.

    Resumes from the last checkpoint if there is one. Raises DivergedError for a loss that is not finite. What fails
    on one worker is raised on every one.

    stop: called before every step and between the batches of an evaluation. If it returns True on any worker, a
        checkpoint is written and the training ends.
    access: to the teachers' logits.
    gpus: that all workers hold, for `result.json`.
    """
    stopwatch = Stopwatch()
    job.code.install()
    task = make_task(job.task, job.label_names)
    opened = context.together(lambda: open_model(job.model, task, f"{job.key}.model"), "opening its model")
    processor = context.together(lambda: opened.processor, "loading the processor")
    rows = context.together(lambda: datasets.concatenate_datasets([e.open() for e in job.train]), "opening its rows")
    teachers = context.together(lambda: open_logits(job, rows), "opening its teachers' logits")
    generations: list[dict[str, Evaluation]] = []
    predictions: list[dict[str, Predictions]] = []  # each generation's, by split
    for generation in range(1, job.method.generations + 1):
        folder = job.folder / f"generation-{generation}"
        folder.mkdir(parents=True, exist_ok=True)
        seed = job.seed + 1000 * (generation - 1)  # as in the paper, each generation is drawn anew
        model = None  # the one before
        if context.device.type == "cuda":  # models in reference cycles (peft's, language models) would keep its memory
            gc.collect()
        model = context.together(partial(_load, job, opened, seed, processor, context.device), "loading its model")
        dtype = training_dtype(job, model, task, processor, rows, context)
        setup = Setup(job, task, processor, rows, dtype, context, stop, access, stopwatch)
        validation = yield from Trainer(setup, generation, seed, model, teachers).run()
        if validation is None:
            return
        predictions.append({"validation": validation})
        if job.keep_model:  # a sweep's trial is chosen by validation, and nobody may look at its test scores
            texts = generate_texts(setup, model)
            predictions[-1]["test"] = replace(predict_split(setup, "test", model), texts=texts)
        scored = context.together(partial(score_splits, job, task, predictions[-1]), "its scores")
        generations.append(scored)
        if job.keep_model:
            saved = (folder / "model", model, processor, job, generation, scored, task.primary_metric)
            save = partial(save_model, *saved)
            setup.on_main(save, "saving its model")
        yield GenerationEnded(generation, flat_metrics(scored))
        if generation < job.method.generations:
            teachers = self_logits(setup, folder, model)
    if job.method.generations > 1 and context.is_main:  # its own logits belong to this run, and no worker reads them
        shutil.rmtree(job.folder / "generations", ignore_errors=True)
    if job.method.generations > 1:
        head_on.cache_clear()  # otherwise it holds the heads of deleted generations for as long as the process lives
    best = max(range(len(generations)), key=lambda g: selection_score(job, task, generations[g]["validation"].metrics))
    average = None
    if job.method.average_generations:
        means = mean_predictions(job, task, predictions, context)
        average = context.together(partial(score_splits, job, task, means), "the scores of their average")
    finish = partial(save_result, job, task.primary_metric, generations, best, average, stopwatch(), dtype, gpus)
    setup.on_main(finish, "saving its result")
    yield Done()


def _load(job: Job, opened: OpenedModel, seed: int, processor: Any, device: torch.device) -> torch.nn.Module:
    model: Any = load_model(opened, seed, processor, job.lora, f"{settings_key(job.key)}.lora").to(device)
    if job.training.gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            reason = f"{opened.source} ({type(model).__name__}) does not support it"
            raise ConfigError("training.gradient_checkpointing", True, reason, "Remove it, or use another model")
        # Non-reentrant, as DDP needs it. The state of the random numbers is kept, so dropout is the same again.
        enable = getattr(
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )  # its newer name
        enable({"use_reentrant": False})
    return model
