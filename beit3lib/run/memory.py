"""GPU and CPU memory of a training run: the largest batch that fits, and the peak."""

import ctypes
import resource
import sys
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from beit3lib.dataset import CaptionDataset


def largest_batch(size: int, loss_model: nn.Module, optimizer, train_set: CaptionDataset, accelerator) -> int:
    """Reduce a batch size to a divisor of it until a step with the longest captions fits in memory.

    Call it before the first step, and without communication: a process that runs out of memory in a step
    would leave the others waiting for its gradients.
    """
    longest = np.argsort(-train_set.lengths, kind="stable")
    while not _fits([train_set[i] for i in longest[:size]], loss_model, optimizer, train_set, accelerator):
        if size == 1:
            raise torch.OutOfMemoryError(f"one image does not fit in the memory of {accelerator.device}")
        size = next(smaller for smaller in range(size // 2, 0, -1) if size % smaller == 0)
    return size


def _fits(examples: list, loss_model: nn.Module, optimizer, train_set: CaptionDataset, accelerator) -> bool:
    try:
        # Before the first step, leave room for the two moments that AdamW keeps of every parameter.
        missing = 0 if optimizer.state else 2
        moments = [torch.empty_like(p) for p in loss_model.parameters() for _ in range(missing)]
        batch = train_set.collate(examples).to(accelerator.device)
        with accelerator.autocast(), accelerator.no_sync(loss_model):
            losses = loss_model.train()(batch)
            (losses.captions.mean() + losses.questions.sum()).backward()
        del moments
    except torch.OutOfMemoryError:
        return False
    finally:
        optimizer.zero_grad(set_to_none=True)
    return True


def peak_mb() -> int:
    """Peak memory so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks: re-allocating 1 GB of gradients costs a sixth of a CPU step."""
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    with suppress(AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
