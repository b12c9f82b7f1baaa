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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from beit3lib.captioner import Captioner
from beit3lib.data.images import ImageError, open_image
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.data.predictions import predictions_table, read_meta, read_predictions, write_predictions
from beit3lib.data.schema import IMAGE_COLUMNS, UNNAMED, CaptionType
from beit3lib.dataset import group_captions, num_workers
from beit3lib.decode import Caption, inference_weights, word_probs
from beit3lib.device import choose_precision, inference_precision
from beit3lib.files import FileError, lock_folder, write_text
from beit3lib.run.launch import ignore_signals
from beit3lib.track2.metrics import meteor_is_comparable, score_predictions
from beit3lib.transforms import to_tensor

MAX_BATCH = {"cuda": 64, "cpu": 32}  # images decoded together
CPU_BEAMS = (
    512  # of all images and caption types together; larger batches are not faster on a CPU (tiny model)
)
ABOUT = ("image", *IMAGE_COLUMNS)
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
        table = images.reindex(columns=[*ABOUT, "references"]).astype(object)
        self.records = table.where(table.notna(), None).to_dict("records")
        for record in self.records:
            record["phase"] = None if record["phase"] is None else int(record["phase"])
            record["references"] = [
                [*caption_type, text] for caption_type, text in (record["references"] or {}).items()
            ]
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

    def start(
        self, options: dict[str, Any], batch_size: int | None, choose_batch_size: Callable[[], int]
    ) -> None:
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
        for (
            path
        ) in files:  # `main` is the last of them, so that a kill here leaves no file without its header
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
        self.keys = [
            _hash([(self.records[i]["image"], self.sizes[i]) for i in batch])[:16] for batch in self.batches
        ]

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
                        number, captions, same = (
                            batch["batch"],
                            batch["captions"],
                            batch["key"] == self.keys[batch["batch"]],
                        )
                    except (
                        ValueError,
                        LookupError,
                        TypeError,
                        RecursionError,
                    ):  # also the header, which has no key
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
                    about = [record[name] for name in ABOUT]
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
    return "; ".join(
        f"{name} was {old.get(name)}, is {value}" for name, value in new.items() if old.get(name) != value
    )


@contextmanager
def captions_are_kept(path: Path) -> Iterator[None]:
    """Add the file and the remedy to an error of the disk, usually a full one."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror}. Finished captions are kept: free some space and run the same command again."
        ) from None


class _Images(Dataset):
    """Images as tensors (3, S, S); an unreadable image is replaced by the text of its error."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        path = self.paths[index]
        try:
            return index, to_tensor(open_image(path), self.size)
        except (ImageError, OSError) as error:
            return index, str(error).removeprefix(f"{path}: ")


def _stack(items: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, dict[int, str]]:
    """The indices of readable images, their pixels (B, 3, S, S), and {index: problem} of the others."""
    pixels = {index: item for index, item in items if isinstance(item, Tensor)}
    problems = {index: item for index, item in items if isinstance(item, str)}
    return list(pixels), torch.stack(list(pixels.values())) if pixels else None, problems


def caption_batches(
    captioner: Captioner,
    paths: Sequence[Path],
    batches: Sequence[Sequence[int]],
    num_beams: int,
    workers: int,
) -> Iterator[tuple[dict[int, list[Caption]], dict[int, str]]]:
    """Caption batches of indices into `paths`; worker processes load images while the model decodes.

    Call it inside autocast and `inference_weights`. Yields, for each batch, {index: one caption per caption type} and
    {index: problem} of the images that cannot be read.
    """
    size = captioner.model.config.image_size
    longest = max(map(len, batches), default=0)
    workers = (
        min(num_workers(workers, longest * 3 * size * size * 4), max(0, len(batches) - 1)) if longest else 0
    )
    loader = DataLoader(
        _Images(paths, size),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=ignore_signals,
    )
    for indices, pixels, problems in loader:
        captions = [] if pixels is None else _generate(captioner, pixels, num_beams)
        each = len(captions) // max(1, len(indices))
        yield {index: captions[i * each : (i + 1) * each] for i, index in enumerate(indices)}, problems


