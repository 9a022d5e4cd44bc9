"""LoRA (Hu et al. 2022), with peft: two small matrices are trained for each chosen layer instead of its weights.

An adapted model is the model itself, whose layers peft has replaced in place, so that everything else calls it as
before. Its body is frozen; its head is trained as a whole, and so is every weight that was drawn anew.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import re
import warnings
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.config.models import LoraConfig

if TYPE_CHECKING:
    import peft
    import torch
    import transformers
else:
    peft = Late("peft")
    torch = Late("torch")
    transformers = Late("transformers")

_WRAPPER = "raykd_peft_model"  # in the model's __dict__, because as a submodule peft's wrapper would contain itself
_TASKS = {  # transformers' class to peft's name of the task, which AutoPeftModelFor... reads
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForCausalLM": "CAUSAL_LM",
}


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without peft's warnings of its own use of transformers, and of a setting that it corrects by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        yield


def require_peft(key: str, value: Any) -> None:
    """Raise ConfigError if peft is not installed."""
    if find_spec("peft") is None:
        raise ConfigError(key, value, "it needs peft, which is not installed", "pip install 'raykd[lora]'")


def target_layers(model: torch.nn.Module, lora: LoraConfig, key: str) -> list[str]:
    """The names of the layers that are adapted: those of the model's body that the user names, or all linear ones.

    A name stands for every layer whose name ends with it, as in peft. Raises ConfigError if one matches no layer.

    key: of the section `lora`, for the message.
    """
    body = getattr(model, "base_model", model)
    start = "" if body is model else f"{model.base_model_prefix}."
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    inside = {f"{start}{name}": layer for name, layer in body.named_modules()}
    layers = [name for name, layer in inside.items() if isinstance(layer, linear)]
    if start == "":  # its head is the last of them
        layers = layers[:-1]
    if lora.target_modules is None:
        return layers
    found: set[str] = set()
    for wanted in lora.target_modules:
        matching = [name for name in layers if name == wanted or name.endswith(f".{wanted}")]
        if not matching:
            names = sorted({name.rpartition(".")[2] for name in layers})
            near = difflib.get_close_matches(wanted.rpartition(".")[2], names, 3, 0.4)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(names[:12])}"
            others = any(name == wanted or name.endswith(f".{wanted}") for name, _ in model.named_modules())
            what = "is no linear layer of its body" if others else "matches no layer"
            reason = f"{wanted} {what} of the model ({type(model).__name__})"
            raise ConfigError(f"{key}.target_modules", ", ".join(lora.target_modules), reason, hint)
        found |= set(matching)
    return [name for name in layers if name in found]


def add_lora(model: Any, lora: LoraConfig, key: str, auto_model: str, drawn: Collection[str]) -> None:
    """Adapt a loaded model in place. The matrices are drawn from torch's random numbers.

    auto_model: the name of its transformers class.
    drawn: names of the weights that were not in its files; the layers that they belong to are trained as a whole.
    """
    whole = _trained_whole(model, drawn)
    layers = [name for name in target_layers(model, lora, key) if not _is_in(name, whole)]
    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_shortest(model, layers),
        modules_to_save=whole or None,
        task_type=_TASKS.get(auto_model),
    )
    with quiet_peft():
        model.__dict__[_WRAPPER] = peft.get_peft_model(model, settings)


def _shortest(model: torch.nn.Module, layers: list[str]) -> list[str]:
    """The last parts of the layers' names, which other tools read, unless they match other layers, too."""
    short = {name.rpartition(".")[2] for name in layers}
    matched = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short) if matched == set(layers) else layers


def _trained_whole(model: Any, drawn: Collection[str]) -> list[str]:
    """Names of the heads (but for a language model's, which is a table of its tokens), and of layers drawn anew."""
    body, tokens = getattr(model, "base_model", model), model.get_output_embeddings()
    if body is model:
        whole = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)][-1:]
    else:
        parts = [(name, part) for name, part in model.named_children() if part is not body and part is not tokens]
        whole = [name for name, part in parts if next(part.parameters(), None) is not None]
    for owner in sorted({name.rpartition(".")[0] for name in drawn} - {""}):
        if not _is_in(owner, whole):
            whole.append(owner)
    return whole


def _is_in(layer: str, parts: Collection[str]) -> bool:
    return any(layer == name or layer.startswith(f"{name}.") for name in parts)


def is_adapted(model: torch.nn.Module) -> bool:
    return _WRAPPER in model.__dict__


def own_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint must hold: the model's state; of an adapted model the part that training changes."""
    state = model.state_dict()
    if not is_adapted(model):
        return state
    changes = {name for name, weight in model.named_parameters() if weight.requires_grad}
    changes |= {name for name, _ in model.named_buffers()}
    return {name: value for name, value in state.items() if name in changes}


def load_own_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The reverse of `own_state`, into a model that was loaded in the same way."""
    wrong = model.load_state_dict(state, strict=not is_adapted(model)).unexpected_keys
    if wrong:
        raise RuntimeError(f"the checkpoint has weights that the model does not have: {', '.join(wrong[:3])}")


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """How many parameters the model has without its adapter, and how many of all are trained."""
    own = [
        weight.numel() for name, weight in model.named_parameters() if not re.search(r"\.(lora_|original_module)", name)
    ]
    trained = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    return sum(own), sum(trained)


def save_weights(model: Any, folder: Path, lora: LoraConfig | None, base: str | None, revision: str | None) -> None:
    """Save the whole model, with the adapter merged into it, or the adapter alone, as the settings say.

    base, revision: of the pretrained model, which an adapter names.
    """
    if not is_adapted(model):
        model.save_pretrained(folder)
    elif lora is None or lora.save == "merged":
        place = next(model.parameters()).device
        model.cpu()  # a second copy of it need not fit beside it on a GPU
        copy.deepcopy(model.__dict__[_WRAPPER]).merge_and_unload().save_pretrained(folder)
        model.to(place)
    else:
        wrapper = model.__dict__[_WRAPPER]
        for settings in wrapper.peft_config.values():
            settings.base_model_name_or_path, settings.revision = base, revision
        wrapper.save_pretrained(folder, save_embedding_layers=False)
        config = copy.deepcopy(model.config)  # of the whole model: its classes and its architecture
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
