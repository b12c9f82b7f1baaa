"""Figures of what a run learned and says: each has one message, a title and units, and comes back as a Figure.

    from beit3lib.viz.figures import caption_pairs, storyboard
    figure = storyboard(predictions, "20230707_0_SN10_T1", image_root="runs/demo")
    figure.savefig("storyboard.png", dpi=150)

Nothing here opens a window or keeps figures in memory. `predictions` is the table of `gallery.py`. Colours are those of
Okabe and Ito, which remain apart for colour-blind eyes; what a colour says, a line or a word says too.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from beit3lib.viz.gallery import OTHER, Line, mark_words, phase_name, prediction_lines

BLUE, ORANGE, GREEN, SKY, VERMILLION, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#8a8f98"
SERIES = (BLUE, ORANGE, GREEN, SKY, VERMILLION, GREY)
INK, MUTED, RULE, PAPER = "#1d1f23", "#5f656e", "#dcdcd6", "#ffffff"
NEW_WORD = "#a83c00"  # vermillion, dark enough to read as text
PALEST = {INK: "#70757d", NEW_WORD: "#b05a28"}  # where the model was not sure at all; 4.5 : 1 against white at least
TITLE_PT, TEXT_PT, SMALL_PT = 13, 9.5, 8.5
HEAT = LinearSegmentedColormap.from_list(  # clear where nothing is, so that the picture shows through
    "heat", [(0, (1.0, 0.93, 0.6, 0.0)), (0.5, (0.95, 0.56, 0.1, 0.75)), (1, (0.6, 0.02, 0.12, 0.92))]
)
DPI = 110
UNHINTED = {"text.hinting": "none"}


class SavedFigure(Figure):
    """A Figure that a notebook shows without pyplot: nobody has to choose a backend."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **{"dpi": DPI, "facecolor": PAPER, **options})
        FigureCanvasAgg(self)

    def draw(self, renderer) -> None:
        """Draw with letters whose widths grow with the resolution exactly: words were placed by them."""
        with rc_context(UNHINTED):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


# --- sheets: pictures and words at places given in inches -----------------------------------------------------------


class Word(NamedTuple):
    """A word as it is drawn."""

    text: str
    colour: str = INK
    underlined: bool = False
    weight: str = "normal"


class Sheet:
    """A page that grows downwards; x and y are inches from its upper left corner."""

    def __init__(self, width_in: float) -> None:
        self.figure = SavedFigure(figsize=(width_in, 1))
        self.width_in = width_in
        self._renderer = self.figure.canvas.get_renderer()
        self._todo: list[Callable[[float], None]] = []  # drawn when the height is known

    def width(self, text: str, size: float, weight: str = "normal") -> float:
        """Width of a text in inches; `size` in points."""
        font = FontProperties(size=size, weight=weight)
        with rc_context(UNHINTED):
            return self._renderer.get_text_width_height_descent(text, font, False)[0] / self.figure.dpi

    def wrap(self, words: Sequence[Word], width: float, size: float) -> list[list[Word]]:
        """Break words into lines of at most `width` inches; a word that is longer alone is broken."""
        space, lines, used = self.width("n n", size) - 2 * self.width("n", size), [[]], 0.0
        pieces = [piece for word in words for piece in self._pieces(word, width, size)]
        for word in pieces:
            own = self.width(word.text, size, word.weight)
            if lines[-1] and used + space + own > width:
                lines.append([])
            used = own if not lines[-1] else used + space + own
            lines[-1].append(word)
        return lines

    def _pieces(self, word: Word, width: float, size: float) -> list[Word]:
        pieces, rest = [], word.text
        while len(rest) > 1 and self.width(rest, size, word.weight) > width:
            cut = _cut(rest, max(1, int(len(rest) * width / self.width(rest, size, word.weight))))
            pieces.append(word._replace(text=rest[:cut]))
            rest = rest[cut:]
        return [*pieces, word._replace(text=rest)]

    def words(self, words: Sequence[Word], x: float, y: float, width: float, size: float = TEXT_PT) -> float:
        """Write wrapped words below y; give the y below them."""
        step = size / 72 * 1.45
        space = self.width("n n", size) - 2 * self.width("n", size)
        lines = self.wrap(words, width, size)
        for row, line in enumerate(lines):
            left = x
            for word, after in zip(line, [*line[1:], Word("")], strict=True):
                own = self.width(word.text, size, word.weight)
                underline = own + space * after.underlined if word.underlined else 0.0
                self._write(word, left, y + (row + 0.75) * step, underline, size)
                left += own + space
        return y + len(lines) * step

    def text(self, text: str, x: float, y: float, width: float, size: float = TEXT_PT, colour=INK, weight="normal"):
        """Write a plain text, wrapped; give the y below it."""
        return self.words([Word(word, colour, False, weight) for word in text.split()], x, y, width, size)

    def _write(self, word: Word, x: float, y: float, underline: float, size: float) -> None:
        def draw(height: float) -> None:
            style = {"size": size, "color": word.colour, "weight": word.weight, "va": "baseline", "ha": "left"}
            self.figure.text(x / self.width_in, 1 - y / height, word.text, parse_math=False, **style)
            if underline:
                self._line(x, y + 0.035, x + underline, y + 0.035, height, NEW_WORD, 1.3)

        self._todo.append(draw)

    def _line(self, x0, y0, x1, y1, height, colour, width_pt) -> None:
        xs, ys = (x0 / self.width_in, x1 / self.width_in), (1 - y0 / height, 1 - y1 / height)
        line = Line2D(xs, ys, color=colour, linewidth=width_pt, transform=self.figure.transFigure, solid_capstyle="butt")
        self.figure.add_artist(line)

    def rule(self, y: float, x0: float, x1: float, colour: str = RULE) -> None:
        """Draw a thin line from x0 to x1 at y."""
        self._todo.append(lambda height: self._line(x0, y, x1, y, height, colour, 0.8))

    def picture(self, path: Path, x: float, y: float, size: float) -> float:
        """Place a picture in a square of `size` inches; give the y below it. A missing one leaves its reason."""

        def draw(height: float) -> None:
            axes = self.figure.add_axes([x / self.width_in, 1 - (y + size) / height, size / self.width_in, size / height])
            axes.axis("off")
            _show_picture(axes, path)

        self._todo.append(draw)
        return y + size

    def finish(self, height_in: float) -> SavedFigure:
        """Draw everything on a page of this height."""
        self.figure.set_size_inches(self.width_in, height_in)
        for draw in self._todo:
            draw(height_in)
        return self.figure


