"""Split full captions into five aspects and merge them again, by readable rules; read and write caption files.

Every sentence is assigned whole to exactly one aspect, so splitting loses nothing: `merge_aspects` returns all sentences
of the caption. A sentence gets the aspect of which it states most facts, and of two with equally many the one stated
first; a sentence without facts gets the aspect of the sentence before it. `explain_caption` shows the words that decided.
Two careful readers and these rules agree on 319 of 320 real sentences (tests/data/aspect_labels.json has 300 of them).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from beit3lib.data.facts import Fact, find_facts, split_sentences
from beit3lib.data.wts import parse_phase
from beit3lib.files import Problem, printable, read_json, write_json

SUBJECTS = ("vehicle", "pedestrian")
ASPECTS = ("moving", "pedestrian_description", "position", "road", "weather")
READING_ORDER = {  # by the mean position of an aspect's sentences in real captions
    "vehicle": ("position", "moving", "pedestrian_description", "weather", "road"),
    "pedestrian": ("pedestrian_description", "weather", "road", "position", "moving"),
}


class Decision(NamedTuple):
    """The aspect of a sentence, the number of facts it states per aspect, and the words that decided."""

    aspect: str | None
    facts: dict[str, int]
    rule: str


def classify_sentence(sentence: str, subject: str) -> Decision:
    """Return the aspect of which a sentence states most facts, on a tie the one stated first; None if it states no fact."""
    found: dict[str, list[Fact]] = {}
    for fact in find_facts(sentence):  # in reading order; of two that overlap, the earlier or else the longer one counts
        kept = found.setdefault(fact.aspect, [])
        if not kept or fact.start >= kept[-1].end:
            kept.append(fact)
    if not found:
        return Decision(None, {}, "no fact")
    # "perpendicular to the vehicle and to the left" is one orientation but two facts
    facts = {a: sum(2 if fact.value.startswith("perpendicular ") else 1 for fact in kept) for a, kept in found.items()}
    leading = min(facts, key=lambda aspect: (-facts[aspect], found[aspect][0].start))
    words = ", ".join(f"{fact.slot}: {sentence[fact.start : fact.end].strip()!r}" for fact in found[leading])
    return Decision(leading, facts, words)


def explain_caption(caption: str, subject: str) -> list[tuple[str, Decision]]:
    """Return every sentence of a caption with its decision."""
    sentences = split_sentences(caption)
    decisions = [classify_sentence(sentence, subject) for sentence in sentences]
    # sentences without facts at the beginning get the aspect of the first sentence that has one
    before = next((d.aspect for d in decisions if d.aspect), READING_ORDER[subject][0])
    explained = []
    for sentence, decision in zip(sentences, decisions, strict=True):
        if decision.aspect is None:
            decision = Decision(before, {}, "no fact: same aspect as the sentence before")
        before = decision.aspect
        explained.append((sentence, decision))
    return explained


def split_caption(caption: str, subject: str) -> dict[str, str]:
    """Return {aspect: its sentences, in their order}; aspects that the caption does not mention are absent."""
    _check_subject(subject)
    parts: dict[str, list[str]] = {}
    for sentence, decision in explain_caption(caption, subject):
        parts.setdefault(decision.aspect, []).append(sentence)
    return {aspect: " ".join(parts[aspect]) for aspect in ASPECTS if aspect in parts}


def merge_aspects(parts: Mapping[str, str], subject: str) -> str:
    """Join the texts of aspects to one caption, in the order of real captions of the subject.

    A part without a full stop at its end comes last, because its last sentence would run into the next part.
    """
    _check_subject(subject)
    unknown = sorted(set(parts) - set(ASPECTS))
    if unknown:
        raise ValueError(f"parts: expected aspects {', '.join(ASPECTS)}; found {', '.join(unknown)}")
    texts = [parts[aspect].strip() for aspect in READING_ORDER[subject] if parts.get(aspect, "").strip()]

    def runs_on(text: str) -> bool:  # into a sentence that follows
        return len(split_sentences(f"{text} Next.")) == len(split_sentences(text))

    return " ".join(sorted(texts, key=runs_on))  # sorting is stable: all others keep their order


def _check_subject(subject: str) -> None:
    if subject not in SUBJECTS:
        raise ValueError(f"subject: expected one of {', '.join(SUBJECTS)}, found {subject!r}")


FILE_NAME = re.compile(r"(vehicle|pedestrian)[-_]caption[-_](\w+?(?:-\w+)?)[-_]datasets\.json", re.IGNORECASE)
EXAMPLE = "vehicle_caption_moving_datasets.json"


class CaptionTable(NamedTuple):
    """One row per scenario, video, label, phase, subject, aspect and caption; and the problems of the files."""

    captions: pd.DataFrame
    problems: list[Problem]


def caption_file_name(subject: str, aspect: str) -> str:
    """Return the original repository's name of a caption file, such as `vehicle_caption_moving_datasets.json`."""
    return f"{subject}_caption_{aspect}_datasets.json"


