"""The official score of AI City Challenge Track 2 (captions), figure for figure, offline and faster.

    python -m beit3lib.track2.metrics --predictions_file submission.json --ground_truth data/wts/annotations/caption/val

Per segment and subject: BLEU-4 (nltk, smoothing 3) and METEOR (nltk) on Treebank tokens, ROUGE-L (rouge-score, stemmed)
on the text, CIDEr-D of the single pair. nltk and rouge-score give the tokens, stems and synonyms, for each
word once; n-grams are counted once for BLEU and CIDEr-D, the longest common subsequence on bits, and very many pairs are
shared among processes. The tests hold all of it to nltk's and rouge-score's own functions.
"""

import argparse
import contextlib
import io
import math
import os
import re
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from beit3lib.data.wts import parse_phase
from beit3lib.files import Problem, atomic_folder, in_one_sentence, read_json, write_json

METRICS = ("bleu", "meteor", "rouge-l", "cider")
RANGES = {**dict.fromkeys(METRICS, "0 to 1"), "cider": "0 to 10"}
SUBJECTS = ("pedestrian", "vehicle")
Segment = tuple[str, str]  # (scenario or BDD video, original label)
SIGMA = 6.0  # of CIDEr-D's penalty on the difference in length
DEBIAN_WORDNET = Path("/usr/share/wordnet")
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5
ORDERS = range(1, 5)  # of n-grams
PAIRS_PER_PROCESS = 10_000  # another process spends some 4 s on loading WordNet: as long as it takes to score this many
DOWNLOAD_TIMEOUT_S = 15


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


Tokens = tuple[str, ...]


# In such a text nltk's rules look no further than from one space to the next, and at the end of the text: a word that was
# seen before need not go through its 27 patterns again. Quotes, brackets and other letters take nltk's own way.
_PLAIN = re.compile(r"(?!.*'')[A-Za-z0-9 .,:;?!%/'-]*")


@lru_cache(maxsize=10_000)
def _tokens(text: str) -> Tokens:
    """nltk's Treebank tokens."""
    words = text.split()
    if not words or not _PLAIN.fullmatch(text):
        return tuple(_treebank().tokenize(text))
    return (*chain.from_iterable(map(_word_tokens, words[:-1])), *_last_word_tokens(words[-1]))


@lru_cache(maxsize=100_000)
def _word_tokens(word: str) -> Tokens:
    return tuple(_treebank().tokenize(f"a {word} a")[1:-1])


@lru_cache(maxsize=100_000)
def _last_word_tokens(word: str) -> Tokens:
    return tuple(_treebank().tokenize(f"a {word}")[1:])


@lru_cache(maxsize=1)
def _treebank():
    from nltk.tokenize import TreebankWordTokenizer

    return TreebankWordTokenizer()


@lru_cache(maxsize=500)  # some 60 kB for a caption of 100 words
def _ngrams(tokens: Tokens) -> tuple[Counter, ...]:
    """Counts of the n-grams of each order."""
    return tuple(Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for n in ORDERS)


def _bleu(hypothesis: Tokens, reference: Tokens) -> float:
    """BLEU-4 (Papineni et al. 2002) of one pair, smoothed as NIST does it: nltk's `sentence_bleu` with `method3`."""
    precisions, smoothing = [], 1
    for found, wanted in zip(_ngrams(hypothesis), _ngrams(reference), strict=True):
        total = max(1, sum(found.values()))
        common = sum(min(count, wanted[gram]) for gram, count in found.items() if gram in wanted)
        if not common and not precisions:
            return 0.0  # no word in common
        if not common:
            common, smoothing = 0.5**smoothing, smoothing + 1
        precisions.append(common / total)
    brevity = min(1.0, math.exp(1 - len(reference) / len(hypothesis)))
    return brevity * math.exp(math.fsum(0.25 * math.log(p) for p in precisions))


