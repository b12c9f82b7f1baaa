"""Aspects and views to whole captions, and a submission that is refused with all that is wrong with it at once."""

import json
import re

import pandas as pd
import pytest
from PIL import Image

from beit3lib.track2.submission import (
    SubmissionError,
    build_submission,
    check_submission,
    choose_by_validation,
    choose_view,
    compose,
    expected_segments,
    fit_length,
    mean_of,
    most_frequent_captions,
    nearest_captions,
    read_submission,
    usual_lengths,
    write_submission,
)

ASKED = {"2023_a": ["0", "4"], "video7": ["avoidance"]}


def entry(label, **changes):
    return {"labels": [label], "caption_pedestrian": "He walks.", "caption_vehicle": "It turns.", **changes}


def good():
    return {"2023_a": [entry("0"), entry("4")], "video7": [entry("avoidance")]}


# --- composing -----------------------------------------------------------------------------------------------------


def test_aspects_stand_in_reading_order_and_no_sentence_twice():
    parts = {
        "road": "It is wet. The road is narrow.",
        "weather": "It is wet.",
        "position": "It is behind.",
        "moving": "It turns.",
    }
    assert compose(parts, "vehicle") == "It is behind. It turns. It is wet. The road is narrow."
    assert compose({"moving": "He walks.", "road": "Dry."}, "pedestrian") == "Dry. He walks."


def test_absent_and_empty_aspects_leave_no_trace():
    assert compose({"moving": "He walks.", "road": "", "weather": None}, "pedestrian") == "He walks."


def test_a_whole_caption_is_taken_as_it_is():
    assert compose({"full": "One. Two.", "moving": "Three."}, "vehicle") == "One. Two."


def test_only_what_exceeds_the_usual_length_is_cut_and_what_is_told_elsewhere_goes_first():
    sentences = ["The road is wet and narrow.", "A man in red walks.", "The road is narrow."]
    assert fit_length(sentences, None) == fit_length(sentences, 15) == " ".join(sentences)
    assert fit_length(sentences, 12) == "The road is wet and narrow. A man in red walks."
    assert fit_length(["One long sentence is never cut to nothing."], 2) == "One long sentence is never cut to nothing."


def test_cutting_never_lands_further_below_than_it_was_above():
    assert (
        fit_length(["one two three four five six", "seven eight nine ten"], 9)
        == "one two three four five six seven eight nine ten"
    )


def test_usual_length_is_that_of_nine_in_ten():
    table = pd.DataFrame({f"caption_{s}": [" ".join(["word"] * n) for n in range(1, 12)] for s in ("vehicle", "pedestrian")})
    assert usual_lengths(table) == {"vehicle": 10.0, "pedestrian": 10.0}


def test_a_view_is_chosen_by_score_or_by_consensus():
    captions, scores = ["a b c d", "a b c e", "x y z w"], [-3.0, -2.0, -1.0]
    assert choose_view(captions, scores) == "x y z w"
    assert choose_view(captions, scores, "consensus") == "a b c e"
    with pytest.raises(ValueError, match="choose: expected one of score, consensus, found 'luck'"):
        choose_view(captions, scores, "luck")


def rows(*, views=("a_1.mp4", "a_2.mp4"), label="4", scenario="2023_a", phase=4, captions=("It turns.", "It stops.")):
    found = []
    for view, caption in zip(views, captions, strict=True):
        for subject in ("vehicle", "pedestrian"):
            about = {"scenario": scenario, "video": view, "label": label, "phase": phase, "subject": subject}
            found.append({**about, "aspect": "moving", "caption": caption, "score": -float(len(caption))})
    return found


def test_a_submission_has_phases_in_their_order_and_labels_as_they_were():
    later, first = rows(label="action", phase=3, scenario="video7"), rows(label="0", phase=0, scenario="video7")
    built = build_submission(pd.DataFrame([*later, *first, *rows()]))
    assert [e["labels"] for e in built["video7"]] == [["0"], ["action"]]
    assert built["2023_a"] == [{"labels": ["4"], "caption_vehicle": "It turns.", "caption_pedestrian": "It turns."}]


def test_the_way_that_is_better_on_known_captions_is_chosen():
    table = pd.DataFrame(
        rows(
            views=("1", "2", "3"), captions=("It turns right here now.", "It turns right here.", "Nothing like it at all here.")
        )
    )
    table["score"] = [0.0, 0.0, -1.0, -1.0, 1.0, 1.0]
    truth = {("2023_a", "4"): {s: "It turns right here now." for s in ("vehicle", "pedestrian")}}
    options, ways = choose_by_validation(table, truth, {"vehicle": 50.0, "pedestrian": 50.0})
    assert options == {"choose": "consensus", "most_words": None} and len(ways) == 4
    best = ways.set_index(["choose", "fitted"])["score"]
    assert best["consensus", False] > best["score", False]
    assert mean_of(build_submission(table, **options), truth) == pytest.approx(best["consensus", False])


