"""Read a WTS / BDD_PC_5K download as one table: one row per scenario, view, video and phase.

    from beit3lib.data.wts import read_wts
    phases, problems = read_wts("data/wts")

Every file is located from its path alone (see `LAYOUT`): `…/videos/<split>/<scenario>/<view>/<video>.mp4` and
`…/annotations/caption/<split>/<scenario>/<view>/<scenario>_caption.json` are WTS; the same paths without
`<scenario>/<view>` are BDD_PC_5K. The root may be the download, a folder above it, or one that also contains
the public test download. A file that cannot be used becomes a `Problem`, and all other files are read. The
quirks that comments number are the thirteen of WTS that tests/data/test_wts.py tests.
"""

import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from reprlib import repr as show  # shortens any value for a message
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.data.schema import NUMBERS, PHASE_COLUMNS, PHASES, SUBJECTS
from beit3lib.files import Problem, finite, printable, read_json


class WtsTable(NamedTuple):
    """The phases (columns `PHASE_COLUMNS`), and the problems."""

    phases: pd.DataFrame
    problems: list[Problem]


class WtsFile(NamedTuple):
    """One file. `kind`: caption, video, bbox_annotated or bbox_generated; `subject`: whose boxes it has."""

    kind: str
    split: str
    source: str
    scenario: str
    view: str
    subject: str
    path: Path


def video_stem(video: str) -> str:
    """Strip `.mp4` and nothing else, because names contain other dots: 192.168.0.14 (quirk 9)."""
    return video[:-4] if video.lower().endswith(".mp4") else video


def parse_phase(label: Any) -> int | None:
    """Return the phase 0–4 of a label: a number in WTS ("4", "04"), a word in BDD ("avoidance") (quirk 2)."""
    text = str(label).strip().lower()
    if text in PHASES:
        return PHASES.index(text)
    match = re.fullmatch(r"0*([0-4])", text)
    return int(match[1]) if match else None


def recording_group(scenario: str) -> str:
    """Return the recording that a scenario was cut from: its name without `_event_N` and `_TN` (quirk 10).

    Scenarios of one recording share location, people and light, so train and val must not share a recording.
    """
    return re.sub(r"_(event_\d+|T\d+)(?=_|$)", "", scenario)


# Recordings of normal traffic have an address in their own name, and no camera behind it.
CAMERA = re.compile(r"_(?:vehicle_view|Camera\d+_\d+|(?<!normal_)(?:\d+\.){3}\d+[-_]\d+)$")


def scenario_of(video: str, known: Collection[str] = ()) -> str:
    """Return the longest `known` scenario that a video's name starts with, or its name without the camera."""
    stem = video_stem(video)
    parts = stem.split("_")
    starts = ("_".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((start for start in starts if start in known), CAMERA.sub("", stem))


def source_of(scenario: str) -> str:
    """Return "bdd" for a scenario of BDD_PC_5K, which is named as its video: video1004."""
    return "bdd" if scenario.startswith("video") else "wts"


def list_files(
    root: str | Path, problems: list[Problem] | None = None, skip: Iterable[str] = ()
) -> Iterator[Path]:
    """Yield all files below `root`, sorted by name within each folder, without hidden names.

    Folders named in `skip` are left out, and links to folders are followed. Unreadable folders are added to
    `problems`.
    """

    def report(error: OSError) -> None:
        where = Path(error.filename).relative_to(root).as_posix()
        what = f"expected a readable folder, found {error.strerror}; skipped"
        if problems is not None:
            problems.append(Problem(where, what, "check its permissions"))

    for folder, folders, names in os.walk(root, onerror=report, followlinks=True):
        # Hidden names are .DS_Store, and the ._… that macOS adds to archives (quirk 8).
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skip)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


LAYOUT = re.compile(
    r"""(?:.*/)?
    (?: (?P<video>videos)
      | annotations (?:/(?P<kind>caption|bbox_annotated|bbox_generated))?
        (?:/(?P<subject>pedestrian|vehicle))? )
    /(?P<split>train|val|test)
    (?:/normal_trimmed | /public[^/]*)*  # the test download has public and public_challenge
    (?:/(?P<scenario>[^/]+)/(?P<view>overhead_view|vehicle_view))?  # only in WTS
    /(?P<name>[^/]+)""",
    re.VERBOSE,
)


def locate(path: Path) -> WtsFile | None:
    """Return what a file is by its path relative to the root; None if it is not part of WTS."""
    found = LAYOUT.fullmatch(path.as_posix())
    if found is None:
        return None
    # Some copies of BDD lack the folder caption.
    kind = "video" if found["video"] else found["kind"] or "caption"
    ending = {"video": ".mp4", "caption": "_caption.json"}.get(kind, "_bbox.json")
    if not path.name.lower().endswith(ending):
        return None
    # BDD has boxes of pedestrians only, and no folder for the subject.
    subject = found["subject"] or "pedestrian"
    if found["scenario"]:
        return WtsFile(kind, found["split"], "wts", found["scenario"], found["view"], subject, path)
    return WtsFile(kind, found["split"], "bdd", path.name[: -len(ending)], "vehicle_view", subject, path)


