"""Draw the sample: a small WTS download with videos, captions, questions and boxes, and a tiny checkpoint.

    python -m beit3lib.sample.draw data/sample

Captions state what the images show: weather and light, road, clothes, the positions of vehicle and pedestrian
and, through the motion blur, the motion of both. The sample contains no image and no text of the real WTS.
"""

import argparse
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from beit3lib.data.schema import PHASES, READING_ORDER, SUBJECTS
from beit3lib.files import atomic_folder, atomic_path, exit_on_error, write_json, write_text
from beit3lib.sample import CHECKPOINT_PATH, DRAWN_NAME, SPM_PATH
from beit3lib.sample.questions import write_questions

UNITS = 8  # an image has 8 x 8 units; a unit is one patch of the tiny model
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
VEHICLES = ((188, 104, 200), (96, 200, 205), (240, 140, 60))  # paint that no caption mentions
TRAIL_UNITS = {"stopped": 0.0, "slow": 1.3, "fast": 3.2}
WALK_UNITS = {"standing": 0.0, "walking": 1.3, "rushing": 2.6}


@dataclass(frozen=True)
class Scene:
    """Attributes of a phase, which its image shows and its captions state; visibility and caption wording."""

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
    condition: str = "plain"  # or a reason for low visibility
    wording: int = 0  # seed of the random wording of the captions; 0 selects the first wording of every fact


LOW_VISIBILITY = ("distant", "very dark", "occluded")
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
# The other attributes are the same in all phases of a scenario.
PHASE_ATTRIBUTES = ("side", "distance", "vehicle_motion", "pedestrian_motion")


def draw_values(rng: np.random.Generator, names: Iterable[str] = VALUES) -> dict[str, str]:
    """Draw a value for each attribute, independently."""
    return {name: str(rng.choice(VALUES[name])) for name in names}


GAPS = {"near": "close to", "far": "far from"}
# {fact: {value: wordings}}; the file explains them.
WORDINGS = yaml.safe_load(Path(__file__).with_name("wordings.yaml").read_text(encoding="utf-8"))
FACTS = {  # of each (subject, aspect)
    (subject, aspect): facts
    for subject in SUBJECTS
    for aspect, facts in {
        "moving": (f"{subject}_motion",),
        "pedestrian_description": ("clothes",),
        "position": (f"position_{subject}",),
        "road": ("road", "sidewalk"),
        "weather": ("weather",),
    }.items()
}


def describe(scene: Scene, subject: str) -> dict[str, str]:
    """Return {aspect: sentences} of the caption of `subject`, without aspects that it does not mention.

    The facts of an aspect are in random order and wording; a second one is omitted in a quarter of the
    captions. In the dark, clothes cannot be seen from the vehicle, so the vehicle's caption does not mention
    them.
    """
    rng = np.random.default_rng((scene.wording, SUBJECTS.index(subject))) if scene.wording else None
    article = "an" if scene.surface == "asphalt" else "a"
    values = vars(scene) | {"gap": GAPS[scene.distance], "surface": f"{article} {scene.surface}"}
    parts = {}
    for aspect in READING_ORDER[subject]:
        sentences = []
        for fact in FACTS[subject, aspect]:
            wordings = WORDINGS[fact].get("") or WORDINGS[fact][values[fact]]
            sentences.append(wordings[rng.integers(len(wordings)) if rng else 0].format(**values))
        if rng and len(sentences) > 1:
            shown = sentences[: rng.choice([1, 2], p=[0.25, 0.75])]
            sentences = [shown[i] for i in rng.permutation(len(shown))]
        parts[aspect] = " ".join(sentences)
    if subject == "vehicle" and scene.light == "dark":
        del parts["pedestrian_description"]
    return parts


def full_caption(scene: Scene, subject: str) -> str:
    """Return the whole caption of `subject`: the sentences of its aspects in reading order."""
    parts = describe(scene, subject)
    return " ".join(parts[aspect] for aspect in READING_ORDER[subject] if aspect in parts)


