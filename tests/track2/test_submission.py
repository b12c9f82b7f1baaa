"""Captions are composed of aspects and views, and a wrong submission is refused with a list of all its problems."""

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
    most_frequent_captions,
    nearest_captions,
    usual_captions,
    usual_lengths,
    write_submission,
)

EXPECTED = {"2023_a": ["0", "4"], "video7": ["avoidance"]}


def entry(label, **changes):
    return {"labels": [label], "caption_pedestrian": "He walks.", "caption_vehicle": "It turns.", **changes}


def correct():
    return {"2023_a": [entry("0"), entry("4")], "video7": [entry("avoidance")]}


def test_aspects_are_in_reading_order_without_repeated_sentences():
    parts = {
        "road": "It is wet. The road is narrow.",
        "weather": "It is wet.",
        "position": "It is behind.",
        "moving": "It turns.",
    }
    assert compose(parts, "vehicle") == "It is behind. It turns. It is wet. The road is narrow."
    assert compose({"moving": "He walks.", "road": "Dry."}, "pedestrian") == "Dry. He walks."


def test_absent_and_empty_aspects_add_nothing():
    assert compose({"moving": "He walks.", "road": "", "weather": None}, "pedestrian") == "He walks."


def test_a_whole_caption_replaces_those_of_aspects():
    assert compose({"full": "One. Two.", "moving": "Three."}, "vehicle") == "One. Two."


def test_only_captions_above_the_limit_lose_sentences_and_repeated_ones_first():
    sentences = ["The road is wet and narrow.", "A man in red walks.", "The road is narrow."]
    assert fit_length(sentences, None) == fit_length(sentences, 15) == " ".join(sentences)
    assert fit_length(sentences, 12) == "The road is wet and narrow. A man in red walks."
    assert (
        fit_length(["One long sentence is never cut to nothing."], 2)
        == "One long sentence is never cut to nothing."
    )


def test_a_caption_is_never_cut_further_below_the_limit_than_it_was_above():
    assert (
        fit_length(["one two three four five six", "seven eight nine ten"], 9)
        == "one two three four five six seven eight nine ten"
    )


def test_the_usual_length_is_the_90th_percentile():
    table = pd.DataFrame(
        {f"caption_{s}": [" ".join(["word"] * n) for n in range(1, 12)] for s in ("vehicle", "pedestrian")}
    )
    assert usual_lengths(table) == {"vehicle": 10.0, "pedestrian": 10.0}


def test_a_view_is_chosen_by_log_prob_or_by_consensus():
    captions, log_probs = ["a b c d", "a b c e", "x y z w"], [-3.0, -2.0, -1.0]
    assert choose_view(captions, log_probs) == "x y z w"
    assert choose_view(captions, log_probs, "consensus") == "a b c e"
    with pytest.raises(ValueError, match="choose: expected one of log_prob, consensus, got 'luck'"):
        choose_view(captions, log_probs, "luck")


def rows(
    *,
    views=("a_1.mp4", "a_2.mp4"),
    label="4",
    scenario="2023_a",
    phase=4,
    captions=("It turns.", "It stops."),
):
    found = []
    for view, caption in zip(views, captions, strict=True):
        for subject in ("vehicle", "pedestrian"):
            about = {"scenario": scenario, "video": view, "label": label, "phase": phase, "subject": subject}
            found.append({**about, "aspect": "moving", "caption": caption, "log_prob": -float(len(caption))})
    return found


def test_a_submission_has_phases_in_order_and_original_labels():
    later, first = (
        rows(label="action", phase=3, scenario="video7"),
        rows(label="0", phase=0, scenario="video7"),
    )
    built = build_submission(pd.DataFrame([*later, *first, *rows()]))
    assert [e["labels"] for e in built["video7"]] == [["0"], ["action"]]
    assert built["2023_a"] == [
        {"labels": ["4"], "caption_vehicle": "It turns.", "caption_pedestrian": "It turns."}
    ]


