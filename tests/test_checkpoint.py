"""Public checkpoints load in every form they have; broken or malicious files are named; our folders are complete or absent."""

import argparse
import json
import os
import pickle
import re
import shutil
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

from beit3lib.captioner import Captioner
from beit3lib.checkpoint import (
    IMAGE_POSITIONS,
    CheckpointError,
    export_folder,
    load_captioner,
    load_pretrained,
    read_state,
    resize_positions,
    save_captioner,
    save_public,
)
from beit3lib.model import MODELS, CaptionModel
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer


def same_weights(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.fixture
def source():
    return make_model(seed=1)


@pytest.fixture
def target():
    return make_model(seed=2)


@pytest.fixture
def reference():
    pytest.importorskip("beit3")
    import reference

    return reference


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"module": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: state,
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"model": {f"_orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    ],
    ids=["model", "module", "state_dict", "bare", "distributed", "compiled", "distributed_and_compiled"],
)
@pytest.mark.parametrize("name", ["c.pth", "c.zip", "checkpoint"])
def test_every_form_of_a_public_checkpoint_loads(tmp_path, source, target, wrap, name):
    torch.save(wrap(source.state_dict()), tmp_path / name)
    report = load_pretrained(target, tmp_path / name)
    assert same_weights(source, target) and not (report.fresh or report.skipped or report.resized)


def test_a_checkpoint_unpacked_into_a_folder_loads(tmp_path, source, target):
    torch.save({"model": source.state_dict()}, tmp_path / "c.pth")
    zipfile.ZipFile(tmp_path / "c.pth").extractall(tmp_path / "unpacked")
    load_pretrained(target, tmp_path / "unpacked")
    assert same_weights(source, target)


def recipe_checkpoint(source):
    """The content of the recipe's checkpoint-N.pth: learning rates are numpy numbers, options an argparse.Namespace."""
    optimizer = torch.optim.AdamW(source.parameters(), lr=1e-3)
    source(*make_inputs(TINY)).mean().backward()
    optimizer.step()
    optimizer.param_groups[0].update(lr=np.linspace(0, 1, 3)[1], lr_scale=1.0)
    options = argparse.Namespace(lr=1e-4, opt_betas=None, model="beit3_tiny", resume="")
    return {
        "model": source.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "scaler": {},
        "args": options,
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy1", "numpy2"]
)
@pytest.mark.parametrize("key", ["model", "module"])
def test_checkpoints_saved_while_fine_tuning_with_the_recipe_load(
    tmp_path, source, target, zipped, module, key
):
    content = recipe_checkpoint(source)
    content[key] = content.pop("model")  # DeepSpeed writes "module"
    path = tmp_path / "checkpoint-3.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    rename_numpy_module(path, zipped, module)
    load_pretrained(target, path)
    assert same_weights(source, target)


def rename_numpy_module(path, zipped, module):
    """Rewrite the pickle as another version of numpy writes it."""

    def rename(data):
        assert b"multiarray" in data
        return data.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)

    if not zipped:
        path.write_bytes(rename(path.read_bytes()))
        return
    entries = {entry: zipfile.ZipFile(path).read(entry) for entry in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, rename(data) if name.endswith("data.pkl") else data)


def test_the_recipe_saves_and_we_load(tmp_path, reference, source, target):
    content = recipe_checkpoint(source)
    optimizer = SimpleNamespace(state_dict=lambda: content["optimizer"])
    scaler = SimpleNamespace(state_dict=lambda: {"scale": 65536.0, "_growth_tracker": 0})
    options = argparse.Namespace(output_dir=str(tmp_path), lr=1e-4)
    theirs = reference.captioning_model(source)
    reference.recipe("utils").save_model(options, 3, theirs, theirs, optimizer, scaler)
    load_pretrained(target, tmp_path / "checkpoint-3.pth")
    assert same_weights(source, target)


