"""Masking, packing, mirroring and augmentation: what the recipe says, on numbers worked out here."""

import numpy as np
import pytest
import torch
from PIL import Image

from beit3lib.config import TrainConfig
from beit3lib.data.aspects import ASPECTS
from beit3lib.data.index import read_index
from beit3lib.dataset import (
    Augmentation,
    CaptionDataset,
    ImageError,
    _crop,
    can_mirror,
    collate,
    load_image,
    mask_caption,
    mirror_words,
    pack,
    to_picture,
    to_tensor,
)
from beit3lib.pipeline.settings import OptionError
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer

MASK, WORDS = 99, 99


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(sample.SPM_PATH)


def make(drawn, tokenizer, train=True, split="train", **options):
    table = read_index(drawn / f"coco_captioning.{split}.jsonl")
    return CaptionDataset(table, drawn, tokenizer, 64, TrainConfig(**{"randaug": True, **options}), train)


# --- masking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, probability, wanted", [(1, 0.7, 2), (3, 0.6, 3), (10, 0.6, 7), (62, 0.7, 45), (2, 0.0, 1)])
def test_as_many_positions_as_the_recipe_chooses(words, probability, wanted):
    """clamp(int(n p + 0.5), 1, n - 1) of n = words + 2 tokens."""
    ids = [0, *range(10, 10 + words), 2]
    _, chosen = mask_caption(ids, 0, probability, MASK, WORDS, np.random.default_rng(0))
    assert chosen.sum() == min(max(int((words + 2) * probability + 0.5), 1), words + 1) == wanted and not chosen[0]


def test_the_end_can_be_chosen_and_the_prefix_never():
    rng, ends = np.random.default_rng(0), 0
    for _ in range(200):
        read, chosen = mask_caption([0, 50, 51, 10, 11, 2], 2, 0.6, MASK, WORDS, rng)
        assert not chosen[:3].any() and read[:3].tolist() == [0, 50, 51]
        ends += chosen[-1]
    assert 80 < ends < 160  # of 3 places 2 are chosen


def test_eight_ninths_of_changed_positions_are_masks_and_a_tenth_stays():
    rng, ids = np.random.default_rng(0), [0, *([20] * 998), 2]
    reads = np.concatenate([r[c] for r, c in (mask_caption(ids, 0, 0.9, MASK, WORDS, rng) for _ in range(20))])
    assert abs((reads == MASK).mean() - 0.8) < 0.01 and abs((reads == 20).mean() - 0.1) < 0.01
    others = reads[(reads != MASK) & (reads != 20) & (reads != 2)]
    assert others.min() == 3 and others.max() == WORDS - 1  # never <s>, <pad>, </s> or <mask> at random


# --- packing -------------------------------------------------------------------------------------------------------


def test_a_packed_row_restarts_positions_and_numbers_captions():
    captions = [([0, 50, 10, 2], 1), ([0, 51, 11, 12, 2], 1)]
    row = pack(captions, 0.5, MASK, WORDS, np.random.default_rng(0))
    assert row.targets.tolist() == [0, 50, 10, 2, 0, 51, 11, 12, 2]
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4] and row.segments.tolist() == [0] * 4 + [1] * 5


def test_a_batch_is_as_long_as_its_longest_row_and_padding_is_nobodys():
    rows = [pack([([0, *range(10, 10 + n), 2], 0)], 0.5, MASK, WORDS, np.random.default_rng(0)) for n in (2, 5)]
    batch = collate([(torch.zeros(3, 8, 8), row, str(i)) for i, row in enumerate(rows)], pad_id=1)
    assert batch.ids.shape == (2, 7) and batch.names == ["0", "1"]
    assert batch.segments[0].tolist() == [0] * 4 + [-1] * 3 and batch.ids[0, 4:].tolist() == [1] * 3
    assert batch.places.tolist() == [n + 7 * i for i, row in enumerate(rows) for n in np.flatnonzero(row.chosen)]


# --- the set -------------------------------------------------------------------------------------------------------


