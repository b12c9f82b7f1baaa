"""Beam search finds the reference implementation's captions, whatever is batched, prompted and cached."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_model import TINY, make_model
from torch import nn

from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.decode import generate, inference_weights
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import load_tokenizer, prompt_ids

MAX_TOKENS = 12
TOKENIZER = load_tokenizer(SPM_PATH)
VOCABULARY = len(TOKENIZER) + 8
LONG_PROMPT = prompt_ids(TOKENIZER, "pedestrian", "pedestrian_description")


@pytest.fixture(scope="module")
def model():
    """Random weights, scaled up so that beams differ and captions end at various lengths."""
    model = make_model(replace(TINY, vocab_size=VOCABULARY), seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(20)
        model.mlm_head.bias[TOKENIZER.eos_token_id] = 1.0
    return model


@pytest.fixture(scope="module")
def theirs(reference):
    """theirs(model, images, …): ids of the captions by the reference implementation."""

    def generate(model, images, *options):
        return reference.generate(reference.captioning_model(model), images, TOKENIZER, *options)

    return generate


def random_images(model, count, seed=5):
    colors = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(colors, size=model.config.image_size)


def ids(model, images, prompts=((),), num_beams=3, max_tokens=MAX_TOKENS, *options):
    return [c.ids for c in generate(model, images, TOKENIZER, prompts, num_beams, max_tokens, *options)]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "max_tokens, length_penalty, count",
    [
        *((3, 0.6, 12), (4, 0.6, 12), (10, 0.0, 16), (10, 2.0, 16), (64, 0.6, 12)),
        pytest.param(64, 0.6, 200, marks=pytest.mark.slow),
    ],
)
def test_captions_equal_those_of_the_reference_implementation(
    model, theirs, num_beams, max_tokens, length_penalty, count
):
    images = random_images(model, count)
    expected = theirs(model, images, num_beams, max_tokens, length_penalty)
    assert ids(model, images, ((),), num_beams, max_tokens, length_penalty) == expected
    assert max(map(len, expected)) <= max_tokens - 3
    assert count < 100 or len({len(each) for each in expected}) > 3


@torch.no_grad()
def next_log_probs(model, image, tokens, prompt=()):
    """Without a cache: the whole caption and a mask through the model."""
    text = torch.tensor([[TOKENIZER.bos_token_id, *prompt, *tokens, TOKENIZER.mask_token_id]])
    return model(image[None], text)[0, -1].log_softmax(-1)


@pytest.mark.parametrize("prompt", [[], LONG_PROMPT], ids=["none", "long"])
def test_log_probs_equal_those_without_a_cache(model, prompt):
    image = random_images(model, 1)
    caption = generate(model, image, TOKENIZER, [prompt, [7]], max_tokens=MAX_TOKENS)[0]
    assert len(caption.ids) > 3
    for index, (token, log_prob) in enumerate(zip(caption.ids, caption.log_probs, strict=True)):
        expected = next_log_probs(model, image[0], caption.ids[:index], prompt)[token].item()
        assert log_prob == pytest.approx(expected, abs=1e-4)


def test_images_and_prompts_together_equal_separate_searches(model):
    """Captions of an image end at various lengths, so that sequences leave the search at various steps."""
    images, kinds = random_images(model, 5, seed=9), product(SUBJECTS, ASPECTS)
    prompts = [prompt_ids(TOKENIZER, *kind) for kind in kinds]
    together = generate(model, images, TOKENIZER, prompts, max_tokens=MAX_TOKENS)
    pairs = product(images, prompts)
    alone = [generate(model, x[None], TOKENIZER, [prompt], max_tokens=MAX_TOKENS)[0] for x, prompt in pairs]
    assert [caption.ids for caption in together] == [caption.ids for caption in alone]
    assert [c.log_prob for c in together] == pytest.approx([c.log_prob for c in alone], abs=1e-4)
    assert len({len(caption.ids) for caption in together}) > 1
    assert ids(model, model.encode_image(images), prompts) == [caption.ids for caption in alone]


def layers():
    """A product that oneDNN repacks and one that is too small for it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 8, bias=False))


@pytest.mark.parametrize("has_onednn", [True, False])
@pytest.mark.parametrize("precision, tolerance", [(None, 1e-5), (torch.bfloat16, 1e-2)])
def test_inference_weights_compute_the_same_outputs(monkeypatch, has_onednn, precision, tolerance):
    if not has_onednn:
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    model, x = layers(), torch.randn(2, 6, 512)[:, ::2]
    with torch.autocast("cpu", precision, enabled=precision is not None), torch.inference_mode():
        expected = model(x)
        with inference_weights(model):
            assert torch.allclose(model(x), expected, atol=tolerance, rtol=tolerance)
            assert model(x).dtype == expected.dtype


def test_after_inference_weights_the_model_trains_as_before_also_after_an_error():
    model, other, x = layers(), layers(), torch.randn(4, 512)
    with pytest.raises(ZeroDivisionError), torch.autocast("cpu", torch.bfloat16), inference_weights(model):
        with inference_weights(model):  # does nothing
            model(x)
        raise ZeroDivisionError
    for each in (model, other):
        each(x).square().mean().backward()
        torch.optim.SGD(each.parameters(), lr=0.1).step()
    assert torch.equal(model(x), other(x))
