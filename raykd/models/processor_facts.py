"""What is known of a tokenizer or image processor without loading it, which takes seconds: remembered in the store."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.common.hashing import file_digest
from raykd.common.remembered import remembered
from raykd.models.identity import processor_digest

if TYPE_CHECKING:
    from raykd.models.opened import OpenedModel

_VERSION = 6  # increase it when load_processor, processor_digest or a task's `encoding` gives other values
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".arrow"}


@dataclass(frozen=True)
class ProcessorFacts:
    """digest: its identity, `processor_digest`. encoding: the task's `encoding` of it."""

    digest: str
    encoding: Any


def processor_facts(model: "OpenedModel", store: Path | None) -> ProcessorFacts:
    """The facts of a model's processor. It is loaded unless an earlier command has left them in the store.

    store: the folder `output/store`; None: load it.
    """

    def compute() -> dict[str, Any]:
        return {"digest": processor_digest(model.processor), "encoding": model.task.encoding(model.processor)}

    identity = _identity(model) if store else None
    return ProcessorFacts(**(remembered(store, "processor", identity, compute) if store and identity else compute()))


def _identity(model: "OpenedModel") -> list[object] | None:
    """All that `load_processor` reads, by content; None if that is not known without loading it."""
    spec = model.spec
    folders = [folder for folder in dict.fromkeys((model.folder, model.weights)) if folder]
    if spec.tokenizer_source and spec.tokenizer_source != spec.pretrained:
        folders.append(Path(spec.tokenizer_source))
    if spec.trust_remote_code or not all(folder.is_dir() for folder in folders):
        return None  # its code can be anywhere, and a hub's files are found by loading them
    files = [file_digest(f for f in folder.iterdir() if f.is_file() and _is_read(f)) for folder in folders]
    versions = [_VERSION, *map(version, ("transformers", "tokenizers", "numpy", "pillow"))]
    task = [type(model.task).__qualname__, model.task.identity(), model.task.processor, model.task.auto_model]
    return [versions, task, files, spec.config, model.saved_config]


def _is_read(file: Path) -> bool:
    return file.suffix not in _WEIGHTS
