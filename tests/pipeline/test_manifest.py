"""Every input is found here and on Kaggle, and a missing one is explained."""

import subprocess
import sys
from pathlib import Path

import pytest

from beit3lib.model import MODELS
from beit3lib.pipeline.manifest import ManifestError, MissingInput, load_manifest
from beit3lib.pipeline.mounts import folders_in, kaggle_inputs, kaggle_root

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "data_manifest.yaml").read_text()


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
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "kaggle"))
    copy = write(tmp_path / "project" / "data_manifest.yaml", TEXT)
    (tmp_path / "work").mkdir()
    return lambda: load_manifest(copy, here=tmp_path / "work")


def test_every_model_for_real_data_has_weights_with_its_own_name_first():
    manifest = load_manifest()
    for model in [name for name in MODELS if "tiny" not in name]:
        first = manifest.entry(model).names[0]
        assert first.startswith(model) or first == f"{model.split('_patch')[0]}_patch16_224"
    with pytest.raises(ManifestError, match="expected one of sample, wts, .* or a model, got 'wtss'"):
        manifest.search("wtss")


def test_a_missing_input_names_the_searched_paths_and_how_to_get_it(empty):
    with pytest.raises(MissingInput) as error:
        empty().search("wts", required=True)
    wanted = ("the WTS download", "data/wts", "BEIT3LIB_WTS", "Kaggle", "github.com", "terms")
    assert all(part in str(error.value) for part in wanted) and "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["kaggle/wts", "kaggle/datasets/someone/wts", "work/data/wts", "data/wts"])
@pytest.mark.parametrize("suffix", [".mp4", ".MP4"])
def test_a_download_is_found_here_above_and_in_both_shapes_of_mounts(empty, tmp_path, place, suffix):
    assert empty().search("wts")[0] is None
    assert wts_at(tmp_path / place, suffix) == empty().search("wts")[0]


def test_the_environment_variable_has_priority_over_data_and_data_over_kaggle(empty, tmp_path, monkeypatch):
    paths = [wts_at(tmp_path / p) for p in ("kaggle/wts", "work/data/wts", "home/elsewhere")]
    assert empty().search("wts")[0] == paths[1]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BEIT3LIB_WTS", "~/elsewhere")
    assert empty().search("wts")[0] == paths[2]


def test_a_variable_that_names_no_such_input_is_an_error(empty, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3LIB_WTS", str(tmp_path / "mistypd"))
    with pytest.raises(
        MissingInput, match="expected the WTS download .* in BEIT3LIB_WTS=.*mistypd, found none"
    ):
        empty().search("wts")
    (tmp_path / "mistypd").mkdir()
    with pytest.raises(MissingInput, match="BEIT3LIB_WTS=.*, found no wts data"):
        empty().search("wts")


@pytest.mark.parametrize("inside", ["", "data/sample"])
def test_the_sample_does_not_count_as_the_download(empty, tmp_path, inside):
    write(wts_at(tmp_path / "work/data/wts" / inside) / "drawn.json")
    write(wts_at(tmp_path / "kaggle/one" / inside) / "drawn.json")
    assert empty().search("wts")[0] is None


@pytest.mark.parametrize(
    "folder", ["work/data", "work/data/beit_base_224", "kaggle/a/b/c", "your_input/beit_base_224"]
)
@pytest.mark.parametrize("suffix", [".pth", ".zip", "", "/archive/data.pkl", "/model.safetensors"])
def test_weights_and_tokenizer_are_found_in_every_form(empty, tmp_path, folder, suffix):
    write(tmp_path / folder / f"beit3_base_patch16_224{suffix}")
    spm, near = write(tmp_path / folder / "beit3.spm"), tmp_path / "your_input"
    path = tmp_path / folder / f"beit3_base_patch16_224{suffix.split('/')[0]}"
    assert (
        empty().search("beit3_base_patch16_224", near)[0]
        == path
        == empty().search("beit3_base_patch16_480", near)[0]
    )
    assert empty().search("beit3_large_patch16_224", near)[0] is None
    assert empty().search("tokenizer", near)[0] == spm


@pytest.mark.parametrize(
    "text, message",
    [
        (TEXT.replace("version: 3", "version: 2"), "version Input should be 3"),
        (TEXT.replace("paths:", "looked_for:", 1), "entries.sample.paths Field required"),
        (TEXT.replace("reader: wts", "reader: csv", 1), "Input should be 'wts' or 'prepared'"),
        *((text, "found ") for text in ("a: [1", "- 1", "", "entries: 5", "a: \x00")),
        ("entries: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_an_old_or_invalid_manifest_is_an_error_of_one_line_with_its_path(tmp_path, text, message):
    with pytest.raises(ManifestError, match="m.yaml: expected version 3") as error:
        load_manifest(write(tmp_path / "m.yaml", text))
    assert message in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names, status, text",
    [((), 0, "weights"), (("bdd",), 1, "request form"), (("x",), 1, "ManifestError: ")],
)
def test_the_command_lists_inputs_and_ends_with_1_if_one_is_missing(empty, tmp_path, names, status, text):
    command = [sys.executable, "-m", "beit3lib.pipeline.manifest", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work")
    assert done.returncode == status and text in done.stdout + done.stderr


def test_mounts_are_the_attached_inputs_and_exist_on_kaggle_only(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path))
    inputs = [tmp_path / name for name in ("one", "datasets/someone/two", "notebooks/someone/three")]
    for path in inputs:
        (path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    assert kaggle_inputs() == inputs and kaggle_root().exists()
    assert [path.name for path in folders_in(tmp_path / "one", 2)] == ["one", "a", "b"]
