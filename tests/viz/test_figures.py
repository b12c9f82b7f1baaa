"""The figures: nothing overlaps or is cut, numbers shown are those given, and odd tables are survived or refused."""

import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from beit3lib.viz import figures
from beit3lib.viz.figures import (
    attention_map,
    attribute_bars,
    caption_pairs,
    confusion,
    learning_curve,
    length_histogram,
    phase_strip,
    reading_table,
    repeated_captions,
    score_bars,
    share_in_box,
    speed_bars,
    storyboard,
    worst_and_best,
)

ASPECTS = ("moving", "pedestrian_description", "position", "road", "weather")


def make_predictions(root, size=64, phases=5, scenarios=1, long=False):
    """Two aspects of one subject for each phase of each scenario; the last word of each caption is wrong."""
    rows = []
    for scenario in range(scenarios):
        for phase in range(phases):
            name = f"avg{scenario}_phase{phase}.png"
            Image.new("RGB", (size, size), (40 * phase, 90, 60)).save(root / name)
            for aspect in ("moving", "road"):
                reference = f"The car {phase} waits on a $5 street {'of the old town ' * (12 if long else 1)}today."
                caption = reference.replace("today.", "tomorrow.")
                about = {"image": name, "scenario": f"s{scenario}", "view": "vehicle_view", "video": "v.mp4"}
                about |= {"label": str(phase), "phase": phase, "subject": "vehicle", "aspect": aspect}
                sure = list(np.linspace(0, 1, len(caption.split())))
                rows.append({**about, "caption": caption, "reference": reference, "word_probs": sure, "score": -0.1})
    return pd.DataFrame(rows)


def boxes(figure, dpi):
    """Text and place, in pixels, of everything written when a figure is drawn."""
    drawn, draw = {}, Text.draw

    def record(text, renderer, *args, **options):
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = (text.get_text(), text.get_window_extent(renderer))
        return draw(text, renderer, *args, **options)

    figure.set_dpi(dpi)
    with patch.object(Text, "draw", record):
        figure.canvas.draw()
    return list(drawn.values())


def assert_legible(figure, dpi=100):
    """Every text lies on the page and no two lie on each other."""
    placed, page = boxes(figure, dpi), figure.bbox
    for text, box in placed:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1, text
    for i, (text, box) in enumerate(placed):
        for other_text, other in placed[i + 1 :]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 1 or high <= 1.5, (text, other_text)


