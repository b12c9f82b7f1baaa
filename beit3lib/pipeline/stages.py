"""The stages 1 to 4 of a run as functions for notebooks: prepare, index, finetune, caption.

`scoring.py` has stage 5. A stage first brings the stages before it up to date (`ensure`), and records its
options and inputs (`run_folder`).
"""

import dataclasses
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field

from beit3lib import sample
from beit3lib.config import TrainConfig
from beit3lib.data.caption_files import write_caption_files
from beit3lib.data.images import IMAGE_SUFFIXES
from beit3lib.data.index import INDEX_NAME, IndexReport, build_index, index_images
from beit3lib.data.motion_blur import WEIGHTS, blur_table
from beit3lib.data.predictions import PREDICTIONS_NAME
from beit3lib.data.prepared import find_prepared, import_prepared, list_test_segments
from beit3lib.data.questions import (
    COLUMNS,
    QUESTION_INDEX_NAME,
    add_images,
    read_question_index,
    read_questions,
    write_questions,
)
from beit3lib.data.schema import read_table, write_table
from beit3lib.data.views import VIEW_CHOICES, choose_views, first_boxes
from beit3lib.data.wts import list_segments, read_wts, split_by_group
from beit3lib.files import Problem, atomic_folder, lock_folder, read_json
from beit3lib.pipeline.manifest import READERS, load_manifest
from beit3lib.pipeline.parameters import Count, ParameterError, Whole, checked
from beit3lib.pipeline.run_folder import (
    PHASES_NAME,
    QUESTIONS_NAME,
    SEGMENTS_NAME,
    SPM_NAME,
    STAGES,
    has_outputs,
    project_folder,
    read_record,
    record_stage,
    stale,
)

SLOW = ("finetune", "caption")  # stages that may take hours
MAX_LISTED = 100  # problems in summary.json, because a million problems made a file of 232 MB


class StageError(RuntimeError):
    """A stage cannot run yet; the message names the stage to run first."""


def ensure(run: Path, stage: str) -> None:
    """Bring `stage` and the stages before it up to date.

    | outputs of the stage       | prepare, index | finetune, caption                                    |
    | -------------------------- | -------------- | ---------------------------------------------------- |
    | made elsewhere (no record) | are used       | are used                                             |
    | up to date                 | are used       | are used                                             |
    | out of date or unfinished  | are made again | are used, and a line gives the reason                |
    | missing                    | are made       | are made for the sample; `StageError` for other data |

    A new run beside prepared ones is a `StageError`, too, because its name is probably misspelled.
    """
    record, existing = read_record(run, stage), has_outputs(run, stage)
    if existing and not record:
        return
    if STAGES[stage].after:
        ensure(run, STAGES[stage].after)
    reason = stale(run, stage)
    if not reason:
        return
    if stage in SLOW and existing:
        print(f"{run}: stage '{stage}' is out of date, and its outputs are used anyway: {reason}.")
        return
    others = sorted(path.parents[1].name for path in run.parent.glob("*/records/prepare.json"))
    if stage == "prepare" and not record and others:
        expected = f"a prepared run, one of {', '.join(others)}"
        raise StageError(f"{run}: expected {expected}. Correct `run`, or prepare it.")
    if stage in SLOW and not is_sample(run):
        expected = f"{STAGES[stage].outputs[0]}, found none"
        raise StageError(f"{run}: expected {expected}. Run stage '{stage}': {reason}.")
    print(f"{run}: stage '{stage}' runs now: {reason}.")
    stages = {"prepare": prepare, "index": index, "finetune": finetune, "caption": caption}
    stages[stage](run, **record.get("options", {}))


def is_sample(run: Path) -> bool:
    """Return whether the data of a run are the drawn sample."""
    return (run / sample.DRAWN_NAME).is_file()


