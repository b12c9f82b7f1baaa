"""Captions of the sample are read back as facts and compared with what was drawn."""

import json

import pandas as pd
import pytest
from test_draw import scenes, worded

from beit3lib.data.facts import caption_kind, compare_facts, read_facts
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.sample import DRAWN_NAME, truth
from beit3lib.sample.draw import VALUES, Scene, describe

GAZE = {"line_of_sight", "travel_direction"}  # "looking at the vehicle", "walking towards the vehicle"


def perfect_predictions(drawn):
    rows = [
        (scenario, phase, subject, aspect, describe(scene, subject).get(aspect, ""))
        for (scenario, phase), scene in drawn.items()
        for subject in SUBJECTS
        for aspect in ASPECTS
    ]
    return pd.DataFrame(rows, columns=["scenario", "phase", "subject", "aspect", "caption"])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_wording_is_read_as_the_facts_of_its_scene(subject):
    for scene in [*scenes(200), *worded(200)]:
        for aspect, text in describe(scene, subject).items():
            assert truth.states_correctly(text, scene, subject, aspect), text
            stated, drawn = read_facts(text, subject), truth.scene_facts(scene, subject, aspect)
            assert {slot for slot, value in stated.items() if drawn.get(slot) != value} <= GAZE, text
            missing = {slot for slot in drawn if slot not in stated and drawn[slot] not in truth.OPTIONAL}
            assert missing <= set(truth.OPTIONAL), text


@pytest.mark.parametrize("name", VALUES)
def test_every_wrong_value_is_an_error_of_some_caption_type(name):
    kinds = [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]
    for scene in scenes(30):
        for value in set(VALUES[name]) - {getattr(scene, name)}:
            other = Scene(**{**vars(scene), name: value})
            texts = {kind: describe(other, kind[0]).get(kind[1], "") for kind in kinds}
            assert not all(truth.states_correctly(texts[kind], scene, *kind) for kind in kinds), value


@pytest.mark.parametrize(
    "aspect, caption, expected",
    [
        ("weather", "The weather is rainy.", True),  # an optional fact may be left out
        ("weather", "It is bright with rainy weather.", False),
        ("weather", "It is dark.", False),
        ("pedestrian_description", "", True),  # clothes cannot be seen from the vehicle in the dark
        ("pedestrian_description", "a red jacket and black slacks", False),
    ],
)
def test_a_caption_must_state_what_can_be_seen_and_nothing_else(aspect, caption, expected):
    scene = Scene(weather="rainy", light="dark")
    assert truth.states_correctly(caption, scene, "vehicle", aspect) == expected


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_caption_is_wrong_exactly_if_it_contradicts_the_scene(subject):
    """The oracle: it contradicts a scene if the scene is described otherwise in the same wording."""
    drawn = worded(40)
    for scene, other in zip(drawn, drawn[1:] + drawn[:1], strict=True):
        true = describe(Scene(**{**vars(other), "wording": scene.wording}), subject)
        for aspect, text in describe(scene, subject).items():
            facts = truth.scene_facts(other, subject, aspect)
            wrong = caption_kind(compare_facts(text, facts, subject)) == "wrong"
            assert wrong == (aspect in true and text != true[aspect]), (text, facts)


def test_attribute_shares_are_of_own_plain_hard_and_shuffled_images():
    drawn = {(f"s{i}", 0): scene for i, scene in enumerate(scenes(60, seed=3))}
    table = perfect_predictions(drawn).assign(scenario=lambda t: t["scenario"].replace("s0", "not drawn"))
    shares = truth.attribute_shares(table, drawn)
    assert (shares["own"] == 1).all() and (shares["shuffled"] < 0.6).all() and shares["hard"].isna().all()
    assert shares["captions"].max() == 2 * 59
    drawn = {("a", 0): Scene(), ("b", 0): Scene(condition="distant", weather="rainy")}
    table = perfect_predictions(drawn).assign(caption=lambda t: t["caption"].str.replace("rainy", "clear"))
    shares = truth.attribute_shares(table, drawn).loc["weather"]
    assert (shares["own"], shares["plain"], shares["hard"]) == (0.5, 1.0, 0.0)


def test_the_scene_table_lists_drawn_and_predicted_values(tmp_path):
    content = {"a": {"0": vars(Scene(upper="red", condition="distant"))}}
    (tmp_path / DRAWN_NAME).write_text(json.dumps(content))
    drawn = truth.read_drawn(tmp_path)
    perfect = truth.scene_table(perfect_predictions(drawn), drawn)
    assert set(perfect["outcome"]) == {"equal", "added"} and set(perfect["aspect"]) == set(ASPECTS)
    assert set(perfect.loc[perfect["outcome"] == "added", "slot"]) == {"line_of_sight"}
    kind = {"subject": "pedestrian", "aspect": "pedestrian_description"}
    table = pd.DataFrame([{"scenario": "a", "phase": 0, **kind, "caption": "A blue jacket."}])
    (row,) = truth.scene_table(table, drawn).query("slot == 'upper_color'").to_dict("records")
    found = {"slot": "upper_color", "predicted": "blue", "reference": "red", "outcome": "wrong"}
    assert row == {**kind, **found, "condition": "distant"}
