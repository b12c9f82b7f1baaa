"""Fine-tuning: the public captioning recipe on packed captions, complete or resumed.

    python -m beit3lib.train --model beit3_base_patch16_224 --data_path runs/mine --output_dir runs/mine \
        --sentencepiece_model data/beit3.spm --finetune data/beit3_base_patch16_224.pth --epochs 10
    accelerate launch --num_processes 2 -m beit3lib.train …            several GPUs or machines, as accelerate is set up

Every random choice follows from (seed, epoch, sample) or (seed, step): a run that was killed and started again ends
with the weights of one that was not. `log.jsonl` has a line per event.
"""

import copy
import ctypes
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from beit3lib.checkpoint import META_NAME, WEIGHTS_NAME, load_pretrained, write_captioner
from beit3lib.config import TrainConfig, exit_with_help, parse_command
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.dataset import Batch, CaptionDataset
from beit3lib.files import (
    atomic_folder,
    in_one_sentence,
    read_json,
    recover_folder,
    sweep_up,
    versions,
    write_json,
    write_text,
)
from beit3lib.log import LOG_NAME, Log, read_log
from beit3lib.loss import LossModel, drop_worst
from beit3lib.model import Captioner, choose_device, choose_precision, initialise, model_config
from beit3lib.pipeline.manifest import load_manifest
from beit3lib.pipeline.settings import OptionError
from beit3lib.processes import RESULTS_NAME, gathered, refuse_strategies, spread
from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer

STATE_NAME, OPTIMIZER_NAME, VALIDATION_NAME = "state.json", "optimizer.pt", "validation.json"
LOG_EVERY = 10  # steps between lines of the log
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEEDED = {
    "sentencepiece_model": "the path of beit3.spm",
    "data_path": "the folder of the index files that notebook 2 makes",
    "output_dir": "the folder for best/, last/ and log.jsonl",
}
OF_WEIGHTS = ("width", "layers", "heads", "image_size", "patch_size", "vocab_size")  # what makes weights fit a model
OF_A_SESSION = {  # options that may differ from one start of a run to the next without a word
    *("resume", "auto_resume", "eval", "output_dir", "data_path", "log_dir", "sentencepiece_model", "finetune", "device"),
    *("max_minutes", "max_steps", "num_workers", "pin_mem", "dist_eval", "eval_batch_size", "batch_size", "update_freq"),
}


class TrainingStopped(RuntimeError):
    """Training cannot go on; the last good state is saved."""


# --- optimiser and schedule -----------------------------------------------------------------------------------------


def layer_of(name: str, layers: int) -> int:
    """0 for embeddings, N + 1 for layer N, L + 1 for the rest: the recipe's numbering for layer decay."""
    name = name.removeprefix("beit3.")
    if "embed" in name:
        return 0
    if ".layers." in name:
        return int(name.split(".layers.")[1].split(".")[0]) + 1
    return layers + 1


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: not to vectors and biases, the class token and image positions."""
    spared = name.endswith("cls_token") or name.endswith("embed_positions.A.weight")
    return parameter.ndim > 1 and not name.endswith(".bias") and not spared


def parameter_groups(model: Captioner, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: one per weight decay and layer scale; `lr_scale` = layer_decay^(top - layer)."""
    top = model.config.layers + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if decays(name, parameter) else 0.0
            scale = config.layer_decay ** (top - layer_of(name, model.config.layers))
            group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
            group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], device: torch.device, **options: Any) -> torch.optim.AdamW:
    """AdamW in one pass over the parameters where PyTorch has that; on a CPU it takes a ninth of the time."""
    return torch.optim.AdamW(groups, fused=device.type in ("cuda", "cpu"), **options)


def learning_rate(step: int, total: int, warmup: int, config: TrainConfig) -> float:
    """Linear from `warmup_lr` to lr over the warm-up, then half a cosine to min_lr."""
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / max(1, warmup)
    done = (step - warmup) / max(1, total - warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * done))


# --- one step -------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What a step gives, left on the device: mean loss, norm of the gradient before clipping, and whether it was skipped."""

    loss: Tensor
    norm: Tensor | None
    skipped: Tensor


