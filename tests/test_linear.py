"""Every way of multiplying is `F.linear`, forward and backward, and what was cast follows the weights."""

import pytest
import torch
from torch import nn

from beit3lib import linear as module
from beit3lib.linear import linear, linears

onednn = pytest.mark.skipif(not module.has_onednn(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "mkl_is_at_home", lambda: False)


@onednn
def test_where_mkl_is_at_home_it_trains(always, monkeypatch):
    layer, x = nn.Linear(12, 7), torch.randn(5, 12, requires_grad=True)
    assert "OneDNN" in type(linear(layer, x).grad_fn).__name__
    monkeypatch.setattr(module, "mkl_is_at_home", lambda: True)
    assert "OneDNN" not in type(linear(layer, x).grad_fn).__name__


@onednn
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (1, 1, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_is_f_linear_with_its_gradients(always, shape, bias):
    layer = nn.Linear(12, 7, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    expected, found = layer(x), linear(layer, x)
    assert type(found.grad_fn).__name__ == "OneDNNBackward" and torch.allclose(found, expected, atol=1e-5)
    seed = torch.randn_like(expected)
    inputs = [x, *layer.parameters()]
    for a, b in zip(torch.autograd.grad(found, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


@onednn
def test_strides_do_not_matter(always):
    layer, x = nn.Linear(12, 7), torch.randn(12, 5, 4)
    assert torch.allclose(linear(layer, x.permute(2, 1, 0)), layer(x.permute(2, 1, 0)), atol=1e-5)


@onednn
def test_frozen_weights_get_no_gradient(always):
    layer, x = nn.Linear(4, 4).requires_grad_(False), torch.randn(3, 4, requires_grad=True)
    linear(layer, x).sum().backward()
    assert layer.weight.grad is None and torch.allclose(x.grad, layer.weight.sum(0).expand(3, 4), atol=1e-6)


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=onednn)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_weights_give_what_the_layers_give(monkeypatch, packed, dtype):
    monkeypatch.setattr(module, "SMALL", 0 if packed else 10**9)
    layers, x = [nn.Linear(16, 8) for _ in range(3)], torch.randn(2, 4, 16)
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = [layer(x) for layer in layers]
        found = linears(layers, x)
        if packed or dtype != torch.float32:
            kept = module._kept(tuple(layers), dtype, packed)[0]
            linears(layers, x)
            assert module._kept(tuple(layers), dtype, packed)[0] is kept
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype and torch.allclose(a, b, atol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("kind", ["loop", "foreach", "fused", "load", "moved"])
def test_kept_weights_follow_every_way_of_changing_them(kind):
    layer, x = nn.Linear(16, 8), torch.randn(4, 16)

    def cast():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return linear(layer, x).float()

    before = cast()
    if kind == "load":
        layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
    elif kind == "moved":
        layer.weight.data = layer.weight.data + 1
    else:
        options = {"foreach": kind == "foreach", "fused": kind == "fused"}
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, **options)
        linear(layer, x).sum().backward()
        optimizer.step()
    after = cast()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(after, layer(x).float()) and not torch.equal(before, after)


def test_without_onednn_it_is_the_layer(monkeypatch):
    monkeypatch.setattr(module, "has_onednn", lambda: False)
    layer, x = nn.Linear(600, 600), torch.randn(600, 600)
    assert torch.equal(linear(layer, x), layer(x))
