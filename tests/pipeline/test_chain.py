"""01 to 05 by papermill: without parameters from an empty folder, on a real WTS tree, and with parameters that are wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import OF_USER, draw_run, forced_score

from beit3lib.data.index import read_index
from beit3lib.dataset import load_image, to_tensor
from beit3lib.decode import generate
from beit3lib.pipeline import steps
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer, prefix_ids
from beit3lib.track2.submission import check_submission
from beit3lib.viz.gallery import read_predictions

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
REAL = ROOT.parent / "shared" / "data" / "wts_real"


def papermill(name, folder, *parameters, **environment):
    """Run a notebook as a user does, in `folder`; the finished process."""
    out = folder / "runs" / "demo" / f"{name}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if key not in OF_USER}
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "--kernel",
        "python3",
        "--stdout-file",
        str(folder / "out.txt"),
    ]
    return subprocess.run(
        [*command, ROOT / "notebooks" / f"{name}.ipynb", out, *parameters],
        cwd=folder,
        env={**clean, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_without_parameters_from_an_empty_folder_captions_become_right(demo):
    """The demo: every attribute in at least 90 % of the captions of each aspect, and chance with shuffled pictures."""
    run = demo.run
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary) == ["prepare", "index", "finetune", "inspect", "attributes", "attention", "score", "submit"]
    made = ["images", "captions", "coco_captioning.train.jsonl", "best/model.safetensors", "last/state.json", "log.jsonl"]
    made += ["predictions.json", "gallery.html", "scores.json", "submission.json", "storyboard.png", "learning_curve.png"]
    assert all((run / name).exists() for name in made)
    shares = summary["attributes"]
    assert set(shares["own"]) == set(sample.ATTRIBUTES)
    for aspect, share in shares["own"].items():
        assert share >= 0.9, shares
        assert shares["shuffled"][aspect] < shares["chance"][aspect] + 0.1, shares
    score = summary["score"]
    assert score["model"] >= 80 and score["model"] > score["nearest"] + 5 > score["most frequent"]
    assert score["shuffled"] < score["nearest"]
    assert all(times >= 3 for times in summary["attention"].values()), summary["attention"]
    prepare = summary["prepare"]
    assert prepare["phases_chosen"] == prepare["images"] + len(prepare["problems"]) and prepare["problems"] == []
    for split in ("train", "val"):
        assert summary["index"][split]["captions"] == summary["index"][split]["lines"] + summary["index"][split]["left_out"]
    told = subprocess.run([sys.executable, "-m", "beit3lib.steps", run], capture_output=True, text=True)
    assert told.stdout.strip().splitlines()[-1] == f"open {run / 'gallery.html'}"
    compare_and_restrict(demo.folder, run)


def compare_and_restrict(folder, run):
    """On the run that is there: greedy captions beside those of three beams, and what a restricted vocabulary changes."""
    from beit3lib.checkpoint import load_captioner

    before = read_predictions(run / "predictions.json")
    for path in run.iterdir():
        if not path.name.endswith(".ipynb"):
            (folder / "runs" / "greedy").mkdir(exist_ok=True)
            (folder / "runs" / "greedy" / path.name).symlink_to(path) if path.name not in (
                "predictions.json",
                "summary.json",
                "gallery.html",
            ) else None
    (folder / "runs" / "greedy" / "summary.json").write_text((run / "summary.json").read_text())
    wanted = ("-p", "run", "greedy", "-p", "num_beams", "1", "-p", "compare_with", "demo", "-p", "max_images", "6")
    done = papermill("04_inspect_captions", folder, *wanted)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (folder / "runs" / "greedy" / "gallery.html").read_text()
    assert "What greedy says" in page and '<th scope="col">demo</th>' in page
    model = load_captioner(run / "best", "cpu")
    pictures = [to_tensor(load_image(run / image), 64) for image in before["image"].drop_duplicates().iloc[:60]]
    memory = model.encode_image(torch.stack(pictures))
    free, restricted = generate(model, memory), generate(model, memory, vocabulary="training")
    others = [number for number, (a, b) in enumerate(zip(free, restricted, strict=True)) if a.ids != b.ids]
    assert len(others) <= len(free) // 100, [(free[n].text, restricted[n].text) for n in others]
    allowed = sorted({*model.vocabulary, model.tokenizer.eos_token_id})
    for number in others:  # each is the better one by its own measure, and the words left out are all that tells these apart
        about = memory.select([number // 10]), model.tokenizer
        prefix = prefix_ids(model.tokenizer, *model.descriptions[number % 10])
        over_all, over_some = (
            [forced_score(model, *about, way[number].ids, prefix, ids) for way in (free, restricted)] for ids in (None, allowed)
        )
        assert over_all[0] >= over_all[1] - 1e-5 and over_some[1] >= over_some[0] - 1e-5, (free[number], restricted[number])
        assert over_all[0] - over_all[1] < 0.05, (free[number], restricted[number])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real WTS scenario is not at {REAL}")
def test_a_real_wts_tree_runs_unchanged(tmp_path):
    """15 images of three videos, two missing videos listed; the base model takes a few steps from random weights."""
    for name in NAMES[:2]:
        done = papermill(name, tmp_path, BEIT3LIB_WTS=str(REAL))
        assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "demo"
    assert len(list((run / "images").glob("*.jpg"))) == 15
    summary = json.loads((run / "summary.json").read_text())
    assert summary["prepare"]["dataset"] == "wts" and summary["prepare"]["images"] == 15
    assert sum(".mp4" in problem for problem in summary["prepare"]["problems"]) == 2, summary["prepare"]["problems"]
    assert {path.name.split("_")[0] for path in (run / "captions" / "train").iterdir()} == {"vehicle", "pedestrian"}
    lines, tokenizer = read_index(run / "coco_captioning.train.jsonl"), load_tokenizer(run / "tokenizer.spm")
    assert lines["image_path"].nunique() == 15
    assert all(tokenizer.decode(line.text_segment).split() == line.caption.split() for line in lines.itertuples())
    few = ("-p", "max_steps", "1", "-p", "batch_size", "2", "-p", "subject", "vehicle", "-p", "aspect", "weather")
    done = papermill("03_finetune", tmp_path, *few, BEIT3LIB_WTS=str(REAL))
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finetune"]["steps"] == 1 and summary["finetune"]["first_loss"] > 3
    done = papermill("04_inspect_captions", tmp_path, "-p", "max_images", "1", "-p", "num_beams", "1", BEIT3LIB_WTS=str(REAL))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_predictions(run / "predictions.json")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, parameters, told",
    [
        ("03_finetune", ("-p", "lrr", "1"), "lrr (did you mean lr?)"),
        ("03_finetune", ("-y", "{lr: fast}"), "lr: expected a number, or None, found 'fast'"),
        ("01_prepare_data", ("-p", "views", "sideways"), "views: expected one of all"),
        ("01_prepare_data", ("-p", "image_size", "0"), "image_size: expected a whole number from 16"),
        ("05_score_and_submit", ("-p", "worse", "3"), "worse (did you mean worst?)"),
    ],
)
def test_a_parameter_that_is_wrong_ends_the_run_with_a_sentence_that_names_it(tmp_path, name, parameters, told):
    done = papermill(name, tmp_path, *parameters)
    assert done.returncode != 0 and told in done.stderr, done.stderr[-2000:]
    assert sorted(p.name for p in (tmp_path / "runs" / "demo").iterdir()) == [f"{name}.ipynb"]


# --- steps ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small download and its first two steps."""
    root = sample.write_sample(
        tmp_path_factory.mktemp("small") / "sample", {"train": (3, 1, 1), "val": (2, 0, 1), "test": (1, 0, 1)}
    )
    run = root.parent / "run"
    run.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT3LIB_SAMPLE", str(root))
        patch.delenv("BEIT3LIB_WTS", raising=False)
        phases = steps.prepare(run, "sample")
        reports = steps.index(run)
    return run, phases, reports


