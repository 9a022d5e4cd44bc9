"""Teachers with weights of 8 or 4 bits, by bitsandbytes: a large one fits a smaller GPU, and its logits are rougher.

Their rounding depends on the other rows of a batch (in 8 bits also through columns with large values, which stay in 16
bits: Dettmers et al. 2022, LLM.int8()). Every student reads the same stored logits, so comparisons stay fair.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.models.opened import OpenedModel

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = Late("torch")
    transformers = Late("transformers")


def check_quantization(opened: OpenedModel) -> None:
    """Raise ConfigError if the model has `bits` and cannot have them."""
    bits, key = opened.spec.bits, f"{opened.key}.bits"
    if bits and (lacking := [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]):
        reason = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed"
        raise ConfigError(key, bits, reason, "pip install 'raykd[quantized]', also on the workers")
    if bits and opened.adapter:
        reason = f"{opened.spec.pretrained} is an adapter, whose model is quantised before it is changed"
        raise ConfigError(key, bits, reason, "Merge them (peft's merge_and_unload), save that, and name its folder")


def quantization(opened: OpenedModel, device: torch.device, dtype: str) -> dict[str, Any]:
    """What `from_pretrained` needs to load it so. Its head keeps its own weights. Raises ConfigError as above.

    dtype: of its computations, "float32" or "bfloat16".
    """
    check_quantization(opened)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says of every forward pass that it rounds
    if opened.spec.bits == 8:
        settings = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    return {"quantization_config": settings, "device_map": {"": device}}
