"""Everything staged for Kaggle is accepted there, and runs where Kaggle's conditions are imitated."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from beit3lib.pipeline import kaggle
from beit3lib.pipeline.manifest import load_manifest

ROOT = Path(__file__).parents[2]
ATTACHED = ("wts", "tokenizer", "beit3_base_patch16_224")
MAX_BYTES = 100e9  # of a data set on Kaggle


@pytest.fixture
def no_wheels(monkeypatch):
    monkeypatch.setattr(kaggle, "fetch_wheels", lambda *_: [])


def metadata(folder):
    return json.loads((folder / "kernel-metadata.json").read_text())


def test_there_is_one_folder_per_notebook_and_one_data_set(tmp_path, no_wheels):
    package, *notebooks = kaggle.stage(tmp_path, "someone")
    assert [folder.name for folder in notebooks] == sorted(
        path.stem for path in (ROOT / "notebooks").glob("*.ipynb")
    )
    for name in (
        "beit3lib/sample/pretrained/sample.spm",
        "data_manifest.yaml",
        "requirements.txt",
        "constraints.txt",
    ):
        assert (package / name).is_file(), name
    assert json.loads((package / "dataset-metadata.json").read_text())["id"] == "someone/beit3lib-package"
    assert not list(package.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < MAX_BYTES


@pytest.mark.parametrize("attach", [(), ATTACHED, ("prepared", "bdd")])
def test_kaggle_accepts_the_metadata(tmp_path, no_wheels, attach):
    _, *notebooks = kaggle.stage(tmp_path, "someone", attach)
    known = {kaggle.PACKAGE_SLUG, *(entry.kaggle for entry in load_manifest().entries.values())}
    for folder in notebooks:
        meta = metadata(folder)
        assert 5 <= len(meta["title"]) <= 50 and f"someone/{kaggle.slug(meta['title'])}" == meta["id"]
        assert re.fullmatch(r"someone/[a-z0-9-]+", meta["id"]) and (folder / meta["code_file"]).is_file()
        assert {source.split("/")[1] for source in meta["dataset_sources"]} <= known


def test_notebooks_are_chained_without_internet_and_training_has_two_t4(tmp_path, no_wheels):
    _, *notebooks = kaggle.stage(tmp_path, "someone", ATTACHED)
    before = []
    for folder in notebooks:
        meta = metadata(folder)
        assert meta["kernel_sources"] == before and not meta["enable_internet"] and meta["is_private"]
        assert "someone/beit3lib-package" in meta["dataset_sources"]
        before = [meta["id"]]
    training = metadata(notebooks[2])
    assert (
        training["machine_shape"] == "NvidiaTeslaT4"
        and "someone/beit3-weights" in training["dataset_sources"]
    )
    assert "someone/wts" in metadata(notebooks[0])["dataset_sources"]


def test_real_data_put_parameters_into_the_copy_and_the_sample_needs_none(tmp_path, no_wheels):
    real, plain = (
        kaggle.stage(tmp_path / "a", "someone", ATTACHED)[3],
        kaggle.stage(tmp_path / "b", "someone")[3],
    )
    cells = nbformat.read(real / "03_finetune.ipynb", 4).cells
    injected = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "num_gpus = 2" in injected[0].source and "max_minutes = 660.0" in injected[0].source
    assert (plain / "03_finetune.ipynb").read_bytes() == (
        ROOT / "notebooks" / "03_finetune.ipynb"
    ).read_bytes()


@pytest.mark.parametrize(
    "request_, message",
    [
        (("a b",), "--owner: expected your user name on Kaggle, got 'a b'"),
        (("",), "--owner: expected your user name on Kaggle, got ''"),
        (("someone", ["nuscenes"]), "got nuscenes"),
        (("someone", ["sample"]), "got sample"),
    ],
)
def test_an_invalid_owner_or_input_is_named(tmp_path, no_wheels, request_, message):
    with pytest.raises(kaggle.KaggleError) as error:
        kaggle.stage(tmp_path, *request_)
    assert message in str(error.value) and list(tmp_path.iterdir()) == []


def test_an_empty_wheel_is_fetched_again_and_a_complete_one_is_kept(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(kaggle, "run_pip", lambda *arguments: asked.append(arguments[-1]))
    for name in ("av-1-cp312-cp312-manylinux2014_x86_64.whl", "torchscale-0.3.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    whole = ["sentencepiece-1-cp312-cp312-manylinux2014_x86_64.whl", "fairscale-0.4.0-py3-none-any.whl"]
    whole += ["rouge_score-0.1.2-py3-none-any.whl", "absl_py-2-py3-none-any.whl"]
    for name in whole:
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("a", "")
    assert [path.name for path in kaggle.fetch_wheels(tmp_path, "3.12")] == sorted(whole)
    assert asked == ["av", "torchscale==0.3.0"]


def test_the_help_is_printed_on_a_terminal_without_unicode():
    command = [sys.executable, "-m", "beit3lib.pipeline.kaggle", "--help"]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "python -m beit3lib.pipeline.kaggle" in done.stdout, done.stderr
