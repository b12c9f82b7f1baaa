"""Caption and score validation images during training."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from accelerate.utils import broadcast_object_list, gather_object

from beit3lib.captioner import Captioner
from beit3lib.data.schema import CaptionType
from beit3lib.dataset import CaptionDataset
from beit3lib.decode import inference_weights
from beit3lib.run.captioning import caption_batches, choose_batch_size
from beit3lib.track2.metrics import meteor_is_comparable, score_predictions


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
    batches = [chosen[i : i + size] for i in range(0, len(chosen), size)][
        accelerator.process_index % processes :: processes
    ]
    paths = [val_set.root / sample.image for sample in val_set.samples]
    texts = []  # (index, one text per caption type)
    with accelerator.autocast(), inference_weights(captioner.model):
        for captions, problems in caption_batches(
            captioner, paths, batches, config.num_beams, config.num_workers
        ):
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
    texts: list[tuple[int, list[str]]],
    followed: list[int],
    val_set: CaptionDataset,
    train_set: CaptionDataset | None,
) -> dict[str, Any]:
    records = []
    for index, captions in sorted(texts):
        references = val_set.reference(index)
        for caption_type, caption in zip(val_set.caption_types, captions, strict=True):
            if (
                caption_type in references or not references
            ):  # of an image without any reference, all captions are kept
                name, reference = _name(caption_type), references.get(caption_type)
                records.append((index, val_set.samples[index].image, name, caption, reference))
    columns = ["index", "image", "caption_type", "caption", "reference"]
    table = score_predictions(pd.DataFrame(records, columns=columns, dtype=object))
    scored = table[table["official_score"].notna()]
    if len(scored) < len(table):
        print(
            f"validation: {len(table) - len(scored)} of {len(table)} captions have no reference and no score",
            flush=True,
        )
    known = (train_set.reference(index) for index in range(len(train_set) if train_set is not None else 0))
    trained = {(_name(caption_type), text) for captions in known for caption_type, text in captions.items()}
    samples = table[table["index"].isin(followed)]
    return {
        "score": float(scored["official_score"].mean()) if len(scored) else None,
        "comparable": meteor_is_comparable(),  # whether the score may be called official
        "captions": len(table),
        "by_caption_type": scored.groupby("caption_type", sort=False)["official_score"]
        .mean()
        .round(2)
        .to_dict(),
        **_variety(table["caption_type"], table["caption"], trained),
        "references": _variety(table["caption_type"], table["reference"], trained),
        "samples": samples[["image", "caption_type", "caption", "reference"]].to_dict("records"),
    }


def _name(caption_type: CaptionType) -> str:
    return " ".join(caption_type).strip()


def _variety(
    caption_types: Sequence[str], texts: Sequence[str | None], trained: set[tuple[str, str]]
) -> dict[str, float]:
    """Shares of non-empty texts that are distinct within their type, and that are training captions."""
    pairs = [pair for pair in zip(caption_types, texts, strict=True) if pair[1]]
    count = max(1, len(pairs))
    return {"distinct": len(set(pairs)) / count, "copied": sum(pair in trained for pair in pairs) / count}
