"""Combine captions of aspects and views into one caption per segment and subject, and write a checked submission.

A composed caption has the form of real ones: aspects in reading order, no repeated sentence, and at most the length of 90 % of
the training captions, because CIDEr-D falls by e^(-d²/72) with the difference d in bigrams.
"""

from collections import Counter
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
    """The challenge would refuse a submission; the message lists all its problems."""


class Written(NamedTuple):
    """A submission that was written to `path`; `filled` lists the captions that were replaced by the usual training caption."""

    path: Path
    submission: Submission
    filled: list[str]


def choose_view(captions: Sequence[str], log_probs: Sequence[float], choose: str = "log_prob") -> str:
    """Return the most probable caption of several views of a segment, or with "consensus" the one most similar to the others.

    Similarity is the F-measure of the longest common subsequence of words. Among equally similar captions the most probable
    one is returned.
    """
    if choose not in CHOICES:
        raise ValueError(f"choose: expected one of {', '.join(CHOICES)}, got {choose!r}")
    similarity = [0.0] * len(captions)
    if choose == "consensus":
        words = [caption.split() for caption in captions]
        similarity = [sum(2 * common_subsequence(a, b) / max(1, len(a) + len(b)) for b in words) for a in words]
    return captions[max(range(len(captions)), key=lambda i: (similarity[i], log_probs[i]))]


def compose(parts: Mapping[str, str], subject: str, most_words: float | None = None) -> str:
    """Return the caption of a segment from {aspect: text}; the text of the aspect "full" replaces all others.

    Repeated sentences are removed. With `most_words`, `fit_length` then shortens the caption.
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
    """Join sentences, and remove whole sentences until the caption has about `most_words` words.

    The sentence with the largest share of words that the others repeat is removed first. No sentence is removed if the
    caption would then be further below the limit than it is above. Measured on real captions composed from their own aspects:
    a limit at the median length costs ten points of the score and `usual_lengths` one, while captions of twice the usual
    length gain two to three.
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
    """Return {subject: 90th percentile of the words per training caption}, without subjects that have no captions.

    `train` has the columns caption_vehicle and caption_pedestrian.
    """
    captions = {subject: train[f"caption_{subject}"].dropna() for subject in SUBJECTS}
    return {subject: float(text.str.split().str.len().quantile(0.9)) for subject, text in captions.items() if len(text)}


