"""A WTS / BDD_PC_5K download as one pandas table: a row per scenario, view, video and phase.

    from beit3lib.data.wts import read_wts
    table = read_wts("data/wts")
    for problem in table.attrs["problems"]:
        print(problem)

Folders are recognised by what lies in them, not by how a copy spells them: every `annotations` and `videos` folder up
to five levels below the root counts; a split that holds scenario folders is WTS, one that holds files is BDD_PC_5K. So
the root may be the WTS folder, the folder above it, or one that holds the public test tree beside the rest.
"""

import csv
import itertools
import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.files import Problem, read_json

SPLITS = ("train", "val", "test")
VIEWS = ("overhead_view", "vehicle_view")
PHASES = ("prerecognition", "recognition", "judgement", "action", "avoidance")
VIEW_CHOICES = ("all", "main", "best", "vehicle", "overhead")
COLUMNS = (
    "scenario split source view video video_path label phase start_s end_s caption_vehicle caption_pedestrian normal"
).split()
BOX_COLUMNS = "scenario split view video subject kind phase frame bbox_xywh_px".split()
VIEW_CSV = re.compile(r"view_used_as_main_reference.*\.csv", re.IGNORECASE)

_DEPTH = 4  # one more than the deepest download that was seen


# ---- names


def video_stem(video: str) -> str:
    """Strip `.mp4` and nothing else: names hold dots of their own (192.168.0.14)."""
    return video[:-4] if video.lower().endswith(".mp4") else video


def parse_phase(label: Any) -> int | None:
    """Give the number 0–4 of a label: a digit in WTS (`"4"`, 4), a word in BDD (`"avoidance"`); None if neither."""
    text = str(label).strip().lower()
    if text in PHASES:
        return PHASES.index(text)
    return int(text) if text.isascii() and text.isdigit() and int(text) < len(PHASES) else None


def recording_group(scenario: str) -> str:
    """Name the recording that a scenario was cut from: its name without `_event_N` and `_TN`.

    Scenarios of one group share place, people and light, so train and val must not share a group.
    """
    return re.sub(r"_(event_\d+|T\d+)(?=_|$)", "", scenario)


class AttrList(list):
    """A list for `attrs`, which pandas copies deeply with every selection and group: what is in here never changes."""

    def __deepcopy__(self, memo: dict) -> "AttrList":
        return AttrList(self)


# ---- finding folders and files


class _CaptionFile(NamedTuple):
    source: str
    split: str
    scenario: str
    view: str
    path: Path
    normal: bool


class _Layout(NamedTuple):
    """Where things lie below a root."""

    root: Path
    annotations: list[Path]
    videos: list[Path]
    view_csvs: list[Path]

    def show(self, path: str | Path) -> str:
        """Name a path as seen from the root, for messages."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def _listing(folder: str | Path) -> tuple[list[str], list[str]]:
    """List folders and files by name; `.DS_Store`, `._…` and other hidden names are no data."""
    with os.scandir(folder) as entries:
        seen = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    return [name for name, is_dir in seen if is_dir], [name for name, is_dir in seen if not is_dir]


def _find_layout(root: str | Path) -> _Layout:
    """Find the `annotations` and `videos` folders and view CSVs below `root`, or raise what was expected and found."""
    root = Path(root)
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise FileNotFoundError(
            f"{root}: expected the folder of a WTS download, found {what}. Give the folder that holds annotations/ and "
            "videos/, or the folder above it."
        )
    layout = _Layout(root, [], [], [])
    _walk(root, _DEPTH, layout)
    if not any((folder / split).is_dir() for folder in _caption_folders(layout) for split in SPLITS):
        entries = [name for names in _listing(root) for name in names]
        found = ", ".join(entries[:8]) + (", …" if len(entries) > 8 else "") if entries else "an empty folder"
        raise FileNotFoundError(
            f"{root}: expected annotations/caption/{{train,val,test}} here or in folders below, found {found}. "
            "Unpack the WTS download here, or give the folder that holds it."
        )
    return layout


def _walk(folder: Path, depth: int, layout: _Layout) -> None:
    dirs, files = _listing(folder)
    layout.view_csvs.extend(folder / name for name in files if VIEW_CSV.fullmatch(name))
    for name in dirs:
        if name in ("annotations", "videos"):
            found = folder / name
            nested = found / name  # some copies unpack annotations.zip into annotations/
            getattr(layout, name).append(nested if nested.is_dir() else found)
            layout.view_csvs.extend(found / csv for csv in _listing(found)[1] if VIEW_CSV.fullmatch(csv))
        elif depth:
            _walk(folder / name, depth - 1, layout)


def _caption_folders(layout: _Layout) -> list[Path]:
    """List the folders that hold captions by split: `annotations/caption`, or `annotations` in some BDD copies."""
    return [folder / "caption" if (folder / "caption").is_dir() else folder for folder in layout.annotations]


def _leaves(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, scenario folders, files); `normal_trimmed` and the test's `public…` are folders, not scenarios."""
    if not folder.is_dir():
        return
    dirs, files = _listing(folder)
    between = [name for name in dirs if name == "normal_trimmed" or name.startswith("public")]
    yield folder, [name for name in dirs if name not in between], files
    for name in between:
        yield from _leaves(folder / name)