def _cut(text: str, most: int) -> int:
    """Where to break a word of which `most` letters fit: behind the last mark that joins parts of a name, else there."""
    joints = [found.end() for found in re.finditer(r"[-_./]", text[:most])]
    return joints[-1] if joints and joints[-1] > most // 3 else most


def _show_picture(axes, path: Path) -> None:
    try:
        with Image.open(path) as image:
            axes.imshow(np.asarray(image.convert("RGB")), interpolation="bilinear")
    except (OSError, ValueError, SyntaxError):
        axes.imshow(np.full((1, 1, 3), 235, np.uint8))
        reason = "picture cannot be read" if path.exists() else "picture not found"
        axes.text(0.5, 0.5, reason, ha="center", va="center", size=SMALL_PT, color=MUTED, transform=axes.transAxes)


def generated_words(line: Line) -> list[Word]:
    """Words of a generated caption: coloured and underlined if the reference lacks it, paler if unsure."""
    words = (line.caption or "").split()
    if not words:
        return [Word("(says", MUTED), Word("nothing)", MUTED)]
    marks = mark_words(line.caption, line.reference)[0] if line.reference is not None else [""] * len(words)
    sure = line.word_probs or [1.0] * len(words)
    looks = zip(words, marks, sure, strict=True)
    return [Word(word, fade(NEW_WORD if mark == OTHER else INK, p), mark == OTHER) for word, mark, p in looks]


def fade(colour: str, probability: float) -> str:
    """The colour of a word of this probability: full from 0.9 up, then paler, never too pale to read."""
    part = min(max(probability / 0.9, 0.0), 1.0)
    full, pale = np.array(to_rgb(colour)), np.array(to_rgb(PALEST[colour]))
    return to_hex(part * full + (1 - part) * pale)


def reference_words(line: Line) -> list[Word]:
    """Words of a reference, all alike."""
    text = "(no reference)" if line.reference is None else line.reference if line.reference.split() else "(says nothing)"
    return [Word(word, MUTED) for word in text.split()]


def _heading(sheet: Sheet, title: str, lines: Sequence[Line]) -> float:
    """Title and what the looks of words mean; give the y below."""
    y = sheet.text(title, 0.3, 0.22, sheet.width_in - 0.6, TITLE_PT, weight="bold")
    key = []
    if any(line.reference is not None for line in lines):
        key += [Word(word, MUTED) for word in "Generated words:".split()] + [Word(word) for word in "in the reference,".split()]
        key += [Word(word, NEW_WORD, True) for word in "not in it".split()]
    if any(line.word_probs for line in lines):
        key += [Word(word, MUTED) for word in ("· " * bool(key) + "the paler a word, the less sure the model was").split()]
    return (sheet.words(key, 0.3, y + 0.03, sheet.width_in - 0.6, SMALL_PT) if key else y) + 0.16


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _select(predictions: pd.DataFrame, **wanted) -> pd.DataFrame:
    """Rows with the wanted values; None wants nothing, a tuple or list any of its values. No row is an error."""
    chosen = predictions
    for name, value in wanted.items():
        if value is not None:
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            found = chosen[chosen[name].isin(values)]
            if found.empty:
                known = ", ".join(sorted(map(str, chosen[name].dropna().unique()))[:12])
                raise ValueError(f"{name}: expected one of {known}, found {value!r}; choose a value that the table has")
            chosen = found
    if chosen.empty:
        raise ValueError("predictions: expected at least one caption, found an empty table")
    return chosen


