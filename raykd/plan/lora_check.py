"""Checks adapters (LoRA) that are to be trained, before anything starts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.config.models import LoraConfig
from raykd.config.schema import Config
from raykd.models.lora import require_peft, target_layers
from raykd.models.opened import OpenedModel
from raykd.plan.checked import check_once

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = Late("torch")
    transformers = Late("transformers")


def lora_sections(config: Config) -> dict[str, tuple[str, LoraConfig]]:
    """By the key of each section `lora`: its model's key, and its settings."""
    sections = {
        f"teachers.{t.name}.recipe.lora": (f"teachers.{t.name}.model", t.recipe.lora)
        for t in config.teachers
        if t.recipe and t.recipe.lora
    }
    own = config.student.lora
    return sections | ({"student.lora": ("student.model", own)} if own else {})


def check_peft(config: Config) -> None:
    """Raise ConfigError if an adapter is to be trained and peft is not installed."""
    for key, (_, lora) in lora_sections(config).items():
        require_peft(key, f"{{r: {lora.r}, alpha: {lora.alpha:g}}}")


def check_lora(config: Config, models: Mapping[str, OpenedModel]) -> None:
    """Raise ConfigError if an adapter does not fit its model. models: the available ones, by key."""
    for key, (model_key, lora) in lora_sections(config).items():
        if model_key not in models:
            continue
        model = models[model_key]
        if model.weights is None:
            reason = f"{model_key} is drawn from scratch, and an adapter leaves nearly all of its weights as they are"
            hint = f"Give {model_key} a pretrained model, or remove {key}"
            raise ConfigError(key, f"{{r: {lora.r}, alpha: {lora.alpha:g}}}", reason, hint)
        if lora.save == "adapter" and config.student.push_to_hub and key == "student.lora" and _is_local(model):
            reason = f"the adapter would name the local path {model.source} on the hub, where nobody finds it"
            hint = f"Set {key}.save=merged, start from a model of the hub, or remove student.push_to_hub"
            raise ConfigError(f"{key}.save", lora.save, reason, hint)
        if lora.save == "adapter" and model.adapter:
            reason = f"{model_key} ({model.source}) is an adapter, which another one cannot be saved on"
            raise ConfigError(f"{key}.save", lora.save, reason, f"Set {key}.save=merged, or start from a whole model")
        identity = ["lora", model.digest, model.task.auto_model, lora.target_modules, version("transformers")]
        check_once(config.store, identity, lambda: _check_layers(model, lora, key))  # noqa: B023 (called at once)


def _is_local(model: OpenedModel) -> bool:
    """Whether the model's name is a folder of this machine, and not a hub id."""
    return bool(model.spec.pretrained) and Path(str(model.spec.pretrained)).is_dir()


def _check_layers(model: OpenedModel, lora: LoraConfig, key: str) -> None:
    trusted = {"trust_remote_code": True} if model.spec.trust_remote_code else {}
    with torch.device("meta"):  # takes no memory
        made = getattr(transformers, model.task.auto_model).from_config(copy.deepcopy(model.config), **trusted)
    target_layers(made, lora, key)
