"""Charts and tables: no text overlaps or is cut off, and the numbers are those given."""

import re
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

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
def test_the_learning_curve_shows_losses_score_facts_and_answers(steps):
    log = [{"event": "step", "step": i, "loss": 6 / i, "question_loss": 1 / i} for i in range(1, steps + 1)]
    log.append({"event": "step", "step": steps, "loss": 0.5})  # logged again after a resumed run
    log.append({"event": "validation", "step": 0, "score": None, "facts": None})  # no validation split
    for i in range(20, steps + 1, 20):
        facts = {"precision": 90.0 + i / 10, "recall": i, "f1": 1}
        log.append({"event": "validation", "step": i, "score": 100 - abs(40 - i), "facts": facts})
        log[-1] |= {"accuracy": 50 + i / 2, "best_by": i}
    figure = figures.learning_curve(log)
    assert_legible(figure)
    assert len(figure.axes[0].lines[0].get_xdata()) == steps
    assert f"→ 0.50 in {steps} steps" in figure.get_suptitle()
    assert len(figure.axes) == (3 if steps == 60 else 1)
    if steps == 60:
        assert "best validation score 100.0" in figure.get_suptitle()
        score, best = figure.axes[1].lines
        assert list(score.get_ydata()) == [80, 100, 80]
        assert list(best.get_xdata()) == [60]  # best/ follows another measure than the score
        shares = {line.get_label(): list(line.get_ydata()) for line in figure.axes[2].lines}
        assert shares["facts: recall"] == [20, 40, 60] and shares["right answers"] == [60, 70, 80]


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


def test_confusion_counts_every_pair():
    pairs = [("red", "red")] * 5 + [("red", "blue")] * 2 + [("blue", None), ("blue", "<b>$x$")]
    html = figures.confusion(iter(pairs), "upper_color").data
    rows = [re.findall(r"<t[hd][^>]*>(.*)</t[hd]>", row) for row in html.split("</tr>")[:3]]
    assert rows[0][1:] == ["&lt;b&gt;$x$", "blue", "red", "not mentioned"]
    assert rows[1:] == [["blue", "1", "<b>0</b>", "", "1"], ["red", "", "2", "<b>5</b>", ""]]
    assert rows[0][0] == "upper color: reference ↓ caption →"


def test_a_reading_table_shows_text_as_text_and_numbers_as_whole_as_they_are():
    table = pd.DataFrame(
        {"<i>": ["<b>" + "long " * 200, None], "gaps": [3.0, np.nan], "share": [0.123456, 99.98]}
    )
    html = figures.reading_table(table).to_html()
    assert "<b>" not in html and "<i>" not in html and "long &" not in html and "text-align: left" in html
    cells = [cell.split(">", 1)[1].split("<")[0] for cell in html.split('class="data ')[1:]]
    assert cells == ["&lt;b&gt;" + "long " * 200, "3", "0.12", "", "", "99.98"]
    assert figures.reading_table(table[:0], "No <code>x</code>.").data == "<p>No <code>x</code>.</p>"
