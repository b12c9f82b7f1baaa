"""On a GPU: the CPU's captions and losses, reproducible and resumable training, and a GPU that is full."""

import os

import pytest
import torch
from benchmarks import speed
from conftest import draw_run
from test_train import last, losses, quick, same

from beit3lib import train
from beit3lib.decode import generate
from beit3lib.sample import MODEL

# Deterministic matrix products; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

ALL = {"subject": "all", "aspect": "all"}
CUDA = ALL | {"device": "cuda"}


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("num_beams, prompts", [(1, [[]]), (3, [[]]), (3, [[20], [21, 22]])])
def test_captions_in_fp32_equal_the_cpu(num_beams, prompts):
    model = speed.make_model(MODEL, torch.device("cpu"))
    images, tokenizer = speed.make_images(model, 16), speed.FakeTokenizer(model.config.vocab_size)
    expected = generate(model, images, tokenizer, prompts, num_beams, 24)
    found = generate(model.to("cuda"), images.to("cuda"), tokenizer, prompts, num_beams, 24)
    assert [caption.ids for caption in found] == [caption.ids for caption in expected]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 3e-2), ("fp16", 1e-2)])
def test_losses_of_ten_steps_equal_the_cpu(drawn, tmp_path, precision, tolerance):
    options = {**ALL, "epochs": 5, "lr": 1e-3}  # without stochastic depth, which is drawn on the device
    train.finetune(quick(drawn, tmp_path / "cpu", **options))
    train.finetune(quick(drawn, tmp_path / "gpu", **options, device="cuda", precision=precision))
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    assert len(found) == 10 and found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_deterministic_runs_and_a_resumed_run_are_bitwise_equal(drawn, tmp_path, deterministic, precision):
    """The run that is resumed stops after its first step, out of time."""
    options = {**CUDA, "precision": precision, "drop_path": 0.1}
    train.finetune(quick(drawn, tmp_path / "one", **options))
    train.finetune(quick(drawn, tmp_path / "two", **options))
    train.finetune(quick(drawn, tmp_path / "resumed", **options, max_minutes=1e-6))
    assert len(losses(tmp_path / "resumed")) == 1
    train.finetune(quick(drawn, tmp_path / "resumed", **options))
    for other in ("two", "resumed"):
        assert losses(tmp_path / other) == losses(tmp_path / "one")
        assert same(last(tmp_path / other)["model"], last(tmp_path / "one")["model"])


def test_fp16_skips_steps_that_overflow_and_continues(drawn, tmp_path, monkeypatch):
    defaults = ("cuda", 2.0**40, 2.0, 0.5, 2000, True)
    monkeypatch.setattr(torch.amp.GradScaler.__init__, "__defaults__", defaults)
    results = train.finetune(quick(drawn, tmp_path, **CUDA, precision="fp16", epochs=30))
    assert 5 < results["skipped_steps"] < results["steps"]
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


@pytest.fixture
def little_memory():
    """A process that may use only what is allocated now and 400 MB."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400e6) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_training_that_runs_out_of_memory_continues_with_smaller_batches(tmp_path, capsys, little_memory):
    draw_run(tmp_path / "many", train=512, val=2)
    options = {**CUDA, "precision": "fp32", "batch_size": 512, "epochs": 1}
    results = train.finetune(quick(tmp_path / "many", tmp_path, **options))
    assert "out of memory with batch_size 512" in capsys.readouterr().out and results["steps"] == 1
