"""Index lines to training batches: one image and one packed sequence of masked captions per sample.

A packed sequence holds the captions of an image end to end. Positions restart at each caption, and `doc_ids` keep
attention inside it. A single caption is the special case of one document, and then equals the recipe's sample.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from beit3lib.data.images import open_image
from beit3lib.data.schema import UNNAMED, CaptionType
from beit3lib.tokenizer import prompt_ids
from beit3lib.transforms import Augmentation, can_swap, swap_left_right, to_tensor

FIRST_RANDOM_ID = (
    3  # random replacements are drawn from `<unk>` up, never `<s>`, `<pad>` or `</s>`; as the recipe does
)
POOL = 16  # batches that are grouped by length together: less padding, while the order stays random
CACHE_BYTES = 1_000_000_000  # of decoded images; the sample's 400 images take 0.1 GB


class PackedSequence(NamedTuple):
    """The captions of one image end to end, T tokens; int64 arrays (T,), except `masked`, bool (T,)."""

    input_ids: np.ndarray  # what the model reads, with masks in it
    labels: np.ndarray  # the original ids
    positions: np.ndarray  # 0, 1, … within each caption
    doc_ids: np.ndarray  # number of the caption within the sequence
    masked: np.ndarray  # positions at which the loss is taken


@dataclass
class Batch:
    """B images (B, 3, S, S) and B packed sequences (B, T), padded at the end with doc_id -1.

    `mask_positions` (n,) are the positions of the loss in the flattened (B * T) batch, `names` the image paths, and
    `num_tokens` counts tokens without padding.
    """

    images: Tensor
    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    doc_ids: Tensor
    mask_positions: Tensor
    names: list[str]
    num_tokens: int

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`; the copy is asynchronous from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory; called by `DataLoader(pin_memory=True)`."""
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> "Batch":
        return Batch(
            **{
                name: function(value) if isinstance(value, Tensor) else value
                for name, value in vars(self).items()
            }
        )


