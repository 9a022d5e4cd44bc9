"""The command line: `raykd check | teach | distill | sweep CONFIG [key=value ...]`, `raykd report RUN`, `raykd predict
MODEL DATA`, `raykd logits | store ACTION WHERE`, and `raykd submit COMMAND ...`, which runs one on a cluster."""

import argparse
import atexit
import gc
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from raykd.common.environment import set_defaults
from raykd.common.errors import ConfigError, OwnCodeError, StoreError, UserError, as_user_errors
from raykd.common.importing import collect_seldom
from raykd.common.redaction import Formatter, print_exception, scrub
from raykd.common.screen import width_of
from raykd.common.sigterm import TERMINATED, raised_sigterm
from raykd.common.units import counted
from raykd.common.versions import versions
from raykd.config.load import load, parse_override, read_yaml
from raykd.config.schema import Config, ModelConfig
from raykd.options import COMMANDS, parse

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 1, 130, TERMINATED
RESUMABLE = ("teach", "distill", "sweep")  # commands that train, and so have checkpoints


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done; 1: a run failed; 2: invalid input; 130: Ctrl-C; 143: SIGTERM (preempted, can be resumed).
    """
    if arguments is None:
        _collect_seldom()
    given = parse(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("raykd").setLevel(logging.DEBUG if given.debug else logging.INFO)
    sys.excepthook = print_exception
    if arguments is None:  # a program of its own
        threading.excepthook = _print_thread_exception
    code = EXIT_FAILED
    with raised_sigterm() as terminated:
        try:
            code = _execute(given)
        except SystemExit as error:
            if error.code != EXIT_TERMINATED and not terminated():
                raise
            code = EXIT_TERMINATED
        if code and terminated():
            code = EXIT_TERMINATED
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        _say_how_to_resume(given.command)
    return code


def _print_thread_exception(given: threading.ExceptHookArgs) -> None:
    if given.exc_type is not SystemExit:
        print_exception(given.exc_type, given.exc_value, given.exc_traceback)


def _execute(given: argparse.Namespace) -> int:
    set_defaults()
    try:
        with as_user_errors():
            if given.command in OTHERS:
                return OTHERS[given.command](given)
            _run(given, load(given.config, given.overrides))
    except OwnCodeError as error:
        return _fail(error, EXIT_FAILED, given.debug)
    except (ConfigError, StoreError) as error:
        return _fail(error, EXIT_BAD_INPUT, given.debug)
    except UserError as error:
        return _fail(error, EXIT_FAILED, given.debug)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _say_how_to_resume(command: str) -> None:
    if command == "submit":  # it has said what the job does now
        return
    more = " with --resume" if command == "sweep" else ""
    how = f"; start the same command{more} to resume from the last checkpoints" if command in RESUMABLE else ""
    print(f"stopped{how}", file=sys.stderr, flush=True)


def _collect_seldom() -> None:
    """Let Python's garbage collector run seldom in this process, and not when it exits."""
    collect_seldom()
    atexit.register(gc.freeze)


