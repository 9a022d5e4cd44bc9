"""Changes that a training row gets anew every epoch. Pure: the same state of `rng`, the same result."""

import math

import numpy as np
from PIL import Image


def shift_and_rotate(picture: Image.Image, rng: np.random.Generator, shift: float, rotate: float) -> Image.Image:
    """The common random affine augmentation (such as torchvision's RandomAffine), without scaling and shear.

    shift: share of the width and of the height, each moved by a uniform part of it, either way.
    rotate: degrees, likewise, about the picture's middle. Size and mode are kept.

    Fractions of a pixel count: rounded to whole ones, a shift of 0.05 would do nothing to a picture of 8x8.
    """
    if picture.mode.startswith("I;16"):  # PIL interpolates their single bytes: noise
        return shift_and_rotate(picture.convert("I"), rng, shift, rotate).convert(picture.mode)
    width, height = picture.size
    right, down, turn = rng.uniform(-1, 1, 3) * (shift * width, shift * height, math.radians(rotate))
    cos, sin = math.cos(turn), math.sin(turn)
    # PIL asks where a pixel of the result comes from: moved back, then turned back about the middle.
    x, y = width / 2 + right, height / 2 + down
    origin = (cos, sin, width / 2 - cos * x - sin * y, -sin, cos, height / 2 + sin * x - cos * y)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, origin, Image.Resampling.BILINEAR, fillcolor=_edge_colour(picture)
    )


def _edge_colour(picture: Image.Image) -> float | tuple[float, ...]:
    """The median of the outermost pixels, by channel: what the uncovered border is filled with.

    Black wedges would be something that no other picture has, and tell the model by how much this one was
    moved. On a plain background, black or not, this fills with the background.
    """
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.sort(border, axis=0)[len(border) // 2].tolist()
    return tuple(colour) if isinstance(colour, list) else colour


def drop_and_swap(text: str, rng: np.random.Generator, drop: float, swap: float) -> str:
    """Random deletion, then random swap (EDA: Wei and Zou 2019), on words between white space.

    drop: probability of each word to be left out; if that were all of them, one stays, as in EDA.
    swap: expected share of the words that change places. EDA swaps words of any distance; here they are
    neighbours, in pairs that do not overlap, so that the share is exact and a sentence stays near itself.

    The result's words have one space between them; a text without words is returned as it is.
    """
    words = np.array(text.split(), dtype=object)
    if not len(words):
        return text
    keep = rng.random(len(words)) >= drop
    if not keep.any():
        keep[rng.integers(len(words))] = True
    words = words[keep]
    # Chance rounds the number of pairs, so that its mean is right in short texts too.
    pairs = min(len(words) // 2, int(swap * len(words) / 2 + rng.random()))
    # `pairs` of the places that are left when each pair is one place: every choice of pairs is as likely.
    first = np.sort(rng.choice(len(words) - pairs, pairs, replace=False)) + np.arange(pairs)
    words[first], words[first + 1] = words[first + 1], words[first]
    return " ".join(words)
