"""TensorBoard and Weights & Biases beside MLflow: they get the same parameters and metrics (`tracking.also`).

To add another one, write a class with `log` and `end`, and a line in `LIBRARIES` and in `openers`.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from raykd.common.errors import ConfigError
from raykd.config.schema import Config
from raykd.tracking.mlflow_store import safe_name

LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # what `tracking.also` names, and what writes it


class Mirror(Protocol):
    """One run in another tracker. An error in it is logged once, and the run continues without it."""

    def log(self, points: Sequence[Any]) -> None:
        """Write points that MLflow has accepted. points: of MLflow's class Metric (key, value, step, timestamp)."""

    def end(self, status: str) -> None:
        """End the run. status: FINISHED, FAILED or KILLED."""


Opener = Callable[[str, str, Mapping[str, Any], str], Mirror]  # name, MLflow's id, parameters, id of the command's run


class TensorBoard:
    """Event files in a folder for each run, with the parameters in the tab HParams."""

    def __init__(self, folder: Path, name: str, run_id: str, params: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        shown = safe_name(name).replace("/", "_").replace(" ", "_")
        # Of a run that is resumed, TensorBoard reads the files by name. Those of one second would be the same file.
        self._writer = SummaryWriter(str(folder / f"{shown}-{run_id[:8]}"), filename_suffix=f".{time.time_ns()}")
        _, start, self._end = hparams(dict(params), {})
        self._writer.file_writer.add_summary(start)

    def log(self, points: Sequence[Any]) -> None:
        for point in points:
            self._writer.add_scalar(point.key, point.value, point.step, point.timestamp / 1000)
        self._writer.flush()

    def end(self, status: str) -> None:
        if status == "FINISHED":
            self._writer.file_writer.add_summary(self._end)
        self._writer.close()


class WandB:
    """A run in Weights & Biases under MLflow's id, so that a resumed run continues. The command's runs are a group."""

    def __init__(
        self, folder: Path, project: str, name: str, run_id: str, params: Mapping[str, Any], group: str
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id,
            group=group,
            dir=folder,
            config=dict(params),
            resume="allow",
            reinit="create_new",  # several at a time in this process
            # Its own record of the process has the command line as it was typed, which can hold a key.
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=True, disable_git=True, save_code=False),
        )
        # Its own steps never decrease within a run, but raykd logs an evaluation before the losses that led to it.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, points: Sequence[Any]) -> None:
        steps: dict[int, dict[str, float]] = {}
        for point in points:
            steps.setdefault(point.step, {})[point.key] = point.value
        for step, values in steps.items():
            self._run.log({"step": step, **values})

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


def openers(config: Config) -> list[Opener]:
    """A function for each other tracker of the config, which opens a run in it."""
    project = config.experiment
    known: dict[str, Opener] = {
        "tensorboard": lambda name, run_id, params, group: TensorBoard(board(config), name, run_id, params),
        "wandb": lambda name, run_id, params, group: WandB(config.folder, project, name, run_id, params, group),
    }
    return [known[name] for name in dict.fromkeys(config.tracking.also)]


def board(config: Config) -> Path:
    """The folder of TensorBoard's files."""
    return config.folder / "tensorboard"


def check_also(config: Config) -> None:
    """Raise ConfigError if another tracker cannot be used: its library is missing, or it needs a login."""
    for name in config.tracking.also:
        library = LIBRARIES[name]
        found = find_spec(library)
        if found is None or found.origin is None:  # a folder of this name is no library
            hint = f"Install it: pip install {library}, or remove {name}"
            raise ConfigError("tracking.also", name, f"the library {library} is not installed", hint)
        if name == "wandb" and os.environ.get("WANDB_MODE", "online") == "online":
            import wandb

            if not wandb.login(prompt=False):
                hint = "Log in: wandb login, or set WANDB_API_KEY; WANDB_MODE=offline writes files to upload later"
                raise ConfigError("tracking.also", name, "you are not logged in to Weights & Biases", hint)


def where(config: Config) -> list[str]:
    """Lines that say where to look."""
    lines = []
    if "tensorboard" in config.tracking.also:
        lines.append(f"TensorBoard: tensorboard --logdir {board(config)}")
    if "wandb" in config.tracking.also:
        offline = os.environ.get("WANDB_MODE") == "offline"
        upload = f"; to upload it: wandb sync {config.folder / 'wandb'}/offline-run-*" if offline else ""
        lines.append(f"Weights & Biases: project {config.experiment}{upload}")
    return lines
