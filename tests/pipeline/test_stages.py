"""The stages of a run, called as the notebooks call them, on a small drawn download."""

import json
import shutil
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import draw_run

from beit3lib.data.index import read_index
from beit3lib.data.predictions import write_predictions
from beit3lib.data.schema import read_table
from beit3lib.files import file_hash, write_json
from beit3lib.pipeline import stages
from beit3lib.pipeline.manifest import MissingInput, load_manifest
from beit3lib.pipeline.run_folder import read_record, read_summary, stale
from beit3lib.sample import MODEL, SPM_PATH, draw
from beit3lib.track2.submission import SubmissionError, check_submission

QUICK = {
    "epochs": 1,
    "max_steps": 1,
    "batch_size": 4,
    "val_images": 1,
    "num_beams": 1,
    "num_max_bpe_tokens": 16,
}


def download(folder, counts):
    """A drawn download that looks like the real one."""
    root = draw.write_sample(folder, counts)
    (root / "drawn.json").unlink()
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small drawn download, and a run after its first two stages."""
    folder = tmp_path_factory.mktemp("small")
    root = draw.write_sample(folder / "sample", {"train": (3, 1, 1), "val": (2, 0, 1), "test": (1, 0, 1)})
    (folder / "run").mkdir()
    prepared = stages.prepare(folder / "run", "sample", root)
    return folder / "run", prepared, stages.index(folder / "run")


@pytest.fixture
def run(small, tmp_path):
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(small[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """The run after one step of training on vehicle captions, with all its captions."""
    run = Path(shutil.copytree(small[0], tmp_path_factory.mktemp("trained") / "run"))
    stages.finetune(run, subject="vehicle", **QUICK)
    stages.caption(run, num_beams=1)
    return run


@pytest.fixture
def made(monkeypatch):
    """A list of the stages that `ensure` starts; they are not run."""
    names = []
    for name in ("prepare", "index", "finetune", "caption"):
        monkeypatch.setattr(stages, name, lambda run, name=name, **options: names.append((name, options)))
    return names


def test_every_phase_and_caption_is_counted(small):
    run, prepared, reports = small
    summary = read_summary(run)
    images = len(list((run / "images").iterdir()))
    assert summary["prepare"]["phases_read"] == summary["prepare"]["images"] == images == len(prepared.phases)
    assert prepared.problems == [] and summary["prepare"]["problem_count"] == 0 and len(prepared.choices)
    for split in ("train", "val"):
        report = reports[split]
        assert report.captions == report.lines and report.skipped == report.cut == 0 and report.problems == []
    assert set(reports) == {"train", "val", "test"}
    assert not stale(run, "prepare") and not stale(run, "index")


def test_a_second_preparation_keeps_the_images(run):
    root = read_record(run, "prepare")["options"]["root"]
    before = {path: path.stat().st_mtime_ns for path in (run / "images").iterdir()}
    stages.prepare(run, "sample", root)
    assert before == {path: path.stat().st_mtime_ns for path in (run / "images").iterdir()}


def test_segments_of_a_split_are_those_of_the_download(small):
    table = read_table(small[0] / "segments.csv")
    for split, has_captions in (("val", True), ("test", False)):
        segments = table[table["split"] == split]
        assert len(segments) and segments["caption_vehicle"].notna().all() == has_captions
        assert not segments.duplicated(["scenario", "label"]).any()


def test_preparing_other_data_removes_the_files_of_earlier_data(run, tmp_path):
    other = download(tmp_path / "other", {"train": (1, 0, 0), "val": (0, 0, 0), "test": (0, 0, 0)})
    prepared = stages.prepare(run, "wts", other)
    assert {path.name for path in (run / "images").iterdir()} == set(prepared.phases["image"])
    assert [path.name for path in (run / "captions").iterdir()] == ["train"]
    assert not (run / "drawn.json").exists()
    assert stale(run, "index").endswith("has changed")
    stages.index(run, str(SPM_PATH))
    assert [path.name for path in run.glob("coco_captioning.*")] == ["coco_captioning.train.jsonl"]


def test_a_download_without_any_readable_video_lists_its_problems(tmp_path):
    root = download(tmp_path / "wts", {"train": (1, 0, 0), "val": (0, 0, 0), "test": (1, 0, 0)})
    for path in root.rglob("*.mp4"):
        path.write_bytes(b"broken")
    (tmp_path / "run").mkdir()
    prepared = stages.prepare(tmp_path / "run", "wts", root)
    assert len(prepared.phases) == 0 and len(prepared.problems) >= 2
    with pytest.raises(ValueError, match="expected images"):
        stages.index(tmp_path / "run", str(SPM_PATH))


def test_bdd_beside_the_download_is_read_with_it(tmp_path, monkeypatch):
    root = download(tmp_path / "wts", {"train": (2, 0, 2), "val": (1, 0, 1), "test": (0, 0, 0)})
    shutil.move(root / "external" / "BDD_PC_5K", tmp_path / "BDD_PC_5K")
    monkeypatch.setenv("BEIT3LIB_BDD", str(tmp_path / "BDD_PC_5K"))
    (tmp_path / "run").mkdir()
    prepared = stages.prepare(tmp_path / "run", "wts", root, views="best")
    assert set(prepared.phases["source"]) == {"wts", "bdd"}
    assert len(prepared.choices) == prepared.phases.groupby(["split", "scenario"]).ngroups
    assert set(read_table(tmp_path / "run" / "segments.csv")["source"]) == {"wts", "bdd"}


def test_captions_that_training_cuts_are_counted_and_listed(run):
    reports = stages.index(run, max_tokens=12)
    lengths = read_index(run / "coco_captioning.val.jsonl")["text_segment"].map(len)
    assert reports["val"].cut == (lengths > 10).sum() == read_summary(run)["index"]["val"]["cut"] > 0
    assert any("cut in training" in problem.what for problem in reports["val"].problems)


def test_auto_takes_the_download_before_the_sample(tmp_path, monkeypatch, capsys):
    root = download(tmp_path / "wts", {"train": (1, 0, 0), "val": (0, 0, 0), "test": (0, 0, 0)})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert stages.find_data("auto", "~/wts") == ("wts", root)
    monkeypatch.setenv("BEIT3LIB_WTS", str(root))
    assert stages.find_data() == ("wts", root) and f"in {root}" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["auto", "wts", "prepared"])
def test_a_root_without_such_data_is_named(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match="nowhere: expected .*found nothing"):
        stages.find_data(dataset, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="expected .*found something else"):
        stages.find_data(dataset, tmp_path)


def test_two_runs_draw_the_sample_once(tmp_path, monkeypatch):
    (tmp_path / "beit3lib").mkdir()
    (tmp_path / "beit3lib" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    calls, roots = [], []

    def write_slowly(folder):
        calls.append(folder)
        time.sleep(0.5)
        for name in ("drawn.json", "videos/a.mp4", "annotations/caption/a_caption.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return folder

    monkeypatch.setattr(draw, "write_sample", write_slowly)
    manifest = shutil.copy(
        Path(__file__).parents[2] / "data_manifest.yaml", tmp_path
    )  # a sample may lie beside the project's
    monkeypatch.setattr(stages, "load_manifest", lambda: load_manifest(manifest))
    threads = [
        threading.Thread(target=lambda: roots.append(stages.find_data("sample")[1].resolve()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and roots == [tmp_path / "data" / "sample"] * 2


def test_real_data_without_a_tokenizer_are_an_error_with_its_source(run):
    (run / "drawn.json").unlink()
    with pytest.raises(
        MissingInput, match="tokenizer: expected BEiT-3's sentencepiece model, found nothing .*github.com"
    ):
        stages.index(run)


@pytest.mark.parametrize("val", [True, False])
def test_folders_of_the_original_repository_give_a_submission(tmp_path, monkeypatch, val):
    """`your_input` of its README: images and caption files by split, and a file of segments to caption."""
    draw_run(tmp_path / "drawn", train=4, val=2)
    root = tmp_path / "your_input"
    shutil.copytree(tmp_path / "drawn" / "images", root / "avg_normal_244_train")
    for subject in ("vehicle", "pedestrian"):
        for split in ("train", "val") if val else ("train",):
            for path in (tmp_path / "drawn" / "captions" / split).glob(f"{subject}_*.json"):
                (root / f"{subject}_caption" / split).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, root / f"{subject}_caption" / split / path.name)
    image = next((root / "avg_normal_244_train").iterdir())
    (root / "avg_normal_244_test").mkdir()
    shutil.copyfile(image, root / "avg_normal_244_test" / "avg20230711_12_SN17_T1_Camera1_0phase2.jpg")
    segment = {"videos": ["20230711_12_SN17_T1_Camera1_0.mp4"], "caption": [{"label": "2", "caption": ""}]}
    (root / "test-6").mkdir()
    (root / "test-6" / "for_test.json").write_text(json.dumps({"20230711_12_SN17_T1": segment}))
    monkeypatch.setenv("BEIT3LIB_PREPARED", str(root))
    run = tmp_path / "run"
    run.mkdir()
    assert set(stages.prepare(run).phases["split"]) == {"train", "val", "test"}
    reports = stages.index(run, str(SPM_PATH))
    assert reports["test"].lines == 1 and (reports["train"].images + reports["val"].images) == (
        6 if val else 4
    )
    lines = read_index(run / "coco_captioning.test.jsonl").rename(columns={"image_path": "image"})
    rows = [
        lines.assign(subject=s, aspect="moving", caption=f"{s} moves.", log_prob=-1.0)
        for s in ("vehicle", "pedestrian")
    ]
    write_predictions(run / "predictions.json", pd.concat(rows, ignore_index=True), {})
    scored = stages.score(run)
    assert scored.split is None
    written = stages.submit(run)
    expected = {
        "labels": ["2"],
        "caption_vehicle": "vehicle moves.",
        "caption_pedestrian": "pedestrian moves.",
    }
    assert written.submission == {"20230711_12_SN17_T1": [expected]} and written.filled == []


def test_a_new_run_is_prepared_and_indexed(tmp_path, made, capsys):
    stages.ensure(tmp_path / "new", "index")
    assert made == [("prepare", {}), ("index", {})]
    assert "stage 'prepare' runs now: it was not run yet" in capsys.readouterr().out


def test_a_misspelled_run_is_not_prepared_beside_others(run, made):
    with pytest.raises(
        stages.StageError, match=f"tpyo: expected a prepared run, one of {run.name}. Correct `run`"
    ):
        stages.ensure(run.parent / "tpyo", "index")
    assert made == []


def test_an_interrupted_stage_runs_again_with_its_options(run, made):
    record = read_record(run, "prepare")
    del record["outputs"]
    write_json(run / "records" / "prepare.json", record)
    stages.ensure(run, "index")
    assert made == [("prepare", record["options"])]


def test_an_index_that_lacks_a_split_is_rebuilt(run, made, capsys):
    (run / "coco_captioning.val.jsonl").unlink()
    stages.ensure(run, "index")
    assert [name for name, _ in made] == [
        "index"
    ] and "coco_captioning.val.jsonl is missing" in capsys.readouterr().out


def test_stages_that_are_up_to_date_do_not_run(trained, made, capsys):
    stages.ensure(trained, "caption")
    assert made == [] and capsys.readouterr().out == ""


def test_training_starts_automatically_for_the_sample_only(run, made):
    stages.ensure(run, "finetune")
    assert [name for name, _ in made] == ["finetune"]
    (run / "drawn.json").unlink()
    with pytest.raises(
        stages.StageError, match="expected best, found none: it was not run yet. Run notebook 3 first"
    ):
        stages.ensure(run, "finetune")


def test_captions_of_an_older_checkpoint_are_reported_and_kept(trained, made, tmp_path, capsys):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "best" / "model.safetensors").write_bytes(b"longer or shorter")
    stages.ensure(run, "caption")
    assert (
        made == []
        and "'caption' are out of date: best has changed. Run notebook 4" in capsys.readouterr().out
    )


def test_files_without_a_record_are_used_as_they_are(trained, made, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run / "records")
    (run / "phases.csv").unlink()
    stages.ensure(run, "caption")
    assert made == []


def test_options_that_are_none_keep_the_values_of_the_data(run):
    config = stages.training_config(run, model=None, lr=None, epochs=3, finetune=None)
    assert (config.model, config.lr, config.epochs) == (MODEL, stages.SAMPLE_OPTIONS["lr"], 3)
    assert config.finetune.endswith(f"{MODEL}.pth") and config.data_path == config.output_dir == str(run)
    (run / "drawn.json").unlink()
    config = stages.training_config(run, finetune="")
    assert (config.model, config.lr, config.batch_size) == (
        "beit3_base_patch16_224",
        4e-5,
        32,
    ) and config.finetune == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lrr": 1}, "lrr: expected an option of TrainConfig, got an unknown name. Did you mean lr?"),
        (
            {"model": "beit3_bass_patch16_224"},
            "model: expected one of .*Did you mean beit3_base_patch16_224?",
        ),
        (
            {"model": "beit3_large_patch16_224"},
            "beit3_large_patch16_224: expected public BEiT-3 weights .*github.com",
        ),
    ],
)
def test_a_wrong_training_option_is_explained(run, options, message):
    with pytest.raises((ValueError, MissingInput), match=message):
        stages.training_config(run, **options)


def test_the_tiny_model_on_real_data_starts_from_random_weights(run, capsys):
    (run / "drawn.json").unlink()
    (run / "tokenizer.spm").write_bytes(b"another")
    assert stages.find_checkpoint(run, MODEL) == "" and "random weights" in capsys.readouterr().out


def test_options_that_differ_from_the_recipe_are_listed(run):
    table = stages.changed_options(stages.training_config(run))
    assert table.loc["lr", "value"] == "0.001" and table.loc["lr", "recipe"] == "0.0005"
    assert "weight_decay" not in table.index and "data_path" not in table.index


@pytest.fixture
def started(trained, tmp_path, monkeypatch):
    """A copy of the trained run, and a list of the configurations that training is started with; it is not run."""
    from beit3lib import train

    run, configs = Path(shutil.copytree(trained, tmp_path / "run")), []
    monkeypatch.setattr(train, "finetune", lambda config: configs.append(config) or {"stopped": "finished"})
    return run, configs


def unfinish(run):
    record = read_record(run, "finetune")
    del record["outputs"]
    write_json(run / "records" / "finetune.json", record)


def test_a_finished_training_is_kept(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before, log = file_hash(run / "best" / "model.safetensors"), (run / "log.jsonl").read_text()
    results = stages.finetune(run, subject="vehicle", **QUICK)
    assert results["stopped"] == "finished" and results["steps"] == len(log.splitlines()) - log.count(
        '"validation"'
    )
    assert file_hash(run / "best" / "model.safetensors") == before and (run / "log.jsonl").read_text() == log


def test_a_finished_training_with_other_options_starts_from_scratch(started, capsys):
    run, configs = started
    stages.finetune(run, subject="vehicle", **QUICK | {"num_max_bpe_tokens": 20})
    assert (
        not configs[0].auto_resume and "from scratch, because num_max_bpe_tokens" in capsys.readouterr().out
    )


def test_an_unfinished_training_with_the_same_options_resumes(started):
    run, configs = started
    unfinish(run)
    stages.finetune(run, subject="vehicle", **QUICK)
    assert configs[0].auto_resume


def test_an_unfinished_training_with_other_options_or_data_starts_from_scratch(started, capsys):
    run, configs = started
    unfinish(run)
    stages.finetune(run, subject="vehicle", **QUICK | {"num_max_bpe_tokens": 20})
    unfinish(run)
    stages.index(run, max_tokens=20)
    with (run / "coco_captioning.train.jsonl").open("a") as file:
        file.write("\n")
    assert not configs[0].auto_resume and "num_max_bpe_tokens 16 (now 20)" in capsys.readouterr().out


def test_resume_true_resumes_even_a_finished_training(started):
    run, configs = started
    stages.finetune(run, resume=True, subject="vehicle", **QUICK)
    assert configs[0].auto_resume


def test_a_quick_look_leaves_the_predictions(trained):
    before = (trained / "predictions.json").read_bytes()
    table = stages.caption(trained, max_images=1, num_beams=1)
    assert len(table) == 2 * 5 and (trained / "predictions.quick.json").is_file()  # two splits, five aspects
    assert (trained / "predictions.json").read_bytes() == before and not stale(trained, "caption")


def test_a_checkpoint_of_another_index_is_reported(trained, tmp_path, capsys):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    index = run / "coco_captioning.train.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:-1]))
    shutil.rmtree(run / "records")
    stages.caption(run, max_images=1, num_beams=1)
    assert f"{run / 'best'}: trained on another index than that of the run" in capsys.readouterr().out


def test_missing_captions_are_an_error_unless_fill_missing_is_set(trained):
    with pytest.raises(SubmissionError, match="no pedestrian caption.*set fill_missing"):
        stages.score(trained)
    scored = stages.score(trained, fill_missing=True)
    assert set(scored.scores) == {"model", "shuffled", "nearest", "most frequent"} and scored.split == "val"
    assert json.loads((trained / "scores.json").read_text())["model"]["final"] == scored.scores["model"].final
    assert (trained / "submission.val.json").is_file()
    with pytest.raises(SubmissionError, match="fill_missing=True"):
        stages.submit(trained)
    assert not (trained / "submission.json").exists()
    written = stages.submit(trained, fill_missing=True)
    segments = read_table(trained / "segments.csv")
    expected = {
        str(name): part["label"].tolist()
        for name, part in segments[segments["split"] == "test"].groupby("scenario")
    }
    assert check_submission(written.submission, expected) == []
    assert (
        len(written.filled)
        == len(segments[segments["split"] == "test"])
        == read_summary(trained)["submit"]["filled_count"]
    )


def test_runs_of_other_caption_types_are_joined_to_one_submission(trained, tmp_path):
    run, other = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("run", "other"))
    predictions = json.loads((other / "predictions.json").read_text())
    rows = [{**row, "subject": "pedestrian"} for row in predictions["predictions"]]
    write_json(other / "predictions.json", {**predictions, "predictions": rows})
    scored = stages.score(run, other_runs=["other"])
    assert scored.split == "val" and scored.scores["model"].missing == []
    assert stages.submit(run, other_runs=["other"]).filled == []
    with pytest.raises(FileNotFoundError, match="typo/predictions.json: expected a file here"):
        stages.score(run, other_runs=["typo"])


def test_data_without_a_val_split_are_scored_on_train_or_not_at_all(trained, tmp_path, capsys):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    predictions = json.loads((run / "predictions.json").read_text())
    for keep in ("train", "test"):
        some = [{**row, "split": keep, "reference": row["reference"] if keep == "train" else None}
                for row in predictions["predictions"] if row["split"] == "val"]  # fmt: skip
        write_json(run / "predictions.json", {**predictions, "predictions": some})
        scored = stages.score(run, fill_missing=True)
        assert scored.split == ("train" if keep == "train" else None) and bool(scored.scores) == (
            keep == "train"
        )
        assert stages.submit(run, fill_missing=True).path.is_file()
    assert "no captions of split val with references; train is scored instead" in capsys.readouterr().out


def test_the_command_shows_the_summary_of_a_run(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["steps", str(trained)])
    stages.main()
    printed = capsys.readouterr().out
    assert "prepare: " in printed and printed.strip().endswith("gallery.html")
    monkeypatch.setattr("sys.argv", ["steps", str(trained / "none")])
    with pytest.raises(SystemExit, match="expected the summary of a run, found none"):
        stages.main()
