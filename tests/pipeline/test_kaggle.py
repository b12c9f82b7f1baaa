"""Everything staged for Kaggle is accepted there; `conftest.demo` runs it under Kaggle's conditions."""

import re
from pathlib import Path

import nbformat
import pytest

from beit3lib.files import read_json
from beit3lib.pipeline import kaggle

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
REAL = ("wts", "tokenizer", "weights")


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """`kaggle.stage` without wheels; it returns the staged folders."""
    monkeypatch.setattr(kaggle, "fetch_wheels", lambda folder, _: folder.mkdir())
    return lambda *arguments: kaggle.stage(tmp_path / "staged", *arguments)


@pytest.mark.parametrize("attach, inputs", [((), ([], [], [])), (REAL, (["wts"], *[["beit3-weights"]] * 2))])
def test_notebooks_are_chained_and_those_with_gpus_use_both_within_the_time_limit(stage, attach, inputs):
    before = []
    for folder, slugs in zip(stage("someone", attach)[1:], (*inputs, [], []), strict=True):
        meta = read_json(folder / "kernel-metadata.json")
        assert 5 <= len(meta["title"]) <= 50 and re.fullmatch(r"someone/[a-z0-9-]+", meta["id"])
        derived = re.sub("[^a-z0-9]+", "-", meta["title"].lower())  # by Kaggle, from the title
        assert meta["id"] == f"someone/{derived}"
        assert meta["is_private"] and not meta["enable_internet"]
        assert meta["dataset_sources"] == [f"someone/{slug}" for slug in ("beit3lib-package", *slugs)]
        assert meta["kernel_sources"] == before
        has_gpu = folder.name in ("03_finetune", "04_inspect_captions")
        assert meta["enable_gpu"] == has_gpu == (meta.get("machine_shape") == "NvidiaTeslaT4")
        cells = nbformat.read(folder / meta["code_file"], 4).cells
        injected = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
        if attach and has_gpu:
            assert injected == ["# Parameters\nnum_gpus = 0\nmax_minutes = 660.0\n"]
        else:  # the sample needs neither
            copy = folder / meta["code_file"]
            assert copy.read_bytes() == (NOTEBOOKS / copy.name).read_bytes()
        before = [meta["id"]]