def find_data(dataset: str = "auto", data_root: str = "") -> tuple[str, Path]:
    """Return the data set, "wts", "prepared" or "sample", and its root folder.

    "auto" takes the first of these that exists. Without `data_root` the paths in the manifest are searched. A
    missing sample is drawn.
    """
    from beit3lib.sample.draw import write_sample

    manifest, given = load_manifest(), Path(data_root).expanduser()
    kinds = [name for name in READERS if dataset in ("auto", name)]
    for kind in kinds:
        found = READERS[kind](given) if data_root else manifest.search(kind, required=dataset == kind)[0]
        if found:
            return kind, found
    if data_root and kinds:
        wanted = " or ".join(manifest.entries[name].description for name in kinds)
        raise ParameterError(f"data_root: expected {wanted}, got {given}. Empty: all known folders.")
    if found := given if data_root else manifest.search("sample")[0]:
        return "sample", found
    folder = project_folder() / "data" / "sample"
    with lock_folder(folder.parent, "drawing the sample", folder.name):
        print(f"{folder}: drawing the sample (half a minute)")
        return "sample", write_sample(folder)


class Prepared(NamedTuple):
    """The result of `prepare`."""

    phases: pd.DataFrame  # those that have an image
    problems: list[Problem]
    choices: pd.DataFrame  # the chosen videos of each scenario, with the reason
    segments: pd.DataFrame  # with or without a video
    questions: pd.DataFrame  # columns `data.questions.COLUMNS`
    phases_read: int  # with an image, or listed in `problems`


@checked
def prepare(
    run: Path,
    dataset: Literal["auto", "wts", "prepared", "sample"] = "auto",
    data_root: str = "",
    views: Literal[VIEW_CHOICES] = "all",
    image_size: Count = 224,
    weights: Literal[WEIGHTS] = "linear",
    frames: bool | None = None,
    jobs: Whole = 0,
    max_scenarios: Whole = 0,
) -> Prepared:
    """Stage 1: write phases.csv, segments.csv, questions.jsonl, caption files, an image per phase and video.

    Existing images of the same options are kept; other images, and the caption files of earlier data, are
    removed. With `frames` (None: for real videos) a sharp frame of each phase is written to frames/, to look
    at. `jobs` is the number of processes (0: one per core), `max_scenarios` limits the scenarios of each
    split (0: all).
    """
    kind, root = find_data(dataset, data_root)
    print(f"data: {load_manifest().entries[kind].description}, in {root}")
    options = {
        "dataset": kind,
        "data_root": str(root),
        "views": views,
        "image_size": image_size,
        "weights": weights,
        "max_scenarios": max_scenarios,
        "frames": kind == "wts" if frames is None else frames,
    }
    with record_stage(run, "prepare", options) as section:
        if kind == "prepared":
            source = find_prepared(root)
            phases, problems = import_prepared(source, run)
            segments = [list_segments(phases[phases["split"] != "test"]), list_test_segments(source)]
            questions = pd.DataFrame(columns=COLUMNS)
            prepared = Prepared(phases, problems, pd.DataFrame(), pd.concat(segments), questions, len(phases))
        else:
            prepared = _prepare_videos(run, root, kind, options, jobs)
        images = set(prepared.phases["image"])
        for path in (run / "images").glob("[!.]*"):
            if path.name not in images and path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                path.unlink()  # an image of earlier data or options
        write_table(run / SEGMENTS_NAME, prepared.segments)
        write_table(run / PHASES_NAME, prepared.phases)
        write_questions(run / QUESTIONS_NAME, prepared.questions)
        (run / sample.DRAWN_NAME).unlink(missing_ok=True)
        if kind == "sample":
            shutil.copyfile(root / sample.DRAWN_NAME, run / sample.DRAWN_NAME)
        section |= options | {"phases_read": prepared.phases_read, "images": len(prepared.phases)}
        section |= {"questions": len(prepared.questions), "problem_count": len(prepared.problems)}
        section["problems"] = list(map(str, prepared.problems[:MAX_LISTED]))
    return prepared


