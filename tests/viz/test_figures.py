"""Charts and tables: no text overlaps or is cut off, the numbers are those given, and odd tables are handled or refused."""

import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from beit3lib.data.schema import ASPECTS
from beit3lib.viz.figures import (
    attention_map,
    attribute_bars,
    confusion,
    learning_curve,
    length_histogram,
    reading_table,
    repeated_captions,
    score_bars,
)


def assert_legible(figure, dpi=110):
    """Draw the figure; every text is on the page and no two overlap."""
    drawn, draw = {}, Text.draw

    def record(text, renderer, *args, **options):
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = (text.get_text(), text.get_window_extent(renderer))
        return draw(text, renderer, *args, **options)

    figure.set_dpi(dpi)
    with patch.object(Text, "draw", record):
        figure.canvas.draw()
    placed, page = list(drawn.values()), figure.bbox
    for text, box in placed:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1, text
    for i, (text, box) in enumerate(placed):
        for other_text, other in placed[i + 1 :]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 1 or high <= 1.5, (text, other_text)


def shown(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def log_of(steps=60, every=20):
    log = [{"event": "start"}]
    log += [{"event": "step", "step": i, "epoch": 0, "loss": 6 / i, "lr": 1e-4} for i in range(1, steps + 1)]
    return log + [
        {"event": "validation", "step": i, "score": 100 - abs(40 - i)} for i in range(every, steps + 1, every)
    ]


def test_the_learning_curve_shows_loss_and_best_score():
    figure = learning_curve(log_of())
    assert_legible(figure)
    assert "Loss 6.00 → 0.10 in 60 steps, best validation score 100.0" in shown(figure)
    assert list(figure.axes[1].lines[0].get_ydata()) == [80, 100, 80]


@pytest.mark.parametrize("steps", [1, 2, 60])
def test_the_learning_curve_needs_no_validation(steps):
    log = [record for record in log_of(steps) if record["event"] != "validation"]
    log.append(
        {"event": "validation", "step": steps, "score": None}
    )  # what a run without a validation split logs
    figure = learning_curve(log)
    assert_legible(figure)
    assert len(figure.axes) == 1


def test_a_step_that_was_logged_twice_counts_once():
    axes = learning_curve([*log_of(10), {"event": "step", "step": 10, "loss": 2.5}]).axes[0]
    assert len(axes.lines[0].get_xdata()) == 10
    assert axes.lines[0].get_ydata()[-1] == 2.5


def test_a_log_without_loss_is_refused():
    with pytest.raises(ValueError, match="expected records with event"):
        learning_curve([{"event": "step", "step": 1, "loss": float("nan")}])


def test_attribute_bars_show_the_given_shares():
    own = dict(zip(ASPECTS, (0.94, 0.99, 0.97, 1.0, 0.98), strict=True))
    other = dict(zip(ASPECTS, (0.31, 0.08, 0.26, 0.13, 0.17), strict=True))
    figure = attribute_bars(own, other)
    assert_legible(figure)
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(
        [*own.values(), *other.values()]
    )
    assert "98 %; for another scenario's image 19 %" in shown(figure)


def test_attribute_bars_skip_an_aspect_that_was_not_measured():
    assert_legible(attribute_bars(pd.Series({"road": 0.5, "weather": 0.7}), {"road": 0.1}))


def test_score_bars_draw_each_score_once():
    rows = [("bleu", a, s, 0.1 + 0.01 * i) for i, a in enumerate(ASPECTS) for s in ("vehicle", "pedestrian")]
    rows += [("mean score", a, s, 40.0 + i) for i, a in enumerate(ASPECTS) for s in ("vehicle", "pedestrian")]
    scores = pd.DataFrame(rows, columns=["metric", "aspect", "subject", "value"])
    figure = score_bars(scores, limits={"mean score": 100})
    assert_legible(figure)
    widths = [bar.get_width() for axes in figure.axes for bar in axes.patches]
    assert sorted(widths) == pytest.approx(sorted(scores["value"]))
    assert [axes.get_xlim()[1] for axes in figure.axes] == [
        pytest.approx(1.2 * scores["value"][:10].max()),
        108,
    ]
    with pytest.raises(ValueError, match="Add phase."):
        score_bars(scores, groups="phase")


def test_a_dollar_sign_in_a_name_is_text():
    scores = pd.DataFrame(
        {"metric": "bleu", "aspect": ["$\\frac$", "$x$"], "subject": "a$b$", "value": [1.0, 2.0]}
    )
    assert_legible(score_bars(scores, title="$\\broken{$"))
    assert_legible(attention_map(Image.new("RGB", (8, 8)), np.ones((2, 2)), "$\\frac$", "$\\x{$"))


def test_the_length_histogram_counts_captions_with_a_reference():
    references = ["One two three four.", "One two three four five six.", None]
    figure = length_histogram(
        pd.DataFrame({"caption": ["Two words", None, "Not counted at all"], "reference": references})
    )
    assert_legible(figure)
    assert "Captions have 1.0 words, references 5.0" in shown(figure)
    with pytest.raises(ValueError, match="found none"):
        length_histogram(pd.DataFrame({"caption": ["a"], "reference": [None]}))


def test_the_attention_map_shows_multiples_of_an_even_distribution():
    weights = np.ones((4, 4))
    weights[2, 1] = 9
    figure = attention_map(Image.new("RGB", (64, 64), "gray"), weights, "red", "mean of all heads")
    assert_legible(figure)
    assert figure.axes[1].images[-1].get_array().max() == pytest.approx(9 / weights.mean())


@pytest.mark.parametrize("weights", [np.ones(4), np.zeros((2, 2)), -np.ones((2, 2)), np.full((2, 2), np.nan)])
def test_attention_without_weight_is_refused(weights):
    with pytest.raises(ValueError, match="weights: expected"):
        attention_map(Image.new("RGB", (8, 8)), weights, "red")


def test_confusion_counts_every_pair():
    pairs = [("red", "red")] * 5 + [("red", "blue")] * 2 + [("blue", None), ("blue", "<b>$x$")]
    table = confusion(pairs, "upper_clothing")
    assert list(table.data.columns) == ["blue", "red", "<b>$x$", "not stated"]
    assert table.data.to_numpy().tolist() == [[0, 0, 1, 1], [2, 5, 0, 0]]
    html = table.to_html()
    assert "Upper clothing: 5 of 9 as drawn" in html and "<b>$x$" not in html
    with pytest.raises(ValueError, match="found none"):
        confusion([], "upper")


def test_repeated_captions_count_images_and_references():
    rows = [
        (f"{i}.jpg", f"s{i // 2}", "vehicle", "road", "The same.", f"reference {i % 2}") for i in range(4)
    ]
    rows += [
        (f"{i}.jpg", f"s{i // 2}", "vehicle", "moving", text, "x")
        for i, text in enumerate(["one", "two", "", ""])
    ]
    columns = ["image", "scenario", "subject", "aspect", "caption", "reference"]
    (row,) = repeated_captions(pd.DataFrame(rows, columns=columns)).to_dict("records")
    expected = {"subject": "vehicle", "aspect": "road", "caption": "The same.", "images": 4, "scenarios": 2}
    assert row == expected | {"references": 2, "share": 1.0}


def test_a_reading_table_shows_whole_texts_left_aligned_and_html_as_text():
    text = "<b>" + "long " * 200 + "end</b>"
    html = reading_table(pd.DataFrame({"caption": [text, None], "<i>": [1, 2]})).to_html()
    assert "&lt;b&gt;long" in html and "end&lt;/b&gt;" in html and "<i>" not in html
    assert "text-align: left" in html and "None" not in html


def test_a_reading_table_writes_whole_numbers_without_decimals():
    table = pd.DataFrame(
        {"count": [1, 2], "gaps": [3.0, np.nan], "share": [0.5, 0.123456], "score": [99.98, 1.0]}
    )
    cells = [cell.split("<")[0] for cell in reading_table(table).to_html().split('class="data ')[1:]]
    texts = [cell.split(">", 1)[1] for cell in cells]
    assert texts == ["1", "3", "0.500", "100.0", "2", "", "0.123", "1.0"]


def test_an_empty_reading_table_is_a_sentence():
    assert (
        reading_table(pd.DataFrame(columns=["where"]), "No problems.")._repr_html_() == "<p>No problems.</p>"
    )


def test_charts_choose_no_backend():
    code = "import sys, beit3lib.viz.figures as f; f.learning_curve([{'event': 'step', 'step': 1, 'loss': 1.0}])._repr_png_()"
    code += "; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
