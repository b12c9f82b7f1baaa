"""Captions of the sample are read back as facts and compared with what was drawn."""

import json

import numpy as np
import pandas as pd
import pytest
from test_draw import scenes, worded

from beit3lib.data.facts import caption_kind, compare_facts, read_facts
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.sample import DRAWN_NAME, truth
from beit3lib.sample.draw import VALUES, Scene, describe


def perfect_predictions(drawn):
    rows = [
        (scenario, phase, subject, aspect, describe(scene, subject).get(aspect, ""))
        for (scenario, phase), scene in drawn.items()
        for subject in SUBJECTS
        for aspect in ASPECTS
    ]
    return pd.DataFrame(rows, columns=["scenario", "phase", "subject", "aspect", "caption"])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_captions_are_read_back_as_drawn(subject):
    for scene in [*scenes(200), *worded(200)]:
        for aspect, text in describe(scene, subject).items():
            assert truth.states_correctly(text, scene, subject, aspect), text


@pytest.mark.parametrize("name", VALUES)
def test_every_wrong_value_is_an_error_of_some_caption_type(name):
    for scene in scenes(30):
        for value in set(VALUES[name]) - {getattr(scene, name)}:
            other = Scene(**{**vars(scene), name: value})
            wrong = [
                (subject, aspect)
                for subject in SUBJECTS
                for aspect in ASPECTS
                if not truth.states_correctly(
                    describe(other, subject).get(aspect, ""), scene, subject, aspect
                )
            ]
            assert wrong, (name, value)


def test_an_optional_attribute_may_be_left_out_but_not_stated_twice():
    scene = Scene(weather="rainy", light="dark")
    correct = {"The weather is rainy.": True, "It is dark.": False, "It is bright with rainy weather.": False}
    correct |= {"The weather is rainy. It is dark.": True, "It is dark, bright and rainy.": False}
    for caption, expected in correct.items():
        assert truth.states_correctly(caption, scene, "vehicle", "weather") == expected, caption


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_wording_is_read_as_the_facts_of_its_scene(subject):
    for scene in [*scenes(50), *worded(200)]:
        for aspect, text in describe(scene, subject).items():
            stated, drawn = read_facts(text, subject), truth.scene_facts(scene, subject, aspect)
            gaze = {
                "line_of_sight",
                "travel_direction",
            }  # "looking at the vehicle", "walking towards the vehicle"
            assert stated.items() - drawn.items() == {item for item in stated.items() if item[0] in gaze}, (
                text
            )
            assert {s for s in drawn if s not in stated and drawn[s] not in truth.OPTIONAL} <= set(
                truth.OPTIONAL
            )


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_caption_is_wrong_exactly_if_it_contradicts_the_scene(subject):
    """The oracle: a caption contradicts a scene if it is not what the scene is described as in the same wording."""
    drawn = worded(40)
    for scene, other in zip(drawn, drawn[1:] + drawn[:1], strict=True):
        true = describe(Scene(**{**vars(other), "wording": scene.wording}), subject)
        for aspect, text in describe(scene, subject).items():
            facts = truth.scene_facts(other, subject, aspect)
            wrong = caption_kind(compare_facts(text, facts, subject)) == "wrong"
            assert wrong == (aspect in true and text != true[aspect]), (text, facts)


def test_attribute_shares_of_plain_and_hard_scenes_are_separate():
    drawn = {("a", 0): Scene(), ("b", 0): Scene(condition="distant", weather="rainy")}
    table = perfect_predictions(drawn).assign(caption=lambda t: t["caption"].str.replace("rainy", "clear"))
    shares = truth.attribute_shares(table, drawn).loc["weather"]
    assert (shares["own"], shares["plain"], shares["hard"]) == (0.5, 1.0, 0.0)


def test_an_aspect_that_is_not_mentioned_requires_an_empty_caption():
    dark = Scene(light="dark")
    assert truth.states_correctly("", dark, "vehicle", "pedestrian_description")
    assert not truth.states_correctly(
        "a red jacket and black slacks", dark, "vehicle", "pedestrian_description"
    )


def test_attribute_shares_differ_between_own_and_shuffled_images():
    drawn = {(f"s{i}", 0): scene for i, scene in enumerate(scenes(60, seed=3))}
    shares = truth.attribute_shares(perfect_predictions(drawn), drawn)
    assert (shares["own"] == 1).all() and (shares["shuffled"] < 0.6).all()


def test_attribute_shares_skip_scenarios_that_were_not_drawn():
    drawn = {(f"s{i}", 0): scene for i, scene in enumerate(scenes(10))}
    table = perfect_predictions(drawn).assign(scenario=lambda t: t["scenario"].replace("s0", "other"))
    assert truth.attribute_shares(table, drawn)["captions"].max() == 2 * 9


def test_the_scene_table_lists_drawn_and_predicted_values():
    drawn = {("a", 0): Scene(upper="red", condition="distant")}
    table = perfect_predictions(drawn).query("aspect == 'pedestrian_description' and subject == 'pedestrian'")
    (row,) = (
        truth.scene_table(table.assign(caption="A blue jacket."), drawn).query("slot == 'upper_color'").values
    )
    assert row.tolist() == [
        "pedestrian",
        "pedestrian_description",
        "upper_color",
        "blue",
        "red",
        "wrong",
        "distant",
    ]
    perfect = truth.scene_table(perfect_predictions(drawn), drawn)
    assert set(perfect["outcome"]) == {"equal", "added"} and set(perfect["aspect"]) == set(ASPECTS)
    assert set(perfect.loc[perfect["outcome"] == "added", "slot"]) == {"line_of_sight"}


def test_the_drawn_values_are_read_from_the_sample(tmp_path):
    (tmp_path / DRAWN_NAME).write_text(json.dumps({"a": {"0": vars(Scene(light="dark"))}}))
    assert truth.read_drawn(tmp_path) == {("a", 0): Scene(light="dark")}


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"a": 5}', '{"a": {"0": {"mood": "fine"}}}', '{"a": {"x": {}}}']
)
def test_broken_drawn_values_name_the_file(tmp_path, content):
    (tmp_path / DRAWN_NAME).write_text(content)
    with pytest.raises(ValueError, match=DRAWN_NAME):
        truth.read_drawn(tmp_path)


def test_the_share_of_attention_in_a_box_counts_parts_of_patches():
    even = np.ones((4, 4))
    assert truth.share_in_box(even, (0, 0, 8, 8), (8, 8)) == pytest.approx(1)
    assert truth.share_in_box(even, (1, 1, 2, 4), (8, 8)) == pytest.approx(8 / 64)
    corner = np.zeros((4, 4))
    corner[0, 3] = 5
    assert truth.share_in_box(corner, (6, 0, 2, 2), (8, 8)) == pytest.approx(1)
    assert truth.share_in_box(corner, (7, -5, 9, 9), (8, 8)) == pytest.approx(0.5)
