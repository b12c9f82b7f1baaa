"""The stages of a run as functions, which the notebooks call: prepare, index, finetune, caption, score, submit.

    python -m beit3lib.pipeline.stages runs/demo      print the summary of a run and the path of its gallery

A stage first brings the stages before it up to date (`ensure`). Preparing and indexing are cheap and are rerun when something
changed. Training and captioning start automatically for the drawn sample only.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import pandas as pd
from pydantic import ValidationError

from beit3lib import sample
from beit3lib.data.caption_files import write_caption_files
from beit3lib.data.index import INDEX_NAME, IndexReport, build_index, index_images
from beit3lib.data.predictions import PREDICTIONS_NAME, read_predictions
from beit3lib.data.prepared import find_prepared, import_prepared, list_test_segments
from beit3lib.data.schema import SUBJECTS, read_table, write_table
from beit3lib.data.wts import list_segments, read_wts, split_by_group
from beit3lib.files import (
    Problem,
    atomic_folder,
    atomic_path,
    exit_on_error,
    read_json,
    readable_folder,
    write_json,
)
from beit3lib.pipeline.manifest import READERS, load_manifest
from beit3lib.pipeline.run_folder import (
    PHASES_NAME,
    SCORES_NAME,
    SEGMENTS_NAME,
    SPM_NAME,
    STAGES,
    SUBMISSION_NAME,
    SUMMARY_NAME,
    has_outputs,
    project_folder,
    read_record,
    read_summary,
    record_stage,
    stale,
)
from beit3lib.pipeline.settings import closest, explain
from beit3lib.track2 import submission
from beit3lib.track2.metrics import Scores, score_segments

DATASETS = ("auto", "wts", "prepared", "sample")
NOTEBOOKS = {
    "finetune": "notebook 3",
    "caption": "notebook 4",
}  # stages that may take hours, and the notebook of each
MAX_LISTED = 100  # problems in summary.json, because a million problems made a file of 232 MB


class StageError(RuntimeError):
    """A stage cannot run yet; the message names the notebook to run first."""


def ensure(run: Path, stage: str) -> None:
    """Bring `stage` and the stages before it up to date.

    Outdated checkpoints and captions are kept and reported in one line. Files without a record, such as an index or a
    checkpoint made elsewhere, are used as they are. Raises `StageError` if real data have no checkpoint or captions yet, or if
    the run is new but others are there.
    """
    record, there = read_record(run, stage), has_outputs(run, stage)
    if record is None and there:
        return
    if STAGES[stage].after:
        ensure(run, STAGES[stage].after)
    reason = stale(run, stage)
    if not reason:
        return
    if stage in NOTEBOOKS and there:
        print(
            f"{run}: the outputs of stage '{stage}' are out of date: {reason}. Run {NOTEBOOKS[stage]} to renew them."
        )
        return
    if stage in NOTEBOOKS and not is_sample(run):
        wanted = " and ".join(STAGES[stage].outputs)
        raise StageError(f"{run}: expected {wanted}, found none: {reason}. Run {NOTEBOOKS[stage]} first.")
    others = sorted(path.parent.parent.name for path in run.parent.glob("*/records/prepare.json"))
    if (
        stage == "prepare" and record is None and others
    ):  # a misspelled name must not start hours of preparation
        raise StageError(
            f"{run}: expected a prepared run, one of {', '.join(others)}. Correct `run`, or run notebook 1 first."
        )
    print(f"{run}: stage '{stage}' runs now: {reason}.")
    stages: dict[str, Callable[..., Any]] = {
        "prepare": prepare,
        "index": index,
        "finetune": finetune,
        "caption": caption,
    }
    stages[stage](run, **(record["options"] if record else {}))


def is_sample(run: Path) -> bool:
    """Return whether the data of a run are the drawn sample."""
    return (run / sample.DRAWN_NAME).is_file()


class Prepared(NamedTuple):
    """The phases that have an image, the problems, and the chosen videos of each scenario with the reason."""

    phases: pd.DataFrame
    problems: list[Problem]
    choices: pd.DataFrame


def find_data(dataset: str = "auto", root: str | Path = "") -> tuple[str, Path]:
    """Return the data set, "wts", "prepared" or "sample", and its root folder, and print them.

    "auto" takes the first of these that exists. Without `root` the paths in the manifest are searched. A missing sample is
    drawn.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}, got {dataset!r}.")
    manifest, given = load_manifest(), Path(root).expanduser() if root else None
    for kind, finder in READERS.items():
        found = (finder(given) if given else manifest.find(kind)) if dataset in ("auto", kind) else None
        if found is not None:
            print(f"data: {manifest.entries[kind].what}, in {found}")
            return kind, found
    if dataset in READERS and given is None:
        manifest.locate(dataset)  # raises MissingInput
    if dataset != "sample" and given is not None:
        wanted = " or ".join(manifest.entries[kind].what for kind in READERS if dataset in ("auto", kind))
        raise FileNotFoundError(
            f"{given}: expected {wanted}, found {'something else' if given.exists() else 'nothing'}. "
            "Change data_root, or leave it empty to search the folders of data_manifest.yaml."
        )
    found = (
        given
        if given and given.is_dir()
        else manifest.find("sample") or _draw_sample(project_folder() / "data" / "sample")
    )
    print(f"data: {manifest.entries['sample'].what}, in {found}")
    return "sample", found


