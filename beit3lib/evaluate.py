"""Caption many images with a trained checkpoint, and score captions during training.

    python -m beit3lib.evaluate runs/mine                              best/ on the val and test images -> predictions.json
    python -m beit3lib.evaluate runs/mine --max_images 6               a quick look -> predictions.quick.json
    python -m beit3lib.evaluate runs/mine --num_gpus 2 --max_minutes 500

Captioning can be stopped at any time, also by SIGKILL: the same command continues, also with another number of processes.
`caption_job.py` describes how.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from beit3lib.caption_job import IMAGE_COLUMNS, CaptionJob, captions_are_kept, partial_path
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import WEIGHTS_NAME, load_captioner
from beit3lib.data.images import ImageError, open_image
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.data.predictions import PREDICTIONS_NAME, QUICK_NAME, predictions_table, read_predictions, write_predictions
from beit3lib.dataset import UNNAMED, CaptionDataset, CaptionType, group_captions, num_workers
from beit3lib.decode import Caption, word_probs
from beit3lib.device import choose_device, choose_precision, inference_precision, inference_weights
from beit3lib.files import exit_on_error, file_hash, lock_folder, readable_folder
from beit3lib.launch import ignore_signals, run_processes
from beit3lib.track2.metrics import meteor_is_comparable, score_pairs
from beit3lib.transforms import to_tensor

MAX_BATCH = {"cuda": 64, "cpu": 32}  # images decoded together
CPU_BEAMS = 512  # of all images and caption types together; on a CPU more are not faster (tiny model)


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
    workers = min(num_workers(workers, longest * 3 * size * size * 4), max(0, len(batches) - 1)) if longest else 0
    loader = DataLoader(
        _Images(paths, size), batch_sampler=batches, num_workers=workers, collate_fn=_stack, worker_init_fn=ignore_signals
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


def score_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with `official_score`: the mean of the challenge's four metrics, 0 to 100, NaN without a reference.

    An aspect that the reference does not mention (reference "") scores 100 if the caption is empty too. An empty caption
    or reference alone scores 0.
    """
    pairs = list(zip(table["caption"], table["reference"], strict=True))
    scores = np.array([np.nan if reference is None else 100.0 * (caption == reference == "") for caption, reference in pairs])
    both = [i for i, (caption, reference) in enumerate(pairs) if caption and reference]
    if both:
        scores[both] = score_pairs([pairs[i][0] for i in both], [pairs[i][1] for i in both])["score"]
    return table.assign(official_score=scores)


