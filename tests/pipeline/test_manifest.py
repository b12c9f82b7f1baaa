"""Every input is found here and on Kaggle, and a missing one is explained."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from beit3lib.model import MODELS
from beit3lib.pipeline.manifest import ManifestError, MissingInput, load_manifest

ROOT = Path(__file__).parents[2]
ENTRY = {
    "what": "things",
    "env": "BEIT3LIB_TEST_THINGS",
    "from": "somewhere",
    "terms": "none",
    "looked_for": ["data"],
}


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def wts_at(root, suffix=".mp4"):
    write(root / "annotations/caption/train/2023_a/overhead_view/2023_a_caption.json")
    write(root / f"videos/train/2023_a/overhead_view/a{suffix}")
    return root


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A function that loads the project's manifest where no input exists."""
    for entry in load_manifest().entries.values():
        monkeypatch.delenv(entry.env, raising=False)
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "kaggle"))
    copy = write(tmp_path / "project" / "data_manifest.yaml", (ROOT / "data_manifest.yaml").read_text())
    (tmp_path / "work").mkdir()
    return lambda: load_manifest(copy, here=tmp_path / "work")


def manifest_with(tmp_path, **change):
    entry = {
        key: value for key, value in {**ENTRY, "contains": {"*": 1}, **change}.items() if value is not None
    }
    return write(tmp_path / "m.yaml", yaml.safe_dump({"version": 2, "entries": {"things": entry}}))


def test_every_model_for_real_data_has_weights_in_the_manifest():
    entries = load_manifest().entries
    assert {name for name in MODELS if "tiny" not in name} <= set(entries)
    assert entries["beit3_base_patch16_224"].env == "BEIT3LIB_BASE_224"


def test_one_table_shows_everything_that_is_missing(empty):
    table = empty().table()
    assert (table["found"] == "no").all() and list(table.index) == list(empty().entries)
    assert table["get it from"].str.len().min() > 10 and table["terms"].str.len().min() > 2


def test_a_missing_input_names_where_it_was_looked_for_and_how_to_get_it(empty):
    with pytest.raises(MissingInput) as error:
        empty().locate("wts")
    text = str(error.value)
    assert "\n" not in text
    assert all(
        part in text for part in ("WTS download", "data/wts", "BEIT3LIB_WTS", "kaggle", "github.com", "terms")
    )


@pytest.mark.parametrize("mount", ["wts", "datasets/someone/wts"])
def test_a_download_is_found_in_both_shapes_of_mount(empty, tmp_path, mount):
    path = wts_at(tmp_path / "kaggle" / mount)
    assert empty().locate("wts") == path


@pytest.mark.parametrize("suffix", [".mp4", ".MP4"])
@pytest.mark.parametrize("inside", ["", "WTS_DATASET_PUBLIC"])
def test_every_download_that_the_reader_reads_is_found(empty, tmp_path, suffix, inside):
    wts_at(tmp_path / "work/data/wts" / inside, suffix)
    assert empty().find("wts") is not None


def test_a_download_through_a_link_is_found(empty, tmp_path):
    wts_at(tmp_path / "disk")
    (tmp_path / "work/data").mkdir()
    (tmp_path / "work/data/wts").symlink_to(tmp_path / "disk")
    assert empty().find("wts") == tmp_path / "work/data/wts"


def test_the_environment_variable_has_priority_over_data_and_data_over_kaggle(empty, tmp_path, monkeypatch):
    paths = [wts_at(tmp_path / p) for p in ("kaggle/wts", "work/data/wts", "home/elsewhere")]
    assert empty().locate("wts") == paths[1]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BEIT3LIB_WTS", "~/elsewhere")
    assert empty().locate("wts") == paths[2]


def test_inputs_above_the_working_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.delenv("BEIT3LIB_WTS", raising=False)
    (tmp_path / "notebooks").mkdir()
    assert load_manifest(here=tmp_path / "notebooks").find("wts") is None
    path = wts_at(tmp_path / "data" / "wts")
    assert load_manifest(here=tmp_path / "notebooks").find("wts") == path


@pytest.mark.parametrize("inside", ["", "data/sample"])
def test_the_sample_does_not_count_as_the_download(empty, tmp_path, inside):
    write(wts_at(tmp_path / "work/data/wts" / inside) / "drawn.json")
    write(wts_at(tmp_path / "kaggle/one" / inside) / "drawn.json")
    assert empty().find("wts") is None


def test_an_incomplete_input_is_listed_with_what_it_lacks(empty, tmp_path):
    write(tmp_path / "work/data/BDD_PC_5K/videos/train/video1.mp4")
    table = empty().table(["bdd"])
    assert (
        table.loc["bdd", "found"] == "no"
        and table.loc["bdd", "lacks"] == "annotations/**/video*_caption.json"
    )


