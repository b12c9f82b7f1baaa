"""Transforms equal the reference implementation's, and a flip swaps left and right in captions."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from beit3lib.transforms import (
    OPERATIONS,
    Augmentation,
    can_swap,
    randaug_operation,
    swap_left_right,
    to_tensor,
)


def augmentation(**options):
    defaults = {"crop_area": 0.5, "train_interpolation": "bicubic", "randaug": False}
    return Augmentation(64, SimpleNamespace(**{**defaults, **options}))


def noise(width=200, height=150, seed=0):
    """A smooth random image: every pixel operation changes it."""
    small = np.random.default_rng(seed).integers(0, 200, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def theirs(reference):
    """The module of the reference implementation with its data sets and transforms."""
    return reference.recipe("datasets")


def their_transform(theirs, train):
    options = {"input_size": 64, "train_interpolation": "bicubic", "randaug": False}
    return theirs.build_transform(train, SimpleNamespace(task="coco_captioning", **options))


@pytest.mark.parametrize("size", [(200, 150), (64, 64), (30, 90), (1920, 1080)])
def test_resizing_equals_the_reference_implementations(theirs, size):
    image = noise(*size)
    torch.testing.assert_close(to_tensor(image, 64), their_transform(theirs, False)(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(200, 150), (320, 180), (90, 300)])
def test_random_crops_equal_the_reference_implementations_for_the_same_random_numbers(theirs, size):
    image, transform = noise(*size), their_transform(theirs, True)
    for seed in range(20):
        torch.manual_seed(0)  # torch.rand(1) is 0.496, so torchvision's RandomHorizontalFlip flips
        random.seed(int(np.random.default_rng(seed).integers(2**63)))
        expected = transform(image)
        pixels = to_tensor(augmentation()(image, np.random.default_rng(seed), flip=True), 64)
        torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("Identity", "AutoContrast")])
def test_randaug_operations_have_the_strength_of_the_reference_implementation(theirs, name):
    """Theirs use OpenCV. Its AutoContrast overflows uint8 and turns channels white, unlike ours."""
    image, operation = noise(), randaug_operation(name, prob=1.0)
    random.seed(0)
    randaug, inner = theirs.RandomAugment.__call__.__globals__, (slice(20, -20), slice(20, -20))
    ours = [np.asarray(operation(image))[inner].astype(float) for _ in range(20)]
    for _ in range(20):
        other = randaug["func_dict"][name](np.asarray(image), *randaug["arg_dict"][name](7))[inner]
        # OpenCV rotates around a center half a pixel away, which is worth 1.7 gray levels here.
        assert min(np.abs(pixels - other).mean() for pixels in ours) < 2.0


@pytest.mark.parametrize(
    "text, swapped",
    [
        ("On its left, close to the RIGHT side.", "On its right, close to the LEFT side."),
        ("Left-hand traffic turns leftwards.", "Right-hand traffic turns rightwards."),
        ("A bright street; he copyrights it.", "A bright street; he copyrights it."),
    ],
)
def test_left_and_right_are_swapped_as_whole_words(text, swapped):
    assert swap_left_right(text) == swapped and swap_left_right(swapped) == text


@pytest.mark.parametrize(
    "text, allowed",
    [
        ("The vehicle turns left.", True),
        ("The pedestrian has left the crossing.", False),
        ("She left her bag behind.", False),
        ("The vehicle has right of way.", False),
        ("It is right before the crossing.", False),
        ("He had left side mirrors folded.", True),
        ("It stopped right in front of the pedestrian.", False),
        ("It is diagonally to the right in front of the pedestrian.", True),
    ],
)
def test_captions_that_cannot_be_swapped_are_recognized(text, allowed):
    assert can_swap(text) == allowed
