"""Every input is found here and on Kaggle, and a missing one is explained."""

from pathlib import Path

import pytest

from beit3lib.pipeline.manifest import ManifestError, MissingInput, load_manifest

TEXT = (Path(__file__).parents[2] / "data_manifest.yaml").read_text()


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def wts_at(root, suffix=".mp4"):
    write(root / "annotations/caption/train/2023_a/overhead_view/2023_a_caption.json")
    write(root / f"videos/train/2023_a/overhead_view/a{suffix}")
    return root


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """The project's manifest in a project without inputs, read in the folder `work`."""
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "kaggle"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return load_manifest(write(tmp_path / "project" / "data_manifest.yaml", TEXT))


@pytest.mark.parametrize("place", ["kaggle/wts", "kaggle/datasets/someone/wts", "work/data/wts", "data/wts"])
@pytest.mark.parametrize("suffix", [".mp4", ".MP4"])
def test_a_download_is_found_here_above_and_in_both_forms_of_mounts(manifest, tmp_path, place, suffix):
    assert manifest.search("wts")[0] is None
    assert wts_at(tmp_path / place, suffix) == manifest.search("wts")[0]


def test_the_variable_comes_before_data_and_data_before_kaggle(manifest, tmp_path, monkeypatch):
    paths = [wts_at(tmp_path / p) for p in ("kaggle/wts", "work/data/wts", "home/elsewhere")]
    assert manifest.search("wts")[0] == paths[1]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BEIT3LIB_WTS", "~/elsewhere")
    assert manifest.search("wts")[0] == paths[2]


def test_a_missing_input_is_explained_in_one_line(manifest, tmp_path, monkeypatch):
    with pytest.raises(MissingInput) as error:
        manifest.search("wts", required=True)
    wanted = ("the WTS download", "data/wts", "BEIT3LIB_WTS", "Kaggle", "github.com", "terms")
    assert all(part in str(error.value) for part in wanted) and "\n" not in str(error.value)
    monkeypatch.setenv("BEIT3LIB_WTS", str(tmp_path / "mistypd"))
    for found in ("none", "no wts data"):
        with pytest.raises(
            MissingInput, match=f"the WTS download .* in BEIT3LIB_WTS=.*mistypd, found {found}"
        ):
            manifest.search("wts")
        (tmp_path / "mistypd").mkdir(exist_ok=True)


@pytest.mark.parametrize("inside", ["", "data/sample"])
def test_the_sample_does_not_count_as_the_download(manifest, tmp_path, inside):
    write(wts_at(tmp_path / "work/data/wts" / inside) / "drawn.json")
    write(wts_at(tmp_path / "kaggle/one" / inside) / "drawn.json")
    assert manifest.search("wts")[0] is None


FOLDERS = ("work/data", "work/data/beit_base_224", "kaggle/a/b/c", "your_input/beit_base_224")


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("suffix", [".pth", ".zip", "", "/archive/data.pkl", "/model.safetensors"])
def test_weights_and_tokenizer_are_found_in_every_form(manifest, tmp_path, folder, suffix):
    write(tmp_path / folder / f"beit3_base_patch16_224{suffix}")
    spm, near = write(tmp_path / folder / "beit3.spm"), tmp_path / "your_input"
    path = tmp_path / folder / f"beit3_base_patch16_224{suffix.split('/')[0]}"
    for size, expected in (
        ("base_patch16_224", path),
        ("base_patch16_480", path),
        ("large_patch16_224", None),
    ):
        assert manifest.search(f"beit3_{size}", near)[0] == expected
    assert manifest.search("tokenizer", near)[0] == spm


@pytest.mark.parametrize(
    "text, message",
    [
        (TEXT.replace("version: 3", "version: 2"), "version Input should be 3"),
        *((text, "found ") for text in ("a: [1", "- 1", "")),
        ("entries: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_an_old_or_invalid_manifest_is_an_error_of_one_line_with_its_path(tmp_path, text, message):
    with pytest.raises(ManifestError, match="m.yaml: expected version 3") as error:
        load_manifest(write(tmp_path / "m.yaml", text))
    assert message in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)
