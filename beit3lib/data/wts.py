"""Read a WTS / BDD_PC_5K download as one table: one row per scenario, view, video and phase.

    from beit3lib.data.wts import read_wts
    phases, problems, counts = read_wts("data/wts")

Every file is located from its path alone (see `LAYOUT`): `…/videos/<split>/<scenario>/<view>/<video>.mp4` and
`…/annotations/caption/<split>/<scenario>/<view>/<scenario>_caption.json` are WTS; the same paths without
`<scenario>/<view>` are BDD_PC_5K. The root may be the download, a folder above it, or one that also contains the public
test download. A file that cannot be used becomes a `Problem`, and all other files are read. The "irregularities" that
comments number are the thirteen of WTS that tests/data/test_wts.py tests.
"""

import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from reprlib import repr as show  # shortens any value for a message
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.data.schema import PHASE_COLUMNS, PHASES, SPLITS
from beit3lib.files import FileError, Problem, finite, printable, read_json

MAX_DEPTH = 12  # levels of folders below the root; the deepest file of WTS is at level 10
MAX_LISTED = (
    100  # problems listed per file, so that a file of a million broken phases does not fill the report
)
MAX_SECONDS = 1e6  # the longest video of WTS has 200 s; larger times are nanoseconds or garbage

Camera = tuple[str, str, str]  # split, scenario, view


class WtsTable(NamedTuple):
    """The phases (columns `PHASE_COLUMNS`), the problems, and how many files, phases, videos and rows were used or skipped."""

    phases: pd.DataFrame
    problems: list[Problem]
    counts: dict[str, int]


class WtsFile(NamedTuple):
    """One file of a download. `kind`: caption, video, bbox_annotated or bbox_generated; `subject`: whose boxes it has."""

    kind: str
    split: str
    source: str
    scenario: str
    view: str
    subject: str
    path: Path


def video_stem(video: str) -> str:
    """Strip `.mp4` and nothing else, because names contain other dots: 192.168.0.14 (irregularity 9)."""
    return video[:-4] if video.lower().endswith(".mp4") else video


def parse_phase(label: Any) -> int | None:
    """Return the phase number 0–4 of a label: a number in WTS ("4", "04"), a word in BDD ("avoidance") (irregularity 2)."""
    text = str(label).strip().lower()
    if text in PHASES:
        return PHASES.index(text)
    match = re.fullmatch(
        r"0*([0-4])", text
    )  # int() would accept digits of other scripts, and raise at 5,000 of them
    return int(match[1]) if match else None


def recording_group(scenario: str) -> str:
    """Return the recording that a scenario was cut from: its name without `_event_N` and `_TN` (irregularity 10).

    Scenarios of one recording share location, people and light, so train and val must not share a recording.
    """
    return re.sub(r"_(event_\d+|T\d+)(?=_|$)", "", scenario)


def list_files(
    root: str | Path, problems: list[Problem] | None = None, skip: Iterable[str] = ()
) -> Iterator[Path]:
    """Yield all files below `root`, sorted by name within each folder, without hidden names and folders named in `skip`.

    Links to folders are followed, except to a folder that contains the link. Unreadable folders and names that are not
    UTF-8 are appended to `problems`.
    """
    problems = [] if problems is None else problems
    root = Path(root)

    def report(path: str | Path, what: str, todo: str = "") -> None:
        problems.append(Problem(printable(Path(path).relative_to(root).as_posix()), what, todo))

    def report_unreadable(error: OSError) -> None:
        report(
            error.filename,
            f"expected a readable folder, found {error.strerror}; skipped",
            "check its permissions",
        )

    for folder, dirs, files in os.walk(root, onerror=report_unreadable, followlinks=True):
        for names in (
            dirs,
            files,
        ):  # hidden names are .DS_Store, and ._… that macOS adds to archives (irregularity 8)
            names[:] = sorted(name for name in names if not name.startswith("."))
            for name in [name for name in names if printable(name) != name]:
                report(Path(folder, name), "expected a name in UTF-8; skipped", "rename it")
                names.remove(name)
        yield from (Path(folder, name) for name in files)
        followed = []
        for path in (Path(folder, name) for name in dirs if name not in skip):
            if path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):
                report(path, "a link to a folder that contains it; not followed")
            elif len(path.relative_to(root).parts) <= MAX_DEPTH:
                followed.append(path.name)
        dirs[:] = followed


