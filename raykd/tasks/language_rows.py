"""The rows of a language model as tokens: which of them are trained on, and how rows that are too long are cut.

A prompt and its completion are tokenized apart and joined, so that a prompt's tokens do not depend on what follows, and
are the same when the model generates.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any

from raykd.common.errors import ConfigError
from raykd.tasks.common import RowError

Piece = tuple[str, bool]  # a part of a row's text, and whether its tokens are trained on
KINDS = (("messages",), ("prompt", "completion"), ("text",))  # the columns of a row, the first that the data has


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


def tokenize(rows: dict[str, list], tokenizer: Any, train_on: str) -> list[Tokens]:
    """Each row's tokens.

    rows: the raw columns, of one of KINDS.
    train_on: "completion" or "all".

    A text begins with the tokenizer's beginning-of-text token if the tokenizer adds one to texts, and ends with its
    end-of-text token if there is one. A chat template writes both itself.
    """
    check_tokenizer(tokenizer)
    kind = kind_of([*rows])
    if kind == ("messages",):
        pieces = [_conversation(messages, tokenizer, at) for at, messages in enumerate(rows["messages"])]
    elif kind == ("text",):
        pieces = [[(text, True)] for text in rows["text"]]
    else:
        both = zip(rows["prompt"], rows["completion"], strict=True)
        pieces = [[(prompt, False), (completion, True)] for prompt, completion in both]
    flat = [text for row in pieces for text, _ in row]
    found = iter(text_ids(flat, tokenizer))
    first = beginning(tokenizer) if kind != ("messages",) else []
    last = [] if kind == ("messages",) or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    result = []
    for row in pieces:
        ids, trained = [*first], [False] * len(first)
        for _, is_trained in row:
            ids += (more := next(found))
            trained += [is_trained] * len(more)
        if last and ids[-1:] != last:
            ids += last
            trained.append(True)
        decisions = [at for at, own in enumerate(trained) if at and (own or train_on == "all")]
        result.append(Tokens(ids, decisions))
    return result


def prompts(rows: dict[str, list], tokenizer: Any) -> list[list[int]]:
    """The tokens of each row before its completion, or before the assistant's last message (all if there is none).

    rows: the raw columns: messages, or prompt.

    Raises RowError for messages that the chat template does not take, ConfigError if there is no template.
    """
    if "messages" not in rows:
        first = beginning(tokenizer)
        return [first + ids for ids in text_ids(rows["prompt"], tokenizer)]
    texts = []
    for position, messages in enumerate(rows["messages"]):
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        last = answers[-1] if answers else len(messages)
        texts.append(_written(messages[:last], tokenizer, position, add_generation_prompt=True))
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


def _conversation(messages: list[dict[str, Any]], tokenizer: Any, position: int) -> list[Piece]:
    """A conversation as the chat template writes it. What it writes of the assistant's messages is trained on.

    position: of the row, for errors.
    """
    whole = _written(messages, tokenizer, position)
    pieces: list[Piece] = []
    at = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _written(messages[:number], tokenizer, position, add_generation_prompt=True)
        until = _written(messages[: number + 1], tokenizer, position)
        if not (whole.startswith(before) and whole.startswith(until) and at <= len(before) <= len(until)):
            reason = "the chat template writes a message differently if others follow it"
            raise RowError(position, reason, "Give each answer a row of its own, or columns prompt and completion")
        pieces += [(whole[at : len(before)], False), (whole[len(before) : len(until)], True)]
        at = len(until)
    return [*pieces, (whole[at:], False)]


def _written(messages: list[dict[str, Any]], tokenizer: Any, position: int, **options: bool) -> str:
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        reason = "it has no chat template, which the column messages needs"
        raise ConfigError("tokenizer", name, reason, "Use a model with one, or give columns prompt and completion")
    given = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        with _same_day():
            return tokenizer.apply_chat_template(given, tokenize=False, **options)
    except Exception as error:  # templates raise errors of their own, such as that roles must alternate
        reason = f"the chat template does not take its messages ({' '.join(str(error).split())[:100]})"
        raise RowError(position, reason, "Correct the row's messages") from None


def uses_date(template: Any) -> bool:
    """Whether a chat template writes the date into its texts, as Llama 3.2's does."""
    return "strftime_now" in str(template)


_LOCK = Lock()


class _Day(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "_Day":
        return cls(2024, 7, 26, tzinfo=tz)  # the date that Llama 3.2's template falls back to


@contextmanager
def _same_day() -> Iterator[None]:
    """Chat templates write the same date on every day, so that a row's tokens depend on the row alone."""
    from transformers.utils import chat_template_utils as templates  # takes seconds to import

    with _LOCK:  # two threads would restore each other's date
        before, templates.datetime = templates.datetime, _Day
        try:
            yield
        finally:
            templates.datetime = before


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
