"""The stages of a run, called as the notebooks call them, on a small drawn download."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import draw_run

from beit3lib import train
from beit3lib.data.index import read_index
from beit3lib.data.predictions import write_predictions
from beit3lib.data.schema import read_table
from beit3lib.files import write_json
from beit3lib.pipeline import scoring, stages
from beit3lib.pipeline.manifest import MissingInput
from beit3lib.pipeline.parameters import ParameterError
from beit3lib.pipeline.run_folder import read_record, read_summary, stale
from beit3lib.sample import MODEL, SPM_PATH, draw
from beit3lib.track2.submission import SubmissionError, check_submission

QUICK = {
    "epochs": 1,
    "batch_size": 16,
    "val_images": 1,
    "num_beams": 1,
    "num_max_bpe_tokens": 16,
    "subject": "vehicle",
}
NO_SCENARIOS = {"train": (0, 0, 0), "val": (0, 0, 0), "test": (0, 0, 0)}


def download(folder, **counts):
    """A drawn download that looks like the real one; `counts` are the numbers of scenarios of each split."""
    root = draw.write_sample(folder, NO_SCENARIOS | counts)
    (root / "drawn.json").unlink()
    return root


def copy(run, folder):
    return Path(shutil.copytree(run, folder))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run after its first two stages, and their results."""
    folder = tmp_path_factory.mktemp("small")
    root = draw.write_sample(folder / "sample", {"train": (3, 1, 1), "val": (2, 0, 1), "test": (1, 0, 1)})
    prepared = stages.prepare(folder / "run", "sample", str(root))
    return folder / "run", prepared, stages.index(folder / "run")


@pytest.fixture
def run(small, tmp_path):
    """A copy of that run, to be changed."""
    return copy(small[0], tmp_path / "run")


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """The run after one epoch of training on vehicle captions, with all its captions."""
    run = copy(small[0], tmp_path_factory.mktemp("trained") / "run")
    stages.finetune(run, **QUICK)
    stages.caption(run, num_beams=1)
    return run


@pytest.fixture
def made(monkeypatch):
    """A list of the stages that `ensure` starts; they are not run."""
    names = []
    for name in ("prepare", "index", "finetune", "caption"):
        monkeypatch.setattr(stages, name, lambda run, name=name, **options: names.append((name, options)))
    return names


def test_preparing_other_data_removes_earlier_images_but_no_other_files(run, tmp_path, monkeypatch):
    other = download(tmp_path / "other", train=(1, 0, 1))
    shutil.move(
        other / "external" / "BDD_PC_5K", tmp_path / "BDD_PC_5K"
    )  # is read from beside the download, too
    monkeypatch.setenv("BEIT3LIB_BDD", str(tmp_path / "BDD_PC_5K"))
    kept = {"folder", "notes.txt", "pipe"}
    (run / "images" / "folder").mkdir()
    (run / "images" / "notes.txt").touch()
    os.mkfifo(run / "images" / "pipe")
    prepared = stages.prepare(run, "wts", str(other))
    assert {path.name for path in (run / "images").iterdir()} == set(prepared.phases["image"]) | kept
    assert set(prepared.phases["source"]) == set(prepared.segments["source"]) == {"wts", "bdd"}
    assert [path.name for path in (run / "captions").iterdir()] == ["train"]
    assert not (run / "drawn.json").exists() and stale(run, "index").endswith("has changed")
    stages.index(run, str(SPM_PATH))
    assert [path.name for path in run.glob("coco_captioning.*")] == ["coco_captioning.train.jsonl"]


