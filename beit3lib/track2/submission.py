"""Captions of aspects and views to one pedestrian and one vehicle caption per segment, and a submission that is checked.

A caption is put together as real ones are: its aspects in reading order, no sentence twice, and no longer than training
captions usually are, because the score falls by e^(-d²/72) with the difference in bigrams.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from beit3lib.data.aspects import ASPECTS, READING_ORDER, merge_aspects, split_sentences
from beit3lib.data.wts import parse_phase
from beit3lib.files import read_json, write_json
from beit3lib.track2.metrics import SUBJECTS, common_subsequence, score_pairs

CHOICES = ("score", "consensus")
Segment = tuple[str, str]  # (scenario or BDD video, original label)


class SubmissionError(ValueError):
    """A submission that the challenge would not take; the message lists everything that is wrong with it."""


# --- one caption of several views ----------------------------------------------------------------------------------


def choose_view(captions: Sequence[str], scores: Sequence[float], choose: str = "score") -> str:
    """One of the captions that the views of a segment gave: the model's surest, or the one closest to all others."""
    if choose not in CHOICES:
        raise ValueError(f"choose: expected one of {', '.join(CHOICES)}, found {choose!r}")
    if choose == "score" or len(set(captions)) < 2:
        return captions[int(np.argmax(scores))]
    words = [caption.split() for caption in captions]
    closeness = [sum(_alike(a, b) for b in words) for a in words]
    return captions[max(range(len(captions)), key=lambda i: (closeness[i], scores[i]))]


def _alike(a: list[str], b: list[str]) -> float:
    """F-measure of the longest common subsequence of two lists of words."""
    if not a or not b:
        return float(a == b)
    return 2 * common_subsequence(a, b) / (len(a) + len(b))


# --- one caption of several aspects --------------------------------------------------------------------------------


def compose(parts: Mapping[str, str], subject: str, most_words: float | None = None) -> str:
    """The caption of a segment from its aspects; `parts` may hold "full", which is taken as it is.

    Sentences that come again are left out, then, with `most_words`, those that say least new (`fit_length`).
    """
    if parts.get("full"):
        return fit_length(split_sentences(parts["full"]), most_words)
    said: set[str] = set()
    kept: dict[str, str] = {}
    for aspect in READING_ORDER[subject]:
        fresh = [s for s in split_sentences(parts.get(aspect) or "") if not (s.lower() in said or said.add(s.lower()))]
        if fresh:
            kept[aspect] = " ".join(fresh)
    return fit_length(split_sentences(merge_aspects(kept, subject)), most_words)


def fit_length(sentences: Sequence[str], most_words: float | None) -> str:
    """Leave out whole sentences of a caption that is longer than captions usually are; order and wording stay.

    The first to go is the one whose words stand in the others most, and no more go than it takes. Cutting to the usual
    median instead was measured to cost ten points on real captions put together from their own aspects, cutting to
    `usual_lengths` one, while captions twice as long as usual gain two to three.
    """
    kept = list(sentences)
    while most_words is not None and len(kept) > 1:
        lengths = [len(sentence.split()) for sentence in kept]
        place = max(range(len(kept)), key=lambda i: (_told_elsewhere(kept, i), -lengths[i], i))
        over = sum(lengths) - most_words
        if over <= 0 or lengths[place] - over > over:
            break
        del kept[place]
    return " ".join(kept)


def _told_elsewhere(sentences: Sequence[str], place: int) -> float:
    """The share of a sentence's words that other sentences have too."""
    words = [{word.strip(".,").lower() for word in sentence.split()} for sentence in sentences]
    others = set().union(*words[:place], *words[place + 1 :])
    return len(words[place] & others) / max(1, len(words[place]))


def usual_lengths(captions: pd.DataFrame) -> dict[str, float]:
    """Words that nine in ten training captions of each subject do not exceed; columns caption_vehicle, caption_pedestrian."""
    return {s: float(captions[f"caption_{s}"].dropna().str.split().str.len().quantile(0.9)) for s in SUBJECTS}


# --- a whole submission --------------------------------------------------------------------------------------------


