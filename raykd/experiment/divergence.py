"""How far each finished training of a language model is from the ensemble: measured once, remembered in the store."""

import logging
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

from raykd.cluster.resources import Resources
from raykd.common.memory import remembered
from raykd.experiment.on_worker import on_worker
from raykd.experiment.scoring import stored_logits
from raykd.experiment.stages import Work
from raykd.logits import LogitStore
from raykd.models.ensemble_divergence import Compared, measure
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.teachers.serving import ServedTeacher
from raykd.tracking.store import one_line

log = logging.getLogger(__name__)
_VERSION = 1  # increase it when `measure` gives other values
METRIC = "divergence"
SPLITS = ("validation", "test")
Metrics = dict[str, dict[str, float]]  # by split


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
    for job in jobs:
        identity = [job.fingerprint, keys, *rows, *versions]
        try:
            values = remembered(work.config.store, METRIC, identity, partial(_measured, work, teachers, job))
        except Exception as error:  # as with any model's code; nothing else depends on it
            log.warning("%s: its divergence from the ensemble was not measured (%s)", job.name, one_line(error))
            continue
        found[job.name] = {split: {METRIC: value} for split, value in values.items()}
    return found


def _measured(work: Work, teachers: Sequence[ServedTeacher], job: Job) -> dict[str, float]:
    """By split."""
    config, needs = work.config, Resources.of(work.config.student, work.gpus)
    what = compared(work.prepared, teachers, LogitStore.of(config), job, needs)
    # It takes less time than the training, which has predicted the same rows several times.
    return on_worker(work, needs, measure, what, config.ray.timeout_s + job.result()["seconds"])


def compared(
    prepared: Prepared, teachers: Sequence[ServedTeacher], store: LogitStore, job: Job, needs: Resources
) -> Compared:
    """What `measure` needs for a finished training."""
    member = prepared.student
    changes = {"pretrained": job.result()["model"], "config": {}, "tokenizer": None}
    return Compared(
        key="student.model",
        task=member.model.task.settings,
        model=job.model.model_copy(update=changes),
        splits={
            split: (member.splits[split].folder, stored_logits(prepared, teachers, split, store)) for split in SPLITS
        },
        keep=teachers[0].keep,
        precision=job.training.precision,
        threads=max(1, int(needs.num_cpus)),
        num_gpus=needs.num_gpus,
    )
