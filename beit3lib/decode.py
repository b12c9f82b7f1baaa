"""Beam search: the image once, its keys and values shared by all its descriptions and beams, text cached.

One step feeds two tokens per beam, [last word, `<mask>`]; the mask's output predicts the next word, and its keys and
values are written over by that word's in the next step. Beam bookkeeping stays in tensors.

Source: decoding of the public BEiT-3 captioning recipe.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from beit3lib.linear import linear
from beit3lib.model import TEXT, Captioner, ImageMemory, finish, project
from beit3lib.tokenizer import prefix_ids

Description = tuple[str, str]  # (subject, aspect)
PREFIX_SLOTS = 8  # more than the words of any prefix need


class Caption(NamedTuple):
    """One generated caption: `score` is Σ log p / (words + 2)^length_penalty; `log_probs` one per id."""

    text: str
    score: float
    ids: list[int]
    log_probs: list[float]


@torch.inference_mode()
def generate(
    model: Captioner,
    images: Tensor | ImageMemory,
    tokenizer=None,
    num_beams: int = 3,
    max_tokens: int | None = None,
    length_penalty: float | None = None,
    descriptions: Sequence[Description] | None = None,
    vocabulary: str | Sequence[int] | None = None,
) -> list[Caption]:
    """Caption B images: B captions, or B x len(descriptions), image by image.

    `images` float (B, 3, S, S) in [-1, 1], or their memory. `max_tokens` counts `<s>` and not the prefix of a
    description; it and `length_penalty` default to the model's own.

    `descriptions`: default those the model was taught. `vocabulary`: ids that may be said, "training" for
    those of the training captions; the head then runs over these alone, and probabilities are among them. So a caption may
    change where another is almost as likely: one or two of a thousand did on the sample.
    """
    tokenizer = tokenizer or model.tokenizer
    if descriptions is None:
        descriptions = model.descriptions if model.prefixed else []
    prefixes = [prefix_ids(tokenizer, *description) for description in descriptions] or [[]]
    memory = model.encode_image(images) if isinstance(images, Tensor) else images
    said = _allowed(model, tokenizer, vocabulary)
    most = model.max_tokens if max_tokens is None else max_tokens
    penalty = model.length_penalty if length_penalty is None else length_penalty
    search = BeamSearch(model, memory, tokenizer, prefixes, num_beams, most, penalty, said)
    return [_caption(tokenizer, *kept) for kept in search.run()]


def _allowed(model: Captioner, tokenizer, vocabulary: str | Sequence[int] | None) -> list[int] | None:
    """The ids that may be said, `</s>` among them."""
    if vocabulary == "training":
        if not model.vocabulary:
            raise ValueError('vocabulary="training": this checkpoint does not say which ids its training captions had')
        vocabulary = model.vocabulary
    if isinstance(vocabulary, str):
        raise ValueError(f'vocabulary: expected "training", ids, or None; found {vocabulary!r}')
    return None if vocabulary is None else sorted({*vocabulary, tokenizer.eos_token_id})


def _caption(tokenizer, ids: list[int], log_probs: list[float], score: float) -> Caption:
    return Caption(tokenizer.decode(ids, skip_special_tokens=True).strip(), score, ids, log_probs)


def word_probs(tokenizer, caption: Caption) -> list[float]:
    """How sure the model was of each word of `caption.text`: the product of the probabilities of its pieces."""
    words: list[float] = []
    empty = True  # nothing of the next word seen yet, or only the space before it
    for piece, log_prob in zip(tokenizer.convert_ids_to_tokens(caption.ids), caption.log_probs, strict=True):
        if piece is None or piece in tokenizer.all_special_tokens:  # None: one of the rows that no piece belongs to
            continue
        if not words or (piece.startswith("▁") and not empty):
            words.append(0.0)
            empty = True
        words[-1] += log_prob
        empty &= piece == "▁"
    return [float(torch.tensor(total).exp()) for total in words]


CACHE_BYTES = 4_000_000_000


def images_at_once(model: Captioner, descriptions: int, num_beams: int, max_tokens: int, wanted: int) -> int:
    """`wanted` images, or as many as can be captioned at once with `CACHE_BYTES` for the words' keys and values; 1 or more.

    There are two stores of them, and a third while sentences leave.
    """
    config, device = model.config, model.device.type
    bytes_each = 2 if torch.is_autocast_enabled(device) else 4
    rows, slots = descriptions * num_beams, max_tokens + PREFIX_SLOTS
    each = 3 * rows * slots * config.layers * 2 * config.width * bytes_each
    return max(1, min(wanted, CACHE_BYTES // each))


class TextCache:
    """Keys and values of the words so far, (C, L, 2, R, H, d): C slots, R rows = images x descriptions x beams.

    Slots come first, so that what is used lies together and can be copied to a second store in the order of the beams that
    go on; the two take turns.
    """

    def __init__(self, model: Captioner, rows: int, capacity: int, like: Tensor) -> None:
        config = model.config
        shape = (capacity, config.layers, 2, rows, config.heads, config.width // config.heads)
        self.store, self.other = like.new_empty(shape), like.new_empty(shape)

    def reorder(self, rows: Tensor, used: int) -> None:
        """Row r becomes what row rows[r] was, in its first `used` slots; rows may become fewer."""
        fewer = len(rows) < self.store.shape[3]
        if fewer:
            self.other = self.store.new_empty(self.store[:, :, :, : len(rows)].shape)
        torch.index_select(self.store[:used], 3, rows, out=self.other[:used])
        self.store, self.other = self.other, torch.empty_like(self.other) if fewer else self.store


class BeamSearch:
    """The state of one call of `generate`; S sentences = images x descriptions, K beams each."""

    def __init__(self, model, memory, tokenizer, prefixes, num_beams, max_tokens, length_penalty, said=None) -> None:
        self.model, self.memory = model, memory
        self.device, self.beams, self.penalty = model.device, num_beams, length_penalty
        self.end_id, self.mask_id = tokenizer.eos_token_id, tokenizer.mask_token_id
        self.max_len = max_tokens
        self.each = len(prefixes)  # sentences per image that are still in the batch
        self.sentences = memory.batch * self.each
        self.starts = [[tokenizer.bos_token_id, *prefix] for prefix in prefixes]
        self.prefill = max(map(len, self.starts)) - 1  # slots before the word that step 1 feeds
        self.vocabulary = None if said is None else torch.tensor(said, device=self.device)
        if said is not None:
            weight, bias = model.mlm_head.weight[self.vocabulary], model.mlm_head.bias[self.vocabulary]
            self.head = weight.to(memory.keys[0].dtype), bias.to(memory.keys[0].dtype)
        self._prepare_rows()
        self._prepare_results()

    def _prepare_rows(self) -> None:
        images, beams = self.memory.batch, self.beams
        rows = self.sentences * beams
        self.cache = TextCache(self.model, rows, self.prefill + self.max_len, self.memory.keys[0])
        padded = [[-1] * (self.prefill + 1 - len(start)) + start for start in self.starts]
        start = torch.tensor(padded, device=self.device)  # (descriptions, prefill + 1), -1 where nothing stands
        start = start.repeat(images, 1).repeat_interleave(beams, 0)  # (R, prefill + 1)
        self.hidden = start[:, : self.prefill] < 0  # (R, prefill) slots that nobody may see
        self.offset = -self.hidden.sum(1)  # a word in slot s stands at position s + offset
        self.last = start[:, -1]
        if self.prefill:
            self._feed(start[:, :-1].clamp(min=0), 0)

    def _prepare_results(self) -> None:
        count, device = self.sentences, self.device
        self.alive = torch.arange(count, device=device)  # sentence numbers still in the batch
        self.scores = torch.full((count, self.beams), -1e9, device=device)
        self.scores[:, 0] = 0
        self.words = torch.zeros(count, self.beams, self.max_len, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(count, self.beams, self.max_len, device=device)
        self.kept_score = torch.full((count,), -torch.inf, device=device)
        self.kept_words, self.kept_log_probs = self.words[:, 0].clone(), self.log_probs[:, 0].clone()
        self.kept_length = torch.zeros(count, dtype=torch.long, device=device)

    def run(self) -> list[tuple[list[int], list[float], float]]:
        """(ids, log probabilities, score) of the best hypothesis of each sentence."""
        for written in range(self.max_len - 1):  # words before the one that is looked for
            slot = self.prefill + written
            pair = torch.stack([self.last, torch.full_like(self.last, self.mask_id)], 1)  # (R, 2)
            states = self._feed(pair, slot)  # (R, D): the mask's
            final = written == self.max_len - 2
            source = self._advance(self._logits(states), written, final)
            if source is None:
                break
            self.cache.reorder(source, slot + 1)
        return [
            (words[:n], log_probs[:n], score)
            for words, log_probs, n, score in zip(
                self.kept_words.tolist(),
                self.kept_log_probs.tolist(),
                self.kept_length.tolist(),
                self.kept_score.tolist(),
                strict=True,
            )
        ]

    def _feed(self, ids: Tensor, slot: int) -> Tensor:
        """Run tokens (R, n) in slots `slot` …, writing their keys and values; returns the last one's normed state (R, D)."""
        encoder, stop = self.model.beit3.encoder, slot + ids.shape[1]
        places = torch.arange(slot, stop, device=self.device) + self.offset[:, None]  # (R, n)
        x = self.model.beit3.text_embed(ids) + encoder.embed_positions.B.weight[places.clamp(min=0) + 2]
        blocked = torch.ones(ids.shape[1], stop, dtype=torch.bool, device=self.device).triu(slot + 1)[None]
        if self.prefill:
            hidden = torch.nn.functional.pad(self.hidden, (0, stop - self.prefill)) if stop > self.prefill else self.hidden
            blocked = blocked | hidden[:, None, :stop]
        last = len(encoder.layers) - 1
        for number, layer in enumerate(encoder.layers):
            q, k, v = project(layer.self_attn, TEXT, layer.self_attn_layer_norm.B(x))  # (R, n, H, d)
            store = self.cache.store[:stop, number]  # (t, 2, R, H, d)
            store[slot:, 0], store[slot:, 1] = k.transpose(0, 1), v.transpose(0, 1)
            if number == last:  # of the other tokens only keys and values are needed any more
                x, q, blocked = x[:, -1:], q[:, -1:], blocked[:, -1:]
            memory = self.memory.keys[number], self.memory.values[number]
            x = finish(layer, TEXT, x, shared_attention(q, *memory, store[:, 0], store[:, 1], blocked))
        return encoder.layer_norm.B(x[:, -1])

    def _logits(self, states: Tensor) -> Tensor:
        """Scores (R, V) of the next word in float32, of those in `vocabulary` where there is one."""
        if self.vocabulary is None:
            return linear(self.model.mlm_head, states).float()
        return torch.nn.functional.linear(states.to(self.head[0].dtype), *self.head).float()

    def _advance(self, logits: Tensor, written: int, final: bool) -> Tensor | None:
        """One step of the search on logits (R, V); returns the row that each row continues, None when all is done."""
        value, parent, word, log_prob = self._candidates(logits)
        ends = word == self.end_id if not final else torch.ones_like(word, dtype=torch.bool)
        ahead = (~ends).cumsum(1) - (~ends).long()  # words that do not end, before this candidate
        done = self.kept_score[self.alive] >= value[:, 0] / (self.max_len - 1) ** self.penalty
        closing = torch.where(ends & (ahead < self.beams) & ~done[:, None], value, -torch.inf)
        self._close(closing / (written + 2) ** self.penalty, parent, written)
        if final or bool(done.all()):
            return None
        going = self._still_going(done)
        chosen = ends.long().argsort(dim=1, stable=True)[:, : self.beams]  # the first K that do not end
        picked = [part.gather(1, chosen) for part in (value, parent, word, log_prob)]
        return self._continue(going, written, *picked)

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best 3 K continuations of each sentence: total, beam, word and the word's log probability, (s, 3 K)."""
        count, sentences = 3 * self.beams, len(self.alive)
        best, word = logits.topk(min(count, logits.shape[1]), dim=1)  # (R, 3 K)
        log_prob = (best - logits.logsumexp(1, keepdim=True)).view(sentences, -1)
        total = log_prob + self.scores.repeat_interleave(best.shape[1], 1)
        value, place = total.topk(min(count, total.shape[1]), dim=1)
        if self.vocabulary is not None:
            word = self.vocabulary[word]
        word, log_prob = word.view(sentences, -1).gather(1, place), log_prob.gather(1, place)
        return value, place // best.shape[1], word, log_prob

    def _close(self, closing: Tensor, parent: Tensor, written: int) -> None:
        score, place = closing.max(1)
        beam = parent.gather(1, place[:, None])[:, 0]
        better = score > self.kept_score[self.alive]
        rows, beam = torch.nonzero(better).flatten(), beam[better]
        kept = self.alive[rows]
        self.kept_score[kept] = score[rows]
        self.kept_words[kept] = self.words[rows, beam]
        self.kept_log_probs[kept] = self.log_probs[rows, beam]
        self.kept_length[kept] = written

    def _continue(self, going: Tensor, written: int, value, parent, word, log_prob) -> Tensor:
        rows = going[:, None]
        self.words, self.log_probs = self.words[rows, parent[going]], self.log_probs[rows, parent[going]]
        self.words[:, :, written], self.log_probs[:, :, written] = word[going], log_prob[going]
        self.scores, self.last = value[going], word[going].flatten()
        self.alive = self.alive[going]
        source = (rows * self.beams + parent[going]).flatten()
        self.offset = self.offset[source]
        self.hidden = self.hidden[source]
        return source

    def _still_going(self, done: Tensor) -> Tensor:
        """Numbers of the sentences that stay in the batch, the same count for each image that has any left.

        An image with fewer keeps some that are done, which changes nothing for them; one without any leaves.
        """
        grid = done.view(-1, self.each)
        images = torch.nonzero(~grid.all(1)).flatten()
        if len(images) < len(grid):
            self.memory = self.memory.select(images)
        width = int((~grid).sum(1).max())
        order = grid[images].long().argsort(dim=1, stable=True)[:, :width]
        going = (images[:, None] * self.each + order).flatten()
        self.each = width
        return going


