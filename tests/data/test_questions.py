"""Read WTS's questions with their nine quirks, and write the index of questions."""

import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from question_tree import NORMAL, about_phase, add_questions, add_test_questions, ask, quirky_tree
from wts_tree import SCENE, overhead, vehicle

from beit3lib.data.questions import (
    COLUMNS,
    add_images,
    question_key,
    read_question_index,
    read_questions,
    write_questions,
)
from beit3lib.data.wts import scenario_of
from beit3lib.files import FileError


@pytest.fixture
def quirky(tmp_path):
    return read_questions(quirky_tree(tmp_path))


def one(quirky, **values):
    """The questions with these values."""
    return quirky.table[(quirky.table[list(values)] == list(values.values())).all(axis=1)]


def test_1_both_shapes_of_the_test_file_are_read(quirky, tmp_path):
    rows = one(quirky, split="test")[["id", "scope", "phase", "view", "scenario", "source"]].values.tolist()
    assert rows == [
        ["q1", "phase", 1, "vehicle_view", NORMAL, "wts"],
        ["q2", "scenario", None, "environment", SCENE, "wts"],
        ["q3", "phase", 3, "vehicle_view", "video9", "bdd"],
    ]
    assert len(one(quirky, question="Is pedestrian wearning a hat?", split="train")) == 1
    bare = {"videos": ["video9.mp4"], "conversations": [ask("Is it dry?", "Yes", "No", id="q4")]}
    add_test_questions(tmp_path / "bare", bare)
    assert read_questions(tmp_path / "bare").table["id"].tolist() == ["q4"]


def test_2_options_may_be_few_many_empty_or_repeated(quirky):
    (options,) = one(quirky, question="What is the color of the hat?")["options"]
    assert options == {"a": "Red", "b": "", "c": "Red", "d": "Blue", "e": "Green"}
    assert one(quirky, id="q3")["options"].tolist() == [{"a": "One"}]


def test_4_the_folder_decides_about_the_view(quirky):
    (row,) = one(quirky, view="vehicle_view", split="train", source="wts").to_dict("records")
    assert row["videos"] == [overhead(1), overhead(2)] and row["phase"] == 4
    (row,) = one(quirky, split="val").to_dict("records")
    assert (row["scope"], row["view"], row["videos"], row["phase"]) == ("scenario", "environment", [], None)


def test_3_5_questions_of_a_phase_add_up_with_labels_as_words_or_digits(quirky):
    rows = one(quirky, split="train", scenario=SCENE, scope="phase")
    assert rows["phase"].tolist() == [4, 4, 4] and rows["id"].nunique() == 3
    assert one(quirky, scenario="video5")[["phase", "view"]].values.tolist() == [[3, "vehicle_view"]]


def test_6_questions_without_a_correct_answer_are_skipped_and_named(quirky):
    assert quirky.counts == {"questions": 14, "questions_used": 10, "questions_skipped": 4}
    assert len(quirky.table) == 10 and len(quirky.problems) == 4
    assert all("environment/20230707_1.json: question" in str(problem) for problem in quirky.problems)
    assert one(quirky, split="train", question="What is the action?")["correct"].tolist() == ["b"] * 4
    assert one(quirky, split="test")["correct"].tolist() == [None] * 3


def test_7_texts_stay_as_written_and_are_compared_normalized(quirky):
    assert "Is pedestrian wearning a hat?" in quirky.table["question"].tolist()
    assert question_key(" Is  it wearning a HAT ?") == question_key("Is it wearning a hat")
    assert question_key("10 km/h") != question_key("1.0 km/h")
    assert question_key("+") != question_key("-")


def test_8_other_file_names_levels_and_synwts(quirky, tmp_path):
    assert one(quirky, split="val")["scenario"].tolist() == [NORMAL]
    (identity,) = one(quirky, scope="scenario", split="train")["id"]
    assert identity == f"train/{SCENE}/environment/20230707_1#1"
    assert one(quirky, scenario="synthetic")[["split", "source", "phase"]].values.tolist() == [
        ["train", "wts", 2]
    ]
    below = read_questions(tmp_path / "annotations/vqa/val").table  # ids do not depend on the root
    assert below["id"].tolist() == one(quirky, split="val")["id"].tolist()


def test_the_scenario_follows_from_the_name_of_a_video():
    cut = NORMAL.removesuffix("_event_2")
    videos = {SCENE: [f"{SCENE}_Camera2_1.mp4", f"{SCENE}_192.168.0.28_3.mp4", f"{SCENE}_192.168.0.11-1.mp4"]}
    for name in (SCENE, NORMAL, cut, "video3334"):
        for video in (f"{name}.mp4", vehicle(name), *videos.get(name, ())):
            assert scenario_of(video) == name == scenario_of(video, {name, "20230707_1", "video3"})
    assert scenario_of(f"{SCENE}_west.mp4", {SCENE, "20230707_1"}) == SCENE


