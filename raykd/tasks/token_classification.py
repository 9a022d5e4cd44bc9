"""Token classification: one tag for each word, which mark named entities in the BIO scheme (Ramshaw and Marcus 1995).

A decision is a word, read at its first sub-word. The other sub-words are no decisions, so the store holds nothing for
them, and a teacher with another tokenizer still lines up with the student word by word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.tasks.common import NO_LABEL, Batch, Evaluation, RowError, Task
from raykd.tasks.padding import pad_tokens

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


class TokenClassification(Task):
    """H = the row's words, C = the tags. A row of more than `max_length` tokens is split between words.

    In addition to the columns of every task, an encoded row has `word_starts` (the positions of its words' first
    tokens), `decisions` (the number of its words) and `first_word` (its first word's index in the raw row).
    """

    primary_metric = "entity_f1"
    metric_names = ("entity_f1", "entity_precision", "entity_recall", "accuracy", "nll")
    auto_model = "AutoModelForTokenClassification"
    processor = "tokenizer"
    columns = ("tokens",)
    word_columns = ("tokens",)
    label_column = "ner_tags"
    named_classes = True
    label_lists = True
    graded_rows = False
    model_inputs = ("input_ids", "token_type_ids")
    repeats_shapes = True
    array_columns = ("input_ids", "token_type_ids", "word_starts", "labels")
    collate_columns = ("word_starts",)
    shape_columns = ("decisions",)
    aligned_columns = ("first_word", "decisions")

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "token-classification", "max_length": self.settings.max_length}

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        wrong = [name for name in self.label_names if name != "O" and name[:2] not in ("B-", "I-")]
        if wrong and labelled:  # only scores need to know which tags are one entity
            reason = f"{wrong[0]} is not a BIO tag: O, or B- or I- and the kind of entity"
            raise ConfigError("task.labels", ", ".join(self.label_names), reason, "Name every tag in task.labels")
        names = [*self.columns, self.label_column] if labelled else [*self.columns]
        for row, (words, *tags) in enumerate(zip(*(rows[name][:] for name in names), strict=True)):
            reason = ""
            if not words or None in words:
                reason = "it has no words" if not words else "one of its words is missing"
            elif labelled and len(tags[0]) != len(words):
                reason = f"it has {len(words)} words and {len(tags[0])} tags"
            elif labelled and not 0 <= min(tags[0]) <= max(tags[0]) < len(self.label_names):
                reason = f"it has a tag outside 0..{len(self.label_names) - 1}"
            if reason:
                raise ConfigError(f"data.{split}", f"row {row}", reason, "Correct or drop the row")

    def unmeasurable(self, rows: Dataset) -> dict[str, str]:
        outside = self.label_names.index("O") if "O" in self.label_names else NO_LABEL
        if any(tag != outside for tags in rows[self.label_column][:] for tag in tags):
            return {}
        return {name: "its rows have no entity" for name in ("entity_f1", "entity_precision", "entity_recall")}

    def chance(self, rows: Dataset) -> float:
        """The entity F1 of a model that finds no entity."""
        return 0.0

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        windows = [
            (source, window, first, last, words)
            for source, (words, sizes) in enumerate(self._words(rows["tokens"], processor))
            for window, (first, last) in enumerate(self._windows(sizes, processor))
        ]
        tokens = self._tokens([words[first:last] for *_, first, last, words in windows], processor, truncation=True)
        starts = [_word_starts(encoding.word_ids) for encoding in tokens.encodings]
        for (source, _, first, last, _), found in zip(windows, starts, strict=True):
            if len(found) != last - first:
                reason = f"its tokenizer gives tokens for {len(found)} of the words {first} to {last - 1}"
                raise RowError(source, reason, "Use another tokenizer, or drop the row")
        tags = rows[self.label_column] if labelled else []
        return {
            **{name: tokens[name] for name in self.model_inputs if name in tokens},
            "labels": [tags[s][a:b] if labelled else [NO_LABEL] * (b - a) for s, _, a, b, _ in windows],
            "length": [len(ids) for ids in tokens["input_ids"]],
            "window": [window for _, window, *_ in windows],
            "source": [source for source, *_ in windows],
            "first_word": [first for _, _, first, *_ in windows],
            "word_starts": starts,
            "decisions": [len(found) for found in starts],
        }

    def _words(self, rows: list[list[str]], processor: Any) -> list[tuple[list[str], list[int]]]:
        """Each row's words, and the number of tokens of each.

        A word for which the tokenizer gives no token (BERT's: control characters) becomes the unknown token.
        """
        found = []
        for row, (words, encoding) in enumerate(zip(rows, self._tokens(rows, processor, False).encodings, strict=True)):
            sizes = np.bincount(encoding.word_ids, minlength=len(words)).tolist()
            if 0 in sizes and processor.unk_token is None:
                reason = "one of its words gives no token, and the tokenizer has no unknown token"
                raise RowError(row, reason, "Drop the row")
            written = [word if size else processor.unk_token for word, size in zip(words, sizes, strict=True)]
            found.append((written, [max(1, size) for size in sizes]))
        return found

    def _windows(self, sizes: list[int], processor: Any) -> list[tuple[int, int]]:
        """The [first, last) words of each window of a row: as many as fit. A word that is too long is truncated.

        sizes: the number of tokens of each word.
        """
        room = self.settings.max_length - processor.num_special_tokens_to_add()
        windows, first, used = [], 0, 0
        for word, size in enumerate(min(size, room) for size in sizes):
            if used + size > room:
                windows.append((first, word))
                first, used = word, 0
            used += size
        return [*windows, (first, len(sizes))]

    def _tokens(self, rows: list[list[str]], processor: Any, truncation: bool) -> Any:
        name = processor.name_or_path or type(processor).__name__
        if not getattr(processor, "is_fast", False):
            reason = "it is not a fast tokenizer, and only those say which word a token belongs to"
            raise ConfigError("tokenizer", name, reason, "Use a model with a fast tokenizer")
        options = {"truncation": True, "max_length": self.settings.max_length} if truncation else {}
        return processor(
            rows, is_split_into_words=True, add_special_tokens=truncation, return_attention_mask=False, **options
        )

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        return np.stack([np.asarray(rows["decisions"]), np.full(len(rows["decisions"]), len(self.label_names))], axis=1)

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        inputs, before = pad_tokens(rows, self.model_inputs, processor, self.pad_to, self.settings.max_length)
        counts = [len(starts) for starts in rows["word_starts"]]
        padded = np.full((len(counts), max(counts)), NO_LABEL)
        starts_of = np.zeros_like(padded)
        for row, (starts, gold) in enumerate(zip(rows["word_starts"], rows["labels"], strict=True)):
            starts_of[row, : len(starts)] = starts
            padded[row, : len(gold)] = gold
        labels, positions = torch.from_numpy(padded), torch.from_numpy(starts_of)
        exists = torch.arange(max(counts)) < torch.tensor(counts)[:, None]  # (B, H)
        mask = exists[..., None].expand(-1, -1, len(self.label_names)).contiguous()
        return Batch(inputs, labels, mask, before, positions if before is None else positions + before[:, None])

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        assert batch.positions is not None
        positions = batch.positions.clamp(max=outputs.logits.shape[1] - 1)  # only those of padded decisions are larger
        return outputs.logits.gather(1, positions[..., None].expand(-1, -1, outputs.logits.shape[-1]))

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[tuple[list[int], float]]:
        """Of each row: its words' predicted tags, and the negative log-likelihood of their gold tags."""
        summaries = []
        for row, labels in zip(logits, rows["labels"], strict=True):
            scores = row.astype(np.float64)  # (H, C)
            scores -= scores.max(1, keepdims=True)
            log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
            nll = -float(log_p[np.arange(len(scores)), np.asarray(labels)].sum())
            summaries.append((log_p.argmax(1).tolist(), nll))
        return summaries

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """Each word's tag."""
        tags = [[""] * len(words) for words in raw["tokens"][:]]
        columns = encoded.select_columns(["example", "first_word"])[:]
        for row, example, first in zip(logits, columns["example"], columns["first_word"], strict=True):
            tags[example][first : first + len(row)] = [self.label_names[tag] for tag in row.argmax(1)]
        return [{"prediction": row} for row in tags]

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        """Entities are scored as seqeval scores them: one is correct if its kind and both of its ends are.

        Entity F1 is 2 * correct / (predicted + gold) over all rows together, not a mean of the rows' own F1. So a
        row's score is its linearized share, F1 + (2 c - F1 (p + g)) * rows / (predicted + gold), where c, p and g are
        the row's own counts of correct, predicted and gold entities. The mean of these scores is exactly the entity F1,
        and their spread is that of the entity F1 over samples of rows (linearization of the ratio estimator: Cochran
        1977, chapter 6), so confidence intervals of their mean are intervals of the entity F1. They do not grade
        single rows: some lie outside of 0..1.
        """
        from seqeval.metrics.sequence_labeling import get_entities  # its imports take a second

        gold = [np.asarray(tags) for tags in raw[self.label_column][:]]
        predicted = [np.full(len(tags), NO_LABEL) for tags in gold]
        columns = encoded.select_columns(["example", "first_word"])[:]
        for (tags, _), example, first in zip(summaries, columns["example"], columns["first_word"], strict=True):
            predicted[example][first : first + len(tags)] = tags
        names, counts, predictions = self.label_names, np.zeros((len(gold), 3)), []
        for i, (chosen, label) in enumerate(zip(predicted, gold, strict=True)):
            tags, gold_tags = [names[t] for t in chosen], [names[t] for t in label]
            found, wanted = set(get_entities(tags)), set(get_entities(gold_tags))
            counts[i] = len(found & wanted), len(found), len(wanted)
            predictions.append({"id": i, "prediction": tags, "label": gold_tags})
        correct, of_predicted, of_gold = counts.sum(0)
        either = max(of_predicted + of_gold, 1)
        f1 = 2 * correct / either
        scores = f1 + (2 * counts[:, 0] - f1 * (counts[:, 1] + counts[:, 2])) * len(gold) / either
        for prediction, score, (c, p, g) in zip(predictions, scores.tolist(), counts.astype(int).tolist(), strict=True):
            prediction |= {"right": c, "predicted": p, "gold": g, "score": score}
        all_gold, all_predicted = np.concatenate(gold), np.concatenate(predicted)
        metrics = {
            "entity_f1": float(f1),
            "entity_precision": float(correct / max(of_predicted, 1)),
            "entity_recall": float(correct / max(of_gold, 1)),
            "accuracy": float((all_gold == all_predicted).mean()),
            "nll": sum(nll for _, nll in summaries) / len(all_gold),
        }
        return Evaluation(metrics, scores, predictions)


def _word_starts(word_ids: list[int | None]) -> list[int]:
    """The positions of the tokens that begin a word.

    word_ids: each token's word; None for special tokens.
    """
    return [at for at, word in enumerate(word_ids) if word is not None and (at == 0 or word_ids[at - 1] != word)]