def _meteor(hypothesis: Tokens, reference: Tokens) -> float:
    """METEOR (Lavie and Agarwal 2007) of one pair: nltk's `single_meteor_score`."""
    matches = _align(hypothesis, reference)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(hypothesis), len(matches) / len(reference)
    mean = precision * recall / (METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall)
    joined = sum(b == (a[0] + 1, a[1] + 1) for a, b in zip(matches, matches[1:], strict=False))
    return (1 - METEOR_GAMMA * ((len(matches) - joined) / len(matches)) ** METEOR_BETA) * mean


def _align(hypothesis: Tokens, reference: Tokens) -> list[tuple[int, int]]:
    """Pairs of places whose words are the same, else have one stem, else are synonyms; words of the end choose first.

    Synonyms are looked up for stems, as nltk does it.
    """
    left = [(i, word.lower()) for i, word in enumerate(hypothesis)]
    right = [(j, word.lower()) for j, word in enumerate(reference)]
    matches = _match(left, right)
    left, right = ([(place, stem(word)) for place, word in side] for side in (left, right))
    matches += _match(left, right)
    matches += _match(left, right, synonyms)
    return sorted(matches)


def _match(left: list[tuple[int, str]], right: list[tuple[int, str]], alike=None) -> list[tuple[int, int]]:
    """Take from both lists the places that match: from the end, each with the last free place of its word.

    `alike`: gives the set of words that count as the word itself.
    """
    places: dict[str, list[int]] = {}
    for j, word in right:
        places.setdefault(word, []).append(j)
    matches = []
    for i, word in reversed(left):
        if alike is not None:
            word = max(alike(word) & places.keys(), key=lambda other: places[other][-1], default=None)
        if word in places:
            matches.append((i, places[word].pop()))
            if not places[word]:
                del places[word]
    taken, given = {i for i, _ in matches}, {j for _, j in matches}
    left[:] = [item for item in left if item[0] not in taken]
    right[:] = [item for item in right if item[0] not in given]
    return matches


def _stems(text: str) -> Tokens:
    """rouge-score's stemmed tokens, which end at every space."""
    return tuple(chain.from_iterable(map(_word_stems, text.split() if text.isascii() else [text])))


@lru_cache(maxsize=100_000)
def _word_stems(word: str) -> Tokens:
    from rouge_score.tokenize import tokenize

    return tuple(tokenize(word, _Stemmer))


def _rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence (Lin 2004): rouge-score's `rougeL` with its stemmer."""
    hypothesis, wanted = _stems(prediction), _stems(reference)
    common = common_subsequence(wanted, hypothesis)
    if not common:
        return 0.0
    precision, recall = common / len(hypothesis), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


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


def _cider(hypothesis: Tokens, reference: Tokens) -> float:
    """CIDEr-D of one pair, idf 1 (Vedantam et al. 2015, section 4, with clipping and the Gaussian on lengths)."""
    total = 0.0
    for found, wanted in zip(_ngrams(hypothesis), _ngrams(reference), strict=True):
        norms = math.sqrt(sum(v * v for v in found.values())), math.sqrt(sum(v * v for v in wanted.values()))
        overlap = sum(min(v, wanted[gram]) * wanted[gram] for gram, v in found.items() if gram in wanted)
        total += overlap / (norms[0] * norms[1]) if overlap else 0.0
    return 10 * total / len(ORDERS) * length_factor(len(hypothesis), len(reference))


def length_factor(tokens: int, reference_tokens: int) -> float:
    """What CIDEr-D leaves of itself for a caption too long or short: e^(-d²/72), d the difference in bigrams."""
    difference = max(tokens - 1, 0) - max(reference_tokens - 1, 0)
    return math.exp(-(difference**2) / (2 * SIGMA**2))


# --- WordNet -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """nltk's Porter stem."""
    return _porter().stem(word)


class _Stemmer:
    """`stem` as rouge-score asks for it."""

    stem = staticmethod(stem)


