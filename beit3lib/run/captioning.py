"""Caption the images of a run and answer the questions about them, resumably.

Process N appends a JSON line for each finished image to `predictions.partial[.N].jsonl` beside
predictions.json. The next start, with any number of processes, captions the images that are not in these
files. The first line of the file of process 0 holds the options of the job. With another checkpoint or other
options, captioning starts from scratch, because a mixture would look like the predictions of one checkpoint.

The result does not depend on interruptions or processes. In bf16 and fp16 a caption can depend by rounding on
the other images of its batch. Therefore images are divided into batches by their order alone, and all images
of a batch are captioned again unless all of them are finished.
"""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from beit3lib.captioner import Captioner
from beit3lib.data.images import ImageError, open_image
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.data.predictions import predictions_table, read_meta, read_predictions, write_predictions
from beit3lib.data.questions import (
    QUESTION_INDEX_NAME,
    answers_path,
    questions_of_images,
    write_image_answers,
)
from beit3lib.data.schema import IMAGE_COLUMNS, CaptionType
from beit3lib.dataset import group_captions, num_workers
from beit3lib.decode import Caption, inference_weights, word_probs
from beit3lib.device import inference_precision
from beit3lib.files import lock_folder, write_text
from beit3lib.question import Question, encode_question
from beit3lib.run.launch import outlive_signals
from beit3lib.track2.metrics import meteor_is_comparable, score_predictions
from beit3lib.transforms import to_tensor

MAX_BATCH = {"cuda": 64, "cpu": 32}  # images decoded together
CPU_BEAMS = 512  # beams decoded together; larger batches are not faster on a CPU (tiny model)
ABOUT = ("image", *IMAGE_COLUMNS)


class Captioned(NamedTuple):
    """Result of an image: one caption per caption type, log-probabilities of the options of each question."""

    captions: list[Caption]
    answers: list[list[float]]
    problem: str = ""  # why the image cannot be read


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
    quiet: bool = False,
) -> pd.DataFrame:
    """Caption images with every caption type of the model, resumably, and write `output`; returns its table.

    `images`: one row per image as `images_to_caption` returns, paths relative to `root`; with a column
    `path`, that file is read instead. `meta` identifies the checkpoint and is written to `output`. After
    `max_minutes` (0: no limit) the captions so far are returned without scores; `output` is not written, and
    `partial_path(output)` exists. `quiet` shows no progress.
    """
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
    output, names = Path(output), images["image"].tolist()
    paths = [Path(root, path) for path in images.get("path", images["image"])]
    images = images.drop(columns="path", errors="ignore")
    size = batch_size or choose_batch_size(captioner, num_beams)
    options = {**meta, "num_beams": num_beams, "batch_size": size, **_identity(captioner, images, paths)}
    # A model that was trained without questions only captions.
    can_answer = captioner.model.config.answers and "questions" in images
    asked = images["questions"].tolist() if can_answer else [[]] * len(images)
    encode = partial(encode_question, captioner.tokenizer)
    questions = [[encode(row["question"], row["options"]) for row in rows] for rows in asked]
    rank, processes, wait = _processes(captioner)
    if output.is_file() and not partial_path(output).exists() and not _changes(read_meta(output), options):
        if not quiet:
            print(f"{output}: complete. Delete it to caption these images again.")
        return read_predictions(output)
    with lock_folder(output.parent, "captioning", output.name) if rank == 0 else nullcontext():
        if rank == 0:
            _start(output, options)
        wait()
        finished = _read_finished(output)
        batches = [range(len(names))[i : i + size] for i in range(0, len(names), size)][rank::processes]
        batches = [batch for batch in batches if any(names[i] not in finished for i in batch)]
        style = {
            "unit": "image",
            "mininterval": 1,
            "ncols": 100,
            "file": sys.stdout,
            "disable": quiet or rank > 0,
        }
        bar = tqdm(total=sum(map(len, batches)), desc=output.name, **style)
        with bar, inference_precision(captioner.device), inference_weights(captioner.model):
            stream = caption_batches(captioner, paths, batches, num_beams, num_workers, questions)
            for batch, results in zip(batches, stream, strict=True):
                lines = [
                    {"image": names[i], **_plain(captioner.tokenizer, result, asked[i])}
                    for i, result in zip(batch, results, strict=True)
                ]
                _append(partial_path(output, rank), lines)
                bar.update(len(batch))
                if time.monotonic() > deadline:
                    break
        wait()  # until the captions of all processes are in the files
        return _finish(output, images, options) if rank == 0 else predictions_table([])