@pytest.mark.parametrize("image_size", [16, 32, 48])
def test_we_save_and_the_recipe_loads_as_we_do(tmp_path, reference, source, image_size):
    """Also at other image sizes: its position embeddings are resized as ours."""
    save_public(source, tmp_path / "public.pth")
    ours, other = (make_model(replace(TINY, image_size=image_size), seed=seed) for seed in (2, 3))
    report = load_pretrained(ours, tmp_path / "public.pth")
    assert report.resized == ([IMAGE_POSITIONS] if image_size != 16 else [])
    theirs = reference.captioning_model(other)
    reference.recipe("utils").load_model_and_may_interpolate(
        str(tmp_path / "public.pth"), theirs, "model|module", ""
    )
    for name, value in ours.state_dict().items():
        assert torch.allclose(theirs.state_dict()[name], value, atol=1e-6), name
    ours(*make_inputs(ours.config))


def test_positions_of_a_constant_and_of_a_ramp_keep_their_form():
    flat = torch.full((3 + 4, 5), 0.25)
    assert torch.allclose(resize_positions(flat, 3 + 16), torch.full((19, 5), 0.25))
    ramp = torch.cat([torch.zeros(3, 1), torch.arange(4.0).repeat(4)[:, None]])  # grows from left to right
    wide = resize_positions(ramp, 3 + 64)[3:].reshape(8, 8)
    assert (wide[:, 1:] > wide[:, :-1]).all() and torch.allclose(wide[0], wide[-1], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("size", ["base", pytest.param("large", marks=pytest.mark.slow)])
def test_public_shapes_load_at_every_image_size(size, tmp_path):
    """By shapes alone, without storage: base and large at 224 into 224, 384 and 480."""
    with torch.device("meta"):
        shapes = {
            name: v.shape
            for name, v in CaptionModel(MODELS[f"beit3_{size}_patch16_224"]).state_dict().items()
        }
    torch.save(
        {"model": {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}}, tmp_path / "c.pth"
    )
    for pixels in (224, 384, 480):
        with torch.device("meta"):
            target = CaptionModel(MODELS[f"beit3_{size}_patch16_{pixels}"])
        report = load_pretrained(target, tmp_path / "c.pth")
        assert (
            len(report.loaded) == len(shapes) and not report.fresh and bool(report.resized) == (pixels != 224)
        )


def test_a_missing_head_is_initialized_and_other_heads_are_skipped(tmp_path, source):
    target = CaptionModel.empty(TINY)
    state = {name: v for name, v in source.state_dict().items() if not name.startswith("mlm_head")}
    torch.save({"model": {**state, "head.weight": torch.zeros(3)}}, tmp_path / "c.pth")
    report = load_pretrained(target, tmp_path / "c.pth")
    assert report.fresh == ["mlm_head.weight", "mlm_head.bias"] and report.skipped == ["head.weight"]
    assert target.mlm_head.bias.abs().max() == 0 and 0.009 < target.mlm_head.weight.std() < 0.02
    assert "initialized: mlm_head.weight" in str(report)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16}, r"of another shape.*text_embed.weight \(expected \(60, 32\), found \(60, 16\)\)"),
        ({"layers": 2}, "missing: beit3.encoder.layers.2"),
        ({"layers": 4}, "unknown: beit3.encoder.layers.3"),
    ],
    ids=["narrow", "short", "deep"],
)
def test_a_checkpoint_of_another_model_names_the_parameters(tmp_path, target, changes, message):
    save_public(make_model(replace(TINY, **changes)), tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match=rf"(?s)other\.pth: expected a checkpoint of this model.*{message}"
    ):
        load_pretrained(target, tmp_path / "other.pth")


def test_names_with_another_prefix_name_the_option(tmp_path, source, target):
    torch.save(
        {"model": {f"captioner.{name}": value for name, value in source.state_dict().items()}},
        tmp_path / "c.pth",
    )
    with pytest.raises(
        CheckpointError, match=r"c\.pth: expected names such as .*Pass --model_prefix captioner\.$"
    ):
        load_pretrained(target, tmp_path / "c.pth")
    load_pretrained(target, tmp_path / "c.pth", model_prefix="captioner.")
    assert same_weights(source, target)


def test_weights_that_are_not_finite_are_named(tmp_path, source, target):
    with torch.no_grad():
        source.mlm_head.weight[0, 0] = float("nan")
    save_public(source, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"(?s)c\.pth.*1 not finite: mlm_head\.weight"):
        load_pretrained(target, tmp_path / "c.pth")


