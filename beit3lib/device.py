"""Choose the device and the precision that it supports natively."""

import re

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(requested: str = "auto") -> torch.device:
    """Return the device to run on. Without a GPU, "auto" and "cuda" are the CPU; "cuda" prints a message.

    Raises RuntimeError for a GPU that this PyTorch has no kernels for, for example Kaggle's P100: it would
    otherwise fail later, inside CUDA, with a message that names neither the GPU nor a remedy.
    """
    if requested == "cpu" or not torch.cuda.is_available():
        if requested.startswith("cuda"):
            print("device: no CUDA GPU found, using the CPU", flush=True)
        return torch.device("cpu")
    major, minor = torch.cuda.get_device_capability()
    kernels = [
        int(found[1]) for found in map(re.compile(r"sm_(\d+)").match, torch.cuda.get_arch_list()) if found
    ]
    # Kernels run on every GPU of the same major version whose minor version is not lower.
    if kernels and not any(number // 10 == major and number % 10 <= minor for number in kernels):
        raise RuntimeError(
            f"{torch.cuda.get_device_name()}: expected {', '.join(torch.cuda.get_arch_list())} for this "
            f"PyTorch, found compute capability {major}.{minor}. On Kaggle choose the accelerator GPU T4 x2; "
            "elsewhere install a PyTorch that supports this GPU, or pass --device cpu."
        )
    return torch.device("cuda")


def choose_precision(requested: str, device: torch.device) -> tuple[str, str]:
    """Return "bf16", "fp16" or "no" (fp32), and the reason.

    The compute capability decides and not `torch.cuda.is_bf16_supported()`, which is true on a T4, where bf16
    is emulated.
    """
    if requested != "auto":
        return {"fp32": "no"}.get(requested, requested), "set by the user"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        if major >= 8:
            return "bf16", f"{name}: native bf16"
        return "fp16", f"{name}: no native bf16, fp16 with loss scaling"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16", "the CPU has bf16 instructions"
    return "no", f"{device.type}: no native bf16"


def inference_precision(device: torch.device) -> torch.autocast:
    """Return the autocast context for generating captions: the device's native lower precision, or none."""
    dtype = DTYPES.get(choose_precision("auto", device)[0])
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
