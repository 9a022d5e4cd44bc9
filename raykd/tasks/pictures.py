"""Prepares pictures as transformers' pipelines do: opened, in 8 bits, and with the model's image processor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from PIL import Image

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.common.transfer import to_device

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_PROBE = (64, 48)  # width, height
_TOLERANCE = 0.01  # of the step between two neighbouring bytes


def open_picture(stored: Mapping[str, Any], split: str, row: int) -> Image.Image:
    """Decode a picture and turn it upright. Raises ConfigError, naming the picture, if it cannot be read.

    stored: of `datasets.Image(decode=False)`.
    split: its name, for the message.
    row: its position in the split, for the message.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but below PIL's limit
            return datasets.Image().decode_example(stored)
    except Exception as error:  # PIL's plugins raise errors of any class
        reason = " ".join(str(error).split()) or type(error).__name__
        if path := stored["path"]:
            reason = reason.replace(path, Path(path).name)
        reason = f"row {row}: this picture cannot be read ({reason[:100].rstrip('. ')})"
        raise ConfigError(
            f"data.{split}", path or f"row {row}", reason, "Fix or drop the rows of such pictures"
        ) from None


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits per channel, scaled if it has more; returned unchanged if it has 8 bits already.

    PIL's own conversion clips: of 16 bits, nearly all pixels become white. ValueError if the scale is not known.
    """
    if picture.mode.startswith("I;16"):
        return _from_16_bits(picture)
    if picture.mode == "I":
        values = np.asarray(picture)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"its whole numbers go from {low} to {high}, not from 0 to 65535")
        if 0 < high < 256:
            reason = f"its whole numbers of 32 bits go up to {high}: whether 255 or 65535 is white is not known"
            raise ValueError(reason)
        return _from_16_bits(picture)
    if picture.mode == "F":
        values = np.asarray(picture)
        if not (values.min() >= 0 and values.max() <= 1):  # also NaN
            raise ValueError(f"its fractions go from {values.min():g} to {values.max():g}, not from 0 to 1")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return picture


def _from_16_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # rounded; 65535 is 255


def in_mode(picture: Image.Image, processor: Any) -> Image.Image:
    """The picture in RGB, or grey if the processor is for one channel. Raises ValueError if it cannot be converted.

    As transformers.image_utils.load_image does it, transparency is dropped and an animation is its first frame.
    """
    mean = getattr(processor, "image_mean", None)
    grey = isinstance(mean, (list, tuple)) and len(mean) == 1
    return in_eight_bits(picture).convert("L" if grey else "RGB")


def processed(processor: Any, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
    """(C, H, W) float32 for each picture, from the processor itself. Raises ValueError if it has other outputs, too."""
    given = processor(list(pictures))
    if set(given) != {"pixel_values"}:
        raise ValueError(f"it gives {', '.join(sorted(given))} and not pixel_values alone")
    values = [np.asarray(picture, np.float32) for picture in given["pixel_values"]]
    if values[0].ndim != 3:
        raise ValueError(f"it gives pixel values of the shape {values[0].shape}, not (channels, height, width)")
    return values


def resized(processor: Any, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
    """(C, H, W) whole numbers 0 to 255 for each picture: the processor without scaling and normalisation."""
    given = processor(list(pictures), do_rescale=False, do_normalize=False)
    return [np.asarray(picture) for picture in given["pixel_values"]]


def normalised(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """Scale and normalise (..., C, H, W) uint8 as the processor does, to float32 on the same device."""
    values = pixels.float()
    if processor.do_rescale:
        values *= processor.rescale_factor
    if processor.do_normalize:
        mean, deviation = (
            to_device(torch.from_numpy(np.asarray(given, np.float32).reshape(-1, 1, 1)), values.device)
            for given in (processor.image_mean, processor.image_std)
        )
        values = (values - mean).div_(deviation)  # not all in place: three means make three channels of a grey picture
    return values


def close(fed: np.ndarray, own: np.ndarray) -> bool:
    """Whether two processed pictures differ by less than one step of a byte."""
    if fed.shape != own.shape:
        return False
    step = max(float(np.ptp(own)), float(np.abs(own).max())) / 255
    return bool(np.abs(fed - own).max() <= _TOLERANCE * step)


@lru_cache(maxsize=32)
def in_two_steps(processor: Any) -> bool:
    """Whether `resized`, stored as bytes, and then `normalised` give the same as the processor itself.

    If so, an encoded row takes one byte per value. The check uses one picture. It fails for few processors, such as
    EfficientNet's, which normalises twice; their own float values are stored instead.

    Raises what `processed` raises, and any error of a processor that cannot be used.
    """
    noise = np.random.default_rng(0).integers(0, 256, (*_PROBE[::-1], 3), dtype=np.uint8)
    picture = in_mode(Image.fromarray(noise), processor)
    own = processed(processor, [picture])[0]
    try:
        kept = resized(processor, [picture])[0]
        fed = normalised(torch.from_numpy(kept.astype(np.uint8)), processor).numpy()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # it cannot resize without normalising
    return close(fed, own)
