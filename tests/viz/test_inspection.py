"""Errors of captions and answers are found and ordered as a reader needs them."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

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
