"""Which way metrics rank. Importable without torch."""

LOWER_IS_BETTER = ("nll", "ece", "mse")


def higher_is_better(metric: str, value: float) -> float:
    """The value, negated if a lower one is better. Applied twice it gives the value again."""
    return -value if metric in LOWER_IS_BETTER else value
