"""What is staged for Kaggle is what Kaggle takes, and runs where Kaggle's conditions are imitated."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from beit3lib import model
from beit3lib.pipeline import kaggle
from beit3lib.pipeline.manifest import load_manifest

ROOT = Path(__file__).parents[2]
MOUNT = Path("/kaggle/input")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ATTACHED = ("wts", "tokenizer", "beit3_base_patch16_224")


@pytest.fixture
def no_wheels(monkeypatch):
    monkeypatch.setattr(kaggle, "fetch_wheels", lambda *_: [])


def metadata(folder):
    return json.loads((folder / "kernel-metadata.json").read_text())


def test_one_folder_per_notebook_and_one_to_upload(tmp_path, no_wheels):
    package, *notebooks = kaggle.stage(tmp_path, "someone")
    assert [f.name for f in notebooks] == sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
    assert (package / "beit3lib" / "sample" / "pretrained" / "sample.spm").is_file() and (
        package / "data_manifest.yaml"
    ).is_file()
    assert json.loads((package / "dataset-metadata.json").read_text())["id"] == "someone/beit3lib-package"
    assert not list(package.rglob("__pycache__"))


def test_notebooks_are_chained_without_internet_and_training_has_two_t4(tmp_path, no_wheels):
    _, *notebooks = kaggle.stage(tmp_path, "someone", ATTACHED)
    before = []
    for folder in notebooks:
        told = metadata(folder)
        assert told["kernel_sources"] == before and not told["enable_internet"] and told["is_private"]
        assert "someone/beit3lib-package" in told["dataset_sources"]
        before = [told["id"]]
    training = metadata(notebooks[2])
    assert training["machine_shape"] == "NvidiaTeslaT4" and "someone/beit3-weights" in training["dataset_sources"]
    assert "someone/wts" in metadata(notebooks[0])["dataset_sources"]


def test_parameters_stand_in_the_copy_for_real_data_and_defaults_run_the_sample(tmp_path, no_wheels):
    real, plain = kaggle.stage(tmp_path / "a", "someone", ATTACHED)[3], kaggle.stage(tmp_path / "b", "someone")[3]
    injected = [
        c for c in nbformat.read(real / "03_finetune.ipynb", 4).cells if "injected-parameters" in c.metadata.get("tags", [])
    ]
    assert "num_gpus = 2" in injected[0].source and "max_minutes = 660.0" in injected[0].source
    assert (plain / "03_finetune.ipynb").read_bytes() == (ROOT / "notebooks" / "03_finetune.ipynb").read_bytes()


def test_what_kaggle_would_refuse_is_all_told_at_once(tmp_path, no_wheels):
    folders = kaggle.stage(tmp_path, "someone")
    spoilt = {**metadata(folders[2]), "title": "X", "dataset_sources": ["someone/secret"], "kernel_sources": ["someone/later"]}
    (folders[2] / "kernel-metadata.json").write_text(json.dumps(spoilt))
    (folders[4] / "04_inspect_captions.ipynb").unlink()
    problems = kaggle.check_staged(folders, load_manifest())
    for told in ("of the title 'X'", "5 to 50 characters", "someone/secret is not in", "no notebook before it", "is missing"):
        assert any(told in problem for problem in problems), problems
    assert len(problems) == 5


@pytest.mark.parametrize(
    "request_, told",
    [
        (("a b",), "--owner: expected your user name on Kaggle, found 'a b'"),
        (("someone", ["nuscenes"]), "--attach: nuscenes not among"),
        (("someone", ["sample"]), "--attach: sample not among"),
    ],
)
def test_a_wrong_request_is_named(tmp_path, no_wheels, request_, told):
    with pytest.raises(kaggle.KaggleError) as error:
        kaggle.stage(tmp_path, *request_)
    assert told in str(error.value)


def test_titles_become_the_slugs_that_kaggle_makes():
    assert kaggle.slug("Traffic captions 1 prepare data") == "traffic-captions-1-prepare-data"
    assert all(len(title) in kaggle.TITLE_CHARACTERS for title in kaggle.TITLES.values())


def test_a_p100_gets_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_86", "sm_90a", "compute_90"])
    with pytest.raises(RuntimeError, match=r"P100.*compute capability 6.0.*choose the accelerator GPU T4 x2"):
        model.choose_device()
    assert model.choose_device("cpu") == torch.device("cpu")
    for fine in ((7, 5), (8, 9), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, fine=fine: fine)
        assert model.choose_device() == torch.device("cuda")


@pytest.mark.slow
def test_the_notebooks_run_under_kaggles_conditions(demo):
    """Both shapes of mount, read-only; an empty working folder each; no network; what the image lacks comes from wheels.

    Each notebook finds the output of the one before it as a mount, and nothing else (`conftest.demo`).
    """
    if demo.not_as_kaggle:
        pytest.skip(demo.not_as_kaggle)
    summary = json.loads((demo.run / "summary.json").read_text())
    assert {"prepare", "index", "finetune", "inspect", "score", "attributes"} <= set(summary)
    assert (demo.run / "submission.json").is_file() and (demo.run / "gallery.html").is_file()
