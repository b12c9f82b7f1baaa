"""Read a WTS / BDD_PC_5K download as one table: one row per scenario, view, video and phase.

    from beit3lib.data.wts import read_wts
    phases, problems, counts = read_wts("data/wts")

Every file is located from its path alone: `…/videos/…/<split>/…/<scenario>/<view>/<video>.mp4` and
`…/annotations/caption/<split>/…/<scenario>/<view>/<scenario>_caption.json` are WTS, the same without the two folders
`<scenario>/<view>` is BDD_PC_5K. The root may be the download, a folder above it, or one that contains the public test
download beside the rest. A file that cannot be used becomes a `Problem`; all other files are read.
"""

import os
import random
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.files import FileError, Problem, finite, printable, read_json

SPLITS = ("train", "val", "test")
VIEWS = ("overhead_view", "vehicle_view")
PHASES = ("prerecognition", "recognition", "judgement", "action", "avoidance")
COLUMNS = ("split source scenario view video video_path label phase start_s end_s caption_vehicle caption_pedestrian").split()

MAX_DEPTH = 12  # folders below the root; the deepest known file is 10 folders below it
MAX_LISTED = 100  # problems that are listed per file; one file of a million broken phases must not fill the report
MAX_SECONDS = 1e6  # the longest video of WTS has 200 s; larger times are nanoseconds or garbage


class WtsTable(NamedTuple):
    """The phases (columns `COLUMNS`), the problems, and how many files, phases, videos and rows were used or skipped."""

    phases: pd.DataFrame
    problems: list[Problem]
    counts: dict[str, int]


class WtsFile(NamedTuple):
    """One file of a download. `kind`: caption, video, bbox_annotated or bbox_generated; `subject` is that of boxes."""

    kind: str
    split: str
    source: str
    scenario: str
    view: str
    subject: str
    path: Path


# --- names ---------------------------------------------------------------------------------------------------------


def video_stem(video: str) -> str:
    """Strip `.mp4` and nothing else, because names contain other dots (192.168.0.14)."""
    return video[:-4] if video.lower().endswith(".mp4") else video


def parse_phase(label: Any) -> int | None:
    """Return the phase number 0–4 of a label, which is a number in WTS ("4", "04") and a word in BDD ("avoidance")."""
    text = str(label).strip().lower()
    if text in PHASES:
        return PHASES.index(text)
    match = re.fullmatch(r"0*([0-4])", text)  # int() would accept other digits, and refuse 5,000 of them
    return int(match[1]) if match else None


def recording_group(scenario: str) -> str:
    """Return the recording that a scenario was cut from: its name without `_event_N` and `_TN`.

    Scenarios of one recording share location, people and light, so train and val must not share a recording.
    """
    return re.sub(r"_(event_\d+|T\d+)(?=_|$)", "", scenario)


# --- finding files -------------------------------------------------------------------------------------------------


def list_files(root: str | Path, problems: list[Problem] | None = None, skip: Iterable[str] = ()) -> Iterator[Path]:
    """Yield all files below `root`, sorted by name within each folder; hidden names and folders in `skip` are omitted.

    Links to folders are followed, except to a folder that contains them. Unreadable folders and names that are not
    UTF-8 are appended to `problems`.
    """
    problems = [] if problems is None else problems
    root = Path(root)

    def note(path: str, what: str, todo: str = "") -> None:
        problems.append(Problem(printable(Path(os.path.relpath(path, root)).as_posix()), what, todo))

    def note_unreadable(error: OSError) -> None:
        note(error.filename, f"expected a readable folder, found {error.strerror}; skipped", "check its permissions")

    above = {str(root): (os.path.realpath(root),)}  # the real paths of a folder and of the folders that lead to it
    for folder, dirs, files in os.walk(root, onerror=note_unreadable, followlinks=True):
        chain, kept = above.pop(folder), []
        for name in sorted(dirs):
            path = os.path.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(chain[-1], name)
            if name.startswith(".") or name in skip or len(chain) > MAX_DEPTH:
                continue
            if real in chain:
                note(path, "a link to a folder that contains it; not followed")
            elif printable(name) != name:
                note(path, "expected a folder name in UTF-8; skipped", "rename it")
            else:
                above[path] = (*chain, real)
                kept.append(name)
        dirs[:] = kept
        for name in sorted(files):
            if name.startswith("."):  # .DS_Store, and ._… that macOS adds to archives
                continue
            if printable(name) != name:
                note(os.path.join(folder, name), "expected a file name in UTF-8; skipped", "rename it")
            else:
                yield Path(folder, name)


