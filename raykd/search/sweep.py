"""The driver of `raykd sweep`: teachers and their logits once, trials of every method, the best again on fresh seeds.

Read it from top to bottom.
"""

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from raykd.cluster import cluster_gpus
from raykd.config import Config
from raykd.errors import ConfigError, TrainingError
from raykd.experiment import cluster
from raykd.feed import Serving
from raykd.flags import Flag
from raykd.job import Job, Resources
from raykd.placement import check_room, fits
from raykd.plan import student_jobs
from raykd.prepare import Prepared, prepare
from raykd.processes import TRAIN_CONTROLLER_CPUS, Training
from raykd.progress import Count, bars
from raykd.recorder import Recorder
from raykd.report import report
from raykd.results import Scored, verdict
from raykd.search.board import Board, import_optuna
from raykd.search.journal import Journal
from raykd.search.screen import screen, shown
from raykd.search.space import Arm, Setting, Space
from raykd.search.tuner import Handed, search, signed
from raykd.stages import Failures, Work, finish, log_fills, open_pool, score, train, train_teachers
from raykd.teachers.live import directory_here
from raykd.teachers.pool import TeacherPool
from raykd.teachers.serving import ServedTeacher
from raykd.tracking import Tracking, tracking_uri

STOP_SECONDS = 20.0  # that trials have to write a checkpoint


def run(config: Config, console: Console, resume: bool = False) -> list[Scored]:
    """Everything that `raykd sweep` does. Raises UserError; KeyboardInterrupt or SystemExit when it was stopped."""
    uri = tracking_uri(config.tracking.uri, Path(config.output))
    check_room(config)
    space = Space(config)  # a space that makes no sense is told before anything is loaded
    if config.search.algorithm == "tpe":
        import_optuna()
    sweep = Sweep(space, prepare(config))
    journal = Journal(config.folder, config.model_dump(mode="json"), resume)
    with cluster(config, sweep.prepared, console):
        tracking = Tracking(uri, config.tracking.experiment or config.name)
        keys = [axis.key.removeprefix("student.") for axis in space.axes if axis.key.startswith("student.model")]
        with Recorder(tracking, config, sweep.prepared, "sweep", keys, journal.runs) as recorder:
            journal.note_runs({"": recorder.parent.id})
            recorder.on_run = lambda key, run_id: journal.note_runs({key: run_id})
            recorder.parent.set_tags(sweep.tags())
            work = Work(config, sweep.prepared, console, recorder, cluster_gpus())
            scored, failed = _run_stages(work, sweep, journal)
            finish(work, scored, uri, verdict(sweep.judged(scored), sweep.task.headline, sweep.task.percent))
    console.print()
    report(uri, [recorder.parent.id], config.folder / "report", console)
    if failed:  # what did not fail is in the report
        first = next(iter(failed.values()))
        raise TrainingError(f"{len(failed)} training(s) of the seeds failed. {first}") from first
    return scored


class Sweep:
    """What the trials have in common, and how a setting becomes a training."""

    def __init__(self, space: Space, prepared: Prepared) -> None:
        self.space, self.config, self.prepared = space, space.config, prepared
        self.task = prepared.task
        own = space.config.training_of(space.config.student.training, "student.training")
        self.metric = space.search.metric or own.select or self.task.headline
        if self.metric not in self.task.metric_names:
            mend = f"Choose one of {', '.join(self.task.metric_names)}"
            raise ConfigError("search.metric", self.metric, "the task has no such metric", mend)
        self.teachers: list[ServedTeacher] = []
        self._prepared = {self._model(space.config): prepared}
        for arm in space.arms:  # every model that a trial may start from is looked at before the first one starts
            for axis in space.axes:
                if axis.key.startswith("student.model") and space.uses(arm, axis.key):
                    for value in axis.values:
                        self._prepare(space.config_of(arm, {axis.key: value}, 0))

    def job(self, arm: Arm, setting: Setting, seed: int, name: str, keep: bool) -> Job:
        """One training. ConfigError if the setting's values do not go together."""
        config = self.space.config_of(arm, setting, seed)
        [job] = student_jobs(config, self._prepare(config), config.method, self.teachers)
        return dataclasses.replace(job, name=name, keep=keep, about={**job.about, "title": f"{config.name}: {name}"})

    def tags(self) -> dict[str, str]:
        about = {"metric": self.metric, "algorithm": self.config.search.algorithm}
        return {f"raykd.{name}": value for name, value in about.items()}

    def judged(self, scored: Sequence[Scored]) -> list[Scored]:
        """Without the students that are controls: what `verdict` is about."""
        methods = {arm.name for arm in self.space.arms if not arm.control}
        return [run for run in scored if run.role != "student" or run.details["group"] in methods]

    @staticmethod
    def arm_tags(arm: Arm) -> dict[str, str]:
        return {"raykd.arm": arm.name, "raykd.control": str(arm.control).lower()}

    @staticmethod
    def _model(config: Config) -> str:
        return config.student.model.model_dump_json()

    def _prepare(self, config: Config) -> Prepared:
        key = self._model(config)
        if key not in self._prepared:
            self._prepared[key] = prepare(config)
        return self._prepared[key]