def _prepare_videos(run: Path, root: Path, kind: str, options: dict[str, Any], jobs: int) -> Prepared:
    """Make the images and caption files of a download."""
    bdd = load_manifest().search("bdd")[0] if kind == "wts" else None
    roots = [root] if bdd is None or bdd.resolve().is_relative_to(root.resolve()) else [root, bdd]
    tables, segments, questions, problems, choices = [], [], [], [], []
    for folder in roots:
        read = read_wts(folder, keep_missing=True)  # a submission also contains the segments without a video
        phases, split_problems = split_by_group(read.phases)
        if count := options["max_scenarios"]:
            first = phases.drop_duplicates(["split", "scenario"]).groupby("split").head(count)
            phases = phases.merge(first[["split", "scenario"]])
        chosen = choose_views(phases[phases["video_path"] != ""], options["views"], folder)
        tables.append(first_boxes(folder, chosen.phases))
        segments.append(list_segments(phases))
        asked = read_questions(folder, set(read.phases["scenario"]))
        questions.append(asked.table.merge(phases[["split", "scenario"]].drop_duplicates()))
        # Scenarios are left out by max_scenarios, or because their recording is in val, too.
        if count := len(asked.table) - len(questions[-1]):
            problems.append(Problem("questions", f"{count} of scenarios that are not used; skipped"))
        choices += chosen.choices
        problems += [*read.problems, *split_problems, *chosen.problems, *asked.problems]
    table = pd.concat(tables, ignore_index=True)
    frames = run / "frames" if options["frames"] else None
    size, weights = options["image_size"], options["weights"]
    blurred = blur_table(table, run / "images", size, jobs or None, weights, frames)
    with atomic_folder(run / "captions") as new:
        for split, part in blurred.phases[blurred.phases["split"] != "test"].groupby("split"):
            write_caption_files(part, new / str(split))
    return Prepared(
        phases=blurred.phases,
        problems=sorted({*problems, *blurred.problems}),
        choices=pd.DataFrame(choices),
        segments=pd.concat(segments),
        questions=pd.concat(questions, ignore_index=True),
        phases_read=len(table),
    )


def _data_root(run: Path) -> str:
    """Return the folder with the data of a run, where the original repository has tokenizer and weights."""
    return read_record(run, "prepare").get("options", {}).get("data_root", "")


@checked
def index(run: Path, tokenizer: str = "auto", max_tokens: Count = 64) -> dict[str, IndexReport]:
    """Stage 2: write tokenizer.spm and coco_captioning.{train,val,test}.jsonl; return {split: IndexReport}.

    With `tokenizer` "auto" the sample has its own, and real data need `beit3.spm`: public weights were
    trained with it, and the sample's 168 pieces make captions so long that half of their text would be cut.
    Captions of more than `max_tokens` - 2 tokens are listed, because training cuts them
    (`num_max_bpe_tokens`).
    """
    from beit3lib.tokenizer import load_tokenizer

    ensure(run, "prepare")
    phases, images = read_table(run / PHASES_NAME), run / "images"
    if phases.empty:
        raise StageError(f"{images}: expected images, found none. See the problems of stage 'prepare'.")
    if tokenizer != "auto":
        spm_path = Path(tokenizer).expanduser()
    elif is_sample(run):
        spm_path = sample.SPM_PATH
    else:
        spm_path, _ = load_manifest().search("tokenizer", _data_root(run), required=True)
    loaded = load_tokenizer(spm_path)
    with record_stage(run, "index", {"tokenizer": tokenizer, "max_tokens": max_tokens}) as section:
        if spm_path.resolve() != (run / SPM_NAME).resolve():
            shutil.copyfile(spm_path, run / SPM_NAME)
        for name in (INDEX_NAME, QUESTION_INDEX_NAME):
            for path in run.glob(name.format(split="*")):
                path.unlink()  # otherwise the index of a split that the data no longer have would stay
        reports = {}
        for split, part in phases.groupby("split"):
            path = run / INDEX_NAME.format(split=split)
            if split == "test":
                reports[split] = index_images(part, images, path)
            else:
                reports[split] = build_index(run / "captions" / split, images, loaded, path, part, max_tokens)
        if (run / QUESTIONS_NAME).is_file():
            questions = read_question_index(run / QUESTIONS_NAME)[list(COLUMNS)]
            questions, problems = add_images(questions, phases, images, run)
            for split, part in questions.groupby("split"):
                path = write_questions(run / QUESTION_INDEX_NAME.format(split=split), part)
                print(f"{path.name}: {len(part)} questions")
            next(iter(reports.values())).problems.extend(problems)
        for split, report in reports.items():
            print(report)
            section[split] = report._asdict() | {"path": report.path.name, "problems": len(report.problems)}
    return reports


