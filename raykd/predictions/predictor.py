"""A model that is ready to predict: its folder, its task, its processor and its weights."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pydantic import ValidationError

from raykd.common.entry_points import is_declared
from raykd.common.errors import ConfigError
from raykd.config.data import ignored_by
from raykd.config.messages import user_error
from raykd.config.schema import DataConfig, ModelConfig, TaskConfig
from raykd.data.choices import join_columns, read_choices, single_columns
from raykd.data.class_names import some
from raykd.data.columns import check_inputs, make_columns, open_paths, rename_columns
from raykd.data.encoding import encode
from raykd.data.loading import row_ids
from raykd.data.split import Split
from raykd.logits.keep import ALL, SCORES
from raykd.models.configs import OTHER_PROBLEMS
from raykd.models.folders import model_folder, read_about
from raykd.models.inputs import InputRows
from raykd.models.loading import default_dtype, load_whole
from raykd.models.opened import OpenedModel
from raykd.models.prediction import Inference, predict_rows
from raykd.predictions.writing import are_prompts, written
from raykd.tasks import TASKS, make_task, task_class

log = logging.getLogger(__name__)
KEY = "model"  # of the model in a `PredictConfig`, for errors
CHUNK = 10_000  # examples whose logits are in memory at a time


class Predictor:
    """Predicts what one model says of rows that need no labels.

    model: a student's or a teacher's folder, or a hub id.
    settings: values of the config's `task` section. A student's folder knows its own (`raykd.json`); of another model
        the type of the task follows from its architecture, and the rest has the task's defaults.
    device: "cpu", "cuda" or None, which takes a GPU if there is one.

    Raises ConfigError if there is no whole model, or if no task fits it.
    """

    def __init__(
        self, model: ModelConfig, settings: Mapping[str, Any] | None = None, device: str | None = None
    ) -> None:
        folder = model_folder(model, KEY)
        if folder is None:
            raise ConfigError(KEY, model.config, "it has no weights yet", "Give the folder of a trained model")
        about = read_about(folder)
        opened = OpenedModel(model, KEY, make_task(TaskConfig(type="text-classification")), folder)
        saved = about.get("task", {})
        kind = (settings or {}).get("type") or saved.get("type")
        given_type = (settings or {}).get("type")
        if (
            kind
            and ":" in kind
            and not given_type
            and not Path(str(model.pretrained)).is_dir()
            and not is_declared("task.type", kind)
        ):
            reason = "a model of the hub names this code, which raykd runs only if you say so"
            raise ConfigError("task.type", kind, reason, f"Give task.type={kind} if you trust it")
        ignored = ignored_by(kind) if kind else {}  # of another type's settings, and earlier versions saved all
        given = {name: value for name, value in saved.items() if name not in ignored} | dict(settings or {})
        given["type"] = given.get("type") or _task_of(opened)
        names = [name for _, name in sorted((int(i), n) for i, n in opened.saved_config.get("id2label", {}).items())]
        names = names or [f"LABEL_{i}" for i in range(opened.saved_classes)]  # transformers does not save its defaults
        try:
            config = TaskConfig.model_validate(given)
        except ValidationError as error:
            raise user_error(error, TaskConfig, "task") from None
        if config.labels:
            if len(config.labels) != len(names):
                reason = f"they are {len(config.labels)}, and the model has {len(names)} classes"
                raise ConfigError("task.labels", ", ".join(config.labels), reason, "Name each of its classes once")
            names = config.labels
        if not task_class(config.type).named_classes:
            names = []  # transformers' defaults, which mean nothing
        self.task = make_task(config, names)
        opened = OpenedModel(model, KEY, self.task, folder)
        self.calibration: dict[str, float] = about.get("calibration", {})
        self._columns: dict[str, str | list[str]] = about.get("columns", {})
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = opened.processor
        self._model = load_whole(opened, self.processor, self.device)

    def inputs(
        self, rows: Dataset, columns: Mapping[str, str | list[str]], source: DataConfig | None = None
    ) -> Dataset:
        """The columns that the task reads, under its names, without optional ones that the model did not learn from.

        Raises ConfigError if one is missing or of another kind, or if the task has no column that `columns` names.

        columns: the data's names of the task's columns, as in `data.columns`. For those that are not given, the names
            in the student's own data, and then the task's, are tried.
        source: where the rows come from, as its split `test`; relative paths of pictures start there. None: they start
            at the current folder.
        """
        there = rows.column_names
        roles = {*self.task.columns, *self.task.optional_columns}
        for role in columns.keys() - roles - {self.task.label_column}:
            reason = f"the task has no such column ({', '.join((*self.task.columns, *self.task.optional_columns))})"
            raise ConfigError(f"data.columns.{role}", ", ".join(_listed(columns[role])), reason, "Remove or rename it")
        named = {role: name for role, name in self._columns.items() if {*_listed(name)} <= {*there}} | dict(columns)
        for role in self._needed():
            name = named.get(role, role)
            if not {*_listed(name)} <= {*there}:
                own = self._columns.get(role, role) if role not in columns else name
                shown, reason = ", ".join(_listed(own)), "the rows have no such column"
                if own != name:
                    reason = f"the rows have neither this column, which the model was trained on, nor {role}"
                if role not in self.task.columns:
                    reason += ", and the model was trained with it"
                hint = f"Set data.columns.{role} to one of them"
                raise ConfigError(f"data.columns.{role}", shown, f"{reason}; they have {some(there)}", hint)
        known = {role: name for role, name in named.items() if role in roles}
        data = (source or DataConfig(source="rows")).model_copy(update={"columns": known})
        prompt = named.get("prompt", "prompt")
        others = [named.get(role, role) for role in ("messages", "completion", "text") if role in roles]
        if self.task.predicts_tokens and isinstance(prompt, str) and prompt in there and not {*others} & {*there}:
            if "messages" in self._columns:
                reason = "the model was trained on messages, as its chat template writes them, and not on plain prompts"
                hint = "Give a column messages, such as [{role: user, content: ...}] in each row"
                raise ConfigError("data.columns.prompt", prompt, reason, hint)
            inputs = rows.select_columns([prompt]).rename_columns({prompt: "prompt"} if prompt != "prompt" else {})
            check_inputs(inputs, data, self.task, "the rows")
            return inputs
        joined = join_columns(rows, data, self.task, "the data", labelled=False)
        data = single_columns(data)
        inputs = rename_columns(joined, data, self.task, "the data", labelled=False)
        if others := [role for role in self._untrained_columns(columns) if role in inputs.column_names]:
            log.info("not read, because the model was trained without: %s", ", ".join(others))
            inputs = inputs.remove_columns(others)
        if self.task.made_columns:
            inputs = make_columns(inputs, row_ids(inputs, self.task), self.task)
        inputs = open_paths(inputs, data, self.task, "test")
        check_inputs(inputs, data, self.task, "the rows")
        if self.task.choice_column:
            read_choices({"test": inputs}, self.task, data)  # checks them
        return inputs

    def _needed(self) -> list[str]:
        """The task's names of the columns that the rows must have: also the optional ones that the model learnt from,
        because without them it would see other inputs than in its training."""
        learnt = [role for role in self._optional() if role in self._columns]
        return [*(role for role in self.task.columns if role not in self.task.made_columns), *learnt]

    def _untrained_columns(self, columns: Mapping[str, Any]) -> list[str]:
        """The optional columns that the model did not learn from, if that is known, and `columns` does not name."""
        known = self._columns and not self.task.identity_columns  # else the note of the columns has those alone
        return [role for role in self._optional() if known and role not in {*self._columns, *columns}]

    def _optional(self) -> list[str]:
        """The optional columns that are inputs, unless the data has one of several groups of them."""
        optional = () if self.task.column_choices else self.task.optional_columns
        return [role for role in optional if role not in self.task.scoring_columns]

    def predict(self, rows: Dataset, workers: int | None = None) -> Iterator[tuple[Dataset, list[dict[str, Any]]]]:
        """Yield up to CHUNK rows after the other, each with a dict of predictions (`Task.predictions`).

        rows: as `inputs` returns them.
        workers: processes that tokenize; None: half of the cores.

        Raises ConfigError for rows that cannot be encoded.
        """
        if not len(rows):
            return
        if are_prompts(rows, self.task):
            for start in range(0, len(rows), CHUNK):
                chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
                yield chunk, written(chunk, start, self.task, self._model, self.processor, self.device)
            return
        self.task.check_rows(rows, "test", labelled=False)
        with tempfile.TemporaryDirectory(prefix="raykd-predict-") as scratch:
            # Nothing reuses the encoded rows, so their identity can be any.
            split = Split("test", rows, row_ids(rows, self.task), "rows to predict", labelled=False)
            encoded = encode(split, self.task, self.processor, Path(scratch), workers).open()
            for note in self.task.notes(encoded):
                log.info("%s", note)
            inputs_of = InputRows(encoded, self.task)
            example = np.asarray(encoded.select_columns("example").with_format("numpy")[:]["example"])
            for start in range(0, len(rows), CHUNK):
                chunk = rows.select(range(start, min(start + CHUNK, len(rows))))
                positions = np.flatnonzero((example >= start) & (example < start + len(chunk)))
                yield chunk, self._predict(chunk, encoded, inputs_of, positions, example[positions] - start)

    def _predict(
        self, chunk: Dataset, encoded: Dataset, inputs_of: InputRows, positions: np.ndarray, example: np.ndarray
    ) -> list[dict[str, Any]]:
        """Predictions of some rows.

        inputs_of: the encoded rows, as models take them.
        positions: of their encoded rows.
        example: (len(positions),) the row in `chunk` of each.
        """
        tokens = self.task.predicts_tokens
        dtype, keep = default_dtype(self.device) if tokens else "float32", SCORES if tokens else ALL
        inference = Inference([self._model], self.task, self.processor, self.device, dtype, keep)
        logits = predict_rows(inference, inputs_of, positions)
        own = encoded.select(positions).remove_columns("example").add_column("example", example.tolist())
        return self.task.predictions(logits, own, chunk, self.calibration)


def _listed(name: str | list[str]) -> list[str]:
    return [name] if isinstance(name, str) else name


def _task_of(opened: OpenedModel) -> str:
    """The task that a model's head is for, by its architecture and by what its config says of its logits."""
    architectures = opened.saved_config.get("architectures") or []
    problem = opened.saved_config.get("problem_type")
    if problem is None and opened.saved_classes == 1:  # as transformers reads it
        problem = "regression"
    for name, task in TASKS.items():
        if task.problem_type == (problem if problem in OTHER_PROBLEMS else None) and any(
            architecture.endswith(task.architectures or task.auto_model.removeprefix("AutoModel"))
            for architecture in architectures
        ):
            return name
    reason = (
        f"its architecture, {', '.join(architectures) or 'which its config.json does not name'}, is of no task here"
    )
    raise ConfigError(KEY, opened.source, reason, f"Give a model for one of {', '.join(TASKS)}, or name task.type")
