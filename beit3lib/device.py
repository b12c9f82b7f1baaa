"""Choose the device and the precision that it supports natively, and prepare weights for inference in that precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(requested: str = "auto") -> torch.device:
    """Return the device to run on: "auto" and "cuda" fall back to the CPU, with a message for "cuda", if there is no GPU.

    Raises RuntimeError for a GPU that this PyTorch has no kernels for, for example Kaggle's P100: it would otherwise fail
    later, inside CUDA, with a message that names neither the GPU nor a remedy.
    """
    if requested == "cpu" or not torch.cuda.is_available():
        if requested.startswith("cuda"):
            print("device: no CUDA GPU found, using the CPU", flush=True)
        return torch.device("cpu")
    major, minor = torch.cuda.get_device_capability()
    kernels = [int(arch.removeprefix("sm_").rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    # Kernels run on every GPU of the same major version whose minor version is not lower.
    if kernels and not any(number // 10 == major and number % 10 <= minor for number in kernels):
        raise RuntimeError(
            f"{torch.cuda.get_device_name()}: expected {', '.join(torch.cuda.get_arch_list())} for this PyTorch, found "
            f"compute capability {major}.{minor}. On Kaggle choose the accelerator GPU T4 x2; elsewhere install a PyTorch "
            "that supports this GPU, or pass --device cpu."
        )
    return torch.device("cuda")


def choose_precision(requested: str, device: torch.device) -> tuple[str, str]:
    """Return "bf16", "fp16" or "no" (fp32), and the reason.

    The compute capability decides and not `torch.cuda.is_bf16_supported()`, which is true on a T4, where bf16 is emulated.
    """
    if requested != "auto":
        return {"fp32": "no"}.get(requested, requested), "set by the user"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        return ("bf16", f"{name}: native bf16") if major >= 8 else ("fp16", f"{name}: no native bf16, fp16 with loss scaling")
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16", "the CPU has bf16 instructions"
    return "no", f"{device.type}: no native bf16"


def inference_precision(device: torch.device) -> torch.autocast:
    """Return the autocast context for generating captions: the device's native lower precision, or none."""
    dtype = DTYPES.get(choose_precision("auto", device)[0])
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def inference_weights(model: nn.Module) -> Iterator[None]:
    """Let linear layers use copies of their weights in this block, prepared once for all captions that it generates.

    Under autocast, which must be entered before, the copies are in its precision; without them each call without gradients
    casts the weights again, which takes most of a decoding step. On a CPU they are also in oneDNN's memory layout. They take
    as much memory as the weights, which must not change inside the block. A block inside another one does nothing.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if any("forward" in vars(layer) for layer in layers):
        yield
        return
    device = layers[0].weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layers[0].weight.dtype
    try:
        for layer in layers:
            layer.forward = _prepared_product(layer, dtype)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _prepared_product(layer: nn.Linear, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = layer.weight.detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    if not _onednn_is_faster(weight):
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, bias, "none", [], "")


def _onednn_is_faster(weight: Tensor) -> bool:
    """Whether oneDNN's private operations exist for this weight and are faster than `F.linear`.

    No public function (`to_mkldnn`, conv, addmm) is as fast with weights in oneDNN's layout. With those of the base model,
    products of 6 to 60 rows take 0.61 to 0.74 of the time in bf16 and 0.63 to 0.95 in fp32 (Xeon with AMX, one thread).
    Weights of 256 x 256 in fp32 take 1.16 of the time, because each call of the operation costs more.
    """
    onednn, names = torch.ops.mkldnn, ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if weight.device.type != "cpu" or weight.numel() < 512 * 512 or not all(hasattr(onednn, name) for name in names):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())
