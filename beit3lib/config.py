"""`TrainConfig`: the options of the public fine-tuning recipe under their own names, and ours after them.

pydantic checks types and ranges, `HfArgumentParser` makes the command line of `python -m beit3lib.train` from the same
fields, so that a notebook and a command accept the same values. The defaults are the recipe's.
"""

import dataclasses
import difflib
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from beit3lib.data.schema import ASPECTS, SUBJECTS

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class OptionError(ValueError):
    """An option that does not exist or has a value that it cannot have; the message names it."""


def option(default: Any, help: str) -> Any:
    """A field of `TrainConfig`; `help` is its line in `--help`."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TrainConfig:
    """Options of fine-tuning."""

    model: str = option("beit3_base_patch16_224", "name of the model")
    task: Literal["coco_captioning"] = option("coco_captioning", "the only task here")
    input_size: Count | None = option(None, "image size in pixels; default: the model's own")
    drop_path: Share = option(0.1, "stochastic depth at the last layer")
    checkpoint_activations: bool = option(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    sentencepiece_model: str = option("", "path of beit3.spm")
    vocab_size: Count | None = option(None, "size of the vocabulary; default: that of the model or tokenizer")
    num_max_bpe_tokens: Annotated[int, Field(ge=3, le=1000)] = option(
        64, "maximum tokens of a caption, with <s> and </s>"
    )
    model_ema: bool = option(False, "validate and keep an exponential moving average of the weights")
    model_ema_decay: Share = option(0.9999, "decay of the moving average per step")
    opt: Literal["adamw"] = option("adamw", "optimizer")
    opt_eps: NotNegative = option(1e-8, "epsilon of AdamW")
    opt_betas: Annotated[list[float], Field(min_length=2, max_length=2)] = option(
        [0.9, 0.999], "betas of AdamW"
    )
    clip_grad: NotNegative | None = option(None, "maximum norm of the gradient; default: no clipping")
    weight_decay: NotNegative = option(0.05, "weight decay")
    lr: NotNegative = option(5e-4, "learning rate after warm-up")
    layer_decay: NotNegative = option(0.9, "factor of the learning rate per layer below the top")
    warmup_lr: NotNegative = option(
        1e-6, "accepted for compatibility: the recipe warms up from 0 whatever this is"
    )
    min_lr: NotNegative = option(1e-6, "learning rate at the end of the cosine")
    warmup_epochs: CountOrZero = option(5, "epochs of warm-up")
    warmup_steps: Annotated[int, Field(ge=-1)] = option(-1, "steps of warm-up instead of epochs, if above 0")
    batch_size: Count = option(
        64, "images per process and micro-batch; a step sees batch_size x processes x update_freq"
    )
    eval_batch_size: Count | None = option(
        None, "images per batch in validation; default: what memory allows"
    )
    epochs: Count = option(20, "passes over the training images")
    update_freq: Count = option(1, "micro-batches per step (gradient accumulation)")
    save_ckpt_freq: Count = option(
        5, "epochs between the checkpoint-N folders that are kept beside best/ and last/"
    )
    randaug: bool = option(False, "RandAugment")
    train_interpolation: Literal["bicubic", "bilinear"] = option(
        "bicubic", "interpolation of the random crop"
    )
    finetune: str = option("", "checkpoint to start from, a public file or a folder; empty: random weights")
    model_key: str = option("model|module", "keys under which a checkpoint file may hold its weights")
    model_prefix: str = option("", "prefix of parameter names in the checkpoint")
    data_path: str = option("", "folder of the index files; image paths are relative to it")
    output_dir: str = option("", "folder for best/, last/, log.jsonl and results.json")
    log_dir: str = option("", "folder for the events of TensorBoard")
    device: Literal["auto", "cuda", "cpu"] = option("auto", "auto and cuda use the CPU if there is no GPU")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = option(0, "seed of all random numbers")
    resume: str = option("", "another run's last/ to resume from, if output_dir has none")
    auto_resume: bool = option(
        True, "resume from output_dir/last if there is one; --no_auto_resume starts from scratch"
    )
    eval: bool = option(False, "only validate: the weights of --finetune if given, else last/")
    dist_eval: bool = option(True, "share the images of validation among processes")
    num_workers: CountOrZero = option(
        10, "processes that load images, at most one per CPU core; 0: load in the main process"
    )
    pin_mem: bool = option(True, "copy batches to the GPU from pinned memory")
    captioning_mask_prob: Share = option(0.6, "share of the tokens of a caption that is masked")
    drop_worst_ratio: Share = option(
        0.2, "share of the masked tokens, those with the highest loss, that is ignored"
    )
    drop_worst_after: CountOrZero = option(12000, "step after which --drop_worst_ratio applies")
    num_beams: Count = option(3, "beams in validation")
    length_penalty: NotNegative = option(0.6, "length penalty of beam search")
    label_smoothing: Share = option(0.1, "label smoothing")

    subject: Literal[(*SUBJECTS, "all")] = option("all", "whose captions to train on")
    aspect: Literal[(*ASPECTS, "all")] = option("all", "aspect to train on")
    crop_area: Annotated[float, Field(gt=0, le=1)] = option(
        0.5, "smallest share of an image that a random crop keeps; 1: no crop"
    )
    flip: Literal["swap", "recipe", "none"] = option(
        "swap",
        "horizontal flip: swap also swaps left and right in captions, recipe flips images alone, none disables flips",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "auto: bf16 or fp16 if the device has native support"
    )
    patience: CountOrZero = option(0, "stop after so many epochs without a better score; 0: never")
    max_minutes: NotNegative = option(0.0, "stop before so many minutes with everything saved; 0: no limit")
    max_steps: CountOrZero = option(
        0, "stop after so many steps of an unchanged schedule, for a quick look; 0: no limit"
    )
    save_every_minutes: NotNegative = option(
        15.0, "minutes between saves of last/ within an epoch; 0: after each epoch only"
    )
    val_images: CountOrZero = option(100, "images captioned in validation; 0: all")
    samples: CountOrZero = option(3, "validation images whose captions are logged after each epoch")
    report_to: Literal["auto", "tensorboard", "wandb", "trackio", "none"] = option(
        "auto", "tracker beside log.jsonl; auto: tensorboard if --log_dir is given and it is installed"
    )

    def caption_types(self) -> list[tuple[str, str]]:
        """(subject, aspect) of every caption type to train on."""
        subjects = SUBJECTS if self.subject == "all" else (self.subject,)
        aspects = ASPECTS if self.aspect == "all" else (self.aspect,)
        return [(subject, aspect) for subject in subjects for aspect in aspects]

    def arguments(self) -> list[str]:
        """The command line that `parse_arguments` reads back as this config, without the options that have their default."""
        argv, defaults = [], TrainConfig()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != getattr(defaults, field.name):
                argv += [f"--{field.name}", *map(str, value if isinstance(value, list) else [value])]
        return argv


def parse_arguments(argv: list[str]) -> TrainConfig:
    """Parse the recipe's command line; `OptionError` names an option that is unknown, incomplete or out of range."""
    from transformers import (
        HfArgumentParser,  # importing it takes a second, which only the command line needs
    )

    usage = "python -m beit3lib.train --model … --data_path … --output_dir … [--option value …]; --help lists all options"
    parser = HfArgumentParser(TrainConfig, allow_abbrev=False, prog="python -m beit3lib.train", usage=usage)

    def refuse(message: str) -> None:
        raise OptionError(message)

    parser.error = refuse  # argparse would print the usage and exit
    try:
        config, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except ValidationError as error:
        wrong = [f"--{e['loc'][0]}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
        raise OptionError("; ".join(wrong)) from None
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        close = difflib.get_close_matches(
            name, [field.name for field in dataclasses.fields(TrainConfig)], n=1
        )
        hint = f"Did you mean --{close[0]}? " if close else ""
        raise OptionError(
            f"{unknown[0]}: expected an option of python -m beit3lib.train, found an unknown one. {hint}--help lists all."
        )
    return config