def train_step(loss_model: nn.Module, batches: list[Batch], optimizer, accelerator, config: TrainConfig, step: int) -> Step:
    """One optimiser step over the `update_freq` batches of a process.

    Every position counts the same, whichever batch or process it is in. Nothing here waits for the device but a scaler. A
    step whose loss or gradient is not finite changes no weight; under FSDP, which spreads the gradients, it does.
    """
    counts = [len(batch.places) for batch in batches]
    everywhere = accelerator.reduce(torch.full((), float(sum(counts)), device=accelerator.device), "sum")
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches):
        torch.manual_seed(_step_seed(config.seed, step, number, accelerator.process_index))
        last = number == len(batches) - 1
        with accelerator.autocast(), nullcontext() if last else accelerator.no_sync(loss_model):
            losses = loss_model(batch)
        weight = accelerator.num_processes / everywhere
        if step >= config.drop_worst_after and config.drop_worst_ratio:
            kept = drop_worst(losses, config.drop_worst_ratio)
            losses, weight = kept, weight * (counts[number] / len(kept))
        loss = losses.sum() * weight
        accelerator.backward(loss)
        total += loss.detach()
    norm = accelerator.clip_grad_norm_(loss_model.parameters(), config.clip_grad) if config.clip_grad else None
    mean = accelerator.reduce(total, "mean")
    skipped = torch.zeros_like(mean, dtype=torch.bool)
    if not isinstance(loss_model, FSDPModule):
        inner = getattr(optimizer, "optimizer", optimizer)
        norm = _norm(inner, accelerator.scaler) if norm is None else norm
        skipped = ~(norm.isfinite() & mean.isfinite())
        if (
            accelerator.scaler is None
        ):  # as for a scaler, the fused AdamW passes over the step: the device decides, nobody waits
            inner.found_inf = skipped.float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Step(mean, norm, skipped)


def _norm(optimizer: torch.optim.Optimizer, scaler) -> Tensor:
    """Of the whole gradient, freed of the scaler's factor."""
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _step_seed(seed: int, step: int, batch: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, step, batch, process)).generate_state(1)[0])


# --- the whole ------------------------------------------------------------------------------------------------------