def shared_attention(
    q: Tensor, image_keys: Tensor, image_values: Tensor, keys: Tensor, values: Tensor, blocked: Tensor
) -> Tensor:
    """Attention of rows (R, n, H, d) to their image (B, H, N, d) and their own words (t, R, H, d); returns (R, n, D).

    The image's keys and values are used where they lie, once for all rows of the image, R = B x rows each. `blocked`
    (1 or R, n, t) is true where a word may not look.
    """
    images, heads = image_keys.shape[:2]
    rows, length, _, width = q.shape
    q = q * width**-0.5
    by_image = q.reshape(images, -1, heads, width).transpose(1, 2)  # (B, H, each n, d)
    to_image = by_image @ image_keys.transpose(2, 3)  # (B, H, each n, N)
    to_text = q.transpose(1, 2) @ keys.permute(1, 2, 3, 0)  # (R, H, n, t)
    to_text = to_text.masked_fill(blocked[:, None], -torch.inf)
    to_text = to_text.view(images, -1, heads, length, keys.shape[0]).transpose(1, 2).flatten(2, 3)  # (B, H, each n, t)
    weights = torch.cat([to_image, to_text], dim=3).softmax(3)
    of_image, of_text = weights.split([image_keys.shape[2], keys.shape[0]], dim=3)
    seen = (of_image @ image_values).transpose(1, 2).reshape(rows, length, heads, width)  # (B, H, each n, d)
    of_text = of_text.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)  # (R, H, n, t)
    return (seen + (of_text @ values.permute(1, 2, 0, 3)).transpose(1, 2)).flatten(2)


def caption_image(model: Captioner, image, subject: str | None = None, aspect: str | None = None, **options):
    """`Captioner.caption`: one picture (path or PIL image) to text, or to {(subject, aspect): text}."""
    from beit3lib.dataset import load_image, to_tensor

    chosen = [d for d in model.descriptions if subject in (None, d[0]) and aspect in (None, d[1])]
    if not chosen and (subject or aspect):
        taught = ", ".join(" ".join(d) for d in model.descriptions) or "one description, without a name"
        raise ValueError(f"this model was not taught {subject or 'any'} {aspect or ''}; it knows: {taught}")
    pixels = to_tensor(load_image(image), model.config.image_size)[None].to(model.device)
    captions = [c.text for c in generate(model, pixels, descriptions=chosen if model.prefixed else [], **options)]
    return dict(zip(chosen, captions, strict=True)) if len(chosen) > 1 else captions[0]