def test_the_variant_with_the_best_validation_score_is_chosen():
    table = pd.DataFrame(
        rows(
            views=("1", "2", "3"),
            captions=("It turns right here now.", "It turns right here.", "Nothing like it at all here."),
        )
    )
    table["log_prob"] = [0.0, 0.0, -1.0, -1.0, 1.0, 1.0]
    truth = {("2023_a", "4"): {s: "It turns right here now." for s in ("vehicle", "pedestrian")}}
    options, variants = choose_by_validation(table, truth, {"vehicle": 50.0, "pedestrian": 50.0})
    assert options == {"choose": "consensus", "most_words": None} and len(variants) == 4
    scores = variants.set_index(["choose", "fitted"])["score"]
    assert scores["consensus", False] > scores["log_prob", False]


def test_without_validation_captions_the_defaults_are_chosen():
    empty = pd.DataFrame(rows())[:0]
    for predictions, references in ((empty, {}), (empty, {("a", "0"): {}}), (pd.DataFrame(rows()), {})):
        options, variants = choose_by_validation(predictions, references, {})
        assert options == {"choose": "log_prob", "most_words": None} and variants.empty
    assert usual_lengths(pd.DataFrame({"caption_vehicle": [None], "caption_pedestrian": ["He walks."]})) == {
        "pedestrian": 2.0
    }


def test_two_spellings_of_a_label_are_one_segment():
    table = pd.DataFrame([*rows(label="04"), *rows(label="4")])
    assert [entry["labels"] for entry in build_submission(table)["2023_a"]] == [["4"]]
    phases = table.assign(split="test")
    assert expected_segments(phases, "test") == {"2023_a": ["4"]} == expected_segments(phases[::-1], "test")


def test_predictions_with_null_captions_and_log_probs_are_composed():
    table = pd.DataFrame(rows()).assign(log_prob=[None, None, float("nan"), -1.0])
    table.loc[0, "caption"] = None
    built = build_submission(table)["2023_a"][0]
    assert built == {"labels": ["4"], "caption_vehicle": "", "caption_pedestrian": "It stops."}


def test_a_correct_submission_is_written(tmp_path):
    assert check_submission(correct(), EXPECTED) == []
    written = write_submission(tmp_path / "submission.json", correct(), EXPECTED)
    assert written.filled == [] and written.submission == correct()
    text = written.path.read_text()
    assert json.loads(text) == correct() and re.match(r"\{\s+\"2023_a\"", text)


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


PROBLEMS = {
    "missing phase": "2023_a: no segment with label 4",
    "surplus phase": "2023_a label 3: not expected",
    "word for number": '2023_a label "avoidance": expected as "4"',
    "empty caption": "2023_a label 0: caption_vehicle: expected text, found an empty caption",
    "no caption": "2023_a label 0: caption_pedestrian: expected text, found none",
    "caption no text": "2023_a label 0: caption_vehicle: expected text, found int",
    "foreign key": "2023_a label 0: unknown key mood",
    "foreign scenario": "2023_b: not expected",
    "missing scenario": "video7: no segment with label avoidance",
    "twice": "2023_a label 4: expected once, found 2 times",
    "label no list": '2023_a: expected {"labels": ["0"], …}',
    "no list": "video7: expected a list of segments, found dict",
}


@pytest.mark.parametrize("how", PROBLEMS)
def test_each_kind_of_error_is_reported(how):
    problems = check_submission(spoil(correct(), how), EXPECTED)
    assert any(problem.startswith(PROBLEMS[how]) for problem in problems), problems


def test_all_errors_are_reported_together_and_nothing_is_written(tmp_path):
    submission = correct()
    together = [
        "word for number",
        "empty caption",
        "foreign key",
        "surplus phase",
        "foreign scenario",
        "missing scenario",
    ]
    for how in together:
        spoil(submission, how)
    with pytest.raises(SubmissionError, match="found 6 problems, wrote nothing") as error:
        write_submission(tmp_path / "submission.json", submission, EXPECTED)
    assert all(PROBLEMS[how] in str(error.value) for how in together)
    assert not (tmp_path / "submission.json").exists()


