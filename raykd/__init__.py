"""raykd: ensemble distillation on a Ray cluster.

From Python: `raykd.distill("job.yaml", **{"method.W": 0.5})`, and likewise `check`, `teach`, `sweep`, `report`,
`predict` and `read_result`. See `raykd.api`.
"""

import sys
from typing import Any

from raykd.common.importing import collect_seldom

__version__ = "0.1.0"
__all__ = ["Result", "check", "distill", "predict", "read_result", "report", "sweep", "teach"]

if sys.argv and sys.argv[0].endswith("default_worker.py"):  # a Ray worker process, until its `begin_task`
    collect_seldom()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from raykd import api  # late, because every module of raykd imports this one first

    return getattr(api, name)
