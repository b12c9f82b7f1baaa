"""Generated captions to look at in a browser: one self-contained HTML file, a card per picture.

    from beit3lib.viz.gallery import read_predictions, write_gallery
    predictions = read_predictions("runs/demo/predictions.json")
    pages = write_gallery(predictions, "runs/demo/gallery.html", image_root="runs/demo")

    python -m beit3lib.viz.gallery runs/demo/predictions.json [--compare-with OTHER.json] [--out gallery.html]

`predictions` is a table with one row per caption. It needs `image` (path below `image_root`), `subject`, `aspect` and
`caption`; it may have scenario, split, source, view, video, label, phase, `reference` (text or None), `score` (the
model's length-normalised log probability), `word_probs` (one number per word of `caption`, or None) and the metrics of
`metrics.score_caption`. The page's looks and behaviour are in `gallery.html`, beside this file.
"""

import argparse
import base64
import html
import io
import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from PIL import Image

from beit3lib.data.wts import PHASES
from beit3lib.files import in_one_sentence, read_json, write_text

NEEDED = ("image", "subject", "aspect", "caption")
KEY = ("image", "subject", "aspect")
ABOUT = ("scenario", "split", "source", "view", "video", "label", "place")  # and phase
SAME, MOVED, OTHER = "same", "moved", "other"
SAME_WORDS, COMPARED = "same words", ("same words", "better", "even", "worse")  # outcomes against another run

THUMB_PX = 224
THUMB_BYTES = 7_500  # 500 of them, as base64, are 5 MB
PAGE_IMAGES = 500
PAGE_BYTES = 9_600_000
SURE, HALF_SURE = 0.75, 0.5  # below the first a word is drawn lighter, below the second thin as well
EVEN_POINTS = 0.5  # two runs closer than this on a scale of 0 to 100 count as even

TEMPLATE = Path(__file__).with_suffix(".html")
GENERATOR = '<meta name="generator" content="beit3lib.gallery">'


class Measure(NamedTuple):
    """A number that a caption has: what it is called, digits shown, and the scale (None: from the data)."""

    name: str
    digits: int = 1
    low: float | None = 0.0
    high: float | None = 100.0


MEASURES = {  # the first one that a table has is shown first
    "mean_score": Measure("Official score"),
    "match": Measure("Words shared, %", 0),
    "score": Measure("Log probability", 2, None, 0.0),
    "bleu": Measure("BLEU", 3, 0.0, None),
    "meteor": Measure("METEOR", 3, 0.0, None),
    "rouge-l": Measure("ROUGE-L", 3, 0.0, None),
    "cider": Measure("CIDEr", 2, 0.0, None),
    "change": Measure("Change", 1, None, None),
    "words": Measure("Words", 0, 0.0, None),
}


