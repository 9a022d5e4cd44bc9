"""The driver of `teach` and `distill`, from the data to the results. Read it from top to bottom."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path

import yaml
from rich.console import Console

from raykd.cluster.local import remember_finished, remember_good
from raykd.cluster.nodes import watched
from raykd.cluster.placement import check_room
from raykd.cluster.resources import Resources
from raykd.cluster.running import cluster_gpus, ray_is_running
from raykd.cluster.session import check_shared, ray_session
from raykd.common.atomic import write_atomically
from raykd.common.output_files import CONFIG
from raykd.common.progress import bars
from raykd.common.redaction import redact
from raykd.config.schema import Config, StudentConfig, TeacherConfig
from raykd.disk.leftovers import remove_leftovers
from raykd.experiment.divergence import divergences
from raykd.experiment.ending import analysis_of, finish, shown_path, upload
from raykd.experiment.exclusive import only_command
from raykd.experiment.head_repair import restore_heads
from raykd.experiment.precompute import log_precompute, start_precompute
from raykd.experiment.serving_cost import note_costs, serving_costs
from raykd.experiment.stages import Failures, score, train_all, train_teachers, trainings_failed
from raykd.experiment.teacher_texts import given_texts
from raykd.experiment.work import Work
from raykd.models.hub import check_push
from raykd.plan.prepare import Prepared, prepare
from raykd.plan.trainings import FINETUNE, student_jobs, teacher_jobs
from raykd.tracking.also import check_also, openers
from raykd.tracking.experiment import Tracking
from raykd.tracking.mlflow_store import tracking_uri
from raykd.tracking.recorder import Recorder
from raykd.tracking.results import Scored
from raykd.training.access import Training


def run_experiment(config: Config, command: str, console: Console) -> list[Scored]:
    """`raykd teach` (teachers and their logits) or `raykd distill` (everything). Raises UserError.

    A stage whose result exists with the same fingerprint is not run again, and says so.
    """
    uri = tracking_uri(config.tracking.uri, Path(config.output))
    check_also(config)
    if command == "distill":
        check_push(config)
    check_room(config)
    with only_command(config, command):
        return _run(config, command, console, uri)


def _run(config: Config, command: str, console: Console, uri: str) -> list[Scored]:
    prepared = prepare(config)  # bad input is reported here, before Ray or MLflow is started
    with cluster(config, prepared, console, command) as start_ray:
        tracking = Tracking(uri, config.experiment, openers(config))
        with Recorder(tracking, config, prepared, command) as recorder:
            work = Work(config, prepared, console, recorder, cluster_gpus(), start_ray)
            scored, failed = run_stages(work, command)
            analysis = analysis_of(recorder) if command == "distill" else None
            finish(work, scored, uri, analysis)
            if analysis:
                work.say(f"report: raykd report {shown_path(config.folder)} (a page with figures)")
            if failed:  # the table has those that did not fail
                raise trainings_failed(failed, "")
    upload(work, scored)
    remember_finished(config, command)
    remove_leftovers(Path(config.output), config.name, console)
    return scored


@contextmanager
def cluster(config: Config, prepared: Prepared, console: Console, command: str) -> Iterator[Callable[[], None]]:
    """Ray for the time of a command. The input is valid by now. Yields a function that starts or joins Ray, once.

    A cluster is joined at once, and a local Ray is started at once if a teacher is to be trained; otherwise only when
    something needs it. Raises an error if there is no room for the config.
    """
    remember_good(config)
    sizes = ", ".join(f"{name} {len(split.rows)}" for name, split in prepared.splits.items())
    console.print(f"data: {sizes} rows", highlight=False)
    # The URI of a storage or tracker can contain a password.
    text = yaml.safe_dump(redact(config.model_dump()), sort_keys=False)
    write_atomically(config.folder / CONFIG, text.encode())
    threading.Thread(target=import_module, args=("mlflow.tracking",), daemon=True).start()  # while Ray starts
    untrained = not all(job.done for jobs in teacher_jobs(config, prepared).values() for job in jobs)
    with ExitStack() as stack:
        started = False

        def start() -> None:
            nonlocal started
            if started:
                return
            started = True
            import_module("ray")  # not at the same time in two threads: its modules import one another
            # Whatever needs Ray imports this, with torch: while Ray starts.
            threading.Thread(target=import_module, args=("raykd.training.launch",), daemon=True).start()
            # If a sweep has no teacher to train, its trials come first.
            stack.enter_context(ray_session(config.ray, trainings_first=untrained or command != "sweep"))
            check_room(config)
            check_shared(config)
            if config.ray.cluster:
                stack.enter_context(watched())

        members: list[StudentConfig | TeacherConfig] = [config.student, *config.teachers]
        unchecked = any(member.accelerator or member.node_labels for member in members)  # without Ray, for room
        if config.ray.cluster or ray_is_running() or unchecked or untrained:
            start()
        yield start


def run_stages(work: Work, command: str) -> tuple[list[Scored], Failures]:
    """Returns the scores, and the baselines and students that failed. Raises the error of a teacher that fails."""
    config, prepared, recorder = work.config, work.prepared, work.recorder
    of_student = Resources.of(config.student, work.gpus)
    scored: list[Scored] = []
    if config.student.num_gpus == "auto" and of_student.num_gpus and command == "distill":
        work.say("student.num_gpus = auto: one GPU for each training; only a sweep measures how many can share one")

    # 1. Train teachers and, at the same time, the baseline, which needs no teacher.
    baselines = []
    if config.baseline and command == "distill":
        baselines = student_jobs(config, prepared, FINETUNE, (), "baseline")
    for job in baselines:
        recorder.register([job], "baseline", job.name, group="baseline")
    teachers, trained, failed = train_teachers(work, [Training(job, of_student) for job in baselines])
    restore_heads(work, teachers)
    texts = given_texts(work, teachers, trained)

    # 2. Their logits: missing blocks are computed while the students train if there is room, otherwise before.
    live = config.is_live(command)
    students = [] if command == "teach" else student_jobs(config, prepared, config.method, teachers)
    with bars(work.console) as shown:
        first, size = (students[0], of_student) if students else (None, None)
        pool, access, overlap = start_precompute(work, teachers, first, size, live, shown)
        with closing(pool):
            if not overlap:
                scored += score(work, teachers, trained, texts, live)

            # 3. The student, once per seed.
            for job in students:
                recorder.register([job], "student", job.name, group=f"student ({config.method_label})")
            failed |= train_all(work, [Training(job, of_student, access) for job in students], shown, pool)
            pool.wait()
    log_precompute(work, pool, live)
    if overlap:
        scored += score(work, teachers, trained, texts, live)
    finished = [job for job in (*baselines, *students) if job.fingerprint not in failed]
    costs = serving_costs(work, teachers, finished)
    measured = divergences(work, teachers, finished)
    gpus = of_student.gpus
    scored += [
        recorder.trained(job, "baseline", gpus, measured=measured.get(job.name)) for job in baselines if job in finished
    ]
    for job in students:
        if job in finished:
            student = recorder.trained(job, "student", gpus, measured=measured.get(job.name))
            scored += [*recorder.generations(job), student]
    note_costs(scored, costs)
    return scored, failed
