"""Pads tokenized rows of different lengths to a rectangular batch, on the tokenizer's padding side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raykd.common.late import Late
from raykd.common.ragged import concatenated

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


def pad_tokens(
    rows: Mapping[str, Any], names: Sequence[str], tokenizer: Any, multiple: int = 1, most: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The model's inputs, each (B, L) int64, and the padding before each row, (B,) int64, None if there is none.

    rows: columns of B values, of which "length" and those in `names` are read.
    names: columns of token sequences; one that is not in `rows` is left out.
    multiple: of which L is one, unless that is more than `most`.
    most: the longest length to round up to.

    The side can matter: XLNet classifies by its last position, so padding there would be read instead of the row.
    """
    lengths = np.asarray(rows["length"])[:, None]
    width = int(lengths.max())
    width = max(width, min(-(-width // multiple) * multiple, most))
    left = tokenizer.padding_side == "left"
    first = width - lengths if left else np.zeros_like(lengths)
    columns = np.arange(width)
    inside = (columns >= first) & (columns < first + lengths)  # (B, L): True on tokens, False on padding
    inputs = {"attention_mask": torch.from_numpy(inside.astype(np.int64))}
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    for name in names:
        if name in rows:
            padded = np.full(inside.shape, padding[name], np.int64)
            padded[inside] = concatenated(rows[name])
            inputs[name] = torch.from_numpy(padded)
    return inputs, torch.from_numpy(first[:, 0]) if left else None


def without_padding_before(logits: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """Logits over positions, (B, H, L), moved so that position 0 is each row's first token.

    before: (B,) int64, the padding before each row, or None. What follows a row's last token has no meaning.
    """
    if before is None:
        return logits
    width = logits.shape[-1]
    positions = torch.arange(width, device=logits.device) + before[:, None]  # (B, L)
    return logits.gather(-1, positions.clamp(max=width - 1)[:, None].expand_as(logits))
