"""What is staged for Kaggle is what Kaggle takes, and runs where Kaggle's conditions are imitated."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
import torch

from beit3lib import kaggle, model
from beit3lib.manifest import load_manifest

ROOT = Path(__file__).parents[1]
MOUNT = Path("/kaggle/input")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ATTACHED = ("wts", "tokenizer", "beit3_base_patch16_224")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    try:
        kaggle.fetch_wheels(folder / "wheels", PYTHON)
    except RuntimeError as error:
        pytest.skip(f"wheels cannot be fetched here: {error}")
    return folder


@pytest.fixture
def no_wheels(monkeypatch):
    monkeypatch.setattr(kaggle, "fetch_wheels", lambda *_: [])


def metadata(folder):
    return json.loads((folder / "kernel-metadata.json").read_text())


def test_one_folder_per_notebook_and_one_to_upload(tmp_path, no_wheels):
    package, *notebooks = kaggle.stage(tmp_path, "someone")
    assert [f.name for f in notebooks] == sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
    assert (package / "beit3lib" / "pretrained" / "sample.spm").is_file() and (package / "data_manifest.yaml").is_file()
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


# --- Kaggle's conditions -------------------------------------------------------------------------------------------

HIDDEN = ("beit3lib", "__editable__", "torchscale", "fairscale", "av", "rouge_score", "sentencepiece")


def bare_python(folder):
    """A Python as Kaggle's: everything of this one but the package itself and what Kaggle's image lacks."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True
        ).stdout.strip()
    )
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        name = entry.name.split("-")[0].split(".")[0]
        if not (name in HIDDEN or entry.name.startswith("__editable__") or name.startswith(("av_", "sentencepiece"))):
            (site / entry.name).symlink_to(entry)
    return python


@pytest.fixture
def mounts(tmp_path):
    """/kaggle/input, as a link to a folder of the test's."""
    if MOUNT.exists() or not os.access("/", os.W_OK):
        pytest.skip("/kaggle/input cannot be imitated: it exists, or the root folder may not be written to")
    real = tmp_path / "mounts"
    real.mkdir()
    MOUNT.parent.mkdir(exist_ok=True)
    MOUNT.symlink_to(real)
    yield real
    MOUNT.unlink()
    MOUNT.parent.rmdir()


def read_only(folder, on):
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222 if on else path.stat().st_mode | 0o200)


@pytest.mark.slow
def test_the_notebooks_run_under_kaggles_conditions(tmp_path, mounts, wheels):
    """Both shapes of mount, read-only; an empty working folder each; no network; what the image lacks comes from wheels.

    Each notebook finds the output of the one before it as a mount, and nothing else.
    """
    package, *notebooks = kaggle.stage(wheels, "someone", python=PYTHON)
    shutil.copytree(package, mounts / "datasets" / "someone" / "beit3lib-package")
    python, before = bare_python(tmp_path / "python"), None
    absent = subprocess.run([python, "-c", "import beit3lib"], capture_output=True, cwd=tmp_path)
    assert absent.returncode != 0
    dead = "http://127.0.0.1:9"
    offline = {"PIP_NO_INDEX": "1", "http_proxy": dead, "https_proxy": dead, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **offline}
    for number, folder in enumerate(notebooks):
        working = tmp_path / f"working{number}"
        working.mkdir()
        if before is not None:  # mounts of notebook outputs come in both shapes too
            mount = mounts / ("notebooks/someone/" if number % 2 else "") / notebooks[number - 1].name
            shutil.copytree(before, mount)
        read_only(mounts, True)
        command = [python, "-m", "papermill", "--no-progress-bar", folder / f"{folder.name}.ipynb", "out.ipynb"]
        done = subprocess.run(command, cwd=working, env=environment, capture_output=True, text=True)
        read_only(mounts, False)
        assert done.returncode == 0, done.stderr[-3000:]
        shutil.rmtree(mount, ignore_errors=True) if before is not None else None
        before = working
    run = before / "runs" / "demo"
    assert {"prepare", "index", "finetune", "inspect", "score", "attributes"} <= set(
        json.loads((run / "summary.json").read_text())
    )
    assert (run / "submission.json").is_file() and (run / "gallery.html").is_file()
