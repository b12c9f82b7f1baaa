"""Index lines to batches: pictures, masked and packed captions.

A training sample is one image and one row of text that holds one or more captions end to end: positions restart at each,
attention stays inside each (`segments`). One caption is the special case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

FIRST_WORD_ID = 3  # a random replacement is drawn from here up: `<unk>` and words, never `<s>`, `<pad>`, `</s>`


class ImageError(ValueError):
    """A picture that cannot be opened."""


class Row(NamedTuple):
    """One packed row of T tokens; all arrays int64 (T,) but `maskable` and `chosen`, bool (T,)."""

    ids: np.ndarray  # what the model reads; after `mask_row` with masks in it
    targets: np.ndarray  # what was there
    positions: np.ndarray  # 0 … within each caption
    segments: np.ndarray  # number of the caption
    chosen: np.ndarray  # where the loss is taken


@dataclass
class Batch:
    """B images (B, 3, S, S) and B packed rows (B, T), padded at the end with segment -1; `names` of the images."""

    images: Tensor
    ids: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor
    chosen: Tensor
    names: list[str]

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
    return Batch(images=torch.stack(images), names=list(names), **columns)
