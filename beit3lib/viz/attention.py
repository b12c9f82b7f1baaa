"""Where the model looked for a word: what the mask that predicts it fetched from each patch of the picture."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from beit3lib.dataset import load_image, to_tensor
from beit3lib.decode import Caption, generate
from beit3lib.model import Captioner, ImageMemory
from beit3lib.tokenizer import prefix_ids


class Look(NamedTuple):
    """One word of a caption and the share of what was fetched from the picture that each patch gave while it was written."""

    word: str
    caption: str
    weights: Tensor  # (grid, grid), sums to 1


@torch.inference_mode()
def word_attention(
    model: Captioner, image, subject: str, aspect: str, word: str | Sequence[str], num_beams: int = 3
) -> Look | None:
    """Attention for `word`, or the first of several that is said, in the caption the model gives to `image`; else None.

    None, too, for a description that the model was not taught.

    The words before are fed with a mask behind them, as in decoding. A patch counts with its attention times the length of
    the vector that attention fetches there, which says more than attention alone: much of it rests on patches that give
    nothing (Kobayashi et al. 2020, "Attention is not only a weight", section 3). Averaged over all heads of all layers and
    over the pieces of the word, the class token left out. It tells where information came from, not why the word was chosen.
    """
    if model.descriptions and (subject, aspect) not in model.descriptions:
        return None
    pixels = to_tensor(load_image(image), model.config.image_size)[None].to(model.device)
    descriptions = [(subject, aspect)] if model.prefixed else []
    caption = generate(model, pixels, num_beams=num_beams, descriptions=descriptions)[0]
    said, pieces = _first_said(model.tokenizer, caption, [word] if isinstance(word, str) else word)
    if not pieces:
        return None
    prefix = prefix_ids(model.tokenizer, subject, aspect) if descriptions else []
    start = [model.tokenizer.bos_token_id, *prefix]
    memory = model.encode_image(pixels)
    maps = [_fetched(model, memory, [*start, *caption.ids[:place]]) for place in pieces]
    return Look(said, caption.text, torch.stack(maps).mean(0))


def _first_said(tokenizer, caption: Caption, words: Sequence[str]) -> tuple[str, list[int]]:
    """The word that stands first in the caption, and the places of its pieces."""
    found = [(places[0], word, places) for word in words if (places := _pieces_of(tokenizer, caption, word))]
    _, word, places = min(found, default=(0, "", []))
    return word, places


def _pieces_of(tokenizer, caption: Caption, word: str) -> list[int]:
    """Places in `caption.ids` of the pieces that make up the first such word."""
    places: list[list[int]] = []
    tokens = tokenizer.convert_ids_to_tokens(caption.ids)
    for place, token in enumerate(tokens):
        if token.startswith("▁") or not places:
            places.append([])
        places[-1].append(place)
    for group in places:
        text = "".join(tokens[place] for place in group).strip("▁").strip(".,;:").lower()
        if text == word.lower():
            return [place for place in group if tokens[place].strip("▁.,;:")]
    return []


def _fetched(model: Captioner, memory: ImageMemory, ids: list[int]) -> Tensor:
    """Shares (grid, grid) of the patches in what the mask after `ids` fetches from the picture."""
    text = torch.tensor([[*ids, model.tokenizer.mask_token_id]], device=model.device)
    record: list[Tensor] = []
    model.encode_text(memory, text, record=record)
    total = torch.zeros(model.config.image_tokens - 1, device=model.device)
    for layer, weights, values in zip(model.beit3.encoder.layers, record, memory.values, strict=True):
        out = layer.self_attn.out_proj.B.weight.unflatten(1, (model.config.heads, -1))  # (D, H, d)
        lengths = torch.einsum("hnd,ohd->hno", values[0, :, 1:], out).norm(dim=-1)  # (H, N - 1)
        total += (weights[0, :, -1, 1:] * lengths).float().mean(0)
    grid = model.config.image_size // model.config.patch_size
    return (total / total.sum()).view(grid, grid).cpu()
