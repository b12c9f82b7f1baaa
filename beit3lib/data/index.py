"""Write and read the index of a split, which pairs captions with images.

`coco_captioning.{train,val,test}.jsonl` has one JSON object per line. The public recipe reads `image_path` (relative to the
file's folder), `text_segment` (token ids without special tokens, or null) and `image_id`; the other keys are subject,
aspect, caption and `schema.IMAGE_COLUMNS`.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.data.caption_files import read_caption_files
from beit3lib.data.images import ImageError, find_image, list_images, open_image
from beit3lib.data.schema import ASPECTS, IMAGE_COLUMNS, SUBJECTS
from beit3lib.data.wts import cap_problems
from beit3lib.files import FileError, Problem, read_json_lines, write_text

INDEX_NAME = "coco_captioning.{split}.jsonl"
NEEDED = ("image_path", "text_segment", "image_id")  # keys of the public recipe
ABOUT = ("subject", "aspect", "caption", *IMAGE_COLUMNS)  # other keys


class IndexReport(NamedTuple):
    """What an index contains: captions = lines + skipped; every skipped caption is among the problems."""

    path: Path
    captions: int  # pairs of a caption and a video of its scenario
    lines: int
    skipped: int
    cut: (
        int  # lines whose caption has more than max_tokens - 2 tokens; training uses the first max_tokens - 2
    )
    images: int
    longest: int  # tokens of the longest caption, without special tokens
    problems: list[Problem]

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        cut = f", {self.cut} cut" if self.cut else ""
        counts = f"{self.captions} captions, {self.lines} lines{skipped}{cut}, {self.images} images"
        return f"{self.path.name}: {counts}; longest caption {self.longest} tokens"


def build_index(
    caption_files: str | Path | Iterable[str | Path],
    image_dir: str | Path,
    tokenizer: Any,
    out_path: str | Path,
    phases: pd.DataFrame | None = None,
    max_tokens: int = 64,
) -> IndexReport:
    """Write one line for every caption and every video of its scenario that has an image of the phase.

    The images, and split, source and view of the lines, are those of `phases`, a table of `blur_table` or
    `import_prepared`. Without it images are found by their names, as in the original repository.
    """
    captions, problems = read_caption_files(caption_files)
    pairs = _pair_with_images(captions, Path(image_dir), phases)
    check = cache(
        _why_unreadable
    )  # ten captions of a phase share an image, and the views of a scenario a caption
    encode = cache(lambda caption: _encode(tokenizer, caption))
    lines: list[dict] = []
    skipped, lossy, cut = defaultdict(int), defaultdict(list), defaultdict(list)
    for row in pairs.to_dict("records"):
        name, where = row.pop("image"), _where(row)
        caption_type = f"{row['subject']} {row['aspect']}"
        if why := check(Path(image_dir, name)) if name else f"no image in {image_dir}":
            skipped[where, why] += 1
            continue
        ids, loss = encode(row["caption"])
        if loss:
            lossy[caption_type, loss].append(where)
        if len(ids) > max_tokens - 2:  # the tokens <s> and </s> take two positions
            cut[caption_type].append((len(ids), where))
        lines.append({"image_path": _relative(image_dir, name, out_path), "text_segment": ids} | row)
    todo = "run notebook 1 again"
    missing = [
        Problem(where, f"{number} captions, but {why}; skipped", todo)
        for (where, why), number in skipped.items()
    ]
    problems += cap_problems(missing, str(image_dir))
    for (caption_type, loss), where in lossy.items():
        problems.append(
            Problem(
                caption_type,
                f"{len(where)} captions decode to other words ({loss}), such as {where[0]}; kept",
            )
        )
    for caption_type, found in cut.items():
        longest, where = max(found)
        what = f"{len(found)} captions of more than {max_tokens - 2} tokens are cut in training; longest: {longest}, {where}"
        problems.append(Problem(caption_type, what, "raise num_max_bpe_tokens"))
    return write_index(out_path, lines, sum(skipped.values()), sum(map(len, cut.values())), problems)


def _pair_with_images(captions: pd.DataFrame, image_dir: Path, phases: pd.DataFrame | None) -> pd.DataFrame:
    """Return one row per caption and image, with the columns `ABOUT` and `image`, a file name or None."""
    if phases is None:
        images = list_images(image_dir)
        found = [find_image(images, row.video, row.phase, row.label) for row in captions.itertuples()]
        pairs = captions.assign(image=[path and path.name for path in found])
    else:
        on = ["scenario", "video", "phase"]
        pairs = captions.merge(phases.reindex(columns=[*on, "split", "source", "view", "image"]), "left", on)
    pairs = pairs.reindex(columns=[*ABOUT, "image"]).astype(object)
    return pairs.where(pairs.notna(), None)


def index_images(phases: pd.DataFrame, image_dir: str | Path, out_path: str | Path) -> IndexReport:
    """Write the index of images without captions, as in the test split: one line per image, with text_segment null."""
    lines, problems = [], []
    about = phases.reindex(columns=ABOUT).assign(subject=None, aspect=None, caption=None).astype(object)
    for name, row in zip(phases["image"], about.where(about.notna(), None).to_dict("records"), strict=True):
        if why := _why_unreadable(Path(image_dir, name)):
            problems.append(Problem(_where(row), f"{why}; skipped", "run notebook 1 again"))
        else:
            lines.append({"image_path": _relative(image_dir, name, out_path), "text_segment": None} | row)
    return write_index(out_path, lines, len(problems), 0, problems)


def _where(row: dict) -> str:
    return f"{row['scenario']}/{row['video']} phase {row['label']}"


def _relative(image_dir: str | Path, name: str, index_path: str | Path) -> str:
    """Return the path of an image relative to the folder of the index, so that a run can be moved."""
    return os.path.relpath(Path(image_dir, name), Path(index_path).parent)


def _why_unreadable(image: Path) -> str:
    """Return why an image cannot be used; "" for one that opens."""
    try:
        open_image(image)
    except (ImageError, FileNotFoundError) as error:
        return f"{image.name} cannot be opened ({str(error).removeprefix(f'{image}: ')})"
    return ""


def _encode(tokenizer: Any, caption: str) -> tuple[list[int], str]:
    """Return the token ids of a caption, and the reason if they decode to other words, else ""."""
    ids = tokenizer.encode(caption, add_special_tokens=False)
    if tokenizer.decode(ids).split() == caption.split():
        return ids, ""
    return (
        ids,
        "characters unknown to the tokenizer"
        if tokenizer.unk_token_id in ids
        else "normalized by the tokenizer",
    )


def write_index(
    out_path: str | Path, lines: list[dict], skipped: int, cut: int, problems: list[Problem]
) -> IndexReport:
    """Write index lines, numbering their images as image_id, and return the report."""
    numbers: dict[str, int] = {}
    for line in lines:
        line["image_id"] = numbers.setdefault(line["image_path"], len(numbers))
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    for end in "\u2028\u2029\x85":  # str.splitlines and other readers end a line at these
        text = text.replace(end, f"\\u{ord(end):04x}")
    write_text(out_path, text)
    longest = max((len(line["text_segment"] or ()) for line in lines), default=0)
    return IndexReport(
        Path(out_path), len(lines) + skipped, len(lines), skipped, cut, len(numbers), longest, problems
    )


def read_index(path: str | Path) -> pd.DataFrame:
    """Read an index of this package or of the recipe (which has the first three columns only) as one row per line.

    Columns: image_path, text_segment, image_id, subject, aspect, caption, split, source, scenario, view, video, label,
    phase; values that a line lacks are None. Raises FileNotFoundError, or FileError with the number of a broken line.
    """
    try:
        lines = read_json_lines(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected an index here, found none. Run notebook 2 first."
        ) from None
    for number, line in enumerate(lines, start=1):
        if wrong := _what_is_wrong(line):
            raise FileError(f"{path}, line {number}: {wrong}. Run notebook 2 again.")
    if not lines:
        raise FileError(
            f"{path}: expected at least one line, found none. See the problems that notebook 2 lists."
        )
    table = pd.DataFrame(lines, columns=[*NEEDED, *ABOUT], dtype=object)
    return table.where(table.notna(), None).astype({"image_id": "int64"})


def _what_is_wrong(line: dict) -> str:
    """Return what an index line is expected to have and what was found; "" for a valid line."""
    if absent := [name for name in NEEDED if name not in line]:
        return f"expected keys {', '.join(NEEDED)}, found no {', '.join(absent)}"
    path, ids, image_id = (line[name] for name in NEEDED)
    if not isinstance(path, str) or not path:
        return f"expected image_path to be text, found {path!r:.60}"
    if ids is not None and not (
        isinstance(ids, list) and all(isinstance(i, int) and 0 <= i < 2**31 for i in ids)
    ):
        return f"expected text_segment to be a list of token ids or null, found {ids!r:.60}"
    if not isinstance(image_id, int) or abs(image_id) >= 2**63:
        return f"expected image_id to be an integer, found {image_id!r:.60}"
    for name in ABOUT:
        value, kind = line.get(name), int if name == "phase" else str
        if value is not None and not isinstance(value, kind):
            return f"expected {name} to be {'an integer' if kind is int else 'text'} or null, found {value!r:.60}"
    for name, choices in (("subject", SUBJECTS), ("aspect", ASPECTS)):
        if line.get(name) not in (None, *choices):
            return f"expected {name} to be one of {', '.join(choices)}, found {line[name]!r:.60}"
    return ""