LAYOUT = re.compile(
    r"""(?:.*/)?
    (?: (?P<video>videos)
      | annotations (?:/(?P<kind>caption|bbox_annotated|bbox_generated))? (?:/(?P<subject>pedestrian|vehicle))? )
    /(?P<split>train|val|test)
    (?:/normal_trimmed | /public[^/]*)*  # folders around scenarios; the test download has public and public_challenge
    (?:/(?P<scenario>[^/]+)/(?P<view>overhead_view|vehicle_view))?  # only in WTS
    /(?P<name>[^/]+)""",
    re.VERBOSE,
)


def locate(path: Path) -> WtsFile | None:
    """Return what a file is by the folders in its path (relative to the root); None if it is not part of WTS."""
    found = LAYOUT.fullmatch(path.as_posix())
    if found is None:
        return None
    kind = (
        "video" if found["video"] else found["kind"] or "caption"
    )  # some copies of BDD lack the folder caption
    ending = {"video": ".mp4", "caption": "_caption.json"}.get(kind, "_bbox.json")
    if not path.name.lower().endswith(ending):
        return None
    subject = (
        found["subject"] or "pedestrian"
    )  # BDD has boxes of pedestrians only, and no folder for the subject
    if found["scenario"]:
        return WtsFile(kind, found["split"], "wts", found["scenario"], found["view"], subject, path)
    return WtsFile(kind, found["split"], "bdd", path.name[: -len(ending)], "vehicle_view", subject, path)


def find_wts(path: str | Path) -> Path | None:
    """Return the folder to give to `read_wts`, or None if there is no WTS download at `path`.

    It is `path` itself if a caption file and a video are below it, or a folder above it if `path` is inside the
    `annotations` or `videos` folder of a download. `~` is expanded, and links are followed.
    """
    path = Path(path).expanduser()
    above = [p.parent for p in (path, *path.parents) if p.name in ("annotations", "videos")]
    for root in [path, *above]:
        missing = {"caption", "video"}
        for file in list_files(root, skip=("bbox_annotated", "bbox_generated")):
            found = locate(file.relative_to(root))
            missing.discard(found.kind if found else "")
            if not missing:
                return root
    return None


def cap_problems(problems: list[Problem], where: str) -> list[Problem]:
    """Return the first `MAX_LISTED` problems, and one that counts the others."""
    more = len(problems) - MAX_LISTED
    return problems[:MAX_LISTED] + ([Problem(where, f"{more:,} more problems")] if more > 0 else [])


class Report:
    """Walks a download, and collects problems and counts; all paths are relative to its root."""

    def __init__(self, root: Path):
        self.root = root
        self.counts: Counter = Counter()
        self._by_file: dict[str, list[Problem]] = defaultdict(list)

    def add(self, where: str | Path, what: str, todo: str = "") -> None:
        where = printable(where.as_posix() if isinstance(where, Path) else where)
        self._by_file[where].append(Problem(where, printable(what), todo))

    @property
    def problems(self) -> list[Problem]:
        return [problem for where, found in self._by_file.items() for problem in cap_problems(found, where)]

    def located(self, skip: Iterable[str]) -> Iterator[tuple[Path, WtsFile | None]]:
        """Yield the path of every file with what `locate` returns for it."""
        problems: list[Problem] = []
        for path in list_files(self.root, problems, skip):
            relative = path.relative_to(self.root)
            yield relative, locate(relative)
        for problem in problems:
            self.add(*problem)

    def read_json(self, path: Path, key: str, lost: str) -> dict | None:
        """Return a JSON object with a list at `key`; for any other file report it and what is `lost`, and return None."""
        try:
            content = read_json(self.root / path, dict)
            if not isinstance(content.get(key), list):
                raise FileError(f"expected a list {key}, found {show(content.get(key))}")
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{self.root / path}: ")
            self.add(path, f"{reason}; its {lost} are skipped", "download this file again")
            return None
        return content


