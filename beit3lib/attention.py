"""Where the model looked for a word: attention from the mask that predicts it to the patches of the picture."""

from typing import NamedTuple

import torch
from torch import Tensor

from beit3lib.dataset import load_image, to_tensor
from beit3lib.decode import Caption, generate
from beit3lib.model import Captioner
from beit3lib.tokenizer import prefix_ids


class Look(NamedTuple):
    """One word of a caption and the share of attention that each patch got while it was written."""

    word: str
    caption: str
    weights: Tensor  # (grid, grid), sums to 1


@torch.inference_mode()
def word_attention(model: Captioner, image, subject: str, aspect: str, word: str, num_beams: int = 3) -> Look | None:
    """Attention for the first occurrence of `word` in the caption the model gives to `image`; None if it is not said.

    The words before are fed with a mask behind them, as in decoding; the mask's attention to the image patches is
    averaged over all heads of all layers, the class token left out, and over the pieces of the word. It tells where
    information came from, not why the word was chosen.
    """
    pixels = to_tensor(load_image(image), model.config.image_size)[None].to(model.device)
    descriptions = [(subject, aspect)] if model.descriptions else []
    caption = generate(model, pixels, num_beams=num_beams, descriptions=descriptions)[0]
    pieces = _pieces_of(model.tokenizer, caption, word)
    if not pieces:
        return None
    prefix = prefix_ids(model.tokenizer, subject, aspect) if descriptions else []
    start = [model.tokenizer.bos_token_id, *prefix]
    memory = model.encode_image(pixels)
    maps = [_mask_attention(model, memory, [*start, *caption.ids[:place]]) for place in pieces]
    return Look(word, caption.text, torch.stack(maps).mean(0))


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


def _mask_attention(model: Captioner, memory, ids: list[int]) -> Tensor:
    text = torch.tensor([[*ids, model.tokenizer.mask_token_id]], device=model.device)
    record: list[Tensor] = []
    model.encode_text(memory, text, record=record)
    to_patches = torch.stack([weights[0, :, -1, 1:].float().mean(0) for weights in record]).mean(0)  # (N - 1,)
    grid = model.config.image_size // model.config.patch_size
    return (to_patches / to_patches.sum()).view(grid, grid).cpu()
