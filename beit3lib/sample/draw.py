"""The sample: a miniature WTS download, drawn, with a sentencepiece model and a tiny pretrained checkpoint.

    python -m beit3lib.sample.draw data/sample             draw the download: videos, captions, boxes, weights
    python -m beit3lib.sample.draw --pretrain FOLDER       make the tokenizer and the checkpoint again (15 minutes)

Every caption says what can be seen: weather and light, road, clothing, who stands where, and, through the motion blur,
how both move. It holds no picture or word of the real WTS.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from beit3lib.data.aspects import READING_ORDER
from beit3lib.files import atomic_folder, atomic_path, in_one_sentence, write_json

WEIGHTS = Path(__file__).parent / "pretrained"
SPM_PATH = WEIGHTS / "sample.spm"
CHECKPOINT_PATH = WEIGHTS / "beit3_tiny_patch8_64.pth"
MODEL = "beit3_tiny_patch8_64"

UNITS = 8  # the picture is 8 x 8 units: a patch of the tiny model each
WIDTH_PX, HEIGHT_PX = 320, 240
FRAMES_PER_S = 10

SKY = {"clear": (108, 176, 235), "cloudy": (176, 180, 186), "rainy": (116, 128, 146)}
CLOTHES = {
    "red": (214, 40, 40),
    "yellow": (245, 205, 40),
    "blue": (45, 85, 215),
    "white": (245, 245, 245),
    "black": (24, 24, 28),
    "green": (40, 150, 70),
    "beige": (216, 182, 130),
}
UPPER, LOWER = ("red", "yellow", "blue", "white"), ("black", "green", "beige")
SURFACE = {"asphalt": (92, 94, 100), "gravel": (176, 148, 112)}
VEHICLES = ((188, 104, 200), (96, 200, 205), (240, 140, 60))  # seen, never said
SPEED_KMH = {"stopped": 0, "slow": 10, "fast": 30}
TRAIL_UNITS = {"stopped": 0.0, "slow": 1.1, "fast": 3.2}
WALK_UNITS = {"standing": 0.0, "walking": 0.9, "rushing": 2.4}


@dataclass(frozen=True)
class Scene:
    """What one phase shows, and its captions say."""

    weather: str = "clear"
    light: str = "bright"
    surface: str = "asphalt"
    lanes: str = "two-way"
    sidewalk: str = "both"
    upper: str = "red"
    lower: str = "black"
    side: str = "left"  # where the vehicle is, seen from the pedestrian
    distance: str = "near"
    vehicle_motion: str = "stopped"
    pedestrian_motion: str = "standing"


VALUES: dict[str, tuple[str, ...]] = {
    "weather": tuple(SKY),
    "light": ("bright", "dark"),
    "surface": tuple(SURFACE),
    "lanes": ("one-way", "two-way"),
    "sidewalk": ("both", "no"),
    "upper": UPPER,
    "lower": LOWER,
    "side": ("left", "right"),
    "distance": ("near", "far"),
    "vehicle_motion": tuple(TRAIL_UNITS),
    "pedestrian_motion": tuple(WALK_UNITS),
}
ATTRIBUTES = {  # what the captions of an aspect state
    "moving": ("vehicle_motion", "pedestrian_motion"),
    "pedestrian_description": ("upper", "lower"),
    "position": ("side", "distance"),
    "road": ("surface", "lanes", "sidewalk"),
    "weather": ("weather", "light"),
}
IN_WORDS = {"upper": "colour of the jacket", "lower": "colour of the slacks", "side": "side of the vehicle"}  # where unclear
OF_PHASE = ("side", "distance", "vehicle_motion", "pedestrian_motion")  # the others hold for a whole scenario


def draw_values(rng: np.random.Generator, names=tuple(VALUES)) -> dict[str, str]:
    """Values for attributes, each drawn on its own."""
    return {name: str(rng.choice(VALUES[name])) for name in names}


# --- words ---------------------------------------------------------------------------------------------------------

VEHICLE_MOVES = {
    "stopped": "The vehicle has stopped and its speed is 0 km/h.",
    "slow": "The vehicle is going straight ahead slowly at a speed of 10 km/h.",
    "fast": "The vehicle is going straight ahead fast at a speed of 30 km/h.",
}
PEDESTRIAN_MOVES = {
    "standing": "The pedestrian is standing still and looking at the vehicle.",
    "walking": "The pedestrian is walking slowly towards the vehicle.",
    "rushing": "The pedestrian is rushing out towards the vehicle.",
}
SIDEWALKS = {"both": "There are sidewalks on both sides.", "no": "There is no sidewalk on either side."}
SURFACE_WORDS = {"asphalt": "an asphalt", "gravel": "a gravel"}
DISTANCES = {"near": "close to", "far": "far from"}


def describe(scene: Scene, subject: str) -> dict[str, str]:
    """The sentences of each aspect, as the caption of `subject` puts them; an aspect it leaves out is absent.

    In the dark nobody sees from the vehicle what the pedestrian wears, and the vehicle's caption does not say it.
    """
    vehicle = subject == "vehicle"
    side, gap, surface = scene.side, DISTANCES[scene.distance], SURFACE_WORDS[scene.surface]
    stands = f"The vehicle is positioned on the {side} side of the pedestrian, {gap} it."
    sees = f"The pedestrian has the vehicle on the {side} side and is {gap} it."
    parts = {
        "position": stands if vehicle else sees,
        "moving": VEHICLE_MOVES[scene.vehicle_motion] if vehicle else PEDESTRIAN_MOVES[scene.pedestrian_motion],
        "pedestrian_description": f"The pedestrian wears a {scene.upper} jacket and {scene.lower} slacks.",
        "road": f"The road is a {scene.lanes} residential road with {surface} surface. {SIDEWALKS[scene.sidewalk]}",
        "weather": f"The weather is {scene.weather} and the brightness is {scene.light}.",
    }
    if vehicle and scene.light == "dark":
        del parts["pedestrian_description"]
    return parts


def full_caption(scene: Scene, subject: str) -> str:
    """All sentences in the order in which the caption of `subject` has them."""
    parts = describe(scene, subject)
    return " ".join(parts[aspect] for aspect in READING_ORDER[subject] if aspect in parts)


PATTERNS = {
    "vehicle_motion": {"stopped": r"\b0 km/h", "slow": r"\b10 km/h", "fast": r"\b30 km/h"},
    "pedestrian_motion": {"standing": r"standing still", "walking": r"walking slowly", "rushing": r"rushing out"},
    "upper": {colour: rf"\b{colour} jacket" for colour in UPPER},
    "lower": {colour: rf"\b{colour} slacks" for colour in LOWER},
    "side": {side: rf"\b{side} side\b" for side in VALUES["side"]},
    "distance": {name: rf"\b{words} it\b" for name, words in DISTANCES.items()},
    "surface": {kind: rf"\b{kind} surface" for kind in SURFACE},
    "lanes": {kind: rf"\b{kind} residential" for kind in VALUES["lanes"]},
    "sidewalk": {"both": r"are sidewalks on both", "no": r"is no sidewalk"},
    "weather": {kind: rf"weather is {kind}" for kind in SKY},
    "light": {kind: rf"brightness is {kind}" for kind in VALUES["light"]},
}


def read_attributes(caption: str, subject: str, aspect: str) -> dict[str, str | None]:
    """The attributes that a caption states, read back from its words; None where it states none, or two at once."""
    stated = {}
    for name in stated_attributes(subject, aspect):
        said = [value for value in VALUES[name] if re.search(PATTERNS[name][value], caption)]
        stated[name] = said[0] if len(said) == 1 else None
    return stated


def stated_attributes(subject: str, aspect: str) -> tuple[str, ...]:
    """The attributes that this description states: each subject's own motion, all of the other aspects."""
    if aspect == "moving":
        return (f"{subject}_motion",)
    return ATTRIBUTES[aspect]


