"""Attention of a word equals what the reference implementation's attention layers compute."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_model import TINY, make_model

from beit3lib.captioner import Captioner
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import load_tokenizer
from beit3lib.transforms import to_tensor
from beit3lib.viz.attention import word_attention

TYPES = [("vehicle", "road"), ("pedestrian", "moving")]


@pytest.fixture(scope="module")
def captioner():
    tokenizer = load_tokenizer(SPM_PATH)
    model = make_model(replace(TINY, image_size=32, vocab_size=len(tokenizer) + 8)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(20)
        model.mlm_head.bias[tokenizer.encode("vehicle road", add_special_tokens=False)] = 30.0
    return Captioner(model, tokenizer, TYPES, max_tokens=8)


@pytest.fixture(scope="module")
def image():
    return Image.radial_gradient("L").resize((32, 32))


def test_weights_are_a_distribution_over_patches(captioner, image):
    caption = captioner.caption(image, *TYPES[0])
    word = caption.split()[0].strip(".,;:")
    found = word_attention(captioner, image, *TYPES[0], ["nothing", word])
    assert (found.word, found.caption, found.weights.shape) == (word, caption, (4, 4))
    assert found.weights.sum().item() == pytest.approx(1) and found.weights.min() >= 0
    assert word_attention(captioner, image, *TYPES[0], ["xylophone"]) is None
    assert (
        word_attention(captioner, image, "vehicle", "weather", ["road"]) is None
    )  # not trained on this type


def test_weights_equal_those_of_the_reference_implementation(captioner, image):
    """Its attention layers return their weights; the value vectors are those of the image memory."""
    pytest.importorskip("beit3")
    import reference

    model, tokenizer = captioner.model, captioner.tokenizer
    pixels = to_tensor(image.convert("RGB"), 32)[None]
    caption = captioner.generate(pixels, [TYPES[1]])[0]
    pieces = tokenizer.convert_ids_to_tokens(caption.ids)
    first = [0, *(index for index in range(1, len(pieces)))]
    first = first[: next((index for index in first[1:] if pieces[index].startswith("▁")), len(first))]
    word = "".join(pieces[index] for index in first).strip("▁").strip(".,;:")
    found = word_attention(captioner, image.convert("RGB"), *TYPES[1], [word])

    theirs, attended = reference.captioning_model(model), []
    for layer in theirs.beit3.encoder.layers:
        layer.self_attn.register_forward_hook(lambda _, __, output: attended.append(output[1]))
    values, maps = model.encode_image(pixels).values, []
    tokens = model.config.image_tokens
    for index in (index for index in first if pieces[index].strip("▁.,;:")):
        attended.clear()
        ids = [tokenizer.bos_token_id, *captioner.prompts[1], *caption.ids[:index], tokenizer.mask_token_id]
        reference.logits(theirs, pixels, torch.tensor([ids]))
        total = 0
        for layer, weights, value in zip(model.beit3.encoder.layers, attended, values, strict=True):
            out = layer.self_attn.out_proj.B.weight.unflatten(1, (4, 8))  # (D, H, d)
            fetched = torch.einsum("hn,hnd,ohd->hno", weights[:, 0, -1, 1:tokens], value[0, :, 1:], out)
            total = total + fetched.norm(dim=-1).mean(0)
        maps.append(total / total.sum())
    assert torch.allclose(found.weights.flatten(), torch.stack(maps).mean(0), atol=1e-5)
