"""Linear layers at the speed of the device: a drop-in for calling an `nn.Linear`.

On a CPU in fp32 PyTorch multiplies through MKL, which on processors other than Intel's runs at half of what oneDNN, built
into PyTorch as well, reaches: there oneDNN is used, forward and backward. Without gradients weights are kept as the device
wants them: cast, where autocast would cast them again in every call, several layers of one input side by side, and on a CPU
in oneDNN's own order. Everything else is the layer itself.
"""

import platform
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 8_000_000  # multiplications below which a call costs more than oneDNN gains
_KEPT: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # first layer to what is kept of it and its neighbours


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)`; (…, D) to (…, D_out)."""
    return linears([layer], x)[0]


def linears(layers: Sequence[nn.Linear], x: Tensor) -> Sequence[Tensor]:
    """The outputs of several layers of one size on the same `x`."""
    device, weight = x.device.type, layers[0].weight
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    by_onednn = device == "cpu" and dtype in (torch.float32, torch.bfloat16) and _worth_it(x, weight)
    if torch.is_grad_enabled():
        _KEPT.pop(layers[0], None)  # the weights are about to change; a fused optimiser leaves no sign of it
        if by_onednn and not mkl_is_at_home() and dtype == x.dtype == weight.dtype == torch.float32:
            return [OneDNN.apply(x, layer.weight, layer.bias) for layer in layers]
    elif by_onednn or dtype != weight.dtype:
        product = multiply if by_onednn else F.linear
        return product(x.to(dtype), *_kept(tuple(layers), dtype, by_onednn)).chunk(len(layers), -1)
    return [layer(x) for layer in layers]


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, k), weight (n, k) or one in oneDNN's own order, bias (n) to (…, n), by oneDNN; strides do not matter."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNN(torch.autograd.Function):
    """`F.linear` with all three of its products by oneDNN."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As `multiply`."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias, each only if it is needed."""
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (m, n)
        of_x = multiply(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = multiply(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
        of_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    return has_onednn() and x.numel() * weight.shape[0] >= SMALL


def has_onednn() -> bool:
    """Whether this PyTorch was built with oneDNN, and has the operation, which is no part of its public interface."""
    has_it = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return torch.backends.mkldnn.is_available() and has_it


@cache
def mkl_is_at_home() -> bool:
    """Whether this is an Intel CPU and PyTorch has MKL, which there takes half to two thirds of oneDNN's time backward.

    Told by the vendor and not by a measurement: a run that is resumed must compute what it would have computed.
    """
    info = Path("/proc/cpuinfo")
    vendor = info.read_text() if info.is_file() else platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in vendor


def _kept(layers: tuple[nn.Linear, ...], dtype: torch.dtype, packed: bool) -> tuple[Tensor, Tensor | None]:
    """Weights (n, k) and biases (n) of layers, one after the other, in a precision; made anew when they changed."""
    parts = [part for layer in layers for part in (layer.weight, layer.bias) if part is not None]
    state = tuple((part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts)
    kept, key = _KEPT.setdefault(layers[0], {}), (len(layers), dtype, packed)
    if key not in kept or kept[key][0] != state:
        weights = torch.cat([layer.weight.detach().to(dtype) for layer in layers])
        biased = layers[0].bias is not None
        biases = torch.cat([layer.bias.detach().to(dtype) for layer in layers]) if biased else None
        kept[key] = (state, torch.ops.mkldnn._reorder_linear_weight(weights) if packed else weights, biases)
    return kept[key][1:]
