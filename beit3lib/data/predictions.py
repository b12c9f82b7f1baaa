"""`predictions.json`, the captions of a run.

    {"meta": {...}, "predictions": [one record per image and caption type, ...]}

A record has the keys of `Record`.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pydantic
from pydantic import Field

from beit3lib.data.schema import ASPECTS, SUBJECTS, first_error
from beit3lib.files import FileError, read_text, write_text

PREDICTIONS_NAME, QUICK_NAME = "predictions.json", "predictions.quick.json"


class Record(pydantic.BaseModel, strict=True):
    """One caption of one image."""

    image: str
    split: str | None = None
    source: str | None = None
    scenario: str | None = None
    view: str | None = None
    video: str | None = None
    label: str | None = None
    phase: Annotated[int, Field(strict=False)] | None = None  # a column with gaps has 3.0 for 3
    subject: Literal[(*SUBJECTS, "")]  # "" is the caption type of an index without names
    aspect: Literal[(*ASPECTS, "")]
    caption: str
    log_prob: Annotated[float, Field(le=0.001, allow_inf_nan=False)] | None = None
    word_probs: list[Annotated[float, Field(ge=0, le=1.001)]] | None = None  # one per word of the caption
    reference: str | None = None  # "" if the aspect is not mentioned, None if the reference is unknown
    official_score: Annotated[float, Field(ge=0, le=100)] | None = None  # None without a reference


class Predictions(pydantic.BaseModel, strict=True):
    """The content of a predictions file; `meta` has the options and hashes that it was made with."""

    meta: dict[str, Any] = {}
    predictions: list[Record]


COLUMNS = tuple(Record.model_fields)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read and check a predictions file; returns one row per record with `COLUMNS`.

    A file may come from anyone: show only images that `inside` finds. Raises `FileError` with the file and
    the number (from 0) of the first wrong record.
    """
    return predictions_table([list(dict(record).values()) for record in _read(path).predictions])


def predictions_table(records: list) -> pd.DataFrame:
    """Return records (dicts, or lists in the order of `COLUMNS`) as a table; missing text is None."""
    table = pd.DataFrame(records, columns=list(COLUMNS), dtype=object)
    table = table.where(table.notna(), None)
    return table.astype({"log_prob": float, "official_score": float})


def read_meta(path: str | Path) -> dict[str, Any]:
    """Read the options and hashes that a predictions file was made with."""
    return _read(path).meta


def _read(path: str | Path) -> Predictions:
    try:
        return Predictions.model_validate_json(read_text(path))
    except pydantic.ValidationError as error:
        raise FileError(f"{path}: {first_error(error)}. Use a file that the caption stage wrote.") from None


def write_predictions(path: str | Path, table: pd.DataFrame, meta: dict[str, Any]) -> Path:
    """Write `table` and `meta`, one record per line; missing columns become null, others are added."""
    table = table.reindex(columns=list(dict.fromkeys([*COLUMNS, *table.columns]))).astype(object)
    records = table.where(table.notna(), None).to_dict("records")
    meta, *lines = (json.dumps(value, ensure_ascii=False, allow_nan=False) for value in [meta, *records])
    return write_text(path, f'{{"meta": {meta},\n"predictions": [\n' + ",\n".join(lines) + "\n]}\n")


def inside(image: str, root: str | Path) -> str | None:
    """Return the path of an image relative to `root`, with "/"; None if it leads out of it, as by "..".

    Links below `root` are followed, because only the user can have made them: `images` may be on another
    disk.
    """
    if "\0" in image:  # the system refuses such a path
        return None
    path = Path(os.path.normpath(Path(root).absolute() / image.replace("\\", "/")))
    roots = (Path(os.path.normpath(Path(root).absolute())), Path(root).resolve())
    return next((path.relative_to(base).as_posix() for base in roots if path.is_relative_to(base)), None)
