"""Fine-tune BEiT-3 captioning as the public recipe does. A killed run resumes and ends with the same weights.

    python -m beit3lib.train --model beit3_base_patch16_224 --data_path runs/mine --output_dir runs/mine \
        --sentencepiece_model data/beit3.spm --finetune data/beit3_base_patch16_224.pth --epochs 10
    accelerate launch --num_processes 2 -m beit3lib.train …            several GPUs or machines, as accelerate is set up

`run_state.py` describes the files of the run folder.

Random numbers are seeded by (seed, epoch, image) or (seed, step, micro-batch), so they do not depend on the number of
processes. A run resumed with the same number of processes ends with bit-equal weights on the same device. With another
number of processes and the same global batch (batch_size x processes x update_freq), images, crops and masks are the same.
If `batch_size` is also the same, losses differ by rounding only; otherwise stochastic depth and the ignored worst tokens,
which depend on the micro-batch, differ too.
"""

import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object
from timm.utils import ModelEmaV3
from torch import nn

from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_pretrained, save_captioner
from beit3lib.config import OptionError, TrainConfig, parse_arguments
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.dataset import Batch, CaptionDataset, num_workers
from beit3lib.device import choose_device, choose_precision
from beit3lib.files import exit_on_error, lock_folder, read_json, readable_folder, versions, write_json
from beit3lib.loss import LossModel, drop_worst
from beit3lib.model import CaptionModel, model_config
from beit3lib.run.launch import ignore_signals, on_signals, run_processes
from beit3lib.run.log import LOG_NAME, append_event, read_log, summary, track_event, tracker_name, write_log
from beit3lib.run.memory import keep_freed_memory, largest_batch, peak_mb
from beit3lib.run.state import (
    RESULTS_NAME,
    VALIDATION_NAME,
    ResumeError,
    State,
    TrainingStopped,
    copy_run,
    delete_previous,
    disk_errors,
    index_hashes,
    keep_state,
    load_last,
    save_last,
    write_run_state,
)
from beit3lib.run.validation import validate
from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer

PRINT_EVERY = 50  # steps; log.jsonl has every step
SMALLEST_SCALE = (
    1e-3  # smallest loss scale in fp16; the scaler starts at 65,536 and halves it at every overflow
)


class Interrupted(BaseException):
    """A signal during validation. Not an `Exception`, so that no library in between catches it."""


def layer_index(name: str, layers: int) -> int:
    """Depth of a parameter for layer decay: 0 for embeddings, i + 1 for layer i, `layers` + 1 for everything else."""
    if "embed" in name:
        return 0
    return int(name.split(".layers.")[1].split(".")[0]) + 1 if ".layers." in name else layers + 1


def parameter_groups(model: CaptionModel, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups, one per combination of weight decay and `lr_scale` = layer_decay^(top - layer).

    Vectors, biases, the class token and image positions have no weight decay. Source: the recipe's `optim_factory`.
    """
    layers = model.config.layers
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = parameter.ndim <= 1 or name.endswith(
                (".bias", "cls_token", "embed_positions.A.weight")
            )
            decay = 0.0 if no_decay else config.weight_decay
            scale = config.layer_decay ** (layers + 1 - layer_index(name, layers))
            group = groups.setdefault(
                (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale}
            )
            group["params"].append(parameter)
    return list(groups.values())


def learning_rate(step: int, total: int, warmup: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linspace(0, lr, warmup), then half a cosine to min_lr at `total`.

    Source: the recipe's `cosine_scheduler`, which reaches lr at the last step of the warm-up.
    """
    if step < warmup:
        return config.lr * step / (warmup - 1) if warmup > 1 else 0.0
    progress = (step - warmup) / max(1, total - warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))


class Step(NamedTuple):
    """Result of `train_step`: mean loss, norm of the gradient before clipping, whether the fp16 scaler skipped the step."""

    loss: float
    grad_norm: float
    skipped: bool


