"""Charts of a run, as matplotlib figures that a notebook shows, and tables to read.

    from beit3lib.run.log import read_log
    from beit3lib.viz.figures import learning_curve

    learning_curve(read_log("runs/demo/log.jsonl")).savefig("learning_curve.png")

Each chart has one message, which is its title, and fits the width of a README (8.5 inches at 110 dpi). Colors
are those of Okabe and Ito, which color-blind readers can tell apart. Images with captions are HTML: see
`gallery.caption_cards`.
"""

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

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


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


def _series(log: Iterable[Mapping], event: str, name: str) -> pd.Series:
    """Values of `name` by step; of a step that was logged twice, as after a resumed run, the last counts."""
    found = {row.get("step"): finite(row.get(name)) for row in log if row.get("event") == event}
    return pd.Series(found, dtype=float).dropna().sort_index()


def learning_curve(log: Sequence[Mapping], score_name: str = "validation score") -> Chart:
    """Draw loss and validation score by step: `log` is what `log.read_log` returns."""
    loss, score = _series(log, "step", "loss"), _series(log, "validation", "score")
    title = f"Loss {loss.iloc[0]:.2f} → {loss.iloc[-1]:.2f} in {loss.index[-1]:,} steps"
    if len(score):
        title += f", best {score_name} {score.max():.1f}"
    chart, panels = _chart(title, 5 if len(score) else 3.4, 1 + bool(len(score)), sharex=True)
    axes, window = panels[0, 0], max(1, len(loss) // 25)
    axes.plot(loss, color=BLUE, linewidth=0.8, alpha=0.4, label="each record")
    smooth = loss.rolling(window, center=True, min_periods=1).mean()
    axes.plot(smooth, color=BLUE, linewidth=2, label=f"mean of {window} records")
    axes.set(ylabel="loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.legend()
    if len(score):
        below = panels[1, 0]
        below.plot(score, "o-", color=GREEN, markersize=4)
        below.plot(score.idxmax(), score.max(), "o", markersize=11, mfc="none", mec="black")
        below.set(ylabel=score_name, ylim=(0, 1.1 * max(score.max(), 1e-9)))
    panels[-1, 0].set(xlabel="step")
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return chart


def attribute_bars(own: Mapping[str, float], shuffled: Mapping[str, float]) -> Chart:
    """Draw the share (0 to 1) of captions without a wrong attribute, by aspect.

    `own`: captions of the image itself; `shuffled`: of an image of another scenario.
    """
    shares = pd.DataFrame(
        {"own image": pd.Series(own), "image of another scenario": pd.Series(shuffled)}, own.keys()
    )
    means = [f"{100 * mean:.0f} %" for mean in shares.mean()]
    title = f"Captions without a wrong attribute: {means[0]}; for another scenario's image {means[1]}"
    chart, panels = _chart(title, 4)
    axes, positions = panels[0, 0], np.arange(len(shares))
    for name, offset, color, hatch in zip(shares, (-0.2, 0.2), (BLUE, ORANGE), (None, "///"), strict=True):
        look = {"label": name, "color": color, "hatch": hatch, "edgecolor": "white"}
        bars = axes.bar(positions + offset, shares[name], 0.38, **look)
        axes.bar_label(bars, ["" if np.isnan(v) else f"{100 * v:.0f} %" for v in shares[name]], padding=4)
    axes.set_xticks(positions, [name.replace("_", " ") for name in shares.index])
    axes.set(ylim=(0, 1.15), ylabel="share of captions")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", visible=False)
    chart.legend(loc="outside lower center", ncols=2)
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


def confusion(pairs: Iterable[tuple[object, object]], attribute: str) -> "Styler":
    """Count (drawn value, value in the caption) of one attribute as a table; None is "not stated"."""
    names = (
        pd.DataFrame(pairs, columns=["drawn", "caption"], dtype=object)
        .fillna("not stated")
        .replace("", "not stated")
    )
    table = pd.crosstab(names["drawn"], names["caption"])
    table = table[sorted(table, key=lambda name: name not in table.index)]  # right values on the diagonal
    table.index.name, table.columns.name = "drawn ↓ caption →", None
    right = (names["drawn"] == names["caption"]).sum()
    caption = f"{attribute.replace('_', ' ').capitalize()}: {right} of {len(names)} as drawn"
    styled = table.style.background_gradient("Blues", axis=None, vmax=1.3 * table.to_numpy().max())
    return styled.format_index(escape="html").format_index(escape="html", axis=1).set_caption(caption)


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
