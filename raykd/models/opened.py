"""The models that a config names, each opened once and shared."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raykd.common.hashing import fingerprint
from raykd.config.schema import ModelConfig
from raykd.models.configs import load_config
from raykd.models.folders import model_folder
from raykd.models.identity import folder_digest, model_digest
from raykd.models.processor_facts import ProcessorFacts, processor_facts
from raykd.models.processors import load_processor
from raykd.tasks.common import Task


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model's files and their content. Each part is read when it is first used, and only once.

    spec: its section of the config.
    key: the section's key, for errors.
    task: the task. Its classes must be known before `config` is read.
    folder: the local folder of a pretrained model, None from scratch.
    store: the folder `output/store`, which remembers facts of processors; None: nothing is remembered.
    """

    spec: ModelConfig
    key: str
    task: Task = field(repr=False)
    folder: Path | None
    store: Path | None = None

    @property
    def source(self) -> Any:
        """The user's name for it, for errors."""
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
        """Identity of the model before training: a hash of its files and of the user's values, or of these alone."""
        if self.folder is None:
            return fingerprint(self.spec.config)
        return model_digest(self.spec, self.folder, self._folder_digest, self.key)

    @property
    def logits_digest(self) -> str:
        """Its identity in the key of logits: a hash of its folder, and of the user's values if there are any."""
        return self.digest if self.spec.config or self.spec.trust_remote_code else self._folder_digest

    @cached_property
    def processor(self) -> Any:
        """The tokenizer or image processor that goes with it."""
        return load_processor(self)

    @cached_property
    def processor_facts(self) -> ProcessorFacts:
        return processor_facts(self, self.store)

    @property
    def processor_digest(self) -> str:
        return self.processor_facts.digest

    @property
    def saved_classes(self) -> int:
        """The number of classes that its saved config names; 2 is transformers' default."""
        saved = self.saved_config
        return len(saved.get("id2label") or ()) or saved.get("num_labels") or saved.get("_num_labels") or 2

    @property
    def is_fine_tuned(self) -> bool:
        """Whether it is a checkpoint with the task's head, according to its config."""
        suffixes = self.task.architectures or (self.task.auto_model.removeprefix("AutoModel"),)
        architectures = self.folder and self.saved_config.get("architectures")
        return any(name.endswith(suffixes) for name in architectures or ())


def open_model(spec: ModelConfig, task: Task, key: str, store: Path | None = None) -> OpenedModel:
    """Find a model's folder, fetched from the hub if needed. Raises ConfigError (HubError) if there is none."""
    return OpenedModel(spec, key, task, model_folder(spec, key), store)
