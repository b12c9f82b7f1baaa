"""Masking and packing against the recipe's own code, and the samples that the data set makes of an index."""

import json
import random
import shutil
from collections import Counter, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_transforms import recipe  # noqa: F401  (a fixture)

from beit3lib import dataset
from beit3lib.data.index import read_index
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.dataset import CaptionDataset, collate, mask_caption, num_workers, pack
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer
from beit3lib.transforms import swap_left_right

MASK = 99  # the last id of a vocabulary of 100


class Config(SimpleNamespace):
    """The options that the data set reads, with the defaults of TrainConfig."""

    def __init__(self, **options):
        defaults = {
            "subject": "all",
            "aspect": "all",
            "flip": "swap",
            "crop_area": 0.5,
            "randaug": True,
            "seed": 0,
        }
        defaults |= {"num_max_bpe_tokens": 64, "captioning_mask_prob": 0.6, "train_interpolation": "bicubic"}
        super().__init__(**{**defaults, **options})

    def caption_types(self):
        subjects = SUBJECTS if self.subject == "all" else (self.subject,)
        return [(s, a) for s in subjects for a in (ASPECTS if self.aspect == "all" else (self.aspect,))]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(sample.SPM_PATH)


def make(drawn, tokenizer, train=True, split="train", table=None, **options):
    table = read_index(drawn / f"coco_captioning.{split}.jsonl") if table is None else table
    return CaptionDataset(table, drawn, tokenizer, 64, Config(**options), train)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def recipe_masking(recipe):  # noqa: F811
    """(ids, probability) -> (masked ids, chosen positions), by the recipe's data set without its files."""
    bare = object.__new__(recipe.CaptioningDataset)
    bare.mask_token_id, bare.language_vocab_size = MASK, MASK + 1
    return lambda ids, probability: bare._masking_on_text_tokens(list(ids), len(ids), probability)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.6, 0.7, 0.99])
def test_number_of_masked_positions_equals_the_recipes(recipe_masking, probability):
    for length in range(3, 65):
        ids = [0, *range(10, 8 + length), 2]
        _, chosen = mask_caption(ids, 0, probability, MASK, rng(length))
        assert chosen.sum() == sum(recipe_masking(ids, probability)[1])


def test_positions_and_replacements_are_distributed_as_the_recipes(recipe_masking):
    def frequencies(mask):
        positions, kinds = Counter(), Counter()
        for _ in range(3000):
            masked, chosen = mask()
            for position in np.flatnonzero(chosen):
                positions[int(position)] += 1
                new = masked[position]
                kinds[
                    "mask"
                    if new == MASK
                    else "same"
                    if new == ids[position]
                    else "low"
                    if new < 3
                    else "random"
                ] += 1
        return {key: count / 3000 for key, count in (positions | kinds).items()}

    ids, generator = [0, 20, 21, 22, 23, 24, 25, 2], rng()
    random.seed(0)
    ours, theirs = (
        frequencies(lambda: mask_caption(ids, 0, 0.6, MASK, generator)),
        frequencies(lambda: recipe_masking(ids, 0.6)),
    )
    assert ours.keys() == theirs.keys() and 0 not in ours and 7 in ours and "low" not in ours
    for key in ours:
        assert ours[key] == pytest.approx(theirs[key], abs=0.05), key


def test_random_replacements_span_the_recipes_range(recipe_masking):
    ids, generator = [0, *([20] * 998), 2], rng()
    random.seed(0)
    ours = np.concatenate([mask_caption(ids, 0, 0.9, MASK, generator)[0] for _ in range(20)])[1:]
    theirs = np.concatenate([recipe_masking(ids, 0.9)[0] for _ in range(20)])[1:]
    assert set(ours) - {0} == set(theirs) - {0} == {2, *range(3, MASK + 1)}


def test_the_end_can_be_masked_and_the_prompt_never():
    generator, ends = rng(), 0
    for _ in range(200):
        masked, chosen = mask_caption([0, 50, 51, 10, 11, 2], 2, 0.6, MASK, generator)
        assert not chosen[:3].any() and masked[:3].tolist() == [0, 50, 51]
        ends += chosen[-1]
    assert 80 < ends < 160  # 2 of 3 positions are chosen


def test_packed_captions_restart_positions_and_have_their_own_doc_ids():
    packed = pack([([0, 50, 10, 2], 1), ([0, 51, 11, 12, 2], 1)], 0.5, MASK, rng())
    assert packed.labels.tolist() == [0, 50, 10, 2, 0, 51, 11, 12, 2]
    assert (
        packed.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
        and packed.doc_ids.tolist() == [0] * 4 + [1] * 5
    )


