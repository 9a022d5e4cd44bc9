"""The folder that a pretrained model's files are in: a local one, or a snapshot from the hub. Safetensors only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raykd.common.errors import ConfigError
from raykd.config.schema import ModelConfig
from raykd.models.problems import hub_unreachable

ABOUT = "raykd.json"  # in a student's folder: what transformers' files do not say, but predictions need
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]  # never a pickle
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def model_folder(spec: ModelConfig, key: str) -> Path | None:
    """The local folder of a pretrained model, fetched from the hub if needed. None for a model from scratch.

    Raises ConfigError if it does not hold a whole model in safetensors, HubError if the hub cannot be reached.
    """
    if spec.pretrained is None:
        return None
    folder = Path(spec.pretrained)
    if not folder.is_dir():
        if folder.is_absolute() or spec.pretrained.startswith("."):
            raise ConfigError(key, spec.pretrained, "there is no such folder", "Give a local folder or a hub id")
        patterns = [*_FILES, "*.py"] if spec.trust_remote_code else _FILES
        folder = fetch(spec.pretrained, spec.revision, patterns, key)
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        raise ConfigError(
            key,
            spec.pretrained,
            f"it holds an adapter (adapter_config.json) for {base or 'another model'}, not a whole model",
            "Merge it into that model (peft's merge_and_unload) and save the result with save_pretrained",
        )
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


def write_about(
    folder: Path, task: Mapping[str, Any], calibration: Mapping[str, float], columns: Mapping[str, str]
) -> None:
    """Note what predictions need. It is not part of the model's identity.

    task: the settings of its task.
    calibration: what was chosen on its validation split.
    columns: the names that its data had for the task's columns, as in `data.columns`.
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
