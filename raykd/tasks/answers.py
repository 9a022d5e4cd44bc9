"""Gold answers of question answering, checked against their contexts."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.units import counted

_UNITS = {  # in which other programs count: name, encoding, bytes of a unit
    "UTF-16 units, as browsers do, where an emoji counts twice": ("utf-16-le", 2),
    "bytes of UTF-8": ("utf-8", 1),
}
_SHOWN = 60  # characters of an answer in a message


def check_answers(rows: Dataset, split: str) -> None:
    """Raise ConfigError if answers are missing, malformed or not in their place. Names the first row, counts them all.

    rows: with the columns id, context and answers.
    split: its name, for the message.
    """
    missing: list[Any] = []  # ids
    misplaced: list[tuple[Any, str, str, int]] = []  # id, context, answer and its start
    for batch in rows.select_columns(["id", "context", "answers"]).with_format(None).iter(batch_size=1000):
        for key, context, answers in zip(batch["id"], batch["context"], batch["answers"], strict=True):
            if answers is None or (isinstance(answers, dict) and answers and not any(map(_is_given, answers.values()))):
                missing.append(key)
                continue
            if reason := _malformed(answers):
                raise ConfigError(f"data.{split}", key, reason, "Correct or drop the row of this id")
            placed = zip(answers["text"], answers["answer_start"], strict=True)
            if wrong := next((a for a in placed if not context.startswith(*a)), None):
                misplaced.append((key, context, *wrong))
    if missing:
        reason = f"{counted(len(missing), 'row')}, first the one with this id, without answers"
        hint = "Drop these rows, or use them as data.transfer. A question without an answer has an empty list of texts"
        raise ConfigError(f"data.{split}", missing[0], reason, hint)
    if misplaced:
        raise _misplaced(misplaced, len(rows), split)


def _is_given(value: Any) -> bool:
    return value is not None


def _malformed(answers: Any) -> str:
    """Why these answers cannot be used, wherever they are; "" if they can."""
    texts, starts = (answers.get(k) if isinstance(answers, dict) else None for k in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return "its answers must be {text: [...], answer_start: [...]} of one length, empty if unanswerable"
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or start < 0:
            return f"its answer {text!r} at {start!r} is not a text at a character of its context"
        if not text.strip():
            return "one of its answers is empty; a question without an answer has an empty list of texts"
    return ""


def _misplaced(rows: Sequence[tuple[Any, str, str, int]], count: int, split: str) -> ConfigError:
    """count: all rows of the split."""
    key, _, text, start = rows[0]
    shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
    reason = f"its answer {shown} is not at character {start} of its context"
    if len(rows) == 1:
        return ConfigError(f"data.{split}", key, reason, "Correct or drop the row of this id")
    reason += f", nor are those of {len(rows) - 1} other rows of {count}"
    hint = "Correct or drop these rows"
    for units, (encoding, size) in _UNITS.items():
        if all(_starts_at(context, text, size * start, encoding) for _, context, text, start in rows):
            reason += f"; all {len(rows)} are where it says if one counts {units}"
            slice_ = f"[:{size} * start]" if size > 1 else "[:start]"
            hint = f"Convert each start: len(context.encode('{encoding}'){slice_}.decode('{encoding}'))"
    return ConfigError(f"data.{split}", key, reason, hint)


def _starts_at(context: str, text: str, start: int, encoding: str) -> bool:
    """Whether the text is in the encoded context at this byte."""
    return context.encode(encoding, "surrogatepass").startswith(text.encode(encoding, "surrogatepass"), start)
