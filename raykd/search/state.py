"""The state of a sweep: which trial is next, and how earlier ones ended. Does not import Ray."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raykd.common.errors import ConfigError, TrainingError
from raykd.common.redaction import scrub
from raykd.search.journal import Journal, State, Trial
from raykd.search.space import SearchArm, Setting, Space, canonical

_ALIKE = 3  # if this many trials fail for the same reason before any works, no more are started
_ALL_FAILED = "every trial has failed for the same reason"
_DUPLICATES = 20  # draws of TPE per trial to find a setting that is new


class SweepState:
    """Arms take turns, so that a sweep that ends early has tried equally many settings of each.

    on_change: called with every trial whose state changes.
    planned: by arm, how many trials there are to be; at least as many as an earlier command has started.
    over: why no more trials are started; "" if there can be more.
    reused: the names of trials whose results were found.
    error: why the sweep fails unless a trial that still runs succeeds.
    """

    on_change: Callable[[Trial], Any]

    def __init__(self, space: Space, journal: Journal, gpus: float = 0.0) -> None:
        """gpus: of a trial, for those in the journal of an older raykd, which did not count their GPU-seconds."""
        for trial in journal.trials.values():
            if trial.gpu_seconds is None:
                trial.gpu_seconds = trial.seconds * gpus
        self.space, self.search, self.journal = space, space.search, journal
        self.on_change = lambda trial: None
        self.arms = {arm.name: arm for arm in space.arms}
        self.planned = {arm.name: self._planned(arm) for arm in space.arms}
        self.over, self.reused = "", list[str]()
        self.error: TrainingError | None = None
        self.started = time.monotonic()
        self._samplers = {arm.name: _Sampler(space, arm, self.of(arm)) for arm in space.arms}
        self._order = self._rounds()

    def of(self, arm: SearchArm) -> list[Trial]:
        return [t for t in self.journal.trials.values() if t.arm == arm.name]

    def _planned(self, arm: SearchArm) -> int:
        """How many trials the arm is to have. The invalid settings that an older raykd has tried do not count."""
        known = self.of(arm)
        invalid = sum(t.state == "failed" and not self.space.works(arm, t.setting) for t in known)
        return max(self.space.trials(arm) + invalid, len(known))

    @property
    def trials(self) -> list[Trial]:
        return list(self.journal.trials.values())

    @property
    def total(self) -> int:
        return sum(self.planned.values())

    @property
    def elapsed(self) -> float:
        return self.journal.elapsed + time.monotonic() - self.started

    def next(self) -> Trial | None:
        """The next trial, whose state is then "running"; None if there is none."""
        if not self.over:
            self.over = self._spent()
        if self.over:
            return None
        trial = next((t for t in self.journal.trials.values() if t.state == "waiting"), None)
        trial = trial or next(self._order, None)
        if trial is not None:
            self._set(trial, "running")
        return trial

    def record_score(self, trial: Trial, score: float | None, seconds: float, gpu_seconds: float = 0.0) -> None:
        """Update a running trial.

        score: of its best checkpoint so far; None before the first one.
        seconds: of training so far.
        gpu_seconds: of GPUs that it has held since the last update.
        """
        trial.score = trial.score if score is None else score
        trial.seconds = max(trial.seconds, seconds)
        trial.gpu_seconds = (trial.gpu_seconds or 0.0) + gpu_seconds

    def record_end(self, trial: Trial, state: State, reason: str = "", permanent: bool = False) -> None:
        """Record how a trial ended.

        state: "finished", "pruned" (by the scheduler), "failed", or "waiting" if it is to resume later.
        permanent: whether a failed trial would fail in the same way again.
        """
        trial.reason = scrub(reason)  # it goes to the screen and into the journal
        trial.permanent = permanent
        self._set(trial, state)
        if state in ("finished", "pruned") and trial.score is not None:
            self._samplers[trial.arm].learn(trial)
        elif state == "failed":
            self._samplers[trial.arm].fail(trial)
        if state in ("finished", "pruned") and self.error:  # this one was still running when others had failed
            self.over, self.error = "" if self.over == _ALL_FAILED else self.over, None
        failed = [t for t in self.trials if t.state == "failed"]
        if state == "failed" and not any(t.state in ("finished", "pruned") for t in self.trials):
            enough = min(_ALIKE, self.total)
            if len(failed) >= enough and len({_kind(t) for t in failed}) == 1:
                self.over = self.over or _ALL_FAILED
                self.error = TrainingError(
                    f"every trial so far ({len(failed)}) has failed for the same reason: {trial.reason}"
                )

    def best(self, arm: SearchArm) -> Trial | None:
        """The best of the arm's finished trials."""
        done = [t for t in self.of(arm) if t.state == "finished" and t.score is not None and np.isfinite(t.score)]
        return max(done, key=lambda t: (t.score, -t.number), default=None)

    def _set(self, trial: Trial, state: State) -> None:
        trial.state = state
        self.journal.note(trial, self.elapsed)
        self.on_change(trial)

    def _spent(self) -> str:
        gpu_hours = sum(t.gpu_seconds or 0.0 for t in self.trials) / 3600
        if self.search.hours is not None and self.elapsed > 3600 * self.search.hours:
            return f"search.hours = {self.search.hours:g} is used up"
        if self.search.gpu_hours is not None and gpu_hours > self.search.gpu_hours:
            return f"search.gpu_hours = {self.search.gpu_hours:g} is used up"
        return ""

    def _rounds(self) -> Iterator[Trial]:
        for number in range(1, max(self.planned.values(), default=0) + 1):
            for name, arm in self.arms.items():
                if number > self.planned[name] or f"{name} {number}" in self.journal.trials:
                    continue
                if (setting := self._samplers[name].draw(number)) is not None:
                    yield Trial(arm.name, number, setting, self.space.config.student.seeds[0])


