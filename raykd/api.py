"""raykd from Python: the commands as functions, with a result to work with. `import raykd` offers them.

Nothing heavy is imported before a function is called.
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.common.environment import environment_for, set_defaults, without_the_hub
from raykd.common.errors import ConfigError, as_user_errors
from raykd.common.output_files import PAGE, REPORT, RESULTS
from raykd.common.redaction import Formatter
from raykd.common.screen import width_of
from raykd.common.sigterm import TERMINATED, raised_sigterm
from raykd.common.units import counted
from raykd.config.load import build, override, read_yaml
from raykd.config.schema import Config

if TYPE_CHECKING:
    import pandas
    from datasets import Dataset
    from rich.console import Console

    from raykd.reports.locate import Place

JobSource = str | Path | Mapping[str, Any]  # a YAML file, or what it would hold
_KEYS_FOR_A_DATAFRAME = ("columns", "workers")  # keys of `data` that have a meaning for a DataFrame


@dataclass(frozen=True)
class Result:
    """What `distill`, `sweep` or `teach` found, as in `results.json`.

    folder: of the run; `results.json` and the resolved `config.yaml` are in it.
    answer: the report's first sentence, whether the student beats its teachers; "" from `teach`.
    runs: one dict for each model: name, role, method, seed, metrics by split, interval and more.
    student: the folder of the best student, which transformers loads; None from `teach`.
    report: the HTML page; None if none was written of this result.
    mlflow: uri, experiment_id and run_id.
    """

    folder: Path
    answer: str
    runs: list[dict[str, Any]]
    student: Path | None
    report: Path | None
    mlflow: dict[str, str]

    def table(self) -> "pandas.DataFrame":
        """One row for each model; the metrics' columns are called such as `test/accuracy`.

        low, high: the 95% interval of the primary metric on test.
        at_chance: whether the model is at chance on test or worse, so that it has learnt nothing.
        """
        import pandas

        rows = []
        for run in self.runs:
            low, high = run["interval"]
            row = {name: run[name] for name in ("name", "role", "method", "seed")} | {"low": low, "high": high}
            row["at_chance"] = run.get("at_chance", False)  # an older results.json does not say
            row |= {f"{split}/{name}": value for split, of in run["metrics"].items() for name, value in of.items()}
            rows.append(row)
        return pandas.DataFrame(rows).astype({"seed": "Int64"})  # the ensemble has none


Run = str | Path | Result


def read_result(folder: str | Path) -> Result:
    """The result of an earlier command. folder: of the run (`output/name`). Raises ConfigError if it cannot be read."""
    from raykd.models.folders import folder_of_student  # imports safetensors; `import raykd` is to be light

    path = Path(folder, RESULTS)
    if not path.is_file():
        raise ConfigError("folder", folder, "it holds no results.json", "Name the folder of a run that has finished")
    try:
        found = json.loads(path.read_text())
        answer, runs, mlflow, student = found["verdict"], found["runs"], found["mlflow"], found.get("student")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"its results.json is damaged ({type(error).__name__}: {error})"
        raise ConfigError("folder", folder, reason, "Run the command again: it is answered from the store") from None
    page = Path(folder, REPORT, PAGE)
    return Result(
        Path(folder).absolute(),
        answer,
        runs,
        folder_of_student(student, Path(folder)) if student else None,
        page.absolute() if page.is_file() and _is_of(page, mlflow["run_id"]) else None,
        mlflow,
    )


def _is_of(page: Path, run_id: str) -> bool:
    """Whether the page is the report of this run, and not of an earlier command. An older page does not say."""
    with page.open(encoding="utf-8", errors="replace") as file:
        head = file.read(2000)
    return 'name="raykd-runs"' not in head or run_id in head


def load_job(job: JobSource, overrides: Mapping[str, Any]) -> Config:
    """The validated config of a YAML file or a tree of keys. overrides: values by dotted key. Raises ConfigError."""
    set_defaults()  # a task of the user's own is imported, and the hub's library with it
    _show_log()
    tree = _plain(job) if isinstance(job, Mapping) else read_yaml(Path(job))
    return build(override(tree, _plain(overrides)))


def _plain(value: Any) -> Any:
    """Values as YAML has them: of paths the text, of numpy's numbers and arrays Python's."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def check(job: JobSource, /, *, cluster: bool = False, offline: bool = False, **overrides: Any) -> None:
    """Check everything that can be checked before training, and print what would run. Raises ConfigError.

    job: a YAML file, or a mapping with its keys.
    cluster: also measure on the cluster, for up to 20 s or a quarter of the estimate, and print that estimate, of time
        and GPU-hours.
    offline: list, and do not fail on, what needs the hub.
    overrides: values by dotted key, such as `**{"method.W": 0.5}`.
    """
    began = time.monotonic()
    run_check(load_job(job, overrides), plain_console(), offline, began if cluster else None)