def locate(path: Path) -> WtsFile | None:
    """Return what a file is by the folders in its path (relative to the root); None if it is not part of WTS."""
    parts = path.parts
    tops = [i for i, part in enumerate(parts) if part in ("annotations", "videos")]
    split_at = next((i for i in range(tops[-1] + 1, len(parts) - 1) if parts[i] in SPLITS), None) if tops else None
    if split_at is None:
        return None
    between = parts[tops[-1] + 1 : split_at]
    # normal_trimmed and the public test's public, public_challenge are folders around scenarios, not scenarios
    inside = [p for p in parts[split_at + 1 : -1] if p != "normal_trimmed" and not p.startswith("public")]
    if parts[tops[-1]] == "videos":
        kind, ending = "video", ".mp4"
    elif between in ((), ("caption",)):
        kind, ending = "caption", "_caption.json"
    elif between[0] in ("bbox_annotated", "bbox_generated"):
        kind, ending = between[0], "_bbox.json"
    else:
        return None
    if not path.name.lower().endswith(ending):
        return None
    subject = "vehicle" if "vehicle" in between else "pedestrian"  # boxes of BDD have no such folder: the pedestrian's
    if len(inside) == 2 and inside[1] in VIEWS:
        return WtsFile(kind, parts[split_at], "wts", inside[0], inside[1], subject, path)
    stem = path.name[: -len(ending)]
    return None if inside else WtsFile(kind, parts[split_at], "bdd", stem, "vehicle_view", subject, path)


def find_wts(path: str | Path) -> Path | None:
    """Return the folder to give to `read_wts`, or None if there is no WTS download at `path`.

    It is `path` itself if a caption file and a video are below it, or a folder above it if `path` is inside the
    `annotations` or `videos` folder of a download. `~` is expanded, and links are followed.
    """
    path = Path(path).expanduser()
    above = [p.parent for p in (path, *path.parents) if p.name in ("annotations", "videos")]
    for root in [path, *above]:
        wanted = {"caption", "video"}
        for file in list_files(root, skip=("bbox_annotated", "bbox_generated")) if root.is_dir() else ():
            found = locate(file.relative_to(root))
            wanted -= {found.kind} if found else set()
            if not wanted:
                return root
    return None


class Report:
    """Collects the problems and counts of a reading step; lists the first `MAX_LISTED` problems of each file."""

    def __init__(self, root: Path):
        self.root = root
        self.counts: Counter = Counter()
        self._problems: list[Problem] = []
        self._per_file: Counter = Counter()

    def add(self, where: str | Path, what: str, todo: str = "") -> None:
        where = Path(os.path.relpath(where, self.root)).as_posix() if isinstance(where, Path) else where
        self._per_file[where] += 1
        if self._per_file[where] <= MAX_LISTED:
            self._problems.append(Problem(printable(where), printable(what), todo))

    @property
    def problems(self) -> list[Problem]:
        more = [(where, number - MAX_LISTED) for where, number in self._per_file.items() if number > MAX_LISTED]
        return self._problems + [Problem(where, f"{number:,} more problems in this file") for where, number in more]


def cap_problems(problems: list[Problem], where: str) -> list[Problem]:
    """Return the first `MAX_LISTED` of many problems of one kind, and one that counts the others."""
    more = len(problems) - MAX_LISTED
    return problems[:MAX_LISTED] + ([Problem(where, f"{more:,} more problems of this kind")] if more > 0 else [])


Camera = tuple[str, str, str]  # split, scenario, view


