"""Loads, checks and encodes the data and opens and checks the models, before any training."""

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from raykd.common.errors import ConfigError, own_code_checked
from raykd.common.output_files import TRAININGS
from raykd.common.own_code import OwnCode
from raykd.common.row_files import damage
from raykd.common.uses import note_uses
from raykd.config.models import NewTokenizer
from raykd.config.parameter import read_parameter
from raykd.config.schema import Config, StudentConfig, TeacherConfig, TrainingConfig
from raykd.data.bpe import trained_tokenizer
from raykd.data.encoding import Encoded, encode, encoded_as, keep_raw
from raykd.data.folds import held_out
from raykd.data.loading import load_splits
from raykd.data.split import Split
from raykd.models.hub import check_push
from raykd.models.opened import OpenedModel, open_model
from raykd.plan.checked import check_once
from raykd.plan.compatibility import (
    check_alignment,
    check_config,
    check_lengths,
    check_vocabulary,
)
from raykd.plan.given_teachers import check_given_teachers
from raykd.plan.job import ScoredSplit
from raykd.plan.long_rows import without_long_rows
from raykd.plan.lora_check import check_lora, check_peft
from raykd.plan.model_check import check_loaded
from raykd.plan.own_functions import check_imported, check_results, code_by_function
from raykd.plan.own_tasks import check_own_task
from raykd.tasks import Task, make_task

log = logging.getLogger(__name__)
_VERSION = 2  # increase it when a check of encoded rows is added, so that all are checked again


@dataclass(frozen=True)
class Member:
    """A teacher or the student.

    model: its model. Members that start from equal models share one.
    splits: the data as encoded for this model, by split.
    classes: (classes,) the position of each of the task's classes among a given teacher's outputs. () if they are in
        the task's order.
    """

    model: OpenedModel
    splits: dict[str, Encoded] = field(default_factory=dict)
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """The data and the models of an experiment, before the first training."""

    task: Task
    splits: dict[str, Split]
    raw: dict[str, Path]
    student: Member
    teachers: dict[str, Member]
    code: dict[str, OwnCode] = field(default_factory=dict)

    def scored(self, member: Member, split: str) -> ScoredSplit:
        return ScoredSplit(member.splits[split], self.raw[split])

    def steps(self, training: TrainingConfig, batch_rows: int) -> int:
        """Number of optimizer steps.

        batch_rows: encoded rows of train and transfer. Epochs always count both, so that teachers train as many steps
        as students.
        """
        if training.steps is not None:
            return training.steps
        assert training.epochs is not None
        return max(1, math.ceil(training.epochs * batch_rows / training.batch_size))


def prepare(config: Config) -> Prepared:
    """Load, check and encode everything. Raises ConfigError for anything that can be known to fail."""
    return keep_prepared(config, *load_and_encode(config))


def keep_prepared(config: Config, task: Task, splits: dict[str, Split], members: dict[str, Member]) -> Prepared:
    """The results of `load_and_encode`, which must not have skipped anything, as one value.

    Writes the raw rows to the store, and notes there that this experiment uses them, the encoded ones, and the models
    of other experiments that it starts from.
    """
    raw = {name: keep_raw(split, config.store) for name, split in splits.items()}
    teachers = {t.name: members[f"teachers.{t.name}.model"] for t in config.teachers}
    names = {f"data/{folder.name}": f"{name}, raw" for name, folder in raw.items()}
    for member in members.values():
        names |= {f"data/{encoded.folder.name}": name for name, encoded in member.splits.items()}
        names |= _trainings_of(member.model, config.store)
    note_uses(config.store, config.name, names)
    return Prepared(task, splits, raw, members["student.model"], teachers, code_by_function(config))


def _trainings_of(model: OpenedModel, store: Path) -> dict[str, str]:
    """For `note_uses`, the trainings of this store that a model comes from, or the one that its adapter changes."""
    folders = {folder.resolve() for folder in (model.folder, model.weights) if folder}
    trainings = (store / TRAININGS).resolve()
    inside = [folder.relative_to(trainings) for folder in folders if folder.is_relative_to(trainings)]
    return {f"{TRAININGS}/{path.parts[0]}": model.key for path in inside if path.parts}


