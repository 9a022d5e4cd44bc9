"""One MLflow run: its metrics, data sets, artifacts, model and end."""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal, Self

from raykd.common.redaction import redact, scrub
from raykd.common.units import counted
from raykd.tracking.also import Mirror
from raykd.tracking.logged_model import log_model
from raykd.tracking.mlflow_store import metric_name, one_line, safe_name
from raykd.tracking.patience import Patient
from raykd.tracking.tags import Tag

log = logging.getLogger(__name__)

FLUSH_SECONDS, FLUSH_POINTS = 1.0, 500  # metrics are sent after this time, or once there are so many
LAST_TRIES = 3  # when a run ends; MLflow itself repeats each for up to 4 minutes if a server is unavailable
FINISH_SECONDS = {"FINISHED": 300.0, "FAILED": 300.0, "KILLED": 20.0}  # a preempted process has little time

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Run:
    """One MLflow run. As a context manager it ends FINISHED, FAILED or KILLED.

    A thread sends the metrics, so that training never waits for MLflow. Points that cannot be sent are kept and sent
    later with their original time. MLflow drops points that it already has.
    """

    def __init__(
        self, client: Any, run_id: str, experiment_id: str, last_step: dict[str, int], mirrors: Sequence[Mirror] = ()
    ) -> None:
        """last_step: that MLflow has of each metric. mirrors: the same run in other trackers."""
        self.id, self.experiment_id, self.client = run_id, experiment_id, client
        # The sender keeps what MLflow does not take, and a run that ends gives up in time.
        self._direct = client.direct if isinstance(client, Patient) else client
        self._mirrors = list(mirrors)
        self._last_step = last_step  # by metric
        self._keys: dict[str, str] = {}  # caller's name of a metric -> its name in MLflow
        self._pending: list[Any] = []
        self._late = False  # MLflow did not accept the last batch
        self._not_finite: set[str] = set()
        self._end: tuple[str, str | None] | None = None
        self._stopping = False
        self._lock, self._wake, self._sending = threading.Lock(), threading.Event(), threading.Lock()
        self._sender = threading.Thread(target=self._send, name=f"mlflow-{run_id[:8]}", daemon=True)
        self._sender.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log points at an optimizer step. Points that a resumed run repeats are dropped, so steps only increase.

        A value that is not finite is logged as NaN, with one warning, because MLflow would turn inf into 1.8e308.
        """
        from mlflow.entities import Metric

        with self._lock:
            now = int(time.time() * 1000)
            if self._end:
                log.warning("MLflow run %s has ended: lost %s at step %d", self.id, dict(metrics), step)
                return
            for name, value in metrics.items():
                if name not in self._keys:
                    self._keys[name] = metric_name(name, self._keys.values(), self._last_step)
                key, value = self._keys[name], float(value)
                if step <= self._last_step.get(key, -1):
                    continue
                self._last_step[key] = step
                if not math.isfinite(value) and key not in self._not_finite:
                    log.warning("%s = %s at step %d: logged as NaN", key, value, step)
                    self._not_finite.add(key)
                self._pending.append(Metric(key, value if math.isfinite(value) else math.nan, now, step))
            if len(self._pending) >= FLUSH_POINTS:
                self._wake.set()

    def log_anew(self, metrics: Mapping[str, float]) -> None:
        """Log single values one step after the existing ones, so that MLflow shows the new values."""
        with self._lock:
            keys = [self._keys.get(name, name) for name in metrics]
            step = 1 + max((self._last_step.get(key, -1) for key in keys), default=-1)
        self.log(metrics, step)

    def _send(self) -> None:
        """The sender's thread: sends batches until the run ends, then its status."""
        tries = 0
        while True:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            end = self._end  # read before sending: nothing is appended after it is set
            if self._stopping and not end:
                self._stopping = not self._killed()
            sent = self.flush()
            tries += bool(end)
            if end and (sent or tries == LAST_TRIES):
                return self._terminate(*end)

    def flush(self) -> bool:
        """Send what was logged so far; False if MLflow does not take it now."""
        with self._sending:
            return self._flush()

    def _flush(self) -> bool:
        while batch := self._pending[:1000]:  # MLflow's limit for one call
            try:
                self._direct.log_batch(self.id, metrics=batch)
            except Exception as error:
                if not self._late:
                    log.warning("MLflow does not accept metrics now; they will be sent later (%s)", one_line(error))
                self._late = True
                return False
            with self._lock:
                del self._pending[: len(batch)]
            self._mirror(methodcaller("log", batch))
        if self._late:
            log.warning("MLflow accepts metrics again; nothing was lost")
        self._late = False
        return True

    def _mirror(self, act: Callable[[Mirror], Any]) -> None:
        for mirror in tuple(self._mirrors):
            try:
                act(mirror)
            except Exception as error:  # of a library, a network or a disk: MLflow has everything
                name = type(mirror).__name__
                log.warning("%s gets no more of run %s; MLflow does (%s)", name, self.id, one_line(error))
                self._mirrors.remove(mirror)

    def _terminate(self, status: str, reason: str | None) -> None:
        if lost := self._pending:
            steps, names = [point.step for point in lost], sorted({point.key for point in lost})
            span = f"{counted(len(lost), 'point')}, steps {min(steps)} to {max(steps)}"
            log.error("MLflow run %s lost %s: %s", self.id, span, ", ".join(names))
        try:
            if reason:
                self._direct.set_tag(self.id, Tag.FAILURE, scrub(reason))
            self._direct.set_terminated(self.id, status)
        except Exception as error:
            log.error("MLflow run %s is %s but still says RUNNING (%s)", self.id, status, one_line(error))
        self._mirror(methodcaller("end", status))

    def _killed(self) -> bool:
        try:
            self._direct.update_run(self.id, "KILLED")
        except Exception as error:
            log.warning("MLflow does not accept the status of run %s now (%s)", self.id, one_line(error))
            return False
        return True

    def stopping(self) -> None:
        """Set the status to KILLED within a second, because Ray kills a stopped job after 3 s.

        A later `finish` overrides it. Safe to call in a signal handler.
        """
        self._stopping = True

    def finish(self, status: Status = "FINISHED", reason: str | None = None) -> None:
        """Send the remaining points and set the status. A second call does nothing.

        If MLflow is unavailable, the log names what was lost; no error is raised, so a finished training stands.
        """
        with self._lock:
            if self._end:
                return
            self._end = (status, reason)
        self._wake.set()
        self._sender.join(FINISH_SECONDS[status])
        if self._sender.is_alive():
            log.error("MLflow does not answer: run %s has %d unsent points", self.id, len(self._pending))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """`finish`, with the status that a command's error says. None: it has finished."""
        if error is None:
            self.finish()
        else:  # KeyboardInterrupt and SystemExit (SIGTERM) are not Exceptions: someone stopped it
            self.finish("FAILED" if isinstance(error, Exception) else "KILLED", one_line(error))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.id, tags=[RunTag(safe_name(k), str(redact(v))) for k, v in tags.items()])

    def dataset(
        self,
        name: str,
        digest: str,
        source: str,
        *,
        split: str,
        rows: int,
        kind: Literal["local", "hugging_face", "code"] = "local",
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Log a data set as an input of the run. columns: MLflow's types ("string", "long") by name."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        sources = {
            "local": {"uri": source},
            "hugging_face": {"path": source},
            "code": {"tags": {"name": source}},
        }
        fields = [{"name": column, "type": type_} for column, type_ in (columns or {}).items()]
        data = Dataset(
            name=name,
            digest=digest[:36],  # MLflow's limit
            source_type=kind,
            source=json.dumps(redact(sources[kind])),
            schema=json.dumps({"mlflow_colspec": fields}) if fields else None,
            profile=json.dumps({"num_rows": rows}),
        )
        self.client.log_inputs(self.id, [DatasetInput(data, [InputTag("mlflow.data.context", split)])])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or the contents of a folder, as artifacts of the run (under `folder`)."""
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        send(self.id, str(path), folder)

    def artifact_json(self, value: object, name: str) -> None:
        """Log a JSON-serialisable value as the artifact `name`."""
        self.client.log_text(self.id, json.dumps(redact(value), indent=1, ensure_ascii=False), name)

    def model(self, folder: Path, name: str) -> str:
        """Log a saved model, see `log_model`. Returns its id."""
        step = max(self._last_step.values(), default=0)
        return log_model(self.client, self.id, self.experiment_id, step, folder, name)