def _find_files(report: Report, splits: Iterable[str]) -> tuple[dict[Camera, WtsFile], dict[Camera, dict[str, Path]]]:
    """Return the caption file and the videos ({stem: path}) of each split, scenario and view."""
    captions: dict[Camera, WtsFile] = {}
    videos: dict[Camera, dict[str, Path]] = defaultdict(dict)
    other_splits, walked = set(), []
    for path in list_files(report.root, walked, skip=("bbox_annotated", "bbox_generated")):
        file = locate(path.relative_to(report.root))
        if file is None:
            if path.name.endswith("_caption.json"):
                report.add(path, "expected …/caption/<split>/<scenario>/<view>/ above it, found other folders; skipped")
            continue
        key = (file.split, file.scenario, file.view)
        if file.split not in splits:
            other_splits |= {file.split} if file.kind == "caption" else set()
        elif file.kind == "video":
            videos[key].setdefault(video_stem(path.name), path)
        else:
            report.counts["caption_files"] += 1
            if captions.setdefault(key, file) is not file:
                report.counts["caption_files_skipped"] += 1
                report.add(path, f"the same scenario and view as {captions[key].path.as_posix()}; skipped")
    for problem in walked:
        report.add(*problem)
    if not captions and other_splits:
        raise ValueError(f"{report.root}: expected caption files of {' or '.join(splits)}, found only those of other splits")
    return captions, videos


# --- one caption file ----------------------------------------------------------------------------------------------


def _show(value: Any) -> str:
    """A value from outside for a message: short, however long it is."""
    return reprlib.repr(value)


def clean_text(text: str) -> str:
    """Replace what no CSV or JSON file can hold (lone surrogates, NUL) by U+FFFD."""
    return printable(text).replace("\0", "\ufffd")


def _read_caption_file(report: Report, file: WtsFile) -> tuple[list[str], list[tuple]] | None:
    """Return the stems of the listed videos and the phases of a caption file; None if it cannot be used."""
    path, where = report.root / file.path, file.path.as_posix()
    try:
        content = read_json(path, dict)
        if not isinstance(content.get("event_phase"), list):
            raise FileError(f"{path}: expected a list event_phase, found {_show(content.get('event_phase'))}")
    except (OSError, ValueError) as error:
        report.add(where, f"{str(error).removeprefix(f'{path}: ')}; its videos are skipped", "download this file again")
        report.counts["caption_files_skipped"] += 1
        return None
    report.counts["caption_files_used"] += 1
    phases: dict[int, tuple] = {}
    for number, entry in enumerate(content["event_phase"]):
        read = _read_phase(report, file, where, number, entry)
        if read and read[1] in phases:
            report.add(where, f"phase {read[0]} is in this file twice; the second is skipped")
            read = None
        report.counts.update(phases=1, phases_used=int(read is not None), phases_skipped=int(read is None))
        if read:
            phases[read[1]] = read
    if not content["event_phase"]:
        report.add(where, "expected phases, found an empty event_phase; no row comes from it")
    return _listed_videos(report, file, where, content), list(phases.values())


def _listed_videos(report: Report, file: WtsFile, where: str, content: dict) -> list[str]:
    key = "video_name" if file.source == "bdd" else {"overhead_view": "overhead_videos"}.get(file.view, "vehicle_view")
    listed = content.get(key) or []
    listed = listed if isinstance(listed, list) else [listed]
    names = [clean_text(os.path.basename(name.strip())) for name in listed if isinstance(name, str) and name.strip()]
    if len(names) < len([name for name in listed if name != ""]):
        report.add(where, f"expected names of videos in {key}, found {_show(content[key])}")
    stems = list(dict.fromkeys(map(video_stem, names)))
    if file.source == "bdd" and stems != [file.scenario]:
        if stems:
            report.add(where, f"expected video_name {file.scenario}.mp4, found {_show(stems)}; the file's own name is used")
        return [file.scenario]
    return stems