def validate(
    captioner: Captioner, val_set: CaptionDataset, train_set: CaptionDataset | None, config, accelerator
) -> dict[str, Any]:
    """Caption `config.val_images` validation images, shared among processes, and score them; equal on every process.

    `score`: mean official score, None if no image has a reference. `distinct`: share of captions that differ from all others
    of their type; `copied`: share that equal a caption of `train_set`, 0 without one; `references`: the same shares of the
    references. Far fewer distinct captions than distinct references indicate mode collapse.
    """
    started = time.monotonic()
    chosen = _spread(len(val_set), config.val_images)
    processes = accelerator.num_processes if config.dist_eval else 1
    size = config.eval_batch_size or min(config.batch_size, choose_batch_size(captioner, config.num_beams))
    size = min(broadcast_object_list([size])[0], math.ceil(len(chosen) / processes))
    batches = [chosen[i : i + size] for i in range(0, len(chosen), size)][accelerator.process_index % processes :: processes]
    paths = [val_set.root / sample.image for sample in val_set.samples]
    texts = []  # (index, one text per caption type)
    with accelerator.autocast(), inference_weights(captioner.model):
        for captions, problems in caption_batches(captioner, paths, batches, config.num_beams, config.num_workers):
            texts += [(index, [caption.text for caption in captions[index]]) for index in captions]
            for index, problem in problems.items():
                print(f"{paths[index]}: {problem}. Validation skips it.", flush=True)
    texts = gather_object(texts) if processes > 1 else texts
    result = None
    if accelerator.is_main_process:
        followed = [chosen[i] for i in _spread(len(chosen), config.samples)] if config.samples else []
        result = _validation_result(texts, followed, val_set, train_set)
        result["seconds"] = round(time.monotonic() - started, 1)
    return broadcast_object_list([result])[0]


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices spread evenly over `count`, the same in every epoch; all for 0."""
    if not wanted or wanted >= count:
        return list(range(count))
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def _validation_result(
    texts: list[tuple[int, list[str]]], followed: list[int], val_set: CaptionDataset, train_set: CaptionDataset | None
) -> dict[str, Any]:
    records = []
    for index, captions in sorted(texts):
        references = val_set.reference(index)
        for caption_type, caption in zip(val_set.caption_types, captions, strict=True):
            if caption_type in references or not references:  # of an image without any reference, all captions are kept
                name, reference = _name(caption_type), references.get(caption_type)
                records.append((index, val_set.samples[index].image, name, caption, reference))
    columns = ["index", "image", "caption_type", "caption", "reference"]
    table = score_predictions(pd.DataFrame(records, columns=columns, dtype=object))
    scored = table[table["official_score"].notna()]
    if len(scored) < len(table):
        print(f"validation: {len(table) - len(scored)} of {len(table)} captions have no reference and no score", flush=True)
    known = (train_set.reference(index) for index in range(len(train_set) if train_set is not None else 0))
    trained = {(_name(caption_type), text) for captions in known for caption_type, text in captions.items()}
    samples = table[table["index"].isin(followed)]
    return {
        "score": float(scored["official_score"].mean()) if len(scored) else None,
        "comparable": meteor_is_comparable(),  # whether the score may be called official
        "captions": len(table),
        "by_caption_type": scored.groupby("caption_type", sort=False)["official_score"].mean().round(2).to_dict(),
        **_variety(table["caption_type"], table["caption"], trained),
        "references": _variety(table["caption_type"], table["reference"], trained),
        "samples": samples[["image", "caption_type", "caption", "reference"]].to_dict("records"),
    }


def _name(caption_type: CaptionType) -> str:
    return " ".join(caption_type).strip()


def _variety(caption_types: Sequence[str], texts: Sequence[str | None], trained: set[tuple[str, str]]) -> dict[str, float]:
    """Shares of non-empty texts that are distinct within their type, and that are training captions."""
    pairs = [pair for pair in zip(caption_types, texts, strict=True) if pair[1]]
    count = max(1, len(pairs))
    return {"distinct": len(set(pairs)) / count, "copied": sum(pair in trained for pair in pairs) / count}


def _processes(captioner: Captioner) -> tuple[int, int, Callable[[], None]]:
    """Rank of this process, number of processes that a launcher started, and a function that waits for all of them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    state = PartialState(cpu=captioner.device.type == "cpu", timeout=timedelta(days=1))  # shares take unequal time
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
    options |= {"caption_types": [list(caption_type) for caption_type in captioner.caption_types or [UNNAMED]]}
    rank, processes, wait = _processes(captioner)
    output = Path(output)
    job = CaptionJob(images, Path(root), output, rank)
    if job.is_complete(options):
        print(f"{output}: complete. Delete it to caption these images again.")
        return read_predictions(output).drop(columns="outside")
    with lock_folder(output.parent, "captioning", output.name) if rank == 0 else nullcontext():
        if rank == 0:
            job.start(options, batch_size, partial(choose_batch_size, captioner, num_beams))
        wait()
        job.divide()
        initial = job.count_finished()
        wait()  # until every process has read the files, before one of them appends
        todo = [number for number in range(len(job.batches)) if number not in job.finished][rank::processes]
        bar = {"desc": output.name, "unit": "image", "file": sys.stdout, "mininterval": 1, "ncols": 100, "disable": rank > 0}
        with tqdm(total=len(job.records), initial=initial, **bar) as progress:
            with inference_precision(captioner.device), inference_weights(captioner.model):
                for _ in _caption(captioner, job, todo, num_beams, num_workers, deadline):
                    if rank == 0:
                        progress.update(job.count_finished() - progress.n)
            while rank == 0 < processes - 1 and job.count_finished() < len(job.records) and time.monotonic() < deadline:
                time.sleep(1)  # other processes are slower
                progress.update(job.count_finished() - progress.n)
        wait()  # until the batches of all processes are in the files
        table = _finish(job) if rank == 0 else predictions_table([])
        wait()
    return table


def _caption(captioner, job: CaptionJob, todo: list[int], num_beams: int, workers: int, deadline: float) -> Iterator[None]:
    """Caption the batches `todo`, yielding after each is appended; stops if the next one may end after `deadline`."""
    before, slowest = time.monotonic(), 0.0
    stream = caption_batches(captioner, job.paths, [job.batches[number] for number in todo], num_beams, workers)
    for number, (captions, problems) in zip(todo, stream, strict=True):
        items = [problems.get(i) or [_as_json(captioner, caption) for caption in captions[i]] for i in job.batches[number]]
        job.append(number, items)
        yield
        now = time.monotonic()
        slowest, before = max(slowest, now - before), now
        if now + slowest > deadline:
            break


