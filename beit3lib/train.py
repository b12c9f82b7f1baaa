"""Fine-tune BEiT-3 captioning with the public recipe; a run that was killed and rerun ends with the same weights.

    python -m beit3lib.train --model beit3_base_patch16_224 --data_path runs/mine --output_dir runs/mine \
        --sentencepiece_model data/beit3.spm --finetune data/beit3_base_patch16_224.pth --epochs 10
    accelerate launch --num_processes 2 -m beit3lib.train …            several GPUs or machines, as accelerate is set up

The run folder: `best/` (the captioner with the best validation score), `last/` (what resuming needs), `log.jsonl` (one
event per line), `results.json`.

What is random follows from (seed, epoch, image) and (seed, step, micro-batch), never from the process that computes it.
A run resumed with the same number of processes ends with bit-equal weights on the same device. With another number of
processes and the same global batch (batch_size x processes x update_freq), the images, crops, masks and the loss
function are the same, and losses differ by float rounding alone; stochastic depth and the ignored worst tokens are also
the same if `batch_size` is, because both are drawn per micro-batch.
"""

import ctypes
import dataclasses
import importlib.util
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic.dataclasses
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

import beit3lib
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import WEIGHTS_NAME, load_pretrained, save_captioner, write_captioner_files
from beit3lib.config import OptionError, TrainConfig, parse_arguments
from beit3lib.data.images import open_image
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.dataset import Batch, CaptionDataset, num_workers
from beit3lib.device import choose_device, choose_precision
from beit3lib.evaluate import validate
from beit3lib.files import (
    FileError,
    atomic_folder,
    check_regular_file,
    exit_on_error,
    file_hash,
    lock_folder,
    previous_folder,
    read_json,
    readable_folder,
    versions,
    write_json,
    write_text,
)
from beit3lib.loss import LossModel, drop_worst
from beit3lib.model import CaptionModel, model_config
from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer

LOG_NAME, RESULTS_NAME, VALIDATION_NAME = "log.jsonl", "results.json", "validation.json"
STATE_NAME, OPTIMIZER_NAME = "state.json", "optimizer.pt"  # in last/, beside the files of a captioner
PRINT_EVERY = 50  # steps; log.jsonl has every step
SMALLEST_SCALE = 1e-3  # of the fp16 scaler, which starts at 65,536 and is halved at every overflow
SESSION_OPTIONS = {  # options that do not change the result of a run, so that a resumed run may have others
    *("output_dir", "data_path", "log_dir", "sentencepiece_model", "finetune", "resume", "auto_resume", "eval", "dist_eval"),
    *("device", "precision", "checkpoint_activations", "num_workers", "pin_mem", "eval_batch_size", "report_to", "samples"),
    *("max_minutes", "max_steps", "save_every_minutes", "save_ckpt_freq", "patience"),
    *("batch_size", "update_freq"),  # their product with the number of processes is compared instead
}


class TrainingStopped(RuntimeError):
    """Training cannot continue; the message says why and which saved state is good."""


class Interrupted(BaseException):
    """Raised by a signal in a validation, which may take longer than a host waits."""


class ResumeError(ValueError):
    """A `last/` that belongs to a run with other options or other data; the message names what differs."""


# --- optimizer and schedule ----------------------------------------------------------------------------------------


def layer_index(name: str, layers: int) -> int:
    """Depth of a parameter for layer decay: 0 for embeddings, N + 1 for layer N, `layers` + 1 for everything else."""
    if "embed" in name:
        return 0
    return int(name.split(".layers.")[1].split(".")[0]) + 1 if ".layers." in name else layers + 1


def parameter_groups(model: CaptionModel, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups, one per weight decay and learning rate scale `lr_scale` = layer_decay^(top - layer).

    Vectors, biases, the class token and image positions have no weight decay. Source: the recipe's `optim_factory`.
    """
    layers = model.config.layers
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = parameter.ndim <= 1 or name.endswith((".bias", "cls_token", "embed_positions.A.weight"))
            decay = 0.0 if no_decay else config.weight_decay
            scale = config.layer_decay ** (layers + 1 - layer_index(name, layers))
            group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
            group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], device: torch.device, **options: Any) -> torch.optim.AdamW:
    """AdamW, fused into one pass over the parameters where PyTorch can; on a CPU that takes a ninth of the time."""
    return torch.optim.AdamW(groups, fused=device.type in ("cuda", "cpu"), **options)


def learning_rate(step: int, total: int, warmup: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linspace(0, lr, warmup), then half a cosine to min_lr at `total`.

    Source: the recipe's `cosine_scheduler`, which reaches lr at the last step of the warm-up and not after it.
    """
    if step < warmup:
        return config.lr * step / (warmup - 1) if warmup > 1 else 0.0
    progress = (step - warmup) / max(1, total - warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))


