"""Random changes of training rows, drawn again in every epoch. The same state of `rng` gives the same result."""

import math

import numpy as np
from PIL import Image


def shift_and_rotate(picture: Image.Image, rng: np.random.Generator, shift: float, rotate: float) -> Image.Image:
    """The common random affine augmentation (such as torchvision's RandomAffine), without scaling and shear.

    shift: largest shift in each direction, as a share of the width and of the height.
    rotate: largest rotation in each direction about the centre, in degrees.

    Size and mode are kept. Shifts are not rounded to whole pixels, because a shift of 0.05 would then have no effect
    on a picture of 8x8.
    """
    if picture.mode.startswith("I;16"):  # PIL would interpolate their single bytes, which gives noise
        return shift_and_rotate(picture.convert("I"), rng, shift, rotate).convert(picture.mode)
    width, height = picture.size
    right, down, turn = rng.uniform(-1, 1, 3) * (shift * width, shift * height, math.radians(rotate))
    cos, sin = math.cos(turn), math.sin(turn)
    # PIL needs the inverse: for each pixel of the result its origin, shifted back and then rotated back.
    x, y = width / 2 + right, height / 2 + down
    origin = (cos, sin, width / 2 - cos * x - sin * y, -sin, cos, height / 2 + sin * x - cos * y)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, origin, Image.Resampling.BILINEAR, fillcolor=_edge_colour(picture)
    )


def _edge_colour(picture: Image.Image) -> float | tuple[float, ...]:
    """The colour that fills the uncovered border: the median of the outermost pixels, by channel.

    On a plain background this is the background. Black wedges, which no other picture has, would tell the model by how
    much the picture was moved.
    """
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.sort(border, axis=0)[len(border) // 2].tolist()
    return tuple(colour) if isinstance(colour, list) else colour


def drop_and_swap(text: str, rng: np.random.Generator, drop: float, swap: float) -> str:
    """Random deletion, then random swap (EDA: Wei and Zou 2019), on words between white space.

    drop: probability that a word is dropped. One word is kept if all would be dropped, as in EDA.
    swap: expected share of words that are swapped. EDA swaps any two words; here only neighbours are swapped, in pairs
        that do not overlap, so that the share is exact and the sentence changes little.

    The words of the result are separated by one space. A text without words is returned unchanged.
    """
    words = np.array(text.split(), dtype=object)
    if not len(words):
        return text
    keep = rng.random(len(words)) >= drop
    if not keep.any():
        keep[rng.integers(len(words))] = True
    words = words[keep]
    # Rounded at random, so that the mean is right even in short texts.
    pairs = min(len(words) // 2, int(swap * len(words) / 2 + rng.random()))
    # Positions are drawn as if each pair took one place, so that every choice of pairs is equally likely.
    first = np.sort(rng.choice(len(words) - pairs, pairs, replace=False)) + np.arange(pairs)
    words[first], words[first + 1] = words[first + 1], words[first]
    return " ".join(words)
