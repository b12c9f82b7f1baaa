"""Attention in blocks is attention under the mask: outputs and gradients, whatever is packed."""

import pytest
import torch
import torch.nn.functional as F

from beit3lib.model import attention_mask
from beit3lib.packed import grid_of, packed_attention

IMAGE_TOKENS = 10


def rows(*lengths):
    """Segments and positions of packed rows, each a list of lengths of captions, padded to the longest."""
    total = max(map(sum, lengths))
    segments, positions = torch.full((len(lengths), total), -1), torch.zeros(len(lengths), total, dtype=torch.long)
    for row, captions in enumerate(lengths):
        told = sum(captions)
        segments[row, :told] = torch.repeat_interleave(torch.arange(len(captions)), torch.tensor(captions))
        positions[row, :told] = torch.cat([torch.arange(n) for n in captions])
    return segments, positions


def draw(batch, length, dtype=torch.float32):
    torch.manual_seed(0)
    sizes = (length, length, length, IMAGE_TOKENS, IMAGE_TOKENS)
    return [torch.randn(batch, 4, n, 8).to(dtype).requires_grad_() for n in sizes]


def masked(q, k, v, image_keys, image_values, segments):
    mask = attention_mask(segments, segments, IMAGE_TOKENS)
    return F.scaled_dot_product_attention(q, torch.cat([image_keys, k], 2), torch.cat([image_values, v], 2), attn_mask=mask)


@pytest.mark.parametrize(
    "lengths", [([4, 6, 2], [5, 5, 5], [7]), ([3, 3],), ([1, 9], [2, 1, 1, 1]), ([2] * 10, [3] * 8)], ids=str
)
def test_outputs_and_gradients_are_those_under_the_mask(lengths):
    segments, positions = rows(*lengths)
    parts, told = draw(*segments.shape), (segments >= 0)[:, None, :, None]
    expected = masked(*parts, segments)
    found = packed_attention(*parts, grid_of(segments, positions))
    assert ((found - expected) * told).abs().max() < 1e-5
    gradient = torch.randn_like(expected) * told
    for a, b in zip(torch.autograd.grad(found, parts, gradient), torch.autograd.grad(expected, parts, gradient), strict=True):
        assert (a - b).abs().max() < 1e-5


def test_lower_precision_is_kept_and_computed_in_the_higher():
    segments, positions = rows([4, 6, 2], [5, 5, 2])
    parts = draw(*segments.shape, torch.bfloat16)
    exact = masked(*(part.detach().float() for part in parts), segments)
    found = packed_attention(*parts, grid_of(segments, positions))
    assert found.dtype == torch.bfloat16 and (found - exact).abs().max() < 0.02
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(found.sum(), parts))


def test_rows_of_one_caption_keep_the_usual_attention():
    assert grid_of(*rows([5], [3])) is None
    assert grid_of(*rows([5, 1], [3])).longest == 5