def _is_video(name: str) -> bool:
    return name.lower().endswith(".mp4")


VideoKey = tuple[str, str, str]  # split, scenario, view


def _index_videos(layout: _Layout, splits: Iterable[str]) -> dict[VideoKey, dict[str, str]]:
    """List the videos on disk by split, scenario and view: {video: path}. A BDD video is its own scenario."""
    index: dict[VideoKey, dict[str, str]] = defaultdict(dict)
    for split in splits:
        for folder, scenarios, files in (leaf for base in layout.videos for leaf in _leaves(base / split)):
            for name in filter(_is_video, files):
                index[split, video_stem(name), "vehicle_view"].setdefault(name, str(folder / name))
            for scenario in scenarios:
                for view in set(_listing(folder / scenario)[0]) & set(VIEWS):
                    for name in filter(_is_video, _listing(folder / scenario / view)[1]):
                        index[split, scenario, view].setdefault(name, str(folder / scenario / view / name))
    return index


@dataclass
class _Report:
    """What a reading step counts and could not use."""

    layout: _Layout
    problems: list[Problem] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    def add(self, where: str | Path, what: str, todo: str = "") -> None:
        self.problems.append(Problem(self.layout.show(where) if isinstance(where, Path) else where, what, todo))


def _find_caption_files(report: _Report, splits: Iterable[str]) -> list[_CaptionFile]:
    """List every caption file of the splits, once per split, scenario and view."""
    found: dict[VideoKey, _CaptionFile] = {}
    folders = _caption_folders(report.layout)
    for split in splits:
        for folder, scenarios, files in (leaf for base in folders for leaf in _leaves(base / split)):
            normal = "normal_trimmed" in folder.parts
            candidates = [_bdd_caption_file(split, folder, name) for name in files if name.endswith("_caption.json")]
            for scenario in scenarios:
                candidates += _wts_caption_files(report, split, folder / scenario, normal)
            for file in candidates:
                _keep_first(report, found, file)
    return list(found.values())


def _keep_first(report: _Report, found: dict[VideoKey, _CaptionFile], file: _CaptionFile) -> None:
    report.counts["caption_files"] += 1
    key = (file.split, file.scenario, file.view)
    if found.setdefault(key, file) is not file:
        report.counts["caption_files_left_out"] += 1
        report.add(file.path, f"the same scenario and view as {report.layout.show(found[key].path)}; left out")


def _bdd_caption_file(split: str, folder: Path, name: str) -> _CaptionFile:
    return _CaptionFile("bdd", split, name.removesuffix("_caption.json"), "vehicle_view", folder / name, False)


