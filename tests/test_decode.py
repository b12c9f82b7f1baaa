"""Beam search gives what the recipe's own way gives, and beam 1 is greedy."""

from types import SimpleNamespace

import pytest
import torch
from test_model import TINY, make, torchscale_logits

from beit3lib.decode import CACHE_BYTES, generate, images_at_once, shared_attention, word_probs
from beit3lib.model import model_config
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer

MAX_LEN = 12


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(sample.SPM_PATH)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = type(TINY)(**{**TINY.__dict__, "vocab_size": len(tokenizer) + 8})
    model = make(config, seed=3).eval()
    with torch.no_grad():  # sharper than the recipe's start, so that beams differ and `</s>` comes at various times
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(20)
        model.mlm_head.bias[tokenizer.eos_token_id] = 1.0
    return model


def random_images(model, count, seed=5):
    colours = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(colours, size=model.config.image_size)


def next_log_probs(model, tokenizer, image, words):
    """Without any cache: the whole sentence and a mask through torchscale's masked forward."""
    text = torch.tensor([[*words, tokenizer.mask_token_id]])
    logits = torchscale_logits(model, image[None], text, torch.zeros_like(text))[0, -1]
    return logits.float().log_softmax(-1)


def beam_search_by_hand(model, tokenizer, image, beams, max_len=MAX_LEN, penalty=0.6, start=()):
    """The recipe's search in plain Python, a candidate at a time."""
    live = [(0.0, [tokenizer.bos_token_id, *start])] + [(-1e9, [tokenizer.bos_token_id, *start])] * (beams - 1)
    best = (-float("inf"), None)
    for words in range(max_len - 1):
        scored = torch.stack([total + next_log_probs(model, tokenizer, image, ids) for total, ids in live])
        values, places = scored.flatten().topk(3 * beams)
        if best[0] >= values[0].item() / (max_len - 1) ** penalty:
            break
        going = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            beam, word = divmod(place, scored.shape[1])
            if word == tokenizer.eos_token_id or words == max_len - 2:
                score = value / (words + 2) ** penalty
                best = max(best, (score, live[beam][1]), key=lambda pair: pair[0])
            else:
                going.append((value, [*live[beam][1], word]))
            if len(going) == beams:
                break
        live = going or live
    return best[0], best[1][1 + len(start) :]


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_equals_the_recipes_search_without_cache(model, tokenizer, beams):
    images = random_images(model, 8)
    with torch.no_grad():
        expected = [beam_search_by_hand(model, tokenizer, image, beams) for image in images]
    found = generate(model, images, tokenizer, num_beams=beams, max_tokens=MAX_LEN)
    assert [caption.ids for caption in found] == [ids for _, ids in expected]
    for caption, (score, _) in zip(found, expected, strict=True):
        assert caption.score == pytest.approx(score, abs=1e-4)
    assert len({len(caption.ids) for caption in found}) > 1  # the case is not trivial: sentences end at various times


def test_one_beam_is_greedy(model, tokenizer):
    for image, caption in zip(random_images(model, 3), generate_one_beam(model, tokenizer), strict=True):
        ids = [tokenizer.bos_token_id]
        with torch.no_grad():
            while len(ids) < MAX_LEN:
                word = next_log_probs(model, tokenizer, image, ids).argmax().item()
                if word == tokenizer.eos_token_id:
                    break
                ids.append(word)
        assert caption.ids == ids[1 : MAX_LEN - 1]


def generate_one_beam(model, tokenizer):
    return generate(model, random_images(model, 3), tokenizer, num_beams=1, max_tokens=MAX_LEN)


def test_descriptions_share_an_image_and_equal_separate_searches(model, tokenizer):
    images = random_images(model, 3)
    descriptions = [("vehicle", "road"), ("pedestrian", "pedestrian_description"), ("vehicle", "moving")]
    together = generate(model, images, tokenizer, max_tokens=MAX_LEN, descriptions=descriptions)
    alone = [generate(model, images, tokenizer, max_tokens=MAX_LEN, descriptions=[d]) for d in descriptions]
    expected = [alone[d][i].ids for i in range(3) for d in range(3)]
    assert [caption.ids for caption in together] == expected


def test_a_batch_equals_its_images_one_by_one(model, tokenizer):
    images = random_images(model, 5, seed=9)
    together = generate(model, images, tokenizer, max_tokens=MAX_LEN)
    alone = [generate(model, image[None], tokenizer, max_tokens=MAX_LEN)[0] for image in images]
    assert [c.ids for c in together] == [c.ids for c in alone]


def test_log_probs_are_the_words_own(model, tokenizer):
    image = random_images(model, 1)
    caption = generate(model, image, tokenizer, max_tokens=MAX_LEN)[0]
    ids = [tokenizer.bos_token_id]
    with torch.no_grad():
        for word, log_prob in zip(caption.ids, caption.log_probs, strict=True):
            assert next_log_probs(model, tokenizer, image[0], ids)[word].item() == pytest.approx(log_prob, abs=1e-4)
            ids.append(word)


