"""Why something on Ray has failed, in one line: Ray's own texts can be pages long."""

import re
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from raykd.common.device_errors import cuda_error
from raykd.common.ranks import CollectiveError

# The process or its node has died, or the node could not unpack what `raykd submit` has uploaded.
DEATHS = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, RayActorError, RuntimeEnvSetupError)
_ADVICE = re.compile(r" (Some common causes include|This can happen if|Check python-core-worker)\b.*")
_MEMORY = re.compile(r"node running low on memory\b.*?\bIP: ([^,)]+).*? was (\S+) used / (\S+) limit", re.DOTALL)
_COLOURS = re.compile(r"\x1b\[\d+m")


def cause_of(error: BaseException) -> str:
    """The last line of an error's text that is not blank, because a Ray error's text is its whole traceback.

    Of an error of CUDA, it is the line that names it; advice follows.
    Of a process that has died, it is the reason. Where Ray has ended it because its node's memory was nearly full, Ray
    gives that first and ends with advice. Of several failed workers, the cause is the first one's that did not fail
    only because of another.
    """
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for rank, cause in sorted(causes.items(), key=lambda item: isinstance(item[1], CollectiveError)):
        return f"worker {getattr(cause, 'worker', rank)}: {cause_of(cause)}"
    inner = (getattr(error, name, None) for name in ("controller_failure", "health_check_failure", "cause"))
    cause = next(filter(None, inner), error)
    text = _COLOURS.sub("", str(cause))
    if full := _MEMORY.search(text):  # of whichever type: Tune keeps some errors as text alone
        node, used, limit = full.groups()
        there = f"its node {node} had used {used} of {limit}"
        return f"Ray ended it, because {there}; with a higher num_cpus, fewer run there"
    if line := cuda_error(cause):
        return f"{type(cause).__name__}: {_COLOURS.sub('', line)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [repr(cause)]
    if isinstance(cause, RuntimeEnvSetupError):
        return f"its environment could not be set up: {lines[-1]}"
    if isinstance(cause, DEATHS):
        return _ADVICE.sub("", lines[-1]).rstrip(".")
    return f"{type(cause).__name__}: {lines[-1]}"
