"""The run folder of a training, and the state in it from which training resumes.

best/             the captioner with the best validation score
last/             the latest weights, the optimizer (optimizer.pt) and everything else that resuming needs (state.json)
.last.previous/   the state saved before last/, until last/ is known to be complete
log.jsonl         one event per line: a step or a validation
results.json      the results, written at the end
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydantic.dataclasses
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from beit3lib.checkpoint import WEIGHTS_NAME, write_captioner_files
from beit3lib.config import TrainConfig
from beit3lib.data.index import INDEX_NAME
from beit3lib.files import (
    FileError,
    atomic_folder,
    check_regular_file,
    file_hash,
    previous_folder,
    read_json,
    write_json,
)
from beit3lib.run.log import LOG_NAME, read_log, write_log

RESULTS_NAME, VALIDATION_NAME = "results.json", "validation.json"
STATE_NAME, OPTIMIZER_NAME = "state.json", "optimizer.pt"  # in last/, beside the files of a captioner
SESSION_OPTIONS = {  # options that do not change the result of a run, so that a resumed run may have others
    *(
        "output_dir",
        "data_path",
        "log_dir",
        "sentencepiece_model",
        "finetune",
        "resume",
        "auto_resume",
        "eval",
        "dist_eval",
    ),
    *(
        "device",
        "precision",
        "checkpoint_activations",
        "num_workers",
        "pin_mem",
        "eval_batch_size",
        "report_to",
        "samples",
    ),
    *("max_minutes", "max_steps", "save_every_minutes", "save_ckpt_freq", "patience"),
    *(
        "batch_size",
        "update_freq",
    ),  # their product with the number of processes, the global batch, is compared instead
}


class TrainingStopped(RuntimeError):
    """Training cannot continue; the message gives the reason and what to do."""


class ResumeError(ValueError):
    """A run that cannot be resumed: its last/ is damaged, or has other options or data, which the message names."""


@pydantic.dataclasses.dataclass
class State:
    """`last/state.json`: the progress of a run, and the options and data that must be equal to resume it."""

    step: pydantic.NonNegativeInt
    validated: int  # step of the last validation
    best_score: float | None
    stale: int  # epochs since the best score
    skipped: int  # steps that the fp16 scaler skipped
    global_batch: int  # images per step in all processes
    options: dict[str, Any]
    index: dict[str, str | None]  # SHA-256 of the index files
    files: dict[str, int] = dataclasses.field(default_factory=dict)  # sizes of the other files of last/


def write_run_state(folder: Path, state: State) -> None:
    """Write `state` to state.json, after the other files of `folder`: their sizes show later whether they are complete."""
    # A killed write leaves a temporary file, whose name begins with a dot.
    paths = [path for path in folder.iterdir() if path.name != STATE_NAME and not path.name.startswith(".")]
    files = {path.name: path.stat().st_size for path in paths}
    write_json(folder / STATE_NAME, {**dataclasses.asdict(state), "files": files})


def read_run_state(folder: str | Path) -> State:
    """Read state.json and check the sizes of the files it lists; raises `FileError` or `FileNotFoundError`."""
    folder = Path(folder)
    try:
        state = State(**read_json(folder / STATE_NAME, dict))
    except pydantic.ValidationError as error:
        where = ", ".join(str(part) for part in error.errors()[0]["loc"])
        raise FileError(
            f"{folder / STATE_NAME}: expected the state of a run, found a wrong value of {where}"
        ) from None
    for name, size in state.files.items():
        found = check_regular_file(folder / name).stat().st_size
        if found != size:
            raise FileError(f"{folder / name}: expected {size:,} bytes, found {found:,}")
    return state


def index_hashes(data_path: str | Path) -> dict[str, str | None]:
    """SHA-256 of the training and validation index, None for a split without an index."""
    paths = {
        split: Path(data_path).expanduser() / INDEX_NAME.format(split=split) for split in ("train", "val")
    }
    return {split: file_hash(path) if path.is_file() else None for split, path in paths.items()}


def differences(state: State, config: TrainConfig) -> list[str]:
    """Phrases that name the options and index files by which `config` differs from a run; empty if it can be resumed."""
    index = index_hashes(config.data_path)
    return [
        f"{name} {state.options.get(name)} (now {value})"
        for name, value in dataclasses.asdict(config).items()
        if name not in SESSION_OPTIONS and value != state.options.get(name)
    ] + [f"another {split} index" for split in index if index[split] != state.index.get(split)]


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Name the folder that could not be written: each library has its own exception for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingStopped(
            f"{folder}: saving failed ({error}). The state saved before is still there. If the disk is full, free some space, "
            "and rerun the same command."
        ) from error


def save_last(
    output: Path, model, parts: dict[str, Any], state: State, spm_path: str, meta: dict[str, Any]
) -> None:
    """Save last/: the weights as a captioner, the `state_dict` of every one of `parts`, and `state`.

    The state before it is kept until the next save or the end of the run, in case last/ is damaged by then.
    """
    last = output / "last"
    delete_previous(output)  # so that the disk has to hold at most two complete states
    with disk_errors(last), atomic_folder(last, keep_previous=True) as new:
        write_captioner_files(new, model.state_dict(), model.config, spm_path, meta)
        torch.save({name: part.state_dict() for name, part in parts.items()}, new / OPTIMIZER_NAME)
        write_run_state(new, state)


def delete_previous(output: Path) -> None:
    """Delete the previous last/ if last/ is complete, and a previous best/ that a killed save has left."""
    with suppress(OSError, ValueError):
        read_run_state(output / "last")
        shutil.rmtree(previous_folder(output / "last"))
    if (output / "best").exists():
        shutil.rmtree(previous_folder(output / "best"), ignore_errors=True)


def load_last(output: Path, config: TrainConfig, global_batch: int, model, parts: dict[str, Any]):
    """Load last/, or the state saved before it if last/ is damaged or missing.

    Returns the state, its folder, and the problem of a damaged last/ ("" if there is none); or None if there is no state.
    Weights are loaded into `model`, and optimizer.pt into `parts`: {name: object with load_state_dict}. Raises
    `ResumeError` if no state is complete or if the run has other options or data than `config`.
    """
    last, problems = output / "last", []
    for folder in filter(Path.exists, (last, previous_folder(last))):
        try:
            return _load(folder, config, global_batch, model, parts), folder, "; ".join(problems)
        except (OSError, FileError) as error:
            problems.append(str(error))
    if problems:
        reasons = "; ".join(problems)
        raise ResumeError(
            f"{last}: no complete state to resume from. Start from scratch with --no_auto_resume. ({reasons})"
        )
    return None


def _load(folder: Path, config: TrainConfig, global_batch: int, model, parts: dict[str, Any]) -> State:
    """Load one saved state; `FileError` if a file is damaged, `ResumeError` if it is of another run."""
    state = read_run_state(folder)
    different = differences(state, config)
    if state.global_batch != global_batch:
        different.append(f"a global batch of {state.global_batch} (now {global_batch})")
    if different:
        raise ResumeError(
            f"{folder}: expected a run with the same options and data, found {', '.join(different)}. Use the same, or "
            f"start from scratch with --no_auto_resume (from these weights with --finetune {folder})."
        )
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
        tensors = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            if name in tensors or name != "scaler":  # a run that was saved in another precision has no scaler
                part.load_state_dict(tensors[name])
    except Exception as error:  # torch and safetensors raise a dozen classes for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileError(
            f"{folder}: expected the weights and optimizer of this run, found other content ({reason})"
        ) from None
    return state


def keep_state(output: Path, folder: Path, state: State) -> None:
    """Make the loaded `folder` the last/ of the run, and drop later events from its log."""
    last = output / "last"
    if folder != last:  # otherwise the next save would replace the complete state and keep the damaged one
        shutil.rmtree(last.resolve(), ignore_errors=True)
        os.replace(folder, last.resolve())
    # A validation counts only after state.json has been written, so an interrupted one is repeated and logged again.
    kept = {"step": state.step, "validation": state.validated}
    events = [event for event in read_log(output / LOG_NAME) if event["step"] <= kept.get(event["event"], -1)]
    write_log(output / LOG_NAME, events)


def copy_run(source: Path, output: Path) -> None:
    """Copy last/, best/ and the log of another run, for example from a read-only mount, to resume it in `output`."""
    if not (source / "last").is_dir():
        raise FileNotFoundError(
            f"{source / 'last'}: expected the folder last/ of a run, found none. Omit --resume."
        )
    write_log(output / LOG_NAME, read_log(source / LOG_NAME))
    for name in (
        "best",
        "last",
    ):  # if a copy is interrupted, last/ is missing and the next start copies again
        if (source / name).is_dir():
            with atomic_folder(output / name) as new:
                for file in (source / name).iterdir():
                    shutil.copyfile(
                        file, new / file.name
                    )  # without the permissions, which may forbid writing
