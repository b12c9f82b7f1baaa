"""Beam search finds the recipe's captions; prompts, batches and caching do not change them."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import TINY, make_model

from beit3lib.decode import Caption, generate, inference_weights, word_probs
from beit3lib.model import model_config
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import load_tokenizer, prompt_ids

MAX_TOKENS = 12
TOKENIZER = load_tokenizer(SPM_PATH)
CAPTION_TYPES = [
    (s, a) for s in ("vehicle", "pedestrian") for a in ("moving", "pedestrian_description", "road", "weather")
]


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZER


@pytest.fixture(scope="module")
def model(tokenizer):
    """Random weights, scaled up so that beams differ and captions end at various lengths."""
    model = make_model(replace(TINY, vocab_size=len(tokenizer) + 8), seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(20)
        model.mlm_head.bias[tokenizer.eos_token_id] = 1.0
    return model


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("beit3")
    import reference

    return reference


def random_images(model, count, seed=5):
    colors = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(colors, size=model.config.image_size)


def ids_of(captions):
    return [caption.ids for caption in captions]


@pytest.mark.parametrize(
    ("num_beams", "max_tokens", "count"),
    [
        *((beams, tokens, 12) for beams in (1, 2, 3) for tokens in (3, 4, 10)),
        (3, 64, 12),
        *(
            pytest.param(beams, tokens, 200, marks=pytest.mark.slow)
            for beams in (1, 3)
            for tokens in (10, 64)
        ),
    ],
)
def test_captions_equal_the_recipe(model, tokenizer, reference, num_beams, max_tokens, count):
    images = random_images(model, count)
    expected = reference.generate(reference.captioning_model(model), images, tokenizer, num_beams, max_tokens)
    found = generate(model, images, tokenizer, [[]], num_beams, max_tokens)
    assert ids_of(found) == expected
    assert max(map(len, expected)) <= max_tokens - 3
    assert count < 100 or len({len(ids) for ids in expected}) > 3


@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
def test_length_penalty_equals_the_recipe(model, tokenizer, reference, length_penalty):
    images = random_images(model, 16)
    expected = reference.generate(
        reference.captioning_model(model), images, tokenizer, 3, MAX_TOKENS, length_penalty
    )
    assert ids_of(generate(model, images, tokenizer, [[]], 3, MAX_TOKENS, length_penalty)) == expected


@pytest.mark.slow
def test_base_model_captions_equal_the_recipe(tokenizer, reference):
    from test_model import make_large_model

    model = make_large_model(model_config("beit3_base_patch16_224", vocab_size=len(tokenizer) + 8)).eval()
    with torch.no_grad():
        model.mlm_head.weight.mul_(3)
    images = random_images(model, 4)
    expected = reference.generate(reference.captioning_model(model), images, tokenizer, 3, MAX_TOKENS)
    assert ids_of(generate(model, images, tokenizer, [[]], 3, MAX_TOKENS)) == expected


def test_one_beam_is_greedy(model, tokenizer):
    for image, caption in zip(
        random_images(model, 3), generate(model, random_images(model, 3), tokenizer, [[]], 1), strict=True
    ):
        ids = []
        while len(ids) < 61:
            token = next_log_probs(model, tokenizer, image, ids).argmax().item()
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        assert caption.ids == ids


@torch.no_grad()
def next_log_probs(model, tokenizer, image, ids, prompt=()):
    """Without a cache: the whole caption and a mask through the model."""
    text = torch.tensor([[tokenizer.bos_token_id, *prompt, *ids, tokenizer.mask_token_id]])
    return model(image[None], text)[0, -1].log_softmax(-1)


@pytest.mark.parametrize(
    "prompt", [[], prompt_ids(TOKENIZER, "pedestrian", "pedestrian_description")], ids=["none", "long"]
)
def test_log_probs_equal_those_without_a_cache(model, tokenizer, prompt):
    image = random_images(model, 1)
    caption = generate(model, image, tokenizer, [prompt, [7]], max_tokens=MAX_TOKENS)[0]
    assert len(caption.ids) > 3
    for index, (token, log_prob) in enumerate(zip(caption.ids, caption.log_probs, strict=True)):
        expected = next_log_probs(model, tokenizer, image[0], caption.ids[:index], prompt)[token].item()
        assert log_prob == pytest.approx(expected, abs=1e-4)


def test_prompts_equal_separate_searches(model, tokenizer):
    """Captions of an image end at various lengths, so that sequences leave the search at various steps."""
    images = random_images(model, 3)
    prompts = [prompt_ids(tokenizer, *caption_type) for caption_type in CAPTION_TYPES]
    together = generate(model, images, tokenizer, prompts, max_tokens=MAX_TOKENS)
    alone = [
        generate(model, image[None], tokenizer, [prompt], max_tokens=MAX_TOKENS)[0]
        for image in images
        for prompt in prompts
    ]
    assert ids_of(together) == ids_of(alone)
    assert [c.log_prob for c in together] == pytest.approx([c.log_prob for c in alone], abs=1e-4)
    assert len({len(caption.ids) for caption in together}) > 1


def test_a_batch_equals_its_images_one_by_one(model, tokenizer):
    images = random_images(model, 5, seed=9)
    together = generate(model, images, tokenizer, [[]], max_tokens=MAX_TOKENS)
    alone = [generate(model, image[None], tokenizer, [[]], max_tokens=MAX_TOKENS)[0] for image in images]
    assert ids_of(together) == ids_of(alone)
    assert ids_of(
        generate(model, model.encode_image(images), tokenizer, [[]], max_tokens=MAX_TOKENS)
    ) == ids_of(alone)


def test_prepared_weights_of_a_wide_model_give_the_recipes_captions(tokenizer, reference):
    """Layers this wide use oneDNN's memory layout."""
    model = make_model(replace(TINY, width=512, heads=8, vocab_size=len(tokenizer) + 8), seed=3).eval()
    with torch.no_grad():
        model.mlm_head.weight.mul_(20)
    images = random_images(model, 6)
    expected = reference.generate(reference.captioning_model(model), images, tokenizer, 3, MAX_TOKENS)
    assert ids_of(generate(model, images, tokenizer, [[]], max_tokens=MAX_TOKENS)) == expected
    with inference_weights(model):
        assert ids_of(generate(model, images, tokenizer, [[]], max_tokens=MAX_TOKENS)) == expected
    assert len(set(map(tuple, expected))) > 1


