"""The journal of a sweep, a file that survives the driver: `<output>/<name>/sweep.jsonl`.

The first line holds the sweep's config and what its trainings depend on. Every other line is the state of one trial
(the last line of a trial counts), the id of an MLflow run, or the identities of the teachers. A line that a killed
driver left unfinished is skipped.
"""

import dataclasses
import json
import logging
import re
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
State = Literal["waiting", "running", "finished", "pruned", "failed"]
_MAY_CHANGE = {"search.trials", "search.seeds", "search.hours", "search.gpu_hours", "search.concurrency"}
_MAY_CHANGE |= {"output", "tracking.uri", "baseline", "student.num_gpus", "logits.compile"}
_MAY_CHANGE |= {"logits.batch_tokens", "logits.block_rows"}
# Where data and models are: `parts` says whether they are the same.
_BY_CONTENT = re.compile(
    r"data\.(source|revision|train|validation|test|transfer)"
    r"|(student|teachers\.\d+)\.model\.(pretrained|revision|tokenizer)"
)
_START_ANEW = "Start a new sweep, without --resume; trainings that are still valid are reused"


@dataclass(frozen=True)
class Part:
    """Something that a sweep's trainings depend on, under the config's key.

    value: as in the config, for messages.
    digest: a hash of its content.
    """

    value: str
    digest: str


@dataclass
class Trial:
    """One setting of one arm.

    seed: the student's.
    score: the best validation score so far, higher is better; None before the first one.
    reason: why it failed.
    seconds: of training so far.
    gpu_seconds: GPUs times seconds so far, including tries that started over; None in the journal of an older raykd.
    fingerprint: of its training (`Job.fingerprint`), to which score and reason belong; "" before it starts.
    permanent: whether a failed trial would fail in the same way again.
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
    gpu_seconds: float | None = 0.0

    @property
    def name(self) -> str:
        return f"{self.arm} {self.number}"

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "pruned", "failed")


class Journal:
    """What a sweep has done so far, in memory and in the file.

    elapsed: seconds that earlier commands of this sweep took.
    runs: ids of MLflow runs, by the recorder's keys.
    retried: trials that failed in an earlier command and are waiting again, with the reason of their failure.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resume: bool, parts: Mapping[str, Part] | None = None
    ) -> None:
        """Open the journal in `folder`, to resume its sweep or to start a new one.

        config: the whole config of this command.
        parts: what all trainings depend on besides the config.

        Raises ConfigError if there is no sweep to resume, or if its config or parts differ. Without `resume`, the
        file of an earlier sweep stays in place until the first trial of this one starts, and is then renamed.
        """
        header = {
            "config": config,
            "parts": {key: dataclasses.asdict(part) for key, part in (parts or {}).items()},
        }
        header = redact(json.loads(json.dumps(header, default=str)))  # an address can contain a password
        self.path, self.elapsed = folder / NAME, 0.0
        self.trials: dict[str, Trial] = {}
        self.runs: dict[str, str] = {}
        self.retried: dict[str, str] = {}
        self._served: dict[str, Any] = {}
        self._held: list[Mapping[str, Any]] | None = None  # entries that are not written yet
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
            self._file.write("\n")  # after an unfinished line, which a killed driver can leave

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
            hint = "Omit --resume to start one"
            raise ConfigError("--resume", self.path, "no sweep has been started there", hint)
        first, *lines = [line for line in self.path.read_text().splitlines() if line.strip()] or ["{}"]
        try:
            before = json.loads(first)
            then = _flat(before["config"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(
                "--resume", self.path, "its first line is damaged", "Start a new sweep, without --resume"
            ) from None
        if "parts" not in before:
            reason = "it was written by an older raykd, without what its trials depend on"
            raise ConfigError("--resume", self.path, reason, _START_ANEW)
        now = _flat(header["config"])
        changed = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k) and not _may_change(k))
        changed = [k for k in changed if k in then or now[k]]  # a new setting that is off: the sweep is older than it
        if changed:
            key = changed[0]
            reason = f"the sweep to resume has {then.get(key)!r}" + (
                f", and {len(changed) - 1} more keys differ ({', '.join(changed[1:4])})" if len(changed) > 1 else ""
            )
            raise ConfigError(key, now.get(key), reason, "Use the same values, or start a new sweep, without --resume")
        _refuse_other_parts(before["parts"], header["parts"])
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                log.warning("skipped an unfinished line in %s", self.path)
                continue
            self.elapsed = max(self.elapsed, entry.get("elapsed", 0.0))
            if "trial" in entry:
                trial = Trial(**{"gpu_seconds": None} | entry["trial"])
                if str(trial.state) == "cut":  # the name of this state before it was called pruned
                    trial.state = "pruned"
                self.trials[trial.name] = trial
            elif "run" in entry:
                self.runs[entry["run"]] = entry["id"]
            elif "served" in entry:
                self._served = entry["served"]
        for trial in self.trials.values():
            if trial.state == "running":  # its driver died
                trial.state = "waiting"
            elif trial.state == "failed" and not trial.permanent:  # a process, a node, a server, memory, a full disk
                self.retried[trial.name] = trial.reason
                trial.state, trial.score, trial.reason = "waiting", None, ""

    def changed_teachers(self, served: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
        """The parts of each teacher's identity that changed since an earlier command of this sweep, by teacher.

        served: the parts of each teacher's `TeacherKey`, by the teacher's name.
        """
        return {
            name: [part for part, value in parts.items() if self._served[name].get(part) != value]
            for name, parts in served.items()
            if name in self._served and self._served[name] != parts
        }

    def note_served(self, served: Mapping[str, Mapping[str, str]]) -> None:
        """Write the parts of each teacher's `TeacherKey`, by the teacher's name."""
        if self._served != served:
            self._served = {name: dict(parts) for name, parts in served.items()}
            self._write({"served": self._served})

    def note(self, trial: Trial, elapsed: float) -> None:
        """Write the state of a trial. elapsed: seconds that the sweep has taken so far."""
        self.trials[trial.name] = trial
        if self._held is not None:
            self._replace_earlier(self._held)
        self._write({"trial": dataclasses.asdict(trial), "elapsed": round(elapsed, 3)})

    def note_training(self, trial: Trial, fingerprint: str, elapsed: float) -> None:
        """Set the training of a trial. The score and reason of a different training are dropped."""
        if trial.fingerprint != fingerprint:
            trial.score, trial.reason = None, ""
            trial.fingerprint = fingerprint
            self.note(trial, elapsed)

    def note_runs(self, runs: Mapping[str, str]) -> None:
        """Write the ids of MLflow runs. runs: by the recorder's keys."""
        for name, run_id in runs.items():
            if self.runs.get(name) != run_id:
                self.runs[name] = run_id
                self._write({"run": name, "id": run_id})

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._held is not None:
            self._held.append(entry)
            return
        self._file.write(json.dumps(entry, default=str) + "\n")
        self._file.flush()  # from here on the operating system has it, even if this process is killed

    def close(self) -> None:
        if self._held is None:
            self._file.close()


def _refuse_other_parts(then: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> None:
    """Raise ConfigError that names the first part whose content has changed since the sweep was started."""
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
    if _BY_CONTENT.fullmatch(key):
        return True
    # The sweep's run stays in its experiment, and its trials' runs are looked up there.
    return key in _MAY_CHANGE or (key.startswith(("ray.", "tracking.")) and key != "tracking.experiment")