def caption_type_of(path: Path) -> tuple[str, str] | None:
    """Return (subject, aspect) from the name of a caption file, spelled with `-` or `_`; None for any other name."""
    match = FILE_NAME.fullmatch(path.name)
    aspect = match[2].lower().replace("-", "_") if match else None
    return (match[1].lower(), aspect) if aspect in ASPECTS else None


def write_caption_files(phases: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write one caption file per subject and aspect of a phases table, and return their paths.

    All videos of a scenario share its captions. If those of a phase differ between views, the first view's is written.
    """
    contents = {(subject, aspect): {} for subject in SUBJECTS for aspect in ASPECTS}
    for scenario, rows in phases.groupby("scenario", sort=True):
        videos = sorted(rows["video"].unique())
        for subject in SUBJECTS:
            captioned = rows[rows[f"caption_{subject}"].notna()].drop_duplicates("phase").sort_values("phase")
            for label, caption in zip(captioned["label"], captioned[f"caption_{subject}"], strict=True):
                for aspect, text in split_caption(caption, subject).items():
                    entry = contents[subject, aspect].setdefault(scenario, {"videos": videos, "caption": []})
                    entry["caption"].append({"label": str(label), "caption": text})
    return [write_json(Path(folder) / caption_file_name(*of), content) for of, content in contents.items()]


def read_caption_files(source: str | Path | Iterable[str | Path]) -> CaptionTable:
    """Read caption files (a folder, a path or several), of `write_caption_files` or of the original repository.

    Every caption of a scenario is paired with every video of the scenario. Files and entries that cannot be used are
    problems.
    """
    if isinstance(source, (str, Path)):
        paths = sorted(Path(source).glob("*.json")) if Path(source).is_dir() else [Path(source)]
    else:
        paths = [Path(path) for path in source]
    if not paths:
        raise FileNotFoundError(f"{source}: expected caption files such as {EXAMPLE}, found none")
    rows: list[tuple] = []
    problems: list[Problem] = []
    for path in paths:
        if (caption_type := caption_type_of(path)) is None:
            problems.append(Problem(path.name, f"expected a name like {EXAMPLE}; skipped", "rename it"))
            continue
        for scenario, videos, label, phase, caption in read_caption_file(path, problems):
            rows += [(scenario, video, label, phase, *caption_type, caption) for video in videos]
    columns = ["scenario", "video", "label", "phase", "subject", "aspect", "caption"]
    return CaptionTable(pd.DataFrame(rows, columns=columns).astype({"phase": "int64"}), problems)


def read_caption_file(
    path: Path, problems: list[Problem], keep_empty: bool = False
) -> Iterator[tuple[str, list[str], str, int, str | None]]:
    """Yield (scenario, videos, label, phase, caption) of one caption file; append entries that are skipped to `problems`.

    With `keep_empty`, for files of segments to caption, a caption without words is yielded as None instead of skipped.
    """
    try:
        content = read_json(path, dict)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        problems.append(Problem(path.name, f"{reason}; skipped", "make or download it again"))
        return
    for scenario, entry in content.items():
        where = f"{path.name}: {printable(scenario)}"
        videos, captions = (entry.get("videos"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        names = [printable(video) for video in videos if isinstance(video, str)] if isinstance(videos, list) else []
        if not names or len(names) < len(videos) or not isinstance(captions, list):
            problems.append(Problem(where, "expected lists videos and caption, found something else; skipped"))
            continue
        for item in captions:
            label, caption = (item.get("label"), item.get("caption")) if isinstance(item, dict) else (None, None)
            if (phase := parse_phase(label)) is None:
                problems.append(Problem(where, f"unknown label {repr(label)[:60]}; skipped", "labels are 0 to 4"))
                continue
            text = printable(caption).strip() if isinstance(caption, str) else ""
            if not text and not keep_empty:
                problems.append(Problem(f"{where} phase {label}", "a caption without words; skipped"))
                continue
            yield printable(scenario), names, str(label).strip(), phase, text or None
