"""Index lines to training batches: an image, and one sequence of its masked captions and questions.

A packed sequence holds the captions and questions of an image end to end. Positions restart at each of them,
and `doc_ids` keep attention inside it. A single caption is the special case of one document, and equals the
reference implementation's training example.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from beit3lib.data.images import open_image
from beit3lib.data.schema import UNNAMED, CaptionType
from beit3lib.question import Options, Question, collate_options, encode_question
from beit3lib.tokenizer import prompts_by_type
from beit3lib.transforms import Augmentation, can_swap, swap_left_right, to_tensor

FIRST_RANDOM_ID = (
    3  # `<unk>`: no token is replaced by `<s>`, `<pad>` or `</s>`, as in the reference implementation
)
POOL = 16  # batches that are grouped by length together: less padding, while the order stays random


class PackedSequence(NamedTuple):
    """The documents of one image end to end, T tokens; int64 arrays (T,), except the last two, bool (T,)."""

    input_ids: np.ndarray  # what the model reads, with masks in it
    labels: np.ndarray  # the original ids
    positions: np.ndarray  # 0, 1, … within each document
    doc_ids: np.ndarray  # number of the document within the sequence
    masked: np.ndarray  # positions at which the loss of captions is taken
    bidirectional: np.ndarray  # whether the token belongs to a question


class Item(NamedTuple):
    """An example for `collate`: pixels (3, S, S), its packed sequence and questions, and the image's path."""

    pixels: Tensor
    sequence: PackedSequence
    questions: list[Question]
    image: str


