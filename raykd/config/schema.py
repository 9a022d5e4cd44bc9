"""The typed schema of a job's YAML. Importable without torch or Ray."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from raykd.common.environment import home
from raykd.common.errors import ConfigError
from raykd.config.messages import invalid, user_error
from raykd.config.methods import Method
from raykd.config.search import SearchConfig
from raykd.config.section import Section

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class TaskConfig(Section):
    """What the models predict, and how rows become features."""

    type: Literal["image-classification", "text-classification", "token-classification", "question-answering"] = Field(
        description="the kind of task"
    )
    labels: list[str] | None = Field(None, description="class names in the model's order; default: the data's own")
    max_length: int | None = Field(None, ge=8, description="tokens a row; default 128, question answering 384")
    stride: int = Field(128, ge=1, description="QA: tokens that neighbouring windows of a long context share")
    max_answer_length: int = Field(30, ge=1, description="QA: longest answer, in tokens")

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("max_length") is None:
            qa = given.get("type") == "question-answering"
            return {**given, "max_length": 384 if qa else 128}
        return given

    @model_validator(mode="after")
    def _usable_labels(self) -> "TaskConfig":
        if self.labels is None:
            return self
        if self.type == "question-answering":
            raise invalid(self.labels, "question answering has no classes", "Remove it", "labels")
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise invalid(self.labels, "at least two distinct labels are required", "Name every class once", "labels")
        return self


class AugmentConfig(Section):
    """Random changes of training rows, drawn again every epoch; 0 turns one off."""

    shift: float = Field(0, ge=0, le=0.5, description="images: largest shift in each direction, as a share of the side")
    rotate: float = Field(0, ge=0, le=180, description="images: largest rotation in each direction, in degrees")
    drop_words: float = Field(0, ge=0, lt=1, description="text: probability that a word is dropped; one always stays")
    swap_words: float = Field(0, ge=0, le=1, description="text: share of the words that are swapped with a neighbour")

    @model_validator(mode="after")
    def _changes_something(self) -> "AugmentConfig":
        if not self.used:
            given = self.model_dump(exclude_unset=True)
            raise invalid(given, "it changes nothing", f"Set one of {', '.join(type(self).model_fields)}, or remove it")
        return self

    @property
    def used(self) -> dict[str, float]:
        return {name: value for name, value in self.model_dump().items() if value}


# By task. Tasks whose labels are positions in the text have none, because a change would move them.
AUGMENTS: dict[str, tuple[str, ...]] = {
    "image-classification": ("shift", "rotate"),
    "text-classification": ("drop_words", "swap_words"),
}


class DataConfig(Section):
    """Where the rows come from, and which rows each split has."""

    source: str = Field(description="a hub id, a local folder or file (parquet, JSON, CSV), or builtin:digits")
    name: str | None = Field(None, description="the hub data set's configuration")
    revision: str | None = Field(None, description="the hub data set's revision")
    train: str = Field("train", description="labelled rows: a split with an optional slice, or a file")
    validation: str = Field("validation", description="rows on which checkpoints, thresholds and settings are chosen")
    test: str = Field("test", description="rows that are only scored; nothing is chosen on them")
    transfer: str | None = Field(None, description="unlabelled rows that teachers label; any labels are dropped")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="maps the task's name of a column (text, text_pair, image, label; token classification: tokens, "
        "ner_tags; QA: id, question, context, answers) to the data's name",
    )
    workers: int | None = Field(None, ge=1, description="processes that tokenize; default: half of the cores")
    augment: AugmentConfig | None = Field(
        None,
        description="random changes of training rows, drawn again every epoch (images: shift, rotate; text: "
        "drop_words, swap_words); needs logits.mode=live",
    )


class ModelConfig(Section):
    """A model: a hub id or local folder, or a config to initialise from scratch."""

    pretrained: str | None = Field(None, description="a hub id or a local folder with safetensors")
    revision: str | None = Field(None, description="the hub model's revision")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="config values; with model_type and without pretrained: from scratch",
    )
    tokenizer: str | None = Field(None, description="its tokenizer or image processor, if not the model's own")
    trust_remote_code: bool = Field(False, description="run the code that comes with the hub's model")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"pretrained": given} if isinstance(given, str) else given

    @field_validator("pretrained", "tokenizer")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        # Absolute, because workers run in other folders.
        return os.path.abspath(value) if value and Path(value).is_dir() else value

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.pretrained is None and "model_type" not in self.config:
            raise invalid(
                self.config or "{}",
                "it is neither pretrained nor a config with a model_type",
                "Give a hub id or a folder as `pretrained`, or `config: {model_type: ...}`",
            )
        return self


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
        "auto", description="auto: bf16 autocast on a GPU that supports it, else fp32"
    )
    eval_every: int | None = Field(
        None, ge=1, description="optimizer steps between evaluations; default: a fifth of all steps"
    )
    select: str | None = Field(None, description="validation metric that chooses the checkpoint; default: the task's")
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


class RecipeConfig(Section):
    """How a teacher is fine-tuned here."""

    seed: int = Field(0, ge=0, description="initialises the head, shuffles the rows, draws the subset")
    rows: float = Field(1.0, gt=0, le=1, description="share of the training rows that it sees, drawn with its seed")
    training: dict[str, Any] = Field(default_factory=dict, description="values that differ from the training section")


def _check_gpus(count: float | None) -> None:
    if count is not None and count > 1:
        reason = "a model runs on one GPU, so the others would be reserved and idle"
        raise invalid(count, reason, "Give 1 or a fraction; more replicas or workers use more GPUs", "num_gpus")


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
        0, description="one seed, or a list; the student and its baseline are trained once for each"
    )
    training: dict[str, Any] = Field(default_factory=dict, description="values that differ from the training section")
    workers: int = Field(1, ge=1, description="Ray Train workers that share each batch (DDP)")
    num_cpus: float = Field(1, gt=0, description="CPUs per worker")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs per worker: 1 or a fraction; default 1 if there are any"
    )
    accelerator: str | None = Field(None, description=_ACCELERATOR)
    node_labels: dict[str, str] = Field(default_factory=dict, description=_NODE_LABELS)

    @model_validator(mode="after")
    def _possible_gpus(self) -> "StudentConfig":
        _check_gpus(self.num_gpus)
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


class LogitsConfig(Section):
    """How teachers' logits reach the student, and where they are stored."""

    mode: Literal["stored", "live"] = Field(
        "stored",
        description="stored: computed once per row and stored; live: computed by the teachers for every batch",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="the teachers' compute dtype")
    block_rows: int = Field(
        1024, ge=1, description="fewest rows in a block, the unit that is computed and stored at once"
    )
    batch_tokens: int = Field(
        16384, ge=1, description="most tokens in a teacher's batch: number of rows times the longest row"
    )
    compile: bool = Field(False, description="run teachers through torch.compile: slow to start, then faster")
    in_flight: int = Field(4, ge=1, description="live: most steps that a student worker requests ahead")
    timeout_s: float = Field(
        600, gt=0, description="longest time for a teacher to compute a block or an answer before it is replaced"
    )
    storage: str | None = Field(
        None, description="where blocks are stored: a path, s3://... or gs://...; default: in output/store"
    )
    cache: str | None = Field(
        None,
        description="folder on each node that caches blocks; default: none if storage is a path, else a temporary one",
    )
    cache_gb: float = Field(100, gt=0, description="largest size of the cache; least recently used blocks are evicted")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"mode": given} if isinstance(given, str) else given

    @field_validator("storage", "cache")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None or "://" in value else os.path.abspath(os.path.join(home(), value))


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = Field(None, description="default: MLFLOW_TRACKING_URI, else a sqlite file under output")
    experiment: str | None = Field(None, description="MLflow's experiment; default: the job's name")


