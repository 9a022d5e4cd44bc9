"""Which way metrics rank, and how many digits they are written with. Importable without torch."""

import math

# Every other metric is one of which a higher value is better.
LOWER_IS_BETTER = frozenset(
    ("nll", "perplexity", "bits_per_byte", "divergence", "ece", "brier", "mse", "rmse", "mae", "wer", "cer")
)


def sign(metric: str) -> int:
    """1 if a higher value of the metric is better, -1 if a lower one is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def higher_is_better(metric: str, value: float) -> float:
    """The value, negated if a lower one is better. Applied twice it gives the value again."""
    return sign(metric) * value


def decimals(value: float, usual: int) -> int:
    """Decimals for values of about this size, so that they have about as many digits as 0.1 to 9.9 have with `usual`.

    With 3 decimals as usual: 2 for 31.70, 0 for 3170, 5 for 0.00210.
    """
    if not math.isfinite(value) or value == 0:
        return usual
    power = math.floor(math.log10(abs(value)))
    return max(0, usual - (power if power >= 0 else power + 1))
