"""Names of objects of the user's own code: `module:name`."""

import os
import re
import sys

FORM = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


def is_dotted(text: str) -> bool:
    """Whether a text has the form `package.module:name`."""
    return re.fullmatch(FORM, text) is not None


def here_on_path() -> None:
    """Let modules of the current folder be imported, as by `python -m`."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
