"""Beam search: each image is encoded once, and all its prompts and beams attend to that one memory.

A step feeds two tokens per beam, [last token, `<mask>`]. The output at `<mask>` predicts the next token. The
next step feeds that token into the same column of the cache and so overwrites the keys and values of
`<mask>`.

Shapes, in addition to those in `model.py`: P prompts, S sequences still searched (at first B x P,
image-major), K beams, R = S x K / B rows of the text stream per image (R = P before the first step), n tokens
that a row feeds at once, C columns of the cache.

Source: the decoding of the reference implementation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3lib.model import TEXT, CaptionModel, ImageMemory, output_and_ffn, project_qkv


class Caption(NamedTuple):
    """A generated caption."""

    text: str
    log_prob: float  # score in the search, Σ log p / (tokens + 2)^length_penalty
    ids: list[int]  # of its tokens
    log_probs: list[float]  # of its tokens


class Beams(NamedTuple):
    """The K unfinished hypotheses of each sequence that is still searched."""

    sequence: Tensor  # (S,) index of each sequence in the result, 0 … B x P - 1
    scores: Tensor  # (S, K) Σ log p
    ids: Tensor  # (S, K, longest caption)
    log_probs: Tensor  # (S, K, longest caption)


class Finished(NamedTuple):
    """The best complete hypothesis of each of the B x P sequences; score -inf while there is none."""

    scores: Tensor  # (B P,) Σ log p / (tokens + 2)^length_penalty
    ids: Tensor  # (B P, longest caption)
    log_probs: Tensor  # (B P, longest caption)
    lengths: Tensor  # (B P,)


class Candidates(NamedTuple):
    """The best 3 K extensions of each sequence, best first; every field is (S, 3 K).

    The factor 3 is that of the reference implementation.
    """

    scores: Tensor  # Σ log p with the new token
    beam: Tensor  # 0 … K - 1, the beam that is extended
    token: Tensor
    log_prob: Tensor  # of the new token


@torch.inference_mode()
def generate(
    model: CaptionModel,
    images_or_memory: Tensor | ImageMemory,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    num_beams: int = 3,
    max_tokens: int = 64,
    length_penalty: float = 0.6,
) -> list[Caption]:
    """Generate B x P captions, image-major.

    `images_or_memory`: float (B, 3, size, size) in [-1, 1], or their memory. `prompts`: the ids between `<s>`
    and the caption, one list per caption type; [[]] generates one caption without a prompt. As in the
    reference implementation, a caption has at most max_tokens - 3 tokens, one fewer than in training; the
    prompt is not counted.
    """
    assert max_tokens >= 3, f"max_tokens: expected 3 or more, got {max_tokens}"
    longest = max_tokens - 3
    with inference_weights(model):
        memory = images_or_memory
        if isinstance(memory, Tensor):
            memory = model.encode_image(memory)
        starts = [[tokenizer.bos_token_id, *prompt] for prompt in prompts]
        decoder = TextDecoder(model, memory, starts, num_beams, max_tokens, tokenizer.mask_token_id)
        beams, finished = _initial_state(len(memory.keys[0]) * len(prompts), num_beams, longest, model.device)
        for written in range(longest + 1):
            is_last = written == longest
            candidates = best_candidates(decoder.next_logits(), beams.scores)
            ends = (candidates.token == tokenizer.eos_token_id) | is_last
            # `bound` is the best candidate with the largest possible length penalty. No later extension can
            # exceed it, because Σ log p only decreases, so a sequence is done if its finished hypothesis
            # reaches it.
            bound = candidates.scores[:, 0] / (max_tokens - 1) ** length_penalty
            done = finished.scores[beams.sequence] >= bound
            update_finished(finished, beams, candidates, ends & ~done[:, None], written, length_penalty)
            if is_last or bool(done.all()):
                break
            kept = decoder.keep_unfinished(done)
            beams, rows = extend(beams, candidates, ends, kept, written)
            decoder.continue_from(rows, beams.ids[:, :, written])
    return [
        Caption(tokenizer.decode(ids[:n], skip_special_tokens=True).strip(), score, ids[:n], log_probs[:n])
        for score, ids, log_probs, n in zip(*(part.tolist() for part in finished), strict=True)
    ]


def _initial_state(
    sequences: int, num_beams: int, longest: int, device: torch.device
) -> tuple[Beams, Finished]:
    scores = torch.full((sequences, num_beams), -1e9, device=device)
    scores[:, 0] = 0  # all beams are equal at first: without this, each would find the same candidates
    ids = torch.zeros(sequences, num_beams, longest, dtype=torch.long, device=device)
    log_probs = torch.zeros(sequences, num_beams, longest, device=device)
    lengths = torch.zeros(sequences, dtype=torch.long, device=device)
    best = torch.full((sequences,), -torch.inf, device=device)
    finished = Finished(best, ids[:, 0].clone(), log_probs[:, 0].clone(), lengths)
    return Beams(torch.arange(sequences, device=device), scores, ids, log_probs), finished


def best_candidates(logits: Tensor, scores: Tensor) -> Candidates:
    """Select the best 3 K extensions of K beams with `scores` (S, K) and next-token `logits` (S x K, V)."""
    sequences, num_beams = scores.shape
    each = min(3 * num_beams, logits.shape[1])  # even if all of the best 3 K extend one beam
    log_prob, token = logits.log_softmax(1).topk(each, dim=1)  # (S x K, 3 K)
    log_prob = log_prob.view(sequences, -1)  # (S, K x 3 K)
    totals = log_prob + scores.repeat_interleave(each, 1)
    values, index = totals.topk(min(3 * num_beams, totals.shape[1]), dim=1)  # (S, 3 K)
    token = token.view(sequences, -1).gather(1, index)
    return Candidates(values, index // each, token, log_prob.gather(1, index))


def update_finished(
    finished: Finished,
    beams: Beams,
    candidates: Candidates,
    ends: Tensor,
    written: int,
    length_penalty: float,
) -> None:
    """Update `finished` in place with the candidates, marked by `ends`, that complete `written` tokens.

    As in the reference implementation, candidates are visited best first until K of them continue; an ending
    candidate after the K-th is ignored.
    """
    continuing_before = (~ends).cumsum(1) - (~ends).long()
    eligible = ends & (continuing_before < beams.scores.shape[1])
    scores = torch.where(eligible, candidates.scores, -torch.inf) / (written + 2) ** length_penalty
    best, index = scores.max(1)  # (S,)
    beam = candidates.beam.gather(1, index[:, None])[:, 0]
    better = torch.nonzero(best > finished.scores[beams.sequence]).flatten()
    target, beam = beams.sequence[better], beam[better]
    finished.scores[target] = best[better]
    finished.ids[target] = beams.ids[better, beam]
    finished.log_probs[target] = beams.log_probs[better, beam]
    finished.lengths[target] = written


def extend(
    beams: Beams, candidates: Candidates, ends: Tensor, kept: Tensor, written: int
) -> tuple[Beams, Tensor]:
    """Return the beams of the `kept` sequences with one more token, and the rows (S x K,) they extend."""
    num_beams = beams.scores.shape[1]
    first = ends.long().argsort(dim=1, stable=True)[:, :num_beams]  # the best K candidates that do not end
    scores, beam, token, log_prob = (part.gather(1, first)[kept] for part in candidates)  # (S, K)
    ids, log_probs = beams.ids[kept[:, None], beam], beams.log_probs[kept[:, None], beam]
    ids[:, :, written], log_probs[:, :, written] = token, log_prob
    rows = (kept[:, None] * num_beams + beam).flatten()
    return Beams(beams.sequence[kept], scores, ids, log_probs), rows


class TextDecoder:
    """The text stream of R rows per image, with a cache of keys and values.

    The cache holds image tokens first, then the text tokens of every row, one per column. `attends` marks the
    columns that a row attends to: those of the image and its own. To reorder beams only this mask is
    reordered, since copying keys and values would take longer than attending to the columns of other rows.
    Prompts of different lengths are padded on the left, so that all rows have fed equally many tokens.
    """

    def __init__(
        self, model: CaptionModel, memory: ImageMemory, starts, num_beams: int, max_tokens: int, mask_id: int
    ):
        self.model, self.mask_id, device = model, mask_id, model.device
        prefill = max(map(len, starts)) - 1  # tokens before the one that the first step feeds
        padded = [[-1] * (prefill + 1 - len(start)) + start for start in starts]
        padded = torch.tensor(padded, device=device)  # (R, prefill + 1)
        # `used`: columns of the cache with keys and values
        images, heads, self.used, width = memory.keys[0].shape
        columns = self.used + prefill * len(starts) + max_tokens * len(starts) * num_beams
        shape = (model.config.layers, 2, images, heads, columns, width)
        self.cache = memory.keys[0].new_empty(shape)  # (L, 2, B, H, C, d)
        for index, part in enumerate(zip(memory.keys, memory.values, strict=True)):
            for cached, image in zip(self.cache[index], part, strict=True):
                cached[:, :, : self.used] = image
        attends = torch.ones(images, len(starts), self.used, device=device)
        self.attends = attends.bool()  # (B, R, used)
        real = (padded[:, :-1] >= 0).expand(images, -1, -1)  # (B, R, prefill)
        self.offset = real.sum(2) - prefill  # (B, R) token number i of a row has position i + offset
        self.fed = 0
        if prefill:
            self._feed(padded[:, :-1].clamp(min=0).expand(images, -1, -1), prefill, real)
        self.last = padded[:, -1].expand(images, -1)  # (B, R)
        self.last, self.offset, self.attends = (
            part.repeat_interleave(num_beams, 1) for part in (self.last, self.offset, self.attends)
        )

    def next_logits(self) -> Tensor:
        """Return float32 logits (S x K, V) of the token after the last one of each row."""
        pair = torch.stack([self.last, torch.full_like(self.last, self.mask_id)], 2)  # (B, R, 2)
        states = self._feed(pair, 1)  # the next step overwrites <mask>
        return self.model.mlm_head(states).flatten(0, 1).float()

    def continue_from(self, rows: Tensor, tokens: Tensor) -> None:
        """Reorder the rows: new row r is old row rows[r], with token r of `tokens` (S, K) as its last."""
        rows = rows.view(self.cache.shape[2], -1)  # (B, R)
        self.last, self.offset = tokens.view_as(rows), self.offset.flatten()[rows]
        self.attends = self.attends.flatten(0, 1)[rows]

    def keep_unfinished(self, done: Tensor) -> Tensor:
        """Drop the images that are done, and return the indices of the sequences to continue.

        All images keep the same number of rows: an image with fewer unfinished sequences also continues some
        finished ones, whose results no longer change.
        """
        done_by_image = done.view(self.cache.shape[2], -1)  # (B, S / B)
        images = torch.nonzero(~done_by_image.all(1)).flatten()
        if len(images) < len(done_by_image):
            for new, old in enumerate(images.tolist()):
                self.cache[:, :, new, :, : self.used] = self.cache[:, :, old, :, : self.used]
            self.cache = self.cache[:, :, : len(images)]
        width = int((~done_by_image).sum(1).max())
        order = done_by_image[images].long().argsort(dim=1, stable=True)[:, :width]
        return (images[:, None] * done_by_image.shape[1] + order).flatten()

    def _feed(self, ids: Tensor, kept: int, real: Tensor | None = None) -> Tensor:
        """Run tokens (B, R, n), keep keys and values of the first `kept`; return the last states (B, R, D).

        `real` (B, R, n) is false at padding.
        """
        encoder, (images, rows, length) = self.model.beit3.encoder, ids.shape
        number = torch.arange(self.fed, self.fed + length, device=ids.device)[:, None]
        positions = (number + self.offset[:, None]).clamp(min=0).flatten(1)  # (B, n, R) -> (B, n R)
        ids = ids.transpose(1, 2).flatten(1)  # (B, n R)
        x = self.model.beit3.text_embed(ids) + encoder.embed_positions.B.weight[positions + 2]  # (B, n R, D)
        # A token attends to what its row attends to in the cache, and among the new tokens to those of its
        # row up to itself. Example of rows a and b with one token in the cache, which feed two (1: attends):
        #
        #         image   a0 b0   a1 b1   a2 b2
        #     a1   1 1     1  0    1  0    0  0
        #     b1   1 1     0  1    0  1    0  0
        #     a2   1 1     1  0    1  0    1  0
        #     b2   1 1     0  1    0  1    0  1
        causal = torch.ones(length, length, device=ids.device).tril()
        own = torch.eye(rows, device=ids.device)
        new = torch.kron(causal, own).bool().expand(images, -1, -1)  # (B, n R, n R)
        if real is not None:
            new = new & real.transpose(1, 2).flatten(1)[:, None]
        attends = torch.cat([self.attends.repeat(1, length, 1), new], 2)  # (B, n R, used + n R)
        bias = torch.zeros(attends.shape, dtype=self.cache.dtype, device=ids.device)
        bias = bias.masked_fill_(~attends, -torch.inf)[:, None]
        stop = self.used + length * rows
        for index, layer in enumerate(encoder.layers):
            q, k, v = (part.transpose(1, 2) for part in project_qkv(layer, TEXT, x))  # (B, H, n R, d)
            keys, values = self.cache[index, :, :, :, :stop]  # (B, H, used + n R, d)
            keys[:, :, self.used :], values[:, :, self.used :] = k, v
            if index == len(encoder.layers) - 1:  # the other tokens are needed for their keys and values only
                x, q, bias = x[:, -rows:], q[:, :, -rows:], bias[:, :, -rows:]
            attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
            x = output_and_ffn(layer, TEXT, x, attended.transpose(1, 2).flatten(2))  # (B, n R, D)
        self.used, self.fed = self.used + kept * rows, self.fed + kept
        self.attends = attends[:, (kept - 1) * rows : kept * rows, : self.used]
        return encoder.layer_norm.B(x[:, -rows:])


def word_probs(tokenizer, caption: Caption) -> list[float]:
    """Return the probability of each word of `caption.text.split()`: the product over its tokens.

    A token that is only the space before a word belongs to that word.
    """
    words: list[set[int]] = []  # indices of the tokens of each word
    pending: set[int] = set()
    inside = False
    for index, piece in enumerate(tokenizer.convert_ids_to_tokens(caption.ids)):
        if piece is None or piece in tokenizer.all_special_tokens:  # None: an unused row of the vocabulary
            continue
        for character in piece.replace("▁", " "):
            if character.isspace():
                inside = False
                pending.add(index)
            else:
                if not inside:
                    words.append(pending)
                    pending, inside = set(), True
                words[-1].add(index)
    return [float(torch.tensor([caption.log_probs[index] for index in word]).sum().exp()) for word in words]


@contextmanager
def inference_weights(model: nn.Module) -> Iterator[None]:
    """Cast the weights of linear layers once and reuse them in the block, which may generate many captions.

    Under autocast, which must be entered before, the copies are in its precision; without them each call
    casts the weights again, which takes most of a decoding step. On a CPU the copies are also in oneDNN's
    memory layout. They take as much memory as the weights, which must not change inside the block. A block
    inside another does nothing.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if any("forward" in vars(layer) for layer in layers):
        yield
        return
    device = layers[0].weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layers[0].weight.dtype
    try:
        for layer in layers:
            layer.forward = _prepared_product(layer, dtype)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _prepared_product(layer: nn.Linear, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = layer.weight.detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    if not _onednn_is_faster(weight):
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, bias, "none", [], "")


def _onednn_is_faster(weight: Tensor) -> bool:
    """Whether oneDNN's private operations exist for this weight and are faster than `F.linear`.

    No public function (`to_mkldnn`, conv, addmm) is as fast with weights in oneDNN's layout. With those of
    the base model, products of 6 to 60 rows take 0.61 to 0.74 of the time in bf16 and 0.63 to 0.95 in fp32
    (Xeon with AMX, one thread). Weights of 256 x 256 in fp32 take 1.16 of the time, because each call of the
    operation costs more.
    """
    onednn = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    is_large = weight.device.type == "cpu" and weight.numel() >= 512**2
    if not is_large or not all(hasattr(onednn, name) for name in names):
        return False
    is_bf16 = weight.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or is_bf16
