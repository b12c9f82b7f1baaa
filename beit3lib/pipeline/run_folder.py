"""Open the folder of a run, and keep one record per stage of the inputs and options that it used.

    runs/<name>/   records/<stage>.json, phases.csv, segments.csv, images/, captions/{train,val}/,
                   coco_captioning.{train,val,test}.jsonl, tokenizer.spm, best/, last/, log.jsonl, predictions.json,
                   gallery.html, scores.json, submission.json, summary.json

A stage writes its record twice: without `outputs` when it starts, and with them when everything else is written. As in a
build tool, a stage is out of date if its record is missing or unfinished, or if its inputs or outputs differ from the
record. `stale` returns the reason.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from beit3lib.data.predictions import PREDICTIONS_NAME
from beit3lib.files import file_hash, finite, lock_folder, read_json, versions, write_json
from beit3lib.pipeline.mounts import kaggle_inputs

SUMMARY_NAME, RECORDS_NAME = "summary.json", "records"
PHASES_NAME, SEGMENTS_NAME, SPM_NAME = "phases.csv", "segments.csv", "tokenizer.spm"
SCORES_NAME, SUBMISSION_NAME = "scores.json", "submission.json"


class Stage(NamedTuple):
    """Files and folders that a stage reads and writes, by name or pattern, relative to the run folder."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    after: str | None  # the stage that writes the inputs


STAGES = {
    "prepare": Stage((), (PHASES_NAME, SEGMENTS_NAME, "images", "captions"), None),
    "index": Stage((PHASES_NAME, "images", "captions"), ("coco_captioning.*.jsonl", SPM_NAME), "prepare"),
    "finetune": Stage(
        ("coco_captioning.train.jsonl", "coco_captioning.val.jsonl", SPM_NAME), ("best",), "index"
    ),
    "caption": Stage(
        ("best", "coco_captioning.val.jsonl", "coco_captioning.test.jsonl"), (PREDICTIONS_NAME,), "finetune"
    ),
    "score": Stage((PREDICTIONS_NAME, SEGMENTS_NAME), (SCORES_NAME, "submission.*.json"), "caption"),
    "submit": Stage((PREDICTIONS_NAME, SEGMENTS_NAME), (SUBMISSION_NAME,), "caption"),
}


def project_folder() -> Path:
    """Return the folder that relative paths start at: the project if a notebook runs inside it, else the working folder."""
    folders = (Path(), *Path.cwd().parents)
    return next((folder for folder in folders if (folder / "beit3lib" / "__init__.py").is_file()), Path())


def open_run(name: str, folder: str | Path = "runs") -> Path:
    """Return the folder of a run, which is created if it is new; a relative `folder` is inside `project_folder()`.

    On Kaggle the output of the notebook before is mounted read-only. It is copied once, so that the run is complete and
    writable here; an interrupted copy starts from scratch.
    """
    if not re.fullmatch(r"\w[\w .+=-]*", name):
        raise ValueError(
            f"run: expected a name such as 'demo', got {name!r}. Use letters, digits, '-', '_' and '.' only."
        )
    run = project_folder() / folder / name
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not (run / RECORDS_NAME).is_dir() and (source := _mounted_run(name)):
            print(f"{run}: continues {source}")
            _copy_run(source, run)
    except OSError as error:
        raise OSError(
            f"{run}: expected a folder that can be written, got: {error}. Start in another folder."
        ) from error
    return run


def _mounted_run(name: str) -> Path | None:
    """Return the run of this name on Kaggle's mounts with the most finished stages, the latest one if several have as many."""

    def progress(run: Path) -> tuple[int, float]:
        finished = [
            record["finished"]
            for stage in STAGES
            if (record := read_record(run, stage)) and "outputs" in record
        ]
        return len(finished), max(finished, default=0.0)

    runs = [
        folder / "runs" / name
        for folder in kaggle_inputs()
        if (folder / "runs" / name / RECORDS_NAME).is_dir()
    ]
    return max(runs, key=progress, default=None)


