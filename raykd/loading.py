"""From a YAML file and dotted overrides to a checked Config; every mistake becomes one line."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raykd.config import Config
from raykd.errors import ConfigError
from raykd.methods import Method


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a job's YAML, apply `key=value` overrides, validate. Raises ConfigError."""
    tree = read_yaml(Path(path))
    values = dict(parse_override(text) for text in overrides)
    return build(override(tree, values))


def build(tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise user_error(error, Config) from None


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError("CONFIG", path, "there is no such file", "Name a job, such as jobs/digits.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigError("CONFIG", path, f"it is not YAML: {error}", "Mend the line that is named") from None
    if not isinstance(tree, dict):
        raise ConfigError("CONFIG", path, "it holds no keys", "Start from jobs/digits.yaml")
    return tree


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=1` to ("a.b", 1); the value is read as YAML, so lists and null work."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError("override", text, "it is not key=value", "Write it like method.W=0.5")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(key, value, "the value is not YAML", "Quote it") from None


def override(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with dotted keys set: the command line's overrides and Tune's samples alike.

    In a list a step is an index, an item's `name`, or `*` for every item. Another `method.type` drops
    what the tree said of the old method (each method has its own settings); overrides then apply.
    """
    tree = copy.deepcopy(tree)
    method = tree.get("method")
    if isinstance(method, str):
        tree["method"] = method = {"type": method}
    if isinstance(method, dict) and values.get("method.type", method.get("type")) != method.get("type"):
        tree["method"] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        for node in _nodes(tree, path, key):
            if isinstance(node, list):
                if not last.isdigit() or int(last) >= len(node):
                    raise ConfigError(key, value, f"the list has {len(node)} items", "Count from 0")
                node[int(last)] = value
            elif isinstance(node, dict):
                node[last] = value
                if last in ("steps", "epochs"):  # either replaces the other
                    node.pop("epochs" if last == "steps" else "steps", None)
            else:
                raise ConfigError(key, value, f"{'.'.join(path)} is {node!r} and has no keys", "Override it whole")
    return tree


def _nodes(node: Any, path: list[str], key: str) -> Iterator[Any]:
    if not path:
        yield node
        return
    step, *rest = path
    if isinstance(node, list):
        chosen = [
            item
            for i, item in enumerate(node)
            if step in ("*", str(i)) or (isinstance(item, dict) and item.get("name") == step)
        ]
        if not chosen:
            names = ", ".join(str(i.get("name")) for i in node if isinstance(i, dict))
            raise ConfigError(key, step, f"no item of the list has this name or number ({names})", "Name one, or *")
        for item in chosen:
            yield from _nodes(item, rest, key)
    elif isinstance(node, dict):
        if isinstance(node.get(step), str) and step == "model":  # `model: path` and model.config.x=...
            node[step] = {"pretrained": node[step]}
        if node.get(step) is None:
            node[step] = {}
        yield from _nodes(node[step], rest, key)
    else:
        raise ConfigError(key, step, f"its parent is {node!r} and has no keys", "Override the parent")


def user_error(error: ValueError, model: type[BaseModel], prefix: str = "") -> ConfigError:
    """The first thing that pydantic found wrong, as key, value, reason and mend."""
    if isinstance(error, ConfigError):  # raised by a validator of ours
        return error
    assert isinstance(error, ValidationError)
    first = error.errors()[0]
    location = first["loc"]
    key = ".".join([prefix, *map(str, location)] if prefix else map(str, location)) or "config"
    if first["type"] == "extra_forbidden":
        known = list(_section(model, location[:-1]).model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, 1, 0.5)
        mend = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}"
        return ConfigError(key, first["input"], "there is no such key", mend)
    if first["type"] == "missing":
        field = _section(model, location[:-1]).model_fields.get(str(location[-1]))
        meaning = field.description if field and field.description else "see raykd check --help"
        return ConfigError(key, "(missing)", "it is needed", f"Add it: {meaning}")
    reason = first["msg"][0].lower() + first["msg"][1:]
    field = _section(model, location[:-1]).model_fields.get(str(location[-1])) if location else None
    mend = f"It means: {field.description}" if field and field.description else "See raykd check --help"
    return ConfigError(key, first["input"], reason, mend)


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section's class at a location; list indices and union tags are passed over."""
    for step in location:
        field = model.model_fields.get(str(step))
        if field is not None:
            model = _model_in(field.annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def reference() -> Iterator[tuple[str, str, str]]:
    """Every key, its default and its meaning, in the order of the schema."""
    yield from _reference(Config, "")


def _reference(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        many = "list[" in str(field.annotation)
        key = f"{prefix}{name}" + (".N" if inner and many else "")
        if field.is_required():
            default = "required"
        elif inner:
            default = ""
        else:
            default = repr(field.get_default(call_default_factory=True))
        if inner is Method:
            default = "kd"
        yield key, default, field.description or ""
        if inner:
            yield from _reference(inner, key + ".")
