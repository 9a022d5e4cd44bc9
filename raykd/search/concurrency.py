"""How many trials of a sweep run at the same time."""

from bisect import bisect_left

from raykd.cluster.placement import fits
from raykd.cluster.resources import TRAIN_CONTROLLER_CPUS, Resources
from raykd.cluster.running import cluster_gpus
from raykd.config.schema import Config

_UNBOUNDED = 1000  # concurrent trials if there is no limit


def at_once(config: Config, size: Resources, with_teachers: bool) -> int:
    """The maximum number of concurrent trials.

    Trials with several workers hold no resources themselves, so if there were more than fit, they would deadlock.
    Trials with one worker run in their own process: one more than fit waits for the next free
    process, because Tune stops a process for which no trial is waiting. If the cluster can grow, only the config limits
    their number.
    """
    most = config.search.concurrency or _UNBOUNDED
    if size.workers == 1:
        return most if config.ray.wait_s else min(most, _room(_UNBOUNDED, [], [size]) + 1)
    gpus = cluster_gpus()
    held = [Resources.of(t, gpus) for t in config.teachers for _ in range(1 if t.replicas == "auto" else t.replicas)]
    controllers = Resources(1, 2 * TRAIN_CONTROLLER_CPUS, 0)  # the trial's controller and Ray Train's
    return _room(most, held if with_teachers else [], [size, controllers])


def _room(most: int, held: list[Resources], each: list[Resources]) -> int:
    """How many times `each` fits at once in addition to `held`: 1 to `most`. That one fits is checked elsewhere."""
    counts = range(1, most + 1)
    return max(1, bisect_left(counts, True, key=lambda count: not fits([*held, *each * count])))
