"""The schema's sections about models, their training and their resources. Importable without torch or Ray."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raykd.config.messages import invalid
from raykd.config.section import NAME, Place, Section


class NewTokenizer(Section):
    """A tokenizer that is trained on the job's training rows."""

    train_bpe: int = Field(ge=300, description="text generation: train a byte-level BPE tokenizer of so many tokens")


class ModelConfig(Section):
    """A model: a hub id or local folder, or a config to initialise from scratch."""

    pretrained: Place | None = Field(None, description="a hub id or a local folder with safetensors")
    revision: str | None = Field(None, description="the hub model's revision")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="config values; with model_type and without pretrained: from scratch",
    )
    layers: list[int] | None = Field(
        None,
        min_length=1,
        description="numbers of the pretrained model's layers to keep, from 0, such as [0, 4, 8, 11]; default: all",
    )
    bits: Literal[4, 8] | None = Field(
        None,
        description="a given teacher's linear layers with weights of 8 or 4 bits, by bitsandbytes (raykd[quantized])",
    )
    tokenizer: Place | NewTokenizer | None = Field(
        None,
        description="its tokenizer or image processor, if not the model's own: a hub id, a folder, or train_bpe",
    )
    trust_remote_code: bool = Field(False, description="run the code that comes with the hub's model")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"pretrained": given} if isinstance(given, str) else given

    @field_validator("pretrained", "tokenizer")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        # Absolute, because workers run in other folders.
        return os.path.abspath(value) if value and isinstance(value, str) and Path(value).is_dir() else value

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.pretrained is None and "model_type" not in self.config:
            raise invalid(
                self.config or "{}",
                "it is neither pretrained nor a config with a model_type",
                "Give a hub id or a folder as `pretrained`, or `config: {model_type: ...}`",
            )
        if self.pretrained is not None and isinstance(self.tokenizer, NewTokenizer):
            value, reason = {"train_bpe": self.tokenizer.train_bpe}, "a pretrained model needs the tokens it has learnt"
            raise invalid(value, reason, "Remove it, or start from a config", "tokenizer")
        return self

    @model_validator(mode="after")
    def _layers_of_a_pretrained_model(self) -> "ModelConfig":
        if self.layers is None:
            return self
        reason, hint = "", ""
        if self.pretrained is None:
            reason, hint = "a model from a config has no learnt layers", "Set num_hidden_layers in its config"
        elif "num_hidden_layers" in self.config:
            reason, hint = "config.num_hidden_layers also chooses layers (the first ones)", "Remove one of the two"
        elif self.layers != sorted(set(self.layers)) or self.layers[0] < 0:
            reason, hint = "they are not different numbers from 0 in rising order", "Write them so"
        if reason:
            raise invalid(self.layers, reason, hint, "layers")
        return self

    @model_validator(mode="after")
    def _bits_of_a_whole_model(self) -> "ModelConfig":
        if self.bits and self.pretrained is None:
            raise invalid(self.bits, "a model from a config has no learnt weights", "Remove it", "bits")
        if self.bits and self.layers:
            raise invalid(self.bits, "only whole models are quantised, and layers is also given", "Remove one", "bits")
        return self

    def trained(self, folder: str) -> "ModelConfig":
        """The model that was trained from this one and saved there: it has its own config, layers and tokenizer."""
        return self.model_copy(update={"pretrained": folder, "config": {}, "layers": None, "tokenizer": None})

    @property
    def tokenizer_source(self) -> str | None:
        """The folder or hub id of its tokenizer; None: not said, or not trained yet."""
        return self.tokenizer if isinstance(self.tokenizer, str) else None