# --- one step ------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """Result of `train_step`: mean loss, norm of the gradient before clipping, whether the fp16 scaler skipped the step."""

    loss: float
    grad_norm: float
    skipped: bool


def train_step(loss_model: nn.Module, batches: list[Batch], optimizer, accelerator, config: TrainConfig, step: int) -> Step:
    """One optimizer step over the micro-batches of this process.

    The loss is averaged over the masked tokens of all micro-batches and processes, so that every token counts the same.
    Raises `TrainingStopped` with the names of the images before a loss or gradient that is not finite reaches the weights.
    """
    world = accelerator.num_processes
    count = torch.full((), float(sum(len(batch.mask_positions) for batch in batches)), device=accelerator.device)
    count = accelerator.reduce(count, "sum")
    total = torch.zeros((), device=accelerator.device)
    for part, batch in enumerate(batches):
        number = part * world + accelerator.process_index  # of the micro-batch in the global batch
        torch.manual_seed(int(np.random.SeedSequence((config.seed, step, number)).generate_state(1)[0]))  # stochastic depth
        with accelerator.autocast(), nullcontext() if part == len(batches) - 1 else accelerator.no_sync(loss_model):
            losses = loss_model(batch)  # (n,)
        kept = losses
        if config.drop_worst_ratio and step > config.drop_worst_after:
            kept = drop_worst(losses, config.drop_worst_ratio)
        loss = kept.mean() * (len(losses) * world / count)  # DistributedDataParallel averages gradients over processes
        accelerator.backward(loss)
        total += loss.detach()
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if config.clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, config.clip_grad, norm)
    # The only wait for the device in a step; it comes before the update, so that weights and last/ stay finite.
    loss, norm = torch.stack([accelerator.reduce(total, "mean"), norm]).tolist()
    skipped = accelerator.scaler is not None and not math.isfinite(norm)  # by the scaler, in optimizer.step()
    if not math.isfinite(loss) or not (math.isfinite(norm) or skipped):
        names = ", ".join(gather_object([name for batch in batches for name in batch.names]))
        raise TrainingStopped(
            f"step {step + 1}: expected a finite loss and gradient, found loss {loss} and gradient norm {norm}. Look at these "
            f"images and their captions, or try a lower --lr, --clip_grad 1 or --precision fp32: {names}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Step(loss, norm, skipped)


# --- state of a run ------------------------------------------------------------------------------------------------


@pydantic.dataclasses.dataclass
class State:
    """`last/state.json`: what resuming needs beside the tensors, and what must be equal to resume."""

    step: pydantic.NonNegativeInt
    validated: int  # step of the last validation
    best_score: float | None
    stale: int  # epochs since the best score
    skipped: int  # steps that the fp16 scaler skipped
    global_batch: int
    options: dict[str, Any]
    index: dict[str, str | None]  # SHA-256 of the index files
    files: dict[str, int]  # sizes of the other files of last/, by which a truncated or missing one is found


def read_run_state(folder: str | Path) -> State:
    """Read `last/state.json` and check that every file it lists is there in full; `FileError` or `FileNotFoundError` if not."""
    folder = Path(folder)
    try:
        state = State(**read_json(folder / STATE_NAME, dict))
    except pydantic.ValidationError as error:
        where = ", ".join(str(part) for part in error.errors()[0]["loc"])
        raise FileError(f"{folder / STATE_NAME}: expected the state of a run, found a wrong value of {where}") from None
    for name, size in state.files.items():
        found = check_regular_file(folder / name).stat().st_size
        if found != size:
            raise FileError(f"{folder / name}: expected {size:,} bytes, found {found:,}")
    return state


def index_hashes(data_path: str | Path) -> dict[str, str | None]:
    """SHA-256 of the training and validation index, None where there is none."""
    paths = {split: Path(data_path).expanduser() / INDEX_NAME.format(split=split) for split in ("train", "val")}
    return {split: file_hash(path) if path.is_file() else None for split, path in paths.items()}


def differences(state: State, config: TrainConfig) -> list[str]:
    """What keeps a run from being resumed with `config`: changed options and index files, each as a phrase."""
    options = dataclasses.asdict(config)
    changed = [name for name in options if name not in SESSION_OPTIONS and options[name] != state.options.get(name)]
    index = index_hashes(config.data_path)
    return [f"{name} {state.options.get(name)} (now {options[name]})" for name in changed] + [
        f"another {split} index" for split in index if index[split] != state.index.get(split)
    ]


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The events of a log.jsonl; damaged lines are skipped and reported, a half-written last line is skipped silently."""
    path, events, damaged = Path(path), [], []
    if not path.exists():
        return events
    text = check_regular_file(path).read_bytes().decode("utf-8", "replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # captions may contain U+2028, so no splitlines
        try:
            event = json.loads(line)
            events.append({"event": event["event"], "step": int(event["step"]), **event})
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged.append(number)
    if damaged:
        print(f"{path}: expected an event per line, skipped damaged line {', '.join(map(str, damaged[:10]))}", flush=True)
    return events


# --- the run -------------------------------------------------------------------------------------------------------


class Trainer:
    """Model, data and optimizer of a run; `run` trains until it is finished, out of time, out of patience or interrupted."""

    def __init__(self, config: TrainConfig) -> None:
        for name in ("sentencepiece_model", "data_path", "output_dir"):
            if not getattr(config, name):
                raise OptionError(f"--{name}: expected a path, found nothing")
        self.config, self.output, self.started = config, Path(config.output_dir).expanduser(), time.monotonic()
        device = choose_device(config.device)
        if device.type == "cpu":
            keep_freed_memory()
        self.precision, self.reason = choose_precision(config.precision, device)
        if not torch.distributed.is_initialized():  # accelerate keeps precision and device of an earlier run in this process
            AcceleratorState._reset_state(reset_partial_state=True)
        tracker = tracker_name(config)
        project_dir = (config.log_dir or config.output_dir) if tracker else None
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision=self.precision, log_with=tracker, project_dir=project_dir
        )
        if self.accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            kind = self.accelerator.distributed_type.value
            raise OptionError(
                f"accelerate is set to {kind}: expected one process or data parallelism. Run `accelerate config`."
            )
        self.print(f"precision: {self.precision if self.precision != 'no' else 'fp32'} ({self.reason})")
        self.step, self.validated, self.best_score, self.stale, self.skipped = 0, 0, None, 0, 0
        self.signal, self.in_validation, self.ema = 0, False, None
        self.build_model()
        self.build_data()
        if not config.eval:
            self.build_optimizer()

    def print(self, text: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def build_model(self) -> None:
        """The network, from --finetune or random weights, and its tokenizer."""
        config, named = self.config, model_config(self.config.model)
        rows = config.vocab_size or (named.vocab_size if config.finetune else None)
        self.tokenizer = load_tokenizer(config.sentencepiece_model, rows)
        torch.manual_seed(config.seed)
        make = CaptionModel.empty if config.finetune or config.eval else CaptionModel
        self.model = make(
            model_config(
                config.model,
                vocab_size=rows or len(self.tokenizer) + UNUSED_ROWS,
                image_size=config.input_size or named.image_size,
                drop_path=config.drop_path,
                checkpoint_activations=config.checkpoint_activations,
            )
        )
        if config.finetune:
            report = load_pretrained(self.model, config.finetune, config.model_key, config.model_prefix)
            self.print(f"{config.finetune}: {report}")

    def build_data(self) -> None:
        """Training and validation sets, and the numbers of steps that follow from their sizes."""
        config, root = self.config, Path(self.config.data_path).expanduser()

        def dataset(split: str, needed: bool) -> CaptionDataset | None:
            path = root / INDEX_NAME.format(split=split)
            if not needed and not path.is_file():
                return None
            size = self.model.config.image_size
            return CaptionDataset(read_index(path), root, self.tokenizer, size, config, train=split == "train")

        self.train_set, self.val_set = dataset("train", not config.eval), dataset("val", config.eval)
        self.caption_types, self.index = (self.train_set or self.val_set).caption_types, index_hashes(root)
        if self.val_set is not None and self.val_set.caption_types != self.caption_types:
            raise ValueError(f"{root}: expected subject and aspect in both index files or in neither. Make both again.")
        if config.eval:
            return
        parts = self.accelerator.num_processes * config.update_freq
        self.micro_batch, self.update_freq = min(config.batch_size, len(self.train_set) // parts), config.update_freq
        if not self.micro_batch:
            raise OptionError(f"--update_freq: expected at least {parts} training images, found {len(self.train_set)}")
        self.global_batch = self.micro_batch * parts
        self.steps_per_epoch = len(self.train_set) // self.global_batch
        self.total_steps = self.steps_per_epoch * config.epochs
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)
        # The recipe also warms up by epochs with --warmup_steps 0.
        self.warmup = config.warmup_steps if config.warmup_steps > 0 else config.warmup_epochs * self.steps_per_epoch

    def build_optimizer(self) -> None:
        """AdamW and the moving average, on the device and for all processes."""
        config, device = self.config, self.accelerator.device
        groups = parameter_groups(self.model, config)
        optimizer = make_optimizer(groups, device, lr=config.lr, betas=tuple(config.opt_betas), eps=config.opt_eps)
        loss_model = LossModel(self.model, config.label_smoothing)
        self.loss_model, self.optimizer = self.accelerator.prepare(loss_model, optimizer)
        if config.model_ema:
            self.ema = ModelEmaV3(self.model, decay=config.model_ema_decay)

    # --- training ---

    def run(self) -> dict[str, Any]:
        """Train and return the results, which are also in results.json; with --eval only validate.

        SIGTERM and SIGINT end the process with status 143 and 130 after the current step, with last/ saved.
        """
        if self.config.eval:
            return self.validate_only()
        self.started = time.monotonic()
        with (
            lock_folder(self.output, "training") if self.accelerator.is_main_process else nullcontext(),
            on_signals(self.receive),
        ):
            self.load()
            if self.accelerator.device.type == "cuda":  # a CPU has no out-of-memory error that could be caught
                self.fit_batch()
            self.start_log()
            stopped = self.end_epoch() if self.validation_is_due() else self.out_of_patience()
            while self.step < self.last_step and not stopped:
                epoch, first = divmod(self.step, self.steps_per_epoch)
                self.loss_model.train()
                clock = time.monotonic()
                for batches in self.batches(epoch, first):
                    lr = learning_rate(self.step, self.total_steps, self.warmup, self.config)
                    for group in self.optimizer.param_groups:
                        group["lr"] = lr * group["lr_scale"]
                    done = train_step(self.loss_model, batches, self.optimizer, self.accelerator, self.config, self.step)
                    if self.ema is not None:
                        self.ema.update(self.model)
                    self.step += 1
                    self.log_step(done, epoch, lr, batches, time.monotonic() - clock)
                    stopped, save_now = self.agree()
                    if stopped or self.step == self.last_step:
                        break
                    if save_now and self.step % self.steps_per_epoch:
                        self.save()
                    clock = time.monotonic()
                self.save()
                if self.validation_is_due() and not stopped:
                    stopped = self.end_epoch()
            return self.finish(stopped or "finished")

    def batches(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step of an epoch for this process, from step `first` of the epoch on."""
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, self.micro_batch
        order = self.train_set.epoch_batches(epoch, self.global_batch)[first : self.steps_per_epoch]
        mine = [whole[(part * world + rank) * size :][:size] for whole in order for part in range(self.update_freq)]
        loader = torch.utils.data.DataLoader(
            self.train_set.at_epoch(epoch),
            batch_sampler=mine,
            num_workers=num_workers(self.config.num_workers, size * self.train_set[0][0].nbytes),
            collate_fn=self.train_set.collate,
            pin_memory=self.config.pin_mem and self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
        )
        loaded = iter(loader)
        for _ in order:
            yield [next(loaded).to(self.accelerator.device) for _ in range(self.update_freq)]

    def fit_batch(self) -> None:
        """Reduce the micro-batch until the images with the longest captions fit in memory; the global batch stays.

        This runs before the first step and without communication, because a process that runs out of memory in a step would
        leave the others waiting for its gradients.
        """
        size, longest = self.micro_batch, np.argsort(-self.train_set.lengths, kind="stable")
        while not self.fits([self.train_set[i] for i in longest[:size]]):
            if size == 1:
                raise torch.OutOfMemoryError(f"one image does not fit in the memory of {self.accelerator.device}")
            size = next(smaller for smaller in range(size // 2, 0, -1) if size % smaller == 0)
        size = min(gather_object([size]))
        if size < self.micro_batch:
            self.update_freq *= self.micro_batch // size
            self.print(f"out of memory with batch_size {self.micro_batch}: using {size}, with update_freq {self.update_freq}")
            self.micro_batch = size

    def fits(self, samples: list) -> bool:
        """Whether forward and backward of these samples fit in memory, beside the two moments that AdamW keeps."""
        try:
            moments = [] if self.optimizer.state else [torch.empty_like(p) for p in self.model.parameters() for _ in range(2)]
            batch = self.train_set.collate(samples).to(self.accelerator.device)
            with self.accelerator.autocast(), self.accelerator.no_sync(self.loss_model):
                self.loss_model.train()(batch).mean().backward()
            del moments
        except torch.OutOfMemoryError:
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return True

    def receive(self, number: int) -> None:
        """Note a signal for `agree` after the current step; a validation is ended at once, because last/ is saved before it."""
        self.signal = number
        if self.in_validation:
            raise Interrupted

    def agree(self) -> tuple[str, bool]:
        """Why to stop after this step ("" to continue) and whether to save, the same answer in every process."""
        now, limit, every = time.monotonic(), 60 * self.config.max_minutes, 60 * self.config.save_every_minutes
        late = bool(limit) and now - self.started > 0.9 * limit  # the last tenth is for saving
        wishes = [
            self.signal == signal.SIGTERM,
            self.signal == signal.SIGINT,
            late,
            bool(every) and now - self.saved_at > every,
        ]
        if self.accelerator.num_processes > 1:
            wishes = torch.tensor(wishes, dtype=torch.float, device=self.accelerator.device)
            wishes = self.accelerator.reduce(wishes, "sum").tolist()
        reasons = [reason for reason, wish in zip(("SIGTERM", "SIGINT", "out of time"), wishes[:3], strict=True) if wish]
        return (reasons or [""])[0], bool(wishes[3])

    def validation_is_due(self) -> bool:
        """Whether an epoch or the run has ended without its validation."""
        ended = self.step % self.steps_per_epoch == 0 or self.step == self.last_step
        return self.step > 0 and ended and self.validated != self.step

    def end_epoch(self) -> str:
        """Validate, keep the best captioner, and note in last/ that this is done; returns why to stop, or ""."""
        epoch, score, result = (self.step - 1) // self.steps_per_epoch, None, None
        if self.val_set is not None:
            self.in_validation = True
            try:
                if self.signal:
                    raise Interrupted
                result = validate(self.captioner(), self.val_set, self.train_set, self.config, self.accelerator)
            except Interrupted:
                return signal.Signals(self.signal).name
            finally:
                self.in_validation = False
            score = result["score"]
            self.print(f"epoch {epoch + 1}: {summary(result)}")
        self.stale = 0 if score is None or self.best_score is None or score > self.best_score else self.stale + 1
        if not self.stale:
            self.best_score = score
            self.save_captioner("best")
        if self.step % (self.steps_per_epoch * self.config.save_ckpt_freq) == 0 and self.step < self.total_steps:
            self.save_captioner(f"checkpoint-{epoch + 1}")
        if result is not None:
            seconds = result.pop("seconds")
            self.log({"event": "validation", "step": self.step, "epoch": epoch, "timing": {"seconds": seconds}, **result})
        self.validated = self.step
        if self.accelerator.is_main_process:
            self.write_state(self.output / "last")
        self.accelerator.wait_for_everyone()
        return self.out_of_patience()

    def out_of_patience(self) -> str:
        """Why to stop if the score has not improved for --patience epochs, else ""."""
        return "no better score" if self.config.patience and self.stale >= self.config.patience else ""

    def finish(self, stopped: str) -> dict[str, Any]:
        """Write results.json; or exit with the status of the signal that stopped the run."""
        self.accelerator.end_training()
        rerun = f"stopped after step {self.step}, saved in {self.output / 'last'}. Rerun the same command to resume."
        if stopped in ("SIGTERM", "SIGINT"):
            self.print(f"{stopped}: {rerun}")
            sys.exit(128 + signal.Signals[stopped])
        if stopped == "out of time":
            self.print(f"{self.config.max_minutes} minutes: {rerun}")
        elif stopped != "finished":
            self.print(f"stopped: {stopped} for {self.stale} epochs")
        if stopped == "out of time" and not self.validated:
            self.save_captioner("best")  # no epoch is done, but there should be something to caption with
        if not self.accelerator.is_main_process:
            return {}
        losses = [event["loss"] for event in read_log(self.output / LOG_NAME) if event["event"] == "step"]
        results = {
            "steps": self.step,
            "stopped": stopped,
            "first_loss": losses[0] if losses else None,
            "last_loss": float(np.mean(losses[-10:])) if losses else None,
            "best_score": self.best_score,
            "train_seconds": round(time.monotonic() - self.started, 1),
            "precision": self.precision,
            "device": str(self.accelerator.device),
            "peak_mb": peak_mb(),
            "skipped_steps": self.skipped,
            "best": str(self.output / "best"),
        }
        delete_previous(self.output / "last")
        if (self.output / "best").exists():  # of a save that was killed
            shutil.rmtree(previous_folder(self.output / "best"), ignore_errors=True)
        write_json(self.output / RESULTS_NAME, results)
        return results

    def validate_only(self) -> dict[str, Any]:
        """Validate the weights of --finetune, or else those of last/; also writes validation.json."""
        source = self.config.finetune or self.config.resume or str(self.output / "last")
        if not Path(source).exists():
            raise FileNotFoundError(f"{source}: expected weights to validate, found none. Pass them as --finetune.")
        if not self.config.finetune:
            load_pretrained(self.model, source)
        self.model.to(self.accelerator.device).eval()
        result = validate(self.captioner(), self.val_set, self.train_set, self.config, self.accelerator)
        self.print(f"{source}: {summary(result)}")
        if self.accelerator.is_main_process:
            write_json(self.output / VALIDATION_NAME, {"validation": result})
        return {"validation": result}

    # --- saving and resuming ---

    def captioner(self) -> Captioner:
        """The network, or its moving average, with tokenizer and decoding options."""
        model = (self.model if self.ema is None else self.ema.module).eval()
        tokens, penalty = self.config.num_max_bpe_tokens, self.config.length_penalty
        return Captioner(model, self.tokenizer, self.caption_types, tokens, penalty, self.meta())

    def meta(self) -> dict[str, Any]:
        """What meta.json says about how to caption with the weights and where they come from."""
        return {
            "caption_types": self.caption_types,
            "max_tokens": self.config.num_max_bpe_tokens,
            "length_penalty": self.config.length_penalty,
            "subject": self.config.subject,
            "aspect": self.config.aspect,
            "options": dataclasses.asdict(self.config),
            "index": self.index,
            "step": self.step,
            "best_score": self.best_score,
            "precision": self.precision,
            "precision_reason": self.reason,
            "device": str(self.accelerator.device),
            "seconds": round(time.monotonic() - self.started, 1),
            "versions": versions(),
        }

    def save_captioner(self, name: str) -> None:
        """Save a folder to caption with."""
        if self.accelerator.is_main_process:
            with disk_errors(self.output / name):
                save_captioner(self.captioner(), self.output / name, self.config.sentencepiece_model, self.meta())

    def save(self) -> None:
        """Save last/, from which training resumes; the state before it stays beside it until this one is known to be whole."""
        last = self.output / "last"
        if self.accelerator.is_main_process:
            delete_previous(last)  # so that two states are on the disk and never three
            tensors = {"optimizer": self.optimizer.state_dict()}
            tensors |= {"ema": self.ema.module.state_dict()} if self.ema is not None else {}
            tensors |= {"scaler": self.accelerator.scaler.state_dict()} if self.accelerator.scaler is not None else {}
            with disk_errors(last), atomic_folder(last, keep_previous=True) as new:
                spm, weights = self.config.sentencepiece_model, self.model.state_dict()
                write_captioner_files(new, weights, self.model.config, spm, self.meta())
                torch.save(tensors, new / OPTIMIZER_NAME)
                self.write_state(new)
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def write_state(self, folder: Path) -> None:
        """Write `State`, after the other files because it lists their sizes."""
        names = [
            path.name for path in folder.iterdir() if not path.name.startswith(".")
        ]  # a killed write leaves .state.tmp.json
        files = {name: (folder / name).stat().st_size for name in names if name != STATE_NAME}
        numbers = (self.step, self.validated, self.best_score, self.stale, self.skipped, self.global_batch)
        state = State(*numbers, options=dataclasses.asdict(self.config), index=self.index, files=files)
        write_json(folder / STATE_NAME, dataclasses.asdict(state))

    def load(self) -> None:
        """Resume from last/ if there is one; a broken one falls back to the state saved before it."""
        last, main = self.output / "last", self.accelerator.is_main_process
        if self.config.resume and main and not (self.config.auto_resume and readable_folder(last).exists()):
            copy_run(Path(self.config.resume).parent, self.output)
        self.accelerator.wait_for_everyone()
        source, broken = None, []
        folders = [last, previous_folder(last)] if self.config.auto_resume or self.config.resume else []
        for folder in filter(Path.exists, folders):
            try:
                self.load_from(folder)
                source = folder
                break
            except (OSError, FileError, SafetensorError) as error:
                broken.append(folder)
                self.print(str(error))
        if len(set(gather_object([self.step]))) > 1:
            raise ResumeError(f"{last}: some processes found it and others did not. Use an output_dir that all machines share.")
        if source is None and broken:
            raise ResumeError(f"{last}: no complete state to resume from. Start from scratch with --no_auto_resume.")
        if source is not None and main:
            if broken:  # it must not push the good state out at the next save
                shutil.rmtree(last.resolve())
            if source != last:
                os.replace(source, last.resolve())
            # Events after the resumed step, or a validation that has to be repeated, will be logged again.
            kept = {"step": self.step, "validation": self.validated}
            log = [event for event in read_log(self.output / LOG_NAME) if event["step"] <= kept.get(event["event"], -1)]
            write_text(self.output / LOG_NAME, "".join(map(as_line, log)))
        if source is not None:
            self.print(
                f"resumed from {source} after step {self.step}" + (", the state before the broken one" if broken else "")
            )

    def load_from(self, folder: Path) -> None:
        """Load one saved state; `FileError` if a file is missing or damaged, `ResumeError` if it is of another run."""
        state = read_run_state(folder)
        different = differences(state, self.config)
        if state.global_batch != self.global_batch:
            different.append(f"a global batch of {state.global_batch} (now {self.global_batch})")
        if different:
            raise ResumeError(
                f"{folder}: expected a run with the same options and data, found {', '.join(different)}. Use the same, or "
                f"start from scratch with --no_auto_resume (from these weights with --finetune {folder})."
            )
        if state.step > self.total_steps:
            raise FileError(f"{folder / STATE_NAME}: expected at most step {self.total_steps}, found {state.step}")
        try:
            self.model.load_state_dict(load_file(folder / WEIGHTS_NAME))
            tensors = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(tensors["optimizer"])
            if self.ema is not None:
                self.ema.module.load_state_dict(tensors["ema"])
            if self.accelerator.scaler is not None and "scaler" in tensors:  # absent if the precision was another one
                self.accelerator.scaler.load_state_dict(tensors["scaler"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise FileError(
                f"{folder}: expected the weights and optimizer of this run, found other content ({reason})"
            ) from None
        self.step, self.validated, self.skipped = state.step, state.validated, state.skipped
        self.best_score, self.stale = state.best_score, state.stale

    # --- log ---

    def start_log(self) -> None:
        """Print what will be trained, and start log.jsonl and the tracker."""
        there = [f"{name}/" for name in ("last", "best") if (self.output / name).exists()]
        if there and not self.step:
            self.print(f"{self.output}: starting from scratch; {' and '.join(there)} of an earlier run will be replaced")
        images, kinds = len(self.train_set), len(self.caption_types)
        steps = f"{self.total_steps} steps of {self.global_batch}"
        self.print(f"{images} images, {steps}, {kinds} caption types; on {self.accelerator.device}")
        if self.val_set is None:
            self.print("no validation split: best/ is the latest state")
        if self.step >= self.last_step:
            self.print("all steps are done; --no_auto_resume starts from scratch")
        if self.accelerator.is_main_process and not self.step:
            write_text(self.output / LOG_NAME, "")
        options = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in dataclasses.asdict(self.config).items()}
        self.accelerator.init_trackers("beit3lib", options, {"tensorboard": {"purge_step": self.step + 1}})
        self.saved_at = self.started

    def log_step(self, done: Step, epoch: int, lr: float, batches: list[Batch], seconds: float) -> None:
        """A line of log.jsonl for every step, and one on the screen every few."""
        self.skipped += done.skipped
        if done.skipped and self.accelerator.scaler.get_scale() < SMALLEST_SCALE:
            raise TrainingStopped(
                f"step {self.step}: gradients overflow fp16 at any scale. Use a lower --lr or --precision fp32."
            )
        rate = sum(batch.num_tokens for batch in batches) * self.accelerator.num_processes / max(seconds, 1e-6)
        norm = done.grad_norm if math.isfinite(done.grad_norm) else None
        timing = {"seconds_per_step": round(seconds, 3), "tokens_per_s": round(rate), "peak_mb": peak_mb()}
        event = {"event": "step", "step": self.step, "epoch": epoch, "loss": done.loss, "grad_norm": norm, "lr": lr}
        self.log({**event, "skipped": self.skipped, "timing": timing})
        if self.step % PRINT_EVERY == 0 or self.step in (1, self.last_step):
            left = (self.last_step - self.step) * seconds / 60
            self.print(
                f"step {self.step}/{self.total_steps}  epoch {epoch + 1}  loss {done.loss:.3f}  {rate:.0f} tokens/s  "
                f"{left:.1f} min left" + (f"  {self.skipped} steps skipped" if self.skipped else "")
            )

    def log(self, event: dict[str, Any]) -> None:
        """Append one event to log.jsonl and send it to the tracker."""
        if not self.accelerator.is_main_process:
            return
        with (self.output / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(as_line(event))
        if not self.accelerator.trackers:
            return
        kind, samples = event["event"], event.get("samples", [])
        numbers = {**event, **event["timing"], **{f"score {k}": v for k, v in event.get("by_caption_type", {}).items()}}
        values = {f"{kind}/{name}": value for name, value in numbers.items() if isinstance(value, (int, float))}
        lines = [f"{s['image']}, {s['caption_type']}: {s['caption']}" for s in samples]
        self.accelerator.log({**values, **({f"{kind}/captions": "\n\n".join(lines)} if lines else {})}, step=event["step"])
        paths = dict.fromkeys(self.val_set.root / sample["image"] for sample in samples)
        size = (self.model.config.image_size,) * 2
        images = [np.asarray(open_image(path).resize(size)) for path in paths]
        for tracker in self.accelerator.trackers:
            if images and hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({f"{kind}/images": np.stack(images)}, step=event["step"], **layout)


def as_line(event: dict[str, Any]) -> str:
    """An event as a line of log.jsonl."""
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def summary(result: dict[str, Any]) -> str:
    """One line about a validation."""
    score = "no score" if result["score"] is None else f"score {result['score']:.1f}"
    of_references = f"({result['references']['distinct']:.0%} of the references)"
    distinct = f"{result['distinct']:.0%} distinct {of_references}"
    return f"{score} on {result['captions']} captions, {distinct}, {result['copied']:.0%} equal to a training caption"


# --- around the run ------------------------------------------------------------------------------------------------


def delete_previous(last: Path) -> None:
    """Delete the state before `last` if that one is known to be whole."""
    with suppress(OSError, ValueError):
        read_run_state(last)
        shutil.rmtree(previous_folder(last))


def copy_run(source: Path, output: Path) -> None:
    """Copy last/, best/ and the log of another run, for example from a read-only mount, to resume it in `output`."""
    if not (source / "last").is_dir():
        raise FileNotFoundError(f"{source / 'last'}: expected the folder last/ of a run, found none. Leave --resume out.")
    for name in ("best", "last"):  # last/ comes last: where it is, the copy is complete
        if (source / name).is_dir():
            with atomic_folder(output / name) as new:
                for file in (source / name).iterdir():
                    shutil.copyfile(file, new / file.name)
        if name == "best" and (source / LOG_NAME).is_file():
            write_text(output / LOG_NAME, "".join(map(as_line, read_log(source / LOG_NAME))))


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` on SIGTERM and SIGINT instead of ending the process."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread alone
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: handle(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def ignore_signals(_: int) -> None:
    """Let a loader worker outlive Ctrl-C, which reaches the whole process group: the current step still needs its images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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


def tracker_name(config: TrainConfig) -> str | None:
    """The tracker for accelerate's `log_with`."""
    name = config.report_to
    if name == "auto":
        return "tensorboard" if config.log_dir and importlib.util.find_spec("tensorboard") else None
    if name != "none" and not importlib.util.find_spec(name):
        raise OptionError(f"--report_to {name}: expected an installed package, found none. Install it: pip install {name}")
    return None if name == "none" else name


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks: fetching 1 GB of gradients from the system takes a CPU a sixth of each step."""
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def peak_mb() -> int:
    """Peak memory so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6)
    import resource  # not on Windows

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def finetune(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune in this process; returns the results, which are also in results.json."""
    return Trainer(config).run()


def launch(config: TrainConfig, num_gpus: int) -> dict[str, Any]:
    """Fine-tune on several GPUs in a child process, accelerate's launcher, and return its results.

    Signals are passed on to the child. Raises `RuntimeError` with the last lines of a child that failed.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_gpus), "--main_process_port", "0"]
    command += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    here = str(Path(beit3lib.__file__).parents[1])  # a notebook may have found the package in a folder that is not installed
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [*command, "-m", "beit3lib.train", *config.arguments()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # so that Ctrl-C reaches the child once, through here
    )
    received, lines, own = [], deque(maxlen=20), True

    def pass_on(number: int) -> None:
        received.append(number)
        child.send_signal(number)

    with on_signals(pass_on):
        for line in child.stdout:
            print(line, end="", flush=True)
            own = own and "torch/distributed/elastic" not in line  # the launcher's own traceback follows
            if own:
                lines.append(line)
        child.wait()
    if received:
        sys.exit(128 + received[0])
    if child.returncode:
        raise RuntimeError(f"training on {num_gpus} processes failed with exit status {child.returncode}:\n{''.join(lines)}")
    return read_json(Path(config.output_dir) / RESULTS_NAME, dict)


def main(argv: list[str] | None = None) -> None:
    """`python -m beit3lib.train` with the recipe's options."""
    try:
        with exit_on_error(TrainingStopped):
            trainer = Trainer(parse_arguments(sys.argv[1:] if argv is None else argv))
            results = trainer.run()
    except torch.OutOfMemoryError as error:
        sys.exit(
            f"OutOfMemoryError: {error}\nLower --eval_batch_size if this was in validation, or add --checkpoint_activations"
        )
    except KeyboardInterrupt:  # before training has started
        sys.exit(130)
    trainer.print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
