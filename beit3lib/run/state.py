"""The state of a training run, saved to `last.pt`, from which the run resumes.

    best/          the captioner with the best validation score
    last.pt        weights, optimizer and everything else of `TrainState`, in one file, replaced atomically
    log.jsonl      one event per line: a step or a validation
    results.json   the results, written at the end

Validations are recorded in log.jsonl and not in last.pt: a run is saved before it validates, and one that is
killed while it validates repeats the validation when it resumes.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from timm.utils import ModelEmaV3

from beit3lib.captioner import Captioner
from beit3lib.checkpoint import captioner_meta, load_captioner, write_captioner_files
from beit3lib.config import TrainConfig
from beit3lib.data.index import INDEX_NAME
from beit3lib.data.questions import QUESTION_INDEX_NAME
from beit3lib.files import atomic_folder, atomic_path, check_regular_file, file_hash
from beit3lib.model import CaptionModel
from beit3lib.run.log import LOG_NAME, read_log, write_log

LAST_NAME, RESULTS_NAME, VALIDATION_NAME = "last.pt", "results.json", "validation.json"
# Options that do not change the result of a run, so that a resumed run may have others. Of the last two only
# their product with the number of processes matters, the global batch, which is compared.
SESSION_OPTIONS = set(
    """output_dir data_path log_dir sentencepiece_model finetune resume auto_resume eval dist_eval device
    precision checkpoint_activations num_workers pin_mem eval_batch_size samples max_minutes max_steps
    save_every_minutes save_ckpt_freq patience batch_size update_freq""".split()
)


class TrainingStopped(RuntimeError):
    """Training cannot continue; the message gives the reason and what to do."""


class ResumeError(ValueError):
    """A run that cannot be resumed: last.pt is damaged, or has other options or data."""


@dataclasses.dataclass
class TrainState:
    """Everything that training changes."""

    model: CaptionModel
    optimizer: Any = None  # torch's AdamW, wrapped by accelerate
    ema: ModelEmaV3 | None = None  # moving average of the weights
    scaler: Any = None  # of the loss, in fp16
    step: int = 0  # optimizer steps so far
    skipped_steps: int = 0  # those that the scaler skipped because of an overflow
    # These three follow from the validations in log.jsonl, see `add_validation`.
    last_validated_step: int = 0
    best_score: float | None = None
    epochs_without_improvement: int = 0

    def parts(self) -> dict[str, Any]:
        """Return {name in last.pt: object with a `state_dict`}."""
        ema = self.ema and self.ema.module
        parts = {"model": self.model, "optimizer": self.optimizer, "ema": ema, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}

    def add_validation(self, step: int, score: float | None) -> bool:
        """Record a validation; return whether it is the best so far: without scores, the latest is."""
        is_best = score is None or self.best_score is None or score > self.best_score
        self.last_validated_step = step
        self.best_score = score if is_best else self.best_score
        self.epochs_without_improvement = 0 if is_best else self.epochs_without_improvement + 1
        return is_best


def index_hashes(data_path: str | Path) -> dict[str, str | None]:
    """SHA-256 of the index files of captions and of questions, None for one that does not exist."""
    names = {split: INDEX_NAME.format(split=split) for split in ("train", "val")}
    names |= {f"{split} questions": QUESTION_INDEX_NAME.format(split=split) for split in ("train", "val")}
    paths = {name: Path(data_path).expanduser() / file for name, file in names.items()}
    return {name: file_hash(path) if path.is_file() else None for name, path in paths.items()}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Name the path that could not be written: each library has its own exception for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingStopped(
            f"{path}: saving failed ({error}). The state saved before is intact. If the disk is full, free "
            "some space, then rerun the same command."
        ) from error


def save_last(
    output: Path, state: TrainState, captioner: Captioner, global_batch: int, spm_path: str
) -> None:
    """Save `state`, with meta.json and tokenizer of `captioner`, so that last.pt can also caption."""
    content = {
        **{name: part.state_dict() for name, part in state.parts().items()},
        **{"step": state.step, "skipped_steps": state.skipped_steps, "global_batch": global_batch},
        "meta": captioner_meta(captioner),
        "tokenizer": torch.frombuffer(bytearray(Path(spm_path).read_bytes()), dtype=torch.uint8),
    }
    with disk_errors(output / LAST_NAME), atomic_path(output / LAST_NAME) as temporary:
        torch.save(content, temporary)


def read_last(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Return the content of last.pt; with `mmap`, tensors are read from the disk only when they are used."""
    path = check_regular_file(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
        if not {"model", "optimizer", "step", "meta", "global_batch"} <= content.keys():
            raise KeyError("another kind of file")
    except Exception as error:  # torch.load raises a dozen classes for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ResumeError(
            f"{path}: expected the state of a training run, got a truncated or other file ({reason}). "
            "Copy it again, or start from scratch with --no_auto_resume."
        ) from None
    return content