def build_submission(
    predictions: pd.DataFrame, choose: str = "log_prob", most_words: Mapping[str, float] | None = None
) -> Submission:
    """Build `{scenario: [{"labels": ["4"], "caption_pedestrian": …, "caption_vehicle": …}, …]}`, ordered by phase.

    `predictions` has a row per caption with scenario, label, phase, subject, aspect ("full" for a whole caption), caption
    and log_prob. The scenario of a BDD video is its file name without suffix.
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
    """Return the shortest spelling of the label of a segment, because its views may spell it "04" and "4"."""
    return min(labels.astype(str), key=len)


def choose_by_validation(
    predictions: pd.DataFrame, references: Mapping[Segment, Mapping[str, str]], lengths: Mapping[str, float]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the options of `build_submission` with the best score on validation captions, and the scores of all variants.

    `references` is {(scenario, label): {subject: caption}}, and `lengths` the result of `usual_lengths`. Without validation
    captions the options are the defaults and the table is empty.
    """
    table = pd.DataFrame(columns=["choose", "fitted", "score"])
    if predictions.empty or not references:
        return {"choose": CHOICES[0], "most_words": None}, table
    for choose in CHOICES:
        for fitted in (False, True):
            built = build_submission(predictions, choose, lengths if fitted else None)
            table.loc[len(table)] = choose, fitted, score_segments(built, dict(references)).final
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
    """Return all problems of a submission; an empty list means that the challenge accepts it."""
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
    """Return the segments that are missing, unexpected, repeated, or whose label has another spelling than expected."""
    spelling = {(scenario, _phase_key(label)): label for scenario, label in expected}
    known, present, problems = {scenario for scenario, _ in expected}, set(), []
    for (scenario, label), count in Counter(found).items():
        segment = scenario, _phase_key(label)
        present.add(segment)
        if count > 1:
            problems.append(f"{scenario} label {label}: expected once, found {count} times")
        if segment not in spelling and scenario in known:
            problems.append(f"{scenario} label {label}: not expected")
        elif spelling.get(segment, label) != label:
            problems.append(f'{scenario} label "{label}": expected as "{spelling[segment]}"')
    for scenario in sorted(known):
        if missing := [label for (name, key), label in spelling.items() if name == scenario and (name, key) not in present]:
            problems.append(f"{scenario}: no segment with label {', '.join(missing)}")
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

    With `fill_missing`, missing segments and captions are replaced by `usual` (the result of `usual_captions`) and listed in
    the result. By default they are an error, so that a submission of a few captioned images is not written unnoticed.
    """
    submission, filled = checked_submission(path, submission, expected, fill_missing, usual)
    return Written(write_json(path, submission), submission, filled)


def checked_submission(
    path: str | Path,
    submission: Submission,
    expected: Mapping[str, Sequence[str]],
    fill_missing: bool = False,
    usual: Mapping[str, str] | None = None,
) -> tuple[Submission, list[str]]:
    """Return a submission that `write_submission` can write to `path`, and the list of replaced captions."""
    filled: list[str] = []
    if fill_missing:
        submission, filled = fill(submission, expected, usual or {})
    advice = "" if fill_missing else " Caption the whole split, or pass fill_missing=True to fill with frequent captions."
    refuse(path, check_submission(submission, expected), advice)
    return submission, filled


def refuse(path: str | Path, problems: Sequence[str], advice: str) -> None:
    """Raise SubmissionError with the first 50 problems, if there are any."""
    if problems:
        listed = "\n  ".join(problems[:50]) + (f"\n  … {len(problems) - 50} more" if len(problems) > 50 else "")
        raise SubmissionError(f"{path}: found {len(problems)} problems, wrote nothing.{advice}\n  {listed}")


def fill(
    submission: Submission, expected: Mapping[str, Sequence[str]], usual: Mapping[str, str]
) -> tuple[Submission, list[str]]:
    """Return the expected segments with `usual` in place of missing captions, and a list of the replaced captions."""
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


def usual_captions(train: pd.DataFrame) -> dict[str, str]:
    """Return the most frequent training caption of each subject, as {caption_vehicle, caption_pedestrian}."""
    counts = {name: train[name].dropna().mode() for name in CAPTIONS}
    return {name: most.iloc[0] for name, most in counts.items() if len(most)}


def most_frequent_captions(train: pd.DataFrame, segments: pd.DataFrame) -> Submission:
    """Build a submission that repeats the most frequent training caption; both tables have a row per phase and view."""
    return _first_of_each_segment(segments, [usual_captions(train)] * len(segments))


def nearest_captions(train: pd.DataFrame, segments: pd.DataFrame, image_dir: str | Path, size: int = 16) -> Submission:
    """Build a submission with the captions of the training image of another scenario that is nearest in pixels.

    Images (column `image`) are compared by the squared difference of thumbnails of `size` x `size` pixels; images that cannot
    be opened are skipped. Images of the same scenario are not compared, because they include the image itself and often have
    its caption.
    """
    from beit3lib.data.images import ImageError, open_image

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
    """Build a submission from one caption pair per row of `segments`; a segment with several views uses its first row."""
    built: Submission = {}
    first = ~segments.assign(label=segments["label"].map(segment_label)).duplicated(["scenario", "label"])
    for row, is_first, pair in zip(segments.itertuples(), first, captions, strict=True):
        if is_first:
            built.setdefault(row.scenario, []).append({"labels": [str(row.label)], **pair})
    return built
