"""The models that a config names, each opened once and shared."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raykd.common.hashing import fingerprint
from raykd.config.schema import ModelConfig
from raykd.models.adapters import adapter_digest, is_adapter, whole_layers
from raykd.models.configs import load_config, read_config
from raykd.models.folders import base_of, model_folder
from raykd.models.identity import config_identity, folder_digest, model_digest
from raykd.models.layers import config_with_layers
from raykd.models.processor_facts import ProcessorFacts, processor_facts
from raykd.models.processors import load_processor
from raykd.tasks.common import Task


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model's files and their content. Each part is read when it is first used, and only once.

    spec: its section of the config.
    key: the section's key, for errors.
    task: the task. Its classes must be known before `config` is read.
    folder: the local folder of a pretrained model, which can hold an adapter alone; None from scratch.
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

    @property
    def adapter(self) -> Path | None:
        """Its folder, if that holds an adapter."""
        return self.folder if self.folder and is_adapter(self.folder) else None

    @cached_property
    def _base(self) -> tuple[ModelConfig, Path | None]:
        """Where its weights are: its own, or those of the model that its adapter changes."""
        return base_of(self.adapter, self.spec, self.key) if self.adapter else (self.spec, self.folder)

    @property
    def weights(self) -> Path | None:
        """The folder of its weights, without those of an adapter; None from scratch."""
        return self._base[1]

    @property
    def processor_source(self) -> tuple[str | None, str | None]:
        """Where its tokenizer or image processor is, if the user names no other, and the revision there.

        An adapter need not have one: then it is that of the model which the adapter changes.
        """
        files = ("tokenizer_config.json", "tokenizer.json", "preprocessor_config.json")
        if self.adapter and not any((self.adapter / name).is_file() for name in files):
            return self._base[0].pretrained, self._base[0].revision
        return self.spec.pretrained, self.spec.revision

    @cached_property
    def saved_config(self) -> dict[str, Any]:
        """Its config.json as it was saved, or the user's values from scratch.

        peft saves none with an adapter: then it is the base's, with the number of classes that the adapter has.
        """
        if self.weights is None or self.folder is None:
            return self.spec.config
        if (self.folder / "config.json").is_file():
            return read_config(self.folder)
        saved = read_config(self.weights)
        layers = whole_layers(self.folder).items()
        # peft also saves DistilBERT's layer before the one that gives the classes, because their names end alike.
        heads = [shape[0] for name, shape in layers if name.endswith("weight") and "pre_classifier" not in name]
        has_outputs = self.task.named_classes or self.task.predicts_values
        if has_outputs and heads and heads[-1] != (len(saved.get("id2label") or ()) or saved.get("num_labels") or 2):
            saved = {k: v for k, v in saved.items() if k not in ("id2label", "label2id")} | {"num_labels": heads[-1]}
        return saved

    @cached_property
    def config_of_files(self) -> Any:
        """transformers' config, with the user's values and the task's labels, and every layer. Not to be changed."""
        own = self.folder and (self.folder / "config.json").is_file()
        return load_config(self.spec, self.folder if own else self.weights, self.task, self.key)

    @cached_property
    def config(self) -> Any:
        """The same with the layers that the user keeps. Not to be changed."""
        if self.spec.layers is None:
            return self.config_of_files
        return config_with_layers(self.config_of_files, self.spec.layers, self.key)

    @cached_property
    def _folder_digest(self) -> str:
        assert self.weights is not None
        digest = folder_digest(self.weights)
        if not self.adapter:
            return digest
        found = (self.adapter / "config.json").is_file()  # which counts instead of the base's
        own = [config_identity(self.adapter)] if found else []
        return fingerprint([digest, adapter_digest(self.adapter), *own])

    @cached_property
    def digest(self) -> str:
        """Identity of the model before training: a hash of its files and of the user's values, or of these alone."""
        if self.folder is None:
            return fingerprint(self.spec.config)
        assert self.weights is not None
        return model_digest(self.spec, self.weights, self._folder_digest, self.key)

    @property
    def logits_digest(self) -> str:
        """Its identity in the key of logits: a hash of its folder, and of the user's values if there are any."""
        spec = self.spec
        changed = spec.config or spec.layers or spec.bits or spec.trust_remote_code
        return self.digest if changed else self._folder_digest

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
    def other_classes(self) -> list[str]:
        """The names of its head's classes where they are not the task's, or not in their order; otherwise [].

        Of a head with another number of classes, and where one of both has no names, [] too.
        """
        ours, names = list(self.task.label_names), self.saved_config.get("id2label") or {}
        theirs = [str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
        unnamed = any(all(re.fullmatch(r"(LABEL_)?\d+|False|True", name) for name in some) for some in (ours, theirs))
        same = [name.casefold() for name in ours] == [name.casefold() for name in theirs]
        return theirs if self.is_fine_tuned and len(ours) == len(theirs) and not (unnamed or same) else []

    @property
    def start_digest(self) -> str:
        """Identity of what a training starts from: the model, and whether its head is drawn anew for its classes."""
        return fingerprint([self.digest, "new head"]) if self.other_classes else self.digest

    @property
    def is_fine_tuned(self) -> bool:
        """Whether it is a checkpoint with the task's head, according to its config."""
        suffixes = self.task.architectures or (self.task.auto_model.removeprefix("AutoModel"),)
        if self.adapter and not (self.adapter / "config.json").is_file() and whole_layers(self.adapter):
            return True  # its head is in the adapter
        architectures = self.folder and self.saved_config.get("architectures")
        return any(name.endswith(suffixes) for name in architectures or ())


def open_model(spec: ModelConfig, task: Task, key: str, store: Path | None = None) -> OpenedModel:
    """Find a model's folder, fetched from the hub if needed. Raises ConfigError (HubError) if there is none."""
    opened = OpenedModel(spec, key, task, model_folder(spec, key), store)
    assert (opened.weights is None) == (opened.folder is None)  # finds an adapter's model, too
    return opened
