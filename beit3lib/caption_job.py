"""A captioning job on disk: its images in batches, and the captions of the batches that are finished.

Finished batches are appended to `predictions.partial.jsonl` beside predictions.json, one JSON line each; process N of
several has its own `predictions.partial.N.jsonl`. The first line of the first file holds the options of the job. A kill
loses only the batches that are being captioned, and any number of processes may continue.

The result does not depend on interruptions, because images are divided into batches once, by their order, and only whole
batches are kept. With another checkpoint or other options a job starts from scratch, because a mixture would look like the
predictions of one checkpoint; the earlier files are kept as `….partial.old.jsonl`, because they may be hours of work.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from beit3lib.data.predictions import predictions_table, read_meta
from beit3lib.files import FileError, write_text

IMAGE_COLUMNS = ("image", "scenario", "split", "source", "view", "video", "label", "phase")
SYNC_SECONDS = 30  # a power cut loses at most this much work


def partial_path(output: str | Path, rank: int = 0) -> Path:
    """Where process `rank` keeps finished batches. While the file of rank 0 exists, the job of `output` is unfinished."""
    output = Path(output)
    return output.with_name(f"{output.stem}.partial{f'.{rank}' if rank else ''}.jsonl")


class CaptionJob:
    """The images of a job, their batches, and the partial files beside `output`; `rank` is the number of this process.

    `records`: the index columns of each image, and its references as [[subject, aspect, text], …]. `batches`: indices into
    `records`, available after `start` in process 0 and `divide` in each process. `finished`: {batch number: its size}, as of
    the last call of `count_finished`.
    """

    def __init__(self, images: pd.DataFrame, root: Path, output: Path, rank: int) -> None:
        self.output, self.rank = output, rank
        table = images.reindex(columns=[*IMAGE_COLUMNS, "references"]).astype(object)
        self.records = table.where(table.notna(), None).to_dict("records")
        for record in self.records:
            record["phase"] = None if record["phase"] is None else int(record["phase"])
            record["references"] = [[*caption_type, text] for caption_type, text in (record["references"] or {}).items()]
        self.paths = [root / record["image"] for record in self.records]
        self.sizes = [path.stat().st_size if path.is_file() else -1 for path in self.paths]
        self.identity = {"images": len(self.records), "images_sha256": _hash([self.records, self.sizes])}
        self.finished: dict[int, int] = {}
        self.offsets: dict[Path, int] = {}  # how far `count_finished` has read each partial file
        self.file, self.synced = None, -math.inf

    def is_complete(self, options: dict[str, Any]) -> bool:
        """Whether `output` has the captions of these images with these options, and no job for it is unfinished.

        Process 0 prints why an `output` with other images or options will be replaced.
        """
        if not self.output.is_file() or partial_path(self.output).exists():
            return False
        try:
            meta = read_meta(self.output)
        except FileError:  # a damaged output is replaced
            return False
        changed = _changes(meta, options | self.identity)
        if changed and self.rank == 0:
            print(f"{self.output}: will be replaced, because {changed}.")
        return not changed

    def start(self, options: dict[str, Any], batch_size: int | None, choose_batch_size: Callable[[], int]) -> None:
        """Continue the partial files if they have these options, else rename them and start new ones; called by process 0.

        Without a `batch_size` an unfinished job keeps its own, and a new one calls `choose_batch_size`.
        """
        main, old, files = partial_path(self.output), self.header(), self.files()
        new = options | {"batch_size": batch_size or old.get("batch_size")}
        changed = _changes(old, dict.fromkeys(old) | new)
        if not changed:
            for path in files:  # a kill or a full disk may have cut the last line
                with path.open("rb+") as file:
                    file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
            return
        for path in files:  # `main` is the last of them, so that a kill here leaves no file without its header
            os.replace(path, path.with_name(f"{path.stem}.old.jsonl"))
        if files:
            reason = changed if old else "its first line is damaged"
            kept = ", ".join(f"{path.stem}.old.jsonl" for path in files)
            print(f"{main}: starts from scratch, because {reason}. Finished captions are kept in {kept}.")
        header = options | {"batch_size": batch_size or choose_batch_size()}
        write_text(main, json.dumps(header, ensure_ascii=False) + "\n")

    def header(self) -> dict[str, Any]:
        """The options of the job in the partial files; empty if there is none, or if its first line is damaged."""
        try:
            with partial_path(self.output).open("rb") as file:
                header = json.loads(file.readline())
        except (OSError, ValueError, RecursionError):
            return {}
        return header if isinstance(header, dict) else {}

    def divide(self) -> None:
        """Divide the images into the batches of the job, each with a key that changes with its images."""
        size, indices = self.header()["batch_size"], list(range(len(self.records)))
        self.batches = [indices[i : i + size] for i in range(0, len(indices), size)]
        self.keys = [_hash([(self.records[i]["image"], self.sizes[i]) for i in batch])[:16] for batch in self.batches]

    def files(self) -> list[Path]:
        """The partial files of all processes, also of an earlier start with more of them; that of process 0 is the last."""
        names = self.output.parent.glob(f"{self.output.stem}.partial*.jsonl")
        return sorted(path for path in names if not path.name.endswith(".old.jsonl"))

    def count_finished(self) -> int:
        """Read the batches that any process has appended since the last call, and return the number of finished images."""
        self.finished.update((number, len(captions)) for number, captions in self.read(self.offsets))
        return sum(self.finished.values())

    def read(self, offsets: dict[Path, int]) -> Iterator[tuple[int, list]]:
        """Yield the number and the captions of each finished batch after `offsets`, which are moved to the ends of the files.

        A damaged line, or a changed image, means that a batch is not finished.
        """
        for path in self.files():
            with path.open("rb") as file:
                file.seek(offsets.setdefault(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):  # another process is writing it
                        break
                    offsets[path] += len(line)
                    try:
                        batch = json.loads(line)
                        number, captions, same = batch["batch"], batch["captions"], batch["key"] == self.keys[batch["batch"]]
                    except (ValueError, LookupError, TypeError, RecursionError):  # also the header, which has no key
                        continue
                    if same:
                        yield number, captions

    def results(self) -> tuple[pd.DataFrame, list[dict[str, str]], int]:
        """The finished captions as a predictions table without scores, the unreadable images, and the count of both.

        This and scoring take about 12 kB of memory per image with ten captions of 20 words: 0.3 GB for 25,000 images.
        """
        caption_types, finished, rows, skipped = self.header()["caption_types"], dict(self.read({})), [], []
        for number in sorted(finished):
            for index, captions in zip(self.batches[number], finished[number], strict=True):
                record = self.records[index]
                if isinstance(captions, str):
                    skipped.append({"image": record["image"], "problem": captions})
                    continue
                references = {(subject, aspect): text for subject, aspect, text in record["references"]}
                for caption_type, caption in zip(caption_types, captions, strict=True):
                    about = [record[name] for name in IMAGE_COLUMNS]
                    rows.append([*about, *caption_type, *caption, references.get(tuple(caption_type)), None])
        return predictions_table(rows), skipped, sum(map(len, finished.values()))

    def append(self, number: int, captions: list) -> None:
        """Append a finished batch: per image a list of [text, log_prob, word_probs], one per caption type, or the problem.

        A kill after this call cannot lose the batch, a power cut only the last `SYNC_SECONDS`.
        """
        path = partial_path(self.output, self.rank)
        batch = {"batch": number, "key": self.keys[number], "captions": captions}
        data = json.dumps(batch, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with captions_are_kept(path):
            self.file = self.file or path.open("ab", buffering=0)
            while data:  # an unbuffered write may be short
                data = data[self.file.write(data) :]
            if time.monotonic() - self.synced > SYNC_SECONDS:
                os.fsync(self.file.fileno())
                self.synced = time.monotonic()

    def remove(self) -> None:
        """Delete the partial files, after the output is written."""
        for path in self.files():
            path.unlink()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The options of `new` that `old` does not have with the same value, as a phrase."""
    return "; ".join(f"{name} was {old.get(name)}, is {value}" for name, value in new.items() if old.get(name) != value)


@contextmanager
def captions_are_kept(path: Path) -> Iterator[None]:
    """Add the file and the remedy to an error of the disk, usually a full one."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror}. Finished captions are kept: free some space and run the same command again."
        ) from None
