"""Ask multiple-choice questions about the drawn scenes, in files like those of WTS.

Options are words of the captions, so that the tiny model knows them. Some questions of val and test word
their options as no training question does, "fast" instead of "going fast", because options that were never
seen occur in WTS, too.
"""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from beit3lib.data.schema import PHASES
from beit3lib.files import write_json

QUESTIONS = {  # {attribute of a scene: (question, values)}
    "pedestrian_motion": ("What is the pedestrian doing?", "standing walking rushing"),
    "vehicle_motion": ("What is the speed of the vehicle?", "stopped slow fast"),
    "side": ("On what side of the pedestrian is the vehicle?", "left right"),
    "distance": ("How far is the vehicle from the pedestrian?", "near far"),
    "upper": ("What is the color of the jacket?", "red yellow blue white"),
    "lower": ("What is the color of the slacks?", "black green beige"),
    "weather": ("What is the weather?", "clear cloudy rainy"),
    "light": ("What is the brightness?", "bright dark"),
    "surface": ("What is the road surface?", "asphalt gravel"),
    "lanes": ("Is the road one-way or two-way?", "one-way two-way"),
    "sidewalk": ("Where is the sidewalk?", "both no"),
}
# Of values that are not options themselves.
OPTIONS = {"standing": "standing still", "walking": "walking slowly", "rushing": "rushing out"}
OPTIONS |= {"slow": "going slowly", "fast": "going fast", "near": "close"}
OPTIONS |= {"both": "on both sides", "no": "no sidewalk"}
# Options that are never in train, in three of ten questions of val and test that could have them.
NEW_OPTIONS = {name: name for name in ("standing", "walking", "rushing", "fast")}
NEW_OPTIONS |= {"slow": "slowly", "both": "both sides"}
NEW_SHARE = 0.3
OF_VIEW = {"overhead_view": ("pedestrian_motion",), "vehicle_view": ("vehicle_motion", "side", "distance")}


def answer_of(scene: Any, question: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option that is true of a `draw.Scene`."""
    value = getattr(scene, next(name for name, (text, _) in QUESTIONS.items() if text == question))
    true = (OPTIONS.get(value, value), NEW_OPTIONS.get(value))
    return next(letter for letter, text in options.items() if text in true)


def ask(scenario: Any, attribute: str, phase: int) -> dict[str, str]:
    """Return a question about a phase of a `draw.Scenario`; in the test split without the correct letter."""
    rng = np.random.default_rng((scenario.seed, list(QUESTIONS).index(attribute), phase))
    true, (question, values) = getattr(scenario.phases[phase], attribute), QUESTIONS[attribute]
    texts = OPTIONS | (NEW_OPTIONS if scenario.split != "train" and rng.random() < NEW_SHARE else {})
    wrong = [value for value in rng.permutation(values.split()) if value != true]
    wrong = wrong[: 1 + rng.integers(len(wrong))] if rng.random() < 0.25 else wrong
    shown = rng.permutation([true, *wrong]).tolist()
    options = {letter: texts.get(value, value) for letter, value in zip("abcd", shown, strict=False)}
    if scenario.split == "test":
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{scenario.name}/{attribute}/{phase}"))
        return {"id": identity, "question": question, **options}
    return {"question": question, **options, "correct": "abcd"[shown.index(true)]}


def question_files(scenario: Any) -> Iterator[tuple[str, dict]]:
    """Yield the view and the object of each file of a scenario; a single view has all questions."""
    views, about = list(scenario.views()), {"id": scenario.seed % 1000}
    key, of_scenario = "overhead_videos", "environment"
    if scenario.kind == "bdd":
        views, key = [("overhead_view", [f"{scenario.name}.mp4"], 0.0)], "videos"
    if scenario.split == "test":
        about, key, of_scenario = {}, "videos", "conversations"
    of_phase = [name for names in OF_VIEW.values() for name in names]
    for view, videos, start_s in views:
        names, phases = OF_VIEW[view] if len(views) > 1 else of_phase, []
        for phase, (start, end) in reversed(scenario.times(start_s).items()):
            asked = [ask(scenario, name, phase) for name in names]
            times = {"start_time": f"{start:.3f}", "end_time": f"{end:.3f}"}
            phases.append({**times, "labels": [PHASES[phase]], "conversations": asked})
        yield view, {**about, key: list(videos), "event_phase": phases}
    asked = [ask(scenario, name, max(scenario.phases)) for name in QUESTIONS if name not in of_phase]
    yield "environment", {**about, key: list(views[0][1]), of_scenario: asked}


def write_questions(root: Path, scenarios: list) -> None:
    """Write a file for each scenario of train and val and each view, and one file for the test split."""
    of_test = []
    for scenario in scenarios:
        base = root / "external/BDD_PC_5K" if scenario.kind == "bdd" else root
        trimmed = "normal_trimmed" if scenario.kind == "normal" else ""
        for view, content in question_files(scenario):
            folder = base / "annotations/vqa" / scenario.split / trimmed / scenario.name / view
            if scenario.split == "test":
                of_test.append(content)
            else:
                write_json(folder / f"{scenario.name}.json", [content])
    write_json(root / "SubTask2-VQA/WTS_VQA_PUBLIC_TEST.json", of_test)
