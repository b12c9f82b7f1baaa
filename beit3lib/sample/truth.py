"""Compare captions of the sample with what was drawn: read attributes back from words, and locate attention."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from beit3lib.data.aspects import SUBJECTS
from beit3lib.files import FileError, read_json
from beit3lib.sample import DRAWN_NAME
from beit3lib.sample.draw import (
    DISTANCES,
    LOWER,
    SKY,
    SURFACE,
    UNITS,
    UPPER,
    VALUES,
    Scene,
    boxes_at,
    describe,
    draw_blur,
    draw_camera,
    draw_values,
)

Truth = dict[tuple[str, int], Scene]  # by (scenario, phase)

ATTRIBUTES = {  # what the captions of an aspect state
    "moving": ("vehicle_motion", "pedestrian_motion"),
    "pedestrian_description": ("upper", "lower"),
    "position": ("side", "distance"),
    "road": ("surface", "lanes", "sidewalk"),
    "weather": ("weather", "light"),
}
LABELS = {"upper": "color of the jacket", "lower": "color of the slacks", "side": "side of the vehicle"}  # for readers
PATTERNS = {
    "vehicle_motion": {"stopped": r"\b0 km/h", "slow": r"\b10 km/h", "fast": r"\b30 km/h"},
    "pedestrian_motion": {"standing": r"standing still", "walking": r"walking slowly", "rushing": r"rushing out"},
    "upper": {color: rf"\b{color} jacket" for color in UPPER},
    "lower": {color: rf"\b{color} slacks" for color in LOWER},
    "side": {side: rf"\b{side} side\b" for side in VALUES["side"]},
    "distance": {name: rf"\b{words} it\b" for name, words in DISTANCES.items()},
    "surface": {kind: rf"\b{kind} surface" for kind in SURFACE},
    "lanes": {kind: rf"\b{kind} residential" for kind in VALUES["lanes"]},
    "sidewalk": {"both": r"are sidewalks on both", "no": r"is no sidewalk"},
    "weather": {kind: rf"weather is {kind}" for kind in SKY},
    "light": {kind: rf"brightness is {kind}" for kind in VALUES["light"]},
}


def read_drawn(root: str | Path) -> Truth:
    """Read what every phase of a sample shows: {(scenario, phase): Scene}."""
    path = Path(root) / DRAWN_NAME
    scenarios = read_json(path, dict).items()
    try:
        return {(name, int(phase)): Scene(**values) for name, phases in scenarios for phase, values in phases.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise FileError(f"{path}: expected {{scenario: {{phase: values}}}}, found {error}. Draw the sample again.") from None


def stated_attributes(subject: str, aspect: str) -> tuple[str, ...]:
    """Return the attributes that a caption type states: its own subject's motion, and all of the other aspects."""
    return (f"{subject}_motion",) if aspect == "moving" else ATTRIBUTES[aspect]


def read_attributes(caption: str, subject: str, aspect: str) -> dict[str, str | None]:
    """Return the attributes that a caption states, read from its words; None where it states none, or two values."""
    stated = {}
    for name in stated_attributes(subject, aspect):
        values = [value for value in VALUES[name] if re.search(PATTERNS[name][value], caption)]
        stated[name] = values[0] if len(values) == 1 else None
    return stated


def states_correctly(caption: str, scene: Scene, subject: str, aspect: str) -> bool:
    """Return whether a caption states every attribute as drawn, or is empty where the aspect is not mentioned."""
    if aspect not in describe(scene, subject):
        return not caption.strip()
    stated = read_attributes(caption, subject, aspect)
    return all(value == getattr(scene, name) for name, value in stated.items())


def attribute_table(predictions: pd.DataFrame, drawn: Truth) -> pd.DataFrame:
    """Return a row per caption and attribute that it should state, with the columns aspect, attribute, drawn and stated.

    `predictions` has a row per caption with scenario, phase, subject, aspect and caption. `stated` is "nothing" where a
    caption states no value, or two.
    """
    rows = []
    for row in predictions.itertuples(index=False):
        scene = drawn.get((row.scenario, row.phase))
        if scene is not None and row.aspect in describe(scene, row.subject):
            for name, value in read_attributes(row.caption, row.subject, row.aspect).items():
                rows.append((row.aspect, name, getattr(scene, name), value or "nothing"))
    return pd.DataFrame(rows, columns=["aspect", "attribute", "drawn", "stated"])


