"""Write generated captions as one HTML page to inspect in a browser, and as tables for notebooks.

    from beit3lib.data.predictions import read_predictions
    from beit3lib.viz.gallery import write_gallery

    predictions = read_predictions("runs/demo/predictions.json")
    write_gallery(predictions, "runs/demo/gallery.html", image_root="runs/demo")

    python -m beit3lib.viz.gallery runs/demo/predictions.json --compare_with big=runs/big/predictions.json

`predictions` is a table with one row per caption, as `read_predictions` returns it: image (path below
`image_root`), subject, aspect and caption are required. All other columns of a predictions file are optional,
and so are
- `box_pedestrian_xywh_px` and `box_vehicle_xywh_px` ("x y w h") with `frame_width_px` and `frame_height_px`;
- `frame` (path of a sharp frame below `image_root`), `video_path`, `start_s` and `end_s` (the phase in its
  video);
- `attention` ({word: rows of numbers}, a grid over the image);
- `contradiction` (text: a fact of the caption against an answer);
- `kind` and `facts` of `with_facts`, which is applied to a table without them.

`answers` has one row per question about an image: image, question, options ({letter: text}), log_probs
({letter: number}), correct (a letter, or None), answer, changed (whether consistency with other answers
changed it) and scope.

`gallery.html.jinja` is the page, `gallery.css` its look, `gallery.js` its behavior; `cards.html.jinja` has
the tables for notebooks; `marks.py` compares words. `page_data` describes the data in the page.
"""

import argparse
import base64
import io
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from IPython.display import HTML
from markupsafe import Markup
from PIL import Image

from beit3lib.data.facts import OUTCOMES, caption_kind, fact_table
from beit3lib.data.images import open_image
from beit3lib.data.predictions import inside, read_meta, read_predictions
from beit3lib.data.schema import PHASES, SUBJECTS
from beit3lib.files import exit_on_error, finite, printable, write_text
from beit3lib.track2.metrics import score_name
from beit3lib.viz.marks import CONFIDENT, SAME, find_contradictions, mark_facts, mark_words, styled_words

REQUIRED = ("image", "subject", "aspect", "caption")
ABOUT_IMAGE = ("scenario", "split", "source", "view", "video", "label", "phase")
FACT_KEYS = ("slot", "predicted", "reference", "outcome")
EMBED_IMAGES = 300  # up to here the images are part of the page, about 4 MB, so that one file can be sent
EMBED_PX = 256
KINDS = tuple(OUTCOMES.values())  # of captions, the worst first

# The ends of a scale are taken from the data where they are None. The page opens with the first measure that
# it has.
MEASURES = {
    "official_score": {"title": score_name(True), "digits": 1, "low": 0, "high": 100},
    "log_prob": {"title": "Log probability", "digits": 2, "low": None, "high": 0},
    "words": {"title": "Number of words", "digits": 0, "low": 0, "high": None},
}


