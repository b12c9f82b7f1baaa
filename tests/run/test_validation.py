"""Validation scores as captioning does, and skips unreadable images."""

import pytest
import torch
from accelerate import Accelerator
from test_captioning import TYPES, caption, captioner, run, saved  # noqa: F401

from beit3lib.config import TrainConfig
from beit3lib.data.index import read_index
from beit3lib.dataset import CaptionDataset
from beit3lib.run import captioning
from beit3lib.run.validation import validate


def validated(captioner, run, val_images=0):  # noqa: F811
    options = {"samples": 2, "num_beams": 2, "batch_size": 4, "eval_batch_size": 2, "num_workers": 0}
    config = TrainConfig(val_images=val_images, **options)
    tables = [read_index(run / f"coco_captioning.{split}.jsonl") for split in ("val", "train")]
    val_set = CaptionDataset(tables[0], run, captioner.tokenizer, 64, config, train=False)
    train_set = CaptionDataset(tables[1], run, captioner.tokenizer, 64, config, train=True)
    return validate(captioner, val_set, train_set, config, Accelerator(cpu=True))


def test_scores_equal_those_of_captioning(run, captioner, monkeypatch):  # noqa: F811
    fp32 = torch.autocast("cpu", enabled=False)
    monkeypatch.setattr(captioning, "inference_precision", lambda device: fp32)
    table = caption(captioner, run, splits=["val"])
    found = validated(captioner, run)
    assert found["score"] == pytest.approx(table["official_score"].mean(), abs=0.01)
    means = table.groupby(["subject", "aspect"])["official_score"].mean()
    expected = {" ".join(kind): pytest.approx(means[kind], abs=0.01) for kind in TYPES}
    assert found["by_caption_type"] == expected and found["captions"] == 40
    assert {entry["image"] for entry in found["samples"]} == set(table["image"].unique()[[0, 3]])
    first = found["samples"][0]
    assert first["caption"] == table["caption"][0] and first["reference"] == table["reference"][0]
    assert 0 < found["distinct"] <= 1 and 0 <= found["references"]["memorized"] <= 1 and found["seconds"] >= 0


def test_an_unreadable_image_is_skipped(run, captioner, capsys):  # noqa: F811
    sorted((run / "images").glob("*val*"))[0].write_text("no image")
    assert validated(captioner, run)["captions"] == 30 and "Validation skips it" in capsys.readouterr().out
    assert validated(captioner, run, val_images=2)["captions"] == 10
