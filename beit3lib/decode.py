"""Beam search: each image is encoded once, and all its prompts and beams attend to that one memory.

A step feeds two tokens per beam, [last token, `<mask>`]. The output at `<mask>` predicts the next token. The next step feeds
that token into the same cache slot and so overwrites the keys and values of `<mask>`.

Shapes, in addition to those in `model.py`: P prompts, S sequences still searched (at first B x P, image-major), K beams,
R = S x K rows of the text stream, C slots of the text cache, t slots in use.

Source: the decoding of the public BEiT-3 captioning recipe.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from beit3lib.device import inference_weights
from beit3lib.model import TEXT, CaptionModel, ImageMemory, output_and_ffn, project_qkv


class Caption(NamedTuple):
    """A generated caption. `log_prob` is its score in the search, Σ log p / (tokens + 2)^length_penalty; the other two lists
    have one entry per token."""

    text: str
    log_prob: float
    ids: list[int]
    log_probs: list[float]


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
    """The best 3 K extensions of each sequence (3 as in the recipe), best first; every field has shape (S, 3 K)."""

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

    `images_or_memory`: float (B, 3, size, size) in [-1, 1], or their memory. `prompts`: the ids between `<s>` and the
    caption, one list per caption type; [[]] generates one caption without a prompt. As in the recipe, a caption has at most
    max_tokens - 3 tokens, one fewer than in training; the prompt is not counted.
    """
    if max_tokens < 3:
        raise ValueError(f"max_tokens: expected 3 or more, got {max_tokens}")
    longest = max_tokens - 3
    with inference_weights(model):
        memory = model.encode_image(images_or_memory) if isinstance(images_or_memory, Tensor) else images_or_memory
        starts = [[tokenizer.bos_token_id, *prompt] for prompt in prompts]
        decoder = TextDecoder(model, memory, starts, num_beams, max_tokens, tokenizer.mask_token_id)
        beams, finished = _initial_state(len(memory.keys[0]) * len(prompts), num_beams, longest, model.device)
        for written in range(longest + 1):
            is_last = written == longest
            candidates = best_candidates(decoder.next_logits(), beams.scores)
            ends = (candidates.token == tokenizer.eos_token_id) | is_last
            # `bound` is the best candidate with the largest possible length penalty. No later extension can exceed it,
            # because Σ log p only decreases, so a sequence is done if its finished hypothesis reaches it.
            bound = candidates.scores[:, 0] / (max_tokens - 1) ** length_penalty
            done = finished.scores[beams.sequence] >= bound
            close(finished, beams, candidates, ends & ~done[:, None], written, length_penalty)
            if is_last or bool(done.all()):
                break
            kept = decoder.drop_sequences(done)
            beams, rows = extend(beams, candidates, ends, kept, written)
            decoder.continue_from(rows, beams.ids[:, :, written])
    return [
        Caption(tokenizer.decode(ids[:n], skip_special_tokens=True).strip(), score, ids[:n], log_probs[:n])
        for score, ids, log_probs, n in zip(*(part.tolist() for part in finished), strict=True)
    ]


def _initial_state(sequences: int, num_beams: int, longest: int, device: torch.device) -> tuple[Beams, Finished]:
    scores = torch.full((sequences, num_beams), -1e9, device=device)
    scores[:, 0] = 0  # all beams are equal at first: without this, each would find the same candidates
    ids = torch.zeros(sequences, num_beams, longest, dtype=torch.long, device=device)
    log_probs = torch.zeros(sequences, num_beams, longest, device=device)
    lengths = torch.zeros(sequences, dtype=torch.long, device=device)
    best = torch.full((sequences,), -torch.inf, device=device)
    finished = Finished(best, ids[:, 0].clone(), log_probs[:, 0].clone(), lengths)
    return Beams(torch.arange(sequences, device=device), scores, ids, log_probs), finished


