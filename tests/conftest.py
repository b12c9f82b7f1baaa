"""What tests share: runs made of drawings, without videos, and the whole demo, run once as Kaggle would."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from beit3lib.data.aspects import SUBJECTS, write_caption_files
from beit3lib.data.index import build_index
from beit3lib.pipeline import kaggle
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer


def draw_run(folder, train=8, val=4, phases=1, seed=0, spm=sample.SPM_PATH):
    """A run's folder with images, caption files and index of so many drawn scenarios; returns the table of phases."""
    rng, rows = np.random.default_rng(seed), []
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = f"2023{seed:02d}_{split}_{number:03d}"
            for phase in range(phases):
                scene = sample.Scene(**sample.draw_values(rng))
                image = f"avg{name}phase{phase}.jpg"
                sample.draw_blur(scene, sample.draw_camera(rng)).save(folder / "images" / image, quality=95)
                captions = {f"caption_{subject}": sample.full_caption(scene, subject) for subject in SUBJECTS}
                about = {"split": split, "source": "wts", "view": "overhead_view", "label": str(phase), "phase": phase}
                rows.append({"scenario": name, "video": f"{name}.mp4", "image": image, **about, **captions})
    table = pd.DataFrame(rows)
    for split, part in table.groupby("split"):
        write_caption_files(part, folder / "captions" / split)
        out = folder / f"coco_captioning.{split}.jsonl"
        build_index(folder / "captions" / split, folder / "images", load_tokenizer(spm), out, part)
    return table


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A run with 8 training and 4 validation images, to read only; a test's own outputs go elsewhere."""
    folder = tmp_path_factory.mktemp("drawn") / "run"
    draw_run(folder)
    return folder


def forced_score(model, memory, tokenizer, ids, prefix=(), allowed=None):
    """Σ log p / (words + 2)^0.6 of a caption and its end, each word behind those before it and a mask; p over `allowed` ids."""
    total, words = 0.0, [*ids, tokenizer.eos_token_id]
    for place, word in enumerate(words):
        text = torch.tensor([[tokenizer.bos_token_id, *prefix, *words[:place], tokenizer.mask_token_id]])
        with torch.inference_mode():
            logits = model.mlm_head(model.encode_text(memory, text))[0, -1]
            total += (logits[word] - (logits if allowed is None else logits[allowed]).logsumexp(0)).item()
    return total / (len(words) + 1) ** 0.6


# --- the demo ------------------------------------------------------------------------------------------------------

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MOUNT = Path("/kaggle/input")
HIDDEN = ("beit3lib", "__editable__", "torchscale", "fairscale", "av", "rouge_score", "sentencepiece")
OF_USER = ("PYTHONPATH", "BEIT3LIB_WTS", "BEIT3LIB_SAMPLE", "BEIT3LIB_SPM", "BEIT3LIB_BASE_224")


class Demo(NamedTuple):
    """01 to 05 without parameters from an empty folder: where they ran, the run, and why not as on Kaggle, if so."""

    folder: Path
    run: Path
    not_as_kaggle: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The five notebooks by papermill without parameters: under Kaggle's conditions, else in one empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    try:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        package, *notebooks = kaggle.stage(folder / "staged", "someone", python=python)
    except RuntimeError as error:
        package, notebooks, reason = None, [], f"wheels cannot be fetched here: {error}"
    else:
        reason = "/kaggle/input cannot be imitated: it exists, or / may not be written to" if not may_mount() else ""
    if reason:
        run_demo(sys.executable, sorted(NOTEBOOKS.glob("*.ipynb")), [folder / "working"] * 5)
        return Demo(folder / "working", folder / "working" / "runs" / "demo", reason)
    working = [folder / f"working{number}" for number in range(len(notebooks))]
    with mounts(folder / "mounts") as mounted:
        shutil.copytree(package, mounted / "datasets" / "someone" / "beit3lib-package")
        python = bare_python(folder / "python")
        assert subprocess.run([python, "-c", "import beit3lib"], capture_output=True, cwd=folder).returncode
        run_demo(python, [f / f"{f.name}.ipynb" for f in notebooks], working, mounted)
    return Demo(working[-1], working[-1] / "runs" / "demo", "")


def run_demo(python, notebooks, working, mounted=None):
    """Run notebooks one after the other, offline; with `mounted` each finds the output of the one before it there."""
    dead = "http://127.0.0.1:9"
    offline = {"PIP_NO_INDEX": "1", "http_proxy": dead, "https_proxy": dead, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**{k: v for k, v in os.environ.items() if k not in OF_USER}, **offline}
    for number, (notebook, folder) in enumerate(zip(notebooks, working, strict=True)):
        folder.mkdir(exist_ok=True)
        command = [python, "-m", "papermill", "--no-progress-bar", "--kernel", "python3", notebook, folder / notebook.name]
        with ExitStack() as stack:
            if mounted is not None:
                before = (notebooks[number - 1], working[number - 1]) if number else None
                stack.enter_context(as_inputs(mounted, before, number))
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{notebook.name}: {done.stderr[-3000:]}"


@contextmanager
def as_inputs(mounted, before, number) -> Iterator[None]:
    """What is mounted, read-only, with the output of the notebook before in one of both shapes of mount."""
    mount = mounted / ("notebooks/someone" if number % 2 else ".") / before[0].stem if before else None
    if mount:
        shutil.copytree(before[1], mount)
    read_only(mounted, True)
    try:
        yield
    finally:
        read_only(mounted, False)
    if mount:
        shutil.rmtree(mount)


def may_mount() -> bool:
    return not MOUNT.exists() and os.access("/", os.W_OK)


@contextmanager
def mounts(folder) -> Iterator[Path]:
    """/kaggle/input, as a link to a folder of the test's."""
    folder.mkdir()
    MOUNT.parent.mkdir(exist_ok=True)
    MOUNT.symlink_to(folder)
    try:
        yield folder
    finally:  # left behind, it would keep later runs from imitating Kaggle
        MOUNT.unlink()
        MOUNT.parent.rmdir()


def read_only(folder, on):
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222 if on else path.stat().st_mode | 0o200)


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
