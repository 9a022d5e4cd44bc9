"""What an experiment cost, and what its teachers would have cost as part of every training."""

from dataclasses import dataclass

from raykd.common.units import counted, milliseconds
from raykd.reports.read import Child, Experiment


@dataclass(frozen=True)
class Cost:
    """Rows and seconds of compute.

    computed: rows that the teachers computed in this run, whose logits were stored.
    once: seconds that this took, over all teachers.
    inside: seconds that the same teachers would have taken as part of every distilling training; None if unknown,
        or if they took part in them, with live logits.
    rows_seen: rows that those trainings saw, each counted once per epoch.
    trainings: how many trainings distilled.
    of: how many trainings there were in all.
    seconds, gpu_seconds: of all trainings, summed although they overlap; None if not logged.
    per_row: seconds that all teachers together take for a row, in this run or when their logits were stored; None if
        unknown.
    live: whether the teachers answered every batch of the trainings. `computed` and `once` are without that.
    """

    computed: int
    once: float
    inside: float | None
    rows_seen: float
    trainings: int
    of: int
    seconds: float
    gpu_seconds: float | None
    per_row: float | None = None
    live: bool = False


def cost(experiment: Experiment) -> Cost:
    teachers = experiment.of("teacher")
    here = [t for t in teachers if not t.linked]
    rates = {t.name: r for t in teachers if (r := _seconds_per_row(t))}
    trained = experiment.of("trial", "baseline", "student")
    distilled = [r for r in trained if r.number("method.alpha") > 0]
    known = len(rates) == len(teachers) > 0
    comparable = known and not experiment.live
    of_gpus = [r.metrics["gpu_seconds"] for r in trained if "gpu_seconds" in r.metrics]
    seen = {run.id: rows_seen(run) for run in distilled}
    return Cost(
        computed=int(sum(t.metrics.get("store/misses", 0) for t in here)),
        once=sum(_precompute(t, "seconds") for t in here),
        inside=sum(seen[run.id] * _of_its_teachers(run, rates) for run in distilled) if comparable else None,
        rows_seen=sum(seen.values(), 0.0),
        trainings=len(distilled),
        of=len(trained),
        seconds=sum(r.metrics.get("seconds", 0.0) for r in trained),
        gpu_seconds=sum(of_gpus) if of_gpus else None,
        per_row=sum(rates.values()) if known else None,
        live=experiment.live,
    )


def _precompute(teacher: Child, name: str) -> float:
    """A metric of the precomputation of its logits, which an older raykd called fill."""
    return teacher.metrics.get(f"precompute/{name}", teacher.metrics.get(f"fill/{name}", 0.0))


def _seconds_per_row(teacher: Child) -> float | None:
    rows, seconds = teacher.metrics.get("store/misses", 0), _precompute(teacher, "seconds")
    if rows and seconds:
        return seconds / rows
    if (before := teacher.metrics.get("store/seconds_per_row", 0.0)) > 0:
        return before
    rate = _precompute(teacher, "rows_per_s")
    return 1 / rate if rate > 0 else None


def rows_seen(run: Child) -> float:
    """Rows trained on with the teachers' logits (born-again: in its first generation).

    A run that pruning or `training.patience` ended early saw fewer than planned; of born-again's first generation, the
    planned ones count.
    """
    planned = run.number("training.steps")
    reached = max((step for name, step in run.steps.items() if name.startswith(("train/", "validation/"))), default=0)
    # The last step of a training is always evaluated.
    steps = planned if run.state == "finished" and not reached else min(planned, reached)
    return steps * run.number("training.batch_size")


def _of_its_teachers(run: Child, rates: dict[str, float]) -> float:
    """Seconds per row of the teachers that this run learnt from."""
    one = run.params.get("method.teacher", "None")
    return rates[one] if one in rates else sum(rates.values())


def duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"{count:.3g} {unit}" if count < 999.5 else f"{count:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def what_it_cost(spent: Cost) -> list[str]:
    lines = []
    of = " of validation and test" if spent.live else ""  # the rest is not stored
    if spent.computed and spent.once:
        lines.append(f"The teachers computed {spent.computed:,} rows{of} once, in {duration(spent.once)} of compute.")
    elif spent.computed:
        lines.append(f"The teachers computed {spent.computed:,} rows{of} once; how long that took was not logged.")
    else:
        text = f"The teachers computed nothing{of} in this run: all of their logits were in the store."
        if spent.per_row:
            text += f" Computing them had taken {milliseconds(1000 * spent.per_row)} a row, for all teachers together."
        lines.append(text)
    if spent.live and spent.trainings:
        trainings = counted(spent.trainings, "distilling training")
        text = f"With live logits they also answered every batch of the {trainings}, which saw {spent.rows_seen:,.0f} "
        lines.append(f"{text}rows; how long that took was not logged.")
    elif spent.trainings and spent.inside is None:
        lines.append(
            "What they would have cost as part of every training is unknown because their speed was not logged."
        )
    elif spent.trainings and spent.inside is not None:
        text = f"As part of the {counted(spent.trainings, 'distilling training')}, which saw {spent.rows_seen:,.0f} "
        text += f"rows, they would have taken {duration(spent.inside)}"
        times = spent.inside / spent.once if spent.once else 0.0
        text += f", {times:,.{0 if times >= 9.95 else 1}f} times as much." if times >= 1 else "."
        lines.append(text)
    if spent.seconds:
        text = f"The {counted(spent.of, 'training')}, not counting the teachers', took {duration(spent.seconds)} in all"
        if spent.gpu_seconds is not None:
            text += f" and {spent.gpu_seconds:,.0f} GPU-seconds" if spent.gpu_seconds else ", without a GPU"
        text += "."
        lines.append(text)
    return lines
