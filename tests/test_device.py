"""Device and precision follow what the hardware supports."""

import pytest
import torch

from beit3lib.device import choose_device, choose_precision


def gpu(monkeypatch, capability, kernels=("sm_70", "sm_75", "sm_80", "sm_86", "sm_90a")):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))


@pytest.mark.parametrize("capability", [(6, 0), (10, 0)])
def test_a_gpu_without_kernels_in_this_pytorch_is_refused(monkeypatch, capability):
    gpu(monkeypatch, capability)
    with pytest.raises(RuntimeError, match="Test GPU: expected sm_70.*GPU T4 x2"):
        choose_device("auto")


@pytest.mark.parametrize("capability, precision", [((7, 5), "fp16"), ((8, 9), "bf16"), ((9, 0), "bf16")])
def test_precision_follows_the_compute_capability_unless_the_user_sets_it(monkeypatch, capability, precision):
    gpu(monkeypatch, capability)
    assert choose_device("auto") == torch.device("cuda") and choose_device("cpu") == torch.device("cpu")
    found, reason = choose_precision("auto", torch.device("cuda"))
    assert found == precision and "Test GPU" in reason
    assert choose_precision("fp32", torch.device("cuda")) == ("no", "set by the user")
