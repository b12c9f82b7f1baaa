"""Index lines to batches: pictures, masked and packed captions.

A training sample is one image and one row of text that holds one or more captions end to end: positions restart at each,
attention stays inside each (`segments`). One caption is the special case.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor

from beit3lib.tokenizer import prefix_ids

FIRST_WORD_ID = 3  # a random replacement is drawn from here up: `<unk>` and words, never `<s>`, `<pad>`, `</s>`


class ImageError(ValueError):
    """A picture that cannot be opened."""


class Row(NamedTuple):
    """One packed row of T tokens; all arrays int64 (T,) but `chosen`, bool (T,)."""

    ids: np.ndarray  # what the model reads, with masks in it
    targets: np.ndarray  # what was there
    positions: np.ndarray  # 0 … within each caption
    segments: np.ndarray  # number of the caption
    chosen: np.ndarray  # where the loss is taken


@dataclass
class Batch:
    """B images (B, 3, S, S) and B packed rows (B, T), padded at the end with segment -1; `names` of the images.

    `places` (n,) numbers the chosen positions, row by row; `tokens` counts those that are no padding.
    """

    images: Tensor
    ids: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor
    places: Tensor
    names: list[str]
    tokens: int

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device; copies from pinned memory do not wait."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)

    def pin_memory(self) -> "Batch":
        """What DataLoader calls to copy to the GPU without waiting."""
        return Batch(**{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in vars(self).items()})


def load_image(image: str | Path | Image.Image) -> Image.Image:
    """Open a picture as RGB; `ImageError` names a file that is none."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{image}: expected a picture here, found nothing") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageError(f"{image}: expected a picture, found a file that cannot be opened ({error})") from None


def to_tensor(image: Image.Image, size: int) -> Tensor:
    """The recipe's test transform: plain bicubic resize to a square, values in [-1, 1]; float (3, size, size)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.float().div_(127.5).sub_(1)


def to_picture(pixels: Tensor) -> Image.Image:
    """Back from (3, S, S) in [-1, 1] to a picture, to look at what the model is given."""
    values = pixels.detach().cpu().float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def caption_ids(tokenizer, ids: Sequence[int], prefix: Sequence[int], max_tokens: int) -> list[int]:
    """`<s>` prefix words `</s>`: at most `max_tokens` with `<s>` and `</s>`, the prefix not counted."""
    return [tokenizer.bos_token_id, *prefix, *ids[: max_tokens - 2], tokenizer.eos_token_id]


def mask_caption(
    ids: list[int], prefix: int, probability: float, mask_id: int, words: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Masked ids and the chosen positions (bool) of one caption `<s>` prefix … `</s>`.

    clamp(int(n p + 0.5), 1, n - 1) of the n tokens without prefix, never `<s>`; of these 80 % become `<mask>`, 10 % stay,
    10 % become a random id below `words`. Source: the public captioning recipe.
    """
    read = np.array(ids)
    count = len(ids) - prefix
    wanted = min(max(int(count * probability + 0.5), 1), count - 1)
    places = prefix + 1 + rng.choice(count - 1, wanted, replace=False)
    fate = rng.random(wanted)
    random_ids = rng.integers(FIRST_WORD_ID, words, wanted)
    read[places] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, read[places], random_ids))
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[places] = True
    return read, chosen


