"""A training by two workers without Ray: two processes, one gloo group."""

from pathlib import Path

from processes import trainers

from raykd.plan.job import Job


def train_by_two(jobs: list[Job], folder: Path) -> None:
    """Train each job with two workers. RuntimeError if one of the processes fails; its traceback is on stderr."""
    context = trainers()
    workers = [context.Process(target=_work, args=(rank, jobs, folder / "group")) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    if codes != [0, 0]:
        raise RuntimeError(f"exit codes {codes}")


def _work(rank: int, jobs: list[Job], meeting: Path) -> None:
    import torch

    from raykd.common.ranks import DistContext
    from raykd.training.events import Stored, to_json
    from raykd.training.loop import train

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    for job in jobs:
        events = list(train(job, DistContext(rank, 2)))
        (job.folder / f"events-{rank}.jsonl").write_text("\n".join(to_json(e) for e in events if isinstance(e, Stored)))
    torch.distributed.destroy_process_group()