@pytest.mark.parametrize("dataset", ["auto", "wts", "prepared"])
def test_a_root_without_such_data_is_named(tmp_path, dataset):
    with pytest.raises(ParameterError, match=f"data_root: expected .*, got {tmp_path}"):
        stages.prepare(tmp_path / "run", dataset, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_real_data_need_beit3_spm_which_may_be_in_the_data_set(run, tmp_path):
    (run / "drawn.json").unlink()
    record = read_record(run, "prepare")
    record["options"]["data_root"] = str(tmp_path / "your_input")
    write_json(run / "records" / "prepare.json", record)
    with pytest.raises(
        MissingInput, match="tokenizer: expected BEiT-3's sentencepiece model in .*github.com"
    ):
        stages.index(run)
    (tmp_path / "your_input" / "beit_base_224").mkdir(parents=True)
    shutil.copyfile(SPM_PATH, tmp_path / "your_input" / "beit_base_224" / "beit3.spm")
    assert stages.index(run)["val"].lines


def test_images_and_captions_of_the_original_repository_give_a_submission(tmp_path, monkeypatch):
    """Images and caption files by split as in its `your_input`, and a file of segments to caption."""
    root, run = tmp_path / "your_input", tmp_path / "run"
    image = draw_run(root, train=4, val=2)["image"].iloc[0]
    (root / "avg_test").mkdir()
    shutil.copyfile(root / "images" / image, root / "avg_test" / "avg20230711_12_SN17_T1_Camera1_0phase2.jpg")
    segment = {"videos": ["20230711_12_SN17_T1_Camera1_0.mp4"], "caption": [{"label": "2", "caption": ""}]}
    write_json(root / "test-6" / "for_test.json", {"20230711_12_SN17_T1": segment})
    monkeypatch.setenv("BEIT3LIB_PREPARED", str(root))
    assert stages.prepare(run).phases["split"].value_counts().to_dict() == {"train": 4, "val": 2, "test": 1}
    assert [report.images for report in stages.index(run, str(SPM_PATH)).values()] == [1, 4, 2]
    lines = read_index(run / "coco_captioning.test.jsonl").rename(columns={"image_path": "image"})
    entry = {"caption_vehicle": "The vehicle moves.", "caption_pedestrian": "The pedestrian moves."}
    rows = [
        lines.assign(subject=name[8:], aspect="moving", caption=text, log_prob=-1.0)
        for name, text in entry.items()
    ]
    write_predictions(run / "predictions.json", pd.concat(rows, ignore_index=True), {})
    assert scoring.score(run).split is None
    written = scoring.submit(run).captions
    assert (
        written.submission == {"20230711_12_SN17_T1": [{"labels": ["2"], **entry}]} and written.filled == []
    )


def test_a_misspelled_run_is_not_prepared_beside_others_and_leaves_no_folder(run):
    typo = run.parent / "tpyo"
    for stage in (stages.index, stages.finetune, stages.caption, scoring.score, scoring.submit):
        with pytest.raises(
            stages.StageError, match="tpyo: expected a prepared run, one of run. Correct `run`"
        ):
            stage(typo)
    assert not typo.exists()


def test_a_missing_or_interrupted_cheap_stage_runs_again_with_its_options(run, made, capsys):
    (run / "coco_captioning.val.jsonl").unlink()
    stages.ensure(run, "index")
    assert [name for name, _ in made] == ["index"]
    record = read_record(run, "prepare")
    del record["outputs"]
    write_json(run / "records" / "prepare.json", record | {"unfinished": "it was interrupted"})
    made.clear()
    stages.ensure(run, "prepare")
    assert made == [("prepare", record["options"])]
    printed = capsys.readouterr().out
    assert "coco_captioning.val.jsonl is missing" in printed and "it was interrupted" in printed


def test_stages_that_are_up_to_date_or_made_elsewhere_do_not_run(trained, made, tmp_path, capsys):
    stages.ensure(trained, "caption")
    run = copy(trained, tmp_path / "run")
    shutil.rmtree(run / "records")
    (run / "phases.csv").unlink()
    stages.ensure(run, "caption")
    assert made == [] and capsys.readouterr().out == ""


def test_training_starts_automatically_for_the_sample_only(run, made):
    stages.ensure(run, "finetune")
    assert made == [("finetune", {})]
    (run / "drawn.json").unlink()
    with pytest.raises(
        stages.StageError, match="expected best, found none. Run stage 'finetune': it was not run yet"
    ):
        stages.ensure(run, "finetune")


def test_captions_of_an_older_checkpoint_are_reported_and_kept(trained, made, tmp_path, capsys):
    run = copy(trained, tmp_path / "run")
    (run / "best" / "model.safetensors").write_bytes(b"longer or shorter")
    stages.ensure(run, "caption")
    assert made == [] and "'caption' is out of date" in capsys.readouterr().out


def test_options_that_are_none_keep_the_values_of_the_data(run):
    config = stages.training_config(run, model=None, lr="1e-4", epochs=3, finetune=None)
    assert (config.model, config.lr, config.epochs, config.batch_size) == (MODEL, 1e-4, 3, 32)
    assert config.finetune.endswith(f"{MODEL}.pth") and config.data_path == config.output_dir == str(run)
    (run / "drawn.json").unlink()
    config = stages.training_config(run, finetune="")
    assert (config.model, config.lr, config.finetune) == ("beit3_base_patch16_224", 4e-5, "")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lrr": 1}, "lrr: expected an option of TrainConfig, got an unknown name. Did you mean lr?"),
        ({"lr": "fast"}, "lr: expected a valid number.*, got 'fast'"),
        ({"model": "beit3_bass"}, "model: expected one of .*, got 'beit3_bass'"),
        ({"finetune": "none.pth"}, "finetune: expected an existing file, got none.pth"),
        (
            {"model": "beit3_large_patch16_224"},
            "beit3_large_patch16_224: expected public BEiT-3 weights .*github.com",
        ),
    ],
)
def test_a_wrong_training_option_is_explained(run, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stages.training_config(run, **options)


@pytest.fixture
def started(trained, tmp_path, monkeypatch):
    """A copy of the trained run, and a list of the configurations that training is started with; it is not
    run."""
    configs, results = [], {"stopped": "finished", "steps": 5, "total_steps": 5}
    monkeypatch.setattr(train, "finetune", lambda config: configs.append(config) or results)
    return copy(trained, tmp_path / "run"), configs, results


def test_training_resumes_with_the_same_options_and_data_only_unless_told_otherwise(started, capsys):
    run, configs, _ = started
    stages.finetune(run, **QUICK)
    stages.finetune(run, **QUICK | {"num_max_bpe_tokens": 20})
    assert "from scratch, because num_max_bpe_tokens 16 (now 20)" in capsys.readouterr().out
    stages.finetune(run, resume=True, **QUICK | {"num_max_bpe_tokens": 20})
    with (run / "coco_captioning.train.jsonl").open("a") as file:
        file.write("\n")
    shutil.rmtree(run / "records")
    stages.finetune(run, **QUICK)
    assert [config.auto_resume for config in configs] == [True, False, True, False]


@pytest.mark.parametrize("stopped", ["out of time", "finished"], ids=["max_minutes", "max_steps"])
def test_a_training_run_that_stopped_early_is_unfinished_and_reported_before_captioning(
    started, capsys, stopped
):
    run, _, results = started
    results |= {"stopped": stopped, "steps": 2}
    stages.finetune(run, **QUICK)
    assert stale(run, "finetune") == "it stopped early, after 2 of 5 steps"
    stages.caption(run, max_images=1, num_beams=1)
    assert "outputs are used anyway: it stopped early, after 2 of 5 steps" in capsys.readouterr().out
    results |= {"stopped": "no better score"}
    stages.finetune(run, **QUICK)
    assert stale(run, "finetune") == ""


def test_gpus_that_do_not_exist_are_mentioned(started, capsys, monkeypatch):
    run, configs, _ = started
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    stages.finetune(run, num_gpus=2, **QUICK)
    assert len(configs) == 1 and "num_gpus: expected 2 GPUs, found none" in capsys.readouterr().out
    processes = []
    monkeypatch.setattr(train, "launch", lambda config, count: processes.append(count) or started[2])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    stages.finetune(run, num_gpus=0, **QUICK)
    assert processes == [2] and len(configs) == 1


def test_a_checkpoint_of_another_index_is_reported(trained, tmp_path, capsys):
    run = copy(trained, tmp_path / "run")
    index = run / "coco_captioning.train.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    shutil.rmtree(run / "records")
    stages.caption(run, max_images=1, num_beams=1)
    assert f"{run / 'best'}: trained on another index than the run's" in capsys.readouterr().out


def test_missing_captions_are_an_error_unless_fill_missing_is_set(trained):
    with pytest.raises(SubmissionError, match="no pedestrian caption.*set fill_missing"):
        scoring.score(trained)
    scored = scoring.score(trained, fill_missing=True)
    assert set(scored.scores) == {"model", "shuffled", "nearest", "most frequent"} and scored.split == "val"
    assert (
        json.loads((trained / "scores.json").read_text())["captions"]["model"]["final"]
        == scored.scores["model"].final
    )
    assert (trained / "submission.val.json").is_file()
    with pytest.raises(SubmissionError, match="fill_missing"):
        scoring.submit(trained)
    assert not (trained / "submission.json").exists()
    written, table = scoring.submit(trained, fill_missing=True).captions, read_table(trained / "segments.csv")
    segments = table[table["split"] == "test"]
    expected = {str(name): part["label"].tolist() for name, part in segments.groupby("scenario")}
    assert check_submission(written.submission, expected) == []
    assert len(written.filled) == len(segments) == read_summary(trained)["submit"]["captions_filled"]


def test_scores_are_printed_with_the_number_of_images_in_train_too(trained, tmp_path, capsys, monkeypatch):
    run = copy(trained, tmp_path / "run")
    scoring.score(run, fill_missing=True)
    assert "in both train and val" not in capsys.readouterr().out
    monkeypatch.setattr(scoring, "ensure", lambda *_: None)  # it would make the changed image again
    images = read_table(run / "phases.csv").groupby("split")["image"].first()
    shutil.copyfile(run / "images" / images["train"], run / "images" / images["val"])
    scoring.score(run, fill_missing=True)
    assert "1 images are in both train and val, so these scores are too high" in capsys.readouterr().out


def change_predictions(run, change):
    """Replace each record of predictions.json by `change(record)`."""
    content = json.loads((run / "predictions.json").read_text())
    write_json(
        run / "predictions.json", content | {"predictions": [change(row) for row in content["predictions"]]}
    )


def test_empty_captions_of_the_model_are_distinguished_from_missing_ones(trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    change_predictions(run, lambda row: row | {"caption": ""})
    table = read_table(run / "segments.csv")
    count = len(table[table["split"] == "val"])
    message = f"got {2 * count} missing: .* For {count} of them the model generated no text"
    with pytest.raises(SubmissionError, match=message):
        scoring.score(run)


def test_runs_of_other_caption_types_are_joined_to_one_submission(trained, tmp_path):
    run, other = (copy(trained, tmp_path / name) for name in ("run", "other"))
    for folder in (run, other):
        change_predictions(folder, lambda row: row | {"caption": "It moves."})
    change_predictions(other, lambda row: row | {"subject": "pedestrian"})
    scored = scoring.score(run, combine_with=" other,")
    assert scored.split == "val" and scored.scores["model"].missing == []
    assert scoring.submit(run, combine_with="other").captions.filled == []
    with pytest.raises(
        FileNotFoundError, match="combine_with: expected an existing file, got .*typo/predictions.json"
    ):
        scoring.score(run, combine_with="typo")


def test_data_without_a_val_split_are_scored_on_train_or_not_at_all(trained, tmp_path, capsys):
    run = copy(trained, tmp_path / "run")
    for split, reference in (("train", "It moves."), ("test", None)):
        change_predictions(run, lambda row, s=split, r=reference: row | {"split": s, "reference": r})
        scored = scoring.score(run, fill_missing=True)
        assert scored.split == ("train" if reference else None) and bool(scored.scores) == bool(reference)
        assert scoring.submit(run, fill_missing=True).captions.path.is_file()
    printed = capsys.readouterr().out
    assert "no captions of split val with references; scored instead: train" in printed
    assert "scored instead: nothing" in printed


def test_the_command_prints_the_score_and_the_gallery(tmp_path, capsys, monkeypatch):
    write_json(tmp_path / "summary.json", {"score": {"model": 62.3, "nearest": 53.2}})
    monkeypatch.setattr("sys.argv", ["stages", str(tmp_path)])
    scoring.main()
    assert capsys.readouterr().out == f"score 62.3 (nearest image 53.2); open {tmp_path / 'gallery.html'}\n"
