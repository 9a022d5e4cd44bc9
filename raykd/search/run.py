"""Runs the trials of a sweep in Ray Tune, and passes their events to MLflow, the journal and the screen."""

import signal
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from raykd.cluster.flags import Flag
from raykd.cluster.placement import fits
from raykd.cluster.resources import TRAIN_CONTROLLER_CPUS, Resources
from raykd.cluster.running import cluster_gpus
from raykd.common.errors import ConfigError, TrainingError
from raykd.common.metrics import higher_is_better
from raykd.config.schema import Config
from raykd.experiment.stages import Work
from raykd.logits import LogitStore
from raykd.plan.job import Job
from raykd.search.display import open_display, shown
from raykd.search.jobs import TrialJobs
from raykd.search.journal import Journal
from raykd.search.packing import Packing
from raykd.search.state import SweepState
from raykd.search.trial_spec import TrialSpec, signed
from raykd.teachers.pool import TeacherPool
from raykd.tracking.recorder import Recorder
from raykd.training.access import TeacherAccess, Training
from raykd.training.events import Event

_UNBOUNDED = 1000  # concurrent trials if there is no limit
STOP_SECONDS = 20.0  # time for trials to write a checkpoint


def run_trials(
    work: Work,
    sweep: TrialJobs,
    journal: Journal,
    pool: TeacherPool,
    access: TeacherAccess,
    packing: Packing,
    most: Callable[[], int],
) -> SweepState:
    """Run all trials that the budget allows, up to `most()` at once.

    packing: the resources of each trial.

    A trial whose logits are missing resumes once they have been computed. A trial whose training has a result in the
    store needs no process; if that is true of all trials, neither Ray nor Tune is started. A trial that shares a GPU
    whose memory has ended resumes with a larger share. One whose process has died resumes in another process.
    """
    config, recorder = work.config, work.recorder
    state = SweepState(sweep.space, journal, _gpus(packing.size))
    stop = Flag(config.store, "stop")
    lacking: set[str] = set()  # names of trials whose logits are missing
    again: set[str] = set()  # names of trials that have been set back to waiting since Tune was started
    died = Counter[str]()  # times that Tune gave a trial up although it had retries left, by the trial's name
    recomputed = 0  # times that missing logits were computed
    unfinished = list[Job]()  # pruned by the scheduler
    failed = list[Job]()  # kept until the end, because a sweep that is stopped can resume them from their checkpoints
    reused = list[str]()
    first: TrialSpec | None = None  # Tune is started only if there is one

    def next_for_tune(trial_id: str) -> TrialSpec | None:
        nonlocal first
        if first is not None:
            spec, first = first, None
            return spec
        return next_trial()

    def next_trial() -> TrialSpec | None:
        pool.check()
        while not lacking and (trial := state.next()) is not None:
            arm = state.arms[trial.arm]
            try:
                job = sweep.job(arm, trial.setting, trial.seed, trial.name, keep_model=False)
            except ConfigError as error:  # values that are valid alone but not together
                recorder.refused(trial.name, "trial", sweep.arm_tags(arm), str(error))
                state.on_end(trial, "failed", str(error), permanent=True)
                continue
            journal.note_training(trial, job.fingerprint, state.elapsed)
            recorder.register([job], "trial", job.name, arm.name, sweep.arm_tags(arm))
            if recorder.reuse(job):
                reused.append(job.name)
                result = recorder.result(job)
                score = signed(result["generations"][result["best"]]["validation"], sweep.metric)
                state.on_result(trial, score if np.isfinite(score) else None, result["seconds"])
                recorder.end_trial(job, "finished", _gpus(packing.size))
                state.on_end(trial, "finished")
                continue
            method = job.method
            never_prune = method.schedule != "constant" or method.generations > 1  # they are best at the end
            return TrialSpec(trial, Training(job, packing.size, access), sweep.metric, never_prune)
        return None

    def on_result(spec: TrialSpec, events: Sequence[Event], result: dict[str, Any]) -> None:
        pool.check()
        for event in events:
            recorder.on_event(spec.training.job, event, display)
        score = result["score"] if np.isfinite(result["score"]) else None
        state.on_result(state.journal.trials[spec.trial.name], score, result.get("seconds", 0.0))

    def on_end(spec: TrialSpec, outcome: str, reason: str, permanent: bool) -> None:
        job = spec.training.job
        trial = state.journal.trials[spec.trial.name]
        if outcome == "missing":
            lacking.add(trial.name)
        if outcome == "died":
            died[trial.name] += 1
            outcome = "again" if died[trial.name] <= config.ray.max_retries else "failed"
            work.say(f"{trial.name}: its process has died" + ("; it is tried again" if outcome == "again" else ""))
        if outcome == "no_room":
            work.say(f"{reason}. It will be tried again, because other trials hold resources")
        if outcome in ("no_memory", "again", "no_room"):
            again.add(trial.name)
        if outcome == "no_memory":
            work.say(f"{trial.name}: {packing.halve(spec.training.resources)}")
            state.gpus = _gpus(packing.size)
        if outcome in ("missing", "stopped", "no_memory", "again", "no_room"):
            state.on_end(trial, "waiting")
            return
        if outcome != "finished":
            (unfinished if outcome == "pruned" else failed).append(job)
        if outcome == "pruned" and packing.size.workers == 1:  # its process does not run between evaluations
            job.delete_models()
        recorder.end_trial(job, outcome, _gpus(spec.training.resources), reason)
        state.on_end(trial, outcome, reason, permanent)

    with (
        open_display(work.console, state, sweep.metric) as display,
        _stopped_gently(state, stop, recorder) as stopping,
    ):
        state.on_change = display.changed
        if packing.waits_for_logits(sweep):
            while not stop() and not pool.precompute_done.wait(1):
                pool.check()
        pool.make_way.set()
        while (first := next_trial()) is not None:
            work.start_ray()
            from raykd.search.tuner import search  # Ray Tune takes seconds to import

            left = state.total - sum(trial.ended for trial in state.trials)
            packing.decide(sweep, left, stop, pool.check, work.say)
            state.gpus = _gpus(packing.size)
            first = replace(first, training=replace(first.training, resources=packing.size))
            if stopping.signal:  # while Ray was starting
                state.on_end(first.trial, "waiting")
                break

            search(
                next_for_tune,
                on_result,
                on_end,
                config.search,
                config.ray,
                most(),
                stop,
                stopping.late,
                config.folder,
                lambda: not pool.precompute_done.is_set(),
            )
            pool.check()
            _delete_models(unfinished)  # no process of this sweep can write to them any more
            unfinished.clear()
            if stopping.signal or not (lacking or again):
                break
            again.clear()
            if not lacking:  # Tune may have ended before it was asked for these trials again
                continue
            if (recomputed := recomputed + 1) > config.ray.max_retries:
                raise TrainingError(
                    f"{', '.join(sorted(lacking))}: logits keep going missing in {LogitStore.of(config)}. "
                    f"Check the store: raykd logits verify {LogitStore.of(config)}"
                )
            lacking.clear()
            pool.precompute_missing()
        pool.make_way.clear()
    if reused:
        work.say(f"reused: {', '.join(reused)}")
    if stopping.signal:
        work.say("the sweep is paused; to resume it, run the same command with --resume")
        raise KeyboardInterrupt if stopping.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    if state.error:
        raise state.error
    _delete_models(failed)
    if state.over:
        work.say(f"no more trials: {state.over}")
    for arm in sweep.space.arms:
        if (best := state.best(arm)) is not None and best.score is not None:
            value = higher_is_better(sweep.metric, best.score)
            work.say(f"{arm.name}: best of {len(state.of(arm))}: {value:.4g} with {shown(best.setting)}")
    return state


