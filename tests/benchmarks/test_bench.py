"""The benchmark compares equal things, and the pretrained model captions as the reference does."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("beit3")
import reference

from beit3lib.checkpoint import load_pretrained
from beit3lib.decode import generate
from beit3lib.loss import LossModel
from beit3lib.model import CaptionModel, model_config
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH, draw
from beit3lib.tokenizer import load_tokenizer
from beit3lib.transforms import to_tensor
from benchmarks import speed


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


def test_a_run_measures_every_quantity_and_writes_json(tmp_path):
    out = tmp_path / "speed.json"
    options = "--model tiny --batch 4 --tokens 8 --repeats 1 --cpu --precision bf16 --out"
    speed.main([*options.split(), str(out)])
    rows = json.loads(out.read_text())["rows"]
    checks = [value for row in rows for name, value in row.items() if name.startswith("same_")]
    assert len(checks) == 3 + 2 * 3 + 4 and all(checks)
    assert len({row["quantity"] for row in rows}) == len(speed.QUANTITIES)
