"""Augmentation: what chance does to pictures and texts, and what it leaves alone."""

import numpy as np
import pytest
from PIL import Image

from raykd.config.schema import AUGMENTS, AugmentConfig, TaskConfig
from raykd.tasks import TASKS, make_task
from raykd.tasks.augment import drop_and_swap, shift_and_rotate

LONG = " ".join(f"w{i}" for i in range(1000))
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "HSV", "I", "F", "I;16"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def task(kind: str):
    return make_task(TaskConfig(type=kind), ["no", "yes"])


def noise(mode: str, width: int = 9, height: int = 7) -> Image.Image:
    pixels = Image.fromarray(rng(5).integers(0, 256, (height, width, 3)).astype(np.uint8))
    return pixels.convert("L").convert(mode) if mode in ("LA", "I", "F", "I;16") else pixels.convert(mode)


def dot(x: int, y: int, width: int = 21, height: int = 11) -> Image.Image:
    pixels = np.zeros((height, width), np.float32)
    pixels[y, x] = 1
    return Image.fromarray(pixels)


def centre(picture: Image.Image) -> np.ndarray:
    """(x, y) of the light's centre of mass, in pixels."""
    light = np.asarray(picture, np.float64)
    return np.array([light.sum(0) @ np.arange(light.shape[1]), light.sum(1) @ np.arange(light.shape[0])]) / light.sum()


def words_moved(text: str, result: str) -> np.ndarray:
    """How far each word is from where it was; its words must be w0, w1, ..."""
    return np.array([int(w[1:]) for w in result.split()]) - np.arange(len(text.split()))


# Pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_picture_keeps_size_and_mode(mode):
    picture = noise(mode)
    before = picture.copy()
    moved = shift_and_rotate(picture, rng(), 0.3, 40)
    assert (moved.size, moved.mode) == (picture.size, mode)
    assert not np.array_equal(np.asarray(moved), np.asarray(picture))
    assert np.array_equal(np.asarray(picture), np.asarray(before))


@pytest.mark.parametrize("mode", MODES)
def test_no_shift_and_no_rotation_is_the_picture_itself(mode):
    picture = noise(mode)
    assert np.array_equal(np.asarray(shift_and_rotate(picture, rng(), 0, 0)), np.asarray(picture))


@pytest.mark.parametrize("shift", [0.04, 0.1, 0.25])
def test_shift_is_uniform_up_to_its_share_of_each_side(shift):
    chance = rng()
    moves = np.array([centre(shift_and_rotate(dot(10, 5), chance, shift, 0)) - (10, 5) for _ in range(1500)])
    share = moves / np.array([21, 11])
    assert np.abs(share).max() <= shift + 1e-6
    assert np.abs(share).max(0) == pytest.approx(shift, rel=0.02)
    assert share.mean(0) == pytest.approx(0, abs=4 * shift / np.sqrt(3 * 1500))
    assert share.std(0) == pytest.approx(shift / np.sqrt(3), rel=0.05)
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.1


def test_rotation_is_about_the_middle_and_uniform_up_to_its_degrees():
    chance = rng()
    arm = [centre(shift_and_rotate(dot(15, 15, 21, 21), chance, 0, 30)) - 10 for _ in range(1500)]
    angles = np.degrees([np.arctan2(y, x) for x, y in arm]) - 45
    # A point between pixels is read off four of them: its place is right to less than half a pixel.
    assert np.linalg.norm(arm, axis=1) == pytest.approx(np.sqrt(50), abs=0.5)
    assert np.abs(angles).max() == pytest.approx(30, abs=3)
    assert angles.mean() == pytest.approx(0, abs=2)
    assert angles.std() == pytest.approx(30 / np.sqrt(3), rel=0.06)
    assert centre(shift_and_rotate(dot(10, 10, 21, 21), chance, 0, 180)) == pytest.approx([10, 10], abs=1e-4)


class Fixed:
    """Chance that always says the same."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def uniform(self, *_: object) -> np.ndarray:
        return np.array(self.values)


def test_quarter_turn_and_whole_shift_only_move_pixels():
    pixels = rng(1).integers(0, 256, (8, 8)).astype(np.uint8)
    turned = np.asarray(shift_and_rotate(Image.fromarray(pixels), Fixed(0, 0, 1), 0, 90))
    expected = np.rot90(pixels, -1)  # clockwise, as y points down
    assert np.abs(turned.astype(int) - expected).max() <= 1  # PIL cuts off what is behind the point
    moved = np.asarray(shift_and_rotate(Image.fromarray(pixels), Fixed(1, -1, 0), 0.25, 0))
    assert np.array_equal(moved[:6, 2:], pixels[2:, :6])


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("L", 200), ("1", 255), ("RGB", (10, 200, 30)), ("RGBA", (9, 8, 7, 255)), ("F", 0.5), ("I;16", 40_000)],
)
def test_a_plain_background_stays_plain(mode, colour):
    """What comes in from outside has the colour of the picture's own border, not black."""
    picture = Image.new(mode, (16, 12), colour)
    assert np.array_equal(np.asarray(shift_and_rotate(picture, rng(), 0.5, 90)), np.asarray(picture))


def test_border_is_filled_with_its_median():
    """An object that touches the corner does not colour everything."""
    pixels = np.full((16, 16), 30, np.uint8)
    pixels[:3, :3] = 255
    moved = np.asarray(shift_and_rotate(Image.fromarray(pixels), Fixed(1, 1, 0), 0.5, 0))
    assert (moved[:8] == 30).all()
    assert (moved[8:11, 8:11] == 255).all()


# Texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_dropped_share_is_its_probability(drop):
    chance = rng()
    kept = [len(drop_and_swap(LONG, chance, drop, 0).split()) / 1000 for _ in range(200)]
    assert 1 - np.mean(kept) == pytest.approx(drop, abs=0.004)
    assert np.std(kept) == pytest.approx(np.sqrt(drop * (1 - drop) / 1000), rel=0.25)  # each on its own


def test_dropping_keeps_the_order():
    kept = [int(w[1:]) for w in drop_and_swap(LONG, rng(), 0.5, 0).split()]
    assert kept == sorted(kept)


@pytest.mark.parametrize("text", ["one", "one two", "one two three"])
def test_at_least_one_word_stays(text):
    chance = rng()
    left = [drop_and_swap(text, chance, 0.99, 0.5) for _ in range(300)]
    assert all(left)
    assert set(left) >= set(text.split())  # any of them


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_text_without_words_stays(text):
    assert drop_and_swap(text, rng(), 0.9, 1.0) == text


@pytest.mark.parametrize(("words", "swap"), [(1000, 0.1), (1000, 0.9), (5, 0.1), (7, 0.5), (8, 1.0), (2, 0.3)])
def test_swapped_share_is_as_configured(words, swap):
    chance, text = rng(), " ".join(LONG.split()[:words])
    moved = np.array([words_moved(text, drop_and_swap(text, chance, 0, swap)) for _ in range(2000)])
    assert set(np.unique(moved)) <= {-1, 0, 1}
    assert (moved.sum(1) == 0).all()
    assert (moved != 0).mean() == pytest.approx(swap, abs=0.03)


def test_every_choice_of_pairs_is_as_likely():
    """Of five words two pairs: 01 23, 01 34, 12 34."""
    chance, text = rng(), "w0 w1 w2 w3 w4"
    results = [drop_and_swap(text, chance, 0, 0.8) for _ in range(3000)]
    counts = {result: results.count(result) for result in set(results)}
    assert set(counts) == {"w1 w0 w3 w2 w4", "w1 w0 w2 w4 w3", "w0 w2 w1 w4 w3"}
    assert list(counts.values()) == pytest.approx([1000] * 3, abs=130)


@pytest.mark.parametrize("swap", [0.5, 1.0])
def test_a_word_alone_has_no_neighbour(swap):
    assert drop_and_swap("one", rng(), 0, swap) == "one"


def test_neither_dropped_nor_swapped_is_the_text_itself():
    assert drop_and_swap("a b c", rng(), 0, 0) == "a b c"


# Tasks --------------------------------------------------------------------------------------------

PICTURES = {"image": [noise("L"), noise("RGB", 8, 8)], "label": [0, 1]}
PAIRS = {"text": [LONG, "", "one"], "text_pair": [LONG, "two", LONG], "label": [0, 1, 1]}
MOVE = AugmentConfig(shift=0.2, rotate=20)
MIX = AugmentConfig(drop_words=0.2, swap_words=0.2)
CASES = [("image-classification", PICTURES, MOVE), ("text-classification", PAIRS, MIX)]


def plain(rows: dict[str, list]) -> dict[str, list]:
    return {k: [np.asarray(v).tolist() if isinstance(v, Image.Image) else v for v in c] for k, c in rows.items()}


@pytest.mark.parametrize(("kind", "rows", "settings"), CASES)
def test_same_chance_same_rows(kind, rows, settings):
    first, same, other = (plain(task(kind).augment(rows, rng(seed), settings)) for seed in (1, 1, 2))
    assert first == same
    assert first != other
    chance = rng(1)  # and the next epoch differs
    assert plain(task(kind).augment(rows, chance, settings)) != plain(task(kind).augment(rows, chance, settings))


@pytest.mark.parametrize(("kind", "rows", "settings"), CASES)
def test_labels_and_the_given_rows_stay(kind, rows, settings):
    before = plain(rows)
    changed = task(kind).augment(rows, rng(), settings)
    assert plain(rows) == before
    assert list(changed) == list(rows)
    assert changed["label"] == rows["label"]
    for name in set(rows) - {"label"}:
        assert plain(changed)[name] != before[name]


def test_text_without_a_pair():
    rows = {"text": ["a b c d"], "row": [7]}
    assert task("text-classification").augment(rows, rng(), MIX).keys() == rows.keys()


def test_a_pair_is_changed_on_its_own():
    changed = task("text-classification").augment(PAIRS, rng(), MIX)
    assert changed["text"][0] != changed["text_pair"][0]


def test_augmented_rows_can_be_encoded():
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    kind = task("image-classification")
    encoded = kind.encode(kind.augment(PICTURES, rng(), MOVE), processor, labelled=True)
    assert kind.collate(encoded, processor).inputs["pixel_values"].shape == (2, 3, 8, 8)


def test_question_answering_has_none():
    with pytest.raises(NotImplementedError):
        task("question-answering").augment({"question": ["who ?"]}, rng(), MIX)


def test_every_task_names_its_columns():
    """The config refuses by this table, without the tasks' libraries."""
    assert set(AUGMENTS) <= set(TASKS)
    assert {name for names in AUGMENTS.values() for name in names} == set(AugmentConfig.model_fields)
