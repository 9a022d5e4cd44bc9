"""Greedy generation by a language model: several prompts at a time, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raykd.common.late import Late
from raykd.models.prediction import autocast

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = Late("torch")
    transformers = Late("transformers")

_TOKENS = 4096  # prompts' tokens and new ones in a batch, with padding


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, device: torch.device, dtype: str
) -> list[str]:
    """What the model writes after each prompt, without special tokens.

    prompts: token ids of each, at least one.
    max_new_tokens: where a text ends that the model does not end itself.
    """
    model.eval()
    ends = {tokenizer.eos_token_id, *_ids(getattr(model.generation_config, "eos_token_id", None))} - {None}
    options = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends) or None,
    )
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    while order:
        width = len(prompts[order[0]])
        count = max(1, _TOKENS // (width + max_new_tokens))
        chosen, order = order[:count], order[count:]
        ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):  # padded on the left, so that all texts grow at the same place
            ids[row, width - len(prompts[i]) :] = torch.as_tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode(), autocast(device, dtype):
            whole = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=options)
        for i, new in zip(chosen, whole[:, width:].tolist(), strict=True):
            texts[i] = tokenizer.decode(_until(new, ends), skip_special_tokens=True)
    return texts


def _ids(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first one of `ends`."""
    return tokens[: next((at for at, token in enumerate(tokens) if token in ends), len(tokens))]
