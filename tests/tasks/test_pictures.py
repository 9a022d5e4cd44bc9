"""Pictures as people have them, and image processors as models bring them: models are fed what they should be."""

import io
import json
import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features
from datasets import Image as Picture
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.config.schema import ModelConfig, TaskConfig
from raykd.data import encoding
from raykd.data.encoding import encode
from raykd.data.split import Split
from raykd.models.opened import OpenedModel
from raykd.models.processors import load_processor
from raykd.plan.prepare import prepare
from raykd.tasks import Task, make_task
from raykd.tasks.common import RowError
from raykd.tasks.pictures import in_two_steps, processed

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def task() -> Task:
    return make_task(TaskConfig(type="image-classification", labels=["a", "b"]), ["a", "b"])


def plain(channels: int = 3, **size: int) -> Any:
    """A processor that changes nothing but the size."""
    return transformers.ViTImageProcessorPil(
        size=size or {"height": 6, "width": 9}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )


def split_of(pictures: list[Any], name: str = "train", mode: str | None = None) -> Split:
    features = Features({"image": Picture(mode=mode), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(len(pictures))]}, features)
    return Split(
        name, rows, np.arange(16 * len(pictures), dtype=np.uint8).reshape(-1, 16), name, labelled=name != "transfer"
    )


def fed(picture: Image.Image | Path | dict, folder: Path, channels: int = 3) -> np.ndarray:
    """(H, W, C) or (H, W) bytes, as `encode` keeps a picture that need not be resized."""
    given = str(picture) if isinstance(picture, Path) else picture
    row = encode(split_of([given]), task(), plain(channels), folder / "store", None).open()[0]
    return np.frombuffer(row["pixels"], np.uint8).reshape(row["shape"]).transpose(1, 2, 0).squeeze()


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def with_transparency(folder: Path) -> Path:
    alpha = Image.fromarray(np.full((6, 9), 90, np.uint8))
    picture = Image.fromarray(COLOURS).convert("RGBA")
    picture.putalpha(alpha)
    return saved(picture, folder / "x.png")