def _identity(captioner: Captioner, images: pd.DataFrame, paths: list[Path]) -> dict[str, Any]:
    """The images, with their references and sizes, and the decoding options of the model."""
    sizes = [path.exists() and path.stat().st_size for path in paths]
    return {
        "max_tokens": captioner.max_tokens,
        "length_penalty": captioner.length_penalty,
        "image_size": captioner.model.config.image_size,
        "caption_types": [list(caption_type) for caption_type in captioner.caption_types],
        "images": len(paths),
        "images_sha256": hashlib.sha256(f"{images.to_dict('records')} {sizes}".encode()).hexdigest(),
    }


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The options of `new` that differ from `old`, as a phrase."""
    changed = [name for name in new if old.get(name) != new[name]]
    return "; ".join(f"{name} was {old.get(name)}, is {new[name]}" for name in changed)


def partial_path(output: str | Path, rank: int = 0) -> Path:
    """The file of process `rank`. While that of process 0 exists, `output` is unfinished."""
    return Path(output).with_suffix(f".partial.{rank}.jsonl" if rank else ".partial.jsonl")


def _partial_files(output: Path) -> list[Path]:
    """The files of all processes, also of an earlier start with more of them; that of process 0 last."""
    return sorted(output.parent.glob(f"{output.stem}.partial*.jsonl"))


def _processes(captioner: Captioner) -> tuple[int, int, Callable[[], None]]:
    """Rank of this process, number of processes that a launcher started, and a function to wait for them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    one_day = timedelta(days=1)  # shares take unequal time
    state = PartialState(cpu=captioner.device.type == "cpu", timeout=one_day)
    return state.process_index, state.num_processes, state.wait_for_everyone


def _start(output: Path, options: dict[str, Any]) -> None:
    """Keep the files of all processes if they have these options, else rename them and start from scratch."""
    path, old = partial_path(output), {}
    if path.exists():
        old = json.loads(path.read_bytes().partition(b"\n")[0])
        if not _changes(old, options):
            return
    elif output.exists():
        old = read_meta(output)
    if old:
        print(f"{output}: starts from scratch, because {_changes(old, options)}.")
    # The file of process 0 is the last, so that a kill leaves no captions without their options.
    for file in _partial_files(output):  # not deleted, because they may be hours of work
        file.replace(file.with_name(file.name.replace(".partial", ".old")))
    write_text(path, json.dumps(options))