class Gadget:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "write",
    [
        lambda content, path: path.write_bytes(pickle.dumps(content)),
        torch.save,
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    ],
    ids=["pickle", "zip", "legacy"],
)
def test_a_pickle_that_runs_code_is_refused(tmp_path, source, target, write):
    made = tmp_path / "made"
    write({**recipe_checkpoint(source), "extra": Gadget(made)}, tmp_path / "evil.pth")
    with pytest.raises(
        CheckpointError, match=r"evil\.pth: expected a PyTorch checkpoint with tensors only, found "
    ):
        load_pretrained(target, tmp_path / "evil.pth")
    assert not made.exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, target):
    torch.save({"model": {"a": torch.zeros(10_000_000)}}, tmp_path / "plain.pth")
    plain = zipfile.ZipFile(tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(
        CheckpointError, match=r"bomb\.pth: .* found a file of 0\.\d MB that unpacks to 40 MB"
    ):
        load_pretrained(target, tmp_path / "bomb.pth")


BROKEN = {
    "empty.pth": lambda whole: b"",
    "cut.pth": lambda whole: whole[:2000],
    "half.pth": lambda whole: whole[: len(whole) // 2],
    "text.pth": lambda whole: b"just some text, and no tensors in it\n",
    "zip.pth": lambda whole: b"PK\x05\x06" + bytes(18),
    "random.pth": lambda whole: np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path, source, target, name):
    torch.save({"model": source.state_dict()}, tmp_path / "whole.pth")
    (tmp_path / name).write_bytes(BROKEN[name]((tmp_path / "whole.pth").read_bytes()))
    with pytest.raises(CheckpointError, match=f"{name}: expected a PyTorch checkpoint") as error:
        load_pretrained(target, tmp_path / name)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"weights": {"a": torch.zeros(1)}}, {"model": {"a": 1}}, 5], ids=str
)
def test_a_file_without_a_state_dict_is_named(tmp_path, target, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"other\.pth: expected a state dict, or one under 'model\|module'"
    ):
        load_pretrained(target, tmp_path / "other.pth")


def test_a_missing_file_is_named(tmp_path, target):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: expected a file"):
        load_pretrained(target, tmp_path / "nowhere.pth")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder: expected a checkpoint file"):
        load_pretrained(target, tmp_path / "folder")


def converted(name, image, text, projection):
    """The name that a parameter has in a conversion to Hugging Face transformers."""
    for pattern, new in [
        *[
            (r"\.text_embed\.", ".text_embedding."),
            (r"\.vision_embed\.", ".vision_embedding."),
            (r"^mlm_head", "mlm_classifier"),
        ],
        *[(r"embedding\.proj\.", f"embedding.{projection}."), (r"encoder\.layer_norm", "encoder.fc_norm")],
        *[(rf"attn\.{word[0]}_proj", f"attn.{word}_proj") for word in ("key", "query", "value")],
        *[(r"\.A\.", f".{image}."), (r"\.B\.", f".{text}.")],
    ]:
        name = re.sub(pattern, new, name)
    return name


CONVERSIONS = [("A", "B", "proj"), ("first", "second", "proj"), ("image", "text", "projection")]
KNOWN = {  # of the third one
    *{
        "beit3.text_embedding.weight",
        "beit3.vision_embedding.cls_token",
        "beit3.vision_embedding.projection.bias",
    },
    *{"beit3.encoder.embed_positions.image.weight", "beit3.encoder.layers.0.self_attn.key_proj.text.weight"},
    *{
        "beit3.encoder.layers.0.self_attn_layer_norm.image.bias",
        "beit3.encoder.layers.0.ffn.text.ffn_layernorm.weight",
    },
    *{
        "beit3.encoder.layers.0.final_layer_norm.text.weight",
        "beit3.encoder.fc_norm.image.weight",
        "mlm_classifier.bias",
    },
}


