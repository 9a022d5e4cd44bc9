"""`raykd submit`: run a command as a job of a Ray cluster and follow it to its end.

It does what `ray job submit` does, but returns the command's own exit code. Ray's returns 0 for a job that was stopped,
and 1 for every failure.
"""

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raykd.common.errors import ConfigError, UserError
from raykd.common.redaction import scrub

STOPPED = 143  # the exit code after SIGTERM
_HERE = "http://127.0.0.1:8265"
_HEAD_SECONDS = 60.0  # longest wait for a head to start, or to answer again
_NOT_INSTALLED = (
    "The head's Python has no raykd. Install it and its dependencies on every node (cluster/'s files do), or upload a "
    "folder that contains raykd/: --working-dir PATH"
)
_SECRETS = (".env", ".env.*", ".netrc", "id_rsa*", "id_ed25519*", ".ssh/", ".aws/")
_STOP_SECONDS = "60"  # Ray's default of 3 s is too short for a checkpoint of a large model


def submit(command: Sequence[str], address: str | None, working_dir: Path, output: Path, wait: bool) -> int:
    """Submit `python -m raykd COMMAND`, show its log, and return its exit code (143 if it was stopped).

    command: the arguments of raykd.
    address: of the dashboard, http://HOST:8265; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's.
    working_dir: the folder to upload.
    output: the YAML's value; if this is a folder in working_dir, it is not uploaded.
    wait: whether to follow the job; otherwise returns 0 at once.

    Raises ConfigError if no cluster answers.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or _HERE
    for name in ("ray", "ray.dashboard.modules.job.sdk"):  # messages about the upload, skipping .venv, and a WebSocket
        logging.getLogger(name).setLevel(logging.ERROR)
    runtime_env = {
        "working_dir": str(working_dir),
        "excludes": _excluded(working_dir, output),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_SECONDS},
    }
    try:
        client = _client(named)
        job = _submitted(client, shlex.join(["python", "-m", "raykd", *command]), runtime_env)
    except (KeyboardInterrupt, SystemExit):
        look = f"ray job list --address {shlex.quote(scrub(named))}"
        print(f"\nstopped before the head answered; to see whether the job was submitted: {look}", file=sys.stderr)
        raise
    at = f"--address {shlex.quote(scrub(named))} {job}"
    follow = f"ray job logs {at} --follow; ray job stop {at}"
    print(f"submitted as {job} ({follow})", flush=True)
    if not wait:
        return 0
    try:
        info = asyncio.run(_follow(client, job))
    except (KeyboardInterrupt, SystemExit) as stop:  # SystemExit: SIGTERM
        print(f"\nthe job keeps running: {follow}", file=sys.stderr)
        if isinstance(stop, SystemExit):
            raise
        return 130
    status = str(info.status)
    if status == "STOPPED":
        resumed = "with --resume" if "sweep" in command else "again"
        print(f"{job} was stopped; start the command {resumed} to continue from its checkpoints", file=sys.stderr)
        return STOPPED
    if status == "FAILED":
        if info.driver_exit_code is None:  # the command did not start
            raise UserError(f"{job} failed: {' '.join((info.message or '').split())[:500]}")
        print(f"{job} failed with exit code {info.driver_exit_code}", file=sys.stderr)
        if "No module named raykd" in client.get_job_logs(job)[-2000:]:
            print(_NOT_INSTALLED, file=sys.stderr)
        return info.driver_exit_code if info.driver_exit_code > 0 else 1  # negative: killed by a signal
    return 0


def _client(named: str) -> Any:
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # Ray would prefer them to the address it is given
        os.environ.pop(name, None)
    where = "the head's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    try:
        try:
            return JobSubmissionClient(named)
        except AuthenticationError:
            # Where Ray finds a token, its head requires it, but its clients send it only with RAY_AUTH_MODE=token.
            if "RAY_AUTH_MODE" in os.environ or not (token := _token()):
                raise
            return JobSubmissionClient(named, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError as error:
        refused = "does not accept this token" if "Forbidden" in str(error) else "requires a token, and none was sent"
        raise ConfigError(
            "--address", named, f"this head {refused}", f"Set RAY_AUTH_MODE=token, with {where}"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = f"Give the dashboard as http://HOST:8265; a secured one needs RAY_AUTH_MODE=token and {where}"
        raise ConfigError("--address", named, reason, hint) from None


def _token() -> str:
    """Ray's token of this user; "" if there is none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")


def _submitted(client: Any, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Submit the job and return its id. A head that has just started accepts requests some seconds before jobs."""
    limit = time.monotonic() + _HEAD_SECONDS
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
        except (RuntimeError, ValueError) as error:
            if "No available agent" in str(error) and time.monotonic() < limit:
                time.sleep(1)
                continue
            reason = " ".join(str(error).split())[:300]
            hint = "Give a folder of at most 100 MiB; .gitignore and .rayignore exclude files from the upload"
            where = runtime_env["working_dir"]
            raise ConfigError("--working-dir", where, f"it could not be submitted ({reason})", hint) from None


def _excluded(working_dir: Path, output: Path) -> list[str]:
    """What is not uploaded: the folders of runs, and files that usually hold secrets.

    Ray also excludes virtual environments and files in .gitignore.
    """
    here, left = working_dir.resolve(), ["/runs/", *_SECRETS]
    if (here / output).is_relative_to(here):
        left.append(f"/{(here / output).relative_to(here)}/")
    return left


async def _follow(client: Any, job: str) -> Any:
    """Print the job's log until the job ends. A broken connection is restored and the log continues where it was.

    Raises UserError if the head does not answer again.
    """
    import aiohttp

    shown, broken = 0, None  # characters printed; since when the connection is broken
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(job):
                new = text[max(0, shown - seen) :]
                seen += len(text)
                shown = max(shown, seen)
                print(new, end="", flush=True)
            info, broken = client.get_job_info(job), None
            if info.status.is_terminal():
                print(client.get_job_logs(job)[shown:], end="", flush=True)  # a stopped job's last lines
                return info
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            broken = broken or time.monotonic()
            if time.monotonic() > broken + _HEAD_SECONDS:
                raise UserError(f"{job}: the head does not answer ({error}); the job may still run") from None
            print(f"the log's connection broke ({type(error).__name__}); reconnecting", file=sys.stderr)
        await asyncio.sleep(1)