@own_code_checked()
def load_and_encode(config: Config, skip: Collection[str] = ()) -> tuple[Task, dict[str, Split], dict[str, Member]]:
    """Load, check and encode the data, and open and check the models.

    Returns the task, the splits, and the models by config key. Writes the encoded rows, and tokenizers that are trained
    here, to the store.

    skip: keys of what is not available here: "data.source", "student.model", "teachers.NAME.model", and these with
        ".tokenizer".
    """
    task = make_task(config.task, config.task.labels or ())
    check_metrics(config, task, None)  # only their names, before loading the data, which takes time
    check_output(config)
    check_peft(config)
    check_push(config, uploads=False)
    check_imported(config)
    check_lengths(config, task)
    _warn_of_equal_weights(config)
    models = _open_models(config, task, skip)  # first whether they are available, as the data can take a while
    splits = {} if "data.source" in skip else load_splits(config, task)
    if splits:
        check_metrics(config, task, splits["validation"])
    for model in models.values():  # those with a max_length of their own have a task of their own
        model.task.label_names = task.label_names
    models = _with_tokenizers(models, splits, task, config.store)
    orders = check_given_teachers(config, task, models)
    given = {f"teachers.{t.name}.model" for t in config.teachers if t.recipe is None}
    unchanged = [models[key] for key in given & models.keys()]
    for model in dict.fromkeys(models.values()):
        check_config(model, model in unchanged, config)
    check_lora(config, models)
    available = {
        key: model
        for key, model in models.items()
        if f"{key}.tokenizer" not in skip and not isinstance(model.spec.tokenizer, NewTokenizer)
    }
    if config.task.long == "drop" and available:
        one = next(iter(available.values()))
        splits = {name: without_long_rows(split, one, config) for name, split in splits.items()}
    for teacher in config.teachers if splits else ():
        if teacher.recipe:
            held_out(splits["train"], teacher, task)
    encoded = {model: _encode(config, model, splits) for model in dict.fromkeys(available.values())}
    members = {key: Member(model, encoded[model], orders.get(key, ())) for key, model in available.items()}
    if task.aligned_columns and (student := members.get("student.model")):
        for key, member in members.items():
            check_alignment(task, key, member.model, member.splits, student.model, student.splits, splits)
    for key, member in members.items():
        check_loaded(member.model, key in given, config, task, member.splits, key)
    if (student := members.get("student.model")) and splits:
        check_results(config, task, student.model, student.splits["train"])
        check_own_task(config, task, student.model, splits["validation"], student.splits["validation"])
    return task, splits, members


def _warn_of_equal_weights(config: Config) -> None:
    """Warn if `method.weighting` cannot change any teacher's weight."""
    method, W_is_searched = config.method, "method.W" in config.search.space
    if method.weighting != "mean" and (len(config.teachers) == 1 or method.teacher):
        log.warning("method.weighting: %s has no effect with one teacher; this is plain KD", method.weighting)
    elif method.weighting == "correctness" and method.W == 1 and method.all_wrong == "mean" and not W_is_searched:
        log.warning(
            "method.W = 1.0 gives all teachers the same weight; this is plain KD. Lower it, for example to 0.75"
        )


def _open_models(config: Config, task: Task, skip: Collection[str]) -> dict[str, OpenedModel]:
    """The models by config key. Equal ones, which are common among teachers, are opened only once."""
    members: dict[str, TeacherConfig | StudentConfig] = {f"teachers.{t.name}.model": t for t in config.teachers}
    members["student.model"] = config.student
    store, tasks = config.store, {config.task.max_length: task}
    opened: dict[tuple[str, bool, int | None], OpenedModel] = {}
    models = {}
    for key, member in members.items():
        if key in skip:
            continue
        settings = config.task_of(member)
        identity = member.model.model_dump_json(), f"{key}.tokenizer" in skip, settings.max_length
        if identity not in opened:
            own = tasks.setdefault(settings.max_length, make_task(settings, task.label_names))
            opened[identity] = open_model(member.model, own, key, store)
        models[key] = opened[identity]
    return models


