"""Conversations as a model's chat template writes them, and which of that the assistant writes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    found: list[list[Piece]] = []
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    end = len(messages)
    while answers or not found:
        whole, at = written(messages[:end], tokenizer, position, values), 0
        pieces: list[Piece] = []
        others = []
        for number in answers:
            before = written(messages[:number], tokenizer, position, values, add_generation_prompt=True)
            until = written(messages[: number + 1], tokenizer, position, values)
            if not until.startswith(before):
                reason = "the chat template does not begin an answer as it asks for one"
                raise RowError(position, reason, "Give columns prompt and completion instead")
            if at <= len(before) and whole.startswith(until):
                pieces += [(whole[at : len(before)], False), (whole[len(before) : len(until)], True)]
                at = len(until)
            else:
                others.append(number)
        found.insert(0, [*pieces, (whole[at:], False)])
        answers = others
        end = answers[-1] + 1 if answers else 0
    return found


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
    given = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        with _same_day():
            return tokenizer.apply_chat_template(given, tokenize=False, **values, **options)
    except Exception as error:  # templates raise errors of their own, such as that roles must alternate
        reason = f"the chat template does not take its messages ({' '.join(str(error).split())[:100]})"
        raise RowError(position, reason, "Correct the row's messages") from None


def uses_date(template: Any) -> bool:
    """Whether a chat template writes the date into its texts, as Llama 3.2's does."""
    return "strftime_now" in str(template)


def own_length(ids: list[int], special: set[int], tokenizer: Any) -> int:
    """How many of a message's tokens are the assistant's: up to the special token that ends it.

    A template can write more after it, such as a line break. No model writes that, since it has stopped by then.
    """
    ends = [at for at, token in enumerate(ids, 1) if token in special]
    return ends[-1] if ends and not tokenizer.decode(ids[ends[-1] :]).strip() else len(ids)


def answer_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after the assistant's message; None if there is none.

    It need not be the end-of-text token: Qwen 2.5's base models have a template with <|im_end|> and end texts with
    <|endoftext|>.
    """
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