class TrainingConfig(Section):
    """How a model is trained. Teachers, baseline and student share these values unless one overrides them."""

    epochs: float | None = Field(None, gt=0, description="passes over train + transfer rows; default 3")
    steps: int | None = Field(None, ge=1, description="optimizer steps, instead of epochs")
    batch_size: int = Field(32, ge=1, description="rows per optimizer step, over all workers and accumulation steps")
    accumulation: int = Field(1, ge=1, description="micro-batches into which a worker's share of a batch is split")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    decay: Literal["linear", "cosine", "constant"] = Field("linear", description="the learning rate after warm-up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay, on matrices only (not biases or norms)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 autocast on a GPU that supports it, unless a short measurement finds fp32 clearly "
        "faster; else fp32",
    )
    compile: bool = Field(
        False,
        description="run steps through torch.compile, on a GPU with CUDA graphs: slow to start, and results differ by "
        "rounding and dropout; not for text generation or several workers",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute activations again in the backward pass: less memory, but steps take about a third longer",
    )
    eval_every: int | None = Field(
        None, ge=1, description="optimizer steps between evaluations; default: a fifth of all steps"
    )
    select: str | None = Field(None, description="validation metric that chooses the checkpoint; default: the task's")
    patience: int | None = Field(
        None,
        ge=1,
        description="end a training early after so many evaluations in a row without a better score; default: never",
    )
    group_by_length: bool = Field(True, description="batch rows of similar length, which reduces padding")

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("steps") is None and given.get("epochs") is None:
            return {**given, "epochs": 3.0}
        return given

    @model_validator(mode="after")
    def _not_both(self) -> "TrainingConfig":
        if self.steps is not None and self.epochs is not None:
            raise invalid(self.steps, f"epochs = {self.epochs:g} is also given", "Remove one of the two", "steps")
        return self


class LoraConfig(Section):
    """Train two small matrices for each chosen layer, instead of the layer's weights. Needs peft (`raykd[lora]`)."""

    r: int = Field(16, ge=1, description="rank of the matrices")
    alpha: float = Field(32, gt=0, description="their product is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the inputs of the matrices")
    target_modules: list[str] | None = Field(
        None,
        min_length=1,
        description="ends of the names of the layers, such as [q_proj, v_proj]; default: all linear layers of the body",
    )
    save: Literal["merged", "adapter"] = Field(
        "merged", description="what is saved: the whole model with the adapter merged into it, or the adapter alone"
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class RecipeConfig(Section):
    """How a teacher is fine-tuned here."""

    seed: int = Field(0, ge=0, description="initialises the head, shuffles the rows, draws the subset")
    rows: float = Field(1.0, gt=0, le=1, description="share of the training rows that it sees, drawn with its seed")
    training: dict[str, Any] = Field(default_factory=dict, description="values that differ from the training section")
    lora: LoraConfig | None = Field(None, description="train an adapter of its model; default: all weights")


def _check_gpus(count: float | Literal["auto"] | None) -> None:
    if isinstance(count, float) and count > 1:
        reason = "a model runs on one GPU, so the others would be reserved and idle"
        raise invalid(count, reason, "Give 1 or a fraction; more replicas or workers use more GPUs", "num_gpus")
    if isinstance(count, float) and count < 0:
        raise invalid(count, "it is less than 0", "Give 0, a fraction, or 1", "num_gpus")


def _check_adapter(model: ModelConfig, lora: LoraConfig | None, key: str) -> None:
    if model.layers and lora and lora.save == "adapter":
        reason = f"an adapter names the model that it changes, and {model.pretrained} has more layers than model.layers"
        raise invalid(lora.save, reason, "Use merged", key)


def _check_bits(model: ModelConfig) -> None:
    if model.bits:
        reason = "it is trained here, which needs its whole weights"
        raise invalid(model.bits, reason, "Remove it; a given teacher can have it", "model.bits")


_ACCELERATOR = "type of its GPUs, as Ray names it, such as L4 or H100"
_NODE_LABELS = "labels that its nodes must have, such as {pool: spot}"


class TeacherConfig(Section):
    """One member of the ensemble: a fine-tuned checkpoint, or a recipe to make one."""

    name: str = Field(pattern=NAME, description="its name in tables and logs")
    model: ModelConfig = Field(description="the checkpoint, or what the recipe starts from")
    recipe: RecipeConfig | None = Field(None, description="fine-tune it here; without a recipe it is used as given")
    labels: list[str] | None = Field(
        None,
        description="a given checkpoint's classes in its own order, by the task's names; default: those in its config",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="tokens a row for this model; default: task.max_length; not where the decisions are tokens",
    )
    folds: int = Field(
        1, ge=1, description="train k times, each without one fold; its logits on a row come from a model without it"
    )
    num_cpus: float = Field(1, ge=0, description="CPUs for each of its actors and its training")
    num_gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs for each of its actors and its training: 1 or a fraction; default 1 if there are any",
    )
    replicas: Literal["auto"] | int = Field(
        1, description="actors that serve it; auto: one, and more on idle resources while there are rows to compute"
    )
    accelerator: str | None = Field(None, description=_ACCELERATOR)
    node_labels: dict[str, str] = Field(default_factory=dict, description=_NODE_LABELS)
    placement: Literal["pack", "spread"] = Field("pack", description="put its replicas on few nodes, or on many")

    @model_validator(mode="after")
    def _possible_gpus(self) -> "TeacherConfig":
        _check_gpus(self.num_gpus)
        return self

    @model_validator(mode="after")
    def _whole_model(self) -> "TeacherConfig":
        _check_adapter(self.model, self.recipe.lora if self.recipe else None, "recipe.lora.save")
        if self.recipe:
            _check_bits(self.model)
        return self

    @model_validator(mode="after")
    def _some_replicas(self) -> "TeacherConfig":
        if self.replicas != "auto" and self.replicas < 1:
            raise invalid(self.replicas, "a teacher needs at least one replica", "Give 1, more, or auto", "replicas")
        return self

    @model_validator(mode="after")
    def _labels_of_a_checkpoint(self) -> "TeacherConfig":
        if self.labels is not None and self.recipe is not None:
            reason = f"{self.name} is trained here and has the task's classes"
            raise invalid(self.labels, reason, "Remove it, or remove the recipe", "labels")
        return self

    @model_validator(mode="after")
    def _folds_need_recipe(self) -> "TeacherConfig":
        if self.folds > 1 and self.recipe is None:
            reason = f"{self.name} is a given checkpoint, which cannot be trained by fold"
            raise invalid(self.folds, reason, "Give it a recipe, or remove folds", "folds")
        return self


