"""What a sweep has done so far, in a file that survives the driver: `<output>/<name>/sweep.jsonl`.

The first line holds the sweep's config and what its trainings depend on. Every other line is the current state of one
trial (its last line counts), an MLflow run, or what the teachers serve. A line that a killed driver left unfinished
is skipped.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from raykd.common.errors import ConfigError
from raykd.common.redaction import redact
from raykd.search.space import Setting

log = logging.getLogger(__name__)
NAME = "sweep.jsonl"
State = Literal["waiting", "running", "finished", "cut", "failed"]
_MAY_CHANGE = {"search.trials", "search.seeds", "search.hours", "search.gpu_hours", "search.concurrency"}
_MAY_CHANGE |= {"output", "tracking.uri", "baseline"}
_START_ANEW = "Start anew, without --resume: trainings that are still valid are reused"


@dataclass(frozen=True)
class Part:
    """Something that a sweep's trainings depend on, under the config's key.

    value: for people; the config's.
    digest: identity by content.
    """

    value: str
    digest: str


@dataclass
class Trial:
    """One setting of one arm.

    seed: the student's.
    score: the best validation score so far, higher is better; None before the first one.
    seconds: of its training so far.
    fingerprint: its training's (`Job.fingerprint`), "" before it has started. Score and reason belong to it.
    permanent: of a failed one, whether the same training would fail in the same way again.
    """

    arm: str
    number: int
    setting: Setting
    seed: int
    state: State = "waiting"
    score: float | None = None
    reason: str = ""
    seconds: float = 0.0
    fingerprint: str = ""
    permanent: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm} {self.number}"

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "cut", "failed")


class Journal:
    """elapsed: seconds that earlier commands of this sweep have searched.

    runs: ids of MLflow runs, by the recorder's keys.
    retried: trials that failed in an earlier command, each with its reason, and are waiting again.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resume: bool, parts: Mapping[str, Part] | None = None
    ) -> None:
        """config: the whole of it. parts: what all trainings depend on.

        ConfigError if there is no sweep to resume, or it had another config or other parts. Without `resume` an
        earlier sweep's file stays in place until the first trial of this one starts; then it is renamed.
        """
        header = {
            "config": config,
            "parts": {key: dataclasses.asdict(part) for key, part in (parts or {}).items()},
        }
        header = redact(json.loads(json.dumps(header, default=str)))  # an address may hold a password
        self.path, self.elapsed = folder / NAME, 0.0
        self.trials: dict[str, Trial] = {}
        self.runs: dict[str, str] = {}
        self.retried: dict[str, str] = {}
        self._served: dict[str, Any] = {}
        self._held: list[Mapping[str, Any]] | None = None  # entries that are not yet written
        if resume:
            self._read(header)
        elif self.path.exists():
            self._held = [header]
            log.info("%s holds an earlier sweep; it is renamed when the first trial of this one starts", self.path)
            return
        self._file = self.path.open("a")
        if not resume:
            self._write(header)
        else:
            self._file.write("\n")  # after what a killed driver may have left

    def _replace_earlier(self, held: list[Mapping[str, Any]]) -> None:
        free = (self.path.with_name(f"{self.path.stem}.{n}{self.path.suffix}") for n in count(1))
        kept = next(path for path in free if not path.exists())
        self.path.rename(kept)
        log.info("the earlier sweep is kept as %s; to resume it, rename it back to %s", kept, self.path.name)
        self._held, self._file = None, self.path.open("a")
        for entry in held:
            self._write(entry)

    def _read(self, header: Mapping[str, Any]) -> None:
        if not self.path.exists():
            hint = "Leave --resume out to start one"
            raise ConfigError("--resume", self.path, "no sweep has been started there", hint)
        first, *lines = [line for line in self.path.read_text().splitlines() if line.strip()] or ["{}"]
        try:
            before = json.loads(first)
            then = _flat(before["config"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(
                "--resume", self.path, "its first line is damaged", "Start anew, without --resume"
            ) from None
        if "parts" not in before:
            reason = "an older raykd wrote it, and it does not say what its trials depend on"
            raise ConfigError("--resume", self.path, reason, _START_ANEW)
        now = _flat(header["config"])
        changed = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k) and not _may_change(k))
        if changed:
            key = changed[0]
            reason = f"the sweep that is there has {then.get(key)!r}" + (
                f", and {len(changed) - 1} more keys differ ({', '.join(changed[1:4])})" if len(changed) > 1 else ""
            )
            raise ConfigError(key, now.get(key), reason, "Give the same values, or start anew, without --resume")
        _refuse_other_parts(before["parts"], header["parts"])
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                log.warning("skipped an unfinished line in %s", self.path)
                continue
            self.elapsed = max(self.elapsed, entry.get("elapsed", 0.0))
            if "trial" in entry:
                trial = Trial(**entry["trial"])
                self.trials[trial.name] = trial
            elif "run" in entry:
                self.runs[entry["run"]] = entry["id"]
            elif "served" in entry:
                self._served = entry["served"]
        for trial in self.trials.values():
            if trial.state == "running":  # its driver is gone
                trial.state = "waiting"
            elif trial.state == "failed" and not trial.permanent:  # a process, a node, a server, memory, a full disk
                self.retried[trial.name] = trial.reason
                trial.state, trial.score, trial.reason = "waiting", None, ""

    def changed_teachers(self, served: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
        """Which parts of the teachers' identities an earlier command of this sweep had otherwise, by teacher.

        served: the parts of each teacher's `TeacherKey`, by the teacher's name.
        """
        return {
            name: [part for part, value in parts.items() if self._served[name].get(part) != value]
            for name, parts in served.items()
            if name in self._served and self._served[name] != parts
        }

    def note_served(self, served: Mapping[str, Mapping[str, str]]) -> None:
        if self._served != served:
            self._served = {name: dict(parts) for name, parts in served.items()}
            self._write({"served": self._served})

    def note(self, trial: Trial, elapsed: float) -> None:
        self.trials[trial.name] = trial
        if self._held is not None:
            self._replace_earlier(self._held)
        self._write({"trial": dataclasses.asdict(trial), "elapsed": round(elapsed, 3)})

    def note_training(self, trial: Trial, fingerprint: str, elapsed: float) -> None:
        """Which training the trial is from now on. What belongs to another one is forgotten."""
        if trial.fingerprint != fingerprint:
            trial.score, trial.reason = None, ""
            trial.fingerprint = fingerprint
            self.note(trial, elapsed)

    def note_runs(self, runs: Mapping[str, str]) -> None:
        """Ids of MLflow runs, by the recorder's keys."""
        for name, run_id in runs.items():
            if self.runs.get(name) != run_id:
                self.runs[name] = run_id
                self._write({"run": name, "id": run_id})

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._held is not None:
            self._held.append(entry)
            return
        self._file.write(json.dumps(entry, default=str) + "\n")
        self._file.flush()  # the system keeps it, whatever happens to this process

    def close(self) -> None:
        if self._held is None:
            self._file.close()


def _refuse_other_parts(then: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> None:
    """ConfigError, naming the first part whose content is not what the sweep was started with."""
    changed = [key for key in now if then.get(key, {}).get("digest") != now[key]["digest"]]
    changed += [key for key in then if key not in now]
    if not changed:
        return
    key, more = changed[0], changed[1:]
    reason = "its content has changed since the sweep was started, so its trials cannot be compared with new ones"
    if more:
        reason += f" ({', '.join(more[:3])}{' and more' if more[3:] else ''} changed, too)"
    raise ConfigError(key, now.get(key, then.get(key, {})).get("value"), reason, _START_ANEW)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        return {k: v for name, part in tree.items() for k, v in _flat(part, f"{prefix}{name}.").items()}
    if isinstance(tree, (list, tuple)):
        return {k: v for i, part in enumerate(tree) for k, v in _flat(part, f"{prefix}{i}.").items()} or {
            prefix[:-1]: []
        }
    return {prefix[:-1]: tree}


def _may_change(key: str) -> bool:
    return key in _MAY_CHANGE or key.startswith(("ray.", "tracking."))
