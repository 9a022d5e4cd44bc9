"""A Ray on this machine: started for one command, beside the driver's imports where nothing speaks against it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from raykd.common.environment import set_environment
from raykd.common.errors import TrainingError
from raykd.common.hashing import fingerprint
from raykd.config.schema import Config

set_environment()  # before Ray is imported

import ray  # noqa: E402

_WARM_PROCESSES = 8


def start_local(trainings: int = _WARM_PROCESSES) -> None:
    """Start Ray. From the main thread: its processes end with the thread that started them.

    trainings: how many are to be expected at once; as many processes import what they need meanwhile. Not where
    there is a GPU: Ray starts processes of their own for who asks for one, and these would hold the CPUs meanwhile.
    TrainingError if Ray does not start.
    """
    try:
        with kept_sigterm():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    except Exception as error:  # of no class of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        ray.shutdown()
        hint = (
            "See /tmp/ray/session_latest/logs, end what else keeps the machine busy, or name a cluster as ray.address"
        )
        raise TrainingError(f"Ray does not start on this machine: {reason[0].rstrip('.')}. {hint}") from error
    if ray.cluster_resources().get("GPU"):
        return
    cpus = int(ray.cluster_resources().get("CPU", 1))
    warm = min(_WARM_PROCESSES, trainings, cpus)
    for _ in range(warm):  # they hold all CPUs, or a training that is ready early would get a process that is not
        _import_training.options(num_cpus=cpus // warm).remote()


@contextmanager
def kept_sigterm() -> Iterator[None]:
    """Ray puts its own SIGTERM handler in place, which exits with 15: the one that was there comes back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise SystemExit(128 + signal.SIGTERM if error.code == signal.SIGTERM else error.code) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@ray.remote
def _import_training() -> None:
    for name in ("raykd.training.processes", "transformers.modeling_utils", "transformers.processing_utils"):
        import_module(name)


@contextmanager
def started_beside_imports(config: Config) -> Iterator[None]:
    """Start Ray at once and import the driver's modules meanwhile, in the time that Ray waits for its own.

    Only if the same data and models have been found in order before: with bad input nothing is started.
    And only a local Ray: a cluster is connected to in no time.
    """
    if ray.is_initialized() or config.ray.cluster or not _mark(config).exists():
        yield
        return
    for name in ("raykd.experiment.command", "mlflow.tracking"):
        threading.Thread(target=import_module, args=(name,), daemon=True).start()
    start_local(len(config.student.seeds) * (2 if config.baseline else 1))
    try:
        yield
    finally:
        ray.shutdown()


def remember_good(config: Config) -> None:
    """Its input was found in order: the next command with the same may start Ray at once."""
    mark = _mark(config)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _mark(config: Config) -> Path:
    """What was given, not what it holds: who changes a file's rows to bad ones is told a little later, that is all."""
    given = config.model_dump(include={"task", "data"})
    models = [config.student.model, *(t.model for t in config.teachers)]
    given["models"] = [model.model_dump() for model in models]
    return config.store / "checked" / f"input-{fingerprint(given)}"
