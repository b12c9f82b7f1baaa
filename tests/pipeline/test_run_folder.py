"""A run folder knows the inputs, options and outputs of each stage."""

import pytest

from beit3lib.files import FolderInUse
from beit3lib.pipeline.run_folder import open_run, read_record, record_stage, stale


def prepare(run, text="a"):
    """Write the files of the stage `prepare`, each with one line."""
    with record_stage(run, "prepare", {"views": "all"}) as section:
        section["images"] = 1
        for name in ("images/a.jpg", "captions/train/a.json", "phases.csv", "segments.csv"):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(text)


def index(run):
    with record_stage(run, "index", {}):
        for name in ("coco_captioning.train.jsonl", "coco_captioning.val.jsonl", "tokenizer.spm"):
            (run / name).write_text(name)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "demo"
    prepare(folder)
    index(folder)
    return folder


@pytest.mark.parametrize("name", ["", "..", "../../x", "a/b", "/tmp/x", ".hidden", "a\\b", "a\n", " "])
def test_a_run_name_that_is_a_path_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match="run: expected letters, digits, .*, got "):
        open_run(name, str(tmp_path))


def test_the_mounted_run_that_ended_last_is_copied_complete_and_writable(tmp_path, monkeypatch, capsys):
    near, far = tmp_path / "input/one/runs/demo", tmp_path / "input/notebooks/someone/two/runs/demo"
    prepare(near, "near"), prepare(far, "far"), index(far)
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "input"))
    working = tmp_path / "working"
    (working / ".demo.new").mkdir(parents=True)
    (working / ".demo.new" / "half a copy").touch()  # of a killed process
    for path in (far, *far.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    run = open_run("demo", str(working))
    for path in (far, *far.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    assert f"continues {far}" in capsys.readouterr().out
    assert (run / "phases.csv").read_text() == "far" and not stale(run, "prepare") and not stale(run, "index")
    assert all(path.stat().st_mode & 0o200 for path in (run, *run.rglob("*")))
    assert list(working.iterdir()) == [run] and not (run / "half a copy").exists()
    (run / "phases.csv").write_text("changed")
    assert (open_run("demo", str(working)) / "phases.csv").read_text() == "changed"


def test_a_stage_that_was_killed_or_stopped_early_is_unfinished(run):
    with pytest.raises(KeyboardInterrupt), record_stage(run, "prepare", {"views": "vehicle"}):
        raise KeyboardInterrupt
    assert stale(run, "prepare") == "it was interrupted"
    assert read_record(run, "prepare")["options"] == {"views": "vehicle"}
    with record_stage(run, "prepare", {}) as section:
        section["unfinished"] = "out of time"
    assert stale(run, "prepare") == "out of time"


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("phases.csv", "b", "has changed"),
        ("tokenizer.spm", "b", "has changed"),
        ("images/b.jpg", "", "has changed"),
        ("images/a.jpg", "of another size", "has changed"),
        ("captions/train/a.json", "b", "has changed"),
        ("coco_captioning.test.jsonl", "", "is new"),
        ("coco_captioning.val.jsonl", None, "is missing"),
    ],
)
def test_changed_inputs_and_outputs_make_a_stage_out_of_date(run, name, text, reason):
    assert stale(run, "index") == ""
    (run / name).unlink() if text is None else (run / name).write_text(text)
    assert stale(run, "index") == f"{name.split('/')[0]} {reason}"


def test_the_record_of_captions_follows_the_checkpoint_that_was_used(run):
    for name in ("best", "checkpoint-5"):
        (run / name).mkdir()
    with record_stage(run, "caption", {"checkpoint": "checkpoint-5"}):
        (run / "predictions.json").touch()
    (run / "best" / "model.safetensors").touch()
    assert stale(run, "caption") == ""
    (run / "checkpoint-5" / "model.safetensors").touch()
    assert stale(run, "caption") == "checkpoint-5 has changed"


def test_two_stages_cannot_write_to_one_run(run):
    with record_stage(run, "prepare", {}):
        before = (run / "records" / "prepare.json").read_bytes()
        with pytest.raises(FolderInUse, match="in use by prepare"), record_stage(run, "index", {}):
            pass
        assert (run / "records" / "prepare.json").read_bytes() == before
