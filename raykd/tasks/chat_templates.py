"""Conversations as a model's chat template writes them, and which of that the assistant writes."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any

from raykd.common.errors import ConfigError
from raykd.tasks.common import RowError

Piece = tuple[str, bool]  # a part of a row's text, and whether its tokens are trained on


def conversation(
    messages: list[dict[str, Any]], tokenizer: Any, position: int, values: Mapping[str, Any]
) -> list[list[Piece]]:
    """A conversation as the chat template writes it: its texts, each in pieces. The assistant's are trained on.

    It is one text, unless the template writes an answer differently once other messages follow it: Qwen3's leaves out
    its thoughts. Such an answer has a text of its own, which ends with it, as the model is to write it there.

    position: of the row, for errors.
    values: for the template.

    Raises RowError where the template begins an answer otherwise than it asks for one.
    """
    answers = [_answer(messages, number, tokenizer, position, values) for number in _numbers(messages)]
    for answer in answers:
        if not answer.until.startswith(answer.before):
            asks, writes = _difference(answer.before, answer.until)
            reason = f"the chat template asks for an answer with {asks!r}, but then writes {writes!r} there"
            hint = "Change what it is given (task.chat_template_kwargs, a system message), or give columns prompt and"
            raise RowError(position, reason, f"{hint} completion")
    found: list[list[Piece]] = []
    whole = written(messages, tokenizer, position, values)
    while answers or not found:
        pieces, answers = _pieces(whole, answers)
        found.insert(0, pieces)
        if answers:
            whole = answers[-1].until
    return found


def whole_conversation(
    messages: list[dict[str, Any]], tokenizer: Any, position: int, values: Mapping[str, Any]
) -> list[list[Piece]]:
    """The same where every token is trained on: once, in the text of all messages."""
    answers = [_answer(messages, number, tokenizer, position, values) for number in _numbers(messages)]
    fitting = [answer for answer in answers if answer.until.startswith(answer.before)]
    return [_pieces(written(messages, tokenizer, position, values), fitting)[0]]


@dataclass(frozen=True)
class _Answer:
    """before: the text that asks for it. until: the text that ends with it. end: where its own part of that ends."""

    before: str
    until: str
    end: int


def _numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]


def _answer(
    messages: list[dict[str, Any]], number: int, tokenizer: Any, position: int, values: Mapping[str, Any]
) -> _Answer:
    before = written(messages[:number], tokenizer, position, values, add_generation_prompt=True)
    until = written(messages[: number + 1], tokenizer, position, values)
    last = end_token(tokenizer)
    at = until.find(last, len(before)) if last else -1
    return _Answer(before, until, at + len(last) if at >= 0 else len(until))


def _pieces(whole: str, answers: list[_Answer]) -> tuple[list[Piece], list[_Answer]]:
    """A text in pieces, and the answers that it does not have as the model is to write them."""
    pieces: list[Piece] = []
    others, at = [], 0
    for answer in answers:
        start = len(answer.before)
        if at <= start and whole.startswith(answer.until[: answer.end]):
            # With a line break after the end, where the template writes the same one if no message follows.
            end = len(answer.until) if whole.startswith(answer.until) else answer.end
            pieces += [(whole[at:start], False), (whole[start:end], True)]
            at = end
        else:
            others.append(answer)
    return [*pieces, (whole[at:], False)], others


def _difference(one: str, other: str, around: int = 20) -> tuple[str, str]:
    """Both texts from a little before the first character in which they differ to a little after it."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, at - around)
    return one[start : at + around], other[start : at + around]


def left_out(messages: list[dict[str, Any]], tools: Any, texts: list[list[Piece]]) -> bool:
    """Whether the template leaves out a part of a message, such as an answer's thoughts, or a tool.

    Spaces do not count. What tools answered is not looked for, because templates write it in other ways.
    """
    whole = "".join("".join(text.split()) for pieces in texts for text, _ in pieces)
    looked_for = [message for message in messages if message["role"] in ("system", "user", "assistant")]
    said = [message.get(part) for message in looked_for for part in ("content", "reasoning_content")]
    given = [tool for tool in tools or () if isinstance(tool, Mapping)]
    said += [tool.get("function", tool).get("name") for tool in given]
    return any("".join(part.split()) not in whole for part in said if isinstance(part, str))


def written(
    messages: list[dict[str, Any]], tokenizer: Any, position: int, values: Mapping[str, Any], **options: bool
) -> str:
    """What the chat template makes of messages.

    position: of the row, for errors.
    values: for the template; options: of `apply_chat_template`.

    Raises ConfigError without a template, RowError for messages that it does not take.
    """
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        reason = "it has no chat template, which the column messages needs"
        raise ConfigError("tokenizer", name, reason, "Use a model with one, or give columns prompt and completion")
    # A table's columns unite the fields of all messages: one that a message does not have is None there.
    given = [without_none(message) | {"content": message.get("content") or ""} for message in messages]
    try:
        with _same_day():
            return tokenizer.apply_chat_template(given, tokenize=False, **values, **options)
    except Exception as error:  # templates raise errors of their own, such as that roles must alternate
        reason = f"the chat template does not take its messages ({' '.join(str(error).split())[:100]})"
        raise RowError(position, reason, "Correct the row's messages") from None


def without_none(value: Any) -> Any:
    """The value without the fields that are None, however deep."""
    if isinstance(value, Mapping):
        return {name: without_none(part) for name, part in value.items() if part is not None}
    return [without_none(part) for part in value] if isinstance(value, list) else value


def uses_date(template: Any) -> bool:
    """Whether a chat template writes the date into its texts, as Llama 3.2's does."""
    return "strftime_now" in str(template)


def own_length(ids: list[int], end: int | None, special: set[int], tokenizer: Any) -> int:
    """How many of a message's tokens are the assistant's: up to the special token that ends it.

    A template can write more after it, such as a line break. No model writes that, since it has stopped by then.

    end: the tokenizer's `answer_end`; a message can end with another special token, such as a call of a tool.
    """
    if end in ids:
        return ids.index(end) + 1
    ends = [at for at, token in enumerate(ids, 1) if token in special]
    return ends[-1] if ends and not tokenizer.decode(ids[ends[-1] :]).strip() else len(ids)


def end_token(tokenizer: Any) -> str:
    """The text of `answer_end`; "" if there is none."""
    number = answer_end(tokenizer)
    return "" if number is None else tokenizer.convert_ids_to_tokens(number)


def answer_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after the assistant's message; None if there is none.

    It need not be the end-of-text token: Qwen 2.5's base models have a template with <|im_end|> and end texts with
    <|endoftext|>.
    """
    return _answer_end(tokenizer, str(tokenizer.chat_template))


@functools.lru_cache(maxsize=16)
def _answer_end(tokenizer: Any, template: str) -> int | None:
    """template: the tokenizer's, which can be changed."""
    if not tokenizer.chat_template:
        return None
    try:
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}]
        text = written(said, tokenizer, 0, {})
    except RowError:  # such as where a content is a list of parts
        return None
    _, found, rest = text.rpartition("yes")
    if not found:
        return None
    after = tokenizer(rest, add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    return next((token for token in after if token in special), None)


def special_ids(tokenizer: Any) -> set[int]:
    """The numbers of its special tokens, such as that of <|im_end|>."""
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


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
