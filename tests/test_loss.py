"""The loss equals the reference implementation's, also in chunks and without the worst tokens."""

import pytest
import torch
from torch import nn

from beit3lib import loss
from beit3lib.loss import drop_worst, head_losses, label_smoothed_loss


@pytest.mark.parametrize("smoothing, classes", [(0.0, 7), (0.1, 7), (0.5, 7), (0.1, 64010)])
def test_loss_and_gradient_equal_the_reference_implementations(reference, smoothing, classes):
    torch.manual_seed(0)
    logits = (torch.randn(6, classes) * 3).requires_grad_()
    targets = torch.randint(0, classes, (6,))
    expected = reference.loss_function(smoothing)(logits, targets, 0)
    found = label_smoothed_loss(logits, targets, smoothing).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for a, b in zip(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("ratio, count", [(0.0, 5), (0.2, 2), (0.2, 11), (0.5, 5)])
def test_dropping_the_worst_equals_the_reference_implementation(reference, ratio, count):
    """It drops them after step `drop_worst_after`."""
    torch.manual_seed(1)
    logits, targets = torch.randn(count, 20) * 3, torch.randint(0, 20, (count,))
    expected = reference.loss_function(0.1, drop_worst_ratio=ratio, drop_worst_after=5)(logits, targets, 6)
    losses = label_smoothed_loss(logits, targets, 0.1)
    assert drop_worst(losses, ratio).mean().item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.equal(drop_worst(losses[:1], 0.9), losses[:1])  # one is kept


@pytest.mark.parametrize("count", [3, 4, 9])
def test_chunks_and_recomputation_change_neither_losses_nor_gradients(monkeypatch, count):
    torch.manual_seed(2)
    head, states = nn.Linear(8, 30), torch.randn(count, 8, requires_grad=True)
    targets = torch.randint(0, 30, (count,))
    results = []
    for chunk, kept in ((4 * 30, 0), (4 * 30, 3000), (3000, 3000)):
        monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
        monkeypatch.setattr(loss, "KEPT_LOGITS", kept)
        losses = head_losses(head, states, targets, 0.1)
        results.append([losses, *torch.autograd.grad(losses.mean(), [states, *head.parameters()])])
    for parts in zip(*results, strict=True):
        assert all(torch.allclose(part, parts[0], atol=1e-6) for part in parts)
