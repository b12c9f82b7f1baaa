"""Combine captions of aspects and views into one per segment and subject, and write a checked submission.

A composed caption has the form of real ones: aspects in reading order and no repeated sentence.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from beit3lib.data.aspects import merge_aspects, split_sentences
from beit3lib.data.images import ImageError, open_image
from beit3lib.data.schema import READING_ORDER, SUBJECTS
from beit3lib.files import Problem, write_json
from beit3lib.track2.metrics import read_segments, segment_label

CAPTIONS = [f"caption_{subject}" for subject in SUBJECTS]
Submission = dict[str, list[dict[str, Any]]]


class SubmissionError(ValueError):
    """The challenge would refuse a submission; the message lists all its problems."""


class Written(NamedTuple):
    """A submission that was written to `path`; `filled` lists the captions that were missing."""

    path: Path
    submission: Submission
    filled: list[str]


def compose(parts: Mapping[str, str], subject: str) -> str:
    """Return the caption of a segment from {aspect: text}, without repeated sentences.

    The text of the aspect "full" replaces all others.
    """
    if parts.get("full"):
        return parts["full"]
    first: dict[str, str] = {}  # {sentence: its first aspect}
    for aspect in READING_ORDER[subject]:
        for sentence in split_sentences(parts.get(aspect) or ""):
            first.setdefault(sentence, aspect)
    kept = {a: " ".join(text for text in first if first[text] == a) for a in READING_ORDER[subject]}
    return merge_aspects(kept, subject)


def build_submission(predictions: pd.DataFrame) -> Submission:
    """Build {scenario: [{"labels": ["4"], "caption_vehicle": …, …}, …]}, ordered by phase.

    `predictions` has a row per caption with scenario, label, phase, subject, aspect ("full" for a whole
    caption), caption and log_prob. Of several views the most probable caption is used. The caption most
    similar to those of the other views scored the same on the sample (60.3), and so did captions cut to the
    length of training captions.
    """
    names = ["scenario", "phase", "subject", "aspect"]
    best = predictions.sort_values("log_prob", ascending=False, kind="stable").drop_duplicates(names)
    built: Submission = {}
    for (scenario, _), segment in best.groupby(["scenario", "phase"]):
        entry: dict[str, Any] = {"labels": [segment["label"].iloc[0]]}
        for subject in SUBJECTS:
            parts = segment[segment["subject"] == subject].set_index("aspect")["caption"].to_dict()
            entry[f"caption_{subject}"] = compose(parts, subject)
        built.setdefault(scenario, []).append(entry)
    return built


def expected_segments(phases: pd.DataFrame, split: str) -> dict[str, list[str]]:
    """Return {scenario or BDD video: [labels in the order of phases]} that a submission must contain.

    `phases` has a row per phase and view with split, scenario, label and phase, including phases without a
    video.
    """
    segments = phases[phases["split"] == split].drop_duplicates(["scenario", "phase"]).sort_values("phase")
    return segments.groupby("scenario")["label"].agg(list).to_dict()


def check_submission(submission: Any, expected: Mapping[str, Sequence[str]]) -> list[str]:
    """Return all problems of a submission; an empty list means that the challenge accepts it."""
    if not isinstance(submission, dict):
        return [f"expected {{scenario: [segments]}}, got {type(submission).__name__}"]
    unusable: list[Problem] = []
    segments = read_segments(submission, unusable)
    labels = {(name, segment_label(label)): label for name, of in expected.items() for label in of}
    problems = [f"{scenario}: not expected" for scenario in submission if scenario not in expected]
    problems += map(str, unusable)
    for (scenario, label), wanted in labels.items():
        entry = segments.pop((scenario, label), None)
        where = f"{scenario} label {wanted}"
        if entry is None:
            problems.append(f"{where}: expected a segment, found none")
            continue
        if entry["labels"] != [wanted]:
            problems.append(f'{where}: expected ["{wanted}"] in labels, got {entry["labels"]}')
        for name in CAPTIONS:
            if not (isinstance(entry.get(name), str) and entry[name].strip()):
                problems.append(f"{where}: expected text in {name}, got {entry.get(name)!r}")
        problems += [f"{where}: unknown key {name}" for name in entry if name not in ("labels", *CAPTIONS)]
    return problems + [f"{scenario} label {label}: not expected" for scenario, label in segments]


def write_submission(
    path: str | Path,
    submission: Submission,
    expected: Mapping[str, Sequence[str]],
    fill_missing: bool = False,
    most_frequent: Mapping[str, str] | None = None,
) -> Written:
    """Write a submission that passes `check_submission`; otherwise raise `SubmissionError` and write nothing.

    With `fill_missing`, missing captions are replaced by those of `most_frequent` (the result of
    `most_frequent_captions`) and listed in the result. By default they are an error, so that a submission of
    a few captioned images is not written unnoticed.
    """
    filled: list[str] = []
    if fill_missing:
        submission, filled = fill(submission, expected, most_frequent or {})
    refuse(path, check_submission(submission, expected), "Caption all images of both subjects")
    return Written(write_json(path, submission), submission, filled)


def refuse(path: str | Path, problems: Sequence[str], todo: str) -> None:
    """Raise SubmissionError with the first 50 problems, if there are any."""
    if problems:
        more = [f"… {len(problems) - 50} more"] if len(problems) > 50 else []
        listed = "\n  ".join([*problems[:50], *more])
        raise SubmissionError(
            f"{path}: found {len(problems)} problems, wrote nothing. {todo}, or set fill_missing to use the "
            f"most frequent ones of the training data.\n  {listed}"
        )


def fill(
    submission: Submission, expected: Mapping[str, Sequence[str]], most_frequent: Mapping[str, str]
) -> tuple[Submission, list[str]]:
    """Return the expected segments with `most_frequent` in place of missing captions, and their list."""
    segments, built, filled = read_segments(submission, []), {}, []
    for scenario, labels in expected.items():
        built[scenario] = []
        for label in labels:
            given = segments.get((scenario, segment_label(label)), {})
            captions = {name: given.get(name) or most_frequent.get(name, "") for name in CAPTIONS}
            built[scenario].append({"labels": [label], **captions})
            if missing := [name for name in CAPTIONS if not given.get(name)]:
                filled.append(f"{scenario} label {label}: {', '.join(missing)}")
    return built, filled


def most_frequent_captions(train: pd.DataFrame) -> dict[str, str]:
    """Return {caption_vehicle, caption_pedestrian}: the most frequent training captions."""
    return {name: train[name].mode()[0] for name in CAPTIONS if train[name].notna().any()}


def most_frequent_submission(train: pd.DataFrame, segments: pd.DataFrame) -> Submission:
    """Build a submission that repeats the most frequent training captions.

    Both tables have a row per phase and view.
    """
    return _first_rows(segments.assign(**dict.fromkeys(CAPTIONS, "") | most_frequent_captions(train)))


def nearest_submission(train: pd.DataFrame, segments: pd.DataFrame, image_dir: str | Path) -> Submission:
    """Build a submission with the captions of the nearest training image of another scenario.

    Images (column `image`) are compared by the squared difference of thumbnails of 16 × 16 pixels;
    images that cannot be opened are skipped. Images of the same scenario are not compared, because they
    include the image itself and often have its caption.
    """

    def thumbnail(name: str) -> np.ndarray | None:
        with suppress(ImageError, OSError):
            return np.asarray(open_image(Path(image_dir, name)).resize((16, 16)), np.float32).ravel()

    segments = segments.assign(pixels=segments["image"].map(thumbnail)).dropna(subset="pixels")
    train = train.assign(pixels=train["image"].map(thumbnail)).dropna(subset=["pixels", *CAPTIONS])
    if segments.empty or train.empty:
        return {}
    a, b = np.stack(segments["pixels"]), np.stack(train["pixels"])
    distances = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)  # (segments, training images)
    distances[segments["scenario"].to_numpy()[:, None] == train["scenario"].to_numpy()] = np.inf
    nearest = train.iloc[distances.argmin(1)][CAPTIONS].set_axis(segments.index)
    comparable = np.isfinite(distances.min(1))
    return _first_rows(segments.assign(**nearest)[comparable])


def _first_rows(table: pd.DataFrame) -> Submission:
    """Build a submission from scenario, label and captions; the first row of a segment counts."""
    built: Submission = {}
    for row in table.drop_duplicates(["scenario", "label"]).to_dict("records"):
        captions = {name: row[name] for name in CAPTIONS}
        built.setdefault(row["scenario"], []).append({"labels": [row["label"]], **captions})
    return built
