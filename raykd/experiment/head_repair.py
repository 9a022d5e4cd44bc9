"""Writes a teacher's head again where its hidden states are stored and the head is missing or damaged."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from raykd.cluster.resources import Resources
from raykd.common.errors import StoreError, TrainingError
from raykd.experiment.on_worker import on_worker
from raykd.experiment.work import Work
from raykd.logits import LogitStore
from raykd.teachers.serving import ServedTeacher

log = logging.getLogger(__name__)


def restore_heads(work: Work, teachers: Sequence[ServedTeacher]) -> None:
    """Write the missing heads. A replica does so before it computes logits, but none runs where all are stored.

    Call this while nothing else holds the teachers' resources.
    """
    store = LogitStore.of(work.config)
    for teacher, served in zip(work.config.teachers, teachers, strict=True):
        if served.keep.form != "hidden":
            continue
        from raykd.logits.heads import HEAD, head_on  # imports torch

        files = store.files(served.key.fingerprint)
        names = files.names(True) or []
        if not any(name.endswith(".block") for name in names):
            continue
        try:
            head_on(store, served.key, "cpu")  # as the scores read it
        except StoreError as error:
            log.warning("%s; written again from its model", error)
            if HEAD in names:
                files.quarantine(HEAD)
            needs = Resources.of(teacher, work.gpus)
            whole = replace(served, compiled=False)
            try:
                on_worker(work, needs, _write, (whole, store, needs.num_gpus), work.config.ray.timeout_s)
            except TrainingError as ended:
                raise TrainingError(f"teachers.{served.name}: writing its head again: {ended}") from ended


def _write(what: tuple[ServedTeacher, LogitStore, float]) -> None:
    served, store, num_gpus = what
    served.load(num_gpus).keep_head(store)
