"""Public checkpoints load in every form, broken or malicious ones are named, ours are complete or absent."""

import argparse
import os
import pickle
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_model import TINY, make_inputs, make_model

from beit3lib import checkpoint
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import CheckpointError, load_captioner, load_pretrained, save_captioner, save_public
from beit3lib.model import CaptionModel
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def source():
    return make_model(seed=1)


@pytest.fixture
def target():
    return make_model(seed=2)


@pytest.mark.parametrize("key", ["model", "module", None])
@pytest.mark.parametrize("name", ["c.pth", "c.zip", "checkpoint", "unpacked"])
def test_every_form_of_a_public_checkpoint_loads(tmp_path, source, target, key, name):
    state = source.state_dict()
    torch.save({key: state} if key else state, tmp_path / "saved")
    if name == "unpacked":
        zipfile.ZipFile(tmp_path / "saved").extractall(tmp_path / name)
    else:
        os.rename(tmp_path / "saved", tmp_path / name)
    assert load_pretrained(target, tmp_path / name) == f"{len(state)} tensors loaded"
    assert same_weights(source, target)


def fine_tuning_checkpoint(source):
    """As the reference implementation saves it: learning rates are numpy numbers, options a Namespace."""
    optimizer = torch.optim.AdamW(source.parameters(), lr=1e-3)
    source(*make_inputs(TINY)).mean().backward()
    optimizer.step()
    optimizer.param_groups[0].update(lr=np.linspace(0, 1, 3)[1], lr_scale=1.0)
    content = {"model": source.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    return {**content, "scaler": {}, "args": argparse.Namespace(lr=1e-4, opt_betas=None, resume="")}


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_checkpoints_of_fine_tuning_load(tmp_path, source, target, module):
    """DeepSpeed writes "module"; numpy 1 and 2 write different names of the module of their numbers."""
    content, path = fine_tuning_checkpoint(source), tmp_path / "checkpoint-3.pth"
    content["module"] = content.pop("model")
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(re.sub(rb"numpy\._?core\.multiarray", module, path.read_bytes()))
    load_pretrained(target, path)
    assert same_weights(source, target)


def test_a_checkpoint_saved_by_the_reference_implementation_loads(tmp_path, reference, source, target):
    content = fine_tuning_checkpoint(source)
    optimizer = SimpleNamespace(state_dict=lambda: content["optimizer"])
    scaler = SimpleNamespace(state_dict=lambda: {"scale": 65536.0, "_growth_tracker": 0})
    options = argparse.Namespace(output_dir=str(tmp_path), lr=1e-4)
    theirs = reference.captioning_model(source)
    reference.recipe("utils").save_model(options, 3, theirs, theirs, optimizer, scaler)
    load_pretrained(target, tmp_path / "checkpoint-3.pth")
    assert same_weights(source, target)


@pytest.mark.parametrize("image_size", [16, 32, 48])
def test_the_reference_implementation_loads_ours_and_resizes_positions_equally(
    tmp_path, reference, source, image_size
):
    save_public(source, tmp_path / "public.pth")
    ours, other = (make_model(replace(TINY, image_size=image_size), seed=seed) for seed in (2, 3))
    assert ("resized" in load_pretrained(ours, tmp_path / "public.pth")) == (image_size != 16)
    theirs = reference.captioning_model(other)
    load = reference.recipe("utils").load_model_and_may_interpolate
    load(str(tmp_path / "public.pth"), theirs, "model|module", "")
    for name, value in ours.state_dict().items():
        assert torch.allclose(theirs.state_dict()[name], value, atol=1e-6), name


def test_a_missing_head_is_initialized_and_other_heads_are_skipped(tmp_path, source):
    target = CaptionModel.empty(TINY)
    state = {name: v for name, v in source.state_dict().items() if not name.startswith("mlm_head")}
    torch.save({"model": {**state, "head.weight": torch.zeros(3)}}, tmp_path / "c.pth")
    report = load_pretrained(target, tmp_path / "c.pth")
    assert report.endswith("; initialized: mlm_head.weight, mlm_head.bias; skipped: head.weight")
    assert target.mlm_head.bias.abs().max() == 0 and 0.009 < target.mlm_head.weight.std() < 0.02


@pytest.mark.parametrize(
    "changes, message",
    [({"width": 16}, r"has shape \(.*16.*\), not \("), ({"layers": 2}, "beit3.encoder.layers.2.*is missing")],
)
def test_a_checkpoint_of_another_model_names_the_parameters(tmp_path, target, changes, message):
    save_public(make_model(replace(TINY, **changes)), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"other\.pth: expected a checkpoint of this model.*{message}"):
        load_pretrained(target, tmp_path / "other.pth")


class Gadget:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, source, target, form):
    content, path = (
        fine_tuning_checkpoint(source) | {"extra": Gadget(tmp_path / "made")},
        tmp_path / "evil.pth",
    )
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.pth: expected a checkpoint of tensors, found "):
        load_pretrained(target, path)
    assert not (tmp_path / "made").exists()


