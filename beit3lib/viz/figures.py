"""Charts of a run, as matplotlib figures that a notebook shows, and tables to read, as HTML.

    from beit3lib.run.log import read_log
    from beit3lib.viz.figures import learning_curve

    learning_curve(read_log("runs/demo/log.jsonl")).savefig("learning_curve.png")

Each chart has one message, which is its title, and fits the width of a README (8.5 inches at 110 dpi). Colors are those of
Okabe and Ito, which color-blind readers can tell apart. Images with captions are HTML: see `gallery.caption_cards`.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from beit3lib.data.images import open_image
from beit3lib.viz.gallery import Html

if TYPE_CHECKING:  # before pandas 3, this module imports matplotlib.pyplot
    from pandas.io.formats.style import Styler

BLUE, ORANGE, GREEN, SKY, VERMILLION, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#8a8f98"
SERIES = (BLUE, ORANGE, GREEN, SKY, VERMILLION, GREY)
WIDTH_IN, DPI = 8.5, 110
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dcdcd6",
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a name or caption is a dollar
}
HEAT = (
    LinearSegmentedColormap.from_list(  # transparent where attention is weak, so that the image stays visible
        "heat", [(0, (1.0, 0.93, 0.6, 0.0)), (0.5, (0.95, 0.56, 0.1, 0.75)), (1, (0.6, 0.02, 0.12, 0.92))]
    )
)


class Chart(Figure):
    """A figure outside of pyplot: a notebook shows it whatever the backend, and nothing keeps it in memory."""

    def __init__(self, title: str, height_in: float, rows: int = 1, columns: int = 1, **options) -> None:
        super().__init__(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(self)
        self.panels = self.subplots(rows, columns, squeeze=False, **options)
        # matplotlib's own wrapping would parse the text as math.
        self.suptitle(textwrap.fill(title, 78), x=0.01, ha="left", size=13, weight="bold")

    def draw(self, renderer) -> None:
        """Draw in the same style: matplotlib creates tick labels only now."""
        with rc_context(STYLE):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def _spaced(name: object) -> str:
    return str(name).replace("_", " ")


def _series(log: Iterable[Mapping], event: str, name: str) -> pd.Series:
    """Values of `name` by step; of a step that was logged twice, as after a resumed run, the last counts."""
    rows = ((row.get("step"), row.get(name)) for row in log if row.get("event") == event)
    found = {step: value for step, value in rows if isinstance(value, (int, float)) and math.isfinite(value)}
    return pd.Series(found, dtype=float).sort_index()


@rc_context(STYLE)
def learning_curve(log: Sequence[Mapping], score_name: str = "validation score") -> Chart:
    """Draw loss by step and, where the log has validations, their score: `log` is what `log.read_log` returns.

    Raises ValueError if no step has a loss.
    """
    loss, score = _series(log, "step", "loss"), _series(log, "validation", "score")
    if loss.empty:
        raise ValueError('log: expected records with event "step", step and loss, found none. Train first.')
    title = f"Loss {loss.iloc[0]:.2f} → {loss.iloc[-1]:.2f} in {loss.index[-1]:,} steps"
    if len(score):
        title += f", best {score_name} {score.max():.1f}"
    chart = Chart(title, 5 if len(score) else 3.4, 1 + bool(len(score)), sharex=True)
    axes, window = chart.panels[0, 0], max(1, len(loss) // 25)
    if window == 1:
        axes.plot(loss, color=BLUE, linewidth=2, label="training")
    else:
        axes.plot(loss, color=BLUE, linewidth=0.8, alpha=0.4, label="training, each record")
        smooth = loss.rolling(window, center=True, min_periods=1).mean()
        axes.plot(smooth, color=BLUE, linewidth=2, label=f"training, mean of {window} records")
    validation = _series(log, "validation", "loss")
    if len(validation):
        axes.plot(validation, "s--", color=VERMILLION, markersize=4, label="validation")
    axes.set(ylabel="loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.legend()
    if len(score):
        below = chart.panels[1, 0]
        below.plot(score, "o-", color=GREEN, markersize=4)
        below.plot(score.idxmax(), score.max(), "o", markersize=11, mfc="none", mec="black")
        below.set(ylabel=score_name, ylim=(0, 1.1 * max(score.max(), 1e-9)))
    chart.panels[-1, 0].set(xlabel="step")
    chart.panels[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return chart


@rc_context(STYLE)
def attribute_bars(own: Mapping[str, float], shuffled: Mapping[str, float]) -> Chart:
    """Draw the share (0 to 1) of captions without a wrong attribute, by aspect.

    `own`: captions of the image itself; `shuffled`: of an image of another scenario.
    """
    aspects = list(own)
    shares = [
        np.array([values.get(aspect, np.nan) for aspect in aspects], float)
        for values in map(dict, (own, shuffled))
    ]
    means = [
        f"{100 * np.nanmean(values):.0f} %" if np.isfinite(values).any() else "none" for values in shares
    ]
    chart = Chart(
        f"Captions without a wrong attribute: {means[0]}; for another scenario's image {means[1]}", 4
    )
    axes, positions = chart.panels[0, 0], np.arange(len(aspects))
    looks = (
        ("own image", -0.2, {"color": BLUE}),
        ("image of another scenario", 0.2, {"color": ORANGE, "hatch": "///"}),
    )
    for values, (name, offset, look) in zip(shares, looks, strict=True):
        bars = axes.bar(positions + offset, values, 0.38, label=name, edgecolor="white", **look)
        axes.bar_label(bars, ["" if np.isnan(v) else f"{100 * v:.0f} %" for v in values], padding=4)
    axes.set_xticks(positions, [_spaced(aspect) for aspect in aspects])
    axes.set(ylim=(0, 1.15), yticks=np.linspace(0, 1, 6), ylabel="share of captions")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", visible=False)
    chart.legend(loc="outside lower center", ncols=2)
    return chart


@rc_context(STYLE)
def score_bars(
    scores: pd.DataFrame,
    groups: str = "aspect",
    bars: str = "subject",
    title: str = "Scores by aspect and subject",
    limits: Mapping[str, float] | None = None,
) -> Chart:
    """Draw a long table with the columns `metric`, `value`, `groups` and `bars`: a panel per metric, a row per group.

    `bars`, at most six, differ by color; `limits` has the largest possible value of a metric, near the end of its axis.
    Raises ValueError for a missing column.
    """
    missing = [name for name in ("metric", "value", groups, bars) if name not in scores]
    if missing:
        raise ValueError(
            f"scores: expected the columns metric, value, {groups} and {bars}. Add {', '.join(missing)}."
        )
    metrics, rows, names = (list(dict.fromkeys(scores[name])) for name in ("metric", groups, bars))
    columns = min(2, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    chart = Chart(
        title, 1.2 + lines * (0.8 + 0.22 * len(rows) * max(1, len(names))), lines, columns, sharey=True
    )
    thick = 0.8 / len(names)
    for axes, metric in zip(chart.panels.ravel(), metrics, strict=False):
        means = (
            scores[scores["metric"] == metric].groupby([groups, bars], sort=False)["value"].mean().unstack()
        )
        means = means.reindex(index=rows, columns=names)
        top = max(float(np.nanmax(means.to_numpy(float), initial=0)), 1e-9)
        for i, name in enumerate(names):
            positions = np.arange(len(rows)) + (i - (len(names) - 1) / 2) * thick
            drawn = axes.barh(
                positions, means[name], thick * 0.9, color=SERIES[i % len(SERIES)], label=_spaced(name)
            )
            digits = 1 if top >= 20 else 2
            axes.bar_label(
                drawn, ["" if np.isnan(v) else f"{v:.{digits}f}" for v in means[name]], padding=3, size=10
            )
        axes.set_yticks(np.arange(len(rows)), [_spaced(row) for row in rows])
        limit = (limits or {}).get(metric)
        right = 1.08 * limit if limit else 1.2 * top
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, right), title=_spaced(metric))
        axes.grid(axis="y", visible=False)
    for axes in chart.panels.ravel()[len(metrics) :]:
        axes.set_visible(False)
    if len(names) > 1:
        chart.legend(
            *chart.panels[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(3, len(names)),
        )
    return chart


@rc_context(STYLE)
def length_histogram(predictions: pd.DataFrame) -> Chart:
    """Draw how many words captions and their references have; captions without a reference are skipped."""
    known = predictions[predictions["reference"].notna()]
    if known.empty:
        raise ValueError("predictions: expected captions with a reference, found none")
    lengths = {name: known[name].fillna("").str.split().str.len() for name in ("reference", "caption")}
    top = int(max(words.max() for words in lengths.values()))
    edges = np.arange(0, top + 2, max(1, math.ceil(top / 40))) - 0.5
    means = {name: words.mean() for name, words in lengths.items()}
    chart = Chart(f"Captions have {means['caption']:.1f} words, references {means['reference']:.1f}", 3.6)
    axes = chart.panels[0, 0]
    for (name, words), color, style in zip(lengths.items(), (ORANGE, BLUE), ("-", "--"), strict=True):
        axes.hist(words, edges, histtype="stepfilled", color=color, alpha=0.25)
        axes.hist(words, edges, histtype="step", color=color, linestyle=style, linewidth=1.8, label=name)
    axes.set(xlabel="words", ylabel="number of captions")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend()
    return chart


@rc_context(STYLE)
def attention_map(image: Image.Image | str | Path, weights: np.ndarray, word: str, label: str = "") -> Chart:
    """Draw an image and, over it, the attention of a word to each patch, as a multiple of an even distribution.

    `weights` (rows, columns) are at least 0 and of any sum; `label` describes how they were averaged.
    """
    weights = np.asarray(weights, float)
    if weights.ndim != 2 or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(
            f"weights: expected (rows, columns) of numbers ≥ 0, not all 0, found shape {weights.shape}"
        )
    pixels = np.asarray(open_image(image))
    height, width = pixels.shape[:2]
    chart = Chart(f"Attention of the word “{word}”", 4.2, 1, 2)
    pale = 140 + pixels.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(int) // 3
    for axes, background in zip(chart.panels[0], (pixels, pale), strict=True):
        axes.imshow(background)
        axes.set_axis_off()
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    shown = chart.panels[0, 1].imshow(
        weights / weights.mean(), extent=extent, cmap=HEAT, vmin=0, interpolation="nearest"
    )
    chart.colorbar(shown, ax=chart.panels[0, 1], shrink=0.8, label="multiple of an even distribution")
    chart.supxlabel(textwrap.fill(label, 110), size=10)
    return chart


def confusion(pairs: Iterable[tuple[object, object]], attribute: str) -> "Styler":
    """Count (drawn value, value in the caption) of one attribute as a table; right ones are bold, None is "not stated"."""
    names = [
        tuple("not stated" if value is None or value == "" else str(value) for value in pair)
        for pair in pairs
    ]
    if not names:
        raise ValueError(f"pairs: expected (drawn, caption) values of {attribute}, found none")
    table = pd.crosstab(*(pd.Series(values) for values in zip(*names, strict=True)))
    known = [name for name in table.columns if name in table.index]
    table = table[known + [name for name in table.columns if name not in known]]
    table.index.name, table.columns.name = "drawn ↓ caption →", None
    right = sum(drawn == stated for drawn, stated in names)
    styled = table.style.background_gradient("Blues", axis=None, vmax=1.3 * table.to_numpy().max())
    styled = styled.apply(
        lambda row: ["font-weight: bold" if name == row.name else "" for name in row.index], axis=1
    )
    styled = styled.format_index(escape="html").format_index(escape="html", axis=1)
    return _left(styled.set_caption(f"{_spaced(attribute).capitalize()}: {right} of {len(names)} as drawn"))


def reading_table(table: pd.DataFrame, empty: str = "No rows.") -> "Styler | Html":
    """Return a table of texts to read: left-aligned, wrapped, HTML shown as text; whole numbers without decimals.

    A table without rows becomes the sentence `empty`.
    """
    if table.empty:
        return Html(f"<p>{empty}</p>")
    digits = {}
    for name, values in table.select_dtypes("float").items():
        known = values[np.isfinite(values)]
        digits[name] = 0 if (known == known.round()).all() else 1 if known.abs().max() >= 10 else 3
    styled = table.style.format(escape="html", na_rep="").format_index(escape="html")
    for name, count in digits.items():
        styled = styled.format(subset=[name], precision=count, thousands=",", na_rep="")
    styled = _left(styled.format_index(escape="html", axis=1))
    return styled.hide(axis="index") if isinstance(table.index, pd.RangeIndex) else styled


def _left(styled: "Styler") -> "Styler":
    look = "text-align: left; vertical-align: top; white-space: normal; overflow-wrap: break-word; max-width: 40em"
    return styled.set_table_styles([{"selector": "th, td, caption", "props": look}], overwrite=False)


def repeated_captions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Count captions that were generated for more than one image, the most frequent first; empty captions do not count.

    Columns: subject, aspect, caption, images, scenarios, references (different references of these images: many for one
    caption mean that the model ignores the image) and share (of the images with this caption type).
    """
    table = predictions.reindex(columns=["image", "scenario", "subject", "aspect", "caption", "reference"])
    table = table[table["caption"].fillna("").str.strip() != ""]
    counted = {
        "images": ("image", "nunique"),
        "scenarios": ("scenario", "nunique"),
        "references": ("reference", "nunique"),
    }
    repeated = table.groupby(["subject", "aspect", "caption"], as_index=False, sort=False).agg(**counted)
    totals = predictions.groupby(["subject", "aspect"])["image"].nunique().rename("total").reset_index()
    repeated = repeated.merge(totals, on=["subject", "aspect"])
    repeated["share"] = repeated["images"] / repeated.pop("total")
    return repeated[repeated["images"] > 1].sort_values(
        "images", ascending=False, kind="stable", ignore_index=True
    )
