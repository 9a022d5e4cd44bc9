"""The rows of a language model as tokens: which of them are trained on, and how rows that are too long are cut.

A prompt and its completion are tokenized apart and joined, so that a prompt's tokens do not depend on what follows, and
are the same when the model generates.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raykd.common.errors import ConfigError
from raykd.tasks.chat_templates import (
    Piece,
    answer_end,
    conversation,
    left_out,
    own_length,
    special_ids,
    whole_conversation,
    without_none,
    written,
)
from raykd.tasks.common import RowError

# The columns of a row: the first group that the data has.
KINDS = (("tools", "messages"), ("messages",), ("prompt", "completion"), ("text",))


@dataclass(frozen=True)
class Tokens:
    """A row's tokens.

    ids: (n,) of the tokens.
    decisions: the indices, ascending and from 1 on, of those that are trained on. Nothing predicts the first token.
    """

    ids: list[int]
    decisions: list[int]


def kind_of(names: Sequence[str]) -> tuple[str, ...]:
    """Which of KINDS a row with these columns is."""
    return next(kind for kind in KINDS if set(kind) <= set(names))


@dataclass(frozen=True)
class Row:
    """texts: one, or of a conversation more (`conversation`). left_out: whether the texts lack a part of a message."""

    texts: list[Tokens]
    left_out: bool = False


def tokenize(rows: dict[str, list], tokenizer: Any, train_on: str, values: Mapping[str, Any]) -> list[Row]:
    """Each row's texts as tokens.

    rows: the raw columns, of one of KINDS.
    train_on: "completion" or "all".
    values: for the chat template.

    A text begins with the tokenizer's beginning-of-text token if the tokenizer adds one to texts, and ends with its
    end-of-text token if there is one. A chat template writes both itself.
    """
    check_tokenizer(tokenizer)
    kind = kind_of([*rows])
    talks = "messages" in kind
    if talks:
        write = whole_conversation if train_on == "all" else conversation
        own_values = [_values_of(rows, at, values) for at in range(len(rows["messages"]))]
        texts = [write(rows["messages"][at], tokenizer, at, own) for at, own in enumerate(own_values)]
    elif kind == ("text",):
        texts = [[[(text, True)]] for text in rows["text"]]
    else:
        both = zip(rows["prompt"], rows["completion"], strict=True)
        texts = [[[(prompt, False), (completion, True)]] for prompt, completion in both]
    flat = [piece for row in texts for pieces in row for piece, _ in pieces]
    found = iter(text_ids(flat, tokenizer))
    first = beginning(tokenizer) if not talks else []
    last = [] if talks or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    joined, special, end = adds_space(tokenizer), special_ids(tokenizer), answer_end(tokenizer)

    def tokens(pieces: list[Piece]) -> Tokens:
        ids, trained, before = [*first], [False] * len(first), ""
        for text, is_trained in pieces:
            more = next(found)
            if joined and before:
                more = _following(before, ids[len(first) :], text, more, tokenizer)
            own = own_length(more, end, special, tokenizer) if is_trained and talks else len(more)
            trained += [is_trained] * own + [False] * (len(more) - own)
            ids, before = ids + more, before + text
        if last and ids[-1:] != last:
            ids += last
            trained.append(True)
        return Tokens(ids, [at for at, own in enumerate(trained) if at and (own or train_on == "all")])

    found_rows = [[tokens(pieces) for pieces in row] for row in texts]
    if not talks:
        return [Row(row) for row in found_rows]
    lacks = [left_out(rows["messages"][at], own.get("tools"), texts[at]) for at, own in enumerate(own_values)]
    return [Row(row, lacking) for row, lacking in zip(found_rows, lacks, strict=True)]


def _values_of(rows: dict[str, list], at: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's chat template is given: the job's values, and the row's own tools if it has some.

    Raises RowError for tools that are a text but no JSON.
    """
    tools = rows["tools"][at] if "tools" in rows else None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise RowError(at, f"its tools are no JSON ({error})", "Correct the row") from None
    return {**values, "tools": without_none(tools)} if tools else dict(values)


def prompts(rows: dict[str, list], tokenizer: Any, values: Mapping[str, Any], follow: bool = False) -> list[list[int]]:
    """The tokens of each row before its completion, or before the assistant's last message (all if there is none).

    rows: the raw columns: messages (and tools), or prompt.
    values: for the chat template.
    follow: take all messages, to write the one that follows.

    Raises RowError for messages that the chat template does not take, ConfigError if there is no template.
    """
    if "messages" not in rows:
        first = beginning(tokenizer)
        return [first + ids for ids in text_ids(rows["prompt"], tokenizer)]
    texts = []
    for position, messages in enumerate(rows["messages"]):
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        last = answers[-1] if answers and not follow else len(messages)
        own = _values_of(rows, position, values)
        texts.append(written(messages[:last], tokenizer, position, own, add_generation_prompt=True))
    return text_ids(texts, tokenizer)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ConfigError for a slow tokenizer, whose tokens can differ from those of the fast ones."""
    if not getattr(tokenizer, "is_fast", False):
        name = tokenizer.name_or_path or type(tokenizer).__name__
        reason = "it is not a fast tokenizer (one with a tokenizer.json)"
        raise ConfigError("tokenizer", name, reason, "Use a model with a fast tokenizer, or save one with it")


def text_ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """The tokens of each text, without special tokens at its ends."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def beginning(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, if the tokenizer adds one to texts."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos] else []


def adds_space(tokenizer: Any) -> bool:
    """Whether it writes a space before a text that has none, as SentencePiece does (Llama 2, Mistral 7B)."""
    alone, follows, before = text_ids(["a", "\na", "\n"], tokenizer)
    return follows[: len(before)] == before and follows[len(before) :] != alone


def _following(before: str, ids: list[int], text: str, alone: list[int], tokenizer: Any) -> list[int]:
    """The tokens of a text that follows another, without a space that only the beginning of a text would get.

    ids: of the text before. alone: the tokens where nothing is before it; they are taken if a token spans both texts.
    """
    whole = text_ids([before + text], tokenizer)[0]
    return whole[len(ids) :] if whole[: len(ids)] == ids else alone


def windows(tokens: Tokens, max_length: int, split: bool) -> list[Tokens]:
    """The row in windows of at most `max_length` tokens; without `split` only the first.

    Windows overlap by one token, so each decision is in exactly one of them. One without decisions is left out.
    """
    total = len(tokens.ids)
    starts = range(0, max(1, total - 1), max_length - 1) if split else (0,)
    found = []
    for start in starts:
        ids = tokens.ids[start : start + max_length]
        decisions = [at - start for at in tokens.decisions if start < at < start + len(ids)]
        if decisions:
            found.append(Tokens(ids, decisions))
    return found
