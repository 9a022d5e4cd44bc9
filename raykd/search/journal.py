"""What a sweep has done so far, in a file that survives the driver: `<output>/<name>/sweep.jsonl`.

The first line says which sweep it is; every other one is a trial, as it stands now (the last line of a
trial counts), or an MLflow run. A line that a killed driver left unfinished is passed over.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raykd.common.errors import ConfigError
from raykd.search.space import Setting
from raykd.tracking.store import scrub

log = logging.getLogger(__name__)
NAME = "sweep.jsonl"
State = Literal["waiting", "running", "finished", "cut", "failed"]
_MAY_CHANGE = {"search.trials", "search.seeds", "search.hours", "search.gpu_hours", "search.concurrency"}
_MAY_CHANGE |= {"output", "tracking.uri", "baseline"}


@dataclass
class Trial:
    """One setting of one arm. score: the best validation score so far, higher is better; None before the first.

    seconds: of its training so far. seed: the student's.
    """

    arm: str
    number: int
    setting: Setting
    seed: int
    state: State = "waiting"
    score: float | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.arm} {self.number}"

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "cut", "failed")


class Journal:
    """elapsed: seconds that earlier commands of this sweep have searched."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume: bool) -> None:
        """config: the whole of it. ConfigError if a sweep is to go on that is not there, or is another one."""
        config = json.loads(scrub(json.dumps(config, default=str)))  # an address may hold a password
        self.path, self.elapsed = folder / NAME, 0.0
        self.trials: dict[str, Trial] = {}
        self.runs: dict[str, str] = {}
        if resume:
            self._read(config)
        elif self.path.exists():
            self.path.replace(self.path.with_suffix(".jsonl.old"))
        self._file = self.path.open("a")
        if not resume:
            self._write({"config": config})
        else:
            self._file.write("\n")  # after what a killed driver may have left

    def _read(self, config: Mapping[str, Any]) -> None:
        if not self.path.exists():
            hint = "Leave --resume out to start one"
            raise ConfigError("--resume", self.path, "no sweep has been started there", hint)
        first, *lines = [line for line in self.path.read_text().splitlines() if line.strip()] or ["{}"]
        try:
            before = json.loads(first)["config"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(
                "--resume", self.path, "its first line is damaged", "Start anew, without --resume"
            ) from None
        then, now = _flat(before), _flat(config)
        changed = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k) and not _may_change(k))
        if changed:
            key = changed[0]
            reason = f"the sweep that is there has {then.get(key)!r}" + (
                f", and {len(changed) - 1} more keys differ ({', '.join(changed[1:4])})" if len(changed) > 1 else ""
            )
            raise ConfigError(key, now.get(key), reason, "Give the same values, or start anew, without --resume")
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                log.warning("an unfinished line in %s is passed over", self.path)
                continue
            self.elapsed = max(self.elapsed, entry.get("elapsed", 0.0))
            if "trial" in entry:
                trial = Trial(**entry["trial"])
                self.trials[trial.name] = trial
            elif "run" in entry:
                self.runs[entry["run"]] = entry["id"]
        for trial in self.trials.values():
            if trial.state == "running":  # its driver is gone
                trial.state = "waiting"

    def note(self, trial: Trial, elapsed: float) -> None:
        self.trials[trial.name] = trial
        self._write({"trial": dataclasses.asdict(trial), "elapsed": round(elapsed, 3)})

    def note_runs(self, runs: Mapping[str, str]) -> None:
        """Ids of MLflow runs, by name."""
        for name, run_id in runs.items():
            if self.runs.get(name) != run_id:
                self.runs[name] = run_id
                self._write({"run": name, "id": run_id})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry, default=str) + "\n")
        self._file.flush()  # the system keeps it, whatever happens to this process

    def close(self) -> None:
        self._file.close()


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