# Training options for real data: those of the original repository's fine-tuning command.
WTS_OPTIONS = {
    "model": "beit3_base_patch16_224",
    "batch_size": 32,
    "epochs": 10,
    "warmup_epochs": 1,
    "lr": 4e-5,
    "seed": 42,
    "layer_decay": 1.0,
    "captioning_mask_prob": 0.7,
    "drop_worst_after": 12000,
    "randaug": True,
}
# A model of 1 M parameters, which learns the sample in two minutes on two cores.
SAMPLE_OPTIONS = WTS_OPTIONS | {
    "model": sample.MODEL,
    "epochs": 13,
    "lr": 1e-3,
    "drop_path": 0.0,
    "randaug": False,
    "crop_area": 0.9,
    "num_workers": 0,
    "val_images": 30,
    "save_ckpt_freq": 100,
}


@checked
def training_config(run: Path, **options: Any) -> TrainConfig:
    """Return the published command's options, or quick ones for the sample, changed by `options`.

    An option that is None keeps its value; `finetune=""` starts from random weights.
    """
    import torch

    ensure(run, "index")
    values = {name: value for name, value in options.items() if value is not None}
    values = (SAMPLE_OPTIONS if is_sample(run) else WTS_OPTIONS) | values
    if values.get("finetune") is None:
        values["finetune"] = find_checkpoint(run, values["model"])
    elif values["finetune"]:
        check_file("finetune", values["finetune"])
    small = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 20e9
    if small and not is_sample(run) and values.setdefault("checkpoint_activations", True):  # a T4 has 16 GB
        print("checkpoint_activations: on, because this GPU has less than 20 GB")
    values |= {"data_path": str(run), "output_dir": str(run), "sentencepiece_model": str(run / SPM_NAME)}
    return TrainConfig(**values)


def find_checkpoint(run: Path, model: str) -> str:
    """Return the path of the weights of a model; "" if the tiny model has another tokenizer in this run."""
    from beit3lib.model import model_config

    model_config(model)  # an error for an unknown name
    if model != sample.MODEL:
        return str(load_manifest().search(model, _data_root(run), required=True)[0])
    if (run / SPM_NAME).read_bytes() == sample.SPM_PATH.read_bytes():
        return str(sample.CHECKPOINT_PATH)
    print(f"{model}: pretrained with the sample's tokenizer only, so it starts from random weights")
    return ""


