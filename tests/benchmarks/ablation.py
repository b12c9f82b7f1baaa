"""What a choice in training brings, measured on the drawn sample with several seeds.

    python -m benchmarks.ablation joint     one model of ten caption types, beside ten models of one each
    python -m benchmarks.ablation flip      flips with left and right swapped in captions, flips as in the recipe, no flips
    python -m benchmarks.ablation flip --scenarios 24 --epochs 20           the same with few images

Run it in tests/. Every training starts from the sample's checkpoint, sees the same images for as many epochs, and captions all
validation images in the end. `score` is the mean official score; `right` the share of captions that state the attributes
of the image correctly; `side` the share of captions of positions that state the side of the vehicle correctly.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from beit3lib.config import TrainConfig
from beit3lib.data.facts import read_facts
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.files import write_json
from beit3lib.pipeline import stages
from beit3lib.sample.truth import read_drawn, states_correctly
from beit3lib.track2.metrics import score_pairs


def variants(study: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(variant, options) of every training of one seed."""
    if study == "flip":
        yield from ((flip, {"flip": flip, "aspect": "position"}) for flip in ("swap", "recipe", "none"))
        return
    yield "one model", {}
    yield from (
        ("ten models", {"subject": subject, "aspect": aspect}) for subject in SUBJECTS for aspect in ASPECTS
    )


def measure(config: TrainConfig) -> dict[str, float]:
    """Fine-tune and caption every validation image: seconds of training, and means over the caption types."""
    from beit3lib.train import Trainer, validate

    started = time.monotonic()
    trainer = Trainer(config)
    trainer.run()
    seconds = time.monotonic() - started
    everything = replace(config, val_images=0, samples=len(trainer.val_set))
    result = validate(
        trainer.captioner(), trainer.val_set, trainer.train_set, everything, trainer.accelerator
    )
    table = pd.DataFrame(result["samples"])
    table = table[table["reference"].astype(bool)].reset_index(
        drop=True
    )  # a model of one caption type has no empty ones
    table["score"] = score_pairs(table["caption"].tolist(), table["reference"].tolist(), jobs=1)[
        "score"
    ].to_numpy()
    lines = read_index(Path(config.data_path) / INDEX_NAME.format(split="val")).drop_duplicates("image_path")
    drawn = read_drawn(config.data_path)
    scenes = {row.image_path: drawn[row.scenario, row.phase] for row in lines.itertuples()}
    rows = [(row.caption, scenes[row.image], *row.caption_type.split()) for row in table.itertuples()]
    table["right"] = [float(states_correctly(*row)) for row in rows]
    table["side"] = [
        float(read_facts(caption, subject).get("position") == scene.side)
        if aspect == "position"
        else math.nan
        for caption, scene, subject, aspect in rows
    ]
    return {
        "seconds": seconds,
        **table.groupby("caption_type")[["score", "right", "side"]].mean().mean().to_dict(),
    }


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per variant: means over seeds, and the range of the score between seeds. Seconds of a seed are added up."""
    means = dict.fromkeys(("score", "right", "side"), "mean")
    by_seed = rows.groupby(["variant", "seed"], sort=False).agg({"seconds": "sum", **means})
    groups = by_seed.groupby("variant", sort=False)
    return groups.mean().assign(
        score_range=groups["score"].max() - groups["score"].min(), seeds=groups.size()
    )


def run_study(
    name: str, run: Path, seeds: int, epochs: int, batch_size: int, scenarios: int | None = None
) -> pd.DataFrame:
    """All trainings of a study, each printed as it ends; one row per training."""
    if not (run / stages.PHASES_NAME).is_file():
        stages.prepare(run, "sample", max_scenarios=scenarios)
    stages.ensure(run, "index")
    rows = []
    for seed in range(seeds):
        for variant, options in variants(name):
            out = run / name / "_".join([variant.replace(" ", "_"), str(seed), *options.values()])
            config = stages.training_config(
                run, **options, epochs=epochs, batch_size=batch_size, seed=seed, auto_resume=False
            )
            found = measure(replace(config, output_dir=str(out)))
            rows.append({"variant": variant, "seed": seed, **options, **found})
            values = f"{found['seconds']:.0f} s, score {found['score']:.2f}, right {found['right']:.1%}"
            values += "" if math.isnan(found["side"]) else f", side {found['side']:.1%}"
            print(f"{variant}, seed {seed} {' '.join(options.values())}: {values}", flush=True)
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> None:
    """Run a study and write its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("study", choices=("joint", "flip"))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant [3]")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the images in each training [6]")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="images per step; few, so that few epochs suffice [16]"
    )
    parser.add_argument(
        "--scenarios", type=int, help="scenarios per split at most, in a new run folder [all]"
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/ablation"), help="folder to work in [runs/ablation]"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("ablation.json"), help="where figures go [ablation.json]"
    )
    options = parser.parse_args(argv)
    rows = run_study(
        options.study, options.run, options.seeds, options.epochs, options.batch_size, options.scenarios
    )
    table = summarize(rows)
    print(table.round(3).to_string())
    tables = {"variants": table.reset_index(), "trainings": rows}
    about = {name: getattr(options, name) for name in ("study", "epochs", "batch_size", "scenarios")}
    write_json(
        options.out,
        about | {n: t.astype(object).where(t.notna(), None).to_dict("records") for n, t in tables.items()},
    )


if __name__ == "__main__":
    main()
