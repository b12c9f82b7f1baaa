"""Compare captions of the sample with the drawn values: read attributes from captions, and locate attention."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from beit3lib.files import FileError, read_json
from beit3lib.sample import DRAWN_NAME
from beit3lib.sample.draw import (
    FACTS,
    GAPS,
    UNITS,
    UPPER,
    VALUES,
    WORDINGS,
    Scene,
    boxes_at,
    describe,
    draw_blur,
    draw_camera,
    draw_values,
)

Truth = dict[tuple[str, int], Scene]  # by (scenario, phase)

ATTRIBUTES = {  # that the captions of an aspect state
    "moving": ("vehicle_motion", "pedestrian_motion"),
    "pedestrian_description": ("upper", "lower"),
    "position": ("side", "distance"),
    "road": ("surface", "lanes", "sidewalk"),
    "weather": ("weather", "light"),
}
LABELS = {
    "upper": "color of the jacket",
    "lower": "color of the slacks",
    "side": "side of the vehicle",
}  # in figures
OPTIONAL = ("light", "lower", "distance", "sidewalk")  # a correct caption may leave them out
PATTERNS = {name: {value: rf"\b{value}\b" for value in values} for name, values in VALUES.items()} | {
    "vehicle_motion": {
        "stopped": r"stopped|\b0 km/h",
        "slow": r"slowly|\b10 km/h",
        "fast": r"\bfast|\b30 km/h",
    },
    "side": {side: rf"\b{side} side\b" for side in VALUES["side"]},
    "distance": {name: rf"\b{words}\b" for name, words in GAPS.items()},
    "sidewalk": {"both": r"\bsidewalks on both\b", "no": r"\bno sidewalk\b"},
}


def read_drawn(root: str | Path) -> Truth:
    """Read the drawn values of every phase of a sample: {(scenario, phase): Scene}."""
    path = Path(root) / DRAWN_NAME
    scenarios = read_json(path, dict).items()
    try:
        return {
            (name, int(phase)): Scene(**values)
            for name, phases in scenarios
            for phase, values in phases.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise FileError(
            f"{path}: expected {{scenario: {{phase: values}}}}, found {error}. Draw the sample again."
        ) from None


def stated_attributes(subject: str, aspect: str) -> tuple[str, ...]:
    """Return the attributes that a caption type states; of the motions only that of its own subject."""
    return (f"{subject}_motion",) if aspect == "moving" else ATTRIBUTES[aspect]


def read_attributes(caption: str, subject: str, aspect: str) -> dict[str, str | None]:
    """Return the value that a caption states of each attribute: None if it states none, "several" if more than one."""
    stated: dict[str, str | None] = {}
    for name in stated_attributes(subject, aspect):
        values = [value for value in VALUES[name] if re.search(PATTERNS[name][value], caption)]
        stated[name] = "several" if len(values) > 1 else values[0] if values else None
    return stated


def states_correctly(caption: str, scene: Scene, subject: str, aspect: str) -> bool:
    """Return whether a caption states the drawn values, or is empty if the captions of the scene do not mention the aspect.

    Optional attributes may be left out, as in the captions of the sample.
    """
    if aspect not in describe(scene, subject):
        return not caption.strip()
    stated = read_attributes(caption, subject, aspect)
    return all(
        value == getattr(scene, name) or (value is None and name in OPTIONAL)
        for name, value in stated.items()
    )


def has_sample_wording(caption: str, subject: str, aspect: str) -> bool:
    """Return whether a caption consists of wordings of the sample, with any values; an empty caption does."""
    values = {name: "|".join(choices) for name, choices in VALUES.items()}
    values |= {"gap": "|".join(GAPS.values()), "surface": "an asphalt|a gravel"}
    forms = [form for fact in FACTS[subject, aspect] for forms in WORDINGS[fact].values() for form in forms]
    forms = "|".join(form.replace(".", r"\.").replace("{", "(?:{").replace("}", "})") for form in forms)
    return bool(re.fullmatch(f"(?:(?:{forms.format(**values)})(?: |$))*", caption))


def omitted_facts(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return per optional attribute the share of `captions` and of `references` that do not state it."""
    rows = []
    for row in predictions[predictions["reference"].fillna("") != ""].itertuples(index=False):
        caption, reference = (
            read_attributes(text, row.subject, row.aspect) for text in (row.caption, row.reference)
        )
        rows += [
            (name, caption[name] is None, reference[name] is None) for name in caption if name in OPTIONAL
        ]
    return pd.DataFrame(rows, columns=["attribute", "captions", "references"]).groupby("attribute").mean()


