"""Numbers with their units, as people read them."""


def shown_size(count: float) -> str:
    """A number of bytes with a unit, to three digits, such as "1.5 kB"."""
    power = min(4, max(0, len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def milliseconds(value: float) -> str:
    """A time in milliseconds, such as "0.31 ms" or "2.4 s"."""
    return f"{_short(value)} ms" if value < 1000 else f"{_short(value / 1000)} s"


def _short(value: float) -> str:
    """To two digits at least, without an exponent."""
    decimals = 0 if value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:,.{decimals}f}"