def turned(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return saved(Image.fromarray(COLOURS.transpose(1, 0, 2).copy()), folder / "x.png", exif=exif)


def animated(folder: Path) -> Path:
    others = [Image.fromarray(255 - COLOURS)]
    return saved(Image.fromarray(COLOURS), folder / "x.gif", save_all=True, append_images=others)


FILES: dict[str, Callable[[Path], Path]] = {
    "rgb": lambda folder: saved(Image.fromarray(COLOURS), folder / "x.png"),
    "transparency": with_transparency,
    "grey with transparency": lambda folder: saved(Image.fromarray(COLOURS).convert("LA"), folder / "x.png"),
    "turned": turned,
    "cmyk": lambda folder: saved(Image.fromarray(COLOURS).convert("CMYK"), folder / "x.jpg"),
    "palette": lambda folder: saved(Image.fromarray(COLOURS).convert("P"), folder / "x.png"),
    "palette with transparency": lambda folder: saved(
        Image.fromarray(COLOURS).convert("P"), folder / "x.png", transparency=3
    ),
    "animated": animated,
    "grey": lambda folder: saved(Image.fromarray(COLOURS).convert("L"), folder / "x.png"),
    "black and white": lambda folder: saved(Image.fromarray(COLOURS).convert("1"), folder / "x.tiff"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_are_read_as_transformers_pipelines_read_them(tmp_path, kind):
    path = FILES[kind](tmp_path)
    expected = np.asarray(load_image(str(path)))
    assert expected.shape == (6, 9, 3)
    np.testing.assert_array_equal(fed(path, tmp_path), expected)
    if kind == "turned":
        np.testing.assert_array_equal(expected, np.rot90(COLOURS.transpose(1, 0, 2), -1))


GREYS = np.linspace(0, 1, 54).reshape(6, 9)
SIXTEEN = np.rint(GREYS * 65535).astype(np.uint16)


def big_endian(folder: Path) -> Path:
    return saved(Image.frombytes("I;16B", (9, 6), SIXTEEN.astype(">u2").tobytes()), folder / "x.tiff")


DEEP: dict[str, Callable[[Path], Path]] = {
    "16 bits, png": lambda folder: saved(Image.fromarray(SIXTEEN), folder / "x.png"),
    "16 bits, tiff": lambda folder: saved(Image.fromarray(SIXTEEN), folder / "x.tiff"),
    "16 bits, big-endian": big_endian,
    "16 bits in 32": lambda folder: saved(Image.fromarray(SIXTEEN.astype(np.int32)), folder / "x.tiff"),
    "fractions": lambda folder: saved(Image.fromarray(GREYS.astype(np.float32)), folder / "x.tiff"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_are_scaled(tmp_path, kind, channels):
    expected = np.rint(GREYS * 255).astype(np.uint8)
    found = fed(DEEP[kind](tmp_path), tmp_path, channels)
    np.testing.assert_array_equal(found, expected if channels == 1 else np.stack([expected] * 3, -1))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (GREYS.astype(np.float32) * 255, "from 0 to 255, not from 0 to 1"),
        (GREYS.astype(np.float32) - 0.5, "from -0.5 to 0.5, not"),
        (np.where(GREYS > 0.5, np.nan, GREYS).astype(np.float32), "nan"),
        (SIXTEEN.astype(np.int32) * 2, "from 0 to 131070, not from 0 to 65535"),
        (SIXTEEN.astype(np.int32) - 9, "from -9 to"),
        (np.rint(GREYS * 255).astype(np.int32), "go up to 255: whether 255 or 65535 is white"),
    ],
)
def test_values_of_an_unknown_scale_are_refused_by_row(tmp_path, values, reason):
    good = Image.fromarray(COLOURS)
    split = split_of([good, Image.fromarray(values)], "test")
    with pytest.raises(ConfigError) as refused:
        encode(split, task(), plain(), tmp_path, None)
    assert (refused.value.key, refused.value.value) == ("data.test", "row 1")
    assert reason in refused.value.reason


def test_augmented_pictures_are_scaled_too(tmp_path):
    """They come from another place: opened by datasets, moved, then encoded."""
    from raykd.config.schema import AugmentConfig

    grey = {"image": [Image.fromarray(np.full((6, 9), 128 * 257, np.uint16))]}
    moved = task().augment(grey, np.random.default_rng(0), AugmentConfig(shift=0.1, rotate=5))
    rows = task().encode(moved, plain(), False)
    assert set(rows["pixels"][0]) == {128}


def torn(folder: Path) -> Path:
    whole = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (folder / "torn.jpg").write_bytes(whole.getvalue()[:900])
    return folder / "torn.jpg"


def no_picture(folder: Path) -> Path:
    (folder / "page.png").write_bytes(b"<html>404 Not Found</html>")
    return folder / "page.png"


@pytest.mark.parametrize("broken", [torn, no_picture])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, broken):
    path = broken(tmp_path)
    good = saved(Image.fromarray(COLOURS), tmp_path / "good.png")
    for pictures, value in (
        ([str(good), str(path)], str(path)),
        ([{"bytes": p.read_bytes(), "path": None} for p in (good, path)], "row 1"),
    ):
        with pytest.raises(ConfigError) as refused:
            encode(split_of(pictures), task(), plain(), tmp_path / "store", None)
        assert (refused.value.key, refused.value.value) == ("data.train", value)
        assert refused.value.reason.startswith("row 1: ")


def test_it_is_named_from_another_process_too(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_PARALLEL_FROM_ROWS", 2)
    good = saved(Image.fromarray(COLOURS), tmp_path / "good.png")
    with pytest.raises(ConfigError, match=r"torn\.jpg: row 2: "):
        encode(split_of([str(good), str(good), str(torn(tmp_path))]), task(), plain(), tmp_path / "store", 2)


def test_its_processes_end_whatever_this_one_does_on_sigterm(tmp_path, monkeypatch):
    """An error in one of them ends the pool by SIGTERM, which must not reach a handler in Python."""

    def said(*given: Any, **named: Any) -> None:
        raise ConfigError("SIGTERM", signal.getsignal(signal.SIGTERM).name, "it is this", "")

    monkeypatch.setattr(encoding, "_PARALLEL_FROM_ROWS", 2)
    monkeypatch.setattr(encoding, "_encode_batch", said)
    good = [str(saved(Image.fromarray(COLOURS), tmp_path / "good.png"))] * 2
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(ConfigError, match="SIGTERM = SIG_DFL"):
            encode(split_of(good), task(), plain(), tmp_path / "store", 2)
        assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_datas_own_mode_is_kept(tmp_path):
    """datasets' Image(mode="L") means grey, but not 16 bits clipped to 8."""
    for picture in (Image.fromarray(COLOURS), Image.fromarray(SIXTEEN)):
        row = encode(split_of([picture], f"train {picture.mode}", "L"), task(), plain(), tmp_path, None).open()[0]
        expected = np.rint(GREYS * 255) if picture.mode != "RGB" else np.asarray(picture.convert("L"))
        np.testing.assert_array_equal(np.frombuffer(row["pixels"], np.uint8).reshape(3, 6, 9)[0], expected)


# Image processors ---------------------------------------------------------------------------------


def kinds() -> dict[str, Any]:
    """Every image processor that a model for image classification has and that can be made here, by kind of model."""
    found = {}
    for kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        names = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or []
        listed = list(names.values()) if isinstance(names, dict) else [n for n in names if n]
        classes = [getattr(transformers, n.removesuffix("Pil") + "Pil", None) for n in listed]
        if made := next((c for c in classes if c is not None), None):
            found[made.__name__] = made
    return found


# What these give does not fit into a batch of pixel_values alone.
REFUSED = {"ImageGPTImageProcessorPil", "Siglip2ImageProcessorPil", "Gemma3ImageProcessorPil"}
OF_MANY_SIZES = {"TextNetImageProcessorPil"}


def test_models_get_what_their_own_processor_returns(tmp_path):
    pictures = [Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)) for size in ((60, 80, 3), (100, 52, 3))]
    own_way, refused = set(), set()
    found = kinds()
    assert len(found) > 15
    for name, kind in found.items():
        folder = tmp_path / name
        kind().save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
        try:
            processor = load_processor(
                OpenedModel(ModelConfig(pretrained=str(folder)), "student.model", task(), folder)
            )
        except ConfigError as error:
            refused.add((name, error.key))
            continue
        if not in_two_steps(processor):
            own_way.add(name)
        if name in OF_MANY_SIZES:
            with pytest.raises(RowError, match="different sizes"):
                task().encode({"image": pictures, "label": [0, 1]}, processor, True)
            continue
        rows = task().encode({"image": pictures, "label": [0, 1]}, processor, True)
        given = task().collate(rows, processor).to(torch.device("cpu")).inputs["pixel_values"].numpy()
        np.testing.assert_allclose(given, processed(processor, pictures), atol=1e-5, err_msg=name)
    assert own_way == {"EfficientNetImageProcessorPil"}
    assert refused == {(name, "student.model.tokenizer") for name in REFUSED}


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_scaled_on_the_models_device(channels):
    """To the same bits as numpy scales them. The "meta" device cannot be mixed with another one."""
    processor = transformers.ViTImageProcessorPil(
        size={"height": 6, "width": 9},
        image_mean=[0.485, 0.456, 0.406][:channels],
        image_std=[0.229, 0.224, 0.3][:channels],
    )
    pictures = RNG.integers(0, 256, (40, channels, 6, 9), dtype=np.uint8)
    rows = {"pixels": [p.tobytes() for p in pictures], "shape": [[channels, 6, 9]] * 40, "labels": [[0]] * 40}
    batch = task().collate(rows, processor)
    assert batch.inputs["pixel_values"].dtype == torch.uint8, "a quarter of what would go to the GPU"
    mean, deviation = (
        np.array(values, np.float32).reshape(-1, 1, 1) for values in (processor.image_mean, processor.image_std)
    )
    scaled = (pictures.astype(np.float32) * np.float32(1 / 255) - mean) / deviation
    there = batch.to(torch.device("cpu"))
    np.testing.assert_array_equal(there.inputs["pixel_values"].numpy(), scaled)
    assert there.to(torch.device("cpu")).inputs["pixel_values"] is there.inputs["pixel_values"], "once"
    away = batch.to(torch.device("meta")).inputs["pixel_values"]
    assert (away.device.type, away.dtype, away.shape) == ("meta", torch.float32, scaled.shape)


def test_the_image_processor_is_part_of_the_fingerprint(tmp_path, monkeypatch):
    split = split_of([Image.fromarray(COLOURS)] * 2)
    processor = transformers.EfficientNetImageProcessorPil(size={"height": 8, "width": 8})
    values = encode(split, task(), processor, tmp_path, None)
    row = values.open()[0]
    assert len(row["pixels"]) == 4 * np.prod(row["shape"])
    monkeypatch.setattr("raykd.tasks.image_classification.in_two_steps", lambda processor: True)
    wrapped = encode(split, task(), processor, tmp_path, None)
    assert wrapped.digest != values.digest
    # And this is what the comparison with the processor itself is for.
    with pytest.raises(ConfigError, match=r"a\.tokenizer = EfficientNet.*: .*first picture of data\.train"):
        task().check_encoded({"train": (split.rows, wrapped.open())}, processor, "a.tokenizer")
    task().check_encoded({"train": (split.rows, values.open())}, processor, "a.tokenizer")


def test_pictures_of_different_sizes_are_refused(tmp_path):
    """Also if they are in different splits: a batch never saw both."""
    processor = plain(shortest_edge=8)
    wide, high = (Image.fromarray(np.zeros(size, np.uint8)) for size in ((16, 32, 3), (32, 16, 3)))
    with pytest.raises(ConfigError, match=r"data\.train = row 1: .*3x16x8 and 3x8x16"):
        encode(split_of([wide, high]), task(), processor, tmp_path, None)
    splits = {"train": split_of([wide] * 2), "test": split_of([wide, high][1:], "test")}
    both = {name: (s.rows, encode(s, task(), processor, tmp_path, None).open()) for name, s in splits.items()}
    with pytest.raises(ConfigError, match=r"data\.test = row 0: .*3x16x8 and 3x8x16"):
        task().check_encoded(both, processor, "student.model.tokenizer")


def test_twelve_bits_in_sixteen_are_reported(tmp_path, caplog):
    for kind, high in (("calm", 4000), ("rough", 3000)):
        folder = tmp_path / "data" / kind
        folder.mkdir(parents=True)
        for i in range(6):
            saved(Image.fromarray(np.full((16, 16), high + i, np.uint16)), folder / f"{i}.png")
    model = {"config": {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 8}}
    model["config"] |= {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    tree = {
        "name": "x",
        "output": str(tmp_path / "runs"),
        "task": {"type": "image-classification"},
        "data": {"source": str(tmp_path / "data"), "train": "train[:4]+train[8:]", "validation": "train[4:6]"},
        "teachers": [{"name": "a", "model": model, "recipe": {}}],
        "student": {"model": model},
    }
    tree["data"]["test"] = "train[6:8]"
    with caplog.at_level(logging.WARNING, "raykd.tasks.image_classification"):
        prepare(build(tree))
    warnings = [r.getMessage() for r in caplog.records if r.name == "raykd.tasks.image_classification"]
    assert len(warnings) == 1
    assert re.search("no value above 400[0-5] of 65535", warnings[0])  # which eight are read depends on their order


def test_few_pictures_are_open_at_a_time(tmp_path, monkeypatch):
    """Memory must not grow with a data set of photos."""
    made, most = task(), []
    before = made.encode

    def counted(self: Task, rows: dict[str, list], *more: Any) -> dict[str, list]:
        most.append(len(rows["image"]))
        return before(rows, *more)

    monkeypatch.setattr(type(made), "encode", counted)
    split = split_of([Image.fromarray(COLOURS)] * 50)
    encoded = encode(split, made, plain(), tmp_path, None)
    assert len(encoded.open()) == sum(most) == 50
    assert max(most) <= 16


def test_a_picture_counts_as_the_tokens_that_a_vision_transformer_makes_of_it():
    assert task().tokens_per_length({"shape": [[3, 224, 224], [3, 224, 224]]}) == 14 * 14
    assert task().tokens_per_length({"shape": [[1, 8, 8]]}) == 1
    assert task().tokens_per_length({"length": [1]}) == 1, "of a task of the user's own, without shapes"
