"""What given teachers write after prompts of test rows. A model that is trained here writes as its training ends."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from raykd.cluster.resources import Resources
from raykd.common.remembered import remembered
from raykd.common.row_files import open_rows
from raykd.common.threads import torch_threads
from raykd.config.data import GenerateConfig
from raykd.experiment.on_worker import on_worker
from raykd.experiment.work import Texts, Work
from raykd.models.decoding import generate
from raykd.tasks.generated import chosen_rows
from raykd.teachers.serving import ServedTeacher
from raykd.tracking.mlflow_store import one_line

log = logging.getLogger(__name__)
_VERSION = 2  # increase it when other texts are written


@dataclass(frozen=True)
class Writing:
    """A teacher, and the prompts. Picklable.

    raw: the folder of the raw test rows.
    threads: of a CPU.
    num_gpus: 0 if it runs on the CPU.
    """

    served: ServedTeacher
    settings: GenerateConfig
    raw: Path
    threads: int
    num_gpus: float


def given_texts(work: Work, teachers: Sequence[ServedTeacher], trained: Collection[str]) -> dict[str, Texts]:
    """By the teacher's name, what it writes; remembered in the store. {} without `task.generate`.

    trained: the teachers that are trained here.

    Call it while nothing else holds the teachers' resources. A teacher that fails is left out, with a warning.
    """
    config, found = work.config, dict[str, Texts]()
    settings = config.task.generate
    if settings is None:
        return {}
    for teacher, served in zip(config.teachers, teachers, strict=True):
        if served.name in trained:
            continue
        needs, raw = Resources.of(teacher, work.gpus), work.prepared.raw["test"]
        threads = max(1, int(needs.num_cpus))
        writing = Writing(replace(served, compiled=False), settings, raw, threads, needs.num_gpus)
        identity = [_VERSION, served.key.fingerprint, settings.model_dump(), raw.name, version("transformers")]

        def compute(needs: Resources = needs, writing: Writing = writing) -> Texts:
            work.say(f"{writing.served.name}: writing texts after prompts of test")
            return on_worker(work, needs, write, writing, config.ray.timeout_s)

        try:
            texts = remembered(config.store, "generated", identity, compute)
        except Exception as error:  # as with any model's code; nothing else depends on it
            log.warning("teachers.%s: its generated texts are not scored (%s)", served.name, one_line(error))
            continue
        found[served.name] = {int(at): text for at, text in texts.items()}  # JSON's keys are texts
    return found


def write(writing: Writing) -> Texts:
    """The number of torch's threads is as before afterwards."""
    with torch_threads(writing.threads):
        teacher, rows = writing.served.load(writing.num_gpus), open_rows(writing.raw)
        chosen = chosen_rows(len(rows), writing.settings.rows)
        prompts = teacher.task.prompts(rows[chosen], teacher.processor)
        (model,), most = teacher.models, writing.settings.max_new_tokens
        texts = generate(model, teacher.processor, prompts, most, teacher.device, writing.served.dtype)
        return dict(zip(chosen.tolist(), texts, strict=True))
