"""The options of the public captioning recipe under their own names, and ours beside them; as a class and as flags.

`python -m beit3lib.train` takes the recipe's own command line. Options that belong to other tasks of the recipe are
refused by name.
"""

import dataclasses
import difflib
import math
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from beit3lib.data.aspects import ASPECTS, SUBJECTS
from beit3lib.pipeline.settings import OptionError, build, check_fields


def option(default: Any, text: str) -> Any:
    """A field with its help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Options of fine-tuning. Defaults are the recipe's; the second block is ours."""

    model: str = option("beit3_base_patch16_224", "name of the model")
    task: Literal["coco_captioning"] = option("coco_captioning", "the only task here")
    input_size: int | None = option(None, "image size in pixels; default: the model's own")
    drop_path: float = option(0.1, "stochastic depth at the last layer")
    checkpoint_activations: bool = option(False, "compute activations again in the backward pass, to save memory")
    sentencepiece_model: str = option("", "path of beit3.spm")
    vocab_size: int = option(64010, "rows of the text embedding; follows the tokenizer when nothing is loaded")
    num_max_bpe_tokens: int = option(64, "tokens of a caption at most, with <s> and </s>")
    model_ema: bool = option(False, "keep and validate a moving average of the weights")
    model_ema_decay: float = option(0.9999, "decay of the moving average per step")
    opt: Literal["adamw"] = option("adamw", "optimiser")
    opt_eps: float = option(1e-8, "AdamW's epsilon")
    opt_betas: tuple[float, float] = option((0.9, 0.999), "AdamW's betas")
    clip_grad: float | None = option(None, "largest norm of the gradient; default: none")
    weight_decay: float = option(0.05, "weight decay")
    lr: float = option(5e-4, "learning rate after warm-up")
    layer_decay: float = option(0.9, "factor of the learning rate per layer down")
    warmup_lr: float = option(0.0, "learning rate at the first step")
    min_lr: float = option(1e-6, "learning rate at the end")
    warmup_epochs: int = option(5, "epochs of warm-up")
    warmup_steps: int = option(-1, "steps of warm-up instead, if not negative")
    batch_size: int = option(64, "images per step and process")
    eval_batch_size: int | None = option(None, "images at once in validation; default: batch_size, or what memory allows")
    epochs: int = option(20, "passes over the images")
    update_freq: int = option(1, "batches per step")
    save_ckpt_freq: int = option(5, "epochs between checkpoints that are kept beside best and last")
    randaug: bool = option(False, "RandAugment")
    train_interpolation: Literal["bicubic", "bilinear"] = option("bicubic", "interpolation of the random crop")
    finetune: str = option("", "public checkpoint to start from; empty: random weights")
    model_key: str = option("model|module", "keys under which a checkpoint may hold its weights")
    model_prefix: str = option("", "prefix of parameter names in the checkpoint")
    data_path: str = option("", "folder of the index files; pictures are named relative to it")
    output_dir: str = option("", "where best/, last/ and log.jsonl go")
    log_dir: str = option("", "where log.jsonl goes; default: output_dir")
    device: Literal["auto", "cuda", "cpu"] = option("auto", "cuda without a GPU is the CPU, which is said")
    seed: int = option(0, "of all random choices")
    resume: str = option("", "folder of a last/ to go on from")
    auto_resume: bool = option(True, "go on from output_dir/last where there is one; --no_auto_resume begins anew")
    eval: bool = option(False, "only validate")
    dist_eval: bool = option(True, "share validation among processes")
    num_workers: int = option(10, "processes that load pictures, one per CPU core at most; 0: none beside this one")
    pin_mem: bool = option(True, "copy batches from pinned memory")
    captioning_mask_prob: float = option(0.6, "share of a caption's tokens that is masked")
    drop_worst_ratio: float = option(0.2, "share of the worst positions left out of the loss")
    drop_worst_after: int = option(12000, "steps after which they are")
    num_beams: int = option(3, "beams in validation")
    length_penalty: float = option(0.6, "length penalty of the beam search")
    label_smoothing: float = option(0.1, "label smoothing")

    subject: Literal["vehicle", "pedestrian", "all"] = option("all", "whose captions to learn")
    aspect: str = option("all", "moving, pedestrian_description, position, road, weather, or all")
    crop_area: float = option(0.5, "smallest share of a picture that a random crop keeps; 1: no crop")
    flip: Literal["swap", "recipe", "none"] = option("swap", "mirror pictures: left and right change in words too; not")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option("auto", "what to compute in; auto: by capability")
    patience: int = option(0, "epochs without a better score after which to stop; 0: never")
    max_minutes: float = option(0.0, "stop in time, with everything saved; 0: no limit")
    max_steps: int = option(0, "steps at most, for a quick look; 0: all")
    val_images: int = option(100, "pictures captioned in validation; 0: all")
    samples: int = option(3, "held-out pictures, spread over all, whose captions are logged after each epoch")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.aspect not in (*ASPECTS, "all"):
            raise OptionError(f"aspect: expected one of {', '.join(ASPECTS)}, all; found {self.aspect!r}")
        for name in ("captioning_mask_prob", "drop_path", "label_smoothing", "drop_worst_ratio", "model_ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name}: expected a share from 0 to below 1, found {getattr(self, name)}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise OptionError(f"{name}: expected {least} or more, found {value}")
        if not 0 < self.crop_area <= 1:
            raise OptionError(f"crop_area: expected a share above 0 and up to 1, found {self.crop_area}")

    def descriptions(self) -> list[tuple[str, str]]:
        """(subject, aspect) of every description to learn."""
        subjects = SUBJECTS if self.subject == "all" else (self.subject,)
        return [(s, a) for s in subjects for a in (ASPECTS if self.aspect == "all" else (self.aspect,))]


LEAST = {  # smallest values that mean something
    **dict.fromkeys(("batch_size", "eval_batch_size", "epochs", "update_freq", "save_ckpt_freq", "num_beams", "input_size"), 1),
    **dict.fromkeys(("lr", "min_lr", "warmup_lr", "weight_decay", "layer_decay", "clip_grad", "opt_eps", "length_penalty"), 0),
    **dict.fromkeys(("warmup_epochs", "num_workers", "patience", "max_minutes", "max_steps", "val_images", "samples"), 0),
    **{"drop_worst_after": 0, "warmup_steps": -1, "num_max_bpe_tokens": 3},
}
CLASSIFICATION = "image classification"
OTHER_TASKS = {  # options of the recipe that mean nothing for captioning, and what they are for
    **dict.fromkeys(
        ("nb_classes", "mixup", "cutmix", "cutmix_minmax", "mixup_prob", "mixup_switch_prob", "mixup_mode"), CLASSIFICATION
    ),
    **dict.fromkeys(("color_jitter", "aa", "smoothing", "crop_pct", "reprob", "remode", "recount", "resplit"), CLASSIFICATION),
    "task_head_lr_weight": "visual question answering and NLVR2",
    "task_cache_path": "visual question answering, as a place for its answers: ours lie in output_dir",
    "momentum": "SGD, which the recipe does not use either: opt is adamw",
    "save_ckpt": "runs that keep nothing: here best/ and last/ are always kept",
    "model_ema_force_cpu": "GPUs too small for a second set of weights",
    "start_epoch": "runs without a state of their own: a run goes on where its last/ ends",
    "answer_list": "visual question answering",
    "retrieval_mode": "retrieval",
    "text_encoder": "retrieval",
    "enable_deepspeed": "DeepSpeed, whose place accelerate takes: `accelerate config`",
    "initial_scale_power": "DeepSpeed, whose place accelerate takes",
    "zero_stage": "DeepSpeed, whose place accelerate takes",
    "dist_on_itp": "a cluster of Microsoft's: `accelerate config` describes yours",
    "local_rank": "the old launcher: `accelerate launch -m beit3lib.train …`",
    "dist_url": "the old launcher: `accelerate launch -m beit3lib.train …`",
    "world_size": "the old launcher: `accelerate launch -m beit3lib.train …`",
}


def parse_command(arguments: list[str]) -> TrainConfig:
    """The recipe's command line as a `TrainConfig`; `--no_x` and `--x` set a switch, every other option takes a value."""
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    hints = typing.get_type_hints(TrainConfig)
    values: dict[str, Any] = {}
    left = list(arguments)
    while left:
        name, given = _flag(left.pop(0))
        _refuse(name, fields)
        positive = name.removeprefix("no_") if name not in fields else name
        if hints[positive] is bool:
            word = given or (left[0] if left else "")
            if word.lower() in ("true", "false"):
                raise OptionError(f"--{name}: expected no value, found {word!r}; --{positive} turns it on, --no_{positive} off")
            values[positive] = name == positive
            continue
        wanted = 2 if typing.get_origin(hints[positive]) is tuple else 1
        taken = [given] if given is not None else [left.pop(0) for _ in range(min(wanted, len(left)))]
        if len(taken) < wanted and given is None:
            raise OptionError(f"--{name}: expected {wanted} value(s) after it, found the end of the command")
        values[positive] = _read(taken if wanted > 1 else taken[0], hints[positive])
    return build(TrainConfig, values)


def _flag(text: str) -> tuple[str, str | None]:
    if not text.startswith("--"):
        raise OptionError(f"{text!r}: expected an option that begins with --; quote values that hold spaces")
    name, sign, value = text[2:].partition("=")
    return name.replace("-", "_"), value if sign else None


def _refuse(name: str, fields: dict[str, Any]) -> None:
    reason = OTHER_TASKS.get(name) or OTHER_TASKS.get(name.removeprefix("no_"))
    if reason:
        raise OptionError(f"--{name} is not for captioning: it belongs to {reason}; leave it out")
    if name not in fields and name.removeprefix("no_") not in fields:
        close = difflib.get_close_matches(name, [*fields, *OTHER_TASKS], n=1)
        hint = f"; did you mean --{close[0]}?" if close else ""
        raise OptionError(f"--{name} is unknown{hint} (`python -m beit3lib.train --help` lists all)")


def _read(text: Any, hint: Any) -> Any:
    """The value that a word of a command line stands for."""
    if isinstance(text, list):
        return tuple(float(part) for part in text)
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in kinds:
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def as_flag(name: str, value: Any) -> list[str]:
    """An option as words of a command line; none where it is unset."""
    if value is None or value == "":
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]


def help_text() -> str:
    """All options with default and meaning, a line each."""
    hints, lines = typing.get_type_hints(TrainConfig), []
    for field in dataclasses.fields(TrainConfig):
        choices = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is Literal else ()
        told = f" ({', '.join(choices)})" if len(choices) > 1 else ""
        lines.append(f"  --{field.name:<24}{field.metadata['help']}{told} [{field.default}]")
    head = "options, as in the public recipe, and ours from --subject on; --no_x turns a switch off that is [True]:\n"
    return head + "\n".join(lines)


def exit_with_help() -> None:
    """`--help`."""
    print(help_text())
    sys.exit(0)
