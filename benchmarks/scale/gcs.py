"""Ray itself: creating and naming actors; the directory of live teachers."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from measure import cpu_seconds, listed, say, seconds
from processes import descendants  # type: ignore[import-not-found]

from raykd.teachers.live import directory_here

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file


@ray.remote(num_cpus=0)
class Light:
    def here(self) -> int:
        return os.getpid()


def command_lines() -> dict[int, str]:
    """The command lines of this process's descendants, by process id."""
    found = {}
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            found[process] = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def part(folder: Path, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        gcs = next(p for p, name in command_lines().items() if "gcs_server" in name.split(" ")[0])
        actors: list[Any] = []
        for count in (4, 8) if quick else (8, 24, 72):
            before, since = cpu_seconds(gcs), time.perf_counter()
            new = [Light.options(name=f"light-{i}").remote() for i in range(len(actors), count)]  # type: ignore
            ray.get([actor.here.remote() for actor in new])
            took, spent = time.perf_counter() - since, cpu_seconds(gcs) - before
            actors += new
            before, since = cpu_seconds(gcs), time.perf_counter()
            time.sleep(1 if quick else 5)
            idle = (cpu_seconds(gcs) - before) / (time.perf_counter() - since)
            named = seconds(lambda: ray.get_actor("light-0"), 100, time.perf_counter)
            got = {
                "actors_per_s": len(new) / took,
                "gcs_cpu_ms_per_actor": 1000 * spent / len(new),
                "gcs_idle_cpu": idle,
                "get_actor_ms": 1000 * named,
            }
            found[str(count)] = got
            say(f"{count} actors: {listed(got)}")
        directory = directory_here()
        ray.get(directory.put.remote("a", actors[:10]))
        process = next(p for p, name in command_lines().items() if name.startswith("ray::Directory"))
        calls = 200 if quick else 2000
        before, since = cpu_seconds(process), time.perf_counter()
        ray.get([directory.get.remote("a") for _ in range(calls)])
        took = time.perf_counter() - since
        found["directory"] = {"cpu_ms": 1000 * (cpu_seconds(process) - before) / calls, "calls_per_s": calls / took}
        say(f"the directory of live teachers, 10 replicas: {listed(found['directory'])}")
    finally:
        ray.shutdown()
    return found