def _read_caption_file(
    report: Report, file: WtsFile, found: dict[str, Path], keep_missing: bool
) -> list[tuple]:
    """Return the rows of one caption file; `found` are the videos of its scenario and view on disk, by stem."""
    content = report.read_json(file.path, "event_phase", "videos")
    if content is None:
        report.counts["videos"] += len(found)
        return []
    report.counts["caption_files_used"] += 1
    phases: dict[int, tuple] = {}  # scenarios have one to five phases, in any order (irregularities 4 and 5)
    for number, entry in enumerate(content["event_phase"]):
        phase = _read_phase(report, file, number, entry)
        if phase and phase[1] in phases:
            report.add(file.path, f"phase {phase[0]} is in this file twice; the second is skipped")
        elif phase:
            phases[phase[1]] = phase
    report.counts.update(phases=len(content["event_phase"]), phases_used=len(phases))
    if not content["event_phase"]:
        report.add(file.path, "expected phases, found an empty event_phase; no row comes from it")

    listed = _listed_videos(report, file, content)
    if not listed and not found:
        report.add(
            file.path, "lists no video, and none of this scenario and view is on disk; no row comes from it"
        )
    rows = []
    for stem in dict.fromkeys(
        [*listed, *sorted(found)]
    ):  # each has videos that the other lacks (irregularity 8)
        report.counts.update(videos=1, videos_used=int(stem in found), rows_expected=len(phases))
        if stem not in found:
            report.add(
                file.path,
                f"video {stem}.mp4 is listed, but not on disk; skipped",
                "download it again if it exists",
            )
        elif stem not in listed:
            report.add(
                file.path, f"video {stem}.mp4 is on disk, but not listed; read with the times of this view"
            )
        if stem in found or keep_missing:
            path = str(report.root / found[stem]) if stem in found else ""
            about = (file.split, file.source, file.scenario, file.view, f"{stem}.mp4", path)
            rows += [(*about, *phase) for phase in phases.values()]
    return rows


def _listed_videos(report: Report, file: WtsFile, content: dict) -> list[str]:
    if file.source == "bdd":
        return [file.scenario]  # a caption file of BDD has the name of its one video
    key = (
        "overhead_videos" if file.view == "overhead_view" else "vehicle_view"
    )  # a list of names, and one name
    listed = content.get(key) or []
    listed = listed if isinstance(listed, list) else [listed]
    names = [
        printable(os.path.basename(name.strip())) for name in listed if isinstance(name, str) and name.strip()
    ]
    if len(names) < len([name for name in listed if name != ""]):
        report.add(file.path, f"expected names of videos in {key}, found {show(content[key])}")
    return list(dict.fromkeys(map(video_stem, names)))


def _read_phase(report: Report, file: WtsFile, number: int, entry: Any) -> tuple | None:
    """Return (label, phase, start_s, end_s, caption_vehicle, caption_pedestrian) of one entry of event_phase."""
    labels = entry.get("labels") if isinstance(entry, dict) else None
    label = labels[0] if isinstance(labels, list) and labels else labels
    phase = parse_phase(label)
    if phase is None:
        expected = f"expected a label 0–4 or one of {', '.join(PHASES)}"
        report.add(file.path, f"phase entry {number}: {expected}, found {show(labels)}; skipped")
        return None
    label = str(label).strip()
    # A phase may have zero length (irregularity 3) or end after its video (6): motion_blur.py handles both. fps is not
    # read, because it is wrong in 4 to 6 % of the files of BDD (7).
    times_s = [finite(entry.get(name)) for name in ("start_time", "end_time")]
    if any(time_s is None or abs(time_s) > MAX_SECONDS for time_s in times_s):
        found = show([entry.get("start_time"), entry.get("end_time")])
        report.add(
            file.path, f"phase {label}: expected start_time and end_time in seconds, found {found}; skipped"
        )
        return None
    if times_s[0] > times_s[1]:
        report.add(
            file.path,
            f"phase {label}: ends at {times_s[1]} s, before it starts at {times_s[0]} s; times are swapped",
        )
    captions: list[str | None] = []
    for subject in ("vehicle", "pedestrian"):
        caption = entry.get(f"caption_{subject}")
        if not isinstance(caption, str) or not re.search(r"\w", caption):
            if file.split != "test":
                report.add(
                    file.path,
                    f"phase {label}: expected text in caption_{subject}, found {show(caption)}; no caption",
                )
            caption = None
        elif printable(caption) != caption:
            report.add(
                file.path,
                f"phase {label}: caption_{subject} has characters that no file can hold; replaced by U+FFFD",
            )
            caption = printable(caption)
        captions.append(caption)
    return (label, phase, min(times_s), max(times_s), *captions)


