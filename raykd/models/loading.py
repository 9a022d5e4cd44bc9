"""Loads the weights of an opened model, or draws them from a seed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.common.units import counted
from raykd.config.models import LoraConfig
from raykd.models.adapters import merge_adapter, whole_layers
from raykd.models.configs import POSITIONS_AFTER_PADDING
from raykd.models.fp32_heads import compute_heads_in_fp32
from raykd.models.language import read_at_positions
from raykd.models.layers import with_layers
from raykd.models.lora import add_lora
from raykd.models.opened import OpenedModel
from raykd.models.problems import not_a_model, short_reason
from raykd.models.quantized import quantization

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = Late("torch")
    transformers = Late("transformers")


Shapes = dict[str, tuple[int, ...]]  # of weights, by name


def load_model(
    opened: OpenedModel, seed: int, processor: Any = None, lora: LoraConfig | None = None, key: str = "lora"
) -> torch.nn.Module:
    """The model in fp32 on the CPU, for a training. Weights that its files lack, or have in another shape (a new head)
    or for other classes, are drawn from `seed`.

    processor: the model takes its padding token, by which decoders find a row's last token.
    lora: the adapter to train, drawn from `seed`; None: none.
    key: of its section, for errors.
    """
    return load_reported(opened, seed, processor, lora, key, new_head=bool(opened.other_classes))[0]


def load_reported(
    opened: OpenedModel,
    seed: int,
    processor: Any = None,
    lora: LoraConfig | None = None,
    key: str = "lora",
    quantized: Mapping[str, Any] = MappingProxyType({}),
    new_head: bool = False,
) -> tuple[torch.nn.Module, set[str], set[str]]:
    """`load_model`, with the names of weights that were drawn and of those in its files that it does not use.

    quantized: how transformers shall quantise it; {} if not, whatever its `bits`.
    new_head: draw its head from `seed`, although its files have one of this shape.
    """
    config = copy.deepcopy(opened.config_of_files)
    auto = getattr(transformers, opened.task.auto_model)
    # torch's first choice for attention in bf16 on an H100 or B200; it plans anew, for tens of milliseconds and more,
    # for each shape of a batch that it has not seen (pytorch/pytorch#155958), and nearly every batch here has its own.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False  # by default the convolutions of pictures would keep 10 bits of fp32's 23
    torch.set_float32_matmul_precision("highest")  # its default, unless TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set
    torch.manual_seed(seed)
    missing, unused = set[str](), set[str]()
    if opened.weights is None:
        with _quiet_loading():
            model = auto.from_config(config)
    else:
        with _quiet_loading():
            model, report = auto.from_pretrained(
                opened.weights,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                trust_remote_code=opened.spec.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the caller decides which of them may be new
                **quantized,
            )
        missing, unused = set(report["missing_keys"]), set(report["unexpected_keys"])
        missing |= {name for name, *_ in report["mismatched_keys"]}
        if opened.adapter:
            model = merge_adapter(model, opened.adapter, opened.key)
            missing -= whole_layers(opened.adapter).keys()
        if new_head:
            missing |= _draw_head(model, auto, config, seed, opened.spec.trust_remote_code)
        if opened.spec.layers:
            model = with_layers(model, copy.deepcopy(opened.config), opened.spec.layers, opened.key)
    if lora:  # before the heads are looked for, because a trained head is another object
        add_lora(model, lora, key, opened.task.auto_model, missing)
    _set_pad_token(model.config, processor)
    compute_heads_in_fp32(model)
    if opened.task.predicts_tokens:
        read_at_positions(model)
    return model, missing, unused


def _draw_head(model: torch.nn.Module, auto: Any, config: Any, seed: int, trusted: bool) -> set[str]:
    """Draw the weights anew whose shape depends on the number of classes; returns their names."""
    with _quiet_loading():
        torch.manual_seed(seed)
        fresh = auto.from_config(copy.deepcopy(config), trust_remote_code=trusted).state_dict()
        more = copy.deepcopy(config)
        more.num_labels = config.num_labels + 1
        with torch.device("meta"):
            wider = auto.from_config(more, trust_remote_code=trusted).state_dict()
    heads = {name for name, weight in fresh.items() if weight.shape != wider[name].shape}
    weights = model.state_dict()
    with torch.no_grad():
        for name in heads:
            weights[name].copy_(fresh[name])
    return heads


def load_whole(
    opened: OpenedModel, processor: Any, device: torch.device | None = None, dtype: str = "float32"
) -> torch.nn.Module:
    """Load a model that is not trained. Raises ConfigError if its files lack any weight.

    device: where it is; None: on the CPU.
    dtype: that it will compute in, for weights of fewer bits.
    """
    device = device or torch.device("cpu")
    quantized = quantization(opened, device, dtype) if opened.spec.bits else {}
    model, missing, _ = load_reported(opened, 0, processor, quantized=quantized)
    if lacking := lacking_weights(model, missing):
        reason = f"its files lack {counted(len(lacking), 'weight')} ({lacking[0]})"
        raise ConfigError(opened.key, opened.spec.pretrained, reason, "Save the whole model there, or train it again")
    return model if quantized else model.to(device)


def lacking_weights(model: torch.nn.Module, missing: set[str]) -> list[str]:
    """The missing names that are learned weights. Tables of indices are made from the config."""
    buffers = dict(model.named_buffers())
    return sorted(n for n in missing if n not in buffers or buffers[n].is_floating_point())


def weight_shapes(opened: OpenedModel) -> tuple[Shapes, Shapes, str]:
    """The shapes of the weights that the model's config asks for, and of those in its folder, by the same names.

    The third value is the beginning of the names of the weights of its body.
    """
    try:
        with torch.device("meta"), _quiet_loading():  # takes no memory
            auto, trusted = getattr(transformers, opened.task.auto_model), opened.spec.trust_remote_code
            model = auto.from_config(copy.deepcopy(opened.config), trust_remote_code=trusted)
    except Exception as error:
        raise not_a_model(opened.spec, opened.key, error) from None
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    saved: Shapes = {}
    base = f"{model.base_model_prefix}."
    for file in sorted(opened.weights.glob("*.safetensors")) if opened.weights else ():
        try:
            with safe_open(file, "pt") as weights:
                # A checkpoint of the body alone lacks its prefix; one of the whole model can have it.
                saved |= {
                    name if name in expected else base + name: tuple(weights.get_slice(name).get_shape())
                    for name in weights.keys()  # noqa: SIM118 (no mapping)
                }
        except SafetensorError as error:
            reason = f"{file.name} cannot be read ({short_reason(error)})"
            raise ConfigError(opened.key, opened.spec.pretrained, reason, "Copy or save it again") from None
    if opened.adapter:
        saved |= {name: shape for name, shape in whole_layers(opened.adapter).items() if name in expected}
    return expected, saved, base


def _set_pad_token(config: Any, processor: Any) -> None:
    """Only once the weights exist: an embedding known to be padding would start at 0 and never be trained."""
    padding = getattr(processor, "pad_token_id", None)
    if padding is None or config.model_type in POSITIONS_AFTER_PADDING:
        return  # the table of positions was made for the token that the config names, and would be read differently
    for part in (config, config.get_text_config()):
        part.pad_token_id = padding


class _quiet_loading:
    """Silences transformers' reports of new heads and dropped layers, which are intended here, and its advice.

    raykd itself checks what such advice is about, such as a model that is not causal.
    """

    def __enter__(self) -> None:
        self.level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self.level)


def default_dtype(device: torch.device | None = None) -> str:
    """The compute dtype that "auto" stands for: bf16 on a GPU that has it, else fp32.

    device: where the model runs; None: on a GPU, if this process sees one.
    """
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def dtype_of(precision: str, device: torch.device) -> str:
    """The compute dtype, "float32" or "bfloat16", that a `training.precision` stands for on a device."""
    return {"auto": default_dtype(device), "fp32": "float32", "bf16": "bfloat16"}[precision]
