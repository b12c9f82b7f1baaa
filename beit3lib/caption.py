"""Caption images with a trained checkpoint: those of a run, or photos and videos of your own.

    python -m beit3lib.caption runs/mine                     best/, val and test images -> predictions.json
    python -m beit3lib.caption runs/mine --max_images 6      a preview -> predictions.quick.json
    python -m beit3lib.caption runs/mine --num_gpus 2 --max_minutes 500

    python -m beit3lib.caption runs/mine/best photo.jpg      -> captions/captions.json, gallery.html
    python -m beit3lib.caption runs/mine/best clip.mp4 --phases 0-1.3,1.3-2.6 --out clip     and captions.vtt
    python -m beit3lib.caption runs/mine/best folder/ --every 2 --questions questions.json   and answers.json

Captioning can be stopped at any time, also by SIGKILL: the same command resumes it, also with another number
of processes. The exit status is 1 if a photo or video cannot be read; the others are captioned.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from beit3lib.checkpoint import WEIGHTS_NAME
from beit3lib.data.predictions import PREDICTIONS_NAME, QUICK_NAME, predictions_table, read_predictions
from beit3lib.device import choose_device, choose_precision
from beit3lib.files import exit_on_error, file_hash, readable_folder
from beit3lib.run.captioning import caption_images, images_to_caption, partial_path
from beit3lib.run.launch import run_processes
from beit3lib.run.state import open_captioner


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
    """Caption the images of a run folder and write predictions.json, or predictions.quick.json with
    `max_images`.

    `num_gpus` above 1 starts that many processes, which share the images.
    """
    run = Path(run)
    output = run / (QUICK_NAME if max_images else PREDICTIONS_NAME)
    if num_gpus > 1 and "WORLD_SIZE" not in os.environ:
        options = {
            "checkpoint": checkpoint,
            "num_beams": num_beams,
            "batch_size": batch_size,
            "max_images": max_images,
            "max_minutes": max_minutes,
            "num_workers": num_workers,
            "device": device,
        }
        arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
        run_processes("beit3lib.caption", [str(run), *arguments, "--splits", *splits], num_gpus, device)
        return predictions_table([]) if partial_path(output).exists() else read_predictions(output)
    path = run / checkpoint if (run / checkpoint).is_file() else readable_folder(run / checkpoint)
    found = choose_device(device)
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    captioner = open_captioner(path, found)
    images = images_to_caption(run, splits, captioner, max_images)
    meta = {
        "checkpoint": checkpoint,
        "checkpoint_sha256": file_hash(path if path.is_file() else path / WEIGHTS_NAME),
        "splits": list(splits),
    }
    if int(os.environ.get("RANK", 0)) == 0:
        precision, reason = choose_precision("auto", found)
        print(f"{output}: {len(images)} images on {found}, precision {precision} ({reason})", flush=True)
    return caption_images(
        captioner, images, run, output, meta, num_beams, batch_size, max_minutes, num_workers
    )


# Options of only one of the two uses; those of `caption_run` and of `media.caption_media` are the others.
OF_RUN = ("checkpoint", "splits", "max_images", "max_minutes", "num_workers", "num_gpus")
OF_MEDIA = ("phases", "every", "annotations", "questions", "out")


@exit_on_error(RuntimeError)
def main(argv: Sequence[str] | None = None) -> None:
    """Caption the images of a run folder, or a photo, a video or a folder of them."""
    parser = argparse.ArgumentParser(
        prog="python -m beit3lib.caption", description=main.__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("run", type=Path, help="run folder; for photos and videos a checkpoint such as runs/mine/best")
    add("source", type=Path, nargs="?", help="photo, video, or folder of them [the images of the run]")
    add("--num_beams", type=int, default=3, help="beams of the search [3]")
    add("--batch_size", type=int, help="images decoded together [by free memory]")
    add("--device", default="auto", choices=["auto", "cuda", "cpu"], help="[auto]")
    add = parser.add_argument_group("images of a run").add_argument
    add("--checkpoint", default="best", help="best, last.pt or checkpoint-N of the run folder [best]")
    splits = ["train", "val", "test"]
    add("--splits", nargs="+", default=["val", "test"], choices=splits, help="[val test]")
    add("--max_images", type=int, help="preview: only this many images of each split")
    add("--max_minutes", type=float, default=0.0, help="stop in time; run again to continue [no limit]")
    add("--num_workers", type=int, default=10, help="processes that load images, at most one per core [10]")
    add("--num_gpus", type=int, default=1, help="processes that share the images [1]")
    group = parser.add_argument_group("photos and videos")
    add = group.add_mutually_exclusive_group().add_argument
    add("--phases", default="", help="phases of a video in seconds: 0-1.3,1.3-2.6 [all is one phase]")
    add(
        "--every", type=float, default=0.0, metavar="SECONDS", help="divide videos into phases of this length"
    )
    add("--annotations", default="", help="WTS caption file with the phases, or a folder of them")
    group.add_argument("--questions", default="", help='JSON list of {"question": …, "a": …, "b": …}')
    group.add_argument("--out", type=Path, default=Path("captions"), help="folder to write [captions]")
    options = vars(parser.parse_args(argv))
    for name in OF_RUN if options["source"] else OF_MEDIA:
        if options[name] != parser.get_default(name):
            parser.error(
                f"--{name}: only for {'images of a run' if options['source'] else 'photos and videos'}"
            )
        del options[name]
    try:
        if options["source"]:
            _caption_media(**options)
        else:
            del options["source"]
            caption_run(**options)
    except KeyboardInterrupt:
        print("\nstopped; rerun the same command to resume")
        sys.exit(130)


def _caption_media(run: Path, source: Path, **options: Any) -> None:
    """Caption photos and videos, print what was skipped, and exit with status 1 if a file has no captions."""
    from beit3lib.media import caption_media  # needs PyAV, which captioning a run does not

    found = caption_media(run, source, **options)
    for problem in found.problems:
        print(problem)
    print(
        f"{len(found.predictions)} captions of {found.predictions['image'].nunique()} images; "
        f"open {found.page}"
    )
    if found.failed:
        sys.exit(f"{len(found.failed)} files have no captions: {', '.join(found.failed[:10])}")


if __name__ == "__main__":
    main()