# --- pictures with captions -----------------------------------------------------------------------------------------


def caption_pairs(
    predictions: pd.DataFrame,
    image_root: str | Path = ".",
    subject: str | Sequence[str] | None = None,
    aspect: str | Sequence[str] | None = None,
    pictures: int = 4,
    title: str = "What the model says, beside the reference",
) -> SavedFigure:
    """The first `pictures` pictures down the page, their generated and reference captions side by side.

    Without any reference the captions stand alone.
    """
    chosen = _select(predictions, subject=subject, aspect=aspect)
    images = list(dict.fromkeys(chosen["image"]))[:pictures]
    groups = [sorted(prediction_lines(chosen[chosen["image"] == image]), key=_by_subject) for image in images]
    lines = [line for group in groups for line in group]
    sheet = Sheet(12.0)
    two = any(line.reference is not None for line in lines)
    y = _heading(sheet, title, lines)
    columns = _Columns(sheet.width_in, 2.0 if max(map(len, groups)) > 3 else 1.6, two)
    sheet.text("Generated" if two else "Caption", columns.generated, y, columns.text, SMALL_PT, MUTED, "bold")
    if two:
        sheet.text("Reference", columns.reference, y, columns.text, SMALL_PT, MUTED, "bold")
    y += 0.24
    for group in groups:
        sheet.rule(y, 0.3, sheet.width_in - 0.3)
        y = _pair_block(sheet, group, Path(image_root), y + 0.12, columns) + 0.12
    return sheet.finish(y + 0.1)


def _label(sheet: Sheet, line: Line, x: float, y: float) -> float:
    y = sheet.text(_spaced(line.aspect), x, y, 1.2, SMALL_PT, MUTED)
    return sheet.text(line.about["place"], x, y, 1.2, SMALL_PT, MUTED, "bold") if line.about["place"] else y


def _by_subject(line: Line) -> tuple[bool, str]:
    return line.subject != "vehicle", line.subject


class _Columns:
    """Where the columns of `caption_pairs` begin, and how wide its texts are, in inches."""

    def __init__(self, width_in: float, picture_in: float, two: bool) -> None:
        self.picture_in = picture_in
        self.picture, self.label = 0.3, 0.55 + picture_in
        self.generated = self.label + 1.35
        self.two = two
        self.text = (width_in - 0.3 - self.generated - 0.3) / (1 + two)
        self.reference = self.generated + self.text + 0.3


def _pair_block(sheet: Sheet, group: list[Line], image_root: Path, y: float, columns: _Columns) -> float:
    about = group[0].about
    below = sheet.picture(image_root / group[0].image, columns.picture, y, columns.picture_in) + 0.05
    below = sheet.text(about["scenario"] or group[0].image, columns.picture, below, columns.picture_in, SMALL_PT, weight="bold")
    told = " · ".join(filter(None, (phase_name(about), _spaced(about["view"]))))
    below = sheet.text(told, columns.picture, below, columns.picture_in, SMALL_PT, MUTED) if told else below
    subject = None
    for line in group:
        if line.subject != subject:
            subject = line.subject
            y = sheet.text(subject.capitalize(), columns.label, y, 1.2, SMALL_PT, weight="bold") + 0.02
        ends = [_label(sheet, line, columns.label, y + 0.02)]
        ends.append(sheet.words(generated_words(line), columns.generated, y, columns.text))
        if columns.two:
            ends.append(sheet.words(reference_words(line), columns.reference, y, columns.text))
        y = max(ends) + 0.07
    return max(y, below)


def storyboard(
    predictions: pd.DataFrame,
    scenario: str,
    image_root: str | Path = ".",
    subject: str | Sequence[str] | None = None,
    aspect: str | Sequence[str] | None = None,
    video: str | None = None,
    title: str | None = None,
) -> SavedFigure:
    """One scenario, its phases from left to right: pictures, and below each the generated and the reference caption.

    Of several videos, `video` is shown, else the one with most phases. Words that the reference lacks are coloured and
    underlined; the paler a word, the less sure the model was.
    """
    chosen = _select(predictions, scenario=scenario, subject=subject, aspect=aspect)
    if "video" in chosen and chosen["video"].notna().any():
        video = video or chosen.groupby("video", sort=False)["image"].nunique().idxmax()
        chosen = _select(chosen, video=video)
    lines = prediction_lines(chosen)
    frames = list(dict.fromkeys(line.image for line in sorted(lines, key=_phase_order)))
    width = max(2.3, min(3.4, 13.4 / len(frames)))
    sheet = Sheet(max(0.6 + width * len(frames) - 0.2, 6.0))
    view = _spaced(lines[0].about["view"])
    y = _heading(sheet, title or f"{scenario}, phase by phase" + (f" ({view})" if view else ""), lines)
    y = _frames_row(sheet, frames, lines, Path(image_root), y, width)
    for key in dict.fromkeys((line.subject, line.aspect) for line in lines):
        row = {line.image: line for line in lines if (line.subject, line.aspect) == key}
        y = _board_row(sheet, key, [row.get(image) for image in frames], y, width)
    return sheet.finish(y + 0.1)


