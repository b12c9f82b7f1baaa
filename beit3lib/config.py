"""`TrainConfig`: the options of the reference implementation under their own names, and ours after them.

pydantic checks types and ranges, `HfArgumentParser` makes the command line of `python -m beit3lib.train` from
the same fields, so that a notebook and a command accept the same values. The defaults are the reference
implementation's.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from beit3lib.data.schema import ASPECTS, SUBJECTS

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
    input_size: PositiveInt | None = option(None, "image size in pixels; default: the model's own")
    drop_path: Share = option(0.1, "stochastic depth at the last layer")
    checkpoint_activations: bool = option(False, "recompute activations: less memory, more time")
    sentencepiece_model: str = option("", "path of beit3.spm")
    vocab_size: PositiveInt | None = option(None, "default: that of the model or tokenizer")
    num_max_bpe_tokens: Annotated[int, Field(ge=3, le=1000)] = option(
        64, "maximum tokens of a caption, with <s> and </s>"
    )
    model_ema: bool = option(False, "validate and keep an exponential moving average of the weights")
    model_ema_decay: Share = option(0.9999, "decay of the moving average per step")
    opt: Literal["adamw"] = option("adamw", "optimizer")
    opt_eps: NonNegativeFloat = option(1e-8, "epsilon of AdamW")
    opt_betas: Annotated[list[float], Field(min_length=2, max_length=2)] = option([0.9, 0.999], "of AdamW")
    clip_grad: NonNegativeFloat | None = option(None, "maximum norm of the gradient; default: any")
    weight_decay: NonNegativeFloat = option(0.05, "weight decay")
    lr: NonNegativeFloat = option(5e-4, "learning rate after warm-up")
    layer_decay: NonNegativeFloat = option(0.9, "factor of the learning rate per layer below the top")
    warmup_lr: NonNegativeFloat = option(1e-6, "for compatibility, without effect: warm-up starts at 0")
    min_lr: NonNegativeFloat = option(1e-6, "learning rate at the end of the cosine")
    warmup_epochs: NonNegativeInt = option(5, "epochs of warm-up")
    warmup_steps: Annotated[int, Field(ge=-1)] = option(-1, "steps of warm-up instead of epochs, if above 0")
    batch_size: PositiveInt = option(64, "images per process and micro-batch")
    eval_batch_size: PositiveInt | None = option(None, "images per batch in validation")
    epochs: PositiveInt = option(20, "passes over the training images")
    update_freq: PositiveInt = option(1, "micro-batches per step (gradient accumulation)")
    save_ckpt_freq: PositiveInt = option(5, "epochs between the checkpoint-N folders beside best/")
    randaug: bool = option(False, "RandAugment")
    train_interpolation: Literal["bicubic", "bilinear"] = option("bicubic", "of the random crop")
    finetune: str = option("", "checkpoint to start from, a public file or a folder; empty: random weights")
    model_key: str = option("model|module", "keys under which a checkpoint file may hold its weights")
    model_prefix: str = option("", "prefix of parameter names in the checkpoint")
    data_path: str = option("", "folder of the index files; image paths are relative to it")
    output_dir: str = option("", "run folder, for checkpoints, log.jsonl and results.json")
    log_dir: str = option("", "folder for the events of TensorBoard")
    device: Literal["auto", "cuda", "cpu"] = option("auto", "auto and cuda use the CPU if there is no GPU")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = option(0, "seed of all random numbers")
    resume: str = option("", "state of another run to resume from, if output_dir has none")
    auto_resume: bool = option(True, "resume the run in output_dir; --no_auto_resume starts from scratch")
    eval: bool = option(False, "only validate: the weights of --finetune if given, else those of the run")
    dist_eval: bool = option(True, "share the images of validation among processes")
    num_workers: NonNegativeInt = option(10, "processes that load images, at most one per CPU core")
    pin_mem: bool = option(True, "copy batches to the GPU from pinned memory")
    captioning_mask_prob: Share = option(0.6, "share of the tokens of a caption that is masked")
    drop_worst_ratio: Share = option(0.2, "share of the masked tokens, the worst ones, that is ignored")
    drop_worst_after: NonNegativeInt = option(12000, "step after which --drop_worst_ratio applies")
    num_beams: PositiveInt = option(3, "beams in validation")
    length_penalty: NonNegativeFloat = option(0.6, "length penalty of beam search")
    label_smoothing: Share = option(0.1, "label smoothing")

    subject: Literal[(*SUBJECTS, "all")] = option("all", "whose captions to train on")
    aspect: Literal[(*ASPECTS, "all")] = option("all", "aspect to train on")
    crop_area: Annotated[float, Field(gt=0, le=1)] = option(0.5, "smallest share of an image in a crop")
    flip: Literal["swap", "recipe", "none"] = option(
        "swap", "horizontal flip: swap also swaps left and right in captions, recipe flips images alone"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option("auto", "auto: what the device supports")
    best_by: Literal["s2", "score", "facts", "accuracy"] = option(
        "s2",
        "best/ has the best official score of captions, F1 of their facts, accuracy of answers, or with s2 "
        "the mean of score and accuracy, without questions the score",
    )
    patience: NonNegativeInt = option(0, "stop after so many epochs without a better score; 0: never")
    max_minutes: NonNegativeFloat = option(0.0, "save and stop before so many minutes; 0: no limit")
    max_steps: NonNegativeInt = option(0, "stop after so many steps of the same schedule; 0: no limit")
    save_every_minutes: NonNegativeFloat = option(15.0, "minutes between saves within an epoch; 0: none")
    questions: NonNegativeInt = option(4, "questions of an image per step, if there is an index of questions")
    # With weight 1, the facts of captions get slightly worse (F1 85.8 against 87.3 without questions); with
    # 0.3 they do not (87.4), and answers are as accurate (96.0 % in plain scenes of the sample).
    question_weight: NonNegativeFloat = option(0.3, "weight of the loss of questions beside that of captions")
    val_images: NonNegativeInt = option(100, "images captioned in validation; 0: all")
    samples: NonNegativeInt = option(3, "validation images whose captions are logged after each epoch")

    def caption_types(self) -> list[tuple[str, str]]:
        """(subject, aspect) of every caption type to train on."""
        subjects = SUBJECTS if self.subject == "all" else (self.subject,)
        aspects = ASPECTS if self.aspect == "all" else (self.aspect,)
        return [(subject, aspect) for subject in subjects for aspect in aspects]

    def arguments(self) -> list[str]:
        """The command line that `parse_arguments` reads back as this config."""
        argv, defaults = [], TrainConfig()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != getattr(defaults, field.name):
                argv += [f"--{field.name}", *map(str, value if isinstance(value, list) else [value])]
        return argv


def closest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" for the known name X most similar to `name`, or "" if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def parse_arguments(argv: list[str]) -> TrainConfig:
    """Parse the command line of training; `OptionError` names an option that is unknown or out of range."""
    from transformers import HfArgumentParser  # takes a second, which only the command line needs

    usage = "python -m beit3lib.train --model … --data_path … --output_dir … [--option value …]"
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
        name = unknown[0].partition("=")[0].lstrip("-").replace("-", "_")
        hint = closest(f"--{name}", [f"--{field}" for field in TrainConfig.__dataclass_fields__])
        raise OptionError(f"{unknown[0]}: expected an option, found an unknown one.{hint} --help lists all.")
    return config