def with_facts(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the captions with `facts` against their references, and `kind`, one of KINDS.

    `facts` is a list of {"slot", "predicted", "reference", "outcome"}. `kind` is None without a reference,
    and for a caption that differs from it where neither has a fact, so that the two cannot be compared.
    """
    if "reference" not in predictions:
        return predictions.assign(kind=None, facts=None)
    predictions = predictions.reset_index(drop=True)
    facts: dict[int, list[dict]] = defaultdict(list)
    for index, *fact in fact_table(predictions)[list(FACT_KEYS)].itertuples():
        facts[index].append(dict(zip(FACT_KEYS, fact, strict=True)))
    kinds = []
    for index, (caption, reference) in enumerate(predictions[["caption", "reference"]].to_numpy()):
        outcomes = {fact["slot"]: fact["outcome"] for fact in facts[index]}
        kinds.append(caption_kind(outcomes) if outcomes or caption == reference else None)
    return predictions.assign(kind=kinds, facts=[facts[index] for index in predictions.index])


def caption_records(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dicts: missing text is "", but a missing reference None; confidence in percent."""
    records = []
    for row in (predictions if "kind" in predictions else with_facts(predictions)).to_dict("records"):
        record = {name: _text(row[name]) or "" for name in REQUIRED}
        record |= {name: _text(row.get(name)) or "" for name in ABOUT_IMAGE}
        record["phase"] = record["phase"].removesuffix(".0")  # a column with gaps has 3.0 for phase 3
        caption, reference = record["caption"], _text(row.get("reference"))
        marks = None if reference is None else mark_words(caption, reference)
        is_exact = marks is not None and not "".join(marks).strip(SAME)
        kind = row["kind"] if row.get("kind") in KINDS else None
        facts = row["facts"] if isinstance(row.get("facts"), list) else []
        if marks and facts:
            marks = mark_facts((caption, reference), marks, facts)
        probs, words = row.get("word_probs"), caption.split()
        is_complete = isinstance(probs, list) and len(probs) == len(words)
        values = {name: finite(row.get(name)) for name in MEASURES} | {"words": len(words)}
        records.append(
            {
                **record,
                "reference": reference,
                "marks": marks,
                "exact": is_exact,
                "confidence": [round(100 * p) for p in probs] if is_complete else None,
                "measures": {name: round(value, 4) for name, value in values.items() if value is not None},
                "kind": kind,
                "right": is_exact if kind is None else kind == "equal in fact",
                "contradiction": _text(row.get("contradiction")) or "",
                "facts": [tuple(_text(fact[name]) or "" for name in FACT_KEYS) for fact in facts],
                **_media(row),
                "attention": row["attention"] if isinstance(row.get("attention"), dict) else {},
            }
        )
    return records


def _text(value: Any) -> str | None:
    return None if pd.isna(value) is True else printable(str(value))


def _media(row: dict[str, Any]) -> dict[str, Any]:
    """Return paths of frame and video, the video's shape, and boxes as shares of its width and height."""
    width, height, boxes = finite(row.get("frame_width_px")), finite(row.get("frame_height_px")), []
    for subject in SUBJECTS if width and height else ():
        if text := _text(row.get(f"box_{subject}_xywh_px")):
            xywh = np.array(text.split(), float) / (width, height, width, height)
            boxes.append({"label": subject, "xywh": xywh.round(4).tolist()})
    start_s, end_s = finite(row.get("start_s")), finite(row.get("end_s"))
    return {
        "frame": _text(row.get("frame")) or "",
        "video_path": _text(row.get("video_path")) or "",
        "span": "" if start_s is None or end_s is None else f"#t={start_s:.3f},{end_s:.3f}",
        "shape": [width, height] if width and height else None,
        "boxes": boxes,
    }


def phase_name(phase: str, label: str = "") -> str:
    """Return "phase 3 · action", with the label where it is neither the number nor the name.

    Without a phase it is the label, such as "2–4 s" of a video that was divided by time.
    """
    name = PHASES[int(phase)] if phase.isdecimal() and int(phase) < len(PHASES) else ""
    label = f"label {label}" if phase and label and label not in (phase, name) else label if not phase else ""
    return " · ".join(filter(None, (phase and f"phase {phase}", name, label)))


def compare_table(
    predictions: pd.DataFrame, others: Mapping[str, pd.DataFrame], name: str = "this run"
) -> pd.DataFrame:
    """Mean official score of each run by caption type and over all, of the captions that every run has."""
    keys, runs = ["image", "subject", "aspect"], {name: predictions, **others}
    means = {name: run.groupby(keys, sort=False)["official_score"].mean() for name, run in runs.items()}
    scores = pd.concat(means, axis=1).dropna()
    groups = scores.groupby(["subject", "aspect"], sort=False)
    table = groups.mean()
    table.insert(0, "captions", groups.size())
    if len(scores):
        table.loc[("all", "all"), :] = [len(scores), *scores.mean()]
    return table.astype({"captions": int})


def embed(image: Image.Image | str | Path, size_px: int = EMBED_PX) -> str:
    """Return an image as the data URI of a JPEG with at most `size_px` pixels a side. Raises `ImageError`."""
    small = open_image(image)
    small.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _image_entry(
    record: dict[str, Any],
    root: Path,
    page_folder: Path | None = None,
    embedded: bool = True,
    media_root: Path | None = None,
) -> dict[str, Any]:
    """Describe an image: `src` relative to the page, `embedded` as a data URI, or a `problem` instead.

    `frame` and `clip` are the addresses of the sharp frame and of the phase in the video, if these files are
    there. A predictions file may come from anyone: a path that leaves `root` would show, or embed, any image
    of this machine.
    """
    entry = {name: record[name] for name in ("image", *ABOUT_IMAGE, "boxes", "shape")}
    entry["about"] = phase_name(record["phase"], record["label"])
    entry["camera"] = " · ".join(filter(None, (record["view"].replace("_", " "), record["video"])))
    if page_folder is not None:
        entry["frame"] = _link(record["frame"], root, page_folder)
        clip = _link(record["video_path"], media_root, page_folder)
        entry["clip"] = clip and clip + record["span"]
    below = inside(record["image"], root)
    if below is None:
        return entry | {"problem": "image path outside image_root"}
    if not (root / below).is_file():
        return entry | {"problem": "image not found"}
    if page_folder is not None:
        entry["src"] = _link(record["image"], root, page_folder)
    if embedded:
        try:
            entry["embedded"] = embed(root / below)
        except ValueError:
            return entry | {"problem": "image cannot be read"}
    return entry


def _link(path: str, root: Path | None, page_folder: Path) -> str | None:
    """Return the address of a file relative to the page, or None if it is not below `root`."""
    below = inside(path, root) if path and root else None
    if below is None or not (root / below).is_file():
        return None
    return quote(os.path.relpath(root.resolve() / below, page_folder.resolve()).replace(os.sep, "/"))


def _questions(answers: pd.DataFrame | None, entries: dict[str, dict]) -> tuple[list[str], int]:
    """Add `questions` to the images' entries; return the texts that they index, and how many are left out.

    `options` are [letter, text, probability in percent].
    """
    texts: dict[str, int] = {}
    left_out = 0
    for entry in entries.values():
        entry["questions"] = []
    for row in () if answers is None else answers.to_dict("records"):
        if row["image"] not in entries:
            left_out += 1
            continue
        scores = np.array([row["log_probs"][letter] for letter in row["options"]])
        probs = np.exp(scores - scores.max())
        phrases = [_text(row["question"]), *map(_text, row["options"].values())]
        question, *options = (texts.setdefault(text, len(texts)) for text in phrases)
        entries[row["image"]]["questions"].append(
            {
                "question": question,
                "scope": _text(row["scope"]) or "",
                "options": list(
                    zip(row["options"], options, (100 * probs / probs.sum()).round().tolist(), strict=True)
                ),
                "correct": (_text(row["correct"]) or "").lower(),
                "answer": (_text(row["answer"]) or "").lower(),
                "changed": bool(row["changed"]),
            }
        )
    return list(texts), left_out


def page_data(
    runs: Mapping[str, list[dict[str, Any]]],
    entries: dict[str, dict],
    official: bool = True,
    phrases: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all data of the page as JSON values.

    A row is one caption type of one image, and the rows of an image follow each other. `texts` has each
    caption and reference once; elsewhere they are its indices, -1 where there is none. `phrases` are the
    texts of questions and options. `rows` has indices into `images`, `types` (subject, aspect) and `texts`
    (reference). Each of `runs` has one value per row: `caption`, `marks` (of `mark_words`, or 0 where there
    are none or all are SAME), `confidence` (percent per word, or 0), `measures`, `kind` (an index into
    `kinds`, or -1) and `facts` (indices into `facts`, which has the FACT_KEYS of each fact).
    """
    rows: dict[tuple, list[dict | None]] = {}  # (image, subject, aspect, repetition): the record of each run
    for i, records in enumerate(runs.values()):
        seen: Counter = Counter()
        for record in records:
            key = tuple(record[name] for name in REQUIRED[:3])
            seen[key] += 1
            rows.setdefault((*key, seen[key]), [None] * len(runs))[i] = record
    images = {image: i for i, image in enumerate(entries)}
    rows = dict(sorted(rows.items(), key=lambda row: images[row[0][0]]))

    texts: dict[str, int] = {}
    types: dict[tuple, int] = {}
    facts: dict[tuple, int] = {}

    def number(text: str | None) -> int:
        return -1 if text is None else texts.setdefault(text, len(texts))

    index = {
        "image": [images[key[0]] for key in rows],
        "type": [types.setdefault(key[1:3], len(types)) for key in rows],
        "reference": [number(next(filter(None, found))["reference"]) for found in rows.values()],
    }
    present = {"words"}.union(*(record["measures"] for record in chain(*runs.values())))
    measures = {name: about for name, about in MEASURES.items() if name in present}
    if not official and "official_score" in measures:
        measures["official_score"] = measures["official_score"] | {"title": score_name(False)}
    absent = {"caption": None, "exact": True, "confidence": None, "attention": {}, "measures": {}}
    absent |= {"kind": None, "facts": [], "contradiction": ""}
    columns = []
    for i, (name, records) in enumerate(runs.items()):
        own = [found[i] or absent for found in rows.values()]
        columns.append(
            {
                "name": name,
                "caption": [number(record["caption"]) for record in own],
                "marks": [0 if record["exact"] else record["marks"] for record in own],
                "confidence": [record["confidence"] or 0 for record in own],
                "attention": {i: record["attention"] for i, record in enumerate(own) if record["attention"]},
                "measures": {name: [record["measures"].get(name) for record in own] for name in measures},
                "contradictions": find_contradictions(records),
                "against": {
                    i: record["contradiction"] for i, record in enumerate(own) if record["contradiction"]
                },
                "kind": [KINDS.index(record["kind"]) if record["kind"] else -1 for record in own],
                "facts": [[facts.setdefault(fact, len(facts)) for fact in record["facts"]] for record in own],
            }
        )
    return {
        "images": list(entries.values()),
        "types": list(types),
        "rows": index,
        "runs": columns,
        "texts": list(texts),
        "phrases": phrases,
        "measures": measures,
        "kinds": KINDS,
        "facts": list(facts),
        "phases": PHASES,
        "confident": round(100 * CONFIDENT),
    }


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals |= {"styled_words": styled_words, "confident": round(100 * CONFIDENT)}
    return environment.get_template(name)


def write_gallery(
    predictions: pd.DataFrame,
    path: str | Path,
    image_root: str | Path = ".",
    title: str = "Generated captions",
    others: Mapping[str, pd.DataFrame] | None = None,
    official: bool = True,
    name: str = "this run",
    media_root: str | Path | None = None,
    answers: pd.DataFrame | None = None,
) -> Path:
    """Write one page with all captions to `path` and return it.

    Images are read from below `image_root`, by their path relative to the page; up to EMBED_IMAGES of them
    are also part of the page. `others` are further runs, or epochs of a run, by name; `name` is that of
    `predictions`. `official=False` labels the scores as computed without WordNet, see `score_name`. Videos
    are linked only from below `media_root`: pass it for tables of your own, because a table from anyone could
    link any file. `answers` are questions about the images.
    """
    path, root, others = Path(path), Path(image_root), others or {}
    media_root = Path(media_root) if media_root else None
    assert name not in others, f"two runs have the name {name}"
    runs = {each: caption_records(table) for each, table in {name: predictions, **others}.items()}
    first: dict[str, dict] = {}
    for record in chain(*runs.values()):
        first.setdefault(record["image"], record)
    embedded = len(first) <= EMBED_IMAGES
    entries = {
        image: _image_entry(record, root, path.parent, embedded, media_root)
        for image, record in first.items()
    }
    phrases, left_out = _questions(answers, entries)
    problems = Counter(entry["problem"] for entry in entries.values() if "problem" in entry)
    problems |= {"questions about an image without captions": left_out} if left_out else {}
    page = _template("gallery.html.jinja").render(
        title=printable(title),
        notes=[f"{problem}: {count:,} not shown." for problem, count in problems.items()],
        data=page_data(runs, entries, official, phrases),
        css=Markup(Path(__file__).with_suffix(".css").read_text("utf-8")),
        js=Markup(Path(__file__).with_suffix(".js").read_text("utf-8")),
    )
    return write_text(path, page)


def _cards(records: list[dict[str, Any]], root: str | Path) -> list[dict[str, Any]]:
    """Return {image, records} for each image."""
    cards: dict[str, dict] = {}
    for record in records:
        if record["image"] not in cards:
            cards[record["image"]] = {"image": _image_entry(record, Path(root)), "records": []}
        cards[record["image"]]["records"].append(record)
    return list(cards.values())


def _table(macro: str, *arguments: Any) -> HTML:
    return HTML(str(getattr(_template("cards.html.jinja").module, macro)(*arguments)))


def caption_cards(
    predictions: pd.DataFrame, image_root: str | Path = ".", max_cards: int = 4, official: bool = True
) -> HTML:
    """Return the first `max_cards` images with their captions as a table that needs no other file."""
    images = predictions["image"].unique()[:max_cards]
    records = caption_records(predictions[predictions["image"].isin(images)])
    return _table("cards", _cards(records, image_root), score_name(official))


def storyboard(predictions: pd.DataFrame, scenario: str, image_root: str | Path = ".") -> HTML:
    """Return a scenario as a table: a column per phase, a row per camera, contradictions listed above."""
    records = caption_records(predictions[predictions["scenario"] == scenario])
    if not records:
        known = ", ".join(sorted(map(str, predictions["scenario"].dropna().unique()))[:12])
        raise ValueError(f"scenario: expected one of {known}, got {scenario!r}. Choose one of these.")
    records.sort(key=lambda record: (len(record["phase"]), record["phase"]))
    cards = _cards(records, image_root)
    heads = list(dict.fromkeys(card["image"]["about"] for card in cards))
    flags = find_contradictions(records)
    return _table("storyboard", scenario, heads, cards, flags)


def image_row(images: Sequence[Image.Image | str | Path], captions: Sequence[str], title: str = "") -> HTML:
    """Return images side by side, each with its caption below, as a table."""
    breakable = [caption.replace("_", "_\u200b") for caption in captions]  # names of files are long words
    items = [(embed(image, 2 * EMBED_PX), text) for image, text in zip(images, breakable, strict=True)]
    return _table("image_row", items, title)


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the gallery of a predictions.json."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.viz.gallery", description=main.__doc__)
    parser.add_argument("predictions", type=Path, help="for example runs/demo/predictions.json")
    parser.add_argument(
        "--image_root", type=Path, help="folder that image paths start from [that of predictions.json]"
    )
    parser.add_argument(
        "--compare_with", nargs="+", default=[], metavar="NAME=FILE", help="predictions.json of other runs"
    )
    parser.add_argument("--out", type=Path, help="HTML file to write [gallery.html beside predictions.json]")
    options = parser.parse_args(arguments)
    name, folder = options.predictions.resolve().parent.name, options.predictions.parent
    files = {name: options.predictions}
    for item in options.compare_with:
        other, equals, file = item.rpartition("=")
        other = other if equals else Path(file).resolve().parent.name
        if other in files:
            parser.error(
                f"--compare_with {item}: expected a name other than {', '.join(files)}. Pass NAME=FILE."
            )
        files[other] = Path(file)
    runs = {each: read_predictions(file) for each, file in files.items()}
    page = write_gallery(
        runs.pop(name),
        options.out or folder / "gallery.html",
        options.image_root or folder,
        f"Captions of run '{name}'",
        runs,
        all(read_meta(file).get("comparable", True) for file in files.values()),
        name,
    )
    print(page)


if __name__ == "__main__":
    main()
