"""The loss of captions over the whole vocabulary, without the copies of it that the recipe makes.

For n positions the logits alone are n x 64,010 numbers; log p, q and their product are never made, and logits exist for
`HEAD_CHUNK` positions at a time. Source: the label-smoothed loss of the public captioning recipe.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3lib.dataset import Batch
from beit3lib.linear import linear
from beit3lib.model import Captioner

HEAD_CHUNK = 1024  # positions whose logits over the vocabulary exist at once


def smoothed_losses(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """KL(q || p) per position, q = 1 - ε on the target and ε / (V - 1) elsewhere; (n, V), (n,) to (n,), float32.

    In closed form, so that neither q nor log p is ever made: Σ q log q + lse(z) - (1 - ε) z_t - ε / (V - 1) Σ_{i≠t} z_i.
    Source: the label-smoothed loss of the public captioning recipe.
    """
    return SmoothedLoss.apply(logits.float(), targets, smoothing)


class SmoothedLoss(torch.autograd.Function):
    """`smoothed_losses` of float32 logits; its gradient, p - q, is made in one copy of them instead of five."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """(n, V), (n,) to (n,)."""
        rest = smoothing / (logits.shape[1] - 1)
        true, normaliser = logits.gather(1, targets[:, None])[:, 0], logits.logsumexp(1)
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.smoothing = smoothing
        entropy = sum(p * n * math.log(p) for p, n in ((1 - smoothing, 1), (rest, logits.shape[1] - 1)) if p > 0)
        return entropy + normaliser - (1 - smoothing) * true - rest * (logits.sum(1) - true)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Of the logits."""
        logits, targets, normaliser = ctx.saved_tensors
        rest = ctx.smoothing / (logits.shape[1] - 1)
        wrong = logits.sub(normaliser[:, None]).exp_().sub_(rest)  # p - ε / (V - 1)
        wrong.scatter_add_(1, targets[:, None], wrong.new_full((len(targets), 1), rest - (1 - ctx.smoothing)))
        return wrong.mul_(gradient[:, None]), None, None


def head_losses(head: nn.Linear, states: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Losses (n,) of states (n, D), `HEAD_CHUNK` positions at a time; logits are made again in the backward pass."""

    def part(some: Tensor, wanted: Tensor) -> Tensor:
        return smoothed_losses(linear(head, some), wanted, smoothing)

    parts = zip(states.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True)
    if not torch.is_grad_enabled() or len(states) <= HEAD_CHUNK:
        return torch.cat([part(some, wanted) for some, wanted in parts])
    return torch.cat([checkpoint(part, *some, use_reentrant=False, preserve_rng_state=False) for some in parts])


def drop_worst(losses: Tensor, ratio: float) -> Tensor:
    """The losses without the worst `ratio` of them."""
    keep = max(1, int(len(losses) * (1 - ratio)))
    return losses.topk(keep, largest=False).values


class LossModel(nn.Module):
    """The captioner with its loss inside, so that DistributedDataParallel sees one forward."""

    def __init__(self, model: Captioner, smoothing: float) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, batch: Batch) -> Tensor:
        """Loss of every chosen position, (n,)."""
        states = self.model(batch.images, batch.ids, batch.positions, batch.segments, batch.places, head=False)
        return head_losses(self.model.mlm_head, states, batch.targets.flatten()[batch.places], self.smoothing)
