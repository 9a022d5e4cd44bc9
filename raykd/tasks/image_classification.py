"""Image classification: a picture to one of C classes."""

from typing import Any

import numpy as np
import torch

from raykd.config.schema import AugmentConfig
from raykd.tasks.augment import shift_and_rotate
from raykd.tasks.classification import Classification
from raykd.tasks.common import Batch, RowError
from raykd.tasks.pictures import in_eight_bits, in_mode, in_two_steps, normalised, processed, resized


class ImageClassification(Classification):
    """Pictures are resized once and kept as bytes; scaling to the model's range is left to `collate`,
    so an encoded row takes one byte a value and not four. Where a processor does anything else, its own
    values are kept, as float32."""

    auto_model = "AutoModelForImageClassification"
    processor = "image_processor"
    columns = ("image",)
    model_inputs = ("pixels",)
    collate_columns = ("shape",)

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "image-classification"}

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
                raise RowError(i, *of_different_sizes(picture.shape, pixels[0].shape))
        count = len(images)
        return {
            "pixels": [p.tobytes() for p in pixels],
            "shape": [list(p.shape) for p in pixels],
            "labels": self.encoded_labels(rows, labelled),
            "length": [1] * count,
            "window": [0] * count,
            "source": list(range(count)),
        }

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        shape = (len(rows["pixels"]), *rows["shape"][0])
        joined = b"".join(rows["pixels"])
        if len(joined) == np.prod(shape):  # a byte a value
            pixels = normalised(np.frombuffer(joined, np.uint8).reshape(shape).astype(np.float32), processor)
        else:
            pixels = np.frombuffer(joined, np.float32).reshape(shape).copy()
        return Batch({"pixel_values": torch.from_numpy(pixels)}, torch.tensor(rows["labels"]))


def of_different_sizes(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[str, str]:
    """Reason and fix."""
    shown = " and ".join("x".join(map(str, shape)) for shape in (one, other))
    reason = f"the image processor gives pictures of different sizes ({shown}), which do not fit into a batch"
    return reason, "Set its size to a height and a width, or resize the data's pictures"
