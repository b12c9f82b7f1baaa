"""Charts and tables: no text overlaps or is cut off, and the numbers are those given."""

import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from beit3lib.data.schema import ASPECTS
from beit3lib.viz import figures


def assert_legible(figure):
    """Draw the figure; every text is on the page and no two overlap."""
    drawn, draw = {}, Text.draw

    def record(text, renderer, *args, **options):
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = (text.get_text(), text.get_window_extent(renderer))
        return draw(text, renderer, *args, **options)

    with patch.object(Text, "draw", record):
        assert figure._repr_png_().startswith(b"\x89PNG")
    placed, page = list(drawn.values()), figure.bbox
    for i, (text, box) in enumerate(placed):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1, text
        for other_text, other in placed[i + 1 :]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 1 or high <= 1.5, (text, other_text)


@pytest.mark.parametrize("steps", [1, 2, 60])
def test_the_learning_curve_shows_loss_and_best_score(steps):
    log = [{"event": "step", "step": i, "loss": 6 / i} for i in range(1, steps + 1)]
    log.append({"event": "step", "step": steps, "loss": 0.5})  # logged again after a resumed run
    scores = [
        (0, None),
        *((i, 100 - abs(40 - i)) for i in range(20, steps + 1, 20)),
    ]  # None: no validation split
    figure = figures.learning_curve(
        [*log, *({"event": "validation", "step": i, "score": s} for i, s in scores)]
    )
    assert_legible(figure)
    assert len(figure.axes[0].lines[0].get_xdata()) == steps
    assert f"→ 0.50 in {steps} steps" in figure.get_suptitle()
    if steps == 60:
        assert "best validation score 100.0" in figure.get_suptitle()
        assert list(figure.axes[1].lines[0].get_ydata()) == [80, 100, 80]


def test_attribute_bars_show_the_given_shares():
    own = dict(zip(ASPECTS, (0.94, 0.99, 0.97, 1.0, 0.98), strict=True))
    other = dict(zip(ASPECTS[:4], (0.31, 0.08, 0.26, 0.13), strict=True))  # one was not measured
    figure = figures.attribute_bars(own, other)
    assert_legible(figure)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([*own.values(), *other.values(), np.nan], nan_ok=True)
    assert "98 %; for another scenario's image 20 %" in figure.get_suptitle()


def test_score_bars_draw_each_score_once():
    names = ["model", "the most frequent caption", "$\\frac$"]  # a dollar sign is text
    scores = pd.DataFrame(
        {"BLEU-4": [0.4, 0.1, 0.2], "CIDEr": [2.0, 0.5, 0.1], "mean": [40.0, 10, 20]}, names
    )
    figure = figures.score_bars(scores, "$\\broken{$", {"mean": 100})
    assert_legible(figure)
    widths = [bar.get_width() for axes in figure.axes for bar in axes.patches]
    assert widths == scores.to_numpy().T.ravel().tolist()
    assert [axes.get_xlim()[1] for axes in figure.axes[:3]] == pytest.approx([0.48, 2.4, 108])


def test_the_length_histogram_counts_captions_with_a_reference():
    references = ["One two three four.", "One two three four five six.", None]
    table = pd.DataFrame({"caption": ["Two words", None, "Not counted at all"], "reference": references})
    figure = figures.length_histogram(table)
    assert_legible(figure)
    assert figure.get_suptitle() == "Captions have 1.0 words, references 5.0"


def test_the_attention_map_shows_multiples_of_an_even_distribution():
    weights = np.ones((4, 4))
    weights[2, 1] = 9
    figure = figures.attention_map(
        Image.new("RGB", (64, 64), "gray"), weights, "$\\frac$", "mean of $\\x{$ all heads"
    )
    assert_legible(figure)
    assert figure.axes[1].images[-1].get_array().max() == pytest.approx(9 / weights.mean())


def test_confusion_counts_every_pair():
    pairs = [("red", "red")] * 5 + [("red", "blue")] * 2 + [("blue", None), ("blue", "<b>$x$")]
    table = figures.confusion(iter(pairs), "upper_clothing")
    assert list(table.data.columns) == ["blue", "red", "<b>$x$", "not stated"]
    assert table.data.to_numpy().tolist() == [[0, 0, 1, 1], [2, 5, 0, 0]]
    assert "Upper clothing: 5 of 9 as drawn" in table.to_html() and "<b>" not in table.to_html()


def test_repeated_captions_count_images_and_references():
    rows = [
        (f"{i}.jpg", f"s{i // 2}", "vehicle", "road", "The same.", f"reference {i % 2}") for i in range(4)
    ]
    rows += [
        (f"{i}.jpg", "s", "vehicle", "moving", text, "x") for i, text in enumerate(["one", "two", "", ""])
    ]
    columns = ["image", "scenario", "subject", "aspect", "caption", "reference"]
    (row,) = figures.repeated_captions(pd.DataFrame(rows, columns=columns)).to_dict("records")
    expected = {"subject": "vehicle", "aspect": "road", "caption": "The same.", "images": 4, "scenarios": 2}
    assert row == expected | {"references": 2, "share": 1.0}


def test_a_reading_table_shows_text_as_text_and_numbers_as_whole_as_they_are():
    table = pd.DataFrame(
        {"<i>": ["<b>" + "long " * 200, None], "gaps": [3.0, np.nan], "share": [0.123456, 99.98]}
    )
    html = figures.reading_table(table).to_html()
    assert "<b>" not in html and "<i>" not in html and "long &" not in html and "text-align: left" in html
    cells = [cell.split(">", 1)[1].split("<")[0] for cell in html.split('class="data ')[1:]]
    assert cells == ["&lt;b&gt;" + "long " * 200, "3", "0.12", "", "", "99.98"]
    assert figures.reading_table(table[:0], "No <code>x</code>.").data == "<p>No <code>x</code>.</p>"


def test_charts_choose_no_backend():
    code = "import sys; from beit3lib.viz import figures; log = [{'event': 'step', 'step': 1, 'loss': 1.0}]; "
    code += "figures.learning_curve(log)._repr_png_(); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
