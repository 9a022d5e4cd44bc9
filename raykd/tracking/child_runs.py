"""The child runs of a command in MLflow: started or resumed, with the same parameters and tags for all of them."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from raykd import __version__
from raykd.common.hashing import fingerprint
from raykd.config.methods import Method
from raykd.config.models import LoraConfig
from raykd.config.schema import Config
from raykd.data.files import kind_of
from raykd.data.source import SPLITS
from raykd.plan.job import Job
from raykd.plan.prepare import Prepared
from raykd.tracking.experiment import Tracking
from raykd.tracking.linked import AnyRun, LinkedRun, as_tags, complete_runs, links_of, note_of
from raykd.tracking.mlflow_store import children
from raykd.tracking.run import Run
from raykd.tracking.tags import Tag


class ChildRuns:
    """The child runs of one parent run. `on_new` is called with the key and the id of each run that is added.

    runs: by name, those that this command has started or resumed.
    known: ids by name and fingerprint, also of runs of earlier commands.
    ids: of all known runs, including superseded ones.
    resumed: names of the runs of earlier commands that were resumed.
    links: by name, the complete runs of other commands that this one reuses.
    content: by name, what the scores of a run without trainings depend on (a given teacher, the ensemble).
    """

    def __init__(
        self,
        tracking: Tracking,
        parent: Run,
        config: Config,
        prepared: Prepared,
        searched: Collection[str],
        known: Mapping[str, str],
    ) -> None:
        """searched, known: see `Recorder`."""
        self.tracking, self.parent, self.config, self.prepared = tracking, parent, config, prepared
        self.searched = searched
        self.known: dict[str, dict[str, str]] = {}
        for key, run_id in known.items():
            name, _, identity = key.partition("#")
            self.known.setdefault(name, {})[identity] = run_id
        self.ids, self.resumed = set(known.values()), set[str]()
        self.runs: dict[str, AnyRun] = {}
        self.links: dict[str, LinkedRun] = {}
        self.content: dict[str, str] = {}
        self.identities: dict[str, str] = {}  # by name, what a run gets as Tag.IDENTITY once it is complete
        self._unfit = set[str]()  # ids of complete runs that say something else after all, or are superseded
        self._description = ""
        self._written: dict[str, str] = {}  # the links that the parent's tags have
        self.on_new: Callable[[str, str], Any] = lambda key, run_id: None
        if known:
            self._restore_links()

    def get(
        self,
        name: str,
        role: str,
        method: Method | None,
        jobs: Sequence[Job] = (),
        tags: Mapping[str, str] | None = None,
    ) -> AnyRun:
        """The run of this name, started or resumed if necessary.

        jobs: the run's trainings; several are the folds of one teacher. A run belongs to these trainings: an earlier
            run of the same name with other trainings is superseded.
        tags: besides those that every run has.
        """
        if name in self.runs:
            return self.runs[name]
        prints = [job.fingerprint for job in jobs]
        identity = fingerprint(prints) if len(prints) > 1 else "".join(prints)
        self.supersede(name, identity)
        known = self.known.setdefault(name, {})
        params = run_params(self.config, method, self.searched, jobs[0] if jobs else None, name)
        if (content := prints or self.content.get(name)) is not None:
            rows = [split.digest for split in self.prepared.splits.values()]
            same = [__version__, name, role, dict(tags or {}), params, content, rows]
            self.identities[name] = fingerprint(json.loads(json.dumps(same, default=str)))
        if (complete := self._complete(name, jobs, known.get(identity))) is not None:
            self.runs[name] = complete
            if complete.id != known.get(identity):
                self.supersede(name)  # such as one that an earlier try of this command has left unfinished
                self.links[name] = complete
                self.on_new(f"{name}#{identity}" if identity else name, complete.id)
        elif identity in known and self.tracking.has(known[identity]):
            self.runs[name] = self.tracking.resume(known[identity])
            self.tracking.client.set_tag(known[identity], Tag.ROLE, role)  # in case it was superseded
            self.resumed.add(name)
        else:
            tags = role_tags(role) | {Tag.GROUP: name} | dict(tags or {})
            if identity:
                tags[Tag.FINGERPRINT] = identity
            if teacher := next((t for t in self.config.teachers if role == "teacher" and t.name == name), None):
                tags[Tag.FOLDS] = str(teacher.folds)
            run = self.tracking.start(name, params=params, tags=tags, parent=self.parent)
            log_inputs(run, self.config, self.prepared)
            self.runs[name] = run
            known[identity] = run.id
            self.ids.add(run.id)
            self.on_new(f"{name}#{identity}" if identity else name, run.id)
        return self.runs[name]

    def supersede(self, name: str, valid: str | None = None) -> None:
        """Tag the runs of this name as superseded, except that of the fingerprint `valid`: the report omits them."""
        self.links.pop(name, None)
        known = self.known.get(name, {})
        for identity in [identity for identity in known if identity != valid]:
            self._unfit.add(run_id := known.pop(identity))
            if self.tracking.has(run_id):
                self.tracking.client.set_tag(run_id, Tag.ROLE, "superseded")

    def _complete(self, name: str, jobs: Sequence[Job], own: str | None) -> LinkedRun | None:
        """A complete run that says what this one would say; None if there is none, or if its training has no result.

        own: the id of this command's own run of the same trainings, which is preferred.
        """
        if name not in self.identities or not all(job.done and not job.damage() for job in jobs):
            return None
        runs = self._complete_runs.get(self.identities[name], [])
        fit = [run for run in runs if run.info.run_id not in self._unfit]
        fit.sort(key=lambda run: run.info.run_id != own)
        return LinkedRun(self.tracking.client, fit[0]) if fit else None

    @cached_property
    def _complete_runs(self) -> dict[str, list[Any]]:
        return complete_runs(self.tracking.client, self.parent.experiment_id)

    def unlink(self, name: str) -> None:
        """Forget a complete run that turned out to say something else, so that `get` starts another one."""
        self._unfit.add(self.runs.pop(name).id)
        self.links.pop(name, None)

    def _restore_links(self) -> None:
        """Separate the links of this command's earlier tries from its own runs."""
        client, experiment_id = self.tracking.client, self.parent.experiment_id
        self._written = links_of(client.get_run(self.parent.id).data.tags)
        own = {run.info.run_id for run in children(client, experiment_id, self.parent.id)}
        for name, ids in self.known.items():
            for identity in [identity for identity, run_id in ids.items() if name and run_id not in own]:
                run_id = ids.pop(identity)
                self.ids.discard(run_id)
                if self.tracking.has(run_id):
                    self.links[name] = LinkedRun(client, client.get_run(run_id))

    def write_links(self) -> None:
        """Tag the parent with the links."""
        roles = {run.id: run.tags[Tag.ROLE] for run in self.links.values()}
        if roles != self._written:
            self.parent.set_tags(as_tags(roles, self._written) | (self._note() if roles else {}))
            self._written = roles

    def describe(self, text: str) -> None:
        """Set the description, in Markdown, that MLflow's page of the parent shows, in front of the linked runs."""
        self._description = text
        self.parent.set_tags(self._note())

    def _note(self) -> dict[str, str]:
        links = {run.id: run.name for run in self.links.values()}
        return note_of(self.parent.experiment_id, links, self._description)


