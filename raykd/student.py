"""The training loop: teachers, baseline and students alike. Read it from top to bottom.

`train` is a generator: it yields what it has to tell and runs on when it is asked for more. So the same
code runs in a reused Ray process, inside a Ray Train worker and in a test, and whoever drives it may
stop it. It yields dicts with an "event": "resumed", "progress", "evaluation" (on every worker at the same
steps), "generation", and "done"; or, with a checkpoint of that step, "stopped" if it was asked to, and
"missing" if it needs logits that nobody is computing.
"""

import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from raykd.batches import batch_order
from raykd.checkpoint import Stopwatch, load_best, load_checkpoint, save_best, save_checkpoint, seed_step
from raykd.distillation import alpha_at, distillation_loss, ensemble_target, teacher_weights, weights_changed
from raykd.errors import TrainingError
from raykd.evaluation import evaluate_split, flat_metrics, mean_logits, predict_split, score_splits, selection_score
from raykd.feed import Feed, Pace, Serving
from raykd.job import Job
from raykd.logits import StoredLogits
from raykd.models import default_dtype, load_model, load_processor
from raykd.optimization import learning_rate, make_optimizer
from raykd.prediction import autocast
from raykd.ranks import Ranks
from raykd.saving import save_model, save_result
from raykd.targets import open_logits, own_logits
from raykd.tasks import Evaluation, Task, make_task

Event = dict[str, Any]
LOGGED_STEPS = 400  # points of a training's loss curve, at most


