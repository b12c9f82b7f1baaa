"""The tokenizer and the tiny checkpoint of the sample are made by a documented command."""

import numpy as np
import pytest

from beit3lib.checkpoint import load_pretrained
from beit3lib.model import CaptionModel, model_config
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH
from beit3lib.sample.draw import Camera, Scene
from beit3lib.tokenizer import load_tokenizer
from benchmarks.pretrain import patch_labels, pretrain


def test_patch_labels_follow_the_scene():
    still = Camera(0.0, 0.0, 1.0, 0, 7)
    labels = patch_labels(Scene(upper="yellow", vehicle_motion="slow"), still).reshape(8, 8, 3)
    assert {1, 3} <= set(labels[..., 0].flat)  # a vehicle, and a jacket of the second color
    assert set(labels[labels[..., 0] == 1][:, 1]) == {2}


def test_the_committed_checkpoint_fits_the_model():
    config = model_config(MODEL)
    load_tokenizer(SPM_PATH, vocab_size=config.vocab_size)
    report = load_pretrained(CaptionModel(config), CHECKPOINT_PATH)
    assert report.endswith(" tensors loaded")  # none is resized, initialized or skipped


@pytest.mark.slow
def test_pretraining_writes_a_tokenizer_and_a_checkpoint(tmp_path):
    result = pretrain(tmp_path, steps=3, batch_size=4)
    assert np.isfinite(result["loss"])
    assert (tmp_path / SPM_PATH.name).is_file() and (tmp_path / CHECKPOINT_PATH.name).is_file()
