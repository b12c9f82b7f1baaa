"""Mark the words of a caption that differ from its reference, and find contradictions within a scenario."""

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby
from typing import Any

from beit3lib.data.facts import agree, find_facts, read_facts, split_sentences

SAME, MOVED, OTHER, FACT = "s", "m", "o", "f"
CONFIDENT = 0.75  # words below this probability are grey

# Slots that cannot change within a scenario, which lasts seconds.
CONSTANT_SLOTS = set(
    "gender age height_cm upper_garment upper_color lower_garment lower_color hat hat_color glasses cane weather light "
    "setting surface_condition incline surface road_type ways lanes sidewalk roadside_strip street_lights".split()
)


def _plain(text: str) -> list[str]:
    """Words as they are compared: lower case, without punctuation at their ends."""
    return [word.lower().strip(string.punctuation + "“”‘’…–—") for word in text.split()]


@lru_cache(maxsize=1 << 16)
def mark_words(caption: str, reference: str) -> tuple[str, str]:
    """Return a letter per word of both texts: SAME (aligned with an equal word), MOVED or OTHER.

    A word counts as moved only as often as the other text has it left, so "red jacket, black slacks" differs
    visibly from "black jacket, red slacks". Case and punctuation do not count.
    """
    texts = _plain(caption), _plain(reference)
    marks = [OTHER] * len(texts[0]), [OTHER] * len(texts[1])
    if (
        len(texts[0]) * len(texts[1]) < 1_000_000
    ):  # aligning two texts of "dark dark dark …" takes quadratic time
        for i, j, size in SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks():
            marks[0][i : i + size] = marks[1][j : j + size] = [SAME] * size
    left = [
        Counter(word for word, mark in zip(words, own, strict=True) if mark == OTHER)
        for words, own in zip(texts, marks, strict=True)
    ]
    for words, own in zip(texts, marks, strict=True):
        common = left[0] & left[1]
        for i, word in enumerate(words):
            if not word:  # a lone punctuation mark
                own[i] = SAME
            elif own[i] == OTHER and common[word] > 0:
                common[word] -= 1
                own[i] = MOVED
    return "".join(marks[0]), "".join(marks[1])


def mark_facts(texts: tuple[str, str], marks: tuple[str, str], facts: Iterable[dict]) -> tuple[str, str]:
    """Mark the words of wrong and omitted facts as FACT, so that they differ visibly from other wording."""
    slots = {fact["slot"] for fact in facts if fact["outcome"] in ("wrong", "omitted")}
    marks = [list(own) for own in marks]
    for text, own in zip(texts, marks, strict=True):
        text, start = " ".join(text.split()), 0
        for sentence in split_sentences(text):
            start = text.index(sentence, start)
            for fact in find_facts(sentence):
                if fact.slot in slots and fact.value:  # the words that it covers, also in part
                    first = text.count(" ", 0, start + fact.start + 1)
                    last = text.count(" ", 0, start + fact.end - 1)
                    own[first : last + 1] = FACT * (last + 1 - first)
    return "".join(marks[0]), "".join(marks[1])


def styled_words(
    text: str, marks: str | None, confidence: Sequence[int] | None
) -> list[tuple[str, str, bool]]:
    """Join neighboring words that look the same: (text, mark, whether below CONFIDENT) for each run."""
    words = text.split()
    unsure = [percent < 100 * CONFIDENT for percent in confidence or [100] * len(words)]
    looks = zip(words, marks or SAME * len(words), unsure, strict=True)
    return [
        (" ".join(word for word, *_ in run), *look) for look, run in groupby(looks, key=lambda each: each[1:])
    ]


def find_contradictions(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find facts that cannot change within a scenario but do between its captions of one caption type.

    Returns {scenario, subject, aspect, text, values: {fact: [images], the most frequent first}}. A `text` is,
    for example, "gender is male in 2 captions (phases 0, 1), female in 1 caption (phase 2)", a fact "gender:
    male".
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
