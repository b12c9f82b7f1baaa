"""Select cameras per scenario by view, CSV list or box coverage, and find the boxes of each phase.

from beit3lib.data.views import choose_views, first_boxes
phases, choices, problems = choose_views(phases, "best", root="data/wts")
phases = first_boxes("data/wts", phases)
"""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from beit3lib.data.schema import SUBJECTS
from beit3lib.data.wts import list_files, locate, parse_phase, read_object, video_stem
from beit3lib.files import FileError, Problem, finite, read_text

VIEW_CHOICES = ("all", "main", "best", "vehicle", "overhead")
VIDEO = ["split", "scenario", "view", "video"]  # columns that name a video
BOX_COLUMNS = (*VIDEO, "subject", "kind", "phase", "frame", "bbox_xywh_px", "largest_px2")
VIEW_CSV = re.compile(r"view_used_as_main_reference.*\.csv", re.IGNORECASE)


class Boxes(NamedTuple):
    """The boxes (columns `BOX_COLUMNS`) and the problems."""

    boxes: pd.DataFrame
    problems: list[Problem]


def read_boxes(root: str | Path, phases: pd.DataFrame) -> Boxes:
    """Read the boxes of the videos in `phases`: one row per video, subject, kind and phase, annotated first.

    `subject` is pedestrian or vehicle (boxes of BDD are the pedestrian's), `kind` annotated (by hand, the
    first frame of a phase) or generated (by a tracker, every frame), `bbox_xywh_px` the box in the phase's
    first frame with one, in pixels of the video's own frames, and `largest_px2` the area of the largest box.
    WTS has phases and videos without boxes, and boxes without an area (quirk 11). Entries without an area, a
    phase or numbers are skipped, with one problem per file.
    """
    root, problems, rows = Path(root).expanduser(), [], []
    videos = phases[VIDEO].drop_duplicates().to_numpy()
    wanted = {(*camera, video_stem(video)): (*camera, video) for *camera, video in videos}
    for path in list_files(root, problems, skip=("videos", "caption")):
        relative = path.relative_to(root)
        file = locate(relative)
        if file is None or not file.kind.startswith("bbox_"):
            continue
        video = wanted.get((file.split, file.scenario, file.view, path.name[: -len("_bbox.json")]))
        content = read_object(root, relative, "annotations", problems) if video else None
        if content is None:
            continue
        about = (*video, file.subject, file.kind.removeprefix("bbox_"))
        of_phase, skipped = {}, 0
        for entry in content["annotations"]:
            entry = entry if isinstance(entry, dict) else {}
            phase, corners = parse_phase(entry.get("phase_number")), entry.get("bbox")
            box = [finite(number) for number in corners] if isinstance(corners, list) else []
            frame = finite(entry.get("image_id"))
            if None in (phase, frame, *box) or len(box) != 4 or min(box[2:]) <= 0:
                skipped += 1
                continue
            first, largest = of_phase.get(phase, ((frame, box), 0.0))
            of_phase[phase] = min(first, (frame, box)), max(largest, box[2] * box[3])
        rows += [(*about, phase, *first, largest) for phase, (first, largest) in of_phase.items()]
        if skipped:
            what = f"{skipped} of {len(content['annotations'])} boxes skipped"
            problems.append(Problem(relative.as_posix(), f"{what}: no area, phase, frame or four numbers"))
    boxes = pd.DataFrame.from_records(rows, columns=BOX_COLUMNS)
    return Boxes(boxes.sort_values("kind", kind="stable", ignore_index=True), problems)


def first_boxes(root: str | Path, phases: pd.DataFrame) -> pd.DataFrame:
    """Add box_vehicle_xywh_px and box_pedestrian_xywh_px: "x y w h" in the phase's first frame, or "".

    Annotated boxes come before generated ones. Compare them with frame_width_px and frame_height_px of
    `blur_table`.
    """
    keys = [*VIDEO, "phase"]
    boxes = read_boxes(root, phases).boxes.drop_duplicates([*keys, "subject"])
    boxes = boxes[[*keys, "subject", "bbox_xywh_px"]].itertuples(index=False, name=None)
    texts = {tuple(key): " ".join(f"{n:g}" for n in box) for *key, box in boxes}
    rows = list(phases[keys].itertuples(index=False, name=None))
    columns = {f"box_{s}_xywh_px": [texts.get((*row, s), "") for row in rows] for s in SUBJECTS}
    return phases.assign(**columns)


