"""Identities of models and processors: hashes of what they compute with, not of where they are."""

import inspect
import json
from pathlib import Path
from typing import Any

from raykd.common.hashing import file_digest, fingerprint
from raykd.config.schema import ModelConfig
from raykd.models.folders import fetch


def model_digest(spec: ModelConfig, folder: Path, saved: str, key: str) -> str:
    """Identity of what a pretrained model starts from: its weights, config and code, by content.

    saved: the folder's digest.
    """
    parts: list[object] = [saved, spec.config]
    if spec.trust_remote_code:
        parts.append(_code_digest(folder, key))
    if spec.layers:
        parts.append({"layers": spec.layers})
    if spec.bits:
        parts.append({"bits": spec.bits})
    return fingerprint(parts)


def folder_digest(folder: Path) -> str:
    """Identity of a saved model: its safetensors and its config, except for entries about how it was saved."""
    return fingerprint([file_digest(folder.glob("*.safetensors")), config_identity(folder)])


def config_identity(folder: Path) -> dict[str, Any]:
    """A folder's config, without the entries about how it was saved."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"):
        config.pop(name, None)
    return config


def _code_digest(folder: Path, key: str) -> str:
    """Identity of a model's own code: the Python files of its folder and of repositories it takes classes from."""
    folders = {"": folder}
    for file in folder.glob("*.json"):  # of the model, its tokenizer, its image processor
        values = json.loads(file.read_text())
        classes = (values.get("auto_map") or {}) if isinstance(values, dict) else {}
        for value in classes.values() if isinstance(classes, dict) else ():
            for name in value if isinstance(value, list) else [value]:  # a tokenizer has a slow and a fast class
                repository, separator, _ = str(name).partition("--")
                if separator and repository not in folders:
                    local = Path(repository)
                    folders[repository] = local if local.is_dir() else fetch(repository, None, ["*.py"], key)
    files = {name: sorted(where.rglob("*.py")) for name, where in sorted(folders.items())}
    return fingerprint(
        [[name, str(f.relative_to(folders[name])), file_digest([f])] for name, each in files.items() for f in each]
    )


def processor_digest(processor: Any) -> str:
    """Identity of a tokenizer or image processor: what it does, not where it came from."""
    if type(processor).__module__.startswith("transformers_modules."):  # transformers' copies of a model's own code
        code = file_digest(Path(inspect.getfile(type(processor))).parent.glob("*.py"))
        return fingerprint([code, _settings_digest(processor)])
    return _settings_digest(processor)


def _settings_digest(processor: Any) -> str:
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is None:
        values = processor.to_dict() if hasattr(processor, "to_dict") else processor.init_kwargs
        return fingerprint(json.loads(json.dumps({k: v for k, v in values.items() if k[0] != "_"}, default=str)))
    state = json.loads(backend.to_str())
    state.pop("truncation"), state.pop("padding")  # left over from the last call
    special = {k: str(v) for k, v in (processor.special_tokens_map or {}).items()}
    names = ("model_input_names", "truncation_side", "pad_token_type_id")
    values = {name: getattr(processor, name, None) for name in names}
    values["padding_side"] = processor.init_kwargs.get("padding_side", type(processor).padding_side)  # as it was saved
    parts = [state, special, values]
    if processor.padding_side == "left":  # as rows are padded; earlier versions padded all of them on the right
        parts.append("padded on the left")
    return fingerprint(parts)
