"""Caption files and images to index lines, and back.

`coco_captioning.{train,val,test}.jsonl`: one JSON object a line with `image_path` (relative to the file's folder),
`text_segment` (ids without special tokens, null where no caption is known) and `image_id`, as the public recipe reads
it, and beside them what a line is about: scenario, split, source, view, video, label, phase, subject, aspect, caption.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from beit3lib.data.aspects import read_caption_files
from beit3lib.data.wts import parse_phase, video_stem
from beit3lib.dataset import ImageError, load_image
from beit3lib.files import Problem, write_text

INDEX_NAME = "coco_captioning.{split}.jsonl"
NEEDED = ("image_path", "text_segment", "image_id")
ABOUT = ("scenario", "split", "source", "view", "video", "label", "phase", "subject", "aspect", "caption")
PREFIXES, ENDINGS = ("avg", ""), (".jpg", ".png", ".jpeg")


class BrokenIndexError(ValueError):
    """An index file that cannot be used."""


@dataclass(frozen=True)
class IndexReport:
    """What `build_index` did: captions in = lines out + captions left out, each of which is among `problems`."""

    path: Path
    captions: int
    lines: int
    left_out: int
    images: int
    longest: int  # tokens of the longest caption, without special tokens
    problems: list[Problem]

    def __str__(self) -> str:
        left = f", {self.left_out} left out" if self.left_out else ""
        return (
            f"{self.path.name}: {self.captions} captions in, {self.lines} lines out{left}; {self.images} images; "
            f"longest caption {self.longest} tokens"
        )


def build_index(
    caption_files, image_dir: str | Path, tokenizer, out_path: str | Path, phases: pd.DataFrame | None = None
) -> IndexReport:
    """Pair every phase caption with every video of its scenario whose image exists, as the seed does.

    `caption_files`: a folder of `{subject}_caption_{aspect}_datasets.json`, or such files. `phases`: the table of
    `motion_blur.blur_table`, from which view, source and split of a line come; without it they are empty.
    """
    captions = read_caption_files(caption_files)
    problems = list(captions.attrs.get("problems", ()))
    images = list_images(Path(image_dir))
    about = _about_videos(phases)
    lines, missing, lossy = [], {}, []
    look = cache(unreadable)  # many captions share a picture
    root = Path(out_path).parent
    for row in captions.itertuples(index=False):
        phase = parse_phase(row.label)
        image = find_image(images, row.video, row.label, phase)
        why = f"no image in {image_dir}" if image is None else look(image)
        if why:
            missing.setdefault((row.video, row.label, why), []).append(f"{row.subject} {row.aspect}")
            continue
        ids = tokenizer.encode(row.caption, add_special_tokens=False)
        if not _same_words(tokenizer.decode(ids), row.caption):
            lossy.append(Problem(f"{row.scenario} phase {row.label}, {row.subject} {row.aspect}", _lossy(row, ids, tokenizer)))
        lines.append(_line(root, image, ids, row, phase, about.get((row.scenario, row.video), {})))
    problems += [
        Problem(f"{video} phase {label}", f"{len(what)} captions, but {why}; left out", "run notebook 1 again")
        for (video, label, why), what in missing.items()
    ]
    _number_images(lines)
    write_text(out_path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    left_out = sum(map(len, missing.values()))
    longest = max((len(line["text_segment"]) for line in lines), default=0)
    images_used = len({line["image_path"] for line in lines})
    return IndexReport(Path(out_path), len(captions), len(lines), left_out, images_used, longest, problems + lossy)


def index_images(phases: pd.DataFrame, image_dir: str | Path, out_path: str | Path) -> IndexReport:
    """Index images that have no caption, as those of the test split: `text_segment` null, one line each."""
    root = Path(out_path).parent
    lines, problems = [], []
    for row in phases.to_dict("records"):
        image = Path(image_dir) / row["image"]
        if why := unreadable(image):
            problems.append(Problem(f"{row['video']} phase {row['label']}", f"{why}; left out", "run notebook 1 again"))
            continue
        path = os.path.relpath(image, root)
        about = {name: row.get(name) for name in ABOUT if name not in ("subject", "aspect", "caption")}
        lines.append({"image_path": path, "text_segment": None, "image_id": 0, **about})
    _number_images(lines)
    write_text(out_path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return IndexReport(Path(out_path), len(phases), len(lines), len(problems), len(lines), 0, problems)


def read_index(path: str | Path) -> pd.DataFrame:
    """An index file as a table, a row per line; ours or the seed's, which has only the first three columns."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an index file here, found none; run notebook 2 first")
    table = pd.DataFrame(list(_read_lines(path)))
    if table.empty:
        raise BrokenIndexError(f"{path}: expected at least one line, found an empty index; see what notebook 2 listed")
    for name in ABOUT:
        if name not in table:
            table[name] = None
    return table


def _read_lines(path: Path) -> Iterator[dict]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            raise BrokenIndexError(
                f"{path}, line {number}: expected a JSON object, found {text[:60]!r}; run notebook 2 again"
            ) from None
        absent = [name for name in NEEDED if name not in line]
        if absent:
            raise BrokenIndexError(f"{path}, line {number}: expected keys {', '.join(NEEDED)}; missing {', '.join(absent)}")
        yield line


def list_images(folder: Path) -> dict[str, Path]:
    """{name: path} of the pictures in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of motion-blur images, found none; run notebook 1 first")
    return {path.name: path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS}


def find_image(images: dict[str, Path], video: str, label: str, phase: int | None) -> Path | None:
    """The picture of a phase of a video, in every spelling of its name that was seen."""
    for number in (phase, label):
        for prefix in PREFIXES:
            for ending in ENDINGS:
                name = f"{prefix}{video_stem(video)}phase{number}{ending}"
                if name in images:
                    return images[name]
    return None


def unreadable(image: Path) -> str:
    """Why a picture cannot be used; "" for one that opens."""
    try:
        load_image(image)
    except (ImageError, FileNotFoundError) as error:
        return f"{image.name} cannot be opened ({str(error).removeprefix(f'{image}: ')}); delete it"
    return ""


def _about_videos(phases: pd.DataFrame | None) -> dict[tuple[str, str], dict]:
    if phases is None:
        return {}
    first = phases.drop_duplicates(["scenario", "video"])
    return {
        (row["scenario"], row["video"]): {name: row.get(name) for name in ("split", "source", "view")}
        for row in first.to_dict("records")
    }


def _line(root: Path, image: Path, ids: list[int], row, phase: int | None, about: dict) -> dict:
    return {
        "image_path": os.path.relpath(image, root),
        "text_segment": ids,
        "image_id": 0,
        "scenario": row.scenario,
        **about,
        "video": row.video,
        "label": row.label,
        "phase": phase,
        "subject": row.subject,
        "aspect": row.aspect,
        "caption": row.caption,
    }


def _number_images(lines: list[dict]) -> None:
    numbers: dict[str, int] = {}
    for line in lines:
        line["image_id"] = numbers.setdefault(line["image_path"], len(numbers))


def _same_words(decoded: str, caption: str) -> bool:
    return decoded.split() == caption.split()


def _lossy(row, ids: list[int], tokenizer) -> str:
    unknown = ids.count(tokenizer.unk_token_id)
    why = f"{unknown} pieces are unknown to the tokenizer" if unknown else "the tokenizer normalises it"
    return f"the ids decode to other words than the caption ({why}); kept"