def test_counts_in_are_counts_out(small):
    run, phases, reports = small
    told = steps.read_summary(run)
    assert told["prepare"]["phases_read"] == told["prepare"]["images"] == len(list((run / "images").iterdir())) == len(phases)
    for split in ("train", "val"):
        report = reports[split]
        assert report.captions == report.lines + report.left_out and report.problems == [] and report.left_out == 0
    assert set(reports) == {"train", "val", "test"}


def test_a_second_run_makes_no_image_again(small, monkeypatch):
    run, phases, _ = small
    monkeypatch.setenv("BEIT3LIB_SAMPLE", str(run.parent / "sample"))
    before = {path: path.stat().st_mtime_ns for path in (run / "images").iterdir()}
    steps.prepare(run, "sample")
    assert before == {path: path.stat().st_mtime_ns for path in (run / "images").iterdir()}


def test_segments_of_a_split_are_those_of_the_download(small):
    run, _, _ = small
    for split, captioned in (("val", True), ("test", False)):
        segments = steps.read_segments(run, split)
        assert len(segments) and segments["caption_vehicle"].notna().all() == captioned
        assert not segments.duplicated(["scenario", "label"]).any()


def test_of_each_aspect_the_attribute_that_is_wrong_most_often_is_shown(small):
    run, phases, _ = small
    drawn, rows = sample.read_drawn(run), []
    for row in phases[phases["split"] == "val"].itertuples():
        for subject in ("vehicle", "pedestrian"):
            told = sample.describe(drawn[row.scenario, row.phase], subject)
            about = {"scenario": row.scenario, "phase": row.phase, "split": "val", "subject": subject}
            for aspect, text in told.items():
                spoilt = text.replace("rushing out", "flying").replace("far from", "off")
                rows.append({**about, "aspect": aspect, "caption": spoilt})
    found = steps.most_confused(run, pd.DataFrame(rows))
    assert list(found) == ["pedestrian motion", "colour of the jacket", "distance", "surface", "weather"]
    assert {said for meant, said in found["pedestrian motion"] if meant == "rushing"} == {"nothing"}
    assert all(said == meant for meant, said in found["weather"])
    assert steps.most_confused(run.parent, pd.DataFrame(rows)) == {}