def train_step(
    loss_model: nn.Module, batches: list[Batch], optimizer, accelerator, config: TrainConfig, step: int
) -> Step:
    """One optimizer step over the micro-batches of this process.

    The loss is averaged over the masked tokens of all micro-batches and processes, so that every token has the same weight.
    Raises `TrainingStopped`, which names the images, before a non-finite loss or gradient changes the weights. In fp16 the
    scaler skips steps whose gradient overflows.
    """
    world, scaler = accelerator.num_processes, accelerator.scaler
    count = torch.full(
        (), float(sum(len(batch.mask_positions) for batch in batches)), device=accelerator.device
    )
    count = accelerator.reduce(count, "sum")
    total = torch.zeros((), device=accelerator.device)
    for part, batch in enumerate(batches):
        number = part * world + accelerator.process_index  # of the micro-batch in the global batch
        torch.manual_seed(
            int(np.random.SeedSequence((config.seed, step, number)).generate_state(1)[0])
        )  # seeds stochastic depth
        with (
            accelerator.autocast(),
            nullcontext() if part == len(batches) - 1 else accelerator.no_sync(loss_model),
        ):
            losses = loss_model(batch)  # (n,)
        kept = losses
        if config.drop_worst_ratio and step > config.drop_worst_after:
            kept = drop_worst(losses, config.drop_worst_ratio)
        loss = kept.mean() * (
            len(losses) * world / count
        )  # times world: DistributedDataParallel divides by it
        accelerator.backward(loss)
        total += loss.detach()
    if scaler is not None:
        scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if config.clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, config.clip_grad, norm)
    # `tolist` waits for the device, in fp32 and bf16 the only wait of a step. It precedes `optimizer.step`, so that a
    # non-finite loss never reaches the weights or last/.
    loss, norm = torch.stack([accelerator.reduce(total, "mean"), norm]).tolist()
    skipped = scaler is not None and not math.isfinite(
        norm
    )  # an overflow: `optimizer.step` below changes nothing
    if not math.isfinite(loss) or not (math.isfinite(norm) or skipped):
        names = ", ".join(gather_object([name for batch in batches for name in batch.names]))
        raise TrainingStopped(
            f"step {step + 1}: expected a finite loss and gradient, found loss {loss} and gradient norm {norm}. Look at these "
            f"images and their captions, or try a lower --lr, --clip_grad 1 or --precision fp32: {names}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if skipped and scaler.get_scale() < SMALLEST_SCALE:
        raise TrainingStopped(
            f"step {step + 1}: gradients overflow fp16 at any scale. Use a lower --lr or --precision fp32."
        )
    return Step(loss, norm, skipped)


class Trainer:
    """Model, data and optimizer of a run; `run` trains until it is finished, out of time, out of patience or interrupted."""

    def __init__(self, config: TrainConfig) -> None:
        needed = {
            "sentencepiece_model": "data/beit3.spm",
            "data_path": "runs/mine",
            "output_dir": "runs/mine",
        }
        for name, example in needed.items():
            if not getattr(config, name):
                raise OptionError(f"--{name}: expected a path, found nothing. Add --{name} {example}.")
        self.config, self.output, self.started = (
            config,
            Path(config.output_dir).expanduser(),
            time.monotonic(),
        )
        self.step, self.validated, self.best_score, self.stale, self.skipped = 0, 0, None, 0, 0  # see `State`
        self.signal, self.ema = 0, None
        device = choose_device(config.device)
        if device.type == "cpu":
            keep_freed_memory()
        self.precision, self.reason = choose_precision(config.precision, device)
        if (
            not torch.distributed.is_initialized()
        ):  # accelerate keeps precision and device of an earlier run in this process
            AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=self.precision,
            log_with=tracker_name(config),
            project_dir=config.log_dir or config.output_dir,
        )
        self.print = partial(self.accelerator.print, flush=True)  # once per machine
        kind = self.accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            raise OptionError(
                f"accelerate: expected one process or data parallelism, found {kind}. Run `accelerate config`."
            )
        self.print(f"precision: {self.precision if self.precision != 'no' else 'fp32'} ({self.reason})")
        self.build_model()
        self.build_data()
        if not config.eval:
            self.build_optimizer()

    def build_model(self) -> None:
        """Build the network with the weights of --finetune, or random ones, and load its tokenizer."""
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
            return CaptionDataset(
                read_index(path), root, self.tokenizer, size, config, train=split == "train"
            )

        self.train_set, self.val_set = dataset("train", not config.eval), dataset("val", config.eval)
        self.caption_types, self.index = (self.train_set or self.val_set).caption_types, index_hashes(root)
        if self.val_set is not None and self.val_set.caption_types != self.caption_types:
            raise ValueError(
                f"{root}: expected subject and aspect in both index files or in neither. Make both again."
            )
        if config.eval:
            return
        parts = self.accelerator.num_processes * config.update_freq
        self.micro_batch, self.update_freq = (
            min(config.batch_size, len(self.train_set) // parts),
            config.update_freq,
        )
        if not self.micro_batch:
            raise OptionError(
                f"--update_freq: expected at least {parts} training images, found {len(self.train_set)}"
            )
        self.global_batch = self.micro_batch * parts
        self.steps_per_epoch = len(self.train_set) // self.global_batch
        self.total_steps = self.steps_per_epoch * config.epochs
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)
        # As in the recipe, --warmup_steps 0 means warmup_epochs, not a run without warm-up.
        self.warmup = (
            config.warmup_steps if config.warmup_steps > 0 else config.warmup_epochs * self.steps_per_epoch
        )

    def build_optimizer(self) -> None:
        """Build AdamW and the moving average, on the device and for all processes."""
        config, loss_model = self.config, LossModel(self.model, self.config.label_smoothing)
        # Fused: one pass over the parameters, which takes a CPU a ninth of the time.
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config),
            lr=config.lr,
            betas=tuple(config.opt_betas),
            eps=config.opt_eps,
            fused=True,
        )
        self.loss_model, self.optimizer = self.accelerator.prepare(loss_model, optimizer)
        if config.model_ema:
            self.ema = ModelEmaV3(self.model, decay=config.model_ema_decay)

    def run(self) -> dict[str, Any]:
        """Train and return the results, which are also in results.json; with --eval only validate.

        SIGTERM and SIGINT end the process with status 143 and 130 after the current step, with last/ saved.
        """
        if self.config.eval:
            return self.validate_only()
        self.started = self.saved_at = time.monotonic()
        lock = lock_folder(self.output, "training") if self.accelerator.is_main_process else nullcontext()
        # A signal is only noted, so that the current step or save is completed; `agree` reads it.
        with lock, on_signals(partial(setattr, self, "signal")):
            self.load()
            if (
                self.accelerator.device.type == "cuda"
            ):  # a CPU has no out-of-memory error that could be caught
                self.fit_batch()
            self.start_log()
            stopped = ""
            while not stopped:
                epoch_ended = self.step % self.steps_per_epoch == 0 or self.step == self.last_step
                if epoch_ended and self.validated < self.step:
                    stopped = self.end_epoch()
                elif self.config.patience and self.stale >= self.config.patience:
                    stopped = "no better score"
                elif self.step >= self.last_step:
                    stopped = "finished"
                else:
                    stopped = self.train_epoch()
            return self.finish(stopped)

    def train_epoch(self) -> str:
        """Train to the end of an epoch or until the run has to stop, and save; returns why to stop, or ""."""
        epoch, first = divmod(self.step, self.steps_per_epoch)
        self.loss_model.train()
        stopped, clock = "", time.monotonic()
        for batches in self.batches(epoch, first):
            lr = learning_rate(self.step, self.total_steps, self.warmup, self.config)
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            done = train_step(
                self.loss_model, batches, self.optimizer, self.accelerator, self.config, self.step
            )
            if self.ema is not None:
                self.ema.update(self.model)
            self.step += 1
            self.skipped += done.skipped
            self.log_step(done, epoch, lr, batches, time.monotonic() - clock)
            stopped, save_now = self.agree()
            if stopped or self.step == self.last_step:
                break
            if save_now and self.step % self.steps_per_epoch:
                self.save()
            clock = time.monotonic()
        self.save()
        return stopped

    def batches(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process for each step of an epoch, from step `first` of the epoch on."""
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, self.micro_batch
        order = self.train_set.epoch_batches(epoch, self.global_batch)[first : self.steps_per_epoch]
        mine = [
            whole[(part * world + rank) * size :][:size]
            for whole in order
            for part in range(self.update_freq)
        ]
        loader = torch.utils.data.DataLoader(
            self.train_set.at_epoch(epoch),
            batch_sampler=mine,
            num_workers=num_workers(self.config.num_workers, size * 3 * self.model.config.image_size**2 * 4),
            collate_fn=self.train_set.collate,
            pin_memory=self.config.pin_mem and self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
        )
        loaded = iter(loader)
        for _ in order:
            yield [next(loaded).to(self.accelerator.device) for _ in range(self.update_freq)]

    def fit_batch(self) -> None:
        """Use a smaller micro-batch, and more of them per step, if batch_size does not fit in memory."""
        size = largest_batch(
            self.micro_batch, self.loss_model, self.optimizer, self.train_set, self.accelerator
        )
        size = min(gather_object([size]))
        if size < self.micro_batch:
            self.update_freq *= self.micro_batch // size
            self.print(
                f"out of memory with batch_size {self.micro_batch}: using {size}, with update_freq {self.update_freq}"
            )
            self.micro_batch = size

    def agree(self) -> tuple[str, bool]:
        """Return the reason to stop after this step ("" to continue) and whether to save; all processes return the same."""
        now, limit, every = (
            time.monotonic(),
            60 * self.config.max_minutes,
            60 * self.config.save_every_minutes,
        )
        wishes = {
            "SIGTERM": self.signal == signal.SIGTERM,
            "SIGINT": self.signal == signal.SIGINT,
            "out of time": bool(limit) and now - self.started > 0.9 * limit,  # the last tenth is for saving
            "save": bool(every) and now - self.saved_at > every,
        }
        counts = torch.tensor(list(wishes.values()), dtype=torch.float, device=self.accelerator.device)
        counts = self.accelerator.reduce(counts, "sum").tolist()
        wished = [name for name, count in zip(wishes, counts, strict=True) if count]
        return next((name for name in wished if name != "save"), ""), "save" in wished

    def end_epoch(self) -> str:
        """Validate, keep the best captioner, and record that in last/; return the signal that interrupted it, or ""."""
        epoch, score, result = (self.step - 1) // self.steps_per_epoch, None, None

        def interrupt(number: int) -> None:
            self.signal = number
            raise Interrupted

        if self.val_set is not None:
            try:
                # Unlike a step, a validation is aborted at once: it may take longer than a host waits between SIGTERM and
                # SIGKILL. last/ is already saved, and resuming repeats the validation.
                with on_signals(interrupt):
                    if self.signal:
                        raise Interrupted
                    result = validate(
                        self.captioner(), self.val_set, self.train_set, self.config, self.accelerator
                    )
            except Interrupted:
                return signal.Signals(self.signal).name
            score = result["score"]
            self.print(f"epoch {epoch + 1}: {summary(result)}")
        self.stale = (
            0 if score is None or self.best_score is None or score > self.best_score else self.stale + 1
        )
        if not self.stale:
            self.best_score = score
            self.save_captioner("best")
        if (
            self.step % (self.steps_per_epoch * self.config.save_ckpt_freq) == 0
            and self.step < self.total_steps
        ):
            self.save_captioner(f"checkpoint-{epoch + 1}")
        if result is not None:
            seconds = result.pop("seconds")
            self.log(
                {
                    "event": "validation",
                    "step": self.step,
                    "epoch": epoch,
                    "timing": {"seconds": seconds},
                    **result,
                }
            )
        self.validated = self.step
        if self.accelerator.is_main_process:
            write_run_state(self.output / "last", self.state())
        self.accelerator.wait_for_everyone()
        return ""

    def finish(self, stopped: str) -> dict[str, Any]:
        """Write results.json, or exit with the status of the signal that stopped the run."""
        self.accelerator.end_training()
        rerun = f"stopped after step {self.step}, saved in {self.output / 'last'}. Rerun the same command to resume."
        if stopped in ("SIGTERM", "SIGINT"):
            self.print(f"{stopped}: {rerun}")
            sys.exit(128 + signal.Signals[stopped])
        if stopped == "out of time":
            self.print(f"{self.config.max_minutes} minutes: {rerun}")
            if not self.validated:  # no epoch is complete, but its weights can already caption
                self.save_captioner("best")
        elif stopped != "finished":
            self.print(f"stopped: {stopped} for {self.stale} epochs")
        if not self.accelerator.is_main_process:
            return {}
        losses = [event["loss"] for event in read_log(self.output / LOG_NAME) if event["event"] == "step"]
        results = {
            "steps": self.step,
            "total_steps": self.total_steps,
            "stopped": stopped,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "best_score": self.best_score,
            "train_seconds": round(time.monotonic() - self.started, 1),
            "precision": self.precision,
            "device": str(self.accelerator.device),
            "peak_mb": peak_mb(),
            "skipped_steps": self.skipped,
            "best": str(self.output / "best"),
        }
        delete_previous(self.output)
        write_json(self.output / RESULTS_NAME, results)
        return results

    def validate_only(self) -> dict[str, Any]:
        """Validate the weights of --finetune, else of --resume, else of last/, and write validation.json."""
        source = self.config.finetune or self.config.resume or str(self.output / "last")
        if not Path(source).exists():
            raise FileNotFoundError(
                f"{source}: expected weights to validate, found none. Pass them as --finetune."
            )
        if not self.config.finetune:
            load_pretrained(self.model, source)
        self.model.to(self.accelerator.device)
        result = validate(self.captioner(), self.val_set, self.train_set, self.config, self.accelerator)
        self.print(f"{source}: {summary(result)}")
        if self.accelerator.is_main_process:
            write_json(self.output / VALIDATION_NAME, {"validation": result})
        return {"validation": result}

    def captioner(self) -> Captioner:
        """Return a captioner with the network, or its moving average, tokenizer and decoding options."""
        model = (self.model if self.ema is None else self.ema.module).eval()
        tokens, penalty = self.config.num_max_bpe_tokens, self.config.length_penalty
        return Captioner(model, self.tokenizer, self.caption_types, tokens, penalty, self.meta())

    def meta(self) -> dict[str, Any]:
        """The content of meta.json: how to caption with the weights, and how they were trained."""
        return {
            "caption_types": self.caption_types,
            "max_tokens": self.config.num_max_bpe_tokens,
            "length_penalty": self.config.length_penalty,
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

    def state(self) -> State:
        """The content of last/state.json."""
        numbers = (self.step, self.validated, self.best_score, self.stale, self.skipped, self.global_batch)
        return State(*numbers, options=dataclasses.asdict(self.config), index=self.index)

    def parts(self) -> dict[str, Any]:
        """{name: object whose state_dict is saved in optimizer.pt}."""
        ema = self.ema.module if self.ema is not None else None
        parts = {"optimizer": self.optimizer, "ema": ema, "scaler": self.accelerator.scaler}
        return {name: part for name, part in parts.items() if part is not None}

    def save_captioner(self, name: str) -> None:
        """Save the captioner (weights, tokenizer, meta.json) in the folder `name` of the run."""
        if self.accelerator.is_main_process:
            with disk_errors(self.output / name):
                save_captioner(
                    self.captioner(), self.output / name, self.config.sentencepiece_model, self.meta()
                )

    def save(self) -> None:
        """Save last/, from which training resumes."""
        if self.accelerator.is_main_process:
            spm = self.config.sentencepiece_model
            save_last(self.output, self.model, self.parts(), self.state(), spm, self.meta())
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def load(self) -> None:
        """Resume from last/ if there is one. With --resume, first copy the run it names, unless this run has its own last/."""
        last, main, loaded = self.output / "last", self.accelerator.is_main_process, None
        if self.config.resume and main and not (self.config.auto_resume and readable_folder(last).exists()):
            copy_run(Path(self.config.resume).parent, self.output)
        self.accelerator.wait_for_everyone()
        if self.config.auto_resume or self.config.resume:
            loaded = load_last(self.output, self.config, self.global_batch, self.model, self.parts())
        if len(set(gather_object([loaded[0].step if loaded else 0]))) > 1:
            raise ResumeError(
                f"{last}: some processes found it and others did not. Use an output_dir that all machines share."
            )
        if loaded is None:
            return
        state, folder, problem = loaded
        self.step, self.validated, self.skipped = state.step, state.validated, state.skipped
        self.best_score, self.stale = state.best_score, state.stale
        if self.step > self.total_steps:
            raise ResumeError(
                f"{folder}: expected a state of at most step {self.total_steps}, found step {self.step}"
            )
        if main:
            keep_state(self.output, folder, state)
        note = f", the state before the broken one. {problem}" if problem else ""
        self.print(f"resumed from {folder} after step {self.step}{note}")

    def start_log(self) -> None:
        """Print the size of the run, and start log.jsonl and the tracker."""
        there = [f"{name}/" for name in ("last", "best") if (self.output / name).exists()]
        if there and not self.step:
            self.print(
                f"{self.output}: starting from scratch; {' and '.join(there)} of an earlier run will be replaced"
            )
        images, kinds = len(self.train_set), len(self.caption_types)
        steps = f"{self.total_steps} steps of {self.global_batch}"
        self.print(f"{images} images, {steps}, {kinds} caption types; on {self.accelerator.device}")
        if self.val_set is None:
            self.print("no validation split: best/ is the latest state")
        if self.accelerator.is_main_process and not self.step:
            write_log(self.output / LOG_NAME, [])
        options = {
            k: v if isinstance(v, (bool, int, float)) else str(v)
            for k, v in dataclasses.asdict(self.config).items()
        }
        self.accelerator.init_trackers("beit3lib", options, {"tensorboard": {"purge_step": self.step + 1}})

    def log_step(self, done: Step, epoch: int, lr: float, batches: list[Batch], seconds: float) -> None:
        """Add a line to log.jsonl at every step, and print one every `PRINT_EVERY` steps."""
        rate = (
            sum(batch.num_tokens for batch in batches) * self.accelerator.num_processes / max(seconds, 1e-6)
        )
        norm = done.grad_norm if math.isfinite(done.grad_norm) else None
        timing = {"seconds_per_step": round(seconds, 3), "tokens_per_s": round(rate), "peak_mb": peak_mb()}
        event = {
            "event": "step",
            "step": self.step,
            "epoch": epoch,
            "loss": done.loss,
            "grad_norm": norm,
            "lr": lr,
        }
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
        append_event(self.output / LOG_NAME, event)
        track_event(self.accelerator, event, self.train_set.root, self.model.config.image_size)


def finetune(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune in this process; returns the results, which are also in results.json."""
    return Trainer(config).run()


def launch(config: TrainConfig, num_gpus: int) -> dict[str, Any]:
    """Fine-tune, or with --eval validate, in `num_gpus` processes; returns the results. For errors see `run_processes`."""
    run_processes("beit3lib.train", config.arguments(), num_gpus, config.device)
    return read_json(
        Path(config.output_dir).expanduser() / (VALIDATION_NAME if config.eval else RESULTS_NAME), dict
    )


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