@lru_cache(maxsize=1)
def _porter():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@lru_cache(maxsize=200_000)
def synonyms(word: str) -> frozenset[str]:
    """A word and the single words of all its synsets in WordNet; the word alone where there is no WordNet."""
    wordnet = find_wordnet()
    if wordnet is None:
        return frozenset((word,))
    names = {lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()}
    return frozenset({name for name in names if "_" not in name} | {word})


def forget() -> None:
    """Empty every cache of words and texts, so that a measurement starts as a new process does."""
    for cached in (_tokens, _word_tokens, _last_word_tokens, _word_stems, _ngrams, stem, synonyms):
        cached.cache_clear()


@lru_cache(maxsize=1)
def find_wordnet():
    """nltk's WordNet reader: from nltk's data, else Debian's files, else downloaded, else None, which is said once."""
    from nltk.corpus import wordnet

    for bring in _WAYS:
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

    if os.environ.get("BEIT3LIB_OFFLINE"):
        raise LookupError("wordnet: BEIT3LIB_OFFLINE is set")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # nltk sets none, and a network that swallows packets would hold us forever
    try:
        said = io.StringIO()  # nltk's default is the stderr of when it was imported, which a notebook or test may have closed
        if not nltk.download("wordnet", quiet=True, print_error_to=said):
            raise LookupError(f"wordnet: nltk's download failed: {said.getvalue()}")
    finally:
        socket.setdefaulttimeout(before)


def _from_debian() -> None:
    """Give nltk a private copy of Debian's WordNet: nltk refuses links out of its own folders."""
    import nltk

    if not (DEBIAN_WORDNET / "index.sense").is_file():
        raise LookupError(f"{DEBIAN_WORDNET}: no index.sense; Debian's packages wordnet-base and wordnet-sense-index bring it")
    data = _copy_debian()
    if str(data) not in nltk.data.path:
        nltk.data.path.append(str(data))


def _copy_debian() -> Path:
    """The folder of nltk's form that holds Debian's WordNet, made once per user."""
    folders = _cache_folders()
    for folder in folders:
        wordnet = folder / "nltk_data" / "corpora" / "wordnet"
        with contextlib.suppress(OSError):  # not writable, or another process was first
            if not (wordnet / "lexnames").is_file():
                _write_wordnet(wordnet)
        if (wordnet / "lexnames").is_file():
            return folder / "nltk_data"
    raise LookupError(f"none of {', '.join(map(str, folders))} can hold a copy of {DEBIAN_WORDNET}")


def _cache_folders() -> list[Path]:
    """Where a private copy may lie: the user's cache, else the temporary folder, as where home is closed or unknown."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    temporary = Path(tempfile.gettempdir(), f"beit3lib-{os.getuid()}")
    return [cache / "beit3lib", temporary] if cache.is_absolute() else [temporary]


def _write_wordnet(folder: Path) -> None:
    with atomic_folder(folder) as new:
        for pattern in ("data.*", "index.*", "*.exc", "cntlist*"):
            for file in DEBIAN_WORDNET.glob(pattern):
                shutil.copyfile(file, new / file.name)
        (new / "lexnames").write_text(_lexnames())


def _as_it_is() -> None:
    """nltk's own data, where it is installed."""


