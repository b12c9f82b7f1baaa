"""Fine-tune BEiT-3 captioning as the reference implementation does. A killed run resumes and ends with the
same weights.

    python -m beit3lib.train --model beit3_base_patch16_224 --data_path runs/mine --output_dir runs/mine \
        --sentencepiece_model data/beit3.spm --finetune data/beit3_base_patch16_224.pth --epochs 10
    accelerate launch --num_processes 2 -m beit3lib.train …     several GPUs or machines

`setup` builds a run, `fit` trains it, and `run/state.py` describes the files it leaves.

Random numbers are seeded by (seed, epoch, image) or (seed, step, micro-batch). So a resumed run ends with
bit-equal weights on the same device with the same number of processes. With another number of processes, but
the same global batch (batch_size x processes x update_freq) and batch_size, weights are equal up to rounding.
With another batch_size, images, crops and masks are the same; stochastic depth and the ignored worst tokens
depend on the micro-batch.
"""

import dataclasses
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, gather_object
from timm.utils import ModelEmaV3
from torch import nn
from transformers import PreTrainedTokenizerBase

from beit3lib import versions
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_pretrained, save_captioner
from beit3lib.config import OptionError, TrainConfig, parse_arguments
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.data.questions import QUESTION_INDEX_NAME, read_question_index
from beit3lib.data.schema import CaptionType
from beit3lib.dataset import Batch, CaptionDataset, num_workers
from beit3lib.device import choose_device, choose_precision
from beit3lib.files import exit_on_error, lock_folder, read_json, write_json
from beit3lib.loss import LossModel, drop_worst
from beit3lib.model import CaptionModel, model_config
from beit3lib.run.launch import SIGNALS, on_signals, outlive_signals, run_processes
from beit3lib.run.log import LOG_NAME, append_event, read_log, track_event, write_log
from beit3lib.run.memory import keep_freed_memory, largest_batch, peak_mb
from beit3lib.run.state import (
    LAST_NAME,
    RESULTS_NAME,
    VALIDATION_NAME,
    ResumeError,
    TrainingStopped,
    TrainState,
    copy_run,
    disk_errors,
    drop_later_events,
    index_hashes,
    load_last,
    save_last,
)
from beit3lib.run.validation import summary, validate
from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer

PRINT_EVERY = 50  # steps; log.jsonl has every step
SMALLEST_SCALE = 1e-3  # of the loss in fp16; the scaler starts at 65,536 and halves it at every overflow


class Interrupted(BaseException):
    """A signal during validation. Not an `Exception`, so that no library in between catches it."""


def parameter_groups(model: CaptionModel, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups: one per pair of weight decay and `lr_scale` = layer_decay^(top - depth).

    Layer i has depth i + 1, embeddings have 0, and everything else is the top. Vectors, biases, the class
    token and image positions have no weight decay. Source: the reference implementation's `optim_factory`.
    """
    top = model.config.layers + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = parameter.ndim <= 1 or name.endswith(("cls_token", "embed_positions.A.weight"))
            decay = 0.0 if no_decay else config.weight_decay
            number = re.search(r"\.layers\.(\d+)\.", name)
            depth = int(number[1]) + 1 if number else top
            depth = 0 if "embed" in name else depth
            scale = config.layer_decay ** (top - depth)
            group = {"params": [], "weight_decay": decay, "lr_scale": scale}
            groups.setdefault((decay, scale), group)["params"].append(parameter)
    return list(groups.values())


def learning_rate(step: int, total: int, warmup: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linspace(0, lr, warmup), then half a cosine to min_lr at `total`.

    Source: the reference implementation's `cosine_scheduler`, whose last step of the warm-up has lr.
    """
    if step < warmup:
        return config.lr * step / (warmup - 1) if warmup > 1 else 0.0
    progress = (step - warmup) / max(1, total - warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))


class Step(NamedTuple):
    """Result of `train_step`."""

    loss: float  # of captions, mean over masked tokens
    question_loss: float  # mean over questions
    grad_norm: float  # before clipping
    skipped: bool  # by the fp16 scaler, because the gradient overflowed


