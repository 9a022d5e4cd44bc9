"""The driver: data, teachers, logits, baseline, student, results. Read it from top to bottom."""

import threading
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from raykd.batches import first_epoch
from raykd.cluster import cluster_gpus, ray_session
from raykd.config import Config
from raykd.errors import TrainingError, UserError
from raykd.feed import Serving
from raykd.job import Job, Resources
from raykd.local_ray import remember_good
from raykd.logits import TeacherLogits
from raykd.mlflow_store import scrub
from raykd.placement import check_room
from raykd.plan import FINETUNE, served_teacher, student_jobs, teacher_jobs
from raykd.prepare import Prepared, prepare
from raykd.processes import Training, run_trainings
from raykd.progress import Bars, bars
from raykd.recorder import Recorder
from raykd.results import Scored, table, verdict, write_results
from raykd.scoring import disagreement, score_teachers
from raykd.student import Event
from raykd.teachers.blocks import Pupil
from raykd.teachers.live import directory_here
from raykd.teachers.pool import TeacherPool, compute_dtype
from raykd.teachers.replica import Progress
from raykd.teachers.serving import ServedTeacher
from raykd.tracking import Tracking, tracking_uri

Failures = dict[str, UserError]  # by the job's fingerprint


def run(config: Config, command: str, console: Console) -> list[Scored]:
    """`raykd teach` (teachers and their logits) or `raykd distill` (everything). Raises UserError.

    A stage whose result exists with the same fingerprint is not run again, and says so.
    """
    uri = tracking_uri(config.tracking.uri, Path(config.output))
    check_room(config)
    prepared = prepare(config)  # bad input is told here, before Ray or MLflow is started
    remember_good(config)
    _say_data(prepared, console)
    # A storage's or tracker's URI may hold a password.
    (config.folder / "config.yaml").write_text(scrub(yaml.safe_dump(config.model_dump(), sort_keys=False)))
    threading.Thread(target=import_module, args=("mlflow.tracking",), daemon=True).start()  # while Ray starts
    with ray_session(config.ray):
        check_room(config)
        tracking = Tracking(uri, config.tracking.experiment or config.name)
        with Recorder(tracking, config, prepared, command) as recorder:
            scored, failed = _run_stages(config, prepared, command, console, recorder)
            _finish(config, prepared, console, recorder, scored, uri)
            if failed:  # what did not fail is in the table
                first = next(iter(failed.values()))
                raise TrainingError(f"{len(failed)} training(s) failed. {first}") from first
    return scored