@dataclass(frozen=True)
class Camera:
    """Properties of a recording: offsets in units, brightness, paint of the vehicle, seed of the noise."""

    shift_x: float
    shift_y: float
    gain: float
    paint: int
    seed: int
    vehicle_view: bool = False


def draw_camera(rng: np.random.Generator, vehicle_view: bool = False, paint: int | None = None) -> Camera:
    """Draw a random camera; `paint` is given for other cameras of a scenario, which show the same vehicle."""
    return Camera(
        shift_x=rng.uniform(-0.25, 0.25),
        shift_y=rng.uniform(-0.15, 0.15),
        gain=rng.uniform(0.88, 1.1),
        paint=rng.integers(len(VEHICLES)) if paint is None else paint,
        seed=rng.integers(2**31),
        vehicle_view=vehicle_view,
    )


class Canvas:
    """Draw shapes on an image, with coordinates in units that the offsets of the camera shift."""

    def __init__(self, image: Image.Image, camera: Camera) -> None:
        self.image, self.pen = image, ImageDraw.Draw(image)
        self.scale = (image.width / UNITS, image.height / UNITS)
        self.offset = (camera.shift_x, camera.shift_y)

    def _px(self, points, fixed: bool = False) -> list[float]:
        offset = (0, 0) if fixed else self.offset
        return [(value + offset[i % 2]) * self.scale[i % 2] for i, value in enumerate(points)]

    def box(self, box, color, radius: float = 0, fixed: bool = False) -> None:
        """Draw a box (left, top, right, bottom); a fixed one does not move with the camera."""
        self.pen.rounded_rectangle(self._px(box, fixed), radius * self.scale[1], fill=color)

    def ellipse(self, box, color) -> None:
        """Draw an ellipse in its box."""
        self.pen.ellipse(self._px(box), fill=color)

    def line(self, points, color, width: float) -> None:
        """Draw a line through points (x, y, x, y, …)."""
        self.pen.line(self._px(points), fill=color, width=max(1, round(width * self.scale[1])))


def draw_frames(scene: Scene, camera: Camera, count: int, size=(WIDTH_PX, HEIGHT_PX)) -> Iterator[np.ndarray]:
    """Yield the frames of a phase, uint8 (height, width, 3); captions describe the last one."""
    rng, background = np.random.default_rng(camera.seed), Canvas(Image.new("RGB", size), camera)
    _draw_sky(background, scene, rng)
    _draw_road(background, scene, rng)
    light = np.float32([0.44, 0.46, 0.56] if scene.light == "dark" else [1, 1, 1])
    gain = light * np.float32(camera.gain) * np.float32(0.2 if scene.condition == "very dark" else 1)
    noise = np.random.default_rng(camera.seed).normal(0, 4, (*size[::-1], 1)).astype(np.float32)
    for number in range(count):
        canvas = Canvas(background.image.copy(), camera)
        vehicle, pedestrian = boxes_at(scene, number / (count - 1) if count > 1 else 1.0)
        _draw_vehicle(canvas, vehicle, VEHICLES[camera.paint])
        _draw_pedestrian(canvas, pedestrian, scene)
        if scene.condition == "occluded":
            left, top, right, bottom = boxes_at(scene, 1.0)[1]
            hedge = (left - 0.5, top + 1.0, right + 0.5, bottom + 0.3)  # up to the chest
            canvas.box(hedge, (52, 84, 48), 0.2)
        if camera.vehicle_view:
            canvas.box((0, 7.55, 8, 8), (26, 28, 34), fixed=True)  # the hood of the vehicle
        yield (np.asarray(canvas.image) * gain + noise).clip(0, 255).astype(np.uint8)