def _draw_sample(folder: Path) -> Path:
    """Draw the sample, or wait until another process has drawn it."""
    from beit3lib.sample.draw import write_sample

    print(f"data: drawing the sample into {folder} (half a minute)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder}: expected a folder that can be written, got: {error}. Start in another folder."
        ) from None
    with filelock.FileLock(folder.parent / ".sample.lock"):
        return load_manifest().find("sample") or write_sample(folder)


def prepare(
    run: Path,
    dataset: str = "auto",
    root: str | Path = "",
    views: str = "all",
    image_size: int = 224,
    weights: str = "linear",
    jobs: int = 0,
    max_scenarios: int = 0,
) -> Prepared:
    """Stage 1: write phases.csv, segments.csv, one motion-blur image per phase and video, and the caption files.

    Existing images of the same options are kept; other images, and the caption files of earlier data, are removed. `jobs` is
    the number of processes (0: one per core), `max_scenarios` limits the scenarios of each split (0: all).
    """
    kind, root = find_data(dataset, root)
    options = {
        "dataset": kind,
        "root": str(root),
        "views": views,
        "image_size": image_size,
        "weights": weights,
    }
    options |= {"max_scenarios": max_scenarios}
    with record_stage(run, "prepare", options) as section:
        if kind == "prepared":
            prepared, segments, phases_read = _prepare_images(run, root)
        else:
            prepared, segments, phases_read = _prepare_videos(run, root, kind, options, jobs)
        phases, problems, _ = prepared
        for path in {*(run / "images").glob("[!.]*")} - {run / "images" / name for name in phases["image"]}:
            path.unlink()  # an image of earlier data or options
        write_table(run / SEGMENTS_NAME, segments)
        write_table(run / PHASES_NAME, phases)
        (run / sample.DRAWN_NAME).unlink(missing_ok=True)
        if kind == "sample":
            shutil.copyfile(root / sample.DRAWN_NAME, run / sample.DRAWN_NAME)
        section |= options | {
            "phases_read": phases_read,
            "images": len(phases),
            "images_per_split": {
                str(split): int(count) for split, count in phases.groupby("split").size().items()
            },
            "scenarios": int(phases["scenario"].nunique()),
            **_listed(problems),
        }
    return prepared


def _listed(problems: list[Problem]) -> dict[str, Any]:
    """Return the entries of summary.json about problems: their number, and the first ones."""
    return {"problem_count": len(problems), "problems": [str(problem) for problem in problems[:MAX_LISTED]]}