def _gpus(size: Resources) -> float:
    """That a trial holds."""
    return size.num_gpus * size.workers


def _delete_models(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.folder.exists():
            continue
        try:
            with FileLock(job.folder / "lock", timeout=0):
                if not job.done:
                    job.delete_models()
        except Timeout:  # another command is training it
            continue


def at_once(config: Config, size: Resources, with_teachers: bool) -> int:
    """The maximum number of concurrent trials.

    Trials with several workers hold no resources themselves, so if there were more than fit, they would deadlock.
    Trials with one worker run in their own process: one more than fit waits for the next free
    process, because Tune stops a process for which no trial is waiting. If the cluster can grow, only the config limits
    their number.
    """
    most = config.search.concurrency or _UNBOUNDED
    if size.workers == 1:
        return most if config.ray.wait_s else min(most, _room(_UNBOUNDED, [], [size]) + 1)
    gpus = cluster_gpus()
    held = [Resources.of(t, gpus) for t in config.teachers for _ in range(1 if t.replicas == "auto" else t.replicas)]
    controllers = Resources(1, 2 * TRAIN_CONTROLLER_CPUS, 0)  # the trial's controller and Ray Train's
    return _room(most, held if with_teachers else [], [size, controllers])


def _room(most: int, held: list[Resources], each: list[Resources]) -> int:
    """How many times `each` fits at once in addition to `held`: 1 to `most`. That one fits is checked elsewhere."""
    counts = range(1, most + 1)
    return max(1, bisect_left(counts, True, key=lambda count: not fits([*held, *each * count])))


class _Stopping:
    """Which signal asked the sweep to stop. late: whether to kill trials that have not written a checkpoint."""

    def __init__(self) -> None:
        self.signal, self.limit = 0, float("inf")

    def late(self) -> bool:
        return time.monotonic() > self.limit


@contextmanager
def _stopped_gently(state: SweepState, stop: Flag, recorder: Recorder) -> Iterator[_Stopping]:
    """On Ctrl-C or SIGTERM, trials write their checkpoints before they stop; a second signal stops them at once."""
    stopping = _Stopping()

    def on_signal(number: int, frame: Any) -> None:
        if stopping.signal:
            raise KeyboardInterrupt
        stopping.signal, stopping.limit = number, time.monotonic() + STOP_SECONDS
        state.over = "the sweep was asked to stop; its trials are writing their checkpoints"
        stop.up()
        recorder.stopping()

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.down()
