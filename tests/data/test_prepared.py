"""The seed's own images and caption files become a run; nothing of them is lost in silence."""

import json

import pytest
from conftest import draw_run
from PIL import Image
from test_chain import papermill

from beit3lib.data.aspects import read_caption_files
from beit3lib.data.prepared import import_prepared
from beit3lib.pipeline import steps
from beit3lib.sample import draw as sample


@pytest.fixture
def seeds(tmp_path):
    """Pictures and caption files as the seed leaves them: no split, names with and without "avg", JPEG and PNG."""
    draw_run(tmp_path / "drawn", train=12, val=0, phases=2)
    images, captions = tmp_path / "data" / "images", tmp_path / "data" / "captions"
    (tmp_path / "data").mkdir()
    (tmp_path / "drawn" / "images").rename(images)
    (tmp_path / "drawn" / "captions" / "train").rename(captions)
    for number, path in enumerate(sorted(images.iterdir())):
        if number % 3 == 1:
            path.rename(path.with_name(path.name.removeprefix("avg")))
        if number % 3 == 2:
            Image.open(path).save(path.with_suffix(".png"))
            path.unlink()
    return images, captions


def test_captions_and_pictures_in_are_captions_and_pictures_out(seeds, tmp_path):
    run = tmp_path / "run"
    table = import_prepared(*seeds, run)
    assert len(table) == 24 == len(list((run / "images").glob("avg*.jpg"))) and table.attrs["problems"] == []
    assert set(table["split"]) == {"train", "val"} and table.groupby("scenario")["split"].nunique().eq(1).all()
    before = read_caption_files(seeds[1])
    after = [read_caption_files(run / "captions" / split) for split in ("train", "val")]
    assert sum(map(len, after)) == len(before)
    aspects = set(before.itertuples(index=False, name=None))
    assert all(row in aspects for part in after for row in part.itertuples(index=False, name=None))


def test_what_has_no_counterpart_is_listed(seeds, tmp_path):
    images, captions = seeds
    gone = sorted(images.iterdir())[0]
    gone.rename(images / "avgsomething_elsephase0.jpg")
    table = import_prepared(images, captions, tmp_path / "run")
    told = list(map(str, table.attrs["problems"]))
    assert len(table) == 23 and sum("but no picture in" in text for text in told) == 1
    assert sum("1 pictures of which no caption speaks" in text for text in told) == 1
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="expected pictures of the videos"):
        import_prepared(images, captions, tmp_path / "other")


def test_the_first_two_steps_take_them(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BEIT3LIB_IMAGES", str(seeds[0]))
    monkeypatch.setenv("BEIT3LIB_CAPTIONS", str(seeds[1]))
    run = tmp_path / "run"
    steps.prepare(run, "prepared")
    assert "data: prepared images in" in capsys.readouterr().out
    reports = steps.index(run, str(sample.SPM_PATH))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["prepare"]["dataset"] == "prepared" and summary["prepare"]["images"] == 24
    assert reports["train"].images + reports["val"].images == 24 and reports["train"].left_out == 0
    assert len(steps.read_segments(run, "train")) + len(steps.read_segments(run, "val")) == 24


@pytest.mark.slow
def test_notebook_1_shows_pictures_that_came_without_videos(seeds, tmp_path):
    """The whole notebook, its figure of phases included, also where one subject has no caption of the first phase."""
    for path in seeds[1].glob("pedestrian_*.json"):
        content = json.loads(path.read_text())
        content.pop(min(content))
        path.write_text(json.dumps(content))
    places = {"BEIT3LIB_IMAGES": str(seeds[0]), "BEIT3LIB_CAPTIONS": str(seeds[1])}
    done = papermill("01_prepare_data", tmp_path, "-p", "dataset", "prepared", **places)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "demo" / "phases.png").is_file()
