"""Read the multiple-choice questions of a WTS download as one table, and write a run's index of questions.

    from beit3lib.data.questions import read_questions
    questions, problems, counts = read_questions("data/wts")

Questions of train and val are in `…/vqa/<split>/<scenario>/<view>/*.json`, where the view is `environment`,
`overhead_view` or `vehicle_view`. Those of the test split are in one file, `WTS_VQA_PUBLIC_TEST.json`, which
is found by "vqa" in its path. The "quirks" that comments number are the nine of WTS's questions that
tests/data/test_questions.py tests.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from pathlib import Path
from reprlib import repr as show
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.data.schema import PHASES
from beit3lib.data.wts import list_files, parse_phase, scenario_of, source_of
from beit3lib.files import FileError, Problem, printable, read_json, read_json_lines, write_json, write_text

COLUMNS = "split source scenario scope view videos phase id question options correct".split()
QUESTION_INDEX_NAME = "questions.{split}.jsonl"
LETTERS = "abcdefg"  # of options (quirk 2)
VIDEO_KEYS = ("videos", "overhead_videos", "vehicle_view", "video_name")
PLACE = re.compile(
    r".*/vqa/(?P<split>train|val|test)(?:/normal_trimmed|/public[^/]*)*"
    r"/(?P<scenario>[^/]+)/(?P<view>environment|overhead_view|vehicle_view)/[^/]+\.json"
)


class Questions(NamedTuple):
    """The questions (columns `COLUMNS`), the problems, and how many were found, used and skipped."""

    table: pd.DataFrame
    problems: list[Problem]
    counts: dict[str, int]


@lru_cache(maxsize=100_000)
def question_key(text: str) -> str:
    """Return the text of a question or an option for comparisons: without case, punctuation and extra spaces.

    Misspelled words are not corrected, because the test split has the same ones (quirk 7).
    """
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text.strip()


def read_questions(root: str | Path, scenarios: Collection[str] = ()) -> Questions:
    """Read all questions below `root`, in the order of their files: one row per question.

    Columns: split (train|val|test), source (wts|bdd), scenario, scope (phase|scenario), view (environment|
    overhead_view|vehicle_view; phases of BDD: vehicle_view), videos (a list of names), phase (0–4, None for a
    question about the whole scenario), id, question, options ({letter: text}), correct (a letter, or None in
    the test split).

    The test file has ids, and no scenario: it follows from the names of the videos, with certainty if
    `scenarios` are those of the download. Ids of train and val are made of the scenario, the view and the
    position in the file. A training question without a correct answer is a problem and skipped.
    """
    root, problems, found = Path(root).expanduser(), [], 0
    rows: dict[str, tuple] = {}  # by id
    for path in list_files(root, problems, ("videos", "caption", "bbox_annotated", "bbox_generated")):
        place = PLACE.fullmatch(path.absolute().as_posix())  # the root may be inside the tree
        report = partial(_report, problems, path.relative_to(root))
        folders = path.relative_to(root).parts
        if place is None and {"train", "val"} & set(folders):
            if "vqa" in folders:
                report("expected …/vqa/<split>/<scenario>/<view>/, got other folders; skipped")
        elif place or re.search(r"vqa.*\.json$", "/".join(folders), re.IGNORECASE):
            entries, asked = _read_file(path, place, scenarios, report)
            found += asked
            for row in entries:
                identity = row[COLUMNS.index("id")]
                if rows.setdefault(identity, row) is not row:
                    report(f"expected question {identity} once, got it again; skipped")
    counts = {"questions": found, "questions_used": len(rows), "questions_skipped": found - len(rows)}
    return Questions(pd.DataFrame(list(rows.values()), columns=COLUMNS, dtype=object), problems, counts)


def _report(problems: list[Problem], path: Path, what: str, todo: str = "") -> None:
    problems.append(Problem(printable(path.as_posix()), printable(what), todo))


def _read_file(
    path: Path, place: re.Match | None, known: Collection[str], report: Callable[..., None]
) -> tuple[list[tuple], int]:
    """Return the rows of a file, and the number of questions in it; only the test file has no `place`."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        report(f"{reason}; its questions are skipped", "download this file again")
        return [], 0
    rows, position = [], 0
    for entry in content if isinstance(content, list) else [content]:  # quirk 1
        entry = entry if isinstance(entry, dict) else {}
        listed = [entry.get(key) for key in VIDEO_KEYS]  # a list or one name
        names = [name for value in listed for name in (value if isinstance(value, list) else [value])]
        videos = [printable(os.path.basename(name)) for name in names if isinstance(name, str) and name]
        blocks = _read_blocks(entry, report)
        if place:  # not the names of the file and of its videos, which may be others (quirks 4 and 8)
            split, scenario, view = place["split"], place["scenario"], place["view"]
        else:
            split, scenario = "test", scenario_of(videos[0], known) if videos else ""
            view = "vehicle_view" if all("_vehicle_view" in name for name in videos) else "overhead_view"
            if blocks and not videos:
                report(f"expected names of videos, got {show(entry)}; its questions have no image")
        source = source_of(scenario)
        for phase, questions in blocks:
            about = (split, source, scenario, "scenario", "environment")
            if phase is not None:
                about = (split, source, scenario, "phase", "vehicle_view" if source == "bdd" else view)
            for question in questions:
                position += 1
                own_id = f"{split}/{scenario}/{view}/{path.stem}#{position}"
                if asked := _read_question(question, split, own_id):
                    rows.append((*about, videos, phase, *asked))
                else:
                    expected = "expected a question, options, and the letter of one or (test) an id"
                    report(f"question {position}: {expected}, got {show(question)}; skipped")
    return rows, position


