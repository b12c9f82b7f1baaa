"""The stages of a run, called as the notebooks call them, on a small drawn download."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import draw_run

from beit3lib import train
from beit3lib.data.index import read_index
from beit3lib.data.predictions import write_predictions
from beit3lib.data.questions import read_question_index
from beit3lib.data.schema import read_table
from beit3lib.files import read_json, write_json
from beit3lib.pipeline import scoring, stages
from beit3lib.pipeline.manifest import MissingInput
from beit3lib.pipeline.parameters import ParameterError
from beit3lib.pipeline.run_folder import read_record, read_summary, stale
from beit3lib.sample import SPM_PATH, draw
from beit3lib.track2.submission import SubmissionError, check_submission

QUICK = {"epochs": 1, "batch_size": 16, "val_images": 1, "num_beams": 1}
QUICK |= {"num_max_bpe_tokens": 16, "subject": "vehicle"}


def copy(run, folder):
    return Path(shutil.copytree(run, folder))


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A run after its first two stages; one of its test videos is missing."""
    folder = tmp_path_factory.mktemp("indexed")
    root = draw.write_sample(folder / "sample", {"train": (2, 0, 1), "val": (1, 0, 1), "test": (1, 0, 1)})
    next(root.glob("external/BDD_PC_5K/videos/test/**/*.mp4")).unlink()
    stages.prepare(folder / "run", "sample", str(root))
    stages.index(folder / "run")
    return folder / "run"


@pytest.fixture
def run(indexed, tmp_path):
    """A copy of that run, to be changed."""
    return copy(indexed, tmp_path / "run")


@pytest.fixture(scope="module")
def trained(indexed, tmp_path_factory):
    """The run after one epoch of training on vehicle captions, with all its captions and answers."""
    run = copy(indexed, tmp_path_factory.mktemp("trained") / "run")
    stages.finetune(run, **QUICK)
    stages.caption(run, num_beams=1)
    return run


@pytest.fixture
def captioned(trained, tmp_path):
    """A copy of that run, to be changed."""
    return copy(trained, tmp_path / "run")


@pytest.fixture
def made(monkeypatch):
    """A list of the stages that `ensure` starts; they are not run."""
    names = []
    for name in ("prepare", "index", "finetune", "caption"):
        monkeypatch.setattr(stages, name, lambda run, name=name, **options: names.append((name, options)))
    return names


def test_preparing_other_data_removes_earlier_images_but_no_other_files(run, tmp_path, monkeypatch):
    other = draw.write_sample(tmp_path / "other", {"train": (2, 0, 1)})
    (other / "drawn.json").unlink()  # now it looks like a real download
    shutil.move(other / "external" / "BDD_PC_5K", tmp_path / "BDD_PC_5K")  # read from beside it, too
    monkeypatch.setenv("BEIT3LIB_BDD", str(tmp_path / "BDD_PC_5K"))
    kept = {"folder", "notes.txt", "pipe"}
    (run / "images" / "folder").mkdir()
    (run / "images" / "notes.txt").touch()
    os.mkfifo(run / "images" / "pipe")
    prepared = stages.prepare(run, "wts", str(other), max_scenarios=1)
    assert {path.name for path in (run / "images").iterdir()} == set(prepared.phases["image"]) | kept
    assert set(prepared.phases["source"]) == set(prepared.segments["source"]) == {"wts", "bdd"}
    assert set(prepared.questions["scenario"]) == set(prepared.phases["scenario"])
    assert any("of scenarios that are not used" in problem.what for problem in prepared.problems)
    assert [path.name for path in (run / "captions").iterdir()] == ["train"]
    assert not (run / "drawn.json").exists() and stale(run, "index").endswith("has changed")
    stages.index(run, str(SPM_PATH))
    assert {p.name for p in run.glob("*.*.jsonl")} == {"coco_captioning.train.jsonl", "questions.train.jsonl"}


