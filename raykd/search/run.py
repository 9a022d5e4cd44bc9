"""The trials of a sweep: from the board to Ray Tune, and what they tell to MLflow, the journal and the screen."""

import signal
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from raykd.cluster.flags import Flag
from raykd.cluster.placement import fits
from raykd.cluster.resources import Resources
from raykd.cluster.session import cluster_gpus
from raykd.common.errors import ConfigError, TrainingError
from raykd.config.schema import Config
from raykd.experiment.stages import Work
from raykd.logits import LogitStore
from raykd.plan.job import Job
from raykd.search.display import screen, shown
from raykd.search.jobs import TrialJobs
from raykd.search.journal import Journal
from raykd.search.schedule import TrialSpec
from raykd.search.state import SweepState
from raykd.search.tuner import search, signed
from raykd.teachers.pool import TeacherPool
from raykd.tracking.recorder import Recorder
from raykd.training.events import Event
from raykd.training.loader import TeacherAccess
from raykd.training.processes import TRAIN_CONTROLLER_CPUS, Training

_UNBOUNDED = 1000  # trials at a time, where nobody has set a limit
STOP_SECONDS = 20.0  # that trials have to write a checkpoint


def explore(
    work: Work,
    sweep: TrialJobs,
    journal: Journal,
    pool: TeacherPool,
    serving: TeacherAccess,
    size: Resources,
    most: int,
) -> SweepState:
    """All trials that the budget allows, so many at once. One that finds logits missing waits until they are there.

    A trial whose training has its result in the store needs no process; if all do, Ray Tune is not started.
    """
    config, recorder = work.config, work.recorder
    gpus = size.num_gpus * size.workers
    board = SweepState(sweep.space, journal, gpus)
    stop = Flag(config.store, "stop")
    lacking: set[str] = set()
    refills = 0
    unfinished = list[Job]()  # stopped by the scheduler
    failed = list[Job]()  # kept until the end: a sweep that is stopped before resumes them from their checkpoints
    reused = list[str]()
    first: TrialSpec | None = None  # that Tune is started for

    def give(trial_id: str) -> TrialSpec | None:
        nonlocal first
        if first is not None:
            given, first = first, None
            return given
        return next_trial()

    def next_trial() -> TrialSpec | None:
        pool.check()
        while not lacking and (trial := board.next()) is not None:
            arm = board.arms[trial.arm]
            try:
                job = sweep.job(arm, trial.setting, trial.seed, trial.name, keep=False)
            except ConfigError as error:  # values that are good alone, and not together
                recorder.refused(trial.name, "trial", sweep.arm_tags(arm), str(error))
                board.ends(trial, "failed", str(error), permanent=True)
                continue
            journal.note_training(trial, job.fingerprint, board.elapsed)
            recorder.expect([job], "trial", job.name, arm.name, sweep.arm_tags(arm))
            if recorder.reuse(job):
                reused.append(job.name)
                result = recorder.result(job)
                score = signed(result["generations"][result["best"]]["validation"], sweep.metric)
                board.hears(trial, score if np.isfinite(score) else None, result["seconds"])
                recorder.end_trial(job, "finished", gpus)
                board.ends(trial, "finished")
                continue
            method = job.method
            never_prune = method.schedule != "constant" or method.generations > 1  # they are at their best at the end
            return TrialSpec(trial, Training(job, size, serving), sweep.metric, never_prune)
        return None

    def hears(handed: TrialSpec, events: Sequence[Event], result: dict[str, Any]) -> None:
        pool.check()
        for event in events:
            recorder.on_event(handed.training.job, event, shown_screen)
        score = result["score"] if np.isfinite(result["score"]) else None
        board.hears(board.journal.trials[handed.trial.name], score, result.get("seconds", 0.0))

    def ends(handed: TrialSpec, state: str, reason: str, permanent: bool) -> None:
        job = handed.training.job
        trial = board.journal.trials[handed.trial.name]
        if state == "missing":
            lacking.add(trial.name)
        if state in ("missing", "stopped"):
            board.ends(trial, "waiting")
            return
        if state != "finished":
            (unfinished if state == "cut" else failed).append(job)
        if state == "cut" and size.workers == 1:  # nothing runs between its evaluations
            job.delete_models()
        recorder.end_trial(job, state, gpus, reason)
        board.ends(trial, state, reason, permanent)

    with (
        screen(work.console, board, most, sweep.metric) as shown_screen,
        _stopped_gently(board, stop, recorder) as stopping,
    ):
        board.on_change = shown_screen.changed
        pool.make_way.set()
        while (first := next_trial()) is not None:
            search(
                give,
                hears,
                ends,
                config.search,
                config.ray,
                size,
                most,
                stop,
                stopping.late,
                config.folder,
                lambda: not pool.precompute_done.is_set(),
            )
            pool.check()
            _delete_models(unfinished)  # no process of this sweep is left that could write to them
            unfinished.clear()
            if not lacking or stopping.signal:
                break
            if (refills := refills + 1) > config.ray.max_retries:
                raise TrainingError(
                    f"{', '.join(sorted(lacking))}: logits are missing in {LogitStore.of(config)} again and again. "
                    f"See what is wrong with the store: raykd logits verify {LogitStore.of(config)}"
                )
            lacking.clear()
            pool.precompute_missing()
        pool.make_way.clear()
    if reused:
        work.say(f"reused, nothing about them has changed: {', '.join(reused)}")
    if stopping.signal:
        work.say("the sweep is paused: the same command with --resume goes on with it")
        raise KeyboardInterrupt if stopping.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    if board.error:
        raise board.error
    _delete_models(failed)
    if board.over:
        work.say(f"no more trials: {board.over}")
    for arm in sweep.space.arms:
        if (best := board.best(arm)) is not None and best.score is not None:
            work.say(f"{arm.name}: best of {len(board.of(arm))}: {abs(best.score):.4g} with {shown(best.setting)}")
    return board


