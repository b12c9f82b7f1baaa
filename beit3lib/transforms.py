"""Image preprocessing and training augmentation.

Validation: a plain bicubic resize to a square. Training: random resized crop, horizontal flip, RandAugment,
as in the reference implementation, with one difference: a flip also swaps "left" and "right" in captions
(`flip="swap"`). The reference implementation flips images and keeps their captions, which trains the model on
wrong captions.
"""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor


def to_tensor(image: Image.Image, size: int) -> Tensor:
    """Resize an RGB image to a square (bicubic) and scale it to [-1, 1]; returns float (3, size, size)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (size, size, 3) -> (3, size, size)
    return pixels.float().div_(127.5).sub_(1)


def to_image(pixels: Tensor) -> Image.Image:
    """Convert (3, S, S) in [-1, 1] back to an RGB image."""
    values = pixels.detach().cpu().float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


OPERATIONS = (
    *("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
)
# Constants of the reference implementation. It translates by at most 10 pixels, and fills with gray.
RANDAUG_OPTIONS = {
    "translate_const": 10,
    "interpolation": Image.Resampling.BILINEAR,
    "img_mean": (128, 128, 128),
}


def randaug_operation(name: str, prob: float = 0.5) -> AugmentOp | None:
    """One RandAugment operation at magnitude 7 of 10, applied with probability `prob`; None for Identity."""
    return None if name == "Identity" else AugmentOp(name, prob=prob, magnitude=7, hparams=RANDAUG_OPTIONS)


class Augmentation:
    """Random crop, optional flip and RandAugment of two operations, for training images of `size` pixels.

    Reads `crop_area` (smallest share of the area that a crop keeps; 1 turns cropping off),
    `train_interpolation` and `randaug` of the config. Whether to flip is decided by the caller, because the
    caption may have to change with it.
    """

    def __init__(self, size: int, config) -> None:
        self.size = size
        self.filter = getattr(Image.Resampling, config.train_interpolation.upper())
        self.crop = None
        if config.crop_area < 1:
            self.crop = RandomResizedCropAndInterpolation(
                size, (config.crop_area, 1.0), interpolation=config.train_interpolation
            )
        self.operations = [randaug_operation(name) for name in OPERATIONS] if config.randaug else []

    def __call__(self, image: Image.Image, rng: np.random.Generator, flip: bool) -> Image.Image:
        """Return the changed image, (size, size). Every random choice follows from `rng`."""
        with _python_random(rng):
            image = self.crop(image) if self.crop else image.resize((self.size, self.size), self.filter)
            if flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for operation in random.choices(self.operations, k=2) if self.operations else ():
                image = operation(image) if operation else image
        return image


@contextmanager
def _python_random(rng: np.random.Generator) -> Iterator[None]:
    """Seed Python's `random`, from which timm draws, from `rng`, and restore its state afterwards."""
    state = random.getstate()
    random.seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        random.setstate(state)


_SIDE = re.compile(r"\b(?:left|right)(?=(?:most|wards?|hand)?\b)", re.IGNORECASE)
_NO_DIRECTION = re.compile(
    r"\b(?:have|has|had|having|was|were|be|been|being|and|just|then|already|recently) left\b"
    r"(?!\s+(?:side|lane|turn|hand))"
    r"|\bleft (?:the|a|an|his|her|their|behind|from)\b|(?<!the )\bright (?:in front of|next to)\b"
    r"|\bright(?: of way|-of-way| away| angles?| after| before| now)\b"
    r"|\b(?:clockwise|counterclockwise|anticlockwise)\b"
    r"|\b(?:sign|text|letters?|plate)\b.{0,20}\b(?:reads?|says?)\b",
    re.IGNORECASE,
)


def can_swap(text: str) -> bool:
    """Whether `text` describes the flipped image after swapping left and right: not so with "has left"."""
    return _NO_DIRECTION.search(text) is None


def swap_left_right(text: str) -> str:
    """Return `text` with left and right swapped, also in "leftmost" or "right-hand"; capitals are kept."""

    def swapped(found: re.Match) -> str:
        word = found[0]
        other = "right" if word.lower() == "left" else "left"
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE.sub(swapped, text)