def test_data_of_the_original_repository_give_a_submission(tmp_path, monkeypatch):
    """Images, caption files and tokenizer as in its `your_input`, and a file of segments to caption."""
    root, run = tmp_path / "your_input", tmp_path / "run"
    image = draw_run(root, train=4, val=2)["image"].iloc[0]
    (root / "avg_test").mkdir()
    shutil.copyfile(root / "images" / image, root / "avg_test" / "avg20230711_12_SN17_T1_Camera1_0phase2.jpg")
    segment = {"videos": ["20230711_12_SN17_T1_Camera1_0.mp4"], "caption": [{"label": "2", "caption": ""}]}
    write_json(root / "test-6" / "for_test.json", {"20230711_12_SN17_T1": segment})
    monkeypatch.setenv("BEIT3LIB_PREPARED", str(root))
    assert stages.prepare(run).phases["split"].value_counts().to_dict() == {"train": 4, "val": 2, "test": 1}
    with pytest.raises(
        MissingInput, match="tokenizer: expected BEiT-3's sentencepiece model in .*github.com"
    ):
        stages.index(run)
    (root / "beit_base_224").mkdir()
    shutil.copyfile(SPM_PATH, root / "beit_base_224" / "beit3.spm")
    assert [report.images for report in stages.index(run).values()] == [1, 4, 2]
    lines = read_index(run / "coco_captioning.test.jsonl").rename(columns={"image_path": "image"})
    lines = lines.assign(aspect="moving", caption="It moves.", log_prob=-1.0)
    rows = [lines.assign(subject=subject) for subject in ("vehicle", "pedestrian")]
    write_predictions(run / "predictions.json", pd.concat(rows, ignore_index=True), {})
    assert scoring.score(run).split is None
    written = scoring.submit(run)
    entry = {"labels": ["2"], "caption_vehicle": "It moves.", "caption_pedestrian": "It moves."}
    assert written.captions.submission == {"20230711_12_SN17_T1": [entry]}
    assert written.captions.filled == [] and written.answers is None


def test_a_misspelled_run_is_not_prepared_beside_others_and_leaves_no_folder(run):
    for stage in (stages.index, stages.finetune, stages.caption, scoring.score, scoring.submit):
        with pytest.raises(stages.StageError, match="tpyo: expected a prepared run, one of run. Correct"):
            stage(run.parent / "tpyo")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_cheap_stages_run_when_they_are_needed_and_training_for_the_sample_only(run, made, capsys):
    (run / "coco_captioning.val.jsonl").unlink()
    stages.ensure(run, "index")
    record = read_record(run, "prepare")
    del record["outputs"]
    write_json(run / "records" / "prepare.json", record | {"unfinished": "it was interrupted"})
    stages.ensure(run, "finetune")
    of_index = ("index", read_record(run, "index")["options"])
    assert made == [of_index, ("prepare", record["options"]), of_index, ("finetune", {})]
    printed = capsys.readouterr().out
    assert "coco_captioning.val.jsonl is missing" in printed and "it was interrupted" in printed
    (run / "drawn.json").unlink()
    with pytest.raises(stages.StageError, match="expected best, found none. Run stage 'finetune': it was"):
        stages.ensure(run, "finetune")


