"""Errors of captions and answers are found, counted and ordered as a reader needs them."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beit3lib.data.facts import fact_scores
from beit3lib.viz import inspection, marks
from beit3lib.viz.gallery import with_facts

JACKET = "The pedestrian wears a {} jacket."


def captions(*rows):
    """A table of pedestrian captions from (scenario, caption, reference)."""
    about = {
        "log_prob": -1.0,
        "subject": "pedestrian",
        "aspect": "pedestrian_description",
        "split": "val",
        "phase": 0,
    }
    return pd.DataFrame(
        [
            {"image": f"images/{i}.jpg", "scenario": name, "caption": text, "reference": reference, **about}
            for i, (name, text, reference) in enumerate(rows)
        ]
    )


RED, BLUE = JACKET.format("red"), JACKET.format("blue")
TABLE = captions(
    ("a", RED, RED),
    ("b", RED, BLUE),
    ("b", BLUE, RED),
    ("c", RED, BLUE + " He wears black slacks."),
    ("d", RED, None),
)


def test_there_is_one_example_for_each_kind_of_error_and_slot_each_of_another_scenario():
    examples = inspection.error_examples(TABLE)
    found = examples[["scenario", "slot", "outcome", "count"]].to_numpy().tolist()
    assert found[0] == ["b", "upper_color", "wrong", 3]
    assert {(slot, outcome) for _, slot, outcome, _ in found[1:]} == {
        ("lower_garment", "omitted"),
        ("lower_color", "omitted"),
    }
    assert examples["aspect"][0].endswith("(upper color wrong in 3 captions)")
    assert [len(facts) for facts in examples["facts"]] == [1, 1, 1]
    confident = inspection.error_examples(TABLE.assign(log_prob=[0, -3, -2, -1, 0]))
    assert confident["scenario"][0] == "c"  # the most confident error
    for nothing in (TABLE[:1], TABLE[4:]):  # no error, no reference
        assert inspection.error_examples(nothing)["outcome"].tolist() == []
        assert inspection.words_to_show(nothing).empty


def test_facts_with_most_wrong_values_come_first_with_precision_and_recall():
    table = inspection.slot_table(fact_scores(TABLE))
    color = table.set_index("fact").loc["upper color"]
    assert (color["wrong"], color["precision"], color["recall"]) == (3, "25.0 %", "25.0 %")
    assert table["fact"].tolist()[:2] == ["all", "upper color"]
    assert inspection.slot_table(fact_scores(TABLE[4:]))["fact"].tolist() == ["all"]


def test_maps_are_drawn_for_wrong_words_or_for_those_that_are_looked_for():
    words = inspection.words_to_show(TABLE)
    assert words[["scenario", "word", "reference"]].to_numpy().tolist()[0] == ["b", "red", "blue"]
    assert words["scenario"].tolist() == ["b", "c"]
    ways = captions(("w", "The road is a one-way road.", "The road is a two-way road."))
    assert inspection.words_to_show(ways)["word"].tolist() == ["one-way"]
    words = inspection.words_to_show(TABLE, ["jacket", "blue"], count=2)
    assert words[["scenario", "word"]].to_numpy().tolist() == [["a", "jacket"], ["b", "jacket"]]


def questions(**columns):
    asked = {"split": "val", "scenario": "s", "scope": "phase", "view": "overhead_view", "phase": 0}
    asked |= {
        "question": "What is the color of the jacket?",
        "options": {"a": "red", "b": "blue"},
        "correct": "a",
    }
    asked |= {"answer": "b", "changed": False, "log_probs": {"a": np.log(0.25), "b": np.log(0.75)}}
    rows = max(len(values) for values in columns.values())
    return pd.DataFrame({"id": map(str, range(rows)), **{k: [v] * rows for k, v in asked.items()}, **columns})


def test_options_have_bars_and_marks():
    table = inspection.answer_table(questions(scenario=["s"]))
    assert table["probability"].tolist() == ["█████ 25%", "███████████████ 75%"]
    assert table.iloc[:, 2].tolist() == ["✓", "→"] and table["question"].tolist()[1] == ""
    assert inspection.question_table(questions(scenario=["s"]))["options"].tolist() == ["red ✓ · blue"]


def test_questions_are_ordered_by_accuracy_with_the_answers_that_are_confused():
    answered = questions(answer=["a", "b", "b", "a"], question=["one"] * 3 + ["two"])
    table = inspection.question_accuracy(answered)
    assert table.iloc[0].tolist() == ["one", 3, "33.3 %", "red → blue (2)"]
    assert table.iloc[1].tolist() == ["two", 1, "100.0 %", ""]
    assert inspection.question_accuracy(questions(correct=[None, None])).empty


@pytest.fixture
def known():
    """What goes together in 40 training phases: the color of the jacket and the answer about it."""
    phases = pd.DataFrame({"scenario": [f"t{i}" for i in range(40)], "phase": 0})
    phases["caption_pedestrian"] = [(RED, BLUE)[i % 2] for i in range(40)]
    phases["caption_vehicle"] = [
        ("The vehicle stops.", "The vehicle is going fast.")[i // 2 % 2] for i in range(40)
    ]
    train = questions(scenario=phases["scenario"].tolist(), correct=["ab"[i % 2] for i in range(40)])
    return marks.AnswerFacts(phases, train)


def test_a_fact_that_training_never_has_with_an_answer_contradicts_it(known):
    answered = questions(scenario=["a", "b", "d"])  # the answer is blue
    found = marks.answer_contradictions(TABLE, answered, known)
    assert (
        found.index.tolist() == [0, 1, 4]
        and set(found["caption"]) == {"red"}
        and set(found["answer"]) == {"blue"}
    )
    texts = marks.contradiction_texts(found)
    assert texts[4] == "upper color red, but “What is the color of the jacket?” blue"
    assert marks.contradiction_texts(found[:0]).empty


def test_an_answer_about_the_whole_scenario_counts_for_all_phases_and_unknown_ones_do_not(known):
    whole = questions(scenario=["a"], phase=[None])
    assert marks.answer_contradictions(TABLE, whole, known).index.tolist() == [0]
    unknown = questions(scenario=["a"], options=[{"a": "red", "b": "purple"}])
    assert marks.answer_contradictions(TABLE, unknown, known).empty
    assert marks.answer_contradictions(TABLE, questions(scenario=["a"])[:0], known).empty


def test_the_frame_holds_the_page_of_the_images_with_most_wrong_captions(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{i}.jpg")
    table = with_facts(TABLE).assign(frame=None, video_path=None)
    asked = questions(scenario=["b"]).assign(image="images/1.jpg")
    page = inspection.gallery_frame(
        table, asked, tmp_path, {"other": TABLE}, 3, title="Captions of run 'x'"
    ).data
    assert page.startswith('<div><iframe srcdoc="&lt;!') and page.count("<") == 4
    assert set(re.findall(r"images/\d\.jpg", page)) == {"images/1.jpg", "images/2.jpg", "images/3.jpg"}


def test_a_page_is_linked_only_where_the_notebook_is_saved_in_its_working_folder(monkeypatch, tmp_path):
    page = tmp_path / "a & b" / "gallery.html"
    for name in ("JPY_SESSION_NAME", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert "a &amp; b/gallery.html</code>" in inspection.page_link(page).data
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/04_inspect_captions.ipynb")
    assert '<a href="a%20%26%20b/gallery.html"' in inspection.page_link(page).data


def test_boxes_frames_and_videos_are_those_of_phases_csv():
    phases = pd.DataFrame({"image": ["0.jpg"], "video_path": ["a.mp4"], "start_s": [1.0], "end_s": [2.0]})
    phases = phases.assign(box_vehicle_xywh_px="1 2 3 4", frame_width_px=64, frame_height_px=48)
    first, second = inspection.with_media(TABLE[:2], phases).to_dict("records")
    assert first["frame"] == "frames/0.jpg" and first["video_path"].endswith("/a.mp4") and first["end_s"] == 2
    assert first["box_vehicle_xywh_px"] == "1 2 3 4" and pd.isna(second["video_path"])
