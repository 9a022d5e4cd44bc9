"""The trials of a sweep, as Ray Tune asks for them, and what their ends change."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from raykd.common.errors import ConfigError
from raykd.common.output_files import LOCK
from raykd.common.progress import Bars
from raykd.experiment.work import Work
from raykd.plan.job import Job, best_scores
from raykd.search.gpu_sharing import GpuSharing
from raykd.search.jobs import TrialJobs
from raykd.search.journal import State, Trial
from raykd.search.state import SweepState
from raykd.search.trial_spec import Outcome, TrialSpec, signed
from raykd.teachers.pool import TeacherPool
from raykd.training.access import TeacherAccess, Training
from raykd.training.events import Event


class SweepTrials:
    """Implements `Trials`. Passes the trials' events to MLflow, the journal and the screen.

    A trial whose training has a result in the store needs no process and is never handed out.

    lacking: the names of trials whose logits are missing. There is no next trial until they have been computed.
    pruned: trainings that the scheduler has ended.
    failed: trainings whose checkpoints are kept until the end, because a sweep that is stopped can resume them.
    """

    def __init__(
        self,
        work: Work,
        sweep: TrialJobs,
        state: SweepState,
        pool: TeacherPool,
        access: TeacherAccess,
        sharing: GpuSharing,
        display: Bars,
    ) -> None:
        self.work, self.sweep, self.state, self.pool = work, sweep, state, pool
        self.access, self.sharing, self.display = access, sharing, display
        self.lacking = set[str]()
        self.pruned, self.failed = list[Job](), list[Job]()
        self._first: TrialSpec | None = None  # the next trial, if `has_next` has found it already
        self._begun = dict[str, Job]()  # by trial: those that have begun and not ended
        self._died = Counter[str]()  # by trial: how often Tune gave it up although it had retries left

    def has_next(self) -> bool:
        """Whether any trial needs a process. It is then the next one."""
        self._first = self._first or self._next()
        return self._first is not None

    def next_trial(self) -> TrialSpec | None:
        if self._first is None:
            return self._next()
        spec, self._first = self._first, None
        return replace(spec, training=replace(spec.training, resources=self.sharing.size))  # by now it is measured

    def put_back(self) -> None:
        """Let the trial wait that `has_next` has found."""
        if self._first is not None:
            self.state.record_end(self._first.trial, "waiting")
            self._first = None

    def end_waiting(self) -> None:
        """End the runs of trials that have begun and are left waiting, because the sweep starts no more of them."""
        for job in self._begun.values():
            self.work.recorder.end_waiting_trial(job, self.state.over)

    def _next(self) -> TrialSpec | None:
        self.pool.check()
        while not self.lacking and (trial := self.state.next()) is not None:
            if (spec := self._spec(trial)) is not None:
                return spec
        return None

    def _spec(self, trial: Trial) -> TrialSpec | None:
        """None if the trial is invalid, or has a result already."""
        recorder, arm = self.work.recorder, self.state.arms[trial.arm]
        tags = self.sweep.arm_tags(arm)
        try:
            job = self.sweep.job(arm, trial.setting, trial.seed, trial.name, keep_model=False)
        except ConfigError as error:  # values that are valid alone but not together
            recorder.refused(trial.name, "trial", tags, str(error))
            self.state.record_end(trial, "failed", str(error), permanent=True)
            return None
        self.state.journal.note_training(trial, job.fingerprint, self.state.elapsed)
        recorder.register([job], "trial", job.name, arm.name, tags)
        if recorder.reuse(job):
            self.state.reused.append(job.name)
            result = job.result()
            score = signed(best_scores(result)["validation"], self.sweep.metric)
            gpus = result.get("gpus", self.sharing.size.gpus)  # an older raykd's has none
            taken = 0.0 if trial.gpu_seconds else result["seconds"] * gpus  # otherwise counted while it ran
            self.state.record_score(trial, score if np.isfinite(score) else None, result["seconds"], taken)
            recorder.end_trial(job, "finished", gpus)
            self.state.record_end(trial, "finished")
            self._begun.pop(trial.name, None)
            return None
        self._begun[trial.name] = job
        never_prune = job.method.schedule != "constant" or job.method.generations > 1  # they are best at the end
        return TrialSpec(trial, Training(job, self.sharing.size, self.access), self.sweep.metric, never_prune)

    def on_result(self, spec: TrialSpec, events: Sequence[Event], result: dict[str, Any]) -> None:
        self.pool.check()
        for event in events:
            self.work.recorder.on_event(spec.training.job, event, self.display)
        score = result["score"] if np.isfinite(result["score"]) else None
        trial, gpus = self.state.journal.trials[spec.trial.name], spec.training.resources.gpus
        self.state.record_score(trial, score, result["seconds"], result["spent"] * gpus)

    def on_end(self, spec: TrialSpec, outcome: Outcome, reason: str, permanent: bool) -> None:
        job, trial = spec.training.job, self.state.journal.trials[spec.trial.name]
        if outcome == Outcome.DIED:
            self._died[trial.name] += 1
            retry = self._died[trial.name] <= self.work.config.ray.max_retries
            self.work.say(f"{trial.name}: its process has died" + ("; it is tried again" if retry else ""))
            outcome = Outcome.DIED if retry else Outcome.FAILED
        match outcome:
            case Outcome.FINISHED:
                return self._end(spec, trial, "finished", reason, permanent)
            case Outcome.PRUNED:
                self.pruned.append(job)
                if self.sharing.size.workers == 1:  # its process does not run between evaluations
                    job.delete_models()
                return self._end(spec, trial, "pruned", reason, permanent)
            case Outcome.FAILED:
                self.failed.append(job)
                return self._end(spec, trial, "failed", reason, permanent)
            case Outcome.LOGITS_MISSING:
                self.lacking.add(trial.name)
            case Outcome.GPU_FULL:
                self.work.say(f"{trial.name}: {self.sharing.halve(spec.training.resources)}")
            case Outcome.NO_ROOM:
                self.work.say(f"{reason}. It will be tried again, because other trials hold resources")
        self.state.record_end(trial, "waiting")

    def _end(self, spec: TrialSpec, trial: Trial, state: State, reason: str, permanent: bool) -> None:
        self._begun.pop(trial.name, None)
        self.work.recorder.end_trial(spec.training.job, state, spec.training.resources.gpus, reason)
        self.state.record_end(trial, state, reason, permanent)

    def teachers_work(self) -> bool:
        return not self.pool.precompute_done.is_set()


def delete_models(jobs: Sequence[Job]) -> None:
    """Delete what trainings without a result have saved, except those that another command is training."""
    for job in jobs:
        if not job.folder.exists():
            continue
        try:
            with FileLock(job.folder / LOCK, timeout=0):
                if not job.done:
                    job.delete_models()
        except Timeout:  # another command is training it
            continue