def build_submission(
    predictions: pd.DataFrame, choose: str = "score", most_words: Mapping[str, float] | None = None
) -> dict[str, list[dict]]:
    """`{scenario: [{"labels": ["4"], "caption_pedestrian": …, "caption_vehicle": …}, …]}`, phases in their order.

    `predictions`: a row per caption with scenario, source, video, label, phase, subject, aspect ("full" for a whole
    caption), caption, score. Keys are scenarios, for BDD the video without its ending.
    """
    unknown = sorted(set(predictions["aspect"]) - {*ASPECTS, "full"})
    if unknown:
        raise ValueError(f"predictions: expected aspects {', '.join(ASPECTS)} or full; found {', '.join(unknown)}")
    built: dict[str, list[dict]] = {}
    for (scenario, _, label), rows in predictions.groupby(["scenario", "phase", "label"], sort=True):
        captions = {}
        for subject in SUBJECTS:
            parts = _parts(rows[rows["subject"] == subject], choose)
            captions[f"caption_{subject}"] = compose(parts, subject, (most_words or {}).get(subject))
        built.setdefault(str(scenario), []).append({"labels": [str(label)], **captions})
    return built


def _parts(rows: pd.DataFrame, choose: str) -> dict[str, str]:
    return {
        str(aspect): choose_view(views["caption"].tolist(), views["score"].tolist(), choose)
        for aspect, views in rows.groupby("aspect")
    }