def find_wts(path: str | Path) -> Path | None:
    """Return the folder to give to `read_wts`, or None if there is no WTS download at `path`.

    It is `path` itself if a caption file and a video are below it, or a folder above it if `path` is inside
    the `annotations` or `videos` folder of a download. `~` is expanded, and links are followed.
    """
    path = Path(path).expanduser()
    for root in [path, *(p.parent for p in (path, *path.parents) if p.name in ("annotations", "videos"))]:
        kinds = set()
        for file in list_files(root, skip=("bbox_annotated", "bbox_generated")):
            kinds |= {found.kind for found in [locate(file.relative_to(root))] if found}
            if kinds >= {"caption", "video"}:
                return root
    return None


def read_object(root: Path, path: Path, key: str, problems: list[Problem]) -> dict | None:
    """Return the JSON object in `root / path` if it has a list at `key`; else None and a problem."""
    try:
        content = read_json(root / path, dict)
        what = f"expected a list {key}, found {show(content.get(key))}"
    except (OSError, ValueError) as error:
        content, what = {}, str(error).removeprefix(f"{root / path}: ")
    if isinstance(content.get(key), list):
        return content
    problems.append(Problem(path.as_posix(), f"{what}; skipped", "download this file again"))
    return None


def read_wts(root: str | Path, keep_missing: bool = False) -> WtsTable:
    """Read a WTS / BDD_PC_5K download: one row per scenario, view, video and phase, sorted in this order.

    Columns: split (train|val|test), source (wts|bdd), scenario, view (overhead_view|vehicle_view; BDD:
    vehicle_view), video (`<name>.mp4`), video_path, label (as written, because the submission needs it; one
    label for all views of a segment), phase (0–4), start_s and end_s (by the clock of this view),
    caption_vehicle and caption_pedestrian (missing in the test split).

    A listed video that is not on disk is a problem and skipped; with `keep_missing` its rows are kept with
    video_path "", to list every segment of a submission. Raises FileNotFoundError if there is no caption file
    below `root`.
    """
    root, problems, rows = Path(root).expanduser(), [], []
    captions: dict[tuple, WtsFile] = {}  # {(split, scenario, view): caption file}
    videos: dict[tuple, dict[str, Path]] = defaultdict(dict)  # {(split, scenario, view): {stem: path}}
    for path in list_files(root, problems, skip=("bbox_annotated", "bbox_generated")):
        file, where = locate(path.relative_to(root)), path.relative_to(root).as_posix()
        if file is None:
            if path.name.endswith("_caption.json"):
                what = "expected …/caption/<split>/<scenario>/<view>/ above it, found other folders; skipped"
                problems.append(Problem(where, what))
            continue
        camera = (file.split, file.scenario, file.view)
        if file.kind == "video":
            videos[camera].setdefault(video_stem(path.name), path)
            continue
        if captions.setdefault(camera, file) is not file:
            first = captions[camera].path.as_posix()
            problems.append(Problem(where, f"the same scenario and view as {first}; skipped"))
    if not captions:
        found = ", ".join(sorted(path.name for path in root.glob("[!.]*"))[:8]) or "nothing"
        raise FileNotFoundError(
            f"{root}: expected a WTS download with annotations/caption/{{train,val,test}} in it or below, "
            f"found {found}. Unpack the download here, or give the folder that contains it."
        )
    for camera, file in captions.items():  # clocks of views differ by 25 to 36 s (quirk 1)
        rows += _read_caption_file(root, file, videos.pop(camera, {}), keep_missing, problems)
    uncaptioned = defaultdict(list)
    for camera, found in videos.items():
        uncaptioned[camera[0]] += found.values()
    for split, paths in uncaptioned.items():
        examples = ", ".join(path.name for path in paths[:5])
        what = f"{len(paths)} videos without a caption file, such as {examples}; skipped"
        problems.append(Problem(f"videos/{split}", what))
    phases = pd.DataFrame.from_records(rows, columns=PHASE_COLUMNS)
    phases = phases.astype({name: kind for name, kind in NUMBERS.items() if name in PHASE_COLUMNS})
    phases = phases.sort_values(["scenario", "split", "view", "video", "phase"], ignore_index=True)
    segments = phases.groupby(["split", "scenario", "phase"])
    # "04" in one view and "4" in another are one segment.
    phases["label"] = segments["label"].transform("first")
    differing = (segments[["caption_vehicle", "caption_pedestrian"]].nunique() > 1).any(axis=1)
    for _, scenario, phase in differing[differing].index:
        what = "captions of views differ; each view keeps its own, and scores use those of the first view"
        problems.append(Problem(f"{scenario} phase {phase}", what))
    return WtsTable(phases, problems)