def attribute_shares(predictions: pd.DataFrame, drawn: Truth, seed: int = 0) -> pd.DataFrame:
    """Return per aspect the share of captions that state every attribute as drawn.

    Columns: `own`, against the image of the caption; `shuffled`, against the image of another scenario; `chance`, the
    expected share when guessing by frequency; `captions`, their number. `predictions` as in `attribute_table`.
    """
    keys = list(zip(predictions["scenario"], predictions["phase"], strict=True))
    table = predictions.assign(scene=[drawn.get(key) for key in keys]).dropna(subset=["scene"])
    rng = np.random.default_rng(seed)
    rows = {}
    for aspect, group in table.groupby("aspect"):
        names, scenes = group["scenario"].to_numpy(), group["scene"].tolist()
        others = [np.flatnonzero(names != name) for name in names]
        shuffled = [scenes[rng.choice(other)] if len(other) else scenes[0] for other in others]
        rows[aspect] = {
            "own": _share_correct(group, scenes),
            "shuffled": _share_correct(group, shuffled),
            "chance": _chance(group["subject"], scenes, aspect),
            "captions": len(group),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("aspect")


def _share_correct(captions: pd.DataFrame, scenes: list[Scene]) -> float:
    rows = zip(captions["caption"], scenes, captions["subject"], captions["aspect"], strict=True)
    return float(np.mean([states_correctly(*row) for row in rows]))


def _chance(subjects: pd.Series, scenes: list[Scene], aspect: str) -> float:
    """Return the probability that two random captions of a subject state the same: the sum of squared frequencies."""
    shares = []
    for subject in SUBJECTS:
        texts = [describe(scene, subject).get(aspect) for scene, s in zip(scenes, subjects, strict=True) if s == subject]
        if texts:
            counts = np.array([texts.count(text) for text in set(texts)])
            shares.append(((counts / counts.sum()) ** 2).sum())
    return float(np.mean(shares))


# --- attention -----------------------------------------------------------------------------------------------------


def share_in_box(weights: np.ndarray, box_xywh: tuple[float, float, float, float], size: tuple[float, float]) -> float:
    """Return the share of attention weights (rows, columns) inside a box of an image of `size` (width, height).

    A patch that the edge of the box cuts counts by its part inside.
    """
    weights = np.asarray(weights, float)
    x, y, width, height = box_xywh
    inside = []
    for cells, low, high, length in ((weights.shape[0], y, y + height, size[1]), (weights.shape[1], x, x + width, size[0])):
        edges = np.linspace(0, length, cells + 1)
        inside.append(np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells / length)
    return float(inside[0] @ weights @ inside[1] / weights.sum())


def attention_shares(captioner, scenes: int = 50, seed: int = 0) -> pd.DataFrame:
    """Return how much attention a captioner pays to the object that a word is about, on newly drawn scenes.

    The words are the color of the jacket (object: the pedestrian) and the motion of the vehicle (object: the vehicle).
    Columns: `in_box`, the share of attention inside the box of the object at the end of the phase; `box`, the share of
    the image that the box covers; `times`, their quotient.
    """
    from beit3lib.viz.attention import word_attention

    rng, rows = np.random.default_rng(seed), []
    for _ in range(scenes):
        scene, camera = Scene(**draw_values(rng)), draw_camera(rng)
        image = draw_blur(scene, camera)
        vehicle, pedestrian = boxes_at(scene, 1.0)
        for name, subject, aspect, words, (left, top, right, bottom) in (
            ("color of the jacket", "pedestrian", "pedestrian_description", UPPER, pedestrian),
            ("motion of the vehicle", "vehicle", "moving", ("stopped", "slowly", "fast"), vehicle),
        ):
            found = word_attention(captioner, image, subject, aspect, words)
            if found is not None:
                box = (left + camera.shift_x, top + camera.shift_y, right - left, bottom - top)
                rows.append((name, share_in_box(found.weights.numpy(), box, (UNITS, UNITS)), box[2] * box[3] / UNITS**2))
    table = pd.DataFrame(rows, columns=["word", "in_box", "box"]).groupby("word").mean()
    return table.assign(times=table["in_box"] / table["box"])
