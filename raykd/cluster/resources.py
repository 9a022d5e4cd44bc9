"""The resources of one training, or of one replica of a teacher."""

from dataclasses import dataclass, replace
from typing import Any

from raykd.config.schema import StudentConfig, TeacherConfig

TRAIN_CONTROLLER_CPUS = 0.01  # of Ray Train's controller: the workers reserve the real ones; 0 is an error in Ray
_PARTS = 10_000  # of a GPU: the smallest share that Ray knows is one of them


@dataclass(frozen=True)
class Resources:
    """The resources that one training or one replica of a teacher holds, and the nodes on which it can run.

    workers: how many processes.
    num_cpus, num_gpus: of each worker.
    accelerator: the GPU's type, as Ray names it; None: any.
    node_labels: (name, value) pairs that the node must have.
    measured: whether num_gpus is a share that was found by measuring. If the GPU's memory ends, fewer trainings share
        it.
    """

    workers: int
    num_cpus: float
    num_gpus: float
    accelerator: str | None = None
    node_labels: tuple[tuple[str, str], ...] = ()
    measured: bool = False

    @classmethod
    def of(cls, member: StudentConfig | TeacherConfig, cluster_gpus: float) -> "Resources":
        given = member.num_gpus
        gpus = float(cluster_gpus > 0) if given is None or given == "auto" else given
        workers = member.workers if isinstance(member, StudentConfig) else 1
        return cls(workers, member.num_cpus, gpus, member.accelerator, tuple(sorted(member.node_labels.items())))

    @property
    def gpus(self) -> float:
        """Of all workers."""
        return self.workers * self.num_gpus

    def sharing(self, count: int) -> "Resources":
        """With a share of a GPU that `count` trainings have at the same time.

        Ray rounds shares to 4 decimals: 7 times 0.1429 would be more than one GPU.
        """
        return replace(self, num_gpus=_PARTS // count / _PARTS, measured=count > 1)

    @property
    def per_gpu(self) -> int:
        """How many of these share a GPU. Only where they hold one, or a share of one."""
        return int((1 + 1e-9) // self.num_gpus)

    @property
    def halved(self) -> "Resources":
        """With half as many on each GPU."""
        return self.sharing(max(1, self.per_gpu // 2))

    def bundle(self) -> dict[str, float]:
        """One worker's or replica's resources, in Ray's names."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        if self.accelerator:
            wanted[f"accelerator_type:{self.accelerator}"] = 0.001  # Ray's way to request such a node
        return {name: amount for name, amount in wanted.items() if amount}

    def options(self) -> dict[str, Any]:
        """Options of a Ray task or actor with one worker's resources."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.accelerator:
            options["accelerator_type"] = self.accelerator
        if self.node_labels:
            options["label_selector"] = dict(self.node_labels)
        return options

    def __str__(self) -> str:
        parts = [f"{self.num_cpus:g} CPU", f"{self.num_gpus:g} GPU"]
        parts += [self.accelerator] if self.accelerator else []
        return ", ".join(parts + [f"{name}={value}" for name, value in self.node_labels])
