"""Pydantic's validation errors as one line that a user can act on."""

import difflib
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from raykd.common.entry_points import GROUPS, installed
from raykd.common.errors import ConfigError

INVALID = "invalid"
_NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}
# What transformers' Trainer, TRL, TextBrewer and common scripts call a key.
_OTHER_TOOLS = {
    **dict.fromkeys(("lr", "base_lr", "peak_lr"), "training.learning_rate"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), "training.epochs"),
    **dict.fromkeys(("max_steps", "num_train_steps", "num_steps", "total_steps"), "training.steps"),
    **dict.fromkeys(("train_batch_size", "per_device_train_batch_size", "bs"), "training.batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), "training.accumulation"),
    **dict.fromkeys(("fp16", "bf16", "amp", "mixed_precision"), "training.precision"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "warmup_proportion"), "training.warmup"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler_type"), "training.decay"),
    **dict.fromkeys(("grad_clip", "clip_grad_norm", "gradient_clip_val"), "training.max_grad_norm"),
    **dict.fromkeys(("eval_steps", "evaluation_steps", "val_check_interval"), "training.eval_every"),
    "metric_for_best_model": "training.select",
    **dict.fromkeys(("early_stopping", "early_stopping_patience"), "training.patience"),
    **dict.fromkeys(("t", "temp", "tau", "kd_temperature", "distillation_temperature"), "method.temperature"),
    **dict.fromkeys(("kd_alpha", "alpha_ce", "alpha_kd", "kd_weight", "kd_ratio"), "method.alpha"),
    "label_smoothing_factor": "method.epsilon",
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_len", "model_max_length"), "task.max_length"),
    **dict.fromkeys(("doc_stride", "document_stride"), "task.stride"),
    **dict.fromkeys(("num_labels", "label_names", "class_names", "id2label"), "task.labels"),
    **dict.fromkeys(("dataset", "dataset_name", "data_path", "data_dir"), "data.source"),
    **dict.fromkeys(("train_file", "train_split"), "data.train"),
    **dict.fromkeys(("validation_file", "eval_file", "eval_split", "dev"), "data.validation"),
    **dict.fromkeys(("test_file", "test_split"), "data.test"),
    **dict.fromkeys(("output_dir", "save_dir"), "output"),
    **dict.fromkeys(("teacher_model", "teacher_model_name_or_path"), "teachers.N.model"),
    **dict.fromkeys(("student_model", "model_name_or_path"), "student.model"),
    **dict.fromkeys(("n_trials", "num_trials", "num_samples"), "search.trials"),
}


def invalid(value: object, reason: str, hint: str, key: str = "") -> PydanticCustomError:
    """An error for a section's validator to raise. Pydantic adds the section's place in the YAML.

    value: the invalid one.
    reason: why it is invalid.
    hint: how to fix it.
    key: inside the section; "": the section itself.
    """
    return PydanticCustomError(
        INVALID, "{reason}. {hint}", {"key": key, "value": str(value), "reason": reason, "hint": hint}
    )


def user_error(error: ValidationError, model: type[BaseModel], prefix: str = "") -> ConfigError:
    """The first of pydantic's errors as key, value, reason and hint.

    An unknown key is reported before a missing one, because it can be that key, misspelt.

    model: the class that failed to validate.
    prefix: its key in the YAML, if it is not the root.
    """
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    if isinstance(first["input"], dict):  # of a text or a section, the section is meant
        place = first["loc"][:-1]
        first = next(
            (e for e in errors if e["loc"][: len(place)] == place and len(e["loc"]) > len(first["loc"])), first
        )
    # The location also has a union's branches, such as "int" and "list[int]" of student.seed.
    location = tuple(step for step in first["loc"] if isinstance(step, int) or not _is_branch(step))
    given = first.get("ctx", {})
    key = ".".join(filter(None, [prefix, *map(str, location), str(given.get("key", ""))])) or "CONFIG"
    if first["type"] == INVALID:
        return ConfigError(key, given["value"], given["reason"], given["hint"])
    section = _section(model, location[:-1])
    field = section.model_fields.get(str(location[-1])) if location else None
    meaning = field.description if field and field.description else "see raykd check --help"
    if first["type"] == "extra_forbidden":
        hint = _similar_key(str(location[-1]), section, model)
        return ConfigError(key, first["input"], "there is no such key", hint)
    if first["type"] == "missing":
        missing = [".".join(filter(None, [prefix, *map(str, e["loc"])])) for e in errors if e["type"] == "missing"]
        if len(missing) > 1:
            hint = "Add them; raykd check --help lists all keys"
            return ConfigError(", ".join(missing), "(missing)", "they are required", hint)
        return ConfigError(key, "(missing)", "it is required", f"Add it: {meaning}")
    packages = installed(key) if key in GROUPS else {}
    reason, hint = _explain(first["type"], first["input"], first["msg"], field, packages)
    return ConfigError(key, first["input"], reason, f"{hint} ({meaning})" if field else hint)


