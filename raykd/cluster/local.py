"""A local Ray, started for one command, concurrently with the driver's imports where that is safe."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.cluster.running import ray_is_running
from raykd.common.environment import set_environment
from raykd.common.errors import TrainingError
from raykd.common.hashing import fingerprint
from raykd.common.late import Late
from raykd.common.output_files import CHECKED
from raykd.config.schema import Config

if TYPE_CHECKING:
    import ray
else:
    ray = Late("ray")


log = logging.getLogger(__name__)
set_environment()  # before Ray is imported
_WARM_PROCESSES = 8
# Settings of a local Ray, as environment variables: `_system_config` is an error on a machine with `ray start`.
LOCAL_RAY = {
    # A process without work is kept for ten minutes. The teachers' processes then also train a sweep's best settings,
    # which saves ten seconds of imports. Ray keeps one process per CPU, but ends further ones after a second.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Ray would list all log files ten times a second, to show them in the driver, which raykd has turned off.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
}


def start_local(trainings: int = _WARM_PROCESSES) -> None:
    """Start Ray. Call this from the main thread, because Ray's processes end with the thread that started them.

    trainings: how many will run at once, before anything else does. As many processes import their modules in advance,
        except on a machine with a GPU: there Ray starts other processes for trainings with a GPU, and these would only
        hold the CPUs. A sweep's trials do not count: Ray Tune starts processes for them.

    Raises TrainingError if Ray does not start.
    """
    for name, value in LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    read_auth_mode_again()
    for last_try in (False, False, True):
        try:
            with kept_sigterm(), _in_own_sessions():
                # Without an address Ray would join one that anybody has started here, with that one's CPUs and token.
                ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="warning")
            break
        except Exception as error:  # Ray raises no specific class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            ray.shutdown()
            if "timed out" in reason and not last_try:  # Ray gives its processes 30 s, which a busy machine may exceed
                log.warning("Ray has not started within its time limit, because the machine is busy; trying again")
                continue
            hint = "See /tmp/ray/session_latest/logs, end other processes that keep the machine busy, or set "
            hint += "ray.address to a cluster"
            raise TrainingError(f"Ray does not start on this machine: {reason}. {hint}") from error
    if ray.cluster_resources().get("GPU"):
        return
    cpus = int(ray.cluster_resources().get("CPU", 1))
    warm = min(_WARM_PROCESSES, trainings, cpus)
    for _ in range(warm):  # they hold all CPUs; otherwise an early training could get a process that is not warm
        ray.remote(_import_training).options(num_cpus=cpus // warm).remote()


def read_auth_mode_again() -> None:
    """Let Ray see a RAY_AUTH_MODE or a token that was set after its import, as in a notebook that imports Ray first.

    Otherwise this process sends no token, or that of an earlier command's cluster, and Ray's processes refuse it.
    """
    raylet = import_module("ray._raylet")
    if (config := getattr(raylet, "Config", None)) is not None:  # private, so another version may not have it
        config.initialize("")  # as Ray does where it turns the token on by itself
    if (loader := getattr(raylet, "AuthenticationTokenLoader", None)) is not None:
        loader.instance().reset_cache()


@contextmanager
def _in_own_sessions() -> Iterator[None]:
    """Start Ray's processes outside of the command's process group, and kill them if Ray does not start.

    Inside it, a SIGTERM to the whole group, as `timeout` sends it, also ends Ray, and trainings that are writing their
    checkpoints die with it. On Linux Ray's processes still end when the driver does, because the kernel signals them.
    """
    services = import_module("ray._private.services")
    popen = getattr(services, "ConsolePopen", None)  # private, so another version of Ray may not have it
    if popen is None or sys.platform != "linux":
        yield
        return
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, **settings: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **settings, start_new_session=True))
        return started[-1]

    services.ConsolePopen = start  # type: ignore[attr-defined]
    try:
        yield
    except BaseException:  # Ray would leave them running beside those of the next try
        for process in started:
            process.kill()
            process.wait()
        raise
    finally:
        services.ConsolePopen = popen  # type: ignore[attr-defined]


@contextmanager
def kept_sigterm() -> Iterator[None]:
    """Restore the SIGTERM handler afterwards, because Ray installs handlers of its own, which exit with 15 or 1."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # Ray exits here for no other reason
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _import_training() -> None:
    gc.disable()  # it would search the same million objects again and again, for a quarter of the time
    try:
        for name in ("raykd.training.processes", "transformers.modeling_utils", "transformers.processing_utils"):
            import_module(name)
    finally:
        gc.enable()
    gc.freeze()  # none of these objects is ever garbage


@contextmanager
def started_beside_imports(config: Config, command: str) -> Iterator[None]:
    """Start a local Ray and import the driver's modules at the same time.

    Only if the same data and models passed the checks before, so that nothing is started with invalid input, and if
    this command has not finished before, because it would then reuse its results and need no Ray. A cluster is
    connected to later, because that takes no time.
    """
    done = _finished(config, command).exists()
    if ray_is_running() or config.ray.cluster or done or not _mark(config).exists():
        yield
        return
    import_module("ray")  # not at the same time in several threads: its modules import one another
    for name in ("raykd.experiment.command", "raykd.training.launch", "mlflow.tracking"):
        threading.Thread(target=import_module, args=(name,), daemon=True).start()
    given = not any(teacher.recipe for teacher in config.teachers)
    start_local(0 if command == "sweep" and given else len(config.student.seeds) * (2 if config.baseline else 1))
    try:
        yield
    finally:
        ray.shutdown()


def remember_good(config: Config) -> None:
    """Record that the input passed the checks, so that the next command with the same input starts Ray at once."""
    mark = _mark(config)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def remember_finished(config: Config, command: str) -> None:
    """Record that the command has finished, so that its results are in the store for the same command."""
    _finished(config, command).touch()


def _finished(config: Config, command: str) -> Path:
    """The record's file, by the config. Other data or models under the same names only start Ray later."""
    given = config.model_dump(mode="json", exclude={"output", "ray", "tracking"})
    return config.store / CHECKED / f"finished-{fingerprint([command, given])}"


def _mark(config: Config) -> Path:
    """The record's file, by the names of data and models, not their content: invalid new rows are reported later."""
    given = config.model_dump(include={"task", "data"})
    models = [config.student.model, *(t.model for t in config.teachers)]
    given["models"] = [model.model_dump() for model in models]
    return config.store / CHECKED / f"input-{fingerprint(given)}"
