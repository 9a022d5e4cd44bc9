"""Whether the models fit the task, the data and one another: told before anything is trained."""

import difflib
import json
import logging
from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc
import transformers

from raykd.common.errors import ConfigError
from raykd.common.hashing import fingerprint
from raykd.config.schema import Config, ModelConfig, TeacherConfig
from raykd.data.encoding import Encoded, id_column
from raykd.models.loading import (
    OTHER_PROBLEMS,
    POSITIONS_AFTER_PADDING,
    is_fine_tuned,
    load_config,
    model_folder,
    weight_shapes,
)
from raykd.tasks import Task

log = logging.getLogger(__name__)


def check_model(model: ModelConfig, digest: str, config: Config, task: Task, key: str) -> None:
    """The config's values are ones that the model has, its weights fit them, and a row has room in it.

    digest: the model's; what was found in order before is not loaded again, which would take seconds.
    """
    _check_values(model, task, key)
    _check_positions(model, config, task, key)
    if model.trust_remote_code:
        return  # its class is its author's
    identity = fingerprint([digest, task.auto_model, task.label_names, transformers.__version__])
    checked = config.store / "checked" / identity
    if checked.exists():
        return
    expected, given = weight_shapes(model, task, key)
    for name, shape in given.items():
        if name in expected and shape != expected[name]:
            raise ConfigError(
                f"{key}.config" if model.config else key,
                model.config or model.pretrained,
                f"the weights of {model.pretrained} do not fit it: {name} is {shape}, not {expected[name]}",
                "Remove the values that change its shape, take a model without this head, or train from scratch",
            )
    checked.parent.mkdir(exist_ok=True)
    checked.touch()


def _check_values(model: ModelConfig, task: Task, key: str) -> None:
    for name in {"num_labels", "id2label", "label2id"} & model.config.keys():
        reason, hint = "the model's classes are the task's", "Remove it, and name the classes in task.labels"
        raise ConfigError(f"{key}.config.{name}", model.config[name], reason, hint)
    known = type(load_config(model, task, key))()
    for name in model.config:
        if not hasattr(known, name) and not model.trust_remote_code:
            near = difflib.get_close_matches(name, known.to_dict(), 1, 0.5)
            hint = f"Did you mean {near[0]}?" if near else "See the model's documentation"
            raise ConfigError(f"{key}.config.{name}", model.config[name], f"{known.model_type} has no such value", hint)


def _check_positions(model: ModelConfig, config: Config, task: Task, key: str) -> None:
    """A row of max_length tokens must have a place in the model for each."""
    loaded = load_config(model, task, key)
    places = getattr(loaded, "max_position_embeddings", None) or 0
    if loaded.model_type in POSITIONS_AFTER_PADDING:
        places -= (loaded.pad_token_id or 0) + 1
    absolute = getattr(loaded, "position_biased_input", True)  # DeBERTa's are relative
    length = config.task.max_length or 0
    if task.processor == "tokenizer" and absolute and 0 < places < length:
        raise ConfigError("task.max_length", length, f"{key} has {places} positions", f"Use at most {places}")


def check_teachers(config: Config, task: Task, models: Mapping[str, ModelConfig]) -> None:
    """A teacher without a recipe is a checkpoint fine-tuned for this task, with its labels in their order.

    models: those that can be had, by key.
    """
    named: dict[str, list[str]] = {}
    for teacher in config.teachers:
        key = f"teachers.{teacher.name}.model"
        if teacher.recipe is not None or key not in models:
            continue
        if not is_fine_tuned(teacher.model, task, key):
            raise ConfigError(
                key,
                teacher.model.pretrained or teacher.model.config,
                f"it is neither a checkpoint fine-tuned for {config.task.type} nor has it a recipe",
                f"Give a fine-tuned checkpoint, or add `recipe: {{}}` to train {teacher.name} here",
            )
        if task.label_names:
            _check_problem(teacher, key)
            _check_labels(teacher, task, key, named)
    if config.method.weighting == "correctness" and (len(config.teachers) == 1 or config.method.teacher):
        log.warning("method.type: with one teacher, weighted distillation is plain KD: W has nothing to act on")


