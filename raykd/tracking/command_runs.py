"""The MLflow runs of one command: started, resumed, linked to and ended; and the events of its trainings."""

import json
import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykd.common.atomic import write_atomically
from raykd.common.errors import ConfigError
from raykd.common.hashing import fingerprint
from raykd.common.progress import Bars
from raykd.common.redaction import scrub
from raykd.common.uses import note_uses
from raykd.common.versions import short_versions
from raykd.config.methods import Method
from raykd.config.schema import Config
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.tracking.child_runs import ChildRuns, log_inputs, role_tags, run_params
from raykd.tracking.continued import continued_tags, search_size
from raykd.tracking.event_log import EventLog, LoggedRun
from raykd.tracking.experiment import Tracking
from raykd.tracking.linked import AnyRun, LinkedRun
from raykd.tracking.mlflow_store import one_line
from raykd.tracking.tags import Tag
from raykd.training.events import Event, Started, Stopping

log = logging.getLogger(__name__)


def _number_of(folder: Path) -> str:
    """A folder's own random number, also where several hosts see it; two hosts can have folders of the same path."""
    file = folder / ".id"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, uuid.uuid4().hex.encode())
    return file.read_text()


class CommandRuns:
    """One command: a parent run, and a child run for each teacher, the ensemble, the baseline and each student."""

    def __init__(
        self,
        tracking: Tracking,
        config: Config,
        prepared: Prepared,
        command: str,
        searched: Collection[str] = (),
        known: Mapping[str, str] | None = None,
    ) -> None:
        """Start the parent run, or resume the known one. Raises ConfigError if MLflow does not have the known one.

        searched: keys of the student's model that differ between trainings, logged as parameters of each run.
        known: ids of an earlier command's runs, to resume. The key of the parent is "". Those of the others are the
            name and, for trainings, the fingerprint ("kd 1#..."), so that a run never has the metrics of two trainings.

        `children.on_new` is called with the key and the id of each run that is added.
        """
        self.tracking, self.config, self.prepared = tracking, config, prepared
        folder = _number_of(config.folder)
        tracking.end_killed(folder)
        if known and "" in known:
            if not tracking.has(known[""]):
                reason = f"it does not have run {known['']}, in which the sweep is recorded"
                hint = "Give the MLflow store that the sweep was started with, or start a new sweep, without --resume"
                raise ConfigError("tracking.uri", scrub(tracking.uri), reason, hint)
            continued = continued_tags(tracking, known[""], config)
            self.parent = tracking.resume(known[""])
            self.parent.set_tags(continued)
        else:
            tags = role_tags("experiment") | {
                Tag.FOLDER: folder,
                Tag.COMMAND: command,
                Tag.CONFIG: fingerprint(config.model_dump()),
                Tag.SIZE: json.dumps(search_size(config)),
                Tag.VERSIONS: short_versions(),
                Tag.LOGITS_MODE: "live" if config.is_live(command) else "stored",
                Tag.TASK: config.task.type,
                Tag.PRIMARY_METRIC: prepared.task.primary_metric,
                Tag.PERCENT: str(prepared.task.percent).lower(),
                Tag.SHARE: str(prepared.task.share).lower(),
                Tag.GRADED_ROWS: str(prepared.task.graded_rows).lower(),
            }
            params = run_params(config, config.method if command == "distill" else None, searched)
            self.parent = tracking.start(f"{config.name} {command}", params=params, tags=tags)
            log_inputs(self.parent, config, prepared)
        self.children = ChildRuns(tracking, self.parent, config, prepared, searched, known or {})
        self.jobs: dict[str, list[Job]] = {}  # by the name of their run
        self._registered: dict[str, dict[str, Any]] = {}  # the arguments of `register`, by the same names
        self.has_scores: set[str] = set()  # teachers and the ensemble: given ones are not trained here
        self._keys: dict[str, str] = {}  # by teacher, and of the ensemble: the identity of the logits that are scored
        self.event_log = EventLog(prepared.task.primary_metric)

    def stopping(self) -> None:
        """Mark the runs as stopping, because the command can be killed before it has stopped."""
        self.tracking.hurry()
        for name, run in list(self.children.runs.items()):
            if not self._has_all(name):
                run.stopping()
        self.parent.stopping()

    def _has_all(self, name: str) -> bool:
        jobs = self.jobs.get(name, [])
        return all(job.done for job in jobs) if jobs else name in self.has_scores

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.tracking.hurry()
        for name, run in self.children.runs.items():  # failed runs have ended already
            if self._has_all(name):
                run.finish()  # its result exists, whatever happened to other runs
            else:
                run.end(error)
        try:
            self.children.write_links()
        except Exception as failure:  # MLflow is unavailable: the log says what is not there
            log.warning("the links to reused runs are not in MLflow (%s)", one_line(failure))
        self.parent.end(error)

    def register(
        self,
        jobs: Sequence[Job],
        role: str,
        name: str,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Pass the events of these jobs to the run `name`. Several jobs are the folds of one teacher."""
        self.jobs[name] = list(jobs)
        note_uses(self.config.store, self.config.name, {f"trainings/{job.fingerprint}": job.name for job in jobs})
        self._registered[name] = {"role": role, "group": group, "tags": tags}
        for i, job in enumerate(jobs):
            run = self.children.get(name, role, job.method, jobs, {Tag.GROUP: group or name, **(tags or {})})
            prefix = "" if len(jobs) == 1 else f"fold_{i + 1}/"
            self.event_log.add(job, LoggedRun(run, role, prefix, group or name))

    def on_event(self, job: Job, event: Event, bars: Bars) -> None:
        if isinstance(event, Stopping):
            self.stopping()
            return
        if isinstance(event, Started):  # its result was lost after its run had been linked to
            self._write_again(job)
        self.event_log.on_event(job, event, bars)

    def _write_again(self, job: Job) -> None:
        """Replace the complete runs of earlier commands that a job reuses by new ones, with its history."""
        for logged in list(self.event_log.of(job)):
            if isinstance(logged.run, LinkedRun):
                name = next(name for name, run in self.children.runs.items() if run is logged.run)
                self._unlink(name)

    def _unlink(self, name: str, whole: bool = False) -> None:
        """Record `name` in a run of this command, with its jobs' history, instead of one of an earlier command.

        whole: with every point of its curves, see `EventLog.replay`.
        """
        before, jobs = self.children.runs[name], self.jobs.get(name, [])
        self.children.unlink(name)
        for job in jobs:
            self.event_log.drop(job, before)
        if jobs:
            self.register(jobs, name=name, **self._registered[name])
        for job in jobs:
            self.event_log.replay(job, whole)

    def _identity_tag(self, name: str) -> dict[str, str]:
        """The tag of a run that is complete, by which later commands find it."""
        identity = self.children.identities.get(name)
        return {Tag.IDENTITY: identity} if identity else {}

    def scored_by(self, keys: Mapping[str, str], ensemble: Sequence[object]) -> None:
        """Set what the scores of the teachers and of the ensemble depend on.

        keys: the fingerprints of the teachers' logits, by name.
        ensemble: whatever else those of the ensemble depend on.
        """
        self._keys = {**keys, "ensemble": fingerprint([keys, list(ensemble)])}
        self.children.content |= self._keys

    def log_precompute(self, rows: int) -> None:
        """Log the pool's progress to the teachers' runs. Called again when the pool is closed.

        rows: number of rows that each teacher provides logits of.
        """
        for name, p in self.event_log.precomputed.items():
            values: dict[str, float] = {"precompute/restarts": p.restarts, "precompute/seconds": p.seconds}
            if p.computed:
                rate = p.computed / p.took if p.took else p.per_replica
                values |= {"precompute/rows_per_s": rate, "precompute/rows_per_s_and_replica": p.per_replica}
            values |= {"store/misses": p.computed, "store/hits": rows - p.computed}
            if p.computed and isinstance(self.children.runs.get(name), LinkedRun):
                self._unlink(name)  # its logits were lost, and computed again
            if p.computed or name not in self.children.resumed:  # otherwise the values of an earlier command stay
                self.note(name, "teacher", values)

    def reuse(self, job: Job) -> bool:
        """Whether the job's result exists. If so, its history is in this command's runs, or in those they link to.

        New runs get only those points of its curves that are at evaluations; the run that trained it has all points.
        """
        if not job.done or job.damage():  # the training itself quarantines damaged files
            return False
        runs = [logged.run for logged in self.event_log.of(job)]
        for run in runs:
            run.set_tags({Tag.REUSED: "true"})
        if not all(isinstance(run, LinkedRun) for run in runs):
            self.event_log.replay(job, whole=False)
        return True

    def note(self, name: str, role: str, values: Mapping[str, float]) -> None:
        """Log single values to a run; they replace earlier ones."""
        self._given(name, role).log_anew(values)

    def _given(self, name: str, role: str) -> AnyRun:
        """The run of a teacher or of the ensemble. Only a teacher that is trained here has a method."""
        jobs = self.jobs.get(name, [])
        return self.children.get(name, role, Method(type="finetune") if jobs else None, jobs)

    def describe(self, text: str, metrics: Mapping[str, float]) -> None:
        """Give the command's own run a description in Markdown, and the winner's metrics. Warns if MLflow refuses."""
        self.parent.log_anew(metrics)
        try:
            self.children.describe(text)
        except Exception as error:  # MLflow is unavailable: the report has the same
            log.warning("the description is not in MLflow (%s)", one_line(error))

    def _logged_run(self, job: Job) -> LoggedRun:
        return next(logged for logged in self.event_log.of(job) if logged.run is self.children.runs[job.name])

    def refused(self, name: str, role: str, tags: Mapping[str, str], reason: str) -> None:
        """Record a training whose setting is invalid, as a FAILED run without a training's parameters."""
        self.children.get(name, role, self.config.method, self.jobs.get(name, []), dict(tags) | {Tag.STATE: "failed"})
        self.children.runs.pop(name).finish("FAILED", reason)

    def flush(self) -> bool:
        """Send everything that the runs have logged to MLflow; False if it does not accept it now."""
        sent = all(run.flush() for run in [*self.children.runs.values(), self.parent])
        self.children.write_links()
        return sent

    def renew(self, name: str) -> None:
        """Record a teacher in a new run from now on, because its logits have changed since its run was started."""
        if isinstance(self.children.runs.get(name), LinkedRun):
            self.children.supersede(name)  # if it is one of this command's own, of an earlier try
            self._unlink(name, whole=True)
            return
        before = self.children.runs.pop(name, None)
        if before is not None:
            before.finish()
        self.children.supersede(name)
        self.children.resumed.discard(name)
        if before is not None and (jobs := self.jobs.get(name)):
            for job in jobs:
                self.event_log.drop(job, before)
            self.register(jobs, "teacher", name)
            for job in jobs:
                self.event_log.replay(job)