def test_word_probs_multiply_the_pieces_of_a_word(tokenizer):
    from beit3lib.decode import Caption

    text = "The road is a one-way road."
    ids = tokenizer.encode(text, add_special_tokens=False)
    probs = word_probs(tokenizer, Caption(text, 0.0, ids, [-0.1] * len(ids)))
    assert len(probs) == len(text.split())
    assert probs[0] == pytest.approx(0.9048, abs=1e-3)
    assert probs[4] < probs[0]


def test_rows_of_the_vocabulary_that_no_piece_belongs_to_are_no_words(tokenizer):
    """An untrained model may choose one of the eight rows that BEiT-3 leaves unused, or a mask."""
    from beit3lib.decode import Caption

    ids = [len(tokenizer) + 3, *tokenizer.encode("The road", add_special_tokens=False), tokenizer.mask_token_id]
    caption = Caption(tokenizer.decode(ids, skip_special_tokens=True), 0.0, ids, [-0.1] * len(ids))
    assert caption.text == "The road" and len(word_probs(tokenizer, caption)) == 2


def test_as_many_images_at_once_as_memory_allows():
    """Ten descriptions by three beams of the large model are 30 rows an image, of 72 words in 24 layers."""
    large = SimpleNamespace(config=model_config("beit3_large_patch16_224"), device=torch.device("cpu"))
    each = 3 * 30 * 72 * 24 * 2 * 1024 * 4
    assert images_at_once(large, 10, 3, 64, 32) == CACHE_BYTES // each == 3
    assert images_at_once(large, 1, 3, 64, 32) == 31 and images_at_once(large, 1, 1, 64, 32) == 32
    assert images_at_once(large, 10, 100, 64, 32) == 1


def test_shared_attention_equals_attention_to_an_expanded_image():
    rng = torch.Generator().manual_seed(0)
    image_keys, image_values = torch.randn(2, 2, 4, 7, 8, generator=rng)
    q = torch.randn(6, 4, 2, 8, generator=rng)
    keys, values = torch.randn(2, 6, 4, 5, 8, generator=rng)
    blocked = torch.zeros(1, 2, 5, dtype=torch.bool)
    blocked[0, 0, 4] = True
    expanded = [
        torch.cat([part.repeat_interleave(3, 0), own], 2)
        for part, own in zip((image_keys, image_values), (keys, values), strict=True)
    ]
    mask = torch.cat([torch.ones(1, 2, 7, dtype=torch.bool), ~blocked], 2)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, *expanded, attn_mask=mask)
    words = (part.permute(2, 0, 1, 3) for part in (keys, values))  # (t, R, H, d), as the cache has them
    found = shared_attention(q.transpose(1, 2), image_keys, image_values, *words, blocked)
    assert (found - expected.transpose(1, 2).flatten(2)).abs().max() < 1e-5


def test_descriptions_that_end_early_leave_the_batch_and_the_others_do_not_notice(model, tokenizer):
    """Captions of one image end at various times: rows become fewer, and every caption is as if searched alone."""
    images = random_images(model, 2, seed=5)
    descriptions = [(s, a) for s in ("vehicle", "pedestrian") for a in ("moving", "position", "road", "weather")]
    together = generate(model, images, tokenizer, max_tokens=MAX_LEN, descriptions=descriptions)
    alone = [
        generate(model, images[i : i + 1], tokenizer, max_tokens=MAX_LEN, descriptions=[d])[0]
        for i in (0, 1)
        for d in descriptions
    ]
    assert [c.ids for c in together] == [c.ids for c in alone]
    assert len({len(c.ids) for c in together}) > 1


def test_a_vocabulary_that_holds_all_that_is_said_changes_nothing_and_one_that_does_not_is_kept_to(model, tokenizer):
    images = random_images(model, 4)
    free = generate(model, images, tokenizer, max_tokens=MAX_LEN)
    everything = generate(model, images, tokenizer, max_tokens=MAX_LEN, vocabulary=range(model.config.vocab_size))
    assert [c.ids for c in free] == [c.ids for c in everything]
    assert [c.score for c in free] == pytest.approx([c.score for c in everything], abs=1e-5)
    few = range(20, 60)
    for caption in generate(model, images, tokenizer, max_tokens=MAX_LEN, vocabulary=few):
        assert set(caption.ids) <= set(few)


def test_a_vocabulary_that_is_not_known_is_said(model, tokenizer):
    with pytest.raises(ValueError, match="does not say which ids"):
        generate(model, random_images(model, 1), tokenizer, vocabulary="training")
    with pytest.raises(ValueError, match="expected \"training\", ids, or None; found 'all'"):
        generate(model, random_images(model, 1), tokenizer, vocabulary="all")