def test_a_batch_is_padded_to_its_longest_sequence():
    sequences = [pack([([0, *range(10, 10 + n), 2], 0)], 0.5, MASK, rng()) for n in (2, 5)]
    batch = collate(
        [(torch.zeros(3, 8, 8), sequence, str(i)) for i, sequence in enumerate(sequences)], pad_id=1
    )
    assert batch.input_ids.shape == (2, 7) and batch.names == ["0", "1"] and batch.num_tokens == 4 + 7
    assert batch.doc_ids[0].tolist() == [0] * 4 + [-1] * 3 and batch.input_ids[0, 4:].tolist() == [1] * 3
    assert batch.mask_positions.tolist() == [
        n + 7 * i for i, s in enumerate(sequences) for n in np.flatnonzero(s.masked)
    ]


def test_a_sample_packs_the_ten_captions_of_an_image_each_after_its_prompt(drawn, tokenizer):
    captions = make(drawn, tokenizer, flip="none")
    assert len(captions) == 8 and len(captions.caption_types) == 10
    _, packed, name = captions[0]
    texts = [
        tokenizer.decode(packed.labels[packed.doc_ids == n], skip_special_tokens=True) for n in range(10)
    ]
    for (subject, aspect), text in zip(captions.caption_types, texts, strict=True):
        assert (
            text == f"{subject} {aspect.replace('_', ' ')}: {captions.reference(0)[subject, aspect]}".strip()
        )
    assert name.startswith("images/avg")


def test_an_aspect_that_is_not_mentioned_is_trained_as_an_empty_caption(drawn, tokenizer):
    table = read_index(drawn / "coco_captioning.train.jsonl")
    kept = table[(table["aspect"] != "weather") | (table["subject"] != "vehicle")]
    captions = make(drawn, tokenizer, table=kept, flip="none")
    packed, number = captions[0][1], captions.caption_types.index(("vehicle", "weather"))
    assert captions.reference(0)["vehicle", "weather"] == ""
    assert (
        tokenizer.decode(packed.labels[packed.doc_ids == number], skip_special_tokens=True)
        == "vehicle weather:"
    )


def test_a_single_caption_type_has_no_prompt_as_in_the_original_repository(drawn, tokenizer):
    captions = make(drawn, tokenizer, subject="vehicle", aspect="road", flip="none")
    packed = captions[0][1]
    text = tokenizer.decode(packed.labels, skip_special_tokens=True)
    assert text == captions.reference(0)["vehicle", "road"] and set(packed.doc_ids) == {0}


def test_a_caption_type_without_lines_is_an_error_that_names_it(drawn, tokenizer):
    table = read_index(drawn / "coco_captioning.train.jsonl")
    with pytest.raises(ValueError, match="expected captions of type vehicle road in the index, found none"):
        make(drawn, tokenizer, table=table[table["aspect"] != "road"], subject="vehicle", aspect="road")


def test_random_choices_follow_from_seed_epoch_and_index_alone(drawn, tokenizer):
    a, b = make(drawn, tokenizer, seed=3), make(drawn, tokenizer, seed=3)
    b[5], b.at_epoch(7)[2], random.seed(1)
    for x, y in zip(a.at_epoch(1)[4][1], b.at_epoch(1)[4][1], strict=True):
        assert np.array_equal(x, y)
    assert torch.equal(a.at_epoch(1)[4][0], b.at_epoch(1)[4][0])
    assert not torch.equal(a.at_epoch(1)[4][0], a.at_epoch(2)[4][0])
    assert a.epoch_batches(0, 2) == b.epoch_batches(0, 2) != a.epoch_batches(1, 2)


def test_loader_workers_give_the_same_samples_as_the_main_process(drawn, tokenizer):
    captions = make(drawn, tokenizer)
    batches = captions.epoch_batches(0, 4)
    loader = torch.utils.data.DataLoader(
        captions, batch_sampler=batches, num_workers=2, collate_fn=captions.collate
    )
    for batch, indices in zip(loader, batches, strict=True):
        expected = captions.collate([captions[i] for i in indices])
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.input_ids, expected.input_ids)


def test_an_epoch_contains_every_sample_once(drawn, tokenizer):
    batches = make(drawn, tokenizer).epoch_batches(0, 2)
    assert sorted(index for batch in batches for index in batch) == list(range(8))


def test_the_incomplete_batch_is_dropped_at_random_and_not_by_length(drawn, tokenizer):
    captions = make(drawn, tokenizer)
    seen = {index for epoch in range(12) for batch in captions.epoch_batches(epoch, 3) for index in batch}
    assert seen == set(range(8)) and all(len(batch) == 3 for batch in captions.epoch_batches(0, 3))


def test_long_captions_are_cut_to_the_limit(drawn, tokenizer):
    captions = make(drawn, tokenizer, subject="vehicle", aspect="road", num_max_bpe_tokens=6, flip="none")
    packed = captions[0][1]
    assert len(packed.labels) == 6 and packed.labels[0] == 0 and packed.labels[-1] == 2


