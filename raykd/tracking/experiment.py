"""Access to MLflow. Only the driver process writes to it, so processes cannot race and only it needs credentials.

Training workers send their metrics to the driver. Everything goes through `MlflowClient`, never through the
fluent API's global active run.
"""

import contextlib
import getpass
import json
import logging
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykd.common.errors import ConfigError
from raykd.common.hashing import fingerprint
from raykd.common.redaction import redact
from raykd.tracking.also import Mirror, Opener
from raykd.tracking.mlflow_store import children, connect, one_line, safe_name, search
from raykd.tracking.patience import Patient
from raykd.tracking.run import Run
from raykd.tracking.tags import Tag

log = logging.getLogger(__name__)

# Otherwise MLflow's page of the experiment opens on traces of language models, which raykd does not log.
_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
_DIGEST, _MODEL_ID = "raykd.model", "raykd.model_id"  # a model version's tags


def source_tags() -> dict[str, str]:
    """Tags in which MLflow shows who ran what: the command line and the user."""
    program, *arguments = sys.argv or [""]
    ours = Path(program).name == "raykd" or Path(program).parent.name == "raykd"  # `raykd ...`, `python -m raykd ...`
    command = shlex.join(["raykd", *arguments]) if ours else program
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container can run under a number without a name
        user = ""
    tags = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL", "mlflow.user": user}
    return {name: value for name, value in tags.items() if value}


def _text(value: object) -> str:
    """A parameter's value. A long one is truncated and ends in a fingerprint, so that values can still be compared."""
    text = str(redact(value))
    return text if len(text) <= 6000 else f"{text[:5900]}... ({len(text)} characters, {fingerprint(text)})"


def _number(text: str) -> float | str:
    """The number that a parameter's text says, or the text. MLflow returns only texts."""
    try:
        return float(text)
    except ValueError:
        return text