def _read_blocks(entry: dict, report: Callable[..., None]) -> list[tuple[int | None, list]]:
    """Return (phase, questions) for each list of questions; the phase is None for the whole scenario."""
    blocks = [(None, entry[key]) for key in ("environment", "conversations") if key in entry]
    phases = entry.get("event_phase", [])
    for number, part in enumerate(phases if isinstance(phases, list) else [phases]):
        part = part if isinstance(part, dict) else {}
        labels = part.get("labels")
        phase = parse_phase(labels[0] if isinstance(labels, list) and labels else labels)  # quirk 5
        if phase is None:  # its questions are kept, because those of the test split must be answered
            what = f"expected a label 0–4 or a word such as {PHASES[0]}, got {show(labels)}"
            report(f"phase entry {number}: {what}; read as about the whole scenario")
        blocks.append((phase, part.get("conversations")))
    if not blocks:
        report(f"expected event_phase, environment or conversations, got {show(entry)}; skipped")
    for _, questions in blocks:
        if not isinstance(questions, list):
            report(f"expected a list of questions, got {show(questions)}; skipped")
    return [(phase, questions) for phase, questions in blocks if isinstance(questions, list)]


def _read_question(entry: Any, split: str, own_id: str) -> tuple[str, str, dict[str, str], str | None] | None:
    """Return id, question, options and correct letter, or None if the question cannot be used."""
    entry = entry if isinstance(entry, dict) else {}
    options = {letter: entry[letter] for letter in LETTERS if entry.get(letter) is not None}
    correct = str(entry.get("correct") or "").strip().lower()
    texts = [entry.get("id") if split == "test" else own_id, entry.get("question")]
    if not options or not all(isinstance(text, str | int | float) for text in options.values()):
        return None
    if not all(isinstance(text, str) and text for text in texts):
        return None
    if split != "test" and correct not in options:  # quirk 6
        return None
    options = {letter: printable(str(text)) for letter, text in options.items()}
    identity, question = map(printable, texts)
    return identity, question, options, correct if correct in options else None


def write_questions(path: str | Path, questions: pd.DataFrame) -> Path:
    """Write one JSON object per question, with all columns of the table."""
    # json.dumps writes ASCII only, because some readers end a line at U+2028.
    return write_text(path, "".join(json.dumps(row) + "\n" for row in questions.to_dict("records")))


def add_images(
    questions: pd.DataFrame, phases: pd.DataFrame, image_dir: str | Path, root: str | Path
) -> tuple[pd.DataFrame, list[Problem]]:
    """Return the questions with `images`, paths relative to `root`; those without any are problems.

    A question about a phase is shown by the images of all cameras of the phase, because a vehicle's question
    may list overhead cameras only (quirk 4); one about the scenario by the images of all its phases. `phases`
    has split, scenario, phase and image.
    """
    images = defaultdict(list)
    for row in phases.dropna(subset=["image"]).itertuples():
        shown = Path(os.path.relpath(Path(image_dir, row.image), root)).as_posix()
        images[row.split, row.scenario, row.phase].append(shown)
        images[row.split, row.scenario, None].append(shown)
    keys = zip(questions["split"], questions["scenario"], questions["phase"], strict=True)
    table = questions.assign(images=[images.get(key, []) for key in keys])
    unseen = table[table["images"].map(len) == 0].groupby(["split", "scenario"]).size()
    what, todo = f"questions without an image in {image_dir}", "rerun the stage prepare"
    return table, [Problem("/".join(key), f"{count} {what}", todo) for key, count in unseen.items()]


def read_question_index(path: str | Path) -> pd.DataFrame:
    """Read a file of `write_questions`: one row per line, with the columns `COLUMNS` and `images`."""
    rows = read_json_lines(path)
    if missing := [name for name in COLUMNS if not all(name in row for row in rows)]:
        raise FileError(f"{path}: expected {', '.join(missing)} in each line. Rerun the stage index.")
    return pd.DataFrame(rows, columns=[*COLUMNS, "images"], dtype=object)


def questions_of_images(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return {image: its questions as {"id", "question", "options"}} of an index, {} if there is none."""
    of_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_question_index(path).itertuples() if path.is_file() else ():
        for image in row.images:
            of_image[image].append({"id": row.id, "question": row.question, "options": row.options})
    return of_image


def answers_path(predictions_path: Path) -> Path:
    """Return answers.json beside predictions.json, also for the names of a preview."""
    return predictions_path.with_name(predictions_path.name.replace("predictions", "answers"))


def write_image_answers(
    path: Path, answers: dict[str, dict[str, dict[str, float]]], meta: dict[str, Any]
) -> Path:
    """Write `{"meta": …, "answers": {image: {question id: {letter: log-probability}}}}`."""
    return write_json(path, {"meta": meta, "answers": answers})


def read_image_answers(path: str | Path) -> pd.DataFrame:
    """Read a file of `write_image_answers`: one row per image and question, with image, id and log_probs."""
    answers = read_json(path, dict)["answers"].items()
    rows = [(image, *answer) for image, of_image in answers for answer in of_image.items()]
    return pd.DataFrame(rows, columns=["image", "id", "log_probs"])


def combine_images(questions: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return the questions with `log_probs`, the mean over all their images; None without any."""
    means = {}
    for identity, found in answers.groupby("id")["log_probs"]:
        means[identity] = {letter: sum(one[letter] for one in found) / len(found) for letter in found.iloc[0]}
    return questions.assign(log_probs=[means.get(identity) for identity in questions["id"]])
