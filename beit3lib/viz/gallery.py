"""Write generated captions as one HTML page to inspect in a browser, and as HTML fragments for notebooks.

    from beit3lib.data.predictions import read_predictions
    from beit3lib.viz.gallery import write_gallery

    write_gallery(read_predictions("runs/demo/predictions.json"), "runs/demo/gallery.html", image_root="runs/demo")

    python -m beit3lib.viz.gallery runs/demo/predictions.json --compare_with big=runs/big/predictions.json

`predictions` is a table with one row per caption, as `read_predictions` returns it: image (path below `image_root`),
subject, aspect and caption are required; scenario, split, source, view, video, label, phase, reference, official_score,
log_prob, word_probs (one probability per word of the caption), `boxes` (a list of {"label": str, "bbox_xywh": [x, y, w, h]},
as fractions of width and height) and `attention` ({word: rows of numbers}, a grid over the image) are optional.

`gallery.html.jinja` is the page, `gallery.css` its look, `gallery.js` its behavior; `cards.html.jinja` has the cards,
which page and notebooks share; `marks.py` compares words. `page_data` describes the data in the page.
"""

import argparse
import base64
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from beit3lib.data.images import open_image
from beit3lib.data.predictions import inside, read_meta, read_predictions
from beit3lib.data.schema import PHASES, SUBJECTS
from beit3lib.files import exit_on_error, finite, printable, write_text
from beit3lib.track2.metrics import score_name
from beit3lib.viz.marks import CONFIDENT, SAME, find_contradictions, mark_words, styled_words

REQUIRED = ("image", "subject", "aspect", "caption")
ABOUT_IMAGE = ("scenario", "split", "source", "view", "video", "label", "phase")
EMBED_IMAGES = 300  # up to here the images are part of the page, about 4 MB, so that one file can be sent
EMBED_PX = 256

# Name on the page, digits, and the ends of its scale (None: taken from the data). The first one present is shown first.
MEASURES = {
    "official_score": (score_name(True), 1, 0.0, 100.0),
    "log_prob": ("Log probability", 2, None, 0.0),
    "bleu": ("BLEU", 3, 0.0, 1.0),
    "meteor": ("METEOR", 3, 0.0, 1.0),
    "rouge-l": ("ROUGE-L", 3, 0.0, 1.0),
    "cider": ("CIDEr", 2, 0.0, None),
    "words": ("Number of words", 0, 0.0, None),
}


class Html(str):
    """HTML text that a notebook shows as such."""

    def __repr__(self) -> str:  # a notebook saves it beside the HTML, which may be 100 kB
        return f"<HTML, {len(self):,} characters>"

    def _repr_html_(self) -> str:
        return str(self)