def test_a_submission_that_is_no_object_is_reported():
    assert check_submission([], EXPECTED) == ["expected {scenario: [segments]}, found list"]


def test_expected_segments_keep_order_and_spelling():
    table = pd.DataFrame(
        [
            ("test", "video7", "avoidance", 4),
            ("test", "video7", "0", 0),
            ("test", "video7", "0", 0),
            ("train", "x", "1", 1),
        ],
        columns=["split", "scenario", "label", "phase"],
    )
    assert expected_segments(table, "test") == {"video7": ["0", "avoidance"]}


def test_missing_captions_are_an_error_unless_fill_missing_is_set(tmp_path):
    path, holes = tmp_path / "submission.json", correct()
    del holes["video7"]
    holes["2023_a"][0]["caption_vehicle"] = ""
    usual = {"caption_vehicle": "It stops.", "caption_pedestrian": "He stops."}
    with pytest.raises(SubmissionError, match="pass fill_missing=True"):
        write_submission(path, holes, EXPECTED, usual=usual)
    assert not path.exists()
    written = write_submission(path, holes, EXPECTED, fill_missing=True, usual=usual)
    assert written.filled == [
        "2023_a label 0: caption_vehicle",
        "video7 label avoidance: caption_vehicle, caption_pedestrian",
    ]
    assert check_submission(json.loads(path.read_text()), EXPECTED) == []
    assert written.submission["2023_a"][0] == entry("0", caption_vehicle="It stops.")
    assert written.submission["video7"] == [{"labels": ["avoidance"], **usual}]


def test_a_subject_without_training_captions_cannot_be_filled(tmp_path):
    train = pd.DataFrame({"caption_vehicle": [None, None], "caption_pedestrian": ["He walks.", None]})
    assert usual_captions(train) == {"caption_pedestrian": "He walks."}
    with pytest.raises(SubmissionError, match="caption_vehicle: expected text, found none"):
        write_submission(tmp_path / "s.json", {}, EXPECTED, fill_missing=True, usual=usual_captions(train))


@pytest.fixture
def images(tmp_path):
    for name, gray in (("dark.png", 10), ("light.png", 240), ("query.png", 230)):
        Image.new("RGB", (20, 20), (gray,) * 3).save(tmp_path / name)
    rows = [
        ("a", "dark.png", "Dark.", "Dark."),
        ("b", "light.png", "Light.", "Light."),
        ("c", "dark.png", "Dark.", "Dark."),
    ]
    train = pd.DataFrame(rows, columns=["scenario", "image", "caption_vehicle", "caption_pedestrian"])
    segments = pd.DataFrame(
        [("2023_a", "4", "query.png"), ("2023_a", "04", "dark.png")], columns=["scenario", "label", "image"]
    )
    return tmp_path, train, segments


def test_the_nearest_image_gives_its_captions(images):
    folder, train, segments = images
    assert nearest_captions(train, segments, folder) == {
        "2023_a": [{"labels": ["4"], "caption_vehicle": "Light.", "caption_pedestrian": "Light."}]
    }


def test_the_nearest_image_is_never_of_the_same_scenario(images):
    folder, train, _ = images
    segments = train.assign(label="0")
    built = nearest_captions(train, segments, folder)
    assert {name: entries[0]["caption_vehicle"] for name, entries in built.items()} == {
        "a": "Dark.",
        "b": "Dark.",
        "c": "Dark.",
    }
    assert (
        nearest_captions(train[:1], segments[:1], folder)
        == nearest_captions(train[:0], segments, folder)
        == {}
    )


def test_images_that_cannot_be_opened_are_skipped(images):
    folder, train, segments = images
    (folder / "light.png").write_text("no image")
    segments.loc[1, "image"] = "absent.png"
    assert nearest_captions(train, segments, folder)["2023_a"][0]["caption_vehicle"] == "Dark."


def test_the_most_frequent_captions_fill_every_segment(images):
    _, train, segments = images
    built = most_frequent_captions(train, segments)
    assert built == {"2023_a": [{"labels": ["4"], "caption_vehicle": "Dark.", "caption_pedestrian": "Dark."}]}