def test_outputs_that_are_current_or_made_elsewhere_are_used_and_old_ones_named(captioned, made, capsys):
    stages.ensure(captioned, "caption")
    elsewhere = copy(captioned, captioned.with_name("elsewhere"))
    shutil.rmtree(elsewhere / "records")
    (elsewhere / "phases.csv").unlink()
    stages.ensure(elsewhere, "caption")
    assert capsys.readouterr().out == ""
    (captioned / "best" / "model.safetensors").write_bytes(b"another model")
    stages.ensure(captioned, "caption")
    assert made == [] and "'caption' is out of date" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "beit3_bass"}, "model: expected one of .*, got 'beit3_bass'"),
        ({"finetune": "none.pth"}, "finetune: expected an existing file, got none.pth"),
        ({"model": "beit3_large_patch16_224"}, "beit3_large.*: expected public BEiT-3 weights .*github.com"),
    ],
)
def test_a_wrong_training_option_is_explained(indexed, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stages.training_config(indexed, **options)


@pytest.fixture
def started(monkeypatch):
    """The configurations that training is started with, and the results that it returns; it is not run."""
    configs, results = [], {"stopped": "finished", "steps": 5, "total_steps": 5}
    monkeypatch.setattr(train, "finetune", lambda config: configs.append(config) or results)
    return configs, results


def test_training_resumes_with_equal_options_and_data_only_unless_told_otherwise(captioned, started, capsys):
    changed = QUICK | {"num_max_bpe_tokens": 20}
    stages.finetune(captioned, **QUICK)
    stages.finetune(captioned, **changed)
    assert "from scratch, because num_max_bpe_tokens 16 (now 20)" in capsys.readouterr().out
    stages.finetune(captioned, resume=True, **changed)
    with (captioned / "coco_captioning.train.jsonl").open("a") as file:
        file.write("\n")
    shutil.rmtree(captioned / "records")
    stages.finetune(captioned, **QUICK)
    assert [config.auto_resume for config in started[0]] == [True, False, True, False]


def test_captioning_names_a_checkpoint_that_is_unfinished_or_of_another_index(captioned, started, capsys):
    _, results = started
    unfinished = "it stopped early, after 2 of 5 steps"
    for stopped in ("no better score", "out of time", "finished"):  # the last one by max_steps
        results |= {"stopped": stopped, "steps": 2}
        stages.finetune(captioned, **QUICK)
        assert stale(captioned, "finetune") == ("" if stopped == "no better score" else unfinished)
    with (captioned / "coco_captioning.train.jsonl").open("a") as file:
        file.write("\n")
    (captioned / "records" / "index.json").unlink()
    other = copy(captioned / "best", captioned / "checkpoint-1")
    stages.caption(captioned, other.name, max_images=1, num_beams=1)
    printed = capsys.readouterr().out
    assert f"outputs are used anyway: {unfinished}" in printed
    assert f"{other}: trained on another index than the run's" in printed
    with pytest.raises(ParameterError, match="checkpoint: expected .*, got 'bst'"):
        stages.caption(captioned, "bst")


def test_scores_are_printed_with_the_number_of_images_in_train_too(trained, tmp_path, capsys, monkeypatch):
    run = copy(trained, tmp_path / "run")
    scoring.score(run, fill_missing=True)
    assert "in both train and val" not in capsys.readouterr().out
    monkeypatch.setattr(scoring, "ensure", lambda *_: None)  # it would make the changed image again
    images = read_table(run / "phases.csv").groupby("split")["image"].first()
    shutil.copyfile(run / "images" / images["train"], run / "images" / images["val"])
    scoring.score(run, fill_missing=True)
    assert "1 images are in both train and val, so these scores are too high" in capsys.readouterr().out


def test_captions_facts_and_answers_are_scored(captioned):
    with pytest.raises(SubmissionError, match="no pedestrian caption.*set fill_missing"):
        scoring.score(captioned)
    scored, content = scoring.score(captioned, fill_missing=True), read_json(captioned / "scores.json")
    assert list(scored.scores) == ["model", "shuffled", "nearest", "most frequent"] and scored.split == "val"
    assert content["captions"]["model"]["final"] == scored.scores["model"].final
    assert content["facts"]["model"]["all"]["recall"] < 1 and set(content["s2"]) == {"2025", "2026"}
    shares, asked = scored.answers.table["accuracy"], read_question_index(captioned / "questions.val.jsonl")
    given = {entry["id"]: entry["correct"] for entry in read_json(captioned / "answers.val.json")}
    assert (asked["id"].map(given) == asked["correct"]).mean() == shares["model, all terms"]
    assert content["answers"] == shares.round(4).to_dict() and len(shares) == 8


def test_a_submission_has_every_segment_and_question_of_the_test_split_or_is_not_written(captioned):
    with pytest.raises(SubmissionError, match="fill_missing"):
        scoring.submit(captioned)
    assert not list(captioned.glob("submission*"))
    written, table = scoring.submit(captioned, fill_missing=True), read_table(captioned / "segments.csv")
    segments = table[table["split"] == "test"]
    expected = {str(name): part["label"].tolist() for name, part in segments.groupby("scenario")}
    assert check_submission(written.captions.submission, expected) == []
    asked = read_question_index(captioned / "questions.test.jsonl")
    given = {entry["id"]: entry["correct"] for entry in read_json(captioned / "submission_answers.json")}
    assert list(given) == asked["id"].tolist() and all(given.values())
    unseen = asked.loc[asked["images"].map(len) == 0, "id"].tolist()  # of the missing video
    assert written.answers.filled == unseen != [] and len(written.captions.filled) == len(segments)
    *counts, _ = read_summary(captioned)["submit"].values()  # the last one is seconds
    assert counts == [len(segments), len(segments), len(asked), len(unseen)]


def test_runs_of_other_caption_types_are_joined_to_one_submission(captioned):
    def change_predictions(run, **values):
        content = read_json(run / "predictions.json")
        content["predictions"] = [row | values for row in content["predictions"]]
        write_json(run / "predictions.json", content)

    change_predictions(captioned, caption="It moves.")
    other = copy(captioned, captioned.with_name("other"))
    change_predictions(other, subject="pedestrian")
    assert scoring.score(captioned, combine_with=" other,").scores["model"].missing == []
    with pytest.raises(FileNotFoundError, match="combine_with: expected an existing file, got .*/typo/"):
        scoring.score(captioned, combine_with="typo")


def test_num_gpus_are_processes_and_missing_gpus_are_mentioned(run, started, capsys, monkeypatch):
    configs, results = started
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    stages.finetune(run, num_gpus=2, **QUICK)
    assert len(configs) == 1 and "num_gpus: expected 2 GPUs, found none" in capsys.readouterr().out
    monkeypatch.setattr(train, "launch", lambda config, count: configs.append(count) or results)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    stages.finetune(run, num_gpus=0, **QUICK)
    assert configs[1:] == [2]