def choose_by_validation(
    predictions: pd.DataFrame, references: Mapping[Segment, Mapping[str, str]], lengths: Mapping[str, float]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The best way of choosing views and fitting length on segments whose captions are known.

    `references`: {(scenario, label): {subject: caption}}. Returns options for `build_submission` and a table of all ways.
    """
    rows = []
    for choose in CHOICES:
        for fitted in (False, True):
            built = build_submission(predictions, choose, lengths if fitted else None)
            rows.append((choose, fitted, mean_of(built, references)))
    table = pd.DataFrame(rows, columns=["choose", "fitted", "score"])
    best = table.loc[table["score"].idxmax()]
    return {"choose": best["choose"], "most_words": dict(lengths) if best["fitted"] else None}, table


def mean_of(submission: Mapping[str, list[dict]], references: Mapping[Segment, Mapping[str, str]]) -> float:
    """Mean official score over segments, one that is missing counting 0."""
    said = {(key, str(entry["labels"][0])): entry for key, entries in submission.items() for entry in entries}
    pairs = [
        (said.get(segment, {}).get(f"caption_{subject}", ""), captions[subject])
        for segment, captions in references.items()
        for subject in SUBJECTS
    ]
    return float(score_pairs([p for p, _ in pairs], [r for _, r in pairs])["score"].mean())


# --- what is asked for ---------------------------------------------------------------------------------------------


def expected_segments(phases: pd.DataFrame, split: str) -> dict[str, list[str]]:
    """{scenario or BDD video: [original labels in the order of phases]} that a submission for a split must hold.

    `phases`: rows of `wts.read_wts(root, split, keep_missing=True)`, so that segments without a video are asked for too.
    """
    asked = phases[phases["split"] == split].drop_duplicates(["scenario", "label"]).sort_values(["scenario", "phase"])
    return {str(key): rows["label"].astype(str).tolist() for key, rows in asked.groupby("scenario")}


def complete(
    submission: Mapping[str, list[dict]], expected: Mapping[str, Sequence[str]], usual: Mapping[str, str]
) -> tuple[dict[str, list[dict]], list[str]]:
    """A submission with every segment and caption that is asked for, and what had to be filled in.

    `usual`: {caption_vehicle, caption_pedestrian} for what was not captioned, because its video is missing or the model was
    taught one subject: the challenge refuses a submission with holes, and a usual caption scores more than none.
    """
    built: dict[str, list[dict]] = {}
    filled = []
    for key, labels in expected.items():
        said = {entry["labels"][0]: entry for entry in submission.get(key, [])}
        for label in labels:
            entry = said.get(label, {})
            captions = {name: entry.get(name) or text for name, text in usual.items()}
            absent = [name for name in usual if not entry.get(name)]
            if absent:
                filled.append(f"{key} label {label}: {', '.join(absent)}")
            built.setdefault(key, []).append({"labels": [label], **captions})
    return built, filled


def check_submission(submission: Any, expected: Mapping[str, Sequence[str]]) -> list[str]:
    """Everything that is wrong with a submission, all at once; an empty list is one that will be taken."""
    if not isinstance(submission, dict):
        return [f"expected {{scenario: [segments]}}, found {type(submission).__name__}"]
    problems = [f"{key}: was not asked for" for key in submission if key not in expected]
    for key, labels in expected.items():
        if key not in submission:
            problems.append(f"{key}: is missing, with labels {', '.join(labels)}")
        elif not isinstance(submission[key], list):
            problems.append(f"{key}: expected a list of segments, found {type(submission[key]).__name__}")
        else:
            problems += [f"{key}: {text}" for text in _check_segments(submission[key], labels)]
    return problems


def _check_segments(segments: list, labels: Sequence[str]) -> list[str]:
    problems, found = [], []
    for entry in segments:
        given = entry.get("labels") if isinstance(entry, dict) else None
        if not (isinstance(given, list) and len(given) == 1 and isinstance(given[0], str)):
            problems.append(f'expected {{"labels": ["0"], …}}, found {str(entry)[:60]}')
            continue
        found.append(given[0])
        problems += [f"label {given[0]}: {text}" for text in _check_captions(entry)]
    counts = Counter(found)
    problems += [f"label {label}: stands {n} times" for label, n in counts.items() if n > 1]
    surplus, missing = [x for x in counts if x not in labels], [x for x in labels if x not in counts]
    for label in list(surplus):
        twin = next((m for m in missing if parse_phase(m) is not None and parse_phase(m) == parse_phase(label)), None)
        if twin is not None:
            problems.append(f'label "{label}": was asked for as "{twin}"')
            surplus.remove(label)
            missing.remove(twin)
    problems += [f"label {label}: was not asked for" for label in surplus]
    return problems + [f"label {label}: is missing" for label in missing]


def _check_captions(entry: dict) -> list[str]:
    problems = []
    for subject in SUBJECTS:
        caption = entry.get(f"caption_{subject}")
        if caption is None:
            problems.append(f"caption_{subject} is missing")
        elif not isinstance(caption, str):
            problems.append(f"caption_{subject}: expected text, found {type(caption).__name__}")
        elif not caption.strip():
            problems.append(f"caption_{subject} is empty")
    foreign = sorted(set(entry) - {"labels", *(f"caption_{s}" for s in SUBJECTS)})
    return problems + [f"unknown key {name}" for name in foreign]


def write_submission(path: str | Path, submission: dict, expected: Mapping[str, Sequence[str]]) -> Path:
    """Write a submission that passes `check_submission`; else a `SubmissionError` with all that is wrong."""
    problems = check_submission(submission, expected)
    if problems:
        raise SubmissionError(f"{path}: {len(problems)} problems, nothing written:\n  " + "\n  ".join(problems))
    return write_json(path, submission)


def read_submission(path: str | Path) -> dict:
    """A submission from its file."""
    return read_json(path)


# --- baselines -----------------------------------------------------------------------------------------------------


def most_frequent_captions(train: pd.DataFrame, segments: pd.DataFrame) -> dict[str, list[dict]]:
    """A submission that says everywhere what training says most often; both tables are rows of phases."""
    return _submission_of(segments, [usual_captions(train)] * len(segments))


def usual_captions(train: pd.DataFrame) -> dict[str, str]:
    """{caption_vehicle, caption_pedestrian}: what training says most often of each."""
    return {f"caption_{s}": train[f"caption_{s}"].dropna().mode().iloc[0] for s in SUBJECTS}


def nearest_captions(
    train: pd.DataFrame, segments: pd.DataFrame, image_dir: str | Path, size: int = 16
) -> dict[str, list[dict]]:
    """A submission that gives each segment the captions of the training image nearest to its own by pixels.

    Images are compared as size x size thumbnails, by squared difference; one that cannot be opened is passed over.
    """
    from PIL import Image

    def thumbnails(table: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
        pictures, opened = [], []
        for name in table["image"]:
            try:
                with Image.open(Path(image_dir) / name) as image:
                    pictures.append(np.asarray(image.convert("RGB").resize((size, size)), np.float32).ravel())
            except OSError:
                opened.append(False)
            else:
                opened.append(True)
        return np.stack(pictures), table[opened]

    a, segments = thumbnails(segments)
    b, known = thumbnails(train.dropna(subset=[f"caption_{s}" for s in SUBJECTS]))
    distances = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    nearest = known.iloc[distances.argmin(1)]
    return _submission_of(segments, nearest[[f"caption_{s}" for s in SUBJECTS]].to_dict("records"))


def _submission_of(segments: pd.DataFrame, captions: Sequence[Mapping[str, str]]) -> dict[str, list[dict]]:
    """The first row of each segment, with its captions."""
    built: dict[str, list[dict]] = {}
    seen: set[Segment] = set()
    for row, said in zip(segments.itertuples(), captions, strict=True):
        if (row.scenario, row.label) not in seen:
            seen.add((row.scenario, row.label))
            built.setdefault(row.scenario, []).append({"labels": [str(row.label)], **said})
    return built
