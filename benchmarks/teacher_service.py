"""Speed of the teacher service: precomputing, live answers, replicas, the store's read path, and the first step.

    python benchmarks/teacher_service.py --data PATH_OR_HUB_ID --model PATH_OR_HUB_ID [--quick]

Precomputing (`fill`) is compared with a bare loop of the same model over batches of as many tokens, or of
`--bare-tokens`. The two take turns block by block, so that other work on the machine affects both equally. `host` fills
with a teacher that takes no time, which shows how fast a GPU can be before it waits for the host. `alone` fills with
the real one on a GPU of its own. Parts that measure a queue and not a model (overlap, replicas, first step) use a paced
teacher, which sleeps for a fixed time per row instead of computing. So it needs no core, like a teacher on another
machine. It is served by the same actors through the same pool.

The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from raykd.common.environment import set_environment

set_environment()  # before Ray is imported

import ray  # noqa: E402
import torch  # noqa: E402

from raykd.models.prediction import usual_tokens  # noqa: E402
from service.bench import Bench  # noqa: E402
from service.filling import filling  # noqa: E402
from service.gathering import gather  # noqa: E402
from service.gpu import alone, gpu_rates  # noqa: E402
from service.host import host_limit  # noqa: E402
from service.live import overlap  # noqa: E402
from service.paced import first_step, scaling  # noqa: E402

MANY_ROWS = 65536  # nearly all of SST-2: a GPU or a free teacher takes less than a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="SST-2: a local folder or the hub's id")
    parser.add_argument("--model", required=True, help="MiniLM: a local folder or a hub id")
    parser.add_argument("--only", nargs="*", help="some of: fill, host, overlap, scaling, gather, first, alone, gpu")
    parser.add_argument("--bare-tokens", type=int, help="of a batch of the bare loop; without it as many as raykd's")
    parser.add_argument("--quick", action="store_true", help="few repeats, within two minutes")
    given = parser.parse_args()
    quick = given.quick
    torch.set_num_threads(1)
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="warning")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, 1 thread each, torch {torch.__version__}, ray {ray.__version__}"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            steps = 2 if quick else 24
            steps *= 10 if torch.cuda.is_available() else 1  # a GPU takes 24 in a moment
            bench = Bench(given.data, given.model, folder, 4 if quick else 32, steps)

            @cache
            def many() -> Bench:
                return Bench(given.data, given.model, f"{folder}/many", MANY_ROWS // bench.block_rows, steps)

            parts: dict[str, Callable[[], dict[str, Any]]] = {
                "fill": lambda: filling(bench, given.bare_tokens or usual_tokens(bench.device)),
                "host": lambda: host_limit(many(), 3 if quick else 9),
                "overlap": lambda: overlap(bench, 1 if quick else 2),
                "scaling": lambda: scaling(bench, 1 if quick else 3),
                "gather": lambda: gather(bench.meeting()),
                "first": lambda: first_step(bench, 1.0 if quick else 2.0, 4 if quick else 8),
            }
            on_gpu = torch.cuda.is_available()
            more: dict[str, Callable[[], dict[str, Any]]] = {
                "alone": lambda: alone(many() if on_gpu else bench, 8192 if on_gpu else 512, 3 if on_gpu else 1),
                "gpu": lambda: gpu_rates(bench, 8192 if on_gpu else 512),
            }
            # By name also on CPUs: do they run?
            parts |= {name: measure for name, measure in more.items() if on_gpu or name in (given.only or ())}
            found: dict[str, Any] = {}
            for name, measure in parts.items():
                if not given.only or name in given.only:
                    since = time.monotonic()
                    found |= measure()
                    print(f"    ({name}: {time.monotonic() - since:.0f} s)", flush=True)
            print(json.dumps(found))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