def _prepare_videos(
    run: Path, root: Path, kind: str, options: dict[str, Any], jobs: int
) -> tuple[Prepared, pd.DataFrame, int]:
    """Make the images and caption files of a download; return also its segments and the number of phases that were read."""
    from beit3lib.data.motion_blur import blur_table
    from beit3lib.data.views import choose_views

    bdd = load_manifest().find("bdd") if kind == "wts" else None
    roots = [root] if bdd is None or bdd.resolve().is_relative_to(root.resolve()) else [root, bdd]
    tables, segments, problems, choices = [], [], [], []
    for folder in roots:
        read = read_wts(folder, keep_missing=True)  # a submission also contains the segments without a video
        split = split_by_group(read.phases)
        some = _first_scenarios(split.phases, options["max_scenarios"])
        chosen = choose_views(some[some["video_path"] != ""], options["views"], folder)
        tables.append(chosen.phases)
        segments.append(list_segments(some))
        choices += chosen.choices
        problems += [*read.problems, *split.problems, *chosen.problems]
    blurred = blur_table(
        pd.concat(tables, ignore_index=True),
        run / "images",
        options["image_size"],
        jobs or None,
        options["weights"],
    )
    with atomic_folder(run / "captions") as new:
        for split, part in blurred.phases[blurred.phases["split"] != "test"].groupby("split"):
            write_caption_files(part, new / str(split))
    prepared = Prepared(blurred.phases, sorted({*problems, *blurred.problems}), pd.DataFrame(choices))
    return prepared, pd.concat(segments, ignore_index=True), sum(map(len, tables))


def _prepare_images(run: Path, root: Path) -> tuple[Prepared, pd.DataFrame, int]:
    """Copy images and caption files of the original repository's structure; return the same as `_prepare_videos`."""
    source = find_prepared(root)
    phases, problems = import_prepared(source, run)
    segments = [list_segments(phases[phases["split"] != "test"]), list_test_segments(source)]
    return Prepared(phases, problems, pd.DataFrame()), pd.concat(segments, ignore_index=True), len(phases)


def _first_scenarios(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the phases of the first `count` scenarios of each split, for a quick look at a large download; 0 means all."""
    kept = table.drop_duplicates(["split", "scenario"]).groupby("split").head(count) if count else table
    return table.merge(kept[["split", "scenario"]].drop_duplicates(), on=["split", "scenario"])


def find_tokenizer(run: Path, tokenizer: str = "auto") -> Path:
    """Return the path `tokenizer`, or for "auto" the sentencepiece model of the sample, or `beit3.spm` for real data.

    Raises `MissingInput` if `beit3.spm` is not found. Real data need it: public weights were trained with it, and the sample's
    168 pieces make captions so long that half of their text would be cut.
    """
    if tokenizer != "auto":
        return Path(tokenizer).expanduser()
    return sample.SPM_PATH if is_sample(run) else load_manifest().locate("tokenizer")


def index(run: Path, tokenizer: str = "auto", max_tokens: int = 64) -> dict[str, IndexReport]:
    """Stage 2: write tokenizer.spm and coco_captioning.{train,val,test}.jsonl; return {split: IndexReport}.

    Captions of more than `max_tokens` - 2 tokens are counted and listed, because training cuts them (`num_max_bpe_tokens`).
    """
    from beit3lib.tokenizer import load_tokenizer

    ensure(run, "prepare")
    phases, spm_path = read_table(run / PHASES_NAME), find_tokenizer(run, tokenizer)
    if phases.empty:
        raise ValueError(
            f"{run / 'images'}: expected images, found none. See the problems that notebook 1 lists."
        )
    loaded = load_tokenizer(spm_path)
    with record_stage(run, "index", {"tokenizer": tokenizer, "max_tokens": max_tokens}) as section:
        if spm_path.resolve() != (run / SPM_NAME).resolve():
            with atomic_path(run / SPM_NAME) as temporary:
                shutil.copyfile(spm_path, temporary)
        for path in run.glob(INDEX_NAME.format(split="*")):
            path.unlink()  # otherwise the index of a split that the data no longer have would stay
        reports, section["tokenizer"], section["ids"] = {}, str(spm_path), len(loaded)
        for split, part in phases.groupby("split"):
            path = run / INDEX_NAME.format(split=split)
            if split == "test":
                reports["test"] = index_images(part, run / "images", path)
            else:
                reports[split] = build_index(
                    run / "captions" / split, run / "images", loaded, path, part, max_tokens
                )
            print(reports[split])
            section[split] = reports[split]._asdict() | {"path": path.name} | _listed(reports[split].problems)
    return reports


# Training options for real data: those of the original repository's fine-tuning command.
WTS_OPTIONS = {
    "model": "beit3_base_patch16_224",
    "batch_size": 32,
    "epochs": 10,
    "warmup_epochs": 1,
    "lr": 4e-5,
    "seed": 42,
}
WTS_OPTIONS |= {"layer_decay": 1.0, "captioning_mask_prob": 0.7, "drop_worst_after": 12000, "randaug": True}
# A model of 1 M parameters, which learns the sample in two minutes on two cores.
SAMPLE_OPTIONS = WTS_OPTIONS | {
    "model": sample.MODEL,
    "epochs": 13,
    "lr": 1e-3,
    "drop_path": 0.0,
    "randaug": False,
}
SAMPLE_OPTIONS |= {"crop_area": 0.9, "num_workers": 0, "val_images": 30, "save_ckpt_freq": 100}


def training_config(run: Path, **options: Any):
    """Return the `TrainConfig` of a run: the original repository's values, or quick ones for the sample, changed by `options`.

    An option that is None keeps its value. Raises `MissingInput` if the weights of the model are not found; `finetune=""`
    starts from random weights.
    """
    import torch

    from beit3lib.config import TrainConfig

    known = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in options.keys() - known:
        raise ValueError(
            f"{name}: expected an option of TrainConfig, got an unknown name.{closest(name, known)}"
        )
    values = SAMPLE_OPTIONS if is_sample(run) else WTS_OPTIONS
    values = values | {name: value for name, value in options.items() if value is not None}
    if values.get("finetune") is None:
        values["finetune"] = find_checkpoint(run, values["model"])
    if (
        torch.cuda.is_available()
        and torch.cuda.get_device_properties(0).total_memory < 20e9
        and not is_sample(run)
    ):
        if values.setdefault("checkpoint_activations", True):  # a T4 has 16 GB
            print("checkpoint_activations: on, because this GPU has less than 20 GB")
    values |= {"data_path": str(run), "output_dir": str(run), "sentencepiece_model": str(run / SPM_NAME)}
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def find_checkpoint(run: Path, model: str) -> str:
    """Return the path of the pretrained weights of a model; "" if the sample's tiny model has another tokenizer in this run."""
    from beit3lib.model import MODELS

    if model not in MODELS:
        raise ValueError(
            f"model: expected one of {', '.join(MODELS)}, got {model!r}.{closest(model, MODELS)}"
        )
    if model != sample.MODEL:
        return str(load_manifest().locate(model))
    if (run / SPM_NAME).read_bytes() == sample.SPM_PATH.read_bytes():
        return str(sample.CHECKPOINT_PATH)
    print(
        f"checkpoint: {model} is pretrained with the sample's tokenizer only, so it starts from random weights"
    )
    return ""


def changed_options(config) -> pd.DataFrame:
    """Return the options of `config` that differ from the recipe's defaults, except paths: columns value and recipe."""
    values, recipe = vars(config), vars(type(config)())
    names = [name for name in values if name not in ("data_path", "output_dir", "sentencepiece_model")]
    rows = {name: [str(values[name]), str(recipe[name])] for name in names if values[name] != recipe[name]}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "recipe"])