class Tracking:
    """One experiment in one MLflow store. Creates them if they do not exist."""

    def __init__(self, uri: str, experiment: str, also: Sequence[Opener] = ()) -> None:
        """also: open each run in another tracker, too."""
        self.uri, self._also = uri, also
        self.client, artifacts = connect(uri)
        try:
            self.experiment_id = self._experiment(experiment, artifacts)
        except ConfigError:
            raise
        except Exception as error:
            hint = "A secured server needs MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise ConfigError("tracking.uri", uri, f"refused ({one_line(error)[:250]})", hint) from None
        if not uri.startswith("sqlite:"):
            self.client = Patient(self.client)

    def hurry(self) -> None:
        """Wait no more for a server that is away, because the command is ending."""
        if isinstance(self.client, Patient):
            self.client.hurry()

    def _experiment(self, name: str, artifacts: str | None) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name, artifacts, tags=_TRAINING))
            except Exception:  # of a type that differs between stores
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:  # otherwise another driver has created it
                    raise
        if experiment.lifecycle_stage != "active":
            hint = "Restore it in MLflow or use another name"
            raise ConfigError("tracking.experiment", name, "deleted in MLflow", hint)
        return str(experiment.experiment_id)

    def start(self, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], parent: Run | None = None) -> Run:
        """A new run, RUNNING; `params` are flat."""
        from mlflow.entities import Param

        tags = {safe_name(key): str(redact(value)) for key, value in {**source_tags(), **tags}.items()}
        if parent:
            tags["mlflow.parentRunId"] = parent.id
        # A parent that is resumed can be in another experiment: one that was renamed since.
        experiment_id = parent.experiment_id if parent else self.experiment_id
        run_id = self.client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        entries = [Param(safe_name(key), _text(value)) for key, value in params.items()]
        self.client.log_batch(run_id, params=entries)
        mirrors = self._open(name, run_id, params, parent.id if parent else run_id)
        return Run(self.client, run_id, experiment_id, {}, mirrors)

    def _open(self, name: str, run_id: str, params: Mapping[str, Any], group: str) -> list[Mirror]:
        """The run in the other trackers. One that refuses it is left out, with a warning."""
        mirrors = []
        shown = {safe_name(key): _number(_text(value)) for key, value in params.items()}
        for opener in self._also:
            try:
                mirrors.append(opener(name, run_id, shown, group))
            except Exception as error:  # a library's, a network's; MLflow has the run
                log.warning("run %s is in MLflow only (%s)", name, one_line(error))
        return mirrors

    def has(self, run_id: str) -> bool:
        """Whether the store has this run and it is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def resume(self, run_id: str) -> Run:
        """Set an earlier run to RUNNING again. Points that it already has are not logged twice."""
        run = self.client.get_run(run_id)
        self.client.update_run(run_id, status="RUNNING")
        for tag in {Tag.FAILURE, Tag.STATE} & run.data.tags.keys():
            self.client.delete_tag(run_id, tag)
        # MLflow keeps the point with the largest step as a metric's latest one.
        last_step = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        group = run.data.tags.get("mlflow.parentRunId", run_id)
        mirrors = self._open(run.info.run_name, run_id, run.data.params, group)
        return Run(self.client, run_id, run.info.experiment_id, last_step, mirrors)

    def end_killed(self, folder: str) -> None:
        """Set the runs of commands to KILLED that were killed before they could say so.

        folder: the tag of a folder whose lock the caller holds, so that no other command is running in it.
        """
        wanted = f"attributes.status = 'RUNNING' and tags.`{Tag.FOLDER}` = '{folder}'"
        try:
            for run in list(search(self.client, self.experiment_id, wanted)):
                for one in (*children(self.client, self.experiment_id, run.info.run_id), run):
                    if one.info.status == "RUNNING":
                        self.client.set_terminated(one.info.run_id, "KILLED")
        except Exception as error:  # such as another user's runs; this command has its own
            log.warning("runs of killed commands still say RUNNING in MLflow (%s)", one_line(error))

    def drop_twins(self, parent: Run, known: Collection[str]) -> None:
        """Delete child runs that raykd created but did not record.

        They exist if MLflow's answer was lost, so that the run was created again, or if a driver was killed before it
        recorded them.
        """
        for run in list(children(self.client, parent.experiment_id, parent.id)):
            if run.info.run_id not in known and run.data.tags.get(Tag.ROLE, "superseded") != "superseded":
                log.warning("MLflow had run %s twice; deleted %s", run.info.run_name, run.info.run_id)
                self.client.delete_run(run.info.run_id)

    def registered(self, name: str, alias: str, digest: str) -> tuple[str, str] | None:
        """The version with the alias and the id of its logged model, if it is the model with that digest."""
        from mlflow.exceptions import MlflowException

        try:
            version = self.client.get_model_version_by_alias(name, alias)
            if version.tags.get(_DIGEST) != digest:
                return None
            self.client.get_logged_model(version.tags[_MODEL_ID])  # raises if it was deleted
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no alias
                raise
            return None
        return str(version.version), version.tags[_MODEL_ID]

    def register(self, model_id: str, name: str, alias: str, digest: str = "") -> str:
        """Register a logged model as the newest version of the model `name`, and move the alias to it.

        digest: of its weights and config, which `registered` compares.
        """
        from mlflow.exceptions import MlflowException

        model = self.client.get_logged_model(model_id)
        with contextlib.suppress(MlflowException):  # it exists; any other error recurs in create_model_version
            self.client.create_registered_model(name)
        # Not "models:/ID": on sqlite, MLflow looks that up in the process's global store instead of this one.
        source = (name, model.artifact_location, model.source_run_id)
        tags = {_DIGEST: digest, _MODEL_ID: model_id}  # not every store keeps MLflow's own link to the model
        options = {"model_id": model_id, "tags": tags, "await_creation_for": 0}
        version = self.client.create_model_version(*source, **options).version
        if self.uri.startswith("sqlite:"):  # a server sets this tag itself; MLflow's page of the model shows it
            versions = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
            versions.append({"name": name, "version": version})
            self.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(versions)})
        self.client.set_registered_model_alias(name, alias, version)
        return str(version)