def _read_finished(output: Path) -> dict[str, dict[str, Any]]:
    """{image: its line} of all processes, without lines that a kill or a full disk has cut."""
    finished = {}
    for path in _partial_files(output):
        for line in path.read_bytes().split(b"\n"):
            with suppress(ValueError):
                entry = json.loads(line)
                finished[entry.get("image")] = entry
    return finished


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    try:
        with path.open("a") as file:
            # Each line after a line end, so that none is joined to one that a kill has cut.
            file.write("".join(f"\n{json.dumps(line)}" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        todo = "Finished captions are kept: free some space and rerun the same command."
        raise OSError(f"{path}: {error.strerror}. {todo}") from None


def _plain(tokenizer, result: Captioned, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """A result as JSON: [text, log_prob, word_probs] per caption type, {letter: log_prob} per question id."""
    if result.problem:
        return {"problem": result.problem}
    captions = []
    for caption in result.captions:
        log_prob = round(caption.log_prob, 4) if math.isfinite(caption.log_prob) else None  # overflow in fp16
        captions.append([caption.text, log_prob, [round(p, 4) for p in word_probs(tokenizer, caption)]])
    answers = {
        row["id"]: {letter: round(p, 4) for letter, p in zip(row["options"], log_probs, strict=True)}
        for row, log_probs in zip(asked, result.answers, strict=True)
    }
    return {"captions": captions, "answers": answers} if asked else {"captions": captions}


def _finish(output: Path, images: pd.DataFrame, options: dict[str, Any]) -> pd.DataFrame:
    """Return the captions; if none is missing, score and write them, and delete the partial files.

    This takes about 12 kB of memory per image with ten captions of 20 words: 0.3 GB for 25,000 images.
    """
    finished, rows = _read_finished(output), []
    done = images[images["image"].isin(finished)]
    for image in done.to_dict("records"):
        captions = finished[image["image"]].get("captions", [])
        for kind, caption in zip(options["caption_types"], captions, strict=False):
            rows.append([*map(image.get, ABOUT), *kind, *caption, image["references"].get(tuple(kind)), None])
    table = predictions_table(rows)
    if len(done) < len(images):
        print(f"{output}: {len(done)} of {len(images)} images captioned. Rerun the same command to resume.")
        return table
    skipped = [finished[name] for name in done["image"] if "problem" in finished[name]]
    scored = table["reference"].notna().any()  # without references, WordNet is not loaded
    table = score_predictions(table).round({"official_score": 2}) if scored else table
    meta = {**options, "comparable": not scored or meteor_is_comparable(), "skipped": skipped}
    answers = {name: finished[name]["answers"] for name in done["image"] if finished[name].get("answers")}
    if answers:
        write_image_answers(answers_path(output), answers, meta)
    write_predictions(output, table, meta)
    for path in _partial_files(output):
        path.unlink()
    if skipped:
        first = "; ".join(f"{line['image']}: {line['problem']}" for line in skipped[:5])
        print(f"{output}: {len(skipped)} images cannot be read and have no captions: {first}")
    return table


def images_to_caption(
    root: str | Path, splits: Sequence[str], captioner: Captioner, max_images: int | None = None
) -> pd.DataFrame:
    """The images in the index files of `splits`, at most `max_images` of each, one row per image.

    Columns are `ABOUT`, `references`: {caption type: text}, "" for an aspect that is not mentioned, and no
    entry where the reference is unknown, and `questions`: a list of {"id", "question", "options"}. Splits
    without an index are skipped; if there is none at all, that is an error.
    """
    paths, tables = {split: Path(root, INDEX_NAME.format(split=split)) for split in splits}, []
    for split, path in paths.items():
        if not path.is_file():
            continue
        lines = read_index(path)
        examples = group_captions(lines, captioner.caption_types, captioner.tokenizer)
        references: dict[str, dict[CaptionType, str]] = {}
        for example in examples:  # an index without caption types may have several examples of an image
            texts = {caption_type: text for caption_type, (_, text) in example.captions.items()}
            references.setdefault(example.image, texts)
        asked = questions_of_images(Path(root, QUESTION_INDEX_NAME.format(split=split)))
        first = lines.drop_duplicates("image_path").head(max_images or len(lines))
        first = first.rename(columns={"image_path": "image"}).assign(split=split)
        # The reference implementation's index has no scenarios.
        first["scenario"] = first["scenario"].fillna(first["image"].map(lambda name: Path(name).stem))
        asked = [asked.get(image, []) for image in first["image"]]
        known = [references.get(image, {}) for image in first["image"]]
        tables.append(first.assign(references=known, questions=asked))
    if not tables:
        names = ", ".join(path.name for path in paths.values())
        raise FileNotFoundError(f"{root}: expected {names}, found none. Run the stage index first.")
    return pd.concat(tables, ignore_index=True)[[*ABOUT, "references", "questions"]]


def choose_batch_size(captioner: Captioner, num_beams: int) -> int:
    """How many images to decode together. On a GPU, batches that do not fit in memory are halved."""
    if captioner.device.type == "cuda":
        return MAX_BATCH["cuda"]
    beams = len(captioner.caption_types) * num_beams
    return max(1, min(MAX_BATCH["cpu"], CPU_BEAMS // beams))


def caption_batches(
    captioner: Captioner,
    paths: Sequence[Path],
    batches: Sequence[Sequence[int]],
    num_beams: int,
    workers: int,
    questions: Sequence[Sequence[Question]] = (),
) -> Iterator[list[Captioned]]:
    """Caption batches of indices into `paths`, and answer `questions[index]`, in one pass of each image.

    Worker processes load images while the model decodes. Call it inside autocast and `inference_weights`.
    """
    size, longest = captioner.model.config.image_size, max(map(len, batches), default=1)
    workers = min(num_workers(workers, longest * 3 * size * size * 4), max(0, len(batches) - 1))
    # Without a batch size, an element of the data set is a whole batch.
    loader = DataLoader(
        _Batches(paths, size),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        worker_init_fn=outlive_signals,
    )
    each = len(captioner.caption_types)
    for batch, (readable, pixels, problems) in zip(batches, loader, strict=True):
        asked = [questions[index] if questions else [] for index in readable]
        captions, answers = _generate(captioner, pixels, asked, num_beams) if readable else ([], [])
        found = {index: Captioned([], [], problem) for index, problem in problems.items()}
        for i, index in enumerate(readable):
            found[index] = Captioned(captions[i * each : (i + 1) * each], answers[i])
        yield [found[index] for index in batch]


class _Batches(Dataset):
    """Batches: indices of readable images, their pixels (B, 3, S, S), {index: problem} of the others."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __getitem__(self, batch: Sequence[int]) -> tuple[list[int], Tensor, dict[int, str]]:
        pixels, problems = {}, {}
        for index in batch:
            try:
                pixels[index] = to_tensor(open_image(self.paths[index]), self.size)
            except (ImageError, OSError) as error:
                problems[index] = str(error).removeprefix(f"{self.paths[index]}: ")
        return list(pixels), torch.stack([*pixels.values()]) if pixels else torch.empty(0), problems


def _generate(
    captioner: Captioner, pixels: Tensor, questions: Sequence[Sequence[Question]], num_beams: int
) -> tuple[list[Caption], list[list[list[float]]]]:
    """Caption (B, 3, S, S) and answer the questions of each image, in halves if memory runs out."""
    try:
        with torch.inference_mode():
            memory = captioner.model.encode_image(pixels.to(captioner.device))
        return captioner.generate(memory, num_beams=num_beams), captioner.log_probs(memory, questions)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    torch.cuda.empty_cache()  # outside the except block, which keeps the tensors of the failed call alive
    half = len(pixels) // 2
    first = _generate(captioner, pixels[:half], questions[:half], num_beams)
    second = _generate(captioner, pixels[half:], questions[half:], num_beams)
    return first[0] + second[0], first[1] + second[1]
