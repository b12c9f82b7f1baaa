"""Combine captions of aspects and views into one caption per segment and subject, and write a checked submission.

A caption is composed as real ones are: aspects in reading order, no sentence twice, and no longer than 90 % of the training
captions, because CIDEr-D falls by e^(-d²/72) with the difference in bigrams.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from beit3lib.data.aspects import ASPECTS, READING_ORDER, SUBJECTS, merge_aspects, split_sentences
from beit3lib.data.wts import parse_phase
from beit3lib.files import finite, write_json
from beit3lib.track2.metrics import Segment, common_subsequence, score_segments, segment_label

CHOICES = ("log_prob", "consensus")
CAPTIONS = [f"caption_{subject}" for subject in SUBJECTS]
Submission = dict[str, list[dict[str, Any]]]


class SubmissionError(ValueError):
    """A submission that the challenge would refuse; the message lists everything that is wrong with it."""


class Written(NamedTuple):
    """A submission as written to `path`; `filled` lists the captions that were filled in."""

    path: Path
    submission: Submission
    filled: list[str]


# --- one caption of several views and aspects ----------------------------------------------------------------------


def choose_view(captions: Sequence[str], log_probs: Sequence[float], choose: str = "log_prob") -> str:
    """Return the caption of one view of a segment: the most probable one, or the one most similar to all others.

    Similarity is the F-measure of the longest common subsequence of words; ties go to the more probable caption.
    """
    if choose not in CHOICES:
        raise ValueError(f"choose: expected one of {', '.join(CHOICES)}, got {choose!r}")
    similarity = [0.0] * len(captions)
    if choose == "consensus":
        words = [caption.split() for caption in captions]
        similarity = [sum(2 * common_subsequence(a, b) / max(1, len(a) + len(b)) for b in words) for a in words]
    return captions[max(range(len(captions)), key=lambda i: (similarity[i], log_probs[i]))]


def compose(parts: Mapping[str, str], subject: str, most_words: float | None = None) -> str:
    """Return the caption of a segment from {aspect: text}; a part "full" is a whole caption and replaces the others.

    Repeated sentences are dropped. With `most_words`, so are the sentences that add least (`fit_length`).
    """
    if parts.get("full"):
        return fit_length(split_sentences(parts["full"]), most_words)
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for aspect in READING_ORDER[subject]:
        fresh = [s for s in split_sentences(parts.get(aspect) or "") if not (s.lower() in seen or seen.add(s.lower()))]
        if fresh:
            kept[aspect] = " ".join(fresh)
    return fit_length(split_sentences(merge_aspects(kept, subject)), most_words)


def fit_length(sentences: Sequence[str], most_words: float | None) -> str:
    """Join sentences, dropping whole ones until the caption has about `most_words` words.

    The sentence whose words the others repeat most goes first, and none goes if that would leave the caption further
    below the limit than it was above. On real captions composed from their own aspects, a limit at the median length
    cost ten points of the score and `usual_lengths` one, while captions twice as long as usual gained two to three.
    """
    kept = list(sentences)

    def repeated(i: int) -> float:
        words = [{word.strip(".,").lower() for word in sentence.split()} for sentence in kept]
        return len(words[i] & set().union(*words[:i], *words[i + 1 :])) / max(1, len(words[i]))

    while most_words is not None and len(kept) > 1:
        lengths = [len(sentence.split()) for sentence in kept]
        index = max(range(len(kept)), key=lambda i: (repeated(i), -lengths[i], i))
        excess = sum(lengths) - most_words
        if excess <= 0 or lengths[index] - excess > excess:
            break
        del kept[index]
    return " ".join(kept)


def usual_lengths(train: pd.DataFrame) -> dict[str, float]:
    """Return per subject the length in words that 90 % of the training captions do not exceed; no entry without captions.

    `train` has the columns caption_vehicle and caption_pedestrian.
    """
    captions = {subject: train[f"caption_{subject}"].dropna() for subject in SUBJECTS}
    return {subject: float(text.str.split().str.len().quantile(0.9)) for subject, text in captions.items() if len(text)}


# --- a whole submission --------------------------------------------------------------------------------------------


def build_submission(
    predictions: pd.DataFrame, choose: str = "log_prob", most_words: Mapping[str, float] | None = None
) -> Submission:
    """Build `{scenario: [{"labels": ["4"], "caption_pedestrian": …, "caption_vehicle": …}, …]}` with phases in order.

    `predictions` has a row per caption with scenario, label, phase, subject, aspect ("full" for a whole caption), caption
    and log_prob. Scenarios of BDD are named by their video, without its suffix.
    """
    unknown = sorted(set(predictions["aspect"]) - {*ASPECTS, "full"})
    if unknown:
        raise ValueError(f"predictions: expected aspects {', '.join(ASPECTS)} or full, got {', '.join(map(str, unknown))}")
    log_probs = [finite(value) for value in predictions["log_prob"]]
    predictions = predictions.assign(log_prob=[-np.inf if value is None else value for value in log_probs])
    built: Submission = {}
    for (scenario, _), segment in predictions.groupby(["scenario", "phase"], sort=True):
        entry: dict[str, Any] = {"labels": [_shortest(segment["label"])]}
        for subject in SUBJECTS:
            parts = {
                str(aspect): choose_view(views["caption"].fillna("").tolist(), views["log_prob"].tolist(), choose)
                for aspect, views in segment[segment["subject"] == subject].groupby("aspect")
            }
            entry[f"caption_{subject}"] = compose(parts, subject, (most_words or {}).get(subject))
        built.setdefault(str(scenario), []).append(entry)
    return built


def _shortest(labels: pd.Series) -> str:
    """Return one spelling of the label of a segment: views may spell it "04" and "4"."""
    return min(labels.astype(str), key=len)


def choose_by_validation(
    predictions: pd.DataFrame, references: Mapping[Segment, Mapping[str, str]], lengths: Mapping[str, float]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the options for `build_submission` that score best on validation captions, and a table of all variants.

    `references` is {(scenario, label): {subject: caption}} and `lengths` what `usual_lengths` returns. Without validation
    captions the options are the defaults and the table is empty.
    """
    table = pd.DataFrame(columns=["choose", "fitted", "score"])
    if predictions.empty or not references:
        return {"choose": CHOICES[0], "most_words": None}, table
    for choose in CHOICES:
        for fitted in (False, True):
            built = build_submission(predictions, choose, lengths if fitted else None)
            table.loc[len(table)] = choose, fitted, score_segments(built, dict(references)).segments["score"].mean()
    best = table.loc[table["score"].astype(float).idxmax()]
    return {"choose": best["choose"], "most_words": dict(lengths) if best["fitted"] else None}, table


