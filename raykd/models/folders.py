"""The folder that a pretrained model's files are in: a local one, or a snapshot from the hub. Safetensors only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raykd.common.errors import ConfigError, HubError
from raykd.common.output_files import CONFIG, RESULTS, STORE, TRAININGS
from raykd.config.schema import ModelConfig
from raykd.models.adapters import SETTINGS, is_adapter, settings_of
from raykd.models.problems import hub_unreachable

ABOUT = "raykd.json"  # in a student's folder: what transformers' files do not say, but predictions need
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]  # never a pickle
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def model_folder(spec: ModelConfig, key: str) -> Path | None:
    """The local folder of a pretrained model, fetched from the hub if needed. None for a model from scratch.

    Raises ConfigError if it holds neither a whole model in safetensors nor an adapter, HubError if the hub cannot be
    reached.
    """
    if spec.pretrained is None:
        return None
    folder = Path(spec.pretrained)
    if not folder.is_dir():
        if folder.is_absolute() or spec.pretrained.startswith("."):
            raise ConfigError(key, spec.pretrained, "there is no such folder", "Give a local folder or a hub id")
        patterns = [*_FILES, "*.py"] if spec.trust_remote_code else _FILES
        folder = fetch(spec.pretrained, spec.revision, patterns, key)
    if is_adapter(folder):
        settings_of(folder, key)
        return folder
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for pattern in _PICKLED for p in folder.glob(pattern)]
        if pickled:
            raise ConfigError(
                key,
                spec.pretrained,
                f"its weights are pickled ({pickled[0]}), which can run code",
                "Save it again with save_pretrained, which writes safetensors",
            )
        raise ConfigError(key, spec.pretrained, "it holds no *.safetensors", "Give a folder that save_pretrained wrote")
    if not (folder / "config.json").is_file():
        hint = "Give a folder that the whole model's save_pretrained wrote"
        raise ConfigError(key, spec.pretrained, "it holds no config.json", hint)
    return folder


def base_of(adapter: Path, spec: ModelConfig, key: str) -> tuple[ModelConfig, Path]:
    """The model that an adapter's folder names, with the user's other values, and its folder.

    Raises ConfigError if that is no whole model, HubError if the hub cannot be reached.
    """
    settings = settings_of(adapter, key)
    name = settings["base_model_name_or_path"]
    beside = adapter / name  # peft allows a path that is relative to where it was saved from, or to the adapter
    if not Path(name).is_absolute() and not Path(name).is_dir() and beside.is_dir():
        name = str(beside)
    base = spec.model_copy(update={"pretrained": name, "revision": settings.get("revision")})
    try:
        folder = model_folder(base, key)
    except HubError:
        raise
    except ConfigError as error:
        reason = f"it is an adapter of {name}, and {error.reason}"
        raise ConfigError(key, spec.pretrained, reason, f"Correct base_model_name_or_path in its {SETTINGS}") from None
    if folder is None or is_adapter(folder):
        raise ConfigError(key, spec.pretrained, f"its model, {name}, is an adapter itself", "Merge that one first")
    return base, folder


def write_about(
    folder: Path, task: Mapping[str, Any], calibration: Mapping[str, float], columns: Mapping[str, str | list[str]]
) -> None:
    """Note what predictions need. It is not part of the model's identity.

    task: the settings of its task.
    calibration: what was chosen on its validation split.
    columns: the names that its data had for the columns that it was trained on, as in `data.columns`.
    """
    about = {"task": dict(task), "calibration": dict(calibration), "columns": dict(columns)}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """What `write_about` wrote; empty for a model that was not trained here."""
    path = folder / ABOUT
    return json.loads(path.read_text()) if path.is_file() else {}


def fetch(name: str, revision: str | None, patterns: list[str], key: str) -> Path:
    """A hub repository's files that match the patterns, as a local folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise hub_unreachable(key, name) from None
    except (HFValidationError, HfHubHTTPError) as error:
        raise ConfigError(
            key,
            name,
            f"the hub does not give it ({type(error).__name__})",
            "Check the id and its access rights, or give a local folder",
        ) from None
    except OSError:
        raise hub_unreachable(key, name) from None


def model_of(model: str) -> str:
    """The folder of a run's best student, if `model` is the run's folder; otherwise `model`. Raises ConfigError."""
    results = Path(model, RESULTS)
    if not results.is_file():
        if Path(model, CONFIG).is_file() and not Path(model, "config.json").is_file():
            hint = "Run its command to the end; the same command resumes it"
            raise ConfigError("model", model, "this run has no results yet", hint)
        return model
    student = json.loads(results.read_text()).get("student")
    if student is None:
        raise ConfigError("model", model, "this run has no student", "Give the folder of a model")
    return str(folder_of_student(student, results.parent))


def folder_of_student(student: Mapping[str, Any], run: Path) -> Path:
    """The model's folder of the student in a run's `results.json`: in the store beside the run if it is there.

    The folders that hold a run and its store can be moved and copied; `results.json` has the model's first place.
    """
    folder = Path(student["model"])
    here = run.resolve().parent / STORE / TRAININGS
    for at, name in enumerate(folder.parts):
        if name == TRAININGS and (moved := here.joinpath(*folder.parts[at + 1 :])).is_dir():
            return moved
    return folder
