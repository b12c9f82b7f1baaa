"""Masking equals the reference implementation's, and an index becomes the documented training examples."""

import random
import shutil
from collections import Counter
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch

from beit3lib.config import TrainConfig
from beit3lib.data.index import read_index
from beit3lib.dataset import CaptionDataset, mask_caption, num_workers
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import load_tokenizer
from beit3lib.transforms import swap_left_right

MASK = 99  # the last id of a vocabulary of 100


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SPM_PATH)


@pytest.fixture
def make(drawn, tokenizer):
    """make(**options): the data set of the drawn run, without flips."""

    def make(train=True, split="train", table=None, **options):
        table = read_index(drawn / f"coco_captioning.{split}.jsonl") if table is None else table
        config = TrainConfig(**{"flip": "none", "randaug": True, **options})
        return CaptionDataset(table, drawn, tokenizer, 64, config, train)

    return make


@pytest.fixture
def table(drawn):
    return read_index(drawn / "coco_captioning.train.jsonl")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def their_mask(reference):
    """(ids, probability) -> (masked ids, chosen positions), by the reference implementation."""
    theirs = object.__new__(reference.recipe("datasets").CaptioningDataset)
    theirs.mask_token_id, theirs.language_vocab_size = MASK, MASK + 1
    random.seed(0)
    return lambda ids, probability: theirs._masking_on_text_tokens(list(ids), len(ids), probability)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.6, 0.7, 0.99])
def test_as_many_positions_are_masked_as_in_the_reference_implementation(their_mask, probability):
    for length in range(3, 65):
        ids = [0, *range(10, 8 + length), 2]
        chosen = mask_caption(ids, 0, probability, MASK, rng(length))[1]
        assert chosen.sum() == sum(their_mask(ids, probability)[1])


def test_positions_and_replacements_are_distributed_as_in_the_reference_implementation(their_mask):
    ids, generator = [0, 20, 21, 22, 23, 24, 25, 2], rng()

    def frequencies(mask):
        found = Counter()
        for _ in range(3000):
            masked, chosen = mask()
            for position in map(int, np.flatnonzero(chosen)):
                new = masked[position]
                kind = {MASK: "mask", ids[position]: "same"}.get(new, "low" if new < 3 else "random")
                found.update([position, kind])
        return {key: count / 3000 for key, count in found.items()}

    ours = frequencies(lambda: mask_caption(ids, 0, 0.6, MASK, generator))
    assert ours == pytest.approx(frequencies(lambda: their_mask(ids, 0.6)), abs=0.05)
    assert set(ours) == {*range(1, 8), "mask", "same", "random"}


def test_the_end_can_be_masked_and_the_prompt_never():
    generator, ends = rng(), 0
    for _ in range(200):
        masked, chosen = mask_caption([0, 50, 51, 10, 11, 2], 2, 0.6, MASK, generator)
        assert not chosen[:3].any() and masked[:3].tolist() == [0, 50, 51]
        ends += chosen[-1]
    assert 80 < ends < 160  # 2 of 3 positions are chosen


def test_an_example_packs_every_caption_of_an_image_after_its_prompt(make, tokenizer, table):
    """An aspect that is not mentioned is an empty caption; a line without ids is unknown."""
    is_weather = (table["aspect"] == "weather") & (table["subject"] == "vehicle")
    captions = make(table=table.assign(text_segment=table["text_segment"].where(~is_weather, None)))
    assert len(captions.reference(0)) == 9 and ("vehicle", "weather") not in captions.reference(0)
    captions = make(table=table[~is_weather])
    assert len(captions) == 8 and len(captions.caption_types) == 10
    packed, name = captions[0].sequence, captions[0].image
    assert captions.reference(0)["vehicle", "weather"] == "" and name.startswith("images/avg")
    for number, (subject, aspect) in enumerate(captions.caption_types):
        text = tokenizer.decode(packed.labels[packed.doc_ids == number], skip_special_tokens=True)
        caption = captions.reference(0)[subject, aspect]
        assert text == f"{subject} {aspect.replace('_', ' ')}: {caption}".strip()