def finetune(run: Path, num_gpus: int = 1, resume: bool | None = None, **options: Any) -> dict[str, Any]:
    """Stage 3: train and write best/, last/, log.jsonl and results.json; return the results.

    `options` are those of `training_config`. By default (`resume` None) a training with the same options and data resumes,
    and a finished one is kept; otherwise training starts from scratch and prints the reason.
    """
    from beit3lib import train

    ensure(run, "index")
    config = training_config(run, **options)
    if resume is None:
        reason = _why_from_scratch(run, config)
        resume = not reason
        if reason and (run / "last").exists():
            print(f"{run}: training starts from scratch, because {reason}")
    config = dataclasses.replace(config, auto_resume=resume)
    given = {name: value for name, value in options.items() if value is not None}
    with record_stage(run, "finetune", given | {"num_gpus": num_gpus}, lock=False) as section:
        results = train.finetune(config) if num_gpus == 1 else train.launch(config, num_gpus)
        section |= results
    return results


def _why_from_scratch(run: Path, config) -> str:
    """Return the reason why a training with `config` cannot resume from last/, or "" if it can."""
    from beit3lib.run.state import differences, read_run_state

    if not readable_folder(run / "last").exists():
        return "there is no last/"
    try:
        return "; ".join(differences(read_run_state(run / "last"), config))
    except (OSError, ValueError):
        return ""  # the trainer itself falls back to the state before a broken one, and prints it


