"""The files of a run in MLflow, read where they are."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd.tracking.moved import local_artifacts


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of a run. All methods raise the errors of the artifact store.

    client: of the MLflow store.
    uri: of the MLflow store.
    address: of the run's artifacts, as MLflow has it.
    """

    client: Any
    uri: str
    run_id: str
    address: str

    def names(self) -> set[str]:
        """Of the files and folders at the top."""
        if local := self._local:
            return {path.name for path in local.iterdir()} if local.is_dir() else set()
        return {artifact.path for artifact in self.client.list_artifacts(self.run_id)}

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """A file's path. One on this machine is not copied: MLflow takes 40 ms for each."""
        if local := self._local:
            yield local / name
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(self.client.download_artifacts(self.run_id, name, folder))

    def json(self, name: str) -> dict[str, Any]:
        with self.open(name) as path:
            return json.loads(path.read_text())

    @property
    def _local(self) -> Path | None:
        return local_artifacts(self.uri, self.run_id, self.address)
