"""Files and folders are whole or absent, whatever happens while they are written."""

import importlib
import json
import re
import sys

import pytest

from beit3lib.files import Problem, atomic_folder, atomic_path, read_json, recover_folder, sweep_up, write_json, write_text


def test_a_file_keeps_its_old_content_when_writing_fails(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_file_is_not_there_when_writing_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "deep" / "a.jpg") as temporary:
        assert temporary.suffix == ".jpg"
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []


def test_json_goes_there_and_back_and_nan_is_refused(tmp_path):
    value = {"é": [1, 2.5, None, "\u2028"]}
    assert read_json(write_json(tmp_path / "a.json", value)) == value
    with pytest.raises(ValueError, match="(?i)nan|not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_json_that_is_missing_or_cut_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json: expected a JSON file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text(json.dumps({"a": [1, 2, 3]})[:-3])
    with pytest.raises(ValueError, match="cut.json: expected JSON"):
        read_json(tmp_path / "cut.json")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    place = tmp_path / "best"
    (tmp_path / ".best.x1.new").mkdir()  # a killed process left it
    for content in ("old", "new"):
        with atomic_folder(place) as folder:
            (folder / "weights").write_text(content)
    assert (place / "weights").read_text() == "new"
    with pytest.raises(OSError), atomic_folder(place) as folder:
        (folder / "weights").write_text("half")
        raise OSError
    assert (place / "weights").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["best"]


def test_a_folder_killed_between_its_two_steps_comes_back(tmp_path):
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "weights").write_text("old")
    (tmp_path / ".best.x1.new").mkdir()
    assert (recover_folder(tmp_path / "best") / "weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_a_problem_reads_as_a_sentence():
    assert str(Problem("a.mp4", "cut off", "download it again")) == "a.mp4: cut off (download it again)"


def test_what_a_killed_write_left_is_swept_up_and_no_more(tmp_path):
    names = (".log.ab12cd_x.jsonl", ".log.more.ab12cd_x.jsonl", ".log.ab12cd_x.json", "log.jsonl")
    for name in names:
        (tmp_path / name).touch()
    sweep_up(tmp_path / "log.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, arguments, told",
    [
        ("checkpoint", "nowhere out.pth", "nowhere: expected a checkpoint folder, found none with model.safetensors"),
        ("checkpoint", "nowhere .", ".: expected the name of a file to write, found a folder"),
        ("gallery", "nowhere.json", "nowhere.json: expected a JSON file here, found none"),
        ("gallery", "other.json", "as notebook 4 writes it; found one with the keys scenario"),
        ("gallery", "other.json --image-root nowhere", "nowhere: expected the folder that pictures are named from"),
        ("manifest", "wtss", "no entry 'wtss'; it has sample, wts"),
        ("metrics", "--predictions_file . --ground_truth full", ".: expected a JSON file, found a folder"),
        ("metrics", "--predictions_file other.json --ground_truth full", "full: expected caption files (*_caption.json)"),
        ("metrics", "--predictions_file other.json --ground_truth nowhere", "nowhere: expected a folder of caption files"),
        ("sample", "full", "full: expected a new folder or an earlier sample, found something else"),
        ("sample", "other.json", "other.json: expected a new folder or an earlier sample, found something else"),
        ("steps", "nowhere", "nowhere: expected a run with summary.json, found none"),
        ("kaggle", "out --owner you --attach wtss", "wtss not among what data_manifest.yaml has for Kaggle"),
        ("kaggle", "out --owner=", "expected your user name on Kaggle, found ''"),
        ("train", "--data_path here", "--sentencepiece_model: expected the path of beit3.spm, found none given"),
        ("train", "--sentencepiece_model a --data_path b --output_dir c", "a: expected the sentencepiece model beit3.spm here"),
    ],
)
def test_a_command_ends_with_one_sentence_where_it_cannot_go_on(tmp_path, monkeypatch, module, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text('{"scenario": []}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", [module, *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"beit3lib.{module}").main()
    assert told in str(ended.value) and re.match(r"\w+: ", str(ended.value)), ended.value
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
