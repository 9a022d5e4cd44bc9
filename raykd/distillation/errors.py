"""Errors of the arithmetic, importable without torch."""


class NotFiniteError(ValueError):
    """An allowed logit is NaN or infinite."""
