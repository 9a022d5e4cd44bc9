"""Folders of pictures: classes and files that are called like splits, metadata, and files of paths."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raykd.common.errors import ConfigError
from raykd.config.load import build
from raykd.config.schema import DataConfig
from raykd.data.folders import splits_of_pictures
from raykd.data.loading import load_splits
from raykd.data.source import load_rows
from raykd.tasks import make_task


def draw(folder: Path, *names: str) -> None:
    """Pictures of one grey level each: 0, 1, ..."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(folder / name, lossless=True)


def classes_of(source: Path, **data: str) -> dict[str, list[tuple[int, str]]]:
    """Of each split, the grey level and the class of each picture."""
    tree = {
        "name": "x",
        "task": {"type": "image-classification"},
        "data": {"source": str(source)} | data,
        "teachers": [{"name": "a", "model": "m", "recipe": {}}],
        "student": {"model": "m"},
    }
    config = build(tree)
    task = make_task(config.task)
    splits = load_splits(config, task)
    return {
        name: [(int(np.asarray(row["image"])[0, 0, 0]), task.label_names[row["label"]]) for row in split.rows]
        for name, split in splits.items()
        if split.labelled
    }


def levels(source: Path, split: str) -> set[int]:
    rows = load_rows(DataConfig(source=str(source), train=split, validation="v", test="t"), "train")
    return {int(np.asarray(picture)[0, 0, 0]) for picture in rows["image"]}


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        ("bus/1 train/1 plane/1", {"train": ["."]}),  # a class
        ("bottle/train_1 bottle/2 glass/test_3", {"train": ["."]}),  # files
        ("train/a/1 train/b/2 test/a/3 test/b/4", {"train": ["train"], "test": ["test"]}),
        ("pets/Train/a/1 pets/val_2/a/3", {"train": ["pets/Train"], "validation": ["pets/val_2"]}),
        ("train_1/a/1 train_2/a/2 dev/a/3", {"train": ["train_1", "train_2"], "validation": ["dev"]}),
        ("train/test/1 train/cat/2 test/test/3", {"train": ["train"], "test": ["test"]}),  # a class in splits
        ("train/a/1 test/a/2 more/3", {"train": ["train"], "test": ["test"], "more": ["more"]}),
        ("train/1 test/2", {"train": ["train"], "test": ["test"]}),  # without classes
        ("1 train/2", {"train": ["."]}),
        ("train/a/1 train/b/1", {"train": ["train"]}),
        ("1", {"train": ["."]}),
    ],
)
def test_subfolders_are_splits_or_classes(names, folders):
    found = splits_of_pictures([Path(f"{name}.png") for name in names.split()])
    assert {split: [str(folder) for folder in parts] for split, parts in found.items()} == folders


def test_a_class_and_pictures_called_like_splits(tmp_path):
    names = ["bus/0.png", "bus/test_1.png", "plane/2.JPG", "plane/dev.Png", "train/4.WEBP", "train/5.png"]
    draw(tmp_path / "a [b] é", *names)
    cut = {"train": "train[:4]", "validation": "train[4:5]", "test": "train[5:]"}
    found = classes_of(tmp_path / "a [b] é", **cut)
    classes = {value: name.partition("/")[0] for value, name in enumerate(names)}
    assert dict(row for split in cut for row in found[split]) == classes
    assert levels(tmp_path / "a [b] é", "train") == set(range(6))


def test_each_part_of_a_folder_of_classes_has_all_of_them(tmp_path):
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(40)]
    draw(tmp_path / "pets", *names)
    cut = {"train": "train[:60%]", "validation": "train[60%:80%]", "test": "train[80%:]"}
    found = classes_of(tmp_path / "pets", **cut)
    assert all({name for _, name in rows} == {"cat", "dog"} for rows in found.values())
    (tmp_path / "pets").rename(tmp_path / "moved")
    assert classes_of(tmp_path / "moved", **cut) == found
    (tmp_path / "moved" / "cat" / "0.png").unlink()
    left = [row for rows in classes_of(tmp_path / "moved", **cut).values() for row in rows]
    assert left == [row for rows in found.values() for row in rows if row != (0, "cat")]


def test_a_class_called_like_a_split_inside_of_splits(tmp_path):
    draw(tmp_path, "train/test/0.png", "train/cat/1.png", "val/test/2.png", "test/test/3.png", "test/cat/4.png")
    draw(tmp_path / "more", "0.png", "1.png")
    found = classes_of(tmp_path, transfer="more")
    assert {split: sorted(rows) for split, rows in found.items()} == {
        "train": [(0, "test"), (1, "cat")],
        "validation": [(2, "test")],
        "test": [(3, "test"), (4, "cat")],
    }
    assert levels(tmp_path, "more") == {0, 1}


def test_metadata_names_the_pictures(tmp_path):
    names = ["0.png", "test_1.png", "train_2.png", "3.png"]
    draw(tmp_path, *names)
    pd.DataFrame({"file_name": names, "label": ["a", "b", "a", "b"]}).to_csv(tmp_path / "metadata.csv", index=False)
    found = classes_of(tmp_path, train="train[:2]", validation="train[2:3]", test="train[3:]")
    assert found == {"train": [(0, "a"), (1, "b")], "validation": [(2, "a")], "test": [(3, "b")]}


def test_a_file_of_paths(tmp_path):
    names = ["0.png", "1.png", "2.png", "3.png"]
    draw(tmp_path / "pictures", *names)
    table = pd.DataFrame({"file": [f"pictures/{name}" for name in names], "label": ["a", "b", "a", "b"]})
    table.to_csv(tmp_path / "rows.csv", index=False)
    cut = {"train": "train[:2]", "validation": "train[2:3]", "test": "train[3:]", "columns": {"image": "file"}}
    assert classes_of(tmp_path / "rows.csv", **cut) == {
        "train": [(0, "a"), (1, "b")],
        "validation": [(2, "a")],
        "test": [(3, "b")],
    }
    (tmp_path / "pictures" / "3.png").unlink()
    with pytest.raises(ConfigError, match=r"data\.columns\.image = file: in test, row 0 .*3\.png\."):
        classes_of(tmp_path / "rows.csv", **cut)


def test_pictures_without_classes_are_refused(tmp_path):
    draw(tmp_path, "train/0.png", "validation/1.png", "test/2.png")
    with pytest.raises(ConfigError, match=r"data\.columns\.label = label: train .* it has image. Put each class"):
        classes_of(tmp_path)


@pytest.mark.parametrize("name", ["torn.png", "empty.jpg", "page.jpg", "bomb.png"])
def test_a_broken_picture_is_named(tmp_path, name):
    draw(tmp_path, *(f"{split}/{kind}/0.png" for split in ("train", "validation", "test") for kind in "ab"))
    whole = (tmp_path / "train" / "a" / "0.png").read_bytes()
    bomb = whole[:16] + (30_000).to_bytes(4, "big") * 2 + whole[24:]
    content = {"torn.png": whole[:-30], "empty.jpg": b"", "page.jpg": b"<html>404</html>", "bomb.png": bomb}[name]
    (tmp_path / "train" / "a" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"data\.train = .*/a/{name}: row 1: ") as error:
        classes_of(tmp_path)
    assert "\n" not in str(error.value)