def _run_stages(work: Work, sweep: Sweep, journal: Journal) -> tuple[list[Scored], Failures]:
    config, recorder = work.config, work.recorder
    of_student = Resources.of(config.student, work.gpus)

    # 1. Teachers, and 2. their logits, beside the trials where there is room for both.
    sweep.teachers, trained, _ = train_teachers(work)
    live = config.logits.mode == "live"
    directory = directory_here() if live else None
    with bars(work.console) as shown_bars:
        pool = open_pool(work, sweep.teachers, _first_job(sweep), shown_bars, directory)
        serving = Serving(pool.filling, directory, config.logits.in_flight, config.logits.timeout_s)
        pool.start()
        try:
            beside = not live and not pool.idle and pool.beside(of_student)
            if beside:
                pool.ready()
            else:
                pool.wait()
        except BaseException:
            pool.close()
            raise
    try:
        scored = [] if beside else score(work, sweep.teachers, trained, live)

        # 3. Trials of every arm, on one seed.
        most = _at_once(config, of_student, live or beside)
        board = _explore(work, sweep, journal, pool, serving, of_student, most)

        # 4. The best setting of each arm, chosen on validation, on fresh seeds.
        finals: dict[str, list[Job]] = {}
        for arm in sweep.space.arms:
            if (best := board.best(arm)) is None:
                work.say(f"{arm.name}: no trial of it has come to its end, so it is not in the table")
                continue
            finals[arm.name] = []
            for seed in islice((s for s in count(1) if s != best.seed), config.search.seeds):
                job = sweep.job(arm, best.setting, seed, f"{arm.name} seed {seed}", keep=True)
                recorder.expect([job], _role(arm), job.name, arm.name, sweep.arm_tags(arm))
                finals[arm.name].append(job)
        if not finals:
            reasons = [t.reason for t in board.trials if t.reason]
            raise TrainingError(f"no trial has come to its end. {reasons[-1] if reasons else board.over}")
        current = {f"{job.name}#{job.fingerprint[:8]}" for jobs in finals.values() for job in jobs}
        for key in [key for key in recorder.known if "#" in key and key not in current]:
            recorder.supersede(key)
        with bars(work.console) as shown_bars:
            trainings = [Training(job, of_student, serving) for jobs in finals.values() for job in jobs]
            missing = len({t.job.fingerprint for t in trainings if not t.job.done})
            failed = train(work, trainings, Count(shown_bars, "best settings, fresh seeds", missing), pool)
        pool.wait()
    finally:
        pool.close()
    log_fills(work, pool, live)
    if beside:
        scored = score(work, sweep.teachers, trained, live)
    gpus = of_student.num_gpus * of_student.workers
    for name, jobs in finals.items():
        role = _role(board.arms[name])
        scored += [recorder.trained(j, role, gpus, log_model=False) for j in jobs if j.fingerprint not in failed]
    return _ranked(work, sweep, scored, finals), failed


def _role(arm: Arm) -> str:
    return "baseline" if arm.name == "finetune" else "student"


def _first_job(sweep: Sweep) -> Job:
    """A training whose first epoch says in which order rows are needed: that of any arm that distils."""
    arms = sweep.space.arms
    arm = next((a for a in arms if a.name not in ("finetune", "label_smoothing")), arms[0])
    setting = next(sweep.space.settings(arm))
    return sweep.job(arm, setting, sweep.config.student.seeds[0], "first", keep=False)


