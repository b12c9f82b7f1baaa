"""Mark the words of a caption that differ from its reference, and find contradictions.

Captions of one scenario contradict each other (`find_contradictions`), or an answer about the same phase
(`answer_contradictions`).
"""

import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby
from typing import Any

import pandas as pd

from beit3lib.data.facts import agree, find_facts, read_facts, split_sentences
from beit3lib.data.questions import question_key
from beit3lib.data.schema import SUBJECTS
from beit3lib.track2.answers import mutual_information

SAME, MOVED, OTHER = "s", "m", "o"
FACTS = {"wrong": "w", "omitted": "d"}
CONFIDENT = 0.75  # words below this probability are grey
MIN_COUNT, MAX_SHARE = 10, 0.01  # training captions of a fact; the share with an answer that contradicts it

# Slots that cannot change within a scenario, which lasts seconds.
CONSTANT_SLOTS = set(
    "gender age height_cm upper_garment upper_color lower_garment lower_color hat hat_color glasses cane "
    "weather light setting surface_condition incline surface road_type ways lanes sidewalk roadside_strip "
    "street_lights".split()
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
    """Mark the words of wrong and omitted facts by FACTS, so that they differ visibly from other wording."""
    slots = {fact["slot"]: FACTS[fact["outcome"]] for fact in facts if fact["outcome"] in FACTS}
    marks = [list(own) for own in marks]
    for text, own in zip(texts, marks, strict=True):
        text, start = " ".join(text.split()), 0
        for sentence in split_sentences(text):
            start = text.index(sentence, start)
            for fact in find_facts(sentence):
                if fact.slot in slots and fact.value:  # the words that it covers, also in part
                    first = text.count(" ", 0, start + fact.start + 1)
                    last = text.count(" ", 0, start + fact.end - 1)
                    own[first : last + 1] = slots[fact.slot] * (last + 1 - first)
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


class AnswerFacts:
    """Which answers go with which facts, counted from training data; no list of questions is needed.

    `phases` has scenario, phase and captions, `questions` the training questions with correct answers.
    A question has the slots whose values tell most about its answer.
    """

    def __init__(self, phases: pd.DataFrame, questions: pd.DataFrame) -> None:
        facts: dict[tuple, dict] = defaultdict(dict)  # {(scenario, phase or None): {(subject, slot): value}}
        for row in phases.drop_duplicates(["scenario", "phase"]).to_dict("records"):
            for subject in SUBJECTS:
                for slot, value in read_facts(row[f"caption_{subject}"] or "", subject).items():
                    for phase in (row["phase"], None):
                        facts[row["scenario"], phase][subject, slot] = value
        counts: dict[str, dict[tuple, Counter]] = defaultdict(lambda: defaultdict(Counter))
        for row in questions.dropna(subset=["correct"]).itertuples():
            answer = question_key(row.options[row.correct])
            for slot, value in facts.get((row.scenario, row.phase), {}).items():
                counts[question_key(row.question)][slot][value, answer] += 1
        self.counts = {}  # {question: {(subject, slot): {(value, answer): count}}}
        for question, of_slots in counts.items():
            tells = {slot: mutual_information(found) for slot, found in of_slots.items()}
            slots = [slot for slot in of_slots if tells[slot] >= 0.5 * max(tells.values()) > 0]
            self.counts[question] = {slot: of_slots[slot] for slot in slots}

    def contradictions(self, question: str, answer: str, subject: str, facts: dict) -> list[str]:
        """Return the slots whose value is frequent in training, but almost never with this answer."""
        found = []
        for (of_subject, slot), counts in self.counts.get(question, {}).items():
            if of_subject == subject and slot in facts and answer in {other for _, other in counts}:
                with_value = sum(n for (value, _), n in counts.items() if value == facts[slot])
                if with_value >= MIN_COUNT and counts[facts[slot], answer] <= MAX_SHARE * with_value:
                    found.append(slot)
        return found


def answer_contradictions(
    predictions: pd.DataFrame, answered: pd.DataFrame, known: AnswerFacts
) -> pd.DataFrame:
    """Return a row per fact of a caption that contradicts an answer about the same phase or scenario."""
    by_moment = {key: rows for key, rows in answered.groupby(["scenario", "phase"], dropna=False)}
    by_moment = {(name, None if phase != phase else phase): rows for (name, phase), rows in by_moment.items()}
    rows = []
    for caption in predictions.itertuples():
        facts = read_facts(caption.caption or "", caption.subject)
        for key in ((caption.scenario, caption.phase), (caption.scenario, None)):
            for asked in by_moment[key].itertuples() if facts and key in by_moment else ():
                answer = asked.options.get(asked.answer, "")
                about = (question_key(asked.question), question_key(answer), caption.subject)
                for slot in known.contradictions(*about, facts):
                    correct = asked.options.get(asked.correct)
                    values = (slot.replace("_", " "), facts[slot], asked.question, answer, correct)
                    rows.append((caption.Index, caption.image, *values))
    columns = ["index", "image", "fact", "caption", "question", "answer", "correct"]
    return pd.DataFrame(rows, columns=columns).set_index("index")


def contradiction_texts(found: pd.DataFrame) -> pd.Series:
    """Return a text for each caption with contradictions, by its index."""
    rows = found[["fact", "caption", "question", "answer"]].itertuples(index=False)
    texts = [f"{fact} {value}, but “{question}” {answer}" for fact, value, question, answer in rows]
    return pd.Series(texts, found.index, dtype=object).groupby(level=0).agg("; ".join)