def mask_caption(
    ids: Sequence[int], prompt_length: int, probability: float, mask_id: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one caption `<s>` prompt tokens `</s>`; returns the masked ids and the chosen positions (bool).

    Of the n tokens without the prompt, clamp(int(n * probability + 0.5), 1, n - 1) are chosen, never `<s>` or the
    prompt. 80 % of them become `<mask>` (the tokenizer's last id), 10 % a random id from 3 up, 10 % stay.
    Source: the public captioning recipe.
    """
    masked_ids = np.array(ids)
    n = len(ids) - prompt_length
    count = max(min(int(n * probability + 0.5), n - 1), 1)
    positions = prompt_length + 1 + rng.choice(n - 1, count, replace=False)
    kind = rng.random(count)
    random_ids = rng.integers(FIRST_RANDOM_ID, mask_id + 1, count)
    masked_ids[positions] = np.where(
        kind < 0.8, mask_id, np.where(kind < 0.9, masked_ids[positions], random_ids)
    )
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[positions] = True
    return masked_ids, chosen


def pack(
    captions: Sequence[tuple[list[int], int]], probability: float, mask_id: int, rng: np.random.Generator
) -> PackedSequence:
    """Mask captions, each (ids with special tokens, length of its prompt), and join them to one sequence."""
    masked = [mask_caption(ids, prompt_length, probability, mask_id, rng) for ids, prompt_length in captions]
    lengths = [len(ids) for ids, _ in captions]
    return PackedSequence(
        input_ids=np.concatenate([ids for ids, _ in masked]),
        labels=np.concatenate([np.array(ids) for ids, _ in captions]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        doc_ids=np.repeat(np.arange(len(lengths)), lengths),
        masked=np.concatenate([chosen for _, chosen in masked]),
    )


def collate(samples: Sequence[tuple[Tensor, PackedSequence, str]], pad_id: int = 1) -> Batch:
    """Stack (image, sequence, name) samples, the sequences padded to the longest."""
    images, sequences, names = zip(*samples, strict=True)
    longest = max(len(sequence.input_ids) for sequence in sequences)
    padding = PackedSequence(input_ids=pad_id, labels=pad_id, positions=0, doc_ids=-1, masked=False)
    columns = {}
    for name, value in padding._asdict().items():
        arrays = [getattr(sequence, name) for sequence in sequences]
        padded = [np.pad(array, (0, longest - len(array)), constant_values=value) for array in arrays]
        columns[name] = torch.from_numpy(np.stack(padded))  # (B, T)
    mask_positions = columns.pop("masked").flatten().nonzero()[:, 0]
    num_tokens = sum(len(sequence.input_ids) for sequence in sequences)
    return Batch(
        torch.stack(images),
        **columns,
        mask_positions=mask_positions,
        names=list(names),
        num_tokens=num_tokens,
    )


def num_workers(requested: int, batch_bytes: int) -> int:
    """How many loader processes to start: at most `requested`, one per core of this process, and what /dev/shm can hold.

    Each worker keeps up to three batches of `batch_bytes` in shared memory (two prefetched, one in use). With less
    space than that, as under Docker's default of 64 MB, the loader would hang or die with a bus error.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(requested, max(1, cores // processes))
    if not workers or not os.path.isdir("/dev/shm"):
        return workers
    free = shutil.disk_usage("/dev/shm").free
    fitting = free // processes // (3 * batch_bytes)
    if fitting < workers:
        print(
            f"/dev/shm: {free / 1e6:.0f} MB free, so {fitting} instead of {workers} processes load images. "
            "Start Docker with --shm-size=8g, or choose a smaller batch size, to load faster."
        )
    return min(workers, fitting)


class Sample(NamedTuple):
    """One image with its known captions {caption type: (ids, text)}; an aspect that is not mentioned has ([], "")."""

    image: str
    captions: dict[CaptionType, tuple[list[int], str]]


def group_captions(table: pd.DataFrame, caption_types: Sequence[CaptionType], tokenizer) -> list[Sample]:
    """Group the lines of an index by image, sorted by image path; a line whose `text_segment` is null adds no caption.

    With several caption types, an aspect that the captions of a subject do not mention is known to be empty. In an index
    without subjects every line is a sample of its own, of the first caption type.
    """
    named = table["subject"].notna().any()
    by_image: dict[str, list] = {}
    for line in table[["image_path", "subject", "aspect", "text_segment", "caption"]].itertuples(index=False):
        by_image.setdefault(line.image_path, []).append(line)
    samples = []
    for image in sorted(by_image):
        lines = by_image[image]
        known = [line for line in lines if isinstance(line.text_segment, list)]
        if not named:
            texts = [(line.text_segment, tokenizer.decode(line.text_segment)) for line in known]
            samples += [Sample(image, {caption_types[0]: text}) for text in texts] or [Sample(image, {})]
            continue
        captions = {(line.subject, line.aspect): (line.text_segment, line.caption) for line in known}
        if len(caption_types) > 1:
            subjects, listed = (
                {subject for subject, _ in captions},
                {(line.subject, line.aspect) for line in lines},
            )
            captions |= {
                caption_type: ([], "")
                for caption_type in caption_types
                if caption_type[0] in subjects and caption_type not in listed
            }
        wanted = {
            caption_type: captions[caption_type] for caption_type in caption_types if caption_type in captions
        }
        if wanted or not captions:  # an image that has only captions of other types is no sample
            samples.append(Sample(image, wanted))
    return samples


class CaptionDataset(torch.utils.data.Dataset):
    """Index lines as samples (pixels (3, S, S), `PackedSequence`, image path), one per image.

    `config.subject` and `config.aspect` select one caption type, trained without a prompt as in the original repository,
    or "all": then a sequence holds every known caption of the image, each after its prompt, and an aspect that is not
    mentioned is trained as an empty caption. `train` adds augmentation and drops images without a known caption. All
    random choices follow from (config.seed, epoch, index).
    """

    def __init__(
        self, table: pd.DataFrame, root: str | Path, tokenizer, image_size: int, config, train: bool
    ) -> None:
        self.root, self.tokenizer, self.image_size, self.config = Path(root), tokenizer, image_size, config
        self.epoch = 0
        self.caption_types: list[CaptionType] = config.caption_types()
        if len(self.caption_types) > 1 and table["subject"].isna().all():
            self.caption_types = [UNNAMED]
        several = len(self.caption_types) > 1
        self.prompts = {
            caption_type: prompt_ids(tokenizer, *caption_type) if several else []
            for caption_type in self.caption_types
        }
        samples = group_captions(table, self.caption_types, tokenizer)
        self.samples = [sample for sample in samples if sample.captions or not train]
        if not self.samples:
            wanted = f"{config.subject} {config.aspect}"
            raise ValueError(
                f"{root}: expected captions of type {wanted} in the index, found none. Choose another subject or aspect, or "
                "see which captions notebook 2 skipped."
            )
        _check_tokenizer(self.samples, tokenizer, self.root)
        limit = config.num_max_bpe_tokens - 2
        lengths = [
            [min(len(ids), limit) + 2 for ids, _ in sample.captions.values()] for sample in self.samples
        ]
        self.lengths = np.array([sum(captions) for captions in lengths])
        self.augment = Augmentation(image_size, config) if train else None
        self._cache: dict[int, Image.Image] = {}
        self._cache_bytes_left = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.samples)

    def at_epoch(self, epoch: int) -> "CaptionDataset":
        """Return this data set, set to draw the random choices of `epoch`."""
        self.epoch = epoch
        return self

    def epoch_batches(self, epoch: int, batch_size: int) -> list[list[int]]:
        """Batches of sample indices for one epoch: shuffled, and grouped by text length within `POOL` batches."""
        rng = np.random.default_rng((self.config.seed, epoch))
        # Drop the incomplete batch before sorting by length, so that long captions are not dropped more often.
        shuffled = rng.permutation(len(self))[: len(self) // batch_size * batch_size]
        pools = [shuffled[i : i + POOL * batch_size] for i in range(0, len(shuffled), POOL * batch_size)]
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [by_length[i : i + batch_size].tolist() for i in range(0, len(by_length), batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __getitem__(self, index: int) -> tuple[Tensor, PackedSequence, str]:
        sample, config = self.samples[index], self.config
        rng = np.random.default_rng((config.seed, self.epoch, index))
        image, swap = self._image(index), False
        if self.augment is not None:
            flip = config.flip != "none" and rng.random() < 0.5
            if flip and config.flip == "swap":
                flip = swap = all(can_swap(text) for _, text in sample.captions.values())
            image = self.augment(image, rng, flip)
        captions = [
            self._caption(caption_type, ids, text, swap)
            for caption_type, (ids, text) in sample.captions.items()
        ]
        packed = pack(captions, config.captioning_mask_prob, self.tokenizer.mask_token_id, rng)
        return to_tensor(image, self.image_size), packed, sample.image

    def _caption(
        self, caption_type: CaptionType, ids: list[int], text: str, swap: bool
    ) -> tuple[list[int], int]:
        """`<s>` prompt caption `</s>` and the length of the prompt, which `num_max_bpe_tokens` does not count."""
        if swap and ids:
            ids = self.tokenizer.encode(swap_left_right(text), add_special_tokens=False)
        prompt, ids = self.prompts[caption_type], ids[: self.config.num_max_bpe_tokens - 2]
        return [self.tokenizer.bos_token_id, *prompt, *ids, self.tokenizer.eos_token_id], len(prompt)

    def _image(self, index: int) -> Image.Image:
        path = self.root / self.samples[index].image
        if (
            get_worker_info() is not None
        ):  # workers are started again for every epoch, so their cache would never be used
            return open_image(path)
        if index not in self._cache:
            image = open_image(path)
            size = image.width * image.height * 3
            if size > self._cache_bytes_left:
                return image
            self._cache_bytes_left -= size
            self._cache[index] = image
        return self._cache[index]

    def collate(self, samples: Sequence[tuple[Tensor, PackedSequence, str]]) -> Batch:
        """`collate_fn` for `DataLoader`."""
        return collate(samples, self.tokenizer.pad_token_id)

    def reference(self, index: int) -> dict[CaptionType, str]:
        """The known captions of a sample, "" for an aspect that is not mentioned; empty if the sample has no caption."""
        return {caption_type: text for caption_type, (_, text) in self.samples[index].captions.items()}


def _check_tokenizer(samples: list[Sample], tokenizer, root: Path) -> None:
    """Refuse ids of another tokenizer: they decode to other words, and training on them raises no error.

    Single captions may differ, for example where two versions of transformers treat white space differently.
    """
    texts = [caption for sample in samples for caption in list(sample.captions.values())[:1] if caption[0]]
    texts = texts[:: max(1, len(texts) // 20)]
    differ = [(ids, text) for ids, text in texts if ids != tokenizer.encode(text, add_special_tokens=False)]
    if 2 * len(differ) > len(texts):
        raise ValueError(
            f"{root}: expected an index made with this tokenizer, got other token ids for {differ[0][1][:60]!r}. Use the "
            "sentencepiece model that the index was made with, or make the index again (notebook 2) with the one that "
            "belongs to the checkpoint."
        )