def test_broken_files_and_unknown_labels_are_named(tmp_path):
    quirky_tree(tmp_path)
    add_questions(tmp_path, "[{", scenario="half")
    add_questions(tmp_path, {"id": 5}, scenario="none")
    (tmp_path / "annotations/vqa/train/loose.json").write_text("[]")
    odd = about_phase("crash", ask("Where?", "Here", "There", id="q9"))
    add_test_questions(tmp_path, [{"videos": [overhead(3)], "event_phase": [odd]}, 5], "other_vqa.json")
    questions = read_questions(tmp_path)
    problems = [str(problem) for problem in questions.problems if "20230707_1.json" not in str(problem)]
    assert len(problems) == 5
    listed = ("half.json: expected JSON", "none.json: expected event_phase", "loose.json: expected …/vqa/")
    assert all(any(text in problem for problem in problems) for text in listed)
    assert questions.table.set_index("id").loc["q9", ["scenario", "scope"]].tolist() == [SCENE, "scenario"]
    assert read_questions(tmp_path / "external").counts["questions"] == 1
    assert read_questions(tmp_path / "absent").table.empty


def test_the_index_lists_the_images_of_all_cameras(quirky, tmp_path):
    rows = [("train", SCENE, phase, f"{phase}{camera}.jpg") for phase in (3, 4) for camera in "xy"]
    phases = pd.DataFrame(rows, columns=["split", "scenario", "phase", "image"])
    run, train = tmp_path / "run", one(quirky, split="train")
    shown, problems = add_images(train, phases, tmp_path / "images", run)
    index = read_question_index(write_questions(run / "questions.train.jsonl", shown))
    assert index[COLUMNS].values.tolist() == train.values.tolist()
    names = [f"../images/{row[-1]}" for row in rows]
    assert index["images"].tolist() == [[], names, *[names[2:]] * 3, []]
    without = f"1 questions without an image in {tmp_path / 'images'} (rerun the stage prepare)"
    assert list(map(str, problems)) == [f"train/synthetic: {without}", f"train/video5: {without}"]


def test_an_index_of_another_kind_is_an_error_with_its_line(tmp_path):
    (tmp_path / "i.jsonl").write_text('{"image_path": "a.jpg"}\n')
    with pytest.raises(FileError, match=r"i\.jsonl: expected split.*Rerun the stage index"):
        read_question_index(tmp_path / "i.jsonl")


SCALAR = st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["4", "action", "a", 1])
NAME = st.sampled_from("abh") | st.text(max_size=2)
JSON = st.recursive(SCALAR, lambda j: st.lists(j, max_size=3) | st.dictionaries(NAME, j), max_leaves=6)
KEYS = ["question", "a", "b", "correct", "id"]
QUESTION = JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON | st.just("b")))
ASKED = JSON | st.lists(QUESTION, max_size=4)
PHASE = JSON | st.fixed_dictionaries({"labels": JSON | st.just(["action"]), "conversations": ASKED})
BLOCKS = {"environment": ASKED, "conversations": ASKED, "event_phase": JSON | st.lists(PHASE)}
ENTRY = st.fixed_dictionaries({}, optional={"videos": JSON} | BLOCKS)
CONTENT = JSON | ENTRY | st.lists(ENTRY | JSON, max_size=3)


@settings(max_examples=150, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT, CONTENT)
def test_any_content_is_read_or_named_and_counts_add_up(tmp_path, train, test):
    add_questions(tmp_path, json.dumps(train))
    add_test_questions(tmp_path, json.dumps(test))
    add_questions(tmp_path, {"environment": [ask("Dry?", "Yes", "No")]}, "environment")
    table, problems, counts = read_questions(tmp_path)
    assert counts["questions"] - counts["questions_skipped"] == counts["questions_used"] == len(table)
    assert len(problems) >= counts["questions_skipped"] and table["id"].is_unique
    assert (table["question"] == "Dry?").any() and all(table["options"])
    trained = table[table["split"] != "test"]
    assert all(a in options for a, options in zip(trained["correct"], trained["options"], strict=True))
    phases = pd.DataFrame(columns=["split", "scenario", "phase", "image"])
    write_questions(tmp_path / "i.jsonl", add_images(table, phases, tmp_path, tmp_path)[0])
    assert read_question_index(tmp_path / "i.jsonl")[COLUMNS].equals(table)
