"""`predictions.json`, the captions of a run, and the partial results of a captioning job that makes it.

    {"meta": {...}, "predictions": [one record per image and caption type, ...]}

A record has the keys of `COLUMNS`: columns of the index (scenario to phase), the caption with its
log-probability and one probability per word, the reference ("" if the aspect is not mentioned, null if unknown), and the
official score from 0 to 100 (null without a reference).
"""

import json
import math
import ntpath
import os
import posixpath
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from beit3lib.data.aspects import ASPECTS, SUBJECTS
from beit3lib.files import FileError, atomic_path, printable, read_json, write_text

PREDICTIONS_NAME, QUICK_NAME = "predictions.json", "predictions.quick.json"
TEXT_COLUMNS = ("image", "scenario", "split", "source", "view", "video", "label", "subject", "aspect", "caption", "reference")
REQUIRED = ("image", "subject", "aspect", "caption")
COLUMNS = (
    *("image", "scenario", "split", "source", "view", "video", "label", "phase", "subject", "aspect"),
    *("caption", "log_prob", "word_probs", "reference", "official_score"),
)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read and check a predictions file; returns one row per record with `COLUMNS` and `outside`.

    `outside` marks images that are not below the run folder, such as "../secret.png" or absolute paths. A reader that
    shows images must not open them. Raises `FileError` with the file and the number of the first wrong record.
    """
    records = _read(path)["predictions"]
    if not isinstance(records, list):
        raise FileError(f"{path}: expected a list under the key predictions, got {type(records).__name__}. {_TODO}")
    rows = [_check_record(record, f"{path}, record {number}") for number, record in enumerate(records, start=1)]
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
        raise FileError(f"{path}: expected an object {{…}} under the key meta, got {type(meta).__name__}. {_TODO}")
    return meta


def write_predictions(path: str | Path, table: pd.DataFrame, meta: dict[str, Any]) -> Path:
    """Write `table` (missing columns become null) and `meta`, one record per line, completely or not at all."""
    columns = [name for name in COLUMNS if name in table]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"meta": ' + json.dumps(meta, ensure_ascii=False, allow_nan=False) + ',\n"predictions": [')
        for number, values in enumerate(zip(*(table[name] for name in columns), strict=True)):
            record = dict.fromkeys(COLUMNS) | {name: _plain(value) for name, value in zip(columns, values, strict=True)}
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


_TODO = "Use a file that `python -m beit3lib.evaluate` or notebook 4 wrote."


def _read(path: str | Path) -> dict[str, Any]:
    value = read_json(path, dict)
    if "predictions" not in value:
        raise FileError(f"{path}: expected the keys meta and predictions, got {', '.join(map(repr, list(value)[:5]))}. {_TODO}")
    return value


def _check_record(record: Any, where: str) -> list[Any]:
    """The values of one record in the order of `COLUMNS`, with their types checked."""
    if not isinstance(record, dict):
        raise FileError(f"{where}: expected an object {{…}}, got {type(record).__name__}. {_TODO}")

    def wrong(name: str, expected: str) -> FileError:
        found = repr(record[name])[:60] if isinstance(record.get(name), (str, int, float)) else type(record.get(name)).__name__
        return FileError(f"{where}: expected {name} to be {expected}, got {found}. {_TODO}")

    row = {name: record.get(name) for name in COLUMNS}
    for name in TEXT_COLUMNS:
        if row[name] is None and name not in REQUIRED:
            continue
        if not isinstance(row[name], str):
            raise wrong(name, "text")
        row[name] = printable(row[name])
    for name, allowed in (("subject", SUBJECTS), ("aspect", ASPECTS)):
        if row[name] not in (*allowed, ""):  # "" is the caption type of an index without names
            raise wrong(name, f"one of {', '.join(allowed)}")
    if row["phase"] is not None and not (_is_number(row["phase"], -1000, 1000) and row["phase"] == int(row["phase"])):
        raise wrong("phase", "a whole number")
    if row["log_prob"] is not None and not _is_number(row["log_prob"], -math.inf, 0.001):
        raise wrong("log_prob", "a finite number of at most 0")
    if row["official_score"] is not None and not _is_number(row["official_score"], 0, 100):
        raise wrong("official_score", "a number from 0 to 100")
    probs = row["word_probs"]
    if probs is not None and not (isinstance(probs, list) and all(_is_number(p, 0, 1.001) for p in probs)):
        raise wrong("word_probs", "a list of numbers from 0 to 1")
    return list(row.values())


def _is_number(value: Any, least: float, most: float) -> bool:
    """Compared as Python numbers, because 10^400 fits no float; infinity and NaN are not JSON and refused before."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most and abs(value) < 1e300


