"""What the store will weigh: the numbers that are kept of a teacher's decisions."""

from collections.abc import Callable

import numpy as np

from raykd.common.units import shown_size
from raykd.config.schema import Config
from raykd.logits.keep import Keep
from raykd.plan.prepare import Prepared

_WORDS = {"all": "every logit", "hidden": "the last hidden states", "top_k": "the largest logits"}


def numbers(prepared: Prepared, teacher: str, keep: Keep, classes: np.ndarray) -> np.ndarray | int:
    """How many fp16 numbers are kept of a decision. classes: (N,) of each row."""
    if not keep.packed:
        return classes
    return keep.numbers(0, _states(prepared, teacher) if keep.form == "hidden" else 0)


def state_sizes(config: Config, prepared: Prepared) -> dict[str, int]:
    """The size of each teacher's last hidden state, by name, where it is what is kept."""
    if Keep.of(config, prepared.task).form != "hidden":
        return {}
    return {name: _states(prepared, name) for name in prepared.teachers}


def _states(prepared: Prepared, teacher: str) -> int:
    return prepared.teachers[teacher].model.config.get_text_config().hidden_size


def say_kept(config: Config, prepared: Prepared, say: Callable[[str], None]) -> None:
    """Print, for a task over a vocabulary, what is kept of each teacher's tokens and how much that is."""
    keep, task = Keep.of(config, prepared.task), prepared.task
    for name, member in prepared.teachers.items():
        shapes = [task.shapes(e.open().select_columns([*task.shape_columns])[:]) for e in member.splits.values()]
        rows = np.concatenate(shapes).astype(np.int64)
        each, tokens = 2 * int(np.max(numbers(prepared, name, keep, rows[:, 1]))), int(rows[:, 0].sum())
        all_logits = f"; all {rows[0, 1]:,} logits would be {shown_size(2 * int(rows[0, 1]))}" if keep.packed else ""
        head = ""
        if keep.form == "hidden":
            sizes = member.model.config.get_text_config()
            head = f", and its head, at most {shown_size(4 * sizes.vocab_size * sizes.hidden_size)}"
        say(
            f"logits of {name}: {_WORDS[keep.form]} of {tokens:,} tokens, {shown_size(each * tokens)} in all "
            f"({shown_size(each)} a token{all_logits}){head}"
        )
