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
from raykd.data.labels import are_numerals, class_order, some
from raykd.data.loading import Split
from raykd.models.loading import (
    OTHER_PROBLEMS,
    POSITIONS_AFTER_PADDING,
    is_fine_tuned,
    load_config,
    model_folder,
    weight_shapes,
)
from raykd.tasks import Task
from raykd.tasks.image_classification import of_different_sizes
from raykd.tasks.pictures import close, in_mode, processed

log = logging.getLogger(__name__)
_LOOKED_AT = 16  # pictures


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


def check_teachers(config: Config, task: Task, models: Mapping[str, ModelConfig]) -> dict[str, tuple[int, ...]]:
    """A teacher without a recipe is a checkpoint fine-tuned for this task.

    models: those that are available, by key.

    Returns, by the same keys, for each of the task's classes its place among the teacher's outputs; only of teachers
    whose classes are in another order than the task's.
    """
    orders: dict[str, tuple[int, ...]] = {}
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
        if teacher.labels and not hasattr(task, "encoded_labels"):
            shown, reason = ", ".join(teacher.labels), "question answering has no classes"
            raise ConfigError(f"teachers.{teacher.name}.labels", shown, reason, "Remove it")
        if task.label_names:
            _check_problem(teacher, key)
            order = _order_of_classes(teacher, task, key, named)
            if order != tuple(range(len(order))):
                orders[key] = order
    if config.method.weighting == "correctness" and (len(config.teachers) == 1 or config.method.teacher):
        log.warning("method.type: with one teacher, weighted distillation is plain KD: W has nothing to act on")
    return orders


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


def _order_of_classes(teacher: TeacherConfig, task: Task, key: str, named: dict[str, list[str]]) -> tuple[int, ...]:
    """For each of the task's classes its place among the teacher's outputs.

    named: the classes of earlier teachers whose names cannot be compared with the task's; this one's are added.
    """
    theirs, ours = _class_names(teacher, key), list(task.label_names)
    where, shown = key, teacher.model.pretrained
    if teacher.labels is not None:
        where, shown = f"teachers.{teacher.name}.labels", ", ".join(teacher.labels)
    if len(theirs) != len(ours):
        raise ConfigError(
            where,
            shown,
            f"it has {len(theirs)} labels ({some(theirs)}), the task {len(ours)} ({some(ours)})",
            "Use a teacher of this task, or mend task.labels",
        )
    if (order := class_order(theirs, ours)) is not None:
        return order
    fix = f"Set teachers.{teacher.name}.labels to the task's names in the order of this teacher's outputs"
    in_order = tuple(range(len(ours)))
    default = [f"LABEL_{i}" for i in in_order]
    numbers = [str(i) for i in in_order]
    if teacher.labels is None and theirs in (default, numbers):  # it names nothing
        if are_numerals(ours) and ours != sorted(ours, key=float):
            reason = f"it does not name its labels, and the task's ({some(ours)}) are not in the order of their numbers"
            raise ConfigError(where, shown, reason, fix)
        return in_order
    if teacher.labels is None and sorted(theirs) == sorted(default):
        # LABEL_1 is class 1 where classes are numbers; with other names nothing says what it is.
        if (order := class_order([name.removeprefix("LABEL_") for name in theirs], ours)) is not None:
            return order
        raise ConfigError(where, shown, f"its labels are numbered in another order ({some(theirs)})", fix)
    whose = "the task"
    # Where the data only numbers its classes, teachers can be compared with one another.
    if teacher.labels is None and ours in (numbers, ["False", "True"]):
        other = next(iter(named), None)
        named[teacher.name] = theirs
        if other is None or class_order(theirs, named[other]) == in_order:
            return in_order
        whose, ours = f"teacher {other}", named[other]
        fix = "Name the task's classes in task.labels, in the order of the data's numbers"
    what = "another order of labels" if class_order(theirs, ours) else "other labels"
    raise ConfigError(where, shown, f"it has {what} ({some(theirs)}) than {whose} ({some(ours)})", fix)


def _class_names(teacher: TeacherConfig, key: str) -> list[str]:
    """A given teacher's classes in the order of its outputs: as the user names them, or as its config does."""
    if teacher.labels is not None:
        return teacher.labels
    folder = model_folder(teacher.model, key)
    assert folder is not None
    saved = json.loads((folder / "config.json").read_text())
    if not (names := saved.get("id2label")):  # transformers' default
        return [f"LABEL_{i}" for i in range(saved.get("num_labels") or saved.get("_num_labels") or 2)]
    return [str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0]))]


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


def check_pictures(
    task: Task, processor: object, splits: Mapping[str, Split], encoded: Mapping[str, Encoded], key: str
) -> None:
    """Pictures have one size, and a model is fed what its own processor gives: compared on each split's first one."""
    if task.processor != "image_processor":
        return
    size: np.ndarray | None = None
    for name, split in splits.items():
        rows = encoded[name].open()
        column = rows.select_columns("shape").with_format("arrow")[:]["shape"]
        shapes = column.combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
        size = shapes[0] if size is None else size
        if (other := (shapes != size).any(1)).any():
            row = int(other.argmax())
            raise ConfigError(f"data.{name}", f"row {row}", *of_different_sizes(tuple(shapes[row]), tuple(size)))
        own = processed(processor, [in_mode(split.rows[0][task.columns[0]], processor)])[0]
        if not close(task.collate(rows[:1], processor).inputs["pixel_values"][0].numpy(), own):
            reason = f"the first picture of data.{name} comes out with other values than the processor itself gives"
            raise ConfigError(f"{key}.tokenizer", type(processor).__name__, reason, "Use another image processor")


def warn_of_dark_pictures(train: Split, task: Task) -> None:
    """12 bits of a microscope or scanner in a file of 16: scaled to 8 bits, 16 greys of 256 are left."""
    if task.processor != "image_processor":
        return
    pictures = train.rows.select(range(min(_LOOKED_AT, len(train.rows))))[task.columns[0]]
    highest = [int(np.asarray(picture).max()) for picture in pictures if picture.mode.startswith("I")]
    if highest and max(highest) < 2**12:
        log.warning(
            "data.train: the first %d pictures of 16 bits have no value above %d of 65535, so that they are nearly "
            "black in 8 bits: scale the data's values to all of 0..65535",
            len(highest),
            max(highest),
        )


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
