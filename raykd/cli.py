"""`raykd check | teach | distill | sweep CONFIG [key=value ...]`, `raykd report RUN`, `raykd logits ACTION WHERE`;
`raykd submit COMMAND ...` runs one of them as a job of a Ray cluster."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from raykd import __version__
from raykd.common.errors import ConfigError, DiskFullError, StoreError, UserError, disk_is_full
from raykd.common.redaction import Formatter, print_exception, scrub
from raykd.config.load import check_not_searched, load, parse_override, read_yaml, reference

COMMANDS = {
    "check": "validate all that can be known before training, and print what would run",
    "teach": "train the teachers, fill the logit store, score them",
    "distill": "teachers, ensemble, baseline and student, whatever is not there yet",
    "sweep": "search the method and its settings, train the best of each again on fresh seeds, report",
}
STORED = {
    "ls": "list the teachers whose logits a store holds: rows, size, who used them last",
    "verify": "read every block against its checksum; damaged ones go aside, the next run computes them (exit code 1)",
    "rm": "remove teachers' logits; a run that has opened them goes on, a later one computes them again",
}
EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 1, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: a run failed; 2: bad input; 130: Ctrl-C; 143: SIGTERM (preempted, can be started again)."""
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
        if given.command == "report":
            return _report(given)
        if given.command == "submit":
            return _submit(given)
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
        more = " with --resume" if given.command == "sweep" else ""
        print(f"stopped; the same command{more} goes on from the last checkpoints", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand behind an option, too: argparse takes the first run of them and knows no more."""
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

    # Paths stay whole and as they are: they are for copying, and may hold brackets.
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, soft_wrap=True)
    return run(given.action, given.where, given.teachers, console, getattr(given, "yes", False))


def _report(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.report.command import report

    console = Console(width=None if sys.stdout.isatty() else 140, markup=False)
    report(given.uri, given.runs, given.output, console)
    return 0


def _submit(given: argparse.Namespace) -> int:
    job = _parse(given.job)
    if job.command not in COMMANDS:
        raise ConfigError("COMMAND", job.command, "it is not for a cluster", f"Submit one of {', '.join(COMMANDS)}")
    path = given.working_dir / job.config
    if Path(job.config).is_absolute() or not path.exists():
        reason = f"it is not in the folder that is uploaded ({given.working_dir.resolve()})"
        raise ConfigError("CONFIG", job.config, reason, "Name it as seen from there, or another --working-dir")
    load(path, job.overrides)  # a mistake is told here, not by the cluster
    written = read_yaml(path) | dict(map(parse_override, job.overrides))
    output = Path(written.get("output", "runs"))  # as it stands there: it means another folder on the cluster
    from raykd.cluster.submit import submit

    return submit(given.job, given.address, given.working_dir, output, given.wait)


def _run(given: argparse.Namespace, config: Any) -> None:
    began = time.monotonic()
    # Imported late: a mistake in the YAML is told at once, without waiting for torch and Ray.
    from rich.console import Console

    from raykd.common.environment import set_environment

    if config.ray.address:
        os.environ["RAY_ADDRESS"] = config.ray.address  # one place for it, seen by whatever asks
    set_environment()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if given.command == "check":
        if given.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
        from raykd.check.command import check

        check(config, console, given.offline, began if given.cluster else None)
    else:
        if given.command == "sweep":
            from raykd.search.space import Space

            check_not_searched(config, given.overrides)
            Space(config)  # told at once, too, if it makes no sense
        from raykd.cluster.local import started_beside_imports

        with started_beside_imports(config):
            if given.command == "sweep":
                from raykd.search import sweep

                sweep.run(config, console, given.resume)
            else:
                from raykd.experiment.command import run

                run(config, given.command, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raykd", description="Distil an ensemble of models into one student.")
    parser.add_argument("--version", action="version", version=__version__)
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
            about = "also probe the cluster (or a local Ray) for about a minute, and estimate what the run takes"
            command.add_argument("--cluster", action="store_true", help=about)
        if name == "sweep":
            command.add_argument("--resume", action="store_true", help="go on with the sweep that was stopped or ended")
    about = "answer from MLflow whether the student beats its teachers: one HTML page, Markdown, figures"
    report = commands.add_parser("report", help=about, description=about[0].upper() + about[1:] + ".")
    report.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a run's id in MLflow, the folder of its results.json, or its job's YAML; several stand side by side",
    )
    report.add_argument("--uri", help="where MLflow is (default: as in results.json, else as for a job)")
    report.add_argument("--output", type=Path, help="folder (default: report beside results.json, else ./report)")
    report.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    about = "run a command as a job of a Ray cluster and follow it: the same exit code, 143 if it was stopped"
    submit = commands.add_parser("submit", help=about, description=about[0].upper() + about[1:] + ".")
    submit.add_argument(
        "--address", help="the dashboard's, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS, else here)"
    )
    submit.add_argument("--working-dir", type=Path, default=Path("."), help="the folder that is uploaded (default: .)")
    submit.add_argument("--no-wait", dest="wait", action="store_false", help="do not follow its log")
    submit.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    submit.add_argument(
        "job", metavar="COMMAND ...", nargs=argparse.REMAINDER, help="such as sweep jobs/digits_sweep.yaml --resume"
    )
    logits = commands.add_parser("logits", help="look after a store of logits: ls, verify, rm")
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
            action.add_argument("--yes", action="store_true", help="do not ask")
    return parser


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
    """SIGTERM, as at a preemption: trainings write a checkpoint and runs are marked KILLED on the way out."""
    raise SystemExit(EXIT_TERMINATED)
