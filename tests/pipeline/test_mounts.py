"""Kaggle's mounts in both shapes, below a root that an environment variable names."""

import pytest

from beit3lib.pipeline.mounts import folders_in, kaggle_inputs, kaggle_root


@pytest.mark.parametrize("shape", ["wts", "datasets/someone/wts", "notebooks/someone/wts"])
def test_an_attached_input_is_found_in_every_shape_of_mount(tmp_path, monkeypatch, shape):
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path))
    (tmp_path / shape / "videos").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    assert kaggle_inputs() == [tmp_path / shape]


def test_a_host_that_is_not_kaggle_has_no_inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "none"))
    assert kaggle_inputs() == [] and not kaggle_root().exists()


def test_folders_are_listed_down_to_a_depth(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    assert [path.name for path in folders_in(tmp_path, 2)] == [tmp_path.name, "a", "b"]