def train_step(
    loss_model: nn.Module, batches: list[Batch], optimizer, accelerator, config: TrainConfig, step: int
) -> Step:
    """One optimizer step over the micro-batches of this process.

    The loss of captions is averaged over the masked tokens of all micro-batches and processes, and that of
    questions over all questions, so that every token and every question has the same weight. Raises
    `TrainingStopped`, which names the images, before a non-finite loss or gradient changes the weights.
    """
    world, scaler = accelerator.num_processes, accelerator.scaler
    counts = [[len(batch.mask_positions), len(batch.question_positions)] for batch in batches]
    counts = torch.tensor(counts, dtype=torch.float).sum(0).to(accelerator.device, non_blocking=True)
    tokens, questions = accelerator.reduce(counts, "sum").clamp(min=1)
    total = torch.zeros(2, device=accelerator.device)
    for part, batch in enumerate(batches):
        number = part * world + accelerator.process_index  # of the micro-batch in the global batch
        seeds = np.random.SeedSequence((config.seed, step, number))
        torch.manual_seed(int(seeds.generate_state(1)[0]))  # of stochastic depth
        is_last = part == len(batches) - 1
        # Gradients of all processes are added up once, by the last micro-batch: DistributedDataParallel
        # decides this in the forward pass.
        with accelerator.autocast(), nullcontext() if is_last else accelerator.no_sync(loss_model):
            losses = loss_model(batch)
        kept = losses.captions
        if config.drop_worst_ratio and step > config.drop_worst_after:
            kept = drop_worst(kept, config.drop_worst_ratio)
        # The mean of the kept tokens stands for all tokens of the micro-batch. Times world, because
        # DistributedDataParallel divides gradients by it.
        loss = kept.mean() * (len(losses.captions) * world / tokens)
        question_loss = losses.questions.sum() * (world / questions)
        accelerator.backward(loss + config.question_weight * question_loss)
        total += torch.stack([loss.detach(), question_loss.detach()])
    if scaler is not None:
        scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if config.clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, config.clip_grad, norm)
    # `tolist` waits for the device, in fp32 and bf16 the only wait of a step. It precedes `optimizer.step`,
    # so that a non-finite loss never reaches the weights or last.pt.
    loss, question_loss, norm = torch.cat([accelerator.reduce(total, "mean"), norm[None]]).tolist()
    overflow = not math.isfinite(norm)
    skipped = overflow and scaler is not None  # `optimizer.step` below changes nothing then
    if not math.isfinite(loss + question_loss) or (overflow and not skipped):
        names = ", ".join(gather_object([name for batch in batches for name in batch.names]))
        found = f"loss {loss + question_loss} and gradient norm {norm}"
        raise TrainingStopped(
            f"step {step + 1}: expected a finite loss and gradient, got {found}. Look at these images and "
            f"their captions, or try a lower --lr, --clip_grad 1 or --precision fp32: {names}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if skipped and scaler.get_scale() < SMALLEST_SCALE:
        raise TrainingStopped(
            f"step {step + 1}: gradients overflow fp16 at any scale. Use a lower --lr or --precision fp32."
        )
    return Step(loss, question_loss, norm, skipped)


@dataclass
class Training:
    """A run in this process, built by `setup`: options, data, plan, and the `state` that training changes."""

    config: TrainConfig
    output: Path
    accelerator: Accelerator  # device, precision, processes, TensorBoard
    precision_reason: str
    tokenizer: PreTrainedTokenizerBase
    index: dict[str, str | None]  # SHA-256 of the index files
    train_set: CaptionDataset | None  # None with --eval
    val_set: CaptionDataset | None
    state: TrainState
    loss_model: nn.Module  # `LossModel(state.model)`, wrapped for several processes
    micro_batch: int = 0  # images per process and forward pass
    update_freq: int = 0  # forward passes per step
    steps_per_epoch: int = 0
    total_steps: int = 0  # of the learning rate schedule
    last_step: int = 0  # where training ends: `total_steps`, or --max_steps
    warmup_steps: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def global_batch(self) -> int:
        """Images per step in all processes."""
        return self.micro_batch * self.update_freq * self.accelerator.num_processes

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0, of the last step."""
        return (self.state.step - 1) // self.steps_per_epoch

    @property
    def caption_types(self) -> list[CaptionType]:
        """The caption types of both data sets."""
        return (self.train_set or self.val_set).caption_types

    def print(self, text: str) -> None:
        """Print a line, once per machine."""
        self.accelerator.print(text, flush=True)


def setup(config: TrainConfig) -> Training:
    """Build model, data and optimizer of a run; nothing is written yet."""
    needed = {"sentencepiece_model": "data/beit3.spm", "data_path": "runs/mine", "output_dir": "runs/mine"}
    for name, example in needed.items():
        if not getattr(config, name):
            raise OptionError(f"--{name}: expected a path, got nothing. Add --{name} {example}.")
    accelerator, reason = make_accelerator(config)
    root, sets = Path(config.data_path).expanduser(), {}
    tables = {split: read_tables(root, split, config) for split in ("train", "val")}
    has_questions = any(questions is not None for _, questions in tables.values())
    model, tokenizer = build_model(config, accelerator, has_questions)
    for split, (captions, questions) in tables.items():
        if captions is not None:
            options = (tokenizer, model.config.image_size, config, split == "train", questions)
            sets[split] = CaptionDataset(captions, root, *options)
    if len({tuple(each.caption_types) for each in sets.values()}) > 1:
        raise ValueError(
            f"{root}: expected subject and aspect in both index files or in neither. Make both again."
        )
    loss_model, state = LossModel(model, config.label_smoothing), TrainState(model)
    if not config.eval:
        # Fused: one pass over the parameters, which takes a CPU a ninth of the time.
        options = {"lr": config.lr, "betas": tuple(config.opt_betas), "eps": config.opt_eps, "fused": True}
        optimizer = torch.optim.AdamW(parameter_groups(model, config), **options)
        loss_model, state.optimizer = accelerator.prepare(loss_model, optimizer)
        state.scaler = accelerator.scaler
        state.ema = ModelEmaV3(model, decay=config.model_ema_decay) if config.model_ema else None
    run = Training(
        config=config,
        output=Path(config.output_dir).expanduser(),
        accelerator=accelerator,
        precision_reason=reason,
        tokenizer=tokenizer,
        index=index_hashes(root),
        train_set=sets.get("train"),
        val_set=sets.get("val"),
        state=state,
        loss_model=loss_model,
    )
    if not config.eval:
        plan_steps(run)
    return run


def make_accelerator(config: TrainConfig) -> tuple[Accelerator, str]:
    """Return accelerate's object for device, precision and processes, and the reason for the precision."""
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    precision, reason = choose_precision(config.precision, device)
    if not torch.distributed.is_initialized():  # accelerate keeps precision and device of an earlier run
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        # `train_step` accumulates gradients itself. Without this line, the environment variable
        # ACCELERATE_GRADIENT_ACCUMULATION_STEPS would divide them once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with="tensorboard" if config.log_dir else None,
        project_dir=config.log_dir or config.output_dir,
    )
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        expected = "one process or data parallelism"
        raise OptionError(f"accelerate: expected {expected}, got {kind}. Run `accelerate config`.")
    accelerator.print(f"precision: {precision if precision != 'no' else 'fp32'} ({reason})", flush=True)
    return accelerator, reason


