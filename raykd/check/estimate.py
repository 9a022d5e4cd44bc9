"""`raykd check --cluster`: what a command asks for, what the cluster has, and what it will take."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import ray
from rich.console import Console
from rich.table import Table

from raykd.check.forecast import Estimate, measure
from raykd.check.workload import Fill, Needs, Stage, needs_of
from raykd.cluster.placement import alive_nodes, shown_node
from raykd.cluster.session import cluster_gpus
from raykd.config.schema import Config
from raykd.plan.prepare import Prepared

Say = Callable[[str], None]


def estimate(config: Config, prepared: Prepared, console: Console, say: Say, began: float) -> None:
    """Print it, with Ray connected. began: when the command was started (time.monotonic)."""
    started, gpus = time.monotonic() - began, cluster_gpus()
    needs = needs_of(config, prepared, gpus)
    say("")
    say(f"raykd {needs.command} asks for:")
    for asked, names in _asked(needs).items():
        say(f"  {', '.join(names)}: {asked}")
    say(f"the cluster has {ray.cluster_resources().get('object_store_memory', 0) / 1e9:.1f} GB of object store and")
    for node, count in Counter(shown_node(node) for node in alive_nodes()).items():
        say(f"  {count} node(s) of {node}")
    if needs.nothing:
        say("everything is there already: nothing is left to train or to compute")
        return
    say("probing it for about a minute; what that leaves is removed")
    found = measure(config, prepared, needs, gpus, started)
    console.print(_table(needs, found))
    for line in _remarks(config, needs, found):
        say(line)


def _asked(needs: Needs) -> dict[str, list[str]]:
    """What is asked for, and by whom."""
    found: dict[str, list[str]] = {}
    for fill in needs.fills:
        found.setdefault(f"{fill.replicas} replica(s) of {fill.size} each", []).append(f"teacher {fill.teacher}")
    for stage in (needs.teachers, *needs.students):
        for size in {t.resources for t in stage.trainings}:
            workers = f"{size.workers} worker(s) of {size} each" if size.workers > 1 else f"{size}"
            found.setdefault(f"{workers}, {stage.at_once} training(s) at once", []).append(stage.name)
    return found


def _table(needs: Needs, found: Estimate) -> Table:
    shown = Table(title=f"what raykd {needs.command} takes here", title_justify="left")
    for column in ("", "to do", "done already", "takes about", f"{found.device}-hours"):
        shown.add_column(column, justify="left" if column in ("", "to do") else "right", no_wrap=True)
    work = [_trainings(needs.teachers), _fills(needs.fills), *map(_trainings, needs.students), ("", "")]
    for line, (to_do, done) in zip(found.lines, work, strict=True):
        shown.add_row(line.name, to_do, done, duration(line.seconds[0]), f"{line.held / 3600:.2f}" if line.held else "")
    shown.add_section()
    shown.add_row("in all", "", "", duration(found.seconds[0]), f"{found.held / 3600:.2f}")
    return shown


def _trainings(stage: Stage) -> tuple[str, str]:
    steps = sum(t.job.steps * t.job.method.generations for t in stage.trainings)
    return f"{len(stage.trainings)} training(s), {steps:,} steps", str(stage.done)


def _fills(fills: Sequence[Fill]) -> tuple[str, str]:
    rows, stored, passes, size = (
        sum(getattr(f, name) for f in fills) for name in ("rows", "stored", "passes", "bytes")
    )
    return f"{rows:,} rows, {passes:,} teacher passes, {amount(size)}", f"{stored:,} rows"


def _remarks(config: Config, needs: Needs, found: Estimate) -> list[str]:
    likely, least, most = found.seconds
    text = [
        f"estimate: {likely:.0f} s ({least:.0f} to {most:.0f} s by how steady the probe's steps were), "
        f"{found.held / 3600:.3g} {found.device}-hours; probed for {found.probe:.0f} s",
        f"store: {amount(sum(fill.bytes for fill in needs.fills))} of logits and {amount(found.model_bytes)} of models "
        f"more than now",
    ]
    search = config.search
    if needs.command == "sweep":
        if search.scheduler != "none":
            text.append(f"trials that search.scheduler = {search.scheduler} stops early take less: it is at most that")
        if found.cut:
            text.append(f"the budget (search.hours, search.gpu_hours) leaves out {found.cut} of the trials")
    if needs.beside:
        text.append("logits are computed beside the students, so the longer of the two counts")
    text.append("not in it: waiting for resources that others hold or that are to be started, downloads, retries")
    return text


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def amount(size: float) -> str:
    """Bytes, as people say them."""
    power = min(4, max(0, len(str(int(size))) - 1) // 3)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