def test_a_single_caption_type_has_no_prompt_as_in_the_original_repository(make, tokenizer, table):
    one = {"subject": "vehicle", "aspect": "road"}
    captions = make(**one)
    packed = captions[0].sequence
    text = tokenizer.decode(packed.labels, skip_special_tokens=True)
    assert text == captions.reference(0)["vehicle", "road"] and set(packed.doc_ids) == {0}
    packed = make(**one, num_max_bpe_tokens=6)[0].sequence
    assert len(packed.labels) == 6 and packed.labels[0] == 0 and packed.labels[-1] == 2
    with pytest.raises(ValueError, match="expected captions of type vehicle road in the index, found none"):
        make(table=table[table["aspect"] != "road"], **one)


def test_random_choices_follow_from_seed_epoch_and_index_alone(make):
    a, b = make(seed=3, flip="swap"), make(seed=3, flip="swap")
    b[5], b.at_epoch(7)[2], random.seed(1)
    item, same, other = a.at_epoch(1)[4], b.at_epoch(1)[4], a.at_epoch(2)[4]
    assert all(map(np.array_equal, item.sequence, same.sequence)) and torch.equal(item.pixels, same.pixels)
    assert not torch.equal(item.pixels, other.pixels)
    assert a.epoch_batches(0, 2) == b.epoch_batches(0, 2) != a.epoch_batches(1, 2)
    batches = a.epoch_batches(0, 4)
    loader = torch.utils.data.DataLoader(a, batch_sampler=batches, num_workers=2, collate_fn=a.collate)
    for batch, indices in zip(loader, batches, strict=True):
        assert torch.equal(batch.images, a.collate([a[i] for i in indices]).images)


def test_an_epoch_has_every_example_once_and_drops_the_incomplete_batch_at_random(make):
    captions = make()
    assert sorted(index for batch in captions.epoch_batches(0, 2) for index in batch) == list(range(8))
    seen = {index for epoch in range(12) for batch in captions.epoch_batches(epoch, 3) for index in batch}
    assert seen == set(range(8)) and all(len(batch) == 3 for batch in captions.epoch_batches(0, 3))


@pytest.mark.parametrize("flip", ["swap", "recipe", "none"])
def test_each_kind_of_flip_changes_image_and_caption_as_documented(make, tokenizer, flip):
    plain = {"crop_area": 1.0, "randaug": False, "subject": "vehicle", "aspect": "position"}
    captions, still, seen = make(flip=flip, **plain), make(**plain), set()
    for index in range(8):
        original = still.reference(index)["vehicle", "position"]
        for epoch in range(4):
            pixels, packed, *_ = captions.at_epoch(epoch)[index]
            flipped = torch.equal(pixels, still[index][0].flip(-1))
            assert flipped or torch.equal(pixels, still[index][0])
            text = tokenizer.decode(packed.labels, skip_special_tokens=True)
            assert text == (swap_left_right(original) if flipped and flip == "swap" else original)
            seen.add(flipped)
    assert seen == ({False} if flip == "none" else {True, False})


def test_an_index_made_with_another_tokenizer_is_refused(make, table):
    table["text_segment"] = [[3 + (i * 7) % 500 for i in ids] for ids in table["text_segment"]]
    with pytest.raises(ValueError, match="expected an index made with this tokenizer.*make the index again"):
        make(table=table)


@pytest.mark.filterwarnings("ignore:/dev/shm is small")
@pytest.mark.parametrize(
    "requested, free_mb, processes, workers",
    [(10, 10_000, 1, 4), (2, 10_000, 1, 2), (0, 0, 1, 0), (10, 64, 1, 2), (10, 20, 1, 0), (10, 10_000, 2, 2)],
)
def test_loader_workers_fit_cores_and_shared_memory(monkeypatch, requested, free_mb, processes, workers):
    """Four cores, batches of 10 MB."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_mb * 1_000_000))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert num_workers(requested, batch_bytes=10_000_000) == workers
