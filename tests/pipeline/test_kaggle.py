"""Everything staged for Kaggle is accepted there; `conftest.demo` runs it where Kaggle's conditions are
imitated."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from beit3lib.pipeline import kaggle

ROOT = Path(__file__).parents[2]
REAL = ("wts", "tokenizer", "weights")


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """`kaggle.stage` without wheels; it returns the staged folders."""
    monkeypatch.setattr(
        kaggle, "fetch_wheels", lambda folder, _: folder.mkdir(parents=True, exist_ok=True) or folder
    )
    return lambda *arguments: kaggle.stage(tmp_path / "staged", *arguments)


def metadata(folder):
    return json.loads((folder / "kernel-metadata.json").read_text())


def test_the_data_set_has_everything_that_notebooks_need(stage):
    package, *notebooks = stage("someone")
    assert [folder.name for folder in notebooks] == sorted(
        path.stem for path in ROOT.glob("notebooks/*.ipynb")
    )
    needed = (
        "beit3lib/sample/pretrained/sample.spm",
        "data_manifest.yaml",
        "requirements.txt",
        "constraints.txt",
        "wheels",
    )
    assert [name for name in needed if not (package / name).exists()] == [] and not list(
        package.rglob("__pycache__")
    )
    assert json.loads((package / "dataset-metadata.json").read_text())["id"] == "someone/beit3lib-package"


@pytest.mark.parametrize("attach, inputs", [((), ([], [], [])), (REAL, (["wts"], *[["beit3-weights"]] * 2))])
def test_notebooks_are_chained_without_internet_and_those_with_a_gpu_have_two_t4(stage, attach, inputs):
    before = []
    for folder, slugs in zip(stage("someone", attach)[1:], (*inputs, [], []), strict=True):
        meta = metadata(folder)
        assert 5 <= len(meta["title"]) <= 50 and re.fullmatch(r"someone/[a-z0-9-]+", meta["id"])
        assert re.sub("[^a-z0-9]+", "-", meta["title"].lower()) == meta["id"].split("/")[1], (
            "Kaggle derives the id"
        )
        assert (folder / meta["code_file"]).is_file() and meta["is_private"] and not meta["enable_internet"]
        assert meta["dataset_sources"] == [f"someone/{slug}" for slug in ("beit3lib-package", *slugs)]
        assert meta["kernel_sources"] == before
        has_gpu = folder.name in ("03_finetune", "04_inspect_captions")
        assert meta["enable_gpu"] == has_gpu == (meta.get("machine_shape") == "NvidiaTeslaT4")
        before = [meta["id"]]


def test_real_data_get_all_gpus_and_a_time_limit_and_the_sample_needs_neither(stage):
    for name in ("03_finetune", "04_inspect_captions"):
        original = ROOT / "notebooks" / f"{name}.ipynb"
        copy = next(folder for folder in stage("someone", REAL) if folder.name == name) / original.name
        cells = [
            cell.source
            for cell in nbformat.read(copy, 4).cells
            if "injected-parameters" in cell.metadata.get("tags", [])
        ]
        assert cells == ["# Parameters\nnum_gpus = 0\nmax_minutes = 660.0\n"]
        copy = next(folder for folder in stage("someone") if folder.name == name) / original.name
        assert copy.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    "request_, message",
    [
        (("a b",), "--owner: expected your user name on Kaggle, got 'a b'"),
        (("someone", ["sample"]), "expected some of wts, bdd, prepared, tokenizer, weights .*, got sample"),
    ],
)
def test_an_invalid_owner_or_input_is_named(stage, tmp_path, request_, message):
    with pytest.raises(ValueError, match=message):
        stage(*request_)
    assert list(tmp_path.iterdir()) == []
