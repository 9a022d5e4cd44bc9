"""A teacher's head in its folder of the logit store, next to the hidden states that it turns into logits."""

import hashlib
import json
from functools import lru_cache
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from raykd.common.errors import StoreError
from raykd.distillation.linear_head import LinearHead
from raykd.logits.key import TeacherKey
from raykd.logits.local import LocalFiles
from raykd.logits.logit_store import LogitStore
from raykd.logits.object_store import ObjectFiles

HEAD = "head.safetensors"
_HELD: WeakValueDictionary[tuple[str, str], LinearHead] = WeakValueDictionary()


def write_head(store: LogitStore, key: TeacherKey, head: LinearHead) -> None:
    """Write the head unless it is there. Weights that bf16 represents exactly take half of the space."""
    files = store.files(key.fingerprint)
    if HEAD in (files.names(True) or ()):
        return
    tensors = {"weight": _narrow(head.weight)} | ({} if head.bias is None else {"bias": _narrow(head.bias)})
    settings = json.dumps({"scale": head.scale, "softcap": head.softcap}, sort_keys=True)
    files.write(HEAD, save(tensors, {"settings": settings, "sha256": _checksum(tensors, settings)}))


def read_head(store: LogitStore, key: TeacherKey) -> LinearHead:
    """The head in fp32. Raises StoreError if it is missing or damaged."""
    return _read(store, key)[0]


def _read(store: LogitStore, key: TeacherKey) -> tuple[LinearHead, str]:
    """The head, and its checksum."""
    files = store.files(key.fingerprint)
    try:
        tensors, about = _parsed(files.read(HEAD))
    except FileNotFoundError:
        raise StoreError(f"{key}: {files.where} lacks {HEAD}, without which hidden states are no logits") from None
    except ValueError as error:
        raise StoreError(f"{key}: {files.where}/{HEAD} cannot be read ({error})") from error
    bias = tensors.get("bias")
    settings = json.loads(about["settings"])
    return LinearHead(tensors["weight"].float(), None if bias is None else bias.float(), **settings), about["sha256"]


def check_head(files: LocalFiles | ObjectFiles) -> None:
    """Raise ValueError if the head in a teacher's folder is damaged."""
    _parsed(files.read(HEAD))


def _parsed(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata. Raises ValueError if they are damaged."""
    try:
        size = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + size])["__metadata__"]
        tensors = load(data)
        whole = _checksum(tensors, about["settings"]) == about["sha256"]
    except (KeyError, SafetensorError) as error:
        raise ValueError(str(error)) from error
    if not whole:
        raise ValueError("its weights do not match its checksum")
    return tensors, about


@lru_cache(maxsize=8)
def head_on(store: LogitStore, key: TeacherKey, device: str) -> LinearHead:
    """`read_head`, once for all trainings and scores of this process. device: torch's name of it.

    Teachers with equal heads, as those that are adapters on one model, get the same object: it is held once, and the
    mean of their logits costs one matmul.
    """
    head, checksum = _read(store, key)
    return _HELD.setdefault((checksum, device), head.to(torch.device(device)))


def _narrow(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.detach().cpu().contiguous()
    narrow = weight.bfloat16()
    return narrow if torch.equal(narrow.float(), weight.float()) else weight.float()


def _checksum(tensors: dict[str, torch.Tensor], settings: str) -> str:
    state = hashlib.sha256(settings.encode())
    for name in sorted(tensors):
        state.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        state.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
