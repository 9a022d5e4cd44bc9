"""Folders of adapters (LoRA and peft's others), which name the model that they change. Its weights are not in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from raykd.common.errors import ConfigError
from raykd.common.hashing import file_digest, fingerprint
from raykd.common.late import Late
from raykd.models.lora import quiet_peft, require_peft
from raykd.models.problems import short_reason

if TYPE_CHECKING:
    import peft
    import torch
else:
    peft = Late("peft")
    torch = Late("torch")

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Of the settings: how it was saved and where its model is, but not what it computes.
_UNIMPORTANT = ("base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping", "task_type")


def is_adapter(folder: Path) -> bool:
    return (folder / SETTINGS).is_file()


def settings_of(folder: Path, key: str) -> dict[str, Any]:
    """The adapter's settings. Raises ConfigError if it is not whole, does not name its model, or peft is missing."""
    require_peft(key, str(folder))
    settings = json.loads((folder / SETTINGS).read_text())
    if not (folder / WEIGHTS).is_file():
        hint = "Save it again with save_pretrained, which writes safetensors"
        raise ConfigError(key, str(folder), f"it is an adapter without {WEIGHTS}", hint)
    if not settings.get("base_model_name_or_path"):
        reason = f"it is an adapter, and its {SETTINGS} does not say of which model"
        raise ConfigError(key, str(folder), reason, "Enter it there as base_model_name_or_path, or merge the adapter")
    return settings


def adapter_digest(folder: Path) -> str:
    """Identity of what an adapter changes in its model."""
    settings = json.loads((folder / SETTINGS).read_text())
    kept = {name: value for name, value in settings.items() if name not in _UNIMPORTANT}
    return fingerprint([file_digest([folder / WEIGHTS]), kept])


def whole_layers(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that the adapter replaces, such as its head's, by the model's names."""
    with safe_open(folder / WEIGHTS, "pt") as weights:
        names = [name for name in weights.keys() if ".lora_" not in name]  # noqa: SIM118 (no mapping)
        return {name.removeprefix(_PREFIX): tuple(weights.get_slice(name).get_shape()) for name in names}


def merge_adapter(model: Any, folder: Path, key: str) -> Any:
    """The model with the adapter merged into its weights. Raises ConfigError if the two do not fit each other."""
    from safetensors.torch import load_file

    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = False
        with quiet_peft():
            wrapper = peft.get_peft_model(model, settings)
        found = peft.set_peft_model_state_dict(wrapper, load_file(folder / WEIGHTS))
        lacking = [name for name in found.missing_keys if ".lora_" in name or ".modules_to_save." in name]
        if wrong := [*found.unexpected_keys, *lacking]:
            raise ValueError(f"{len(wrong)} of its weights do not fit, such as {wrong[0]}")
        merged = wrapper.merge_and_unload()
    except (AttributeError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = f"the adapter cannot be merged into {type(model).__name__} ({short_reason(error)})"
        raise ConfigError(key, str(folder), reason, "Check that it was made for this model and this task") from None
    merged.requires_grad_(True)  # peft has frozen the weights that were not the adapter's
    return merged