def _read_caption_file(
    root: Path,
    file: WtsFile,
    found: dict[str, Path],
    keep_missing: bool,
    problems: list[Problem],
) -> list[tuple]:
    """Return the rows of one caption file; `found` are the videos on disk of its view: {stem: path}."""

    def report(what: str, todo: str = "") -> None:
        problems.append(Problem(file.path.as_posix(), what, todo))

    content = read_object(root, file.path, "event_phase", problems)
    if content is None:
        return []
    phases: dict[int, tuple] = {}  # scenarios have one to five phases, in any order (quirks 4 and 5)
    for entry in content["event_phase"]:
        phase = read_phase(entry, file.split == "test", report)
        if phase and phase[1] in phases:
            report(f"phase {phase[0]} is in this file twice; the second is skipped")
        elif phase:
            phases[phase[1]] = phase
    # An overhead view lists the names of several videos, a vehicle view has one name. A caption file of BDD
    # has the name of its one video.
    key = "overhead_videos" if file.view == "overhead_view" else "vehicle_view"
    listed = file.scenario if file.source == "bdd" else content.get(key)
    listed = listed if isinstance(listed, list) else [listed]
    names = [video_stem(os.path.basename(printable(n).strip())) for n in listed if isinstance(n, str)]
    names = list(filter(None, names))
    stems = dict.fromkeys([*names, *sorted(found)])  # each has videos that the other lacks (quirk 8)
    rows = []
    for stem in stems:
        if stem not in found:
            report(f"video {stem}.mp4 is listed, but not on disk; skipped", "download it again if it exists")
        elif stem not in names:
            report(f"video {stem}.mp4 is on disk, but not listed; read with the times of this view")
        if stem in found or keep_missing:
            path = str(found.get(stem, ""))
            about = (file.split, file.source, file.scenario, file.view, f"{stem}.mp4", path)
            rows += [(*about, *phase) for phase in phases.values()]
    if not phases or not stems:
        found_instead = f"found {len(phases)} phases and {len(stems)} videos"
        report(f"expected phases and videos, {found_instead}; no row comes from this file")
    return rows


def read_phase(entry: Any, is_test: bool, report: Callable[[str], None]) -> tuple | None:
    """Return (label, phase, start_s, end_s, caption_vehicle, caption_pedestrian) of an event_phase entry."""
    values = entry if isinstance(entry, dict) else {}
    labels = values.get("labels")
    label = labels[0] if isinstance(labels, list) and labels else labels
    phase = parse_phase(label)
    # A phase may have zero length (quirk 3) or end after its video (6): motion_blur.py handles both. fps is
    # not read, because it is wrong in 4 to 6 % of the files of BDD (7).
    start_s, end_s = finite(values.get("start_time")), finite(values.get("end_time"))
    if phase is None or start_s is None or end_s is None:
        expected = f"a label 0–4 or one of {', '.join(PHASES)}, start_time and end_time in seconds"
        report(f"expected {expected}, found {show(entry)}; skipped")
        return None
    captions: list[str | None] = []
    for subject in SUBJECTS:
        caption = values.get(f"caption_{subject}")
        has_words = isinstance(caption, str) and re.search(r"\w", caption)
        if not has_words and not is_test:
            report(f"phase {label}: expected text in caption_{subject}, found {show(caption)}; no caption")
        captions.append(printable(caption) if has_words else None)
    return (str(label).strip(), phase, start_s, end_s, *captions)


def list_segments(phases: pd.DataFrame) -> pd.DataFrame:
    """Return one row per segment: split, source, scenario, label, phase, both captions of the first view."""
    columns = ["split", "source", "scenario", "label", "phase", "caption_vehicle", "caption_pedestrian"]
    return phases.drop_duplicates(["split", "scenario", "phase"])[columns].reset_index(drop=True)


def split_by_group(phases: pd.DataFrame, val_share: float | None = None) -> WtsTable:
    """Make train and val share no recording (see `recording_group`); rows of the test split are kept.

    Without `val_share` the official split is kept: recordings in both splits, which are 21 in WTS, stay in
    val, and their train rows are dropped. With `val_share`, between 0 and 1, train and val are joined, and
    that share of the recordings of each source (wts, bdd) is drawn for val, at least one where there are two;
    no row is dropped.
    """
    out, problems = phases.copy(), []
    groups = out["scenario"].map(recording_group)
    if val_share is None:
        dropped = groups.isin(groups[out["split"] == "val"]) & (out["split"] == "train")
        for group, rows in out[dropped].groupby(groups):
            scenarios = ", ".join(sorted(rows["scenario"].unique()))
            what = f"one recording in both train and val; {len(rows)} train rows skipped: {scenarios}"
            problems.append(Problem(group, what))
        out = out[~dropped]
    else:
        for source in sorted(out["source"].unique()):
            rows = (out["source"] == source) & (out["split"] != "test")
            names = sorted(groups[rows].unique())
            random.Random(0).shuffle(names)
            number = max(1, round(val_share * len(names))) if len(names) > 1 else 0
            if len(names) == 1:
                problems.append(Problem(source, "expected 2 recordings or more to draw val from, found 1"))
            out.loc[rows, "split"] = "train"
            out.loc[rows & groups.isin(names[:number]), "split"] = "val"
    return WtsTable(out.reset_index(drop=True), problems)
