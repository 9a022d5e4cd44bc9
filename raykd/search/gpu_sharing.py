"""How many trials share a GPU: `student.num_gpus: auto`. Imports neither torch nor Ray until a training is measured."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.cluster.flags import Flag
from raykd.cluster.placement import Node, alive_nodes, fits
from raykd.cluster.resources import Resources
from raykd.cluster.room import RoomWait
from raykd.common.errors import ConfigError
from raykd.common.output_files import CHECKED
from raykd.common.units import shown_size
from raykd.config.schema import Config, RayConfig
from raykd.plan.job import Job
from raykd.search.jobs import TrialJobs
from raykd.training.access import Training

if TYPE_CHECKING:
    from raykd.training.gpu_use import GpuUse

log = logging.getLogger(__name__)
MARGIN = 0.1  # of a GPU's memory that stays free: batches of long rows, and what other processes take
LEAST_GAIN = 0.25  # of a trial's own speed, that one more trial must add to those on a GPU
Measure = Callable[[Training, RayConfig, Flag, Callable[[], None]], "GpuUse | str"]


def trials_per_gpu(use: GpuUse, cpus: float, num_cpus: float, trials: int) -> tuple[int, str]:
    """How many trials to put on one GPU, and what limits their number.

    use: what one of them takes of it.
    cpus: the CPUs that there are for each GPU.
    num_cpus: of each trial.
    trials: that are left for each GPU.

    GPUs compute the kernels of several processes in turn, so n trials are min(n, 1 / busy) times as fast as one. The
    host has to launch the kernels, which takes each of them most of a CPU.
    """
    limits = {
        "another one would gain little, as the GPU is busy": math.floor(
            1 / max(use.busy, 1e-3) + 1 - LEAST_GAIN + 1e-9
        ),
        f"more would not fit with {MARGIN:.0%} to spare": math.floor((1 - MARGIN) * use.total_bytes / use.used_bytes),
        f"there are {cpus:g} CPUs for each GPU": math.floor(cpus / max(1.0, num_cpus)),
        "there are no more trials at a time": trials,
    }
    reason = min(limits, key=lambda name: limits[name])
    return max(1, limits[reason]), reason


class GpuSharing:
    """The resources of each trial of a sweep, which change if `student.num_gpus` is auto.

    size: of the next trial.
    """

    def __init__(self, config: Config, gpus: float, measure: Measure | None = None) -> None:
        """gpus: of the cluster.
        measure: finds what a training takes of a GPU, or says why it is not known; None: by training for some seconds.
        """
        self.config, self.measure = config, measure or measure_on_cluster
        self.size = Resources.of(config.student, gpus)
        self.open = config.student.num_gpus == "auto" and bool(self.size.num_gpus)  # whether it is still to decide

    def waits_for_logits(self, sweep: TrialJobs) -> bool:
        """Whether a training is to be measured that reads stored logits, for which the measurement cannot wait.

        Those of a language model are not made up for it.
        """
        if not self.open or self.size.workers > 1:
            return False
        job = largest_job(sweep)
        return job.keep.packed and not job.live

    def decide(
        self, sweep: TrialJobs, trials: int, stop: Flag, check: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        """Measure a training and set `size`, the first time it is called. Ray must be connected.

        trials: that are left.
        stop: ends the measurement.
        check: called while it is waited for.
        say: prints one line.
        """
        if not self.open:
            return
        self.open = False
        key = "student.num_gpus = auto"
        if self.size.workers > 1:
            say(f"{key}: one for each of a trial's {self.size.workers} workers; only trials of one worker share GPUs")
            return
        nodes = [node for node in alive_nodes() if fits([self.size], [node])]
        gpus = max(1.0, sum(resources.get("GPU", 0.0) for resources, _ in nodes))
        left = math.ceil(min(trials, self.config.search.concurrency or trials) / gpus)
        if left < 2:
            say(f"{key}: one trial on each GPU, because there are no more trials than GPUs")
            return
        use = self.measure(Training(largest_job(sweep), self.size), self.config.ray, stop, check)
        if stop():
            return
        if isinstance(use, str):
            say(f"{key}: one trial on each GPU, because what a training takes of it could not be measured: {use}")
            return
        count, reason = trials_per_gpu(use, _cpus_per_gpu(nodes), self.size.num_cpus, left)
        self.size = self.size.sharing(count)
        say(
            f"{key}: {count} trial{'s' * (count > 1)} on each GPU. One training takes {shown_size(use.used_bytes)} of "
            f"its {shown_size(use.total_bytes)} and {use.busy:.0%} of its time; {reason}"
        )

    def halve(self, full: Resources) -> str:
        """After the memory of a GPU has ended: put half as many trials on each, unless that has happened already.

        full: the resources of the trial that has failed.

        Returns what has happened, in words.
        """
        if full.num_gpus == self.size.num_gpus:
            self.size = self.size.halved
        return f"out of GPU memory with {full.per_gpu} trials on a GPU; it runs again with {self.size.per_gpu} on each"


def _cpus_per_gpu(nodes: Sequence[Node]) -> float:
    """Of the node that has the fewest."""
    return min((has.get("CPU", 0.0) / has["GPU"] for has, _ in nodes if has.get("GPU")), default=1.0)


def largest_job(sweep: TrialJobs) -> Job:
    """The training of the sweep that takes most of a GPU, by its rows at a time and the weights that each goes through.

    One with teachers, if there is such a one.
    """
    jobs = []
    for arm in sweep.space.arms:
        for setting in islice(sweep.space.settings(arm), sweep.space.trials(arm)):
            try:
                jobs.append(sweep.job(arm, setting, sweep.config.student.seeds[0], arm.name, keep_model=False))
            except ConfigError:  # its trial will say so
                continue

    def size(job: Job) -> tuple[float, bool]:
        rows = job.training.batch_size / job.training.accumulation
        return rows * sweep.weights[job.model_digest], job.method.distils

    return max(jobs, key=size)


def measure_on_cluster(training: Training, settings: RayConfig, stop: Flag, check: Callable[[], None]) -> GpuUse | str:
    """Train for some seconds in a process that has a whole GPU. Returns what that took, or why it is not known.

    settings: of Ray.
    stop: ends it early.
    check: called while it is waited for.

    Raises NoRoom if no GPU is free within ray.timeout_s.
    """
    import ray
    from ray.exceptions import RayError

    from raykd.cluster.causes import cause_of
    from raykd.cluster.task import task_of
    from raykd.training.endless import endless_job
    from raykd.training.gpu_use import measure_gpu_use

    job = training.job
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=job.store))  # in the store, which all nodes share
    folder.chmod(0o755)
    try:
        with contextlib.suppress(OSError):  # trials then measure again which precision is faster
            (job.store / CHECKED).mkdir(exist_ok=True)
            (folder / CHECKED).symlink_to(job.store / CHECKED)
        logits = job.logits if job.keep.packed else None  # what is kept of a language model's is not made up
        endless = Training(endless_job(job, folder, 0, logits), training.resources, training.access)
        process = task_of(measure_gpu_use, training.resources)
        stream, room = process.remote(endless, stop), RoomWait(settings.timeout_s)
        found: list[GpuUse | str | None] = []
        try:
            while not stop():
                check()
                if ray.wait([stream], num_returns=1, timeout=1)[0]:
                    found.append(ray.get(next(stream)))
                elif not found and (text := room.training(job.name, job.key, training.resources)):
                    log.info(text)
        except StopIteration:
            return found[-1] or "it ended before it was measured"
        except RayError as error:
            return cause_of(error)
        finally:
            ray.cancel(stream, force=True)
        return "the sweep was stopped"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
