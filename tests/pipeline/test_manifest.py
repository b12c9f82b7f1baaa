"""Every input is found where it may lie, here and on both kinds of Kaggle mount, and all that is missing is told at once."""

import subprocess
import sys

import pytest
import torch
import yaml

from beit3lib.model import MODELS
from beit3lib.pipeline.manifest import ManifestError, MissingInput, load_manifest

ENTRY = {"what": "things", "env": "BEIT3LIB_TEST_THINGS", "from": "somewhere", "terms": "none"}


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def wts_at(root):
    write(root / "annotations/caption/train/2023_a/overhead_view/2023_a_caption.json")
    write(root / "videos/train/2023_a/overhead_view/a.mp4")
    return root


@pytest.fixture
def empty(tmp_path, monkeypatch):
    manifest = load_manifest()
    for entry in manifest.entries.values():
        monkeypatch.delenv(entry["env"], raising=False)
    copy = write(tmp_path / "project" / "data_manifest.yaml", manifest.path.read_text())
    (tmp_path / "work").mkdir()

    def load():
        return load_manifest(copy, here=tmp_path / "work", kaggle=tmp_path / "kaggle" / "input")

    return load


def test_every_model_for_real_data_has_its_weights_in_the_manifest():
    assert {name for name in MODELS if "tiny" not in name} <= set(load_manifest().entries)


def test_one_look_tells_everything_that_is_missing(empty):
    table = empty().table()
    assert (table["found"] == "no").all() and len(table) == len(empty().entries)
    assert table["get it from"].str.len().min() > 10 and table["terms"].str.len().min() > 2


def test_a_missing_input_says_where_it_was_looked_for_and_how_to_get_it(empty):
    with pytest.raises(MissingInput) as error:
        empty().locate("wts")
    text = str(error.value)
    assert all(part in text for part in ("WTS download", "data/wts", "BEIT3LIB_WTS", "kaggle", "github.com", "terms"))


@pytest.mark.parametrize("mount", ["wts", "datasets/someone/wts", "datasets/someone/wts/WTS_DATASET"])
def test_both_kinds_of_kaggle_mount(empty, tmp_path, mount):
    place = wts_at(tmp_path / "kaggle" / "input" / mount)
    assert empty().locate("wts") == place


def test_the_variable_wins_over_data_and_data_over_kaggle(empty, tmp_path, monkeypatch):
    places = [wts_at(tmp_path / p) for p in ("kaggle/input/wts", "work/data/wts", "elsewhere")]
    assert empty().locate("wts") == places[1]
    monkeypatch.setenv("BEIT3LIB_WTS", str(places[2]))
    assert empty().locate("wts") == places[2]


def test_inputs_above_the_working_folder_are_found(tmp_path):
    place = wts_at(tmp_path / "data" / "wts")
    (tmp_path / "notebooks").mkdir()
    assert load_manifest(here=tmp_path / "notebooks", kaggle=tmp_path / "none").find("wts") == place


def test_the_sample_is_not_taken_for_the_download(empty, tmp_path):
    write(wts_at(tmp_path / "work" / "data" / "wts") / "drawn.json")
    assert empty().find("wts") is None


def test_half_a_download_is_told_with_what_it_lacks(empty, tmp_path):
    write(tmp_path / "work/data/wts/videos/train/a/overhead_view/a.mp4")
    table = empty().check("wts")
    assert table.set_index("needs")["found"].to_dict() == {"annotations/caption/**/*_caption.json": 0, "videos/**/*.mp4": 1}
    assert empty().find("wts") is None


@pytest.mark.parametrize("name", ["beit3_base_patch16_224.pth", "beit3_base_patch16_224.zip", "beit3_base_patch16_224"])
def test_weights_in_every_form_they_arrive_in(empty, tmp_path, name):
    place = write(tmp_path / "work" / "data" / name)
    assert empty().locate("beit3_base_patch16_224") == place


def test_weights_that_kaggle_unpacked_are_a_folder(empty, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "c.pth")
    place = tmp_path / "kaggle/input/weights/beit3_base_patch16_224"
    write(place / "archive" / "data.pkl")
    assert empty().locate("beit3_base_patch16_224") == place


@pytest.mark.parametrize(
    "change, told",
    [
        ({"wath": "x"}, "unknown keys: ['wath']"),
        ({"terms": None}, "missing keys: ['terms']"),
        ({"file": "b"}, "exactly one of contains, file, weights"),
        ({"contains": {"*": "many"}}, "contains: expected patterns"),
        ({"looked_for": "data"}, "looked_for: expected a list"),
    ],
)
def test_a_manifest_that_is_wrong_names_entry_and_key(tmp_path, change, told):
    entry = {**ENTRY, "contains": {"*": 1}, "looked_for": ["data"], **change}
    entry = {key: value for key, value in entry.items() if value is not None}
    path = write(tmp_path / "m.yaml", yaml.safe_dump({"version": 1, "entries": {"things": entry}}))
    with pytest.raises(ManifestError, match="entry things") as error:
        load_manifest(path)
    assert told in str(error.value)


def test_a_manifest_that_is_no_yaml_is_named(tmp_path):
    with pytest.raises(ManifestError, match="m.yaml: expected YAML"):
        load_manifest(write(tmp_path / "m.yaml", "a: [1"))
    with pytest.raises(ManifestError, match="n.yaml: expected a mapping"):
        load_manifest(write(tmp_path / "n.yaml", "- 1"))


def test_an_unknown_entry_is_answered_with_those_there_are(empty):
    with pytest.raises(ManifestError, match="no entry 'wtss'; it has sample, wts"):
        empty().find("wtss")


def test_a_variable_that_names_nothing_is_an_error_not_passed_over(empty, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3LIB_WTS", str(tmp_path / "mistypd"))
    with pytest.raises(MissingInput, match="BEIT3LIB_WTS=.*mistypd: expected the WTS download"):
        load_manifest(here=tmp_path).find("wts")
    (tmp_path / "mistypd").mkdir()  # there, but empty: not passed over for the sample either
    with pytest.raises(MissingInput, match=r"caption.json and videos/\*\*/\*.mp4, without drawn.json\), found something else"):
        empty().find("wts")


def test_the_command_ends_with_one_where_something_is_missing(tmp_path):
    command = [sys.executable, "-m", "beit3lib.manifest"]
    everything = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert everything.returncode == 0 and "beit3_large_patch16_480" in everything.stdout
    one = subprocess.run([*command, "bdd"], capture_output=True, text=True, cwd=tmp_path)
    assert one.returncode == 1 and "request form" in one.stdout