def test_a_segment_without_a_caption_counts_nothing():
    truth = {("2023_a", label): {s: "It turns." for s in ("vehicle", "pedestrian")} for label in ("0", "4")}
    half = {"2023_a": [entry("0", caption_pedestrian="It turns.")]}
    full = {"2023_a": [entry(label, caption_pedestrian="It turns.") for label in ("0", "4")]}
    assert mean_of(half, truth) == pytest.approx(mean_of(full, truth) / 2)


# --- checking ------------------------------------------------------------------------------------------------------


def test_a_good_submission_is_taken_and_written(tmp_path):
    assert check_submission(good(), ASKED) == []
    path = write_submission(tmp_path / "submission.json", good(), ASKED)
    assert read_submission(path) == good()


def spoil(submission, how):
    segments = submission["2023_a"]
    changes = {
        "missing phase": lambda: segments.pop(),
        "surplus phase": lambda: segments.append(entry("3")),
        "word for number": lambda: segments[1].update(labels=["avoidance"]),
        "empty caption": lambda: segments[0].update(caption_vehicle="  "),
        "no caption": lambda: segments[0].pop("caption_pedestrian"),
        "caption no text": lambda: segments[0].update(caption_vehicle=3),
        "foreign key": lambda: segments[0].update(mood="fine"),
        "foreign scenario": lambda: submission.update({"2023_b": []}),
        "missing scenario": lambda: submission.pop("video7"),
        "twice": lambda: segments.append(entry("4")),
        "label no list": lambda: segments[0].update(labels="0"),
        "no list": lambda: submission.update({"video7": {}}),
    }
    changes[how]()
    return submission


TOLD = {
    "missing phase": "2023_a: label 4: is missing",
    "surplus phase": "2023_a: label 3: was not asked for",
    "word for number": '2023_a: label "avoidance": was asked for as "4"',
    "empty caption": "2023_a: label 0: caption_vehicle is empty",
    "no caption": "2023_a: label 0: caption_pedestrian is missing",
    "caption no text": "2023_a: label 0: caption_vehicle: expected text, found int",
    "foreign key": "2023_a: label 0: unknown key mood",
    "foreign scenario": "2023_b: was not asked for",
    "missing scenario": "video7: is missing, with labels avoidance",
    "twice": "2023_a: label 4: stands 2 times",
    "label no list": '2023_a: expected {"labels": ["0"], …}',
    "no list": "video7: expected a list of segments, found dict",
}


@pytest.mark.parametrize("how", TOLD)
def test_each_way_of_being_wrong_is_told(how):
    problems = check_submission(spoil(good(), how), ASKED)
    assert any(problem.startswith(TOLD[how]) for problem in problems), problems


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    submission = good()
    together = ["word for number", "empty caption", "foreign key", "surplus phase", "foreign scenario", "missing scenario"]
    for how in together:
        spoil(submission, how)
    with pytest.raises(SubmissionError, match="6 problems, nothing written") as error:
        write_submission(tmp_path / "submission.json", submission, ASKED)
    assert all(TOLD[how] in str(error.value) for how in together)
    assert not (tmp_path / "submission.json").exists()


def test_something_else_than_a_submission_is_told():
    assert check_submission([], ASKED) == ["expected {scenario: [segments]}, found list"]


def test_segments_asked_for_keep_their_order_and_spelling():
    table = pd.DataFrame(
        [("test", "video7", "avoidance", 4), ("test", "video7", "0", 0), ("test", "video7", "0", 0), ("train", "x", "1", 1)],
        columns=["split", "scenario", "label", "phase"],
    )
    assert expected_segments(table, "test") == {"video7": ["0", "avoidance"]}


# --- baselines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    for name, grey in (("dark.png", 10), ("light.png", 240), ("asked.png", 230)):
        Image.new("RGB", (20, 20), (grey,) * 3).save(tmp_path / name)
    captions = [("dark.png", "Dark.", "Dark."), ("light.png", "Light.", "Light."), ("dark.png", "Dark.", "Dark.")]
    train = pd.DataFrame(captions, columns=["image", "caption_vehicle", "caption_pedestrian"])
    segments = pd.DataFrame([("2023_a", "4", "asked.png")] * 2, columns=["scenario", "label", "image"])
    return tmp_path, train, segments


def test_the_nearest_picture_lends_its_captions(pictures):
    folder, train, segments = pictures
    assert nearest_captions(train, segments, folder) == {
        "2023_a": [{"labels": ["4"], "caption_vehicle": "Light.", "caption_pedestrian": "Light."}]
    }


def test_the_most_frequent_captions_are_said_everywhere(pictures):
    _, train, segments = pictures
    assert most_frequent_captions(train, segments)["2023_a"][0]["caption_vehicle"] == "Dark."


def test_a_written_submission_is_plain_json(tmp_path):
    path = write_submission(tmp_path / "s.json", good(), ASKED)
    assert re.match(r"\{\s+\"2023_a\"", path.read_text()) and json.loads(path.read_text()) == good()