@pytest.mark.parametrize(
    "folder", ["work/data", "work/data/beit_base_224", "kaggle/weights", "kaggle/models/a/b/torch/base/1"]
)
@pytest.mark.parametrize("suffix", [".pth", ".zip", ""])
def test_weights_are_found_in_every_form(empty, tmp_path, folder, suffix):
    path = write(tmp_path / folder / f"beit3_base_patch16_224{suffix}")
    assert empty().locate("beit3_base_patch16_224") == path
    assert empty().find("beit3_base_patch16_480") == path and empty().find("beit3_large_patch16_224") is None


@pytest.mark.parametrize(
    "file", ["archive/data.pkl", "model.safetensors", "pytorch_model-00001-of-00002.bin"]
)
def test_weights_may_be_a_folder_that_kaggle_unpacked_or_one_of_hugging_face(empty, tmp_path, file):
    path = tmp_path / "kaggle/weights/beit3_base_patch16_224"
    write(path / file)
    assert empty().locate("beit3_base_patch16_224") == path


def test_an_unknown_entry_is_an_error_that_lists_the_known_ones(empty):
    with pytest.raises(ManifestError, match="expected one of sample, wts, .*, got 'wtss'"):
        empty().find("wtss")


def test_a_variable_that_names_no_such_input_is_an_error(empty, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3LIB_WTS", str(tmp_path / "mistypd"))
    with pytest.raises(
        MissingInput, match="BEIT3LIB_WTS=.*mistypd: expected the WTS download .* found nothing"
    ):
        empty().find("wts")
    (tmp_path / "mistypd").mkdir()
    with pytest.raises(MissingInput, match="expected the WTS download .* found no what"):
        empty().find("wts")


def test_the_manifest_of_the_project_describes_every_entry_in_full():
    for name, entry in load_manifest().entries.items():
        assert (
            entry.what
            and entry.terms
            and entry.source
            and entry.looked_for
            and entry.env.startswith("BEIT3LIB_")
        ), name
        assert "{" not in entry.env and all(count > 0 for count in (entry.contains or {}).values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"wath": "x"}, "key wath: Extra inputs are not permitted"),
        ({"terms": None}, "key terms: Field required"),
        ({"file": "b"}, "expected exactly one of contains, file, reader, models, got contains, file"),
        ({"contains": None}, "expected exactly one of contains, file, reader, models, got none"),
        ({"contains": {"*": "many"}}, "key contains: expected a valid integer"),
        ({"contains": {3: 1}}, "key contains: expected a valid string"),
        ({"looked_for": "data"}, "key looked_for: expected a valid list"),
        ({"what": ["a"]}, "key what: expected a valid string"),
        ({"contains": None, "reader": "csv"}, "reader: expected one of wts, prepared, got 'csv'"),
    ],
)
def test_a_wrong_entry_is_named_with_its_key(tmp_path, change, message):
    with pytest.raises(ManifestError) as error:
        load_manifest(manifest_with(tmp_path, **change))
    assert str(error.value).startswith(f"{tmp_path / 'm.yaml'}, entry things") and message in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [1", "expected YAML"),
        ("- 1", "expected a mapping with `version` and `entries`"),
        ("", "expected a mapping"),
        ("entries: 5", "expected a mapping"),
        ("entries: {things: 5}", "entry things: expected a valid dictionary"),
        ("entries: {things: null}", "entry things: "),
        ("entries: {5: {}}", "entry 5, key what: Field required"),
        ("entries: !!python/object/apply:os.system [ls]", "expected YAML"),
        ("when: 2026-99-99\nentries: {}", "expected YAML"),
        ("a: \x00", "expected YAML"),
    ],
)
def test_an_invalid_manifest_is_an_error_of_one_line_with_its_path(tmp_path, text, message):
    with pytest.raises(ManifestError, match="m.yaml") as error:
        load_manifest(write(tmp_path / "m.yaml", text))
    assert message in str(error.value) and len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_the_command_ends_with_1_if_an_input_is_missing(empty, tmp_path):
    command = [sys.executable, "-m", "beit3lib.pipeline.manifest"]
    everything = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work")
    assert everything.returncode == 0 and "beit3_large_patch16_480" in everything.stdout
    one = subprocess.run([*command, "bdd"], capture_output=True, text=True, cwd=tmp_path / "work")
    assert one.returncode == 1 and "request form" in one.stdout
    unknown = subprocess.run([*command, "x"], capture_output=True, text=True, cwd=tmp_path / "work")
    assert (
        unknown.returncode == 1
        and unknown.stderr.startswith("ManifestError: ")
        and "Traceback" not in unknown.stderr
    )
