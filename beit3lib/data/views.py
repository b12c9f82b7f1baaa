"""Choose which cameras of each scenario are used, from the view, the download's own list, or the annotated boxes.

from beit3lib.data.views import choose_views
phases, choices, problems = choose_views(phases, "best", root="data/wts")
"""

import csv
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.data.wts import Report, list_files, parse_phase, video_stem
from beit3lib.files import FileError, Problem, finite, read_text

VIEW_CHOICES = ("all", "main", "best", "vehicle", "overhead")
BOX_COLUMNS = "scenario split view video subject kind phase frame bbox_xywh_px".split()
MAX_PX = 1e9  # a larger number in a box file is garbage, and would overflow an integer column
VIEW_CSV = re.compile(r"view_used_as_main_reference.*\.csv", re.IGNORECASE)


class Boxes(NamedTuple):
    """The boxes (columns `BOX_COLUMNS`), the problems, and how many boxes were used or skipped."""

    boxes: pd.DataFrame
    problems: list[Problem]
    counts: dict[str, int]


def read_boxes(root: str | Path, phases: pd.DataFrame) -> Boxes:
    """Read the boxes of the videos in `phases`: one row per box, in pixels of the video's own frames.

    `subject` is pedestrian or vehicle (boxes of BDD are the pedestrian's), `kind` annotated (by hand, the first frame
    of a phase) or generated (by a tracker, every frame), `frame` the frame number from 0. Entries without an area, a
    phase or four numbers are skipped, with one problem per file; a video whose phases lack boxes is one problem.
    """
    report = Report(Path(root).expanduser())
    columns = ["split", "scenario", "view", "video"]
    wanted = {
        (s, n, v, video_stem(video)): video
        for s, n, v, video in phases[columns].drop_duplicates().values.tolist()
    }
    rows: list[tuple] = []
    for path, file in report.located(skip=("videos", "caption")):
        if file is None or not file.kind.startswith("bbox_"):
            continue
        video = wanted.get((file.split, file.scenario, file.view, path.name[: -len("_bbox.json")]))
        content = report.read_json(path, "annotations", "boxes") if video is not None else None
        if content is None:
            continue
        boxes = [box for box in map(_read_box, content["annotations"]) if box is not None]
        found, skipped = len(content["annotations"]), len(content["annotations"]) - len(boxes)
        report.counts.update(boxes=found, boxes_used=len(boxes), boxes_skipped=skipped)
        if skipped:
            report.add(
                path, f"{skipped} of {found} boxes skipped: no area, or no phase, frame and four numbers"
            )
        about = (file.scenario, file.split, file.view, video, file.subject, file.kind.removeprefix("bbox_"))
        rows += [(*about, *box) for box in boxes]
    boxes = pd.DataFrame.from_records(rows, columns=BOX_COLUMNS).astype({"phase": "int64", "frame": "int64"})
    _report_missing_boxes(report, phases, boxes)
    return Boxes(
        boxes,
        report.problems,
        {name: report.counts[name] for name in ("boxes", "boxes_used", "boxes_skipped")},
    )


def _read_box(entry: Any) -> tuple[int, int, tuple[float, ...]] | None:
    """Return (phase, frame, box) of an entry, or None if it cannot be used: WTS has boxes without an area (irregularity 11)."""
    if not isinstance(entry, dict) or not isinstance(entry.get("bbox"), list) or len(entry["bbox"]) != 4:
        return None
    phase, numbers = (
        parse_phase(entry.get("phase_number")),
        [finite(v) for v in [entry.get("image_id"), *entry["bbox"]]],
    )
    if phase is None or any(number is None or abs(number) > MAX_PX for number in numbers):
        return None
    frame, x, y, width, height = numbers
    return (phase, int(frame), (x, y, width, height)) if width > 0 and height > 0 else None


def _report_missing_boxes(report: Report, phases: pd.DataFrame, boxes: pd.DataFrame) -> None:
    """Report for each video the phases without boxes, of each subject and kind that the download has."""
    if boxes.empty:
        report.add("bbox_annotated, bbox_generated", "expected boxes of these videos, found none")
        return
    keys = ["scenario", "split", "view", "video"]
    present = boxes.groupby([*keys, "subject", "kind"])["phase"].unique()
    kinds = boxes[["subject", "kind"]].drop_duplicates().sort_values(["subject", "kind"]).values.tolist()
    for video, wanted in phases.groupby(keys)["phase"]:
        for subject, kind in kinds:
            missing = sorted(set(wanted) - set(present.get((*video, subject, kind), ())))
            if missing and (subject, video[2]) != (
                "vehicle",
                "vehicle_view",
            ):  # the vehicle carries this camera
                report.add(video[3], f"no {kind} {subject} box in phase {', '.join(map(str, missing))}")


class ViewChoice(NamedTuple):
    """Which videos of a scenario are used, and why."""

    scenario: str
    split: str
    videos: str
    why: str


class ChosenViews(NamedTuple):
    """The phases of the chosen videos, one choice per scenario (`pandas.DataFrame(choices)`), and the problems."""

    phases: pd.DataFrame
    choices: list[ViewChoice]
    problems: list[Problem]


