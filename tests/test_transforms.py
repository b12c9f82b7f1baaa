"""Transforms equal the reference implementation's, and a flip swaps left and right in captions."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from beit3lib.transforms import (
    OPERATIONS,
    Augmentation,
    can_swap,
    randaug_operation,
    swap_left_right,
    to_image,
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
def theirs():
    """The module of the reference implementation with its data sets and transforms."""
    pytest.importorskip("beit3")
    import reference

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


def test_crop_area_of_one_keeps_the_whole_image():
    image = noise(320, 180)
    kept = augmentation(crop_area=1.0)(image, np.random.default_rng(0), flip=False)
    assert torch.equal(to_tensor(kept, 64), to_tensor(image, 64))


def test_augmentation_follows_from_the_generator_and_leaves_the_global_state_alone():
    augment, image = augmentation(randaug=True), noise()
    state = random.getstate()
    a, b, c = (augment(image, np.random.default_rng(seed), flip=False).tobytes() for seed in (1, 1, 2))
    assert random.getstate() == state and a == b != c


def expected_operation(image, name, sign):
    """Magnitude m = 0.7 in Pillow: factor 1.8 m + 0.1, rotation 30 m degrees, shear 0.3 m, shift 10 m."""
    gray = (128, 128, 128)
    if name in ("Brightness", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(0.7 * 1.8 + 0.1)
    if name in ("AutoContrast", "Equalize"):
        return getattr(ImageOps, name.lower())(image)
    if name == "Rotate":
        return image.rotate(sign * 0.7 * 30, Image.Resampling.BILINEAR, fillcolor=gray)
    shear, shift = sign * 0.7 * 0.3, sign * 0.7 * 10
    matrix = {"ShearX": (1, shear, 0, 0, 1, 0), "ShearY": (1, 0, 0, shear, 1, 0)}
    matrix |= {"TranslateX": (1, 0, shift, 0, 1, 0), "TranslateY": (1, 0, 0, 0, 1, shift)}
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix[name], Image.Resampling.BILINEAR, fillcolor=gray
    )


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Identity"])
def test_randaug_operations_have_the_strength_of_the_reference_implementation(theirs, name):
    """Bit-identical to Pillow at the same magnitude, and within rounding of the OpenCV version there."""
    image, operation = noise(), randaug_operation(name, prob=1.0)
    random.seed(0)
    found = {operation(image).tobytes() for _ in range(20)}
    assert found == {expected_operation(image, name, sign).tobytes() for sign in (1, -1)}
    if name == "AutoContrast":
        return  # the reference implementation's overflows uint8 and turns channels white; ours does not
    randaug, inner = theirs.RandomAugment.__call__.__globals__, (slice(20, -20), slice(20, -20))
    ours = [np.asarray(Image.frombytes("RGB", image.size, pixels))[inner].astype(float) for pixels in found]
    for _ in range(20):
        other = randaug["func_dict"][name](np.asarray(image), *randaug["arg_dict"][name](7))[inner]
        # OpenCV rotates around a center half a pixel away, which is worth 1.7 gray levels here.
        assert min(np.abs(pixels - other).mean() for pixels in ours) < 2.0


def test_every_operation_is_drawn_equally_often_and_half_of_them_are_applied():
    augment, image, rng = augmentation(randaug=True, crop_area=1.0), noise(64, 64), np.random.default_rng(0)
    unchanged = sum(augment(image, rng, flip=False).tobytes() == image.tobytes() for _ in range(1000)) / 1000
    assert unchanged == pytest.approx((0.5 + 0.5 / 10) ** 2, abs=0.04)  # not applied, or Identity, twice


def test_pixels_convert_to_an_image_and_back():
    image = noise(64, 64)
    pixels = to_tensor(image, 64)
    assert pixels.shape == (3, 64, 64) and pixels.min() >= -1 and pixels.max() <= 1
    assert to_image(pixels).tobytes() == image.tobytes()


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
        ("The pedestrian stands on the right.", True),
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
