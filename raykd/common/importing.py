"""Python's garbage collector while torch and transformers are imported.

They are a million objects, and searching them for garbage takes a fifth of the time in which they are imported.
"""

import gc

_USUAL = gc.get_threshold()


def collect_seldom() -> None:
    gc.set_threshold(100_000, 50, 50)


def collect_as_usual() -> None:
    """After the imports. What exists by now is never searched again."""
    if gc.get_threshold() != _USUAL:
        gc.set_threshold(*_USUAL)
        gc.freeze()
