"""From the trainings' events to MLflow runs and bars, and from their files to scores."""

import gzip
import json
import logging
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from raykd import __version__
from raykd.config import Config
from raykd.hashing import fingerprint
from raykd.job import Job
from raykd.methods import Method
from raykd.mlflow_store import one_line
from raykd.prepare import Prepared
from raykd.progress import Bars
from raykd.results import Scored
from raykd.student import Event
from raykd.tasks import Evaluation
from raykd.teachers.replica import Progress
from raykd.tracking import Run, Tracking

log = logging.getLogger(__name__)
WAITED_TOO_LONG, TELL_AFTER_SECONDS = 0.05, 30.0  # share of a student's time, and how much of it must have been seen


@dataclass
class _Listener:
    """An MLflow run that hears of a job. A teacher's folds share one, each under its own prefix."""

    run: Run
    role: str
    prefix: str
    group: str


class Recorder:
    """One command: a parent run, and a child for each teacher, the ensemble, the baseline, each student."""

    def __init__(
        self,
        tracking: Tracking,
        config: Config,
        prepared: Prepared,
        command: str,
        searched: Collection[str] = (),
        known: Mapping[str, str] | None = None,
    ) -> None:
        """searched: keys of the student's model that differ between trainings, logged as parameters of each run.

        known: ids of an earlier command's runs, which are gone on with, by name ("" is the parent); by name and
        fingerprint where another setting may come under the same name. on_run: hears of those that are added.
        """
        self.tracking, self.config, self.prepared, self.searched = tracking, config, prepared, searched
        self.known, self.resumed = dict(known or {}), set[str]()
        self.on_run: Callable[[str, str], Any] = lambda key, run_id: None
        if "" in self.known:
            self.parent = tracking.resume(self.known[""])
        else:
            tags = self._tags("experiment") | {
                "raykd.command": command,
                "raykd.config": fingerprint(config.model_dump()),
                "raykd.task": config.task.type,
                "raykd.headline": prepared.task.headline,
                "raykd.percent": str(prepared.task.percent).lower(),
            }
            self.parent = tracking.start(f"{config.name} {command}", params=self._params(config.method), tags=tags)
            self._inputs(self.parent)
        self.runs: dict[str, Run] = {}
        self.listeners: dict[str, list[_Listener]] = {}
        self.jobs: dict[str, list[Job]] = {}  # by the run that hears of them
        self.fills: dict[str, Progress] = {}  # by teacher; written by the pool's thread
        self.told_of: dict[str, str] = {}  # by job: the teacher that the user knows to be too slow for it

    def __enter__(self) -> Self:
        self.parent.__enter__()
        self.parent.artifact(self.config.folder / "config.yaml")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for name, run in self.runs.items():  # those that failed by themselves have ended already
            if all(self._is_done(job) for job in self.jobs.get(name, [])):
                run.finish()  # what it stands for is there, whatever happened to others
            else:
                run.__exit__(kind, error, trace)
        self.parent.__exit__(kind, error, trace)

    def _params(self, method: Method, job: Job | None = None, name: str = "") -> dict[str, Any]:
        """The same flat keys for every run; what a method does not use is at its neutral value.

        Without a job nothing was trained: a teacher given as it is, or the ensemble.
        """
        config = self.config
        flat = {f"method.{k}": v for k, v in method.model_dump().items()}
        trained = job.training.model_dump() if job else dict.fromkeys(type(config.training).model_fields, "")
        flat |= {f"training.{k}": v for k, v in trained.items()}
        given = {t.name: t.model.pretrained or "" for t in config.teachers}
        flat |= {
            "training.steps": job.steps if job else 0,
            "seed": job.seed if job else "",
            "model": (job.model.pretrained or "from a config") if job else given.get(name, ""),
            "teachers": len(config.teachers),
            "task": config.task.type,
            "data": config.data.source,
        }
        return flat | {key: _value(job.model.model_dump(), key) if job else "" for key in self.searched}

    def _inputs(self, run: Run) -> None:
        for name, split in self.prepared.splits.items():
            source = self.config.data.source
            run.dataset(
                f"{self.config.name}-{name}",
                split.digest,
                source,
                split=name,
                rows=len(split.rows),
                kind="hugging_face" if not Path(source).exists() and ":" not in source else "local",
            )

    def _tags(self, role: str) -> dict[str, str]:
        return {"raykd.role": role, "raykd.version": __version__}

    def _child(
        self, name: str, role: str, method: Method, job: Job | None = None, tags: Mapping[str, str] | None = None
    ) -> Run:
        key = f"{name}#{job.fingerprint[:8]}" if job and role in ("student", "baseline") else name
        if name not in self.runs and key in self.known:
            self.runs[name] = self.tracking.resume(self.known[key])
            self.resumed.add(name)
        elif name not in self.runs:
            tags = self._tags(role) | {"raykd.group": name} | dict(tags or {})
            if teacher := next((t for t in self.config.teachers if role == "teacher" and t.name == name), None):
                tags["raykd.folds"] = str(teacher.folds)
            run = self.tracking.start(name, params=self._params(method, job, name), tags=tags, parent=self.parent)
            self._inputs(run)
            self.runs[name] = run
            self.known[key] = run.id
            self.on_run(key, run.id)
        return self.runs[name]

    def expect(
        self,
        jobs: Sequence[Job],
        role: str,
        name: str,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Jobs that will report to the run `name`; several are the folds of one teacher."""
        self.jobs[name] = list(jobs)
        for i, job in enumerate(jobs):
            run = self._child(name, role, job.method, job, {"raykd.group": group or name, **(tags or {})})
            prefix = "" if len(jobs) == 1 else f"fold_{i + 1}/"
            self.listeners.setdefault(job.fingerprint, []).append(_Listener(run, role, prefix, group or name))

    def on_event(self, job: Job, event: Event, bars: Bars) -> None:
        kind = event["event"]
        if kind in ("progress", "evaluation"):
            done = (event["generation"] - 1) * event["steps"] + event["step"]
            note = ""
            if kind == "evaluation":
                headline = self.prepared.task.headline
                note = f"validation {headline} {event['metrics'][headline]:.4g}"
            bars.update(job.name, done, event["steps"] * job.method.generations, note)
        elif kind == "started":
            bars.update(job.name, 0, event["steps"] * job.method.generations)
        elif kind == "resumed":
            bars.say(f"{job.name}: goes on at step {event['step']} of {event['steps']}, from its checkpoint")
        elif kind == "found":
            bars.say(f"{job.name}: another command has trained it meanwhile")
        elif kind == "restarted":
            bars.say(f"{job.name}: its process died; it goes on from its last checkpoint")
        elif kind == "missing":
            bars.say(
                f"{job.name}: logits are missing at step {event['step']}: it makes way for a teacher to compute them"
            )
        elif kind == "stopped":
            bars.say(f"{job.name}: stopped at step {event['step']} of {event['steps']}, its checkpoint is written")
        waits = event.get("waits") or {"seconds": 0.0}
        if waits["seconds"] > TELL_AFTER_SECONDS and waits["share"] > WAITED_TOO_LONG:
            if kind == "evaluation" or self.told_of.get(job.fingerprint) != waits["teacher"]:  # else it would nag
                bars.say(self._bottleneck(job, waits))
            self.told_of[job.fingerprint] = waits["teacher"]
        if kind in ("resumed", "found"):
            self._retell(job)  # an earlier command's part of the history; what this one has told is dropped as known
        for listener in self.listeners[job.fingerprint]:
            self._log(listener, event, job)

    def _bottleneck(self, job: Job, waits: Mapping[str, Any]) -> str:
        """Which teacher a student waits for, and how many replicas would keep up with it."""
        name, pace = waits["teacher"], self.fills.get(waits["teacher"])
        rate = waits.get("per_replica") or (pace.per_replica if pace else 0.0)
        now = waits.get("replicas") or (pace.replicas if pace else 1)
        text = f"{job.name}: waited {waits['share']:.0%} of its time for the logits of {name}"
        if not rate:
            return text
        needed = max(now + 1, math.ceil(waits["rows_per_s"] / rate))
        return (
            f"{text} ({rate:.0f} rows/s a replica, {now} of them; the student could take {waits['rows_per_s']:.0f}): "
            f"teachers.{name}.replicas={needed} would cure it"
        )

    def filled(self, progress: Progress) -> None:
        """What the pool tells of one teacher's fill."""
        self.fills[progress.teacher] = progress

    def log_fills(self, rows: int) -> None:
        """Into the teachers' runs; again when the pool is closed. rows: what each teacher has seen in all."""
        for name, p in self.fills.items():
            values: dict[str, float] = {"fill/restarts": p.restarts, "fill/seconds": p.seconds}
            if p.computed:
                rate = p.computed / p.took if p.took else p.per_replica
                values |= {"fill/rows_per_s": rate, "fill/rows_per_s_and_replica": p.per_replica}
            values |= {"store/misses": p.computed, "store/hits": rows - p.computed}
            if p.computed or name not in self.resumed:  # else what an earlier command has computed stays there
                self.note(name, "teacher", values)

    def _log(self, listener: _Listener, event: Event, job: Job) -> None:
        run, kind = listener.run, event["event"]
        if kind in ("evaluation", "stopped", "missing"):
            before = (event["generation"] - 1) * event["steps"]  # generations follow one another on one axis
            # The first metric that a run has is the one that MLflow's comparison of runs opens with.
            validation = event.get("metrics", {})
            run.log({f"{listener.prefix}validation/{k}": v for k, v in validation.items()}, before + event["step"])
            for step, values in event["history"]:
                run.log({f"{listener.prefix}train/{k}": v for k, v in values.items()}, before + step)
        elif kind == "generation" and job.method.generations > 1:
            scores = {k: v for k, v in event["metrics"].items() if listener.role != "trial" or k[:5] != "test/"}
            run.log({f"generations/{k.replace('/', '_')}": v for k, v in scores.items()}, event["generation"])
        elif kind == "restarted":
            run.log({"restarts": event["tries"]}, event["tries"])
        elif kind == "failed":
            run.finish("FAILED", event["reason"])

    def reuse(self, job: Job) -> bool:
        """Whether the job's result exists; its history is then told again, to this command's runs."""
        if not self._is_done(job):
            return False
        for listener in self.listeners[job.fingerprint]:
            listener.run.set_tags({"raykd.reused": "true"})
        self._retell(job)
        return True

    def _retell(self, job: Job) -> None:
        """Log what `events.jsonl` keeps of the job. A line that a killed process left unfinished is passed over."""
        path = job.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in filter(None, lines):
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                log.warning("%s: an unfinished line in %s is passed over", job.name, path)
                continue
            for listener in self.listeners[job.fingerprint]:
                self._log(listener, event, job)

    def _is_done(self, job: Job) -> bool:
        return job.done

    def result(self, job: Job) -> dict[str, Any]:
        return json.loads((job.folder / "result.json").read_text())

    def note(self, name: str, role: str, values: Mapping[str, float]) -> None:
        """Single values of a run that are not a split's metrics; they replace earlier ones."""
        self._child(name, role, Method(type="finetune")).log_anew(values)

    def scored(
        self,
        name: str,
        role: str,
        method: str,
        evaluations: Mapping[str, Evaluation],
        details: Mapping[str, Any] | None = None,
    ) -> Scored:
        """A teacher or the ensemble, as it serves."""
        run = self._child(name, role, Method(type="finetune"))
        metrics = {split: e.metrics for split, e in evaluations.items()}
        self._final(run, metrics)
        with tempfile.TemporaryDirectory() as folder:
            for split, e in evaluations.items():
                path = Path(folder) / f"predictions-{split}.jsonl.gz"
                with gzip.open(path, "wt") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in e.predictions)
                run.artifact(path)
        jobs = self.jobs.get(name, [])
        seed = jobs[0].seed if jobs else None
        return Scored(name, role, method, seed, metrics, evaluations["test"].scores, run.id, dict(details or {}))

    def _final(self, run: Run, metrics: Mapping[str, Mapping[str, float]]) -> None:
        for split, values in metrics.items():
            run.log({f"final_{split}/{k}": v for k, v in values.items()}, 0)

    def _listener(self, job: Job) -> _Listener:
        """A job may have several: the student under `finetune` is the baseline's own training."""
        return next(heard for heard in self.listeners[job.fingerprint] if heard.run is self.runs[job.name])

    def end_trial(self, job: Job, state: str, gpus: float, reason: str = "") -> None:
        """A sweep's trial is over. state: "finished", "cut" or "failed". Its test scores stay in its folder:
        they choose nothing."""
        name, listeners = job.name, self.listeners.pop(job.fingerprint, [])
        run = self.runs.pop(name, None) or next(heard.run for heard in listeners)
        self.jobs.pop(name, None)
        if others := [heard for heard in listeners if heard.run is not run]:  # an equal training of another arm
            self.listeners[job.fingerprint] = others
        if state == "finished":
            result = self.result(job)
            best = result["generations"][result["best"]]
            self._final(run, {"validation": best["validation"]})
            run.log({"seconds": result["seconds"], "gpu_seconds": gpus * result["seconds"]}, 0)
        try:
            run.set_tags({"raykd.state": state})
            if state == "finished":
                run.artifact(job.folder / "predictions-validation.jsonl.gz")
        except Exception as error:  # MLflow is away: the sweep goes on, its scores are sent later
            log.warning("%s: its state or predictions are not in MLflow (%s)", name, one_line(error))
        run.finish("FAILED" if state == "failed" else "FINISHED", reason or None)

    def supersede(self, key: str) -> None:
        """A run that another setting has taken the place of, when the sweep was extended: the report passes it over."""
        self.tracking.client.set_tag(self.known.pop(key), "raykd.role", "superseded")

    def trained(self, job: Job, role: str, gpus: float = 0.0, log_model: bool = True) -> Scored:
        """The baseline or a student: its best generation, with its files as artifacts. gpus: those that it held."""
        result, listener = self.result(job), self._listener(job)
        metrics = result["generations"][result["best"]]
        run = listener.run
        self._final(run, metrics)
        run.log({"seconds": result["seconds"], "gpu_seconds": gpus * result["seconds"]}, 0)
        for split in metrics:
            run.artifact(job.folder / f"predictions-{split}.jsonl.gz")
        details = {"group": listener.group, "model": result["model"], "seconds": result["seconds"]}
        if job.method.generations > 1:
            details["generation"] = result["best"] + 1
        if result["average"]:
            details["generations_average"] = result["average"]
        if role == "student" and log_model:
            details["mlflow_model_id"] = run.model(Path(result["model"]), job.name)
        return Scored(job.name, role, job.method.type, job.seed, metrics, self._scores(job, "test"), run.id, details)

    def generations(self, job: Job) -> list[Scored]:
        """Born-again: every generation, for the table; the chosen one stands in it once more, as the student."""
        result, listener = self.result(job), self._listener(job)
        if job.method.generations == 1:
            return []
        found = []
        for i, metrics in enumerate(result["generations"]):
            group = f"{listener.group} generation {i + 1}"
            scores = self._scores(job, f"test_generation_{i + 1}")
            found.append(
                Scored(
                    f"{job.name} generation {i + 1}",
                    "student",
                    job.method.type,
                    job.seed,
                    metrics,
                    scores,
                    listener.run.id,
                    {"group": group, "generation": i + 1},
                )
            )
        return found

    def _scores(self, job: Job, name: str) -> np.ndarray:
        with np.load(job.folder / "scores.npz") as saved:
            return saved[name]


def _value(model: dict[str, Any], key: str) -> Any:
    """What `model.a.b` says in a model's settings; "" where it says nothing."""
    found: Any = model
    for step in key.split(".")[1:]:
        found = found.get(step) if isinstance(found, dict) else None
    return "" if found is None else found
