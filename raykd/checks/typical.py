"""What a command takes, besides steps and passes, on a typical machine: where a dry run would take too long."""

from collections.abc import Sequence

import numpy as np

from raykd.checks.dry_run import Overheads
from raykd.checks.probe import Timings
from raykd.checks.workload import Workload
from raykd.config.schema import Config
from raykd.models.serving_cost import size_on_disk
from raykd.plan.prepare import Prepared

# Seconds of two idle cores. On another machine, or on a busy one, all are as many times longer as Ray takes to start.
RAY_SECONDS = 5.0
_BEGIN, _ACTORS, _BETWEEN, _RUN = 5.5, 5.0, 0.4, 0.1
_STAGES = {"teacher": 0.5, "trial": 3.0, "student": 0.5}  # Ray Tune is imported and starts its processes
_END = {"distill": 3.0, "sweep": 6.0}  # a sweep writes its report
UNSURE = 0.5  # they may be this share longer or shorter
_FASTEST, _SLOWEST = 0.3, 5.0  # limits of how many times longer


def typical_overheads(
    config: Config, prepared: Prepared, workload: Workload, timings: Sequence[Timings], speed: float
) -> Overheads:
    """The passes are of the trainings that were measured, the rest is the typical machine's.

    timings: of all kinds of trainings.
    speed: how many times as long as on a typical machine it all takes.
    """
    speed = min(max(speed, _FASTEST), _SLOWEST)
    passes = {}
    for teacher in config.teachers:
        folder = prepared.teachers[teacher.name].model.folder
        kept = size_on_disk(folder) if folder else 0
        likely = min(timings, key=lambda timing: abs(timing.model_bytes - kept))
        # A training also scores the row. What is given and was not measured takes as long as it has weights.
        given = kept and not teacher.recipe
        passes[teacher.name] = likely.row * (float(np.clip(kept / likely.model_bytes, 0.1, 10.0)) if given else 1.0)
    roles = ("teacher", "trial", "student") if workload.command == "sweep" else ("teacher", "student")
    return Overheads(
        begin=speed * _BEGIN,
        stages={role: speed * _STAGES[role] for role in roles},
        round_start=speed * _ACTORS,
        between=speed * _BETWEEN,
        end=speed * _END[workload.command],
        run=speed * _RUN,
        runs=0,
        passes=passes,
        typical=True,
    )


def dry_run_seconds(config: Config, workload: Workload, timings: Sequence[Timings], overheads: Overheads) -> float:
    """About how long a dry run would take."""
    at_once = workload.students[0].at_once
    again = 2 * at_once if workload.command == "sweep" else min(2 * at_once, len(config.student.seeds))
    trained = sum(max(1, t.folds) for t in config.teachers if t.recipe) + again
    trained += again if config.baseline and workload.command == "distill" else 0
    each = float(np.mean([t.start + t.step + t.evaluation + t.end for t in timings])) if timings else 0.0
    starts = max(1, workload.round_starts)  # the dry run has no logits, so at least one round
    own = overheads.begin + sum(overheads.stages.values()) + overheads.round_start * starts
    return own + overheads.end + overheads.run * trained + each * trained / at_once
