"""Attention of packed captions on a CPU, in blocks: a token meets the image and its own caption, and nothing else.

In a row of ten captions a mask over the whole row computes ten times the products of words with words that are wanted. Here
all tokens meet the image without a mask, and each caption itself in a block of its own. One sum of exponentials stands
under both, so that the two are one softmax; backward the products are made again, and none is kept. A step of the sample's
tiny model takes a fifth less time, one of the base model, whose attention is a small part, as long as with the mask.

Source: softmax in blocks as in Liu et al., Ring Attention with Blockwise Transformers (arXiv 2310.01889, section 3); the
gradient as in FlashAttention (Dao et al., arXiv 2205.14135, appendix B.2).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """Where the tokens of B packed rows (B, T) stand in a grid of one caption a row: B x `captions` rows of `longest`."""

    slots: Tensor  # (B T,) place in the flattened grid; padding in the one slot behind its end
    captions: int
    longest: int


def grid_of(segments: Tensor, positions: Tensor) -> Grid | None:
    """The grid of packed rows, as `Captioner.encode_text` takes them; None on a GPU, and for rows of one caption."""
    captions = int(segments.max()) + 1 if segments.device.type == "cpu" else 1
    if captions < 2:
        return None
    told, longest = segments >= 0, int(positions.max()) + 1
    slots = (torch.arange(len(segments))[:, None] * captions + segments) * longest + positions
    return Grid(slots.masked_fill(~told, len(segments) * captions * longest).flatten(), captions, longest)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, image_keys: Tensor, image_values: Tensor, grid: Grid) -> Tensor:
    """What tokens (B, H, T, d) see of their image (B, H, N, d) and, causally, of their own caption; (B, H, T, d).

    Computed in float32, whatever the precision of what is given.
    """
    return PackedAttention.apply(q, k, v, image_keys, image_values, *grid)


class PackedAttention(torch.autograd.Function):
    """`packed_attention` with its gradients."""

    @staticmethod
    def forward(ctx, q, k, v, image_keys, image_values, slots, captions, longest) -> Tensor:
        """As `packed_attention`."""
        grid = Grid(slots, captions, longest)
        blocks = _blocks(q, k, image_keys, grid)
        to_image, to_own = blocks
        total = torch.logaddexp(to_image.logsumexp(3), _collect(to_own.logsumexp(3, keepdim=True), grid, len(q))[..., 0])
        of_image, of_own = _weights(blocks, total, grid)
        out = of_image @ image_values.float() + _collect(of_own @ _spread(v, grid), grid, len(q))
        ctx.grid = grid
        ctx.save_for_backward(q, k, v, image_keys, image_values, out, total)
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of queries, keys and values, the image's too."""
        q, k, v, image_keys, image_values, out, total = ctx.saved_tensors
        grid, gradient, scale = ctx.grid, gradient.float(), q.shape[3] ** -0.5
        of_image, of_own = _weights(_blocks(q, k, image_keys, grid), total, grid)
        mean = (gradient * out).sum(3, keepdim=True)  # (B, H, T, 1)
        own_q, own_k, own_v, own_gradient, own_mean = (_spread(part, grid) for part in (q, k, v, gradient, mean))
        of_image_values, of_v = of_image.mT @ gradient, of_own.mT @ own_gradient
        of_image *= (gradient @ image_values.float().mT).sub_(mean).mul_(scale)  # now the gradient of the products
        of_own *= (own_gradient @ own_v.mT).sub_(own_mean).mul_(scale)
        of_q = of_image @ image_keys.float() + _collect(of_own @ own_k, grid, len(q))
        of_k, of_v = (_collect(part, grid, len(q)) for part in (of_own.mT @ own_q, of_v))
        found = (of_q, of_k, of_v, of_image.mT @ q.float(), of_image_values)
        return (*(part.to(q.dtype) for part in found), None, None, None)


def _blocks(q: Tensor, k: Tensor, image_keys: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scaled products with the image (B, H, T, N) and within captions (B captions, H, longest, longest), float32."""
    scaled = q.float() * q.shape[3] ** -0.5
    ahead = torch.ones(grid.longest, grid.longest, dtype=torch.bool).triu(1)
    to_own = _spread(scaled, grid) @ _spread(k, grid).mT
    return scaled @ image_keys.float().mT, to_own.masked_fill_(ahead, -torch.inf)


def _weights(blocks: tuple[Tensor, Tensor], total: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The softmax of both blocks, in their place; `total` (B, H, T) is the logarithm of what stands under it."""
    to_image, to_own = blocks
    return to_image.sub_(total[..., None]).exp_(), to_own.sub_(_spread(total[..., None], grid)).exp_()


def _spread(x: Tensor, grid: Grid) -> Tensor:
    """(B, H, T, n) to (B captions, H, longest, n) in float32, zeros where no token stands."""
    wide = torch.zeros(x.shape[0] * grid.captions * grid.longest + 1, x.shape[1], x.shape[3])
    wide[grid.slots] = x.transpose(1, 2).flatten(0, 1).float()
    return wide[:-1].unflatten(0, (-1, grid.longest)).transpose(1, 2)


def _collect(x: Tensor, grid: Grid, rows: int) -> Tensor:
    """The opposite of `_spread`, (B captions, H, longest, n) to (B, H, T, n); padding gets what stands last."""
    flat = x.transpose(1, 2).flatten(0, 1)  # (B captions longest, H, n)
    return flat[grid.slots.clamp(max=len(flat) - 1)].unflatten(0, (rows, -1)).transpose(1, 2)