def _plain(value: Any) -> Any:
    """A value of a table as JSON: NaN and other missing values become null, numpy numbers become Python's."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


# --- the results of an unfinished job ------------------------------------------------------------------------------

SYNC_SECONDS = 30  # a killed process loses at most the current batch; a power cut at most this much work


def partial_path(output: str | Path, rank: int = 0) -> Path:
    """Where process `rank` keeps finished batches. While the file of rank 0 exists, the job of `output` is unfinished."""
    output = Path(output)
    return output.with_name(f"{output.stem}.partial{f'.{rank}' if rank else ''}.jsonl")


class PartialResults:
    """Finished batches, one JSON line each, in one append-only file per process; the first line is the job's header."""

    def __init__(self, output: Path, rank: int) -> None:
        self.output, self.rank = output, rank
        self.file, self.synced = None, -math.inf
        self.counted: dict[Path, int] = {}  # bytes of each file in which `new_batches` has counted lines

    def files(self) -> list[Path]:
        """The partial files of all processes, also of earlier starts with more of them."""
        names = self.output.parent.glob(f"{self.output.stem}.partial*.jsonl")
        return sorted(path for path in names if not path.name.endswith(".old.jsonl"))

    def prepare(self, header: dict[str, Any], keep_batch_size: bool) -> None:
        """Keep the files of this job, rename those of another one, and write the header; called by one process.

        `keep_batch_size`: use the batch size of an earlier start, because nobody chose one.
        """
        main = partial_path(self.output)
        old = _read_header(main)
        if old is not None and not (isinstance(old.get("batch_size"), int) and old["batch_size"] > 0):
            old = None
        names = [name for name in {**(old or {}), **header} if not (keep_batch_size and name == "batch_size")]
        changed = [
            f"{name} was {old.get(name)}, is {header.get(name)}" for name in names if old and old.get(name) != header.get(name)
        ]
        for path in self.files():
            if changed or old is None or _read_header(path) != old:
                os.replace(path, path.with_name(f"{path.stem}.old.jsonl"))
            else:  # the last line may have been cut by a kill or a full disk
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        if changed:
            print(f"{main}: starts from scratch, because {'; '.join(changed)}. The file is kept as {main.stem}.old.jsonl.")
        if not main.exists():
            write_text(main, json.dumps(header, ensure_ascii=False) + "\n")

    def header(self) -> dict[str, Any]:
        return _read_header(partial_path(self.output)) or {}

    def lines(self) -> Iterator[dict[str, Any]]:
        """The finished batches in all files; a damaged line is skipped, so its batch is captioned again."""
        for path in self.files():
            with path.open("rb") as file:
                for line in file.readlines()[1:]:
                    try:
                        batch = json.loads(line)
                        yield {name: batch[name] for name in ("batch", "key", "captions")}
                    except (ValueError, KeyError, TypeError, RecursionError):
                        continue

    def append(self, batch: dict[str, Any]) -> None:
        """Append one finished batch: a kill after this call cannot lose it, a power cut only the last `SYNC_SECONDS`."""
        path = partial_path(self.output, self.rank)
        data = json.dumps(batch, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with captions_are_kept(path):
            if self.file is None:
                if not path.exists():
                    data = json.dumps(self.header(), ensure_ascii=False).encode() + b"\n" + data
                self.file = path.open("ab", buffering=0)
            while data:  # an unbuffered write may be short
                data = data[self.file.write(data) :]
            if time.monotonic() - self.synced > SYNC_SECONDS:
                os.fsync(self.file.fileno())
                self.synced = time.monotonic()

    def new_batches(self) -> int:
        """How many batches all processes have finished since the last call."""
        count = 0
        for path in self.files():
            with path.open("rb") as file:
                start = file.seek(self.counted.get(path, 0))
                data = file.read()
            count += data.count(b"\n") - (start == 0 and b"\n" in data)  # the first line is the header
            self.counted[path] = start + len(data)
        return count

    def remove(self) -> None:
        for path in self.files():
            path.unlink()


@contextmanager
def captions_are_kept(path: Path) -> Iterator[None]:
    """Name the file in an error of the disk, usually a full one, and say how to continue."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror}. Finished captions are kept: free some space and run the same command again."
        ) from None


def _read_header(path: Path) -> dict[str, Any] | None:
    """The first line of a partial file; None if there is no file, or its first line is not whole."""
    try:
        with path.open("rb") as file:
            line = file.readline(1_000_000)
        header = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
