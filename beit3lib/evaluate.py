"""Validation while training: held-out pictures captioned by beam search, scored as the challenge does, collapse watched."""

import time
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from beit3lib.dataset import CaptionDataset, load_image, to_tensor
from beit3lib.decode import generate, images_at_once
from beit3lib.model import Captioner
from beit3lib.track2.metrics import score_pairs


def caption_and_score(
    model: Captioner, held_out: CaptionDataset, train_set: CaptionDataset, config, accelerator
) -> dict[str, Any]:
    """Caption held-out pictures, shared among processes, and score them; every process gets the same result.

    `score`: mean official score of the captions that have a reference, 0 to 100, an absent aspect that is rightly left
    unsaid counting 100 and one that is wrongly described 0. `distinct`: share of captions that differ from all others of
    their description; `copied`: share that stands word for word among the training captions; `of_references`: the same of
    the references, near which a model should be: where far fewer are distinct it has stopped looking.
    """
    started = time.monotonic()
    numbers = _chosen(len(held_out), config.val_images)
    followed = [numbers[place] for place in _chosen(len(numbers), config.samples)] if config.samples else []
    processes = accelerator.num_processes if config.dist_eval else 1
    mine = numbers[accelerator.process_index % processes :: processes]
    said = _caption(model, held_out, mine, config, accelerator)
    if processes > 1:
        said = gather_object(said)
    said = sorted(said)
    if not said:
        raise ValueError(
            f"{held_out.root}: expected held-out captions of what is learnt, found none; see what notebook 2 listed"
        )
    scores = _scores(said)
    taught = train_set.captions()
    result = {
        "score": float(np.mean(scores)),
        "captions": len(said),
        "by_description": _means(said, scores),
        **_variety([(description, caption) for _, _, description, caption, _ in said], taught),
        "of_references": _variety([(description, reference) for _, _, description, _, reference in said], taught),
        "samples": [list(row[1:]) for row in said if row[0] in followed],
    }
    result |= {"seconds": round(time.monotonic() - started, 1)}
    return broadcast_object_list([result])[0]  # what is decided by the score is decided alike everywhere


def _variety(told: list[tuple[str, str]], taught: set[tuple[str, str]]) -> dict[str, float]:
    """Of (description, text), those without a text left out: the shares that are distinct, and copied from training."""
    told = [pair for pair in told if pair[1]]
    count = max(1, len(told))
    return {"distinct": len(set(told)) / count, "copied": sum(pair in taught for pair in told) / count}


def _chosen(count: int, wanted: int) -> list[int]:
    """Sample numbers spread evenly over the held-out set, the same in every epoch."""
    if not wanted or wanted >= count:
        return list(range(count))
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def _caption(model: Captioner, held_out: CaptionDataset, numbers: list[int], config, accelerator) -> list[tuple]:
    """(sample, image, description, caption, reference) of every description of some samples."""
    rows, each = [], max(1, len(model.descriptions))
    with accelerator.autocast():
        most = images_at_once(model, each, config.num_beams, config.num_max_bpe_tokens, config.batch_size)
    size = config.eval_batch_size or most
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        pictures = [load_image(held_out.root / held_out.rows[n]["image"]) for n in some]
        pixels = torch.stack([to_tensor(picture, held_out.size) for picture in pictures]).to(accelerator.device)
        with accelerator.autocast():
            found = generate(
                model,
                pixels,
                num_beams=config.num_beams,
                max_tokens=config.num_max_bpe_tokens,
                length_penalty=config.length_penalty,
            )
        for place, number in enumerate(some):
            captions = found[place * each : (place + 1) * each]
            rows += _pairs(held_out, number, captions, model.descriptions)
    return rows


def _pairs(held_out: CaptionDataset, number: int, captions, descriptions) -> list[tuple]:
    references, image = held_out.reference(number), held_out.rows[number]["image"]
    told = zip(descriptions, captions, strict=True)
    return [(number, image, " ".join(d), c.text, references[d]) for d, c in told if d in references]


def _scores(said: list[tuple]) -> list[float]:
    pairs = [(caption, reference) for *_, caption, reference in said]
    full = [place for place, (caption, reference) in enumerate(pairs) if reference and caption]
    scores = [100.0 * (not caption and not reference) for caption, reference in pairs]
    if full:
        table = score_pairs([pairs[p][0] for p in full], [pairs[p][1] for p in full], jobs=1)
        for place, score in zip(full, table["score"], strict=True):
            scores[place] = float(score)
    return scores


def _means(said: list[tuple], scores: list[float]) -> dict[str, float]:
    by: dict[str, list[float]] = {}
    for (_, _, description, _, _), score in zip(said, scores, strict=True):
        by.setdefault(description, []).append(score)
    return {description: round(float(np.mean(values)), 2) for description, values in by.items()}