def _wts_caption_files(report: _Report, split: str, folder: Path, normal: bool) -> list[_CaptionFile]:
    """List the caption files of one scenario folder, one for each view that it has."""
    views = [view for view in VIEWS if (folder / view).is_dir()]
    if not views:
        report.add(folder, "expected overhead_view/ or vehicle_view/, found neither; left out")
    files = []
    for view in views:
        names = [name for name in _listing(folder / view)[1] if name.endswith(".json")]
        wanted = f"{folder.name}_caption.json"
        names.sort(key=lambda name: (name != wanted, not name.endswith("_caption.json"), name))
        if not names:
            report.add(folder / view, f"expected {wanted}, found no JSON; its videos are left out")
            continue
        if names[1:]:
            report.add(folder / view, f"expected one JSON, found {len(names)}; read {names[0]}")
        files.append(_CaptionFile("wts", split, folder.name, view, folder / view / names[0], normal))
    return files


# ---- reading one caption file


class _Phase(NamedTuple):
    label: str
    phase: int
    start_s: float
    end_s: float
    caption_vehicle: str | None
    caption_pedestrian: str | None


def _read_caption_file(report: _Report, file: _CaptionFile) -> tuple[list[str], list[_Phase]] | None:
    """Read the listed videos and the phases; None, with the reason reported, if the file is unusable."""
    try:
        content = read_json(file.path)
        if not isinstance(content, dict) or not isinstance(content.get("event_phase"), list):
            raise ValueError("expected an object with a list event_phase, found none")
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{file.path}: ")
        report.add(file.path, f"{reason}; its videos are left out", "download this file again")
        report.counts["caption_files_left_out"] += 1
        return None
    report.counts["caption_files_used"] += 1
    phases: dict[int, _Phase] = {}
    for number, entry in enumerate(content["event_phase"]):
        report.counts["phases"] += 1
        phase = _read_phase(report, file, number, entry)
        if phase and phase.phase in phases:
            report.add(file.path, f"phase {phase.label} stands here twice; the second is left out")
            phase = None
        report.counts["phases_used" if phase else "phases_left_out"] += 1
        if phase:
            phases[phase.phase] = phase
    if not content["event_phase"]:
        report.add(file.path, "expected phases, found an empty event_phase; no row comes from it")
    return _listed_videos(report, file, content), list(phases.values())


def _listed_videos(report: _Report, file: _CaptionFile, content: dict) -> list[str]:
    """The videos that a caption file names, each once, always with `.mp4`."""
    key = {"wts": {"overhead_view": "overhead_videos", "vehicle_view": "vehicle_view"}[file.view], "bdd": "video_name"}
    listed = content.get(key[file.source]) or []
    names = [listed] if isinstance(listed, str) else [name for name in listed if isinstance(name, str)]
    names = list(dict.fromkeys(f"{video_stem(os.path.basename(name.strip()))}.mp4" for name in names if name.strip()))
    own = f"{file.scenario}.mp4"
    if file.source == "bdd" and names != [own]:
        if names:
            report.add(file.path, f"expected video_name {own}, found {', '.join(names)}; the file's own name counts")
        return [own]
    return names


def _read_phase(report: _Report, file: _CaptionFile, number: int, entry: Any) -> _Phase | None:
    labels = entry.get("labels") if isinstance(entry, dict) else None
    label = labels[0] if isinstance(labels, list) and labels else labels
    phase = parse_phase(label)
    if phase is None:
        expected = f"expected a label 0–4 or one of {', '.join(PHASES)}"
        report.add(file.path, f"phase entry {number}: {expected}, found {labels!r}; left out")
        return None
    span_s = _read_span(report, file, label, entry)
    if span_s is None:
        return None
    captions = [_read_caption(report, file, label, entry, subject) for subject in ("vehicle", "pedestrian")]
    return _Phase(str(label).strip(), phase, *span_s, *captions)


