"""Greedy generation by a language model: several prompts at a time, with a cache of keys and values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.common.late import Late
from raykd.models.prediction import autocast
from raykd.tasks.chat_templates import answer_end

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = Late("torch")
    transformers = Late("transformers")

_TOKENS = {"cpu": 4096, "cuda": 65536}  # prompts' tokens and new ones in a batch, with padding; halved if memory ends


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, device: torch.device, dtype: str
) -> list[str]:
    """What the model writes after each prompt, without special tokens: always the likeliest next token.

    prompts: token ids of each, at least one.
    max_new_tokens: where a text ends that the model does not end itself.
    """
    model.eval()
    ends = end_tokens(model, tokenizer)
    options = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends) or None,
    )
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts, most = [""] * len(prompts), _TOKENS.get(device.type, _TOKENS["cpu"])
    while order:
        width = len(prompts[order[0]])
        count = max(1, most // (width + max_new_tokens))
        chosen = order[:count]
        ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):  # padded on the left, so that all texts grow at the same place
            ids[row, width - len(prompts[i]) :] = torch.as_tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        try:
            with torch.inference_mode(), autocast(device, dtype), _no_settings_of_its_own(model):
                inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
                whole = model.generate(**inputs, generation_config=options)
        except torch.OutOfMemoryError:
            if len(chosen) == 1:
                raise
            most = len(chosen) // 2 * (width + max_new_tokens)
            continue
        order = order[count:]
        for i, new in zip(chosen, whole[:, width:].tolist(), strict=True):
            texts[i] = tokenizer.decode(_until(new, ends), skip_special_tokens=True)
    return texts


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text: those that the model's files name, and what ends an answer in its chat template."""
    return {tokenizer.eos_token_id, answer_end(tokenizer), *_own_ends(model)} - {None}


def note_end_tokens(folder: Path, model: Any, tokenizer: Any) -> None:
    """Let every program that loads a saved model end texts where raykd does, also if its base ends them elsewhere.

    folder: of the model. Its file is changed after it was saved, because transformers refuses to save a config that was
    changed and has settings that do not fit one another, as published ones can have.
    """
    file, ends = folder / "generation_config.json", end_tokens(model, tokenizer)
    if file.exists() and ends != _own_ends(model):
        values = json.loads(file.read_text()) | {"eos_token_id": sorted(ends) if len(ends) > 1 else max(ends)}
        file.write_text(json.dumps(values, indent=2) + "\n")


def _own_ends(model: Any) -> set[int]:
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(named if isinstance(named, list) else [named]) - {None}


@contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """transformers takes what `generation_config` leaves open from the model's, such as a penalty for repetitions.

    Then teachers and students would be decoded differently, and the words of a prompt would count against an answer.
    """
    own, model.generation_config = model.generation_config, transformers.GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first one of `ends`."""
    return tokens[: next((at for at, token in enumerate(tokens) if token in ends), len(tokens))]
