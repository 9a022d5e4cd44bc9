"""What a config calls a model, opened once and handed on."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raykd.common.hashing import fingerprint
from raykd.config.schema import ModelConfig
from raykd.models.configs import load_config
from raykd.models.folders import model_folder
from raykd.models.identity import folder_digest, model_digest, processor_digest
from raykd.models.processors import load_processor
from raykd.tasks.common import Task


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model's files and what they say. Each part is read when it is first used, and only once.

    spec: the config's section about it.
    key: where that section is in the config, for errors.
    task: what the model is for. Its classes must be known before `config` is read.
    folder: the local folder of a pretrained model, None from scratch.
    """

    spec: ModelConfig
    key: str
    task: Task = field(repr=False)
    folder: Path | None

    @property
    def source(self) -> Any:
        """What the user names it by, for errors."""
        return self.spec.pretrained or self.spec.config

    @cached_property
    def saved_config(self) -> dict[str, Any]:
        """Its config.json as it was saved, or the user's values from scratch."""
        return self.spec.config if self.folder is None else json.loads((self.folder / "config.json").read_text())

    @cached_property
    def config(self) -> Any:
        """transformers' config, with the user's values and the task's labels. Not to be changed."""
        return load_config(self.spec, self.folder, self.task, self.key)

    @cached_property
    def _folder_digest(self) -> str:
        assert self.folder is not None
        return folder_digest(self.folder)

    @cached_property
    def digest(self) -> str:
        """Identity of what it starts from: content of its files and the user's values, or these values alone."""
        if self.folder is None:
            return fingerprint(self.spec.config)
        return model_digest(self.spec, self.folder, self._folder_digest, self.key)

    @property
    def logits_digest(self) -> str:
        """What a pretrained model's logits are known by: unless the user changes it, by its folder alone."""
        return self.digest if self.spec.config or self.spec.trust_remote_code else self._folder_digest

    @cached_property
    def processor(self) -> Any:
        """The tokenizer or image processor that goes with it."""
        return load_processor(self)

    @cached_property
    def processor_digest(self) -> str:
        return processor_digest(self.processor)

    @property
    def is_fine_tuned(self) -> bool:
        """Whether it is a checkpoint with the task's head, as its config says."""
        suffix = self.task.auto_model.removeprefix("AutoModel")
        architectures = self.folder and self.saved_config.get("architectures")
        return any(name.endswith(suffix) for name in architectures or ())


def open_model(spec: ModelConfig, task: Task, key: str) -> OpenedModel:
    """Find a model's folder, fetched from the hub if needed. Raises ConfigError (HubError) if there is none."""
    return OpenedModel(spec, key, task, model_folder(spec, key))