def best_candidates(logits: Tensor, scores: Tensor) -> Candidates:
    """Select the best 3 K extensions of K beams with `scores` (S, K) and next-token `logits` (R, V)."""
    sequences, num_beams = scores.shape
    best, token = logits.topk(
        min(3 * num_beams, logits.shape[1]), dim=1
    )  # (R, 3 K): even if all of the best 3 K extend one beam
    log_prob = (best - logits.logsumexp(1, keepdim=True)).view(sequences, -1)  # (S, K x 3 K)
    totals = log_prob + scores.repeat_interleave(best.shape[1], 1)
    values, index = totals.topk(min(3 * num_beams, totals.shape[1]), dim=1)  # (S, 3 K)
    token = token.view(sequences, -1).gather(1, index)
    return Candidates(values, index // best.shape[1], token, log_prob.gather(1, index))


def close(finished: Finished, beams: Beams, candidates: Candidates, ends: Tensor, written: int, length_penalty: float) -> None:
    """Update `finished` in place with the candidates that complete a caption of `written` tokens; `ends` (S, 3 K) marks them.

    As in the recipe, candidates are visited best first until K of them continue; an ending candidate after the K-th is ignored.
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


def extend(beams: Beams, candidates: Candidates, ends: Tensor, kept: Tensor, written: int) -> tuple[Beams, Tensor]:
    """Return the beams of the `kept` sequences with one more token, and the rows (R,) of the text stream they extend."""
    num_beams = beams.scores.shape[1]
    first = ends.long().argsort(dim=1, stable=True)[:, :num_beams]  # the best K candidates that do not end
    scores, beam, token, log_prob = (part.gather(1, first)[kept] for part in candidates)  # (S, K)
    ids, log_probs = beams.ids[kept[:, None], beam], beams.log_probs[kept[:, None], beam]
    ids[:, :, written], log_probs[:, :, written] = token, log_prob
    rows = (kept[:, None] * num_beams + beam).flatten()
    return Beams(beams.sequence[kept], scores, ids, log_probs), rows


class TextDecoder:
    """The text stream of R rows with a cache of keys and values.

    Prompts of different lengths are padded on the left, so that a step writes the same slot in all rows; `hidden` marks the
    padding.
    """

    def __init__(self, model: CaptionModel, memory: ImageMemory, starts, num_beams: int, max_tokens: int, mask_id: int):
        self.model, self.memory, self.mask_id = model, memory, mask_id
        self.num_beams, self.per_image = num_beams, len(starts)
        images, config, device = len(memory.keys[0]), model.config, model.device
        prefill = max(map(len, starts)) - 1  # slots before the token that the first step feeds
        padded = torch.tensor([[-1] * (prefill + 1 - len(start)) + start for start in starts], device=device)
        rows = padded.repeat(images, 1).repeat_interleave(num_beams, 0)  # (R, prefill + 1)
        self.hidden = rows[:, :prefill] < 0  # (R, prefill)
        self.offset = -self.hidden.sum(1)  # (R,) the token in slot s has position s + offset
        # Slots are the first dimension, so that the used ones are contiguous. Each step, one index_select copies them in beam
        # order into the second buffer, and then the buffers are swapped.
        shape = (prefill + max_tokens, config.layers, 2, len(rows), config.heads, config.width // config.heads)
        self.cache, self.spare = memory.keys[0].new_empty(shape), memory.keys[0].new_empty(shape)  # (C, L, 2, R, H, d)
        self.used, self.last = 0, rows[:, -1]
        if prefill:
            self._feed(rows[:, :-1].clamp(min=0))
            self.used = prefill

    def next_logits(self) -> Tensor:
        """Return float32 logits (R, V) of the token after the last one of each row."""
        pair = torch.stack([self.last, torch.full_like(self.last, self.mask_id)], 1)  # (R, 2)
        logits = self.model.mlm_head(self._feed(pair)).float()
        self.used += 1  # the slot of <mask> is overwritten by the next step
        return logits

    def continue_from(self, rows: Tensor, tokens: Tensor) -> None:
        """Reorder the rows: new row r is old row rows[r], with token r of `tokens` (S, K) as its last; rows may be dropped."""
        self.last, self.offset, self.hidden = tokens.flatten(), self.offset[rows], self.hidden[rows]
        fewer = len(rows) < self.cache.shape[3]
        if fewer:
            self.spare = self.cache.new_empty(self.cache[:, :, :, : len(rows)].shape)
        torch.index_select(self.cache[: self.used], 3, rows, out=self.spare[: self.used])
        self.cache, self.spare = self.spare, torch.empty_like(self.spare) if fewer else self.cache

    def drop_sequences(self, done: Tensor) -> Tensor:
        """Return the indices of the sequences to continue, equally many per image; drop the images that are done.

        `shared_attention` views the rows as (images, rows per image), so all images keep the same number: an image with fewer
        unfinished sequences also continues some finished ones, whose results no longer change.
        """
        done_by_image = done.view(-1, self.per_image)
        images = torch.nonzero(~done_by_image.all(1)).flatten()
        if len(images) < len(done_by_image):
            self.memory = self.memory.select(images)
        width = int((~done_by_image).sum(1).max())
        order = done_by_image[images].long().argsort(dim=1, stable=True)[:, :width]
        kept = (images[:, None] * self.per_image + order).flatten()
        self.per_image = width
        return kept

    def _feed(self, ids: Tensor) -> Tensor:
        """Run tokens (R, n), write their keys and values after the used slots; return the last one's state (R, D)."""
        encoder, start, stop = self.model.beit3.encoder, self.used, self.used + ids.shape[1]
        positions = (torch.arange(start, stop, device=ids.device) + self.offset[:, None]).clamp(min=0)  # (R, n)
        x = self.model.beit3.text_embed(ids) + encoder.embed_positions.B.weight[positions + 2]  # (R, n, D)
        blocked = torch.ones(ids.shape[1], stop, dtype=torch.bool, device=ids.device).triu(start + 1)[None]
        if self.hidden.shape[1]:
            blocked = blocked | torch.nn.functional.pad(self.hidden, (0, stop - self.hidden.shape[1]))[:, None]
        for index, layer in enumerate(encoder.layers):
            q, k, v = project_qkv(layer, TEXT, x)  # (R, n, H, d)
            slots = self.cache[:stop, index]  # (t, 2, R, H, d)
            slots[start:, 0], slots[start:, 1] = k.transpose(0, 1), v.transpose(0, 1)
            if index == len(encoder.layers) - 1:  # the other tokens are needed for their keys and values only
                x, q, blocked = x[:, -1:], q[:, -1:], blocked[:, -1:]
            attended = shared_attention(
                q, self.memory.keys[index], self.memory.values[index], slots[:, 0], slots[:, 1], blocked
            )
            x = output_and_ffn(layer, TEXT, x, attended)
        return encoder.layer_norm.B(x[:, -1])


def shared_attention(
    q: Tensor, image_keys: Tensor, image_values: Tensor, keys: Tensor, values: Tensor, blocked: Tensor
) -> Tensor:
    """Attention of rows (R, n, H, d) to their image (B, H, N, d) and their own text (t, R, H, d); returns (R, n, D).

    All rows of an image attend to one copy of its keys and values, as one product of matrices. `blocked` (1 or R, n, t) is
    true where a token may not attend.
    """
    images, heads = image_keys.shape[:2]
    rows, length, _, width = q.shape
    q = q * width**-0.5
    by_image = q.reshape(images, -1, heads, width).transpose(1, 2)  # (B, H, R/B n, d)
    to_image = by_image @ image_keys.transpose(2, 3)  # (B, H, R/B n, N)
    to_text = q.transpose(1, 2) @ keys.permute(1, 2, 3, 0)  # (R, H, n, t)
    to_text = to_text.masked_fill(blocked[:, None], -torch.inf)
    to_text = to_text.view(images, -1, heads, length, len(keys)).transpose(1, 2).flatten(2, 3)  # (B, H, R/B n, t)
    weights = torch.cat([to_image, to_text], dim=3).softmax(3)
    image_weights, text_weights = weights.split([image_keys.shape[2], len(keys)], dim=3)
    from_image = (image_weights @ image_values).transpose(1, 2).reshape(rows, length, heads, width)
    text_weights = text_weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)  # (R, H, n, t)
    from_text = (text_weights @ values.permute(1, 2, 0, 3)).transpose(1, 2)  # (R, n, H, d)
    return (from_image + from_text).flatten(2)


def word_probs(tokenizer, caption: Caption) -> list[float]:
    """Return the probability of each word of `caption.text.split()`: the product over its tokens.

    A token that is only the space before a word belongs to that word.
    """
    words: list[set[int]] = []  # indices of the tokens of each word
    pending: set[int] = set()
    inside = False
    for index, piece in enumerate(tokenizer.convert_ids_to_tokens(caption.ids)):
        if piece is None or piece in tokenizer.all_special_tokens:  # None: a row of the vocabulary without a piece
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
