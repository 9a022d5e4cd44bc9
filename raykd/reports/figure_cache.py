"""Figures of an earlier report that need not be drawn again: drawing them takes longer than all else in a report.

A figure is kept if what its `plot` draws, the report's code and the libraries that draw are the same. A style of the
user's own (matplotlibrc) is not looked at.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from importlib.metadata import version
from inspect import getclosurevars
from pathlib import Path
from typing import Any

import numpy as np

from raykd.common.atomic import write_atomically
from raykd.reports.figures import DARK, LIGHT, Drawing, draw

DRAWN = ".drawn.json"  # among the images: by the digest of what is drawn, the SHA-256 of each theme's file


def image_file(name: str, theme: str) -> str:
    return f"{name}.png" if theme == LIGHT.name else f"{name}-{theme}.png"


class KeptImages:
    """The images of a report. folder: of the PNG files; it need not exist before `write`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._now = folder, dict[str, dict[str, str]]()
        try:
            self._before: Any = json.loads((folder / DRAWN).read_bytes())
        except (OSError, ValueError):  # there is no earlier report, or one that cannot be read: draw
            self._before = {}

    def images(self, name: str, drawing: Drawing | None) -> dict[str, bytes]:
        """The PNG file by theme, from the earlier report or drawn; {} without a drawing. name: as in `image_file`."""
        if drawing is None:
            return {}
        digest = digest_of(drawing)
        images = self._kept(name, digest) or draw(drawing)
        self._now[digest] = {theme: sha256(image).hexdigest() for theme, image in images.items()}
        return images

    def _kept(self, name: str, digest: str) -> dict[str, bytes]:
        """{} if an image is missing or is not the one that was drawn."""
        try:
            images = {theme: (self._folder / image_file(name, theme)).read_bytes() for theme in (LIGHT.name, DARK.name)}
            drawn = self._before[digest]
        except (OSError, KeyError, TypeError):
            return {}
        return images if drawn == {theme: sha256(image).hexdigest() for theme, image in images.items()} else {}

    def write(self) -> None:
        """Note what was drawn, for the next report. The images are in the folder by now."""
        write_atomically(self._folder / DRAWN, json.dumps(self._now, indent=1).encode())


def digest_of(drawing: Drawing) -> str:
    """Equal for drawings that give the same images. TypeError if `plot` uses anything but plain values."""
    drawn = {name: _plain(value) for name, value in sorted(getclosurevars(drawing.plot).nonlocals.items())}
    return sha256(repr((_drawn_by(), drawing.plot.__qualname__, drawing.height, drawn)).encode()).hexdigest()


@functools.cache
def _drawn_by() -> str:
    """The digest of the report's code and of the versions of the libraries that draw."""
    digest = sha256(repr([version(name) for name in ("matplotlib", "numpy")]).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """As values whose `repr` tells them apart. numpy's own shortens long arrays."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return "array", value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return [(_plain(key), _plain(one)) for key, one in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [(f.name, _plain(getattr(value, f.name))) for f in fields(value)]
    raise TypeError(f"a figure draws a {type(value).__name__}: give it plain values, so that a change of them is seen")