def attribute_table(predictions: pd.DataFrame, drawn: Truth) -> pd.DataFrame:
    """Return a row per caption and attribute of its aspect: aspect, attribute, condition, drawn and stated.

    `predictions` has a row per caption with scenario, phase, subject, aspect and caption. `condition` is that of the scene.
    `stated` is "nothing" if the caption lacks an attribute; optional attributes that are left out have no row.
    """
    rows = []
    for row in predictions.itertuples(index=False):
        scene = drawn.get((row.scenario, row.phase))
        if scene is not None and row.aspect in describe(scene, row.subject):
            for name, value in read_attributes(row.caption, row.subject, row.aspect).items():
                if value is not None or name not in OPTIONAL:
                    rows.append((row.aspect, name, scene.condition, getattr(scene, name), value or "nothing"))
    return pd.DataFrame(rows, columns=["aspect", "attribute", "condition", "drawn", "stated"])


def attribute_shares(predictions: pd.DataFrame, drawn: Truth, seed: int = 0) -> pd.DataFrame:
    """Return per aspect the share of captions that state the drawn values.

    Columns: `own`, compared with the image of the caption; `plain` and `hard`, the same for scenes of good and of low
    visibility (NaN if there are none); `shuffled`, compared with the image of another scenario; `captions`, their number.
    `predictions` as in `attribute_table`.
    """
    keys = list(zip(predictions["scenario"], predictions["phase"], strict=True))
    table = predictions.assign(scene=[drawn.get(key) for key in keys]).dropna(subset=["scene"])
    rng = np.random.default_rng(seed)
    rows = {}
    for aspect, group in table.groupby("aspect"):
        names, scenes = group["scenario"].to_numpy(), group["scene"].tolist()
        others = [np.flatnonzero(names != name) for name in names]
        shuffled = [scenes[rng.choice(other)] if len(other) else scenes[0] for other in others]
        correct, hard = (
            _are_correct(group, scenes),
            np.array([scene.condition != "plain" for scene in scenes]),
        )
        rows[aspect] = {
            "own": _mean(correct),
            "plain": _mean(correct[~hard]),
            "hard": _mean(correct[hard]),
            "shuffled": _mean(_are_correct(group, shuffled)),
            "captions": len(group),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("aspect")


def _are_correct(captions: pd.DataFrame, scenes: list[Scene]) -> np.ndarray:
    rows = zip(captions["caption"], scenes, captions["subject"], captions["aspect"], strict=True)
    return np.array([states_correctly(*row) for row in rows])


def _mean(correct: np.ndarray) -> float:
    return float(correct.mean()) if len(correct) else float("nan")


def share_in_box(
    weights: np.ndarray, box_xywh: tuple[float, float, float, float], size: tuple[float, float]
) -> float:
    """Return the share of attention weights (rows, columns) inside a box of an image of `size` (width, height).

    A patch on the edge of the box counts in proportion to its area inside.
    """
    weights = np.asarray(weights, float)
    x, y, width, height = box_xywh
    inside = []
    for cells, low, high, length in (
        (weights.shape[0], y, y + height, size[1]),
        (weights.shape[1], x, x + width, size[0]),
    ):
        edges = np.linspace(0, length, cells + 1)
        inside.append(
            np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells / length
        )
    return float(inside[0] @ weights @ inside[1] / weights.sum())


def attention_shares(captioner, scenes: int = 50, seed: int = 0) -> pd.DataFrame:
    """Return the share of a captioner's attention on the object that a word describes, in newly drawn scenes.

    The words are the color of the jacket (object: the pedestrian) and the motion of the vehicle (object: the vehicle).
    Columns: `in_box`, the share of attention inside the box of the object at the end of the phase; `box`, the share of
    the image that the box covers; `times`, `in_box` divided by `box`.
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
                rows.append(
                    (
                        name,
                        share_in_box(found.weights.numpy(), box, (UNITS, UNITS)),
                        box[2] * box[3] / UNITS**2,
                    )
                )
    table = pd.DataFrame(rows, columns=["word", "in_box", "box"]).groupby("word").mean()
    return table.assign(times=table["in_box"] / table["box"])
