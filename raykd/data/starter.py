"""`raykd init`: a first job for somebody's own data, as YAML with comments."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from raykd.common.errors import ConfigError
from raykd.config.schema import RESERVED
from raykd.data.guess import Found, look_at, mapping, quoted

_TEACHER = {
    "text-classification": "google/electra-base-discriminator",
    "multi-label-classification": "google/electra-base-discriminator",
    "regression": "google/electra-base-discriminator",
    "multiple-choice": "google/electra-base-discriminator",
    "token-classification": "google/electra-base-discriminator",
    "question-answering": "google/electra-base-discriminator",
    "image-classification": "google/vit-base-patch16-224-in21k",
}
_STUDENT = {name: "google/electra-small-discriminator" for name in _TEACHER}
_TEACHER["text-generation"] = "HuggingFaceTB/SmolLM2-360M"
_STUDENT["text-generation"] = "HuggingFaceTB/SmolLM2-135M"
_STUDENT["image-classification"] = "facebook/deit-tiny-patch16-224"
_FIRST_SEED = 101  # of the teachers: the student has 0, 1 and 2, and a sweep the numbers after those
_CONTROLS = ("finetune", "label_smoothing")  # in every sweep
_METHODS = (*_CONTROLS, "annealing", "weighted", "born_again")

_JOB = """\
# Written by `raykd init`. `raykd check {path}` says what would run; `raykd check --help` explains every key.
name: {name}
task: {{type: {task}{tolerance}}}
data:
  source: {source}{columns}{unused}
  train: {train}
  validation: {validation}   # chooses checkpoints, thresholds and settings
  test: {test}   # only ever scored
  # transfer: more.parquet            # unlabelled rows that the teachers label
# Any hub ids or folders; `recipe` fine-tunes a model here, a fine-tuned checkpoint goes without it. No teacher has a
# seed of the student's: with the same model and seed it would be the same training as the student's baseline.
teachers:
{teachers}
student:
  model: {student}
  seed: [0, 1, 2]
training: {{epochs: {epochs}, batch_size: 32, learning_rate: 5.0e-5}} # shared by teachers, baseline and student
method: {{type: kd, alpha: 0.5{temperature}}} # or {methods}
search: # what `raykd sweep` tries
  trials: 8 # of each method
  seeds: 3 # on which the best setting of each method is trained again
  space:
    method.type: [{searched}]
    method.alpha: {{uniform: [0.3, 1.0]}}{temperatures}{weights}
"""


def write_job(source: str, path: Path, teachers: Sequence[str], student: str | None) -> Found:
    """Write a job for this data. Raises ConfigError for data that cannot be read or a file that cannot be written.

    An existing file is never written over.

    source: a file, a folder or a hub id.
    teachers: hub ids or folders; empty: three times the same, with different seeds.
    student: None: a small one.
    """
    if path.exists():
        raise ConfigError("--job", path, "this file exists", "Name another one")
    found = look_at(source)
    chat = "-Instruct" if "messages" in found.columns else ""  # the models of this name have a chat template
    models = teachers or [_TEACHER[found.task] + chat] * 3
    lines = [
        f"  - {{name: {chr(97 + i)}, model: {quoted(model)}, recipe: {{seed: {_FIRST_SEED + i}}}}}"
        for i, model in enumerate(models)
    ]
    renamed = {role: column for role, column in found.columns.items() if role != column}
    stem = Path(source).name.split(".")[0] or "job"
    values = found.tolerance is not None  # no classes, so no distributions over them
    left_out = ({"label_smoothing"} if values else set()) | ({"weighted"} if len(models) == 1 else set())
    methods = [name for name in _METHODS if name not in left_out]  # one teacher has nothing to be weighted against
    text = _JOB.format(
        tolerance=f", tolerance: {found.tolerance:g}" if values else "",
        temperature="" if values else ", temperature: 2",
        methods=", ".join(methods),
        searched=", ".join(["kd", *(name for name in methods if name not in _CONTROLS)]),
        weights="" if "weighted" in left_out else "\n    method.W: {uniform: [0, 1]}",
        temperatures="" if values else "\n    method.temperature: {log_uniform: [1, 8]}",
        path=shlex.quote(str(path)),
        name=_name(stem),
        task=found.task,
        source=quoted(source),
        columns=f"\n  columns: {mapping(renamed)}   # the task's name: the data's name" if renamed else "",
        unused="".join(f"\n  # {line}" for line in not_used(found)),
        teachers="\n".join(lines),
        epochs=_epochs(found),
        student=quoted(student or _STUDENT[found.task] + chat),
        **found.splits,
    )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = f"it cannot be written ({error.strerror or type(error).__name__})"
        raise ConfigError("--job", path, reason, "Name a file in a folder that exists") from None
    return found


def _name(stem: str) -> str:
    """An experiment's name for a file such as "my reviews"."""
    name = "".join(c if (c.isascii() and c.isalnum()) or c in "_-" else "_" for c in stem).lstrip("-")
    return name if name.strip("_") and name not in RESERVED else "job"


def _epochs(found: Found) -> int:
    """Three, and more of few rows: up to 20, for about 300 steps. A language model soon repeats rows by heart."""
    if found.task == "text-generation":
        return 3
    share = {"train": 1.0, "train[:90%]": 0.9}.get(found.splits["train"], 0.8)
    steps = max(1, math.ceil(found.rows * share / 32))
    return min(20, max(3, math.ceil(300 / steps)))


def not_used(found: Found) -> list[str]:
    """Which columns the job does not use, and how to use some of them. [] if it uses all."""
    if not found.unused:
        return []
    return [f"not used: {', '.join(found.unused)}", *(f"  {line}" for line in found.uses)]
