"""Mark the words of a caption against its reference, and find captions of a scenario that contradict each other."""

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby
from typing import Any

from beit3lib.data.facts import agree, read_facts

SAME, MOVED, OTHER = "same", "moved", "other"
CONFIDENT = 0.75  # words below this probability are grey

# Slots that cannot change within a scenario, which lasts seconds.
CONSTANT_SLOTS = set(
    "gender age height_cm upper_garment upper_color lower_garment lower_color hat hat_color glasses cane weather light setting "
    "surface_condition incline surface road_type ways lanes sidewalk roadside_strip street_lights".split()
)


def _plain(text: str) -> list[str]:
    """Words as they are compared: lower case, without punctuation at their ends."""
    return [word.lower().strip(string.punctuation + "“”‘’…–—") for word in text.split()]


@lru_cache(maxsize=1 << 16)
def mark_words(caption: str, reference: str) -> tuple[list[str], list[str]]:
    """Mark each word of both texts as SAME (aligned with an equal word), MOVED (elsewhere in the other text) or OTHER.

    A word counts as moved only as often as the other text has it left, so "red jacket, black slacks" differs visibly from
    "black jacket, red slacks". Case and punctuation do not count.
    """
    words = _plain(caption), _plain(reference)
    marks = [OTHER] * len(words[0]), [OTHER] * len(words[1])
    if (
        len(words[0]) * len(words[1]) < 1_000_000
    ):  # the alignment of two texts of "dark dark dark …" takes quadratic time
        for block in SequenceMatcher(None, *words, autojunk=False).get_matching_blocks():
            marks[0][block.a : block.a + block.size] = marks[1][block.b : block.b + block.size] = [
                SAME
            ] * block.size
    left = [
        Counter(w for w, mark in zip(*pair, strict=True) if mark == OTHER)
        for pair in zip(words, marks, strict=True)
    ]
    for own, own_marks in zip(words, marks, strict=True):
        common = left[0] & left[1]
        for i, word in enumerate(own):
            if not word:  # a lone punctuation mark
                own_marks[i] = SAME
            elif own_marks[i] == OTHER and common[word] > 0:
                common[word] -= 1
                own_marks[i] = MOVED
    return marks


def styled_words(
    text: str, marks: Sequence[str] | None, confidence: Sequence[int] | None
) -> list[tuple[str, str, bool]]:
    """Join neighboring words that look the same: (text, mark, grey) for each such run of words."""
    words = text.split()
    grey = [percent < 100 * CONFIDENT for percent in confidence] if confidence else [False] * len(words)
    looks = zip(words, marks or [SAME] * len(words), grey, strict=True)
    return [
        (" ".join(word for word, *_ in run), *look) for look, run in groupby(looks, key=lambda each: each[1:])
    ]


def find_contradictions(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find facts that cannot change within a scenario but do between its captions of one caption type.

    Returns {scenario, subject, aspect, text, values: {fact: [images], the most frequent first}}. A `text` is, for example,
    "gender is male in 2 captions (phases 0, 1), female in 1 caption (phase 2)", a fact "gender: male".
    """
    found: dict[tuple[str, ...], dict[str | int, list[dict]]] = {}
    for record in records:
        facts = read_facts(record["caption"] or "", record["subject"]) if record["scenario"] else {}
        for slot in (slot for slot in facts if slot in CONSTANT_SLOTS):
            values = found.setdefault((record["scenario"], record["subject"], record["aspect"], slot), {})
            value = next((value for value in values if agree(slot, value, facts[slot])), facts[slot])
            values.setdefault(value, []).append(record)
    contradictions = []
    for (scenario, subject, aspect, slot), values in found.items():
        if len(values) > 1:
            name = slot.replace("_", " ")
            stated = dict(sorted(values.items(), key=lambda item: -len(item[1])))
            text = f"{name} is {', '.join(f'{value} in {_phases(own)}' for value, own in stated.items())}"
            images = {
                f"{name}: {value}": [record["image"] for record in own] for value, own in stated.items()
            }
            contradictions.append(
                {"scenario": scenario, "subject": subject, "aspect": aspect, "text": text, "values": images}
            )
    return contradictions


def _phases(records: list[dict[str, Any]]) -> str:
    """Return "2 captions (phases 0, 1)", without the phases where they are unknown."""
    phases = sorted({record["phase"] for record in records} - {""})
    captions = f"{len(records)} caption{'' if len(records) == 1 else 's'}"
    return captions + (f" (phase{'' if len(phases) == 1 else 's'} {', '.join(phases)})" if phases else "")
