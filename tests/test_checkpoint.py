"""Public checkpoints in every form they arrive in, positions resized, ours complete or not there, nothing unpickled."""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from test_model import TINY, inputs, make

from beit3lib.checkpoint import (
    IMAGE_POSITIONS,
    CheckpointError,
    load_captioner,
    load_pretrained,
    resize_positions,
    save_captioner,
    save_public,
)
from beit3lib.files import recover_folder
from beit3lib.model import MODELS, Captioner, ModelConfig
from beit3lib.sample import draw as sample


def config(**changes):
    return ModelConfig(**{**TINY.__dict__, **changes})


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "wrap", [lambda s: {"model": s}, lambda s: {"module": s}, lambda s: s], ids=["model", "module", "bare"]
)
@pytest.mark.parametrize("name", ["c.pth", "c.zip", "checkpoint"])
def test_every_form_of_a_public_checkpoint_loads(tmp_path, wrap, name):
    source, target = make(TINY, seed=1), make(TINY, seed=2)
    torch.save(wrap(source.state_dict()), tmp_path / name)
    report = load_pretrained(target, tmp_path / name)
    assert same_weights(source, target) and not (report.fresh or report.left_out or report.resized)


def test_a_checkpoint_that_was_unpacked_into_a_folder_loads(tmp_path):
    source, target = make(TINY, seed=1), make(TINY, seed=2)
    torch.save({"model": source.state_dict()}, tmp_path / "c.pth")
    zipfile.ZipFile(tmp_path / "c.pth").extractall(tmp_path / "unpacked")
    load_pretrained(target, tmp_path / "unpacked")
    assert same_weights(source, target)


def test_options_saved_beside_the_weights_do_no_harm(tmp_path):
    source, target = make(TINY, seed=1), make(TINY, seed=2)
    torch.save({"model": source.state_dict(), "args": argparse.Namespace(lr=1e-4), "epoch": 3}, tmp_path / "c.pth")
    load_pretrained(target, tmp_path / "c.pth")
    assert same_weights(source, target)


def test_heads_start_fresh_or_are_left_out_and_are_named(tmp_path):
    source, target = make(TINY, seed=1), make(TINY, seed=2)
    state = {name: v for name, v in source.state_dict().items() if not name.startswith("mlm_head")}
    before = target.mlm_head.weight.clone()
    torch.save({"model": {**state, "head.weight": torch.zeros(3)}}, tmp_path / "c.pth")
    report = load_pretrained(target, tmp_path / "c.pth")
    assert report.fresh == ["mlm_head.weight", "mlm_head.bias"] and report.left_out == ["head.weight"]
    assert torch.equal(before, target.mlm_head.weight)
    assert "start fresh: mlm_head.weight" in str(report)


def test_positions_are_resized_as_the_recipe_does():
    small, large = make(TINY), make(config(image_size=32))
    table = small.state_dict()[IMAGE_POSITIONS]
    resized = resize_positions(table, large.state_dict()[IMAGE_POSITIONS].shape[0])
    assert torch.equal(resized[:3], table[:3])
    flat = torch.full((3 + 4, 5), 0.25)
    assert torch.allclose(resize_positions(flat, 3 + 16), torch.full((19, 5), 0.25))
    ramp = torch.cat([torch.zeros(3, 1), torch.arange(4.0).repeat(4)[:, None]])  # grows from left to right
    wide = resize_positions(ramp, 3 + 64)[3:].reshape(8, 8)
    assert (wide[:, 1:] > wide[:, :-1]).all() and torch.allclose(wide[0], wide[-1], atol=1e-5)


def test_loading_at_another_size_resizes_and_says_so(tmp_path):
    source, target = make(TINY, seed=1), make(config(image_size=32), seed=2)
    save_public(source, tmp_path / "c.pth")
    assert load_pretrained(target, tmp_path / "c.pth").resized == [IMAGE_POSITIONS]
    target(*inputs(target.config))


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("size", ["base", "large"])
def test_public_shapes_load_at_every_image_size(size, tmp_path):
    """By shapes alone, on no storage: base and large at 224 into 224, 384 and 480."""
    with torch.device("meta"):
        shapes = {name: v.shape for name, v in Captioner(MODELS[f"beit3_{size}_patch16_224"]).state_dict().items()}
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    torch.save({"model": state}, tmp_path / "c.pth")
    for pixels in (224, 384, 480):
        with torch.device("meta"):
            target = Captioner(MODELS[f"beit3_{size}_patch16_{pixels}"])
        report = load_pretrained(target, tmp_path / "c.pth")
        assert len(report.loaded) == len(shapes) and not report.fresh and bool(report.resized) == (pixels != 224)


