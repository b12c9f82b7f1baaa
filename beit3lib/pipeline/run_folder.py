"""Open the folder of a run, and keep one record per stage of the inputs and options that it used.

    runs/<name>/   records/<stage>.json, summary.json
        prepare    phases.csv, segments.csv, questions.jsonl, images/, frames/, captions/{train,val}/
        index      coco_captioning.{train,val,test}.jsonl, questions.{train,val,test}.jsonl, tokenizer.spm
        finetune   best/, last.pt, log.jsonl, results.json
        caption    predictions.json, answers.json, gallery.html
        score      scores.json, submission.{val,train}.json, answers.{val,train}.json
        submit     submission.json, submission_answers.json

A stage writes its record twice: without `outputs` when it starts, and with them when everything else is
written. As in a build tool, a stage is out of date if its record is missing or unfinished, or if its inputs
or outputs differ from the record. `stale` returns the reason.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from beit3lib.data.predictions import PREDICTIONS_NAME
from beit3lib.files import file_hash, lock_folder, read_json, write_json
from beit3lib.pipeline.mounts import kaggle_inputs
from beit3lib.pipeline.parameters import ParameterError, checked

SUMMARY_NAME = "summary.json"
PHASES_NAME, SEGMENTS_NAME, QUESTIONS_NAME = "phases.csv", "segments.csv", "questions.jsonl"
SPM_NAME, SCORES_NAME = "tokenizer.spm", "scores.json"
SUBMISSION_NAME, ANSWERS_SUBMISSION_NAME = "submission.json", "submission_answers.json"


class Stage(NamedTuple):
    """Names or patterns of what a stage reads and writes; {option} stands for an option of the stage."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    after: str | None  # the stage that writes the inputs


PREPARED = (PHASES_NAME, "images", "captions")
CAPTIONED = (PREDICTIONS_NAME, "answers.json", SEGMENTS_NAME)
STAGES = {  # *.train.jsonl are the indexes of captions and of questions
    "prepare": Stage((), (*PREPARED, SEGMENTS_NAME), None),
    "index": Stage((*PREPARED, QUESTIONS_NAME), ("coco_captioning.*.jsonl", SPM_NAME), "prepare"),
    "finetune": Stage(("*.train.jsonl", "*.val.jsonl", SPM_NAME), ("best",), "index"),
    "caption": Stage(("{checkpoint}", "*.val.jsonl", "*.test.jsonl"), (PREDICTIONS_NAME,), "finetune"),
    "score": Stage(CAPTIONED, (SCORES_NAME, "submission.*.json"), "caption"),
    "submit": Stage(CAPTIONED, (SUBMISSION_NAME,), "caption"),
}


def project_folder() -> Path:
    """Return the start of relative paths: the project if a notebook runs in it, else the working folder."""
    folders = (Path(), *Path.cwd().parents)
    return next((folder for folder in folders if (folder / "beit3lib/__init__.py").is_file()), Path())


@checked
def open_run(run: str, folder: str = "runs") -> Path:
    """Return the folder of a run, which does not exist before the first stage of the run.

    A relative `folder` is inside `project_folder()`. On Kaggle the output of the notebook before is mounted
    read-only; it is copied, so that the run is writable.
    """
    if not re.fullmatch(r"\w[\w .+=-]*", run):
        raise ParameterError(f"run: expected letters, digits, '-', '_' and '.', such as 'demo', got {run!r}.")
    path = project_folder() / folder / run
    mounted = [folder / "runs" / run for folder in kaggle_inputs() if (folder / "runs" / run).is_dir()]
    if mounted and not path.exists():
        ends = {
            source: [read_record(source, stage).get("ended", 0.0) for stage in STAGES] for source in mounted
        }
        source = max(mounted, key=lambda source: max(ends[source]))
        print(f"{path}: continues {source}")
        copy = path.with_name(f".{run}.new")  # renamed when it is complete
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        for part in (copy, *copy.rglob("*")):  # copies of read-only files are read-only too
            part.chmod(part.stat().st_mode | 0o200)
        copy.rename(path)
    return path


def read_record(run: Path, stage: str) -> dict[str, Any]:
    """Return the record of a stage; {} if it has not run here."""
    path = run / "records" / f"{stage}.json"
    return read_json(path, dict) if path.is_file() else {}


def read_summary(run: Path) -> dict[str, Any]:
    """Return summary.json, which has a section for each stage that has run; {} if there is none."""
    path = run / SUMMARY_NAME
    return read_json(path, dict) if path.is_file() else {}


def add_summary(run: Path, section: str, values: dict[str, Any]) -> None:
    """Replace one section of summary.json; the others stay."""
    write_json(run / SUMMARY_NAME, read_summary(run) | {section: values})


def fingerprints(run: Path, names: tuple[str, ...], options: dict[str, Any]) -> dict[str, str]:
    """Return a hash of each file and folder that matches `names` (see `Stage`).

    A file is hashed by content. A folder is hashed by the content of its JSON files and by the names and
    sizes of the others (images, weights), so that 25,000 images take well under a second. Modification times
    do not count, because a copy of a run may lose them.
    """
    hashes = {}
    for path in [path for name in names for path in run.glob(name.format(**options))]:
        if path.is_file():
            hashes[path.name] = file_hash(path)
            continue
        digest = hashlib.sha256()
        for file in sorted(filter(Path.is_file, path.rglob("[!.]*"))):
            content = file_hash(file) if file.suffix == ".json" else file.stat().st_size
            digest.update(f"{file.relative_to(path)} {content}\n".encode(errors="surrogateescape"))
        hashes[path.name] = digest.hexdigest()
    return hashes


def has_outputs(run: Path, stage: str) -> bool:
    """Return whether every output exists, whether this stage or somebody else wrote it."""
    return all(any(run.glob(name)) for name in STAGES[stage].outputs)


def stale(run: Path, stage: str) -> str:
    """Return the reason why a stage is out of date, or "" if it is up to date."""
    record = read_record(run, stage)
    if "outputs" not in record:
        return record.get("unfinished", "it was not run yet")
    for kind, names in (("outputs", STAGES[stage].outputs), ("inputs", STAGES[stage].inputs)):
        now, then = fingerprints(run, names, record["options"]), record[kind]
        for name in sorted(now.keys() | then.keys()):
            if now.get(name) != then.get(name):
                change = "is missing" if name not in now else "has changed" if name in then else "is new"
                return f"{name} {change}"
    return ""


@contextmanager
def record_stage(run: Path, stage: str, options: dict, lock: bool = True) -> Iterator[dict[str, Any]]:
    """Lock the run while a stage runs; at the end, write its record and its section of summary.json.

    Yields the section, a dict for the stage to fill; `seconds` is added. If the stage is not finished, it
    sets `unfinished` to the reason. `lock=False` is for a stage that locks the run itself.
    """
    started, section, path = time.time(), {}, run / "records" / f"{stage}.json"
    with lock_folder(run, stage) if lock else nullcontext():
        record = {"options": options, "inputs": fingerprints(run, STAGES[stage].inputs, options)}
        write_json(path, record | {"unfinished": "it was interrupted"})
        yield section
        record["ended"] = time.time()
        add_summary(run, stage, section | {"seconds": round(record["ended"] - started, 1)})
        if "unfinished" in section:
            record["unfinished"] = section["unfinished"]
        else:
            record["outputs"] = fingerprints(run, STAGES[stage].outputs, options)
        write_json(path, record)