def _read_phase(report: Report, file: WtsFile, where: str, number: int, entry: Any) -> tuple | None:
    """Return (label, phase, start_s, end_s, caption_vehicle, caption_pedestrian) of one entry of event_phase."""
    labels = entry.get("labels") if isinstance(entry, dict) else None
    label = labels[0] if isinstance(labels, list) and labels else labels
    phase = parse_phase(label)
    if phase is None:
        expected = f"expected a label 0–4 or one of {', '.join(PHASES)}"
        report.add(where, f"phase entry {number}: {expected}, found {_show(labels)}; skipped")
        return None
    label = str(label).strip()
    times_s = [finite(entry.get(name)) for name in ("start_time", "end_time")]
    if any(time_s is None or abs(time_s) > MAX_SECONDS for time_s in times_s):
        found = _show([entry.get("start_time"), entry.get("end_time")])
        report.add(where, f"phase {label}: expected start_time and end_time in seconds, found {found}; skipped")
        return None
    if times_s[0] > times_s[1]:
        report.add(where, f"phase {label}: ends at {times_s[1]} s, before it starts at {times_s[0]} s; times are swapped")
    captions: list[str | None] = []
    for subject in ("vehicle", "pedestrian"):
        caption = entry.get(f"caption_{subject}")
        if not isinstance(caption, str) or not re.search(r"\w", caption):
            if file.split != "test":
                report.add(where, f"phase {label}: expected text in caption_{subject}, found {_show(caption)}; no caption")
            caption = None
        elif clean_text(caption) != caption:
            report.add(where, f"phase {label}: caption_{subject} has characters that no file can hold; replaced by U+FFFD")
            caption = clean_text(caption)
        captions.append(caption)
    return (label, phase, min(times_s), max(times_s), *captions)


# --- the table -----------------------------------------------------------------------------------------------------


