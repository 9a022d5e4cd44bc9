"""The training loop: teachers, baseline and students alike. Read it from top to bottom.

`train` is a generator. It yields events; the caller drives it and can stop at any event. So the same code runs in
a reused Ray process, inside a Ray Train worker and in a test. Its events are `Resumed`, `Progressed`, `Evaluated`,
`GenerationEnded`, and at the end `Done`, `Stopped` or `LogitsMissing`; see `raykd.training.events`.
"""

import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from raykd.common.ranks import FAILED, MISSING, STOPPED, DistContext
from raykd.common.transfer import to_device
from raykd.config.methods import Method
from raykd.data.batches import batch_order
from raykd.distillation import alpha_at, distillation_loss, ensemble_target, teacher_weights, weights_changed
from raykd.logits import StoredLogits
from raykd.models.loading import default_dtype, load_model
from raykd.models.opened import OpenedModel, open_model
from raykd.models.prediction import autocast, fed_columns
from raykd.plan.job import Job
from raykd.tasks import Batch, Evaluation, Task, make_task
from raykd.training.checkpoint import Stopwatch, load_best, load_checkpoint, save_best, save_checkpoint, seed_step
from raykd.training.evaluation import (
    evaluate_split,
    flat_metrics,
    mean_logits,
    predict_split,
    score_splits,
    selection_score,
)
from raykd.training.events import (
    Done,
    Evaluated,
    Event,
    GenerationEnded,
    LogitsMissing,
    Progressed,
    Resumed,
    Stopped,
)
from raykd.training.loader import COUNTS, MicroBatch, StepLoader, TeacherAccess
from raykd.training.metrics import TrainMetrics
from raykd.training.optimization import learning_rate, make_optimizer
from raykd.training.parallel import equalize_buffers, freeze_unused, make_parallel
from raykd.training.saving import save_model, save_result
from raykd.training.teacher_logits import open_logits, self_logits
from raykd.training.waits import Throughput, WaitMeter


def train(
    job: Job,
    ranks: DistContext = DistContext(),  # noqa: B008 (frozen)
    stop: Callable[[], bool] = lambda: False,
    serving: TeacherAccess = TeacherAccess(),  # noqa: B008 (frozen)
) -> Iterator[Event]:
    """Train a job's model, generation by generation, and leave the result in its folder.

    Goes on from the last checkpoint if there is one. `stop` is asked before every step; when it says so on
    any worker, a checkpoint is written and the training ends there. Raises TrainingError on a loss that is
    not finite. What fails on one worker is raised on every one.
    """
    spent = Stopwatch()
    task = make_task(job.task, job.label_names)
    opened = ranks.together(lambda: open_model(job.model, task, f"{job.key}.model"), "opening its model")
    processor = ranks.together(lambda: opened.processor, "loading the processor")
    rows = ranks.together(lambda: datasets.concatenate_datasets([e.open() for e in job.train]), "opening its rows")
    teachers = ranks.together(lambda: open_logits(job, rows), "opening its teachers' logits")
    auto = default_dtype("auto") if ranks.device.type == "cuda" else "float32"
    dtype = {"auto": auto, "fp32": "float32", "bf16": "bfloat16"}[job.training.precision]
    generations: list[dict[str, Evaluation]] = []
    logits: list[dict[str, list[np.ndarray]]] = []  # each generation's, by split, for their average
    for generation in range(1, job.method.generations + 1):
        folder = job.folder / f"generation-{generation}"
        folder.mkdir(parents=True, exist_ok=True)
        seed = job.seed + 1000 * (generation - 1)  # as in the paper, each generation is drawn anew
        model = ranks.together(partial(_load, opened, seed, processor, ranks), "loading its model")
        validation = yield from _train_generation(
            job, generation, seed, model, task, processor, rows, teachers, folder, dtype, ranks, stop, serving, spent
        )
        if validation is None:
            return
        logits.append({"validation": validation})
        if job.keep:  # a sweep's trial is chosen by validation, and nobody may look at its test scores
            logits[-1]["test"] = predict_split(job, "test", model, task, processor, ranks, dtype)
        scored = ranks.together(partial(score_splits, job, task, logits[-1]), "its scores")
        generations.append(scored)
        save = partial(save_model, folder / "model", model, processor, job, generation, scored)
        ranks.together(save if ranks.is_main and job.keep else _nothing, "saving its model")
        yield GenerationEnded(generation, flat_metrics(scored))
        if generation < job.method.generations:
            teachers = self_logits(job, folder, model, task, processor, rows, ranks, dtype)
    if job.method.generations > 1 and ranks.is_main:  # their logits belong to this run alone, and no worker reads them
        shutil.rmtree(job.folder / "generations", ignore_errors=True)
    best = max(range(len(generations)), key=lambda g: selection_score(job, task, generations[g]["validation"].metrics))
    average = score_splits(job, task, mean_logits(logits)) if job.method.average_generations else None
    finish = partial(save_result, job, task.primary_metric, generations, best, average, spent())
    ranks.together(finish if ranks.is_main else _nothing, "saving its result")
    yield Done()


