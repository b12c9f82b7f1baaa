"""The official caption score of AI City Challenge Track 2, offline.

    python -m beit3lib.track2.metrics --predictions_file submission.json --ground_truth \
        data/wts/annotations/caption/val data/wts/external/BDD_PC_5K/annotations/caption/val

Per segment and subject: BLEU-4 (nltk, smoothing method 3) and METEOR (nltk) on Treebank tokens, ROUGE-L
(rouge-score with its stemmer) on the text, and CIDEr-D of the single pair. Stems and synonyms are cached per
word, and the longest common subsequence is computed with bit operations, which takes less than half of the
time.
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
from nltk.util import ngrams
from rouge_score.tokenize import tokenize as rouge_tokenize

from beit3lib.data.schema import SUBJECTS
from beit3lib.data.wts import list_files, parse_phase
from beit3lib.files import Problem, exit_on_error, read_json
from beit3lib.track2 import wordnet

METRICS = ("bleu", "meteor", "rouge-l", "cider")
TITLES = dict(zip(METRICS, ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr"), strict=True))
LIMITS = dict(zip(TITLES.values(), (1, 1, 1, 10), strict=True))  # the largest values
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
        "meteor": meteor_score([target], hypothesis, stemmer=stemmer, wordnet=wordnet),
        "rouge-l": rouge_l(prediction, reference),
        "cider": cider_d(hypothesis, target),
    }


def mean_score(scores: Any) -> Any:
    """Return (100 BLEU + 100 METEOR + 100 ROUGE-L + 10 CIDEr) / 4 of a mapping or table of the metrics."""
    return (100 * (scores["bleu"] + scores["meteor"] + scores["rouge-l"]) + 10 * scores["cider"]) / 4


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F-measure of rouge-score's `rougeL` with its stemmer."""
    hypothesis, target = rouge_tokenize(prediction, stemmer), rouge_tokenize(reference, stemmer)
    common = common_subsequence(target, hypothesis)
    return 2 * common / (len(hypothesis) + len(target)) if common else 0.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, with an integer per row of the table (Hyyrö 2004).

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

    The cosine of n-gram counts, clipped to those of the reference, times a Gaussian (sigma 6) of the
    difference in length, which the official code counts in bigrams.
    """
    cosines = 0.0
    for n in range(1, 5):
        h, r = Counter(ngrams(hypothesis, n)), Counter(ngrams(reference, n))
        if common := sum(min(count, r[gram]) * r[gram] for gram, count in h.items() if gram in r):
            cosines += common / math.sqrt(sum(v * v for v in h.values()) * sum(v * v for v in r.values()))
    difference = max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)
    return 10 * cosines / 4 * math.exp(-(difference**2) / 72)


def meteor_is_comparable() -> bool:
    """Return whether METEOR counts synonyms, so that scores equal the official ones."""
    return wordnet.load_wordnet() is not None


def score_name(comparable: bool) -> str:
    """Return the name of a score for tables and figures: only a score with WordNet may be called official."""
    return "Official score" if comparable else "Score without WordNet (not official)"


def score_pairs(predictions: Sequence[str], references: Sequence[str]) -> pd.DataFrame:
    """Return a row per pair with the four metrics and `score`, their weighted mean (0 to 100).

    Equal pairs are scored once, and more than 2,500 different ones by several processes.
    """
    pairs = list(zip(predictions, references, strict=True))
    different = list(dict.fromkeys(pairs))
    # Without WordNet one process scores all, because each other process would repeat the warning.
    processes = len(different) // PAIRS_PER_PROCESS if meteor_is_comparable() else 1
    processes = max(1, min(os.cpu_count() or 1, processes))
    scores = Parallel(n_jobs=processes)(delayed(score_caption)(*pair) for pair in different)
    known = dict(zip(different, scores, strict=True))
    table = pd.DataFrame([known[pair] for pair in pairs], columns=list(METRICS), dtype=float)
    return table.assign(score=mean_score(table))


def score_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with `official_score`: the mean of the metrics, 0 to 100, NaN without a reference.

    An aspect that the reference does not mention (reference "") scores 100 if the caption is empty too. An
    empty caption or reference alone scores 0.
    """
    captions, references = table["caption"], table["reference"]
    scores = score_pairs(captions, references.fillna(""))["score"].set_axis(table.index)
    both_empty = (captions == "") & (references == "")
    return table.assign(official_score=scores.mask(both_empty, 100.0).where(references.notna()))


