"""The two streams equal the reference implementation's masked pass; packed captions equal separate ones."""

from dataclasses import replace

import pytest
import torch

from beit3lib.model import MODELS, CaptionModel, ModelConfig, attention, model_config

TINY = ModelConfig(width=32, layers=3, heads=4, image_size=16, patch_size=8, vocab_size=60)


def make_model(config=TINY, seed=0):
    torch.manual_seed(seed)
    return CaptionModel(config)


def make_large_model(config):
    """A large model with random weights; initializing it takes half a minute."""
    model = CaptionModel.empty(config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name or "_ln." in name or "layernorm" in name:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def make_inputs(config, batch=2, length=9, seed=1):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, config.image_size, config.image_size, generator=rng) * 2 - 1
    return images, torch.randint(3, config.vocab_size, (batch, length), generator=rng)


@pytest.mark.parametrize("name", ["tiny", pytest.param("beit3_base_patch16_224", marks=pytest.mark.slow)])
def test_logits_and_gradients_equal_the_reference_implementations(reference, name):
    config = TINY if name == "tiny" else model_config(name)
    model = make_large_model(config).eval()
    images, text = make_inputs(config)
    padding = torch.zeros_like(text)
    padding[1, 6:] = 1
    real = padding == 0
    expected = reference.logits(reference.captioning_model(model), images, text, padding)[real]
    expected.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = model(images, text)[real]
    ours.square().mean().backward()
    assert (ours - expected).abs().max() < 1e-4
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad and n in gradients]
    assert len(trained) > 50
    for parameter_name, parameter in trained:
        assert (parameter.grad - gradients[parameter_name]).abs().max() < 1e-4, parameter_name


def test_stochastic_depth_equals_the_reference_implementations(reference):
    """The rate of every layer, and which branches are scaled: those of an image and its caption together."""
    config = replace(TINY, drop_path=0.5)
    model = make_model(config).train()
    images, text = make_inputs(config, batch=4)
    memory = model.encode_image(images)
    theirs = reference.captioning_model(model, drop_path=0.5).train()
    rates = [layer.drop_path.drop_prob for layer in theirs.beit3.encoder.layers]
    assert rates == pytest.approx([0, 0.25, 0.5])
    for layer, scales in zip(theirs.beit3.encoder.layers, memory.drop_path_mask, strict=True):
        branches = iter(scales)  # attention, then feed-forward network
        layer.drop_path.forward = lambda x, branches=branches: x * next(branches)[:, None, None]
    assert (model(memory, text) - reference.logits(theirs, images, text)).abs().max() < 1e-5


def test_stochastic_depth_keeps_the_mean():
    model = make_model(replace(TINY, drop_path=0.5)).train()
    scales = model.encode_image(make_inputs(TINY, batch=1000)[0]).drop_path_mask
    assert (scales[0] == 1).all() and set(scales[-1].unique().tolist()) == {0.0, 2.0}
    assert scales[-1].mean().item() == pytest.approx(1.0, abs=0.1)
    assert model.eval().encode_image(make_inputs(TINY)[0]).drop_path_mask is None


@pytest.mark.parametrize("lengths", [[4, 5, 2], [1, 1, 9], [11]], ids=str)
def test_packed_captions_equal_separate_captions(lengths):
    model = make_model().eval()
    images, text = make_inputs(TINY, batch=1, length=sum(lengths))
    doc_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = model(images, text, positions, doc_ids)[0].split(lengths)
    for together, alone in zip(packed, text[0].split(lengths), strict=True):
        assert (together - model(images, alone[None])[0]).abs().max() < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_equals_fused_attention_in_fp32(masked):
    """Outputs and gradients differ by rounding only; the mask is shared by all heads, as in a model."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, length, 8).bfloat16().requires_grad_() for length in (7, 12, 12)]
    mask = torch.rand(2, 1, 7, 12) < 0.5 if masked else None
    if masked:
        mask[..., 0] = True  # every token attends to something
    weights = torch.randn(2, 3, 7, 8)
    found = attention(*inputs, mask)
    assert found.dtype == torch.bfloat16
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, attn_mask=mask)
    found_gradients = torch.autograd.grad((found.float() * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), exact)
    for a, b in zip((found, *found_gradients), (expected, *expected_gradients), strict=True):
        assert (a.float() - b).norm() < 0.01 * b.norm()


def test_activation_checkpointing_does_not_change_gradients():
    images, text = make_inputs(TINY)
    gradients = []
    for checkpointed in (False, True):
        model = make_model(replace(TINY, checkpoint_activations=checkpointed, drop_path=0.5)).train()
        torch.manual_seed(7)
        model(images, text).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-7)


def test_base_model_has_the_public_size_and_initialization():
    with torch.device("meta"):
        base = CaptionModel(MODELS["beit3_base_patch16_224"])
    assert sum(p.numel() for p in base.parameters()) == pytest.approx(271e6, rel=0.01)
    assert MODELS["beit3_base_patch16_480"].image_tokens == 901
    model = make_model()
    assert model.mlm_head.weight.abs().max() <= 0.02 and model.mlm_head.weight.std() > 0.009
    tables = model.beit3.encoder.embed_positions
    assert model.mlm_head.bias.abs().max() == 0
    assert [t.weight.std().item() for t in (tables.A, tables.B)] == pytest.approx([0.2, 0.2], rel=0.1)
