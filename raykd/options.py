"""The commands' options, and their help."""

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from raykd.common.versions import short_versions
from raykd.config.load import reference

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments. Overrides can also follow an option, of which argparse itself takes only the first group."""
    parser = _parser()
    given, more = parser.parse_known_args(arguments)
    if more and (not hasattr(given, "overrides") or any(text.startswith("-") or "=" not in text for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}; raykd {given.command} --help lists what there is")
    if more:
        given.overrides += more
    return given


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        near = difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), 1) if found else []
        message += f". Did you mean {near[0]}?" if near else ""
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="raykd", description="Distil an ensemble of models into one student."
    )
    parser.add_argument("--version", action="version", version=short_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_experiments(commands)
    _add_starters(commands)
    _add_results(commands)
    _add_submit(commands)
    _add_logits(commands)
    _add_store(commands)
    return parser


def _command(commands: Commands, name: str, text: str, **more: Any) -> argparse.ArgumentParser:
    """A command with its help, and the option that all have."""
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", **more)
    command.add_argument("--debug", action="store_true", help="show tracebacks and more of the log")
    return command


def _add_experiments(commands: Commands) -> None:
    for name, meaning in COMMANDS.items():
        epilog = _keys() if name == "check" else "raykd check --help lists every key."
        raw = argparse.RawDescriptionHelpFormatter
        command = _command(commands, name, meaning, formatter_class=raw, epilog=epilog)
        command.add_argument("config", help="the job's YAML, such as jobs/digits.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="such as method.W=0.5 student.seed=3")
        if name == "check":
            command.add_argument("--offline", action="store_true", help="list, and do not fail on, what needs the hub")
            text = "also probe the cluster (or a local Ray) for 20 s or longer, and estimate time and GPU-hours"
            command.add_argument("--cluster", action="store_true", help=text)
        if name == "sweep":
            command.add_argument("--resume", action="store_true", help="continue a sweep that was stopped or finished")
        if name in ("teach", "distill"):
            text = f"accepted, but not needed: {name} always resumes what was stopped"
            command.add_argument("--resume", action="store_true", help=text)


def _add_starters(commands: Commands) -> None:
    init = _command(commands, "init", "write a first job for your own data: a file, a folder or a hub id")
    init.add_argument("data", metavar="DATA", help="such as reviews.csv; its task and columns are guessed")
    init.add_argument("--job", type=Path, default=Path("job.yaml"), help="file to write (default: job.yaml)")
    init.add_argument("--teacher", action="append", default=[], help="hub id or folder; once for each teacher")
    init.add_argument("--student", help="hub id or folder (default: a small one)")
    _command(commands, "env", "print the versions and the machine, for a bug report")


def _add_results(commands: Commands) -> None:
    text = "report from MLflow whether the student beats its teachers: one HTML page, Markdown, figures"
    report = _command(commands, "report", text)
    text = "a run's id in MLflow, the folder of its results.json, or its job's YAML; several are compared"
    report.add_argument("runs", metavar="RUN", nargs="+", help=text)
    report.add_argument("--uri", help="MLflow's address (default: as in results.json, else as for a job)")
    report.add_argument("--output", type=Path, help="folder (default: report in the run's folder, else ./report)")
    text = "predict rows with a student or another model: its folder or hub id, and a file, a folder or a hub id"
    predict = _command(commands, "predict", text)
    text = "its folder, a hub id, or a run's folder (runs/NAME) for its best student"
    predict.add_argument("model", metavar="MODEL", help=text)
    predict.add_argument("data", metavar="DATA", help="rows that need no labels, such as reviews.csv")
    text = "such as data.columns.text=review data.test=validation"
    predict.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    predict.add_argument("--output", type=Path, help=".parquet, .csv or .jsonl (default: JSON lines on the screen)")
    push = _command(commands, "push", "upload a student's folder to the Hugging Face hub")
    push.add_argument("model", metavar="MODEL", help="a model's folder, or a run's folder for its best student")
    push.add_argument("repository", metavar="REPOSITORY", help="such as you/reviews-student; created if needed")
    push.add_argument("--private", action="store_true", help="make a new repository private")


def _add_submit(commands: Commands) -> None:
    text = "run a command as a job of a Ray cluster and follow it: the same exit code, 143 if it was stopped"
    submit = _command(commands, "submit", text)
    text = "of the dashboard, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS, else this machine)"
    submit.add_argument("--address", help=text)
    submit.add_argument("--working-dir", type=Path, default=Path("."), help="the folder to upload (default: .)")
    submit.add_argument("--no-wait", dest="wait", action="store_false", help="do not follow the job's log")
    text = "such as sweep jobs/digits_sweep.yaml --resume"
    submit.add_argument("job", metavar="COMMAND ...", nargs=argparse.REMAINDER, help=text)


def _add_logits(commands: Commands) -> None:
    logits = commands.add_parser("logits", help="manage a store of logits: ls, verify, rm")
    actions = logits.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, meaning in STORED.items():
        action = _command(actions, name, meaning)
        action.add_argument("where", metavar="WHERE", help="a job's YAML, or a store's folder or URI (s3://...)")
        text = "a teacher's name, or its fingerprint's first 6 or more characters"
        text += "" if name == "rm" else " (default: all)"
        action.add_argument("teachers", metavar="TEACHER", nargs="+" if name == "rm" else "*", help=text)
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _add_store(commands: Commands) -> None:
    store = commands.add_parser("store", help="what takes room on the disk: ls, prune")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, meaning in DISK.items():
        action = _command(actions, name, meaning)
        action.add_argument("where", metavar="WHERE", help="a job's YAML, or its output folder, such as runs")
        kinds = ("trainings", "data", "logits", "checked", "other")
        action.add_argument("--kind", action="append", choices=kinds, default=[], help="only these; can be repeated")
        text = "only what this job uses and no other does; can be repeated"
        action.add_argument("--job", action="append", default=[], metavar="NAME", help=text)
        action.add_argument("--older-than", metavar="30d", help="only what no job has used for so long (m, h, d, w)")
        text = "only stopped trainings, drafts and damaged files; a stopped training then starts from its beginning"
        action.add_argument("--unfinished", action="store_true", help=text)
        if name == "prune":
            action.add_argument("--yes", action="store_true", help="do not ask for confirmation")
            action.add_argument("--dry-run", action="store_true", help="only say what would be removed, and its size")


def _keys() -> str:
    rows = [(key, default, meaning) for key, default, meaning in reference()]
    width = max(len(key) for key, *_ in rows)
    lines = ["keys of the YAML (.N is an item of a list; in an override its number, its name, or *):", ""]
    lines += [f"  {key:<{width}}  {meaning}" + (f" [{default}]" if default else "") for key, default, meaning in rows]
    return "\n".join(lines)