def role_tags(role: str) -> dict[str, str]:
    return {Tag.ROLE: role, Tag.VERSION: __version__}


def run_params(
    config: Config, method: Method | None, searched: Collection[str] = (), job: Job | None = None, name: str = ""
) -> dict[str, Any]:
    """A run's parameters: the same keys for every run. Keys that a method does not use have their neutral value.

    method: None if the run has none, or several, as the ensemble and a sweep.
    searched: keys of the student's model that differ between trainings.
    job: the run's training; None if nothing is trained, as for a given teacher or the ensemble.
    name: of the run.
    """
    axes = method.model_dump() if method else dict.fromkeys(Method.model_fields, "")
    flat = {f"method.{k}": v for k, v in axes.items()}
    trained = job.training.model_dump() if job else dict.fromkeys(type(config.training).model_fields, "")
    flat |= {f"training.{k}": v for k, v in trained.items()}
    given = {t.name: t.model.pretrained or "" for t in config.teachers}
    flat |= {f"data.{split}": getattr(config.data, split) or "" for split in SPLITS}
    flat |= {
        "training.steps": job.steps if job else "",
        "seed": job.seed if job else "",
        "model": (job.model.pretrained or "from a config") if job else given.get(name, ""),
        "teachers": len(config.teachers),
        "teachers.names": ", ".join(teacher.name for teacher in config.teachers),
        "task": config.task.type,
        "task.max_length": config.task.max_length,
        "data": config.data.source,
    }
    if config.student.lora or any(t.recipe and t.recipe.lora for t in config.teachers):
        own = job.lora.model_dump() if job and job.lora else dict.fromkeys(LoraConfig.model_fields, "")
        flat |= {f"lora.{k}": v for k, v in own.items()}
    return flat | (searched_values(searched, job) if job else dict.fromkeys(searched, ""))


def searched_values(searched: Collection[str], job: Job) -> dict[str, Any]:
    """The values that a training's model has of the keys that differ between trainings; "" for none."""
    model = job.model.model_dump()
    return {key: _value(model, key) for key in searched}


def log_inputs(run: AnyRun, config: Config, prepared: Prepared) -> None:
    """Log every split as an input of the run."""
    for name, split in prepared.splits.items():
        spec = getattr(config.data, name)
        source = spec if kind_of(spec) else config.data.source  # a split can be a file of its own
        exists, is_code = Path(source).exists(), ":" in source and not source.startswith("builtin:")
        run.dataset(
            f"{config.name}-{name}",
            split.digest,
            source,
            split=name,
            rows=len(split.rows),
            kind="local" if exists or source.startswith("builtin:") else "code" if is_code else "hugging_face",
        )


def _value(model: dict[str, Any], key: str) -> Any:
    """The value of `model.a.b` in a model's settings; "" if there is none."""
    value: Any = model
    for step in key.split(".")[1:]:
        value = value.get(step) if isinstance(value, dict) else None
    return "" if value is None else value
