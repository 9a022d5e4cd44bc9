"""One command at a time for an experiment: `teach`, `distill` and `sweep` write the same files in its folder."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from raykd.common.errors import ConfigError
from raykd.config.schema import Config
from raykd.plan.prepare import check_output


@contextmanager
def only_command(config: Config, command: str) -> Iterator[None]:
    """Hold the experiment's lock. Raises ConfigError, without waiting, if another command of the same name holds it.

    The operating system releases the lock when the process dies for any reason.
    """
    check_output(config)
    lock, holder = FileLock(config.folder / ".lock"), config.folder / ".lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            who = "process {process} on {host} (raykd {command}, started {since})".format(
                **json.loads(holder.read_text())
            )
        except (OSError, ValueError, KeyError):  # the holder has not written this file yet
            who = "another process"
        hint = "Wait until it ends, stop it, or give this run another name (name=...)"
        raise ConfigError("name", config.name, f"{who} is running this experiment", hint) from None
    except OSError as error:
        reason = f"{config.folder} cannot be written to ({error.strerror})"
        raise ConfigError("output", config.output, reason, "Name a folder that you can write to") from None
    try:
        holder_info = {"process": os.getpid(), "host": socket.gethostname(), "command": command}
        holder_info["folder"] = str(config.folder.absolute())  # where this command sees it
        holder.write_text(json.dumps(holder_info | {"since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
