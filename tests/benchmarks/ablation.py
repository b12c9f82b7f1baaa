"""What a choice in training brings, measured on the drawn sample with several seeds.

    python -m benchmarks.ablation joint     ten descriptions in one model, beside ten models of one each
    python -m benchmarks.ablation flip      mirrored pictures with exchanged words, as in the recipe, or none; with a picture
    python -m benchmarks.ablation flip --scenarios 24 --epochs 20           the same where pictures are few
    python -m benchmarks.ablation joint --seeds 3 --epochs 6 --run runs/ablation --out ablation.json

Every run starts from the sample's checkpoint, sees the same pictures for as many epochs, and captions all held-out pictures
in the end. `score`: mean official score; `right`: share of captions that state every attribute as the reference does; `side`:
of positions, share that state the side as the reference does.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from beit3lib.config import ASPECTS, SUBJECTS, TrainConfig
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.files import write_json
from beit3lib.pipeline import steps
from beit3lib.sample import draw as sample
from beit3lib.track2.metrics import score_pairs
from beit3lib.viz import figures

FLIPS = ("swap", "recipe", "none")


def runs_of(study: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(name of the way, options) of every fine-tuning of one seed."""
    if study == "flip":
        yield from ((flip, {"flip": flip, "aspect": "position"}) for flip in FLIPS)
        return
    yield "one model", {}
    yield from (("ten models", {"subject": subject, "aspect": aspect}) for subject in SUBJECTS for aspect in ASPECTS)


def measure(config: TrainConfig) -> tuple[dict[str, float], pd.DataFrame]:
    """Fine-tune and caption every held-out picture: seconds of training, score, shares of right captions; the captions.

    Means over the descriptions, of the captions that have a reference.
    """
    from beit3lib.train import Trainer

    started = time.monotonic()
    trainer = Trainer(config)
    trainer.run()
    seconds = time.monotonic() - started
    trainer.config = replace(config, val_images=0, samples=len(trainer.val_set))
    said = trainer.validate(config.epochs)["samples"]
    table = pd.DataFrame(said, columns=["image", "description", "caption", "reference"])
    table = table[table["reference"] != ""]  # what is left unsaid is no sample of a model of one description
    table["score"] = score_pairs(table["caption"].tolist(), table["reference"].tolist(), jobs=1)["score"].to_numpy()
    read = [
        [sample.read_attributes(text, *row.description.split()) for text in (row.caption, row.reference)]
        for row in table.itertuples()
    ]
    table["right"] = [float(said == meant) for said, meant in read]
    table["side"] = [float(said["side"] == meant["side"]) if "side" in meant else math.nan for said, meant in read]
    means = table.groupby("description")[["score", "right", "side"]].mean().mean()
    return {"seconds": seconds, **means.astype(float).to_dict()}, table


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of (way, seed, seconds, score, right, side) to a row per way: means over seeds, the scores' spread between seeds."""
    means = dict.fromkeys(("score", "right", "side"), "mean")
    by_seed = rows.groupby(["way", "seed"], sort=False).agg({"seconds": "sum", **means})
    by_way = by_seed.groupby("way", sort=False)
    spread = by_way["score"].max() - by_way["score"].min()
    return by_way.mean().assign(score_spread=spread, seeds=by_way.size())


def study(name: str, run: Path, seeds: int, epochs: int, batch_size: int, scenarios: int | None = None):
    """All fine-tunings of a study, each reported as it ends; a table with a row for each, and one with their captions."""
    if not (run / steps.PHASES_NAME).is_file():
        steps.prepare(run, "sample", max_scenarios=scenarios)
    steps.ensure(run, "index")
    rows, said = [], []
    for seed in range(seeds):
        for way, options in runs_of(name):
            out = run / name / "_".join([way.replace(" ", "_"), str(seed), *options.values()])
            config = steps.training_config(run, **options, epochs=epochs, batch_size=batch_size, seed=seed, auto_resume=False)
            found, captions = measure(replace(config, output_dir=str(out)))
            rows.append({"way": way, "seed": seed, **options, **found})
            said.append(captions.assign(way=way, seed=seed))
            told = f"{found['seconds']:.0f} s, score {found['score']:.2f}, right {found['right']:.1%}"
            told += "" if math.isnan(found["side"]) else f", side {found['side']:.1%}"
            print(f"{way}, seed {seed} {' '.join(options.values())}: {told}", flush=True)
    return pd.DataFrame(rows), pd.concat(said, ignore_index=True)


def disputed(said: pd.DataFrame, run: Path, pictures: int = 3):
    """A figure of held-out pictures, one a scenario, on whose side the ways of the first seed disagree most."""
    index = read_index(run / INDEX_NAME.format(split="val")).drop_duplicates("image_path")
    first = said[(said["seed"] == 0) & said["description"].str.startswith("vehicle")]
    first = first.merge(index[["image_path", "scenario", "view", "label", "phase"]], left_on="image", right_on="image_path")
    agreed = first.groupby("image")["side"].mean()
    agreed = agreed.where(agreed > 0, 2)  # what all get wrong tells nothing
    order = first.assign(agreed=first["image"].map(agreed)).sort_values("agreed", kind="stable")
    chosen = order.drop_duplicates("scenario")["image"].head(pictures)
    shown = first[first["image"].isin(chosen)].assign(subject="vehicle", aspect="flip " + first["way"])
    return figures.caption_pairs(shown, run, pictures=pictures, title="What mirroring teaches about left and right")


def main(arguments: list[str] | None = None) -> None:
    """`python -m benchmarks.ablation`."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("joint", "flip"))
    parser.add_argument("--seeds", type=int, default=3, help="how often, each with another seed [3]")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the pictures in every fine-tuning [6]")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures per step: few, so that few epochs suffice [16]")
    parser.add_argument("--scenarios", type=int, help="scenarios per split at most, in a new folder [all]")
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"), help="folder to work in [runs/ablation]")
    parser.add_argument("--out", type=Path, default=Path("ablation.json"), help="where figures go [ablation.json]")
    options = parser.parse_args(arguments)
    for name in ("seeds", "epochs", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected 1 or more, found {getattr(options, name)}")
    options.run.mkdir(parents=True, exist_ok=True)
    rows, said = study(options.study, options.run, options.seeds, options.epochs, options.batch_size, options.scenarios)
    table = summarise(rows)
    print(table.round(3).to_string())
    if options.study == "flip":
        picture = options.out.with_suffix(".png")
        disputed(said, options.run).savefig(picture, dpi=110)
        print(f"pictures on which the ways disagree: {picture}")
    about = {name: getattr(options, name) for name in ("study", "epochs", "batch_size", "scenarios")}
    write_json(
        options.out,
        {
            **about,
            "ways": table.reset_index().to_dict("records"),
            "rows": rows.astype(object).where(rows.notna(), None).to_dict("records"),
        },
    )


if __name__ == "__main__":
    main()
