"""What one training, or one replica of a teacher, holds of the cluster."""

from dataclasses import dataclass
from typing import Any

from raykd.config.schema import StudentConfig, TeacherConfig


@dataclass(frozen=True)
class Resources:
    """What one training, or one replica of a teacher, holds while it runs; and on which nodes it may run.

    node_labels: (name, value) pairs.
    """

    workers: int
    num_cpus: float
    num_gpus: float
    accelerator: str | None = None
    node_labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, member: StudentConfig | TeacherConfig, cluster_gpus: float) -> "Resources":
        gpus = member.num_gpus if member.num_gpus is not None else float(cluster_gpus > 0)
        workers = member.workers if isinstance(member, StudentConfig) else 1
        return cls(workers, member.num_cpus, gpus, member.accelerator, tuple(sorted(member.node_labels.items())))

    def bundle(self) -> dict[str, float]:
        """One worker's or replica's resources, in Ray's names."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        if self.accelerator:
            wanted[f"accelerator_type:{self.accelerator}"] = 0.001  # Ray's way to say "on such a node"
        return {name: amount for name, amount in wanted.items() if amount}

    def options(self) -> dict[str, Any]:
        """For a Ray task or actor of one worker's size."""
        found: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.accelerator:
            found["accelerator_type"] = self.accelerator
        if self.node_labels:
            found["label_selector"] = dict(self.node_labels)
        return found

    def __str__(self) -> str:
        parts = [f"{self.num_cpus:g} CPU", f"{self.num_gpus:g} GPU"]
        parts += [self.accelerator] if self.accelerator else []
        return ", ".join(parts + [f"{name}={value}" for name, value in self.node_labels])