def read_wts(root: str | Path, split: str | None = None, keep_missing: bool = False) -> WtsTable:
    """Read a WTS / BDD_PC_5K download: one row per scenario, view, video and phase, sorted in this order.

    Columns: split (train|val|test), source (wts|bdd), scenario, view (overhead_view|vehicle_view; BDD: vehicle_view),
    video (`<name>.mp4`), video_path, label (as written, because the submission needs it; one label for all views of a
    segment), phase (0–4), start_s and end_s (by the clock of this view), caption_vehicle and caption_pedestrian (missing
    in the test split).

    A listed video that is not on disk is a problem and skipped; with `keep_missing` its rows are kept with video_path
    "", to list every segment of a submission. Raises FileNotFoundError if there is no WTS download at `root`, and
    ValueError for an unknown or absent split.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)} or None, found {split!r}")
    report = Report(Path(root).expanduser())
    captions, videos = _find_files(report, split)
    rows: list[tuple] = []
    for camera, file in captions.items():  # clocks of views differ by 25 to 36 s (irregularity 1)
        rows += _read_caption_file(report, file, videos.pop(camera, {}), keep_missing)
    uncaptioned = defaultdict(list)
    for camera, found in videos.items():
        uncaptioned[camera[0]] += found.values()
    for name, paths in uncaptioned.items():
        report.counts["videos_without_captions"] += len(paths)
        examples = ", ".join(path.name for path in paths[:5])
        report.add(
            f"videos/{name}", f"{len(paths)} videos without a caption file, such as {examples}; skipped"
        )
    phases = pd.DataFrame.from_records(rows, columns=PHASE_COLUMNS)
    phases = phases.astype({"phase": "int64", "start_s": "float64", "end_s": "float64"})
    phases = phases.sort_values(["scenario", "split", "view", "video", "phase"], ignore_index=True)
    # "04" in one view and "4" in another are one segment
    phases["label"] = phases.groupby(["split", "scenario", "phase"])["label"].transform("first")
    for group, scenarios in _shared_groups(phases).items():
        report.add(group, f"one recording in both train and val: {', '.join(scenarios)}")
    counts = {name: report.counts[name] for name in ("videos_without_captions", "rows_expected")} | {
        "rows": len(phases)
    }
    counts["rows_skipped"] = counts["rows_expected"] - len(phases)
    for kind in ("caption_files", "phases", "videos"):
        found, used = report.counts[kind], report.counts[f"{kind}_used"]
        counts |= {kind: found, f"{kind}_used": used, f"{kind}_skipped": found - used}
    return WtsTable(phases, report.problems, counts)


def _find_files(
    report: Report, split: str | None
) -> tuple[dict[Camera, WtsFile], dict[Camera, dict[str, Path]]]:
    """Return the caption file and the videos ({stem: path}) of each split, scenario and view."""
    captions: dict[Camera, WtsFile] = {}
    videos: dict[Camera, dict[str, Path]] = defaultdict(dict)
    other_splits = False
    for path, file in report.located(skip=("bbox_annotated", "bbox_generated")):
        if file is None:
            if path.name.endswith("_caption.json"):
                report.add(
                    path,
                    "expected …/caption/<split>/<scenario>/<view>/ above it, found other folders; skipped",
                )
            continue
        camera = (file.split, file.scenario, file.view)
        if split not in (None, file.split):
            other_splits |= file.kind == "caption"
        elif file.kind == "video":
            videos[camera].setdefault(video_stem(path.name), path)
        else:
            report.counts["caption_files"] += 1
            if captions.setdefault(camera, file) is not file:
                report.add(path, f"the same scenario and view as {captions[camera].path.as_posix()}; skipped")
    if not captions and other_splits:
        raise ValueError(
            f"{report.root}: expected caption files of {split}, found only those of other splits"
        )
    if not captions:
        root = report.root
        names = sorted(printable(path.name) for path in root.glob("[!.]*"))
        found = ", ".join(names[:8]) or (
            "an empty folder" if root.is_dir() else "a file" if root.exists() else "nothing"
        )
        raise FileNotFoundError(
            f"{root}: expected a WTS download with annotations/caption/{{train,val,test}}, here or in folders below, "
            f"found {found}. Unpack the download here, or give the folder that contains it."
        )
    return captions, videos


def _shared_groups(phases: pd.DataFrame) -> dict[str, list[str]]:
    """Return the recordings that are in both train and val, with their scenarios: {group: ["scenario (split)", …]}."""
    scenarios = phases.loc[phases["split"] != "test", ["scenario", "split"]].drop_duplicates()
    return {
        group: [f"{scenario} ({split})" for scenario, split in rows.itertuples(index=False)]
        for group, rows in scenarios.groupby(scenarios["scenario"].map(recording_group))
        if rows["split"].nunique() > 1
    }


def list_segments(phases: pd.DataFrame) -> pd.DataFrame:
    """Return one row per segment (split, scenario, phase): split, source, scenario, label, phase and both captions."""
    columns = ["split", "source", "scenario", "label", "phase", "caption_vehicle", "caption_pedestrian"]
    return phases.drop_duplicates(["split", "scenario", "phase"])[columns].reset_index(drop=True)


def split_by_group(phases: pd.DataFrame, val_share: float | None = None, seed: int = 0) -> WtsTable:
    """Make train and val share no recording (see `recording_group`); rows of the test split are kept as they are.

    Without `val_share` the official split is kept: recordings in both splits, which are 21 in WTS, stay in val, and their
    train rows are dropped. With `val_share`, between 0 and 1, train and val are joined, and that share of the recordings
    of each source (wts, bdd) is drawn for val, at least one where there are two; no row is dropped. In the counts,
    rows = train + val + test + skipped.
    """
    if val_share is not None and not 0 < val_share < 1:
        raise ValueError(
            f"val_share: expected a share between 0 and 1, or None for the official split, found {val_share!r}"
        )
    out, problems = phases.copy(), []
    groups = out["scenario"].map(recording_group)
    if val_share is None:
        for group, scenarios in _shared_groups(out).items():
            dropped = (groups == group) & (phases["split"] == "train")
            what = f"one recording in both train and val; {dropped.sum()} train rows skipped: {', '.join(scenarios)}"
            problems.append(Problem(group, what))
            out = out.drop(index=phases.index[dropped])
    else:
        for source in sorted(out["source"].unique()):
            rows = (out["source"] == source) & (out["split"] != "test")
            names = sorted(groups[rows].unique())
            random.Random(seed).shuffle(names)
            number = max(1, round(val_share * len(names))) if len(names) > 1 else 0
            if len(names) == 1:
                problems.append(
                    Problem(source, "1 recording: expected at least 2 to draw a validation split from")
                )
            out.loc[rows, "split"] = "train"
            out.loc[rows & groups.isin(names[:number]), "split"] = "val"
    counts = {"rows": len(phases), **{split: int((out["split"] == split).sum()) for split in SPLITS}}
    return WtsTable(out.reset_index(drop=True), problems, counts | {"skipped": len(phases) - len(out)})