def pack(captions: Sequence[tuple[list[int], int]], probability: float, mask_id: int, words: int, rng) -> Row:
    """Mask and pack captions, each (ids with special tokens, length of its prefix), into one row."""
    masked = [mask_caption(ids, prefix, probability, mask_id, words, rng) for ids, prefix in captions]
    lengths = [len(ids) for ids, _ in captions]
    return Row(
        ids=np.concatenate([read for read, _ in masked]),
        targets=np.concatenate([np.array(ids) for ids, _ in captions]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        segments=np.repeat(np.arange(len(lengths)), lengths),
        chosen=np.concatenate([chosen for _, chosen in masked]),
    )


def collate(samples: Sequence[tuple[Tensor, Row, str]], pad_id: int = 1) -> Batch:
    """Stack (image, row, name), rows padded to the longest."""
    images, rows, names = zip(*samples, strict=True)
    longest = max(len(row.ids) for row in rows)
    fill = Row(ids=pad_id, targets=pad_id, positions=0, segments=-1, chosen=False)
    columns = {
        name: torch.from_numpy(
            np.stack([np.pad(getattr(r, name), (0, longest - len(r.ids)), constant_values=getattr(fill, name)) for r in rows])
        )
        for name in Row._fields
    }
    places = columns.pop("chosen").flatten().nonzero()[:, 0]
    tokens = sum(len(row.ids) for row in rows)
    return Batch(images=torch.stack(images), names=list(names), tokens=tokens, places=places, **columns)


class CaptionDataset(torch.utils.data.Dataset):
    """Index lines as samples: (picture (3, S, S), packed Row, name), one per image and set of descriptions.

    `config.subject` and `config.aspect` name one description, without a prefix, as the seed does it; or "all": then every
    description of an image stands in one row, each behind its prefix, and an aspect that the caption of a subject does not
    mention is learnt as absent: prefix and `</s>`. An index that names none, as the seed's, holds one, whichever is named.
    What is drawn at random follows from (seed, epoch, sample) alone.
    """

    def __init__(self, table: pd.DataFrame, root: str | Path, tokenizer, size: int, config, train: bool) -> None:
        self.root, self.tokenizer, self.size, self.config, self.train = Path(root), tokenizer, size, config, train
        self.epoch = 0
        self.descriptions = _descriptions(table, config)
        several = len(self.descriptions) > 1
        self.prefixes = {d: prefix_ids(tokenizer, *d) if several else [] for d in self.descriptions}
        self.rows = _rows_by_image(table, self.descriptions, tokenizer)
        if not self.rows:
            wanted = f"{config.subject} {config.aspect}"
            raise ValueError(f"{root}: expected lines of {wanted} in the index, found none; see what notebook 2 listed")
        if table["subject"].notna().any():  # else the words are known by their ids alone
            _check_tokenizer(self.rows, tokenizer, self.root)
        self.lengths = np.array([sum(len(ids) + 2 for _, ids, _ in row["captions"]) for row in self.rows])
        self.augment = Augmentation(size, config) if train else None
        self._pictures: dict[int, Image.Image] = {}
        self._room = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def at_epoch(self, epoch: int) -> "CaptionDataset":
        """Itself, drawing what that epoch draws."""
        self.epoch = epoch
        return self

    def order(self, epoch: int, batch: int) -> list[list[int]]:
        """Batches of sample numbers for an epoch: shuffled, and within `POOL` batches grouped by length of text."""
        rng = np.random.default_rng((self.config.seed, epoch))
        shuffled = rng.permutation(len(self))[: len(self) // batch * batch]  # who is left out is left to chance, not to length
        pools = [shuffled[i : i + POOL * batch] for i in range(0, len(shuffled), POOL * batch)]
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [by_length[i : i + batch].tolist() for i in range(0, len(by_length), batch)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __getitem__(self, number: int) -> tuple[Tensor, Row, str]:
        row = self.rows[number]
        rng = np.random.default_rng((self.config.seed, self.epoch, number))
        picture, mirrored = self._picture(number), False
        if self.augment is not None:
            swap = self.config.flip == "swap"
            mirrored = self.config.flip != "none" and rng.random() < 0.5 and not (swap and row["fixed"])
            picture = self.augment(picture, rng, mirrored)
        captions = [self._caption(*caption, mirrored and self.config.flip == "swap") for caption in row["captions"]]
        probability, mask_id = self.config.captioning_mask_prob, self.tokenizer.mask_token_id
        packed = pack(captions, probability, mask_id, mask_id, rng)
        return to_tensor(picture, self.size), packed, row["image"]

    def collate(self, samples: Sequence[tuple[Tensor, Row, str]]) -> Batch:
        """What DataLoader calls to make a batch."""
        return collate(samples, self.tokenizer.pad_token_id)

    def reference(self, number: int) -> dict[tuple[str, str], str]:
        """{(subject, aspect): caption} of a sample, "" where the aspect is absent."""
        return {description: text for description, _, text in self.rows[number]["captions"]}

    def captions(self) -> set[tuple[str, str]]:
        """Every caption of the set, with its description: what a model may have learnt by heart."""
        rows = (self.reference(number).items() for number in range(len(self)))
        return {(" ".join(description), text) for row in rows for description, text in row if text}

    def vocabulary(self) -> list[int]:
        """Every id of the set's captions, in order; with left and right exchanged too, where that is learnt."""
        told = {number for row in self.rows for _, ids, _ in row["captions"] for number in ids}
        if self.config.flip == "swap":
            texts = {text for row in self.rows for _, _, text in row["captions"] if text != mirror_words(text)}
            told |= {number for text in texts for number in self.tokenizer.encode(mirror_words(text), add_special_tokens=False)}
        return sorted(told)

    def _caption(self, description, ids: list[int], text: str, mirrored: bool) -> tuple[list[int], int]:
        prefix = self.prefixes[description]
        if mirrored and ids:
            ids = self.tokenizer.encode(mirror_words(text), add_special_tokens=False)
        return caption_ids(self.tokenizer, ids, prefix, self.config.num_max_bpe_tokens), len(prefix)

    def _picture(self, number: int) -> Image.Image:
        """The picture, kept in memory while there is room: an epoch of small pictures is decoded once."""
        if torch.utils.data.get_worker_info() is not None:  # lives for one epoch, in which no picture comes twice
            return load_image(self.root / self.rows[number]["image"])
        if number not in self._pictures:
            picture = load_image(self.root / self.rows[number]["image"])
            size = picture.width * picture.height * 3
            if size > self._room:
                return picture
            self._room -= size
            self._pictures[number] = picture
        return self._pictures[number]


CACHE_BYTES = 1_000_000_000
POOL = 16  # batches that are grouped by length at once
UNNAMED = ("", "")  # the one description of an index whose lines do not say which


def _descriptions(table: pd.DataFrame, config) -> list[tuple[str, str]]:
    wanted = config.descriptions()
    return wanted if len(wanted) == 1 or table["subject"].notna().any() else [UNNAMED]


def _rows_by_image(table: pd.DataFrame, descriptions, tokenizer) -> list[dict]:
    """One row per image: its captions (description, ids, text), absent aspects with no ids; `fixed` if none may mirror."""
    named = table["subject"].notna().any()
    known = table[table["text_segment"].notna()]
    rows = []
    for image, lines in known.groupby("image_path", sort=True):
        if not named:  # the seed's file holds one description: every line is a sample of its own
            rows += [_row(image, [(descriptions[0], list(ids), tokenizer.decode(ids))]) for ids in lines["text_segment"]]
            continue
        told = {(r.subject, r.aspect): (list(r.text_segment), r.caption) for r in lines.itertuples(index=False)}
        subjects = {subject for subject, _ in told}
        if len(descriptions) == 1:
            wanted = [d for d in descriptions if d in told]
        else:
            wanted = [d for d in descriptions if d[0] in subjects]
        if wanted:
            rows.append(_row(image, [(d, *told.get(d, ([], ""))) for d in wanted]))
    return rows


def _check_tokenizer(rows: list[dict], tokenizer, root: Path) -> None:
    """Ids of another tokenizer are other words, and would be learnt without a complaint."""
    for row in rows[:: max(1, len(rows) // 5)]:
        for _, ids, text in row["captions"]:
            if ids and ids != tokenizer.encode(text, add_special_tokens=False):
                raise ValueError(
                    f"{root}: the index was made with another tokenizer, which has other ids for {text[:60]!r}; give the one "
                    "it was made with, or make the index again with the one that belongs to the weights (notebook 2, tokenizer)"
                )


def _row(image: str, captions: list) -> dict:
    return {"image": image, "captions": captions, "fixed": not all(can_mirror(text) for *_, text in captions)}


# --- left and right ------------------------------------------------------------------------------------------------

_SIDES = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
_SIDES |= {f"{a}{end}": f"{b}{end}" for a, b in (("left", "right"), ("right", "left")) for end in ("ward", "wards", "hand")}
_WORD = re.compile(r"[A-Za-z]+")
_NO_SIDE = re.compile(
    r"\b(?:have|has|had|having|was|were|be|been|being|and|just|then|already|recently) left\b(?!\s+(?:side|lane|turn|hand))"
    r"|\bleft (?:the|a|an|his|her|their|behind|from)\b|(?<!the )\bright (?:in front of|next to)\b"
    r"|\bright(?: of way|-of-way| away| angles?| after| before| now)\b"
    r"|\b(?:clockwise|counterclockwise|anticlockwise)\b|\b(?:sign|text|letters?|plate)\b.{0,20}\b(?:reads?|says?)\b",
    re.IGNORECASE,
)


def can_mirror(text: str) -> bool:
    """Whether exchanging left and right makes `text` true of the mirrored picture: not for writing, or "has left"."""
    return _NO_SIDE.search(text) is None


def mirror_words(text: str) -> str:
    """`text` with left and right exchanged, capitals kept."""

    def exchanged(found: re.Match) -> str:
        word = found.group()
        other = _SIDES.get(word.lower())
        if other is None:
            return word
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _WORD.sub(exchanged, text)


# --- augmentation --------------------------------------------------------------------------------------------------


class Augmentation:
    """The recipe's: random resized crop of 50-100 % of the area, mirroring, RandAugment of two operations."""

    OPERATIONS = (
        *("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness"),
        *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    )

    def __init__(self, size: int, config) -> None:
        self.size, self.randaug, self.crop_area = size, config.randaug, config.crop_area
        self.filter = getattr(Image.Resampling, config.train_interpolation.upper())

    def __call__(self, image: Image.Image, rng: np.random.Generator, mirrored: bool) -> Image.Image:
        image = image.resize((self.size, self.size), self.filter, box=_crop(image.size, self.crop_area, rng))
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.randaug:
            for _ in range(2):
                if rng.random() < 0.5:  # timm's probability of an operation of RandAugment
                    image = _operate(image, self.OPERATIONS[rng.integers(len(self.OPERATIONS))], rng)
        return image


def _crop(size: tuple[int, int], smallest: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box of `smallest` to 1 of the area and aspect ratio 3:4 to 4:3, as torchvision's RandomResizedCrop draws it."""
    width, height = size
    if smallest >= 1:
        return (0, 0, width, height)
    for _ in range(10):
        area = rng.uniform(smallest, 1.0) * width * height
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return (left, top, left + w, top + h)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def _operate(image: Image.Image, name: str, rng: np.random.Generator, magnitude: float = 0.7) -> Image.Image:
    """One operation of RandAugment at magnitude 7 of 10; what moves pictures has a random sign, pixels do not follow the size.

    Source: the public captioning recipe, whose factor of brightness and sharpness is 1.8 m + 0.1, and whose shift 10 m pixels.
    """
    sign = 1 if rng.random() < 0.5 else -1
    if name == "AutoContrast":
        return ImageOps.autocontrast(image)
    if name == "Equalize":
        return ImageOps.equalize(image)
    if name in ("Brightness", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(1.8 * magnitude + 0.1)
    if name == "Rotate":
        return image.rotate(sign * 30 * magnitude, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    shear, shift = sign * 0.3 * magnitude, sign * 10 * magnitude
    matrix = {
        "ShearX": (1, shear, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, shear, 1, 0),
        "TranslateX": (1, 0, shift, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, shift),
    }.get(name)
    if matrix is None:
        return image
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
