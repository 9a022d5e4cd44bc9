"""`raykd predict`: a model's predictions of a file or data set, as parquet, CSV or JSON lines."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from rich.console import Console

from raykd.common.errors import ConfigError
from raykd.common.readers import reading_model
from raykd.common.units import counted
from raykd.config.load import override, parse_override, validate
from raykd.config.schema import PredictConfig
from raykd.data.files import kind_of
from raykd.data.source import load_rows, quiet_datasets
from raykd.models.folders import model_of
from raykd.predictions.output import open_output
from raykd.predictions.predictor import Predictor

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


def predict(model: str, data: str, overrides: Sequence[str], output: Path | None, console: Console) -> None:
    """Predict every row and write the rows with their predictions. Raises ConfigError.

    model: a model's folder or hub id, or a run's folder, whose best student is taken.
    data: a file, a folder or a hub id, of whose split `data.test` (default: test) the rows are.
    overrides: `key=value` of the sections `model`, `data` and `task`.
    output: .parquet, .csv or .jsonl; None: JSON lines on the standard output.
    console: for what is not a prediction.
    """
    began = time.monotonic()
    config = read_config(model, data, dict(map(parse_override, overrides)))
    rows = read_rows(config)
    try:
        with open_output(output, sys.stdout, rows.features.arrow_schema) as out:
            for own, predictions in _chunks(config, rows, console):
                kept = [name for name in own[0] if name not in predictions[0]]
                out.write(_merged(own, predictions), kept)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has enough: `raykd predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which Python flushes when it ends
        return
    where = f" in {output}" if output else ""
    seconds = time.monotonic() - began
    console.print(f"{counted(len(rows), 'prediction')}{where}, {seconds:.1f} s", highlight=False, soft_wrap=True)


def read_rows(config: PredictConfig) -> Dataset:
    """The rows to predict, with all of their columns. Raises ConfigError."""
    with quiet_datasets():
        return load_rows(config.data, "test")


def predicted(config: PredictConfig, rows: Dataset, console: Console) -> Iterator[Rows]:
    """Yield the rows in chunks, each row's columns with the predictions. Raises ConfigError.

    A column of the rows that is called like one of the predictions gives way to it. Pictures are left out.
    """
    for own, predictions in _chunks(config, rows, console):
        yield _merged(own, predictions)


def _merged(own: Rows, predictions: Rows) -> Rows:
    return [row | prediction for row, prediction in zip(own, predictions, strict=True)]


def _chunks(config: PredictConfig, rows: Dataset, console: Console) -> Iterator[tuple[Rows, Rows]]:
    """Yield chunks of the rows' own columns, and of their predictions."""
    with reading_model(Path(config.model.pretrained) if config.model.pretrained else None, "raykd predict"):
        predictor = Predictor(config.model, config.task)
        classes = f", {len(predictor.task.label_names)} classes" if predictor.task.label_names else ""
        about = f"{predictor.task.settings.type}{classes}, {counted(len(rows), 'row')}, on {predictor.device}"
        console.print(f"raykd predict: {about}", highlight=False, soft_wrap=True)
        inputs = predictor.inputs(rows, config.data.columns, config.data)
        pictures = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        kept, start = rows.remove_columns(pictures), 0
        for chunk, predictions in predictor.predict(inputs, config.data.workers):
            columns = kept.select(range(start, start + len(chunk))).with_format(None)[:] if kept.column_names else {}
            own = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            if start == 0 and (replaced := sorted(columns.keys() & predictions[0].keys())):
                text = "the rows' %s %s replaced by the model's"
                log.warning(text, " and ".join(replaced), "is" if len(replaced) == 1 else "are")
            own = own or [{"row": start + i} for i in range(len(chunk))]  # rows of pictures have nothing else to show
            yield own, predictions
            start += len(chunk)


def read_config(model: str, data: str, values: Mapping[str, Any]) -> PredictConfig:
    """The settings of a prediction. values: by dotted key; task.type and the like. Raises ConfigError."""
    tree: dict[str, Any] = {"model": {"pretrained": model_of(model)}, "data": {"source": data}, "task": {}}
    if data.startswith("builtin:") or (Path(data).is_file() and kind_of(data)):
        tree["data"]["test"] = "train"  # its only split
    for key, value in values.items():
        if key.partition(".")[0] not in tree or "." not in key:
            raise ConfigError(key, value, "a prediction has no such key", "Set keys of model., data. or task.")
    return validate(override(tree, values), PredictConfig)