def _run_stages(
    config: Config, prepared: Prepared, command: str, console: Console, recorder: Recorder
) -> tuple[list[Scored], Failures]:
    """What was scored, and the baselines and students that failed. A teacher that fails ends the command."""
    gpus = cluster_gpus()
    of_student = Resources.of(config.student, gpus)
    scored: list[Scored] = []

    # 1. Teachers that are trained here, and beside them the baseline, which needs no teacher.
    by_teacher = teacher_jobs(config, prepared)
    trainings = [Training(job, Resources.of(t, gpus)) for t in config.teachers for job in by_teacher.get(t.name, [])]
    for name, jobs in by_teacher.items():
        recorder.expect(jobs, "teacher", name)
    baselines = []
    if config.baseline and command == "distill":
        baselines = student_jobs(config, prepared, FINETUNE, (), "baseline")
    for job in baselines:
        recorder.expect([job], "baseline", job.name, group="baseline")
    trainings += [Training(job, of_student) for job in baselines]
    with bars(console) as shown:
        failed = _train(config, trainings, console, recorder, shown)
    for jobs in by_teacher.values():
        for job in jobs:
            if job.fingerprint in failed:
                raise failed[job.fingerprint]

    # 2. Their logits: missing blocks are computed, beside the students where there is room, else before them.
    teachers = []
    for teacher in config.teachers:
        models = [recorder.result(job)["model"] for job in by_teacher.get(teacher.name, [])]
        dtype = compute_dtype(config, teacher, gpus)
        teachers.append(served_teacher(config, prepared, teacher, models, dtype))
    live = config.logits.mode == "live" and config.method.distils and command == "distill"
    students = [] if command == "teach" else student_jobs(config, prepared, config.method, teachers)
    directory = directory_here() if live else None
    with bars(console) as shown:
        pool = _pool(config, prepared, teachers, students, gpus, directory, shown, recorder)
        serving = Serving(pool.filling, directory, config.logits.in_flight, config.logits.timeout_s)
        try:
            pool.start()
            beside = bool(students) and not live and not pool.idle and pool.beside(of_student)
            if beside:
                pool.ready()  # students must not take the teachers' places
            else:
                pool.wait()
                scored += _score_teachers(config, prepared, console, recorder, teachers, by_teacher, live)

            # 3. The student, once a seed.
            for job in students:
                recorder.expect([job], "student", job.name, group=f"student ({config.method.label})")
            trainings = [Training(job, of_student, serving) for job in students]
            failed |= _train(config, trainings, console, recorder, shown, pool)
            pool.wait()
        finally:
            pool.close()
    recorder.log_fills(pool.progress, _filled_rows(prepared, live))
    if beside:
        scored += _score_teachers(config, prepared, console, recorder, teachers, by_teacher, live)
    scored += [recorder.trained(job, "baseline") for job in baselines if job.fingerprint not in failed]
    for job in students:
        if job.fingerprint not in failed:
            scored += recorder.generations(job)
            scored.append(recorder.trained(job, "student"))
    return scored, failed


def _score_teachers(
    config: Config,
    prepared: Prepared,
    console: Console,
    recorder: Recorder,
    teachers: list[ServedTeacher],
    trained: Collection[str],
    live: bool,
) -> list[Scored]:
    """Teachers and ensemble, by the logits that they serve; and what W has to act on."""
    rows = _filled_rows(prepared, live)
    for name in (t.name for t in teachers):
        computed = recorder.fills[name].computed if name in recorder.fills else 0
        console.print(
            f"logits of {name}: {computed} computed, the rest of {rows} rows was in the store", highlight=False
        )
    scored = []
    shares: dict[str, float] = {}
    if not live:  # of changing rows there is no such figure before the training; it logs its own
        found = disagreement(prepared, teachers, config.logit_store, config.method.correct_by)
        shares = {"changed_share": found.changed, "all_wrong_share": found.all_wrong}
        for served, right in zip(teachers, found.right, strict=True):
            recorder.note(served.name, "teacher", {"train_right_share": right})
        console.print(
            f"teachers on train: {found.changed:.2%} of the labelled decisions have some teachers right and some wrong "
            f"(where W acts), {found.all_wrong:.2%} all wrong",
            highlight=False,
        )
    *each, ensemble = score_teachers(prepared, teachers, config.logit_store)
    for served, evaluations in zip(teachers, each, strict=True):
        TeacherLogits(config.logit_store, served.key).note_use(config.name)
        method = "finetune" if served.name in trained else "given"
        scored.append(recorder.scored(served.name, "teacher", method, evaluations))
    recorder.note("ensemble", "ensemble", shares)
    scored.append(recorder.scored("ensemble", "ensemble", "mean", ensemble, details=shares))
    return scored


def _filled(prepared: Prepared, live: bool) -> list[str]:
    """The splits whose logits are stored, in the order of their need. Live students do without those of train."""
    return [
        n
        for n in ("train", "transfer", "validation", "test")
        if n in prepared.splits and not (live and n[0] == "t" and n != "test")
    ]


def _filled_rows(prepared: Prepared, live: bool) -> int:
    return sum(len(prepared.student.splits[name].open()) for name in _filled(prepared, live))