def _as_json(captioner: Captioner, caption: Caption) -> list[Any]:
    """[text, log_prob, word_probs], as in the records of predictions.json."""
    log_prob = round(caption.log_prob, 4) if math.isfinite(caption.log_prob) else None  # -inf where fp16 overflows
    return [caption.text, log_prob, [round(p, 4) for p in word_probs(captioner.tokenizer, caption)]]


def _finish(job: CaptionJob) -> pd.DataFrame:
    """Return the captions; if none is missing, score and write them, and remove the partial files."""
    table, skipped, count = job.results()
    if count < len(job.records):
        print(f"{job.output}: {count} of {len(job.records)} images captioned. Run the same command again to continue.")
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

    Columns are `IMAGE_COLUMNS` and `references`: {caption type: text}, "" for an aspect that is not mentioned, and no entry
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
            references.setdefault(sample.image, {caption_type: text for caption_type, (_, text) in sample.captions.items()})
        first = lines.drop_duplicates("image_path").head(max_images or len(lines)).rename(columns={"image_path": "image"})
        stems = first["image"].map(lambda name: Path(name).stem)  # the recipe's index names no scenario
        first = first.assign(split=split, scenario=first["scenario"].where(first["scenario"].notna(), stems))
        tables.append(first.assign(references=[references.get(image, {}) for image in first["image"]]))
    if not tables:
        names = ", ".join(path.name for path in paths.values())
        raise FileNotFoundError(f"{root}: expected {names}, found none of them. Run notebook 2, or choose other splits.")
    return pd.concat(tables, ignore_index=True)[[*IMAGE_COLUMNS, "references"]]


def caption_run(
    run: str | Path,
    checkpoint: str = "best",
    splits: Sequence[str] = ("val", "test"),
    num_beams: int = 3,
    batch_size: int | None = None,
    max_images: int | None = None,
    max_minutes: float = 0.0,
    num_workers: int = 10,
    num_gpus: int = 1,
    device: str = "auto",
) -> pd.DataFrame:
    """Caption the images of a run folder and write predictions.json, or predictions.quick.json with `max_images`.

    `num_gpus` above 1 starts that many processes, which share the images.
    """
    run = Path(run)
    output = run / (QUICK_NAME if max_images else PREDICTIONS_NAME)
    if num_gpus > 1 and "WORLD_SIZE" not in os.environ:
        options = {"checkpoint": checkpoint, "num_beams": num_beams, "batch_size": batch_size, "max_images": max_images}
        options |= {"max_minutes": max_minutes, "num_workers": num_workers, "device": device}
        arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
        run_processes("beit3lib.evaluate", [str(run), *arguments, "--splits", *splits], num_gpus, device)
        return predictions_table([]) if partial_path(output).exists() else read_predictions(output).drop(columns="outside")
    folder = readable_folder(run / checkpoint)
    found = choose_device(device)
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    captioner = load_captioner(folder, found)
    images = images_to_caption(run, splits, captioner, max_images)
    meta = {"checkpoint": checkpoint, "checkpoint_sha256": file_hash(folder / WEIGHTS_NAME), "splits": list(splits)}
    if int(os.environ.get("RANK", 0)) == 0:
        precision, reason = choose_precision("auto", found)
        print(f"{output}: {len(images)} images on {found}, precision {precision} ({reason})", flush=True)
    return caption_images(captioner, images, run, output, meta, num_beams, batch_size, max_minutes, num_workers)


@exit_on_error(RuntimeError)
def main(argv: Sequence[str] | None = None) -> None:
    """Caption the images of a run folder."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.evaluate", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder with index files, images and a checkpoint")
    parser.add_argument("--checkpoint", default="best", help="folder of the checkpoint inside the run folder [best]")
    parser.add_argument("--splits", nargs="+", default=["val", "test"], choices=["train", "val", "test"], help="[val test]")
    parser.add_argument("--num_beams", type=int, default=3, help="beams of the search [3]")
    parser.add_argument("--batch_size", type=int, help="images decoded together [by free memory]")
    parser.add_argument("--max_images", type=int, help="a quick look at this many images of each split")
    parser.add_argument("--max_minutes", type=float, default=0.0, help="stop in time; run again to continue [no limit]")
    parser.add_argument("--num_workers", type=int, default=10, help="processes that load images, at most one per core [10]")
    parser.add_argument("--num_gpus", type=int, default=1, help="processes that share the images [1]")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"], help="[auto]")
    options = vars(parser.parse_args(argv))
    try:
        caption_run(**options)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to continue")
        sys.exit(130)


if __name__ == "__main__":
    main()
