"""Fills the logit store: which rows are missing, cut into blocks, given to one actor a teacher."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from raykd.cluster import slots
from raykd.config import RayConfig, TeacherConfig
from raykd.data import Split
from raykd.encoding import Encoded, id_column
from raykd.errors import TrainingError, UserError
from raykd.job import Resources
from raykd.logits import TeacherLogits
from raykd.models import default_dtype
from raykd.teachers.actor import BlockRequest, TeacherActor
from raykd.teachers.serving import ServedTeacher


@dataclass(frozen=True)
class Pupil:
    """A teacher, what it is to see, and what its actor may hold."""

    config: TeacherConfig
    served: ServedTeacher
    splits: dict[str, tuple[Split, Encoded]]


def compute_dtype(setting: str, needs: Resources) -> str:
    """What a teacher computes in. `auto` is bf16 where the GPU that it will get has it; the driver may have none."""
    if setting != "auto" or not needs.num_gpus:
        return "float32" if setting == "auto" else setting
    return ray.get(_dtype_here.options(num_cpus=needs.num_cpus, num_gpus=needs.num_gpus).remote())


@ray.remote
def _dtype_here() -> str:
    return default_dtype("auto")


def missing_blocks(teacher: Pupil, store: Path, block_rows: int) -> list[BlockRequest]:
    """The blocks that are yet to be computed; rows that are stored already are in none."""
    stored = TeacherLogits(store, teacher.served.key)
    requests = []
    for split, encoded in teacher.splits.values():
        rows = encoded.open()
        ids, inputs = id_column(rows, "row_id"), id_column(rows, "input_hash")
        folds = teacher.served.fold_of(split.ids)[np.asarray(rows.select_columns("example")[:]["example"])]
        missing = stored.missing(ids, inputs)
        for start in range(0, len(missing), block_rows):
            chosen = missing[start : start + block_rows]
            requests.append(BlockRequest(encoded.folder, chosen, folds[chosen], ids[chosen], inputs[chosen]))
    return requests


def fill(
    teachers: Sequence[Pupil],
    store: Path,
    block_rows: int,
    settings: RayConfig,
    gpus: float,
    on_rows: Callable[[str, int, int, float], None],
) -> None:
    """Compute what the store lacks. `on_rows(teacher, done, total, seconds)` hears of every block.

    One actor a teacher, as many at once as the cluster has room for; the others take turns. An actor
    that dies comes back and its block is computed again. UserError with the teacher's name if it cannot.
    """
    waiting = deque((t, blocks) for t in teachers if (blocks := missing_blocks(t, store, block_rows)))
    running: dict[Any, tuple[Pupil, Any, deque[BlockRequest], list[int]]] = {}
    try:
        while waiting or running:
            while waiting and _fits(waiting[0][0], [r[0] for r in running.values()], gpus):
                teacher, blocks = waiting.popleft()
                needs = Resources.of(teacher.config, gpus)
                actor = TeacherActor.options(  # type: ignore[attr-defined]
                    num_cpus=needs.num_cpus,
                    num_gpus=needs.num_gpus,
                    max_restarts=settings.max_retries,
                    max_task_retries=settings.max_retries,
                ).remote(teacher.served, store, needs.num_cpus, needs.num_gpus)
                progress = [0, sum(len(b.positions) for b in blocks)]
                queue = deque(blocks)
                running[actor.fill.remote(queue.popleft())] = (teacher, actor, queue, progress)
            done, _ = ray.wait(list(running), num_returns=1, timeout=settings.timeout_s)
            if not done:
                names = ", ".join(t.config.name for t, *_ in running.values())
                raise TrainingError(
                    f"no block of teacher {names} within ray.timeout_s = {settings.timeout_s:g} s. "
                    f"Raise it, or lower logits.block_rows"
                )
            for ref in done:
                teacher, actor, queue, progress = running.pop(ref)
                answer = _answer(ref, teacher)
                progress[0] += answer.rows
                on_rows(teacher.config.name, progress[0], progress[1], answer.seconds)
                if queue:
                    running[actor.fill.remote(queue.popleft())] = (teacher, actor, queue, progress)
                else:
                    ray.kill(actor)
    finally:
        for _, actor, *_ in running.values():
            ray.kill(actor)


def _fits(teacher: Pupil, running: Sequence[Pupil], gpus: float) -> bool:
    """Whether one more actor has room beside those at work; the first always does, or it is an error."""
    size = Resources.of(teacher.config, gpus)
    return len(running) < slots(size, f"teachers.{teacher.config.name}.num_cpus")


def _answer(ref: Any, teacher: Pupil) -> Any:
    name = teacher.config.name
    try:
        return ray.get(ref)
    except ActorDiedError as error:
        told = [line.strip() for line in re.sub(r"\x1b\[\d+m", "", str(error)).splitlines() if line.strip()]
        raise TrainingError(
            f"teacher {name}: its process cannot start or keeps dying ({told[-1] if told else 'no reason given'}). "
            f"If it is memory, lower logits.batch_tokens; else check its checkpoint"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise TrainingError(f"teacher {name}: {type(error.cause).__name__}: {error.cause}") from error
