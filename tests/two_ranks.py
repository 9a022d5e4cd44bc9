"""Two workers of one training without Ray: processes that stay, and a new gloo group for each call."""

import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from processes import trainers

LIMIT = 300  # seconds for one call


def _worker(pipe: Connection, rank: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _set_pg_timeout

    from raykd.common.ranks import DistContext

    torch.set_num_threads(1)
    while (call := pipe.recv()) is not None:
        work, store, timeout, args = call
        limit = timedelta(seconds=LIMIT)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
        # Only now: on a busy machine the workers find each other later than the shortest of these limits.
        _set_pg_timeout(timedelta(seconds=timeout), dist.group.WORLD)
        try:
            pipe.send((work(DistContext(rank, 2), *args), None))
        except Exception as error:
            pipe.send((None, (type(error).__name__, str(error), traceback.format_exc())))
        finally:
            dist.destroy_process_group()


class TwoRanks:
    def __init__(self, folder: Path) -> None:
        self.folder, self._calls = folder, 0
        context = trainers()
        self._pipes, self._processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            self._processes.append(context.Process(target=_worker, args=(theirs, rank), daemon=True))
            self._processes[-1].start()

    def results(self, work: Callable[..., Any], *args: Any, timeout: float = LIMIT) -> list[tuple[Any, Any]]:
        """Each worker's result, and (type, text, traceback) of its error or None. timeout: of a collective."""
        self._calls += 1
        for pipe in self._pipes:
            pipe.send((work, self.folder / f"group-{self._calls}", timeout, args))
        for pipe in self._pipes:
            assert pipe.poll(LIMIT), "a worker still waits"
        return [pipe.recv() for pipe in self._pipes]

    def __call__(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        found = self.results(work, *args)
        for _, error in found:
            assert error is None, error[2]
        return [result for result, _ in found]

    def errors(self, work: Callable[..., Any], *args: Any, timeout: float = LIMIT) -> list[tuple[str, str]]:
        found = self.results(work, *args, timeout=timeout)
        assert all(error is not None for _, error in found), found
        return [error[:2] for _, error in found]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(LIMIT)
