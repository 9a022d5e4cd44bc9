"""Loads and runs each model once before any training, to check its weights and its logits."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raykd.common.errors import ConfigError, OwnCodeError
from raykd.common.late import Late
from raykd.common.units import counted
from raykd.config.schema import Config
from raykd.data.encoding import Encoded
from raykd.distillation import NotFiniteError
from raykd.logits.keep import Keep
from raykd.models.inputs import input_columns
from raykd.models.language import misfit
from raykd.models.loading import lacking_weights, load_reported
from raykd.models.opened import OpenedModel
from raykd.models.prediction import Inference, PendingLogits
from raykd.models.problems import short_reason
from raykd.models.quantized import check_quantization
from raykd.plan.checked import check_once
from raykd.tasks import Task

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


log = logging.getLogger(__name__)

_VERSION = 1  # increase it when a check is added, so that all models are checked again
_DECISIONS = 256  # of a language model, whose logits are compared
# Relative to the largest absolute logit (at least 1): four times the rounding error of the store's fp16, and far below
# the changes caused by padding or other rows of a batch that are not masked.
TOLERANCE = 2.0**-8
# Unused weights that a fine-tuned model's file can contain: a body's pooler, and heads of pretraining.
_LEFT_OVER = {"pooler", "cls", "lm_head", "predictions", "lm_predictions", "mask_predictions", "sop_classifier"}
_LEFT_OVER |= {"discriminator_predictions", "generator_predictions", "generator_lm_head", "lm_loss", "pred_layer"}
_LEFT_OVER |= {"vocab_layer_norm", "vocab_projector", "vocab_transform", "final_logits_bias"}
# Tables in older files that are now computed from the config: causal masks, positions, rotations.
_TABLES: tuple[str, ...] = (
    ".attn.bias",
    ".attention.bias",
    ".masked_bias",
    ".inv_freq",
    "position_ids",
    "token_type_ids",
)
_TABLES += ("relative_position_index", "num_batches_tracked")


def check_loaded(
    model: OpenedModel, given: bool, config: Config, task: Task, encoded: Mapping[str, Encoded], key: str
) -> None:
    """Raise ConfigError if weights are missing or unused, or if the logits of two rows are invalid.

    given: whether it is a teacher that is used unchanged. Any other model is trained, so its head can be new.
    encoded: the splits as encoded for this model; empty if the data is not available, to check only the weights.
    key: the model's config key, for messages.
    """
    check_quantization(model)  # below, it is checked as it was saved, since rounding would hide what is wrong
    # An encoded split's digest covers its rows, the processor and the preprocessing.
    rows = sorted(e.digest for e in encoded.values())
    versions = [_VERSION, version("transformers"), version("torch")]
    identity = [model.digest, given, task.auto_model, task.label_names or task.problem_type or (), rows, *versions]
    keep = Keep.of(config, task)
    if keep.packed:
        identity.append([keep.form, keep.k])
    check_once(config.store, identity, lambda: _check_loaded(model, given, task, encoded, keep, key))


def _check_loaded(
    model: OpenedModel, given: bool, task: Task, encoded: Mapping[str, Encoded], keep: Keep, key: str
) -> bool:
    if not _has_memory(model, key):
        return False
    try:
        loaded, missing, unused = load_reported(model, 0, model.processor)
    except ConfigError:
        raise
    except Exception as error:  # transformers raises exceptions of any type
        raise _not_loaded(model, error, key) from None
    if task.predicts_tokens:
        _check_language_model(loaded, missing, key, model.source)
        _check_kept(loaded, keep, len(model.processor), key)
    _check_weights(loaded, missing, unused, given, bool(model.spec.config), key, model.source)
    if encoded:
        _check_logits(loaded.eval(), task, _two_rows(encoded, task), given, model, key)
    return True


def _has_memory(model: OpenedModel, key: str) -> bool:
    """Whether this machine can hold the model. The driver's machine can be smaller than the one that runs the model."""
    folder = model.weights
    needed = 2 * sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else 0  # bf16 becomes fp32
    free = _free_memory()
    if needed > free:
        log.warning(
            "%s: not checked by loading it, which can take %.0f GB of memory; %.0f GB are free",
            key,
            needed / 1e9,
            free / 1e9,
        )
    return needed <= free


