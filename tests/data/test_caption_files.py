"""Caption files: the original repository's structure, written and read without loss."""

import json

import pandas as pd
import pytest

from beit3lib.data.caption_files import (
    caption_file_name,
    read_caption_files,
    write_caption_files,
)
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.data.wts import parse_phase

CAPTIONS = {
    "caption_vehicle": "It turns left. A man in a coat. He is near. The road is wet. It is dark.",
    "caption_pedestrian": "He walks. A man in his 30s. He is behind the car. The road is dry. It is bright.",
}


@pytest.fixture
def table():
    rows = [("s1", f"s1_{camera}.mp4", label) for label in "01" for camera in (1, 2)]
    rows.append(("video7", "video7.mp4", "action"))
    table = pd.DataFrame(rows, columns=["scenario", "video", "label"])
    return table.assign(phase=table["label"].map(parse_phase), **CAPTIONS)


def read(folder, name="vehicle_caption_moving_datasets.json"):
    return json.loads((folder / name).read_text())


def test_the_ten_files_have_the_original_names_and_structure(tmp_path, table):
    paths = write_caption_files(table, tmp_path)
    assert sorted(p.name for p in paths) == sorted(caption_file_name(s, a) for s in SUBJECTS for a in ASPECTS)
    content = read(tmp_path)
    two = [{"label": "0", "caption": "It turns left."}, {"label": "1", "caption": "It turns left."}]
    assert content["s1"] == {"videos": ["s1_1.mp4", "s1_2.mp4"], "caption": two}
    assert content["video7"]["caption"] == [{"label": "action", "caption": "It turns left."}]


def test_every_view_keeps_its_own_captions(tmp_path, table):
    table.loc[table["video"] == "s1_2.mp4", "caption_vehicle"] = "It has stopped. The road is wet."
    write_caption_files(table, tmp_path)
    content = read(tmp_path)
    # The original repository pairs each caption of an entry with each of its videos, and ignores its name.
    entries = [
        (video, c) for entry in content.values() for video in entry["videos"] for c in entry["caption"]
    ]
    pairs = {(video, caption["label"]): caption["caption"] for video, caption in entries}
    texts = {"s1_1.mp4": "It turns left.", "s1_2.mp4": "It has stopped."}
    expected = {(video, label): text for video, text in texts.items() for label in "01"}
    assert pairs == expected | {("video7.mp4", "action"): "It turns left."}
    assert read(tmp_path, "vehicle_caption_road_datasets.json")["s1"]["videos"] == ["s1_1.mp4", "s1_2.mp4"]
    back, problems = read_caption_files(tmp_path)
    assert problems == [] and set(back["scenario"]) == {"s1", "video7"}
    moving = back[(back["subject"] == "vehicle") & (back["aspect"] == "moving")]
    assert moving.set_index(["video", "label"])["caption"].to_dict() == pairs


def test_unusable_files_and_entries_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected caption files such as vehicle_caption_moving"):
        read_caption_files(tmp_path)
    good = {"label": "0", "caption": "It turns."}
    odd = [{"label": "9", "caption": "x"}, {"label": "1", "caption": " "}, "odd"]
    content = {
        "s1": {"videos": ["a.mp4"], "caption": [good, *odd]},
        "s2": {"videos": [], "caption": [good]},
        "s3": {"videos": ["a.mp4", ["b.mp4"]], "caption": [good]},
        "s4": {"videos": 5, "caption": {}},
        "s5": None,
    }
    (tmp_path / "vehicle_caption_moving_datasets.json").write_text(json.dumps(content))
    (tmp_path / "vehicle_caption_road_datasets.json").write_text("{")
    (tmp_path / "notes.json").write_text("{}")
    captions, problems = read_caption_files(tmp_path)
    assert captions["caption"].tolist() == ["It turns."]
    listed, parts = (
        "\n".join(map(str, problems)),
        ("expected a name", "expected JSON", "found '9'", "s2: expected"),
    )
    assert len(problems) == 9 and all(part in listed for part in parts), listed
