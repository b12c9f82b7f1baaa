"""Transforms against the recipe's own, and the flip that swaps left and right in captions."""

import random
import sys
from pathlib import Path
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


def config(**options):
    return SimpleNamespace(
        **{"crop_area": 0.5, "train_interpolation": "bicubic", "randaug": False, **options}
    )


def noise(width=200, height=150, seed=0):
    """A smooth random image: every pixel operation changes it."""
    small = np.random.default_rng(seed).integers(0, 200, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def recipe():
    """The recipe's data sets module, imported from the wheel beit3-gml by the names its files use among themselves."""
    folder = str(Path(pytest.importorskip("beit3").__file__).parent)
    sys.path.insert(0, folder)
    try:
        import datasets

        assert Path(datasets.__file__).parent == Path(folder)
        return datasets
    finally:
        sys.path.remove(folder)
        for name in ("datasets", "utils", "glossary", "randaug"):  # other packages have these names too
            sys.modules.pop(name, None)


def recipe_transform(recipe, train, size=64, randaug=False):
    options = {
        "task": "coco_captioning",
        "input_size": size,
        "train_interpolation": "bicubic",
        "randaug": randaug,
    }
    return recipe.build_transform(train, SimpleNamespace(**options))


@pytest.mark.parametrize("size", [(200, 150), (64, 64), (30, 90), (1920, 1080)])
def test_evaluation_transform_equals_the_recipes(recipe, size):
    image = noise(*size)
    torch.testing.assert_close(
        to_tensor(image, 64), recipe_transform(recipe, False)(image), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("size", [(200, 150), (320, 180), (90, 300)])
def test_random_crop_equals_the_recipes_for_the_same_random_numbers(recipe, size):
    image, ours, theirs = noise(*size), Augmentation(64, config()), recipe_transform(recipe, True)
    for seed in range(20):
        torch.manual_seed(0)  # torch.rand(1) is 0.496, so torchvision's RandomHorizontalFlip flips
        random.seed(int(np.random.default_rng(seed).integers(2**63)))
        expected = theirs(image)
        pixels = to_tensor(ours(image, np.random.default_rng(seed), flip=True), 64)
        torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


def test_crop_area_of_one_keeps_the_whole_image():
    image = noise(320, 180)
    kept = Augmentation(64, config(crop_area=1.0))(image, np.random.default_rng(0), flip=False)
    assert torch.equal(to_tensor(kept, 64), to_tensor(image, 64))


def test_augmentation_follows_from_the_generator_and_leaves_the_global_state_alone():
    augment, image = Augmentation(64, config(randaug=True)), noise()
    random.seed(5)
    expected = random.random()
    random.seed(5)
    a, b, c = (augment(image, np.random.default_rng(seed), flip=False) for seed in (1, 1, 2))
    assert random.random() == expected
    assert a.tobytes() == b.tobytes() != c.tobytes()


def expected_operation(image, name, sign):
    """The operation at magnitude 0.7 in Pillow's terms: factor 1.8 m + 0.1, rotation 30 m degrees, shear 0.3 m, shift 10 m."""
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
def test_randaug_operations_have_the_recipes_strength(recipe, name):
    """Bit-identical to Pillow at the recipe's magnitude, and within rounding of the recipe's OpenCV version."""
    image, operation = noise(), randaug_operation(name, prob=1.0)
    random.seed(0)
    found = {operation(image).tobytes() for _ in range(20)}
    allowed = {expected_operation(image, name, sign).tobytes() for sign in (1, -1)}
    assert found == allowed
    if name == "AutoContrast":
        return  # the recipe's overflows uint8 and turns channels white; not copied on purpose
    randaug = recipe.RandomAugment.__call__.__globals__
    theirs = [randaug["func_dict"][name](np.asarray(image), *randaug["arg_dict"][name](7)) for _ in range(20)]
    inner = (slice(20, -20), slice(20, -20))
    ours = [np.asarray(Image.frombytes("RGB", image.size, pixels))[inner].astype(float) for pixels in found]
    for (
        other
    ) in theirs:  # OpenCV rotates around a center half a pixel away, which is worth 1.7 gray levels here
        assert min(np.abs(pixels - other[inner]).mean() for pixels in ours) < 2.0


def test_every_operation_is_drawn_equally_often_and_half_of_them_are_applied():
    augment, image = Augmentation(64, config(randaug=True, crop_area=1.0)), noise(64, 64)
    rng = np.random.default_rng(0)
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