def read_tables(
    root: Path, split: str, config: TrainConfig
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Return the index of captions of a split, and that of questions; None for one that is not used."""
    captions, questions = (root / name.format(split=split) for name in (INDEX_NAME, QUESTION_INDEX_NAME))
    # Training needs the index of train and may lack that of val, --eval needs that of val only.
    if split == "train" and config.eval or split == "val" and not config.eval and not captions.is_file():
        return None, None
    has_questions = config.questions and questions.is_file()
    return read_index(captions), read_question_index(questions) if has_questions else None


def build_model(
    config: TrainConfig, accelerator: Accelerator, has_questions: bool
) -> tuple[CaptionModel, PreTrainedTokenizerBase]:
    """Return the model, with the weights of --finetune or random ones, and its tokenizer."""
    named = model_config(config.model)
    rows = config.vocab_size or (named.vocab_size if config.finetune else None)
    tokenizer = load_tokenizer(config.sentencepiece_model, rows)
    torch.manual_seed(config.seed)
    size = dataclasses.replace(
        named,
        vocab_size=rows or len(tokenizer) + UNUSED_ROWS,
        image_size=config.input_size or named.image_size,
        drop_path=config.drop_path,
        checkpoint_activations=config.checkpoint_activations,
        answers=has_questions,
    )
    model = CaptionModel.empty(size) if config.finetune or config.eval else CaptionModel(size)
    if config.finetune:
        report = load_pretrained(model, config.finetune, config.model_key, config.model_prefix)
        accelerator.print(f"{config.finetune}: {report}", flush=True)
    return model, tokenizer


def plan_steps(run: Training) -> None:
    """Set the batch sizes and the numbers of steps, which follow from the number of training images."""
    config, images = run.config, len(run.train_set)
    parts = run.accelerator.num_processes * config.update_freq
    run.micro_batch, run.update_freq = min(config.batch_size, images // parts), config.update_freq
    if not run.micro_batch:
        raise OptionError(f"--update_freq: expected at least {parts} training images, got {images}")
    run.steps_per_epoch = images // run.global_batch
    run.total_steps = run.steps_per_epoch * config.epochs
    run.last_step = min(run.total_steps, config.max_steps or run.total_steps)
    # As in the reference implementation, --warmup_steps 0 means warmup_epochs, not a run without warm-up.
    warmup_epochs = config.warmup_epochs * run.steps_per_epoch
    run.warmup_steps = config.warmup_steps if config.warmup_steps > 0 else warmup_epochs


def fit(run: Training, signals: list[int]) -> str:
    """Train until the last step, or until the run has to stop; return the reason. The run is saved by then.

    Reasons: "finished", "no better score", "out of time", or the name of a signal. `signals` receives the
    numbers of SIGTERM, SIGINT and SIGHUP.
    """
    config, state, accelerator = run.config, run.state, run.accelerator
    saved_at = time.monotonic()
    while True:
        # An epoch that has ended is validated here, before the next one: last.pt was saved before, so a run
        # that is stopped or killed while it validates resumes at this point and repeats the validation. If
        # SIGTERM arrives in the middle of it, `end_epoch` drops the unfinished validation and returns False.
        # There is nothing to save, so the run ends at once.
        epoch_ended = state.step % run.steps_per_epoch == 0 or state.step == run.last_step
        if epoch_ended and state.last_validated_step < state.step and not end_epoch(run, signals):
            return signal.Signals(signals[0]).name
        if config.patience and state.epochs_without_improvement >= config.patience:
            return "no better score"
        if state.step >= run.last_step:
            return "finished"

        epoch, first = divmod(state.step, run.steps_per_epoch)
        run.loss_model.train()
        clock = time.monotonic()
        for batches in load_batches(run, epoch, first):
            lr = learning_rate(state.step, run.total_steps, run.warmup_steps, config)
            for group in state.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            result = train_step(run.loss_model, batches, state.optimizer, accelerator, config, state.step)
            if state.ema is not None:
                state.ema.update(state.model)
            state.step += 1
            state.skipped_steps += result.skipped
            log_step(run, result, lr, batches, time.monotonic() - clock)

            # A signal during a step or a save is only noted in `signals`; the run stops here, after the step.
            now = time.monotonic()
            wishes = {number.name: number in signals for number in SIGNALS}
            limit_s = 0.9 * 60 * config.max_minutes  # the last tenth of the time is for saving
            wishes["out of time"] = 0 < limit_s < now - run.started
            wishes["save"] = 0 < 60 * config.save_every_minutes < now - saved_at
            wished = agree(accelerator, wishes)
            stop = next((reason for reason in wished if reason != "save"), "")
            if stop or state.step % run.steps_per_epoch == 0 or state.step == run.last_step:
                break
            if wished:
                save(run)
                saved_at = time.monotonic()
            clock = time.monotonic()
        # Save before validating, which takes longer than most hosts wait between SIGTERM and SIGKILL.
        save(run)
        saved_at = time.monotonic()
        if stop:
            return stop


def load_batches(run: Training, epoch: int, first: int) -> Iterator[list[Batch]]:
    """Yield the micro-batches of this process for each step of an epoch, from its step `first` on."""
    accelerator, size = run.accelerator, run.micro_batch
    world, rank = accelerator.num_processes, accelerator.process_index
    order = run.train_set.epoch_batches(epoch, run.global_batch)[first : run.steps_per_epoch]
    parts = range(rank, world * run.update_freq, world)  # of a global batch, those of this process
    mine = [whole[part * size : (part + 1) * size] for whole in order for part in parts]
    loader = torch.utils.data.DataLoader(
        run.train_set.at_epoch(epoch),
        batch_sampler=mine,
        num_workers=num_workers(run.config.num_workers, size * 3 * run.state.model.config.image_size**2 * 4),
        collate_fn=run.train_set.collate,
        pin_memory=run.config.pin_mem and accelerator.device.type == "cuda",
        worker_init_fn=outlive_signals,
    )
    loaded = iter(loader)
    for _ in order:
        yield [next(loaded).to(accelerator.device) for _ in range(run.update_freq)]


def agree(accelerator: Accelerator, wishes: dict[str, bool]) -> list[str]:
    """Return the names of the wishes that at least one process has; equal in all processes."""
    wished = torch.tensor(list(wishes.values()), dtype=torch.float)
    if accelerator.num_processes > 1:
        wished = accelerator.reduce(wished.to(accelerator.device), "sum")
    return [name for name, count in zip(wishes, wished.tolist(), strict=True) if count]


def end_epoch(run: Training, signals: list[int]) -> bool:
    """Validate, and keep the best captioner. False if a signal came; the validation is then dropped."""
    config, state, result = run.config, run.state, None

    def interrupt(number: int) -> None:
        signals.append(number)
        raise Interrupted

    if run.val_set is not None:
        try:
            with on_signals(interrupt):
                if signals:  # one that came before this validation
                    raise Interrupted
                result = validate(captioner(run), run.val_set, run.train_set, config, run.accelerator)
        except Interrupted:
            return False
        run.print(f"epoch {run.epoch + 1}: {summary(result)}")
        timing = {"seconds": result.pop("seconds")}
    if state.add_validation(state.step, result and result["best_by"]):
        save_checkpoint(run, "best")
    if state.step % (run.steps_per_epoch * config.save_ckpt_freq) == 0 and state.step < run.total_steps:
        save_checkpoint(run, f"checkpoint-{run.epoch + 1}")
    if result:  # after best/ is saved: a run that is killed before this line validates again
        log_event(run, "validation", result, timing)
    run.accelerator.wait_for_everyone()
    return True


def captioner(run: Training) -> Captioner:
    """Return a captioner with the model or its moving average; its `meta` says how it was trained."""
    model = run.state.model if run.state.ema is None else run.state.ema.module
    meta = {
        "options": dataclasses.asdict(run.config),
        "index": run.index,
        "step": run.state.step,
        "best_score": run.state.best_score,
        "precision": run.accelerator.mixed_precision,
        "precision_reason": run.precision_reason,
        "device": str(run.accelerator.device),
        "seconds": round(time.monotonic() - run.started, 1),
        "versions": versions(),
    }
    decoding = (run.config.num_max_bpe_tokens, run.config.length_penalty)
    return Captioner(model, run.tokenizer, run.caption_types, *decoding, meta)


def save_checkpoint(run: Training, name: str) -> None:
    """Save the captioner (weights, tokenizer, meta.json) in the folder `name` of the run."""
    if run.accelerator.is_main_process:
        with disk_errors(run.output / name):
            save_captioner(captioner(run), run.output / name, run.config.sentencepiece_model)


def save(run: Training) -> None:
    """Save last.pt, from which training resumes."""
    if run.accelerator.is_main_process:
        spm_path = run.config.sentencepiece_model
        save_last(run.output, run.state, captioner(run), run.global_batch, spm_path)
    run.accelerator.wait_for_everyone()


def resume(run: Training) -> None:
    """Load last.pt if there is one. Without one, --resume names that of another run, to be copied first."""
    config, path, is_main = run.config, run.output / LAST_NAME, run.accelerator.is_main_process
    if config.resume and is_main and not (config.auto_resume and path.exists()):
        copy_run(Path(config.resume).parent, run.output)
    run.accelerator.wait_for_everyone()
    found = (config.auto_resume or bool(config.resume)) and path.exists()
    if found:
        load_last(run.output, run.state, config, run.index, run.global_batch)
    if len(set(gather_object([run.state.step]))) > 1:
        what = "some processes found it, others did not"
        raise ResumeError(f"{path}: {what}. Use an output_dir that all machines share.")
    if found:
        run.print(f"resumed from {path} after step {run.state.step}")
        if is_main:
            drop_later_events(run.output, run.state.step)


def fit_batch(run: Training) -> None:
    """Use a smaller micro-batch, and more of them per step, if batch_size does not fit in memory."""
    size = largest_batch(run.micro_batch, run.loss_model, run.state.optimizer, run.train_set, run.accelerator)
    size = min(gather_object([size]))
    if size < run.micro_batch:
        before, run.micro_batch = run.micro_batch, size
        run.update_freq *= before // size
        run.print(f"out of memory with batch_size {before}: using {size}, with update_freq {run.update_freq}")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # the peak of the run does not include this search


def start_log(run: Training) -> None:
    """Print the size of the run, and start log.jsonl and the tracker."""
    existing = [name for name in (LAST_NAME, "best") if (run.output / name).exists()]
    if existing and not run.state.step:
        replaced = f"{' and '.join(existing)} of an earlier run will be replaced"
        run.print(f"{run.output}: starts from scratch; {replaced}")
    plan = f"{len(run.train_set)} images, {run.total_steps} steps of {run.global_batch}"
    run.print(f"{plan}, {len(run.caption_types)} caption types; on {run.accelerator.device}")
    if run.val_set is None:
        run.print("no validation split: best/ is the latest state")
    if run.accelerator.is_main_process and not run.state.step:
        write_log(run.output / LOG_NAME, [])
    options = dataclasses.asdict(run.config)
    options = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in options.items()}
    run.accelerator.init_trackers("beit3lib", options, {"tensorboard": {"purge_step": run.state.step + 1}})


def log_step(run: Training, result: Step, lr: float, batches: list[Batch], seconds: float) -> None:
    """Add a line to log.jsonl at every step, and print one every `PRINT_EVERY` steps."""
    state, questions = run.state, run.state.model.config.answers
    rate = sum(batch.num_tokens for batch in batches) * run.accelerator.num_processes / max(seconds, 1e-6)
    values = {"loss": result.loss} | ({"question_loss": result.question_loss} if questions else {})
    values |= {"grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None, "lr": lr}
    timing = {"seconds_per_step": round(seconds, 3), "tokens_per_s": round(rate), "peak_mb": peak_mb()}
    log_event(run, "step", {**values, "skipped": state.skipped_steps}, timing)
    if state.step % PRINT_EVERY == 0 or state.step in (1, run.last_step):
        losses = f"loss {result.loss:.3f}" + (f"  questions {result.question_loss:.3f}" if questions else "")
        left = f"{(run.last_step - state.step) * seconds / 60:.1f} min left"
        skipped = f"  {state.skipped_steps} steps skipped" if state.skipped_steps else ""
        step = f"step {state.step}/{run.total_steps}  epoch {run.epoch + 1}"
        run.print(f"{step}  {losses}  {rate:.0f} tokens/s  {left}{skipped}")


def log_event(run: Training, kind: str, values: dict[str, Any], timing: dict[str, float]) -> None:
    """Append an event, a "step" or a "validation", to log.jsonl and send it to TensorBoard."""
    if run.accelerator.is_main_process:
        event = {"event": kind, "step": run.state.step, "epoch": run.epoch, **values, "timing": timing}
        with disk_errors(run.output / LOG_NAME):
            append_event(run.output / LOG_NAME, event)
        track_event(run.accelerator, event, run.train_set.root, run.state.model.config.image_size)


def finish(run: Training, stopped: str) -> dict[str, Any]:
    """Write results.json and return it, or exit with the status of the signal that stopped the run."""
    state, path = run.state, run.output / LAST_NAME
    run.accelerator.end_training()
    rerun = f"stopped after step {state.step}, saved in {path}. Rerun the same command to resume."
    if stopped in signal.Signals.__members__:
        run.print(f"{stopped}: {rerun}")
        sys.exit(128 + signal.Signals[stopped])
    if stopped == "out of time":
        run.print(f"{run.config.max_minutes} minutes: {rerun}")
        if not state.last_validated_step:  # no epoch is complete, but its weights can already caption
            save_checkpoint(run, "best")
    elif stopped != "finished":
        run.print(f"stopped: {stopped} for {state.epochs_without_improvement} epochs")
    if not run.accelerator.is_main_process:
        return {}
    losses = [event["loss"] for event in read_log(run.output / LOG_NAME) if event["event"] == "step"]
    results = {
        "steps": state.step,
        "total_steps": run.total_steps,
        "stopped": stopped,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "best_score": state.best_score,
        "train_seconds": round(time.monotonic() - run.started, 1),
        "precision": run.accelerator.mixed_precision,
        "device": str(run.accelerator.device),
        "peak_mb": peak_mb(),
        "skipped_steps": state.skipped_steps,
        "best": str(run.output / "best"),
    }
    write_json(run.output / RESULTS_NAME, results)
    return results


def validate_only(run: Training) -> dict[str, Any]:
    """Validate the weights of --finetune, else of --resume, else of last.pt, and write validation.json."""
    source = run.config.finetune or run.config.resume or str(run.output / LAST_NAME)
    if not run.config.finetune:
        load_pretrained(run.state.model, source, "ema|model")
    run.state.model.to(run.accelerator.device)
    result = validate(captioner(run), run.val_set, run.train_set, run.config, run.accelerator)
    run.print(f"{source}: {summary(result)}")
    if run.accelerator.is_main_process:
        write_json(run.output / VALIDATION_NAME, {"validation": result})
    return {"validation": result}


def finetune(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune, or with --eval validate, in this process; return the results, as in results.json.

    SIGTERM, SIGINT and SIGHUP end it after the current step, and during a validation at once, which the next
    start repeats. last.pt is saved, and the exit status is 143, 130 or 129.
    """
    run, signals = setup(config), []
    if config.eval:
        return validate_only(run)
    lock = lock_folder(run.output, "training") if run.accelerator.is_main_process else nullcontext()
    with lock, on_signals(signals.append):
        resume(run)
        if run.accelerator.device.type == "cuda":  # on a CPU, running out of memory kills the process
            fit_batch(run)
        start_log(run)
        return finish(run, fit(run, signals))


def launch(config: TrainConfig, num_gpus: int) -> dict[str, Any]:
    """Fine-tune, or with --eval validate, in `num_gpus` processes (`run_processes`); return the results."""
    run_processes("beit3lib.train", config.arguments(), num_gpus, config.device)
    name = VALIDATION_NAME if config.eval else RESULTS_NAME
    return read_json(Path(config.output_dir).expanduser() / name, dict)


def main(argv: list[str] | None = None) -> None:
    """`python -m beit3lib.train` with the options of the reference implementation."""
    try:
        with exit_on_error(TrainingStopped):
            results = finetune(parse_arguments(sys.argv[1:] if argv is None else argv))
    except torch.OutOfMemoryError as error:
        todo = "Lower --eval_batch_size if this was in validation, or add --checkpoint_activations."
        sys.exit(f"OutOfMemoryError: {error}\n{todo}")
    except KeyboardInterrupt:  # before training has started, or in --eval
        sys.exit(130)
    if results and int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