def _free_memory(machine: Path = Path("/proc/meminfo"), container: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes of memory that this process can still use, also within its container's limit.

    machine: Linux's meminfo file.
    container: folder of the control group, version 1 or 2.
    """
    free = float("inf")  # not Linux
    with contextlib.suppress(OSError, StopIteration):
        lines = machine.read_text().splitlines()
        free = next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    for most, used, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # the other version of control groups, or "max": no limit
            limit, taken = int((container / most).read_text()), int((container / used).read_text())
            statistics = dict(line.split() for line in (container / most).with_name("memory.stat").open())
            free = min(free, limit - taken + int(statistics.get(dropped, 0)))  # cached files are freed when needed
    return free


def _not_loaded(model: OpenedModel, error: Exception, key: str) -> ConfigError:
    reason, hint = (
        f"it cannot be loaded ({short_reason(error)})",
        "Load it with transformers to see the whole error",
    )
    settings = getattr(model.config, "quantization_config", None)
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
        reason = (
            f"it is quantised ({getattr(method, 'value', method)}) and cannot be loaded here ({short_reason(error)})"
        )
        hint = "Use the checkpoint that it was made from, or save it with dequantize() and save_pretrained"
    return ConfigError(key, model.source, reason, hint)


def _check_weights(
    model: Any,
    missing: set[str],
    unused: Collection[str],
    given: bool,
    resized: bool,
    key: str,
    source: object,
) -> None:
    """Raise ConfigError if the files lack weights, or contain weights that the model does not use.

    missing, unused: as transformers reports them.
    given: check all weights; otherwise only those of the body.
    resized: whether the user sets values of the config, which can ask for fewer layers than the file has.
    """
    base = f"{model.base_model_prefix}."
    parts = {name for name, _ in model.named_modules()}
    buffers = dict(model.named_buffers())
    lacking = lacking_weights(model, missing)
    surplus = [n for n in unused if n not in buffers and base + n not in buffers and not n.endswith(_TABLES)]
    if not given:
        lacking = [n for n in lacking if n.startswith(base) and "pooler" not in n.split(".")]
        surplus = [n for n in surplus if _in_body(n, base, parts, resized)]
    else:
        surplus = [n for n in surplus if not _LEFT_OVER & set(n.removeprefix(base).split(".")[:2])]
    if not lacking and not surplus:
        return
    for prefix, origin in (("_orig_mod.", "torch.compile"), ("module.", "DataParallel"), ("base_model.", "peft")):
        if unused and all(n.startswith(prefix) for n in unused):
            reason = (
                f"the names of its weights begin with {prefix}, because they were saved from {origin}, so none matches"
            )
            raise ConfigError(key, source, reason, "Save the model inside the wrapper")
    if lacking:
        kind = "weights" if given else "weights of its body"
        reason = f"its files lack {len(lacking)} {kind}, which would be random ({_some(lacking)})"
        hint = "Save the whole fine-tuned model, or give it a recipe" if given else "Save the whole model"
        hint += "; if they are there under other names, rename them" if surplus else ""
        if not given and resized:
            hint = "Remove the values of its config that add weights, or train from scratch"
    else:
        reason = f"its files contain {counted(len(surplus), 'weight')} that the model does not use ({_some(surplus)})"
        hint = "Save it again from the class that its config.json names, without them"
    raise ConfigError(key, source, reason, hint)


def _check_language_model(model: Any, missing: set[str], key: str, source: object) -> None:
    """Raise ConfigError if its files lack the head, or if its logits are not those of a causal model with one head."""
    hint = "Use a causal language model, such as one whose config.json names a class that ends in ForCausalLM"
    head = [name for name in lacking_weights(model, missing) if not name.startswith(f"{model.base_model_prefix}.")]
    if head:
        raise ConfigError(key, source, f"its files have no language-model head ({_some(head)})", hint)
    try:
        reason = misfit(model.eval())
    except Exception as error:  # a model's own code can raise anything
        reason = f"it fails on two rows of a few tokens ({short_reason(error)})"
    if reason:
        raise ConfigError(key, source, reason, hint)


def _check_kept(model: Any, keep: Keep, vocabulary: int, key: str) -> None:
    """Raise ConfigError if what `logits.keep` keeps is not to be had of this model. vocabulary: C."""
    if keep.form == "hidden":
        from raykd.models.kept_logits import linear_head  # imports torch

        linear_head(model, key)
    if keep.form == "top_k" and keep.k > vocabulary:
        reason, hint = f"the tokenizer has only {vocabulary} tokens", "Lower it, or set logits.keep=all"
        raise ConfigError("logits.keep.top_k", keep.k, reason, hint)


def _in_body(name: str, base: str, parts: Collection[str], resized: bool) -> bool:
    """Whether an unused weight belongs to an existing part of the body, and not to another head or tower."""
    name = base + name.removeprefix(base)
    steps = name.split(".")
    if ".".join(steps[:2]) not in parts:
        return False
    owner = next(".".join(steps[:n]) for n in range(len(steps) - 1, 0, -1) if ".".join(steps[:n]) in parts)
    left_out = steps[len(owner.split("."))].isdigit()  # a layer that the config leaves out
    return not (left_out and resized)


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:2]) + (", ..." if len(names) > 2 else "")


def _two_rows(encoded: Mapping[str, Encoded], task: Task) -> dict[str, list]:
    """The shortest and the longest row of all splits, as columns. If all rows have the same length, the first two.

    Of a language model's rows, the last decisions.
    """
    opened = [input_columns(e.open(), task) for e in encoded.values()]
    lengths = [np.asarray(rows.select_columns("length")[:]["length"]) for rows in opened]
    places = [(int(n[at]), s, int(at)) for s, n in enumerate(lengths) for at in {n.argmin(), n.argmax()}]
    chosen = [min(places), max(places, key=lambda p: p[0])]
    if chosen[0][0] == chosen[1][0]:
        chosen = [(0, 0, at) for at in range(min(2, len(opened[0])))]
    rows = [opened[split][at] for _, split, at in chosen]
    if task.predicts_tokens:  # the logits of thousands of tokens over a vocabulary would take gigabytes
        last = [{name: row[name][-_DECISIONS:] for name in ("labels", "positions")} for row in rows]
        rows = [row | few | {"decisions": len(few["labels"])} for row, few in zip(rows, last, strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _check_logits(model: Any, task: Task, rows: dict[str, list], given: bool, opened: OpenedModel, key: str) -> None:
    """Raise ConfigError unless logits are finite, have the task's shape, and are equal in a batch and alone.

    They are equal if they differ by at most TOLERANCE.
    """
    source, inference = opened.source, Inference([model], task, opened.processor, torch.device("cpu"))
    count = len(rows["length"])
    padding = model.config.get_text_config().pad_token_id if task.processor == "tokenizer" else None

    def logits(part: dict[str, list]) -> Sequence[np.ndarray]:
        try:
            return PendingLogits(inference, part).get()
        except NotFiniteError as error:
            raise ConfigError(key, source, f"on rows of the data: {error}", "Check its weights") from None
        except OwnCodeError:  # of the user's own task
            raise
        except Exception as error:  # a model's own code can raise anything
            failed: Exception = error
        reason = f"it fails on rows of {', '.join(map(str, part['length']))} tokens ({short_reason(failed)})"
        if task.processor != "tokenizer":
            reason = f"it fails on pictures of the data ({short_reason(failed)})"
        raise ConfigError(key, source, reason, "Check that its config, its processor and task fit each other")

    shapes, together = task.shapes(rows), logits(rows)
    if given and padding is not None:  # its logits of a single row, where nothing is padded
        own = opened.config.get_text_config().pad_token_id
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = own
    alone = [logits({name: [values[i]] for name, values in rows.items()})[0] for i in range(count)]
    for at, (a, b) in enumerate(zip(together, alone, strict=True)):
        if a.shape != (expected := tuple(shapes[at].tolist())):
            reason = f"a row's logits are {a.shape}, not {expected} (decisions, classes)"
            raise ConfigError(key, source, reason, "Use a model of this task")
        a, b = a.astype(np.float32), b.astype(np.float32)
        difference, size = float(np.abs(a - b).max()), max(1.0, float(np.abs(b).max()))
        if difference > TOLERANCE * size:
            reason = (
                f"a row's logits change by {difference:.2g} (of {size:.2g}) depending on the other rows of the batch"
            )
            raise ConfigError(key, source, reason, _padding_hint(opened.processor, padding))


def _padding_hint(processor: Any, number: int | None) -> str:
    theirs = getattr(processor, "pad_token_id", None)
    if theirs is not None and number is not None and number != theirs:
        return f"Its config.json pads with token {number} and its tokenizer with {theirs}. Save both with one pad token"
    if theirs is not None and theirs == processor.eos_token_id:
        return "Save it with a pad_token that is not its end-of-text token, in its tokenizer and in config.json"
    return "Use another model. This one does not mask padding, so that a row's logits depend on other rows"