def test_ten_descriptions_of_a_picture_stand_in_one_row_each_behind_its_prefix(drawn, tokenizer):
    rows = make(drawn, tokenizer, flip="none")
    assert len(rows) == 8 and len(rows.descriptions) == 10
    _, row, name = rows[0]
    texts = [tokenizer.decode(row.targets[row.segments == n], skip_special_tokens=True) for n in range(10)]
    told = rows.reference(0)
    for (subject, aspect), text in zip(rows.descriptions, texts, strict=True):
        assert text == f"{subject} {aspect.replace('_', ' ')}: {told[subject, aspect]}".strip()
    assert name.startswith("images/avg")


def test_an_absent_aspect_is_learnt_as_absent(drawn, tokenizer):
    table = read_index(drawn / "coco_captioning.train.jsonl")
    kept = table[(table["aspect"] != "weather") | (table["subject"] != "vehicle")]
    rows = CaptionDataset(kept, drawn, tokenizer, 64, TrainConfig(flip="none"), True)
    row = rows[0][1]
    number = rows.descriptions.index(("vehicle", "weather"))
    assert tokenizer.decode(row.targets[row.segments == number], skip_special_tokens=True) == "vehicle weather:"


def test_one_description_has_no_prefix_as_in_the_seed(drawn, tokenizer):
    rows = make(drawn, tokenizer, subject="vehicle", aspect="road", flip="none")
    text = tokenizer.decode(rows[0][1].targets, skip_special_tokens=True)
    assert text == rows.reference(0)["vehicle", "road"] and set(rows[0][1].segments) == {0}


def test_a_description_that_no_line_has_is_named(drawn, tokenizer):
    table = read_index(drawn / "coco_captioning.train.jsonl")
    with pytest.raises(ValueError, match="expected lines of vehicle road"):
        CaptionDataset(
            table[table["aspect"] != "road"], drawn, tokenizer, 64, TrainConfig(subject="vehicle", aspect="road"), True
        )
    with pytest.raises(OptionError, match="aspect: expected one of moving"):
        TrainConfig(aspect="rode")


def test_what_is_drawn_follows_from_seed_epoch_and_sample_alone(drawn, tokenizer):
    a, b = make(drawn, tokenizer, seed=3), make(drawn, tokenizer, seed=3)
    b[5], b.at_epoch(7)[2]
    for x, y in zip(a.at_epoch(1)[4][1], b.at_epoch(1)[4][1], strict=True):
        assert np.array_equal(x, y)
    assert torch.equal(a.at_epoch(1)[4][0], b.at_epoch(1)[4][0])
    assert not torch.equal(a.at_epoch(1)[4][0], a.at_epoch(2)[4][0])
    assert a.order(0, 2) == b.order(0, 2) != a.order(1, 2)


def test_an_epoch_sees_every_sample_once(drawn, tokenizer):
    batches = make(drawn, tokenizer).order(0, 2)
    assert sorted(number for batch in batches for number in batch) == list(range(8))


def test_what_does_not_fill_a_batch_is_left_out_by_chance_and_not_by_length(drawn, tokenizer):
    rows = make(drawn, tokenizer)
    seen = {number for epoch in range(12) for batch in rows.order(epoch, 3) for number in batch}
    assert seen == set(range(8)) and all(len(batch) == 3 for batch in rows.order(0, 3))


def test_processes_that_load_for_one_epoch_keep_no_pictures(drawn, tokenizer, monkeypatch):
    rows = make(drawn, tokenizer)
    rows[0]
    assert len(rows._pictures) == 1
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: "a worker")
    rows[1]
    assert len(rows._pictures) == 1


def test_captions_longer_than_the_limit_are_cut(drawn, tokenizer):
    rows = make(drawn, tokenizer, subject="vehicle", aspect="road", num_max_bpe_tokens=6, flip="none")
    row = rows[0][1]
    assert len(row.ids) == 6 and row.targets[0] == 0 and row.targets[-1] == 2


def test_a_picture_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(ImageError, match="a.jpg: expected a picture"):
        load_image(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="b.jpg: expected a picture here"):
        load_image(tmp_path / "b.jpg")