def _load(opened: OpenedModel, seed: int, processor: Any, ranks: DistContext) -> torch.nn.Module:
    return load_model(opened, seed, processor).to(ranks.device)


def _nothing() -> None:
    """What the other workers do while the first one writes."""


def _train_generation(
    job: Job,
    generation: int,
    seed: int,
    model: torch.nn.Module,
    task: Task,
    processor: Any,
    rows: datasets.Dataset,
    teachers: StoredLogits | None,
    folder: Path,
    dtype: str,
    ranks: DistContext,
    stop: Callable[[], bool],
    serving: TeacherAccess,
    spent: Stopwatch,
) -> Generator[Event, None, list[np.ndarray] | None]:
    """The loop itself. Leaves the best weights of this generation in `model`.

    Returns their logits of the validation rows, (H, C_i) each; None if it was stopped before its end.
    """
    method, training, steps = job.method, job.training, job.steps
    used = used_rows(rows, job.row_subset)  # (N,) positions of the rows that are trained on
    all_lengths = np.asarray(rows.select_columns("length")[:]["length"])
    lengths = all_lengths[used]
    if ranks.world > 1:
        few = task.collate(fed_columns(rows, task)[used[:2]], processor)
        look = partial(freeze_unused, model, task, few, ranks, dtype, job.name)
        ranks.together(look, "looking for unused parameters")
    optimizer = make_optimizer(model, training)
    eval_every = training.eval_every or math.ceil(steps / 5)
    feed = ranks.together(
        lambda: StepLoader(job, rows, task, processor, seed, teachers, ranks, stop, serving), "opening its inputs"
    )
    pace = WaitMeter(feed, training.batch_size)
    curve = TrainMetrics(job, rows, pace, ranks.device)
    throughput = Throughput(all_lengths)
    parallel = make_parallel(model, ranks)

    start, best = 0, -float("inf")
    best_logits: list[np.ndarray] | None = None  # of the validation rows; None if the best weights are a checkpoint's
    if saved := load_checkpoint(folder, ranks):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start, best, curve.seen = saved["step"], saved["best"], saved["seen"]
        spent.goes_on_from(saved.get("seconds", 0.0))  # an older raykd's has none
        yield Resumed(generation, start, steps)
    if start == steps:  # it was stopped after its last step
        load_best(folder, model, ranks)
        return predict_split(job, "validation", model, task, processor, ranks, dtype)

    def checkpoint(step: int, better: bool = False) -> None:
        """Of the first worker alone; `best` is its best score so far, with the weights of now if they are better."""
        if better:
            save_best(folder, model)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(folder, state | {"step": step, "best": best, "seen": curve.seen, "seconds": spent()})

    def alpha_of(step: int) -> float:
        return alpha_at(step / steps, method.alpha, method.schedule, method.floor)

    told = time.monotonic()
    pace.restart()
    throughput.restart()
    batches = batch_order(lengths, training.batch_size, seed, training.group_by_length)
    for fed in feed.steps(used, batches, start, steps, lambda step: alpha_of(step) > 0):
        step = fed.number
        pace.begins()
        seed_step(seed, step, ranks.rank)
        parallel.train()
        rate, alpha = learning_rate(step, steps, training), alpha_of(step)
        for group in optimizer.param_groups:
            group["lr"] = rate

        # What each part of this worker's share is taught, and the numbers that all workers must agree on. On the host:
        # it is little work, a GPU is still busy with the last step, and would stand still if anything were read back.
        counts = torch.zeros(COUNTS, dtype=torch.float64)  # distilled, labelled, changed, weighed, and flags
        targets, failure = [], fed.failure
        try:
            targets = [_taught(part, method, counts, ranks.device) for part in fed.parts]
        except Exception as error:  # of this worker alone, perhaps: the others must not wait for it
            failure = error
        counts[STOPPED], counts[MISSING] = fed.interrupted == "stop", fed.interrupted == "missing"
        counts[FAILED] = failure is not None
        # Global before any backward pass: the losses' denominators.
        counts = ranks.agree(counts, f"the counts of step {step + 1}")
        if counts[FAILED]:
            ranks.raise_failure(failure, f"the error of step {step + 1}")
        if counts[STOPPED] or counts[MISSING]:  # so every worker stops at the same step
            curve.catch_up()
            ranks.together(partial(checkpoint, step) if ranks.is_main else _nothing, f"the checkpoint of step {step}")
            ended = Stopped if counts[STOPPED] else LogitsMissing
            yield ended(generation, step, steps, curve.take())
            return None

        sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        for i, (batch, target, distill) in enumerate(targets):
            last = i == len(targets) - 1
            with parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not last else nullcontext():
                with autocast(ranks.device, dtype):
                    outputs = parallel(**batch.inputs)
                terms = distillation_loss(
                    task.decisions(outputs, batch),
                    target,
                    batch.labels,
                    alpha=alpha,
                    temperature=method.temperature,
                    mask=batch.mask,
                    distill=distill,
                    counts=(counts[0], counts[1]),
                    scale_by_t2=method.scale_by_t2,
                    epsilon=method.epsilon,
                    labels_checked=True,
                )
                with ranks.named(f"the gradients of step {step + 1}"):
                    (terms.loss * ranks.world).backward()  # DDP averages gradients over workers; this is a sum
                sums += torch.stack([terms.loss.detach(), terms.distillation, terms.label])
        loss, distillation, label = ranks.all_reduce_sum(sums, f"the loss of step {step + 1}")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm).double()
        numbers = torch.stack([loss, norm, distillation, label])
        if ranks.device.type == "cuda":  # AdamW itself leaves out a step that is not finite, before the host knows
            optimizer.found_inf = (~numbers[:2].isfinite().all()).float()  # type: ignore[attr-defined]
        curve.add(step, fed.positions, rate, alpha, counts[2:4], numbers)
        optimizer.step()
        pace.ends()
        throughput.add(fed.positions)
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        if done % eval_every == 0 or done == steps:
            curve.catch_up()  # also of what was not finite, before anything is scored
            rates = throughput.rates()
            equalize_buffers(model, ranks)
            logits = predict_split(job, "validation", model, task, processor, ranks, dtype)
            found = ranks.together(partial(evaluate_split, job, "validation", task, logits), f"scoring step {done}")
            better = (score := selection_score(job, task, found.metrics)) > best
            if better:
                best, best_logits = score, logits
            save = partial(checkpoint, done, better)
            ranks.together(save if ranks.is_main else _nothing, f"the checkpoint of step {done}")
            yield Evaluated(generation, done, steps, found.metrics, curve.take(), pace.waits(), spent(), rates)
            told = time.monotonic()
            pace.restart()  # evaluations are no part of it
            throughput.restart()
        elif time.monotonic() - told > 1 and curve.loss is not None:
            told = time.monotonic()
            yield Progressed(generation, done, steps, curve.loss, pace.waits())
    ranks.barrier()
    load_best(folder, model, ranks)
    if best_logits is None:
        best_logits = predict_split(job, "validation", model, task, processor, ranks, dtype)
    return best_logits


