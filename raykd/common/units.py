"""Numbers with their units, as people read them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def shown_size(count: float) -> str:
    """A number of bytes with a unit, to three digits, such as "1.5 kB"."""
    power = min(4, max(0, len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def counted(count: int, one: str, several: str = "") -> str:
    """Such as "1 row" and "2 rows". several: the plural, if it is not `one` with an s."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def rows_that(positions: "Sequence[int] | np.ndarray", one: str, several: str) -> str:
    """The subject of a message on some rows, with its verb: "row 3 (counted from 0) has"."""
    if len(positions) == 1:
        return f"row {positions[0]} (counted from 0) {one}"
    return f"{len(positions)} rows (the first is row {positions[0]}, counted from 0) {several}"


def milliseconds(value: float) -> str:
    """A time in milliseconds, such as "0.31 ms" or "2.4 s"."""
    return f"{_short(value)} ms" if value < 1000 else f"{_short(value / 1000)} s"


def latency(measured: Mapping[str, float]) -> str:
    """A median with the 10th and 90th percentile, such as "2.04 ms (1.98 to 2.31 ms)".

    measured: as `raykd.models.serving_cost.summary` returns it.
    """
    low, high = (milliseconds(measured[f"latency_{end}_ms"]) for end in ("p10", "p90"))
    unit = high.rpartition(" ")[2]
    return f"{milliseconds(measured['latency_ms'])} ({low.removesuffix(f' {unit}')} to {high})"


def _short(value: float) -> str:
    """To two digits at least, without an exponent."""
    decimals = 0 if value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:,.{decimals}f}"