def _read_span(report: _Report, file: _CaptionFile, label: Any, entry: dict) -> tuple[float, float] | None:
    times = [entry.get("start_time"), entry.get("end_time")]
    try:
        start_s, end_s = (float(time) for time in times)
        if not (math.isfinite(start_s) and math.isfinite(end_s)):
            raise ValueError
    except (TypeError, ValueError):
        report.add(file.path, f"phase {label}: expected start_time and end_time in seconds, found {times}; left out")
        return None
    if end_s < start_s:
        report.add(file.path, f"phase {label}: ends at {end_s} s, before it starts at {start_s} s; read the other way round")
    return min(start_s, end_s), max(start_s, end_s)


def _read_caption(report: _Report, file: _CaptionFile, label: Any, entry: dict, subject: str) -> str | None:
    """Read one caption as it stands; None without words, which is a problem except in the test split."""
    caption = entry.get(f"caption_{subject}")
    if isinstance(caption, str) and re.search(r"\w", caption):
        return caption
    if file.split != "test":
        report.add(file.path, f"phase {label}: expected words in caption_{subject}, found {caption!r}; it has no caption")
    return None


# ---- the table


def read_wts(root: str | Path, split: str | None = None, keep_missing: bool = False) -> pd.DataFrame:
    """Read a WTS / BDD_PC_5K download: a row per scenario, view, video and phase, in that order.

    Columns: scenario, split (train|val|test), source (wts|bdd), view (overhead_view|vehicle_view; BDD: vehicle_view),
    video (file name), video_path, label (as in the file: the submission wants it back), phase (0–4), start_s and end_s
    (of this view: views of one scenario have different clocks), caption_vehicle and caption_pedestrian (missing where
    there is none, as in the test split), normal (True below normal_trimmed).

    A listed video that is not on disk is reported and left out; with `keep_missing` its rows stay, with video_path "",
    for those who need every segment asked for. `.attrs["problems"]` lists each Problem, `.attrs["counts"]` says how
    many caption files, phases, videos and rows went in, were used and were left out. Raises FileNotFoundError where
    there is no WTS download, ValueError for an unknown split or one that is not there.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)} or None, found {split!r}")
    layout = _find_layout(root)
    report = _Report(layout)
    splits = SPLITS if split is None else (split,)
    files = _find_caption_files(report, splits)
    if not files:
        raise ValueError(f"{layout.root}: expected caption files of {' or '.join(splits)}, found none")
    videos = _index_videos(layout, splits)
    rows: list[tuple] = []
    for file in files:
        found = videos.pop((file.split, file.scenario, file.view), {})
        rows += _rows_of(report, file, found, keep_missing)
    _report_uncaptioned(report, videos, files)
    table = pd.DataFrame.from_records(rows, columns=COLUMNS)
    table = table.astype({"phase": "int64", "start_s": "float64", "end_s": "float64", "normal": "bool"})
    table = table.sort_values(["scenario", "split", "view", "video", "phase"], ignore_index=True)
    _report_shared_groups(report, table)
    table.attrs["problems"] = AttrList(report.problems)
    table.attrs["counts"] = _whole_counts(report, len(table))
    return table


def _rows_of(report: _Report, file: _CaptionFile, found: dict[str, str], keep_missing: bool) -> list[tuple]:
    read = _read_caption_file(report, file)
    if read is None:
        report.counts.update(videos=len(found), videos_left_out=len(found))
        return []
    listed, phases = read
    if not listed and not found:
        report.add(file.path, "names no video, and none of this scenario and view is on disk; no row comes from it")
    rows = []
    for video in dict.fromkeys([*listed, *sorted(found)]):
        report.counts["videos"] += 1
        report.counts["rows_expected"] += len(phases)
        if video not in found:
            report.add(file.path, f"video {video} is listed, but not on disk; left out", "download it again if it exists")
        elif video not in listed:
            report.add(file.path, f"video {video} is on disk, but not listed; read with the times of this view")
        report.counts["videos_used" if video in found else "videos_left_out"] += 1
        if video in found or keep_missing:
            about = (file.scenario, file.split, file.source, file.view, video, found.get(video, ""))
            rows += [(*about, *phase, file.normal) for phase in phases]
    return rows


def _report_uncaptioned(report: _Report, videos: dict[VideoKey, dict[str, str]], files: list[_CaptionFile]) -> None:
    """Report videos on disk that no caption file speaks of, in one line where a whole split has no caption file."""
    captioned = {file.split for file in files}
    without: Counter = Counter()
    for (split, _, _), found in videos.items():
        report.counts["videos_without_captions"] += len(found)
        if split not in captioned:
            without[split] += len(found)
            continue
        for path in found.values():
            report.add(Path(path), "no caption file for this scenario and view could be found; left out")
    for split, number in without.items():
        report.add(f"videos/{split}", f"{number} videos, but no caption file of this split; left out")


def _report_shared_groups(report: _Report, table: pd.DataFrame) -> None:
    for group, scenarios in _shared_groups(table).items():
        todo = "split_by_group(table) keeps them in val and leaves them out of train"
        report.add(group, f"one recording in both train and val: {', '.join(scenarios)}", todo)


def _shared_groups(table: pd.DataFrame) -> dict[str, list[str]]:
    """Recordings that stand in both train and val, with the scenarios cut from them."""
    splits, scenarios = defaultdict(set), defaultdict(list)
    for scenario, split in table[["scenario", "split"]].drop_duplicates().itertuples(index=False):
        splits[recording_group(scenario)].add(split)
        scenarios[recording_group(scenario)].append(f"{scenario} ({split})")
    return {group: sorted(scenarios[group]) for group in sorted(splits) if {"train", "val"} <= splits[group]}


def _whole_counts(report: _Report, rows: int) -> dict[str, int]:
    """Count what went in, what is used and what is left out, so that in = used + left out for each kind."""
    kinds = ("caption_files", "phases", "videos")
    counts = {f"{kind}{what}": report.counts[f"{kind}{what}"] for kind in kinds for what in ("", "_used", "_left_out")}
    counts["videos_without_captions"] = report.counts["videos_without_captions"]
    expected = report.counts["rows_expected"]
    return counts | {"rows_expected": expected, "rows": rows, "rows_left_out": expected - rows}


# ---- train and val


def split_by_group(table: pd.DataFrame, val_share: float | None = None, seed: int = 0) -> pd.DataFrame:
    """Make train and val share no recording (see `recording_group`); test rows pass through.

    Without `val_share` the download's own split counts: recordings that stand in both stay in val, so that val is the
    official one, and their train rows are left out. With `val_share`, between 0 and 1, train and val are put together
    and that share of the recordings of each source (wts, bdd) is drawn for val, at least one where there are two;
    nothing is left out. `.attrs["problems"]` lists what was done, `.attrs["counts"]` says rows = train + val + test +
    left_out.
    """
    if val_share is not None and not 0 < val_share < 1:
        raise ValueError(f"val_share: expected a share between 0 and 1, or None for the official split, found {val_share!r}")
    out = table.copy()
    out.attrs = {}
    groups = out["scenario"].map(recording_group)
    if val_share is None:
        out, problems = _without_shared_groups(out, groups)
    else:
        problems = _draw_val(out, groups, val_share, seed)
    by_split = {split: int((out["split"] == split).sum()) for split in SPLITS}
    out.attrs["problems"] = AttrList(problems)
    out.attrs["counts"] = {"rows": len(table), **by_split, "left_out": len(table) - len(out)}
    return out.reset_index(drop=True)


def _without_shared_groups(table: pd.DataFrame, groups: pd.Series) -> tuple[pd.DataFrame, list[Problem]]:
    shared = _shared_groups(table)
    double = groups.isin(list(shared)) & (table["split"] == "train")
    rows = groups[double].value_counts()
    problems = [
        Problem(group, f"one recording in both train and val; {rows[group]} train rows left out: {', '.join(scenarios)}")
        for group, scenarios in shared.items()
    ]
    return table[~double], problems


def _draw_val(table: pd.DataFrame, groups: pd.Series, val_share: float, seed: int) -> list[Problem]:
    """Write a drawn train or val into the table's split, source by source."""
    problems = []
    for source in sorted(table["source"].unique()):
        rows = (table["source"] == source) & (table["split"] != "test")
        names = sorted(groups[rows].unique())
        random.Random(seed).shuffle(names)
        number = max(1, round(val_share * len(names))) if len(names) > 1 else 0
        if not number:
            problems.append(Problem(source, f"{len(names)} recording: none could be set aside for val"))
        table.loc[rows, "split"] = "train"
        table.loc[rows & groups.isin(names[:number]), "split"] = "val"
    return problems