# --- the table ------------------------------------------------------------------------------------------------------


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read `predictions.json` ({"meta": …, "predictions": [records]}) as a table; its meta data are in `.attrs`."""
    found = read_json(path)
    if not (isinstance(found, dict) and isinstance(found.get("predictions"), list)):
        keys = f"one with the keys {', '.join(map(str, list(found)[:3]))}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(f'{path}: expected {{"meta": …, "predictions": […]}}, as notebook 4 writes it; found {keys}')
    table = pd.DataFrame(found["predictions"])
    table.attrs["meta"] = found.get("meta", {})
    return table


@dataclass
class Line:
    """One caption as the gallery shows it; `caption` or `reference` is None where there is none."""

    image: str
    subject: str
    aspect: str
    caption: str | None
    reference: str | None
    about: dict[str, str]
    measures: dict[str, float]
    word_probs: list[float] | None
    other: "Line | None" = None
    outcome: str = ""
    problems: list[str] = field(default_factory=list)


def prediction_lines(predictions: pd.DataFrame) -> list[Line]:
    """Check the columns of `predictions` and give its rows in their order; None, NaN and "" stay apart."""
    missing = [name for name in NEEDED if name not in predictions.columns]
    if missing:
        found = ", ".join(map(str, predictions.columns)) or "no column"
        raise ValueError(f"predictions: expected the columns {', '.join(NEEDED)}; {', '.join(missing)} missing in {found}")
    return [_line(record) for record in predictions.to_dict("records")]


def _line(record: dict[str, Any]) -> Line:
    caption, reference = _text(record["caption"]), _text(record.get("reference"))
    about = {name: _text(record.get(name)) or "" for name in ABOUT}
    about["phase"] = _whole(record.get("phase"))
    measures = {name: _finite(record.get(name)) for name in MEASURES}
    if measures["match"] is None and reference is not None:
        measures["match"] = 100 * shared_words(caption or "", reference)
    measures["words"] = float(len((caption or "").split()))
    line = Line(
        *(_text(record[name]) or "" for name in KEY),
        caption=caption or "",
        reference=reference,
        about=about,
        measures={name: value for name, value in measures.items() if value is not None},
        word_probs=None,
    )
    _take_word_probs(line, record.get("word_probs"))
    return line


def _take_word_probs(line: Line, word_probs: Any) -> None:
    if not isinstance(word_probs, Iterable) or isinstance(word_probs, str):
        return
    word_probs = [_finite(value) for value in word_probs]
    if len(word_probs) == len(line.caption.split()) and None not in word_probs:
        line.word_probs = word_probs
    else:
        line.problems.append("word_probs")


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str | None:
    return None if _is_missing(value) else str(value)


def _finite(value: Any) -> float | None:
    if _is_missing(value) or isinstance(value, str):
        return None
    return float(value) if math.isfinite(value) else None


def _whole(value: Any) -> str:
    """Write a phase as its number: a column with gaps holds 3.0 for 3."""
    number = None if isinstance(value, str) else _finite(value)
    return (_text(value) or "") if number is None else f"{number:g}"


# --- words against words --------------------------------------------------------------------------------------------


def plain_word(word: str) -> str:
    """A word as it is compared: lower case, without punctuation at its ends."""
    return word.lower().strip(string.punctuation + "“”‘’…–—")


def mark_words(caption: str, reference: str) -> tuple[list[str], list[str]]:
    """Say of each word of both texts whether the other text has it: at its place (SAME), elsewhere (MOVED) or not.

    Words are aligned as a sequence first; what is left over counts as moved as often as both texts have it left, so
    that a red jacket with black slacks differs visibly from a black jacket with red slacks. A lone punctuation mark
    counts as the same.
    """
    ours, theirs = ([plain_word(word) for word in text.split()] for text in (caption, reference))
    marks = [OTHER] * len(ours), [OTHER] * len(theirs)
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        marks[0][block.a : block.a + block.size] = marks[1][block.b : block.b + block.size] = [SAME] * block.size
    spare = [
        Counter(w for w, mark in zip(words, own, strict=True) if mark == OTHER)
        for words, own in zip((ours, theirs), marks, strict=True)
    ]
    common = spare[0] & spare[1]
    for words, own in zip((ours, theirs), marks, strict=True):
        _mark_moved(words, own, common.copy())
    return marks


def _mark_moved(words: list[str], marks: list[str], left: Counter) -> None:
    for i, word in enumerate(words):
        if not word:
            marks[i] = SAME
        elif marks[i] == OTHER and left[word] > 0:
            left[word] -= 1
            marks[i] = MOVED


def shared_words(caption: str, reference: str) -> float:
    """Share of words, 0 to 1, that a caption and its reference have in common: 2 · common / (words of both).

    Order does not count. Two texts without a word are equal: 1.
    """
    ours, theirs = (Counter(filter(None, map(plain_word, text.split()))) for text in (caption, reference))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


# --- two runs -------------------------------------------------------------------------------------------------------


def pair_runs(lines: list[Line], others: list[Line]) -> tuple[list[Line], str]:
    """Give each line the other run's caption of the same image, subject and aspect; name the measure that decides.

    Captions that only the other run has are added at the end, with None as this run's caption: none is dropped.
    """
    measure = next(m for m in ("mean_score", "match") if m == "match" or all(_has(run, m) for run in (lines, others)))
    waiting: dict[tuple, list[Line]] = {}
    for other in others:
        waiting.setdefault(_key(other), []).append(other)
    for line in lines:
        same = waiting.get(_key(line))
        line.other = same.pop(0) if same else None
        _decide(line, measure)
    for other in (other for rest in waiting.values() for other in rest):
        lines.append(Line(*_key(other), None, other.reference, other.about, {}, None, other, "only the other run"))
    return lines, measure


def _key(line: Line) -> tuple[str, str, str]:
    return line.image, line.subject, line.aspect


def _has(lines: list[Line], measure: str) -> bool:
    return any(measure in line.measures for line in lines)


def _decide(line: Line, measure: str) -> None:
    if line.other is None:
        line.outcome = "only this run"
    elif measure in line.measures and measure in line.other.measures:
        change = line.measures["change"] = line.measures[measure] - line.other.measures[measure]
        line.outcome = "even" if abs(change) < EVEN_POINTS else "better" if change > 0 else "worse"
        line.outcome = SAME_WORDS if line.outcome == "even" and line.caption == line.other.caption else line.outcome
    else:
        line.outcome = "no reference"


def compare_runs(predictions: pd.DataFrame, compare_with: pd.DataFrame) -> pd.DataFrame:
    """Who is better where: a row per subject and aspect, and one for all, of captions that both runs have.

    Columns: subject, aspect, captions, changed (other words), better, even, worse (this run against the other),
    this_run, other_run (means of the deciding measure, in `.attrs["measure"]`).
    """
    lines, measure = pair_runs(prediction_lines(predictions), prediction_lines(compare_with))
    both = [line for line in lines if line.outcome in COMPARED]
    both.sort(key=lambda line: (line.subject != "vehicle", line.subject))
    groups = dict.fromkeys((line.subject, line.aspect) for line in both)
    rows = [_comparison(measure, s, a, [x for x in both if (x.subject, x.aspect) == (s, a)]) for s, a in groups]
    table = pd.DataFrame([*rows, _comparison(measure, "all", "all", both)] if both else rows, columns=COMPARISON)
    table.attrs["measure"] = measure
    return table


COMPARISON = "subject aspect captions changed better even worse this_run other_run".split()


def _comparison(measure: str, subject: str, aspect: str, lines: list[Line]) -> tuple:
    count = Counter(line.outcome for line in lines)
    changed = sum(line.caption != line.other.caption for line in lines)
    means = [sum(x.measures[measure] for x in run) / len(run) for run in (lines, [line.other for line in lines])]
    return (
        subject,
        aspect,
        len(lines),
        changed,
        count["better"],
        count["even"] + count[SAME_WORDS],
        count["worse"],
        *means,
    )


# --- pictures -------------------------------------------------------------------------------------------------------


class Thumb(NamedTuple):
    """A small picture: its data URI and size, or None with the reason why there is none."""

    uri: str | None
    width: int = 0
    height: int = 0
    reason: str = ""


def make_thumb(path: Path) -> Thumb:
    """Make a JPEG of at most 224 px and 7.5 kB, so that 500 fit on a page."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (THUMB_PX, THUMB_PX))
            small = image.convert("RGB")
    except FileNotFoundError:
        return Thumb(None, reason="picture not found")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Thumb(None, reason=f"picture cannot be read ({type(error).__name__})")
    for size, quality in (
        (THUMB_PX, 82),
        (THUMB_PX, 66),
        (THUMB_PX, 50),
        (THUMB_PX, 34),
        (160, 34),
        (112, 34),
        (80, 20),
    ):
        small.thumbnail((size, size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= THUMB_BYTES:
            break
    return Thumb("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), *small.size)


# --- HTML -----------------------------------------------------------------------------------------------------------


def escape(text: object) -> str:
    """Text as HTML shows it, in elements and in quoted attributes."""
    return html.escape(str(text), quote=True)


def json_in_script(value: Any) -> str:
    """JSON that no caption can break out of: no `<`, `>` or `&` stands in it as itself."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _words_html(text: str, marks: Sequence[str], word_probs: Sequence[float] | None, classes: dict[str, str]) -> str:
    """Join words, with one span around each run of words that look the same."""
    sure = [_sureness(p) for p in word_probs] if word_probs else [""] * len(marks)
    looks = [f"{classes[mark]} {how}".strip() for mark, how in zip(marks, sure, strict=True)]
    parts = []
    for look, run in groupby(zip(looks, text.split(), strict=True), key=lambda pair: pair[0]):
        words = escape(" ".join(word for _, word in run))
        parts.append(f'<span class="{look}">{words}</span>' if look else words)
    return " ".join(parts)


def _sureness(probability: float) -> str:
    return "" if probability >= SURE else "mid" if probability >= HALF_SURE else "low"


GENERATED = {SAME: "", MOVED: "moved", OTHER: "new"}
REFERENCE = {SAME: "", MOVED: "moved", OTHER: "gone"}
UNMARKED = dict.fromkeys((SAME, MOVED, OTHER), "")


def _generated_html(line: Line | None) -> str:
    if line is None or line.caption is None:
        return '<span class="none">not in this run</span>'
    if not line.caption.split():
        return '<span class="none">says nothing</span>'
    if line.reference is None:
        return _words_html(line.caption, [SAME] * len(line.caption.split()), line.word_probs, UNMARKED)
    return _words_html(line.caption, mark_words(line.caption, line.reference)[0], line.word_probs, GENERATED)


def _reference_html(line: Line) -> str:
    if line.reference is None:
        return '<span class="none">no reference</span>'
    if not line.reference.split():
        return '<span class="none">says nothing</span>'
    marks = mark_words(line.caption, line.reference)[1] if line.caption is not None else None
    return _words_html(line.reference, marks or [SAME] * len(line.reference.split()), None, REFERENCE)


class Look(NamedTuple):
    """What all pages of a gallery share."""

    title: str
    names: tuple[str, str]
    two: bool
    measures: dict[str, Measure]


def _row_html(line: Line, number: int, look: Look) -> str:
    name, other_name = map(escape, look.names)
    outcome = f' data-outcome="{escape(line.outcome)}"' if look.two else ""
    cells = [f'<td class="gen" data-name="{name}">{_generated_html(line)}</td>']
    if look.two:
        cells.append(f'<td class="oth" data-name="{other_name}">{_other_html(line)}</td>')
    cells.append(f'<td class="ref" data-name="reference">{_reference_html(line)}</td>')
    cells.append(f'<td class="num">{_measure_html(line, look)}{_tag(line, look)}</td>')
    about = f'data-i="{number}" data-subject="{escape(line.subject)}" data-aspect="{escape(line.aspect)}"{outcome}'
    return f'<tr class="caption" {about}><th scope="row">{escape(_spaced(line.aspect))}</th>{"".join(cells)}</tr>'


def _other_html(line: Line) -> str:
    if line.other is not None and line.caption is not None and line.other.caption == line.caption:
        return '<span class="none">the same words</span>'
    return _generated_html(line.other)


def _measure_html(line: Line, look: Look) -> str:
    """The first measure as number and bar; the script puts another one in their place."""
    name, measure = next(iter(look.measures.items()))
    value = line.measures.get(name)
    part = 0 if value is None or measure.high is None or measure.low is None else value / measure.high
    text = "–" if value is None else f"{value:.{measure.digits}f}"
    return f'<span>{text}</span><span class="bar" style="--v:{part:.0%}"></span>'


def _tag(line: Line, look: Look) -> str:
    """How much better or worse than the other run, where their words differ."""
    if line.outcome in ("better", "even", "worse"):
        change, sign = line.measures["change"], {"better": "▲", "worse": "▼", "even": "="}[line.outcome]
        told = f"{line.outcome}, by {_signed(change)}"
        return f'<span class="tag {line.outcome}" role="img" aria-label="{told}">{sign} {_signed(change)}</span>'
    only = look.two and line.outcome.startswith("only")
    return f'<span class="tag only">{escape(line.outcome)}</span>' if only else ""


def _signed(change: float) -> str:
    return f"{change:+.1f}".replace("-", "−")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def phase_name(about: dict[str, str]) -> str:
    """What a phase is called: its number, its name, and its label where that is another."""
    phase, label = about["phase"], about["label"]
    names = [PHASES[int(phase)]] if phase.isdigit() and int(phase) < len(PHASES) else []
    if label and label != phase and label not in names:
        names.append(f"label {label}")
    return f"phase {phase}" + (f" · {', '.join(names)}" if names else "") if phase else f"label {label}" if label else ""


class Card(NamedTuple):
    """A picture with all its captions."""

    image: str
    lines: list[Line]
    thumb: Thumb


def _card_html(card: Card, first: int, look: Look) -> str:
    about = card.lines[0].about
    name = about["scenario"] or Path(card.image).stem
    phase = phase_name(about)
    told = " · ".join(filter(None, (_spaced(about["view"]), about["split"])))
    label = escape(f"{name}, {phase}, {told}".replace(", ,", ",").strip(", "))
    bodies, number = [], first
    for subject, lines in groupby(card.lines, lambda line: line.subject):
        rows = []
        for line in lines:
            rows.append(_row_html(line, number, look))
            number += 1
        bodies.append(_body_html(subject, rows, look))
    facts = "".join(
        f'<p class="{kind}">{escape(text)}</p>' for kind, text in (("phase", phase), ("", told), ("", card.image)) if text
    )
    return (
        f'<article class="card" tabindex="-1" aria-label="{label}" data-scenario="{escape(about["scenario"])}" '
        f'data-phase="{escape(about["phase"])}"><div class="side">{_picture_html(card.thumb, label)}'
        f'<div class="text"><h2>{escape(name)}</h2>{facts}</div></div>'
        f'<table class="captions">{_columns_html(look)}{"".join(bodies)}</table></article>'
    )


def _picture_html(thumb: Thumb, label: str) -> str:
    if thumb.uri is None:
        return f'<div class="blank">{escape(thumb.reason)}</div>'
    size = f'width="{thumb.width}" height="{thumb.height}"'
    picture = f'<img src="{thumb.uri}" {size} alt="Picture of {label}" decoding="async">'
    return f'<button class="thumb" type="button" aria-label="large view of {label}">{picture}</button>'


def _columns_html(look: Look) -> str:
    names = [escape(name) for name in look.names if name]
    heads = "".join(f'<th scope="col">{name}</th>' for name in [*names, "reference"])
    texts = '<col class="txt">' * (len(names) + 1)
    first = next(iter(look.measures.values())).name if look.measures else ""
    return (
        f'<colgroup><col class="aspect">{texts}<col class="num"></colgroup>'
        f'<thead><tr><th scope="col">aspect</th>{heads}<th scope="col" class="num">{escape(first)}</th></tr></thead>'
    )


def _body_html(subject: str, rows: list[str], look: Look) -> str:
    span = f'scope="rowgroup" colspan="{5 if look.two else 4}"'
    head = f'<tr class="subject"><th {span}>{escape(subject.capitalize())}</th></tr>'
    return f"<tbody>{head}{''.join(rows)}</tbody>"


# --- pages ----------------------------------------------------------------------------------------------------------


def write_gallery(
    predictions: pd.DataFrame,
    path: str | Path,
    image_root: str | Path = ".",
    title: str = "What the model says",
    compare_with: pd.DataFrame | None = None,
    names: tuple[str, str] = ("this run", "other run"),
) -> list[Path]:
    """Write the gallery to `path` and, from 500 pictures or 10 MB on, to `…-2.html`, `…-3.html`; give all paths.

    Pictures are sought below `image_root`; one that is missing is shown as such and counted on the page. With
    `compare_with`, another run's predictions, each caption stands beside the other run's for the same picture, subject
    and aspect. `names` heads the columns of the two runs. Raises ValueError where a needed column is missing.
    """
    path = Path(path)
    lines, measure = prediction_lines(predictions), None
    if compare_with is not None:
        lines, measure = pair_runs(lines, prediction_lines(compare_with))
    shown = {name: m for name, m in MEASURES.items() if any(name in line.measures for line in lines)}
    names = names if compare_with is not None else ("generated", "")
    look = Look(title, names, compare_with is not None, shown)
    cards = list(_cards(lines, Path(image_root)))
    table = compare_runs(predictions, compare_with) if compare_with is not None else None
    shared = {
        "title": escape(title),
        "body_class": "two" if look.two else "",
        "legend": _legend_html(lines),
        "notes": _notes_html(cards),
        "compare": "" if table is None else _comparison_html(table, names),
        "facets": _facets_html(lines),
        "measures": "".join(f'<option value="{name}">{escape(m.name)}</option>' for name, m in shown.items()),
    }
    pages = list(_pages(cards, look))
    paths = [path if i == 0 else path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(len(pages))]
    for i, page in enumerate(pages):
        summary = _summary(lines, cards, measure, i, len(pages))
        write_text(paths[i], _fill({**shared, **_page_parts(page, i, paths, look), "summary": escape(summary)}))
    _remove_older_pages(path, keep=paths)
    return paths


def _fill(parts: dict[str, str]) -> str:
    """Fill the template in one pass, so that a `{{title}}` inside a caption stays what it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))


def _cards(lines: list[Line], image_root: Path) -> Iterator[Card]:
    by_image: dict[str, list[Line]] = {}
    for line in lines:
        by_image.setdefault(line.image, []).append(line)
    for image, own in by_image.items():
        own.sort(key=lambda line: (line.subject != "vehicle", line.subject))
        yield Card(image, own, make_thumb(image_root / image))


class Page(NamedTuple):
    """Cards with their HTML."""

    cards: list[Card]
    parts: list[str]


def _pages(cards: list[Card], look: Look) -> Iterator[Page]:
    page, size, captions = Page([], []), 0, 0
    for card in cards:
        part = _card_html(card, captions, look)
        own = len(part.encode()) + sum(map(_data_bytes, card.lines))
        if page.cards and (len(page.cards) == PAGE_IMAGES or size + own > PAGE_BYTES):
            yield page
            page, size, captions = Page([], []), 0, 0
            part = _card_html(card, 0, look)
        page.cards.append(card)
        page.parts.append(part)
        size, captions = size + own, captions + len(card.lines)
    yield page


def _data_bytes(line: Line) -> int:
    """About what a caption takes in the page's data."""
    return 90 + 4 * sum(len(run.word_probs or ()) for run in (line, line.other) if run)


def _page_parts(page: Page, number: int, paths: list[Path], look: Look) -> dict[str, str]:
    lines = [line for card in page.cards for line in card.lines]
    values = {name: [_rounded(line.measures.get(name)) for line in lines] for name in look.measures}
    data = {
        "here": f" on page {number + 1} of {len(paths)}" if len(paths) > 1 else "",
        "measures": {name: _scale(measure, values[name]) for name, measure in look.measures.items()},
        "values": values,
        "probs": [_percents(line) for line in lines],
        "other_probs": [_percents(line.other) for line in lines] if look.two else [None] * len(lines),
    }
    return {
        "cards": "\n".join(page.parts),
        "data": json_in_script(data),
        "pager": _pager_html(number, [path.name for path in paths]),
    }


def _scale(measure: Measure, values: list[float | None]) -> dict[str, Any]:
    """Name and digits of a measure, and the ends of its bars."""
    known = [value for value in values if value is not None] or [0.0]
    low = min(known) if measure.low is None else measure.low
    high = max(known) if measure.high is None else measure.high
    return {"name": measure.name, "digits": measure.digits, "low": low, "high": high}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _percents(line: Line | None) -> list[int] | None:
    return None if line is None or not line.word_probs else [round(100 * p) for p in line.word_probs]


def _remove_older_pages(path: Path, keep: list[Path]) -> None:
    """Remove further pages that an earlier, larger gallery of this name left, and no file that anything else made."""
    for old in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        numbered = re.fullmatch(rf"{re.escape(path.stem)}-\d+", old.stem)
        if numbered and old not in keep and GENERATOR in old.read_text(encoding="utf-8", errors="replace")[:2000]:
            old.unlink()


def _summary(lines: list[Line], cards: list[Card], measure: str | None, number: int, pages: int) -> str:
    scenarios = len({line.about["scenario"] for line in lines} - {""})
    parts = [_count(len(cards), "picture"), _count(len(lines), "caption")]
    parts += [_count(scenarios, "scenario")] if scenarios else []
    first = measure or next((name for name in MEASURES if _has(lines, name)), None)
    if first:
        known = [line.measures[first] for line in lines if first in line.measures]
        parts.append(f"{MEASURES[first].name.lower()} {sum(known) / len(known):.{MEASURES[first].digits}f} on average")
    parts += [f"page {number + 1} of {pages}: filters and order act on this page"] if pages > 1 else []
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _notes_html(cards: list[Card]) -> str:
    lost = Counter(card.thumb.reason for card in cards if card.thumb.uri is None)
    notes = [f"{_count(n, 'card')} without its picture: {reason}." for reason, n in lost.items()]
    wrong = sum("word_probs" in line.problems for card in cards for line in card.lines)
    if wrong:
        notes.append(f"{_count(wrong, 'caption')} shown without confidence: word_probs has another length than the words.")
    return f'<div class="notes">{"".join(f"<p>{escape(note)}</p>" for note in notes)}</div>' if notes else ""


def _legend_html(lines: list[Line]) -> str:
    runs = [*lines, *(line.other for line in lines if line.other)]
    items = []
    if any(line.reference is not None for line in lines):
        items.append('<span class="new">word</span> generated, not in the reference')
        items.append('<span class="gone">word</span> only in the reference')
        items.append('<span class="moved">word</span> in both, at another place')
    if any(line.word_probs for line in runs):
        items.append(f'<span class="mid">word</span> less than {SURE:.0%} sure, <span class="low">word</span> {HALF_SURE:.0%}')
    return "".join(f"<li>{item}</li>" for item in items)


PHASE_NAMES = {str(number): f"{number} · {name}" for number, name in enumerate(PHASES)}
FACETS = {"subject": "Subject", "aspect": "Aspect", "scenario": "Scenario", "phase": "Phase", "outcome": "Outcome"}


def _facets_html(lines: list[Line]) -> str:
    """One select for each property in which the captions differ."""
    parts = []
    for name, title in FACETS.items():
        values = {getattr(line, name) if hasattr(line, name) else line.about[name] for line in lines} - {""}
        if len(values) > 1:
            shown = PHASE_NAMES.get if name == "phase" else str if name == "scenario" else _spaced
            options = "".join(f'<option value="{escape(v)}">{escape(shown(v) or v)}</option>' for v in _ordered(values))
            parts.append(
                f'<label><span class="name">{title}</span><select id="{name}" name="{name}" data-facet="{name}">'
                f'<option value="">all</option>{options}</select></label>'
            )
    return "\n".join(parts)


def _ordered(values: set[str]) -> list[str]:
    return sorted(values, key=lambda value: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", value)])


def _pager_html(number: int, names: list[str]) -> str:
    if len(names) == 1:
        return ""
    near = [i for i in range(len(names)) if i in (0, len(names) - 1) or abs(i - number) <= 2]
    links = []
    for before, i in zip([-1, *near], near, strict=False):
        links += ["<span>…</span>"] if i > before + 1 else []
        here = f'<span aria-current="page">{i + 1}</span>'
        links.append(here if i == number else f'<a href="{escape(quote(names[i]))}" aria-label="page {i + 1}">{i + 1}</a>')
    return f'<nav class="pager" aria-label="Pages">{"".join(links)}</nav>'


def _comparison_html(table: pd.DataFrame, names: tuple[str, str]) -> str:
    """Table of who is better where, or a sentence where no caption has a reference and a partner."""
    measure = MEASURES[table.attrs["measure"]].name.lower()
    ours, theirs = map(escape, names)
    if table.empty:
        return '<p class="notes">The two runs share no caption that has a reference: nothing to compare.</p>'
    texts = '<th scope="col" class="text wide">Subject</th><th scope="col" class="text">Aspect</th>'
    numbers = ("Captions", "Changed", "Better", "Even", "Worse", ours, theirs, "Better · even · worse")
    heads = "".join(f'<th scope="col"{_WIDE.get(head, "")}>{head}</th>' for head in numbers)
    rows = "".join(map(_comparison_row, table.itertuples(index=False)))
    return (
        f'<section class="compare"><h2>Who is better where</h2><p class="muted">{ours} against {theirs}, by {measure}; '
        f"closer than {EVEN_POINTS} counts as even.</p>"
        f'<div class="scroll"><table><thead><tr>{texts}{heads}'
        f"</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


_WIDE = dict.fromkeys(("Captions", "Changed", "Even", "Better · even · worse"), ' class="wide"')  # not on a phone


def _comparison_row(row: Any) -> str:
    every = row.subject == row.aspect == "all"
    subject, aspect = ("all captions", "") if every else (escape(row.subject), escape(_spaced(row.aspect)))
    narrow = f'<span class="narrow">{subject}{"" if every else ": "}</span>{aspect}'
    texts = f'<th scope="row" class="text wide">{subject}</th><th scope="row" class="text">{narrow}</th>'
    counts = (("wide", row.captions), ("wide", row.changed), ("", row.better), ("wide", row.even), ("", row.worse))
    numbers = "".join(f'<td class="{kind}">{n:,}</td>' for kind, n in counts)
    means = f"<td>{row.this_run:.1f}</td><td>{row.other_run:.1f}</td>"
    shares = (("b", row.better), ("e", row.even), ("w", row.worse))
    bars = "".join(f'<i class="{k}" style="width:{100 * n / row.captions:.1f}%"></i>' for k, n in shares if n)
    kind = ' class="all"' if every else ""
    return f'<tr{kind}>{texts}{numbers}{means}<td class="split wide"><div>{bars}</div></td></tr>'


@in_one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the gallery of a `predictions.json`."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.gallery", description=main.__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--compare-with", type=Path, help="another run's predictions.json")
    parser.add_argument("--image-root", type=Path, help="default: the folder of predictions.json")
    parser.add_argument("--out", type=Path, help="default: gallery.html beside predictions.json")
    parser.add_argument("--title", default="What the model says")
    options = parser.parse_args(arguments)
    folder = options.predictions.parent
    if options.image_root and not options.image_root.is_dir():
        raise NotADirectoryError(f"{options.image_root}: expected the folder that pictures are named from, found none")
    other = read_predictions(options.compare_with) if options.compare_with else None
    paths = write_gallery(
        read_predictions(options.predictions),
        options.out or folder / "gallery.html",
        options.image_root or folder,
        options.title,
        other,
    )
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