class StudentConfig(Section):
    """The student, and the resources for its training."""

    model: ModelConfig = Field(description="where the student and the baseline start")
    seed: int | list[int] = Field(
        0,
        description="one seed, or a list; the student and its baseline are trained once for each; a sweep's trials "
        "have the first one, and search.seeds sets how many the best settings have",
    )
    training: dict[str, Any] = Field(default_factory=dict, description="values that differ from the training section")
    lora: LoraConfig | None = Field(
        None, description="train an adapter of the model, also for the baseline; default: all weights"
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="tokens a row for this model; default: task.max_length; not where the decisions are tokens",
    )
    push_to_hub: str | None = Field(
        None,
        description="a hub repository, such as you/reviews-student, for the best student; needs `hf auth login` or "
        "HF_TOKEN",
    )
    workers: int = Field(1, ge=1, description="Ray Train workers that share each batch (DDP)")
    num_cpus: float = Field(1, gt=0, description="CPUs per worker")
    num_gpus: float | Literal["auto"] | None = Field(
        None,
        description="GPUs per worker: 1, a fraction, 0, or auto: a sweep measures one training and puts as many trials "
        "on each GPU as gain from it; default 1 if there are any",
    )
    accelerator: str | None = Field(None, description=_ACCELERATOR)
    node_labels: dict[str, str] = Field(default_factory=dict, description=_NODE_LABELS)

    @model_validator(mode="after")
    def _possible_gpus(self) -> "StudentConfig":
        _check_gpus(self.num_gpus)
        return self

    @model_validator(mode="after")
    def _whole_model(self) -> "StudentConfig":
        _check_adapter(self.model, self.lora, "lora.save")
        _check_bits(self.model)
        return self

    @model_validator(mode="after")
    def _distinct_seeds(self) -> "StudentConfig":
        if len(set(self.seeds)) < max(1, len(self.seeds)) or min(self.seeds) < 0:
            reason = "seeds must be distinct, at least 0, and at least one"
            raise invalid(self.seed, reason, "Give each seed once, such as [0, 1, 2]", "seed")
        return self

    @property
    def seeds(self) -> list[int]:
        return self.seed if isinstance(self.seed, list) else [self.seed]
