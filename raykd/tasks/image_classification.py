"""Image classification: a picture to one of C classes."""

from typing import Any

import numpy as np
import torch

from raykd.config.schema import AugmentConfig
from raykd.tasks.augment import shift_and_rotate
from raykd.tasks.classification import Classification
from raykd.tasks.common import Batch


class ImageClassification(Classification):
    """Pictures are resized once and kept as bytes; scaling to the model's range is left to `collate`,
    so an encoded row takes one byte a value and not four."""

    auto_model = "AutoModelForImageClassification"
    processor = "image_processor"
    columns = ("image",)
    model_inputs = ("pixels",)
    collate_columns = ("shape",)

    def preprocessing(self) -> dict[str, Any]:
        return {"task": "image-classification"}

    def augment(self, rows: dict[str, list], rng: np.random.Generator, settings: AugmentConfig) -> dict[str, list]:
        return rows | {"image": [shift_and_rotate(p, rng, settings.shift, settings.rotate) for p in rows["image"]]}

    def encode(self, rows: dict[str, list], processor: Any, labelled: bool) -> dict[str, list]:
        mode = "L" if len(processor.image_mean) == 1 else "RGB"
        images = [image.convert(mode) for image in rows["image"]]
        pixels = processor(images, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        count = len(images)
        return {
            "pixels": [p.astype(np.uint8).tobytes() for p in pixels],
            "shape": [list(p.shape) for p in pixels],
            "labels": self.encoded_labels(rows, labelled),
            "length": [1] * count,
            "window": [0] * count,
            "source": list(range(count)),
        }

    def collate(self, rows: dict[str, list], processor: Any) -> Batch:
        shape = (len(rows["pixels"]), *rows["shape"][0])
        pixels = np.frombuffer(b"".join(rows["pixels"]), np.uint8).reshape(shape).astype(np.float32)
        mean = np.asarray(processor.image_mean, np.float32)[:, None, None]
        deviation = np.asarray(processor.image_std, np.float32)[:, None, None]
        if processor.do_rescale:
            pixels *= np.float32(processor.rescale_factor)
        if processor.do_normalize:
            pixels = (pixels - mean) / deviation
        return Batch({"pixel_values": torch.from_numpy(pixels)}, torch.tensor(rows["labels"]))