def test_a_step_whose_input_is_missing_makes_it_first(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(steps, "prepare", lambda run: made.append("prepare"))
    steps.ensure(tmp_path, "prepare")
    assert made == ["prepare"] and "step 'prepare' is run first, with its defaults" in capsys.readouterr().out


def test_a_run_on_a_read_only_mount_is_gone_on_with(tmp_path, monkeypatch):
    far = tmp_path / "input" / "notebooks" / "someone" / "traffic" / "runs" / "demo"
    near = tmp_path / "input" / "early" / "runs" / "demo"
    for folder, sections in ((far, 3), (near, 1)):
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({str(n): {} for n in range(sections)}))
        (folder / "phases.csv").write_text(str(sections))
        (folder / "phases.csv").chmod(0o444)
        folder.chmod(0o555)
    monkeypatch.setattr(steps, "KAGGLE_INPUT", tmp_path / "input")
    run = steps.open_run("demo", tmp_path / "working")
    assert (run / "phases.csv").read_text() == "3"  # the one that is furthest on
    assert run.stat().st_mode & 0o200 and (run / "phases.csv").stat().st_mode & 0o200


def test_runs_lie_in_the_project_wherever_inside_it_a_notebook_is_started(tmp_path, monkeypatch):
    (tmp_path / "project" / "beit3lib").mkdir(parents=True)
    (tmp_path / "project" / "beit3lib" / "__init__.py").touch()
    (tmp_path / "project" / "notebooks").mkdir()
    for place in ("project", "project/notebooks", "."):
        monkeypatch.chdir(tmp_path / place)
        wanted = tmp_path / ("project" if "project" in place else "") / "runs" / "demo"
        assert steps.open_run("demo").resolve() == wanted.resolve()


def test_a_run_of_one_subject_cut_short_still_makes_a_whole_submission(small, tmp_path):
    shutil.copytree(small[0], tmp_path / "run")
    run = tmp_path / "run"
    steps.finetune(run, subject="vehicle", epochs=1, max_steps=1, val_images=1, num_beams=1, num_max_bpe_tokens=16)
    predictions = steps.caption_images(run, max_images=1, num_beams=1)
    assert set(predictions["subject"]) == {"vehicle"} and set(predictions["split"]) == {"val", "test"}
    found = steps.score(run)
    assert any("no pedestrian caption" in text for text in found["model"].missing)
    _, built, asked = steps.submit(run, found["chosen"])
    assert check_submission(built, asked) == []
    filled = steps.read_summary(run)["submit"]["filled"]
    assert len(filled) == sum(map(len, asked.values())) and sum("caption_vehicle" in text for text in filled) == len(filled) - 1
    with pytest.raises(ValueError, match="expected captions of split val, found test alone"):
        steps._known_split(predictions[predictions["split"] == "test"], "val")


def test_bdd_that_lies_apart_is_read_with_the_download(tmp_path, monkeypatch):
    root = sample.write_sample(tmp_path / "wts", {"train": (2, 0, 2), "val": (1, 0, 1), "test": (0, 0, 0)})
    (root / "drawn.json").unlink()
    shutil.move(root / "external" / "BDD_PC_5K", tmp_path / "BDD_PC_5K")
    monkeypatch.setenv("BEIT3LIB_WTS", str(root))
    monkeypatch.setenv("BEIT3LIB_BDD", str(tmp_path / "BDD_PC_5K"))
    (tmp_path / "run").mkdir()
    phases = steps.prepare(tmp_path / "run", "wts", views="best")
    assert set(phases["source"]) == {"wts", "bdd"} and len(phases) == len(list((tmp_path / "run" / "images").iterdir()))
    assert len(phases.attrs["views"]) == phases.groupby(["split", "scenario"]).ngroups
    assert set(steps.read_segments(tmp_path / "run", "val")["source"]) == {"wts", "bdd"}


def test_a_wrong_dataset_root_is_named(tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        steps.prepare(tmp_path, "wts", str(tmp_path / "nowhere"))


def test_no_phase_of_that_number_is_answered_with_those_there_are(drawn):
    table = pd.DataFrame({"scenario": ["a", "a"], "phase": [0, 2], "image": ["x", "y"]})
    with pytest.raises(ValueError, match="a has no phase 1; it has 0, 2"):
        steps.describe_phase(drawn, None, table, "a", 1)


def test_one_picture_in_three_lines(tmp_path):
    """The README's way in."""
    from beit3lib.checkpoint import load_captioner, save_captioner
    from beit3lib.model import Captioner, model_config

    torch.manual_seed(0)
    save_captioner(Captioner(model_config(sample.MODEL)), tmp_path / "best", sample.SPM_PATH)
    draw_run(tmp_path / "run", train=1, val=0)
    captioner = load_captioner(tmp_path / "best")
    assert isinstance(captioner.caption(next((tmp_path / "run" / "images").iterdir()), max_tokens=5), str)
