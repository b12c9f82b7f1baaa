"""`predictions.json`, the captions of a run.

    {"meta": {...}, "predictions": [one record per image and caption type, ...]}

A record has the keys of `Record`.
"""

import json
import ntpath
import posixpath
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pydantic
from pydantic import Field

from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.files import FileError, atomic_path, printable, read_json

PREDICTIONS_NAME, QUICK_NAME = "predictions.json", "predictions.quick.json"
TODO = "Use a file that `python -m beit3lib.caption` or notebook 4 wrote."


class Record(pydantic.BaseModel, strict=True):
    """One caption of one image."""

    image: str
    split: str | None = None
    source: str | None = None
    scenario: str | None = None
    view: str | None = None
    video: str | None = None
    label: str | None = None
    phase: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    subject: Literal[(*SUBJECTS, "")]  # "" is the caption type of an index without names
    aspect: Literal[(*ASPECTS, "")]
    caption: str
    log_prob: Annotated[float, Field(le=0.001, allow_inf_nan=False)] | None = None
    word_probs: list[Annotated[float, Field(ge=0, le=1.001)]] | None = None  # one per word of the caption
    reference: str | None = None  # "" if the aspect is not mentioned, None if the reference is unknown
    official_score: Annotated[float, Field(ge=0, le=100)] | None = None  # None without a reference


COLUMNS = tuple(Record.model_fields)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read and check a predictions file; returns one row per record with `COLUMNS` and `outside`.

    `outside` marks images that are not below the run folder, such as "../secret.png" or absolute paths. A reader that
    shows images must not open them. Raises `FileError` with the file and the number of the first wrong record.
    """
    records = _read(path)["predictions"]
    if not isinstance(records, list):
        raise FileError(
            f"{path}: expected a list under the key predictions, got {type(records).__name__}. {TODO}"
        )
    rows = [
        _check_record(record, f"{path}, record {number}") for number, record in enumerate(records, start=1)
    ]
    table = predictions_table(rows)
    return table.assign(outside=[not is_inside(image) for image in table["image"]])


def predictions_table(records: list) -> pd.DataFrame:
    """Records (lists in the order of `COLUMNS`, or dicts) as a table: numbers as floats, missing text as None."""
    table = pd.DataFrame(records, columns=list(COLUMNS), dtype=object)
    table = table.where(table.notna(), None)
    return table.astype({"log_prob": float, "official_score": float})


def read_meta(path: str | Path) -> dict[str, Any]:
    """Read the options and hashes that a predictions file was made with."""
    meta = _read(path).get("meta", {})
    if not isinstance(meta, dict):
        raise FileError(
            f"{path}: expected an object {{…}} under the key meta, got {type(meta).__name__}. {TODO}"
        )
    return meta


def write_predictions(path: str | Path, table: pd.DataFrame, meta: dict[str, Any]) -> Path:
    """Write `table` (missing columns become null) and `meta`, one record per line, completely or not at all."""
    columns = [name for name in COLUMNS if name in table]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(
            '{"meta": ' + json.dumps(meta, ensure_ascii=False, allow_nan=False) + ',\n"predictions": ['
        )
        for number, values in enumerate(zip(*(table[name] for name in columns), strict=True)):
            record = dict.fromkeys(COLUMNS) | {
                name: _plain(value) for name, value in zip(columns, values, strict=True)
            }
            if record["phase"] is not None:  # pandas makes floats of whole numbers where some are missing
                record["phase"] = int(record["phase"])
            file.write(",\n" if number else "\n")
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False))
        file.write("\n]}\n")
    return Path(path)


def is_inside(image: str) -> bool:
    """Whether a path, as written in a predictions file, stays below the folder it is relative to."""
    absolute = posixpath.isabs(image) or ntpath.isabs(image) or ntpath.splitdrive(image)[0]
    return not absolute and ".." not in image.replace("\\", "/").split("/") and "\0" not in image


def inside(image: str, root: str | Path) -> str | None:
    """Return the path of an image relative to `root`, with "/"; None if it leads out of it by "..", a link or otherwise."""
    if "\0" in image:  # the system refuses such a path
        return None
    root = Path(root).resolve()
    path = (root / image.replace("\\", "/")).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None


def _read(path: str | Path) -> dict[str, Any]:
    value = read_json(path, dict)
    if "predictions" not in value:
        raise FileError(
            f"{path}: expected the keys meta and predictions, got {', '.join(map(repr, list(value)[:5]))}. {TODO}"
        )
    return value


def _check_record(record: Any, where: str) -> list[Any]:
    """The values of one record in the order of `COLUMNS`, with their types checked."""
    if not isinstance(record, dict):
        raise FileError(f"{where}: expected an object {{…}}, got {type(record).__name__}. {TODO}")
    try:
        checked = Record(
            **{key: printable(value) if isinstance(value, str) else value for key, value in record.items()}
        )
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name, value = first["loc"][0], first["input"]
        found = repr(value)[:60] if isinstance(value, (str, int, float)) else type(value).__name__
        expected = first["msg"].removeprefix("Input should be ")
        raise FileError(f"{where}: expected {name} to be {expected}, got {found}. {TODO}") from None
    return [getattr(checked, name) for name in COLUMNS]


def _plain(value: Any) -> Any:
    """A value of a table as JSON: NaN and other missing values become null, numpy numbers become Python's."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
