"""Text generation: causal language models, which predict each token from those before it.

A decision is a token that is trained on, and its classes are the tokens of the vocabulary. Prompts and padding are no
decisions, so they cost no logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.tasks.chat_templates import uses_date
from raykd.tasks.common import NO_LABEL, Batch, Evaluation, RowError, Task, numbers_of
from raykd.tasks.generated import answers_of, chosen_rows
from raykd.tasks.language_rows import KINDS, Row, adds_space, kind_of, prompts, tokenize, windows

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


_NEEDED = "a model is distilled on the tokens of completions and answers, so a row without them has nothing to distil"


class TextGeneration(Task):
    """H = the row's tokens that are trained on, C = the tokens of the tokenizer.

    In addition to the columns of every task, an encoded row has `positions` (the position of the token whose output
    predicts each decision; the decision's own token is the next one), `decisions` (their number), `vocabulary` (the
    number of classes), `cut` (tokens to be trained on that truncation dropped; a row's first window has all of them)
    and `text` (which of a conversation's texts it is of).
    """

    primary_metric = "nll"
    metric_names = ("nll", "perplexity", "accuracy")
    share = False
    auto_model = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    processor = "tokenizer"
    columns = ()
    optional_columns = (*dict.fromkeys(role for kind in KINDS for role in kind), "answers")
    scoring_columns = ("answers",)
    column_choices = KINDS
    message_columns = ("messages",)
    json_columns = ("tools",)
    transfer_needs = dict.fromkeys(("completion", "messages"), _NEEDED)
    label_column = ""
    graded_rows = False
    predicts_tokens = True
    model_inputs = ("input_ids", "positions")
    array_columns = ("input_ids", "labels", "positions")
    shape_columns = ("decisions", "vocabulary")
    collate_columns = ("decisions", "vocabulary")
    aligned_columns = ("input_ids", "positions", "vocabulary")

    def preprocessing(self) -> dict[str, Any]:
        names = ("max_length", "train_on", "long")
        settings = {name: getattr(self.settings, name) for name in names}
        if self.settings.long == "drop":  # what it leaves out is not among the rows, and the others are not cut
            settings["long"] = None
        if self.settings.chat_template_kwargs:
            settings["chat_template_kwargs"] = self.settings.chat_template_kwargs
        return {"task": "text-generation", **settings}

    def encoding(self, processor: Any) -> Any:
        """By the kind of rows. A value changes only where tokens or decisions do: models are trained again then."""
        template = getattr(processor, "chat_template", None)
        dated = uses_date(template)  # before version 2, such a template wrote the day of the encoding
        # Before "joined", what follows a prompt began with a space that only the beginning of a text has.
        joined = ["joined"] if processor is not None and adds_space(processor) else []
        return {
            "text": [2 if dated else 1, template],
            "completion": [2 if dated else 1, template, *joined],
            # Before 3, what follows an answer was trained on; before 5, also a second special token, and None in calls
            # of tools was written.
            "messages": [6 if dated else 5, template, *joined],
        }

    def encoding_of(self, encoding: Any, columns: Sequence[str]) -> Any:
        return encoding[kind_of(columns)[-1]] if isinstance(encoding, dict) else encoding  # of a task derived from this

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        kind = kind_of(rows.column_names)
        if kind == ("text",) and self.settings.train_on == "completion":
            reason = "the rows are texts, without prompts and completions"
            hint = "Remove it, or name columns prompt and completion, or messages, in data.columns"
            raise ConfigError("task.train_on", "completion", reason, hint)
        if split == "train" and self.settings.chat_template_kwargs and "messages" not in kind:
            reason = f"the rows have no messages, but {' and '.join(kind)}, which no chat template writes"
            raise ConfigError("task.chat_template_kwargs", self.settings.chat_template_kwargs, reason, "Remove it")
        lacking: dict[int, str] = {}
        for row, value in enumerate(rows[kind[-1]][:]):
            if not value:
                lacking[row] = f"its {kind[-1]} {'are' if 'messages' in kind else 'is'} empty"
            elif "messages" in kind and not any(m["role"] == "assistant" and _says(m) for m in value):
                lacking[row] = "none of its messages is the assistant's"
        if lacking:
            row, reason = next(iter(lacking.items()))
            if (more := len(lacking) - 1) > 0:
                reason += f", and {more} more {'row has' if more == 1 else 'rows have'} nothing to train on"
            if split == "transfer" and (why := self.transfer_needs.get(kind[-1])):
                reason += f"; {why}"
            raise ConfigError(
                f"data.{split}",
                f"row {row}",
                reason,
                f"Correct or drop {'these rows' if len(lacking) > 1 else 'the row'}",
            )
        if self.settings.generate and split == "test" and labelled:
            self._check_answers(rows)

    def _check_answers(self, rows: Dataset) -> None:
        """Raise ConfigError unless every row has a prompt and a text to compare with."""
        if kind_of(rows.column_names) == ("text",):
            hint = "Remove it, or name columns prompt and completion, or messages, in data.columns"
            raise ConfigError("task.generate", "{...}", "the rows are texts, without prompts", hint)
        for number, row in enumerate(rows):
            try:
                fits = all(isinstance(answer, str) for answer in answers_of(row))
            except (KeyError, TypeError):
                fits = False
            if not fits:
                reason = f"in test, row {number} has {str(row['answers'])[:40]}, which is no text or list of texts"
                raise ConfigError("data.columns.answers", "answers", reason, "Name another column, or correct the row")

    def check_prompts(self, rows: Dataset, processor: Any, positions: int) -> None:
        if self.settings.generate is None:
            return
        most, chosen = self.settings.generate.max_new_tokens, chosen_rows(len(rows), self.settings.generate.rows)
        numbers = numbers_of(rows)
        try:
            lengths = [len(prompt) for prompt in self.prompts(rows[chosen], processor)]
        except RowError as error:
            row = numbers[chosen[error.position]]
            raise ConfigError("data.test", f"row {row}", error.reason, error.hint) from None
        longest, empty = int(np.argmax(lengths)), int(np.argmin(lengths))
        if lengths[empty] == 0:
            reason, hint = "its prompt has no token, so there is nothing to generate from", "Drop the row"
            raise ConfigError("data.test", f"row {numbers[chosen[empty]]}", reason, f"{hint}, or remove task.generate")
        if positions and lengths[longest] + most > positions:
            row = f"row {numbers[chosen[longest]]} of data.test"
            reason = f"with the {lengths[longest]} tokens of the prompt of {row} it is more than the model's"
            reason += f" {positions} positions"
            raise ConfigError("task.generate.max_new_tokens", most, reason, "Lower it, or drop the row")

    @property
    def _template_values(self) -> dict[str, Any]:
        return self.settings.chat_template_kwargs or {}

    def prompts(self, rows: dict[str, list], processor: Any, follow: bool = False) -> list[list[int]]:
        return prompts(rows, processor, self._template_values, follow)

    def _tokenize(self, rows: dict[str, list], processor: Any) -> list[Row]:
        train_on = self.settings.train_on or ("all" if kind_of([*rows]) == ("text",) else "completion")
        return tokenize(rows, processor, train_on, self._template_values)

    def long_rows(self, rows: dict[str, list], processor: Any) -> list[bool]:
        last = [[text.decisions[-1] for text in row.texts if text.decisions] for row in self._tokenize(rows, processor)]
        return [max(row, default=0) >= self.settings.max_length for row in last]

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        tokens = self._tokenize(rows, processor)
        # What "drop" leaves out of a training is not here; `raykd predict` reads every row.
        long = self.settings.long if self.settings.long != "drop" else None
        split = (long or ("split" if kind_of([*rows]) == ("text",) else "truncate")) == "split"
        names = ["input_ids", "labels", "positions", "decisions", "vocabulary", "length"]
        names += ["window", "source", "cut", "text", "left_out"]
        columns: dict[str, list] = {name: [] for name in names}
        vocabulary, most = len(processor), self.settings.max_length
        found = [
            [(number, part) for number, text in enumerate(row.texts) for part in windows(text, most, split)]
            for row in tokens
        ]
        for source, (row, parts) in enumerate(zip(tokens, found, strict=True)):
            if not parts:
                others = sum(not other for other in found[source + 1 :])
                raise _nothing_to_train_on(source, row.texts[0].ids, most, others)
            cut = sum(len(text.decisions) for text in row.texts) - sum(len(part.decisions) for _, part in parts)
            for window, (number, part) in enumerate(parts):
                gold = [part.ids[at] for at in part.decisions] if labelled else [NO_LABEL] * len(part.decisions)
                values = (part.ids, gold, [at - 1 for at in part.decisions], len(gold), vocabulary, len(part.ids))
                of_row = (0, False) if window else (cut, row.left_out)
                of_window = (window, source, of_row[0], number, of_row[1])
                for name, value in zip(names, (*values, *of_window), strict=True):
                    columns[name].append(value)
        return columns

    def notes(self, encoded: Dataset) -> list[str]:
        names = [name for name in ("window", "cut", "decisions", "text", "left_out") if name in encoded.column_names]
        columns = encoded.select_columns(names).with_format("numpy")[:]
        window, cut = columns["window"], columns["cut"]
        text = columns.get("text", np.zeros_like(window))  # rows that were encoded before it existed have one text
        limit = f"task.max_length = {self.settings.max_length} tokens"
        first = np.flatnonzero(window == 0)
        found = []
        begins = (window > 0) & (np.diff(text, prepend=0) != 0)
        if own := int(begins.sum()):
            several = int(np.logical_or.reduceat(begins, first).sum())
            reason = "the chat template writes their earlier answers differently once other messages follow"
            found.append(f"{several:,} of {len(first):,} conversations are {several + own:,} rows, because {reason}")
        if lacking := int(columns.get("left_out", np.zeros(0)).sum()):
            reason = "a part of a message, such as the thoughts before an answer, or a tool, so it is not learnt"
            found.append(f"in {lacking:,} of {len(first):,} rows the chat template leaves out {reason}")
        if more := len(window) - len(first) - own:
            found.append(f"rows longer than {limit} are split into windows, which are {more:,} more than the rows")
        if cut.any():
            total = int(cut.sum() + columns["decisions"].sum())
            counts = f"{int((cut > 0).sum()):,} of {len(first):,} rows are longer than {limit}"
            found.append(f"{counts} and truncated: {cut.sum():,} of {total:,} tokens are dropped")
        return found

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        return np.stack([np.asarray(rows["decisions"]), np.asarray(rows["vocabulary"])], axis=1).astype(np.int64)

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        """Padded on the right, whatever the tokenizer says: positions count from the row's first token."""
        size, width, most = len(rows["length"]), max(rows["length"]), max(rows["decisions"])
        tokens = np.full((size, width), processor.pad_token_id, np.int64)
        attention, positions = np.zeros((size, width), np.int64), np.zeros((size, most), np.int64)
        labels = np.full((size, most), NO_LABEL, np.int64)
        for i, (ids, at, gold) in enumerate(zip(rows["input_ids"], rows["positions"], rows["labels"], strict=True)):
            tokens[i, : len(ids)], attention[i, : len(ids)] = ids, 1
            positions[i, : len(at)], labels[i, : len(gold)] = at, gold
        inputs = {"input_ids": tokens, "attention_mask": attention, "positions": positions}
        exists = torch.arange(most) < torch.as_tensor(np.asarray(rows["decisions"], np.int64))[:, None]  # (B, H)
        # A view, because at a vocabulary of 150,000 the mask would take as much memory as the logits.
        mask = exists[..., None].expand(-1, -1, int(rows["vocabulary"][0]))
        return Batch({name: torch.from_numpy(v) for name, v in inputs.items()}, torch.from_numpy(labels), mask)

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """A model's vocabulary can be padded to a round number; these classes are cut off."""
        assert batch.mask is not None
        return outputs.head(outputs.states)[..., : batch.mask.shape[-1]]

    def true_classes(self, batch: Batch) -> torch.Tensor:
        return batch.inputs["input_ids"].gather(1, batch.inputs["positions"] + 1)

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[tuple[float, int, int]]:
        """Of each row: the sum of its tokens' negative log-likelihoods, the number of right ones, and their number."""
        return [_score(row, np.asarray(gold)) for row, gold in zip(logits, rows["labels"], strict=True)]

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """How likely each row is: per token the negative log-likelihood, and its exponential."""
        columns = encoded.select_columns(["example", "input_ids", "positions"])[:]
        sums = np.zeros((len(raw), 3))
        for row, example, ids, at in zip(logits, *(columns[name] for name in columns), strict=True):
            sums[example] += _score(row, np.asarray(ids)[np.asarray(at) + 1])
        return [{"prediction": nll / n, "perplexity": _perplexity(nll / n), "tokens": int(n)} for nll, _, n in sums]

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        """Metrics per token, over all rows together, and not a mean of the rows' own.

        So a row's score is its linearized share of the negative log-likelihood L: L + (s - L n) * rows / tokens, where
        s and n are the row's own sum and its number of tokens. The mean of these scores is exactly L, and their spread
        is that of L over samples of rows (linearization of the ratio estimator: Cochran 1977, chapter 6).
        """
        sums = np.zeros((len(raw), 3))
        np.add.at(sums, np.asarray(encoded.select_columns("example")[:]["example"]), np.asarray(summaries, float))
        nll, right, tokens = sums.sum(0)
        mean = float(nll / tokens)
        scores = mean + (sums[:, 0] - mean * sums[:, 2]) * len(sums) / tokens
        predictions = [
            {"id": i, "prediction": own / n, "right": int(c), "tokens": int(n), "score": score}
            for i, (own, c, n), score in zip(numbers_of(raw), sums.tolist(), scores.tolist(), strict=True)
        ]
        metrics = {"nll": mean, "perplexity": _perplexity(mean), "accuracy": float(right / tokens)}
        return Evaluation(metrics, scores, predictions)


def _score(packed: np.ndarray, gold: np.ndarray) -> tuple[float, int, int]:
    """Of a row: the summed negative log-likelihood of its gold tokens, how many are the likeliest, how many there are.

    packed: (H, 6) fp16, `raykd.distillation.packed.pack_scores`. gold: (H,).
    """
    from raykd.distillation.packed import read_scores

    scores = read_scores(torch.from_numpy(np.ascontiguousarray(packed)))
    right = int((scores.choice.numpy() == gold).sum())
    return -float(scores.log_likelihood.double().sum()), right, len(gold)


def _perplexity(nll: float) -> float:
    """exp(nll); the largest float where it would overflow."""
    return math.exp(min(nll, 709.0))


def _nothing_to_train_on(source: int, ids: list[int], max_length: int, others: int) -> RowError:
    """others: how many of the rows that were read after it have nothing to train on either."""
    if len(ids) <= 1:
        return RowError(source, "it is a single token, which nothing precedes", "Drop the row")
    reason = f"none of its first {max_length} tokens (task.max_length) is one to be trained on; it has {len(ids)}"
    if others:
        reason += f", and the same is true of {others} of the rows after it"
    hint = "Raise task.max_length, set task.long=split, or leave it out, as task.long=drop does before a training"
    return RowError(source, reason, hint)


def _says(message: Mapping[str, Any]) -> bool:
    return bool(message.get("content") or message.get("tool_calls"))
