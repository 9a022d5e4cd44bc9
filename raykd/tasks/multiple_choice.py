"""Multiple choice: a question, with or without a context, and one right answer among the row's own choices.

The model reads the question with each choice and gives one logit for each, so a row's classes are its choices. Rows can
have different numbers of them: the others of a batch are masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.late import Late
from raykd.common.ragged import Ragged, concatenated
from raykd.config.schema import AugmentConfig
from raykd.tasks.augment import drop_and_swap
from raykd.tasks.classification import calibration_error
from raykd.tasks.common import NO_LABEL, Batch, Evaluation, Task, refuse_empty
from raykd.tasks.padding import pad_tokens

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


class MultipleChoice(Task):
    """H = 1, C = the row's choices.

    In addition to the columns of every task, an encoded row has `choice_lengths`, the number of tokens of each choice;
    `input_ids` are those of all choices, one after another. `length` is that of the rectangle of its choices.
    """

    primary_metric = "accuracy"
    metric_names = ("accuracy", "nll", "ece")
    auto_model = "AutoModelForMultipleChoice"
    processor = "tokenizer"
    columns = ("question", "choices")
    optional_columns = ("context",)
    word_columns = ("choices",)
    choice_column = "choices"
    group_column = "context"
    label_column = "label"
    model_inputs = ("input_ids", "token_type_ids", "choice_lengths")
    repeats_shapes = True
    array_columns = ("input_ids", "token_type_ids")
    shape_columns = ("choice_lengths",)

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "multiple-choice", "max_length": self.settings.max_length}

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        """Choices and labels are checked by `raykd.data.choices`."""

    def chance(self, rows: Dataset) -> float:
        """The share of the most common place of the right choice."""
        return float(np.bincount(np.asarray(rows[self.label_column][:])).max() / len(rows))

    def augment(self, rows: dict[str, list], rng: np.random.Generator, settings: AugmentConfig) -> dict[str, list]:
        """The choices stay: an answer of one word would become another one."""
        drop, swap = settings.drop_words, settings.swap_words
        names = [name for name in ("question", "context") if name in rows]
        return rows | {name: [drop_and_swap(text, rng, drop, swap) for text in rows[name]] for name in names}

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        """Each choice after the question; with a context, that is the first text of the pair and both are the second.

        As in transformers' examples for SWAG and RACE.
        """
        first, second, sources = [], [], []
        for row, (question, choices) in enumerate(zip(rows["question"], rows["choices"], strict=True)):
            for choice in choices:
                context = rows["context"][row] if "context" in rows else None
                first.append(question if context is None else context)
                second.append(choice if context is None else f"{question} {choice}")
                sources.append(row)
        tokens = processor(
            first, second, truncation=True, max_length=self.settings.max_length, return_attention_mask=False
        )
        refuse_empty(tokens["input_ids"], sources)
        count, ends = len(rows["question"]), np.cumsum([0] + [len(choices) for choices in rows["choices"]])
        parts = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        lengths = [[len(ids) for ids in tokens["input_ids"][a:b]] for a, b in parts]
        names = [name for name in ("input_ids", "token_type_ids") if name in tokens]
        return {
            **{name: [[i for ids in tokens[name][a:b] for i in ids] for a, b in parts] for name in names},
            "choice_lengths": lengths,
            "labels": [[y] for y in rows[self.label_column]] if labelled else [[NO_LABEL]] * count,
            "length": [len(each) * max(each) for each in lengths],
            "window": [0] * count,
            "source": list(range(count)),
        }

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        return np.array([[1, len(lengths)] for lengths in rows["choice_lengths"]])

    def notes(self, encoded: Dataset) -> list[str]:
        """A row is as long as its longest choice."""
        return self._note_of_full_rows(
            np.array([max(row) for row in encoded.select_columns("choice_lengths")["choice_lengths"][:]])
        )

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        """Inputs are (B, C, L). Choices that a row does not have repeat its first one, and are masked."""
        counts = np.array([len(lengths) for lengths in rows["choice_lengths"]])
        flat: dict[str, Any] = {"length": [int(n) for lengths in rows["choice_lengths"] for n in lengths]}
        for name in ("input_ids", "token_type_ids"):
            if name in rows:
                ends = np.cumsum(flat["length"])
                flat[name] = Ragged(concatenated(rows[name]), ends - flat["length"], ends)
        inputs, _ = pad_tokens(
            flat, ("input_ids", "token_type_ids"), processor, self.pad_to, self.settings.max_length
        )  # (all choices, L)
        number = np.arange(counts.max())  # (C,)
        exists = number < counts[:, None]  # (B, C)
        first = np.cumsum(counts) - counts
        places = torch.from_numpy(first[:, None] + np.where(exists, number, 0))
        return Batch(
            {name: values[places] for name, values in inputs.items()},
            torch.from_numpy(np.asarray(rows["labels"])),
            torch.from_numpy(exists)[:, None],
        )

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return outputs.logits.unsqueeze(1)  # (B, C) -> (B, 1, C)

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[Any]:
        """Of each row: the predicted choice, its log-probability, and that of the gold choice."""
        found = []
        for log_p, (gold,) in zip(map(_log_probabilities, logits), rows["labels"], strict=True):
            found.append((int(log_p.argmax()), float(log_p.max()), float(log_p[gold])))
        return found

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """The choice's text, its number from 0, and the probability of each choice."""
        found = []
        for row, choices in zip(logits, raw["choices"][:], strict=True):
            p = np.exp(_log_probabilities(row))
            at = int(p.argmax())
            found.append(
                {"prediction": choices[at], "choice": at, "confidence": float(p[at]), "probabilities": p.tolist()}
            )
        return found

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        gold = np.asarray(raw[self.label_column][:])
        predicted, highest, of_gold = (np.array(column) for column in zip(*summaries, strict=True))
        right, confidence = (predicted == gold).astype(np.float64), np.exp(highest)
        metrics = {
            "accuracy": float(right.mean()),
            "nll": float(-of_gold.mean()),
            "ece": calibration_error(confidence, right),
        }
        predictions = [
            {"id": i, "prediction": int(p), "label": int(y), "confidence": round(float(c), 6), "score": float(r)}
            for i, (p, y, c, r) in enumerate(zip(predicted, gold, confidence, right, strict=True))
        ]
        return Evaluation(metrics, right, predictions)


def _log_probabilities(row: np.ndarray) -> np.ndarray:
    """(C,) float64 from a row's (1, C) logits."""
    scores = row[0].astype(np.float64)
    scores -= scores.max()
    return scores - np.log(np.exp(scores).sum())