def _copy_run(source: Path, run: Path) -> None:
    """Copy a run. The records are moved into the run last, because `open_run` takes them as the sign of a complete copy."""
    temporary = run / ".copy.new"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    for path in (temporary, *temporary.rglob("*")):  # copies of read-only files are read-only too
        path.chmod(path.stat().st_mode | 0o200)
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == RECORDS_NAME):
        target = run / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    temporary.rmdir()


def read_record(run: Path, stage: str) -> dict[str, Any] | None:
    """Return the record of a stage, or None if it is missing or broken; then the stage runs again."""
    try:
        record = read_json(run / RECORDS_NAME / f"{stage}.json", dict)
    except (OSError, ValueError):
        return None
    complete = isinstance(record.get("outputs", {}), dict) and finite(record.get("finished", 0)) is not None
    return (
        record
        if complete and all(isinstance(record.get(name), dict) for name in ("options", "inputs"))
        else None
    )


def fingerprints(run: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return a hash of each file and folder that matches `names`.

    A file is hashed by content. A folder is hashed by the content of its JSON files and by the names and sizes of the others
    (images, weights), so that 25,000 images take well under a second. Modification times do not count, because a copy of
    a run may lose them.
    """
    hashes = {}
    for path in [path for name in names for path in sorted(run.glob(name))]:
        if path.is_file():
            hashes[path.name] = file_hash(path)
            continue
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                content = file_hash(file) if file.suffix == ".json" else file.stat().st_size
                digest.update(
                    f"{file.relative_to(path).as_posix()} {content}\n".encode("utf-8", "surrogateescape")
                )
        hashes[path.name] = digest.hexdigest()
    return hashes


def has_outputs(run: Path, stage: str) -> bool:
    """Return whether every output exists, whether this stage or somebody else wrote it."""
    return all(any(run.glob(name)) for name in STAGES[stage].outputs)


def stale(run: Path, stage: str) -> str:
    """Return the reason why a stage is out of date, or "" if it is up to date."""
    record = read_record(run, stage)
    if record is None:
        return "it was not run yet"
    if "outputs" not in record:
        return "it was interrupted"
    for kind, names in (("outputs", STAGES[stage].outputs), ("inputs", STAGES[stage].inputs)):
        now, then = fingerprints(run, names), record[kind]
        if changed := sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name)):
            verb = (
                "is missing"
                if changed[0] not in now
                else "is new"
                if changed[0] not in then
                else "has changed"
            )
            return f"{changed[0]} {verb}"
    return ""


@contextmanager
def record_stage(
    run: Path, stage: str, options: dict[str, Any], lock: bool = True
) -> Iterator[dict[str, Any]]:
    """Lock the run while a stage runs, and write the record of the stage and its section of summary.json at the end.

    Yields the section, a dict for the stage to fill; `seconds` is added. If the stage sets `unfinished` in it, the stage counts
    as interrupted. `lock=False` releases the lock after the first record, for a stage that locks the run itself.
    """
    record = {"stage": stage, "options": options, "inputs": fingerprints(run, STAGES[stage].inputs)}
    path, started, section = run / RECORDS_NAME / f"{stage}.json", time.time(), {}
    with ExitStack() as held:
        held.enter_context(lock_folder(run, stage))
        _sweep(run)
        write_json(path, record)
        if not lock:
            held.close()
        yield section
        finished = time.time()
        section["seconds"] = round(finished - started, 1)
        add_summary(run, stage, section)
        if not section.get("unfinished"):
            outputs = fingerprints(run, STAGES[stage].outputs)
            write_json(
                path, {**record, "outputs": outputs, "finished": round(finished, 3), "versions": versions()}
            )


def _sweep(run: Path) -> None:
    """Remove temporary files and folders of killed writes."""
    for folder in (run, run / "images"):
        for path in [*folder.glob(".*.tmp.*"), *folder.glob(".*.tmp"), *folder.glob(".*.new")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_summary(run: Path) -> dict[str, Any]:
    """Return `summary.json`, which has a section per finished stage; {} if it is missing or broken."""
    try:
        return read_json(run / SUMMARY_NAME, dict)
    except (OSError, ValueError):
        return {}


def add_summary(run: Path, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Replace one section of `summary.json` and return the section; the other sections stay."""
    write_json(run / SUMMARY_NAME, read_summary(run) | {section: values})
    return values
