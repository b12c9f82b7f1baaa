"""Caption images with a trained checkpoint.

    python -m beit3lib.caption runs/mine                     best/, val and test images -> predictions.json
    python -m beit3lib.caption runs/mine --max_images 6      a preview -> predictions.quick.json
    python -m beit3lib.caption runs/mine --num_gpus 2 --max_minutes 500

Captioning can be stopped at any time, also by SIGKILL: the same command resumes it, also with another number
of processes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

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


@exit_on_error(RuntimeError)
def main(argv: Sequence[str] | None = None) -> None:
    """Caption the images of a run folder."""
    parser = argparse.ArgumentParser(
        prog="python -m beit3lib.caption", description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="run folder with index files, images and a checkpoint")
    parser.add_argument(
        "--checkpoint", default="best", help="best, last.pt or checkpoint-N of the run folder [best]"
    )
    parser.add_argument(
        "--splits", nargs="+", default=["val", "test"], choices=["train", "val", "test"], help="[val test]"
    )
    parser.add_argument("--num_beams", type=int, default=3, help="beams of the search [3]")
    parser.add_argument("--batch_size", type=int, help="images decoded together [by free memory]")
    parser.add_argument("--max_images", type=int, help="preview: only this many images of each split")
    parser.add_argument(
        "--max_minutes", type=float, default=0.0, help="stop in time; run again to continue [no limit]"
    )
    parser.add_argument(
        "--num_workers", type=int, default=10, help="processes that load images, at most one per core [10]"
    )
    parser.add_argument("--num_gpus", type=int, default=1, help="processes that share the images [1]")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"], help="[auto]")
    options = vars(parser.parse_args(argv))
    try:
        caption_run(**options)
    except KeyboardInterrupt:
        print("\nstopped; rerun the same command to resume")
        sys.exit(130)


if __name__ == "__main__":
    main()