def _check_problem(teacher: TeacherConfig, key: str) -> None:
    """Its logits are those of classes of which one is right: the softmax of others means nothing."""
    folder = model_folder(teacher.model, key)
    assert folder is not None
    problem = json.loads((folder / "config.json").read_text()).get("problem_type")
    if problem in OTHER_PROBLEMS:
        raise ConfigError(
            key,
            teacher.model.pretrained,
            f"it was trained for another problem (problem_type {problem} in its config.json)",
            f"Add `recipe: {{}}` to train {teacher.name} here, or use a teacher that gives each row one class",
        )


def _check_labels(teacher: TeacherConfig, task: Task, key: str, named: dict[str, list[str]]) -> None:
    """`named`: the classes of the teachers before this one that name them; this one's are added."""
    folder = model_folder(teacher.model, key)
    assert folder is not None
    saved = json.loads((folder / "config.json").read_text())
    names = {int(i): n for i, n in (saved.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()}
    theirs, ours, whose = [names[i] for i in sorted(names)], list(task.label_names), "the task"
    if len(theirs) != len(ours):
        raise ConfigError(
            key,
            teacher.model.pretrained,
            f"it has {len(theirs)} labels ({', '.join(theirs)}), the task {len(ours)} ({', '.join(ours)})",
            "Use a teacher of this task, or mend task.labels",
        )
    if all(n in (f"LABEL_{i}", str(i)) for i, n in enumerate(theirs)):
        return  # nothing to compare
    if all(n == str(i) for i, n in enumerate(ours)):  # the data only numbers them: compare the teachers
        whose, ours = next(((f"teacher {n}", labels) for n, labels in named.items()), (whose, theirs))
    named[teacher.name] = theirs
    a, b = ([n.lower() for n in labels] for labels in (theirs, ours))
    if a != b:
        what = "another order of labels" if set(a) == set(b) else "other labels"
        raise ConfigError(
            key,
            teacher.model.pretrained,
            f"it has {what} ({', '.join(theirs)}) than {whose} ({', '.join(ours)})",
            "Use a teacher of the same labels; where the data names its classes, task.labels may take any order",
        )


def check_vocabulary(
    model: ModelConfig, task: Task, processor: object, splits: Mapping[str, Encoded], key: str
) -> None:
    """Every token has an embedding. A tokenizer may know more than a model has, if the data holds none of them."""
    size = getattr(load_config(model, task, key), "vocab_size", None)
    if task.processor != "tokenizer" or size is None or len(processor) <= size:  # type: ignore[arg-type]
        return
    for encoded in splits.values():
        tokens = encoded.open().select_columns("input_ids").with_format("arrow")[:]["input_ids"]
        largest = pc.max(tokens.combine_chunks().flatten()).as_py()
        if largest >= size:
            reason = f"token {largest} of its tokenizer has no embedding: the model has {size}"
            shown = model.tokenizer or model.pretrained
            raise ConfigError(f"{key}.tokenizer", shown, reason, "Use the model's own tokenizer, or set its vocab_size")


def check_alignment(key: str, teacher: ModelConfig, theirs: Mapping[str, Encoded], ours: Mapping[str, Encoded]) -> None:
    """Decisions over positions only mean the same if teacher and student cut text into the same tokens."""
    for split in theirs:
        if theirs[split].digest == ours[split].digest:  # the same rows through the same tokenizer
            continue
        a, b = theirs[split].open(), ours[split].open()
        same = len(a) == len(b) and np.array_equal(id_column(a, "row_id"), id_column(b, "row_id"))
        if not same or any(a[c][:] != b[c][:] for c in ("length", "context_start", "token_starts", "token_ends")):
            raise ConfigError(
                key,
                teacher.pretrained or teacher.tokenizer,
                "its tokenizer cuts the text into other tokens than the student's, so that their "
                "answer positions would not line up",
                "Use a teacher and a student of one tokenizer",
            )
