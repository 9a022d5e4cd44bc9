"""Image classification: each picture has one of C classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.config.schema import AugmentConfig
from raykd.tasks.augment import shift_and_rotate
from raykd.tasks.classification import Classification
from raykd.tasks.common import Batch, RowError
from raykd.tasks.pictures import (
    close,
    in_eight_bits,
    in_mode,
    in_two_steps,
    normalised,
    open_picture,
    processed,
    resized,
)

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")


log = logging.getLogger(__name__)
_SAMPLE = 16  # pictures
_PATCH = 16 * 16  # pixels of a token, in most vision transformers


class ImageClassification(Classification):
    """Pictures are resized once and stored as bytes, which are scaled to the model's range on its device.

    So an encoded row takes one byte per value instead of four, and a GPU does not wait for its host, which would take
    longer for the scaling than the GPU for the model. If a processor does more than that, its own float32 values are
    stored.
    """

    auto_model = "AutoModelForImageClassification"
    processor = "image_processor"
    columns = ("image",)
    token_column = None
    model_inputs = ("pixels",)
    repeats_shapes = True
    collate_columns = ("shape",)

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "image-classification"}

    def check_rows(self, rows: Dataset, split: str, labelled: bool) -> None:
        """Also warn about 12 bits of a microscope or scanner in 16: scaled to 8 bits, only 16 grey levels are left."""
        super().check_rows(rows, split, labelled)
        role = self.columns[0]
        sample = rows.select(range(min(_SAMPLE, len(rows)))).cast_column(role, datasets.Image(decode=False))
        stored = sample[role][:] if split == "train" else []
        pictures = [open_picture(picture, split, row) for row, picture in enumerate(stored)]
        highest = [int(np.asarray(picture).max()) for picture in pictures if picture.mode.startswith("I")]
        if highest and max(highest) < 2**12:
            log.warning(
                "data.train: the first %d pictures of 16 bits have no value above %d of 65535, so they are nearly "
                "black in 8 bits. Scale the data's values to the whole range of 0..65535",
                len(highest),
                max(highest),
            )

    def check_encoded(self, splits: Mapping[str, tuple[Dataset, Dataset]], processor: Any, key: str) -> None:
        """Raise ConfigError if pictures differ in size, or if encoding one gives other values than the processor."""
        size: np.ndarray | None = None
        for name, (raw, encoded) in splits.items():
            column = encoded.select_columns("shape").with_format("arrow")[:]["shape"]
            shapes = column.combine_chunks().flatten().to_numpy().reshape(len(encoded), -1)
            size = shapes[0] if size is None else size
            if (other := (shapes != size).any(1)).any():
                row = int(other.argmax())
                raise ConfigError(f"data.{name}", f"row {row}", *_of_different_sizes(tuple(shapes[row]), tuple(size)))
            own = processed(processor, [in_mode(raw[0][self.columns[0]], processor)])[0]
            fed = self.collate(encoded[:1], processor).to(torch.device("cpu")).inputs["pixel_values"][0]
            if not close(fed.numpy(), own):
                reason = f"the encoded values of the first picture of data.{name} differ from the processor's own"
                raise ConfigError(key, type(processor).__name__, reason, "Use another image processor")

    def encoding(self, processor: Any) -> Any:
        return [2, "bytes" if in_two_steps(processor) else "values"]  # 1: 16 bits were clipped, EfficientNet's wrapped

    def augment(self, rows: dict[str, list], rng: np.random.Generator, settings: AugmentConfig) -> dict[str, list]:
        pictures = [in_eight_bits(picture) for picture in rows["image"]]
        return rows | {"image": [shift_and_rotate(p, rng, settings.shift, settings.rotate) for p in pictures]}

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        images = []
        for i, image in enumerate(rows["image"]):
            try:
                images.append(in_mode(image, processor))
            except ValueError as error:
                raise RowError(i, str(error), "Save it as RGB or grey with 8 bits, or as grey with 16") from None
        if in_two_steps(processor):
            pixels = [picture.astype(np.uint8) for picture in resized(processor, images)]
        else:
            pixels = processed(processor, images)
        for i, picture in enumerate(pixels):
            if picture.shape != pixels[0].shape:
                raise RowError(i, *_of_different_sizes(picture.shape, pixels[0].shape))
        count = len(images)
        return {
            "pixels": [p.tobytes() for p in pixels],
            "shape": [list(p.shape) for p in pixels],
            "labels": self.encoded_labels(rows, labelled),
            "length": [1] * count,
            "window": [0] * count,
            "source": list(range(count)),
        }

    def tokens_per_length(self, rows: Mapping[str, Sequence]) -> int:
        """About as many as a vision transformer makes of a picture, whose length is 1. All pictures are of one size."""
        shape = rows["shape"][0] if "shape" in rows else []
        return max(1, shape[1] * shape[2] // _PATCH) if len(shape) == 3 else 1

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        shape = (len(rows["pixels"]), *rows["shape"][0])
        joined, labels = bytearray().join(rows["pixels"]), torch.from_numpy(np.asarray(rows["labels"]))
        if len(joined) == np.prod(shape):  # one byte per value
            pixels = torch.frombuffer(joined, dtype=torch.uint8).view(shape)
            return Batch({"pixel_values": pixels}, labels, scaling=partial(normalised, processor=processor))
        return Batch({"pixel_values": torch.frombuffer(joined, dtype=torch.float32).view(shape)}, labels)


def _of_different_sizes(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[str, str]:
    """Reason and fix."""
    shown = " and ".join("x".join(map(str, shape)) for shape in (one, other))
    reason = f"the image processor gives pictures of different sizes ({shown}), which do not fit into a batch"
    return reason, "Set its size to a height and a width, or resize the data's pictures"