def _generate(captioner: Captioner, pixels: Tensor, num_beams: int) -> list[Caption]:
    """Generate captions of (B, 3, S, S), in halves if the device runs out of memory."""
    try:
        return captioner.generate(pixels, num_beams=num_beams)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    torch.cuda.empty_cache()  # outside the except block, which would keep the tensors of the failed call alive
    return [caption for half in pixels.tensor_split(2) for caption in _generate(captioner, half, num_beams)]


def choose_batch_size(captioner: Captioner, num_beams: int) -> int:
    """How many images to decode together: a power of two that fits 60 % of the free memory, up to `MAX_BATCH` and `CPU_BEAMS`.

    Counted per image: the keys and values of the text, those of the image twice (its memory and the decoder's cache), and
    two stores of logits.
    """
    config, device = captioner.model.config, captioner.device
    element = 4 if choose_precision("auto", device)[0] == "no" else 2
    beams = max(1, len(captioner.caption_types)) * num_beams
    slots = beams * (captioner.max_tokens + 8) + 2 * config.image_tokens
    each = slots * config.layers * 2 * config.width * element + beams * config.vocab_size * 8
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = psutil.virtual_memory().available
    most = MAX_BATCH["cuda"] if device.type == "cuda" else min(MAX_BATCH["cpu"], CPU_BEAMS // beams)
    return 2 ** int(math.log2(max(1, min(most, int(0.6 * free / each)))))


def _processes(captioner: Captioner) -> tuple[int, int, Callable[[], None]]:
    """Rank of this process, number of processes that a launcher started, and a function that waits for all of them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    state = PartialState(
        cpu=captioner.device.type == "cpu", timeout=timedelta(days=1)
    )  # shares take unequal time
    return state.process_index, state.num_processes, state.wait_for_everyone


def caption_images(
    captioner: Captioner,
    images: pd.DataFrame,
    root: str | Path,
    output: str | Path,
    meta: dict[str, Any],
    num_beams: int = 3,
    batch_size: int | None = None,
    max_minutes: float = 0.0,
    num_workers: int = 10,
) -> pd.DataFrame:
    """Caption images with every caption type of the model, resumably, and write `output`; returns its table.

    `images`: one row per image as `images_to_caption` returns, paths relative to `root`. `meta` identifies the checkpoint; it
    is written to `output`, and a job with another `meta` is not continued. After `max_minutes` (0: no limit) the captions so
    far are returned without scores; `output` is not written, and `partial_path(output)` exists. `batch_size` is chosen by
    `choose_batch_size` and kept when the job is continued, unless it is given.
    """
    for name, value in (("num_beams", num_beams), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
    options = {**meta, "num_beams": num_beams, "max_tokens": captioner.max_tokens}
    options |= {"length_penalty": captioner.length_penalty, "image_size": captioner.model.config.image_size}
    options |= {
        "caption_types": [list(caption_type) for caption_type in captioner.caption_types or [UNNAMED]]
    }
    rank, processes, wait = _processes(captioner)
    output = Path(output)
    job = CaptionJob(images, Path(root), output, rank)
    if job.is_complete(options):
        print(f"{output}: complete. Delete it to caption these images again.")
        return read_predictions(output)
    with lock_folder(output.parent, "captioning", output.name) if rank == 0 else nullcontext():
        if rank == 0:
            job.start(options, batch_size, partial(choose_batch_size, captioner, num_beams))
        wait()
        job.divide()
        initial = job.count_finished()
        wait()  # until every process has read the files, before one of them appends
        todo = [number for number in range(len(job.batches)) if number not in job.finished][rank::processes]
        bar = {
            "desc": output.name,
            "unit": "image",
            "file": sys.stdout,
            "mininterval": 1,
            "ncols": 100,
            "disable": rank > 0,
        }
        with tqdm(total=len(job.records), initial=initial, **bar) as progress:
            with inference_precision(captioner.device), inference_weights(captioner.model):
                for _ in _caption(captioner, job, todo, num_beams, num_workers, deadline):
                    if rank == 0:
                        progress.update(job.count_finished() - progress.n)
            while (
                rank == 0 < processes - 1
                and job.count_finished() < len(job.records)
                and time.monotonic() < deadline
            ):
                time.sleep(1)  # other processes are slower
                progress.update(job.count_finished() - progress.n)
        wait()  # until the batches of all processes are in the files
        table = _finish(job) if rank == 0 else predictions_table([])
        wait()
    return table


def _caption(
    captioner, job: CaptionJob, todo: list[int], num_beams: int, workers: int, deadline: float
) -> Iterator[None]:
    """Caption the batches `todo`, yielding after each is appended; stops if the next one may end after `deadline`."""
    before, slowest = time.monotonic(), 0.0
    stream = caption_batches(
        captioner, job.paths, [job.batches[number] for number in todo], num_beams, workers
    )
    for number, (captions, problems) in zip(todo, stream, strict=True):
        items = [
            problems.get(i) or [_as_json(captioner, caption) for caption in captions[i]]
            for i in job.batches[number]
        ]
        job.append(number, items)
        yield
        now = time.monotonic()
        slowest, before = max(slowest, now - before), now
        if now + slowest > deadline:
            break


def _as_json(captioner: Captioner, caption: Caption) -> list[Any]:
    """[text, log_prob, word_probs], as in the records of predictions.json."""
    log_prob = (
        round(caption.log_prob, 4) if math.isfinite(caption.log_prob) else None
    )  # -inf where fp16 overflows
    return [caption.text, log_prob, [round(p, 4) for p in word_probs(captioner.tokenizer, caption)]]


def _finish(job: CaptionJob) -> pd.DataFrame:
    """Return the captions; if none is missing, score and write them, and remove the partial files."""
    table, skipped, count = job.results()
    if count < len(job.records):
        print(
            f"{job.output}: {count} of {len(job.records)} images captioned. Run the same command again to continue."
        )
        return table
    table = score_predictions(table).round({"official_score": 2})
    with captions_are_kept(job.output):
        meta = {**job.header(), **job.identity, "comparable": meteor_is_comparable(), "skipped": skipped}
        write_predictions(job.output, table, meta)
    job.remove()
    if skipped:
        first = "; ".join(f"{image['image']}: {image['problem']}" for image in skipped[:5])
        more = "; …" if len(skipped) > 5 else ""
        print(f"{job.output}: {len(skipped)} images cannot be read and have no captions: {first}{more}")
    return table


def images_to_caption(
    root: str | Path, splits: Sequence[str], captioner: Captioner, max_images: int | None = None
) -> pd.DataFrame:
    """The images in the index files of `splits`, at most `max_images` of each, one row per image.

    Columns are `ABOUT` and `references`: {caption type: text}, "" for an aspect that is not mentioned, and no entry
    where the reference is unknown. Splits without an index are skipped; if there is none at all, that is an error.
    """
    root, tables = Path(root), []
    paths = {split: root / INDEX_NAME.format(split=split) for split in splits}
    for split, path in paths.items():
        if not path.is_file():
            continue
        lines = read_index(path)
        references: dict[str, dict[CaptionType, str]] = {}
        for sample in group_captions(lines, captioner.caption_types or [UNNAMED], captioner.tokenizer):
            references.setdefault(
                sample.image, {caption_type: text for caption_type, (_, text) in sample.captions.items()}
            )
        first = (
            lines.drop_duplicates("image_path")
            .head(max_images or len(lines))
            .rename(columns={"image_path": "image"})
        )
        stems = first["image"].map(lambda name: Path(name).stem)  # the recipe's index names no scenario
        first = first.assign(split=split, scenario=first["scenario"].where(first["scenario"].notna(), stems))
        tables.append(first.assign(references=[references.get(image, {}) for image in first["image"]]))
    if not tables:
        names = ", ".join(path.name for path in paths.values())
        raise FileNotFoundError(
            f"{root}: expected {names}, found none of them. Run notebook 2, or choose other splits."
        )
    return pd.concat(tables, ignore_index=True)[[*ABOUT, "references"]]
