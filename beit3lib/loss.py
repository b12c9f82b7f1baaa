"""The label-smoothed loss of captions over the whole vocabulary, in chunks of tokens.

Source: the reference implementation's loss, KL(q || p) with q = 1 - ε on the label and ε / (V - 1) elsewhere.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3lib.dataset import Batch
from beit3lib.model import CaptionModel
from beit3lib.question import option_log_probs

# Logits that exist at once, those of 262 tokens for V = 64,010. Cross-entropy holds up to five float32
# copies: 0.34 GB.
CHUNK_LOGITS = 2**24
# Up to this many logits, log-probabilities are kept for the backward pass: 0.27 GB. Recomputing the logits is
# 6 % of the operations of a step with 2 images x 10 captions of the base model (322 tokens).
KEPT_LOGITS = 2**26


def label_smoothed_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return KL(q || p) per token: (n, V), (n,) to (n,), float32.

    PyTorch's cross-entropy spreads ε over all V classes, the reference implementation over the V - 1 others:
    ε V / (V - 1) makes them equal. The latter's loss also subtracts the entropy of q, a constant.
    """
    classes = logits.shape[1]
    loss = F.cross_entropy(
        logits.float(), targets, reduction="none", label_smoothing=smoothing * classes / (classes - 1)
    )
    if smoothing == 0:
        return loss
    return loss + (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(smoothing / (classes - 1))


def head_losses(head: nn.Linear, states: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the losses (n,) of states (n, D), computed in chunks of `CHUNK_LOGITS` logits.

    If there are more than `KEPT_LOGITS`, they are recomputed in the backward pass.
    """

    def chunk_losses(some_states: Tensor, some_targets: Tensor) -> Tensor:
        return label_smoothed_loss(head(some_states), some_targets, smoothing)

    size = max(1, CHUNK_LOGITS // head.out_features)  # tokens per chunk
    chunks = zip(states.split(size), targets.split(size), strict=True)
    run = chunk_losses
    if torch.is_grad_enabled() and len(states) * head.out_features > KEPT_LOGITS:
        run = partial(checkpoint, chunk_losses, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([run(*chunk) for chunk in chunks])


def drop_worst(losses: Tensor, ratio: float) -> Tensor:
    """Return the losses without the largest `ratio` of them; at least one is kept."""
    return losses.topk(max(1, int(len(losses) * (1 - ratio))), largest=False).values


class Losses(NamedTuple):
    """The loss of every masked token of captions, (n,), and of every question, (Q,)."""

    captions: Tensor
    questions: Tensor


class LossModel(nn.Module):
    """The model and its losses in one forward pass, as DistributedDataParallel needs it."""

    def __init__(self, model: CaptionModel, smoothing: float) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of a batch; cross-entropy over the options of each question."""
        model, memory = self.model, self.model.encode_image(batch.images)
        bidirectional = batch.bidirectional if model.config.answers else None
        states = model.encode_text(memory, batch.input_ids, batch.positions, batch.doc_ids, bidirectional)
        states = states.flatten(0, 1)  # (B T, D)
        targets = batch.labels.flatten()[batch.mask_positions]
        captions = head_losses(model.mlm_head, states[batch.mask_positions], targets, self.smoothing)
        if not model.config.answers:
            return Losses(captions, captions.new_zeros(0))
        # Also without questions, so that DistributedDataParallel finds a gradient of the answer map.
        scores = model.score_options(states[batch.question_positions], batch.options)
        log_probs = option_log_probs(scores, batch.options)
        return Losses(captions, F.nll_loss(log_probs, batch.options.correct, reduction="none"))
