"""Compare captions of the sample with the facts of the drawn scenes, and locate attention."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from beit3lib.data.facts import agree, fact_table, stated_values
from beit3lib.data.schema import SUBJECTS
from beit3lib.files import read_json
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
    "slow": {"motion": "straight", "speed": "slow", "speed_kmh": 10},
    "fast": {"motion": "straight", "speed": "fast", "speed_kmh": 30},
    "standing": {"motion": "standing"},
    "walking": {"motion": "walking", "speed": "slow"},
    "rushing": {"motion": "rushing out"},
}
# Slots and values that a correct caption may leave out, as those of the sample do.
OPTIONAL = ("light", "lower_garment", "lower_color", "distance", "sidewalk", "speed_kmh", "straight")


def read_drawn(root: str | Path) -> Truth:
    """Read the drawn values of every phase of a sample: {(scenario, phase): Scene}."""
    scenarios = read_json(Path(root) / DRAWN_NAME, dict).items()
    return {
        (name, int(phase)): Scene(**drawn) for name, phases in scenarios for phase, drawn in phases.items()
    }


def scene_facts(scene: Scene, subject: str, aspect: str) -> dict[str, str | int]:
    """Return the facts {slot: value} that captions of a type state of a scene; {} if they skip the aspect.

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
    facts, stated = scene_facts(scene, subject, aspect), stated_values(caption, subject)
    if not facts:
        return not caption.strip()
    complete = all(slot in stated or slot in OPTIONAL or value in OPTIONAL for slot, value in facts.items())
    return complete and all(
        agree(slot, facts[slot], value) for slot in facts for value in stated.get(slot, ())
    )


def scene_table(predictions: pd.DataFrame, drawn: Truth) -> pd.DataFrame:
    """Return the `fact_table` of captions with the drawn scenes as references, and their `condition`.

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
    rng, rows = np.random.default_rng(seed), {}
    for aspect, group in table.groupby("aspect"):
        names, scenes = group["scenario"].to_numpy(), group["scene"].to_numpy()
        others = [np.flatnonzero(names != name) for name in names]
        shuffled = [scenes[rng.choice(other)] if len(other) else scenes[0] for other in others]
        own = _are_correct(group, scenes)
        hard = group["scene"].map(lambda scene: scene.condition != "plain")
        shares = {"own": own, "plain": own[~hard], "hard": own[hard]}
        shares["shuffled"] = _are_correct(group, shuffled)
        rows[aspect] = {name: part.mean() for name, part in shares.items()} | {"captions": len(group)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("aspect")


def _are_correct(captions: pd.DataFrame, scenes: Iterable[Scene]) -> pd.Series:
    rows = zip(captions["caption"], scenes, captions["subject"], captions["aspect"], strict=True)
    return pd.Series([states_correctly(*row) for row in rows], captions.index)


def share_in_box(
    weights: np.ndarray, box_xywh: tuple[float, float, float, float], size: tuple[float, float]
) -> float:
    """Return the share of attention weights (rows, columns) in a box of an image of `size` (width, height).

    A patch on the edge of the box counts in proportion to its area inside.
    """

    def covered(patches: int, start: float, extent: float, length: float) -> np.ndarray:
        """Return the share of each patch of an axis that is inside the box."""
        edges = np.linspace(0, length, patches + 1).clip(start, start + extent)
        return np.diff(edges) * patches / length

    x, y, width, height = box_xywh
    inside = np.outer(
        covered(weights.shape[0], y, height, size[1]), covered(weights.shape[1], x, width, size[0])
    )
    return float((inside * weights).sum() / weights.sum())


def attention_shares(captioner, scenes: int = 50, seed: int = 0) -> pd.DataFrame:
    """Return the share of a captioner's attention on the object that a word describes, in newly drawn scenes.

    The words are the color of the jacket (object: the pedestrian) and the motion of the vehicle (object: the
    vehicle). Columns: `in_box`, the share of attention inside the box of the object at the end of the phase;
    `box`, the share of the image that the box covers; `times`, `in_box` divided by `box`.
    """
    from beit3lib.viz.attention import word_attention

    rng, rows = np.random.default_rng(seed), []
    words = {
        "color of the jacket": ("pedestrian", "pedestrian_description", UPPER),
        "motion of the vehicle": ("vehicle", "moving", ("stopped", "slowly", "fast")),
    }
    for _ in range(scenes):
        scene, camera = Scene(**draw_values(rng)), draw_camera(rng)
        image, shift = draw_blur(scene, camera), [camera.shift_x, camera.shift_y] * 2
        boxes = dict(zip(SUBJECTS, boxes_at(scene, 1.0) + shift, strict=True))
        for name, (subject, *kind) in words.items():
            if found := word_attention(captioner, image, subject, *kind):
                left, top, right, bottom = boxes[subject]
                box = (left, top, right - left, bottom - top)
                share = share_in_box(found.weights.numpy(), box, (UNITS, UNITS))
                rows.append((name, share, box[2] * box[3] / UNITS**2))
    table = pd.DataFrame(rows, columns=["word", "in_box", "box"]).groupby("word").mean()
    return table.assign(times=table["in_box"] / table["box"])
