"""Numbers with their units, as people read them."""


def size(count: float) -> str:
    """A number of bytes, such as "4.9 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{_short(count / factor)} {unit}"
    return f"{_short(count / 1e3)} kB"


def milliseconds(value: float) -> str:
    """A time in milliseconds, such as "0.31 ms" or "2.4 s"."""
    return f"{_short(value)} ms" if value < 1000 else f"{_short(value / 1000)} s"


def _short(value: float) -> str:
    """To two digits at least, without an exponent."""
    decimals = 0 if value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:,.{decimals}f}"