def _taught(
    part: MicroBatch, method: Method, counts: torch.Tensor, device: torch.device
) -> tuple[Batch, torch.Tensor | None, torch.Tensor | None]:
    """The part on the device, with its target (B, H, C) and which decisions (B, H) are distilled; adds to `counts`."""
    batch, target, distill = part.batch, None, None
    if part.logits is not None:
        weights, distill = teacher_weights(
            part.logits,  # (M, B, H, C)
            batch.labels,
            batch.mask,
            weighting=method.weighting,
            W=method.W,
            all_wrong=method.all_wrong,
            correct_by=method.correct_by,
        )
        target = ensemble_target(part.logits, weights, method.temperature, batch.mask, method.pool)
        counts[0] += distill.sum()
        if method.weighting == "correctness":
            labelled = batch.labels >= 0
            counts[2] += (weights_changed(weights) & labelled).sum()
            counts[3] += labelled.sum()
        target, distill = to_device(target, device), to_device(distill, device)
    counts[1] += (batch.labels >= 0).sum()
    return batch.to(device), target, distill


def used_rows(rows: datasets.Dataset, examples: np.ndarray | None) -> np.ndarray:
    """(N,) positions of the encoded rows that a job trains on."""
    if examples is None:
        return np.arange(len(rows))
    return np.flatnonzero(np.isin(np.asarray(rows.select_columns("example")[:]["example"]), examples))