def _explore(
    work: Work,
    sweep: Sweep,
    journal: Journal,
    pool: TeacherPool,
    serving: Serving,
    size: Resources,
    most: int,
) -> Board:
    """All trials that the budget allows, so many at once. One that finds logits missing waits until they are there."""
    config, recorder = work.config, work.recorder
    gpus = size.num_gpus * size.workers
    board = Board(sweep.space, journal, gpus)
    stop = Flag(config.store, "stop")
    lacking: set[str] = set()
    refills, unfinished = 0, list[Job]()

    def give(trial_id: str) -> Handed | None:
        pool.check()
        while not lacking and (trial := board.next()) is not None:
            arm = board.arms[trial.arm]
            try:
                job = sweep.job(arm, trial.setting, trial.seed, trial.name, keep=False)
            except ConfigError as error:  # values that are good alone, and not together
                board.ends(trial, "failed", str(error))
                continue
            recorder.expect([job], "trial", job.name, arm.name, sweep.arm_tags(arm))
            method = job.method
            patient = method.schedule != "constant" or method.generations > 1  # they are at their best at the end
            return Handed(trial, Training(job, size, serving), sweep.metric, patient)
        return None

    def hears(handed: Handed, told: Sequence[Any], result: dict[str, Any]) -> None:
        pool.check()
        for event in told:
            recorder.on_event(handed.training.job, event, shown_screen)
        score = result["score"] if np.isfinite(result["score"]) else None
        board.hears(board.journal.trials[handed.trial.name], score, result.get("seconds", result["time_total_s"]))

    def ends(handed: Handed, state: str, reason: str) -> None:
        job = handed.training.job
        trial = board.journal.trials[handed.trial.name]
        if state == "missing":
            lacking.add(trial.name)
        if state in ("missing", "stopped"):
            board.ends(trial, "waiting")
            return
        if state != "finished":
            unfinished.append(job)
        if state == "cut" and size.workers == 1:  # nothing runs between its evaluations
            job.drop_models()
        recorder.end_trial(job, state, gpus, reason)
        board.ends(trial, state, reason)

    with screen(work.console, board, most, sweep.metric) as shown_screen, _stopped_gently(board, stop) as stopping:
        board.on_change = shown_screen.changed
        pool.make_way.set()
        while True:
            search(give, hears, ends, config.search, config.ray, size, most, stop, stopping.late, config.folder)
            pool.check()
            for job in unfinished:  # no process is left that could write to them
                if not job.done:
                    job.drop_models()
            unfinished.clear()
            if not lacking or stopping.signal:
                break
            if (refills := refills + 1) > config.ray.max_retries:
                raise TrainingError(
                    f"{', '.join(sorted(lacking))}: logits are missing in {config.logit_store} again and again. "
                    f"See what is wrong with the store: raykd logits verify {config.logit_store}"
                )
            lacking.clear()
            pool.refill()
        pool.make_way.clear()
    if stopping.signal:
        work.say("the sweep is paused: the same command with --resume goes on with it")
        raise KeyboardInterrupt if stopping.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    if board.error:
        raise board.error
    if board.over:
        work.say(f"no more trials: {board.over}")
    for arm in sweep.space.arms:
        if (best := board.best(arm)) is not None and best.score is not None:
            work.say(f"{arm.name}: best of {len(board.of(arm))}: {abs(best.score):.4g} with {shown(best.setting)}")
    return board


def _at_once(config: Config, size: Resources, beside_teachers: bool) -> int:
    """How many trials there may be at a time.

    Those of several workers hold nothing themselves: more than there is room for would wait for one another.
    """
    most = config.search.concurrency or 10**6
    if size.workers == 1:
        return most  # Tune's own counting will do
    gpus = cluster_gpus()
    held = [Resources.of(t, gpus) for t in config.teachers for _ in range(1 if t.replicas == "auto" else t.replicas)]
    controllers = Resources(1, 2 * TRAIN_CONTROLLER_CPUS, 0)  # the trial's and Ray Train's own
    count = 1
    while count < most and fits([*(held if beside_teachers else []), *[size, controllers] * (count + 1)]):
        count += 1
    return count


class _Stopping:
    """Asked to stop, by which signal. late: whether trials that wrote no checkpoint are to be ended."""

    def __init__(self) -> None:
        self.signal, self.limit = 0, float("inf")

    def late(self) -> bool:
        return time.monotonic() > self.limit


@contextmanager
def _stopped_gently(board: Board, stop: Flag) -> Iterator[_Stopping]:
    """Ctrl-C and SIGTERM let the trials write their checkpoints; a second one does not wait for that."""
    stopping = _Stopping()

    def asked(number: int, frame: Any) -> None:
        if stopping.signal:
            raise KeyboardInterrupt
        stopping.signal, stopping.limit = number, time.monotonic() + STOP_SECONDS
        board.over = "the sweep is asked to stop; its trials write their checkpoints"
        stop.up()

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.down()


def _ranked(work: Work, sweep: Sweep, scored: list[Scored], finals: dict[str, list[Job]]) -> list[Scored]:
    """Teachers and ensemble, then the arms by their mean validation score, the best last.

    The best of the methods, which the report is about, is registered.
    """
    recorder = work.recorder
    arms: dict[str, list[Scored]] = {}
    for run in scored:
        if run.role in ("baseline", "student"):
            arms.setdefault(run.details["group"], []).append(run)

    def validation(runs: list[Scored]) -> float:
        return float(np.mean([signed(r.metrics["validation"], sweep.metric) for r in runs]))

    order = sorted(arms.values(), key=validation)
    students = [runs for runs in order if sweep.judged(runs) and runs[0].role == "student"]
    if students:
        best = max(students[-1], key=lambda r: validation([r]))
        job = next(j for jobs in finals.values() for j in jobs if j.name == best.name)
        model_id = recorder.runs[best.name].model(Path(recorder.result(job)["model"]), best.name)
        version = recorder.tracking.register(model_id, work.config.name, "best")
        best.details["mlflow_model_id"] = model_id
        work.say(f"registered: {best.name} as {work.config.name} version {version}, alias best")
    return [r for r in scored if r.role not in ("baseline", "student")] + [r for runs in order for r in runs]