BROKEN = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "text": lambda whole: b"<!DOCTYPE html><title>404</title>\n",
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named(tmp_path, source, target, damage):
    torch.save({"model": source.state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "c.pth").write_bytes(damage((tmp_path / "whole.pth").read_bytes()))
    with pytest.raises(CheckpointError, match=r"c\.pth: expected a checkpoint of tensors") as error:
        load_pretrained(target, tmp_path / "c.pth")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.fixture
def saved(tmp_path):
    """A captioner and the folder that it is saved in."""
    tokenizer = load_tokenizer(SPM_PATH)
    model = make_model(replace(TINY, vocab_size=len(tokenizer) + UNUSED_ROWS, drop_path=0.1))
    options = {"model": "beit3_base_patch16_224", "finetune": "/secret/w.pth", "data_path": "/secret/x"}
    meta = {"best_score": 33.1, "options": options}
    types = [("vehicle", "road"), ("pedestrian", "moving")]
    captioner = Captioner(model, tokenizer, types, 20, 0.9, meta)
    return captioner, save_captioner(captioner, tmp_path / "run" / "best", SPM_PATH)


def test_an_exported_file_loads_strictly_in_the_reference_implementation(saved, reference, tmp_path):
    captioner, folder = saved
    command = [sys.executable, "-m", "beit3lib.checkpoint", folder, tmp_path / "public.pth"]
    assert "in the public format" in subprocess.run(command, capture_output=True, text=True).stdout
    theirs = reference.captioning_model(make_model(captioner.model.config, seed=5))
    theirs.load_state_dict(torch.load(tmp_path / "public.pth", weights_only=True)["model"], strict=True)
    assert same_weights(captioner.model, theirs)


def export(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["checkpoint", *map(str, arguments)])
    checkpoint.main()


def test_an_exported_folder_has_a_model_card_and_loads(saved, tmp_path, monkeypatch):
    captioner, folder = saved
    for _ in range(2):  # an earlier export is replaced
        export(monkeypatch, folder, tmp_path / "mine")
    loaded = load_captioner(tmp_path / "mine", "cpu")
    assert same_weights(captioner.model, loaded.model) and loaded.caption_types == captioner.caption_types
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.pipeline_tag == "image-to-text" and "vehicle road, pedestrian moving" in card.text
    assert "beit3_base_patch16_224, initial weights: w.pth" in card.text and "33.1" in card.text
    assert "secret" not in card.text + (tmp_path / "mine" / "meta.json").read_text()


def test_an_export_replaces_nothing_but_an_export(saved, tmp_path, monkeypatch):
    _, folder = saved
    (tmp_path / "photos").mkdir()
    others = [tmp_path / "photos" / "a.jpg", tmp_path / "run" / "last.pt", folder / "model.safetensors"]
    for path in others[:2]:
        path.write_text("mine")
    before = [path.read_bytes() for path in others]
    for out in (tmp_path / "photos", folder, *others):
        with pytest.raises(SystemExit, match=f"{out}: expected a new f"):
            export(monkeypatch, folder, out)
    assert [path.read_bytes() for path in others] == before


def spoil_bias(folder, edit):
    state = load_file(folder / "model.safetensors")
    save_file({**state, "mlm_head.bias": edit(state["mlm_head.bias"])}, folder / "model.safetensors")


def spoil_tokenizer(folder):
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(path.read_bytes().replace(b"road", b"roda"))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda folder: (folder / "meta.json").unlink(),
            r"best: expected a checkpoint folder.*no meta\.json",
        ),
        (lambda folder: os.truncate(folder / "meta.json", 9), r"meta\.json: expected JSON"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "s: expected safetensors, found"),
        (lambda folder: spoil_bias(folder, lambda bias: torch.zeros(3)), "bias has shape"),
        (lambda folder: spoil_bias(folder, lambda bias: bias + torch.inf), "bias is not finite"),
        (spoil_tokenizer, r"bpe\.model: expected the tokenizer that the model was trained with"),
    ],
)
def test_an_incomplete_or_damaged_folder_is_named(saved, damage, message):
    damage(saved[1])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_captioner(saved[1], "cpu")
