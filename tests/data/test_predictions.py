"""Predictions files: written and read without loss, and one clear error for a wrong file."""

import json

import pandas as pd
import pytest

from beit3lib.data.predictions import (
    COLUMNS,
    inside,
    predictions_table,
    read_meta,
    read_predictions,
    write_predictions,
)
from beit3lib.files import FileError

RECORD = {
    "image": "images/a.jpg", "scenario": "s1", "split": "val", "source": "wts", "view": "overhead_view",
    "video": "a.mp4", "label": "0", "phase": 0, "subject": "vehicle", "aspect": "road", "log_prob": -1.25,
    "caption": "The road is wide.", "word_probs": [0.5, 0.25, 1.0, 0.9], "reference": "The road is narrow.",
    "official_score": 42.5,
}  # fmt: skip


def write(tmp_path, *records):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"meta": {}, "predictions": list(records)}))
    return path


def test_predictions_are_written_and_read_without_loss(tmp_path):
    names = ("reference", "official_score", "phase", "source", "log_prob")
    odd = {"caption": "N/A", "label": "04", "scenario": "null", "reference": "", "view": '" \u2028'}
    table = predictions_table([RECORD, RECORD | dict.fromkeys(names), RECORD | odd])
    path = write_predictions(tmp_path / "new" / "predictions.json", table, {"checkpoint": "best"})
    again = read_predictions(path)
    pd.testing.assert_frame_equal(again, table)
    assert read_meta(path) == {"checkpoint": "best"} and list(again.columns) == list(COLUMNS)
    assert again["reference"].tolist() == [RECORD["reference"], None, ""]
    assert path.read_text().count("\n") == 6  # one record per line, readable with less and diff
    short = {name: RECORD[name] for name in ("image", "subject", "aspect", "caption")}
    table = pd.DataFrame([short | {"phase": 3}, short])  # a column of floats, because one value is missing
    again = read_predictions(write_predictions(path, table, {}))
    assert again["phase"].tolist() == [3, None] and again["word_probs"].tolist() == [None, None]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"caption": ["a"]}, "caption: expected a valid string, found ['a']"),
        ({"subject": "dog"}, "subject: expected 'vehicle', 'pedestrian' or '', found 'dog'"),
    ],
)
def test_a_wrong_value_is_named_with_file_record_and_key(tmp_path, change, message):
    path = write(tmp_path, RECORD, {**RECORD, **change})
    with pytest.raises(FileError) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}: predictions 1 {message}")
    path.write_text('{"predictions": [{"im')
    with pytest.raises(FileError, match="predictions.json: .*Use a file that the caption stage wrote"):
        read_predictions(path)


def test_no_image_path_leaves_its_root(tmp_path):
    root, secret = tmp_path / "run", tmp_path / "secret.png"
    (root / "images").mkdir(parents=True)
    secret.write_bytes(b"")
    (root / "link.png").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    outside = ["../secret.png", "images/../../secret.png", "..\\secret.png", str(secret), "\\\\host\\x.png"]
    outside += ["up/../../secret.png", "a\0.png"]
    assert [name for name in outside if inside(name, root) is not None] == []
    within = {"avg..2.jpg": "avg..2.jpg", "./a b.png": "a b.png", "images\\a.jpg": "images/a.jpg"}
    within |= {str(root / "images" / "a.jpg"): "images/a.jpg", "images/../a.jpg": "a.jpg"}
    assert {name: inside(name, root) for name in within} == within
    (tmp_path / "alias").symlink_to(root)
    assert inside(str(root / "a.jpg"), tmp_path / "alias") == "a.jpg" == inside("a.jpg", tmp_path / "alias")
