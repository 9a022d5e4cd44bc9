"""MLflow: the cost of a trial in the driver on sqlite and on servers, and the report of 1,000 trials."""

import contextlib
import dataclasses
import gzip
import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from made_up_sweep import STEPS, Sweep  # type: ignore[import-not-found]
from measure import apart, forget_peak, listed, memory, say, seconds
from mlflow_server import Server  # type: ignore[import-not-found]
from postgres import postgres, programs  # type: ignore[import-not-found]
from rich.console import Console

from raykd.common.progress import Bars
from raykd.config.load import load
from raykd.plan.prepare import prepare
from raykd.plan.trainings import FINETUNE, student_jobs
from raykd.reports.command import report
from raykd.reports.locate import find_run, open_store
from raykd.reports.read import read
from raykd.tracking.experiment import Tracking
from raykd.tracking.recorder import Recorder
from raykd.tracking.run import Run
from raykd.training.events import Evaluated

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def running(server: Server) -> Iterator[str]:
    """A running server's address. It has one worker, because more would only share these two cores."""
    server.folder.mkdir()
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


def trials(uri: str, folder: Path, count: int) -> dict[str, float]:
    """The driver's cost of a trial: create a run, log five evaluations with 400 steps in total, and end it."""
    given = load(ROOT / "jobs" / "digits_sweep.yaml", [f"output={folder / 'runs'}"])
    prepared = prepare(given)
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "config.yaml").write_text("")
    bars = Bars(Console(file=io.StringIO()), None)
    first = student_jobs(given, prepared, FINETUNE, ())[0]
    values = dict.fromkeys(["loss", "label", "learning_rate", "gradient_norm", "alpha", "waited_share"], 0.5)
    times: dict[str, list[float]] = {"make": [], "points": [], "end": []}
    points = 0
    with Recorder(Tracking(uri, "scale"), given, prepared, "sweep") as recorder:
        for i in range(count):
            job = dataclasses.replace(first, seed=1000 + i, name=f"kd {i}", keep_model=False)
            job.folder.mkdir(parents=True)
            metrics = {"validation": {"accuracy": 0.5, "nll": 0.5, "ece": 0.1}}
            result = {"generations": [metrics], "best": 0, "seconds": 1.0}
            (job.folder / "result.json").write_text(json.dumps(result))
            with gzip.open(job.folder / "predictions-validation.jsonl.gz", "wt") as file:
                file.writelines(json.dumps({"id": k, "prediction": 1, "score": 1.0}) + "\n" for k in range(200))
            marks = [time.perf_counter()]
            recorder.register([job], "trial", job.name, "kd")
            marks.append(time.perf_counter())
            for k in range(1, 6):
                history = [(80 * (k - 1) + step, values) for step in range(1, 81)]
                recorder.on_event(job, Evaluated(1, 80 * k, 400, metrics["validation"], history), bars)
                points += len(history) * len(values) + 3
            run = recorder.children.runs[job.name]
            assert isinstance(run, Run)
            run._wake.set()  # in a sweep the points are sent over time, so they are not part of the end
            while run._pending:
                time.sleep(0.001)
            marks.append(time.perf_counter())
            recorder.end_trial(job, "finished", 0.0)
            marks.append(time.perf_counter())
            for name, took in zip(times, np.diff(marks), strict=True):
                times[name].append(float(took))
    median = {f"{name}_ms": 1000 * float(np.median(took)) for name, took in times.items()}
    return median | {"points_per_s": points / count / (median["points_ms"] / 1000)}


def many_runs(uri: str, folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """The report of a sweep with this many trials, and the cost of one more trial then."""
    sweep, found, made = Sweep(uri), {}, 0
    sweep.teachers()
    sweep.finals()
    rng, console = np.random.default_rng(0), Console(file=io.StringIO())
    for count in counts:
        took = []
        while made < count:
            setting = dict(
                zip(("alpha", "temperature", "W"), rng.uniform((0.1, 1.5, 0.0), (0.9, 5.0, 1.0)), strict=True)
            )
            since = time.perf_counter()
            run = sweep._trial("weighted", {k: float(v) for k, v in setting.items()}, made, "finished")
            sweep._curve(run, 0.1, STEPS)
            run.finish()
            took.append(time.perf_counter() - since)
            made += 1
        client = open_store(uri)
        parent = find_run(client, uri, sweep.id)
        before, since = forget_peak(), time.perf_counter()
        read(client, uri, parent)
        found[str(count)] = {
            "run_ms": 1000 * float(np.median(took[-count // 10 :])),
            "read_s": time.perf_counter() - since,
            "read_peak_mb": (memory("VmHWM") - before) / 1e6,
            "report_s": seconds(lambda: report(uri, [sweep.id], folder / "report", console), 1, time.perf_counter),
        }
    return found


def part(folder: Path, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    count = 3 if quick else 10
    with contextlib.ExitStack() as servers:
        stores = {"sqlite": f"sqlite:///{folder}/direct.db"}
        Tracking(f"sqlite:///{folder}/served.db", "template")  # its tables
        if not quick:
            served = Server(f"sqlite:///{folder}/served.db", folder / "server-sqlite")
            stores["server_sqlite"] = servers.enter_context(running(served))
            if programs():
                database = servers.enter_context(postgres(durable=True))
                stores["server_postgres"] = servers.enter_context(running(Server(database, folder / "server-postgres")))
            else:
                say("PostgreSQL is left out: Debian's package is not installed")
        for name, uri in stores.items():
            found[name] = apart(trials, uri, folder / name, count)
            say(f"a trial on {name}: {listed(found[name])}")
    counts = (20, 40) if quick else (100, 1000)
    found["runs"] = apart(many_runs, f"sqlite:///{folder}/many.db", folder, counts)
    for n, got in found["runs"].items():
        say(f"{n} trials on sqlite: {listed(got)}")
    return found
