"""Words are marked correctly, and contradictions within a scenario are found."""

import random

import pytest

from beit3lib.viz.marks import find_contradictions, mark_facts, mark_words


def test_words_are_the_same_moved_or_other():
    assert mark_words("A red car – here.", "a Red car here") == ("sssss", "ssss")
    assert mark_words("a red coat and gray shoes", "a gray coat and red shoes today") == ("smssms", "smssmso")


def test_marks_agree_with_counting_words():
    rng = random.Random(1)
    for _ in range(200):
        one, two = (rng.choices("abcde", k=rng.randrange(9)) for _ in range(2))
        ours, theirs = mark_words(" ".join(one), " ".join(two))
        common = sum(min(one.count(word), two.count(word)) for word in "abcde")
        assert len(ours) - ours.count("o") == len(theirs) - theirs.count("o") == common
        assert ours.count("s") == theirs.count("s")


def scenario_records(*captions, scenario="s", subject="pedestrian", aspect="pedestrian_description"):
    names = ("scenario", "subject", "aspect")
    about = dict(zip(names, (scenario, subject, aspect), strict=True))
    return [
        {**about, "caption": text, "image": f"{i}.jpg", "phase": str(i)} for i, text in enumerate(captions)
    ]


def test_a_color_that_changes_within_a_scenario_is_a_contradiction():
    jackets = [
        f"A man in his 30s wears a {color} jacket and black slacks." for color in ("red", "blue", "red")
    ]
    (found,) = find_contradictions(scenario_records(*jackets))
    assert found["values"] == {"upper color: red": ["0.jpg", "2.jpg"], "upper color: blue": ["1.jpg"]}
    assert found["text"] == "upper color is red in 2 captions (phases 0, 2), blue in 1 caption (phase 1)"


@pytest.mark.parametrize(
    "one, other, fact",
    [
        ("The man waits.", "A woman waits.", "gender"),
        ("A male in his 20s.", "A male in his 40s.", "age"),
        ("A two-way road without a sidewalk.", "There are sidewalks on both sides.", "sidewalk"),
        ("White shirt, beige slacks.", "A white shirt and navy blue slacks.", "lower color"),
    ],
)
def test_each_constant_fact_is_compared(one, other, fact):
    (found,) = find_contradictions(scenario_records(one, other))
    assert found["text"].startswith(f"{fact} is ")


@pytest.mark.parametrize(
    "one, other",
    [
        ("A gray coat.", "A grey coat."),
        ("A blue shirt.", "A navy blue T-shirt."),
        ("There are sidewalks.", "There are sidewalks on both sides."),
    ],
)
def test_the_same_fact_in_other_words_is_no_contradiction(one, other):
    assert find_contradictions(scenario_records(one, other)) == []


def test_scenarios_and_caption_types_are_compared_separately():
    records = scenario_records("A red coat.") + scenario_records("A blue coat.", scenario="t")
    assert find_contradictions(records + scenario_records("A green coat.", aspect="moving")) == []


def test_words_of_wrong_and_omitted_facts_are_marked():
    texts = (
        "A man in a big, Red jacket.  No rain.",
        "A man in a blue jacket. There are sidewalks on both sides.",
    )
    slots = (("upper_color", "wrong"), ("sidewalk", "omitted"), ("upper_garment", "equal"))
    facts = [{"slot": slot, "outcome": outcome} for slot, outcome in slots]
    marks = mark_facts(texts, mark_words(*texts), facts)
    words = [
        [word for word, mark in zip(text.split(), own, strict=True) if mark in "wd"]
        for text, own in zip(texts, marks, strict=True)
    ]
    assert words == [["Red", "jacket."], ["blue", "jacket.", "sidewalks"]]
    assert marks[1].endswith("wwood" + "ooo")