def train(
    job: Job,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    stop: Callable[[], bool] = lambda: False,
    serving: Serving = Serving(),  # noqa: B008 (frozen)
) -> Iterator[Event]:
    """Train a job's model, generation by generation, and leave the result in its folder.

    Goes on from the last checkpoint if there is one. `stop` is asked before every step; when it says so on
    any worker, a checkpoint is written and the training ends there. Raises TrainingError on a loss that is
    not finite.
    """
    spent = Stopwatch()
    task = make_task(job.task, job.label_names)
    processor = load_processor(job.model, task, f"{job.key}.model")
    rows = datasets.concatenate_datasets([e.open() for e in job.train])
    teachers = open_logits(job, rows)
    generations: list[dict[str, Evaluation]] = []
    logits: list[dict[str, list[np.ndarray]]] = []  # each generation's, by split, for their average
    for generation in range(1, job.method.generations + 1):
        folder = job.folder / f"generation-{generation}"
        folder.mkdir(parents=True, exist_ok=True)
        seed = job.seed + 1000 * (generation - 1)  # as in the paper, each generation is drawn anew
        model = load_model(job.model, task, seed, f"{job.key}.model").to(ranks.device)
        finished = yield from _train_generation(
            job, generation, seed, model, task, processor, rows, teachers, folder, ranks, stop, serving, spent
        )
        if not finished:
            return
        logits.append({s: predict_split(job, s, model, task, processor, ranks) for s in ("validation", "test")})
        scored = score_splits(job, task, logits[-1])
        generations.append(scored)
        if ranks.first:
            save_model(folder / "model", model, processor, job, generation, scored)
        ranks.wait()
        yield {"event": "generation", "generation": generation, "metrics": flat_metrics(scored)}
        if generation < job.method.generations:
            teachers = own_logits(job, folder, model, task, processor, rows, ranks)
    if job.method.generations > 1:  # their logits belong to this run alone
        ranks.wait()
        if ranks.first:
            shutil.rmtree(job.folder / "generations", ignore_errors=True)
    best = max(range(len(generations)), key=lambda g: selection_score(job, task, generations[g]["validation"].metrics))
    average = score_splits(job, task, mean_logits(logits)) if job.method.average_generations else None
    if ranks.first:
        save_result(job, task.headline, generations, best, average, spent())
    ranks.wait()
    yield {"event": "done"}


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
    ranks: Ranks,
    stop: Callable[[], bool],
    serving: Serving,
    spent: Stopwatch,
) -> Generator[Event, None, bool]:
    """The loop itself. Leaves the best weights of this generation in `model`; False if it was stopped before."""
    method, training, steps = job.method, job.training, job.steps
    used = used_rows(rows, job.examples)  # (N,) positions of the rows that are trained on
    lengths = np.asarray(rows.select_columns("length")[:]["length"])[used]
    optimizer = make_optimizer(model, training)
    auto = default_dtype("auto") if ranks.device.type == "cuda" else "float32"
    dtype = {"auto": auto, "fp32": "float32", "bf16": "bfloat16"}[training.precision]
    eval_every = training.eval_every or math.ceil(steps / 5)
    log_every = max(1, steps // LOGGED_STEPS)
    feed = Feed(job, rows, task, processor, seed, teachers, ranks, stop, serving)
    parallel = DistributedDataParallel(model, device_ids=_device_ids(ranks)) if ranks.world > 1 else model

    start, best, seen = 0, -float("inf"), {"changed": 0, "weighed": 0}
    if saved := load_checkpoint(folder):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start, best, seen = saved["step"], saved["best"], saved["seen"]
        spent.goes_on_from(saved.get("seconds", 0.0))  # an older raykd's has none
        yield {"event": "resumed", "generation": generation, "step": start, "steps": steps}
    if start == steps:  # it was stopped after its last step
        load_best(folder, model)
        return True

    def checkpoint(step: int) -> None:
        if ranks.first:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(folder, state | {"step": step, "best": best, "seen": seen, "seconds": spent()})

    def alpha_of(step: int) -> float:
        return alpha_at(step / steps, method.alpha, method.schedule, method.floor)

    history: list[tuple[int, dict[str, float]]] = []
    told, pace = time.monotonic(), Pace(feed, training.batch_size)
    batches = batch_order(lengths, training.batch_size, seed, training.group_by_length)
    for fed in feed.steps(used, batches, start, steps, lambda step: alpha_of(step) > 0):
        step = fed.number
        seed_step(seed, step, ranks.rank)
        parallel.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, training)
        alpha = alpha_of(step)

        # What each part of this worker's share is taught, and the numbers that all workers must agree on.
        targets = []
        counts = torch.zeros(6, dtype=torch.float64)  # distilled, labelled, changed, weighed, asked to stop, lacking
        counts[4], counts[5] = fed.interrupted == "stop", fed.interrupted == "missing"
        counts = counts.to(ranks.device)
        for part in fed.parts:
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
                labelled = batch.labels >= 0
                counts[0] += distill.sum()
                counts[2] += (weights_changed(weights) & labelled).sum()
                counts[3] += labelled.sum()
            counts[1] += (batch.labels >= 0).sum()
            targets.append((batch, target, distill))
        counts = ranks.sum(counts)  # global before any backward pass: the losses' denominators
        if counts[4:].any():  # so every worker stops at the same step
            checkpoint(step)
            kind = "stopped" if counts[4] else "missing"
            yield {"event": kind, "generation": generation, "step": step, "steps": steps, "history": history}
            return False

        sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        for i, (batch, target, distill) in enumerate(targets):
            last = i == len(targets) - 1
            with parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not last else nullcontext():
                with autocast(ranks.device, dtype):
                    outputs = parallel(**batch.inputs)
                terms = distillation_loss(
                    task.decisions(outputs),
                    target,
                    batch.labels,
                    alpha=alpha,
                    temperature=method.temperature,
                    mask=batch.mask,
                    distill=distill,
                    counts=(counts[0], counts[1]),
                    scale_by_t2=method.scale_by_t2,
                    epsilon=method.epsilon,
                )
                (terms.loss * ranks.world).backward()  # DDP averages gradients over workers; this is a sum
                sums += torch.stack([terms.loss.detach(), terms.distillation, terms.label])
        loss, distillation, label = ranks.sum(sums).tolist()
        if not np.isfinite(loss):
            _refuse(job, step, "the loss", loss, optimizer.param_groups[0]["lr"], rows, fed.positions)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm))
        if not np.isfinite(norm):
            _refuse(job, step, "the gradient's norm", norm, optimizer.param_groups[0]["lr"], rows, fed.positions)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        if method.weighting == "correctness":
            seen["changed"] += int(counts[2])
            seen["weighed"] += int(counts[3])
        if done % log_every == 0 or done == steps:
            values = {
                "loss": loss,
                "label": label,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "gradient_norm": norm,
                "alpha": alpha,
            }
            if alpha > 0:
                values["distillation"] = distillation
            if seen["weighed"]:
                values["changed_share"] = seen["changed"] / seen["weighed"]
            values |= pace.since_last(done)
            history.append((done, values))
        if done % eval_every == 0 or done == steps:
            found = evaluate_split(
                job, "validation", task, predict_split(job, "validation", model, task, processor, ranks)
            )
            if (score := selection_score(job, task, found.metrics)) > best:
                best = score
                if ranks.first:
                    save_best(folder, model)
            checkpoint(done)
            yield {
                "event": "evaluation",
                "generation": generation,
                "step": done,
                "steps": steps,
                "metrics": found.metrics,
                "history": history,
                "waits": pace.waits(),
                "seconds": spent(),
            }
            history, told = [], time.monotonic()
            pace.restart()  # evaluations are no part of it
        elif time.monotonic() - told > 1:
            told = time.monotonic()
            told_now = {"generation": generation, "step": done, "steps": steps, "loss": loss, "waits": pace.waits()}
            yield {"event": "progress", **told_now}
    ranks.wait()
    load_best(folder, model)
    return True


def used_rows(rows: datasets.Dataset, examples: np.ndarray | None) -> np.ndarray:
    """(N,) positions of the encoded rows that a job trains on."""
    if examples is None:
        return np.arange(len(rows))
    return np.flatnonzero(np.isin(np.asarray(rows.select_columns("example")[:]["example"]), examples))


def _device_ids(ranks: Ranks) -> list[torch.device] | None:
    return [ranks.device] if ranks.device.type == "cuda" else None


def _refuse(
    job: Job, step: int, what: str, value: float, rate: float, rows: datasets.Dataset, positions: np.ndarray
) -> NoReturn:
    """positions: the rows of the whole step, every worker's."""
    examples = sorted({int(e) for e in rows.select_columns("example")[positions]["example"]})
    raise TrainingError(
        f"{job.name}: {what} is {value} at step {step + 1}, learning rate {rate:.3g}, rows {examples} of the "
        f"training data. Lower {job.key}'s learning_rate, or look at these rows; no step was taken on it."
    )
