"""A model with some of a pretrained model's layers, as a student often starts (DistilBERT: Sanh et al. 2019)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raykd.common.errors import ConfigError
from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


def config_with_layers(whole: Any, layers: Sequence[int], key: str) -> Any:
    """A copy of transformers' config that has these layers only. Raises ConfigError if the model lacks one.

    layers: numbers from 0, in rising order.
    key: the model's key, for the error.
    """
    config = copy.deepcopy(whole)
    text = config.get_text_config()
    count = getattr(text, "num_hidden_layers", None)
    if not isinstance(count, int):
        reason = f"the config of {config.model_type} does not say how many layers it has"
        raise ConfigError(f"{key}.layers", list(layers), reason, "Remove it")
    if layers[-1] >= count:
        reason = f"the model has {count} layers"
        raise ConfigError(f"{key}.layers", list(layers), reason, f"Use numbers from 0 to {count - 1}")
    for name, value in vars(text).items():  # such as layer_types, which says what kind of attention each layer has
        if "layer" in name and isinstance(value, list) and len(value) == count:
            setattr(text, name, [value[number] for number in layers])
    text.num_hidden_layers = len(layers)
    return config


def with_layers(whole: torch.nn.Module, config: Any, layers: Sequence[int], key: str) -> torch.nn.Module:
    """A model with these layers' weights, and all weights of `whole` outside its layers.

    It is built from its config, so that it is the same model when it is saved and loaded.

    config: with len(layers) layers.
    Raises ConfigError if the model's layers cannot be told from its other parts.
    """
    count = whole.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    lists: list[str] = []  # names of the outermost lists of so many modules; a layer may hold such a list of its own
    for name, part in whole.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(part, torch.nn.ModuleList) and len(part) == count and not inside:
            lists.append(name)
    kept = {number: place for place, number in enumerate(layers)}
    weights = {}
    for name, weight in whole.state_dict().items():
        outer = next((f"{outer}." for outer in lists if name.startswith(f"{outer}.")), None)
        if outer is None:
            weights[name] = weight
            continue
        number, dot, rest = name.removeprefix(outer).partition(".")
        if int(number) in kept:
            weights[f"{outer}{kept[int(number)]}{dot}{rest}"] = weight
    model = type(whole)(config)
    if whole.can_generate():  # type: ignore[operator]
        model.generation_config = whole.generation_config
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = f"the layers of {type(whole).__name__} cannot be chosen ({str(error).splitlines()[-1].strip()})"
        raise ConfigError(f"{key}.layers", list(layers), reason, "Remove it") from None
    return model