def test_pixels_go_there_and_back():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    pixels = to_tensor(picture, 64)
    assert pixels.shape == (3, 64, 64) and pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(np.asarray(to_picture(pixels)), np.asarray(picture))
    assert pixels[0, 0, 0] == pytest.approx((np.asarray(picture)[0, 0, 0] / 255 - 0.5) / 0.5, abs=1e-6)


# --- left and right ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, mirrored",
    [
        ("On its left, close to the RIGHT side.", "On its right, close to the LEFT side."),
        ("Left-hand traffic turns leftwards.", "Right-hand traffic turns rightwards."),
        ("A bright street; he copyrights it.", "A bright street; he copyrights it."),
    ],
)
def test_left_and_right_change_places(text, mirrored):
    assert mirror_words(text) == mirrored and mirror_words(mirrored) == text


@pytest.mark.parametrize(
    "text, may",
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
def test_a_caption_that_cannot_be_mirrored_is_known(text, may):
    assert can_mirror(text) == may


@pytest.mark.parametrize("flip", ["swap", "recipe", "none"])
def test_what_each_way_of_flipping_does_to_picture_and_words(drawn, tokenizer, flip):
    plain = {"crop_area": 1.0, "randaug": False, "subject": "vehicle", "aspect": "position"}
    rows, still = make(drawn, tokenizer, flip=flip, **plain), make(drawn, tokenizer, flip="none", **plain)
    seen = set()
    for number in range(8):
        for epoch in range(4):
            pixels, row, _ = rows.at_epoch(epoch)[number]
            mirrored = torch.equal(pixels, still[number][0].flip(-1))
            assert mirrored or torch.equal(pixels, still[number][0])
            text, original = (
                tokenizer.decode(row.targets, skip_special_tokens=True),
                still.reference(number)["vehicle", "position"],
            )
            assert text == (mirror_words(original) if mirrored and flip == "swap" else original)
            seen.add(mirrored)
    assert seen == ({False} if flip == "none" else {True, False})


# --- augmentation --------------------------------------------------------------------------------------------------


def test_crops_keep_their_share_of_the_area_and_a_sensible_shape():
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = _crop((200, 150), 0.5, rng)
        width, height = right - left, bottom - top
        assert 0 <= left and 0 <= top and right <= 200 + 1e-9 and bottom <= 150 + 1e-9
        assert 0.5 - 1e-9 <= width * height / 30000 <= 1 and 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
    assert _crop((200, 150), 1.0, rng) == (0, 0, 200, 150)


@pytest.mark.parametrize("name", Augmentation.OPERATIONS)
def test_every_operation_keeps_size_and_mode_and_does_something(name):
    from beit3lib.dataset import _operate

    image = sample.draw_blur(sample.Scene(), sample.Camera(0.0, 0.0, 1.0, 0, 7))
    changed = _operate(image, name, np.random.default_rng(0))
    assert changed.size == image.size and changed.mode == "RGB"
    assert (np.asarray(changed) == np.asarray(image)).all() == (name == "Identity")


def test_operations_are_as_strong_as_the_recipes():
    """At magnitude 7 of 10: 7 pixels whatever the size, brightness times 1.36, a shear of 0.21."""
    from beit3lib.dataset import _operate

    grey = Image.new("RGB", (224, 224), (100, 100, 100))
    assert _operate(grey, "Brightness", np.random.default_rng(0)).getpixel((9, 9)) == (136, 136, 136)
    for name, axis in (("TranslateX", 1), ("TranslateY", 0)):
        moved = np.asarray(_operate(Image.new("RGB", (224, 224), "white"), name, np.random.default_rng(0)))[..., 0]
        assert sorted(np.flatnonzero((moved == 128).all(1 - axis)).tolist()) in (list(range(7)), list(range(217, 224)))
    sheared = np.asarray(_operate(Image.new("RGB", (200, 200), "white"), "ShearX", np.random.default_rng(0)))[..., 0]
    assert (sheared[-1] == 128).sum() == pytest.approx(0.21 * 200, abs=1)


def test_aspects_of_a_set_are_all_ten(drawn, tokenizer):
    assert {a for _, a in make(drawn, tokenizer).descriptions} == set(ASPECTS)
