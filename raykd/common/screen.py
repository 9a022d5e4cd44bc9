"""How wide the screen is."""

import os
from typing import TextIO

_OF_A_LOG = 140  # characters: a log or a pipe has no width of its own


def width_of(stream: TextIO) -> int | None:
    """The width in characters for rich's Console; None: the terminal's, or that in COLUMNS."""
    return None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else _OF_A_LOG