def teach(job: JobSource, /, **overrides: Any) -> Result:
    """Train the teachers, store their logits and score them. Arguments and errors as in `distill`."""
    return _run(load_job(job, overrides), "teach")


def distill(job: JobSource, /, **overrides: Any) -> Result:
    """Train and score teachers, ensemble, baseline and student. Existing results are reused.

    job: a YAML file, or a mapping with its keys.
    overrides: values by dotted key, such as `**{"method.W": 0.5}`.

    Uses Ray if it is initialized (`ray.init`), otherwise as `ray.address` says. Prints what the command prints.
    Raises UserError: ConfigError for invalid input, TrainingError if a training failed.
    """
    return _run(load_job(job, overrides), "distill")


def sweep(job: JobSource, /, *, resume: bool = False, **overrides: Any) -> Result:
    """Search methods and settings, train the best setting of each again on fresh seeds, and write the report.

    resume: continue a sweep that was stopped or finished.

    Other arguments and errors as in `distill`.
    """
    from raykd.search.ignored import check_overrides  # imports numpy; `import raykd` is to be light

    config = load_job(job, overrides)
    if not resume:  # what is resumed has the values that it began with
        check_overrides(config, _plain(overrides))
    return _run(config, "sweep", resume)


@as_user_errors()
def report(runs: Run | Iterable[Run], uri: str | None = None, output: str | Path | None = None) -> Path:
    """Write the report of one or several runs, and return its folder (report.html, report.md, figures).

    runs: a run's id in MLflow, its result, the folder of its `results.json`, or its job's YAML; several are compared.
    uri: MLflow's address; None: of each run as in its result or `results.json`, else as for a job.
    output: folder; None: `report` in the run's folder, else ./report.

    Raises ConfigError.
    """
    set_defaults()
    _show_log()
    from raykd.reports.command import report as write

    several = [runs] if isinstance(runs, (str, Path, Result)) else list(runs)
    places = [_place_of(run, uri) if isinstance(run, Result) else str(run) for run in several]
    return write(uri, places, Path(output) if output else None, plain_console())


@as_user_errors()
def predict(model: "str | Path | Result", data: Any, /, **overrides: Any) -> "pandas.DataFrame":
    """A model's predictions of rows that need no labels: the rows' columns, and those of `Task.predictions`.

    model: a model's folder or hub id; or a run's folder or result, whose best student is taken.
    data: a file, a folder, a hub id or a pandas DataFrame, whose index the result keeps.
    overrides: keys of the sections `model`, `data` and `task`, such as `**{"data.columns.text": "review"}`. For a
        DataFrame, which has its rows, only columns and workers of `data`.

    Raises ConfigError.
    """
    import pandas

    set_defaults()
    _show_log()
    _forget_data()
    from raykd.predictions.command import predicted, read_config, read_rows

    if isinstance(model, Result):
        if model.student is None:
            raise ConfigError("model", model.folder, "its command trained no student", "Name a teacher's folder")
        model = model.student
    if isinstance(data, pandas.DataFrame):
        for key, value in overrides.items():
            if key.startswith("data.") and key.split(".")[1] not in _KEYS_FOR_A_DATAFRAME:
                reason = "the rows are those of the DataFrame"
                raise ConfigError(key, value, reason, "Choose rows in it, or give a file instead")
        config = read_config(str(model), "a DataFrame", overrides)
        rows = _rows_of(data)
    else:
        config = read_config(str(model), str(data), overrides)
        rows = read_rows(config)
    found = [row for chunk in predicted(config, rows, plain_console()) for row in chunk]
    if not isinstance(data, pandas.DataFrame):
        return pandas.DataFrame(found)
    return pandas.DataFrame(found, index=data.index, columns=None if found else data.columns)