def shown(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def contrast(colour: str) -> float:
    """Contrast of a colour against white, as WCAG 2 defines it."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)


# --- pictures with captions


@pytest.mark.parametrize("size", [64, 384])
@pytest.mark.parametrize("draw", [caption_pairs, lambda table, root: storyboard(table, "s0", root)])
def test_captions_are_whole_and_apart_at_any_resolution(tmp_path, size, draw):
    predictions = make_predictions(tmp_path, size, long=size > 64)
    figure = draw(predictions, tmp_path)
    for dpi in (72, 150):
        assert_legible(figure, dpi)
    words = shown(figure)
    for line in predictions[:4].itertuples():
        assert line.caption in words
        assert line.reference in words


def test_only_words_that_the_reference_lacks_are_marked(tmp_path):
    (line,) = figures.prediction_lines(make_predictions(tmp_path, phases=1)[:1])
    words = figures.generated_words(line)
    assert [word.text for word in words if word.underlined] == ["tomorrow."]
    line.word_probs = None
    assert {word.colour for word in figures.generated_words(line)} == {figures.INK, figures.NEW_WORD}


def test_paler_is_less_sure_and_never_too_pale_to_read():
    for colour in (figures.INK, figures.NEW_WORD):
        levels = [contrast(figures.fade(colour, p)) for p in (0.0, 0.3, 0.6, 0.9, 1.0)]
        assert levels == sorted(levels)
        assert levels[0] >= 4.5 and levels[-2] == levels[-1] > levels[0] + 1
    assert contrast(figures.MUTED) >= 4.5


def test_a_long_word_is_broken_rather_than_cut(tmp_path):
    predictions = make_predictions(tmp_path, phases=2)
    predictions.loc[0, "caption"] = "A " + "supercalifragilistic" * 8 + " street."
    predictions.at[0, "word_probs"] = None
    figure = storyboard(predictions, "s0", tmp_path)
    assert_legible(figure)
    assert "supercalifragilistic" * 8 in shown(figure).replace(" ", "")


def test_storyboard_orders_phases_and_takes_one_video(tmp_path):
    predictions = make_predictions(tmp_path, phases=3)
    other = predictions[predictions["phase"] == 0].assign(video="w.mp4", image="avg_w.png")
    figure = storyboard(pd.concat([other, predictions[::-1]]), "s0", tmp_path, aspect="road")
    names = [text.get_text() for text in figure.texts]
    assert [names[i + 1] for i, name in enumerate(names) if name == "phase" and names[i + 1].isdigit()] == [
        "0",
        "1",
        "2",
    ]
    assert len(figure.axes) == 3
    assert len(storyboard(pd.concat([other, predictions]), "s0", tmp_path, video="w.mp4").axes) == 1


def test_missing_pictures_captions_and_references_are_told(tmp_path):
    predictions = make_predictions(tmp_path, phases=2).astype({"caption": object, "reference": object})
    (tmp_path / predictions["image"][0]).unlink()
    predictions.loc[0, "caption"] = ""
    predictions.at[0, "word_probs"] = []
    predictions.loc[1, "reference"] = None
    for figure in (storyboard(predictions, "s0", tmp_path), caption_pairs(predictions, tmp_path)):
        assert_legible(figure)
        for text in ("picture not found", "(says nothing)", "(no reference)"):
            assert text in shown(figure)


def test_captions_without_references_stand_alone(tmp_path):
    predictions = make_predictions(tmp_path, phases=2).drop(columns=["reference", "word_probs"])
    figure = caption_pairs(predictions, tmp_path, title="What training tells")
    assert_legible(figure)
    assert "Reference" not in shown(figure) and "reference" not in shown(figure)
    assert predictions["caption"][0] in shown(figure)


def test_phase_strip_places_each_image_under_its_phase(tmp_path):
    table = make_predictions(tmp_path, phases=4).drop_duplicates("image").assign(start_s=1.0, end_s=2.5)
    both = pd.concat([table, table[1:3].assign(video="w.mp4", start_s=9.0)])
    figure = phase_strip(both, tmp_path)
    assert_legible(figure)
    assert shown(figure).count("1.0–2.5 s") == 4 and shown(figure).count("9.0–2.5 s") == 2
    left = [round(axes.get_position().x0, 3) for axes in figure.axes]
    assert left[4:] == left[1:3]
    with pytest.raises(ValueError, match="empty table"):
        phase_strip(both[:0], tmp_path)


def test_an_unknown_scenario_is_told_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="scenario: expected one of s0, found 's9'"):
        storyboard(make_predictions(tmp_path), "s9", tmp_path)
    with pytest.raises(ValueError, match="empty table"):
        caption_pairs(make_predictions(tmp_path)[:0], tmp_path)


# --- training


def log_rows(steps=60, every=20):
    rows = [{"event": "start"}]
    rows += [{"event": "step", "step": i, "epoch": 0, "loss": 6 / i, "lr": 1e-4} for i in range(1, steps + 1)]
    scores = [{"event": "validation", "step": i, "score": 100 - abs(40 - i)} for i in range(every, steps + 1, every)]
    return rows + scores


def test_learning_curve_tells_loss_and_best_score():
    figure = learning_curve(log_rows())
    assert_legible(figure)
    assert "Loss 6.00 → 0.10 in 60 steps, best validation score 100" in shown(figure)
    assert len(figure.axes) == 2
    assert list(figure.axes[1].lines[0].get_ydata()) == [80, 100, 80]


def test_learning_curve_without_validation_or_with_a_single_step():
    for steps in (1, 2, 60):
        figure = learning_curve(row for row in log_rows(steps) if row["event"] != "validation")
        assert_legible(figure)
        assert len(figure.axes) == 1


def test_a_resumed_run_counts_each_step_once():
    rows = log_rows(10) + [{"event": "step", "step": 10, "loss": 2.5}]
    axes = learning_curve(rows).axes[0]
    assert len(axes.lines[0].get_xdata()) == 10
    assert axes.lines[0].get_ydata()[-1] == 2.5


def test_a_log_without_steps_is_refused():
    with pytest.raises(ValueError, match="expected rows with event"):
        learning_curve([{"event": "step", "step": 1, "loss": float("nan")}])


# --- right and wrong


def test_attribute_bars_show_the_given_shares():
    own = dict(zip(ASPECTS, (0.94, 0.99, 0.97, 1.0, 0.98), strict=True))
    other = dict(zip(ASPECTS, (0.31, 0.08, 0.26, 0.13, 0.17), strict=True))
    figure = attribute_bars(own, other, dict(zip(ASPECTS, (0.33, 0.08, 0.25, 0.12, 0.17), strict=True)))
    assert_legible(figure)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([*own.values(), *other.values()])
    assert all(f"{share:.0%}" in shown(figure) for share in heights)
    assert "97.6% with their own picture, 19% with another's" in shown(figure)


def test_attribute_bars_survive_an_aspect_that_was_not_measured():
    figure = attribute_bars(pd.Series({"road": 0.5, "weather": 0.7}), {"road": 0.1}, {})
    assert_legible(figure)


def test_score_bars_draw_each_score_once():
    rows = [("bleu", a, s, 0.1 + 0.01 * i) for i, a in enumerate(ASPECTS) for s in ("vehicle", "pedestrian")]
    rows += [("mean score", a, s, 40.0 + i) for i, a in enumerate(ASPECTS) for s in ("vehicle", "pedestrian")]
    scores = pd.DataFrame(rows, columns=["metric", "aspect", "subject", "value"])
    figure = score_bars(scores, units={"mean score": "0 to 100"})
    assert_legible(figure)
    widths = [bar.get_width() for axes in figure.axes for bar in axes.patches]
    assert sorted(widths) == pytest.approx(sorted(scores["value"]))
    assert "0 to 100" in shown(figure)
    with pytest.raises(ValueError, match="phase missing"):
        score_bars(scores, groups="phase")


def test_speed_bars_show_each_ratio_against_the_reference():
    rows = [{"quantity": "step", "way": w, "against": "reference", "ratio": r} for w, r in (("reference", 1.0), ("ours", 5.3))]
    rows += [{"quantity": "peers", "way": "GIT-base", "against": "ours", "ratio": 0.4}]
    figure = speed_bars([*rows, {**rows[1], "way": "ours bf16", "ratio": 9.0}])
    assert_legible(figure)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [5.3, 9.0] and "9.0×" in shown(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["step: fp32", "step: bf16"]
    with pytest.raises(ValueError, match="found none; run benchmarks.speed first"):
        speed_bars(rows[2:])


def test_confusion_counts_every_pair():
    pairs = [("red", "red")] * 5 + [("red", "blue")] * 2 + [("blue", None), ("blue", "green")]
    figure = confusion(pairs, "upper")
    assert_legible(figure)
    cells = [text.get_text() for text in figure.axes[0].texts]
    columns = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert columns == ["blue", "red", "green", "nothing"]
    assert cells == ["0", "0", "1", "1", "2", "5", "0", "0"]
    assert "5 of 9 said as drawn" in shown(figure)
    with pytest.raises(ValueError, match="found none"):
        confusion([], "upper")


def test_length_histogram_holds_every_caption(tmp_path):
    predictions = make_predictions(tmp_path, phases=3).astype({"reference": object})
    predictions.loc[0, "reference"] = None
    predictions["caption"] = "Two words"
    predictions["word_probs"] = None
    figure = length_histogram(predictions)
    assert_legible(figure)
    assert "generated: 2.0 words on average" in shown(figure)
    assert "shorter than" in shown(figure)


# --- attention


def test_attention_map_measures_the_box():
    weights = np.ones((4, 4))
    weights[2, 1] = 9
    figure = attention_map(Image.new("RGB", (64, 64), "gray"), weights, "red", "mean of all heads", (16, 32, 16, 16))
    assert_legible(figure)
    assert "38% of it in the box, which is 6% of the picture" in shown(figure)
    assert "mean of all heads" in shown(figure)
    assert figure.axes[1].images[-1].get_array().max() == pytest.approx(9 / weights.mean())


def test_share_in_a_box_counts_cut_patches_by_their_part():
    even = np.ones((8, 6))
    assert share_in_box(even, (0, 0, 60, 40), (60, 40)) == pytest.approx(1)
    assert share_in_box(even, (13, 7, 21, 9), (60, 40)) == pytest.approx(21 * 9 / 2400)
    assert share_in_box(even, (50, 30, 20, 20), (60, 40)) == pytest.approx(100 / 2400)


@pytest.mark.parametrize("weights", [np.ones(4), np.zeros((2, 2)), -np.ones((2, 2)), np.full((2, 2), np.nan)])
def test_attention_that_is_none_is_refused(weights):
    with pytest.raises(ValueError, match="weights: expected"):
        attention_map(Image.new("RGB", (8, 8)), weights, "red", "label")


# --- tables


def test_repeated_captions_count_pictures_and_references(tmp_path):
    predictions = make_predictions(tmp_path, scenarios=2, phases=2)
    road = predictions["aspect"] == "road"
    predictions.loc[road, "caption"] = "The same again."
    predictions.loc[predictions["aspect"] == "moving", "caption"] = ["one", "two", "", ""]
    (row,) = repeated_captions(predictions).to_dict("records")
    wanted = {"subject": "vehicle", "aspect": "road", "caption": "The same again.", "images": 4, "scenarios": 2}
    assert row == wanted | {"references": 2, "share": 1.0}


def test_worst_and_best_are_the_ends_and_never_the_same():
    table = pd.DataFrame({"mean_score": [5.0, np.nan, 1.0, 3.0, 2.0], "caption": list("abcde")})
    ends = worst_and_best(table, 1)
    assert list(ends["place"]) == ["worst 1: 1", "best 1: 5"]
    assert list(ends["caption"]) == ["c", "a"]
    assert len(worst_and_best(table, 9)) == 4
    assert list(worst_and_best(table.drop(columns="mean_score").assign(score=1.0), 1, "score")["place"].str[:5]) == [
        "worst",
        "best ",
    ]
    with pytest.raises(ValueError, match="expected a column"):
        worst_and_best(table[["caption"]])
    again = pd.DataFrame({"mean_score": [1.0, 1.0, 1.0, 9.0], "caption": list("aaab"), "reference": list("xxyz")})
    assert list(worst_and_best(again, 2)["reference"]) == ["x", "y", "z"]


def test_a_table_to_read_is_whole_at_the_left_and_shows_html_as_text():
    shown = reading_table(
        pd.DataFrame({"caption": ["<b>" + "long " * 200 + "end</b>", None], "score": [99.998, 1.0]})
    ).to_html()
    assert "text-align: left" in shown and "long end&lt;/b&gt;" in shown and "<b>" not in shown
    assert "100.0" in shown and "None" not in shown and "nan" not in shown


def test_figures_load_neither_pyplot_nor_torch_and_show_in_a_notebook(tmp_path):
    code = "import sys, beit3lib.viz.figures, beit3lib.viz.gallery; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert learning_curve(log_rows())._repr_png_().startswith(b"\x89PNG")
