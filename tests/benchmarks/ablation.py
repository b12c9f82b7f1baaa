"""Measure what a choice in training brings, on the sample with several seeds.

    PYTHONPATH=tests python -m benchmarks.ablation joint   one model of ten caption types, or ten of one each
    PYTHONPATH=tests python -m benchmarks.ablation flip    flip images and swap left and right in captions,
                                                           flip images only, or neither

Every training run starts from the sample's checkpoint, sees the same images for as many epochs, and in the
end captions all validation images. `score` is the mean official score, `right` the share of captions whose
attributes are correct, and `side` the share of position captions with the correct side of the vehicle.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from beit3lib import train
from beit3lib.config import TrainConfig
from beit3lib.data.facts import read_facts
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.pipeline import stages
from beit3lib.run.state import LAST_NAME
from beit3lib.sample.truth import read_drawn, states_correctly
from beit3lib.track2.metrics import score_predictions


def variants(study: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (variant, options) of every training run of one seed."""
    if study == "flip":
        yield from ((flip, {"flip": flip, "aspect": "position"}) for flip in ("swap", "recipe", "none"))
        return
    yield "one model", {}
    for subject, aspect in product(SUBJECTS, ASPECTS):
        yield "ten models", {"subject": subject, "aspect": aspect}


def measure(config: TrainConfig) -> dict[str, float]:
    """Train and caption all validation images; return seconds of training, and means over caption types."""
    started = time.monotonic()
    train.finetune(config)
    seconds = time.monotonic() - started
    last = Path(config.output_dir) / LAST_NAME
    everything = replace(config, eval=True, finetune=str(last), val_images=0, samples=10**6)
    result = train.finetune(everything)["validation"]
    table = pd.DataFrame(result["samples"])
    table = table[table["reference"] != ""]  # a model of one caption type is trained on no empty captions
    drawn = read_drawn(config.data_path)
    lines = read_index(Path(config.data_path) / INDEX_NAME.format(split="val")).drop_duplicates("image_path")
    scenes = {line.image_path: drawn[line.scenario, line.phase] for line in lines.itertuples()}
    right, side = [], []
    for row in table.itertuples():
        caption_type, scene = row.caption_type.split(), scenes[row.image]
        right.append(float(states_correctly(row.caption, scene, *caption_type)))
        position = read_facts(row.caption, caption_type[0]).get("position")
        side.append(float(position == scene.side) if caption_type[1] == "position" else math.nan)
    table = table.assign(right=right, side=side, score=score_predictions(table)["official_score"])
    means = table.groupby("caption_type")[["score", "right", "side"]].mean().mean()
    return {"seconds": seconds, **means.to_dict()}


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per variant: means over seeds, and the range of the score; seconds of a seed add up."""
    means = dict.fromkeys(("score", "right", "side"), "mean")
    by_seed = rows.groupby(["variant", "seed"], sort=False).agg({"seconds": "sum", **means})
    groups = by_seed.groupby("variant", sort=False)
    score_range = groups["score"].max() - groups["score"].min()
    return groups.mean().assign(score_range=score_range, seeds=groups.size())


def main() -> None:
    """Run a study, and write a row per training run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("study", choices=("joint", "flip"))
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each variant [3]")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the images [6]")
    parser.add_argument("--batch_size", type=int, default=16, help="few images: few epochs suffice [16]")
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"), help="folder [runs/ablation]")
    options = parser.parse_args()
    if not (options.run / stages.PHASES_NAME).is_file():
        stages.prepare(options.run, "sample")
    stages.ensure(options.run, "index")
    rows = []
    for seed in range(options.seeds):
        for variant, changes in variants(options.study):
            config = stages.training_config(
                options.run, **changes, epochs=options.epochs, batch_size=options.batch_size, seed=seed
            )
            name = "_".join([variant.replace(" ", "_"), str(seed), *changes.values()])
            config = replace(config, output_dir=str(options.run / options.study / name), auto_resume=False)
            rows.append({"variant": variant, "seed": seed, **changes, **measure(config)})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(options.run / f"{options.study}.csv", index=False)
    print(summarize(pd.DataFrame(rows)).round(3).to_string())


if __name__ == "__main__":
    main()
