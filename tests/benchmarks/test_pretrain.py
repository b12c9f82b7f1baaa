"""The tokenizer and the tiny checkpoint of the sample are made by a documented command."""

import numpy as np
import pytest

from beit3lib.checkpoint import load_pretrained
from beit3lib.model import CaptionModel, model_config
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH
from beit3lib.tokenizer import load_tokenizer
from benchmarks.pretrain import pretrain


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