def states_correctly(caption: str, scene: Scene, subject: str, aspect: str) -> bool:
    """True where a caption states every attribute as drawn; where the aspect is absent, where it says nothing."""
    if aspect not in describe(scene, subject):
        return not caption.strip()
    stated = read_attributes(caption, subject, aspect)
    return all(value == getattr(scene, name) for name, value in stated.items())


def attribute_shares(predictions, drawn: dict[tuple[str, int], Scene], seed: int = 0):
    """Per aspect, the share of captions that state every attribute as drawn, as a pandas table.

    `predictions`: a row per caption with scenario, phase, subject, aspect, caption. Columns: `own` image; `shuffled`,
    the images exchanged among scenarios; `chance`, what guessing by frequency gives; `captions`.
    """
    import pandas as pd

    table = predictions[[key in drawn for key in zip(predictions["scenario"], predictions["phase"], strict=True)]]
    rows = {}
    for aspect, group in table.groupby("aspect"):
        scenes = [drawn[key] for key in zip(group["scenario"], group["phase"], strict=True)]
        others = _exchange(group["scenario"].tolist(), scenes, seed)
        said = list(zip(group["caption"], group["subject"], strict=True))
        rows[aspect] = {
            "own": _share(said, scenes, aspect),
            "shuffled": _share(said, others, aspect),
            "chance": _chance(group["subject"], scenes, aspect),
            "captions": len(group),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("aspect")


def _share(said: list[tuple[str, str]], scenes: list[Scene], aspect: str) -> float:
    pairs = zip(said, scenes, strict=True)
    return float(np.mean([states_correctly(caption, scene, subject, aspect) for (caption, subject), scene in pairs]))


def _exchange(scenarios: list[str], scenes: list[Scene], seed: int) -> list[Scene]:
    """To each place the scene of a row that is of another scenario."""
    rng = np.random.default_rng(seed)
    names = np.array(scenarios)
    return [scenes[rng.choice(np.flatnonzero(names != name))] if (names != name).any() else scenes[0] for name in names]


def _chance(subjects, scenes: list[Scene], aspect: str) -> float:
    """Two captions drawn at random say the same: the sum of squared frequencies of what is said, per subject."""
    shares = []
    for subject in sorted(set(subjects)):
        said = [describe(scene, subject).get(aspect) for scene, s in zip(scenes, subjects, strict=True) if s == subject]
        counts = np.array([said.count(text) for text in set(said)])
        shares.append(((counts / counts.sum()) ** 2).sum())
    return float(np.mean(shares))


# --- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """What differs between recordings of the same scene: offsets in units, gain of the light, paint of the vehicle."""

    shift_x: float
    shift_y: float
    gain: float
    paint: int
    seed: int
    vehicle_view: bool = False


def draw_camera(rng: np.random.Generator, vehicle_view: bool = False, paint: int | None = None) -> Camera:
    """A recording's own way of seeing; `paint` where it is not the first of its scenario."""
    return Camera(
        shift_x=float(rng.uniform(-0.25, 0.25)),
        shift_y=float(rng.uniform(-0.15, 0.15)),
        gain=float(rng.uniform(0.88, 1.1)),
        paint=int(rng.integers(len(VEHICLES))) if paint is None else paint,
        seed=int(rng.integers(2**31)),
        vehicle_view=vehicle_view,
    )


def draw_frames(scene: Scene, camera: Camera, count: int, size=(WIDTH_PX, HEIGHT_PX)) -> Iterator[np.ndarray]:
    """The frames of a phase, uint8 (height, width, 3); in the last, both are where the captions say they are."""
    background = _draw_background(scene, camera, size)
    light = _light(scene, camera, size)
    for number in range(count):
        canvas = Canvas(background.copy(), camera)
        time = number / (count - 1) if count > 1 else 1.0
        _draw_vehicle(canvas, scene, camera, time)
        _draw_pedestrian(canvas, scene, time)
        if camera.vehicle_view:
            canvas.fixed_box((0, 7.55, 8, 8), (26, 28, 34))  # the bonnet, in the lowest half unit
        yield light(canvas.image)


def _draw_background(scene: Scene, camera: Camera, size) -> Image.Image:
    rng = np.random.default_rng(camera.seed)
    canvas = Canvas(Image.new("RGB", size), camera)
    _draw_sky(canvas, scene, rng)
    _draw_road(canvas, scene, rng)
    return canvas.image


def _light(scene: Scene, camera: Camera, size):
    """What the light of the scene and the sensor of the camera make of a drawing."""
    dark = scene.light == "dark"
    gain = np.array([0.44, 0.46, 0.56] if dark else [1, 1, 1], np.float32) * np.float32(camera.gain)
    noise = np.random.default_rng(camera.seed).normal(0, 4, (size[1], size[0], 1)).astype(np.float32)
    return lambda image: (np.asarray(image) * gain + noise).clip(0, 255).astype(np.uint8)


class Canvas:
    """A picture that is drawn on in units."""

    def __init__(self, image: Image.Image, camera: Camera) -> None:
        self.image, self.pen = image, ImageDraw.Draw(image)
        self.camera, self.scale = camera, (image.width / UNITS, image.height / UNITS)

    def _px(self, box, shift: bool):
        dx, dy = (self.camera.shift_x, self.camera.shift_y) if shift else (0, 0)
        return [(v + (dx, dy)[i % 2]) * self.scale[i % 2] for i, v in enumerate(box)]

    def box(self, box, colour, radius: float = 0) -> None:
        """A box (left, top, right, bottom) in units, moved with the camera."""
        self.pen.rounded_rectangle(self._px(box, True), radius * self.scale[1], fill=colour)

    def fixed_box(self, box, colour) -> None:
        """A box that does not move with the camera."""
        self.pen.rectangle(self._px(box, False), fill=colour)

    def ellipse(self, box, colour) -> None:
        """An ellipse in its box."""
        self.pen.ellipse(self._px(box, True), fill=colour)

    def line(self, points, colour, width: float) -> None:
        """A line through points (x, y, x, y, …), `width` in units."""
        self.pen.line(self._px(points, True), fill=colour, width=max(1, round(width * self.scale[1])))


def _draw_sky(canvas: Canvas, scene: Scene, rng) -> None:
    canvas.fixed_box((0, 0, 8, 3), SKY[scene.weather])
    if scene.weather == "clear":
        x = rng.uniform(0.8, 6.2)
        canvas.ellipse((x, 0.25, x + 1.2, 1.65), (255, 236, 130))
    if scene.weather == "cloudy":
        for x in rng.uniform(-0.5, 7, 5):
            canvas.ellipse((x, 0.1 + x % 0.6, x + 2.2, 1.2 + x % 0.6), (226, 228, 232))
    if scene.weather == "rainy":
        for x in np.arange(-0.4, 8.4, 0.42) + rng.uniform(0, 0.4):
            canvas.line((x, 0.0, x - 0.35, 1.9), (206, 222, 246), 0.09)
    for x in np.arange(-1, 9, 1.5):  # houses behind the road: a skyline that says nothing
        height = rng.uniform(0.25, 0.6)
        canvas.box((x, 2.0 - height, x + 1.2, 2.2), (134, 124, 120))


def _draw_road(canvas: Canvas, scene: Scene, rng) -> None:
    verge = (214, 212, 206) if scene.sidewalk == "both" else (84, 140, 74)
    canvas.fixed_box((0, 2.1, 8, 8), verge)
    if scene.sidewalk == "both":
        for x in np.arange(-0.5, 9, 0.8):  # the joints of the paving
            canvas.line((x, 2.1, x, 2.95), (168, 166, 160), 0.06)
            canvas.line((x, 7.1, x, 8.2), (168, 166, 160), 0.06)
    canvas.box((-1, 2.95, 9, 7.05), SURFACE[scene.surface])
    if scene.surface == "gravel":
        for x, y in zip(rng.uniform(-0.5, 8.5, 160), rng.uniform(3.05, 6.85, 160), strict=True):
            canvas.ellipse((x, y, x + 0.13, y + 0.13), (146, 118, 86))
    if scene.lanes == "two-way":
        for x in np.arange(-0.6, 9, 1.6):
            canvas.box((x, 3.2, x + 1.1, 3.6), (250, 246, 220))


VEHICLE_UNITS, PEDESTRIAN_UNITS = (2.4, 1.9), (1.4, 3.5)
WAIST_UNITS = 2.0  # below the top of the head
GAP_UNITS = {"near": 0.2, "far": 2.2}


def places(scene: Scene, time: float) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes (left, top, right, bottom) in units of vehicle and pedestrian at a time of the phase."""
    gap, back = GAP_UNITS[scene.distance], 1 - time
    whole = VEHICLE_UNITS[0] + gap + PEDESTRIAN_UNITS[0]
    left = 4 - whole / 2 - back * TRAIL_UNITS[scene.vehicle_motion]
    vehicle = (left, 4.45, left + VEHICLE_UNITS[0], 4.45 + VEHICLE_UNITS[1])
    start = 4 + whole / 2 - PEDESTRIAN_UNITS[0] + back * WALK_UNITS[scene.pedestrian_motion]
    pedestrian = (start, 3.35, start + PEDESTRIAN_UNITS[0], 3.35 + PEDESTRIAN_UNITS[1])
    if scene.side == "right":
        vehicle, pedestrian = (_mirrored(box) for box in (vehicle, pedestrian))
    return vehicle, pedestrian


def _mirrored(box):
    return (UNITS - box[2], box[1], UNITS - box[0], box[3])


def _draw_vehicle(canvas: Canvas, scene: Scene, camera: Camera, time: float) -> None:
    (left, top, right, bottom), _ = places(scene, time)
    width = right - left
    canvas.box((left, top + 0.5, right, bottom - 0.2), VEHICLES[camera.paint], 0.15)
    canvas.box((left + 0.2 * width, top, right - 0.2 * width, top + 0.6), VEHICLES[camera.paint], 0.2)
    canvas.box((left + 0.27 * width, top + 0.12, right - 0.27 * width, top + 0.5), (60, 76, 96), 0.08)
    for x in (left + 0.18 * width, right - 0.38 * width):
        canvas.ellipse((x, bottom - 0.5, x + 0.2 * width, bottom), (20, 20, 22))


def _draw_pedestrian(canvas: Canvas, scene: Scene, time: float) -> None:
    _, (left, top, right, bottom) = places(scene, time)
    centre, waist = (left + right) / 2, top + WAIST_UNITS
    canvas.ellipse((centre - 0.34, top, centre + 0.34, top + 0.6), (226, 178, 146))
    canvas.box((left, top + 0.5, right, waist), CLOTHES[scene.upper], 0.12)
    canvas.box((left + 0.08, waist - 0.05, right - 0.08, bottom), CLOTHES[scene.lower], 0.06)


def draw_blur(scene: Scene, camera: Camera, frames: int = 8, size: int = 64) -> Image.Image:
    """The motion-blur image of a phase without a video between: what pretraining draws by the thousand."""
    drawn = draw_frames(scene, camera, frames, (160, 120))
    total = sum(np.float32(frame) * (number + 1) for number, frame in enumerate(drawn))
    picture = Image.fromarray((total / (frames * (frames + 1) / 2)).round().astype(np.uint8))
    return picture.resize((size, size), Image.Resampling.BICUBIC)


MOTION_WORDS = ("stopped", "slowly", "fast")


def attention_shares(model, scenes: int = 50, seed: int = 0):
    """How much of its attention a model gives to the thing that a word is about, on scenes drawn anew; a pandas table.

    For the colour of the jacket the pedestrian, for the motion of the vehicle the vehicle, where they stand in the end.
    Columns: `in_box`, share of attention inside the box; `box`, its share of the picture; `times`, their quotient.
    """
    import pandas as pd

    from beit3lib.viz.attention import word_attention
    from beit3lib.viz.figures import share_in_box

    rng, rows = np.random.default_rng(seed), []
    for _ in range(scenes):
        scene, camera = Scene(**draw_values(rng)), draw_camera(rng)
        picture = draw_blur(scene, camera, size=model.config.image_size)
        vehicle, pedestrian = places(scene, 1.0)
        asked = (
            ("colour of the jacket", "pedestrian", "pedestrian_description", UPPER, pedestrian),
            ("motion of the vehicle", "vehicle", "moving", MOTION_WORDS, vehicle),
        )
        for name, subject, aspect, words, (left, top, right, bottom) in asked:
            looked = word_attention(model, picture, subject, aspect, words)
            if looked is not None:
                box = (left + camera.shift_x, top + camera.shift_y, right - left, bottom - top)
                share = share_in_box(looked.weights.numpy(), box, (UNITS, UNITS))
                rows.append((name, share, box[2] * box[3] / UNITS**2))
    table = pd.DataFrame(rows, columns=["word", "in_box", "box"]).groupby("word").mean()
    return table.assign(times=table["in_box"] / table["box"])


# --- tokenizer and checkpoint --------------------------------------------------------------------------------------


def plain_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Short captions of a scene in other forms than the download's: what the checkpoint is pretrained on.

    Fine-tuning has something left to teach: full sentences, the two subjects, prefixes, and what is left unsaid.
    """
    side, gap = scene.side, DISTANCES[scene.distance]
    speed = {"stopped": "stopped", "slow": "going slowly", "fast": "going fast"}[scene.vehicle_motion]
    km_h = SPEED_KMH[scene.vehicle_motion]
    walk = {"standing": "standing still", "walking": "walking slowly", "rushing": "rushing out"}[scene.pedestrian_motion]
    paving = {"both": "sidewalks on both sides", "no": "no sidewalk"}[scene.sidewalk]
    forms = [
        (f"weather {scene.weather}, brightness {scene.light}", f"{scene.light}, {scene.weather}"),
        (f"{scene.upper} jacket and {scene.lower} slacks", f"pedestrian in {scene.lower} slacks, {scene.upper} jacket"),
        (f"vehicle on the {side} side, {gap}", f"{gap} the vehicle on the {side} side"),
        (f"vehicle {speed} at {km_h} km/h", f"{km_h} km/h, {speed}"),
        (f"pedestrian {walk}", f"{walk}"),
        (f"{scene.lanes} road, {scene.surface} surface, {paving}", f"{paving}, {scene.surface}, {scene.lanes}"),
    ]
    order = rng.permutation(len(forms))
    return [forms[i][rng.integers(2)] for i in order]


def train_spm(path: str | Path, vocab_size: int, scenes: int = 3000, seed: int = 0) -> Path:
    """Train the sample's sentencepiece model (unigram, as `beit3.spm`) on captions of drawn scenes."""
    import sentencepiece

    rng = np.random.default_rng(seed)
    drawn = [Scene(**draw_values(rng)) for _ in range(scenes)]
    lines = [line for scene in drawn for line in plain_captions(scene, rng)]
    lines += [full_caption(scene, subject) for scene in drawn for subject in ("vehicle", "pedestrian")]
    lines += [f"{subject} {aspect.replace('_', ' ')}:" for subject in ("vehicle", "pedestrian") for aspect in ATTRIBUTES]
    words = sorted({word.strip(".,:") for line in lines for word in line.split()})
    # the trainer only considers a piece that it meets in two different words: give every word a second form
    lines += [f"{word}{mark} {word}" for word in words for mark in ",.:;" for _ in range(50)]
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as writer:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=writer,
                vocab_size=vocab_size,
                model_type="unigram",
                required_chars="".join(map(chr, range(33, 127))),
                minloglevel=2,
            )
    return Path(path)


