"""The benchmark compares equal things, and the pretrained model captions as the reference does."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("beit3")
import reference
from conftest import bare_python, clean

from beit3lib.checkpoint import load_pretrained
from beit3lib.decode import generate
from beit3lib.loss import LossModel
from beit3lib.model import CaptionModel, model_config
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH, draw
from beit3lib.tokenizer import load_tokenizer
from beit3lib.transforms import to_tensor
from benchmarks import speed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pretrained():
    """The sample's pretrained model, its tokenizer, and drawn images."""
    model, rng = CaptionModel(model_config(MODEL)).eval(), np.random.default_rng(5)
    load_pretrained(model, CHECKPOINT_PATH)
    drawn = (draw.draw_blur(draw.Scene(**draw.draw_values(rng)), draw.draw_camera(rng)) for _ in range(60))
    return model, load_tokenizer(SPM_PATH), torch.stack([to_tensor(image, 64) for image in drawn])


def test_trained_weights_give_the_captions_of_the_reference_implementation(pretrained):
    model, tokenizer, images = pretrained
    expected = reference.generate(reference.captioning_model(model), images[:12], tokenizer, max_tokens=24)
    found = generate(model, images[:12], tokenizer, [[]], max_tokens=24)
    assert [caption.ids for caption in found] == expected and len(set(map(tuple, expected))) > 5


def test_bf16_changes_captions_only_between_equally_likely_ones(pretrained):
    """Changed captions lose little of the score that decoding maximizes: Σ log p / (tokens + 2)^0.6.

    Ten beams, because a narrow search misses the most probable of several captions in either precision. A
    single caption may lose more than the mean, because bf16 rounds logits from 8 on by up to 0.03.
    """
    model, tokenizer, images = pretrained

    @torch.inference_mode()
    def score(image, ids):
        ids, total = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], 0.0
        for end in range(1, len(ids)):
            text = torch.tensor([[*ids[:end], tokenizer.mask_token_id]])
            total += model(image[None], text)[0, -1].log_softmax(-1)[ids[end]].item()
        return total / len(ids) ** 0.6

    exact = generate(model, images, tokenizer, [[]], 10, max_tokens=24)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = generate(model, images, tokenizer, [[]], 10, max_tokens=24)
    changed = [(i, a.ids, b.ids) for i, a, b in zip(images, exact, rounded, strict=True) if a.ids != b.ids]
    losses = [score(image, best) - score(image, other) for image, best, other in changed]
    assert len(losses) <= 12 and max(losses, default=0) <= 0.1 and sum(losses) / len(exact) <= 0.005, losses


@pytest.mark.parametrize("captions", [1, 4])
def test_losses_and_gradients_of_packed_captions_equal_the_reference_implementation(captions):
    model = speed.make_model(MODEL, torch.device("cpu"))
    packed, separate = speed.make_batch(model, 2, captions)
    inputs = [separate[name] for name in ("images", "input_ids", "padding", "masked")]
    logits = reference.logits(reference.captioning_model(model), *inputs)
    expected = reference.loss_function(0.1)(logits, separate["labels"][separate["masked"]], 0)
    found = LossModel(model, 0.1)(packed).captions.mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)
    weights = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(*(torch.autograd.grad(loss, weights) for loss in (found, expected)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_ratios_are_within_turns_and_the_first_turn_does_not_count():
    rows = speed.summarize("q", {"reference": [4.0, 6.0, 8.0], "ours": [2.0, 2.0, 2.0]})
    assert [row["ratio"] for row in rows] == [1.0, 3.0] and rows[1]["seconds"] == 2.0
    calls = []
    speed.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, torch.device("cpu"))
    assert calls == ["b", "a", "a", "b", "b", "a"]


def test_a_run_measures_every_quantity_and_writes_json(tmp_path):
    out = tmp_path / "speed.json"
    options = "--model tiny --batch 4 --tokens 8 --repeats 1 --cpu --precision bf16 --out"
    speed.main([*options.split(), str(out)])
    rows = json.loads(out.read_text())["rows"]
    checks = [value for row in rows for name, value in row.items() if name.startswith("same_")]
    assert len(checks) == 3 + 2 * 3 + 4 and all(checks)
    assert len({row["quantity"] for row in rows}) == len(speed.QUANTITIES)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py runs the GPU tests")
def test_make_gpu_needs_none_of_the_packages_that_a_gpu_machine_may_lack(tmp_path):
    python = bare_python(tmp_path / "python", hidden=("av", "papermill", "hypothesis", "jupyter", "selenium"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.txt", "beit3lib", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    options = "--model tiny --batch 2 --tokens 8 --repeats 1 --only generate train"
    command = ["make", "gpu", f"PY={python}", f"GPU_OPTIONS={options}", "GPU_SECONDS=3000"]
    done = subprocess.run(command, cwd=tmp_path, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0 and "no CUDA GPU" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "runs" / "gpu.json").read_text())
    assert result["machine"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {row["method"] for row in result["rows"]} >= {"reference", "ours"} and len(result["rows"]) >= 4
    assert not (tmp_path / ".venv").exists()
