"""Captions are read as facts, by sentences of each kind; facts are compared with those of references and counted."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from beit3lib.data.facts import (
    NUMBERS,
    SLOT_ASPECT,
    agree,
    caption_kind,
    compare_facts,
    fact_scores,
    fact_table,
    read_facts,
)
from beit3lib.data.schema import SUBJECTS

SHARED = Path(__file__).parents[3] / "shared" / "data"

PEDESTRIAN = """
A woman in her twenties, 160 cm tall, wears a white T-shirt and a dark blue skirt. | gender: female; age: 20s; height_cm: 160; upper_color: white; upper_garment: t-shirt; lower_color: dark blue; lower_garment: skirt
A middle-aged man holds a cane and wears a red hat, but no glasses. | gender: male; cane: yes; hat: yes; hat_color: red; glasses: no
He is standing still and almost notices the vehicle. | motion: standing; aware: almost
Slowly looking around, he is unaware of the vehicle. | visual_status: looking around slowly; aware: no
She is aware of her surroundings. |
Closely watching, he keeps his eyes on the parked vehicle. | visual_status: closely watching; line_of_sight: parked vehicle
Her line of sight is in front, in the direction of travel. | line_of_sight: direction of travel
She walks in the same direction as the vehicle. | motion: walking; travel_direction: same
His body is perpendicular to the vehicle and to the right. | orientation: perpendicular right
He faces diagonally to the left, in the opposite direction to the vehicle. | orientation: diagonal left opposite
She is behind the vehicle on the right side. | position: behind right
The vehicle is moving slowly on the left side of the pedestrian. |
He fell after the collision. | motion: colliding
He is not far from the vehicle, in close proximity. | distance: near
There is a sidewalk only on the left side. | sidewalk: one
There is no sidewalk or roadside strip on both sides and street lights are present. | sidewalk: no; roadside_strip: no; street_lights: yes
"""
VEHICLE = """
The vehicle is going straight ahead at 0 km/h, so it is stationary. | motion: straight; speed_kmh: 0
It is accelerating. |
It is about to start moving, but is currently stationary. | motion: starting
It is making a right turn. | motion: turning right
It avoided a collision by emergency braking and stopped. | motion: braking
It did not collide. |
The pedestrian has stopped and is unaware of the vehicle. |
The pedestrian is on the left side of the vehicle. |
The vehicle is behind and to the left of the pedestrian. | position: behind left
An obstacle, 2 m high, is on the right side of the pedestrian. | obstacle: yes
The pedestrian is not visible within the vehicle's field of view. | visible: no
It is sunny and well lit. | weather: clear; light: bright
It is cloudy and the brightness is low. | weather: cloudy; light: dark
The road is level and inclined, wet asphalt. | incline: level; surface_condition: wet; surface: asphalt
A one-way main road with three lanes and heavy traffic. | ways: one; road_type: main; lanes: 3; traffic: heavy
There is an intersection without a signal. | signal: no
"""


def cases(subject, lines):
    for line in lines.strip().splitlines():
        sentence, stated = line.split("|")
        facts = dict(part.strip().split(": ") for part in stated.split(";") if part.strip())
        yield subject, sentence.strip(), {s: int(v) if s in NUMBERS else v for s, v in facts.items()}


@pytest.mark.parametrize(
    "subject, sentence, facts", [*cases("pedestrian", PEDESTRIAN), *cases("vehicle", VEHICLE)]
)
def test_a_sentence_is_read_as_its_facts(subject, sentence, facts):
    assert read_facts(sentence, subject) == facts


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"real WTS captions are not at {SHARED}")
def test_facts_of_real_captions_agree_with_each_other():
    counts = []
    for item in json.loads((SHARED / "vehicle_captions.json").read_text()):
        facts = read_facts(item["caption_vehicle"], "vehicle")
        counts.append(len(facts))
        assert facts.get("height_cm", 170) in range(120, 200) and facts.get("speed_kmh", 0) in range(0, 65, 5)
        assert facts.get("lanes", 1) <= 6
    assert sum(counts) / len(counts) > 19
    different, of_scene = set(), ("pedestrian_description", "road", "weather")
    for path in (SHARED / "wts_real").rglob("overhead_view/*_caption.json"):
        for phase in json.loads(path.read_text())["event_phase"]:
            one, other = (read_facts(phase[f"caption_{subject}"], subject) for subject in SUBJECTS)
            shared = [slot for slot in one if slot in other and SLOT_ASPECT[slot] in of_scene]
            assert len(shared) >= 13
            different |= {(*phase["labels"], s) for s in shared if not agree(s, one[s], other[s])}
    assert different == {("0", "sidewalk")}  # these captions of one moment contradict each other


ALIKE = """sidewalk yes/both; orientation perpendicular/perpendicular left; age elderly/80s; visible partly/yes;
upper_garment shirt/t-shirt; upper_color blue/navy blue; incline uphill/steep uphill"""
DIFFERENT = """sidewalk yes/no; sidewalk one/both; orientation perpendicular right/perpendicular left;
orientation same/diagonal left same; age elderly/30s; visible partly/no; upper_color light blue/navy blue;
position front/front left"""


@pytest.mark.parametrize("pairs, expected", [(ALIKE, True), (DIFFERENT, False)])
def test_values_agree_if_both_can_be_true(pairs, expected):
    for slot, values in (pair.split(maxsplit=1) for pair in pairs.split(";")):
        one, other = values.split("/")
        assert agree(slot, one, other) is agree(slot, other, one) is expected, slot


def test_a_caption_is_of_the_kind_of_its_worst_outcome():
    captions = ["Clouds in the dark.", "It is cloudy and dark, the road is dry.", "It is sunny and dark."]
    kinds = dict(zip(captions, ("equal in fact", "extended", "wrong"), strict=True))
    kinds |= dict.fromkeys(("", "It is cloudy.", "It is cloudy, the road is dry."), "incomplete")
    reference = "The weather is cloudy. It is dark."
    assert {c: caption_kind(compare_facts(c, reference, "vehicle")) for c in kinds} == kinds
    assert caption_kind(compare_facts("", {}, "vehicle")) == "equal in fact"
    outcomes = compare_facts("It is dark.", {"light": "dim", "ways": "two"}, "vehicle")
    assert outcomes == {"light": "wrong", "ways": "omitted"}


def test_outcomes_are_counted_per_slot():
    rows = [
        ("It is cloudy and dark.", "It is sunny and dark."),  # weather wrong, light equal
        ("It is dark. The road is dry.", "It is dark and cloudy."),  # equal, condition added, weather omitted
        ("It is dark.", None),  # without a reference
    ]
    table = pd.DataFrame(rows, columns=["caption", "reference"], index=[5, 7, 9]).assign(subject="vehicle")
    facts = fact_table(table)
    assert facts.columns.tolist() == ["subject", "aspect", "slot", "predicted", "reference", "outcome"]
    assert facts.loc[5].values.tolist() == [
        ["vehicle", "weather", "weather", "cloudy", "clear", "wrong"],
        ["vehicle", "weather", "light", "dark", "dark", "equal"],
    ]
    assert 9 not in facts.index and set(fact_table(table.assign(aspect="road"))["aspect"]) == {"road"}
    scores = fact_scores(table)
    counts = {"equal": 2, "wrong": 1, "omitted": 1, "added": 1, "precision": 2 / 4, "recall": 2 / 4}
    assert scores.loc["all"].to_dict() == counts
    assert scores.loc["light", ["precision", "recall"]].tolist() == [1, 1]
    assert scores.loc["weather", "precision"] == 0 and math.isnan(scores.loc["surface_condition", "recall"])
    assert fact_scores(table.iloc[2:]).loc["all", "equal"] == 0