class _Sampler:
    """Draws one arm's settings, none of them twice.

    known: the arm's trials so far, of this command and of those that it resumes.
    learns: whether settings depend on earlier scores (TPE).
    """

    def __init__(self, space: Space, arm: SearchArm, known: list[Trial]) -> None:
        self.space, self.arm = space, arm
        self.learns = space.search.algorithm == "tpe"
        self._seen = {canonical(trial.setting) for trial in known}
        self._unseen = (s for s in space.settings(arm) if canonical(s) not in self._seen)
        self._drawn: dict[int, Any] = {}  # TPE's own trials, by number
        if self.learns:
            optuna = import_optuna()
            seed = int(space.rng(arm).integers(2**31))
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
            for trial in known:
                if trial.state in ("finished", "pruned") and trial.score is not None:
                    self.learn(trial)

    def draw(self, number: int) -> Setting | None:
        setting = self._suggested(number) if self.learns else None
        if setting is None:  # for TPE: it keeps drawing the best known setting, so any that was not tried yet is taken
            setting = next(self._unseen, None)
        if setting is not None:
            self._seen.add(canonical(setting))
        return setting

    def _suggested(self, number: int) -> Setting | None:
        """A setting of TPE's; None if it draws none that is new and valid."""
        for _ in range(_DUPLICATES):
            optuna_trial = self._study.ask()
            setting = self.space.draw_setting(self.arm, lambda parameter: parameter.suggest(optuna_trial))  # noqa: B023 (used at once)
            if canonical(setting) not in self._seen and self.space.works(self.arm, setting):
                self._drawn[number] = optuna_trial
                return setting
            self._study.tell(optuna_trial, state=import_optuna().trial.TrialState.FAIL)
        return None

    def fail(self, trial: Trial) -> None:
        """Tell TPE that the trial failed; otherwise its study would count it as running."""
        if trial.number in self._drawn:
            self._study.tell(self._drawn.pop(trial.number), state=import_optuna().trial.TrialState.FAIL)

    def learn(self, trial: Trial) -> None:
        if not self.learns:
            return
        if trial.number in self._drawn:
            self._study.tell(self._drawn.pop(trial.number), trial.score)
            return
        optuna = import_optuna()  # it was drawn by an earlier command
        params, distributions = {}, {}
        for parameter in self.space.parameters:
            if parameter.key in trial.setting:
                params[parameter.key], distributions[parameter.key] = parameter.as_optuna(
                    optuna, trial.setting[parameter.key]
                )
        self._study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial.score))


def import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        hint = "pip install 'raykd[tpe]', or use search.algorithm=random"
        raise ConfigError("search.algorithm", "tpe", "it needs optuna, which is not installed", hint) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _kind(trial: Trial) -> str:
    """A failure's reason without the trial's name and numbers, which differ between trials."""
    return re.sub(r"[-+]?\d[\d.e+-]*|nan|inf", "#", trial.reason.replace(trial.name, ""))
