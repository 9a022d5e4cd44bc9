"""The command line: `raykd check | teach | distill | sweep CONFIG [key=value ...]`, `raykd report RUN`, `raykd predict
MODEL DATA`, `raykd logits | store ACTION WHERE`, and `raykd submit COMMAND ...`, which runs one on a cluster."""

import argparse
import atexit
import gc
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from raykd.common.errors import ConfigError, DiskFullError, StoreError, UserError, disk_is_full
from raykd.common.redaction import Formatter, print_exception, scrub
from raykd.common.versions import short_versions, versions
from raykd.config.load import check_not_searched, load, parse_override, read_yaml, reference
from raykd.config.schema import Config, ModelConfig

COMMANDS = {
    "check": "check everything that can be checked before training, and print what would run",
    "teach": "train the teachers, store their logits, score them",
    "distill": "train and score teachers, ensemble, baseline and student; existing results are reused",
    "sweep": "search methods and settings, train the best setting of each again on fresh seeds, write the report",
}
STORED = {
    "ls": "list the teachers whose logits a store holds: rows, size, which jobs used them last",
    "verify": "check every block's checksum; damaged ones are quarantined and recomputed by the next run (exit code 1)",
    "rm": "remove teachers' logits; a run that has opened them continues, a later one computes them again",
}
DISK = {
    "ls": "list everything in a store: trainings, data, logits, with job, size, age, last use and state",
    "prune": "remove what the options choose and no running command uses; it is recreated when it is needed again",
}
EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 1, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done; 1: a run failed; 2: invalid input; 130: Ctrl-C; 143: SIGTERM (preempted, can be resumed).
    """
    if arguments is None:
        _collect_seldom()
    given = _parse(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("raykd").setLevel(logging.DEBUG if given.debug else logging.INFO)
    sys.excepthook = print_exception
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if given.command == "logits":
            return _logits(given)
        if given.command == "store":
            return _store(given)
        if given.command == "report":
            return _report(given)
        if given.command == "submit":
            return _submit(given)
        if given.command == "predict":
            return _predict(given)
        if given.command == "push":
            return _push(given)
        if given.command == "init":
            return _init(given)
        if given.command == "env":
            return _env()
        config = load(given.config, given.overrides)
        _run(given, config)
    except (ConfigError, StoreError) as error:
        return _fail(error, EXIT_BAD_INPUT, given.debug)
    except UserError as error:
        return _fail(error, EXIT_FAILED, given.debug)
    except Exception as error:
        if not disk_is_full(error):
            raise
        return _fail(DiskFullError(getattr(error, "filename", None) or "output"), EXIT_FAILED, given.debug)
    except KeyboardInterrupt:
        _say_how_to_resume(given.command)
        return EXIT_INTERRUPTED
    except SystemExit as error:
        if error.code == EXIT_TERMINATED:
            _say_how_to_resume(given.command)
        raise
    return 0


def _say_how_to_resume(command: str) -> None:
    more = " with --resume" if command == "sweep" else ""
    print(f"stopped; start the same command{more} to resume from the last checkpoints", file=sys.stderr, flush=True)


def _collect_seldom() -> None:
    """Let Python's garbage collector run seldom in this process, and not when it exits.

    Imported modules are a million objects, and searching them for garbage took a quarter of a short command.
    """
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments. Overrides can also follow an option, of which argparse itself takes only the first group."""
    parser = _parser()
    given, more = parser.parse_known_args(arguments)
    if more and (not hasattr(given, "overrides") or any(text.startswith("-") or "=" not in text for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        given.overrides += more
    return given


def _logits(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.logits.command import run

    # Paths are printed unwrapped and verbatim, so that they can be copied, and because they can contain brackets.
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, soft_wrap=True)
    return run(given.action, given.where, given.teachers, console, getattr(given, "yes", False))


def _store(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.disk.command import Filter, duration, run

    older = duration(given.older_than) if given.older_than else None
    chosen = Filter(tuple(given.kind), tuple(given.job), older, given.unfinished)
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, soft_wrap=True)
    prune = given.action == "prune"
    return run(given.action, given.where, chosen, console, prune and given.yes, prune and given.dry_run)


def _report(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.reports.command import report

    console = Console(width=None if sys.stdout.isatty() else 140, markup=False)
    report(given.uri, given.runs, given.output, console)
    return 0


def _predict(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.predictions.command import predict

    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140, markup=False)  # rows go to stdout
    predict(given.model, given.data, given.overrides, given.output, console)
    return 0


def _push(given: argparse.Namespace) -> int:
    from raykd.models.folders import model_folder
    from raykd.models.hub import push
    from raykd.predictions.command import model_of

    folder = model_folder(ModelConfig(pretrained=str(Path(model_of(given.model)).absolute())), "MODEL")
    assert folder is not None
    print(push(folder, given.repository, given.private))
    return 0


def _init(given: argparse.Namespace) -> int:
    from raykd.data.starter import write_job

    found = write_job(given.data, given.job, given.teacher, given.student)
    print(f"{given.data}: {found.rows} training rows, taken for {found.task}; the job is in {given.job}")
    print(f"Look it over, then: raykd check {given.job}")
    return 0


def _env() -> int:
    for name, value in versions():
        print(f"{name}: {value}")
    return 0


def _submit(given: argparse.Namespace) -> int:
    job = _parse(given.job)
    if job.command not in COMMANDS:
        raise ConfigError("COMMAND", job.command, "it cannot be submitted", f"Submit one of {', '.join(COMMANDS)}")
    path = given.working_dir / job.config
    if Path(job.config).is_absolute() or not path.exists():
        reason = f"it is not in the folder that is uploaded ({given.working_dir.resolve()})"
        raise ConfigError("CONFIG", job.config, reason, "Give a path relative to this folder, or another --working-dir")
    load(path, job.overrides)  # so that errors are reported here, not by the cluster
    tree = read_yaml(path) | dict(map(parse_override, job.overrides))
    output = Path(tree.get("output", "runs"))  # verbatim, because a relative path is another folder on the cluster
    from raykd.cluster.submit import submit

    return submit(given.job, given.address, given.working_dir, output, given.wait)


def _run(given: argparse.Namespace, config: Config) -> None:
    began = time.monotonic()
    from rich.console import Console

    from raykd.api import run_check, run_command

    console = Console(width=None if sys.stdout.isatty() else 140, markup=False)  # names and labels may hold brackets
    if given.command == "check":
        run_check(config, console, given.offline, began if given.cluster else None)
    else:
        if given.command == "sweep":
            check_not_searched(config, dict(map(parse_override, given.overrides)))
        elif given.resume:
            console.print(f"--resume: {given.command} always resumes, with or without it")
        run_command(config, given.command, console, given.command == "sweep" and given.resume)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raykd", description="Distil an ensemble of models into one student.")
    parser.add_argument("--version", action="version", version=short_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=meaning,
            description=meaning[0].upper() + meaning[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_keys() if name == "check" else "raykd check --help lists every key.",
        )
        command.add_argument("config", help="the job's YAML, such as jobs/digits.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="such as method.W=0.5 student.seed=3")
        command.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
        if name == "check":
            command.add_argument("--offline", action="store_true", help="list, and do not fail on, what needs the hub")
            text = "also probe the cluster (or a local Ray) for about a minute, and estimate time and GPU-hours"
            command.add_argument("--cluster", action="store_true", help=text)
        if name == "sweep":
            command.add_argument("--resume", action="store_true", help="continue a sweep that was stopped or finished")
        if name in ("teach", "distill"):
            text = f"accepted, but not needed: {name} always resumes what was stopped"
            command.add_argument("--resume", action="store_true", help=text)
    text = "upload a student's folder to the Hugging Face hub"
    push = commands.add_parser("push", help=text, description=text[0].upper() + text[1:] + ".")
    push.add_argument("model", metavar="MODEL", help="a model's folder, or a run's folder for its best student")
    push.add_argument("repository", metavar="REPOSITORY", help="such as you/reviews-student; created if needed")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    text = "write a first job for your own data: a file, a folder or a hub id"
    init = commands.add_parser("init", help=text, description=text[0].upper() + text[1:] + ".")
    init.add_argument("data", metavar="DATA", help="such as reviews.csv; its task and columns are guessed")
    init.add_argument("--job", type=Path, default=Path("job.yaml"), help="file to write (default: job.yaml)")
    init.add_argument("--teacher", action="append", default=[], help="hub id or folder; once for each teacher")
    init.add_argument("--student", help="hub id or folder (default: a small one)")
    init.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    text = "print the versions and the machine, for a bug report"
    env = commands.add_parser("env", help=text, description=text[0].upper() + text[1:] + ".")
    env.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    text = "report from MLflow whether the student beats its teachers: one HTML page, Markdown, figures"
    report = commands.add_parser("report", help=text, description=text[0].upper() + text[1:] + ".")
    report.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a run's id in MLflow, the folder of its results.json, or its job's YAML; several are compared",
    )
    report.add_argument("--uri", help="MLflow's address (default: as in results.json, else as for a job)")
    report.add_argument("--output", type=Path, help="folder (default: report in the run's folder, else ./report)")
    report.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    text = "predict rows with a student or another model: its folder or hub id, and a file, a folder or a hub id"
    predict = commands.add_parser("predict", help=text, description=text[0].upper() + text[1:] + ".")
    predict.add_argument(
        "model", metavar="MODEL", help="its folder, a hub id, or a run's folder (runs/NAME) for its best student"
    )
    predict.add_argument("data", metavar="DATA", help="rows that need no labels, such as reviews.csv")
    predict.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.columns.text=review data.test=validation"
    )
    predict.add_argument("--output", type=Path, help=".parquet, .csv or .jsonl (default: JSON lines on the screen)")
    predict.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    text = "run a command as a job of a Ray cluster and follow it: the same exit code, 143 if it was stopped"
    submit = commands.add_parser("submit", help=text, description=text[0].upper() + text[1:] + ".")
    submit.add_argument(
        "--address", help="of the dashboard, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS, else this machine)"
    )
    submit.add_argument("--working-dir", type=Path, default=Path("."), help="the folder to upload (default: .)")
    submit.add_argument("--no-wait", dest="wait", action="store_false", help="do not follow the job's log")
    submit.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    submit.add_argument(
        "job", metavar="COMMAND ...", nargs=argparse.REMAINDER, help="such as sweep jobs/digits_sweep.yaml --resume"
    )
    logits = commands.add_parser("logits", help="manage a store of logits: ls, verify, rm")
    actions = logits.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, meaning in STORED.items():
        action = actions.add_parser(name, help=meaning, description=meaning[0].upper() + meaning[1:] + ".")
        action.add_argument("where", metavar="WHERE", help="a job's YAML, or a store's folder or URI (s3://...)")
        action.add_argument(
            "teachers",
            metavar="TEACHER",
            nargs="+" if name == "rm" else "*",
            help="a teacher's name, or its fingerprint's first 6 or more characters"
            + ("" if name == "rm" else " (default: all)"),
        )
        action.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    _add_store(commands)
    return parser


def _add_store(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    store = commands.add_parser("store", help="what takes room on the disk: ls, prune")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, meaning in DISK.items():
        action = actions.add_parser(name, help=meaning, description=meaning[0].upper() + meaning[1:] + ".")
        action.add_argument("where", metavar="WHERE", help="a job's YAML, or its output folder, such as runs")
        kinds = ("trainings", "data", "logits", "checked", "other")
        action.add_argument("--kind", action="append", choices=kinds, default=[], help="only these; can be repeated")
        text = "only what this job uses and no other does; can be repeated"
        action.add_argument("--job", action="append", default=[], metavar="NAME", help=text)
        action.add_argument("--older-than", metavar="30d", help="only what no job has used for so long (m, h, d, w)")
        text = "only stopped trainings, drafts and damaged files; a stopped training then starts from its beginning"
        action.add_argument("--unfinished", action="store_true", help=text)
        action.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
        if name == "prune":
            action.add_argument("--yes", action="store_true", help="do not ask for confirmation")
            action.add_argument("--dry-run", action="store_true", help="only say what would be removed, and its size")


def _keys() -> str:
    rows = [(key, default, meaning) for key, default, meaning in reference()]
    width = max(len(key) for key, *_ in rows)
    lines = ["keys of the YAML (.N is an item of a list; in an override its number, its name, or *):", ""]
    lines += [f"  {key:<{width}}  {meaning}" + (f" [{default}]" if default else "") for key, default, meaning in rows]
    return "\n".join(lines)


def _fail(error: UserError, code: int, debug: bool) -> int:
    if debug:
        logging.getLogger("raykd").error("traceback", exc_info=error)
    print(f"raykd: {' '.join(scrub(str(error)).split())}", file=sys.stderr)
    return code


def _terminate(*_: object) -> NoReturn:
    """Handle SIGTERM, such as from a preemption: trainings write a checkpoint and runs are marked KILLED."""
    raise SystemExit(EXIT_TERMINATED)
