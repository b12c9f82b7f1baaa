"""A run folder knows what each stage was made from."""

import json
import os
import time

import pytest

from beit3lib.files import FolderInUse
from beit3lib.pipeline import run_folder
from beit3lib.pipeline.run_folder import (
    add_summary,
    fingerprints,
    open_run,
    read_record,
    read_summary,
    record_stage,
    stale,
)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    return folder


def prepare(run, text="a", options=None):
    """Write the same files as the stage `prepare`, each with one line."""
    with record_stage(run, "prepare", options or {"views": "all"}) as section:
        section["images"] = 1
        for name in ("images", "captions/train"):
            (run / name).mkdir(parents=True, exist_ok=True)
        (run / "images" / "a.jpg").write_text(text)
        (run / "captions" / "train" / "a.json").write_text(text)
        for name in ("phases.csv", "segments.csv"):
            (run / name).write_text(text)


def index(run):
    with record_stage(run, "index", {}):
        for split in ("train", "val"):
            (run / f"coco_captioning.{split}.jsonl").write_text(split)
        (run / "tokenizer.spm").write_text("spm")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../x", "a/b", "/tmp/x", ".hidden", "a\\b", "a\0b", "a\n", " "]
)
def test_a_run_name_that_is_a_path_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match="run: expected a name such as 'demo', got "):
        open_run(name, tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["demo", "2026-11_vehicle.v2", "вечер"])
def test_a_new_run_is_an_empty_folder(tmp_path, name):
    assert open_run(name, tmp_path / "runs") == tmp_path / "runs" / name
    assert list((tmp_path / "runs" / name).iterdir()) == []


