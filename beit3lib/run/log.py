"""log.jsonl, one event of a training run per line, and the same events for TensorBoard.

{"event": "step", "step": 12, "epoch": 0, "loss": 4.2, "grad_norm": 1.3, "lr": 4e-5, "timing": {…}, …}
{"event": "validation", "step": 50, "score": 31.5, "samples": [{"image": …, "caption": …}, …], …}
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from beit3lib.data.images import open_image
from beit3lib.files import write_text

LOG_NAME = "log.jsonl"


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Append one event to a log.jsonl."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(event))


def write_log(path: Path, events: list[dict[str, Any]]) -> None:
    """Write a log.jsonl of `events`, completely or not at all."""
    write_text(path, "".join(map(_line, events)))


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the events of a log.jsonl, [] if there is none, without a last line that a kill has cut."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]  # not splitlines: captions may contain U+2028


def track_event(accelerator, event: dict[str, Any], image_root: Path, image_size: int) -> None:
    """Send the numbers of an event, and the images and captions of a validation, to TensorBoard."""
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
    if images:
        tracker = accelerator.get_tracker("tensorboard")
        tracker.log_images({f"{kind}/images": np.stack(images)}, step=step, dataformats="NHWC")