def _similar_key(name: str, section: type[BaseModel], root: type[BaseModel]) -> str:
    """A hint for an unknown key: the key that other tools call so, that other sections have, or that is spelt alike.

    section: where the key was given.
    root: the class that was validated.
    """
    if (ours := _OTHER_TOOLS.get(name.lower())) is not None:
        leaf = ours.rpartition(".")[2]
        return f"Did you mean {leaf if leaf in section.model_fields else ours}?"
    known = list(section.model_fields)
    if near := difflib.get_close_matches(name, known, 1, 0.85):  # one letter too many, too few or wrong
        return f"Did you mean {near[0]}?"
    if elsewhere := [key for key in _keys(root) if key.rpartition(".")[2] == name]:
        return f"Did you mean {' or '.join(elsewhere[:3])}?"
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a section. An item of a list is `N`."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if inner := section_in(field.annotation):
            yield from _keys(inner, f"{prefix}{name}." + ("N." if "list[" in str(field.annotation) else ""))


def _explain(
    kind: str, value: Any, message: str, field: FieldInfo | None, packages: Mapping[str, str]
) -> tuple[str, str]:
    """The reason why pydantic rejected a value, and what to write instead.

    packages: installed packages that declare values for this key, by the value's name.
    """
    limits = allowed(field) if field else ""
    if kind == "literal_error" and field:
        near = difflib.get_close_matches(str(value), [*choices(field.annotation), *packages], 1, 0.5)
        if packages:
            limits += f", or of installed packages {', '.join(f'{n} ({p})' for n, p in sorted(packages.items()))}"
        section = section_in(field.annotation)
        if section:  # the Literal is one of several types, whose choices are in pydantic's message
            limits = f"{message.removeprefix('Input should be ')}, or a mapping with {', '.join(section.model_fields)}"
        elif numbers := [word for kind, word in _NUMBERS.items() if kind in get_args(field.annotation)]:
            limits = " or ".join([message.removeprefix("Input should be "), *numbers])
        return "there is no such choice", (f"Did you mean {near[0]}? " if near else "") + f"It is {limits}"
    if kind == "string_pattern_mismatch":
        return "only letters, digits, _, . and - are allowed, and it must not start with . or -", "Use another name"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"it must be {limits}", f"Give a value {limits}"
    if kind == "finite_number":
        return "it is not finite", f"Give a finite number {limits}".rstrip()
    if kind == "too_short":
        return "it is empty", "Give at least one item"
    expected = {kind.__name__: word for kind, word in _NUMBERS.items()} | {"bool": "true or false", "string": "a text"}
    expected |= {"list": "a list", "dict": "a mapping of keys", "model": "a mapping of keys"}
    if (name := expected.get(kind.partition("_")[0])) is not None:
        wanted = name if name.endswith("keys") else f"{name} {limits}".rstrip()
        section = section_in(field.annotation) if field else None
        if name == "a text" and isinstance(value, bool):
            return "YAML reads a bare no, yes, on, off, true or false as a boolean, not as text", 'Quote it: "no"'
        if name == "a text" and isinstance(value, int | float):
            return "YAML reads it as a number, not as text", f'Quote it: "{value}"'
        keys = f" with {', '.join(section.model_fields)}" if section and not isinstance(value, list) else ""
        return f"it is not {name}", f"Give {wanted}{keys}"
    return message[0].lower() + message[1:], "Correct it"


def _is_branch(step: str) -> bool:
    return step in ("int", "float", "str", "bool", "NewTokenizer", "TopKConfig") or "[" in step


def choices(annotation: Any) -> list[str]:
    """The names that a field can be; besides them it can be None, or an object of the user's own code."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if any(part is not NoneType and get_origin(part) not in (Literal, Annotated) for part in parts):
        return []
    return [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]


def allowed(field: FieldInfo) -> str:
    """The allowed values of a field, in words; "" if every value of its type is allowed."""
    if names := choices(field.annotation):
        return f"one of {', '.join(names)}"
    bounds = {n: v for m in field.metadata for n in ("ge", "gt", "le", "lt") if (v := getattr(m, n, None)) is not None}
    if {"ge", "le"} <= bounds.keys():
        return f"from {bounds['ge']} to {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[n]} {v}" for n, v in bounds.items())


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section's class at a location. List indices and union tags are skipped."""
    for step in location:
        field = model.model_fields.get(str(step))
        if field is not None:
            model = section_in(field.annotation) or model
    return model


def section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := section_in(part))), None)