def phase_strip(phases: pd.DataFrame, image_dir: str | Path, title: str | None = None) -> SavedFigure:
    """Motion-blur images of a scenario: its phases from left to right, a row for each video, their times below.

    `phases`: rows of `motion_blur.blur_table`, with scenario, view, video, phase, start_s, end_s (seconds) and image.
    """
    if phases.empty:
        raise ValueError("phases: expected at least one row, found an empty table")
    numbers, videos = sorted(phases["phase"].unique()), list(dict.fromkeys(phases["video"]))
    width = max(1.7, min(2.6, 11 / len(numbers)))
    sheet = Sheet(max(0.4 + width * len(numbers), 6.0))
    named = ", ".join(dict.fromkeys(phases["scenario"]))
    title = title or f"{named}: each phase as one motion-blur image"
    y = sheet.text(title, 0.3, 0.22, sheet.width_in - 0.6, TITLE_PT, weight="bold") + 0.12
    for place, number in enumerate(numbers):
        name = phase_name({"phase": f"{number:g}", "label": ""})
        sheet.text(name, 0.3 + place * width, y, width - 0.15, TEXT_PT, weight="bold")
    y += 0.24
    for video in videos:
        rows = phases[phases["video"] == video]
        y = _strip_row(sheet, rows, [numbers.index(phase) for phase in rows["phase"]], Path(image_dir), y, width)
    return sheet.finish(y)


def _strip_row(sheet: Sheet, rows: pd.DataFrame, places: list[int], image_dir: Path, y: float, width: float) -> float:
    first = rows.iloc[0]
    label = " · ".join(filter(None, (_spaced(str(first["view"])), str(first["video"]))))
    y = sheet.text(label, 0.3, y, sheet.width_in - 0.6, SMALL_PT, MUTED) + 0.04
    for place, row in zip(places, rows.itertuples(), strict=True):
        x = 0.3 + place * width
        below = sheet.picture(image_dir / row.image, x, y, width - 0.15)
        if math.isfinite(row.start_s):  # pictures that came without their video have no times
            sheet.text(f"{row.start_s:.1f}–{row.end_s:.1f} s", x, below + 0.03, width - 0.15, SMALL_PT, MUTED)
    return y + width - 0.15 + 0.34


def _phase_order(line: Line) -> tuple:
    phase = line.about["phase"]
    return (0, float(phase), "") if phase.replace(".", "", 1).isdigit() else (1, 0.0, phase)


def _frames_row(sheet: Sheet, frames: list[str], lines: list[Line], root: Path, y: float, width: float) -> float:
    below = y
    for place, image in enumerate(frames):
        x = 0.3 + place * width
        about = next(line.about for line in lines if line.image == image)
        top = sheet.text(phase_name(about) or Path(image).stem, x, y, width - 0.2, TEXT_PT, weight="bold") + 0.04
        below = max(below, sheet.picture(root / image, x, top, width - 0.2))
    return below + 0.1


def _board_row(sheet: Sheet, key: tuple[str, str], row: list[Line | None], y: float, width: float) -> float:
    sheet.rule(y, 0.3, sheet.width_in - 0.3)
    y = sheet.text(f"{key[0]}: {_spaced(key[1])}", 0.3, y + 0.06, sheet.width_in - 0.6, SMALL_PT, MUTED, "bold") + 0.03
    ends = [y]
    for place, line in enumerate(row):
        if line is not None:
            ends.append(sheet.words(generated_words(line), 0.3 + place * width, y, width - 0.25))
    y = max(ends) + 0.05
    ends = [y]
    for place, line in enumerate(row):
        if line is not None:
            words = [Word("Reference:", MUTED, False, "bold"), *reference_words(line)]
            ends.append(sheet.words(words, 0.3 + place * width, y, width - 0.25, SMALL_PT))
    return max(ends) + 0.1


# --- training -------------------------------------------------------------------------------------------------------


def _plain_axes(axes, title: str = "") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=SMALL_PT, length=3, color=GREY)
    axes.xaxis.label.set_size(TEXT_PT)
    axes.yaxis.label.set_size(TEXT_PT)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", size=TEXT_PT, weight="bold")


def _titled(figure: Figure, title: str) -> None:
    """Put the title at the upper left, wrapped to the figure's width."""
    sheet = Sheet(figure.get_figwidth() - 0.3)
    words = [Word(word, weight="bold") for word in title.split()]
    lines = [" ".join(word.text for word in line) for line in sheet.wrap(words, sheet.width_in, TITLE_PT)]
    left, top = 0.12 / figure.get_figwidth(), 1 - 0.1 / figure.get_figheight()
    style = {"ha": "left", "va": "top", "size": TITLE_PT, "weight": "bold", "parse_math": False}
    figure.text(left, top, "\n".join(lines), linespacing=1.25, **style)
    used = (0.22 + len(lines) * TITLE_PT / 72 * 1.25) / figure.get_figheight()
    figure.get_layout_engine().set(rect=(left, 0.02, 1 - 2 * left, 0.98 - used))