# ---- boxes


def read_boxes(root: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Read the boxes of a table's videos: a row per box, with x, y, width, height in pixels of the video's own frames.

    Columns: scenario, split, view, video, subject (pedestrian|vehicle), kind ("annotated": the first frame of a phase,
    by hand; "generated": every frame, by a tracker), phase (0–4), frame (number in the video, from 0) and bbox_xywh_px.
    BDD boxes have no subject in their path: they are the pedestrian's. Boxes without an area and entries without sense
    are left out, one Problem per file; a video whose boxes lack phases is one Problem; `.attrs["counts"]` says boxes =
    used + left_out. No boxes at all give an empty table and one Problem.
    """
    layout = _find_layout(root)
    report = _Report(layout)
    wanted = {
        (split, scenario, view, video_stem(video)): video
        for split, scenario, view, video in table[["split", "scenario", "view", "video"]].drop_duplicates().values.tolist()
    }
    rows: list[tuple] = []
    kinds = set()
    for split, scenario, view, subject, kind, path in _find_box_files(layout, sorted(set(table["split"]))):
        video = wanted.get((split, scenario, view, path.name.removesuffix("_bbox.json")))
        if video is not None:
            kinds.add((subject, kind))
            about = (scenario, split, view, video, subject, kind)
            rows += [(*about, *box) for box in _read_box_file(report, path)]
    boxes = pd.DataFrame.from_records(rows, columns=BOX_COLUMNS).astype({"phase": "int64", "frame": "int64"})
    _report_missing_boxes(report, table, boxes, kinds)
    boxes.attrs["problems"] = AttrList(report.problems)
    boxes.attrs["counts"] = {name: report.counts[name] for name in ("boxes", "boxes_used", "boxes_left_out")}
    return boxes


def _find_box_files(layout: _Layout, splits: list[str]) -> Iterator[tuple[str, str, str, str, str, Path]]:
    """Yield (split, scenario, view, subject, kind, path) of every box file."""
    for base, kind in itertools.product(layout.annotations, ("annotated", "generated")):
        place = base / f"bbox_{kind}"
        places = [(place / "pedestrian", "pedestrian"), (place / "vehicle", "vehicle"), (place, "pedestrian")]
        for (folder, subject), split in itertools.product(places, splits):
            for scenario, view, path in _box_files_of_split(folder / split):
                yield split, scenario, view, subject, kind, path


def _box_files_of_split(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (scenario, view, path) of the box files of one split; a BDD video is its own scenario."""
    for leaf, scenarios, files in _leaves(folder):
        for name in files:
            if name.endswith("_bbox.json"):
                yield name.removesuffix("_bbox.json"), "vehicle_view", leaf / name
        for scenario, view in itertools.product(scenarios, VIEWS):
            inner = leaf / scenario / view
            for name in _listing(inner)[1] if inner.is_dir() else []:
                if name.endswith("_bbox.json"):
                    yield scenario, view, inner / name


def _read_box_file(report: _Report, path: Path) -> list[tuple[int, int, tuple[float, ...]]]:
    """Read (phase, frame, box) of one file; what has no sense or no area is counted and reported once for the file."""
    try:
        content = read_json(path)
        entries = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError("expected an object with a list annotations, found none")
    except (OSError, ValueError) as error:
        report.add(path, f"{str(error).removeprefix(f'{path}: ')}; its boxes are left out", "download this file again")
        return []
    boxes = [_read_box(entry) for entry in entries]
    used = [box for box in boxes if box is not None]
    report.counts.update(boxes=len(boxes), boxes_used=len(used), boxes_left_out=len(boxes) - len(used))
    if len(used) < len(boxes):
        number = len(boxes) - len(used)
        report.add(path, f"{number} of {len(boxes)} boxes left out: no area, or no phase, frame and four numbers")
    return used


def _read_box(entry: Any) -> tuple[int, int, tuple[float, ...]] | None:
    try:
        phase, frame = parse_phase(entry["phase_number"]), int(entry["image_id"])
        x, y, width, height = (float(value) for value in entry["bbox"])
    except (TypeError, KeyError, ValueError):
        return None
    if phase is None or not (math.isfinite(x) and math.isfinite(y) and 0 < width < math.inf and 0 < height < math.inf):
        return None
    return phase, frame, (x, y, width, height)


def _report_missing_boxes(report: _Report, table: pd.DataFrame, boxes: pd.DataFrame, kinds: set[tuple[str, str]]) -> None:
    """Report for each video the phases without boxes, by subject and kind, of those that this download has."""
    if boxes.empty:
        report.add("bbox_annotated, bbox_generated", "no boxes of these videos were found")
        return
    keys = ["scenario", "split", "view", "video"]
    have: dict[tuple, set[int]] = defaultdict(set)
    for *video, subject, kind, phase in boxes[[*keys, "subject", "kind", "phase"]].itertuples(index=False):
        have[(*video, subject, kind)].add(phase)
    phases: dict[tuple, list[int]] = defaultdict(list)
    for *video, phase in table[[*keys, "phase"]].itertuples(index=False):
        phases[tuple(video)].append(phase)
    for video, wanted in phases.items():
        for subject, kind in sorted(kinds):
            if subject == "vehicle" and video[2] == "vehicle_view":
                continue  # the vehicle carries this camera
            missing = [str(phase) for phase in sorted(set(wanted) - have[(*video, subject, kind)])]
            if missing:
                report.add(video[3], f"no {kind} {subject} box in phase {', '.join(missing)}")


# ---- views


class ViewChoice(NamedTuple):
    """Which videos of a scenario are used, and why; `pandas.DataFrame(choices)` shows a list of them as a table."""

    scenario: str
    split: str
    videos: str
    why: str


def choose_views(
    table: pd.DataFrame, views: str = "all", root: str | Path | None = None, boxes: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Keep the rows of the chosen videos of each scenario; no scenario is lost.

    `views`: "all" keeps every camera; "vehicle" or "overhead" that view, and what there is for a scenario without it;
    "main" the videos that the download's view_used_as_main_reference CSV names (needs `root`), and every video of a
    scenario it does not name; "best" the one video with pedestrian boxes in most phases, of those the one with the
    largest box, and without any box the vehicle view (needs `root`, or the `boxes` of `read_boxes`).
    `.attrs["views"]` is a list of ViewChoice: what was chosen for each scenario, and why.
    """
    if views not in VIEW_CHOICES:
        raise ValueError(f"views: expected one of {', '.join(VIEW_CHOICES)}, found {views!r}")
    choose = _view_chooser(table, views, root, boxes)
    videos: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for scenario, split, view, video in table[["scenario", "split", "view", "video"]].itertuples(index=False):
        videos[scenario, split][video] = view
    chosen, choices = set(), []
    for (scenario, split), cameras in sorted(videos.items()):
        names, why = choose(scenario, split, cameras)
        chosen.update((scenario, split, name) for name in names)
        choices.append(ViewChoice(scenario, split, ", ".join(names), why))
    keys = zip(table["scenario"], table["split"], table["video"], strict=True)
    out = table[[key in chosen for key in keys]].reset_index(drop=True)
    out.attrs = dict(table.attrs) | {"views": AttrList(choices)}
    return out


Chooser = Callable[[str, str, dict[str, str]], tuple[list[str], str]]  # scenario, split, {video: view} → videos, why


def _view_chooser(table: pd.DataFrame, views: str, root: str | Path | None, boxes: pd.DataFrame | None) -> Chooser:
    if views == "all":
        return lambda scenario, split, cameras: (sorted(cameras), "every camera")
    if views in ("vehicle", "overhead"):
        return lambda scenario, split, cameras: _choose_kind(cameras, f"{views}_view")
    if root is None and (views == "main" or boxes is None):
        raise ValueError(f"views={views!r}: expected root, the folder of the WTS download, found None. Give root=…")
    if views == "main":
        named = _read_view_csvs(root)
        return lambda scenario, split, cameras: _choose_named(cameras, named.get(scenario))
    scores = _box_scores(read_boxes(root, table) if boxes is None else boxes)
    return lambda scenario, split, cameras: _choose_best(cameras, split, scores)


def _choose_kind(cameras: dict[str, str], view: str) -> tuple[list[str], str]:
    wanted = sorted(video for video, kind in cameras.items() if kind == view)
    return (wanted, view) if wanted else (sorted(cameras), f"no {view}: what there is")


def _choose_named(cameras: dict[str, str], named: list[str] | None) -> tuple[list[str], str]:
    if named is None:
        return sorted(cameras), "the CSV does not name this scenario: every camera"
    there = sorted(set(named) & set(cameras))
    if not there:
        return sorted(cameras), "none of the videos that the CSV names is here: every camera"
    missing = sorted(set(named) - set(cameras))
    return there, "named by the CSV" + (f" (missing: {', '.join(missing)})" if missing else "")


def _choose_best(cameras: dict[str, str], split: str, scores: dict[tuple, tuple]) -> tuple[list[str], str]:
    scored = {video: scores[split, view, video] for video, view in cameras.items() if (split, view, video) in scores}
    if scored:
        best = max(sorted(scored), key=scored.__getitem__)
        phases, area_px = scored[best]
        return [best], f"pedestrian boxes in {phases} phases, the largest of {area_px:.0f} px²"
    vehicle = sorted(video for video, view in cameras.items() if view == "vehicle_view")
    if vehicle:
        return vehicle[:1], "no boxes: vehicle view"
    return sorted(cameras)[:1], "no boxes and no vehicle view: first camera"


def _box_scores(boxes: pd.DataFrame) -> dict[tuple[str, str, str], tuple[int, float]]:
    """Score each video by (phases with a pedestrian box, largest area in px²), by hand-drawn boxes where it has any."""
    areas: dict[tuple, dict[int, float]] = defaultdict(dict)
    pedestrian = boxes[boxes["subject"] == "pedestrian"]
    columns = ["split", "view", "video", "kind", "phase", "bbox_xywh_px"]
    for split, view, video, kind, phase, box in pedestrian[columns].itertuples(index=False):
        by_phase = areas[split, view, video, kind]
        by_phase[phase] = max(by_phase.get(phase, 0.0), box[2] * box[3])
    scores: dict[tuple, tuple] = {}
    for wanted in ("generated", "annotated"):  # the later one counts
        for (*video, kind), by_phase in areas.items():
            if kind == wanted:
                scores[tuple(video)] = (len(by_phase), max(by_phase.values()))
    return scores


def _read_view_csvs(root: str | Path) -> dict[str, list[str]]:
    """Read the videos that view_used_as_main_reference….csv names: {scenario: [video]}; blanks are skipped."""
    layout = _find_layout(root)
    if not layout.view_csvs:
        raise FileNotFoundError(
            f"{layout.root}: expected view_used_as_main_reference.csv or …_for_multiview_scenario.csv, found none. "
            'Put it into this folder, or use views="best".'
        )
    named: dict[str, list[str]] = {}
    for path in layout.view_csvs:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for scenario, *videos in filter(None, csv.reader(file)):
                names = [f"{video_stem(video.strip())}.mp4" for video in videos if video.strip()]
                if scenario.strip().lower() != "scene" and names:
                    named.setdefault(scenario.strip(), names)
    return named
