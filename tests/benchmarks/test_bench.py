"""The benchmark runs, compares equal things, and its trained and packed inputs give the recipe's captions and losses."""

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
    """The sample's pretrained model, and drawn images."""
    model = CaptionModel(model_config(MODEL)).eval()
    load_pretrained(model, CHECKPOINT_PATH)
    return model, drawn_images(12), load_tokenizer(SPM_PATH)


def drawn_images(count):
    rng = np.random.default_rng(5)
    images = [
        draw.draw_blur(draw.Scene(**draw.draw_values(rng)), draw.draw_camera(rng)) for _ in range(count)
    ]
    return torch.stack([to_tensor(image, 64) for image in images])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_trained_weights_give_the_recipes_captions(pretrained, num_beams):
    model, images, tokenizer = pretrained
    expected = reference.generate(
        reference.captioning_model(model), images, tokenizer, num_beams, max_tokens=24
    )
    found = generate(model, images, tokenizer, [[]], num_beams, max_tokens=24)
    assert [caption.ids for caption in found] == expected and len(set(map(tuple, expected))) > 5


def score(model, image, tokenizer, ids):
    """Σ log p / (tokens + 2)^0.6 of a caption and its end, in fp32 and without a cache."""
    total, ids = 0.0, [*ids, tokenizer.eos_token_id]
    for index, token in enumerate(ids):
        text = torch.tensor([[tokenizer.bos_token_id, *ids[:index], tokenizer.mask_token_id]])
        with torch.inference_mode():
            total += model(image[None], text)[0, -1].log_softmax(-1)[token].item()
    return total / (len(ids) + 1) ** 0.6


def test_bf16_changes_captions_only_between_equally_likely_ones(pretrained):
    """A single caption may lose more, because bf16 rounds logits from 8 on by up to 0.03.

    Ten beams, because a narrow search misses the most probable of several captions in either precision: phrases of the
    pretrained model come in any order.
    """
    model, tokenizer = pretrained[0], pretrained[2]
    images = drawn_images(60)
    exact = generate(model, images, tokenizer, [[]], 10, max_tokens=24)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = generate(model, images, tokenizer, [[]], 10, max_tokens=24)
    changed = [index for index, (a, b) in enumerate(zip(exact, rounded, strict=True)) if a.ids != b.ids]
    assert len(changed) <= len(exact) // 5
    pairs = [
        [score(model, images[i], tokenizer, found[i].ids) for found in (exact, rounded)] for i in changed
    ]
    losses = [best - other for best, other in pairs]
    assert max(losses, default=0) <= 0.1 and sum(losses) / len(exact) <= 0.005, losses


@pytest.mark.parametrize("captions", [1, 4])
def test_losses_and_gradients_of_packed_captions_equal_the_recipe(captions):
    model = speed.make_model(MODEL, torch.device("cpu"))
    packed, separate = speed.make_batch(model, 2, captions)
    theirs, masked = reference.captioning_model(model), separate["masked"]
    logits = reference.logits(theirs, separate["images"], separate["input_ids"], separate["padding"], masked)
    expected = reference.loss_function(0.1)(logits, separate["labels"][masked], 0)
    found = LossModel(model, 0.1)(packed).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)
    names, weights = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    for name, a, b in zip(
        names, torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5), name


def test_ratios_are_within_turns_and_the_first_turn_does_not_count():
    rows = speed.summarize("q", {"recipe": [4.0, 6.0, 8.0], "ours": [2.0, 2.0, 2.0]})
    assert [row["ratio"] for row in rows] == [1.0, 3.0] and rows[1]["seconds"] == 2.0
    calls = []
    speed.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, torch.device("cpu"))
    assert calls == ["b", "a", "a", "b", "b", "a"]


def test_a_run_measures_every_quantity_and_writes_json(tmp_path, capsys):
    out = tmp_path / "speed.json"
    options = [
        "--model",
        "tiny",
        "--batch",
        "4",
        "--images",
        "20",
        "--tokens",
        "8",
        "--repeats",
        "1",
        "--cpu",
    ]
    speed.main([*options, "--precision", "bf16", "--out", str(out)])
    result = json.loads(out.read_text())
    checks = [value for row in result["rows"] for name, value in row.items() if name.startswith("same_")]
    assert len(checks) >= 6 and all(checks)
    assert {row["method"] for row in result["rows"]} >= {"recipe", "ours"}
    assert len({row["quantity"] for row in result["rows"]}) == 14
    shares = [row["share"] for row in result["rows"] if row["method"] == "linear layers"]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    rates = {
        row["quantity"]: row["per_second"] * row["seconds"] for row in result["rows"] if "per_second" in row
    }
    assert [round(rate) for rate in rates.values()] == [*speed.GROWTH, 20]
    assert result["machine"]["threads"] > 0 and "training step" in capsys.readouterr().out


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
    assert result["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {row["method"] for row in result["rows"]} >= {"recipe", "ours"} and len(result["rows"]) >= 4
    assert not (tmp_path / ".venv").exists()


def test_an_unknown_model_is_answered_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        speed.parse(["--model", "huge"])
    assert "expected one of tiny, base, large" in capsys.readouterr().err
