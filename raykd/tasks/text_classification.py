"""Text classification: a sentence, or a pair of them, to one of C classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.late import Late
from raykd.config.schema import AugmentConfig
from raykd.tasks.augment import drop_and_swap
from raykd.tasks.classification import Classification
from raykd.tasks.common import Batch, refuse_empty
from raykd.tasks.padding import pad_tokens

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


class TextClassification(Classification):
    auto_model = "AutoModelForSequenceClassification"
    processor = "tokenizer"
    columns = ("text",)
    optional_columns = ("text_pair",)
    model_inputs = ("input_ids", "token_type_ids")
    repeats_shapes = True
    array_columns = ("input_ids", "token_type_ids")

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "text-classification", "max_length": self.settings.max_length}

    def augment(self, rows: dict[str, list], rng: np.random.Generator, settings: AugmentConfig) -> dict[str, list]:
        drop, swap = settings.drop_words, settings.swap_words
        names = [name for name in (*self.columns, *self.optional_columns) if name in rows]
        return rows | {name: [drop_and_swap(text, rng, drop, swap) for text in rows[name]] for name in names}

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        tokens = processor(
            rows["text"],
            rows.get("text_pair"),
            truncation=True,
            max_length=self.settings.max_length,
            return_attention_mask=False,
        )
        refuse_empty(tokens["input_ids"], range(len(rows["text"])))
        count = len(rows["text"])
        return {
            **{name: tokens[name] for name in self.model_inputs if name in tokens},
            "labels": self.encoded_labels(rows, labelled),
            "length": [len(ids) for ids in tokens["input_ids"]],
            "window": [0] * count,
            "source": list(range(count)),
        }

    def notes(self, encoded: Dataset) -> list[str]:
        return self._note_of_full_rows(encoded.select_columns("length").with_format("numpy")["length"][:])

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        inputs, before = pad_tokens(rows, self.model_inputs, processor, self.pad_to, self.settings.max_length)
        return Batch(inputs, torch.from_numpy(np.asarray(rows["labels"])), before=before)