def learning_curve(log_rows: Iterable[Mapping], score_name: str = "validation score") -> SavedFigure:
    """Loss by step and, where there was a validation, its score: rows of `log.jsonl` with event "step" or "validation".

    Of rows with the same step the last counts, as after a resumed run. Raises ValueError without a step's loss.
    """
    rows = list(log_rows)
    steps, loss = _series(rows, "step", "loss")
    if not steps:
        raise ValueError('log_rows: expected rows with event "step", step and loss, found none; was anything trained?')
    checked, score = _series(rows, "validation", "score")
    figure = SavedFigure(figsize=(8, 5.2 if checked else 3.6), layout="constrained")
    axes = figure.subplots(2 if checked else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(axes[0], steps, loss, rows)
    title = f"Loss {loss[0]:.2f} → {loss[-1]:.2f} in {steps[-1]:,} steps"
    if checked:
        best = int(np.argmax(score))
        axes[1].plot(checked, score, "o-", color=GREEN, linewidth=1.8, markersize=4)
        axes[1].plot(checked[best], score[best], "o", markersize=11, mfc="none", mec=INK)
        axes[1].annotate(
            f"best {score[best]:.3g}",
            (checked[best], score[best]),
            (0, -12),
            textcoords="offset points",
            ha="right" if best > len(score) / 2 else "left",
            va="top",
            size=TEXT_PT,
        )
        axes[1].set_ylabel(score_name)
        axes[1].set_ylim(0, 1.08 * max(score[best], 1e-9))
        title += f", best {score_name} {score[best]:.3g}"
    axes[-1].set_xlabel("step")
    for one in axes:
        one.grid(axis="y", color=RULE, linewidth=0.6)
        _plain_axes(one)
    axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _titled(figure, title)
    return figure


def _series(rows: list[Mapping], event: str, name: str) -> tuple[list[int], list[float]]:
    found = {}
    for row in rows:
        value = row.get(name)
        if row.get("event") == event and isinstance(value, (int, float)) and math.isfinite(value):
            found[int(row["step"])] = float(value)
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def _draw_loss(axes, steps: list[int], loss: list[float], rows: list[Mapping]) -> None:
    window = max(1, len(loss) // 25)
    if window > 1:
        smooth = pd.Series(loss).rolling(window, center=True, min_periods=1).mean()
        axes.plot(steps, loss, color=BLUE, linewidth=0.8, alpha=0.35, label="training, each logged step")
        axes.plot(steps, smooth, color=BLUE, linewidth=2, label=f"training, mean of {window}")
    else:
        axes.plot(steps, loss, color=BLUE, linewidth=2, label="training")
    checked, value = _series(rows, "validation", "loss")
    if checked:
        axes.plot(checked, value, "s--", color=VERMILLION, markersize=4, linewidth=1.5, label="validation")
    if window > 1 or checked:
        axes.legend(frameon=False, fontsize=SMALL_PT)
    axes.set_ylabel("loss (nats per word piece)")
    axes.set_ylim(bottom=0)


# --- right and wrong ------------------------------------------------------------------------------------------------


def attribute_bars(held_out: Mapping[str, float], shuffled: Mapping[str, float], chance: Mapping[str, float]) -> SavedFigure:
    """Share of captions that state every attribute rightly, by aspect: with their own image, another's, and chance.

    Values are shares from 0 to 1; the aspects are those of `held_out`.
    """
    held_out, shuffled, chance = map(dict, (held_out, shuffled, chance))
    aspects, places = list(held_out), np.arange(len(held_out))
    figure = SavedFigure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    levels = np.array([chance.get(aspect, math.nan) for aspect in aspects])
    own, other = (np.array([values.get(aspect, math.nan) for aspect in aspects]) for values in (held_out, shuffled))
    axes.bar(places - 0.2, own, 0.38, color=BLUE, label="own picture")
    axes.bar(places + 0.2, other, 0.38, color=ORANGE, hatch="///", edgecolor=PAPER, label="another scenario's picture")
    axes.hlines(levels, places - 0.01, places + 0.42, color=INK, linewidth=2.2, label="chance")
    for offset, shares, above in ((-0.2, own, own), (0.2, other, np.fmax(other, levels))):
        for place, share, top in zip(places + offset, shares, above, strict=True):
            if math.isfinite(share):
                axes.text(place, top + 0.02, f"{share:.0%}", ha="center", va="bottom", size=TEXT_PT)
    axes.set_xticks(places, [_spaced(aspect) for aspect in aspects])
    axes.set(ylim=(0, 1.12), yticks=np.linspace(0, 1, 6), ylabel="captions with every attribute right")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    _plain_axes(axes)
    axes.tick_params(axis="x", labelsize=TEXT_PT, length=0)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT_PT)
    _titled(figure, f"Right in every attribute: {_mean(own)} with their own picture, {_mean(other)} with another's")
    return figure


def _mean(shares: np.ndarray) -> str:
    known = shares[np.isfinite(shares)]
    return f"{100 * known.mean():.3g}%" if known.size else "none measured"


def score_bars(
    scores: pd.DataFrame,
    groups: str = "aspect",
    bars: str = "subject",
    title: str = "Scores by aspect and subject",
    units: Mapping[str, str] | None = None,
) -> SavedFigure:
    """Bars of a long table with the columns `metric`, `value` and those named: a panel per metric, a row per group.

    `groups` may be aspects, phases or metrics' baselines; `bars`, at most six in a group, are told apart by colour
    and named in a legend. `units` gives the axis of a metric its name ("0 to 100"). Raises ValueError for a missing
    column.
    """
    missing = [name for name in ("metric", "value", groups, bars) if name not in scores]
    if missing:
        raise ValueError(f"scores: expected the columns metric, value, {groups}, {bars}; {', '.join(missing)} missing")
    metrics, names = list(dict.fromkeys(scores["metric"])), list(dict.fromkeys(scores[bars]))
    rows = list(dict.fromkeys(scores[groups]))
    columns = 2 if len(metrics) == 4 else min(3, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    height = lines * (0.7 + 0.26 * len(rows) * max(1, len(names) * 0.75)) + 0.9
    figure = SavedFigure(figsize=(max(7.0, 1.8 + 3.4 * columns), max(2.6, height)), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes, metric in zip(panels, metrics, strict=False):
        part = scores[scores["metric"] == metric].groupby([groups, bars], sort=False)["value"].mean().unstack()
        _draw_bars(axes, part.reindex(index=rows, columns=names), (units or {}).get(metric, "score"))
        _plain_axes(axes, _spaced(str(metric)))
        axes.tick_params(axis="y", length=0, labelsize=TEXT_PT)
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    if len(names) > 1:
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(4, len(names)),
            frameon=False,
            fontsize=TEXT_PT,
        )
    _titled(figure, title)
    return figure


def _draw_bars(axes, part: pd.DataFrame, unit: str) -> None:
    """One panel: a group per row of `part`, a bar per column, its number at the end."""
    places, thick = np.arange(len(part)), 0.8 / len(part.columns)
    top = max(float(np.nanmax(part.to_numpy(float), initial=0.0)), 1e-9)
    digits = 1 if top >= 20 else 2 if top >= 2 else 3
    for i, name in enumerate(part.columns):
        offset = (i - (len(part.columns) - 1) / 2) * thick
        values = part[name].to_numpy(float)
        bars = axes.barh(places + offset, values, thick * 0.92, color=SERIES[i % len(SERIES)], label=_spaced(str(name)))
        axes.bar_label(bars, ["" if math.isnan(v) else f"{v:.{digits}f}" for v in values], padding=3, size=SMALL_PT)
    axes.set_yticks(places, [_spaced(str(name)) for name in part.index])
    axes.set_ylim(len(part) - 0.5, -0.5)
    axes.set_xlim(0, 1.18 * top)
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", color=RULE, linewidth=0.6)


def speed_bars(rows: Sequence[Mapping], title: str = "Speed relative to the recipe's own way") -> SavedFigure:
    """Ratios of `bench.json`: a bar per quantity and way that was measured against the reference, its number at the end."""
    timed = [row for row in rows if "peak_mb" not in row]  # the others are measured for their memory
    kept = [row for row in timed if row["against"] == "reference" and row["way"] != "reference"]
    if not kept:
        raise ValueError("rows: expected ways measured against the reference, found none; run benchmarks.speed first")
    quantities = [row["quantity"] for row in kept]
    kept = sorted(kept, key=lambda row: quantities.index(row["quantity"]))
    ratios, ways = [row["ratio"] for row in kept], list(dict.fromkeys(row["way"] for row in kept))
    figure = SavedFigure(figsize=(8.5, 1.3 + 0.33 * len(kept)), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(kept))
    colours = [SERIES[ways.index(row["way"]) % len(SERIES)] for row in kept]
    axes.bar_label(
        axes.barh(places, ratios, 0.78, color=colours), [f"{ratio:.1f}×" for ratio in ratios], padding=3, size=TEXT_PT
    )
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.set_yticks(places, [f"{row['quantity']}{_precision(row)}" for row in kept])
    axes.set(
        ylim=(len(kept) - 0.4, -0.6), xlim=(0, 1.12 * max(ratios)), xlabel="times as fast as the reference (line: as fast)"
    )
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    _plain_axes(axes)
    axes.tick_params(axis="y", labelsize=TEXT_PT, length=0)
    _titled(figure, title)
    return figure


def _precision(row: Mapping) -> str:
    """ ": bf16" of a way, and nothing of what no model does."""
    return "" if row["quantity"].startswith("score") else f": {row['way'].removeprefix('ours').strip() or 'fp32'}"


def confusion(pairs: Iterable[tuple[object, object]], aspect: str) -> SavedFigure:
    """What was drawn against what the captions said of one attribute, counted; None as said is "nothing"."""
    pairs = [(_named(drawn), _named(said)) for drawn, said in pairs]
    if not pairs:
        raise ValueError(f"pairs: expected (drawn, said) for {aspect}, found none")
    rows = sorted({drawn for drawn, _ in pairs})
    columns = rows + sorted({said for _, said in pairs} - {*rows, NOT_SAID}) + [NOT_SAID] * any(s == NOT_SAID for _, s in pairs)
    columns = list(dict.fromkeys(columns))
    counts = np.array([[pairs.count((row, column)) for column in columns] for row in rows])
    cell = max(0.95, 0.085 * max(map(len, columns)) + 0.2)
    size = (max(5.2, 1.6 + cell * len(columns)), 1.7 + 0.5 * len(rows))
    figure = SavedFigure(figsize=size, layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        right = rows[i] == columns[j]
        colour = GREY if not count else PAPER if shares[i, j] > 0.5 else INK
        axes.text(j, i, f"{count}", ha="center", va="center", size=TEXT_PT, color=colour, weight="bold" if right else None)
        if right:
            axes.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, edgecolor=INK, linewidth=1.4))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="said by the caption (numbers: captions)", ylabel="drawn")
    _plain_axes(axes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=TEXT_PT)
    right = sum(drawn == said for drawn, said in pairs)
    _titled(figure, f"{_spaced(aspect).capitalize()}: {right} of {len(pairs)} said as drawn")
    return figure


