"""Compare captions of the sample with the facts of the drawn scenes, and locate attention."""

from pathlib import Path

import numpy as np
import pandas as pd

from beit3lib.data.facts import agree, fact_table, stated_values
from beit3lib.files import FileError, read_json
from beit3lib.sample import DRAWN_NAME
from beit3lib.sample.draw import (
    UNITS,
    UPPER,
    Scene,
    boxes_at,
    describe,
    draw_blur,
    draw_camera,
    draw_values,
)

Truth = dict[tuple[str, int], Scene]  # by (scenario, phase)

MOTIONS = {
    "stopped": {"motion": "stopped", "speed_kmh": 0},
    **{
        name: {"motion": "straight", "speed": name, "speed_kmh": km_h}
        for name, km_h in {"slow": 10, "fast": 30}.items()
    },
    "standing": {"motion": "standing"},
    "walking": {"motion": "walking", "speed": "slow"},
    "rushing": {"motion": "rushing out"},
}
# Slots and values that a correct caption may leave out, as those of the sample do.
OPTIONAL = ("light", "lower_garment", "lower_color", "distance", "sidewalk", "speed_kmh", "straight")


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


def scene_facts(scene: Scene, subject: str, aspect: str) -> dict[str, str | int]:
    """Return the facts that captions of a type state of a scene: {slot: value}, empty if they do not mention
    the aspect.

    The position is the side of the vehicle in captions of the pedestrian, too.
    """
    if aspect not in describe(scene, subject):
        return {}
    clothes = {"upper_garment": "jacket", "upper_color": scene.upper}
    clothes |= {"lower_garment": "slacks", "lower_color": scene.lower}
    road = {"road_type": "residential", "ways": scene.lanes.removesuffix("-way")}
    return {
        "moving": MOTIONS[getattr(scene, f"{subject}_motion")],
        "pedestrian_description": clothes,
        "position": {"position": scene.side, "distance": scene.distance},
        "road": road | {"surface": scene.surface, "sidewalk": scene.sidewalk},
        "weather": {"weather": scene.weather, "light": scene.light},
    }[aspect]


def states_correctly(caption: str, scene: Scene, subject: str, aspect: str) -> bool:
    """Return whether a caption states the facts of a scene and nothing else, or is empty if there are none.

    Optional facts may be left out. Every value counts if a caption states several of a slot.
    """
    if not (facts := scene_facts(scene, subject, aspect)):
        return not caption.strip()
    stated = stated_values(caption, subject)
    complete = all(slot in stated or slot in OPTIONAL or value in OPTIONAL for slot, value in facts.items())
    return complete and all(
        agree(slot, facts[slot], value) for slot in facts for value in stated.get(slot, ())
    )


def scene_table(predictions: pd.DataFrame, drawn: Truth) -> pd.DataFrame:
    """Return a row per caption and slot as `fact_table` does, with the drawn scene as `reference` and its
    `condition`.

    `predictions` has a row per caption with scenario, phase, subject, aspect and caption; others than drawn
    are skipped.
    """
    known = _with_scenes(predictions, drawn)
    types = zip(known["scene"], known["subject"], known["aspect"], strict=True)
    table = fact_table(known.assign(reference=[scene_facts(*row) for row in types]))
    return table.assign(condition=[known.at[number, "scene"].condition for number in table.index])


def _with_scenes(predictions: pd.DataFrame, drawn: Truth) -> pd.DataFrame:
    keys = zip(predictions["scenario"], predictions["phase"], strict=True)
    return predictions.assign(scene=[drawn.get(key) for key in keys]).dropna(subset=["scene"])


def attribute_shares(predictions: pd.DataFrame, drawn: Truth, seed: int = 0) -> pd.DataFrame:
    """Return per aspect the share of captions that state the drawn values.

    Columns: `own`, compared with the image of the caption; `plain` and `hard`, the same for scenes of good
    and of low visibility (NaN if there are none); `shuffled`, compared with the image of another scenario;
    `captions`, their number. `predictions` as in `scene_table`.
    """
    table = _with_scenes(predictions, drawn)
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
    """Return the share of attention weights (rows, columns) inside a box of an image of `size` (width,
    height).

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

    The words are the color of the jacket (object: the pedestrian) and the motion of the vehicle (object: the
    vehicle). Columns: `in_box`, the share of attention inside the box of the object at the end of the phase;
    `box`, the share of the image that the box covers; `times`, `in_box` divided by `box`.
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
