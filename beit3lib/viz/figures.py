"""Charts of a run, as matplotlib figures that a notebook shows, and tables to read.

    from beit3lib.run.log import read_log
    from beit3lib.viz.figures import learning_curve

    learning_curve(read_log("runs/demo/log.jsonl")).savefig("learning_curve.png")

Each chart has one message, which is its title, and fits the width of a README (8.5 inches at 110 dpi). Colors
are those of Okabe and Ito, which color-blind readers can tell apart. Images with captions are HTML: see
`gallery.caption_cards`.
"""

import html
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from beit3lib.data.images import open_image
from beit3lib.files import finite

if TYPE_CHECKING:  # before pandas 3, this module imports matplotlib.pyplot
    from pandas.io.formats.style import Styler

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"


class Chart(Figure):
    """A figure outside of pyplot: notebooks show it with any backend, and nothing keeps it in memory."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def _chart(
    title: str, height_in: float, rows: int = 1, columns: int = 1, **options
) -> tuple[Chart, np.ndarray]:
    """Return a chart and its panels (rows, columns). Text is not parsed as math: a "$" is a dollar."""
    chart = Chart(figsize=(8.5, height_in), dpi=110, layout="constrained")
    chart.suptitle(textwrap.fill(title, 78), x=0.01, ha="left", size=13, weight="bold", parse_math=False)
    panels = chart.subplots(rows, columns, squeeze=False, **options)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(color="#dcdcd6")
    return chart, panels


def _series(log: Iterable[Mapping], event: str, name: str, part: str | None = None) -> pd.Series:
    """Values of `name`, or of `part` of it, by step; of a step that was logged twice, the last counts."""
    found = {}
    for row in log:
        if row.get("event") == event:
            value = row.get(name)
            found[row.get("step")] = finite((value or {}).get(part) if part else value)
    return pd.Series(found, dtype=float).dropna().sort_index()


def learning_curve(log: Sequence[Mapping], score_name: str = "validation score") -> Chart:
    """Draw losses, score, and facts and answers of validations by step; `log` is that of `read_log`.

    A circle marks the epoch of `best/`. Panels of what was not measured are left out.
    """
    loss, score = _series(log, "step", "loss"), _series(log, "validation", "score")
    shares = {
        "facts: precision": _series(log, "validation", "facts", "precision"),
        "facts: recall": _series(log, "validation", "facts", "recall"),
        "right answers": _series(log, "validation", "accuracy"),
    }
    shares = {name: values for name, values in shares.items() if len(values)}
    title = f"Loss {loss.iloc[0]:.2f} → {loss.iloc[-1]:.2f} in {loss.index[-1]:,} steps"
    if len(score):
        title += f", best {score_name} {score.max():.1f}"
    rows = 1 + bool(len(score)) + bool(shares)
    chart, panels = _chart(title, 1.6 + 1.8 * rows, rows, sharex=True)
    axes, window = panels[0, 0], max(1, len(loss) // 25)
    axes.plot(loss, color=BLUE, linewidth=0.8, alpha=0.4)
    smooth = loss.rolling(window, center=True, min_periods=1).mean()
    axes.plot(smooth, color=BLUE, linewidth=2, label=f"captions, mean of {window} records")
    questions = _series(log, "step", "question_loss").rolling(window, center=True, min_periods=1).mean()
    if len(questions):
        axes.plot(questions, color=ORANGE, linewidth=2, linestyle="--", label="questions")
    axes.set(ylabel="loss (nats)")
    axes.set_ylim(bottom=0)
    axes.legend()
    best = _series(log, "validation", "best_by")
    if len(score):
        below = panels[1, 0]
        below.plot(score, "o-", color=GREEN, markersize=4)
        step = best.idxmax() if len(best) else score.idxmax()
        below.plot(step, score.get(step), "o", markersize=11, mfc="none", mec="black")
        below.set(ylabel=score_name, ylim=(0, 1.1 * max(score.max(), 1e-9)))
    for (name, values), color, marker in zip(shares.items(), (BLUE, GREEN, ORANGE), "os^", strict=False):
        panels[-1, 0].plot(values, f"{marker}-", color=color, markersize=4, label=name)
        panels[-1, 0].set(ylabel="facts and answers (%)", ylim=(0, 105))
        panels[-1, 0].legend(loc="lower right")
    panels[-1, 0].set(xlabel="step")
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return chart


def share_bars(shares: pd.DataFrame, title: str) -> Chart:
    """Draw shares (0 to 1): a group of bars per row, a bar per column; NaN was not measured."""
    chart, panels = _chart(title, 4)
    axes, positions, width = panels[0, 0], np.arange(len(shares)), 0.8 / len(shares.columns)
    looks = zip((BLUE, ORANGE, GREEN, PURPLE), (None, "///", "...", "xx"), strict=True)
    for number, (name, (color, hatch)) in enumerate(zip(shares, looks, strict=False)):
        offsets = positions + (number - (len(shares.columns) - 1) / 2) * width
        look = {"label": name, "color": color, "hatch": hatch, "edgecolor": "white"}
        bars = axes.bar(offsets, shares[name], 0.95 * width, **look)
        axes.bar_label(bars, ["" if np.isnan(v) else f"{100 * v:.0f}" for v in shares[name]], padding=3)
    axes.set_xticks(positions, [textwrap.fill(name.replace("_", " "), 14) for name in shares.index])
    axes.set(ylim=(0, 1.12), ylabel="share (%)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.grid(axis="x", visible=False)
    chart.legend(loc="outside lower center", ncols=len(shares.columns))
    return chart


def score_bars(scores: pd.DataFrame, title: str, limits: Mapping[str, float]) -> Chart:
    """Draw a table with a bar per row and a panel per column; `limits` has the largest possible values."""
    lines = math.ceil(len(scores.columns) / 2)
    chart, panels = _chart(title, 1.2 + lines * (0.8 + 0.22 * len(scores)), lines, 2, sharey=True)
    for axes, (metric, values) in zip(panels.flat, scores.items(), strict=False):
        bars = axes.barh(np.arange(len(values)), values, 0.7, color=BLUE)
        axes.bar_label(bars, fmt="%.1f" if values.max() >= 20 else "%.2f", padding=3)
        axes.set_yticks(np.arange(len(values)), values.index, parse_math=False)
        right = 1.08 * limits[metric] if metric in limits else 1.2 * values.max()
        axes.set(ylim=(len(values) - 0.5, -0.5), xlim=(0, right), title=metric)
        axes.grid(axis="y", visible=False)
    for axes in panels.flat[len(scores.columns) :]:
        axes.set_visible(False)
    return chart


def length_histogram(predictions: pd.DataFrame) -> Chart:
    """Draw how many words captions and their references have; captions without a reference are skipped."""
    known = predictions[predictions["reference"].notna()]
    lengths = {name: known[name].fillna("").str.split().str.len() for name in ("reference", "caption")}
    top = int(max(words.max() for words in lengths.values()))
    edges = np.arange(0, top + 2, max(1, math.ceil(top / 40))) - 0.5
    means = {name: words.mean() for name, words in lengths.items()}
    chart, panels = _chart(
        f"Captions have {means['caption']:.1f} words, references {means['reference']:.1f}", 3.6
    )
    axes = panels[0, 0]
    for (name, words), color, style in zip(lengths.items(), (ORANGE, BLUE), ("-", "--"), strict=True):
        axes.hist(words, edges, histtype="step", color=color, linestyle=style, linewidth=1.8, label=name)
    axes.set(xlabel="words", ylabel="number of captions")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.legend()
    return chart


def attention_map(image: Image.Image | str | Path, weights: np.ndarray, word: str, label: str = "") -> Chart:
    """Draw an image, and over it the attention of a word to each patch.

    `weights` (rows, columns) are at least 0 and of any sum; `label` describes how they were averaged.
    """
    image = open_image(image)
    chart, panels = _chart(f"Attention of the word “{word}”", 4.2, 1, 2)
    left, right = panels.flat
    left.imshow(image)
    right.imshow(
        image.convert("L"), cmap="gray", vmin=-500, vmax=255
    )  # pale, so that the attention is visible
    # Transparent where attention is weak, so that the image stays visible.
    look = {"cmap": "YlOrRd", "vmin": 0, "alpha": 0.85 * weights / weights.max(), "interpolation": "nearest"}
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    shown = right.imshow(weights / weights.mean(), extent=extent, **look)
    chart.colorbar(shown, ax=right, shrink=0.8, label="multiple of an even distribution")
    for axes in panels.flat:
        axes.set_axis_off()
    chart.supxlabel(textwrap.fill(label, 110), size=10, parse_math=False)
    return chart


def confusion(pairs: Iterable[tuple[object, object]], slot: str, most: int = 8) -> HTML:
    """Count (reference, prediction) of a fact as a table, right ones bold; None is "not mentioned".

    Values beyond the `most` frequent ones are "others".
    """
    names = pd.DataFrame(pairs, columns=["reference", "caption"], dtype=object)
    names = names.fillna("not mentioned").astype(str)
    frequent = names.melt()["value"].value_counts().index[:most]
    names = names.where(names.isin(frequent), "others")
    order = sorted(frequent, key=lambda name: (name == "not mentioned", name)) + ["others"]
    counts = pd.crosstab(names["reference"], names["caption"])
    counts = counts.reindex(
        index=[n for n in order if n in counts.index], columns=[n for n in order if n in counts]
    )
    shown = counts.astype(str).replace("0", "")
    for name in set(counts.index) & set(counts) - {"others"}:
        shown.loc[name, name] = f"<b>{counts.loc[name, name]}</b>"
    shown.columns, shown.index = map(html.escape, shown.columns), map(html.escape, shown.index)
    shown.index.name = f"{html.escape(slot.replace('_', ' '))}: reference ↓ caption →"
    return HTML(shown.rename_axis(columns=shown.index.name, index=None).to_html(escape=False, justify="left"))


def reading_table(table: pd.DataFrame, empty: str = "No rows.") -> "Styler | HTML":
    """Return a table to read: left-aligned, HTML in it shown as text; without rows the sentence `empty`."""
    if table.empty:
        return HTML(f"<p>{empty}</p>")
    is_numbered = isinstance(table.index, pd.RangeIndex)
    # Whole numbers become floats where some are missing; convert_dtypes makes them whole again.
    styled = table.convert_dtypes().style.format(escape="html", na_rep="", precision=2, thousands=",")
    styled = styled.format_index(escape="html").format_index(escape="html", axis=1)
    styled = styled.set_table_styles(
        [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    )
    return styled.hide(axis="index") if is_numbered else styled


def repeated_captions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Count captions that were generated for more than one image, the most frequent first; not empty ones.

    Columns: subject, aspect, caption, images, scenarios, references (different references of these images:
    many for one caption mean that the model ignores the image) and share (of the images with this caption
    type).
    """
    types = predictions.groupby(["subject", "aspect"])["image"]
    table = predictions.assign(total=types.transform("nunique"))
    table = table[table["caption"].fillna("").str.strip() != ""]
    groups = table.groupby(["subject", "aspect", "caption"], sort=False)
    counts = groups[["image", "scenario", "reference"]].nunique().add_suffix("s")
    counts["share"] = counts["images"] / groups["total"].first()
    counts = counts[counts["images"] > 1].sort_values("images", ascending=False, kind="stable")
    return counts.reset_index()