def read_wts(root: str | Path, split: str | None = None, keep_missing: bool = False) -> WtsTable:
    """Read a WTS / BDD_PC_5K download: one row per scenario, view, video and phase, sorted in this order.

    Columns: split (train|val|test), source (wts|bdd), scenario, view (overhead_view|vehicle_view; BDD: vehicle_view),
    video (`<name>.mp4`), video_path, label (as written, because the submission needs it; one label for all views of a
    segment), phase (0–4), start_s and end_s (of this view: the views of a scenario have different clocks),
    caption_vehicle and caption_pedestrian (missing in the test split).

    A listed video that is not on disk is a problem and skipped; with `keep_missing` its rows are kept with video_path
    "", to list every segment of a submission. Raises FileNotFoundError if there is no WTS download at `root`, and
    ValueError for an unknown or absent split.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)} or None, found {split!r}")
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise FileNotFoundError(f"{root}: expected the folder of a WTS download, found {what}. Give its path.")
    report = Report(root)
    captions, videos = _find_files(report, SPLITS if split is None else (split,))
    if not captions:
        names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        found = (", ".join(names[:8]) + (", …" if len(names) > 8 else "")) or "an empty folder"
        raise FileNotFoundError(
            f"{root}: expected annotations/caption/{{train,val,test}} here or in folders below, found {printable(found)}. "
            "Unpack the WTS download here, or give the folder that contains it."
        )
    rows: list[tuple] = []
    for key, file in captions.items():
        rows += _rows_of(report, file, videos.pop(key, {}), keep_missing)
    _report_uncaptioned(report, videos, {file.split for file in captions.values()})
    phases = pd.DataFrame.from_records(rows, columns=COLUMNS)
    phases = phases.astype({"phase": "int64", "start_s": "float64", "end_s": "float64"})
    phases = phases.sort_values(["scenario", "split", "view", "video", "phase"], ignore_index=True)
    # "04" in one view and "4" in another are one segment
    phases["label"] = phases.groupby(["split", "scenario", "phase"])["label"].transform("first")
    for group, shared in _shared_groups(phases).items():
        report.add(group, f"one recording in both train and val: {', '.join(shared)}")
    counts = {f"{kind}{end}": report.counts[f"{kind}{end}"] for kind in _COUNTED for end in ("", "_used", "_skipped")}
    expected = report.counts["rows_expected"]
    counts |= {"videos_without_captions": report.counts["videos_without_captions"], "rows_expected": expected}
    return WtsTable(phases, report.problems, counts | {"rows": len(phases), "rows_skipped": expected - len(phases)})


_COUNTED = ("caption_files", "phases", "videos")


def _rows_of(report: Report, file: WtsFile, found: dict[str, Path], keep_missing: bool) -> list[tuple]:
    """Return the rows of one caption file; `found` are the videos of its scenario and view on disk."""
    read = _read_caption_file(report, file)
    if read is None:
        report.counts.update(videos=len(found), videos_skipped=len(found))
        return []
    (listed, phases), where = read, file.path.as_posix()
    if not listed and not found:
        report.add(where, "lists no video, and none of this scenario and view is on disk; no row comes from it")
    rows = []
    for stem in dict.fromkeys([*listed, *sorted(found)]):
        report.counts.update(videos=1, rows_expected=len(phases))
        report.counts["videos_used" if stem in found else "videos_skipped"] += 1
        if stem not in found:
            report.add(where, f"video {stem}.mp4 is listed, but not on disk; skipped", "download it again if it exists")
        elif stem not in listed:
            report.add(where, f"video {stem}.mp4 is on disk, but not listed; read with the times of this view")
        if stem in found or keep_missing:
            about = (file.split, file.source, file.scenario, file.view, f"{stem}.mp4", str(found.get(stem, "")))
            rows += [(*about, *phase) for phase in phases]
    return rows


def _report_uncaptioned(report: Report, videos: dict[Camera, dict[str, Path]], captioned: set[str]) -> None:
    """Report videos that no caption file describes, in one line where a whole split has no caption file."""
    without: Counter = Counter()
    for (split, _, _), found in videos.items():
        report.counts["videos_without_captions"] += len(found)
        if split not in captioned:
            without[split] += len(found)
            continue
        for path in found.values():
            report.add(path, "expected a caption file for this scenario and view, found none; skipped")
    for split, number in without.items():
        report.add(f"videos/{split}", f"{number} videos, but no caption file of this split; skipped")


def _shared_groups(phases: pd.DataFrame) -> dict[str, list[str]]:
    """Return the recordings that are in both train and val: {group: [scenario (split), …]}."""
    pairs = phases[phases["split"] != "test"][["scenario", "split"]].drop_duplicates()
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for scenario, split in pairs.itertuples(index=False):
        groups[recording_group(scenario)].append((scenario, split))
    shared = {group: pairs for group, pairs in groups.items() if len({split for _, split in pairs}) > 1}
    return {group: [f"{scenario} ({split})" for scenario, split in pairs] for group, pairs in sorted(shared.items())}


def list_segments(phases: pd.DataFrame) -> pd.DataFrame:
    """Return one row per segment (split, scenario, phase): split, source, scenario, label, phase and both captions."""
    columns = ["split", "source", "scenario", "label", "phase", "caption_vehicle", "caption_pedestrian"]
    return phases.drop_duplicates(["split", "scenario", "phase"])[columns].reset_index(drop=True)


# --- train and val -------------------------------------------------------------------------------------------------


def split_by_group(phases: pd.DataFrame, val_share: float | None = None, seed: int = 0) -> WtsTable:
    """Make train and val share no recording (see `recording_group`); rows of the test split are kept as they are.

    Without `val_share` the official split is kept: recordings in both splits stay in val, and their train rows are
    dropped. With `val_share`, between 0 and 1, train and val are joined, and that share of the recordings of each
    source (wts, bdd) is drawn for val, at least one where there are two; no row is dropped. In the counts,
    rows = train + val + test + skipped.
    """
    if val_share is not None and not 0 < val_share < 1:
        raise ValueError(f"val_share: expected a share between 0 and 1, or None for the official split, found {val_share!r}")
    out, problems = phases.copy(), []
    groups = out["scenario"].map(recording_group)
    if val_share is None:
        shared = _shared_groups(out)
        double = groups.isin(list(shared)) & (out["split"] == "train")
        dropped = groups[double].value_counts()
        for group, names in shared.items():
            what = f"one recording in both train and val; {dropped[group]} train rows skipped: {', '.join(names)}"
            problems.append(Problem(group, what))
        out = out[~double]
    else:
        for source in sorted(out["source"].unique()):
            rows = (out["source"] == source) & (out["split"] != "test")
            names = sorted(groups[rows].unique())
            random.Random(seed).shuffle(names)
            number = max(1, round(val_share * len(names))) if len(names) > 1 else 0
            if len(names) == 1:
                problems.append(Problem(source, "1 recording: expected at least 2 to draw a validation split from"))
            out.loc[rows, "split"] = "train"
            out.loc[rows & groups.isin(names[:number]), "split"] = "val"
    counts = {"rows": len(phases), **{split: int((out["split"] == split).sum()) for split in SPLITS}}
    return WtsTable(out.reset_index(drop=True), problems, counts | {"skipped": len(phases) - len(out)})