class ViewChoice(NamedTuple):
    """Which videos of a scenario are used, and why."""

    scenario: str
    split: str
    videos: str
    why: str


class ChosenViews(NamedTuple):
    """The phases of the chosen videos, one choice per scenario, and the problems."""

    phases: pd.DataFrame
    choices: list[ViewChoice]
    problems: list[Problem]


def choose_views(phases: pd.DataFrame, views: str = "all", root: str | Path | None = None) -> ChosenViews:
    """Keep the rows of the chosen videos of each scenario; every scenario keeps at least one video.

    `views`: "all" keeps every camera; "vehicle" or "overhead" that view, or every camera of a scenario
    without it; "main" the videos that the download's view_used_as_main_reference CSV lists, or every camera
    of a scenario that it does not list; "best" the video with pedestrian boxes in most phases, among those
    the one with the largest box, and without boxes the vehicle view. "main" and "best" need `root`, the
    folder of the download.
    """
    assert views in VIEW_CHOICES, f"views: expected one of {', '.join(VIEW_CHOICES)}, found {views!r}"
    problems, listed, scores = [], {}, {}
    if views == "main" and "wts" in set(phases["source"]):  # BDD has one camera per scenario, and no list
        listed = _read_view_csvs(Path(root).expanduser(), set(phases["scenario"]))
    if views == "best":
        boxes, problems = read_boxes(root, phases)
        pedestrians = boxes[boxes["subject"] == "pedestrian"]
        for (*video, _), rows in pedestrians.groupby(["scenario", "split", "video", "kind"]):
            # Groups are sorted, so a video with boxes of both kinds is scored by the annotated ones.
            scores.setdefault(tuple(video), (len(rows), rows["largest_px2"].max()))
    choices, kept = [], []
    phases = phases.reset_index(drop=True)
    for (scenario, split), rows in phases.groupby(["scenario", "split"]):
        cameras = dict(sorted(zip(rows["video"], rows["view"], strict=True)))  # {video: view}
        if views == "main":
            names = [video for video in cameras if video in listed.get(scenario, ())]
            missing = ", ".join(sorted(set(listed.get(scenario, ())) - set(cameras)))
            why = "listed in the CSV" + (f" (missing: {missing})" if missing else "")
            otherwise = "no camera listed in the CSV"
        elif views == "best":
            # By phases with a box, then by the largest box, then the vehicle view.
            ranked = {
                video: (*scores.get((scenario, split, video), (0, 0.0)), view == "vehicle_view")
                for video, view in cameras.items()
            }
            video = max(ranked, key=ranked.get)
            number, largest_px2, _ = ranked[video]
            why = f"pedestrian boxes in {number} phases, the largest of {largest_px2:.0f} px²"
            names, why = [video], why if number else f"no boxes: {cameras[video]}"
        else:
            names = [video for video, view in cameras.items() if views in ("all", view.removesuffix("_view"))]
            why, otherwise = "every camera" if views == "all" else f"{views}_view", f"no {views}_view"
        if not names:
            names, why = list(cameras), f"{otherwise}: every camera"
        choices.append(ViewChoice(scenario, split, ", ".join(names), why))
        kept += rows.index[rows["video"].isin(names)].tolist()
    return ChosenViews(phases.loc[sorted(kept)].reset_index(drop=True), choices, problems)


def _read_view_csvs(root: Path, scenarios: set[str]) -> dict[str, list[str]]:
    """Return {scenario: [video]} of view_used_as_main_reference….csv; blank cells are skipped."""
    listed: dict[str, list[str]] = {}
    for path in list_files(root, skip=("videos", "caption", "external")):
        text = read_text(path) if VIEW_CSV.fullmatch(path.name) else ""
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # European spreadsheets write semicolons
        for scenario, *videos in filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)):
            names = [f"{video_stem(video.strip())}.mp4" for video in videos if video.strip()]
            if names:
                listed.setdefault(scenario.strip(), names)
    if not scenarios & set(listed):
        found = ", ".join(list(listed)[:3]) or "no such file"
        raise FileError(
            f"{root}: expected view_used_as_main_reference.csv with a scenario and its videos per line, "
            f'found {found}. Put the list of the download into this folder, or use views="best".'
        )
    return listed
