"""The official score of AI City Challenge Track 2 (captions), figure for figure, offline and faster.

    python -m beit3lib.metrics --predictions_file submission.json --ground_truth data/wts/annotations/caption/val [--json out]

Per segment and subject: BLEU-4 (nltk, smoothing 3) and METEOR (nltk) on Treebank tokens, ROUGE-L (rouge-score, stemmed)
on the text, CIDEr-D of the single pair. nltk and rouge-score do the work; stems, synonyms and tokens are kept, the
longest common subsequence is counted on bits, and many pairs are scored by several processes.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.artefacts import Problem, write_json
from beit3lib.wts import parse_phase

METRICS = ("bleu", "meteor", "rouge-l", "cider")
SUBJECTS = ("pedestrian", "vehicle")
SIGMA = 6.0  # of CIDEr-D's penalty on the difference in length
DEBIAN_WORDNET = Path("/usr/share/wordnet")
PAIRS_PER_PROCESS = 4000  # below that, starting another process costs more than it brings


# --- one pair ------------------------------------------------------------------------------------------------------


def score_caption(prediction: str, reference: str) -> dict[str, float]:
    """bleu, meteor, rouge-l (0 to 1) and cider (0 to 10) of a caption; an empty one scores 0."""
    if not prediction.strip() or not reference.strip():
        return dict.fromkeys(METRICS, 0.0)
    hypothesis, wanted = _tokens(prediction), _tokens(reference)
    return {
        "bleu": _bleu(hypothesis, wanted),
        "meteor": _meteor(hypothesis, wanted),
        "rouge-l": _rouge_l(prediction, reference),
        "cider": _cider(hypothesis, wanted),
    }


def mean_score(scores: Any) -> Any:
    """(100 BLEU + 100 METEOR + 100 ROUGE-L + 10 CIDEr) / 4 of a mapping or table with the four metrics."""
    return (100 * (scores["bleu"] + scores["meteor"] + scores["rouge-l"]) + 10 * scores["cider"]) / 4


@lru_cache(maxsize=100_000)
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_treebank().tokenize(text))


@lru_cache(maxsize=1)
def _treebank():
    from nltk.tokenize import TreebankWordTokenizer

    return TreebankWordTokenizer()


def _bleu(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return float(sentence_bleu([reference], hypothesis, smoothing_function=SmoothingFunction().method3))


def _meteor(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference, hypothesis, stemmer=_Stemmer, wordnet=_Synonyms))


@lru_cache(maxsize=100_000)
def _stems(text: str) -> tuple[str, ...]:
    return tuple(_rouge_tokenizer().tokenize(text))


@lru_cache(maxsize=1)
def _rouge_tokenizer():
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


def _rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence (Lin 2004)."""
    hypothesis, wanted = _stems(prediction), _stems(reference)
    if not hypothesis or not wanted:
        return 0.0
    common = common_subsequence(wanted, hypothesis)
    precision, recall = common / len(hypothesis), common / len(wanted)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at once as bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def _cider(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """CIDEr-D of one pair, idf 1 (Vedantam et al. 2015, section 4, with clipping and the Gaussian on lengths)."""
    bigrams = len(hypothesis) - 1, len(reference) - 1
    penalty = math.exp(-((max(bigrams[0], 0) - max(bigrams[1], 0)) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for n in range(1, 5):
        found, wanted = _ngrams(hypothesis, n), _ngrams(reference, n)
        norms = math.sqrt(sum(v * v for v in found.values())), math.sqrt(sum(v * v for v in wanted.values()))
        overlap = sum(min(v, wanted[gram]) * wanted[gram] for gram, v in found.items() if gram in wanted)
        total += overlap / (norms[0] * norms[1]) if norms[0] and norms[1] else overlap
    return 10 * total * penalty / 4


def _ngrams(tokens: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


# --- WordNet -------------------------------------------------------------------------------------------------------


class _Stemmer:
    """nltk's Porter stemmer, a word once."""

    @staticmethod
    @lru_cache(maxsize=200_000)
    def stem(word: str) -> str:
        return _porter().stem(word)


@lru_cache(maxsize=1)
def _porter():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


class _Lemma(NamedTuple):
    text: str

    def name(self) -> str:
        return self.text


class _Synset(NamedTuple):
    words: tuple[_Lemma, ...]

    def lemmas(self) -> tuple[_Lemma, ...]:
        return self.words


class _Synonyms:
    """WordNet as METEOR asks for it, a word once; nothing where there is no WordNet."""

    @staticmethod
    @lru_cache(maxsize=200_000)
    def synsets(word: str) -> tuple[_Synset, ...]:
        wordnet = find_wordnet()
        if wordnet is None:
            return ()
        names = {lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()}
        return (_Synset(tuple(map(_Lemma, sorted(names)))),)


@lru_cache(maxsize=1)
def find_wordnet():
    """nltk's WordNet reader: from nltk's data, else Debian's files, else downloaded, else None, which is said once."""
    from nltk.corpus import wordnet

    for bring in (lambda: None, _from_debian, _download):
        try:
            bring()
            wordnet.synsets("road")
            return wordnet
        except (LookupError, OSError):
            continue
    print(
        "METEOR: no WordNet here, so synonyms do not count and the figure is NOT comparable with the official one; "
        "`python -m nltk.downloader wordnet`, or Debian's packages wordnet-base and wordnet-sense-index, bring it",
        file=sys.stderr,
    )
    return None


def meteor_is_comparable() -> bool:
    """Whether METEOR is the official one, with synonyms."""
    return find_wordnet() is not None


def _download() -> None:
    import nltk

    if os.environ.get("BEIT3LIB_OFFLINE") or not nltk.download("wordnet", quiet=True):
        raise LookupError("wordnet")


def _from_debian() -> None:
    """Copy Debian's WordNet into a folder of nltk's form: nltk refuses links out of its own folder."""
    import nltk

    if not (DEBIAN_WORDNET / "index.sense").is_file():
        raise LookupError("Debian's wordnet")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beit3lib" / "nltk_data"
    target = cache / "corpora" / "wordnet"
    if not (target / "lexnames").is_file():
        target.mkdir(parents=True, exist_ok=True)
        for pattern in ("data.*", "index.*", "*.exc", "cntlist*"):
            for file in DEBIAN_WORDNET.glob(pattern):
                shutil.copyfile(file, target / file.name)
        (target / "lexnames").write_text(_lexnames())
    if str(cache) not in nltk.data.path:
        nltk.data.path.append(str(cache))
    from nltk.corpus import wordnet

    if "_LazyCorpusLoader__args" not in vars(wordnet):  # loaded already
        return


LEXNAMES = {  # WordNet's lexicographer files in their order, which Debian's package leaves out
    3: "adj.all adj.pert adv.all",
    1: "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time",
    2: "body change cognition communication competition consumption contact creation emotion motion perception possession "
    "social stative weather",
}


def _lexnames() -> str:
    names = [(name, 4 if name == "adv.all" else 3) for name in LEXNAMES[3].split()]
    names += [(f"noun.{name}", 1) for name in LEXNAMES[1].split()]
    names += [(f"verb.{name}", 2) for name in LEXNAMES[2].split()] + [("adj.ppl", 3)]
    return "".join(f"{i:02d}\t{name}\t{part}\n" for i, (name, part) in enumerate(names))


# --- many pairs ----------------------------------------------------------------------------------------------------


def score_pairs(predictions: Sequence[str], references: Sequence[str], jobs: int | None = None) -> pd.DataFrame:
    """A row per pair with the four metrics and `score`, their mean in the official weights.

    `jobs`: processes, default one per core where there are pairs enough. A pair that comes again is scored once.
    """
    if len(predictions) != len(references):
        raise ValueError(f"expected a reference for each caption, found {len(predictions)} and {len(references)}")
    pairs = list(zip(predictions, references, strict=True))
    different = list(dict.fromkeys(pairs))
    processes = max(1, min(jobs or os.cpu_count() or 1, len(different) // PAIRS_PER_PROCESS))
    known = dict(zip(different, _score_all(different, processes), strict=True))
    table = pd.DataFrame([known[pair] for pair in pairs], columns=list(METRICS))
    return table.assign(score=mean_score(table))


def _score_all(pairs: list[tuple[str, str]], processes: int) -> list[dict[str, float]]:
    if processes == 1:
        return [score_caption(*pair) for pair in pairs]
    from joblib import Parallel, delayed

    parts = [pairs[i::processes] for i in range(processes)]
    done = Parallel(n_jobs=processes)(delayed(_score_all)(part, 1) for part in parts)
    scores: list[dict[str, float]] = [{}] * len(pairs)
    for i, part in enumerate(done):
        scores[i::processes] = part
    return scores


# --- a submission --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """The score of a submission. `segments`: a row per segment and subject; `missing`: what counted 0 for its absence."""

    final: float  # mean of internal and external, of those that the ground truth has
    internal: dict[str, float] | None  # WTS: mean of each metric, and score
    external: dict[str, float] | None  # BDD
    segments: pd.DataFrame
    missing: list[str]
    problems: list[Problem]
    meteor_comparable: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "final": self.final,
            "internal": self.internal,
            "external": self.external,
            "segments": len(self.segments) // len(SUBJECTS),
            "missing": self.missing,
            "problems": list(map(str, self.problems)),
            "meteor_comparable": self.meteor_comparable,
        }


def score_submission(predictions: dict | str | Path, ground_truth_dir: str | Path) -> Scores:
    """Score a submission (a dict, or its file) against every `*_caption.json` with captions under a folder.

    Segments are those of the ground truth, by scenario and original label; one that the submission lacks counts 0. Other
    JSON files are passed over.
    """
    if not isinstance(predictions, dict):
        predictions = _read_submission(Path(predictions))
    problems: list[Problem] = []
    return score_segments(predictions, read_ground_truth(ground_truth_dir, problems), problems)


def score_segments(predictions: dict, truth: dict[tuple[str, str], dict[str, str]], problems: Sequence[Problem] = ()) -> Scores:
    """Score a submission against {(scenario or BDD video, label): {subject: caption}}."""
    rows, missing = [], []
    for (scenario, label), captions in truth.items():
        said = _said(predictions, scenario, label)
        for subject in SUBJECTS:
            caption = (said or {}).get(f"caption_{subject}")
            if not isinstance(caption, str) or not caption.strip():
                missing.append(f"{scenario} label {label}: no {'segment' if said is None else f'{subject} caption'}")
                caption = ""
            rows.append((scenario, label, parse_phase(label), subject, caption, captions[subject]))
    columns = ["scenario", "label", "phase", "subject", "caption", "reference"]
    segments = pd.DataFrame(rows, columns=columns)
    segments = segments.join(score_pairs(segments["caption"].tolist(), segments["reference"].tolist()))
    outside = segments["scenario"].str.startswith("video")
    internal, external = _means(segments[~outside]), _means(segments[outside])
    present = [part["score"] for part in (internal, external) if part]
    final = sum(present) / len(present)
    absent = list(dict.fromkeys(missing))
    return Scores(final, internal, external, segments, absent, list(problems), meteor_is_comparable())


def _read_submission(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a JSON submission, found a file that cannot be read as such ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {{scenario: [segments]}}, found {type(content).__name__}")
    return content


def read_ground_truth(folder: str | Path, problems: list[Problem] | None = None) -> dict[tuple[str, str], dict[str, str]]:
    """{(scenario or BDD video, label): {subject: caption}} of a tree of caption files; views of a scenario count once."""
    problems = [] if problems is None else problems
    files = sorted(Path(folder).rglob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected caption files (*_caption.json), found no JSON file")
    truth: dict[tuple[str, str], dict[str, str]] = {}
    for file in files:
        for label, captions in _segments(file, problems):
            truth.setdefault((_scenario(file), label), captions)
    if not truth:
        raise ValueError(f"{folder}: expected captions in *_caption.json, found none; the test split has no captions")
    return truth


def _scenario(file: Path) -> str:
    return file.name.removesuffix(".json").removesuffix("_caption")


def _segments(file: Path, problems: list[Problem]) -> Iterator[tuple[str, dict[str, str]]]:
    if not file.name.endswith("_caption.json"):
        problems.append(Problem(file.name, "no caption file (*_caption.json); passed over"))
        return
    try:
        phases = json.loads(file.read_text(encoding="utf-8"))["event_phase"]
        segments = [(str(p["labels"][0]), {s: p[f"caption_{s}"] for s in SUBJECTS}) for p in phases]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        problems.append(Problem(file.name, f"expected event_phase with labels and captions ({error!r}); passed over"))
        return
    yield from segments


def _said(predictions: dict, scenario: str, label: str) -> dict | None:
    entries = predictions.get(scenario)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and str((entry.get("labels") or [None])[0]) == label:
            return entry
    return None


def _means(segments: pd.DataFrame) -> dict[str, float] | None:
    if segments.empty:
        return None
    by_subject = segments.groupby("subject")[list(METRICS)].mean()
    means = by_subject.mean()
    return {metric: float(means[metric]) for metric in METRICS} | {"score": float(mean_score(means))}


def report(scores: Scores) -> str:
    """The figures as text."""
    lines = [f"{'':10}" + "".join(f"{name:>10}" for name in (*METRICS, "score"))]
    for name, part in (("internal", scores.internal), ("external", scores.external)):
        figures = (
            "".join(f"{part[m]:10.4f}" for m in METRICS) + f"{part['score']:10.2f}" if part else "  not in the ground truth"
        )
        lines.append(f"{name:10}{figures}")
    lines.append(f"final score {scores.final:.2f} over {len(scores.segments) // len(SUBJECTS)} segments")
    if not scores.meteor_comparable:
        lines.append("METEOR is without synonyms: not comparable with the official figure")
    if scores.missing:
        shown = [f"  {text}" for text in scores.missing[:20]]
        more = [f"  … {len(scores.missing) - 20} more"] if len(scores.missing) > 20 else []
        lines += [f"{len(scores.missing)} missing, counted as 0:", *shown, *more]
    return "\n".join(lines + [str(problem) for problem in scores.problems[:20]])


def main() -> None:
    """`python -m beit3lib.metrics` with the official script's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions_file", required=True, help="submission.json")
    parser.add_argument("--ground_truth", required=True, help="folder of caption files")
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    try:
        scores = score_submission(options.predictions_file, options.ground_truth)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(report(scores))
    if options.json:
        write_json(options.json, scores.as_dict())


if __name__ == "__main__":
    main()
