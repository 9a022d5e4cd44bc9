"""Python's garbage collector while torch and transformers are imported.

The imports create a million objects, and a fifth of their time goes to searching these for garbage again and again.
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