NOT_SAID = "nothing"
BLUES = LinearSegmentedColormap.from_list("blues", ["#f6f6f3", "#9cc9e3", BLUE, "#00446b"])


def _named(value: object) -> str:
    return NOT_SAID if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else str(value)


def length_histogram(predictions: pd.DataFrame) -> SavedFigure:
    """Words per generated caption against words per reference, of the captions that have a reference."""
    lines = [line for line in prediction_lines(predictions) if line.reference is not None]
    if not lines:
        raise ValueError("predictions: expected captions with a reference, found none")
    lengths = [
        np.array([len((text or "").split()) for text in texts])
        for texts in zip(*((x.reference, x.caption) for x in lines), strict=True)
    ]
    top = int(max(map(np.max, lengths)))
    width = max(1, math.ceil(top / 40))
    edges = np.arange(0, top + 2 * width, width) - 0.5
    figure = SavedFigure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    styles = ((ORANGE, "-", "reference"), (BLUE, "--", "generated"))
    for words, (colour, style, name) in zip(lengths, styles, strict=True):
        label = f"{name}: {words.mean():.1f} words on average"
        axes.hist(words, edges, histtype="stepfilled", color=colour, alpha=0.25)
        axes.hist(words, edges, histtype="step", color=colour, linestyle=style, linewidth=1.8, label=label)
    axes.set(xlabel="words in a caption" if width == 1 else f"words in a caption ({width} to a bar)", ylabel="captions")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.legend(frameon=False, fontsize=TEXT_PT)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    _plain_axes(axes)
    difference = lengths[1].mean() - lengths[0].mean()
    than = (
        "as long as"
        if abs(difference) < 0.05
        else f"{abs(difference):.1f} words {'longer' if difference > 0 else 'shorter'} than"
    )
    _titled(figure, f"Generated captions are {than} their references on average")
    return figure


