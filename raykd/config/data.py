"""The schema's sections about the task and the data. Importable without torch or Ray."""

from typing import Any, Literal

from pydantic import Field, JsonValue, PrivateAttr, model_validator

from raykd.common.dotted import is_dotted
from raykd.common.entry_points import own_path
from raykd.common.errors import ConfigError
from raykd.common.own_code import OwnCode, read_code
from raykd.common.own_objects import imported
from raykd.config.messages import choices, invalid
from raykd.config.section import Own, Place, Section

_USUAL_LENGTH = 128  # tokens
_USED_BY = {
    **dict.fromkeys(("train_on", "long", "chat_template_kwargs", "generate"), "text-generation"),
    **dict.fromkeys(("stride", "max_answer_length"), "question-answering"),
    "tolerance": "regression",
}  # settings that one task alone uses


class GenerateConfig(Section):
    """Text generation: texts that a model writes after prompts of the test rows, scored against the answers."""

    rows: int = Field(200, ge=1, description="test rows, drawn once, the same for all models")
    max_new_tokens: int = Field(64, ge=1, description="where a text ends that the model does not end itself")


class TaskConfig(Section):
    """What the models predict, and how rows become features."""

    type: (
        Literal[
            "image-classification",
            "text-classification",
            "multi-label-classification",
            "regression",
            "multiple-choice",
            "token-classification",
            "question-answering",
            "text-generation",
        ]
        | Own
    ) = Field(description="the kind of task, or your own: module:class, or an installed package's name")
    labels: list[str] | None = Field(None, description="class names in the model's order; default: the data's own")
    max_length: int | None = Field(
        None, ge=8, description="tokens a row; default 128, question answering 384, text generation 512"
    )
    stride: int = Field(128, ge=1, description="QA: tokens that neighbouring windows of a long context share")
    max_answer_length: int = Field(30, ge=1, description="QA: longest answer, in tokens")
    tolerance: float | None = Field(
        None,
        gt=0,
        description="regression: a teacher whose value is farther from the label than this is wrong; in the unit of "
        "the labels, needed by method.weighting=correctness",
    )
    train_on: Literal["completion", "all"] | None = Field(
        None,
        description="text generation: the tokens that are learnt, those of completions (and of the assistant's "
        "messages) or all; default: all of a text, else completion",
    )
    long: Literal["split", "truncate", "drop"] | None = Field(
        None,
        description="text generation: split rows of more than max_length tokens into windows, truncate them, or leave "
        "them out of all splits; default: split texts, truncate others",
    )
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None,
        description="text generation: values for the chat template, such as {enable_thinking: false} for Qwen3",
    )
    generate: GenerateConfig | None = Field(
        None,
        description="text generation: also score what teachers and students write, greedily, after prompts of test "
        "rows, by exact match, F1 and ROUGE-L; not the ensemble, nor a teacher with folds; default: off",
    )

    _code: OwnCode = PrivateAttr(OwnCode())
    _kind: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _of_a_package(cls, given: Any) -> Any:
        return {**given, "type": _path_of_task(given["type"])} if isinstance(given, dict) and "type" in given else given

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("max_length") is None:
            lengths = {"question-answering": 384, "text-generation": 512}
            return {**given, "max_length": lengths.get(kind_of_task(str(given.get("type"))), _USUAL_LENGTH)}
        return given

    @model_validator(mode="after")
    def _own(self) -> "TaskConfig":
        self._kind = kind_of_task(self.type)
        if is_dotted(self.type):
            self._code = read_code({"task.type": self.type})
        return self

    @model_validator(mode="after")
    def _usable_labels(self) -> "TaskConfig":
        if self.labels is None:
            return self
        if self.kind in ("question-answering", "regression", "multiple-choice", "text-generation"):
            raise invalid(self.labels, f"{self.type.replace('-', ' ')} has no classes", "Remove it", "labels")
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise invalid(self.labels, "at least two distinct labels are required", "Name every class once", "labels")
        return self

    @model_validator(mode="after")
    def _used_by_the_task(self) -> "TaskConfig":
        for name, default in ignored_by(self.type).items():
            if (value := getattr(self, name)) != default:
                raise invalid(value, f"{self.type.replace('-', ' ')} does not use it", "Remove it", name)
        return self

    @property
    def kind(self) -> str:
        """The task of raykd's own that it is or derives from, by which it is configured; "" if it derives from none."""
        return self._kind if is_dotted(self.type) else self.type

    @property
    def code(self) -> OwnCode:
        """The code of a task of the user's own. It stays with this section, also on its way to a worker."""
        return self._code

    @property
    def predicts_values(self) -> bool:
        """Whether models predict values, which have no classes and no probabilities."""
        return self.kind == "regression"

    @property
    def predicts_tokens(self) -> bool:
        """Whether models are language models."""
        return self.kind == "text-generation"