def _delete_models(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.folder.exists():
            continue
        try:
            with FileLock(job.folder / "lock", timeout=0):
                if not job.done:
                    job.delete_models()
        except Timeout:  # another command trains it
            continue


def at_once(config: Config, size: Resources, beside_teachers: bool) -> int:
    """How many trials there may be at a time.

    Those of several workers hold nothing themselves: more than there is room for would wait for one another. Of those
    in a process of their own one more waits for the next place, or Tune would end the process that has none; where
    the cluster grows, as many as it can be asked for.
    """
    most = config.search.concurrency or _UNBOUNDED
    if size.workers == 1:
        return most if config.ray.wait_s else min(most, _room(_UNBOUNDED, [], [size]) + 1)
    gpus = cluster_gpus()
    held = [Resources.of(t, gpus) for t in config.teachers for _ in range(1 if t.replicas == "auto" else t.replicas)]
    controllers = Resources(1, 2 * TRAIN_CONTROLLER_CPUS, 0)  # the trial's and Ray Train's own
    return _room(most, held if beside_teachers else [], [size, controllers])


def _room(most: int, held: list[Resources], each: list[Resources]) -> int:
    """How many times `each` has room at once beside `held`: at least 1 (that is checked elsewhere), `most` at most."""
    counts = range(1, most + 1)
    return max(1, bisect_left(counts, True, key=lambda count: not fits([*held, *each * count])))


class _Stopping:
    """Asked to stop, by which signal. late: whether trials that wrote no checkpoint are to be ended."""

    def __init__(self) -> None:
        self.signal, self.limit = 0, float("inf")

    def late(self) -> bool:
        return time.monotonic() > self.limit


@contextmanager
def _stopped_gently(board: SweepState, stop: Flag, recorder: Recorder) -> Iterator[_Stopping]:
    """Ctrl-C and SIGTERM let the trials write their checkpoints; a second one does not wait for that."""
    stopping = _Stopping()

    def asked(number: int, frame: Any) -> None:
        if stopping.signal:
            raise KeyboardInterrupt
        stopping.signal, stopping.limit = number, time.monotonic() + STOP_SECONDS
        board.over = "the sweep is asked to stop; its trials write their checkpoints"
        stop.up()
        recorder.stopping()

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
