"""How wide the screen is, and questions on it that are answered with yes or no."""

import os
import sys
from typing import TextIO

from raykd.common.errors import ConfigError

_OF_A_LOG = 140  # characters: a log or a pipe has no width of its own


def width_of(stream: TextIO) -> int | None:
    """The width in characters for rich's Console; None: the terminal's, or that in COLUMNS."""
    return None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else _OF_A_LOG


def says_yes(question: str) -> bool:
    """Whether the answer is yes; the end of input (Ctrl-D) is a no. Raises ConfigError if there is no terminal."""
    if not sys.stdin.isatty():
        raise ConfigError("--yes", "not given", "there is no terminal to ask for confirmation", "Pass --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