def _with_tokenizers(
    models: Mapping[str, OpenedModel], splits: Mapping[str, Split], task: Task, store: Path
) -> dict[str, OpenedModel]:
    """The models with the folders of their tokenizers where those are to be trained. Without data they cannot be."""
    made: dict[OpenedModel, OpenedModel] = {}
    for key, model in models.items():
        made.setdefault(model, model)
        if (wanted := model.spec.tokenizer) is None or isinstance(wanted, str):
            continue
        if not task.predicts_tokens:
            hint = "Give a folder or hub id that holds a tokenizer"
            raise ConfigError(f"{key}.tokenizer.train_bpe", wanted.train_bpe, "only text generation has it", hint)
        if splits and made[model] is model:
            folder = trained_tokenizer(wanted.train_bpe, splits["train"], store)
            spec = model.spec.model_copy(update={"tokenizer": str(folder)})
            made[model] = OpenedModel(spec, model.key, model.task, model.folder, model.store)
    return {key: made[model] for key, model in models.items()}


def _encode(config: Config, model: OpenedModel, splits: dict[str, Split]) -> dict[str, Encoded]:
    """The splits as encoded for the model, checked."""
    store, facts, task = config.store, model.processor_facts, model.task
    encoded = {name: encoded_as(split, task, store, facts.digest, facts.encoding) for name, split in splits.items()}
    for name, split in splits.items():
        if damage(encoded[name].folder):  # the processor is loaded only to encode with it
            try:
                encode(split, task, model.processor, store, config.data.workers, facts.digest)
            except ConfigError as error:
                if error.key != "tokenizer":
                    raise
                raise ConfigError(f"{model.key}.tokenizer", error.value, error.reason, error.hint) from None
        for note in task.notes(encoded[name].open()):
            log.info("data.%s, for %s: %s", name, model.key, note)
    rows = sorted(e.digest for e in encoded.values())
    versions = [_VERSION, version("transformers"), version("torch")]
    if config.task.generate:
        rows.append(config.task.generate.model_dump_json())

    def check() -> None:
        check_vocabulary(model, task, encoded)
        both = {name: (split.rows, encoded[name].open()) for name, split in splits.items()}
        task.check_encoded(both, model.processor, f"{model.key}.tokenizer")
        if config.task.generate and "test" in splits:
            positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
            task.check_prompts(splits["test"].rows, model.processor, positions)

    check_once(store, ["encoded", model.digest, facts.digest, rows, task.label_names, *versions], check)
    return encoded


def check_output(config: Config) -> None:
    """Create the output folders. Raises ConfigError if that is not possible.

    A new output folder ignores itself, so that neither git nor the upload of `ray job submit` takes its gigabytes.
    """
    new = not Path(config.output).exists()
    try:
        config.store.mkdir(parents=True, exist_ok=True)
        if new:
            Path(config.output, ".gitignore").write_text("*\n")
        config.folder.mkdir(exist_ok=True)
    except OSError as error:
        reason = f"the folder cannot be created ({error.strerror})"
        raise ConfigError("output", config.output, reason, "Name a folder that you can write to") from None


def check_metrics(config: Config, task: Task, validation: Split | None) -> None:
    """Raise ConfigError if a metric that chooses checkpoints or settings does not exist or cannot be measured.

    validation: the rows to measure on; None: check only the names.
    """
    chosen = [(f"{key}.select", training.select) for key, (training, _) in config.training_sections().items()]
    chosen.append(("search.metric", config.search.metric))
    for key in ("training.select", "student.training.select"):
        if key in config.search.space:
            chosen += [(f"search.space.{key}", name) for name in read_parameter(key, config.search.space[key]).values]
    # Without a choice, what is trained takes the task's own metric.
    default = {f"{key}.select" for key in config.training_sections() if key != "training"}
    if "training.select" in config.search.space:
        default.discard("student.training.select")
    default -= config.search.space.keys()
    missing = task.unmeasurable(validation.rows) if validation else {}
    known = ", ".join(name for name in task.metric_names if name not in missing)
    for key, name in chosen:
        if name is not None and name not in task.metric_names:
            raise ConfigError(key, name, "the task has no such metric", f"Choose one of {known}")
        used = task.primary_metric if name is None and key in default else name
        if used in missing:
            reason = f"data.validation ({config.data.validation}) cannot give it, because {missing[used]}"
            value = name or f"{used} (the default)"
            raise ConfigError(key, value, reason, f"Choose one of {known}, or other validation rows")