# --- where the model looked -----------------------------------------------------------------------------------------


def attention_map(
    image: Image.Image | str | Path,
    weights: np.ndarray,
    word: str,
    label: str,
    box_xywh_px: tuple[float, float, float, float] | None = None,
) -> SavedFigure:
    """A picture, and over it how strongly a word attends to each patch, as a multiple of an even spread.

    `weights` (rows, cols), at least 0, of any sum; `label` says what they are (layers, heads, how averaged). A box in
    pixels of the picture is drawn, with the share of the weight that lies in it.
    """
    picture, weights = _as_picture(image), np.asarray(weights, float)
    if weights.ndim != 2 or not weights.size or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(f"weights: expected (rows, cols) of numbers ≥ 0, not all 0; found shape {weights.shape}")
    height, width = picture.shape[:2]
    figure = SavedFigure(figsize=(9.2, 3.9 * min(1.2, height / width) + 1.0), layout="constrained")
    plain, heat = figure.subplots(1, 2)
    extent = (0, width, height, 0)
    plain.imshow(picture, extent=extent, interpolation="bilinear")
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    times = weights / weights.mean()
    heat.imshow(0.55 + 0.45 * grey / max(grey.max(), 0.01), extent=extent, interpolation="bilinear")
    shown = heat.imshow(times, extent=extent, cmap=HEAT, vmin=0, interpolation="nearest")
    bar = figure.colorbar(shown, ax=heat, shrink=0.85, pad=0.02)
    bar.set_label("times an even spread over the picture", size=TEXT_PT)
    bar.ax.tick_params(labelsize=SMALL_PT)
    bar.outline.set(edgecolor=RULE, linewidth=0.8)
    for axes in (plain, heat):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    if box_xywh_px is not None:
        _draw_box(plain, heat, box_xywh_px, weights, (width, height))
    figure.supxlabel(label, size=SMALL_PT, color=MUTED, parse_math=False, wrap=True)
    _titled(figure, f"Where the model looked for “{word}”")
    return figure


