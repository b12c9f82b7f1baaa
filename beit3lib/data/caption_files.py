"""Read and write caption files, one per subject and aspect, as the original repository has them.

    {"<scenario>": {"videos": ["a.mp4", …], "caption": [{"label": "0", "caption": "…"}, …]}, …}

Every caption of an entry is paired with every video of the entry. Videos of a scenario with different
captions have entries of their own, named `<scenario>`, `<scenario>#2`, …; the original repository does not
use the names.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from beit3lib.data.aspects import split_caption
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.data.wts import parse_phase
from beit3lib.files import Problem, printable, read_json, write_json

FILE_NAME = re.compile(r"(vehicle|pedestrian)[-_]caption[-_](\w+?(?:-\w+)?)[-_]datasets\.json", re.IGNORECASE)
EXAMPLE = "vehicle_caption_moving_datasets.json"
CAPTION_COLUMNS = ["scenario", "video", "label", "phase", "subject", "aspect", "caption"]


class CaptionTable(NamedTuple):
    """One row per caption and video (columns `CAPTION_COLUMNS`), and the problems of the files."""

    captions: pd.DataFrame
    problems: list[Problem]


def caption_file_name(subject: str, aspect: str) -> str:
    """Return a caption file's name in the original repository: `vehicle_caption_moving_datasets.json`."""
    return f"{subject}_caption_{aspect}_datasets.json"


def caption_type_of(path: Path) -> tuple[str, str] | None:
    """Return (subject, aspect) from a caption file's name, spelled with `-` or `_`; None for other names."""
    match = FILE_NAME.fullmatch(path.name)
    aspect = match[2].lower().replace("-", "_") if match else None
    return (match[1].lower(), aspect) if aspect in ASPECTS else None


def write_caption_files(phases: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Split the captions of a phases table into aspects, and write them as `write_captions` does."""
    rows = []
    for subject in SUBJECTS:
        for row in phases.dropna(subset=[f"caption_{subject}"]).itertuples():
            for aspect, text in split_caption(getattr(row, f"caption_{subject}"), subject).items():
                rows.append((row.scenario, row.video, row.label, row.phase, subject, aspect, text))
    return write_captions(pd.DataFrame(rows, columns=CAPTION_COLUMNS), folder)


def write_captions(table: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write one caption file per subject and aspect of a table with `CAPTION_COLUMNS`; return their paths."""
    paths = []
    for caption_type, rows in table.sort_values("phase", kind="stable").groupby(["subject", "aspect"]):
        texts = defaultdict(dict)  # {(scenario, video): {(label, caption): None}}
        for row in rows.itertuples():
            texts[row.scenario, row.video][str(row.label), row.caption] = None
        groups = defaultdict(list)  # {(scenario, its captions): videos}
        for scenario, video in sorted(texts):
            groups[scenario, tuple(texts[scenario, video])].append(video)
        content, entries = {}, Counter()
        for (scenario, captions), videos in groups.items():
            entries[scenario] += 1
            name = scenario if entries[scenario] == 1 else f"{scenario}#{entries[scenario]}"
            listed = [{"label": label, "caption": caption} for label, caption in captions]
            content[name] = {"videos": videos, "caption": listed}
        paths.append(write_json(Path(folder) / caption_file_name(*caption_type), content))
    return paths


def read_caption_files(source: str | Path) -> CaptionTable:
    """Read a caption file, or all of a folder, of `write_caption_files` or of the original repository.

    Files and entries that cannot be used are problems.
    """
    paths = sorted(Path(source).glob("*.json")) if Path(source).is_dir() else [Path(source)]
    if not paths:
        raise FileNotFoundError(f"{source}: expected caption files such as {EXAMPLE}, found none")
    rows, problems = [], []
    for path in paths:
        if (caption_type := caption_type_of(path)) is None:
            problems.append(Problem(path.name, f"expected a name like {EXAMPLE}; skipped", "rename it"))
            continue
        for scenario, videos, label, phase, caption in read_caption_file(path, problems):
            rows += [(scenario, video, label, phase, *caption_type, caption) for video in videos]
    return CaptionTable(pd.DataFrame(rows, columns=CAPTION_COLUMNS).astype({"phase": "int64"}), problems)


def read_caption_file(
    path: Path, problems: list[Problem], keep_empty: bool = False
) -> Iterator[tuple[str, list[str], str, int, str | None]]:
    """Yield (scenario, videos, label, phase, caption) of one caption file; skipped entries become `problems`.

    With `keep_empty`, for files of segments to caption, a caption without words is yielded as None instead of
    skipped.
    """
    try:
        content = read_json(path, dict)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        problems.append(Problem(path.name, f"{reason}; skipped", "make or download it again"))
        return
    for name, entry in content.items():
        where, scenario = f"{path.name}: {printable(name)}", re.sub(r"#\d+$", "", printable(name))
        entry = entry if isinstance(entry, dict) else {}
        videos, captions = entry.get("videos"), entry.get("caption")
        are_names = isinstance(videos, list) and videos and all(isinstance(video, str) for video in videos)
        if not are_names or not isinstance(captions, list):
            what = "expected lists videos and caption, found something else; skipped"
            problems.append(Problem(where, what))
            continue
        for item in captions:
            item = item if isinstance(item, dict) else {}
            label, caption = item.get("label"), item.get("caption")
            phase, text = parse_phase(label), printable(caption).strip() if isinstance(caption, str) else ""
            if phase is None or not (text or keep_empty):
                what = f"expected a label 0–4 and a caption, found {label!r:.60} and {caption!r:.60}; skipped"
                problems.append(Problem(where, what))
                continue
            yield scenario, [printable(video) for video in videos], str(label).strip(), phase, text or None