@pytest.mark.parametrize("flip", ["swap", "recipe", "none"])
def test_each_kind_of_flip_changes_image_and_caption_as_documented(drawn, tokenizer, flip):
    plain = {"crop_area": 1.0, "randaug": False, "subject": "vehicle", "aspect": "position"}
    captions, still = make(drawn, tokenizer, flip=flip, **plain), make(drawn, tokenizer, flip="none", **plain)
    seen = set()
    for index in range(8):
        for epoch in range(4):
            pixels, packed, _ = captions.at_epoch(epoch)[index]
            flipped = torch.equal(pixels, still[index][0].flip(-1))
            assert flipped or torch.equal(pixels, still[index][0])
            text, original = (
                tokenizer.decode(packed.labels, skip_special_tokens=True),
                still.reference(index)["vehicle", "position"],
            )
            assert text == (swap_left_right(original) if flipped and flip == "swap" else original)
            seen.add(flipped)
    assert seen == ({False} if flip == "none" else {True, False})


def recipe_table(drawn, folder, split, null):
    """The vehicle road lines with the recipe's three keys alone, `text_segment` null where `null` says so."""
    lines = [json.loads(line) for line in (drawn / f"coco_captioning.{split}.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["aspect"] == "road" and line["subject"] == "vehicle"]
    for number, line in enumerate(kept):
        line["text_segment"] = None if null(number) else line["text_segment"]
    path = folder / "coco_captioning.val.jsonl"
    keys = ("image_path", "text_segment", "image_id")
    path.write_text("".join(json.dumps({key: line[key] for key in keys}) + "\n" for line in kept))
    return read_index(path)


def test_the_recipes_index_is_one_caption_type_without_a_name(drawn, tmp_path, tokenizer):
    table = recipe_table(drawn, tmp_path, "train", null=lambda number: False)
    captions = make(drawn, tokenizer, table=table, flip="none")
    assert captions.caption_types == [("", "")] and len(captions) == 8
    assert tokenizer.decode(captions[0][1].labels, skip_special_tokens=True) == captions.reference(0)["", ""]


def test_validation_keeps_images_without_reference_and_training_does_not(drawn, tmp_path, tokenizer):
    table = recipe_table(drawn, tmp_path, "val", null=lambda number: True)
    captions = make(drawn, tokenizer, table=table, train=False)
    assert len(captions) == 4 and captions.reference(0) == {}
    with pytest.raises(ValueError, match="expected captions of type all all in the index, found none"):
        make(drawn, tokenizer, table=table, train=True)
    some = recipe_table(drawn, tmp_path, "val", null=lambda number: number == 1)
    assert (
        len(make(drawn, tokenizer, table=some, train=False)) == 4
        and len(make(drawn, tokenizer, table=some)) == 3
    )


def test_a_null_line_is_unknown_and_not_an_empty_caption(drawn, tokenizer):
    table = read_index(drawn / "coco_captioning.val.jsonl")
    is_null = (table["subject"] == "vehicle") & (table["aspect"] == "weather")
    table["text_segment"] = table["text_segment"].where(~is_null, None)
    captions = make(drawn, tokenizer, table=table, train=False)
    assert len(captions.reference(0)) == 9 and ("vehicle", "weather") not in captions.reference(0)


@pytest.mark.parametrize("with_text", [True, False])
def test_an_index_made_with_another_tokenizer_is_refused(drawn, tmp_path, tokenizer, with_text):
    table = read_index(drawn / "coco_captioning.train.jsonl")
    if not with_text:
        table = recipe_table(drawn, tmp_path, "train", null=lambda number: False)
    table["text_segment"] = [[3 + (i * 7) % 500 for i in ids] for ids in table["text_segment"]]
    with pytest.raises(ValueError, match="expected an index made with this tokenizer.*make the index again"):
        make(drawn, tokenizer, table=table)


@pytest.mark.parametrize(
    "requested, cores, free_mb, processes, workers",
    [
        (10, 4, 10_000, 1, 4),
        (2, 4, 10_000, 1, 2),
        (0, 4, 0, 1, 0),
        (10, 4, 64, 1, 2),
        (10, 4, 20, 1, 0),
        (10, 4, 10_000, 2, 2),
    ],
)
def test_loader_workers_fit_cores_and_shared_memory(
    monkeypatch, capsys, requested, cores, free_mb, processes, workers
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(dataset.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.setattr(dataset.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free_mb * 1_000_000))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert num_workers(requested, batch_bytes=10_000_000) == workers
    assert ("MB free" in capsys.readouterr().out) == (free_mb in (64, 20))
