"""Caption validation images during training, answer their questions, and score both."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from accelerate.utils import broadcast_object_list, gather_object

from beit3lib.captioner import Captioner
from beit3lib.data.facts import fact_scores
from beit3lib.data.schema import CaptionType
from beit3lib.dataset import CaptionDataset
from beit3lib.decode import inference_weights
from beit3lib.question import encode_question
from beit3lib.run.captioning import caption_batches, choose_batch_size
from beit3lib.track2.metrics import meteor_is_comparable, score_predictions


def validate(
    captioner: Captioner, val_set: CaptionDataset, train_set: CaptionDataset | None, config, accelerator
) -> dict[str, Any]:
    """Caption `config.val_images` images, shared among processes, and score them; equal in all processes.

    `score`: mean official score, None if no image has a reference. `facts`: precision and recall of the facts
    that captions state, and their harmonic mean `f1`, in percent, None without references. `accuracy`:
    percent of the questions about single images that are answered correctly, None without questions.
    `distinct`: share of captions that differ from all others of their type; `memorized`: share that equal a
    caption of `train_set`, 0 without one; `references`: the same shares of the references. Far fewer distinct
    captions than distinct references indicate mode collapse.
    """
    started = time.monotonic()
    captioner.model.eval()
    chosen = _spread(len(val_set), config.val_images)
    processes = accelerator.num_processes if config.dist_eval else 1
    size = config.eval_batch_size or min(config.batch_size, choose_batch_size(captioner, config.num_beams))
    size = min(broadcast_object_list([size])[0], math.ceil(len(chosen) / processes))
    batches = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    batches = batches[accelerator.process_index % processes :: processes]
    paths = [val_set.root / example.image for example in val_set.examples]
    questions = [
        [
            encode_question(captioner.tokenizer, row.question, row.options, row.correct)
            for row in val_set.questions.get(example.image, [])
        ]
        for example in val_set.examples
    ]
    texts, right = [], []  # (index, one text per caption type); whether each answer is correct
    with accelerator.autocast(), inference_weights(captioner.model):
        work = (captioner, paths, batches, config.num_beams, config.num_workers, questions)
        for batch, results in zip(batches, caption_batches(*work), strict=True):
            for index, result in zip(batch, results, strict=True):
                if result.problem:
                    print(f"{paths[index]}: {result.problem}. Validation skips it.", flush=True)
                    continue
                texts.append((index, [caption.text for caption in result.captions]))
                answered = zip(result.answers, questions[index], strict=True)
                right += [int(np.argmax(log_probs)) == question.correct for log_probs, question in answered]
    if processes > 1:
        texts, right = gather_object(texts), gather_object(right)
    result = None
    if accelerator.is_main_process:
        followed = [chosen[i] for i in _spread(len(chosen), config.samples)] if config.samples else []
        result = _validation_result(texts, followed, val_set, train_set)
        result |= {"accuracy": 100 * float(np.mean(right)) if right else None, "questions": len(right)}
        measured = [result[name] for name in ("score", "accuracy") if result[name] is not None]
        criteria = result | {"s2": float(np.mean(measured)) if measured else None}
        criteria["facts"] = result["facts"] and result["facts"]["f1"]
        result["best_by"] = criteria[config.best_by]
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
            # Of an image without any reference, all captions are kept.
            if caption_type in references or not references:
                name, reference = _name(caption_type), references.get(caption_type)
                image = val_set.examples[index].image
                records.append((index, image, name, *caption_type, caption, reference))
    columns = ["index", "image", "caption_type", "subject", "aspect", "caption", "reference"]
    table = score_predictions(pd.DataFrame(records, columns=columns, dtype=object))
    scored = table[table["official_score"].notna()]
    if len(scored) < len(table):
        without = f"{len(table) - len(scored)} of {len(table)} captions have no reference and no score"
        print(f"validation: {without}", flush=True)
    known = [] if train_set is None else map(train_set.reference, range(len(train_set)))
    trained = {(_name(caption_type), text) for captions in known for caption_type, text in captions.items()}
    samples = table[table["index"].isin(followed)]
    by_type = scored.groupby("caption_type", sort=False)["official_score"].mean().round(2)
    return {
        "score": float(scored["official_score"].mean()) if len(scored) else None,
        "facts": _facts(scored[scored["subject"] != ""]),
        "comparable": meteor_is_comparable(),  # whether the score may be called official
        "captions": len(table),
        "by_caption_type": by_type.to_dict(),
        **_variety(table["caption_type"], table["caption"], trained),
        "references": _variety(table["caption_type"], table["reference"], trained),
        "samples": samples[["image", "caption_type", "caption", "reference"]].to_dict("records"),
    }


def _facts(table: pd.DataFrame) -> dict[str, float] | None:
    """Precision, recall and F1 of the facts of captions, in percent; None if no text has any."""
    counts = fact_scores(table).loc["all"].fillna(0) if len(table) else None
    if counts is None or not counts[["equal", "wrong", "omitted", "added"]].any():
        return None
    precision, recall = 100 * float(counts["precision"]), 100 * float(counts["recall"])
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    return {"precision": round(precision, 2), "recall": round(recall, 2), "f1": round(f1, 2)}


def _name(caption_type: CaptionType) -> str:
    return " ".join(caption_type).strip()


def _variety(
    caption_types: Sequence[str], texts: Sequence[str | None], trained: set[tuple[str, str]]
) -> dict[str, float]:
    """Shares of non-empty texts that are distinct within their type, and that are training captions."""
    pairs = [pair for pair in zip(caption_types, texts, strict=True) if pair[1]]
    count = max(1, len(pairs))
    return {"distinct": len(set(pairs)) / count, "memorized": sum(pair in trained for pair in pairs) / count}


def summary(result: dict[str, Any]) -> str:
    """Return one line about a validation."""
    score = "no score" if result["score"] is None else f"score {result['score']:.1f}"
    facts = result["facts"]
    facts = f", facts {facts['precision']:.1f} % precision {facts['recall']:.1f} % recall" if facts else ""
    accuracy = result["accuracy"]
    answers = "" if accuracy is None else f", {accuracy:.1f} % of {result['questions']} answers right"
    distinct = f"{result['distinct']:.0%} distinct (references: {result['references']['distinct']:.0%})"
    memorized = f"{result['memorized']:.0%} equal to a training caption"
    return f"{score} on {result['captions']} captions{facts}{answers}, {distinct}, {memorized}"
