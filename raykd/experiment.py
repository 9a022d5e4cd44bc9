"""The driver: data, teachers, logits, baseline, student, results. Read it from top to bottom."""

import threading
from importlib import import_module
from pathlib import Path

import yaml
from rich.console import Console

from raykd.cluster import check_room, cluster_gpus, ray_session
from raykd.config import Config
from raykd.errors import TrainingError, UserError
from raykd.job import Resources
from raykd.local_ray import remember_good
from raykd.plan import FINETUNE, served_teacher, student_jobs, teacher_jobs
from raykd.prepare import Prepared, prepare
from raykd.processes import Training, run_trainings
from raykd.progress import bars
from raykd.recorder import Recorder
from raykd.results import Scored, table, verdict, write_results
from raykd.scoring import disagreement, score_teachers
from raykd.teachers.pool import Pupil, compute_dtype, fill
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
    (config.folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
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
    failed = _train(config, trainings, console, recorder)
    for jobs in by_teacher.values():
        for job in jobs:
            if job.fingerprint in failed:
                raise failed[job.fingerprint]

    # 2. Their logits of every row: what is missing in the store is computed, by actors that go afterwards.
    teachers = []
    for teacher in config.teachers:
        models = [recorder.result(job)["model"] for job in by_teacher.get(teacher.name, [])]
        dtype = compute_dtype(config.logits.dtype, Resources.of(teacher, gpus))
        teachers.append(served_teacher(config, prepared, teacher, models, dtype))
    _fill(config, prepared, teachers, gpus, console)

    # 3. Teachers and ensemble, scored by the logits that they serve.
    store = config.store / "logits"
    found = disagreement(prepared, teachers, store, config.method.correct_by)
    *each, ensemble = score_teachers(prepared, teachers, store)
    for served, evaluations, right in zip(teachers, each, found.right, strict=True):
        recorder.note(served.name, "teacher", {"train_right_share": right})
        scored.append(
            recorder.scored(served.name, "teacher", "finetune" if served.name in by_teacher else "given", evaluations)
        )
    shares = {"changed_share": found.changed, "all_wrong_share": found.all_wrong}
    recorder.note("ensemble", "ensemble", shares)
    scored.append(recorder.scored("ensemble", "ensemble", "mean", ensemble, details=shares))
    console.print(
        f"teachers on train: {found.changed:.2%} of the labelled decisions have some teachers right and some wrong "
        f"(where W acts), {found.all_wrong:.2%} all wrong",
        highlight=False,
    )
    if command == "teach":
        return scored, failed
    scored += [recorder.trained(job, "baseline") for job in baselines if job.fingerprint not in failed]

    # 4. The student, once a seed.
    students = student_jobs(config, prepared, config.method, teachers)
    for job in students:
        recorder.expect([job], "student", job.name, group=f"student ({config.method.label})")
    failed |= _train(config, [Training(job, of_student) for job in students], console, recorder)
    for job in students:
        if job.fingerprint not in failed:
            scored += recorder.generations(job)
            scored.append(recorder.trained(job, "student"))
    return scored, failed


def _train(config: Config, trainings: list[Training], console: Console, recorder: Recorder) -> Failures:
    """Run what has no result yet; equal jobs once. Returns what failed, by fingerprint."""
    distinct = {t.job.fingerprint: t for t in trainings}
    todo = [t for t in distinct.values() if not recorder.reuse(t.job)]
    if reused := [t.job.name for t in distinct.values() if t not in todo]:
        console.print(f"reused, nothing about them has changed: {', '.join(reused)}", highlight=False)
    if not todo:
        return {}
    with bars(console) as shown:
        return run_trainings(todo, config.ray, lambda job, event: recorder.on_event(job, event, shown))


def _fill(config: Config, prepared: Prepared, teachers: list[ServedTeacher], gpus: float, console: Console) -> None:
    pupils = [
        Pupil(c, t, {n: (s, prepared.teachers[t.name].splits[n]) for n, s in prepared.splits.items()})
        for c, t in zip(config.teachers, teachers, strict=True)
    ]
    computed: dict[str, int] = {}
    with bars(console) as shown:

        def on_rows(name: str, done: int, total: int, seconds: float) -> None:
            computed[name] = done
            shown.update(f"logits of {name}", done, total)

        fill(pupils, config.store / "logits", config.logits.block_rows, config.ray, gpus, on_rows)
    rows = sum(len(e.open()) for e in prepared.student.splits.values())
    for name in (t.name for t in teachers):
        console.print(
            f"logits of {name}: {computed.get(name, 0)} computed, the rest of {rows} rows was in the store",
            highlight=False,
        )


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