def test_max_tokens_is_checked(model, tokenizer):
    with pytest.raises(ValueError, match="max_tokens: expected 3 or more, got 2"):
        generate(model, random_images(model, 1), tokenizer, [[]], max_tokens=2)


def test_word_probs_are_products_over_the_tokens_of_a_word(tokenizer):
    text = "The road is a one-way road."
    ids = tokenizer.encode(text, add_special_tokens=False)
    probs = word_probs(tokenizer, Caption(text, 0.0, ids, [-0.1] * len(ids)))
    assert len(probs) == len(text.split())
    assert probs[0] == pytest.approx(0.9048, abs=1e-3)
    assert probs[4] < probs[0]


def test_a_lone_space_token_belongs_to_the_next_word(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["▁", "a", "▁", "▁", "b", "▁"])
    caption = Caption(tokenizer.decode(ids).strip(), 0.0, ids, [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    assert caption.text.split() == ["a", "b"]
    assert word_probs(tokenizer, caption) == pytest.approx([math.exp(-3), math.exp(-12)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) + 7), max_size=30))
def test_word_probs_has_one_value_per_word_whatever_the_ids(ids):
    """Special tokens and the eight unused rows of the vocabulary included: an untrained model generates them."""
    text = TOKENIZER.decode(ids, skip_special_tokens=True).strip()
    assert len(word_probs(TOKENIZER, Caption(text, 0.0, ids, [-0.1] * len(ids)))) == len(text.split())


def test_word_probs_of_generated_captions_match_their_words(model, tokenizer):
    for caption in generate(model, random_images(model, 32), tokenizer, [[]]):
        assert len(word_probs(tokenizer, caption)) == len(caption.text.split())