@dataclass
class Batch:
    """B images (B, 3, S, S) and B packed sequences (B, T), padded at the end with doc_id -1.

    `mask_positions` (n,) are the positions of the captions' loss in the flattened (B * T) batch, and
    `question_positions` (Q,) those of the `<s>` of each question. `names` are the image paths, and
    `num_tokens` counts tokens without padding.
    """

    images: Tensor
    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    doc_ids: Tensor
    bidirectional: Tensor
    mask_positions: Tensor
    question_positions: Tensor
    options: Options
    names: list[str]
    num_tokens: int

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`; the copy is asynchronous from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory; called by `DataLoader(pin_memory=True)`."""
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> "Batch":
        tensors = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, options=Options(*map(function, self.options)), **tensors)


def mask_caption(
    ids: Sequence[int], prompt_length: int, probability: float, mask_id: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one caption `<s>` prompt tokens `</s>`; returns the masked ids and the chosen positions (bool).

    Of the n tokens without the prompt, clamp(int(n * probability + 0.5), 1, n - 1) are chosen, never `<s>` or
    the prompt. 80 % of them become `<mask>` (the tokenizer's last id), 10 % a random id from 3 up, 10 % stay.
    Source: the reference implementation.
    """
    masked_ids = np.array(ids)
    n = len(ids) - prompt_length
    count = max(min(int(n * probability + 0.5), n - 1), 1)
    positions = prompt_length + 1 + rng.choice(n - 1, count, replace=False)
    kind = rng.random(count)
    random_ids = rng.integers(FIRST_RANDOM_ID, mask_id + 1, count)
    same_or_random = np.where(kind < 0.9, masked_ids[positions], random_ids)
    masked_ids[positions] = np.where(kind < 0.8, mask_id, same_or_random)
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[positions] = True
    return masked_ids, chosen


def pack(
    captions: Sequence[tuple[list[int], int]],
    probability: float,
    mask_id: int,
    rng: np.random.Generator,
    questions: Sequence[Question] = (),
) -> PackedSequence:
    """Mask captions, (ids with special tokens, length of the prompt), and join them and questions end to end."""
    documents = [
        mask_caption(ids, prompt_length, probability, mask_id, rng) for ids, prompt_length in captions
    ]
    documents += [(question.ids, np.zeros(len(question.ids), dtype=bool)) for question in questions]
    input_ids, masked = zip(*documents, strict=True)
    lengths = [len(ids) for ids in input_ids]
    return PackedSequence(
        input_ids=np.concatenate(input_ids),
        labels=np.concatenate([*(ids for ids, _ in captions), *(question.ids for question in questions)]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        doc_ids=np.repeat(np.arange(len(lengths)), lengths),
        masked=np.concatenate(masked),
        bidirectional=np.repeat(np.arange(len(lengths)) >= len(captions), lengths),
    )


def pad_sequences(sequences: Sequence[PackedSequence], pad_id: int) -> dict[str, Tensor]:
    """Return the fields of sequences as tensors (B, T), padded to the longest."""
    longest = max(len(sequence.input_ids) for sequence in sequences)
    padding = PackedSequence(pad_id, pad_id, positions=0, doc_ids=-1, masked=False, bidirectional=False)
    columns = {}
    for name, value in padding._asdict().items():
        arrays = [getattr(sequence, name) for sequence in sequences]
        padded = [np.pad(array, (0, longest - len(array)), constant_values=value) for array in arrays]
        columns[name] = torch.from_numpy(np.stack(padded))
    return columns


def collate(items: Sequence[Item], pad_id: int = 1) -> Batch:
    """Stack items, the sequences padded to the longest."""
    columns = pad_sequences([item.sequence for item in items], pad_id)
    starts = columns["bidirectional"] & (columns["positions"] == 0)
    return Batch(
        torch.stack([item.pixels for item in items]),
        mask_positions=columns.pop("masked").flatten().nonzero()[:, 0],
        question_positions=starts.flatten().nonzero()[:, 0],
        options=collate_options([question for item in items for question in item.questions]),
        names=[item.image for item in items],
        num_tokens=sum(len(item.sequence.input_ids) for item in items),
        **columns,
    )


def num_workers(requested: int, batch_bytes: int) -> int:
    """Number of loader processes: at most `requested`, one per core, and as many as /dev/shm has room for.

    Each worker keeps up to three batches of `batch_bytes` in shared memory (two prefetched, one in use). With
    less space than that, as under Docker's default of 64 MB, the loader would hang or die with a bus error.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = min(requested, max(1, joblib.cpu_count() // processes))
    if os.path.isdir("/dev/shm"):
        fitting = shutil.disk_usage("/dev/shm").free // processes // (3 * batch_bytes)
        if fitting < workers:
            todo = "Start Docker with --shm-size=8g to load faster."
            warnings.warn(f"/dev/shm is small, so fewer processes load images. {todo}", stacklevel=2)
            return fitting
    return workers


class Example(NamedTuple):
    """An image and its known captions {caption type: (ids, text)}; ([], "") if an aspect is not mentioned."""

    image: str
    captions: dict[CaptionType, tuple[list[int], str]]


def group_captions(table: pd.DataFrame, caption_types: Sequence[CaptionType], tokenizer) -> list[Example]:
    """Group the lines of an index by image, sorted by image path.

    A line whose `text_segment` is null adds no caption. With several caption types, an aspect that the
    captions of a subject do not mention is known to be empty. In an index without subjects every line is an
    example of its own, of the first caption type.
    """
    named = table["subject"].notna().any()
    by_image: dict[str, list] = {}
    for line in table[["image_path", "subject", "aspect", "text_segment", "caption"]].itertuples(index=False):
        by_image.setdefault(line.image_path, []).append(line)
    examples = []
    for image in sorted(by_image):
        lines = by_image[image]
        known = [line for line in lines if isinstance(line.text_segment, list)]
        if not named:
            texts = [(line.text_segment, tokenizer.decode(line.text_segment)) for line in known]
            examples += [Example(image, {caption_types[0]: text}) for text in texts] or [Example(image, {})]
            continue
        captions = {(line.subject, line.aspect): (line.text_segment, line.caption) for line in known}
        if len(caption_types) > 1:
            listed = {(line.subject, line.aspect) for line in lines}
            subjects = {subject for subject, _ in captions}
            empty = [kind for kind in caption_types if kind[0] in subjects and kind not in listed]
            captions |= dict.fromkeys(empty, ([], ""))
        wanted = {kind: captions[kind] for kind in caption_types if kind in captions}
        if wanted or not captions:  # an image that has only captions of other types is no example
            examples.append(Example(image, wanted))
    return examples


class CaptionDataset(torch.utils.data.Dataset):
    """Index lines as `Item`s, one per image.

    `config.subject` and `config.aspect` select one caption type, trained without a prompt as in the original
    repository, or "all": then a sequence holds every known caption of the image, each after its prompt, and
    an aspect that is not mentioned is trained as an empty caption. `train` adds augmentation and drops images
    without a known caption. With `questions`, an index of questions, an item has at most `config.questions`
    of the image's questions, another random choice in each epoch. All random choices follow from
    (config.seed, epoch, index).
    """

    def __init__(
        self,
        table: pd.DataFrame,
        root: str | Path,
        tokenizer,
        image_size: int,
        config,
        train: bool,
        questions: pd.DataFrame | None = None,
    ) -> None:
        self.root, self.tokenizer, self.image_size, self.config = Path(root), tokenizer, image_size, config
        self.epoch = 0
        self.caption_types: list[CaptionType] = config.caption_types()
        if len(self.caption_types) > 1 and table["subject"].isna().all():
            self.caption_types = [UNNAMED]
        self.prompts = prompts_by_type(tokenizer, self.caption_types)
        examples = group_captions(table, self.caption_types, tokenizer)
        self.examples = [example for example in examples if example.captions or not train]
        if not self.examples:
            raise ValueError(
                f"{root}: expected captions of type {config.subject} {config.aspect} in the index, found none."
                " Choose another subject or aspect, or see which captions the stage index skipped."
            )
        _check_tokenizer(self.examples, tokenizer, self.root)
        limit = config.num_max_bpe_tokens
        captions = (example.captions.values() for example in self.examples)
        self.lengths = np.array([sum(min(len(ids) + 2, limit) for ids, _ in each) for each in captions])
        self.augment = Augmentation(image_size, config) if train else None
        self.questions: dict[str, list] = {}  # {image: rows of the index of questions whose answer is known}
        for row in () if questions is None else questions.itertuples(index=False):
            for image in row.images if row.correct else ():
                self.questions.setdefault(image, []).append(row)

    def __len__(self) -> int:
        return len(self.examples)

    def at_epoch(self, epoch: int) -> "CaptionDataset":
        """Return this data set, which then draws the random choices of `epoch`."""
        self.epoch = epoch
        return self

    def epoch_batches(self, epoch: int, batch_size: int) -> list[list[int]]:
        """Batches of indices for one epoch: shuffled, and grouped by text length within `POOL` batches."""
        rng = np.random.default_rng((self.config.seed, epoch))
        # Drop the incomplete batch before sorting by length, so that long captions are dropped no more often.
        shuffled = rng.permutation(len(self))[: len(self) // batch_size * batch_size]
        pools = [shuffled[i : i + POOL * batch_size] for i in range(0, len(shuffled), POOL * batch_size)]
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [by_length[i : i + batch_size].tolist() for i in range(0, len(by_length), batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __getitem__(self, index: int) -> Item:
        example, config, swap = self.examples[index], self.config, False
        rng = np.random.default_rng((config.seed, self.epoch, index))
        image, asked = open_image(self.root / example.image), self.questions.get(example.image, [])
        asked = [asked[i] for i in rng.permutation(len(asked))[: config.questions]] if asked else []
        if self.augment is not None:
            flip = config.flip != "none" and rng.random() < 0.5
            if flip and config.flip == "swap":
                texts = [text for _, text in example.captions.values()]
                texts += [text for row in asked for text in (row.question, *row.options.values())]
                flip = swap = all(map(can_swap, texts))
            image = self.augment(image, rng, flip)
        captions = [self._caption(kind, ids, text, swap) for kind, (ids, text) in example.captions.items()]
        questions = [self._question(row, swap) for row in asked]
        packed = pack(captions, config.captioning_mask_prob, self.tokenizer.mask_token_id, rng, questions)
        return Item(to_tensor(image, self.image_size), packed, questions, example.image)

    def _question(self, row, swap: bool) -> Question:
        change = swap_left_right if swap else str
        options = {letter: change(text) for letter, text in row.options.items()}
        return encode_question(self.tokenizer, change(row.question), options, row.correct)

    def _caption(
        self, caption_type: CaptionType, ids: list[int], text: str, swap: bool
    ) -> tuple[list[int], int]:
        """`<s>` prompt caption `</s>`, and the length of the prompt, which is not part of the limit."""
        if swap and ids:
            ids = self.tokenizer.encode(swap_left_right(text), add_special_tokens=False)
        prompt, ids = self.prompts[caption_type], ids[: self.config.num_max_bpe_tokens - 2]
        return [self.tokenizer.bos_token_id, *prompt, *ids, self.tokenizer.eos_token_id], len(prompt)

    def collate(self, items: Sequence[Item]) -> Batch:
        """`collate_fn` for `DataLoader`."""
        return collate(items, self.tokenizer.pad_token_id)

    def reference(self, index: int) -> dict[CaptionType, str]:
        """The known captions of an example, "" for an aspect that is not mentioned; {} if there is none."""
        return {caption_type: text for caption_type, (_, text) in self.examples[index].captions.items()}


def _check_tokenizer(examples: list[Example], tokenizer, root: Path) -> None:
    """Refuse ids of another tokenizer: they decode to other words, and training on them raises no error.

    Single captions may differ, for example where two versions of transformers treat white space differently.
    """
    texts = [caption for example in examples for caption in list(example.captions.values())[:1] if caption[0]]
    texts = texts[:: max(1, len(texts) // 20)]
    differ = [text for ids, text in texts if ids != tokenizer.encode(text, add_special_tokens=False)]
    if 2 * len(differ) > len(texts):
        raise ValueError(
            f"{root}: expected an index made with this tokenizer, got other token ids for {differ[0][:60]!r}."
            " Use the sentencepiece model of the index, or make the index again with this one."
        )