def caption(
    run: Path,
    checkpoint: str = "best",
    num_beams: int = 3,
    batch_size: int = 0,
    max_images: int = 0,
    max_minutes: float = 0.0,
    num_gpus: int = 1,
) -> pd.DataFrame:
    """Stage 4: caption the val and test images, or the training images if there is no val split; write predictions.json.

    An interrupted run resumes. With `max_images` only so many images of each split are captioned, for a quick look, and the
    captions are written to predictions.quick.json instead.
    """
    from beit3lib.caption import caption_run
    from beit3lib.run.captioning import partial_path

    ensure(run, "finetune")
    _warn_of_another_index(run, checkpoint)
    splits = [split for split in ("val", "test") if (run / INDEX_NAME.format(split=split)).is_file()]
    if "val" not in splits:
        print(f"{run}: no val split, so the captions of training images are compared with their references")
        splits = ["train", *splits]
    recorded = {"checkpoint": checkpoint, "num_beams": num_beams}
    options = recorded | {
        "splits": splits,
        "batch_size": batch_size or None,
        "max_minutes": max_minutes,
        "num_gpus": num_gpus,
    }
    if max_images:
        return caption_run(run, **options, max_images=max_images)
    with record_stage(run, "caption", recorded) as section:
        table = caption_run(run, **options)
        section |= recorded | {"splits": splits, "images": table["image"].nunique(), "captions": len(table)}
        if partial_path(run / PREDICTIONS_NAME).exists():
            section["unfinished"] = True
    return table


def _warn_of_another_index(run: Path, checkpoint: str) -> None:
    """Print a line if a checkpoint was trained on another index than that of the run, for example with other views."""
    from beit3lib.checkpoint import META_NAME
    from beit3lib.run.state import index_hashes

    path = run / checkpoint / META_NAME
    trained = read_json(path, dict).get("index") if path.is_file() else None
    if isinstance(trained, dict) and trained.get("train") not in (None, index_hashes(run)["train"]):
        print(
            f"{run / checkpoint}: trained on another index than that of the run. Run notebook 3 to train on this one."
        )


class Scored(NamedTuple):
    """The result of `score`. If no caption has a reference, `split` is None and `scores` is empty."""

    split: str | None
    scores: dict[
        str, Scores
    ]  # keys: model, shuffled (captions of another scenario), and two baselines: nearest, most frequent
    submission: dict[str, list[dict]]


def read_captions(run: Path, other_runs: Sequence[str] = ()) -> pd.DataFrame:
    """Read the captions of a run and of other runs beside it, such as one per caption type; the first run counts."""
    runs = [run, *(run.parent / name for name in other_runs)]
    table = pd.concat([read_predictions(folder / PREDICTIONS_NAME) for folder in runs], ignore_index=True)
    return table.drop_duplicates(["image", "subject", "aspect"])


def score(
    run: Path, split: str = "val", fill_missing: bool = False, other_runs: Sequence[str] = ()
) -> Scored:
    """Stage 5: combine captions of aspects and views per segment, and score them and baselines that need no model.

    Writes scores.json and submission.<split>.json. A missing caption is an error; with `fill_missing` the most frequent
    training caption replaces it. The captions are those of `read_captions`.
    """
    ensure(run, "caption")
    predictions, phases = read_captions(run, other_runs), read_table(run / PHASES_NAME)
    known = predictions[predictions["reference"].notna()]
    if split not in set(known["split"]):
        others = sorted(set(known["split"]))
        print(
            f"{run}: no captions of split {split} with references"
            + (f"; {others[0]} is scored instead" if others else "")
        )
        split = others[0] if others else ""
    truth, train = _references(run, split), phases[phases["split"] == "train"]
    chosen = predictions[predictions["split"] == split]
    if not truth:
        return Scored(None, {}, {})
    with record_stage(
        run, "score", {"split": split, "fill_missing": fill_missing, "other_runs": list(other_runs)}
    ) as section:
        built = submission.build_submission(chosen)
        if fill_missing:
            expected = submission.expected_segments(read_table(run / SEGMENTS_NAME), split)
            built, _ = submission.fill(built, expected, submission.most_frequent_captions(train))
        scores = {"model": score_segments(built, truth)}
        if missing := scores["model"].missing:
            types = ", ".join((predictions["subject"] + " " + predictions["aspect"]).unique())
            raise submission.SubmissionError(
                f"{run / PREDICTIONS_NAME}: expected both captions of all {len(truth)} segments of split {split}, found "
                f"{len(missing)} missing: {'; '.join(missing[:5])}. The captions are of the types {types}; a submission needs "
                "both subjects. Run notebook 4 with all images, add the runs of other caption types (combine_with), or set "
                "fill_missing to use the most frequent training caption."
            )
        segments = phases[phases["split"] == split]
        scores["shuffled"] = score_segments(_shuffled(built), truth)
        scores["nearest"] = score_segments(
            submission.nearest_submission(train, segments, run / "images"), truth
        )
        scores["most frequent"] = score_segments(submission.most_frequent_submission(train, segments), truth)
        write_json(run / SCORES_NAME, {name: found.as_dict() for name, found in scores.items()})
        for path in run.glob("submission.*.json"):
            path.unlink()
        write_json(run / f"submission.{split}.json", built)
        section |= {"split": split, "segments": len(truth), "missing": len(scores["model"].missing)}
        section |= {name: round(found.final, 2) for name, found in scores.items()}
    return Scored(split, scores, built)


