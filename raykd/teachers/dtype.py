"""The dtype that a teacher computes in."""

import logging

from raykd.cluster.resources import Resources
from raykd.cluster.task import task_of
from raykd.config.schema import Config, TeacherConfig
from raykd.models.loading import default_dtype

log = logging.getLogger(__name__)


def fixed_dtype(config: Config, teacher: TeacherConfig, gpus: float) -> str | None:
    """The dtype that a teacher computes in; None if it depends on the GPU that it will get, see `compute_dtype`."""
    if config.logits.dtype != "auto":
        return config.logits.dtype
    return None if Resources.of(teacher, gpus).num_gpus else "float32"


def compute_dtype(config: Config, teacher: TeacherConfig, gpus: float) -> str:
    """The dtype that a teacher computes in. `auto` is bf16 if a GPU like the one it will get supports it.

    Asked on a node with such a GPU, since the driver's node can have none.
    """
    if (fixed := fixed_dtype(config, teacher, gpus)) is not None:
        return fixed
    import ray

    from raykd.cluster.room import RoomWait

    needs = Resources.of(teacher, gpus)
    dtype, room = task_of(default_dtype, needs, retries=3).remote(), RoomWait(config.ray.timeout_s)
    while not ray.wait([dtype], timeout=1)[0]:
        key = f"teachers.{teacher.name}"
        if text := room.look(f"teacher {teacher.name}", str(needs), f"{key}.num_cpus, {key}.num_gpus, logits.dtype"):
            log.info(text)
    return ray.get(dtype)
