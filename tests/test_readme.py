"""The README is held to its word: its commands run, its links lead somewhere, its messages and files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import draw_run

from beit3lib.checkpoint import save_captioner
from beit3lib.config import parse_command
from beit3lib.files import write_json
from beit3lib.model import Captioner, model_config
from beit3lib.sample import draw as sample

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
OF_OTHERS = {"CUDA out of memory", "No module named 'torchscale'"}  # messages of PyTorch and Python


def commands():
    """Every shell command, continuation lines joined, comments cut."""
    lines = "\n".join(body for kind, body in BLOCKS if kind == "sh").replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


def run(command, folder):
    """Run a command of the README in a folder that has what the project's own has."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The project as links, with this Python as its .venv: what a command leaves goes elsewhere."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("notebooks", "beit3lib", "data_manifest.yaml", "requirements.txt", "Makefile", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    save_captioner(Captioner(model_config(sample.MODEL)), folder / "runs" / "mine" / "best", sample.SPM_PATH)
    said = {"labels": ["0"], "caption_pedestrian": "The pedestrian stands.", "caption_vehicle": "The vehicle turns."}
    write_json(folder / "runs" / "mine" / "submission.val.json", {"20230707_1_SN1_T1": [said]})
    truth = folder / "data" / "wts" / "annotations" / "caption" / "val" / "20230707_1_SN1_T1_caption.json"
    write_json(truth, {"event_phase": [said]})
    prediction = {"image": "a.jpg", "subject": "vehicle", "aspect": "moving", "caption": "The vehicle turns."}
    write_json(folder / "runs" / "mine" / "predictions.json", {"meta": {}, "predictions": [prediction]})
    return folder


def test_short_enough_to_be_read_and_finished():
    assert len(TEXT.splitlines()) <= 200 and "@@" not in TEXT and "TODO" not in TEXT


def test_links_and_pictures_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    local = [target for target in targets if "://" not in target]
    assert len(local) >= 10
    assert [target for target in local if not (ROOT / target.split("#")[0]).exists()] == []


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "docs").glob("*.png")) < 1_500_000


def test_the_tree_is_what_is_there():
    tree = next(body for kind, body in BLOCKS if kind == "" and "notebooks/" in body)
    told = set(re.findall(r"^  (\w+\.py) ", tree, re.MULTILINE))
    assert told == {path.name for path in (ROOT / "beit3lib").glob("*.py")} - {"__init__.py"}
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+/)", tree, re.MULTILINE))


def test_messages_are_those_of_the_code():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "beit3lib").glob("*.py"))
    code = re.sub(r"\"\n\s+f?\"", "", code)  # literals over several lines are one
    first = [line.split("|")[1] for line in TEXT.split("## What you may meet")[1].splitlines() if line.startswith("| `")]
    quoted = [text for cell in first for text in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) >= 15
    missing = [text for text in quoted if text not in code and text not in OF_OTHERS and "loss is nan" not in text]
    assert missing == [] and "the loss is {" in code


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    wanted = {word for command in commands() if command.startswith("make ") for word in command.split()[1:2]}
    assert {"demo", "test"} <= wanted and all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in wanted)


def test_the_recipes_command_is_understood():
    found = [c for c in commands() if c.startswith(".venv/bin/python -m beit3lib.train")]
    assert len(found) == 1
    config = parse_command(shlex.split(found[0])[3:])
    assert config.lr == 4e-5 and config.captioning_mask_prob == 0.7 and config.dist_eval


@pytest.mark.slow
def test_every_other_command_runs(clone):
    """All but those that other tests run whole (make, training, the launcher) and measurements that take long."""
    elsewhere = ("make ", ".venv/bin/python -m beit3lib.train", ".venv/bin/accelerate launch")
    seen = 0
    for command in commands():
        if command.startswith(elsewhere):
            continue
        command = shorten(command)
        done = run(command, clone)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        seen += 1
    assert seen >= 6


def shorten(command):
    """The same command on less: what takes minutes to measure is only seen to work."""
    if "beit3lib.bench" in command:
        return f"{command.split(' --')[0]} --model tiny --quick --only train --batch 2 --tokens 8 --repeats 1 --cpu"
    if "beit3lib.ablation" in command:
        return f"{command} --help"
    return command


def test_the_python_example_runs(tmp_path):
    (example,) = [body for kind, body in BLOCKS if kind == "python"]
    draw_run(tmp_path / "runs" / "demo", train=1, val=0)
    picture = next((tmp_path / "runs" / "demo" / "images").iterdir())
    torch.manual_seed(0)
    model = Captioner(model_config(sample.MODEL))
    model.descriptions = [("vehicle", "road"), ("vehicle", "weather")]
    save_captioner(model, tmp_path / "runs" / "demo" / "best", sample.SPM_PATH)
    (tmp_path / "photo.jpg").write_bytes(picture.read_bytes())
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "('vehicle', 'road')" in done.stdout, done.stderr