def expected_segments(phases: pd.DataFrame, split: str) -> dict[str, list[str]]:
    """Return {scenario or BDD video: [original labels in the order of phases]} that a submission must contain.

    `phases` has a row per phase and view with split, scenario, label and phase, including phases without a video.
    """
    segments = phases[phases["split"] == split].groupby(["scenario", "phase"], sort=True)["label"].agg(_shortest)
    expected: dict[str, list[str]] = {}
    for (scenario, _), label in segments.items():
        expected.setdefault(str(scenario), []).append(label)
    return expected


def check_submission(submission: Any, expected: Mapping[str, Sequence[str]]) -> list[str]:
    """Return everything that is wrong with a submission; an empty list means that the challenge accepts it."""
    if not isinstance(submission, dict):
        return [f"expected {{scenario: [segments]}}, found {type(submission).__name__}"]
    problems = [f"{scenario}: not expected" for scenario in submission if scenario not in expected]
    found = []
    for scenario, entries in submission.items():
        if not isinstance(entries, list):
            problems.append(f"{scenario}: expected a list of segments, found {type(entries).__name__}")
            continue
        for entry in entries:
            labels = entry.get("labels") if isinstance(entry, dict) else None
            if not (isinstance(labels, list) and len(labels) == 1 and isinstance(labels[0], str)):
                problems.append(f'{scenario}: expected {{"labels": ["0"], …}}, found {str(entry)[:60]}')
                continue
            found.append((scenario, labels[0]))
            problems += [f"{scenario} label {labels[0]}: {text}" for text in _check_entry(entry)]
    return problems + _compare_segments([(s, label) for s, labels in expected.items() for label in labels], found)


def _check_entry(entry: dict) -> list[str]:
    problems = [f"unknown key {name}" for name in sorted(set(entry) - {"labels", *CAPTIONS})]
    for name in CAPTIONS:
        if not isinstance(entry.get(name), str):
            problems.append(f"{name}: expected text, found {type(entry[name]).__name__ if name in entry else 'none'}")
        elif not entry[name].strip():
            problems.append(f"{name}: expected text, found an empty caption")
    return problems


def _compare_segments(expected: list[tuple[str, str]], found: list[tuple[str, str]]) -> list[str]:
    """List segments that are missing, unexpected, repeated, or labelled in another spelling of the same phase."""
    tables = [pd.DataFrame(pairs, columns=["scenario", "label"], dtype=str) for pairs in (expected, found)]
    counts = tables[1].value_counts()
    problems = [f"{scenario} label {label}: expected once, found {n} times" for (scenario, label), n in counts.items() if n > 1]
    tables = [table.drop_duplicates().assign(phase=table["label"].map(_phase_key).astype(str)) for table in tables]
    both = pd.merge(*tables, how="outer", on=["scenario", "phase"], suffixes=("_expected", "_found"), indicator=True)
    known = {scenario for scenario, _ in expected}
    for row in both.itertuples(index=False):
        if row[-1] == "right_only" and row.scenario in known:
            problems.append(f"{row.scenario} label {row.label_found}: not expected")
        elif row[-1] == "both" and row.label_expected != row.label_found:
            problems.append(f'{row.scenario} label "{row.label_found}": expected as "{row.label_expected}"')
    for scenario, rows in both[both["_merge"] == "left_only"].groupby("scenario"):
        problems.append(f"{scenario}: no segment with label {', '.join(rows['label_expected'])}")
    return problems


