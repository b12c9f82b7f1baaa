"""Fixtures of several tests: runs of drawn images without videos, and the demo, run once as on Kaggle."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

# Variables of the user and mounts of the host must not change the result of a test. Hypothesis, too, writes
# to a temporary folder, not to the working folder.
for name in [name for name in os.environ if name.startswith("BEIT3LIB_")]:
    del os.environ[name]
# WordNet from .ci/wordnet.sh, for machines that cannot reach nltk's server; nltk ignores a missing folder.
os.environ.setdefault("NLTK_DATA", str(Path(__file__).parents[1] / ".nltk_data"))
os.environ["BEIT3LIB_KAGGLE_INPUT"] = os.path.join(os.devnull, "kaggle")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.path.join(tempfile.gettempdir(), "beit3lib-hypothesis")

from beit3lib.data.caption_files import write_caption_files  # noqa: E402
from beit3lib.data.index import build_index  # noqa: E402
from beit3lib.data.schema import SUBJECTS  # noqa: E402
from beit3lib.files import write_json  # noqa: E402
from beit3lib.sample import DRAWN_NAME, SPM_PATH, draw  # noqa: E402
from beit3lib.tokenizer import load_tokenizer  # noqa: E402

with suppress(ImportError):  # a GPU machine may lack it
    from hypothesis import settings

    settings.register_profile("busy machine", deadline=None)
    settings.load_profile("busy machine")
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
HIDDEN = ("torchscale", "fairscale", "av", "rouge_score", "sentencepiece")  # missing on Kaggle


def draw_run(folder, train=8, val=4, spm=SPM_PATH):
    """Write images, captions, index and drawn values of scenarios with one phase; return the phases."""
    rng, rows, drawn = np.random.default_rng(0), [], {}
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = f"202300_{split}_{number:03d}"
            scene, image = draw.Scene(**draw.draw_values(rng)), f"avg{name}phase0.jpg"
            draw.draw_blur(scene, draw.draw_camera(rng)).save(folder / "images" / image, quality=95)
            captions = {f"caption_{subject}": draw.full_caption(scene, subject) for subject in SUBJECTS}
            about = {"split": split, "source": "wts", "scenario": name, "view": "overhead_view"}
            about |= {"video": f"{name}.mp4", "label": "0", "phase": 0, "image": image}
            rows.append(about | captions)
            drawn[name] = {"0": vars(scene)}
    write_json(folder / DRAWN_NAME, drawn)
    table = pd.DataFrame(rows)
    for split, part in table.groupby("split"):
        write_caption_files(part, folder / "captions" / split)
        out = folder / f"coco_captioning.{split}.jsonl"
        build_index(folder / "captions" / split, folder / "images", load_tokenizer(spm), out, part)
    return table


@pytest.fixture(scope="session")
def reference():
    """The reference implementation, tests/reference.py; without beit3-gml the test is skipped."""
    pytest.importorskip("beit3")
    import reference

    return reference


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A run with 8 training and 4 validation images, which tests must not change."""
    folder = tmp_path_factory.mktemp("drawn") / "run"
    draw_run(folder)
    return folder


class Demo(NamedTuple):
    """The executed notebooks: the last working folder, its run, and the reason if Kaggle could not be
    imitated, else ""."""

    folder: Path
    run: Path
    not_as_kaggle: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Notebooks 1 to 5 without parameters, executed as on Kaggle, or in one folder if the wheels cannot be
    fetched."""
    from beit3lib.pipeline import kaggle  # imports PyAV, which a GPU machine may lack

    folder = tmp_path_factory.mktemp("demo")
    try:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        package, *notebooks = kaggle.stage(folder / "staged", "someone", python=python)
    except RuntimeError as error:
        working = folder / "working"
        run_demo(sys.executable, sorted(NOTEBOOKS.glob("*.ipynb")), [working] * 5)
        return Demo(working, working / "runs" / "demo", f"wheels cannot be fetched here: {error}")
    working = [folder / f"working{number}" for number in range(len(notebooks))]
    shutil.copytree(package, folder / "mounts" / "datasets" / "someone" / "beit3lib-package")
    python = bare_python(folder / "python")
    command = [python, "-c", "import beit3lib"]
    assert subprocess.run(command, capture_output=True, cwd=folder, env=clean()).returncode
    run_demo(python, [path / f"{path.name}.ipynb" for path in notebooks], working, folder / "mounts")
    return Demo(working[-1], working[-1] / "runs" / "demo", "")


def clean(**values):
    """The environment of a host without internet, GPU and this project's folder on Python's path."""
    offline = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    offline |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline | values


def run_demo(python, notebooks, working, mounts=None):
    """Execute notebooks one after the other; with `mounts`, the output of each is an input of the next."""
    for number, (notebook, folder) in enumerate(zip(notebooks, working, strict=True)):
        folder.mkdir(exist_ok=True)
        papermill = [python, "-m", "papermill", "--no-progress-bar", "--kernel", "python3"]
        command = [*papermill, notebook, folder / notebook.name]
        environment = clean()
        with ExitStack() as stack:
            if mounts is not None:
                environment["BEIT3LIB_KAGGLE_INPUT"] = str(mounts)
                before = (notebooks[number - 1], working[number - 1]) if number else None
                stack.enter_context(as_inputs(mounts, before, number))
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{notebook.name}: {done.stderr[-3000:]}"


@contextmanager
def as_inputs(mounts, before, number) -> Iterator[None]:
    """Mount the output of the notebook before, in both forms of mounts in turn; make all mounts read-only."""
    mount = mounts / ("notebooks/someone" if number % 2 else ".") / before[0].stem if before else None
    if mount:
        shutil.copytree(before[1], mount)
    read_only(mounts, True)
    try:
        yield
    finally:
        read_only(mounts, False)
    if mount:
        shutil.rmtree(mount)


def read_only(folder, on):
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222 if on else path.stat().st_mode | 0o200)


def bare_python(folder, hidden=HIDDEN):
    """Make a Python with the packages of this one, without this project and `hidden` (missing on Kaggle)."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    code = "import site; print(site.getsitepackages()[0])"
    site = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        name = entry.name.split("-")[0].split(".")[0]
        if name not in ("beit3lib", *hidden) and not name.startswith(
            ("__editable__", *(f"{other}_" for other in hidden))
        ):
            (Path(site) / entry.name).symlink_to(entry)
    return python