class RayConfig(Section):
    """The Ray cluster."""

    address: str | None = Field(
        None, description="a running cluster; default: RAY_ADDRESS, else a local one is started"
    )
    max_retries: int = Field(3, ge=0, description="restarts of a process that keeps dying before its run fails")
    timeout_s: float = Field(
        1800,
        gt=0,
        description="longest wait for resources that the cluster has but that are in use; also for another command "
        "that trains the same model but makes no progress",
    )
    collective_timeout_s: int = Field(
        600, ge=1, description="longest time that one worker of a training waits for another before it fails"
    )
    wait_s: float = Field(
        0, ge=0, description="longest wait for an autoscaling cluster to grow to the requested size; 0: do not wait"
    )

    @property
    def cluster(self) -> str | None:
        """The address of the cluster that is named; None: a local one is started."""
        return self.address or os.environ.get("RAY_ADDRESS")


class Config(Section):
    """One experiment: an ensemble, a method, a student."""

    name: str = Field(pattern=NAME, description="the experiment; its files are in output/name")
    output: str = Field(
        "runs",
        description="folder for runs, store and (by default) MLflow, shared by all nodes; a relative path is relative "
        "to RAYKD_HOME, else to the current folder (in a submitted job: ~/raykd)",
    )
    task: TaskConfig = Field(description="what the models predict")
    data: DataConfig = Field(description="the rows")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate({}),
        description="shared by teachers, baseline and student, for a fair comparison",
    )
    teachers: list[TeacherConfig] = Field(min_length=1, description="the ensemble")
    student: StudentConfig = Field(description="the student")
    method: Method = Field(default_factory=lambda: Method.model_validate({}), description="how to distil")
    baseline: bool = Field(
        True, description="also fine-tune the student without teachers, with the same seeds and number of steps"
    )
    search: SearchConfig = Field(
        default_factory=lambda: SearchConfig.model_validate({}), description="what `raykd sweep` searches"
    )
    logits: LogitsConfig = Field(
        default_factory=lambda: LogitsConfig.model_validate({}), description="how logits reach the student"
    )
    tracking: TrackingConfig = Field(default_factory=lambda: TrackingConfig.model_validate({}), description="MLflow")
    ray: RayConfig = Field(default_factory=lambda: RayConfig.model_validate({}), description="the cluster")

    @field_validator("output")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return os.path.abspath(os.path.join(home(), value))

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.name in ("store", "mlflow.db"):
            raise ConfigError("name", self.name, "output holds another thing of this name", "Use another name")
        names = [t.name for t in self.teachers]
        for name in names:
            if name in ("ensemble", "baseline"):
                raise ConfigError("teachers", name, "the table of results uses this name", "Rename the teacher")
            if names.count(name) > 1:
                raise ConfigError("teachers", name, "two teachers have this name", "Give each its own name")
        if self.method.teacher is not None and self.method.teacher not in names:
            raise ConfigError(
                "method.teacher",
                self.method.teacher,
                f"the teachers are {', '.join(names)}",
                "Name one of them, or remove it to distil from the ensemble",
            )
        self._check_live()
        self.training_of(self.student.training, "student.training")
        for teacher in self.teachers:
            if teacher.recipe:
                self.training_of(teacher.recipe.training, f"teachers.{teacher.name}.recipe.training")
        return self

    def _check_live(self) -> None:
        """Check live logits, and the augmentation that needs them."""
        augment, live, generations = self.data.augment, self.logits.mode == "live", self.method.generations
        if augment is not None:
            known = AUGMENTS.get(self.task.type, ())
            if not known:
                kind = self.task.type.replace("-", " ")
                reason = f"{kind} has no augmentation, because its labels are positions in the text"
                raise ConfigError("data.augment", augment.used, reason, "Remove it")
            for name, value in augment.used.items():
                if name not in known:
                    reason = f"{self.task.type} does not use it"
                    raise ConfigError(f"data.augment.{name}", value, reason, f"Remove it, or use {' or '.join(known)}")
            if self.method.distils and not live:
                reason = "stored logits belong to rows that do not change"
                raise ConfigError("data.augment", augment.used, reason, "Set logits.mode=live, or remove it")
        if live and generations > 1:
            reason = f"method.generations = {generations} needs the stored logits of earlier students"
            hint = "Use logits.mode=stored" + (" and remove data.augment" if augment else "")
            raise ConfigError("logits.mode", "live", reason, hint)

    def training_of(self, changes: dict[str, Any], key: str) -> TrainingConfig:
        """The training section with one model's own values.

        changes: the values that differ.
        key: where they are in the YAML, for errors.
        """
        base = self.training.model_dump()
        if {"steps", "epochs"} & changes.keys():
            base |= {"steps": None, "epochs": None}
        try:
            return TrainingConfig.model_validate(base | changes)
        except ValidationError as error:
            raise user_error(error, TrainingConfig, key) from None

    @property
    def folder(self) -> Path:
        """The folder for this experiment's results."""
        return Path(self.output) / self.name

    @property
    def store(self) -> Path:
        """The folder that experiments share: encoded data, trained models and logits, by fingerprint."""
        return Path(self.output) / "store"
