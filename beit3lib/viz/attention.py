"""Attention of a generated word to the patches of the image."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from beit3lib.captioner import Captioner
from beit3lib.data.images import open_image
from beit3lib.model import ImageMemory
from beit3lib.transforms import to_tensor


class WordAttention(NamedTuple):
    """A word, the caption that contains it, and the attention of the word to each patch."""

    word: str
    caption: str
    weights: Tensor  # (grid, grid), sums to 1


@torch.inference_mode()
def word_attention(
    captioner: Captioner, image, subject: str, aspect: str, words: Sequence[str], num_beams: int = 3
) -> WordAttention | None:
    """Generate the caption of `image` and return the attention of the first of `words` in it.

    None if no word occurs, or if the model was not trained on this caption type. As in decoding, the tokens
    before the word are fed with `<mask>` after them. A patch counts with its attention weight times the norm
    of its projected value vector: much of the plain attention rests on patches with small values (Kobayashi
    et al. 2020, "Attention is Not Only a Weight", section 3). Averaged over the heads of all layers and over
    the tokens of the word; the class token is ignored. It shows which patches contributed, not why the word
    was chosen.
    """
    if (subject, aspect) not in (captioner.caption_types or [(subject, aspect)]):
        return None
    model, tokenizer = captioner.model, captioner.tokenizer
    pixels = to_tensor(open_image(image), model.config.image_size)[None].to(captioner.device)
    caption = captioner.generate(pixels, [(subject, aspect)], num_beams)[0]
    word, indices = _first_occurrence(tokenizer.convert_ids_to_tokens(caption.ids), words)
    if not indices:
        return None
    prompt = (
        captioner.prompts[captioner.caption_types.index((subject, aspect))] if captioner.caption_types else []
    )
    memory = model.encode_image(pixels)
    maps = []
    for index in indices:
        ids = [tokenizer.bos_token_id, *prompt, *caption.ids[:index], tokenizer.mask_token_id]
        maps.append(_patch_contributions(model, memory, torch.tensor([ids], device=captioner.device)))
    return WordAttention(word, caption.text, torch.stack(maps).mean(0))


def _first_occurrence(tokens: list[str], words: Sequence[str]) -> tuple[str, list[int]]:
    """The first of `words` that occurs, and the indices of its tokens without punctuation."""
    groups: list[list[int]] = []
    for index, token in enumerate(tokens):
        if token is None:  # a row of the vocabulary without a piece
            continue
        if token.startswith("▁") or not groups:
            groups.append([])
        groups[-1].append(index)
    wanted = {word.lower(): word for word in words}
    for group in groups:
        text = "".join(tokens[index] for index in group).strip("▁").strip(".,;:").lower()
        if text in wanted:
            return wanted[text], [index for index in group if tokens[index].strip("▁.,;:")]
    return "", []


def _patch_contributions(model, memory: ImageMemory, input_ids: Tensor) -> Tensor:
    """Shares (grid, grid) of the patches in what the last token receives from the image."""
    queries, keys, hooks = [], [], ExitStack()
    with hooks:
        for layer in model.beit3.encoder.layers:
            for module, outputs in ((layer.self_attn.q_proj.B, queries), (layer.self_attn.k_proj.B, keys)):
                hook = module.register_forward_hook(
                    lambda _, __, output, outputs=outputs: outputs.append(output[0])
                )
                hooks.callback(hook.remove)
        model.encode_text(memory, input_ids)
    total = torch.zeros(model.config.image_tokens - 1, device=input_ids.device)
    heads = model.config.heads
    for layer, q, k, image_keys, image_values in zip(
        model.beit3.encoder.layers, queries, keys, memory.keys, memory.values, strict=True
    ):
        q, k = q[-1].view(heads, 1, -1), k.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, 1, d), (H, T, d)
        scores = q @ torch.cat([image_keys[0], k], dim=1).mT * q.shape[-1] ** -0.5  # (H, 1, N + T)
        weights = scores.softmax(-1)[:, 0, 1 : image_keys.shape[2]]  # (H, N - 1), without the class token
        out = layer.self_attn.out_proj.B.weight.unflatten(1, (heads, -1))  # (D, H, d)
        norms = torch.einsum("hnd,ohd->hno", image_values[0, :, 1:], out).norm(dim=-1)  # (H, N - 1)
        total += (weights * norms).float().mean(0)
    grid = model.config.image_size // model.config.patch_size
    return (total / total.sum()).view(grid, grid).cpu()
