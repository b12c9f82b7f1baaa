"""The benchmark's own reference is the recipe, and a quick run measures everything and checks equality."""

import json

import numpy as np
import pytest
import torch
from benchmarks import speed as bench
from conftest import forced_score

from beit3lib.checkpoint import load_pretrained
from beit3lib.dataset import to_tensor
from beit3lib.decode import generate
from beit3lib.loss import LossModel
from beit3lib.model import Captioner, model_config
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer

TINY = "beit3_tiny_patch8_64"


@pytest.fixture(scope="module")
def model():
    return bench.make_model(TINY, torch.device("cpu"))


@pytest.mark.parametrize("beams", [1, 3])
def test_reference_and_ours_give_the_same_captions(model, beams):
    images, tokenizer = bench.make_images(model, 5), bench.Words(model.config.vocab_size)
    expected = bench.reference_generate(model, images, tokenizer, beams, max_tokens=14)
    found = generate(model, images, tokenizer, num_beams=beams, max_tokens=14, descriptions=[])
    assert [caption.ids for caption in found] == expected and len(set(map(tuple, expected))) > 1


@pytest.fixture(scope="module")
def taught():
    """The sample's pretrained checkpoint, which says words about what it sees, and drawn pictures to caption."""
    model = Captioner(model_config(sample.MODEL)).eval()
    load_pretrained(model, sample.CHECKPOINT_PATH)
    rng = np.random.default_rng(5)
    scenes = [sample.draw_blur(sample.Scene(**sample.draw_values(rng)), sample.draw_camera(rng)) for _ in range(24)]
    return model, torch.stack([to_tensor(picture, 64) for picture in scenes]), load_tokenizer(sample.SPM_PATH)


@pytest.mark.parametrize("beams", [1, 3])
def test_trained_weights_give_the_recipes_captions(taught, beams):
    model, images, tokenizer = taught
    expected = bench.reference_generate(model, images, tokenizer, beams, max_tokens=24)
    found = generate(model, images, tokenizer, num_beams=beams, max_tokens=24, descriptions=[])
    assert [caption.ids for caption in found] == expected and len(set(map(tuple, expected))) > 8


def test_bf16_says_something_else_only_where_scores_are_closer_than_its_precision(taught):
    model, images, tokenizer = taught
    options = {"num_beams": 3, "max_tokens": 24, "descriptions": []}
    exact = generate(model, images, tokenizer, **options)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = generate(model, images, tokenizer, **options)
    memory = model.encode_image(images)
    others = [n for n, (a, b) in enumerate(zip(exact, rounded, strict=True)) if a.ids != b.ids]
    assert len(others) <= len(exact) // 3
    for number in others:  # judged in fp32, what bf16 chose instead is as good to its eight bits
        scores = [forced_score(model, memory.select([number]), tokenizer, way[number].ids) for way in (rounded, exact)]
        assert scores[0] >= scores[1] - 0.05, number


@pytest.mark.parametrize("captions", [1, 4])
def test_reference_and_ours_have_the_same_loss_and_gradients(model, captions):
    packed, separate = bench.make_batch(model, 2, captions)
    parts = (separate[name] for name in ("images", "ids", "padding", "chosen", "targets"))
    reference = bench.reference_losses(model, *parts)
    ours = LossModel(model, 0.1)(packed)
    assert torch.allclose(ours.sort().values, reference.sort().values, atol=1e-4)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    weights = [dict(model.named_parameters())[name] for name in names]
    for name, a, b in zip(
        names, torch.autograd.grad(ours.mean(), weights), torch.autograd.grad(reference.mean(), weights), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5), name


def test_ratios_are_of_turns_and_the_first_turn_is_not_counted():
    rows = bench.rows_of("q", {"reference": [4.0, 6.0, 8.0], "ours": [2.0, 2.0, 2.0]})
    assert [row["ratio"] for row in rows] == [1.0, 3.0] and rows[1]["seconds"] == 2.0
    calls = []
    bench.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, torch.device("cpu"))
    assert calls == ["b", "a", "a", "b", "b", "a"]


def test_a_quick_run_measures_everything(tmp_path, capsys):
    out = tmp_path / "bench.json"
    bench.main(["--model", "tiny", "--quick", "--batch", "2", "--tokens", "8", "--repeats", "1", "--cpu", "--out", str(out)])
    result = json.loads(out.read_text())
    checks = [value for row in result["rows"] for name, value in row.items() if name.startswith("same_")]
    assert len(checks) >= 8 and all(checks)
    assert {row["way"] for row in result["rows"]} >= {"reference", "ours", "BLIP-base", "GIT-base"}
    assert result["machine"]["threads"] > 0 and "training step" in capsys.readouterr().out


def test_an_unknown_model_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--model", "huge"])
    assert "expected one of tiny, base, large" in capsys.readouterr().err