def test_runs_are_in_the_project_when_a_notebook_is_started_inside_it(tmp_path, monkeypatch):
    (tmp_path / "project" / "beit3lib").mkdir(parents=True)
    (tmp_path / "project" / "beit3lib" / "__init__.py").touch()
    (tmp_path / "project" / "notebooks").mkdir()
    for start in ("project", "project/notebooks", "."):
        monkeypatch.chdir(tmp_path / start)
        expected = tmp_path / ("project" if "project" in start else "") / "runs" / "demo"
        assert open_run("demo").resolve() == expected.resolve()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="runs/demo: expected a folder that can be written"):
        open_run("demo", tmp_path / "runs")


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Two read-only runs on mounts: one that has an index, and an earlier state of it."""
    far, near = tmp_path / "input/notebooks/someone/two/runs/demo", tmp_path / "input/one/runs/demo"
    for folder, text in ((far, "far"), (near, "near")):
        folder.mkdir(parents=True)
        prepare(folder, text)
    index(far)
    for folder in (far, near):
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "input"))
    yield far
    for path in (tmp_path / "input").rglob("*"):
        path.chmod(path.stat().st_mode | 0o200)


def test_the_mounted_run_with_the_most_finished_stages_is_copied_and_up_to_date(mounted, tmp_path, capsys):
    run = open_run("demo", tmp_path / "working")
    assert f"continues {mounted}" in capsys.readouterr().out
    assert (run / "phases.csv").read_text() == "far" and not stale(run, "prepare") and not stale(run, "index")
    assert all(path.stat().st_mode & 0o200 for path in (run, *run.rglob("*")))
    (run / "phases.csv").write_text("changed")
    assert (open_run("demo", tmp_path / "working") / "phases.csv").read_text() == "changed"


def test_an_interrupted_copy_starts_from_scratch(mounted, tmp_path, monkeypatch):
    replace, moved = run_folder.Path.replace, []

    def replace_two(self, target):
        if len(moved) == 2 and self.parent.name == ".copy.new":
            raise OSError("no space left")
        moved.append(self)
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(run_folder.Path, "replace", replace_two)
        open_run("demo", tmp_path / "working")
    run = open_run("demo", tmp_path / "working")
    assert not stale(run, "index") and not list(run.glob(".*.new"))


def test_a_finished_stage_is_up_to_date_and_its_summary_is_written(run):
    assert stale(run, "prepare") == "it was not run yet"
    prepare(run, options={"views": "best"})
    assert stale(run, "prepare") == "" and read_record(run, "prepare")["options"] == {"views": "best"}
    assert read_summary(run)["prepare"]["images"] == 1 and read_summary(run)["prepare"]["seconds"] >= 0


def test_a_stage_that_was_killed_counts_as_interrupted(run):
    prepare(run)
    with pytest.raises(KeyboardInterrupt), record_stage(run, "prepare", {"views": "vehicle"}):
        (run / "captions" / "train" / "a.json").write_text("b")
        raise KeyboardInterrupt
    assert stale(run, "prepare") == "it was interrupted"
    assert read_record(run, "prepare")["options"] == {"views": "vehicle"}


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda run: (run / "phases.csv").write_text("b"), "phases.csv has changed"),
        (lambda run: (run / "phases.csv").unlink(), "phases.csv is missing"),
        (lambda run: (run / "images" / "b.jpg").touch(), "images has changed"),
        (lambda run: (run / "images" / "a.jpg").write_text("longer"), "images has changed"),
        (lambda run: (run / "captions" / "train" / "a.json").write_text("b"), "captions has changed"),
        (lambda run: prepare(run, "other"), "captions has changed"),
    ],
)
def test_changed_inputs_make_the_next_stage_stale(run, change, reason):
    prepare(run)
    index(run)
    assert stale(run, "index") == ""
    change(run)
    assert stale(run, "index") == reason


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda run: (run / "coco_captioning.val.jsonl").unlink(), "coco_captioning.val.jsonl is missing"),
        (lambda run: (run / "coco_captioning.test.jsonl").touch(), "coco_captioning.test.jsonl is new"),
        (lambda run: (run / "tokenizer.spm").write_text("x"), "tokenizer.spm has changed"),
    ],
)
def test_changed_outputs_make_a_stage_stale(run, change, reason):
    prepare(run)
    index(run)
    change(run)
    assert stale(run, "index") == reason


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "5", "{}", '{"options": 1}', '{"options": {}, "inputs": {}, "outputs": 3}']
)
def test_a_broken_record_counts_as_missing(run, content):
    prepare(run)
    (run / "records" / "prepare.json").write_text(content)
    assert stale(run, "prepare") == "it was not run yet"


@pytest.mark.parametrize("content", ["", "null", "[]", "5", '{"prepare": {'])
def test_a_broken_summary_is_replaced(run, content):
    (run / "summary.json").write_text(content)
    assert read_summary(run) == {}
    add_summary(run, "attributes", {"own": 1})
    assert json.loads((run / "summary.json").read_text()) == {"attributes": {"own": 1}}


def test_temporary_files_of_killed_writes_are_removed(run):
    (run / "images").mkdir()
    for name in (".phases.tmp.csv", "images/.avga.tmp.jpg", ".tokenizer.tmp"):
        (run / name).touch()
    (run / ".captions.new").mkdir()
    prepare(run)
    assert not [path for path in run.rglob(".*") if "tmp" in path.name or path.suffix == ".new"]


def test_two_stages_cannot_write_to_one_run(run):
    with record_stage(run, "prepare", {}):
        before = (run / "records" / "prepare.json").read_bytes()
        with pytest.raises(FolderInUse, match="in use by prepare"), record_stage(run, "index", {}):
            pass
        assert (run / "records" / "prepare.json").read_bytes() == before


def test_twenty_five_thousand_images_are_compared_in_seconds(run):
    (run / "images").mkdir()
    for number in range(25_000):
        os.close(os.open(run / "images" / f"{number}.jpg", os.O_CREAT))
    started = time.monotonic()
    fingerprints(run, ("images",))
    assert time.monotonic() - started < 5
