"""Captions are composed of aspects and views, and a wrong submission is refused with all its problems."""

import json

import pandas as pd
import pytest
from PIL import Image

from beit3lib.data.schema import SUBJECTS
from beit3lib.track2.submission import (
    SubmissionError,
    build_submission,
    check_submission,
    compose,
    most_frequent_submission,
    nearest_submission,
    write_submission,
)

EXPECTED = {"2023_a": ["0", "4"], "video7": ["avoidance"]}


def entry(label, **changes):
    return {"labels": [label], "caption_vehicle": "It turns.", "caption_pedestrian": "He walks.", **changes}


def correct():
    return {"2023_a": [entry("0"), entry("4")], "video7": [entry("avoidance")]}


def test_aspects_are_composed_without_repeated_sentences():
    parts = {"road": "It is wet. The road is narrow.", "weather": "It is wet.", "moving": "It turns."}
    assert compose(parts, "vehicle") == "It turns. It is wet. The road is narrow."
    assert compose({"moving": "He walks.", "road": "Dry.", "weather": None}, "pedestrian") == "Dry. He walks."
    assert compose({"full": "One. Two.", "moving": "Three."}, "vehicle") == "One. Two."


def rows(scenario, phase, label, *captions):
    """Captions of both subjects for several views of a segment, each with its log probability."""
    about = {"scenario": scenario, "phase": phase, "label": label, "aspect": "moving"}
    return [{**about, "subject": s, "caption": c, "log_prob": p} for s in SUBJECTS for c, p in captions]


def test_the_most_probable_caption_of_each_segment_is_submitted():
    views = [("It stops.", -2.0), ("It turns.", -1.0), ("It waits.", None)]
    table = [*rows("video7", 3, "action", *views), *rows("video7", 0, "0", *views[::-1])]
    captions = {"caption_vehicle": "It turns.", "caption_pedestrian": "It turns."}
    built = build_submission(pd.DataFrame(table))
    assert built == {"video7": [{"labels": ["0"], **captions}, {"labels": ["action"], **captions}]}
    one = build_submission(pd.DataFrame(rows("2023_a", 4, "4", ("It turns.", -1.0))[:1]))
    assert one == {"2023_a": [entry("4", caption_pedestrian="")]}


SPOILED = {  # a problem, and what causes it in a correct submission
    "2023_a label 4: expected a segment, found none": lambda s: s["2023_a"].pop(),
    '2023_a label 4: expected ["4"] in labels': lambda s: s["2023_a"][1].update(labels=["04"]),
    "2023_a label 0: expected text in caption_v": lambda s: s["2023_a"][0].update(caption_vehicle=" "),
    "2023_b: not expected": lambda s: s.update({"2023_b": []}),
    "video7 label avoidance: expected a segment, found none": lambda s: s.pop("video7"),
    "2023_a label 4: expected once, found again": lambda s: s["2023_a"].append(entry("4")),
}


@pytest.mark.parametrize("problem", SPOILED)
def test_each_kind_of_error_is_reported(problem):
    submission = correct()
    SPOILED[problem](submission)
    problems = check_submission(submission, EXPECTED)
    assert any(found.startswith(problem) for found in problems), problems


def test_all_errors_are_reported_and_nothing_is_written(tmp_path):
    submission, together = correct(), [list(SPOILED)[number] for number in (0, 2, 3, 4)]
    for problem in together:
        SPOILED[problem](submission)
    with pytest.raises(SubmissionError, match="found 4 problems, wrote nothing") as error:
        write_submission(tmp_path / "submission.json", submission, EXPECTED)
    assert all(problem in str(error.value) for problem in together) and not list(tmp_path.iterdir())
    assert check_submission([], EXPECTED) == ["expected {scenario: [segments]}, got list"]


def test_missing_captions_are_an_error_or_filled(tmp_path):
    path, holes = tmp_path / "submission.json", correct()
    del holes["video7"]
    holes["2023_a"][0]["caption_vehicle"] = ""
    frequent = {"caption_vehicle": "It stops.", "caption_pedestrian": "He stops."}
    with pytest.raises(SubmissionError, match="set fill_missing"):
        write_submission(path, holes, EXPECTED, most_frequent=frequent)
    written = write_submission(path, correct(), EXPECTED)
    assert written.filled == [] and written.submission == correct() == json.loads(path.read_text())
    written = write_submission(path, holes, EXPECTED, fill_missing=True, most_frequent=frequent)
    filled = "2023_a label 0: caption_vehicle", "video7 label avoidance: caption_vehicle, caption_pedestrian"
    assert written.filled == list(filled) and check_submission(json.loads(path.read_text()), EXPECTED) == []
    assert written.submission["2023_a"] == [entry("0", caption_vehicle="It stops."), entry("4")]
    assert written.submission["video7"] == [{"labels": ["avoidance"], **frequent}]


@pytest.fixture
def images(tmp_path):
    """A folder with a dark and a light image, and the training table of three scenarios that show them."""
    for name, gray in (("dark.png", 10), ("light.png", 240), ("query.png", 230)):
        Image.new("RGB", (20, 20), (gray,) * 3).save(tmp_path / name)
    shown = {"a": "dark", "b": "light", "c": "dark"}
    train = [{"scenario": n, "label": "0", "image": f"{x}.png", **entry_of(x)} for n, x in shown.items()]
    return tmp_path, pd.DataFrame(train)


def entry_of(caption):
    return {"caption_vehicle": caption, "caption_pedestrian": caption}


def test_baselines_repeat_the_nearest_or_the_most_frequent_caption(images):
    folder, train = images
    segments = pd.DataFrame({"scenario": "d", "label": "4", "image": ["query.png", "dark.png"]})
    assert nearest_submission(train, segments, folder) == {"d": [{"labels": ["4"], **entry_of("light")}]}
    assert most_frequent_submission(train, segments) == {"d": [{"labels": ["4"], **entry_of("dark")}]}
    (folder / "light.png").write_text("no image")
    segments.loc[1, "image"] = "absent.png"
    assert nearest_submission(train, segments, folder) == {"d": [{"labels": ["4"], **entry_of("dark")}]}
