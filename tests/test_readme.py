"""The README is correct: its commands run, its links lead to files, and its messages and modules exist."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from beit3lib import sample
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import save_captioner
from beit3lib.config import parse_arguments
from beit3lib.model import CaptionModel, model_config
from beit3lib.sample import draw
from beit3lib.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PYTHON_MESSAGES = {"No module named 'torchscale'"}  # not in our code
TRAIN = ".venv/bin/python -m beit3lib.train"
TESTED_ELSEWHERE = ("make ", TRAIN, "git clone <address", "cd <its folder>")


def commands():
    """Every shell command, with continuation lines joined and comments removed."""
    lines = "\n".join(body for kind, body in BLOCKS if kind == "sh").replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


def save_untrained(folder):
    """Write the folder of a tiny model with random weights, which captions and answers questions."""
    torch.manual_seed(0)
    model = CaptionModel(dataclasses.replace(model_config(sample.MODEL), answers=True)).eval()
    types = [("vehicle", "road"), ("pedestrian", "road")]
    captioner = Captioner(model, load_tokenizer(sample.SPM_PATH), types, max_tokens=8)
    save_captioner(captioner, folder, sample.SPM_PATH)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The project as links, with this Python as .venv, a small download, a photo, a video and two models."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("notebooks", "beit3lib", "data_manifest.yaml", "requirements.txt", "Makefile", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    counts = {"train": (1, 0, 1), "val": (1, 0, 1), "test": (1, 0, 0)}
    (draw.write_sample(folder / "data" / "wts", counts) / "drawn.json").unlink()
    shutil.copyfile(sample.SPM_PATH, folder / "data" / "beit3.spm")
    for run in ("mine", "demo"):
        save_untrained(folder / "runs" / run / "best")
    draw.draw_blur(draw.Scene(), draw.draw_camera(np.random.default_rng(0))).save(folder / "photo.jpg")
    question = {"question": "What is the weather?", "a": "clear", "b": "rainy"}
    (folder / "questions.json").write_text(json.dumps([question]), encoding="utf-8")
    (folder / "videos").mkdir()
    video = next((folder / "data" / "wts" / "videos" / "val").rglob("*.mp4"))
    shutil.copyfile(video, folder / "videos" / "crossing.mp4")
    return folder


def test_it_has_at_most_200_lines():
    assert len(TEXT.splitlines()) <= 200 and "@@" not in TEXT and "TODO" not in TEXT


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    local = [target for target in targets if "://" not in target]
    assert len(local) >= 10
    assert [target for target in local if not (ROOT / target.split("#")[0]).exists()] == []


def test_images_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "docs").glob("*.png")) < 1_500_000


def test_the_tree_lists_every_module_of_core_data_and_track2():
    tree = next(body for kind, body in BLOCKS if kind == "" and "notebooks/" in body)
    package = ROOT / "beit3lib"
    folders = (package, package / "data", package / "track2")
    modules = {path.name for folder in folders for path in folder.glob("*.py")} - {"__init__.py"}
    listed = set(re.findall(r"[\w/]+\.py", tree))
    assert modules <= listed <= {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    named = re.findall(r"^ *([\w/]+/) ", tree, re.MULTILINE)
    assert all((ROOT / name).is_dir() or (package / name).is_dir() for name in named)


def test_messages_of_troubleshooting_are_in_the_code():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "beit3lib").rglob("*.py"))
    code = re.sub(r"\"\n\s+f?\"", "", code)  # join literals that continue on the next line
    first = [
        line.split("|")[1]
        for line in TEXT.split("## Troubleshooting")[1].splitlines()
        if line.startswith("| `")
    ]
    quoted = [text for cell in first for text in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) >= 7
    assert [text for text in quoted if text not in code and text not in PYTHON_MESSAGES] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {word for command in commands() if command.startswith("make ") for word in command.split()[1:2]}
    assert {"demo", "test"} <= targets and all(
        re.search(rf"^{name}:", makefile, re.MULTILINE) for name in targets
    )


def make(*arguments):
    command = ["make", f"PY={sys.executable}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_make_demo_ends_with_its_first_failed_notebook_also_on_macos(tmp_path):
    """The make of macOS ignores .SHELLFLAGS, so that shells start without -e and pipefail."""
    installed = ("--assume-old", ".venv/.ready")
    done = make(".SHELLFLAGS=-c", *installed, "demo", f"RUN={tmp_path}", "NOTEBOOKS=missing another")
    assert done.returncode and "== missing" in done.stdout and "== another" not in done.stdout


def test_make_installs_pytorch_for_the_cpu_if_asked_to():
    install = make("--dry-run", "--always-make", ".venv/.ready", "TORCH=cpu")
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in install.stdout
    assert "TORCH: expected cpu" in make("--dry-run", "TORCH=gpu", "demo").stderr


def test_the_original_training_command_is_parsed():
    found = [command for command in commands() if command.startswith(TRAIN)]
    assert len(found) == 1
    config = parse_arguments(shlex.split(found[0])[3:])
    assert config.lr == 4e-5 and config.captioning_mask_prob == 0.7 and config.dist_eval


@pytest.mark.slow
def test_every_other_command_runs_in_its_order(clone):
    """All commands except those that other tests run (make, training); those for WTS as if they were pasted
    as a whole."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    tested = [command for command in commands() if not command.startswith(TESTED_ELSEWHERE)]
    assert len(tested) >= 9
    for command in tested:
        done = subprocess.run(command, shell=True, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def test_the_python_example_runs(clone):
    (example,) = [body for kind, body in BLOCKS if kind == "python"]
    done = subprocess.run([sys.executable, "-c", example], cwd=clone, capture_output=True, text=True)
    assert "('vehicle', 'road')" in done.stdout and "'b': -" in done.stdout, done.stderr
