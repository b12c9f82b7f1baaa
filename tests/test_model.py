"""Two streams are torchscale's masked forward, packed captions are captions one by one, names are the public ones."""

import pytest
import torch

from beit3lib.model import MODELS, Captioner, ModelConfig, model_config

TINY = ModelConfig(width=32, layers=3, heads=4, image_size=16, patch_size=8, vocab_size=60)


def make(config, seed=0):
    torch.manual_seed(seed)
    return Captioner(config)


def make_quickly(config):
    """Random weights without the recipe's cut normal, which takes a minute for a base model."""
    with torch.device("meta"):
        model = Captioner(config)
    torch.manual_seed(0)
    for name, parameter in model.to_empty(device="cpu").named_parameters():
        if "norm" in name or "_ln." in name or "layernorm" in name:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def torchscale_logits(model, images, text_ids, padding):
    """The recipe's way: one sequence, one mask; True where attention is forbidden."""
    image_tokens, length = model.config.image_tokens, text_ids.shape[1]
    total = image_tokens + length
    mask = torch.zeros(total, total)
    mask[:image_tokens, image_tokens:] = 1
    mask[image_tokens:, image_tokens:] = torch.ones(length, length).triu(1)
    out = model.beit3(textual_tokens=text_ids, visual_tokens=images, text_padding_position=padding, attn_mask=mask)
    return model.mlm_head(out["encoder_out"][:, image_tokens:])


def inputs(config, batch=2, length=9, seed=1):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, config.image_size, config.image_size, generator=rng) * 2 - 1
    return images, torch.randint(3, config.vocab_size, (batch, length), generator=rng)


@pytest.mark.parametrize("name", ["tiny", pytest.param("beit3_base_patch16_224", marks=pytest.mark.slow)])
def test_logits_and_gradients_equal_torchscales_masked_forward(name):
    config = TINY if name == "tiny" else model_config(name)
    model = make_quickly(config).eval()
    images, text = inputs(config)
    padding = torch.zeros_like(text)
    padding[1, 6:] = 1
    real = padding == 0
    reference = torchscale_logits(model, images, text, padding)[real]
    reference.square().mean().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    ours = model(images, text)[real]
    ours.square().mean().backward()
    assert (ours - reference).abs().max() < 1e-4
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in expected:
            assert (parameter.grad - expected[parameter_name]).abs().max() < 1e-4, parameter_name


def test_frozen_parameters_are_those_without_gradient_in_torchscale():
    model = make(TINY).eval()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    images, text = inputs(TINY)
    torchscale_logits(model, images, text, torch.zeros_like(text)).square().mean().backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    always_trained = {"beit3.encoder.layers.2.self_attn.k_proj.A.bias"}  # softmax does not see a shift of all keys
    assert frozen - silent == set()
    assert {n for n in silent - frozen if not n.endswith("k_proj.A.bias") and not n.endswith("k_proj.B.bias")} == set()
    assert always_trained & frozen == set()


def test_packed_captions_equal_the_same_captions_one_by_one():
    model = make(TINY).eval()
    images, text = inputs(TINY, batch=1, length=11)
    lengths = [4, 5, 2]
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = model(images, text, positions, segments)[0]
    start = 0
    for length in lengths:
        alone = model(images, text[:, start : start + length])[0]
        assert (packed[start : start + length] - alone).abs().max() < 1e-5
        start += length


def test_padding_changes_nothing():
    model = make(TINY).eval()
    images, text = inputs(TINY, batch=1, length=6)
    padded = torch.cat([text, torch.ones(1, 3, dtype=torch.long)], 1)
    segments = torch.tensor([[0] * 6 + [-1] * 3])
    positions = torch.tensor([[*range(6), 0, 0, 0]])
    assert (model(images, padded, positions, segments)[:, :6] - model(images, text)).abs().max() < 1e-5


def test_chosen_positions_only():
    model = make(TINY).eval()
    images, text = inputs(TINY)
    chosen = torch.zeros_like(text, dtype=torch.bool)
    chosen[0, 3] = chosen[1, 5] = True
    assert (model(images, text, chosen=chosen) - model(images, text)[chosen]).abs().max() < 1e-6
    assert model(images, text, chosen=chosen, head=False).shape == (2, TINY.width)


def test_recorded_attention_is_what_the_fast_way_uses():
    model = make(TINY).eval()
    images, text = inputs(TINY)
    record = []
    memory = model.encode_image(images)
    states = model.encode_text(memory, text, record=record)
    assert (states - model.encode_text(memory, text)).abs().max() < 1e-5
    assert len(record) == TINY.layers and record[0].shape == (2, TINY.heads, 9, TINY.image_tokens)
    assert all((0 < weights.sum(-1)).all() and (weights.sum(-1) < 1).all() for weights in record)


def test_activation_checkpointing_changes_no_gradient():
    images, text = inputs(TINY)
    grads = []
    for checkpointed in (False, True):
        model = make(ModelConfig(**{**TINY.__dict__, "checkpoint_activations": checkpointed, "drop_path": 0.5}))
        model.train()
        torch.manual_seed(7)
        model(images, text).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-7)


def test_stochastic_depth_drops_image_and_caption_together_and_keeps_the_mean():
    config = ModelConfig(**{**TINY.__dict__, "drop_path": 0.5})
    model = make(config).train()
    torch.manual_seed(0)
    paths = model.encode_image(inputs(config, batch=4000 // 4)[0]).paths
    assert (paths[0] == 1).all()  # the rate starts at 0
    assert paths[-1].mean().item() == pytest.approx(1.0, abs=0.1)
    assert set(paths[-1].unique().tolist()) == {0.0, 2.0}
    assert model.eval().encode_image(inputs(config)[0]).paths is None


@pytest.mark.parametrize("name", MODELS)
def test_public_names_and_shapes(name):
    config = MODELS[name]
    with torch.device("meta"):
        model = Captioner(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["beit3.text_embed.weight"] == (config.vocab_size, config.width)
    assert shapes["beit3.encoder.embed_positions.A.weight"] == (config.image_tokens + 2, config.width)
    assert shapes["mlm_head.weight"] == (config.vocab_size, config.width)
    last = f"beit3.encoder.layers.{config.layers - 1}"
    for module in ("self_attn.q_proj", "ffn.fc1", "self_attn_layer_norm", "final_layer_norm"):
        stem, _, leaf = module.partition(".")
        for side in "AB":
            inner = f"{stem}.{side}.{leaf}" if stem == "ffn" else f"{module}.{side}"
            assert f"{last}.{inner}.weight" in shapes


def test_public_sizes_of_the_base_model():
    with torch.device("meta"):
        model = Captioner(MODELS["beit3_base_patch16_224"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(271e6, rel=0.01)
    assert MODELS["beit3_base_patch16_480"].image_tokens == 901


def test_start_follows_the_recipe():
    model = make(TINY)
    assert model.mlm_head.weight.abs().max() <= 0.02 and model.mlm_head.weight.std() > 0.009
    assert model.mlm_head.bias.abs().max() == 0
    positions = model.beit3.encoder.embed_positions
    assert all(table.weight.std().item() == pytest.approx(0.2, rel=0.1) for table in (positions.A, positions.B))


def test_errors_name_what_was_expected():
    model = make(TINY)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, 16, 16\), found \(1, 3, 8, 8\)"):
        model.encode_image(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="beit3_huge.*expected one of.*beit3_base_patch16_224"):
        model_config("beit3_huge")
