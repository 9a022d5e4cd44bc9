"""Extractive question answering with unanswerable questions (SQuAD v2.0: Rajpurkar, Jia and Liang 2018).

A row is a window of a long context with two decisions over its tokens: where the answer starts and where it ends.
Both on the first token (CLS) means "no answer in this window".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.hashing import digest
from raykd.common.late import Late
from raykd.tasks.answers import check_answers
from raykd.tasks.common import NO_LABEL, Batch, Evaluation, Task
from raykd.tasks.padding import pad_tokens, without_padding_before
from raykd.tasks.spans import Spans, first_answer, locate, read_spans
from raykd.tasks.squad_v2 import score_questions

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


CLS = 0  # the position that means "no answer"; `_check_tokenizer` makes sure that it is the CLS token
THRESHOLD = "no_answer_threshold"
_WINDOW = ["labels", "length", "window", "source"]  # of every task; then its own
_WINDOW += ["context_start", "context_end", "token_starts", "token_ends"]
_DECODING = ["context_start", "context_end", "token_starts", "token_ends", "example"]


class QuestionAnswering(Task):
    """H = 2 decisions (start, end) over C = the window's tokens, of which CLS and the context are allowed.

    Beside the columns of every task an encoded row has `context_start`, `context_end` (its context's
    tokens, end exclusive) and, for those tokens only, `token_starts`, `token_ends` (characters of the raw
    context), so that an answer is a slice of the raw context, never a detokenised text.
    """

    primary_metric = "f1"
    metric_names = ("f1", "exact", "HasAns_f1", "HasAns_exact", "NoAns_f1", "NoAns_exact", "nll")
    percent = True
    auto_model = "AutoModelForQuestionAnswering"
    processor = "tokenizer"
    columns = ("id", "question", "context")
    made_columns = ("id",)
    identity_columns = ("question", "context")
    collate_columns = ("context_start", "context_end")
    summary_columns = ("labels", "context_start", "context_end")
    group_column = "context"
    article_column = "title"
    aligned_columns = ("length", "context_start", "token_starts", "token_ends")
    label_column = "answers"
    model_inputs = ("input_ids", "token_type_ids")  # the attention mask follows from the length
    repeats_shapes = True
    array_columns = ("input_ids", "token_type_ids")

    def preprocessing(self) -> dict[str, Any]:
        return {
            "task": "question-answering",
            "windows": 1,  # increase it when `encode` returns other inputs for the same settings
            "max_length": self.settings.max_length,
            "stride": self.settings.stride,
        }

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        for batch in rows.select_columns([*self.columns]).with_format(None).iter(batch_size=1000):
            for key, *texts in zip(*(batch[name] for name in self.columns), strict=True):
                if not all(isinstance(text, str) for text in texts):
                    reason = "its question and its context must be text"
                    raise ConfigError(f"data.{split}", key, reason, "Correct or drop the row of this id")
        if labelled:
            check_answers(rows, split)

    def unmeasurable(self, rows: Dataset) -> dict[str, str]:
        answered = [bool(answers["text"]) for answers in rows[self.label_column][:]]
        missing = {}
        if not any(answered):
            missing = {"HasAns_f1": "none of its questions has an answer"}
        elif all(answered):
            missing = {"NoAns_f1": "all of its questions have an answer"}
        return {key: why for name, why in missing.items() for key in (name, name.replace("_f1", "_exact"))}

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        _check_tokenizer(processor)
        # Some of SQuAD's questions start with dozens of spaces, which byte-level tokenizers keep.
        questions = [question.lstrip() for question in rows["question"]]
        self._check_room(rows["id"], questions, processor)
        batch = processor(
            questions,
            list(rows["context"]),
            truncation="only_second",
            max_length=self.settings.max_length,
            stride=self.settings.stride,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        source = batch["overflow_to_sample_mapping"]
        answers = [first_answer(a) for a in rows[self.label_column]] if labelled else []
        out: dict[str, list] = {name: batch[name] for name in self.model_inputs if name in batch}
        if any(ids[0] != processor.cls_token_id for ids in batch["input_ids"]):
            raise _tokenizer_error(processor, "it does not put its CLS token first, where 'no answer' is read")
        windows: list[tuple] = []  # a value for each of `_WINDOW`
        for at, (encoding, example) in enumerate(zip(batch.encodings, source, strict=True)):
            opening = at == 0 or source[at - 1] != example
            closing = at + 1 == len(source) or source[at + 1] != example
            side = encoding.sequence_ids  # 0 for the question, 1 for the context, None for special tokens
            tokens = side.count(1)
            start = side.index(1) if tokens else CLS
            starts = [span[0] for span in encoding.offsets[start : start + tokens]]
            ends = [span[1] for span in encoding.offsets[start : start + tokens]]
            label = [NO_LABEL, NO_LABEL]  # a missing label does not mean "unanswerable"
            if labelled:
                found = locate(answers[example], starts, ends, opening, closing)
                label = [start + found[0], start + found[1]] if found else [CLS, CLS]
            window = 0 if opening else windows[-1][2] + 1
            windows.append((label, len(side), window, example, start, start + tokens, starts, ends))
        return out | dict(zip(_WINDOW, map(list, zip(*windows, strict=True)), strict=True))

    def shapes(self, rows: Mapping[str, Sequence]) -> np.ndarray:
        return np.stack([np.full(len(rows["length"]), 2), np.asarray(rows["length"])], axis=1)

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        inputs, before = pad_tokens(rows, self.model_inputs, processor, self.pad_to, self.settings.max_length)
        columns = np.arange(max(rows["length"]))  # of a row, independent of the padding side
        start, end = (np.asarray(rows[name])[:, None] for name in ("context_start", "context_end"))
        allowed = ((columns >= start) & (columns < end)) | (columns == CLS)  # (B, C), the same for start and end
        labels = torch.from_numpy(np.array(rows["labels"], dtype=np.int64))
        return Batch(inputs, labels, torch.from_numpy(np.repeat(allowed[:, None], 2, axis=1)), before)

    def decisions(self, outputs: Any, batch: Batch) -> torch.Tensor:
        logits = torch.stack((outputs.start_logits, outputs.end_logits), dim=1)  # (B, 2, C)
        logits = without_padding_before(logits, batch.before)
        return logits if batch.mask is None else logits[..., : batch.mask.shape[-1]]  # without the padding of `pad_to`

    def summarize(self, logits: Sequence[np.ndarray], rows: Mapping[str, Sequence]) -> list[tuple]:
        """Of each window: its best span, as the values of `Spans`."""
        start, end, labels = (np.asarray(rows[name]) for name in ("context_start", "context_end", "labels"))
        spans = read_spans(logits, start, end, labels, self.settings.max_answer_length)
        columns = (spans.margin, spans.first, spans.last, spans.nll)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def chance(self, rows: Dataset) -> float:
        """The F1, in percent, of "no answer" to every question."""
        return 100.0 * float(np.mean([not answers["text"] for answers in rows.with_format(None)["answers"]]))

    def predictions(
        self, logits: Sequence[np.ndarray], encoded: Dataset, raw: Dataset, calibration: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """The answer, "" for none. Without a threshold there is none if that is more probable than an answer."""
        summaries = self.summarize(logits, encoded.select_columns([*self.summary_columns])[:])
        texts, probability = _answers(Spans(*(np.array(c) for c in zip(*summaries, strict=True))), encoded, raw)
        threshold = calibration.get(THRESHOLD, 0.5)
        return [
            {"prediction": "" if p > threshold else text, "no_answer_probability": p, "best_answer": text}
            for text, p in zip(texts, probability.tolist(), strict=True)
        ]

    def evaluate(
        self, summaries: Sequence[Any], encoded: Dataset, raw: Dataset, calibration: dict[str, float] | None = None
    ) -> Evaluation:
        """Score one split. If `calibration` is None, the no-answer threshold is chosen on this split."""
        assert len(summaries) == len(encoded), "one summary for every window"
        labels = encoded.select_columns("labels").with_format("arrow")[:].column("labels").combine_chunks()
        labels = labels.flatten().to_numpy().reshape(-1, 2)
        if (labels == NO_LABEL).all():
            raise ValueError("rows without labels cannot be scored: they would all count as unanswerable")
        spans = Spans(*(np.array(column) for column in zip(*summaries, strict=True)))
        texts, probability = _answers(spans, encoded, raw)
        rows = raw.select_columns(["id", "context", "answers"]).with_format(None)[:]

        # By position, because ids need not be unique.
        references = [{"id": i, "answers": answers} for i, answers in enumerate(rows["answers"])]
        scores = score_questions(dict(enumerate(texts)), references)
        probabilities = dict(enumerate(probability.tolist()))
        if calibration is None:
            calibration = {THRESHOLD: scores.best_threshold(scores.f1, probabilities)[1]}
        threshold = calibration[THRESHOLD]
        f1 = scores.with_threshold(scores.f1, probabilities, threshold)
        metrics = scores.summary(probabilities, threshold)
        metrics |= {THRESHOLD: threshold, "nll": float(spans.nll[labels != NO_LABEL].mean())}
        predictions = [
            {
                "id": rows["id"][i],
                "prediction": "" if probabilities[i] > threshold else texts[i],
                "no_answer_probability": probabilities[i],
                "best_answer": texts[i],  # its best span, without the threshold
                "answers": rows["answers"][i]["text"],
                "f1": float(f1[i]),
                "score": 100.0 * float(f1[i]),
                "context": digest(rows["context"][i].encode()).hex()[:12],  # equal for the questions of one context
            }
            for i in range(len(raw))
        ]
        return Evaluation(metrics, 100.0 * np.array([f1[i] for i in range(len(raw))], float), predictions, calibration)

    def _check_room(self, ids: list, questions: list[str], processor: Any) -> None:
        """Raise ConfigError if a question leaves room for `stride` or fewer tokens of context, the overlap of windows.

        The question is not truncated, because half a question is a different question. (Without this check the
        tokenizer panics, with a Rust backtrace.)
        """
        room = self.settings.max_length - processor.num_special_tokens_to_add(pair=True)
        tokens = processor(questions, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        for key, question in zip(ids, tokens, strict=True):
            if room - len(question) <= self.settings.stride:
                raise ConfigError(
                    "task.max_length",
                    self.settings.max_length,
                    f"question {key!r} has {len(question)} tokens and leaves {room - len(question)} of a "
                    f"window to the context, not more than the {self.settings.stride} that windows share",
                    "Raise task.max_length, lower task.stride or drop the row",
                )


def _answers(spans: Spans, encoded: Dataset, raw: Dataset) -> tuple[list[str], np.ndarray]:
    """Each example's best span as a text, and (examples,) the probability that it has no answer.

    An example's answer is the span with the largest margin over "no answer" *within its window*, among all its
    windows: logits of different windows have no common scale, but margins do.

    spans: of each encoded row.
    """
    table = encoded.select_columns(_DECODING).with_format("arrow")[:]
    columns = {name: table.column(name).combine_chunks() for name in _DECODING}
    start, end, example = (columns[n].to_numpy() for n in ("context_start", "context_end", "example"))
    order = np.lexsort((-spans.margin, example))  # stable, so that the earliest of equal windows counts
    found, at = np.unique(example[order], return_index=True)
    assert found.tolist() == list(range(len(raw))), "every raw row has at least one window"
    best = order[at]  # (examples,) each example's window with the largest margin
    contexts = raw.select_columns("context").with_format(None)[:]["context"]
    # The tokens of all windows are concatenated in two flat arrays.
    before = np.concatenate(([0], np.cumsum(end - start)))[best]
    flat = (columns[name].flatten() for name in ("token_starts", "token_ends"))
    starts, ends = (column.to_numpy(zero_copy_only=False) for column in flat)  # it can be empty, with type null
    texts = [""] * len(raw)
    for i in np.flatnonzero(spans.margin[best] > -np.inf).tolist():  # the others have no context at all
        first, last = starts[before[i] + spans.first[best[i]]], ends[before[i] + spans.last[best[i]]]
        texts[i] = contexts[i][first:last].strip()
    from scipy.special import expit  # scipy takes a second to import, and only predictions need it

    return texts, expit(-spans.margin[best])


def _check_tokenizer(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise _tokenizer_error(tokenizer, "it is not a fast tokenizer, which alone knows a token's characters")
    if tokenizer.truncation_side != "right":
        raise _tokenizer_error(tokenizer, "it truncates on the left, so CLS is not the first position")
    if tokenizer.cls_token_id is None or tokenizer.pad_token_id is None:
        raise _tokenizer_error(tokenizer, "it has no CLS token ('no answer' is read there) or no padding token")


def _tokenizer_error(tokenizer: Any, reason: str) -> ConfigError:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    return ConfigError("tokenizer", name, reason, "Take a model of the BERT, ELECTRA or RoBERTa kind")