def differences(saved: dict[str, Any], config: TrainConfig, index: dict[str, str | None]) -> list[str]:
    """Return the options and index files that differ from the saved run, [] if it can be resumed."""
    options, files = saved["meta"]["options"], saved["meta"]["index"]
    return [
        f"{name} {options.get(name)} (now {value})"
        for name, value in dataclasses.asdict(config).items()
        if name not in SESSION_OPTIONS and value != options.get(name)
    ] + [f"another {name} index" for name in index if index[name] != files.get(name)]


def load_last(
    output: Path, state: TrainState, config: TrainConfig, index: dict[str, str | None], global_batch: int
) -> None:
    """Load last.pt into `state`, and the validations from log.jsonl.

    Raises `ResumeError` if the file is damaged or if the run has other options or data.
    """
    path = output / LAST_NAME
    saved = read_last(path)
    different = differences(saved, config, index)
    if saved["global_batch"] != global_batch:
        different.append(f"a global batch of {saved['global_batch']} (now {global_batch})")
    if different:
        raise ResumeError(
            f"{path}: expected a run with the same options and data, got {', '.join(different)}. Use the same,"
            f" or start from scratch with --no_auto_resume (from these weights with --finetune {path})."
        )
    for name, part in state.parts().items():
        if name in saved or name != "scaler":  # a run that was saved in another precision has no scaler
            part.load_state_dict(saved[name])
    state.step, state.skipped_steps = saved["step"], saved["skipped_steps"]
    for event in read_log(output / LOG_NAME):
        if event["event"] == "validation" and event["step"] <= state.step:
            state.add_validation(event["step"], event["best_by"])


def drop_later_events(output: Path, step: int) -> None:
    """Drop the events after `step` from the log of a run that resumes there, which will log them again."""
    write_log(output / LOG_NAME, [event for event in read_log(output / LOG_NAME) if event["step"] <= step])


def copy_run(source: Path, output: Path) -> None:
    """Copy last.pt, best/ and the log of a run, for example from a read-only mount, to resume it here."""
    check_regular_file(source / LAST_NAME)
    write_log(output / LOG_NAME, read_log(source / LOG_NAME))
    if (source / "best").is_dir():
        with atomic_folder(output / "best") as new:
            for file in (source / "best").iterdir():
                shutil.copyfile(file, new / file.name)  # without the permissions, which may forbid writing
    with atomic_path(output / LAST_NAME) as temporary:  # the last one: without it the next start copies again
        shutil.copyfile(source / LAST_NAME, temporary)


def open_captioner(path: str | Path, device: str | torch.device | None = None) -> Captioner:
    """Return the captioner of a checkpoint folder, or of a last.pt.

    That of a last.pt is the moving average of the weights if the run has one, else the weights.
    """
    if not Path(path).is_file():
        return load_captioner(path, device)
    saved = read_last(path)
    with tempfile.TemporaryDirectory() as folder:
        spm_path = Path(folder, "tokenizer.spm")
        spm_path.write_bytes(saved["tokenizer"].numpy().tobytes())
        write_captioner_files(Path(folder), saved.get("ema", saved["model"]), spm_path, saved["meta"])
        return load_captioner(folder, device)