def _as_picture(image: Image.Image | str | Path) -> np.ndarray:
    if isinstance(image, (str, Path)):
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _draw_box(plain, heat, box_xywh_px, weights: np.ndarray, size: tuple[int, int]) -> None:
    x, y, w, h = box_xywh_px
    for axes in (plain, heat):
        for colour, line in ((INK, 3.4), (PAPER, 1.8)):
            axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=line))
    share, area = share_in_box(weights, box_xywh_px, size), w * h / (size[0] * size[1])
    heat.set_title(f"{share:.0%} of it in the box, which is {area:.0%} of the picture", size=TEXT_PT)


def share_in_box(weights: np.ndarray, box_xywh_px: tuple[float, float, float, float], size_px: tuple[int, int]) -> float:
    """Share of attention (rows, cols) inside a box of a picture of `size_px` (width, height); a patch cut by the
    box's edge counts by the part inside."""
    weights = np.asarray(weights, float)
    x, y, w, h = box_xywh_px
    inside = []
    for cells, low, high, length in (
        (weights.shape[0], y, y + h, size_px[1]),
        (weights.shape[1], x, x + w, size_px[0]),
    ):
        edges = np.linspace(0, length, cells + 1)
        inside.append(np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells / length)
    return float(inside[0] @ weights @ inside[1] / weights.sum())


# --- tables ---------------------------------------------------------------------------------------------------------


def repeated_captions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Captions that were generated for more than one picture, the most frequent first.

    Columns: subject, aspect, caption, images, scenarios, references (how many different references these pictures
    have: many references behind one caption is a model that stopped looking), share (of the pictures of this subject
    and aspect). Empty captions are left out.
    """
    table = predictions[predictions["caption"].fillna("").str.strip() != ""]
    for name in ("scenario", "reference"):
        table = table if name in table else table.assign(**{name: None})
    keys = ["subject", "aspect"]
    counts = {
        "images": ("image", "nunique"),
        "scenarios": ("scenario", "nunique"),
        "references": ("reference", "nunique"),
    }
    repeated = table.groupby([*keys, "caption"], as_index=False, sort=False).agg(**counts)
    totals = predictions.groupby(keys)["image"].nunique().rename("total").reset_index()
    repeated = repeated.merge(totals, on=keys)
    repeated["share"] = repeated["images"] / repeated["total"]
    repeated = repeated[repeated["images"] > 1].drop(columns="total")
    return repeated.sort_values("images", ascending=False, kind="stable", ignore_index=True)


def worst_and_best(predictions: pd.DataFrame, n: int = 3, by: str | None = None) -> pd.DataFrame:
    """The n captions with the lowest and the n with the highest value of `by`, in front the column `place`.

    `by`: default mean_score, else score. A place reads "worst 1: 34.8". Captions without a value are left out; no
    caption is in both halves, and the same words with the same reference stand once.
    """
    by = by or next((name for name in ("mean_score", "score") if name in predictions), None)
    if by not in predictions:
        raise ValueError(f"predictions: expected a column {by or 'mean_score or score'}, found {', '.join(predictions)}")
    ranked = predictions[predictions[by].notna()].sort_values(by, kind="stable")
    ranked = ranked.drop_duplicates([name for name in ("caption", "reference") if name in ranked])
    n = min(n, (len(ranked) + 1) // 2)
    worst, best = ranked.head(n), ranked.tail(min(n, len(ranked) - n)).iloc[::-1]
    halves = (("worst", worst[by]), ("best", best[by]))
    places = [f"{half} {i + 1}: {value:.3g}" for half, values in halves for i, value in enumerate(values)]
    table = pd.concat([worst, best], ignore_index=True)
    table.insert(0, "place", places)
    return table


def reading_table(table: pd.DataFrame):
    """A table of texts to read: whole, at the left, numbers with one decimal; a pandas Styler, which notebooks show."""
    left = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    return table.style.format(precision=1, escape="html", na_rep="").set_table_styles(left)


def picture_row(pictures: Sequence[Image.Image], names: Sequence[str], title: str = "What the model is given") -> SavedFigure:
    """Pictures side by side, each with its name below."""
    figure = SavedFigure(figsize=(2.6 * len(pictures), 3.1))
    figure.suptitle(title, x=0.02, ha="left", size=TITLE_PT, weight="bold")
    for place, (picture, name) in enumerate(zip(pictures, names, strict=True), start=1):
        axes = figure.add_subplot(1, len(pictures), place)
        axes.imshow(np.asarray(picture), interpolation="nearest")
        axes.set_axis_off()
        lines = [f"{picture.width} × {picture.height} px"]
        while name:
            cut = _cut(name, 34) if len(name) > 34 else len(name)
            lines.insert(-1, name[:cut])
            name = name[cut:]
        axes.text(0, -0.04, "\n".join(lines), va="top", size=SMALL_PT, color=MUTED, transform=axes.transAxes)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.88, bottom=0.16, wspace=0.06)
    return figure