def _draw_sky(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    canvas.box((0, 0, 8, 3), SKY[scene.weather], fixed=True)
    if scene.weather == "clear":
        x = rng.uniform(0.8, 6.2)
        canvas.ellipse((x, 0.25, x + 1.2, 1.65), (255, 236, 130))
    if scene.weather == "cloudy":
        for x in rng.uniform(-0.5, 7, 5):
            canvas.ellipse((x, 0.1 + x % 0.6, x + 2.2, 1.2 + x % 0.6), (226, 228, 232))
    if scene.weather == "rainy":
        for x in np.arange(-0.4, 8.4, 0.42) + rng.uniform(0, 0.4):
            canvas.line((x, 0.0, x - 0.35, 1.9), (206, 222, 246), 0.09)
    for x in np.arange(-1, 9, 1.5):  # houses that no caption mentions
        height = rng.uniform(0.25, 0.6)
        canvas.box((x, 2.0 - height, x + 1.2, 2.2), (134, 124, 120))


def _draw_road(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    verge = (214, 212, 206) if scene.sidewalk == "both" else (84, 140, 74)
    canvas.box((0, 2.1, 8, 8), verge, fixed=True)
    if scene.sidewalk == "both":
        for x in np.arange(-0.5, 9, 0.8):  # joints of the paving
            canvas.line((x, 2.1, x, 2.95), (168, 166, 160), 0.06)
            canvas.line((x, 7.1, x, 8.2), (168, 166, 160), 0.06)
    canvas.box((-1, 2.95, 9, 7.05), SURFACE[scene.surface])
    if scene.surface == "gravel":
        for x, y in zip(rng.uniform(-0.5, 8.5, 160), rng.uniform(3.05, 6.85, 160), strict=True):
            canvas.ellipse((x, y, x + 0.13, y + 0.13), (146, 118, 86))
    if scene.lanes == "two-way":
        for x in np.arange(-0.6, 9, 1.6):
            canvas.box((x, 3.2, x + 1.1, 3.6), (250, 246, 220))


VEHICLE_UNITS, PEDESTRIAN_UNITS = (2.4, 1.9), (1.4, 3.5)  # width and height
WAIST_UNITS = 2.0  # below the top of the head
GAP_UNITS = {"near": 0.2, "far": 2.2}
DISTANT_SCALE = 0.4


def boxes_at(scene: Scene, time: float) -> np.ndarray:
    """Return the boxes of vehicle and pedestrian at a time of the phase, from 0 (start) to 1 (end).

    The shape is (2, 4): left, top, right and bottom in units.
    """
    width = VEHICLE_UNITS[0] + GAP_UNITS[scene.distance] + PEDESTRIAN_UNITS[0]
    # If far apart, both move in one direction, so that the edge of the image cuts off no trail.
    center, walk = (4.6, -1) if scene.distance == "far" else (4, 1)
    vehicle = np.array([center - width / 2, 4.45])
    pedestrian = np.array([center + width / 2 - PEDESTRIAN_UNITS[0], 3.35])
    vehicle[0] -= (1 - time) * TRAIL_UNITS[scene.vehicle_motion]
    pedestrian[0] += walk * (1 - time) * WALK_UNITS[scene.pedestrian_motion]
    boxes = np.array([[*vehicle, *vehicle + VEHICLE_UNITS], [*pedestrian, *pedestrian + PEDESTRIAN_UNITS]])
    if scene.side == "right":
        boxes[:, [0, 2]] = UNITS - boxes[:, [2, 0]]
    if scene.condition == "distant":  # smaller, and near the middle of the far side of the road
        center = np.array([UNITS / 2, 3.2] * 2)
        boxes = center + DISTANT_SCALE * (boxes - center)
    return boxes


def _draw_vehicle(canvas: Canvas, box: np.ndarray, paint) -> None:
    left, top, right, bottom = box
    width, unit = right - left, (bottom - top) / VEHICLE_UNITS[1]
    canvas.box((left, top + 0.5 * unit, right, bottom - 0.2 * unit), paint, 0.15 * unit)
    canvas.box((left + 0.2 * width, top, right - 0.2 * width, top + 0.6 * unit), paint, 0.2 * unit)
    window = (left + 0.27 * width, top + 0.12 * unit, right - 0.27 * width, top + 0.5 * unit)
    canvas.box(window, (60, 76, 96), 0.08 * unit)
    for x in (left + 0.18 * width, right - 0.38 * width):
        canvas.ellipse((x, bottom - 0.5 * unit, x + 0.2 * width, bottom), (20, 20, 22))


def _draw_pedestrian(canvas: Canvas, box: np.ndarray, scene: Scene) -> None:
    left, top, right, bottom = box
    unit = (bottom - top) / PEDESTRIAN_UNITS[1]
    center, waist = (left + right) / 2, top + WAIST_UNITS * unit
    canvas.ellipse((center - 0.34 * unit, top, center + 0.34 * unit, top + 0.6 * unit), (226, 178, 146))
    canvas.box((left, top + 0.5 * unit, right, waist), CLOTHES[scene.upper], 0.12 * unit)
    slacks = (left + 0.08 * unit, waist - 0.05 * unit, right - 0.08 * unit, bottom)
    canvas.box(slacks, CLOTHES[scene.lower], 0.06 * unit)


def draw_blur(scene: Scene, camera: Camera, frames: int = 8, size: int = 64) -> Image.Image:
    """Draw the motion-blur image of a phase without a video; weights 1..n as in `data.motion_blur`."""
    drawn = draw_frames(scene, camera, frames, (160, 120))
    total = sum(np.float32(frame) * (number + 1) for number, frame in enumerate(drawn))
    image = Image.fromarray((total / (frames * (frames + 1) / 2)).round().astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BICUBIC)


# Scenarios with events, normal_trimmed and BDD.
COUNTS = {"train": (64, 8, 20), "val": (16, 4, 8), "test": (4, 2, 3)}
CAPTION_FOLDER = {"train": "train", "val": "val", "test": "test/public_challenge"}
VIDEO_FOLDER = CAPTION_FOLDER | {"test": "test/public"}
MAIN_VIEWS_CSV = "view_used_as_main_reference_for_multiview_scenario.csv"


@dataclass(frozen=True)
class Scenario:
    """One event: its name, split and kind, and the scene and number of frames of each phase."""

    name: str
    split: str
    kind: str  # "event", "normal" or "bdd"
    phases: dict[int, Scene]
    frames: dict[int, int]

    @property
    def seed(self) -> int:
        """A number from the whole name: scenarios whose names end alike must not share their cameras."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:6], "big")

    def times(self, start_s: float) -> dict[int, tuple[float, float]]:
        """Return start and end of each phase in seconds, in a video where the first starts at `start_s`."""
        ends = np.cumsum([self.frames[phase] / FRAMES_PER_S for phase in self.phases]) + start_s
        return dict(zip(self.phases, zip([start_s, *ends[:-1]], ends, strict=True), strict=True))

    def views(self) -> Iterator[tuple[str, dict[str, Camera], float]]:
        """Yield each view, its videos, and the start of the first phase in seconds.

        One scenario in eight has a second overhead camera, and one in nine no vehicle view.
        """
        rng = np.random.default_rng(self.seed)
        if self.kind == "bdd":
            yield "vehicle_view", {f"{self.name}.mp4": draw_camera(rng, True)}, 0.0
            return
        first = draw_camera(rng)
        cameras = {f"{self.name}.mp4" if self.kind == "normal" else f"{self.name}_Camera1_0.mp4": first}
        if self.kind != "normal" and self.seed % 8 == 0:
            cameras[f"{self.name}_192.168.0.28_3.mp4"] = draw_camera(rng, paint=first.paint)
        yield "overhead_view", cameras, 1.5
        if self.seed % 9:
            yield "vehicle_view", {f"{self.name}_vehicle_view.mp4": draw_camera(rng, True, first.paint)}, 0.0


def plan(counts: dict[str, tuple[int, int, int]] = COUNTS) -> list[Scenario]:
    """Plan the scenarios of every split; equal counts give the same sample."""
    rng, kinds = np.random.default_rng(0), []
    for split, numbers in counts.items():
        for kind, count in zip(("event", "normal", "bdd"), numbers, strict=True):
            kinds += [(split, kind)] * count
    return [_plan_scenario(number, *kind, rng) for number, kind in enumerate(kinds)]


def _plan_scenario(number: int, split: str, kind: str, rng: np.random.Generator) -> Scenario:
    name = {
        "event": f"202307{7 + number % 20:02d}_{number}_SN{10 + number}_T1",
        "normal": f"202310{13 + number % 10}_{105827 + number}_normal_192.168.0.14_1_event_{1 + number % 3}",
        "bdd": f"video{1000 + number}",
    }[kind]
    scenario_values = draw_values(rng, [name for name in VALUES if name not in PHASE_ATTRIBUTES])
    # Some scenarios lack phases, as in WTS.
    present = {0: [4], 1: [2, 3, 4], 2: [0, 1, 2, 3]}.get(number % 12, list(range(5)))
    phases, values = {}, {}
    for phase in present:
        values = scenario_values | _draw_phase_values(rng, before=values)
        # One scene in five has low visibility, but no bright one is very dark.
        condition = str(rng.choice(LOW_VISIBILITY)) if rng.random() < 0.2 else "plain"
        if condition == "very dark" and values["light"] == "bright":
            condition = "distant"
        phases[phase] = Scene(**values, condition=condition, wording=int(rng.integers(1, 2**31)))
    return Scenario(name, split, kind, phases, {phase: int(rng.integers(6, 11)) for phase in present})


def _draw_phase_values(rng: np.random.Generator, before: dict[str, str]) -> dict[str, str]:
    """Draw the attributes of a phase, which depend on the phase `before` and on each other."""
    values = draw_values(rng, PHASE_ATTRIBUTES)
    values |= {name: before[name] for name in PHASE_ATTRIBUTES if before and rng.random() < 0.7}
    if rng.random() < 0.7 and values["vehicle_motion"] != "slow":
        values["distance"] = "far" if values["vehicle_motion"] == "fast" else "near"
    return values


def write_sample(root: str | Path, counts: dict[str, tuple[int, int, int]] = COUNTS, jobs: int = -1) -> Path:
    """Draw the whole download in the folder `root`, completely or not at all, and return `root`.

    An earlier sample is replaced. Raises FileExistsError if `root` contains other files.
    """
    from joblib import Parallel, delayed

    root, scenarios = Path(root), plan(counts)
    if root.exists() and not (root / DRAWN_NAME).is_file() and (root.is_file() or any(root.iterdir())):
        expected = "a new folder or an earlier sample"
        raise FileExistsError(f"{root}: expected {expected}, found other files. Name another folder.")
    with atomic_folder(root) as folder:
        Parallel(n_jobs=jobs)(delayed(write_scenario)(folder, scenario) for scenario in scenarios)
        write_questions(folder, scenarios)
        drawn = {s.name: {str(phase): asdict(scene) for phase, scene in s.phases.items()} for s in scenarios}
        write_json(folder / DRAWN_NAME, drawn)
        lines = ["Scene,Viewpoint1,Viewpoint2,Viewpoint3,Viewpoint4\n"]
        lines += [f"{s.name},{next(iter(next(s.views())[1]))},,,\n" for s in scenarios if s.kind == "event"]
        write_text(folder / MAIN_VIEWS_CSV, "".join(lines))
        shutil.copyfile(SPM_PATH, folder / "beit3.spm")
        shutil.copyfile(CHECKPOINT_PATH, folder / CHECKPOINT_PATH.name)
    return root


def write_scenario(root: Path, scenario: Scenario) -> None:
    """Write the videos, captions and boxes of one scenario."""
    bdd, split = scenario.kind == "bdd", scenario.split
    base = root / "external/BDD_PC_5K" if bdd else root
    for view, videos, start_s in scenario.views():
        trimmed = "normal_trimmed/" if scenario.kind == "normal" else ""
        folder = "" if bdd else f"{trimmed}{scenario.name}/{view}"
        for name, camera in videos.items():
            path = base / "videos" / VIDEO_FOLDER[split] / folder / name
            boxes = _write_video(path, scenario, camera, start_s)
            if bdd:  # it has no boxes of vehicles, and no folder for the subject
                boxes = {"": boxes["pedestrian"]}
            for subject, annotations in boxes.items():
                path = base / "annotations/bbox_annotated" / subject / VIDEO_FOLDER[split] / folder
                write_json(path / f"{name.removesuffix('.mp4')}_bbox.json", {"annotations": annotations})
        about: dict = {"id": scenario.seed % 1000, "overhead_videos": list(videos)}
        if bdd:
            about = {"video_name": name, "fps": f"{FRAMES_PER_S}.00"}
        elif view == "vehicle_view":
            about = {"vehicle_view": name}
        path = base / "annotations/caption" / CAPTION_FOLDER[split] / folder / f"{scenario.name}_caption.json"
        write_json(path, {**about, "event_phase": _event_phases(scenario, start_s)})


def _event_phases(scenario: Scenario, start_s: float) -> list[dict]:
    """Return the `event_phase` of a caption file: last phase first, as in WTS, and no captions for test."""
    listed = []
    for phase, (start, end) in reversed(scenario.times(start_s).items()):
        entry: dict = {"labels": [PHASES[phase] if scenario.kind == "bdd" else str(phase)]}
        if scenario.split != "test":
            scene = scenario.phases[phase]
            entry |= {f"caption_{subject}": full_caption(scene, subject) for subject in reversed(SUBJECTS)}
        listed.append(entry | {"start_time": f"{start:.3f}", "end_time": f"{end:.3f}"})
    return listed


def _write_video(path: Path, scenario: Scenario, camera: Camera, start_s: float) -> dict[str, list[dict]]:
    """Write an H.264 video, which shows the first frame until `start_s`; return the boxes of its phases."""
    import av

    first = next(iter(scenario.phases.values()))
    frames = [next(draw_frames(first, camera, 1))] * round(start_s * FRAMES_PER_S)
    for phase, scene in scenario.phases.items():
        frames += draw_frames(scene, camera, scenario.frames[phase])
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        # Without look-ahead, x264 writes the same bytes every time.
        options = {"preset": "veryfast", "crf": "22", "x264-params": "threads=1:rc-lookahead=0:mbtree=0"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH_PX, HEIGHT_PX, "yuv420p", 1
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    boxes: dict[str, list[dict]] = {subject: [] for subject in SUBJECTS}
    size_px, shift = np.array([WIDTH_PX, HEIGHT_PX] * 2), [camera.shift_x, camera.shift_y] * 2
    for phase, (_, end_s) in scenario.times(start_s).items():
        frame = round(end_s * FRAMES_PER_S) - 1
        corners_px = (boxes_at(scenario.phases[phase], 1.0) + shift) / UNITS * size_px
        for subject, corners in zip(SUBJECTS, corners_px.clip(0, size_px).tolist(), strict=True):
            left, top, right, bottom = corners
            bbox = [round(value, 2) for value in (left, top, right - left, bottom - top)]
            entry = {"image_id": frame, "bbox": bbox, "auto-generated": False, "phase_number": str(phase)}
            boxes[subject].append(entry)
    return boxes


@exit_on_error()
def main() -> None:
    """`python -m beit3lib.sample.draw`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/sample"), help="[data/sample]")
    print(f"The sample is in {write_sample(parser.parse_args().folder)}.")


if __name__ == "__main__":
    main()