def _pool(
    config: Config,
    prepared: Prepared,
    teachers: list[ServedTeacher],
    students: list[Job],
    gpus: float,
    directory: Any,
    shown: Bars,
    recorder: Recorder,
) -> TeacherPool:
    """The pool with what the store lacks, in the order in which the first student will need it."""
    live = directory is not None
    names = _filled(prepared, live)
    together, order = 1, None
    if students and not live and students[0].method.distils:
        job = students[0]
        together = len(job.train)
        lengths = [np.asarray(e.open().select_columns("length")[:]["length"]) for e in job.train]
        order = first_epoch(np.concatenate(lengths), job.training.batch_size, job.seed, job.training.group_by_length)
    pupils = []
    for teacher, served in zip(config.teachers, teachers, strict=True):
        member = prepared.teachers[teacher.name]
        splits = {n: (prepared.splits[n], member.splits[n]) for n in names}
        pupils.append(Pupil(teacher, served, splits, together, order))

    def on_progress(p: Progress) -> None:
        recorder.filled(p)
        rate = p.per_replica * max(1, p.replicas)
        left = f", {(p.total - p.done) / rate:.0f} s left" if rate and p.done < p.total else ""
        shown.update(f"logits of {p.teacher}", p.done, p.total, f"{rate:.0f} rows/s{left}" if rate else "", news=False)

    return TeacherPool(pupils, config.logit_store, config, gpus, on_progress, directory)


def _train(
    config: Config,
    trainings: list[Training],
    console: Console,
    recorder: Recorder,
    shown: Bars,
    pool: TeacherPool | None = None,
) -> Failures:
    """Run what has no result yet; equal jobs once. Returns what failed, by fingerprint."""
    distinct = {t.job.fingerprint: t for t in trainings}
    todo = [t for t in distinct.values() if not recorder.reuse(t.job)]
    if reused := [t.job.name for t in distinct.values() if t not in todo]:
        console.print(f"reused, nothing about them has changed: {', '.join(reused)}", highlight=False)
    if not todo:
        return {}
    waiting = {t.job.fingerprint for t in todo}

    def on_event(job: Job, event: Event) -> None:
        recorder.on_event(job, event, shown)
        if event["event"] != "started" or job.workers == 1:  # several workers get their places after the start
            waiting.discard(job.fingerprint)
        if pool and not waiting:
            pool.make_way.clear()

    if pool is None:
        return run_trainings(todo, config.ray, on_event)
    pool.make_way.set()  # extra replicas leave their places to trainings that wait
    return run_trainings(todo, config.ray, on_event, pool.check, pool.refill)


def _say_data(prepared: Prepared, console: Console) -> None:
    sizes = ", ".join(f"{name} {len(split.rows)}" for name, split in prepared.splits.items())
    console.print(f"data: {sizes} rows", highlight=False)


def _finish(
    config: Config, prepared: Prepared, console: Console, recorder: Recorder, scored: list[Scored], uri: str
) -> None:
    """The table, the files, and where to look."""
    headline = prepared.task.headline
    sentence = verdict(scored, headline, prepared.task.percent)
    about = {
        "name": config.name,
        "task": config.task.type,
        "headline": headline,
        "verdict": sentence,
        "mlflow": {
            "uri": uri,
            "experiment_id": recorder.tracking.experiment_id,
            "run_id": recorder.parent.id,
        },
    }
    path = write_results(config.folder, scored, about)
    recorder.parent.artifact(path)
    console.print()
    console.print(table(scored, headline, prepared.task.percent))
    if sentence:
        console.print(sentence, highlight=False)
    console.print(
        f"files:  {config.folder} (results.json, config.yaml), models and logits in {config.store}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"MLflow: {uri}, experiment {config.tracking.experiment or config.name}",
        highlight=False,
        soft_wrap=True,
    )
    if uri.startswith("sqlite:"):
        import sys

        command = Path(sys.executable).with_name("mlflow")
        console.print(f"to see it: {command} ui --backend-store-uri {uri} --port 5000", highlight=False, soft_wrap=True)