@dataclass(frozen=True)
class Scores:
    """The score of a submission; `missing` lists the absent captions, which count 0."""

    final: float  # mean of internal and external, or the one that the ground truth has
    internal: dict[str, float] | None  # WTS: mean of each metric, and score
    external: dict[str, float] | None  # BDD
    # A row per segment and subject: scenario, label, phase, subject, caption, reference, metrics and score.
    segments: pd.DataFrame
    missing: list[str]
    problems: list[Problem]
    meteor_comparable: bool

    @property
    def name(self) -> str:
        """The label of these scores in tables and figures, see `score_name`."""
        return score_name(self.meteor_comparable)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {"segments": len(self.segments) // len(SUBJECTS), "problems": list(map(str, self.problems))}
        return vars(self) | counts


def score_submission(path: str | Path, *ground_truth: str | Path) -> Scores:
    """Score the submission in a file against all caption files in the folders of `ground_truth`.

    A caption that only the ground truth has counts 0. Segments that only the submission has are skipped and
    listed in `problems`. Raises ValueError if the two share no scenario, because they are then of different
    splits.
    """
    submission, truth, problems = read_json(path, dict), {}, []
    for folder in ground_truth:
        truth |= read_ground_truth(folder, problems)
    if not {scenario for scenario, _ in truth} & submission.keys():
        found = ", ".join(list(submission)[:3]) or "none"
        raise ValueError(
            f"{path}: expected scenarios such as {next(iter(truth))[0]}, got {found}. "
            "Give a submission and captions of the same split."
        )
    return score_segments(submission, truth, problems)


def score_segments(
    submission: dict, truth: dict[Segment, dict[str, str]], problems: Sequence[Problem] = ()
) -> Scores:
    """Score a submission against {(scenario or BDD video, label): {subject: caption}}."""
    truth = {(scenario, segment_label(label)): captions for (scenario, label), captions in truth.items()}
    problems, rows, missing = list(problems), [], []
    submitted = read_segments(submission, problems)
    if unknown := sorted(submitted.keys() - truth.keys()):
        what = f"{len(unknown)} segments not in the ground truth, such as {' label '.join(unknown[0])}"
        problems.append(Problem("submission", f"{what}; skipped"))
    for (scenario, label), references in truth.items():
        for subject in SUBJECTS:
            caption = submitted.get((scenario, label), {}).get(f"caption_{subject}") or ""
            if not caption.strip():
                missing.append(f"{scenario} label {label}: no {subject} caption")
            rows.append((scenario, label, parse_phase(label), subject, caption, references[subject]))
    segments = pd.DataFrame(rows, columns=["scenario", "label", "phase", "subject", "caption", "reference"])
    segments = segments.join(score_pairs(segments["caption"], segments["reference"]))
    # As in the official script, each metric is averaged over segments, then over subjects.
    parts = np.where(segments["scenario"].str.startswith("video"), "external", "internal")
    means = segments.groupby([parts, "subject"])[list(METRICS)].mean().groupby(level=0).mean()
    means["score"] = mean_score(means)
    found = means.to_dict("index")
    return Scores(
        float(means["score"].mean()),
        found.get("internal"),
        found.get("external"),
        segments,
        missing,
        problems,
        meteor_is_comparable(),
    )


def segment_label(label: str | int) -> str:
    """Return a label with digits read as a number, so that "04" and "4" are one segment.

    Words are kept, because for the official script "avoidance" and "4" are different segments.
    """
    text = str(label).strip()
    return (text.lstrip("0") or "0") if text.isdigit() else text


def read_segments(submission: dict, problems: list[Problem]) -> dict[Segment, dict[str, Any]]:
    """Return the entries of a submission by segment; those that cannot be used are added to `problems`."""
    segments: dict[Segment, dict[str, Any]] = {}
    for scenario, entries in submission.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            labels = entry.get("labels") if isinstance(entries, list) and isinstance(entry, dict) else None
            if not (isinstance(labels, list) and labels):
                found = f'expected a list of {{"labels": ["0"], …}}, got {str(entry)[:60]}; skipped'
                problems.append(Problem(scenario, found))
            elif segments.setdefault((scenario, segment_label(labels[0])), entry) is not entry:
                found = "expected once, found again; the first counts"
                problems.append(Problem(f"{scenario} label {labels[0]}", found))
    return segments


def read_ground_truth(folder: str | Path, problems: list[Problem]) -> dict[Segment, dict[str, str]]:
    """Read {(scenario or BDD video, label): {subject: caption}} from all `*_caption.json` below a folder.

    The captions of the first view count. What cannot be used is added to `problems`. `read_wts` does not read
    such a folder, because it needs the folders above it and the videos.
    """
    truth: dict[Segment, dict[str, str]] = {}
    for path in list_files(folder):
        # The official script calls str.strip, which also cuts letters of the scenario.
        scenario = path.name.removesuffix("_caption.json")
        if scenario == path.name:
            continue
        try:
            for phase in read_json(path, dict)["event_phase"]:
                label = segment_label(phase["labels"][0])
                captions = {subject: phase.get(f"caption_{subject}") for subject in SUBJECTS}
                where = f"{path} label {label}"
                if not all(captions.values()):
                    problems.append(Problem(where, "expected two captions, found fewer; skipped"))
                elif truth.setdefault((scenario, label), captions) != captions:
                    problems.append(Problem(where, "other captions than in the first view; skipped"))
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            problems.append(Problem(str(path), f"expected event_phase with labels, got {error!r}; skipped"))
    if not truth:
        raise ValueError(
            f"{folder}: expected *_caption.json with captions, found none. "
            "Give a folder such as annotations/caption/val; the test split has no captions."
        )
    return truth


def report(scores: Scores) -> str:
    """Return the scores as text, with all missing captions and problems."""
    parts = {"internal": scores.internal, "external": scores.external}
    table = pd.DataFrame({name: part for name, part in parts.items() if part}).T
    lines = [table.to_string(float_format="{:.4f}".format)]
    lines += [f"{scores.name}: {scores.final:.2f} over {len(scores.segments) // len(SUBJECTS)} segments"]
    for heading, items in (("missing, counted as 0", scores.missing), ("problems", scores.problems)):
        if items:
            lines += [f"{len(items)} {heading}:", *(f"  {item}" for item in items)]
    return "\n".join(lines)


@exit_on_error()
def main() -> None:
    """`python -m beit3lib.track2.metrics`, with the flags of the official script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions_file", required=True, help="submission.json")
    parser.add_argument("--ground_truth", required=True, nargs="+", help="folders of caption files")
    options = parser.parse_args()
    print(report(score_submission(options.predictions_file, *options.ground_truth)))


if __name__ == "__main__":
    main()