@pytest.mark.parametrize(
    "names", [None, *CONVERSIONS], ids=lambda names: "original" if names is None else names[0]
)
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_in_the_format_of_hugging_face_loads(tmp_path, source, target, names, form, shards):
    state = {converted(name, *names) if names else name: value for name, value in source.state_dict().items()}
    assert KNOWN <= set(state) or names != CONVERSIONS[-1]
    stem, suffix = form.split(".")
    files = [form] if shards == 1 else [f"{stem}-{n + 1:05}-of-{shards:05}.{suffix}" for n in range(shards)]
    where = {name: files[number % shards] for number, name in enumerate(state)}
    for file in files:
        part = {name: value for name, value in state.items() if where[name] == file}
        (save_file if suffix == "safetensors" else torch.save)(part, tmp_path / file)
    if shards > 1:
        (tmp_path / f"{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    report = load_pretrained(target, tmp_path)
    assert same_weights(source, target) and not (report.fresh or report.skipped or report.resized)


def test_a_missing_shard_and_an_index_without_shards_are_named(tmp_path, target):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model-00001-of-00001.safetensors"}}))
    with pytest.raises(
        FileNotFoundError,
        match=rf"^{re.escape(str(tmp_path))}/model-00001-of-00001.safetensors: expected a file",
    ):
        load_pretrained(target, tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="index.json: expected a weight_map"):
        load_pretrained(target, tmp_path)


def test_names_of_an_image_model_alone_are_refused_in_one_line(tmp_path, target):
    """timm's beit3_* models have no text branch."""
    save_file(
        {f"blocks.{n}.attn.qkv.weight": torch.zeros(1) for n in range(9)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(
        CheckpointError, match=r"expected names such as beit3.text_embed.weight, found blocks.0.*"
    ) as error:
        load_pretrained(target, tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.fixture
def saved(tmp_path):
    tokenizer = load_tokenizer(SPM_PATH)
    model = make_model(replace(TINY, vocab_size=len(tokenizer) + UNUSED_ROWS, drop_path=0.1))
    captioner = Captioner(model, tokenizer, [("vehicle", "road"), ("pedestrian", "moving")], 20, 0.9)
    return captioner, save_captioner(captioner, tmp_path / "best", SPM_PATH, {"score": 12.5})


def test_a_checkpoint_folder_loads_as_it_was_saved(saved):
    captioner, folder = saved
    loaded = load_captioner(folder, "cpu")
    assert same_weights(captioner.model, loaded.model) and not loaded.model.training
    assert loaded.caption_types == captioner.caption_types and (loaded.max_tokens, loaded.length_penalty) == (
        20,
        0.9,
    )
    assert loaded.meta["score"] == 12.5 and loaded.model.config.drop_path == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        "meta.json",
        "model.safetensors",
        "sentencepiece.bpe.model",
    ]
    assert set(read_state(folder)) == set(captioner.model.state_dict())


def test_a_failed_save_keeps_the_old_checkpoint(saved, tmp_path):
    captioner, folder = saved
    with pytest.raises(OSError):
        save_captioner(
            Captioner(make_model(captioner.model.config, seed=9), None), folder, tmp_path / "nowhere.spm"
        )
    assert same_weights(captioner.model, load_captioner(folder, "cpu").model)
    assert [p.name for p in folder.parent.iterdir()] == ["best"]


def test_a_checkpoint_between_two_renames_is_read(saved):
    captioner, folder = saved
    folder.rename(folder.with_name(".best.previous"))
    assert same_weights(captioner.model, load_captioner(folder, "cpu").model)


def test_the_export_command_writes_a_file_that_the_recipe_model_loads_strictly(saved, reference, tmp_path):
    captioner, folder = saved
    command = [sys.executable, "-m", "beit3lib.checkpoint", str(folder), str(tmp_path / "public.pth")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "in the public format" in done.stdout
    theirs = reference.captioning_model(make_model(captioner.model.config, seed=5))
    theirs.load_state_dict(torch.load(tmp_path / "public.pth", weights_only=True)["model"], strict=True)
    assert same_weights(captioner.model, theirs)


def test_the_export_command_ends_with_one_line_on_an_error(tmp_path):
    command = [
        sys.executable,
        "-m",
        "beit3lib.checkpoint",
        str(tmp_path / "none"),
        str(tmp_path / "public.pth"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and "none: expected a checkpoint" in done.stderr
    )


def test_an_exported_folder_has_a_model_card_and_loads(saved, tmp_path):
    captioner, folder = saved
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {
        "best_score": 33.126,
        "options": {"model": "beit3_base_patch16_224", "finetune": "/a/w.pth", "data_path": "/secret/x"},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    for _ in range(2):  # an earlier export is replaced
        subprocess.run([sys.executable, "-m", "beit3lib.checkpoint", folder, tmp_path / "mine"], check=True)
    loaded = load_captioner(tmp_path / "mine", "cpu")
    assert same_weights(captioner.model, loaded.model) and loaded.caption_types == captioner.caption_types
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.pipeline_tag == "image-to-text" and card.data.eval_results[0].metric_value == 33.13
    assert (
        "vehicle road, pedestrian moving" in card.text
        and "beit3_base_patch16_224, weights: w.pth" in card.text
    )
    assert not any(
        "/secret" in path.read_text() or "/a/" in path.read_text()
        for path in (tmp_path / "mine").glob("*[dn]")
    )


def test_an_export_does_not_replace_a_folder_with_other_content(saved, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(FileExistsError, match="photos: expected a new or empty folder"):
        export_folder(saved[1], tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_an_incomplete_folder_is_named(saved):
    (saved[1] / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"best: expected a checkpoint folder, found no model\.safetensors"
    ):
        load_captioner(saved[1])
    shutil.rmtree(saved[1])
    with pytest.raises(FileNotFoundError, match="best: expected a checkpoint"):
        load_captioner(saved[1])


def test_another_tokenizer_of_equal_size_is_refused(saved):
    spm = saved[1] / "sentencepiece.bpe.model"
    spm.write_bytes(spm.read_bytes().replace(b"road", b"roda"))
    with pytest.raises(
        CheckpointError, match=r"sentencepiece\.bpe\.model: expected the tokenizer that the model was trained"
    ):
        load_captioner(saved[1], "cpu")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[: len(data) // 2],
        lambda data: np.random.default_rng(0).bytes(5000),
        lambda data: (10**12).to_bytes(8, "little") + data[8:],
    ],
    ids=["empty", "cut_header", "cut", "random", "huge_header"],
)
def test_damaged_weights_are_named(saved, damage):
    path = saved[1] / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: expected safetensors, found a damaged or incomplete file"
    ):
        load_captioner(saved[1], "cpu")


def _without_head(state):
    return {name: value for name, value in state.items() if name != "mlm_head.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_head, "1 missing: mlm_head.bias"),
        (
            lambda state: {**state, "mlm_head.bias": torch.zeros(3)},
            r"1 of another shape: mlm_head.bias \(expected",
        ),
        (
            lambda state: {**state, "mlm_head.bias": state["mlm_head.bias"] + torch.inf},
            "1 not finite: mlm_head.bias",
        ),
        (lambda state: {**state, "beit3.extra": torch.zeros(3)}, "1 unknown: beit3.extra"),
    ],
    ids=["missing", "shape", "infinite", "unknown"],
)
def test_wrong_weights_are_named(saved, change, message):
    path = saved[1] / "model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(CheckpointError, match=rf"(?s)model\.safetensors: .*{message}"):
        load_captioner(saved[1], "cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: [],
        lambda meta: {},
        lambda meta: {**meta, "model": None},
        lambda meta: {**meta, "model": {**meta["model"], "width": "32"}},
        lambda meta: {**meta, "model": {**meta["model"], "layers": 10**9}},
        lambda meta: {**meta, "model": {**meta["model"], "heads": 5}},
        lambda meta: {**meta, "model": {**meta["model"], "image_size": -16}},
        lambda meta: {**meta, "caption_types": 5},
        lambda meta: {**meta, "caption_types": [["vehicle"]]},
        lambda meta: {**meta, "max_tokens": 10**9},
        lambda meta: {**meta, "max_tokens": -1},
        lambda meta: {**meta, "length_penalty": 10**400},
        lambda meta: {**meta, "length_penalty": "much"},
        lambda meta: {name: value for name, value in meta.items() if name != "caption_types"},
    ],
)
def test_an_odd_meta_json_is_named(saved, change):
    path = saved[1] / "meta.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=r"meta\.json: "):
        load_captioner(saved[1], "cpu")