_WAYS = (_as_it_is, _from_debian, _download)

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
    """A row per pair with the four metrics and `score`, their mean in the official weights (0 to 100).

    `jobs`: processes, default as many as pay for loading WordNet once more. A pair that comes again is scored once.
    """
    if len(predictions) != len(references):
        raise ValueError(f"expected a reference for each caption, found {len(predictions)} and {len(references)}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: expected 1 or more processes, found {jobs}")
    pairs = list(zip(predictions, references, strict=True))
    different = list(dict.fromkeys(pairs))
    processes = jobs or min(os.cpu_count() or 1, len(different) // PAIRS_PER_PROCESS)
    known = dict(zip(different, _score_all(different, min(processes, len(different))), strict=True))
    table = pd.DataFrame([known[pair] for pair in pairs], columns=list(METRICS), dtype=float)
    return table.assign(score=mean_score(table))


def _score_all(pairs: list[tuple[str, str]], processes: int) -> list[dict[str, float]]:
    if processes <= 1:
        return [score_caption(*pair) for pair in pairs]
    from joblib import Parallel, delayed

    find_wordnet()  # so that its absence is said here, and made a copy of once
    parts = [pairs[i::processes] for i in range(processes)]
    done = Parallel(n_jobs=processes)(delayed(_score_quietly)(part) for part in parts)
    scores: list[dict[str, float]] = [{}] * len(pairs)
    for i, part in enumerate(done):
        scores[i::processes] = part
    return scores


def _score_quietly(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    with contextlib.redirect_stderr(io.StringIO()):
        find_wordnet()
    return _score_all(pairs, 1)


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
    JSON files are passed over, and segments that the ground truth does not know; `problems` says so. ValueError where the
    two have no scenario in common: that is another file, or another split.
    """
    where = "submission" if isinstance(predictions, dict) else str(predictions)
    if not isinstance(predictions, dict):
        predictions = _read_submission(Path(predictions))
    problems: list[Problem] = []
    truth = read_ground_truth(ground_truth_dir, problems)
    if not {scenario for scenario, _ in truth} & predictions.keys():
        found = ", ".join(map(str, list(predictions)[:3])) or "no key"
        raise ValueError(
            f"{where}: expected {{scenario: [segments]}} with scenarios of {ground_truth_dir}, such as {next(iter(truth))[0]}; "
            f"found {found}. Give the submission and the captions of the same split: notebook 5's submission.val.json, and val"
        )
    return score_segments(predictions, truth, problems)


def score_segments(predictions: dict, truth: dict[Segment, dict[str, str]], problems: Sequence[Problem] = ()) -> Scores:
    """Score a submission against {(scenario or BDD video, label): {subject: caption}}."""
    if not truth:
        raise ValueError("ground truth: expected segments with captions, found none")
    problems = list(problems)
    said = _said(predictions, truth, problems)
    rows, missing = [], []
    for (scenario, label), captions in truth.items():
        for subject in SUBJECTS:
            caption = said.get((scenario, label), {}).get(f"caption_{subject}")
            if not isinstance(caption, str) or not caption.strip():
                what = f"{subject} caption" if (scenario, label) in said else "segment"
                missing.append(f"{scenario} label {label}: no {what}")
                caption = ""
            rows.append((scenario, label, parse_phase(label), subject, caption, captions[subject]))
    segments = pd.DataFrame(rows, columns=["scenario", "label", "phase", "subject", "caption", "reference"])
    segments = segments.join(score_pairs(segments["caption"].tolist(), segments["reference"].tolist()))
    outside = segments["scenario"].str.startswith("video")
    internal, external = _means(segments[~outside]), _means(segments[outside])
    present = [part["score"] for part in (internal, external) if part]
    final = sum(present) / len(present)
    return Scores(final, internal, external, segments, list(dict.fromkeys(missing)), problems, meteor_is_comparable())


def _said(predictions: dict, truth: dict[Segment, dict[str, str]], problems: list[Problem]) -> dict[Segment, dict]:
    """The entries of a submission by scenario and label, of a label that comes twice the first."""
    said: dict[Segment, dict] = {}
    surplus = []
    for key, entries in predictions.items():
        if not isinstance(entries, list):
            problems.append(Problem(key, f"expected a list of segments, found {type(entries).__name__}; passed over"))
            continue
        for number, entry in enumerate(entries):
            label = _label(entry)
            if label is None:
                problems.append(Problem(f"{key}[{number}]", "expected an entry with labels; passed over"))
            elif (key, label) not in truth:
                surplus.append(f"{key} label {label}")
            elif (key, label) in said:
                problems.append(Problem(f"{key} label {label}", "comes again; the first counts"))
            else:
                said[key, label] = entry
    if surplus:
        problems.append(Problem("predictions", f"{_some(surplus, 'segment')} not in the ground truth, passed over"))
    return said


def _some(names: list[str], thing: str) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} {thing}{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{more})"


def _label(entry: Any) -> str | None:
    """The original label of a phase or of a submission's entry: `{"labels": ["4"], …}`."""
    labels = entry.get("labels") if isinstance(entry, dict) else None
    first = labels[0] if isinstance(labels, list) and labels else labels
    return str(first) if isinstance(first, (str, int)) else None


def _read_submission(path: Path) -> dict:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {{scenario: [segments]}}, found {type(content).__name__}")
    return content


def read_ground_truth(folder: str | Path, problems: list[Problem] | None = None) -> dict[Segment, dict[str, str]]:
    """{(scenario or BDD video, label): {subject: caption}} of a tree of caption files; views of a scenario count once.

    What cannot be used is added to `problems`. Raises FileNotFoundError where there is no JSON file, ValueError where none
    holds a caption.
    """
    problems = [] if problems is None else problems
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of caption files (*_caption.json), found none")
    files = sorted(file for file in Path(folder).rglob("*.json") if not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{folder}: expected caption files (*_caption.json), found no JSON file")
    others = [str(file.relative_to(folder)) for file in files if not file.name.endswith("_caption.json")]
    if others:
        problems.append(Problem(str(folder), f"{_some(others, 'other JSON file')} passed over"))
    truth: dict[Segment, dict[str, str]] = {}
    for file in files:
        if file.name.endswith("_caption.json"):
            _add_segments(file, str(file.relative_to(folder)), truth, problems)
    if not truth:
        raise ValueError(f"{folder}: expected captions in *_caption.json, found none; the test split has no captions")
    return truth


def _add_segments(file: Path, where: str, truth: dict[Segment, dict[str, str]], problems: list[Problem]) -> None:
    scenario = file.name.removesuffix("_caption.json")
    for number, phase in enumerate(_phases(file, where, problems)):
        label = _label(phase)
        captions = {s: phase.get(f"caption_{s}") for s in SUBJECTS} if label is not None else {}
        without = [s for s, caption in captions.items() if not isinstance(caption, str) or not caption.strip()]
        if label is None:
            problems.append(Problem(f"{where}: phase {number}", "expected labels, found none; passed over"))
        elif without:
            problems.append(Problem(f"{where}: label {label}", f"no {' and no '.join(without)} caption; passed over"))
        elif truth.setdefault((scenario, label), captions) != captions:
            problems.append(Problem(f"{where}: label {label}", "captions differ from those read before, which count"))


def _phases(file: Path, where: str, problems: list[Problem]) -> list[Any]:
    try:
        content = read_json(file)
    except (ValueError, OSError) as error:
        problems.append(Problem(where, f"{error}; passed over"))
        return []
    phases = content.get("event_phase") if isinstance(content, dict) else None
    if not isinstance(phases, list):
        problems.append(Problem(where, f"expected a list event_phase, found {type(phases).__name__}; passed over"))
        return []
    return phases


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
        lines.append("METEOR is without synonyms: NOT comparable with the official figure")
    lines += _listed("missing, counted as 0", scores.missing) + _listed("noted", list(map(str, scores.problems)))
    return "\n".join(lines)


def _listed(heading: str, texts: list[str], most: int = 20) -> list[str]:
    if not texts:
        return []
    more = [f"  … {len(texts) - most} more; --json lists them all"] if len(texts) > most else []
    return [f"{len(texts)} {heading}:", *(f"  {text}" for text in texts[:most]), *more]


@in_one_sentence()
def main() -> None:
    """`python -m beit3lib.track2.metrics` with the official script's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions_file", required=True, help="submission.json")
    parser.add_argument("--ground_truth", required=True, help="folder of caption files")
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    scores = score_submission(options.predictions_file, options.ground_truth)
    print(report(scores))
    if options.json:
        write_json(options.json, scores.as_dict())


if __name__ == "__main__":
    main()
