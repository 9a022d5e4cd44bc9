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
import ray
from ray.tune.stopper import Stopper
from rich.console import Console

from raykd.cluster import cluster_gpus
from raykd.config import Config
from raykd.errors import ConfigError, TrainingError
from raykd.experiment import cluster
from raykd.feed import Serving
from raykd.flags import Flag
from raykd.job import Job, Resources
from raykd.placement import check_room
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
from raykd.search.tuner import Handed, Unsaved, search
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
            recorder.parent.set_tags(sweep.tags())
            work = Work(config, sweep.prepared, console, recorder, cluster_gpus())
            scored, failed = _run_stages(work, sweep, journal)
            finish(work, scored, uri, verdict(scored, sweep.task.headline, sweep.task.percent))
            if failed:
                first = next(iter(failed.values()))
                raise TrainingError(f"{len(failed)} training(s) of the seeds failed. {first}") from first
    console.print()
    report(uri, [recorder.parent.id], config.folder / "report", console)
    return scored


class Sweep:
    """What the trials have in common, and how a setting becomes a training."""

    def __init__(self, space: Space, prepared: Prepared) -> None:
        self.space, self.config, self.prepared = space, space.config, prepared
        self.task = prepared.task
        self.metric = space.search.metric or space.config.training.select or self.task.headline
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
        journal.note_runs(recorder.known)

        # 3. Trials of every arm, on one seed.
        board = _explore(work, sweep, journal, pool, serving, of_student)

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
        journal.note_runs(recorder.known)
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
    methods = {name for name, arm in board.arms.items() if not arm.control}
    return _ranked(work, scored, finals, methods), failed


def _role(arm: Arm) -> str:
    return "baseline" if arm.name == "finetune" else "student"


def _first_job(sweep: Sweep) -> Job:
    """A training whose first epoch says in which order rows are needed: that of any arm that distils."""
    arms = sweep.space.arms
    arm = next((a for a in arms if a.name not in ("finetune", "label_smoothing")), arms[0])
    setting = next(sweep.space.settings(arm))
    return sweep.job(arm, setting, sweep.config.student.seeds[0], "first", keep=False)


def _explore(work: Work, sweep: Sweep, journal: Journal, pool: TeacherPool, serving: Serving, size: Resources) -> Board:
    """All trials that the budget allows. A trial that finds logits missing waits until they are there again."""
    config, recorder = work.config, work.recorder
    gpus = size.num_gpus * size.workers
    board = Board(sweep.space, journal, gpus)
    most = min(_at_once(size), config.search.concurrency or 10**6)
    stop = Flag(config.store, "stop")
    lacking: set[str] = set()

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
            journal.note_runs({job.name: recorder.known[job.name]})
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
            job.drop_models()
        recorder.end_trial(job, state, gpus, reason)
        board.ends(trial, state, reason)

    with screen(work.console, board, most, sweep.metric) as shown_screen, _stopped_gently(board, stop) as stopping:
        board.on_change = shown_screen.changed
        pool.make_way.set()
        while True:
            search(give, hears, ends, config.search, config.ray, size, most, stop, stopping, config.folder)
            pool.check()
            if not lacking or stopping.signal:
                break
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


def _at_once(size: Resources) -> int:
    """Trials of several workers hold nothing themselves: more than there is room for would wait for one another."""
    if size.workers == 1:
        return 10**6  # Tune's own counting will do
    free, needs = ray.cluster_resources(), size.bundle()
    room = [
        free.get(kind, 0) / (amount * size.workers + (TRAIN_CONTROLLER_CPUS if kind == "CPU" else 0))
        for kind, amount in needs.items()
        if not kind.startswith("accelerator_type:")
    ]
    return max(1, int(min(room)))


class _Stopping(Unsaved, Stopper):
    """Asked to stop, by which signal; and Tune's view of it: trials that wrote no checkpoint in time are ended."""

    def __init__(self) -> None:
        self.signal, self.limit = 0, float("inf")

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
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


def _ranked(work: Work, scored: list[Scored], finals: dict[str, list[Job]], methods: set[str]) -> list[Scored]:
    """Teachers and ensemble, then the arms by their mean validation score, the best last.

    The best of the methods, which the report is about, is registered.
    """
    recorder, headline = work.recorder, work.prepared.task.headline
    arms: dict[str, list[Scored]] = {}
    for run in scored:
        if run.role in ("baseline", "student"):
            arms.setdefault(run.details["group"], []).append(run)

    def validation(runs: list[Scored]) -> float:
        return float(np.mean([r.metrics["validation"][headline] for r in runs]))

    order = sorted(arms.values(), key=validation)
    students = [runs for runs in order if runs[0].details["group"] in methods]
    if students:
        best = max(students[-1], key=lambda r: r.metrics["validation"][headline])
        job = next(j for jobs in finals.values() for j in jobs if j.name == best.name)
        model_id = recorder.runs[best.name].model(Path(recorder.result(job)["model"]), best.name)
        version = recorder.tracking.register(model_id, work.config.name, "best")
        best.details["mlflow_model_id"] = model_id
        work.say(f"registered: {best.name} as {work.config.name} version {version}, alias best")
    return [r for r in scored if r.role not in ("baseline", "student")] + [r for runs in order for r in runs]
