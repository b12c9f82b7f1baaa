"""log.jsonl, one event of a training run per line, and the same events for TensorBoard or another tracker.

{"event": "step", "step": 12, "epoch": 0, "loss": 4.2, "grad_norm": 1.3, "lr": 4e-5, "skipped": 0, "timing":
{…}} {"event": "validation", "step": 50, "epoch": 0, "score": 31.5, "samples": [{"image": …, "caption": …},
…], …}
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from beit3lib.config import OptionError, TrainConfig
from beit3lib.data.images import open_image
from beit3lib.files import write_text

LOG_NAME = "log.jsonl"


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Append one event to a log.jsonl."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(event))
    except OSError as error:
        error.filename = str(path)  # writing to a full disk does not set it
        raise


def write_log(path: Path, events: list[dict[str, Any]]) -> None:
    """Write a log.jsonl of `events`, completely or not at all."""
    write_text(path, "".join(map(_line, events)))


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the events of a log.jsonl, [] if there is none; an incomplete last line, left by a kill, is
    skipped.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]  # not splitlines: captions may contain U+2028


def tracker_name(config: TrainConfig) -> str | None:
    """Return the tracker for accelerate's `log_with`; None for log.jsonl alone."""
    name = config.report_to
    if name == "auto":
        return "tensorboard" if config.log_dir else None
    if name != "none" and not importlib.util.find_spec(name):
        raise OptionError(
            f"--report_to {name}: expected an installed package, got none. Run pip install {name}."
        )
    return None if name == "none" else name


def track_event(accelerator, event: dict[str, Any], image_root: Path, image_size: int) -> None:
    """Send the numbers of an event, and the images and captions of a validation, to accelerate's trackers."""
    if not accelerator.trackers:
        return
    kind, step, samples = event["event"], event["step"], event.get("samples", [])
    scores = {f"score {name}": score for name, score in event.get("by_caption_type", {}).items()}
    numbers = {**event, **event["timing"], **scores}
    values = {f"{kind}/{name}": value for name, value in numbers.items() if isinstance(value, (int, float))}
    if samples:
        captions = [f"{s['image']}, {s['caption_type']}: {s['caption']}" for s in samples]
        values[f"{kind}/captions"] = "\n\n".join(captions)
    accelerator.log(values, step=step)
    paths = dict.fromkeys(image_root / sample["image"] for sample in samples)
    images = [np.asarray(open_image(path).resize((image_size, image_size))) for path in paths]
    for tracker in accelerator.trackers:
        if images and hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({f"{kind}/images": np.stack(images)}, step=step, **layout)
