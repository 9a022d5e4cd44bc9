"""The teachers' logits: opens the pool that computes the missing ones, and lets students train when they can."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raykd.cluster.resources import Resources
from raykd.common.progress import Bars
from raykd.config.schema import Config
from raykd.data.batches import first_epoch
from raykd.experiment.work import Work
from raykd.logits import LogitStore
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.teachers.blocks import TeacherWork
from raykd.teachers.pool import TeacherPool
from raykd.teachers.replica import Progress
from raykd.teachers.serving import ServedTeacher
from raykd.training.access import TeacherAccess


def start_precompute(
    work: Work,
    teachers: Sequence[ServedTeacher],
    first: Job | None,
    students: Resources | None,
    live: bool,
    shown: Bars,
) -> tuple[TeacherPool, TeacherAccess, bool]:
    """Start to compute the missing logits, and return as soon as students can be trained.

    first: see `work_for_teachers`.
    students: what each of them needs; None: there are none.
    live: whether they query the teachers instead of reading the store.
    shown: where progress is shown.

    Returns the pool, which the caller closes; what trainings need of it; and whether the logits are computed while the
    students train, because there is room for both. Otherwise all that are stored have been computed.
    """
    directory = _live_directory(work) if live else None
    pool = open_pool(work, teachers, first, shown, directory)
    settings = work.config.logits
    access = TeacherAccess(pool.precompute_running, directory, settings.in_flight, settings.timeout_s)
    _note_uses(work, pool)  # at once, so that they are not removed as unused during the trainings
    try:
        pool.start()
        overlap = students is not None and not live and not pool.idle and pool.overlap(students)
        if overlap:
            pool.ready()  # students must not take the teachers' resources
        else:
            pool.wait()
    except BaseException:
        pool.close()
        raise
    return pool, access, overlap


def _note_uses(work: Work, pool: TeacherPool) -> None:
    for logits in pool.logits.values():
        logits.note_use(work.config.name)


def open_pool(
    work: Work, teachers: Sequence[ServedTeacher], first: Job | None, shown: Bars, directory: Any = None
) -> TeacherPool:
    """The pool for all missing logits, in the order in which the first student needs them.

    directory: of live teachers; the logits that students train on are then not stored.
    """
    teacher_works = work_for_teachers(work.config, work.prepared, teachers, first, live=directory is not None)

    def on_progress(p: Progress) -> None:
        work.recorder.event_log.on_progress(p)
        rate = p.per_replica * max(1, p.replicas)
        left = f", {(p.total - p.done) / rate:.0f} s left" if rate and p.done < p.total else ""
        shown.update(f"logits of {p.teacher}", p.done, p.total, f"{rate:.0f} rows/s{left}" if rate else "", news=False)

    store = LogitStore.of(work.config)
    return TeacherPool(teacher_works, store, work.config, work.gpus, on_progress, directory, work.start_ray)


def _live_directory(work: Work) -> Any:
    """The actor in which students find the live teachers."""
    work.start_ray()
    from raykd.teachers.live import directory_here  # imports Ray

    return directory_here()


def work_for_teachers(
    config: Config, prepared: Prepared, teachers: Sequence[ServedTeacher], first: Job | None, live: bool
) -> list[TeacherWork]:
    """The teachers and the rows whose logits they store, in the order in which the student `first` needs them."""
    names = precomputed_splits(prepared, live)
    joint_splits, order = 1, None
    if first and not live and first.method.distils:
        joint_splits = len(first.train)
        lengths = [np.asarray(e.open().select_columns("length")[:]["length"]) for e in first.train]
        training = first.training
        order = first_epoch(np.concatenate(lengths), training.batch_size, first.seed, training.group_by_length)
    teacher_works = []
    for teacher, served in zip(config.teachers, teachers, strict=True):
        member = prepared.teachers[teacher.name]
        splits = {n: (prepared.splits[n], member.splits[n]) for n in names}
        teacher_works.append(TeacherWork(teacher, served, splits, joint_splits, order))
    return teacher_works


def precomputed_splits(prepared: Prepared, live: bool) -> list[str]:
    """The splits whose logits are stored, in the order in which they are needed. Live students need none of train."""
    trained_on = () if live else ("train", "transfer")
    return [name for name in (*trained_on, "validation", "test") if name in prepared.splits]


def precomputed_rows(prepared: Prepared, live: bool) -> int:
    return sum(len(prepared.student.splits[name].open()) for name in precomputed_splits(prepared, live))


def log_precompute(work: Work, pool: TeacherPool, live: bool) -> None:
    """Log what a closed pool has computed and how often replicas were replaced, including the time since `score`.

    Of logits that were all found, what they once cost is logged.
    """
    _note_uses(work, pool)  # again, as the trainings can have taken days
    for progress in pool.progress:
        work.recorder.event_log.on_progress(progress)
    work.recorder.log_precompute(precomputed_rows(work.prepared, live))
    for name, key in {t.served.name: t.served.key for t in pool.teacher_works}.items():
        done = work.recorder.event_log.precomputed.get(name)
        if not (done and done.computed) and (cost := pool.logits[key.fingerprint].cost())["rows"]:
            work.recorder.note(name, "teacher", {"store/seconds_per_row": cost["compute_seconds"] / cost["rows"]})