def caption_records(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one dict per caption with checked values, the captions of an image together, vehicle first.

    Missing texts are "", except `reference`, where None (there is no reference) differs from "" (it is empty).
    `confidence` is in percent per word, or None; `marks` are those of caption and reference, None without a reference.
    """
    missing = [name for name in REQUIRED if name not in predictions]
    if missing:
        found = ", ".join(map(str, predictions.columns)) or "no column"
        raise ValueError(
            f"predictions: expected the columns {', '.join(REQUIRED)}, found {found}. Add {', '.join(missing)}."
        )
    records = [_record(row) for row in predictions.to_dict("records")]
    position = {image: i for i, image in enumerate(dict.fromkeys(record["image"] for record in records))}
    subjects = {subject: i for i, subject in enumerate(SUBJECTS)}
    return sorted(
        records,
        key=lambda record: (position[record["image"]], subjects.get(record["subject"], len(subjects))),
    )


def _record(row: dict[str, Any]) -> dict[str, Any]:
    record = {name: _text(row.get(name)) or "" for name in ("image", "subject", "aspect", *ABOUT_IMAGE)}
    record["phase"] = record["phase"].removesuffix(".0")  # a column with gaps has 3.0 for phase 3
    caption, reference = _text(row["caption"]) or "", _text(row.get("reference"))
    probs = row.get("word_probs")
    probs = [finite(p) for p in probs] if isinstance(probs, Iterable) and not isinstance(probs, str) else []
    complete = len(probs) == len(caption.split()) and all(p is not None and 0 <= p <= 1.001 for p in probs)
    marks = None if reference is None else mark_words(caption, reference)
    record |= {
        "caption": caption,
        "reference": reference,
        "confidence": [round(100 * p) for p in probs] if complete else None,
        "confidence_lost": bool(probs) and not complete,
        "marks": marks,
        "exact": marks is not None and all(set(own) <= {SAME} for own in marks),
        "measures": {name: value for name in MEASURES if (value := finite(row.get(name))) is not None},
        "boxes": _boxes(row.get("boxes")),
        "attention": _attention(row.get("attention")),
    }
    record["measures"]["words"] = len(caption.split())
    return record


def _text(value: Any) -> str | None:
    return (
        None
        if value is None or (not isinstance(value, (str, list, dict)) and pd.isna(value))
        else printable(str(value))
    )


def _boxes(value: Any) -> list[dict[str, Any]]:
    """Return the boxes that can be drawn."""
    boxes = []
    for box in value if isinstance(value, list) else []:
        corners = box.get("bbox_xywh") if isinstance(box, dict) else None
        numbers = [finite(number) for number in corners] if isinstance(corners, (list, tuple)) else []
        if len(numbers) == 4 and None not in numbers:
            boxes.append({"label": _text(box.get("label")) or "", "bbox_xywh": numbers})
    return boxes


def _attention(value: Any) -> dict[str, list[list[float]]]:
    """Return the grids that can be drawn, scaled to a maximum of 1."""
    grids = {}
    for word, grid in value.items() if isinstance(value, dict) else ():
        try:
            grid = np.asarray(grid, float)
        except (TypeError, ValueError):
            continue
        if grid.ndim == 2 and np.isfinite(grid).all() and grid.max(initial=0) > 0:
            grids[printable(str(word))] = (grid / grid.max()).clip(0).round(3).tolist()
    return grids


def phase_name(phase: str, label: str = "") -> str:
    """Return "phase 3 · action", with the label where it is neither the number nor the name."""
    name = PHASES[int(phase)] if phase.isdecimal() and int(phase) < len(PHASES) else ""
    parts = [
        f"phase {phase}" if phase else "",
        name,
        f"label {label}" if label and label not in (phase, name) else "",
    ]
    return " · ".join(filter(None, parts))


def compare_table(
    predictions: pd.DataFrame, others: Mapping[str, pd.DataFrame], name: str = "this run"
) -> pd.DataFrame:
    """Mean official score of each run by caption type and over all, of the captions that every run has."""
    keys = ["image", "subject", "aspect"]
    runs = {name: predictions, **others}
    scores = pd.concat(
        {n: run.groupby(keys, sort=False)["official_score"].mean() for n, run in runs.items()}, axis=1
    ).dropna()
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
    record: dict[str, Any], root: Path, page_folder: Path | None, embedded: bool
) -> dict[str, Any]:
    """Describe an image: its facts, `src` relative to the page, `embedded` as a data URI, or a `problem` instead of both.

    A predictions file may come from anyone: a path that leaves `root` would show, or embed, any image of this machine.
    """
    entry = {name: record[name] for name in ("image", *ABOUT_IMAGE)}
    entry |= {"about": phase_name(record["phase"], record["label"]), "boxes": record["boxes"]}
    if (relative := inside(record["image"], root)) is None:
        return entry | {"problem": "image path outside image_root"}
    path = root / relative
    if not path.is_file():
        return entry | {"problem": "image not found"}
    if page_folder is not None:
        entry["src"] = quote(os.path.relpath(path, page_folder).replace(os.sep, "/"))
    if embedded:
        try:
            entry["embedded"] = embed(path)
        except ValueError as error:
            return entry | {"problem": f"image cannot be read ({str(error).removeprefix(f'{path}: ')})"}
    return entry


def page_data(
    runs: Mapping[str, list[dict[str, Any]]], entries: dict[str, dict], official: bool = True
) -> dict[str, Any]:
    """Return all data of the page as JSON values.

    `texts` has each caption and reference once; elsewhere they are its indices, -1 where there is none. `rows` are the
    captions of all runs, as columns: indices into `images`, `types` (subject, aspect) and `texts` (reference). Each of
    `runs` has one value per row: `caption`, `marks` ("sso": the first letter of SAME, MOVED, OTHER per word, of caption and
    reference, 0 if all are SAME), `confidence` (percent per word, or 0) and `measures`.
    """
    rows, texts, types, images = _align(runs), {}, {}, {image: i for i, image in enumerate(entries)}
    index = {
        "image": [images[key[0]] for key in rows],
        "type": [types.setdefault(key[1:3], len(types)) for key in rows],
        "reference": [_intern(next(filter(None, found))["reference"], texts) for found in rows.values()],
    }
    measures = {}
    for name, (title, digits, low, high) in MEASURES.items():
        values = [record["measures"][name] for record in chain(*runs.values()) if name in record["measures"]]
        if values or name == "words":  # a page without captions needs a measure, too
            title = score_name(official) if name == "official_score" else title
            low, high = min(values) if low is None else low, max(values, default=0) if high is None else high
            measures[name] = {"title": title, "digits": digits, "low": round(low, 4), "high": round(high, 4)}
    columns = [
        {"name": name, **_run_columns([found[i] for found in rows.values()], texts, measures)}
        for i, name in enumerate(runs)
    ]
    for run, records in zip(columns, runs.values(), strict=True):
        run["contradictions"] = [
            {**found, "type": types[found["subject"], found["aspect"]]}
            for found in find_contradictions(records)
        ]
    return {
        "images": list(entries.values()),
        "types": list(types),
        "rows": index,
        "runs": columns,
        "texts": list(texts),
        "measures": measures,
        "phases": {str(i): f"{i} · {name}" for i, name in enumerate(PHASES)},
        "confident": round(100 * CONFIDENT),
    }


def _align(runs: Mapping[str, list[dict]]) -> dict[tuple, list[dict | None]]:
    """{(image, subject, aspect, repetition): the record of each run or None}, the captions of an image together."""
    rows: dict[tuple, list[dict | None]] = {}
    for i, records in enumerate(runs.values()):
        seen: Counter = Counter()
        for record in records:
            key = (record["image"], record["subject"], record["aspect"])
            seen[key] += 1
            rows.setdefault((*key, seen[key]), [None] * len(runs))[i] = record
    position = {image: i for i, image in enumerate(dict.fromkeys(key[0] for key in rows))}
    return dict(sorted(rows.items(), key=lambda item: position[item[0][0]]))


def _intern(text: str | None, texts: dict[str, int]) -> int:
    return -1 if text is None else texts.setdefault(text, len(texts))


def _run_columns(
    records: list[dict | None], texts: dict[str, int], measures: Iterable[str]
) -> dict[str, Any]:
    return {
        "caption": [_intern(r and r["caption"], texts) for r in records],
        "marks": [
            ["".join(mark[0] for mark in own) for own in r["marks"]]
            if r and r["marks"] and not r["exact"]
            else 0
            for r in records
        ],
        "confidence": [(r and r["confidence"]) or 0 for r in records],
        "attention": {i: r["attention"] for i, r in enumerate(records) if r and r["attention"]},
        "measures": {
            name: [round(r["measures"][name], 4) if r and name in r["measures"] else None for r in records]
            for name in measures
        },
    }


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals |= {"styled_words": styled_words, "confident": round(100 * CONFIDENT)}
    environment.filters["spaced"] = lambda name: name.replace("_", " ")
    return environment.get_template(name)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def write_gallery(
    predictions: pd.DataFrame,
    path: str | Path,
    image_root: str | Path = ".",
    title: str = "Generated captions",
    others: Mapping[str, pd.DataFrame] | None = None,
    official: bool = True,
    name: str = "this run",
) -> Path:
    """Write one page with all captions to `path` and return it.

    Images are read from below `image_root`, by their path relative to the page; up to EMBED_IMAGES of them are also part of
    the page. `others` are further runs, or epochs of a run, by name; `name` is that of `predictions`. `official=False` labels
    the scores as computed without WordNet, see `score_name`. A missing column raises ValueError.
    """
    path, root = Path(path), Path(image_root)
    if name in (others or {}):
        raise ValueError(
            f"others: expected different names for two runs, found {name!r} twice. Rename one of them."
        )
    runs = {name: caption_records(predictions)} | {
        n: caption_records(other) for n, other in (others or {}).items()
    }
    first: dict[str, dict] = {}
    for record in chain(*runs.values()):
        first.setdefault(record["image"], record)
    embedded = len(first) <= EMBED_IMAGES
    entries = {image: _image_entry(record, root, path.parent, embedded) for image, record in first.items()}
    problems = Counter(entry["problem"] for entry in entries.values() if "problem" in entry)
    notes = [f"{_count(n, 'image')} not shown: {problem}." for problem, n in problems.items()]
    lost = sum(record["confidence_lost"] for record in chain(*runs.values()))
    if lost:
        notes.append(
            f"{_count(lost, 'caption')} without confidence: word_probs has another length than the words."
        )
    css, js = (Markup(Path(__file__).with_suffix(suffix).read_text("utf-8")) for suffix in (".css", ".js"))
    data = page_data(runs, entries, official)
    page = _template("gallery.html.jinja").render(
        title=printable(title), notes=notes, data=data, css=css, js=js
    )
    return write_text(path, page)


def _by_image(records: Iterable[dict[str, Any]], root: str | Path) -> list[dict[str, Any]]:
    cards: dict[str, dict] = {}
    for record in records:
        if record["image"] not in cards:
            cards[record["image"]] = {"image": _image_entry(record, Path(root), None, True), "records": []}
        cards[record["image"]]["records"].append(record)
    return list(cards.values())


def caption_cards(
    predictions: pd.DataFrame, image_root: str | Path = ".", max_cards: int = 4, official: bool = True
) -> Html:
    """Return the first `max_cards` images with their captions as HTML that needs no other file."""
    records = caption_records(predictions)
    images = list(dict.fromkeys(record["image"] for record in records))[:max_cards]
    cards = _by_image((record for record in records if record["image"] in images), image_root)
    return Html(_template("cards.html.jinja").module.cards(cards, score_name(official)))


def storyboard(predictions: pd.DataFrame, scenario: str, image_root: str | Path = ".") -> Html:
    """Return a scenario as HTML: phases from left to right, cameras below each other, contradictions listed above."""
    records = [record for record in caption_records(predictions) if record["scenario"] == scenario]
    if not records:
        known = ", ".join(sorted({record["scenario"] for record in caption_records(predictions)})[:12])
        raise ValueError(
            f"scenario: expected one of {known}, found {scenario!r}. Choose one of these, or caption more images."
        )
    cards = _by_image(
        sorted(records, key=lambda record: (len(record["phase"]), record["phase"], record["label"])),
        image_root,
    )
    heads = list(dict.fromkeys(card["image"]["about"] for card in cards))
    cameras: dict[str, dict[str, list]] = {}
    for card in cards:
        camera = " · ".join(filter(None, (card["image"]["view"].replace("_", " "), card["image"]["video"])))
        cameras.setdefault(camera, {}).setdefault(card["image"]["about"], []).append(card)
    return Html(
        _template("cards.html.jinja").module.storyboard(
            scenario, heads, cameras, find_contradictions(records)
        )
    )


def image_row(images: Sequence[Image.Image | str | Path], captions: Sequence[str], title: str = "") -> Html:
    """Return images side by side as HTML, each with its caption below."""
    items = [(embed(image, 2 * EMBED_PX), caption) for image, caption in zip(images, captions, strict=True)]
    return Html(_template("cards.html.jinja").module.image_row(items, title))


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the gallery of a predictions.json, the page that notebook 4 writes."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.viz.gallery", description=main.__doc__)
    parser.add_argument("predictions", type=Path, help="for example runs/demo/predictions.json")
    parser.add_argument(
        "--image_root", type=Path, help="folder that image paths start from [folder of predictions.json]"
    )
    parser.add_argument(
        "--compare_with", nargs="+", default=[], metavar="NAME=FILE", help="predictions.json of other runs"
    )
    parser.add_argument("--out", type=Path, help="HTML file to write [gallery.html beside predictions.json]")
    parser.add_argument("--title", help="[Captions of run 'NAME OF THE FOLDER']")
    options = parser.parse_args(arguments)
    folder = options.predictions.resolve().parent
    if options.image_root and not options.image_root.is_dir():
        raise NotADirectoryError(
            f"{options.image_root}: expected a folder, found none. Pass the folder of the images."
        )
    files = {folder.name: options.predictions}
    for item in options.compare_with:
        name, equals, file = item.rpartition("=")
        name = name if equals else Path(file).resolve().parent.name
        if name in files:
            raise ValueError(
                f"--compare_with {item}: expected a name other than {', '.join(files)}. Pass NAME=FILE."
            )
        files[name] = Path(file)
    runs = {name: read_predictions(file) for name, file in files.items()}
    path = write_gallery(
        runs.pop(folder.name),
        options.out or options.predictions.parent / "gallery.html",
        options.image_root or options.predictions.parent,
        options.title or f"Captions of run '{folder.name}'",
        runs,
        official=all(read_meta(file).get("comparable", True) for file in files.values()),
        name=folder.name,
    )
    print(path)


if __name__ == "__main__":
    main()
