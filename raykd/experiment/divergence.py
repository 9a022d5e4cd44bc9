"""How far each finished training of a language model is from the ensemble: measured once, remembered in the store."""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from raykd.cluster.resources import Resources
from raykd.common.remembered import remembered
from raykd.config.schema import TaskConfig
from raykd.experiment.on_worker import on_worker
from raykd.experiment.scoring import stored_logits
from raykd.experiment.work import Work
from raykd.logits import LogitStore, StoredLogits
from raykd.logits.keep import Keep
from raykd.models.ensemble_divergence import Compared, measure
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.teachers.serving import ServedTeacher
from raykd.tracking.mlflow_store import one_line

log = logging.getLogger(__name__)
_VERSION = 1  # increase it when `measure` gives other values
METRIC = "divergence"
SPLITS = ("validation", "test")
Metrics = dict[str, dict[str, float]]  # by split
Splits = dict[str, tuple[Path, StoredLogits]]


def divergences(work: Work, teachers: Sequence[ServedTeacher], jobs: Sequence[Job]) -> dict[str, Metrics]:
    """By the job's name, its metric `divergence` on validation and test; {} for tasks without a vocabulary.

    jobs: finished trainings of the student, whose models are kept.

    The teachers' stored logits are read, so no teacher runs. One that cannot be measured is left out, with a warning.
    """
    if not work.prepared.task.predicts_tokens:
        return {}
    keys = [teacher.key.fingerprint for teacher in teachers]
    rows = [work.prepared.student.splits[split].digest for split in SPLITS]
    versions = [_VERSION, version("torch"), version("transformers")]
    found: dict[str, Metrics] = {}

    @cache  # opened once, and only if one is to be measured
    def rows_and_logits() -> Splits:
        return read(work.prepared, teachers, LogitStore.of(work.config))

    for job in jobs:
        identity = [job.fingerprint, keys, *rows, *versions]
        try:
            values = remembered(
                work.config.store, METRIC, identity, partial(_measured, work, rows_and_logits, teachers[0].keep, job)
            )
        except Exception as error:  # as with any model's code; nothing else depends on it
            log.warning("%s: its divergence from the ensemble was not measured (%s)", job.name, one_line(error))
            continue
        found[job.name] = {split: {METRIC: value} for split, value in values.items()}
    return found


def _measured(work: Work, splits: Callable[[], Splits], keep: Keep, job: Job) -> dict[str, float]:
    """By split."""
    config, needs = work.config, Resources.of(work.config.student, work.gpus)
    what = compared(work.prepared.student.model.task.settings, splits(), keep, job, needs)
    # It takes less time than the training, which has predicted the same rows several times.
    return on_worker(work, needs, measure, what, config.ray.timeout_s + job.result()["seconds"])


def read(prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore) -> Splits:
    """The scored splits: the folder of the student's rows, and the teachers' logits of these rows."""
    member = prepared.student
    return {s: (member.splits[s].folder, stored_logits(prepared, teachers, s, store)) for s in SPLITS}


def compared(task: TaskConfig, splits: Splits, keep: Keep, job: Job, needs: Resources) -> Compared:
    """What `measure` needs for a finished training. splits: as `read` returns them."""
    return Compared(
        key="student.model",
        task=task,
        model=job.model.trained(job.result()["model"]),
        splits=splits,
        keep=keep,
        precision=job.training.precision,
        threads=max(1, int(needs.num_cpus)),
        num_gpus=needs.num_gpus,
    )