def ignored_by(task: str) -> dict[str, Any]:
    """The settings that a task (`task.type`) does not use, with their defaults, which saved configs have. ConfigError.

    A class of the user's own may well read what raykd's tasks do not, unless its default is to have no value.
    """
    kind, fields = kind_of_task(task), TaskConfig.model_fields
    ignored = {name: fields[name].default for name, user in _USED_BY.items() if user != kind}
    if is_dotted(_path_of_task(task)):
        return {name: default for name, default in ignored.items() if default is None}
    return ignored | ({"max_length": _USUAL_LENGTH} if task == "image-classification" else {})


def kind_of_task(name: str) -> str:
    """The task of raykd's own that `task.type` names or derives from; "" if the user's own class derives from none.

    Imports the user's own. Raises ConfigError.
    """
    if not is_dotted(name := _path_of_task(name)):
        return name
    read_code({"task.type": name}).install()
    found = imported(name, "task.type")
    if not isinstance(found, type) or not isinstance(kind := getattr(found, "kind", None), str):
        hint = "Name a class that derives from raykd.tasks.Task, or from one of raykd's tasks"
        raise ConfigError("task.type", name, "it is no class of a task", hint)
    return kind


def _path_of_task(name: Any) -> Any:
    """`module:class` of a task that an installed package declares; any other value unchanged. Raises ConfigError."""
    return own_path("task.type", name, tuple(choices(TaskConfig.model_fields["type"].annotation)))


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
    "multi-label-classification": ("drop_words", "swap_words"),
    "regression": ("drop_words", "swap_words"),
    "multiple-choice": ("drop_words", "swap_words"),
}


class DataConfig(Section):
    """Where the rows come from, and which rows each split has."""

    source: Place = Field(
        description="a hub id, a folder, a file (parquet, arrow, JSON, CSV, TSV, text, .gz), builtin:digits, or "
        "builtin:stdlib (the standard library's source files, as texts), or "
        "your own function, which returns them: module:function, or an installed package's name"
    )
    name: str | None = Field(None, description="the hub data set's configuration")
    revision: str | None = Field(None, description="the hub data set's revision")
    train: Place = Field("train", description="labelled rows: a split with an optional slice, or a file")
    validation: Place = Field("validation", description="rows on which checkpoints, thresholds and settings are chosen")
    test: Place = Field("test", description="rows that are only scored; nothing is chosen on them")
    transfer: Place | None = Field(None, description="unlabelled rows that teachers label; any labels are dropped")
    columns: dict[str, str | list[str]] = Field(
        default_factory=dict,
        description="maps the task's name of a column (text, text_pair, image, label, in regression a number; "
        "multi-label: labels; token classification: tokens, ner_tags; QA: id, question, context, answers; multiple "
        "choice: question, context, label and choices, one column or a list of columns; text generation: text, or "
        "prompt and completion, or messages and tools; answers) to the data's name",
    )
    group: str | None = Field(
        None,
        description="a column of the data; rows with an equal value in it depend on each other (one patient, author or "
        "document): they are in one fold, and intervals are over groups instead of rows. Default in QA and multiple "
        "choice: the context",
    )
    workers: int | None = Field(None, ge=1, description="processes that tokenize; default: half of the cores")
    augment: AugmentConfig | None = Field(
        None,
        description="random changes of training rows, drawn again every epoch (images: shift, rotate; text: "
        "drop_words, swap_words); needs logits.mode=live",
    )

    def column(self, role: str) -> str:
        """The data's name of a column; several names as one text."""
        name = self.columns.get(role, role)
        return name if isinstance(name, str) else ", ".join(name)