def finetune(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune as `config` says; returns results: steps, losses, best score, seconds, precision, where they lie."""
    return Trainer(config).run()


class Trainer:
    """The state of a fine-tuning: what `last/` holds, and what is made anew from the config."""

    def __init__(self, config: TrainConfig) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.config = config
        for name, what in NEEDED.items():
            if not getattr(config, name):
                raise OptionError(f"--{name}: expected {what}, found none given")
        self.started = time.monotonic()
        self.output = Path(config.output_dir)
        self.output.mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is known before an epoch is done
        device = choose_device(config.device)
        if device.type == "cpu":
            keep_freed_memory()
        self.precision, self.reason = choose_precision(config.precision, device)
        if not torch.distributed.is_initialized():  # else a second run in one kernel could not change precision or device
            AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=self.precision)
        refuse_strategies(self.accelerator)
        self.say(f"precision: {self.precision if self.precision != 'no' else 'fp32'} ({self.reason})")
        keeps_log = self.accelerator.is_main_process and not config.eval
        self.log = Log(Path(config.log_dir or config.output_dir) / LOG_NAME, keeps_log)
        self._make_model()
        self._make_data()
        self._make_optimizer()
        self.step, self.best, self.stale = 0, -math.inf, 0
        self.skipped = torch.zeros((), device=self.accelerator.device)
        self.skipped_before = 0  # the last line of the log
        self.first_step, self.due, self.saved = 0, False, -1  # `due`: last/ was saved, its validation not done
        self.recent: deque[tuple[Tensor, list[str]]] = deque(maxlen=LOG_EVERY)
        self.clock, self.steps_timed, self.tokens = time.monotonic(), 0, 0
        self._resume()

    def say(self, text: str) -> None:
        """Print on the main process only."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def _make_model(self) -> None:
        config = self.config
        rows = config.vocab_size if config.finetune else None
        named = model_config(config.model)
        if config.finetune and config.vocab_size == TrainConfig.vocab_size:
            rows = named.vocab_size
        self.tokenizer = load_tokenizer(config.sentencepiece_model, rows)
        torch.manual_seed(config.seed)
        make = Captioner.unset if config.finetune else Captioner
        model = make(
            model_config(
                config.model,
                vocab_size=rows or len(self.tokenizer) + UNUSED_ROWS,
                image_size=config.input_size or named.image_size,
                drop_path=config.drop_path,
                checkpoint_activations=config.checkpoint_activations,
            )
        )
        if config.finetune:
            report = load_pretrained(model, config.finetune, config.model_key, config.model_prefix)
            self.say(f"{config.finetune}: {report}")
            if report.fresh:
                initialise(model.mlm_head)
        model.tokenizer = self.tokenizer
        self.model = model

    def _make_data(self) -> None:
        config, root = self.config, Path(self.config.data_path)
        size = self.model.config.image_size

        def dataset(split: str, train: bool) -> CaptionDataset:
            table = read_index(root / INDEX_NAME.format(split=split))
            return CaptionDataset(table, root, self.tokenizer, size, config, train)

        self.train_set = dataset("train", True)
        self.model.descriptions, self.model.vocabulary = self.train_set.descriptions, self.train_set.vocabulary()
        has_val = (root / INDEX_NAME.format(split="val")).is_file()
        self.val_set = dataset("val", False) if has_val else None
        if self.val_set is not None and self.val_set.descriptions != self.train_set.descriptions:
            raise ValueError(f"{root}: one of the two indexes names its descriptions, the other does not; make both anew")
        world = self.accelerator.num_processes * config.update_freq
        if len(self.train_set) < world:
            raise OptionError(
                f"update_freq: expected {world} pictures or more for processes x update_freq, found {len(self.train_set)}"
            )
        self.global_batch = min(config.batch_size * world, max(world, len(self.train_set) // world * world))
        self.steps_per_epoch = max(1, len(self.train_set) // self.global_batch)
        self.total_steps = self.steps_per_epoch * config.epochs
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)

    def _make_optimizer(self) -> None:
        config = self.config
        groups = parameter_groups(self.model, config)
        optimizer = make_optimizer(groups, self.accelerator.device, lr=config.lr, betas=config.opt_betas, eps=config.opt_eps)
        self.loss_model = LossModel(self.model, config.label_smoothing)
        self.loss_model, self.optimizer = self.accelerator.prepare(self.loss_model, optimizer)
        average = config.model_ema
        self.ema = {n: v.detach().clone() for n, v in self.model.state_dict().items()} if average else None
        per_epoch = self.steps_per_epoch * config.warmup_epochs
        self.warmup = config.warmup_steps if config.warmup_steps >= 0 else per_epoch

    def run(self) -> dict[str, Any]:
        """Train to the end, or to the limit of time, which counts from here; validate after each epoch."""
        if self.config.eval:
            return {"validation": self.validate(self._epoch())}
        self.started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        there = [name for name in ("last", "best") if (self.output / name).exists()]
        if there and not self.first_step:
            self.say(f"{self.output}: begins anew; what an earlier run left in {' and '.join(there)} is replaced")
        self.say(
            f"{len(self.train_set)} images, {self.total_steps} steps of {self.global_batch}, "
            f"{len(self.train_set.descriptions)} descriptions; on {self.accelerator.device}"
        )
        if self.step >= self.total_steps and not self.due:
            self.say("all steps are done; --no_auto_resume begins anew")
        if self.due:
            self._judge((self.step - 1) // self.steps_per_epoch)
        stopped = self._no_better()
        while self.step < self.total_steps and not stopped:
            self._train_epoch(self._epoch())
            if self.step % self.steps_per_epoch == 0 or self.step >= self.total_steps:
                self._end_epoch((self.step - 1) // self.steps_per_epoch)
            stopped = self._time_is_up() or self._no_better()
        return self._results(stopped or "finished")

    def _epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def _train_epoch(self, epoch: int) -> None:
        self.loss_model.train()
        first = self.step % self.steps_per_epoch
        self.clock, self.steps_timed, self.tokens = time.monotonic(), 0, 0  # validation lies between epochs
        for batches in self._windows(epoch, first):
            rate = learning_rate(self.step, self.total_steps, self.warmup, self.config)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            done = train_step(self.loss_model, batches, self.optimizer, self.accelerator, self.config, self.step)
            self.step += 1
            self.skipped += done.skipped
            self._average()
            self._note(done.loss, rate, batches, epoch)
            if self.step >= self.total_steps or self._out_of_time():
                break

    def _windows(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        """The batches of each step of an epoch, from step `first` on, for this process."""
        config, world, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        each = self.global_batch // (world * config.update_freq)
        order = self.train_set.order(epoch, self.global_batch)[: self.steps_per_epoch][first:]
        mine = [
            whole[(part * world + rank) * each : (part * world + rank + 1) * each]
            for whole in order
            for part in range(config.update_freq)
        ]
        loader = torch.utils.data.DataLoader(
            self.train_set.at_epoch(epoch),
            batch_sampler=mine,
            num_workers=min(config.num_workers, max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))),
            collate_fn=self.train_set.collate,
            pin_memory=config.pin_mem and self.accelerator.device.type == "cuda",
        )
        window: list[Batch] = []
        for batch in loader:
            window.append(batch.to(self.accelerator.device))
            if len(window) == config.update_freq:
                yield window
                window = []

    def _average(self) -> None:
        if self.ema is not None:
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    self.ema[name].lerp_(value, 1 - self.config.model_ema_decay)

    def _note(self, loss: Tensor, rate: float, batches: list[Batch], epoch: int) -> None:
        """A line of the log every few steps; only then the loss is fetched from the device, and the clock read."""
        self.recent.append((loss, [name for batch in batches for name in batch.names]))
        self.steps_timed += 1
        self.tokens += sum(batch.tokens for batch in batches)
        if self.step % LOG_EVERY and self.step != self.total_steps and self.step != 1:
            return
        value = sum(self._finite_losses()) / len(self.recent)
        skipped = self._steps_skipped()
        self.recent.clear()
        now = time.monotonic()
        seconds, rate_of_tokens = self._speed(now)
        left = (self.total_steps - self.step) * (now - self.started) / max(1, self.step - self.first_step)
        self.log.write(
            "step",
            step=self.step,
            epoch=epoch,
            loss=value,
            lr=rate,
            skipped=skipped,
            timing={
                "seconds_per_step": round(seconds, 3),
                "tokens_per_s": round(rate_of_tokens),
                "minutes_left": round(left / 60, 1),
                "peak_mb": peak_mb(),
            },
        )
        if self.step % (5 * LOG_EVERY) == 0 or self.step == self.total_steps:
            self.say(
                f"step {self.step}/{self.total_steps}  epoch {epoch + 1}  loss {value:.3f}  "
                f"{rate_of_tokens:.0f} tokens/s  {left / 60:.1f} min left" + (f"  {skipped} steps skipped" if skipped else "")
            )

    def _speed(self, now: float) -> tuple[float, float]:
        """Seconds per step and tokens per second of all processes since the last line of the log, or the epoch's begin."""
        seconds = max(now - self.clock, 1e-6)
        found = seconds / self.steps_timed, self.tokens * self.accelerator.num_processes / seconds
        self.clock, self.steps_timed, self.tokens = now, 0, 0
        return found

    def _finite_losses(self) -> list[float]:
        """The losses since the last line of the log; one that is not finite ends the run with the last good state saved."""
        losses = torch.stack([loss for loss, _ in self.recent]).tolist() if self.recent else []
        wrong = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if wrong is not None:
            parts = gather_object([self.recent[wrong][1]])  # the loss is that of all processes, so all are here
            names = ", ".join(name for part in parts for name in part)
            raise TrainingStopped(
                f"step {self.step - len(losses) + wrong + 1}: the loss is {losses[wrong]}; images of the batch: {names}. "
                f"{self._keep_good_state()}; look at these images and captions, try a smaller --lr, or --precision fp32"
            )
        return losses

    def _steps_skipped(self) -> int:
        """Steps so far that changed no weight; a run in which all since the last line did not is no training, and ends."""
        before, self.skipped_before = self.skipped_before, int(self.skipped)
        if LOG_EVERY // 2 < len(self.recent) == self.skipped_before - before:
            raise TrainingStopped(
                f"step {self.step}: the last {len(self.recent)} steps changed no weight, their gradients are not finite. "
                f"{self._keep_good_state()}; try a smaller --lr, --clip_grad 1, or --precision fp32"
            )
        return self.skipped_before

    def _keep_good_state(self) -> str:
        """Save what a step that was not finite has not touched; where it has, what was saved before stays."""
        self.recent.clear()
        last = self.output / "last"
        if all(bool(value.isfinite().all()) for value in gathered(self.model.state_dict()).values()):
            self._save("last")
            return f"That step changed no weight: the last good state is saved in {last}; the same started again goes on there"
        return f"The last good state is in {last}, as of its last save" if last.exists() else "No good state was saved before"

    def _end_epoch(self, epoch: int) -> None:
        """Save, then validate: a run that dies while captioning begins there again, and not an epoch earlier."""
        self._finite_losses()
        self.due = True
        self._save("last")
        self._judge(epoch)

    def _judge(self, epoch: int) -> None:
        """Validate, keep the best so far, and note that this was done."""
        found = self.validate(epoch)
        score = found.get("score", -math.inf) if found else float(self.step)
        if score > self.best:
            self.best, self.stale = score, 0
            self._save("best")
        else:
            self.stale += 1
        if (epoch + 1) % self.config.save_ckpt_freq == 0 and epoch + 1 < self.config.epochs:
            self._save(f"checkpoint-{epoch + 1}")
        self.due = False  # after the others: what is missing beside last/ would never be made again
        if self.saved != self.step:
            self._save("last")
        elif self.accelerator.is_main_process:
            with self._telling_a_full_disk(self.output / "last"):
                write_json(self.output / "last" / STATE_NAME, self._state())
        self.accelerator.wait_for_everyone()

    def _time_is_up(self) -> str:
        if not self._out_of_time():
            return ""
        self._finite_losses()
        if not math.isfinite(self.best):  # not one epoch done: what there is can be looked at all the same
            self._save("best")
        if self.saved != self.step:
            self._save("last")
        self.say(
            f"stopped after {self.config.max_minutes} minutes, all is saved; the same again goes on (notebook 3: resume = True)"
        )
        return "out of time"

    def _no_better(self) -> str:
        if self.config.patience and self.stale >= self.config.patience:
            self.say(f"stopped: no better score for {self.stale} epochs")
            return "no better score"
        return ""

    def _out_of_time(self) -> bool:
        """One tenth is kept for validation and saving. Processes agree on it every few steps, since that waits for them."""
        limit = self.config.max_minutes * 60
        if not limit:
            return False
        late = time.monotonic() - self.started > 0.9 * limit
        if self.accelerator.num_processes == 1:
            return late
        if self.step % LOG_EVERY and self.step % self.steps_per_epoch:
            return False
        return bool(self.accelerator.reduce(torch.full((), float(late), device=self.accelerator.device), "sum") > 0)

    def validate(self, epoch: int) -> dict[str, Any] | None:
        """Caption held-out pictures and score them; logged, and the same on every process."""
        if self.val_set is None:
            return None
        from beit3lib.evaluate import caption_and_score

        self.model.eval()
        with self._averaged(), self._unsharded():
            found = caption_and_score(self.model, self.val_set, self.train_set, self.config, self.accelerator)
        self.model.train()
        seconds = found.pop("seconds")
        self.log.write("validation", step=self.step, epoch=epoch, timing={"seconds": seconds}, **found)
        self.say(
            f"epoch {epoch + 1}: score {found['score']:.1f} on {found['captions']} captions, "
            f"{found['distinct']:.0%} distinct ({found['of_references']['distinct']:.0%} of the references), "
            f"{found['copied']:.0%} also in training ({found['of_references']['copied']:.0%})"
        )
        return found

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average in the model's place, where one is kept."""
        if self.ema is None:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        yield
        self.model.load_state_dict(own)

    @contextmanager
    def _unsharded(self) -> Iterator[None]:
        """Whole weights in every process, for work outside the forward of `loss_model`, where FSDP has spread them."""
        if not isinstance(self.loss_model, FSDPModule):
            yield
            return
        self.loss_model.unshard()
        yield
        self.loss_model.reshard()

    def _meta(self) -> dict[str, Any]:
        subject_aspect = {"subject": self.config.subject, "aspect": self.config.aspect}
        return {
            **subject_aspect,
            "options": asdict(self.config),
            "step": self.step,
            "precision": self.precision,
            "precision_reason": self.reason,
            "device": str(self.accelerator.device),
            "seconds": round(time.monotonic() - self.started, 1),
            "versions": versions(),
            "manifest": load_manifest().hash,
        }

    def _save(self, name: str) -> None:
        """A checkpoint folder, complete or not at all; `last` also holds what going on needs."""
        last = name == "last"
        weights = gathered(self.ema if self.ema is not None and not last else self.model.state_dict())
        tensors = gathered({"optimizer": self.optimizer.state_dict(), "ema": self.ema}) if last else {}
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder, meta = self.output / name, self._meta() | ({} if last else {"best_score": self._best()})
            with self._telling_a_full_disk(folder), atomic_folder(folder) as new:
                write_captioner(self.model, new, self.config.sentencepiece_model, meta, weights)
                if last:
                    torch.save({**tensors, "scaler": self._scaler_state()}, new / OPTIMIZER_NAME)
                    write_json(new / STATE_NAME, self._state())
        if last:
            self.saved = self.step
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _telling_a_full_disk(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own for a full disk
            before = "the checkpoint that was there before is whole" if folder.exists() else "there was none before"
            raise TrainingStopped(
                f"{folder}: saving failed ({error}); {before}. Free some space, if that is what is missing, and start the "
                "same again (in notebook 3: resume = True)"
            ) from error

    def _best(self) -> float | None:
        return self.best if math.isfinite(self.best) else None

    def _state(self) -> dict[str, Any]:
        """What going on needs beside weights and optimiser."""
        return {
            "step": self.step,
            "best": self._best(),
            "stale": self.stale,
            "skipped": int(self.skipped),
            "recent": [(float(loss), names) for loss, names in self.recent],
            "steps_per_epoch": self.steps_per_epoch,
            "due": self.due,
        }

    def _scaler_state(self) -> dict[str, Any] | None:
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None

    def _resume(self) -> None:
        """Go on from a `last/`: weights, optimiser, place in the data; the log is cut back to that step."""
        folder = self._place_to_go_on_from()
        if folder is None:
            if self.config.resume:
                raise FileNotFoundError(
                    f"{self.config.resume}: expected a folder last/ to go on from, found none; leave --resume out"
                    + (", and give --finetune the weights to validate" if self.config.eval else "")
                )
            if self.config.eval and not self.config.finetune:
                raise OptionError("--eval: expected weights, found none; give --finetune, --resume or --auto_resume")
            return
        state = read_json(folder / STATE_NAME)
        theirs, ours = read_json(folder / META_NAME)["model"], self.model.meta()
        other = [f"{name} {theirs[name]}" for name in ours if name in OF_WEIGHTS and theirs[name] != ours[name]]
        if other:
            raise ValueError(
                f"{folder}: holds another model ({', '.join(other)}); give another output_dir, or --no_auto_resume"
            )
        own = self.model.state_dict()
        self.model.load_state_dict(spread(load_file(folder / WEIGHTS_NAME), own))
        wanted = self.ema is not None or not self.config.eval  # twice the size of the weights
        saved = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True) if wanted else {}
        if self.ema is not None:  # without one in the folder it begins with these weights
            averages = saved["ema"] or gathered(self.model.state_dict())
            self.ema = spread({name: value.to(self.accelerator.device, copy=True) for name, value in averages.items()}, own)
        self.step = self.first_step = state["step"]
        if self.config.eval:
            self.say(f"validates {folder}, step {self.step}")
            return
        self._take_up(folder, state, saved)

    def _place_to_go_on_from(self) -> Path | None:
        """The `last/` that was asked for, or None; the same for all processes, or an error."""
        named = self.config.eval and self.config.finetune  # weights to validate that are not those of the run
        own = str(self.output / "last") if self.config.auto_resume and not named else ""
        if self.accelerator.is_main_process:
            for place in filter(None, (self.config.resume, own)):
                recover_folder(place)
                sweep_up(Path(place) / STATE_NAME)
        self.accelerator.wait_for_everyone()
        again = 0 <= _step_of(self.config.resume) < _step_of(own)  # the same command, started again
        place = own if again else self.config.resume or own
        found = _step_of(place) >= 0
        everywhere = self.accelerator.reduce(torch.full((), float(found), device=self.accelerator.device), "sum")
        if found and int(everywhere) == self.accelerator.num_processes:
            return Path(place)
        if int(everywhere):
            raise ValueError(f"{place}: some processes find it, others do not; give an output_dir that all machines share")
        return None

    def _take_up(self, folder: Path, state: dict[str, Any], saved: dict[str, Any]) -> None:
        """The rest of a run's state, to train on with."""
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise ValueError(
                f"{folder}: was trained with {state['steps_per_epoch']} steps per epoch, here there are "
                f"{self.steps_per_epoch}; resume with the same data and batch size, or begin anew with --no_auto_resume"
            )
        self._load_optimizer(folder, saved["optimizer"])
        if saved["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.best = -math.inf if state["best"] is None else state["best"]
        self.stale, self.due, self.skipped_before = state["stale"], state["due"], state["skipped"]
        self.skipped += state["skipped"]
        device = self.accelerator.device
        self.recent.extend((torch.tensor(loss, device=device), names) for loss, names in state["recent"])
        if folder.resolve() == (self.output / "last").resolve():
            self.saved = self.step
        elif self.accelerator.is_main_process:
            self._bring_along(folder.parent)
        self.log.cut(self.step, self.due)
        self.say(f"goes on from {folder}, step {self.step}{_changed(folder, self.config)}")

    def _load_optimizer(self, folder: Path, saved: dict[str, Any]) -> None:
        """Its moments; rates and decays are those asked for now."""
        groups = self.optimizer.param_groups
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved["param_groups"]]:
            raise ValueError(
                f"{folder}: was trained with another layer_decay; give the same, or begin anew with --no_auto_resume"
            )
        asked = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        parameters = [parameter for group in groups for parameter in group["params"]]
        saved["state"] = {n: spread(of, dict.fromkeys(of, parameters[n])) for n, of in saved["state"].items()}
        self.optimizer.load_state_dict(saved)
        for group, options in zip(self.optimizer.param_groups, asked, strict=True):
            group.update(options)

    def _bring_along(self, run: Path) -> None:
        """What lies beside the `last/` of another folder: the best state so far and the log."""
        if (run / "best").is_dir():
            with atomic_folder(self.output / "best") as new:
                shutil.copytree(run / "best", new, dirs_exist_ok=True)
        if (run / LOG_NAME).is_file():
            write_text(self.log.path, (run / LOG_NAME).read_text(encoding="utf-8"))

    def _results(self, stopped: str) -> dict[str, Any]:
        events = read_log(self.log.path) if self.accelerator.is_main_process else []
        losses = [event["loss"] for event in events if event["event"] == "step"]
        return {
            "steps": self.step,
            "stopped": stopped,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "best_score": self._best(),
            "train_seconds": round(time.monotonic() - self.started, 1),
            "precision": self.precision,
            "device": str(self.accelerator.device),
            "peak_mb": peak_mb(),
            "skipped_steps": int(self.skipped),
            "best": str(self.output / "best"),
        }


def _step_of(place: str) -> int:
    """How far a `last/` is; -1 where there is none."""
    path = Path(place) / STATE_NAME
    return read_json(path)["step"] if place and path.is_file() else -1


def _changed(folder: Path, config: TrainConfig) -> str:
    """Options that are not those with which `folder` was trained, as they are told."""
    before, now = read_json(folder / META_NAME)["options"], json.loads(json.dumps(asdict(config)))
    names = [name for name in now if name not in OF_A_SESSION and now[name] != before.get(name)]
    return "".join(f"; {name} is now {now[name]}, not {before.get(name)}" for name in names)


def keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed; elsewhere nothing is changed.

    Gradients of the base model are 1 GB, and to take them from the system in every step, page by page, costs a CPU a sixth
    of it. The most memory held at once stays the same.
    """
    with suppress(OSError, AttributeError, TypeError):  # no glibc here
        tune = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            tune(parameter, value)


def peak_mb() -> int:
    """Most memory held so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def overfit(trainer: Trainer, samples: list, steps: int, lr: float = 1e-3) -> list[float]:
    """Losses of so many steps on a few samples with a copy of the model: it must learn them by heart."""
    batch = trainer.train_set.collate(samples).to(trainer.accelerator.device)
    model = LossModel(copy.deepcopy(trainer.model), trainer.config.label_smoothing).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> None:
    """`python -m beit3lib.train` with the recipe's flags."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        exit_with_help()
    try:
        with in_one_sentence(TrainingStopped, SafetensorError):
            trainer = Trainer(parse_command(arguments))
            results = trainer.run()
    except torch.OutOfMemoryError as error:
        less = (
            "halve --batch_size and double --update_freq, or add --checkpoint_activations; in validation: --eval_batch_size 1"
        )
        sys.exit(f"OutOfMemoryError: {error}\n{less}")
    if trainer.accelerator.is_main_process:
        write_json(trainer.output / (VALIDATION_NAME if trainer.config.eval else RESULTS_NAME), results)
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
