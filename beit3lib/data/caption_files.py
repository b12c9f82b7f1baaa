"""Read and write caption files, one per subject and aspect, as the original repository has them."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from beit3lib.data.aspects import split_caption
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.data.wts import parse_phase
from beit3lib.files import Problem, printable, read_json, write_json

FILE_NAME = re.compile(r"(vehicle|pedestrian)[-_]caption[-_](\w+?(?:-\w+)?)[-_]datasets\.json", re.IGNORECASE)
EXAMPLE = "vehicle_caption_moving_datasets.json"


class CaptionTable(NamedTuple):
    """One row per scenario, video, label, phase, subject, aspect and caption; and the problems of the files."""

    captions: pd.DataFrame
    problems: list[Problem]


def caption_file_name(subject: str, aspect: str) -> str:
    """Return the original repository's name of a caption file, such as `vehicle_caption_moving_datasets.json`."""
    return f"{subject}_caption_{aspect}_datasets.json"


def caption_type_of(path: Path) -> tuple[str, str] | None:
    """Return (subject, aspect) from the name of a caption file, spelled with `-` or `_`; None for any other name."""
    match = FILE_NAME.fullmatch(path.name)
    aspect = match[2].lower().replace("-", "_") if match else None
    return (match[1].lower(), aspect) if aspect in ASPECTS else None


def write_caption_files(phases: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write one caption file per subject and aspect of a phases table, and return their paths.

    All videos of a scenario share its captions. If those of a phase differ between views, the first view's is written.
    """
    contents = {(subject, aspect): {} for subject in SUBJECTS for aspect in ASPECTS}
    for scenario, rows in phases.groupby("scenario", sort=True):
        videos = sorted(rows["video"].unique())
        for subject in SUBJECTS:
            captioned = rows[rows[f"caption_{subject}"].notna()].drop_duplicates("phase").sort_values("phase")
            for label, caption in zip(captioned["label"], captioned[f"caption_{subject}"], strict=True):
                for aspect, text in split_caption(caption, subject).items():
                    entry = contents[subject, aspect].setdefault(scenario, {"videos": videos, "caption": []})
                    entry["caption"].append({"label": str(label), "caption": text})
    return [write_json(Path(folder) / caption_file_name(*of), content) for of, content in contents.items()]


def read_caption_files(source: str | Path | Iterable[str | Path]) -> CaptionTable:
    """Read caption files (a folder, a path or several), of `write_caption_files` or of the original repository.

    Every caption of a scenario is paired with every video of the scenario. Files and entries that cannot be used are
    problems.
    """
    if isinstance(source, (str, Path)):
        paths = sorted(Path(source).glob("*.json")) if Path(source).is_dir() else [Path(source)]
    else:
        paths = [Path(path) for path in source]
    if not paths:
        raise FileNotFoundError(f"{source}: expected caption files such as {EXAMPLE}, found none")
    rows: list[tuple] = []
    problems: list[Problem] = []
    for path in paths:
        if (caption_type := caption_type_of(path)) is None:
            problems.append(Problem(path.name, f"expected a name like {EXAMPLE}; skipped", "rename it"))
            continue
        for scenario, videos, label, phase, caption in read_caption_file(path, problems):
            rows += [(scenario, video, label, phase, *caption_type, caption) for video in videos]
    columns = ["scenario", "video", "label", "phase", "subject", "aspect", "caption"]
    return CaptionTable(pd.DataFrame(rows, columns=columns).astype({"phase": "int64"}), problems)


def read_caption_file(
    path: Path, problems: list[Problem], keep_empty: bool = False
) -> Iterator[tuple[str, list[str], str, int, str | None]]:
    """Yield (scenario, videos, label, phase, caption) of one caption file; append entries that are skipped to `problems`.

    With `keep_empty`, for files of segments to caption, a caption without words is yielded as None instead of skipped.
    """
    try:
        content = read_json(path, dict)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        problems.append(Problem(path.name, f"{reason}; skipped", "make or download it again"))
        return
    for scenario, entry in content.items():
        where = f"{path.name}: {printable(scenario)}"
        videos, captions = (
            (entry.get("videos"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        )
        names = (
            [printable(video) for video in videos if isinstance(video, str)]
            if isinstance(videos, list)
            else []
        )
        if not names or len(names) < len(videos) or not isinstance(captions, list):
            problems.append(
                Problem(where, "expected lists videos and caption, found something else; skipped")
            )
            continue
        for item in captions:
            label, caption = (
                (item.get("label"), item.get("caption")) if isinstance(item, dict) else (None, None)
            )
            if (phase := parse_phase(label)) is None:
                problems.append(
                    Problem(where, f"unknown label {repr(label)[:60]}; skipped", "labels are 0 to 4")
                )
                continue
            text = printable(caption).strip() if isinstance(caption, str) else ""
            if not text and not keep_empty:
                problems.append(Problem(f"{where} phase {label}", "a caption without words; skipped"))
                continue
            yield printable(scenario), names, str(label).strip(), phase, text or None
