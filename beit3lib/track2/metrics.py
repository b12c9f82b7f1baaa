"""The official caption score of AI City Challenge Track 2, offline.

    python -m beit3lib.track2.metrics --predictions_file submission.json --ground_truth \
        data/wts/annotations/caption/val data/wts/external/BDD_PC_5K/annotations/caption/val

Per segment and subject: BLEU-4 (nltk, smoothing method 3) and METEOR (nltk) on Treebank tokens, ROUGE-L (rouge-score with
its stemmer) on the text, and CIDEr-D of the single pair. For speed, stems and synonyms are cached per word, and the longest
common subsequence is computed with bit operations.
"""

import argparse
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import TreebankWordTokenizer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.tokenize import tokenize as rouge_tokenize

from beit3lib.data.schema import SUBJECTS
from beit3lib.data.wts import list_files, parse_phase
from beit3lib.files import Problem, exit_on_error, printable, read_json, write_json
from beit3lib.track2.wordnet import find_synonyms, warn_without_wordnet

METRICS = ("bleu", "meteor", "rouge-l", "cider")
TITLES = dict(zip(METRICS, ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr"), strict=True))
LIMITS = {"BLEU-4": 1, "METEOR": 1, "ROUGE-L": 1, "CIDEr": 10}  # the largest values
Segment = tuple[str, str]  # (scenario or BDD video, label as `segment_label` writes it)
PAIRS_PER_PROCESS = 2_500  # scoring them takes 3 s, as long as a new process needs to load WordNet

smoothing = SmoothingFunction().method3
stemmer = SimpleNamespace(stem=lru_cache(maxsize=200_000)(PorterStemmer().stem))


@lru_cache(maxsize=10_000)
def tokenize(text: str) -> tuple[str, ...]:
    """Return nltk's Treebank tokens."""
    return tuple(TreebankWordTokenizer().tokenize(text))


def score_caption(prediction: str, reference: str) -> dict[str, float]:
    """Return bleu, meteor, rouge-l (0 to 1) and cider (0 to 10) of one caption; an empty one scores 0."""
    if not prediction.strip() or not reference.strip():
        return dict.fromkeys(METRICS, 0.0)
    hypothesis, target = tokenize(prediction), tokenize(reference)
    return {
        "bleu": float(sentence_bleu([target], hypothesis, smoothing_function=smoothing)),
        "meteor": meteor_score([target], hypothesis, stemmer=stemmer, wordnet=find_synonyms()),
        "rouge-l": rouge_l(prediction, reference),
        "cider": cider_d(hypothesis, target),
    }


def mean_score(scores: Any) -> Any:
    """Return (100 BLEU + 100 METEOR + 100 ROUGE-L + 10 CIDEr) / 4 of a mapping or table with the four metrics."""
    return (100 * (scores["bleu"] + scores["meteor"] + scores["rouge-l"]) + 10 * scores["cider"]) / 4


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F-measure of rouge-score's `rougeL` with its stemmer."""
    hypothesis, target = rouge_tokenize(prediction, stemmer), rouge_tokenize(reference, stemmer)
    common = common_subsequence(target, hypothesis)
    return 2 * common / (len(hypothesis) + len(target)) if common else 0.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, with one integer per row of the table (Hyyrö 2004).

    For two captions of 126 words this takes 0.04 ms, and rouge-score's table of Python lists 4 ms.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        match = row & positions.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def cider_d(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """Return CIDEr-D of one pair with idf 1 (Vedantam et al. 2015, section 4).

    The cosine of n-gram counts, clipped to those of the reference, times a Gaussian (sigma 6) of the difference in length,
    which the official code counts in bigrams.
    """
    cosines = 0.0
    for n in range(1, 5):
        h, r = (
            Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (hypothesis, reference)
        )
        if common := sum(min(count, r[gram]) * r[gram] for gram, count in h.items() if gram in r):
            cosines += common / math.sqrt(sum(v * v for v in h.values()) * sum(v * v for v in r.values()))
    difference = max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)
    return 10 * cosines / 4 * math.exp(-(difference**2) / 72)


def meteor_is_comparable() -> bool:
    """Return whether METEOR counts synonyms, so that scores equal the official ones."""
    return find_synonyms().complete


def score_name(comparable: bool | None = None) -> str:
    """Return the name of a score for tables and figures: only a score with WordNet may be called official.

    `comparable` is the value recorded with the score; the default is whether this host has WordNet.
    """
    comparable = meteor_is_comparable() if comparable is None else comparable
    return "Official score" if comparable else "Score without WordNet (not official)"


def score_pairs(
    predictions: Sequence[str], references: Sequence[str], jobs: int | None = None
) -> pd.DataFrame:
    """Return a row per pair with the four metrics and `score`, their weighted mean (0 to 100).

    `jobs` is the number of processes; by default there is one per 2,500 different pairs. Equal pairs are scored once.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"expected one reference per caption, got {len(predictions)} captions and {len(references)} references"
        )
    pairs = list(zip(predictions, references, strict=True))
    different = list(dict.fromkeys(pairs))
    processes = jobs or max(1, min(os.cpu_count() or 1, len(different) // PAIRS_PER_PROCESS))
    warn_without_wordnet()
    scores = Parallel(n_jobs=processes if len(different) > 1 else 1)(
        delayed(score_caption)(*pair) for pair in different
    )
    known = dict(zip(different, scores, strict=True))
    table = pd.DataFrame([known[pair] for pair in pairs], columns=list(METRICS), dtype=float)
    return table.assign(score=mean_score(table))


def score_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with `official_score`: the mean of the challenge's four metrics, 0 to 100, NaN without a reference.

    An aspect that the reference does not mention (reference "") scores 100 if the caption is empty too. An empty caption
    or reference alone scores 0.
    """
    pairs = list(zip(table["caption"], table["reference"], strict=True))
    scores = np.array(
        [
            np.nan if reference is None else 100.0 * (caption == reference == "")
            for caption, reference in pairs
        ]
    )
    both = [i for i, (caption, reference) in enumerate(pairs) if caption and reference]
    if both:
        scores[both] = score_pairs([pairs[i][0] for i in both], [pairs[i][1] for i in both])["score"]
    return table.assign(official_score=scores)


@dataclass(frozen=True)
class Scores:
    """The score of a submission; `missing` lists the absent segments and captions, which count 0."""

    final: float  # mean of internal and external, or the one that the ground truth has
    internal: dict[str, float] | None  # WTS: mean of each metric, and score
    external: dict[str, float] | None  # BDD
    segments: (
        pd.DataFrame
    )  # scenario, label, phase, subject, caption, reference, metrics, score: a row per subject
    missing: list[str]
    problems: list[Problem]
    meteor_comparable: bool

    @property
    def name(self) -> str:
        """The label of these scores in tables and figures, see `score_name`."""
        return score_name(self.meteor_comparable)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "final": self.final,
            "internal": self.internal,
            "external": self.external,
            "segments": len(self.segments) // len(SUBJECTS),
            "missing": list(map(printable, self.missing)),
            "problems": [printable(str(problem)) for problem in self.problems],
            "meteor_comparable": self.meteor_comparable,
        }


def score_submission(submission: dict | str | Path, *ground_truth: str | Path) -> Scores:
    """Score a submission (a dict or its file) against every `*_caption.json` with captions in the folders of `ground_truth`.

    A segment that only the ground truth has counts 0. Segments that only the submission has, and other JSON files, are skipped
    and listed in `problems`. Raises ValueError if the two share no scenario, because they are then of different splits.
    """
    path = "submission" if isinstance(submission, dict) else str(submission)
    if not isinstance(submission, dict):
        submission = read_json(submission, dict)
    problems: list[Problem] = []
    truth: dict[Segment, dict[str, str]] = {}
    for folder in ground_truth:
        truth |= read_ground_truth(folder, problems)
    if not {scenario for scenario, _ in truth} & submission.keys():
        found = ", ".join(list(map(str, submission))[:3]) or "no scenario"
        folders = ", ".join(map(str, ground_truth))
        raise ValueError(
            f"{path}: expected {{scenario: [segments]}} with scenarios of {folders}, such as {next(iter(truth))[0]}, "
            f"got {found}. Give a submission and captions of the same split, for example submission.val.json and val."
        )
    return score_segments(submission, truth, problems)


def score_segments(
    submission: dict, truth: dict[Segment, dict[str, str]], problems: Sequence[Problem] = ()
) -> Scores:
    """Score a submission against {(scenario or BDD video, label): {subject: caption}}."""
    if not truth:
        raise ValueError("ground truth: expected segments with captions, found none")
    truth = {(scenario, segment_label(label)): captions for (scenario, label), captions in truth.items()}
    problems = list(problems)
    submitted = _entries(submission, truth, problems)
    rows, missing = [], []
    for (scenario, label), captions in truth.items():
        entry = submitted.get((scenario, label))
        if entry is None:
            missing.append(f"{scenario} label {label}: no segment")
        for subject in SUBJECTS:
            caption = (entry or {}).get(f"caption_{subject}")
            if not isinstance(caption, str) or not caption.strip():
                caption = ""
                if entry is not None:
                    missing.append(f"{scenario} label {label}: no {subject} caption")
            rows.append((scenario, label, parse_phase(label), subject, caption, captions[subject]))
    segments = pd.DataFrame(rows, columns=["scenario", "label", "phase", "subject", "caption", "reference"])
    segments = segments.join(score_pairs(segments["caption"].tolist(), segments["reference"].tolist()))
    is_external = segments["scenario"].str.startswith("video")
    internal, external = _means(segments[~is_external]), _means(segments[is_external])
    finals = [part["score"] for part in (internal, external) if part]
    return Scores(
        sum(finals) / len(finals), internal, external, segments, missing, problems, meteor_is_comparable()
    )


def segment_label(entry: Any) -> str | None:
    """Return the label of a phase or submission entry `{"labels": ["4"], …}`, or of a plain label; None if it has none.

    Digits are read as a number, so that "04" and "4" are one segment. Words are kept, because for the official script
    "avoidance" and "4" are different segments.
    """
    labels = entry.get("labels") if isinstance(entry, dict) else entry
    label = labels[0] if isinstance(labels, list) and labels else labels
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        return None
    text = str(label).strip() if not isinstance(label, int) or abs(label) < 10**9 else ""
    return (text.lstrip("0") or "0") if text.isascii() and text.isdigit() else text or None


def _entries(submission: dict, truth: dict[Segment, Any], problems: list[Problem]) -> dict[Segment, dict]:
    """Return the entries of a submission by scenario and label; the first counts if a label occurs twice."""
    entries: dict[Segment, dict] = {}
    unknown = []
    for scenario, listed in submission.items():
        if not isinstance(listed, list):
            problems.append(
                Problem(scenario, f"expected a list of segments, found {type(listed).__name__}; skipped")
            )
            continue
        for number, entry in enumerate(listed):
            label = segment_label(entry) if isinstance(entry, dict) else None
            if label is None:
                problems.append(Problem(f"{scenario}[{number}]", "expected an entry with labels; skipped"))
            elif (scenario, label) not in truth:
                unknown.append(f"{scenario} label {label}")
            elif (scenario, label) in entries:
                problems.append(
                    Problem(f"{scenario} label {label}", "expected once, found again; the first counts")
                )
            else:
                entries[scenario, label] = entry
    if unknown:
        problems.append(
            Problem("submission", f"{_examples(unknown, 'segment')} not in the ground truth; skipped")
        )
    return entries


def _examples(names: list[str], thing: str) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} {thing}{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{more})"


def read_ground_truth(
    folder: str | Path, problems: list[Problem] | None = None
) -> dict[Segment, dict[str, str]]:
    """Read {(scenario or BDD video, label): {subject: caption}} from a tree of caption files; the first view counts.

    What cannot be used is added to `problems`. Raises FileNotFoundError if there is no JSON file, and ValueError if no
    file contains a caption.
    """
    problems = [] if problems is None else problems
    folder = Path(folder)
    files = sorted(path for path in list_files(folder, problems) if path.suffix == ".json")
    if not files:
        raise FileNotFoundError(
            f"{folder}: expected a folder of caption files (*_caption.json), found no JSON file"
        )
    others = [str(path.relative_to(folder)) for path in files if not path.name.endswith("_caption.json")]
    if others:
        problems.append(Problem(str(folder), f"{_examples(others, 'other JSON file')}; skipped"))
    truth: dict[Segment, dict[str, str]] = {}
    for path in files:
        if path.name.endswith("_caption.json"):
            _read_caption_file(path, truth, problems)
    if not truth:
        raise ValueError(
            f"{folder}: expected captions in *_caption.json, found none. The test split has no captions; use val."
        )
    return truth


def _read_caption_file(path: Path, truth: dict[Segment, dict[str, str]], problems: list[Problem]) -> None:
    """Add the segments of one caption file to `truth`."""
    try:
        phases = read_json(path, dict).get("event_phase")
    except (ValueError, OSError) as error:
        problems.append(Problem(str(path), str(error).removeprefix(f"{path}: "), "download the file again"))
        return
    if not isinstance(phases, list):
        problems.append(
            Problem(str(path), f"expected a list event_phase, found {type(phases).__name__}; skipped")
        )
        return
    scenario = path.name.removesuffix(
        "_caption.json"
    )  # str.strip, as in the official script, would also cut other names
    for number, phase in enumerate(phases):
        label = segment_label(phase) if isinstance(phase, dict) else None
        if label is None:
            problems.append(Problem(f"{path}: phase {number}", "expected labels, found none; skipped"))
            continue
        captions = {subject: phase.get(f"caption_{subject}") for subject in SUBJECTS}
        absent = [s for s, caption in captions.items() if not isinstance(caption, str) or not caption.strip()]
        if absent:
            problems.append(
                Problem(f"{path}: label {label}", f"found no caption of the {' and the '.join(absent)}")
            )
        elif truth.setdefault((scenario, label), captions) != captions:
            problems.append(
                Problem(
                    f"{path}: label {label}", "expected the captions of the first view, found others; skipped"
                )
            )


def _means(segments: pd.DataFrame) -> dict[str, float] | None:
    """Average each metric over segments, then over subjects, as the official script does."""
    if segments.empty:
        return None
    means = segments.groupby("subject")[list(METRICS)].mean().mean()
    return {metric: float(means[metric]) for metric in METRICS} | {"score": float(mean_score(means))}


def report(scores: Scores) -> str:
    """Return the scores as text, with at most 20 missing captions and problems each."""
    lines = [f"{'':10}" + "".join(f"{name:>10}" for name in (*METRICS, "score"))]
    for name, part in (("internal", scores.internal), ("external", scores.external)):
        numbers = (
            "".join(f"{part[m]:10.4f}" for m in METRICS) + f"{part['score']:10.2f}"
            if part
            else "  not in the ground truth"
        )
        lines.append(f"{name:10}{numbers}")
    lines.append(f"{scores.name}: {scores.final:.2f} over {len(scores.segments) // len(SUBJECTS)} segments")
    for heading, items in (
        ("missing, counted as 0", scores.missing),
        ("problems", list(map(str, scores.problems))),
    ):
        if items:
            lines += [f"{len(items)} {heading}:", *(f"  {item}" for item in items[:20])]
            lines += [f"  … {len(items) - 20} more; --json lists all of them"] if len(items) > 20 else []
    return printable("\n".join(lines))


@exit_on_error()
def main() -> None:
    """`python -m beit3lib.track2.metrics`, with the flags of the official script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions_file", required=True, help="submission.json")
    parser.add_argument(
        "--ground_truth", required=True, nargs="+", help="folders of caption files, of WTS and of BDD_PC_5K"
    )
    parser.add_argument("--json", help="also write the scores to this file")
    options = parser.parse_args()
    scores = score_submission(options.predictions_file, *options.ground_truth)
    print(report(scores))
    if options.json:
        write_json(options.json, scores.as_dict())


if __name__ == "__main__":
    main()
