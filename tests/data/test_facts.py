"""Captions are read as facts, by sentences of each kind; facts are compared with those of references and counted."""

import json
import math
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3lib.data.aspects import split_caption
from beit3lib.data.facts import (
    NUMBERS,
    SLOT_ASPECT,
    agree,
    caption_kind,
    compare_facts,
    fact_scores,
    fact_table,
    find_facts,
    read_facts,
)
from beit3lib.data.schema import ASPECTS, SUBJECTS

SHARED = Path(__file__).parents[3] / "shared" / "data"

PEDESTRIAN = """
A woman in her twenties, 160 cm tall, wears a white T-shirt and a dark blue skirt. | gender: female; age: 20s; height_cm: 160; upper_color: white; upper_garment: t-shirt; lower_color: dark blue; lower_garment: skirt
An elderly man in his 80s wears a black jacket and slacks. | gender: male; age: 80s; upper_color: black; upper_garment: jacket; lower_garment: slacks
A middle-aged man holds a cane and wears a red hat, but no glasses. | gender: male; cane: yes; hat: yes; hat_color: red; glasses: no
He wears grey short pants and a striped blue and white shirt. | lower_color: gray; lower_garment: short pants; upper_color: blue; upper_garment: shirt
The child does not wear a hat or glasses. | age: child; hat: no; glasses: no
He is standing still and almost notices the vehicle. | motion: standing; aware: almost
He stood in front of the vehicle. | position: front
He is going straight ahead at a normal speed. | motion: walking; speed: normal
He stands still but then rushes out quickly. | motion: rushing out; speed: fast
She intends to cross the road. | motion: about to cross
While walking, he prepares to cross. | motion: about to cross
She started to cross slowly. | motion: crossing; speed: slow
Slowly looking around, he is unaware of the vehicle. | visual_status: looking around slowly; aware: no
His speed is slightly higher. | speed: fast
She is aware of her surroundings. |
He did not notice it. | aware: no
He constantly looks around and notices the approaching vehicle. | visual_status: looking around constantly; aware: yes
Closely watching, he keeps his eyes on the parked vehicle. | visual_status: closely watching; line_of_sight: parked vehicle
Her line of sight is in front, in the direction of travel. | line_of_sight: direction of travel
His line of sight is focused on the crossing destination. | line_of_sight: destination
She glances at the road surface. | visual_status: glancing; line_of_sight: road surface
His gaze is directed towards the surroundings. | line_of_sight: surroundings
She walks in the same direction as the vehicle. | motion: walking; travel_direction: same
His direction of travel is in front of the vehicle. | travel_direction: front
He is walking slowly towards the vehicle. | motion: walking; speed: slow; travel_direction: towards
She runs away from the car. | motion: running; travel_direction: away
Her body is oriented in the same direction as the vehicle. | orientation: same
His body is perpendicular to the vehicle and to the right. | orientation: perpendicular right
He faces diagonally to the left, in the opposite direction to the vehicle. | orientation: diagonal left opposite
He is diagonally to the left in front of the vehicle, his body perpendicular to it. | position: front left; orientation: perpendicular
She is behind the vehicle on the right side. | position: behind right
Her body is turned to the right. |
The vehicle is moving slowly on the left side of the pedestrian. |
The vehicle, which is turning left, hits the pedestrian. | motion: colliding
He fell after the collision. | motion: colliding
He is not far from the vehicle, in close proximity. | distance: near
He keeps a safe distance. |
There is a sidewalk only on the left side. | sidewalk: one
Both sides of the road have sidewalks, but there is no roadside strip. | sidewalk: both; roadside_strip: no
There is no sidewalk or roadside strip on both sides and street lights are present. | sidewalk: no; roadside_strip: no; street_lights: yes
Neither the sidewalk nor the street lights are present. | sidewalk: no; street_lights: no
There is one sidewalk. | sidewalk: yes
"""
VEHICLE = """
The vehicle is going straight ahead at 0 km/h, so it is stationary. | motion: straight; speed_kmh: 0
In a state of constant speed, the vehicle is stopped. | motion: stopped
The vehicle is moving at a constant speed of 20 km/h. | speed_kmh: 20
It is accelerating. |
It is about to start moving, but is currently stationary. | motion: starting
The vehicle has started moving. | motion: starting
It has started to turn left. | motion: turning left
It is making a right turn. | motion: turning right
It is about to reverse. | motion: reversing
It is about to stop. | motion: stopping
It avoided a collision by emergency braking and stopped. | motion: braking
It did not collide. |
It collided with the pedestrian while stationary. | motion: colliding
The vehicle passes the pedestrian, who is walking. | motion: passing
The pedestrian has stopped and is unaware of the vehicle. |
The driver is aware of the pedestrian. | aware: yes
The pedestrian is on the left side of the vehicle. |
The vehicle is behind and to the left of the pedestrian. | position: behind left
It is positioned to the right in front of him, quite far away. | position: front right; distance: far
An obstacle, 2 m high, is on the right side of the pedestrian. | obstacle: yes
It touches the pedestrian. | distance: touching
The pedestrian is not visible within the vehicle's field of view. | visible: no
The vehicle's field of view allows the driver to see the pedestrian. | visible: yes
It is only partially visible. | visible: partly
The driver has a clear view of them. | visible: yes
It is sunny and well lit. | weather: clear; light: bright
The weather was bright. | light: bright
Light rain falls in the dark. | weather: rainy; light: dark
It is cloudy and the brightness is low. | weather: cloudy; light: dark
The environment is dimly lit. | light: dim
A black T-shirt and dark slacks. | upper_color: black; upper_garment: t-shirt; lower_garment: slacks
The road is level and inclined, wet asphalt. | incline: level; surface_condition: wet; surface: asphalt
It is a gravel road with a steep uphill slope. | surface: gravel; incline: steep uphill
The slope is gentle. |
The traffic volume on the two-way residential road is normal. | traffic: usual; ways: two; road_type: residential
A one-way main road with three lanes and heavy traffic. | ways: one; road_type: main; lanes: 3; traffic: heavy
It is a parking lot in an urban area. | road_type: parking lot; setting: urban
There is an intersection without a signal. | signal: no
There are no obstacles. | obstacle: no
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


WORDS = [word for line in (PEDESTRIAN + VEHICLE).splitlines() for word in line.split("|")[0].split()]


TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=25).map(" ".join)


@settings(max_examples=200, database=None)
@given(TEXTS, st.sampled_from((*SUBJECTS, "")))
def test_any_text_is_read_and_agrees_with_itself(text, subject):
    facts = read_facts(text, subject)
    assert all(isinstance(v, int if slot in NUMBERS else str) and v != "" for slot, v in facts.items())
    assert {SLOT_ASPECT[slot] for slot in facts} <= set(ASPECTS)
    assert set(compare_facts(text, text, subject).values()) <= {"equal"}
    assert all(fact.start < fact.end <= len(text) for fact in find_facts(text))


REPEATED = (
    "not |left slightly |behind slightly |traffic on the |is |line of sight |sidewalk, no |dark-|almost "
)
REPEATED += (
    "|walking in the same direction in front |perpendicular to the left |vehicle is |navy blue |dark, |A. "
)
REPEATED += (
    '|dark- and |e.g. |e.g.|."|a|1.5 m |distance is |in front of the |to the left |as for the |started to '
)


@pytest.mark.parametrize("words", REPEATED.split("|"))
def test_repeated_words_are_read_in_linear_time(words):
    start = time.process_time()
    caption = words * (60_000 // len(words))
    assert split_caption(caption, "pedestrian") and isinstance(read_facts(caption, "pedestrian"), dict)
    assert time.process_time() - start < 4, "a pattern has nested repetition"


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
