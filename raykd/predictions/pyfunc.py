"""A student as MLflow's "python function": `mlflow.pyfunc.load_model("models:/NAME@best").predict(frame)`."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raykd.config.schema import ModelConfig

if TYPE_CHECKING:
    import pandas


def write_description(folder: Path) -> None:
    """Write the file `MLmodel`, by which MLflow knows how to load what lies next to it."""
    loader = {"loader_module": __name__, "python_version": platform.python_version()}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": loader}}))


def _load_pyfunc(folder: str) -> "_Model":
    """Called by MLflow, with the folder of the model's files."""
    from raykd.predictions.predictor import Predictor

    return _Model(Predictor(ModelConfig(pretrained=folder)))


class _Model:
    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def predict(self, frame: "pandas.DataFrame", params: dict[str, Any] | None = None) -> "pandas.DataFrame":
        """The task's predictions (`Task.predictions`), with the frame's index.

        frame: the task's columns, under its names or those that the student's own data had.
        params: none are used; MLflow passes them.
        """
        import pandas
        from datasets import Dataset

        rows = self._predictor.inputs(Dataset.from_pandas(frame, preserve_index=False), {})
        found = [row for _, chunk in self._predictor.predict(rows) for row in chunk]
        return pandas.DataFrame(found, index=frame.index)
