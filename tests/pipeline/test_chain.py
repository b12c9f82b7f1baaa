"""Notebooks 1 to 5 through papermill: without parameters as on Kaggle, on a real WTS scenario, with wrong
parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from beit3lib.data.predictions import read_predictions
from beit3lib.data.questions import read_question_index
from beit3lib.data.schema import ASPECTS
from beit3lib.run.log import read_log
from beit3lib.sample import MODEL, SPM_PATH, truth

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "wts_real"

pytestmark = pytest.mark.slow


def papermill(name, folder, parameters="", **environment):
    """Execute a notebook as a user does, in `folder`; returns the finished process."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--kernel", "python3"]
    command += [ROOT / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb", *parameters.split()]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def execute(name, folder, parameters="", **environment):
    done = papermill(name, folder, parameters, **environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_demo_gives_right_facts_and_answers_and_both_submission_files(demo):
    """Facts of plain scenes are right, those of other images only by chance, and no baseline is better."""
    run, summary = demo.run, json.loads((demo.run / "summary.json").read_text())
    stages = ["prepare", "index", "finetune", "caption", "score", "submit"]
    assert list(summary) == [*stages[:4], "attributes", "attention", *stages[4:]]
    assert sorted(path.stem for path in (run / "records").iterdir()) == sorted(stages)
    made = ["best/model.safetensors", "gallery.html", "learning_curve.png", "attributes.png", "scores.png"]
    assert [name for name in made if not (run / name).exists()] == []

    predictions = read_predictions(run / "predictions.json")
    table = truth.scene_table(predictions[predictions["split"] == "val"], truth.read_drawn(run))
    counts = pd.crosstab(table["condition"] == "plain", table["outcome"])
    right = counts["equal"] / (counts["equal"] + counts["wrong"])
    assert right[True] >= 0.97 and right[False] < right[True], right
    shares = pd.DataFrame(summary["attributes"])
    assert set(shares.index) == set(ASPECTS) and (shares["shuffled"] < shares["plain"] - 0.3).all(), shares
    scores = json.loads((run / "scores.json").read_text())
    facts = {name: found["all"] for name, found in scores["facts"].items()}
    assert min(facts["model"]["precision"], facts["model"]["recall"]) >= 0.80, facts
    assert facts["nearest"]["precision"] < facts["model"]["precision"] - 0.05, facts
    answers = scores["answers"]
    assert answers["model, all terms"] >= 0.88 and answers["shuffled"] < 0.6, answers
    score = summary["score"]  # references are random paraphrases, so that correct captions differ from them
    assert score["model"] >= 59 and score["model"] > score["nearest"] + 5 > score["most frequent"], score
    assert scores["s2"]["2025"] == pytest.approx((score["model"] + score["accuracy"]) / 2, abs=0.1)
    assert all(times >= 3 for times in summary["attention"].values()), summary["attention"]
    segments = json.loads((run / "submission.json").read_text())
    assert sum(map(len, segments.values())) == summary["submit"]["captions"] > 0
    questions = read_question_index(run / "questions.test.jsonl")
    given = json.loads((run / "submission_answers.json").read_text())
    assert [entry["id"] for entry in given] == questions["id"].tolist()


def test_counts_in_equal_counts_out(demo):
    summary = json.loads((demo.run / "summary.json").read_text())
    prepare, index = summary["prepare"], summary["index"]
    assert prepare["phases_read"] == prepare["images"] + prepare["problem_count"] and not prepare["problems"]
    for split in ("train", "val"):
        counts = index[split]
        assert counts["captions"] == counts["lines"] + counts["skipped"] and counts["cut"] == 0
    indexed = [read_question_index(path) for path in demo.run.glob("questions.*.jsonl")]
    assert sum(map(len, indexed)) == prepare["questions"] > 0


def test_the_demo_ran_under_kaggles_conditions(demo):
    """Read-only mounts, an empty folder for each notebook, no internet, and packages from wheels."""
    if demo.not_as_kaggle:
        pytest.skip(demo.not_as_kaggle)


def test_a_preview_of_a_photo_with_other_beams_is_compared_with_the_demo(demo):
    """It leaves the demo's files as they are, and its copy shows the gallery wherever it is."""
    before = (demo.run / "predictions.json").read_bytes()
    other = demo.folder / "runs" / "greedy"
    other.mkdir(exist_ok=True)
    for path in demo.run.iterdir():
        if path.suffix != ".ipynb" and path.name not in ("summary.json", "gallery.html", "records"):
            (other / path.name).symlink_to(path)
    photo = next((demo.run / "images").glob("*.jpg"))
    parameters = f"-p run greedy -p num_beams 1 -p compare_with demo -p max_images 6 -p photo {photo}"
    execute("04_inspect_captions", demo.folder, parameters)
    assert "demo" in (other / "gallery.quick.html").read_text()
    assert (other / "predictions.quick.json").is_file() and (other / "answers.quick.json").is_file()
    assert (demo.run / "predictions.json").read_bytes() == before
    executed = (demo.folder / "04_inspect_captions.ipynb").read_text()
    assert "<iframe srcdoc=" in executed and len(executed) < 3e6  # of both runs it has few images


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real WTS scenario is not at {REAL}")
def test_a_real_wts_scenario_runs_through_notebooks_1_to_4(tmp_path):
    """15 images of three videos, two missing videos listed, and one step of the tiny model from random
    weights."""
    execute("01_prepare_data", tmp_path, BEIT3LIB_WTS=str(REAL))
    done = papermill("02_build_index", tmp_path, BEIT3LIB_WTS=str(REAL))
    assert done.returncode and "tokenizer: expected BEiT-3's sentencepiece model" in done.stderr
    execute("02_build_index", tmp_path, f"-p tokenizer {SPM_PATH}", BEIT3LIB_WTS=str(REAL))
    run = tmp_path / "runs" / "demo"
    assert len(list((run / "images").glob("*.jpg"))) == 15
    summary = json.loads((run / "summary.json").read_text())
    assert summary["prepare"]["dataset"] == "wts" and summary["prepare"]["images"] == 15
    assert sum(".mp4" in problem for problem in summary["prepare"]["problems"]) == 2
    assert summary["index"]["train"]["images"] == 15 and summary["index"]["train"]["cut"] > 0
    done = papermill("04_inspect_captions", tmp_path)
    assert done.returncode and "expected best, found none. Run stage 'finetune'" in done.stderr
    few = f'-p model {MODEL} -y {{"finetune":""}} -p max_steps 1 -p batch_size 2'
    few += " -p subject vehicle -p aspect weather"
    execute("03_finetune", tmp_path, few)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finetune"]["steps"] == 1 and read_log(run / "log.jsonl")[0]["loss"] > 3
    execute("04_inspect_captions", tmp_path, "-p max_images 1 -p num_beams 1")
    assert len(read_predictions(run / "predictions.quick.json")) == 1


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("01_prepare_data", "-p views sideways", "views: expected 'all', 'main'"),
        (
            "03_finetune",
            "-p lrr 1",
            "lrr: expected a parameter of this notebook, got an unknown name. Did you mean lr?",
        ),
        ("05_score_and_submit", "-p run 2026", "write `-r run 2026`"),
    ],
)
def test_a_wrong_parameter_ends_the_notebook_with_its_name_and_leaves_no_run(
    tmp_path, name, parameters, message
):
    done = papermill(name, tmp_path, parameters)
    assert done.returncode != 0 and message in done.stderr, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.ipynb"]
