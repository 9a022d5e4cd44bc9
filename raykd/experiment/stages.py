"""The stages that `teach`, `distill` and `sweep` share: teachers, their logits, their scores, the results."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from raykd.cluster.resources import Resources
from raykd.common.errors import UserError
from raykd.common.progress import Bars, bars
from raykd.config.schema import Config
from raykd.data.batches import first_epoch
from raykd.experiment.scoring import class_order, disagreement, generated_metrics, other_scale, score_teachers
from raykd.logits import LogitStore, TeacherLogits
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.plan.trainings import served_teacher, teacher_jobs
from raykd.tasks.generated import with_generated
from raykd.teachers.blocks import TeacherWork
from raykd.teachers.dtype import compute_dtype, fixed_dtype
from raykd.teachers.pool import TeacherPool
from raykd.teachers.replica import Progress
from raykd.teachers.serving import ServedTeacher
from raykd.tracking.recorder import Recorder
from raykd.tracking.results import Scored
from raykd.training.access import Training
from raykd.training.events import Event, Started

log = logging.getLogger(__name__)
Failures = dict[str, UserError]  # by the job's fingerprint
Texts = dict[int, str]  # what a model has written, by the raw test rows' positions


@dataclass(frozen=True)
class Work:
    """The context of a running command.

    gpus: of the cluster.
    start_ray: starts Ray unless it runs; called before anything that needs it.
    """

    config: Config
    prepared: Prepared
    console: Console
    recorder: Recorder
    gpus: float
    start_ray: Callable[[], None] = lambda: None

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def train(work: Work, trainings: Sequence[Training], shown: Bars, pool: TeacherPool | None = None) -> Failures:
    """Run the trainings that have no result yet, equal ones once. Returns the failures, by fingerprint."""
    config, recorder = work.config, work.recorder
    distinct = {t.job.fingerprint: t for t in trainings}
    todo = [t for t in distinct.values() if not recorder.reuse(t.job)]
    if reused := [t.job.name for t in distinct.values() if t not in todo]:
        work.say(f"reused: {', '.join(reused)}")
    if not todo:
        return {}
    work.start_ray()
    from raykd.training.processes import run_trainings  # imports torch and Ray

    waiting = {t.job.fingerprint for t in todo}

    def on_event(job: Job, event: Event) -> None:
        recorder.on_event(job, event, shown)
        if not isinstance(event, Started) or job.workers == 1:  # several workers get their resources after the start
            waiting.discard(job.fingerprint)
        if pool and not waiting:
            pool.make_way.clear()

    if pool is None:
        return run_trainings(todo, config.ray, on_event)
    pool.make_way.set()  # extra replicas stop, to free resources for waiting trainings
    return run_trainings(
        todo, config.ray, on_event, pool.check, pool.precompute_missing, lambda: not pool.precompute_done.is_set()
    )


def train_teachers(
    work: Work, baselines: Sequence[Training] = ()
) -> tuple[list[ServedTeacher], Collection[str], Failures]:
    """Train the teachers. Returns them ready to serve, the names of the trained ones, and the failures of `baselines`.

    baselines: trainings that need no teacher, to run at the same time. Raises the error of a teacher that fails.
    """
    config, prepared, recorder = work.config, work.prepared, work.recorder
    by_teacher = teacher_jobs(config, prepared)
    for name, jobs in by_teacher.items():
        recorder.register(jobs, "teacher", name)
    sizes = {t.name: Resources.of(t, work.gpus) for t in config.teachers}
    trainings = [Training(job, sizes[name]) for name, jobs in by_teacher.items() for job in jobs]
    with bars(work.console) as shown:
        failed = train(work, [*trainings, *baselines], shown)
    for training in trainings:
        if training.job.fingerprint in failed:
            raise failed[training.job.fingerprint]
    teachers = []
    dtypes: dict[Resources, str] = {}  # finding the dtype of a GPU takes a process
    for teacher in config.teachers:
        models = [recorder.result(job)["model"] for job in by_teacher.get(teacher.name, [])]
        size = sizes[teacher.name]
        if size not in dtypes:
            if fixed_dtype(config, teacher, work.gpus) is None:
                work.start_ray()
            dtypes[size] = compute_dtype(config, teacher, work.gpus)
        teachers.append(served_teacher(config, prepared, teacher, models, dtypes[size]))
    keys = {served.name: served.key.fingerprint for served in teachers}
    recorder.scored_by(keys, [config.method.correct_by, config.logits.mode])
    return teachers, by_teacher.keys(), failed


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


def live_directory(work: Work) -> Any:
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
    return [
        n
        for n in ("train", "transfer", "validation", "test")
        if n in prepared.splits and not (live and n[0] == "t" and n != "test")
    ]


def precomputed_rows(prepared: Prepared, live: bool) -> int:
    return sum(len(prepared.student.splits[name].open()) for name in precomputed_splits(prepared, live))


def log_precompute(work: Work, pool: TeacherPool, live: bool) -> None:
    """Log what a closed pool has computed and how often replicas were replaced, including the time since `score`.

    What computing cost is kept with the logits, for later commands that find all of them in the store.
    """
    for progress in pool.progress:
        work.recorder.event_log.on_progress(progress)
    work.recorder.log_precompute(precomputed_rows(work.prepared, live))
    for name, key in {t.served.name: t.served.key for t in pool.teacher_works}.items():
        logits, done = TeacherLogits(pool.store, key), work.recorder.event_log.precomputed.get(name)
        if done and done.computed:
            logits.note_cost(done.computed, done.seconds)
        elif (cost := logits.cost())["rows"]:
            work.recorder.note(name, "teacher", {"store/seconds_per_row": cost["compute_seconds"] / cost["rows"]})


def score(
    work: Work, teachers: Sequence[ServedTeacher], trained: Collection[str], texts: Mapping[str, Texts], live: bool
) -> list[Scored]:
    """Score the teachers and the ensemble by their stored logits, and measure how many decisions W can change.

    texts: by the teacher's name, what given ones have written.
    """
    config, prepared, recorder = work.config, work.prepared, work.recorder
    rows = precomputed_rows(prepared, live)
    recorder.log_precompute(rows)
    for name in (t.name for t in teachers):
        computed = recorder.event_log.precomputed[name].computed if name in recorder.event_log.precomputed else 0
        work.say(f"logits of {name}: {computed} computed, {max(0, rows - computed)} found in the store")
    scored = []
    shares: dict[str, float] = {}
    # Live rows change from epoch to epoch, so the training measures this itself.
    if not live and (measured := disagreement(config, prepared, teachers)):
        shares = {"changed_share": measured.changed, "all_wrong_share": measured.all_wrong}
        for served, right in zip(teachers, measured.right, strict=True):
            recorder.note(served.name, "teacher", {"train_right_share": right})
        work.say(
            f"teachers on train: {measured.changed:.2%} of the labelled decisions have some teachers right, some wrong "
            f"(where W acts), {measured.all_wrong:.2%} all teachers wrong"
        )
    *each, ensemble = score_teachers(prepared, teachers, LogitStore.of(config))
    for served, evaluations in zip(teachers, each, strict=True):
        TeacherLogits(LogitStore.of(config), served.key).note_use(config.name)
        method = "finetune" if served.name in trained else "given"
        if config.task.generate and served.name in trained:
            evaluations["test"].metrics.update(generated_metrics(served))
        elif served.name in texts:
            raw = prepared.splits["test"].rows
            evaluations["test"] = with_generated(evaluations["test"], texts[served.name], raw)
        details: dict[str, Any] = {}
        names = prepared.task.label_names if method == "given" and not prepared.task.problem_type else ()
        if names and (order := class_order(names, evaluations["validation"].predictions)):
            log.warning("%s", order.warning(served.name))
            details["class_order"] = order.as_json()
        judged = evaluations["validation"].predictions if prepared.task.predicts_values and method == "given" else []
        if judged and (warning := other_scale(judged)):
            log.warning("teacher %s: %s", served.name, warning)
        scored.append(recorder.scored(served.name, "teacher", method, evaluations, details))
    recorder.note("ensemble", "ensemble", shares)
    scored.append(recorder.scored("ensemble", "ensemble", "mean", ensemble, details=shares))
    return scored