@checked
def finetune(run: Path, num_gpus: Whole = 1, resume: bool | None = None, **options: Any) -> dict[str, Any]:
    """Stage 3: train and write best/, last.pt, log.jsonl and results.json; return the results.

    `num_gpus` 0 means all. `options` are those of `training_config`. By default (`resume` None) a training
    run with the same options and data resumes, and a finished one is kept; otherwise training starts from
    scratch.
    """
    from beit3lib import train
    from beit3lib.run.state import LAST_NAME, differences, index_hashes, read_last

    config, processes, last = training_config(run, **options), _processes(num_gpus), run / LAST_NAME
    if resume is None and last.is_file():
        different = differences(read_last(last, mmap=True), config, index_hashes(run))
        resume = not different
        if different:
            print(f"{run}: training starts from scratch, because {'; '.join(different)}")
    config = dataclasses.replace(config, auto_resume=bool(resume))
    with record_stage(run, "finetune", options | {"num_gpus": num_gpus}, lock=False) as section:
        results = train.finetune(config) if processes == 1 else train.launch(config, processes)
        section |= results
        steps, total = results["steps"], results["total_steps"]
        if steps < total and results["stopped"] != "no better score":
            section["unfinished"] = f"it stopped early, after {steps} of {total} steps"
    return results


def _processes(num_gpus: int) -> int:
    """Return the number of processes for a number of GPUs, of which 0 means all."""
    import torch

    found = torch.cuda.device_count()
    if num_gpus > 1 and not found:
        print(f"num_gpus: expected {num_gpus} GPUs, found none. One process uses the CPU.")
    return num_gpus or found if found else 1


@checked
def caption(
    run: Path,
    checkpoint: Annotated[str, Field(pattern=r"^(best|last\.pt|checkpoint-\d+)$")] = "best",
    num_beams: Count = 3,
    batch_size: Whole = 0,
    max_images: Whole = 0,
    max_minutes: float = 0.0,
    num_gpus: Whole = 1,
) -> pd.DataFrame:
    """Stage 4: caption val and test images, or without a val split those of train; write predictions.json.

    If the model answers questions, answers.json is written, too. An interrupted run resumes. `num_gpus` 0
    means all. With `max_images` only so many images of each split are captioned, as a preview, in
    predictions.quick.json.
    """
    from beit3lib.caption import caption_run
    from beit3lib.run.captioning import partial_path

    ensure(run, "finetune")
    _warn_of_another_index(run, checkpoint)
    splits = [split for split in ("val", "test") if (run / INDEX_NAME.format(split=split)).is_file()]
    if "val" not in splits:
        print(f"{run}: no val split, so the captions of training images are compared with their references")
        splits = ["train", *splits]
    options = {"checkpoint": checkpoint, "num_beams": num_beams}
    with nullcontext({}) if max_images else record_stage(run, "caption", options) as section:
        limits = {"max_images": max_images or None, "max_minutes": max_minutes}
        machine = {"batch_size": batch_size or None, "num_gpus": _processes(num_gpus)}
        table = caption_run(run, splits=splits, **options, **limits, **machine)
        section |= options | {"splits": splits, "images": table["image"].nunique(), "captions": len(table)}
        if partial_path(run / PREDICTIONS_NAME).exists():
            section["unfinished"] = "it stopped early, because of max_minutes"
    return table


def _warn_of_another_index(run: Path, checkpoint: str) -> None:
    """Print a line if a checkpoint was trained on another index, for example one with other views."""
    from beit3lib.checkpoint import META_NAME
    from beit3lib.run.state import index_hashes

    path = run / checkpoint / META_NAME
    trained = read_json(path, dict).get("index") if path.is_file() else None
    if trained and trained["train"] not in (None, index_hashes(run)["train"]):
        print(f"{path.parent}: trained on another index than the run's. Stage 'finetune' trains on this one.")


def check_file(parameter: str, path: str | Path) -> Path:
    """Return `path`; if there is nothing, raise an error that names the parameter, before hours of work."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{parameter}: expected an existing file, got {path}. Correct {parameter}.")
    return Path(path)


def other_predictions(run: Path, parameter: str, names: str) -> dict[str, Path]:
    """Return {name: its predictions.json} of runs beside `run`; `names` are separated by commas."""
    split = filter(None, (name.strip() for name in str(names).split(",")))
    return {name: check_file(parameter, run.parent / name / PREDICTIONS_NAME) for name in split}
