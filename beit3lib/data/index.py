"""Write and read the index of a split, which pairs captions with images.

`coco_captioning.{train,val,test}.jsonl` has one JSON object per line. The reference implementation reads
`image_path` (relative to the file's folder), `text_segment` (token ids without special tokens, or null) and
`image_id`; the other keys are subject, aspect, caption and `schema.IMAGE_COLUMNS`.
"""

import json
import os
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
import pydantic

from beit3lib.data.caption_files import read_caption_files
from beit3lib.data.images import open_image
from beit3lib.data.schema import ASPECTS, SUBJECTS, first_error
from beit3lib.files import FileError, Problem, read_text, write_text

INDEX_NAME = "coco_captioning.{split}.jsonl"


class Line(pydantic.BaseModel, strict=True):
    """One line of an index. The reference implementation's has the first three keys only."""

    image_path: Annotated[str, pydantic.Field(min_length=1)]
    text_segment: list[pydantic.NonNegativeInt] | None
    image_id: int
    subject: Literal[SUBJECTS] | None = None
    aspect: Literal[ASPECTS] | None = None
    caption: str | None = None
    split: str | None = None
    source: str | None = None
    scenario: str | None = None
    view: str | None = None
    video: str | None = None
    label: str | None = None
    phase: int | None = None


COLUMNS = tuple(Line.model_fields)


class IndexReport(NamedTuple):
    """What an index contains: captions = lines + skipped; every skipped caption is among the problems."""

    path: Path
    captions: int  # pairs of a caption and a video
    lines: int
    skipped: int
    cut: int  # lines whose caption has more than max_tokens - 2 tokens, which training cuts to these
    images: int
    longest: int  # tokens of the longest caption, without special tokens
    problems: list[Problem]

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("captions", "lines", "skipped", "cut", "images")}
        listed = ", ".join(f"{n} {name}" for name, n in counts.items() if n or name not in ("skipped", "cut"))
        return f"{self.path.name}: {listed}; longest caption {self.longest} tokens"


def build_index(
    caption_files: str | Path,
    image_dir: str | Path,
    tokenizer: Any,
    out_path: str | Path,
    phases: pd.DataFrame,
    max_tokens: int = 64,
) -> IndexReport:
    """Write one line for every caption and every video of its entry that has an image of the phase.

    The images, and split, source and view of the lines, are those of `phases`, a table of `blur_table` or
    `import_prepared`.
    """
    captions, problems = read_caption_files(caption_files)
    on = ["scenario", "video", "phase"]
    pairs = captions.merge(phases.reindex(columns=[*on, "split", "source", "view", "image"]), "left", on)
    lines, skipped = _lines(pairs, image_dir, out_path)
    problems += skipped
    encode = cache(lambda caption: tokenizer.encode(caption, add_special_tokens=False))
    is_lossy = cache(lambda caption: tokenizer.decode(encode(caption)).split() != caption.split())
    lossy, cut = defaultdict(list), defaultdict(list)
    for line in lines:
        line["text_segment"] = encode(line["caption"])
        tokens, caption_type = len(line["text_segment"]), f"{line['subject']} {line['aspect']}"
        if is_lossy(line["caption"]):
            lossy[caption_type].append(_where(line))
        if tokens > max_tokens - 2:  # the tokens <s> and </s> take two positions
            cut[caption_type].append((tokens, _where(line)))
    for caption_type, where in lossy.items():
        what = f"{len(where)} captions with characters that the tokenizer replaces, such as {where[0]}; kept"
        problems.append(Problem(caption_type, what))
    for caption_type, found in cut.items():
        what = f"{len(found)} captions of more than {max_tokens - 2} tokens are cut in training; longest: "
        what += "{}, {}".format(*max(found))
        problems.append(Problem(caption_type, what, "raise num_max_bpe_tokens"))
    number = len(pairs) - len(lines)
    return write_index(out_path, lines, number, problems)._replace(cut=sum(map(len, cut.values())))


def index_images(phases: pd.DataFrame, image_dir: str | Path, out_path: str | Path) -> IndexReport:
    """Write the index of images without captions (the test split): one line each, with text_segment null."""
    pairs = phases.reindex(columns=[*COLUMNS, "image"]).assign(subject=None, aspect=None, caption=None)
    lines, problems = _lines(pairs, image_dir, out_path)
    return write_index(out_path, lines, len(pairs) - len(lines), problems)


def _lines(
    pairs: pd.DataFrame, image_dir: str | Path, out_path: str | Path
) -> tuple[list[dict], list[Problem]]:
    """Return a line, without text_segment, for each row whose `image` can be opened; others are problems."""

    @cache  # ten captions of a phase share an image
    def why_skipped(name: str | None) -> str:
        if name is None:
            return f"no image in {image_dir}"
        try:
            open_image(Path(image_dir, name))
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    pairs = pairs.reindex(columns=[*COLUMNS, "image"]).astype(object)
    lines, skipped = [], Counter()
    for row in pairs.where(pairs.notna(), None).to_dict("records"):
        name, folder = row.pop("image"), Path(out_path).parent
        if why := why_skipped(name):
            skipped[_where(row), why] += 1
            continue
        # Relative to the folder of the index, so that a run can be moved.
        row["image_path"] = Path(os.path.relpath(Path(image_dir, name), folder)).as_posix()
        lines.append(row)
    todo = "Run the prepare stage again."
    return lines, [
        Problem(where, f"{number} lines skipped: {why}", todo) for (where, why), number in skipped.items()
    ]


def _where(row: dict) -> str:
    return f"{row['scenario']}/{row['video']} phase {row['label']}"


def write_index(
    out_path: str | Path, lines: list[dict], skipped: int, problems: list[Problem]
) -> IndexReport:
    """Write index lines, numbering their images as image_id, and return the report."""
    numbers: dict[str, int] = {}
    for line in lines:
        line["image_id"] = numbers.setdefault(line["image_path"], len(numbers))
    # json.dumps writes ASCII only, because str.splitlines and other readers end a line at U+2028.
    path = write_text(out_path, "".join(json.dumps(line) + "\n" for line in lines))
    longest = max((len(line["text_segment"] or ()) for line in lines), default=0)
    captions = len(lines) + skipped
    return IndexReport(path, captions, len(lines), skipped, 0, len(numbers), longest, problems)


def read_index(path: str | Path) -> pd.DataFrame:
    """Read an index of this package or of the reference implementation: one row per line, the keys of `Line`.

    Values that a line lacks are None. Raises FileNotFoundError, or FileError with the number of a broken
    line.
    """
    texts, lines = filter(None, read_text(path).split("\n")), []
    try:
        lines += (dict(Line.model_validate_json(text)) for text in texts)
    except pydantic.ValidationError as error:
        line = f"{path}, line {len(lines) + 1}"
        raise FileError(f"{line}: {first_error(error)}. Run the index stage again.") from None
    if not lines:
        raise FileError(f"{path}: expected a line, found none. See the problems that the index stage lists.")
    table = pd.DataFrame(lines, columns=COLUMNS, dtype=object)
    table["image_path"] = table["image_path"].str.replace("\\", "/")  # an index made on Windows
    return table.where(table.notna(), None).astype({"image_id": "int64"})