def pretrain(folder: str | Path, steps: int = 2400, batch_size: int = 32, seed: int = 0) -> dict:
    """Make the sample's tokenizer and checkpoint: a tiny BEiT-3 that has seen drawings, never a WTS-style caption.

    From captions alone so small a model needs hours to find where things stand. Linear probes on the values of the last
    layer are trained along, to tell for every patch what it shows (`patch_labels`); they are thrown away in the end.

    Writes `sample.spm` and, in the public format with half-precision weights, `beit3_tiny_patch8_64.pth`; returns the
    mean loss of the last steps and the seconds it took.
    """
    import time

    import torch
    import torch.nn.functional as F

    from beit3lib.model import Captioner, model_config
    from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer

    started = time.monotonic()
    torch.manual_seed(seed)
    config = model_config(MODEL)
    tokenizer = load_tokenizer(train_spm(Path(folder) / SPM_PATH.name, config.vocab_size - UNUSED_ROWS - 2))
    model = Captioner(config)
    _start_small(model)
    probe = torch.nn.Linear(config.width, sum(PROBE_CLASSES))
    parameters = [*model.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for step, (batch, shown) in enumerate(_drawn_batches(tokenizer, config.image_size, batch_size, steps, seed)):
        memory = model.encode_image(batch.images)
        logits = model(memory, batch.ids, batch.positions, batch.segments, batch.places)
        captions = F.cross_entropy(logits, batch.targets.flatten()[batch.places], label_smoothing=0.05)
        seen = probe(memory.values[-1].transpose(1, 2).flatten(2)[:, 1:])  # (B, patches, classes)
        parts = zip(seen.split(PROBE_CLASSES, -1), shown.unbind(-1), strict=True)
        looking = sum(F.cross_entropy(part.flatten(0, 1), label.flatten()) for part, label in parts)
        loss = captions + looking
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(captions.item())
        if step % 50 == 49:
            seconds = time.monotonic() - started
            mean = np.mean(losses[-50:])
            print(f"step {step + 1} of {steps}: loss {mean:.3f}, probes {looking:.3f}, {seconds:.0f} s", flush=True)
    with atomic_path(Path(folder) / CHECKPOINT_PATH.name) as temporary:
        torch.save({"model": {name: value.half() for name, value in model.state_dict().items()}}, temporary)
    return {"loss": float(np.mean(losses[-50:])), "seconds": round(time.monotonic() - started)}


def _start_small(model) -> None:
    """A start that suits 128 wide: the recipe's 0.02 is meant for 768 and leaves attention even for thousands of steps."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ".layers." in name:
                parameter.mul_(3)


PROBE_CLASSES = [2 + len(UPPER) + len(LOWER), 7, 5]


def patch_labels(scene: Scene, camera: Camera, grid: int = UNITS) -> np.ndarray:
    """What each patch shows in the end of the phase: (grid², 3) of classes of `PROBE_CLASSES`, 0 for background.

    First the thing: vehicle, a jacket by colour, slacks by colour. Second how that thing moves: 1-3 the vehicle, 4-6
    the pedestrian. Third where the vehicle stands: left or right of the pedestrian, close to it or far.
    """
    labels = np.zeros((grid, grid, 3), np.int64)
    vehicle, (left, top, right, bottom) = places(scene, 1.0)
    waist, far = top + WAIST_UNITS, VALUES["distance"].index(scene.distance)
    vehicle_moves = 1 + VALUES["vehicle_motion"].index(scene.vehicle_motion)
    pedestrian_moves = 4 + VALUES["pedestrian_motion"].index(scene.pedestrian_motion)
    jacket, slacks = 2 + UPPER.index(scene.upper), 2 + len(UPPER) + LOWER.index(scene.lower)
    stands = 1 + 2 * (scene.side == "right") + far
    things = [
        (vehicle, (1, vehicle_moves, stands)),
        ((left, top, right, waist), (jacket, pedestrian_moves, stands)),
        ((left, waist, right, bottom), (slacks, pedestrian_moves, stands)),
    ]
    centres = (np.arange(grid) + 0.5) * UNITS / grid
    for (x0, y0, x1, y1), label in things:
        inside_x = (centres - camera.shift_x > x0) & (centres - camera.shift_x < x1)
        inside_y = (centres - camera.shift_y > y0) & (centres - camera.shift_y < y1)
        labels[np.ix_(inside_y, inside_x)] = label
    return labels.reshape(-1, 3)


def _drawn_batches(tokenizer, image_size: int, batch_size: int, steps: int, seed: int):
    import torch

    from beit3lib.dataset import caption_ids, collate, pack, to_tensor

    rng = np.random.default_rng(seed)
    for _ in range(steps):
        samples, shown = [], []
        for _ in range(batch_size):
            scene, camera = Scene(**draw_values(rng)), draw_camera(rng, bool(rng.integers(2)))
            picture = draw_blur(scene, camera, size=image_size)
            shown.append(patch_labels(scene, camera))
            texts = [tokenizer.encode(text, add_special_tokens=False) for text in plain_captions(scene, rng)]
            captions = [(caption_ids(tokenizer, ids, (), 64), 0) for ids in texts]
            row = pack(captions, 0.6, tokenizer.mask_token_id, len(tokenizer) - 1, rng)
            samples.append((to_tensor(picture, image_size), row, ""))
        yield collate(samples), torch.from_numpy(np.stack(shown))


# --- the download --------------------------------------------------------------------------------------------------

PHASES = ("prerecognition", "recognition", "judgement", "action", "avoidance")
COUNTS = {  # scenarios per split: with events, normal_trimmed, BDD
    "train": (64, 8, 20),
    "val": (16, 4, 8),
    "test": (4, 2, 3),
}
CAPTION_FOLDER = {"train": "train", "val": "val", "test": "test/public_challenge"}
VIDEO_FOLDER = {"train": "train", "val": "val", "test": "test/public"}
MAIN_VIEWS_CSV = "view_used_as_main_reference_for_multiview_scenario.csv"
DRAWN_NAME = "drawn.json"  # what each phase shows: the truth that the demo's captions are held to


@dataclass(frozen=True)
class Scenario:
    """One event as it will be written: its name, where it belongs, and what each of its phases shows."""

    name: str
    split: str
    kind: str  # "event", "normal" or "bdd"
    phases: dict[int, Scene]
    frames: dict[int, int]

    @property
    def seed(self) -> int:
        return int.from_bytes(self.name.encode()[-6:], "big")


def plan(counts: dict[str, tuple[int, int, int]] = COUNTS, seed: int = 0) -> list[Scenario]:
    """Scenarios for every split; the same counts and seed give the same sample."""
    rng = np.random.default_rng(seed)
    planned = []
    for split, numbers in counts.items():
        for kind, count in zip(("event", "normal", "bdd"), numbers, strict=True):
            for _ in range(count):
                planned.append(_plan_one(len(planned), split, kind, rng))
    return planned


def _plan_one(number: int, split: str, kind: str, rng: np.random.Generator) -> Scenario:
    name = {
        "event": f"202307{7 + number % 20:02d}_{number}_SN{10 + number}_T1",
        "normal": f"202310{13 + number % 10:02d}_{105827 + number}_normal_192.168.0.14_1_event_{1 + number % 3}",
        "bdd": f"video{1000 + number}",
    }[kind]
    whole = draw_values(rng, tuple(v for v in VALUES if v not in OF_PHASE))
    present = {0: [4], 1: [2, 3, 4], 2: [0, 1, 2, 3]}.get(number % 12, list(range(5)))  # some phases are missing, as in WTS
    phases = {phase: Scene(**whole, **draw_values(rng, OF_PHASE)) for phase in present}
    return Scenario(name, split, kind, phases, {phase: int(rng.integers(6, 11)) for phase in present})


def write_sample(root: str | Path, counts: dict[str, tuple[int, int, int]] = COUNTS, seed: int = 0, jobs: int = -1) -> Path:
    """Draw the whole miniature download under `root`, complete or not at all; returns `root`.

    The same arguments give the same sample. An earlier sample is replaced; a FileExistsError keeps anything else as it is.
    """
    from joblib import Parallel, delayed

    root = Path(root)
    if root.exists() and not (root / DRAWN_NAME).is_file() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"{root}: expected a new folder or an earlier sample, found something else; name another folder")
    scenarios = plan(counts, seed)
    with atomic_folder(root) as folder:
        Parallel(n_jobs=jobs)(delayed(write_scenario)(folder, scenario) for scenario in scenarios)
        drawn = {s.name: {str(phase): asdict(scene) for phase, scene in s.phases.items()} for s in scenarios}
        write_json(folder / DRAWN_NAME, drawn)
        _write_main_views(folder, scenarios)
        shutil.copyfile(SPM_PATH, folder / "beit3.spm")
        shutil.copyfile(CHECKPOINT_PATH, folder / CHECKPOINT_PATH.name)
    return root


def read_drawn(root: str | Path) -> dict[tuple[str, int], Scene]:
    """What every phase of the sample shows: {(scenario, phase): Scene}."""
    drawn = json.loads((Path(root) / DRAWN_NAME).read_text(encoding="utf-8"))
    return {(name, int(phase)): Scene(**values) for name, phases in drawn.items() for phase, values in phases.items()}


def write_scenario(root: Path, scenario: Scenario) -> None:
    """The videos, captions and boxes of one scenario."""
    if scenario.kind == "bdd":
        _write_bdd(root, scenario)
        return
    inner = "normal_trimmed/" if scenario.kind == "normal" else ""
    for view, videos, start_s in _views(scenario):
        times = _times(scenario, start_s)
        place = f"{inner}{scenario.name}/{view}"
        for name, camera in videos.items():
            boxes = _write_video(root / "videos" / VIDEO_FOLDER[scenario.split] / place / name, scenario, camera, start_s)
            _write_boxes(root, f"{VIDEO_FOLDER[scenario.split]}/{place}", name, boxes)
        about = {"vehicle_view": next(iter(videos))} if view == "vehicle_view" else {"id": scenario.seed % 1000}
        if view == "overhead_view":
            about["overhead_videos"] = list(videos)
        path = root / "annotations/caption" / CAPTION_FOLDER[scenario.split] / place / f"{scenario.name}_caption.json"
        write_json(path, {**about, "event_phase": _phases(scenario, times, str)})


def _views(scenario: Scenario) -> Iterator[tuple[str, dict[str, Camera], float]]:
    """View, its videos and the second at which the first phase starts in it; one in nine has no vehicle view."""
    rng = np.random.default_rng(scenario.seed)
    normal = scenario.kind == "normal"
    first = draw_camera(rng)
    cameras = {f"{scenario.name}.mp4" if normal else f"{scenario.name}_Camera1_0.mp4": first}
    if not normal and scenario.seed % 4 == 0:
        cameras[f"{scenario.name}_192.168.0.28_3.mp4"] = draw_camera(rng, paint=first.paint)
    yield "overhead_view", cameras, 1.5
    if scenario.seed % 9:
        yield "vehicle_view", {f"{scenario.name}_vehicle_view.mp4": draw_camera(rng, True, first.paint)}, 0.0


def _write_bdd(root: Path, scenario: Scenario) -> None:
    base = root / "external/BDD_PC_5K"
    camera = draw_camera(np.random.default_rng(scenario.seed), True)
    video = f"{scenario.name}.mp4"
    boxes = _write_video(base / "videos" / VIDEO_FOLDER[scenario.split] / video, scenario, camera, 0.0)
    box_path = base / "annotations/bbox_annotated" / VIDEO_FOLDER[scenario.split] / f"{scenario.name}_bbox.json"
    write_json(box_path, {"annotations": boxes["pedestrian"]})
    content = {
        "video_name": video,
        "fps": f"{FRAMES_PER_S}.00",
        "event_phase": _phases(scenario, _times(scenario, 0.0), PHASES.__getitem__),
    }
    write_json(base / "annotations/caption" / CAPTION_FOLDER[scenario.split] / f"{scenario.name}_caption.json", content)


def _times(scenario: Scenario, start_s: float) -> dict[int, tuple[float, float]]:
    times, at = {}, start_s
    for phase in sorted(scenario.phases):
        end = at + scenario.frames[phase] / FRAMES_PER_S
        times[phase] = (at, end)
        at = end
    return times


def _phases(scenario: Scenario, times, label) -> list[dict]:
    """The `event_phase` of a caption file, the last phase first as in WTS; the test split's has no captions."""
    listed = []
    for phase in sorted(scenario.phases, reverse=True):
        said = {f"caption_{subject}": full_caption(scenario.phases[phase], subject) for subject in ("pedestrian", "vehicle")}
        start, end = times[phase]
        spans = {"start_time": f"{start:.3f}", "end_time": f"{end:.3f}"}
        listed.append({"labels": [label(phase)], **({} if scenario.split == "test" else said), **spans})
    return listed


def _write_video(path: Path, scenario: Scenario, camera: Camera, start_s: float) -> dict[str, list[dict]]:
    """Write an H.264 video and return its boxes; before `start_s` the first phase stands still."""
    import av

    boxes: dict[str, list[dict]] = {"vehicle": [], "pedestrian": []}
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        # without its look-ahead x264 gives the same bytes every time
        options = {"preset": "veryfast", "crf": "22", "x264-params": "threads=1:rc-lookahead=0:mbtree=0"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH_PX, HEIGHT_PX, "yuv420p", 1
        number = 0
        for frame in _all_frames(scenario, camera, start_s, boxes):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
            number += 1
        container.mux(stream.encode(None))
    return boxes


def _all_frames(scenario: Scenario, camera: Camera, start_s: float, boxes) -> Iterator[np.ndarray]:
    phases = sorted(scenario.phases)
    still = next(draw_frames(scenario.phases[phases[0]], camera, 1))
    number = round(start_s * FRAMES_PER_S)
    yield from [still] * number
    for phase in phases:
        yield from draw_frames(scenario.phases[phase], camera, scenario.frames[phase])
        number += scenario.frames[phase]
        for subject, box in zip(("vehicle", "pedestrian"), places(scenario.phases[phase], 1.0), strict=True):
            boxes[subject].append(_box(box, camera, number - 1, phase))


def _box(box, camera: Camera, frame: int, phase: int) -> dict:
    left, right = ((x + camera.shift_x) * WIDTH_PX / UNITS for x in (box[0], box[2]))
    top, bottom = ((y + camera.shift_y) * HEIGHT_PX / UNITS for y in (box[1], box[3]))
    left, right = (min(max(x, 0), WIDTH_PX) for x in (left, right))
    corner_and_size = [round(v, 2) for v in (left, top, right - left, bottom - top)]
    return {"image_id": frame, "bbox": corner_and_size, "auto-generated": False, "phase_number": str(phase)}


def _write_boxes(root: Path, place: str, video: str, boxes: dict[str, list[dict]]) -> None:
    for subject, listed in boxes.items():
        name = video.removesuffix(".mp4") + "_bbox.json"
        write_json(root / "annotations/bbox_annotated" / subject / place / name, {"annotations": listed})


def _write_main_views(root: Path, scenarios: list[Scenario]) -> None:
    lines = ["Scene,Viewpoint1,Viewpoint2,Viewpoint3,Viewpoint4"]
    for scenario in scenarios:
        if scenario.kind == "event":
            first = next(iter(next(_views(scenario))[1]))
            lines.append(f"{scenario.name},{first},,,")
    (root / MAIN_VIEWS_CSV).write_text("\n".join(lines) + "\n", encoding="utf-8")


@in_one_sentence()
def main() -> None:
    """`python -m beit3lib.sample.draw`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/sample"), help="where to draw the sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretrain", type=Path, metavar="FOLDER", help="make the tokenizer and the checkpoint instead")
    parser.add_argument("--steps", type=int, default=2400, help="steps of pretraining")
    options = parser.parse_args()
    if options.pretrain:
        options.pretrain.mkdir(parents=True, exist_ok=True)
        print(pretrain(options.pretrain, options.steps, seed=options.seed))
    else:
        print(f"the sample lies in {write_sample(options.folder, seed=options.seed)}")


if __name__ == "__main__":
    main()
