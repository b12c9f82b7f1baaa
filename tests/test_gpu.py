"""What only a CUDA device can show: the same captions and losses as on the CPU, resuming, and the memory of a T4."""

import pytest
import torch
from benchmarks import speed as bench
from conftest import draw_run
from test_train import quick, weights

from beit3lib import train
from beit3lib.decode import generate
from beit3lib.loss import LossModel
from beit3lib.model import Captioner, model_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
T4_MB = 15_000  # of its 16 GB, what is left beside CUDA itself


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_in_fp32_are_those_of_the_cpu(beams):
    model = bench.make_model("beit3_tiny_patch8_64", torch.device("cpu"))
    images, tokenizer = bench.make_images(model, 5), bench.Words(model.config.vocab_size)
    options = {"num_beams": beams, "max_tokens": 14, "descriptions": []}
    expected = [caption.ids for caption in generate(model, images, tokenizer, **options)]
    model = model.to("cuda")
    assert [caption.ids for caption in generate(model, images.to("cuda"), tokenizer, **options)] == expected


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_usual_tolerance(tmp_path, precision):
    draw_run(tmp_path / "run")
    options = {"device": "cuda", "precision": precision, "subject": "all", "aspect": "all"}
    whole = train.finetune(quick(tmp_path / "run", tmp_path / "whole", **options))
    train.finetune(quick(tmp_path / "run", tmp_path / "two", max_minutes=1e-6, **options))
    resumed = train.finetune(quick(tmp_path / "run", tmp_path / "two", auto_resume=True, **options))
    assert resumed["steps"] == whole["steps"] and resumed["last_loss"] == pytest.approx(whole["last_loss"], rel=1e-2)
    a, b = weights(tmp_path / "whole" / "last"), weights(tmp_path / "two" / "last")
    assert all(torch.allclose(a[name], b[name], atol=1e-2) for name in a)


def test_base_at_224_with_batch_32_trains_in_the_memory_of_a_t4():
    """One caption per image as in the recipe, fp16 as on a T4, activations recomputed as in the seed's command."""
    config = model_config("beit3_base_patch16_224", checkpoint_activations=True)
    loss_model = LossModel(Captioner(config).to("cuda").train(), 0.1)
    optimizer = torch.optim.AdamW([p for p in loss_model.parameters() if p.requires_grad], fused=True)
    batch, _ = bench.make_batch(loss_model.model, 32, 1)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with torch.autocast("cuda", torch.float16):
            loss = loss_model(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert torch.cuda.max_memory_allocated() / 1e6 < T4_MB


def test_the_benchmark_runs_and_everything_is_equal(tmp_path):
    out = tmp_path / "bench.json"
    bench.main(["--model", "tiny", "--quick", "--batch", "2", "--tokens", "8", "--repeats", "1", "--out", str(out)])
    rows = bench.json.loads(out.read_text())["rows"]
    assert all(value for row in rows for name, value in row.items() if name.startswith("same_"))