def _rows_of(table: "pandas.DataFrame") -> "Dataset":
    """Raises ConfigError for a table that Arrow has no place for."""
    import pyarrow
    from datasets import Dataset

    names = [str(name) for name in table.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("data", "a DataFrame", f"it has several columns called {twice[0]}", "Rename or drop them")
    for name, column in table.set_axis(names, axis=1).items():
        try:
            pyarrow.array(column, from_pandas=True)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            reason = f"its column {name} holds values of different types ({str(error).splitlines()[0][:100]})"
            raise ConfigError("data", "a DataFrame", reason, "Convert the column, or drop it") from None
    return Dataset.from_pandas(table.set_axis(names, axis=1), preserve_index=False)


def _place_of(result: Result, uri: str | None) -> "str | Place":
    """Its folder, or its run if a later command has written there. A folder knows its store, wherever it was moved to.

    uri: MLflow's address; None: the result's own.
    """
    from raykd.reports.locate import Place

    with suppress(ConfigError):
        if read_result(result.folder).mlflow == result.mlflow:
            return str(result.folder)
    return result.mlflow["run_id"] if uri else Place(result.mlflow["uri"], result.mlflow["run_id"], None)


def _show_log() -> None:
    """Show what the commands log, unless the program has chosen what becomes of logs."""
    log = logging.getLogger("raykd")
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter("%(levelname)s %(message)s"))
        handler.addFilter(lambda record: not logging.getLogger().handlers)  # those of a program that chooses later
        log.addHandler(handler)
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)


def plain_console() -> "Console":
    """Plain text, also in a notebook, whose own tables are too narrow for results."""
    from rich.console import Console

    # Names and labels may hold brackets, so they are no markup.
    return Console(width=width_of(sys.stdout), markup=False, force_jupyter=False)


@as_user_errors()
def run_check(config: Config, console: "Console", offline: bool, began: float | None) -> None:
    """The command `check`. began: its start (`time.monotonic`), for an estimate; None for none."""
    _forget_data()
    with environment_for(config.ray.address), without_the_hub() if offline else nullcontext():
        from raykd.checks.command import check  # imports Ray's and the hub's libraries, which read the environment

        check(config, console, offline, began)


@as_user_errors()
def run_command(config: Config, command: str, console: "Console", resume: bool = False) -> None:
    """The command `teach`, `distill` or `sweep`. Raises UserError."""
    _forget_data()
    with environment_for(config.ray.address):
        if command == "sweep":
            from raykd.search.space import Space

            Space(config)  # reports an invalid space at once
        about = f"{config.task.type}, {counted(len(config.teachers), 'teacher')}; results go to {config.folder}"
        console.print(f"raykd {command} {config.name}: {about}", highlight=False, soft_wrap=True)
        from raykd.cluster.local import started_beside_imports

        with started_beside_imports(config, command):
            if command == "sweep":
                from raykd.search import sweep

                sweep.run(config, console, resume)
            else:
                from raykd.experiment.command import run_experiment

                run_experiment(config, command, console)


def _forget_data() -> None:
    """Forget what functions of the user's own returned (`data.source: my_module:load`): they may return other rows."""
    if loaded := sys.modules.get("raykd.data.own_code"):
        loaded.own_data.cache_clear()


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends a command as on the command line, with its runs marked as KILLED, unless the program handles it."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    try:
        with raised_sigterm() as terminated:
            try:
                yield
            except SystemExit:
                if terminated():  # Ray can have replaced the code
                    raise SystemExit(TERMINATED) from None
                raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(config: Config, command: str, resume: bool = False) -> Result:
    with _ended_in_order():
        run_command(config, command, plain_console(), resume)
    return read_result(config.folder)
