"""Runs the trials of a sweep in Ray Tune."""

import time
from collections.abc import Callable

from raykd.cluster.flags import Flag
from raykd.common.errors import TrainingError
from raykd.common.metrics import higher_is_better
from raykd.experiment.work import Work
from raykd.logits import LogitStore
from raykd.search.display import open_display, setting_text
from raykd.search.gpu_sharing import GpuSharing
from raykd.search.jobs import TrialJobs
from raykd.search.journal import Journal
from raykd.search.state import SweepState
from raykd.search.stopping import StopSignal, stopped_gently
from raykd.search.trials import SweepTrials, delete_models
from raykd.teachers.pool import TeacherPool
from raykd.training.access import TeacherAccess


def run_trials(
    work: Work,
    sweep: TrialJobs,
    journal: Journal,
    pool: TeacherPool,
    access: TeacherAccess,
    sharing: GpuSharing,
    most: Callable[[], int],
) -> SweepState:
    """Run all trials that the budget allows, up to `most()` at once.

    sharing: the resources of each trial.

    A trial whose logits are missing resumes once they have been computed. If all trials have a result in the store,
    neither Ray nor Tune is started. A trial that shares a GPU whose memory has ended resumes with a larger share. One
    whose process has died resumes in another process.
    """
    config = work.config
    state = SweepState(sweep.space, journal, sharing.size.gpus)
    stop = Flag(config.store, "stop")
    recomputed = 0  # times that missing logits were computed
    with (
        open_display(work.console, state, sweep.metric) as display,
        stopped_gently(state, stop, work.recorder) as stopping,
    ):
        state.on_change = display.changed
        trials = SweepTrials(work, sweep, state, pool, access, sharing, display)
        if trials.has_next() and sharing.waits_for_logits(sweep):
            trials.put_back()  # the time for trials can be over by then
            while not stop() and not pool.precompute_done.wait(1):
                pool.check()
        pool.make_way.set()
        while trials.has_next() and not stopping.signal:
            work.start_ray()
            from raykd.search.tuner import search  # Ray Tune takes seconds to import

            left = state.total - sum(trial.ended for trial in state.trials)
            sharing.decide(sweep, left, stop, pool.check, work.say)
            if stopping.signal:  # while Ray was starting
                break
            search(trials, config.search, config.ray, most(), stop, stopping.late, config.folder)
            pool.check()
            delete_models(trials.pruned)  # no process of this sweep can write to them any more
            trials.pruned.clear()
            if stopping.signal:
                break
            if not trials.lacking:
                continue  # Tune can have ended before it was asked again for trials that wait
            if (recomputed := recomputed + 1) > config.ray.max_retries:
                raise TrainingError(
                    f"{', '.join(sorted(trials.lacking))}: logits keep going missing in {LogitStore.of(config)}. "
                    f"Check the store: raykd logits verify {LogitStore.of(config)}"
                )
            while not stopping.signal and not pool.recomputed(trainings_run=False):
                time.sleep(0.1)
            trials.lacking.clear()
        trials.put_back()
        pool.make_way.clear()
    _end(work, sweep, state, trials, stopping)
    return state


def _end(work: Work, sweep: TrialJobs, state: SweepState, trials: SweepTrials, stopping: StopSignal) -> None:
    """Say what came of the trials, or raise what ended them."""
    if state.reused:
        work.say(f"reused: {', '.join(state.reused)}")
    if stopping.signal:
        work.say("the sweep is paused; to resume it, run the same command with --resume")
        raise stopping.error()
    if state.error:
        raise state.error
    delete_models(trials.failed)
    trials.end_waiting()
    if state.over:
        work.say(f"no more trials: {state.over}")
    for arm in sweep.space.arms:
        if (best := state.best(arm)) is not None and best.score is not None:
            value = higher_is_better(sweep.metric, best.score)
            finished = sum(trial.state == "finished" for trial in state.of(arm))
            work.say(f"{arm.name}: best of {finished}: {value:.4g} with {setting_text(best.setting)}")