def test_a_mismatch_names_the_keys(tmp_path):
    save_public(make(config(width=16)), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"(?s)narrow\.pth.*another shape.*text_embed.weight: expected \(60, 32\)"):
        load_pretrained(make(TINY), tmp_path / "narrow.pth")
    save_public(make(config(layers=2)), tmp_path / "flat.pth")
    with pytest.raises(CheckpointError, match="missing: beit3.encoder.layers.2"):
        load_pretrained(make(TINY), tmp_path / "flat.pth")
    save_public(make(config(layers=4)), tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match="unknown: beit3.encoder.layers.3"):
        load_pretrained(make(TINY), tmp_path / "deep.pth")


class Trap:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save], ids=["pickle", "torch"])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path, write):
    trap = tmp_path / "sprung"
    write({"model": Trap(trap)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused"):
        load_pretrained(make(TINY), tmp_path / "evil.pth")
    assert not trap.exists()


def test_broken_files_are_named(tmp_path):
    (tmp_path / "empty.pth").touch()
    torch.save({"model": make(TINY).state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("just some text, and no tensors in it\n")
    for name in ("empty.pth", "cut.pth", "list.pth", "text.pth"):
        with pytest.raises(CheckpointError, match=name):
            load_pretrained(make(TINY), tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pretrained(make(TINY), tmp_path / "nowhere.pth")


@pytest.fixture
def saved(tmp_path):
    from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer

    model = make(config(vocab_size=len(load_tokenizer(sample.SPM_PATH)) + UNUSED_ROWS))
    model.descriptions = [("vehicle", "road"), ("pedestrian", "moving")]
    return model, save_captioner(model, tmp_path / "best", sample.SPM_PATH, {"note": "kept"})


def test_our_folder_comes_back_whole(saved):
    model, folder = saved
    loaded = load_captioner(folder, "cpu")
    assert same_weights(model, loaded) and loaded.descriptions == model.descriptions and not loaded.training
    assert sorted(p.name for p in folder.iterdir()) == ["meta.json", "model.safetensors", "sentencepiece.bpe.model"]


def test_one_picture_in_three_lines(saved, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    captioner = load_captioner(saved[1], "cpu")
    said = captioner.caption(tmp_path / "photo.jpg", max_tokens=6)
    assert set(said) == {("vehicle", "road"), ("pedestrian", "moving")}
    assert captioner.caption(tmp_path / "photo.jpg", "vehicle", "road", max_tokens=6) == said["vehicle", "road"]
    with pytest.raises(ValueError, match="was not taught vehicle weather; it knows: vehicle road, pedestrian moving"):
        captioner.caption(tmp_path / "photo.jpg", "vehicle", "weather")


def test_a_save_that_fails_leaves_the_old_checkpoint(saved, monkeypatch):
    model, folder = saved
    monkeypatch.setattr("beit3lib.checkpoint.write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError):
        save_captioner(make(model.config, seed=9), folder, sample.SPM_PATH)
    assert same_weights(model, load_captioner(folder, "cpu"))
    assert [p.name for p in folder.parent.iterdir()] == ["best"]


def test_a_checkpoint_set_aside_by_a_killed_save_is_read_there_and_put_back_by_the_next_save(saved):
    model, folder = saved
    folder.rename(folder.with_name(".best.old"))
    (folder.parent / ".best.x1.new").mkdir()  # as of a save that may be going on: reading leaves it alone
    assert same_weights(model, load_captioner(folder, "cpu"))
    assert {p.name for p in folder.parent.iterdir()} == {".best.old", ".best.x1.new"}
    assert [p.name for p in recover_folder(folder).parent.iterdir()] == ["best"]
    assert same_weights(model, load_captioner(folder, "cpu"))


def test_our_folder_becomes_a_public_file_by_a_command(saved, tmp_path):
    model, folder = saved
    command = [sys.executable, "-m", "beit3lib.checkpoint", str(folder), str(tmp_path / "public.pth")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "in the public format" in done.stdout
    again = Captioner(model.config)
    assert not load_pretrained(again, tmp_path / "public.pth").fresh and same_weights(model, again)


def test_an_incomplete_folder_is_named(saved):
    (saved[1] / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"best: expected a checkpoint folder, found none with model\.safetensors"):
        load_captioner(saved[1])
    shutil.rmtree(saved[1])
    with pytest.raises(FileNotFoundError, match="best"):
        load_captioner(saved[1])


def test_export_is_public_and_torchscale_reads_it_strictly(saved, tmp_path):
    model, _ = saved
    state = torch.load(save_public(model, tmp_path / "public.pth"), weights_only=True)["model"]
    fresh = make(model.config, seed=5)
    fresh.beit3.load_state_dict({k.removeprefix("beit3."): v for k, v in state.items() if k.startswith("beit3.")}, strict=True)
    fresh.mlm_head.load_state_dict({k.removeprefix("mlm_head."): v for k, v in state.items() if k.startswith("mlm_head.")})
    assert same_weights(model, fresh)
