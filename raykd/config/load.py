"""Load a job: a YAML file and dotted overrides to a validated Config. Every error is one line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from raykd.common.errors import ConfigError
from raykd.common.redaction import remember
from raykd.config.messages import allowed, section_in, user_error
from raykd.config.methods import DEFAULT_METHOD, PRESETS, Method
from raykd.config.schema import Config

Schema = TypeVar("Schema", bound=BaseModel)
_SHORT = {"model": "pretrained", "method": "type", "logits": "mode"}  # sections that can be one word: the key it sets


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a job's YAML, apply `key=value` overrides and validate the result. Raises ConfigError."""
    tree = read_yaml(Path(path))
    values = dict(parse_override(text) for text in overrides)
    return build(override(tree, values))


def build(tree: dict[str, Any]) -> Config:
    """The validated config of a job's tree of keys. Raises ConfigError."""
    return validate(tree, Config)


def validate(tree: dict[str, Any], schema: type[Schema]) -> Schema:
    remember(tree)  # so that secrets in its addresses are redacted
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise user_error(error, schema) from None


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise ConfigError("CONFIG", path, "there is no such file", "Name a job, such as jobs/digits.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = f"it cannot be read ({type(error).__name__})"
        raise ConfigError("CONFIG", path, reason, "Name a YAML file, such as jobs/digits.yaml") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "the file"
        reason = f"it is not YAML: {where}: {getattr(error, 'problem', None) or error}"
        raise ConfigError("CONFIG", path, reason, f"Fix {where}") from None
    if not isinstance(tree, dict):
        raise ConfigError("CONFIG", path, "it holds no keys", "Start from jobs/digits.yaml")
    return tree


class _UniqueKeys(yaml.SafeLoader):
    """Rejects duplicate keys. Plain YAML silently takes the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return node


def parse_override(text: str) -> tuple[str, Any]:
    """Parse `a.b=1` to ("a.b", 1). The value is YAML, so lists and null work."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError("override", text, "it is not key=value", "Write it like method.W=0.5")
    try:
        return key, yaml.load(value, _UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:  # as above
        raise ConfigError(
            key, value, f"the value is not YAML ({getattr(error, 'problem', None) or error})", "Quote it"
        ) from None


def override(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with dotted keys set, for overrides on the command line and for Tune's sampled values.

    An item of a list is named by its index, by its `name`, or by `*` for every item. An override changes only the key
    that it names, with three exceptions, where old values would contradict the new one:
    - another `method.type` drops the old method's settings;
    - `steps` of a training replaces its `epochs`, and vice versa;
    - another model by one word (`student.model=NAME`) drops the old one's revision, tokenizer and config values.
    A section is set before its keys, whatever their order on the command line.

    Raises ConfigError for a key that does not exist in a list or under a plain value.
    """
    tree = _unshared(tree)
    named = dict(spelled_out(key, value) for key, value in values.items())
    for key in sorted(named, key=lambda k: (k.count("."), k != "method.type")):
        value = named[key]
        *path, last = _steps(key)
        for node in _nodes(tree, path, key, value):
            if isinstance(node, list):
                if not last.isdigit() or int(last) >= len(node):
                    raise ConfigError(key, value, f"the list has {len(node)} items", "Count from 0")
                node[int(last)] = _unshared(value)
            elif isinstance(node, dict):
                _set(node, path, last, _unshared(value), named)
            else:
                reason = f"{'.'.join(path)} is {node!r} and has no keys"
                raise ConfigError(key, value, reason, "Override it whole")
    return tree


def spelled_out(key: str, value: Any) -> tuple[str, Any]:
    """`logits=live` becomes `logits.mode=live`, which keeps the rest of the section; likewise `method=kd`."""
    return (f"{key}.{_SHORT[key]}", value) if key in ("method", "logits") and isinstance(value, str) else (key, value)


def _steps(key: str) -> list[str]:
    """Split a dotted key. The keys of `search.space` contain dots themselves."""
    space = "search.space."
    return ["search", "space", key.removeprefix(space)] if key.startswith(space) else key.split(".")


def _set(node: dict[str, Any], path: list[str], last: str, value: Any, named: Mapping[str, Any]) -> None:
    """Set one value of a section.

    node: the section.
    path: its steps from the root.
    last: the key in the section.
    named: all overrides.
    """
    before = node.get(last)
    if path == ["method"] and last == "type" and value != node.get("type", DEFAULT_METHOD):
        node.clear()
    if path[-1:] == ["training"] and last in ("steps", "epochs") and value is not None:
        other = "epochs" if last == "steps" else "steps"
        if ".".join([*path, other]) not in named:  # if both are given, the schema rejects them
            node.pop(other, None)
    if last == "model" and isinstance(value, str) and isinstance(before, dict) and before.get("pretrained") == value:
        return  # the same model: keep its other values
    node[last] = value


def _unshared(node: Any) -> Any:
    """A deep copy without shared nodes, so that an override changes only one of a YAML anchor's uses."""
    if isinstance(node, Mapping):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(item) for item in node] if isinstance(node, (list, tuple)) else node


def _nodes(node: Any, path: list[str], key: str, value: Any) -> Iterator[Any]:
    if not path:
        yield node
        return
    step, *rest = path
    if isinstance(node, list):
        step, rest = _name_and_rest(node, path)
        chosen = [item for item in node if step == "*" or (isinstance(item, dict) and item.get("name") == step)]
        if step.isdigit() and int(step) < len(node) and node[int(step)] not in chosen:
            if chosen:
                reason = f"item {step} of the list and the item called {step} are different items"
                raise ConfigError(key, value, reason, "Rename the item, or use its index")
            chosen = [node[int(step)]]
        if not chosen:
            names = ", ".join(str(i.get("name")) for i in node if isinstance(i, dict))
            raise ConfigError(key, value, f"no item of the list is called {step}", f"Name one of {names}, or * for all")
        for item in chosen:
            yield from _nodes(item, rest, key, value)
    elif isinstance(node, dict):
        if isinstance(node.get(step), str) and step in _SHORT:  # `model: path` and model.config.x=...
            node[step] = {_SHORT[step]: node[step]}
        if node.get(step) is None:
            node[step] = {}
        yield from _nodes(node[step], rest, key, value)
    else:
        raise ConfigError(key, value, f"{step} is a key of {node!r}, which has no keys", "Override it whole")


def _name_and_rest(items: list[Any], path: list[str]) -> tuple[str, list[str]]:
    """The step that names an item of the list, and those after it. A name can hold dots: teachers.bert.v1.folds."""
    names = [item.get("name") for item in items if isinstance(item, dict)]
    ends = [end for end in range(len(path), 0, -1) if ".".join(path[:end]) in names]
    end = ends[0] if ends else 1
    return ".".join(path[:end]), path[end:]


def reference() -> Iterator[tuple[str, str, str]]:
    """Every key, its default, and its meaning with the allowed values, in the order of the schema."""
    yield from _reference(Config, "")


def _reference(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        inner = section_in(field.annotation)
        many = "list[" in str(field.annotation)
        key = f"{prefix}{name}" + (".N" if inner and many else "")
        if field.is_required():
            default = "required"
        elif inner:
            default = ""
        else:
            default = repr(field.get_default(call_default_factory=True))
        if inner is Method:
            default = DEFAULT_METHOD
        limits = allowed(field)
        yield key, default, (field.description or "") + (f" ({limits})" if limits else "")
        if inner:
            yield from _reference(inner, key + ".")


def markdown() -> Iterator[str]:
    """`jobs/REFERENCE.md`, line by line."""
    yield "# Every key of a job's YAML"
    yield ""
    yield "Written by `make reference`; do not edit. `.N` is an item of a list: in an override on the command line,"
    yield "use its number, its name, or `*` for all items (`teachers.*.folds=4`)."
    yield ""
    yield "| key | default | meaning |"
    yield "| --- | --- | --- |"
    for key, default, meaning in reference():
        shown = default if default in ("", "required") else f"`{default}`"
        yield f"| `{key}` | {shown} | {meaning} |"
    yield ""
    yield "## Methods"
    yield ""
    yield "A `method.type` is a preset. The table shows what it sets; every other key of `method` keeps the default"
    yield "above, which has no effect. A key that the method does not use is rejected."
    yield ""
    yield "| method.type | sets |"
    yield "| --- | --- |"
    for name, preset in PRESETS.items():
        values = ", ".join(f"`{k}: {v}`" for k, v in preset.items())
        yield f"| `{name}` | {values or 'nothing'} |"


if __name__ == "__main__":
    print("\n".join(markdown()))