def _logits(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.logits.command import run_logits

    # Paths are printed unwrapped and verbatim, so that they can be copied, and because they can contain brackets.
    console = Console(width=width_of(sys.stdout), markup=False, soft_wrap=True)
    return run_logits(given.action, given.where, given.teachers, console, getattr(given, "yes", False))


def _store(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.disk.command import Filter, duration, run_store

    older = duration(given.older_than) if given.older_than else None
    chosen = Filter(tuple(given.kind), tuple(given.job), older, given.unfinished)
    console = Console(width=width_of(sys.stdout), markup=False, soft_wrap=True)
    prune = given.action == "prune"
    return run_store(given.action, given.where, chosen, console, prune and given.yes, prune and given.dry_run)


def _report(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.reports.command import report

    console = Console(width=width_of(sys.stdout), markup=False)
    report(given.uri, given.runs, given.output, console)
    return 0


def _predict(given: argparse.Namespace) -> int:
    from rich.console import Console

    from raykd.predictions.command import predict

    console = Console(stderr=True, width=width_of(sys.stderr), markup=False)  # rows go to stdout
    predict(given.model, given.data, given.overrides, given.output, console)
    return 0


def _push(given: argparse.Namespace) -> int:
    from raykd.common.readers import reading_model
    from raykd.models.folders import model_folder, model_of
    from raykd.models.hub import push

    folder = model_folder(ModelConfig(pretrained=str(Path(model_of(given.model)).absolute())), "MODEL")
    assert folder is not None
    with reading_model(folder, "raykd push"):
        print(push(folder, given.repository, given.private))
    return 0


def _init(given: argparse.Namespace) -> int:
    from raykd.data.starter import not_used, write_job

    found = write_job(given.data, given.job, given.teacher, given.student)
    print(f"{given.data}: {counted(found.rows, 'row')}, taken for {found.task}")
    for role, column in found.columns.items():
        print(f"  {role}: {column if isinstance(column, str) else ', '.join(column)}")
    for line in not_used(found):
        print(f"  {line}")
    print(f"The job is in {given.job}. Look it over, then: {shlex.join(['raykd', 'check', str(given.job)])}")
    return 0


def _env(given: argparse.Namespace) -> int:
    for name, value in versions():
        print(f"{name}: {value}")
    return 0


def _submit(given: argparse.Namespace) -> int:
    job = parse(given.job)
    if job.command not in COMMANDS:
        raise ConfigError("COMMAND", job.command, "it cannot be submitted", f"Submit one of {', '.join(COMMANDS)}")
    path, uploaded = given.working_dir / job.config, given.working_dir.resolve()
    inside = Path(os.path.normpath(uploaded / job.config)).is_relative_to(uploaded)  # a link is uploaded as its file
    if Path(job.config).is_absolute() or not inside or not path.exists():
        reason = f"it is not in the folder that is uploaded ({uploaded})"
        raise ConfigError("CONFIG", job.config, reason, "Give a path relative to this folder, or another --working-dir")
    # Where a task of the user's own is on the cluster: before installed packages, but it hides no module of Python's.
    packages = next((i for i, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
    sys.path.insert(packages, str(uploaded))
    config = load(path, job.overrides)  # so that errors are reported here, not by the cluster
    if job.command == "sweep":
        from raykd.search.space import Space

        _check_overrides(config, job.overrides)
        Space(config)
    tree = read_yaml(path) | dict(map(parse_override, job.overrides))
    # Not made absolute, because a relative path is another folder on the cluster.
    output = Path(tree.get("output", "runs")).expanduser()
    from raykd.cluster.submit import submit

    return submit(given.job, given.address, given.working_dir, output, given.wait)


def _check_overrides(config: Config, overrides: Sequence[str]) -> None:
    """Raise ConfigError if one of a sweep's overrides would have no effect."""
    from raykd.search.ignored import check_overrides  # imports numpy

    check_overrides(config, dict(map(parse_override, overrides)))


def _run(given: argparse.Namespace, config: Config) -> None:
    began = time.monotonic()
    from rich.console import Console

    from raykd.api import run_check, run_command

    console = Console(width=width_of(sys.stdout), markup=False)  # names and labels may hold brackets
    if given.command == "check":
        run_check(config, console, given.offline, began if given.cluster else None)
        rest = shlex.join([given.config, *given.overrides])
        commands = [f"raykd distill {rest}"]
        if "search" in config.model_fields_set:
            try:
                _check_overrides(config, given.overrides)
                commands.insert(0, f"raykd sweep {rest}")
            except UserError as error:
                print(scrub(f"not for raykd sweep: {error}"))
        print(scrub(f"next: {', or '.join(commands)}"))
    else:
        if given.command == "sweep" and not given.resume:  # what is resumed has the values that it began with
            _check_overrides(config, given.overrides)
        elif given.command != "sweep" and given.resume:
            console.print(f"--resume: {given.command} always resumes, with or without it")
        run_command(config, given.command, console, given.command == "sweep" and given.resume)


def _fail(error: UserError, code: int, debug: bool) -> int:
    if debug:
        logging.getLogger("raykd").error("traceback", exc_info=error)
    print(f"raykd: {' '.join(scrub(str(error)).split())}", file=sys.stderr)
    return code


OTHERS = {
    "env": _env,
    "init": _init,
    "logits": _logits,
    "predict": _predict,
    "push": _push,
    "report": _report,
    "store": _store,
    "submit": _submit,
}  # than those that run an experiment