def _phase_key(label: str) -> str:
    phase = parse_phase(label)
    return label if phase is None else str(phase)


def write_submission(
    path: str | Path,
    submission: Submission,
    expected: Mapping[str, Sequence[str]],
    fill_missing: bool = False,
    usual: Mapping[str, str] | None = None,
) -> Written:
    """Write a submission that passes `check_submission`; otherwise raise `SubmissionError` and write nothing.

    With `fill_missing`, missing segments and captions are filled with `usual` (what `usual_captions` returns) and listed
    in the result. Without it they are an error: a submission made after captioning a few images would be mostly filling.
    """
    filled: list[str] = []
    if fill_missing:
        submission, filled = _fill(submission, expected, usual or {})
    problems = check_submission(submission, expected)
    if problems:
        listed = "\n  ".join(problems[:50]) + (f"\n  … {len(problems) - 50} more" if len(problems) > 50 else "")
        advice = "" if fill_missing else " Caption the whole split, or pass fill_missing=True for the usual training caption."
        raise SubmissionError(f"{path}: found {len(problems)} problems, wrote nothing.{advice}\n  {listed}")
    return Written(write_json(path, submission), submission, filled)


def _fill(
    submission: Submission, expected: Mapping[str, Sequence[str]], usual: Mapping[str, str]
) -> tuple[Submission, list[str]]:
    """Return the expected segments with `usual` for every missing caption, and a list of these captions."""
    built: Submission = {}
    filled = []
    for scenario, labels in expected.items():
        entries = {_phase_key(entry["labels"][0]): entry for entry in submission.get(scenario, [])}
        for label in labels:
            captions = {name: entries.get(_phase_key(label), {}).get(name) for name in CAPTIONS}
            missing = [name for name, caption in captions.items() if not caption and name in usual]
            if missing:
                filled.append(f"{scenario} label {label}: {', '.join(missing)}")
            chosen = captions | {name: usual[name] for name in missing}
            built.setdefault(scenario, []).append({"labels": [label], **{k: v for k, v in chosen.items() if v}})
    return built, filled


# --- baselines without a model -------------------------------------------------------------------------------------


def usual_captions(train: pd.DataFrame) -> dict[str, str]:
    """Return the most frequent training caption of each subject, as {caption_vehicle, caption_pedestrian}."""
    counts = {name: train[name].dropna().mode() for name in CAPTIONS}
    return {name: most.iloc[0] for name, most in counts.items() if len(most)}


def most_frequent_captions(train: pd.DataFrame, segments: pd.DataFrame) -> Submission:
    """Build a submission that repeats the most frequent training caption; both tables have a row per phase and view."""
    return _first_of_each_segment(segments, [usual_captions(train)] * len(segments))


def nearest_captions(train: pd.DataFrame, segments: pd.DataFrame, image_dir: str | Path, size: int = 16) -> Submission:
    """Build a submission that copies the captions of the training image nearest in pixels, of another scenario.

    Images (column `image`) are compared as size x size thumbnails by squared difference. Images that cannot be opened are
    skipped. Images of the same scenario are no candidates: they include the image itself, and share its caption.
    """
    from beit3lib.data.images import ImageError, open_image  # needs Pillow, which nothing else in this file does

    def thumbnails(table: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
        found = {}
        for index, name in table["image"].items():
            try:
                found[index] = np.asarray(open_image(Path(image_dir) / str(name)).resize((size, size)), np.float32).ravel()
            except (ImageError, OSError):
                continue
        return np.stack(list(found.values()) or [np.zeros(3 * size * size)]), table.loc[list(found)]

    a, segments = thumbnails(segments.reset_index(drop=True))
    b, known = thumbnails(train.dropna(subset=CAPTIONS).reset_index(drop=True))
    if segments.empty or known.empty:
        return {}
    distances = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)  # (segments, training images)
    distances[segments["scenario"].to_numpy()[:, None] == known["scenario"].to_numpy()] = np.inf
    comparable = np.isfinite(distances.min(1))
    nearest = known.iloc[distances[comparable].argmin(1)]
    return _first_of_each_segment(segments[comparable], nearest[CAPTIONS].to_dict("records"))


def _first_of_each_segment(segments: pd.DataFrame, captions: Sequence[Mapping[str, str]]) -> Submission:
    """Build a submission from a caption pair per row; a segment seen from several views takes its first row."""
    built: Submission = {}
    first = ~segments.assign(label=segments["label"].map(segment_label)).duplicated(["scenario", "label"])
    for row, is_first, pair in zip(segments.itertuples(), first, captions, strict=True):
        if is_first:
            built.setdefault(row.scenario, []).append({"labels": [str(row.label)], **pair})
    return built
