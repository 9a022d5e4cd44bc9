"""`raykd check --cluster`: what a command requests, what the cluster has, and how long it will take."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import ray
from rich.console import Console
from rich.table import Table

from raykd.checks.forecast import Estimate, measure
from raykd.checks.workload import Precompute, Stage, Workload, workload_of
from raykd.cluster.placement import alive_nodes, shown_node
from raykd.cluster.running import cluster_gpus
from raykd.common.units import counted, shown_size
from raykd.config.schema import Config
from raykd.plan.prepare import Prepared

Say = Callable[[str], None]


def estimate(config: Config, prepared: Prepared, console: Console, say: Say, began: float, connecting: float) -> None:
    """Probe the connected cluster and print the estimate.

    began: when the command was started (`time.monotonic`).
    connecting: when it began to start Ray or to connect to it.
    """
    started, gpus = time.monotonic() - began, cluster_gpus()
    workload = workload_of(config, prepared, gpus)
    say("")
    say(f"raykd {workload.command} requests:")
    for request, names in _requests(workload).items():
        say(f"  {', '.join(names)}: {request}")
    say(f"the cluster has {ray.cluster_resources().get('object_store_memory', 0) / 1e9:.1f} GB of object store and")
    for node, count in Counter(shown_node(node) for node in alive_nodes()).items():
        say(f"  {counted(count, 'node')} of {node}")
    if workload.is_empty:
        say("everything is done already: nothing is left to train or to compute")
        return
    say("measuring speeds, in a folder of the store that is deleted afterwards")
    estimated = measure(config, prepared, workload, gpus, started, connecting)
    console.print(_table(workload, estimated))
    for line in _remarks(config, prepared, workload, estimated):
        say(line)


def _requests(workload: Workload) -> dict[str, list[str]]:
    """Names of teachers and stages by the resources that they request."""
    names: dict[str, list[str]] = {}
    for p in workload.precomputes:
        names.setdefault(f"{counted(p.replicas, 'replica')} of {p.size} each", []).append(f"teacher {p.teacher}")
    for stage in (workload.teachers, *workload.students):
        for size in {t.resources for t in stage.trainings}:
            workers = f"{size.workers} workers of {size} each" if size.workers > 1 else f"{size}"
            names.setdefault(f"{workers}, {counted(stage.at_once, 'training')} at once", []).append(stage.name)
    return names


def _table(workload: Workload, estimated: Estimate) -> Table:
    table = Table(title=f"estimate for raykd {workload.command}", title_justify="left")
    for column in ("", "to do", "done already", "estimated time", f"{estimated.device}-hours"):
        table.add_column(column, justify="left" if column in ("", "to do") else "right", no_wrap=True)
    work = [
        _trainings(workload.teachers),
        _precomputes(workload.precomputes),
        *map(_trainings, workload.students),
        ("", ""),
    ]
    for line, (to_do, done) in zip(estimated.lines, work, strict=True):
        table.add_row(
            line.name,
            to_do,
            done,
            duration(line.seconds[0]),
            f"{line.device_seconds / 3600:.2f}" if line.device_seconds else "",
        )
    table.add_section()
    table.add_row("total", "", "", duration(estimated.seconds[0]), f"{estimated.device_seconds / 3600:.2f}")
    return table


def _trainings(stage: Stage) -> tuple[str, str]:
    steps = sum(t.job.steps * t.job.method.generations for t in stage.trainings)
    return f"{counted(len(stage.trainings), 'training')}, {steps:,} steps", str(stage.done)


def _precomputes(precomputes: Sequence[Precompute]) -> tuple[str, str]:
    rows, stored, passes, size = (
        sum(getattr(f, name) for f in precomputes) for name in ("rows", "stored", "passes", "bytes")
    )
    return f"{rows:,} rows, {passes:,} teacher passes, {shown_size(size)}", f"{stored:,} rows"


def _remarks(config: Config, prepared: Prepared, workload: Workload, estimated: Estimate) -> list[str]:
    likely, least, most = estimated.seconds
    varied = "how much the measured steps varied"
    if estimated.typical:
        varied += " and what was not measured"
    text = [
        f"estimate: {likely:.0f} s ({least:.0f} to {most:.0f} s from {varied}), "
        f"{estimated.device_seconds / 3600:.3g} {estimated.device}-hours; measured in {estimated.probe_seconds:.0f} s",
        f"added to the store: {shown_size(sum(p.bytes for p in workload.precomputes))} of logits, "
        f"{shown_size(estimated.model_bytes)} of models",
    ]
    if estimated.typical:
        text.append(
            f"not measured: {estimated.typical:.0f} s in which processes start, scores are computed and MLflow is "
            f"written to. They are those of a typical machine, because measuring ends after "
            f"{estimated.limit_seconds:.0f} s, or after a quarter of the estimate"
        )
    if any(t.job.training.compile for stage in (workload.teachers, *workload.students) for t in stage.trainings):
        text.append("too high where training.compile is on: the steps that were measured include compiling")
    if any(t.job.training.patience for stage in (workload.teachers, *workload.students) for t in stage.trainings):
        text.append("an upper limit: a training that training.patience ends early takes less time")
    search = config.search
    if workload.command == "sweep":
        if search.scheduler != "none":
            text.append(f"an upper limit: trials that search.scheduler = {search.scheduler} prunes take less time")
        if estimated.skipped:
            text.append(f"the budget (search.hours, search.gpu_hours) does not allow {estimated.skipped} of the trials")
    if workload.overlap:
        text.append("logits are computed while the students train, so only the longer of the two counts")
    if config.task.generate:
        rows = min(config.task.generate.rows, len(prepared.splits["test"].rows))
        text.append(f"not included: {counted(rows, 'text')} of each teacher and student that is kept (task.generate)")
    text.append(
        "not included: waiting for resources that others hold or that must be started first, downloads, retries"
    )
    return text


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