def _references(run: Path, split: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return {(scenario, label): {subject: caption}} of the segments with both captions, whether or not they have a video."""
    table = read_table(run / SEGMENTS_NAME)
    names = {subject: f"caption_{subject}" for subject in SUBJECTS}
    table = table[table["split"] == split].dropna(subset=list(names.values()))
    return {
        (row["scenario"], row["label"]): {subject: row[name] for subject, name in names.items()}
        for row in table.to_dict("records")
    }


def _shuffled(built: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Return a submission in which every segment has the captions of a segment of another scenario."""
    names, exchanged = sorted(built), {}
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        entries = built[other]
        exchanged[name] = [
            {**entries[i % len(entries)], "labels": e["labels"]} for i, e in enumerate(built[name])
        ]
    return exchanged


def submit(run: Path, fill_missing: bool = False, other_runs: Sequence[str] = ()) -> submission.Written:
    """Write a checked submission.json for the test split, or for val or train if the data have no test split.

    Missing captions are an error that lists them; with `fill_missing` the most frequent training caption replaces them.
    """
    ensure(run, "caption")
    predictions, phases = read_captions(run, other_runs), read_table(run / PHASES_NAME)
    segments = read_table(run / SEGMENTS_NAME)
    split = next(name for name in ("test", "val", "train") if name in set(segments["split"]))
    with record_stage(
        run, "submit", {"fill_missing": fill_missing, "other_runs": list(other_runs)}
    ) as section:
        expected = submission.expected_segments(segments, split)
        built = submission.build_submission(predictions[predictions["split"] == split])
        most_frequent = submission.most_frequent_captions(phases[phases["split"] == "train"])
        written = submission.write_submission(
            run / SUBMISSION_NAME, built, expected, fill_missing, most_frequent
        )
        count, filled = sum(map(len, written.submission.values())), written.filled
        print(
            f"{written.path}: {count} segments of split {split}, {len(filled)} of them with captions filled in"
        )
        section |= {
            "split": split,
            "segments": count,
            "filled_count": len(filled),
            "filled": filled[:MAX_LISTED],
        }
    return written


@exit_on_error(StageError)
def main() -> None:
    """Print the summary of a run and the path of its gallery."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.pipeline.stages", description=main.__doc__)
    parser.add_argument(
        "run", nargs="?", type=Path, default=Path("runs/demo"), help="folder of the run [runs/demo]"
    )
    run = parser.parse_args().run
    summary = read_summary(run)
    if not summary:
        raise FileNotFoundError(
            f"{run / SUMMARY_NAME}: expected the summary of a run, found none. Run `make demo` first."
        )
    for name, values in summary.items():
        shares = ("own", "shuffled")  # of captions whose attributes are correct
        values = {
            key: round(value, 2) if isinstance(value, float) else value for key, value in values.items()
        }
        shown = [
            f"{key} {value}"
            for key, value in values.items()
            if isinstance(value, (int, float, str)) or key in shares
        ]
        print(f"{name}: {', '.join(shown)}")
    print(f"open {(run / 'gallery.html').resolve()}")


if __name__ == "__main__":
    main()