def choose_views(
    phases: pd.DataFrame,
    views: str = "all",
    root: str | Path | None = None,
    boxes: pd.DataFrame | None = None,
) -> ChosenViews:
    """Keep the rows of the chosen videos of each scenario; every scenario keeps at least one video.

    `views`: "all" keeps every camera; "vehicle" or "overhead" that view, or every camera of a scenario without it;
    "main" the videos that the download's view_used_as_main_reference CSV lists (needs `root`), or every camera of a
    scenario that it does not list; "best" the video with pedestrian boxes in most phases, among those the one with the
    largest box, and without boxes the vehicle view (needs `root`, or the boxes of `read_boxes`).
    """
    if views not in VIEW_CHOICES:
        raise ValueError(f"views: expected one of {', '.join(VIEW_CHOICES)}, found {views!r}")
    if root is None and (views == "main" or (views == "best" and boxes is None)):
        raise ValueError(
            f"views={views!r}: expected root, the folder of the WTS download, found None. Give root=…"
        )
    problems: list[Problem] = []
    if views == "best" and boxes is None:
        boxes, problems, _ = read_boxes(root, phases)
    listed = _read_view_csvs(Path(root).expanduser()) if views == "main" else {}
    scores = _box_scores(boxes) if views == "best" else {}
    choices, kept = [], []
    phases = phases.reset_index(drop=True)
    for (scenario, split), rows in phases.groupby(["scenario", "split"]):
        cameras = dict(sorted(zip(rows["video"], rows["view"], strict=True)))  # {video: view}
        if views == "main":
            names, why = _choose_listed(cameras, listed.get(scenario))
        elif views == "best":
            scored = {
                video: scores[scenario, split, video]
                for video in cameras
                if (scenario, split, video) in scores
            }
            names, why = _choose_best(cameras, scored)
        else:
            names = [video for video, view in cameras.items() if views in ("all", view.removesuffix("_view"))]
            why = (
                "every camera"
                if views == "all"
                else f"{views}_view"
                if names
                else f"no {views}_view: every camera"
            )
        names = names or list(cameras)
        choices.append(ViewChoice(scenario, split, ", ".join(names), why))
        kept += rows.index[rows["video"].isin(names)].tolist()
    return ChosenViews(phases.loc[sorted(kept)].reset_index(drop=True), choices, problems)


def _choose_listed(cameras: dict[str, str], listed: list[str] | None) -> tuple[list[str], str]:
    if listed is None:
        return [], "not listed in the CSV: every camera"
    names, missing = sorted(set(listed) & set(cameras)), sorted(set(listed) - set(cameras))
    if not names:
        return [], "no video listed in the CSV is on disk: every camera"
    return names, "listed in the CSV" + (f" (missing: {', '.join(missing)})" if missing else "")


def _choose_best(cameras: dict[str, str], scored: dict[str, tuple[int, float]]) -> tuple[list[str], str]:
    if scored:
        best = max(scored, key=scored.__getitem__)
        return [
            best
        ], f"pedestrian boxes in {scored[best][0]} phases, the largest of {scored[best][1]:.0f} px²"
    vehicle = [video for video, view in cameras.items() if view == "vehicle_view"]
    return (
        (vehicle[:1], "no boxes: vehicle view") if vehicle else (list(cameras)[:1], "no boxes: first camera")
    )


def _box_scores(boxes: pd.DataFrame) -> dict[tuple[str, str, str], tuple[int, float]]:
    """Return {(scenario, split, video): (phases with a pedestrian box, largest area in px²)}."""
    boxes = boxes[boxes["subject"] == "pedestrian"]
    areas = boxes["bbox_xywh_px"].map(lambda box: box[2] * box[3])
    scores: dict[tuple, tuple] = {}
    for kind in (
        "generated",
        "annotated",
    ):  # a video with boxes of both kinds is scored by the annotated ones
        for video, rows in boxes[boxes["kind"] == kind].groupby(["scenario", "split", "video"]):
            scores[video] = (rows["phase"].nunique(), areas[rows.index].max())
    return scores


def _read_view_csvs(root: Path) -> dict[str, list[str]]:
    """Return the videos that view_used_as_main_reference….csv lists: {scenario: [video]}; blank cells are skipped."""
    paths = [
        p for p in list_files(root, skip=("videos", "caption", "external")) if VIEW_CSV.fullmatch(p.name)
    ]
    if not paths:
        raise FileNotFoundError(
            f"{root}: expected view_used_as_main_reference.csv or …_for_multiview_scenario.csv, found none. "
            'Put it into this folder, or use views="best".'
        )
    listed: dict[str, list[str]] = {}
    for path in paths:
        try:
            rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
        except csv.Error as error:
            raise FileError(
                f"{path}: expected CSV, found a file that is not ({error}). Download it again."
            ) from None
        for scenario, *videos in filter(None, rows):
            names = [f"{video_stem(video.strip())}.mp4" for video in videos if video.strip()]
            if scenario.strip().lower() != "scene" and names:
                listed.setdefault(scenario.strip(), names)
    return listed
