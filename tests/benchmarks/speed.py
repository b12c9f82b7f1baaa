"""Speed side by side with the public recipe and with other captioners, in one run, on any machine.

    python -m benchmarks.speed                          beit3_base_patch16_224, everything, with a table and bench.json
    python -m benchmarks.speed --model tiny --quick     seconds, to see that it works
    python -m benchmarks.speed --only generate train    some quantities; --precision bf16; --threads 2; --repeats 5

`reference` is the recipe's way on the same weights: torchscale's own forward with its full mask, a row of image and text per
caption, the image repeated for every beam, keys and values copied at each step, candidates gone through in Python, q and
log p of the loss made in full. `peers` are BLIP-base and GIT-base of transformers, built from their configurations with random
weights at the same image size, beams and number of new tokens. Ways of one quantity take turns; figures are medians, a ratio
is the median over turns of the ratio within a turn, and whether both ways give the same is checked before anything is timed.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import beit3lib
from beit3lib import linear
from beit3lib.config import TrainConfig
from beit3lib.dataset import Augmentation, Batch, caption_ids, collate, load_image, pack, to_tensor
from beit3lib.decode import generate
from beit3lib.files import write_json
from beit3lib.loss import LossModel, head_losses
from beit3lib.model import MODELS, Captioner, choose_device, model_config
from beit3lib.train import choose_precision, keep_freed_memory, make_optimizer, parameter_groups

QUANTITIES = ("generate", "ten", "train", "train_ten", "peers", "growth", "memory", "fit", "images", "scoring", "shortcuts")
SHORT = {"tiny": "beit3_tiny_patch8_64", "base": "beit3_base_patch16_224", "large": "beit3_large_patch16_224"}
WORDS_PER_CAPTION = 22
FIT_WAYS = {"kept": False, "computed again": True}  # activations between the two passes of a step


class Words:
    """The ids that decoding asks a tokenizer for, at the size of a model's vocabulary: what random weights need of it."""

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = 0, 1, 2, 3

    def __init__(self, vocab_size: int) -> None:
        self.mask_token_id = vocab_size - 9

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """One id per word, always the same."""
        return [10 + sum(map(ord, word)) % 90 for word in text.split()]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The ids as text."""
        return " ".join(map(str, ids))


# --- the reference: the public recipe's way ------------------------------------------------------------------------


def masked_forward(model: Captioner, images: Tensor | None, text_ids: Tensor, padding: Tensor | None, length: int, state=None):
    """torchscale's own forward under the recipe's mask; states (B, T, D) of the text.

    `length`: text tokens so far, these included. `state`: one dict per layer, in which torchscale keeps keys and values;
    with it and without `images` only the last tokens are fed.
    """
    image_tokens = model.config.image_tokens
    total = image_tokens + length
    mask = torch.zeros(total, total, device=text_ids.device)
    mask[:image_tokens, image_tokens:] = 1
    mask[image_tokens:, image_tokens:] = torch.ones(length, length, device=text_ids.device).triu(1)
    positions = None
    if images is None:
        fed = text_ids.shape[1]
        mask, positions = mask[-fed:], torch.arange(length - fed, length, device=text_ids.device)[None] + 2
    out = model.beit3(
        textual_tokens=text_ids,
        visual_tokens=images,
        text_padding_position=padding,
        attn_mask=mask,
        incremental_state=state,
        positions=positions,
    )["encoder_out"]
    return out if images is None else out[:, image_tokens:]


@torch.inference_mode()
def reference_generate(
    model: Captioner, images: Tensor, tokenizer, num_beams: int = 3, max_tokens: int = 64, penalty: float = 0.6, start=()
) -> list[list[int]]:
    """Beam search as the recipe runs it: ids of the best hypothesis of each image. `start`: ids after `<s>`."""
    count, device = len(images), images.device
    rows = images.repeat_interleave(num_beams, 0)  # the image of every beam, encoded again
    words = torch.tensor([tokenizer.bos_token_id, *start], device=device).repeat(len(rows), 1)
    scores = torch.full((count, num_beams), -1e9, device=device)
    scores[:, 0] = 0
    scores = scores.flatten()
    kept: list[tuple[float, list[int]]] = [(-float("inf"), [])] * count
    done = [False] * count
    state: dict[int, dict] = {number: {} for number in range(model.config.layers)}
    skipped = 1 + len(start)
    for written in range(max_tokens - 1):
        length = words.shape[1] + 1
        mask = torch.full((len(rows), 1), tokenizer.mask_token_id, device=device)
        fed = torch.cat([words if written == 0 else words[:, -1:], mask], 1)
        states = masked_forward(model, rows if written == 0 else None, fed, None, length, state)
        logits = model.mlm_head(states)[:, -1].float()
        totals = logits.log_softmax(-1) + scores[:, None]
        values, places = totals.view(count, -1).topk(3 * num_beams, dim=1)
        following = []
        for image in range(count):
            done[image] |= kept[image][0] >= values[image].max().item() / (max_tokens - 1) ** penalty
            mine: list[tuple[float, int, int]] = []
            for value, place in zip(values[image], places[image], strict=True):
                beam, word = place.item() // logits.shape[1], place.item() % logits.shape[1]
                row = image * num_beams + beam
                if done[image]:
                    break
                if word == tokenizer.eos_token_id or written == max_tokens - 2:
                    score = value.item() / (written + 2) ** penalty
                    if score > kept[image][0]:
                        kept[image] = (score, words[row, skipped:].tolist())
                else:
                    mine.append((value.item(), word, row))
                if len(mine) == num_beams:
                    break
            mine += [(0.0, tokenizer.pad_token_id, image * num_beams)] * (num_beams - len(mine))
            following += mine
        if all(done) or written == max_tokens - 2:
            break
        scores = torch.tensor([value for value, _, _ in following], device=device)
        source = torch.tensor([row for _, _, row in following], device=device)
        words = torch.cat([words[source], torch.tensor([[word] for _, word, _ in following], device=device)], 1)
        for layer in state.values():
            for name in layer:
                layer[name] = layer[name].index_select(0, source)[:, :, :-1]  # without the mask's
    return [ids for _, ids in kept]


def reference_losses(model: Captioner, images: Tensor, text_ids: Tensor, padding: Tensor, chosen: Tensor, targets: Tensor):
    """The recipe's loss per position, q and log p in full; one row of image and text per caption."""
    states = masked_forward(model, images, text_ids, padding, text_ids.shape[1])
    return full_losses(model.mlm_head(states[chosen]), targets[chosen])


def full_losses(logits: Tensor, targets: Tensor, smoothing: float = 0.1) -> Tensor:
    """KL(q || p) of (n, V) and (n,) with q, log p and their product made in full."""
    log_p = logits.float().log_softmax(1)
    q = torch.full_like(log_p, smoothing / (log_p.shape[1] - 1)).scatter_(1, targets[:, None], 1 - smoothing)
    return torch.nn.functional.kl_div(log_p, q, reduction="none").sum(1)


# --- inputs --------------------------------------------------------------------------------------------------------


def make_model(name: str, device: torch.device, seed: int = 0) -> Captioner:
    """A model with random weights, sharper than at the recipe's start, so that beams differ."""
    model = Captioner.unset(model_config(name))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.03, generator=rng)
            else:
                is_norm = "norm" in parameter_name or "_ln." in parameter_name
                parameter.fill_(float(is_norm and parameter_name.endswith("weight")))
    return model.to(device).eval()


def make_images(model: Captioner, count: int, seed: int = 1) -> Tensor:
    """Random pictures that differ from each other."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=rng) * 2 - 1
    size = model.config.image_size
    return torch.nn.functional.interpolate(coarse, size=(size, size)).to(model.device)


def make_batch(model: Captioner, images: int, captions: int, seed: int = 2) -> tuple[Batch, dict[str, Tensor]]:
    """The same masked captions twice: packed, a row per image, and a row of 64 tokens per caption for the reference."""
    tokenizer, rng = Words(model.config.vocab_size), np.random.default_rng(seed)
    pictures, samples, singles = make_images(model, images).cpu(), [], []
    for picture in pictures:
        lengths = rng.integers(WORDS_PER_CAPTION - 8, WORDS_PER_CAPTION + 9, captions)
        drawn = [(caption_ids(tokenizer, rng.integers(10, tokenizer.mask_token_id, n), (), 64), 0) for n in lengths]
        row = pack(drawn, 0.7, tokenizer.mask_token_id, tokenizer.mask_token_id, rng)
        samples.append((picture, row, ""))
        singles += [type(row)(*(part[row.segments == number] for part in row)) for number in range(captions)]
    separate = collate([(pictures[i // captions], row, "") for i, row in enumerate(singles)])
    longest = 64 - separate.ids.shape[1]
    chosen = torch.zeros(separate.ids.numel(), dtype=torch.bool)
    chosen[separate.places] = True
    fill = {"ids": (separate.ids, 1), "targets": (separate.targets, 1), "padding": (separate.segments < 0, True)}
    fill["chosen"] = (chosen.view_as(separate.ids), False)
    padded = {name: torch.nn.functional.pad(part, (0, longest), value=value) for name, (part, value) in fill.items()}
    padded = {name: part.to(model.device) for name, part in padded.items()}
    return collate(samples).to(model.device), {"images": separate.images.to(model.device), **padded}


def _without_onednn(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work by the layers themselves."""

    def plain() -> Any:
        kept, linear._worth_it = linear._worth_it, lambda *_: False
        try:
            return work()
        finally:
            linear._worth_it = kept

    return plain


# --- measuring -----------------------------------------------------------------------------------------------------


def take_turns(ways: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way in each turn; the order changes from turn to turn, the first turn warms up and is not counted."""
    names, seconds = list(ways), {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name in names if turn % 2 else reversed(names):
            _wait(device)
            began = time.perf_counter()
            ways[name]()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rows_of(quantity: str, seconds: dict[str, list[float]], against: str = "reference", **more: Any) -> list[dict[str, Any]]:
    """A row per way: median, half the spread of the middle half, ratio to `against` (above 1: faster)."""
    rows = []
    for name, taken in seconds.items():
        quartiles = statistics.quantiles(taken, n=4) if len(taken) > 1 else [taken[0]] * 3
        ratio = statistics.median(b / a for a, b in zip(taken, seconds[against], strict=True))
        spread = (quartiles[2] - quartiles[0]) / 2
        row = {"quantity": quantity, "way": name, "seconds": statistics.median(taken), "spread": spread}
        rows.append({**row, "against": against, "ratio": ratio, **more})
    return rows


def peak_mb_of(work: Callable[[], Any], device: torch.device, warm: bool = True) -> int | None:
    """Most memory that a call holds beyond what was held before, in MB; None where the system does not tell.

    `warm`: call it once before, so that what is kept between calls is there.
    """
    if warm:
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6)
    with suppress(AttributeError):  # glibc keeps what was freed, and new tensors would hide in it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of this process
    except OSError:
        return None
    before = _status_kb("VmRSS")
    work()
    return round((_status_kb("VmHWM") - before) * 1024 / 1e6)


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of the best of a few large matrix products, by PyTorch's way and by oneDNN: what this machine reaches."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    ways = [lambda: a @ b] + ([lambda: linear.multiply(a, b)] if device.type == "cpu" and linear.has_onednn() else [])
    best = float("inf")
    for way in ways * 5:
        _wait(device)
        began = time.perf_counter()
        way()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def count_flops(work: Callable[[], Any]) -> int:
    """FLOPs of matrix products and attention in a call, backward included; without oneDNN, whose products are not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    small, linear.SMALL = linear.SMALL, 10**18
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        linear.SMALL = small
    return counter.get_total_flops()


class Bench:
    """One run: the model, the device, precision, and the rows so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.rows = options, []
        self.device = choose_device("cpu" if options.cpu else "auto")
        if self.device.type == "cpu":
            keep_freed_memory()  # for every way alike
        self.native = choose_precision("auto", self.device)[0]
        self.model = make_model(SHORT.get(options.model, options.model), self.device)
        self.tokenizer = Words(self.model.config.vocab_size)
        self.images = make_images(self.model, options.batch)
        self.lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision or self.native)

    def autocast(self, lower: bool):
        """The lower precision, or none."""
        return torch.autocast(self.device.type, self.lower) if lower else nullcontext()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows and show them."""
        self.rows += rows
        for row in rows:
            more = "  ".join(f"{k} {v}" for k, v in row.items() if k not in ("quantity", "way", "seconds", "spread", "ratio"))
            print(
                f"{row['quantity']:38}{row['way']:24}{row['seconds']:9.3f} s ±{row['spread']:.3f}{row['ratio']:8.2f}×  {more}",
                flush=True,
            )

    def run(self) -> dict[str, Any]:
        """Every quantity asked for."""
        for name in self.options.only or QUANTITIES:
            getattr(self, f"measure_{name}")()
        return {"machine": self.machine(), "rows": self.rows}

    def machine(self) -> dict[str, Any]:
        """What the figures hold for."""
        import transformers

        name = torch.cuda.get_device_name() if self.device.type == "cuda" else _cpu_name()
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "beit3lib": beit3lib.__version__}
        about = {"device": name, "threads": torch.get_num_threads(), "lower_precision": str(self.lower), "versions": versions}
        return {"model": self.options.model, "batch": self.options.batch, "tokens": self.options.tokens, **about}

    # --- generation

    def ours(self, images: Tensor, lower: bool = False, descriptions=(), **more) -> list[list[int]]:
        """Captions by `generate`, as ids."""
        options = {"max_tokens": self.options.tokens, "descriptions": list(descriptions), **more}
        with self.autocast(lower):
            found = generate(self.model, images, self.tokenizer, **options)
        return [caption.ids for caption in found]

    def reference(self, images: Tensor, start=(), lower: bool = False) -> list[list[int]]:
        """The same by the recipe's search."""
        with self.autocast(lower):
            return reference_generate(self.model, images, self.tokenizer, max_tokens=self.options.tokens, start=start)

    def measure_generate(self) -> None:
        """3 beams, 64 tokens, one caption per image."""
        same = self.ours(self.images) == self.reference(self.images)
        ways = {"reference": lambda: self.reference(self.images), "ours": lambda: self.ours(self.images)}
        if self.lower:
            ways[f"ours {self.lower_name}"] = lambda: self.ours(self.images, True)
            few = range(self.model.config.vocab_size // 20)
            ways[f"ours {self.lower_name}, 1/20 of ids"] = lambda: self.ours(self.images, True, vocabulary=few)
        if self.lower and self.device.type == "cuda":
            ways[f"reference {self.lower_name}"] = lambda: self.reference(self.images, lower=True)
        seconds = take_turns(ways, self.options.repeats, self.device)
        self.add(rows_of(f"generate, batch {len(self.images)}", seconds, same_captions=same))

    @property
    def lower_name(self) -> str:
        """bf16 or fp16."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}[self.lower]

    def measure_ten(self) -> None:
        """Ten descriptions of one image: the reference captions it ten times."""
        from beit3lib.data.aspects import ASPECTS, SUBJECTS
        from beit3lib.tokenizer import prefix_ids

        descriptions = [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]
        starts = [prefix_ids(self.tokenizer, *description) for description in descriptions]
        image = self.images[:1]

        def ten_times() -> list[list[int]]:
            return [self.reference(image, start)[0] for start in starts]

        same = self.ours(image, descriptions=descriptions) == ten_times()
        ways = {"reference": ten_times, "ours": lambda: self.ours(image, descriptions=descriptions)}
        if self.lower:
            ways[f"ours {self.lower_name}"] = lambda: self.ours(image, True, descriptions)
        seconds = take_turns(ways, self.options.repeats, self.device)
        self.add(rows_of("ten descriptions of an image", seconds, same_captions=same))

    def measure_growth(self) -> None:
        """Time per image and peak memory for few and for many images, captioned in batches of 8; 8 tokens each."""
        few, many, size = 8, 16 if self.options.quick else 512, 8

        def caption(count: int) -> Callable[[], None]:
            def whole() -> None:
                for start in range(0, count, size):
                    with self.autocast(bool(self.lower)):
                        images = make_images(self.model, size, seed=start)
                        generate(self.model, images, self.tokenizer, max_tokens=8, descriptions=[])

            return whole

        seconds, peaks = {few: [], many: []}, {few: [], many: []}
        for count in [few] * size + [many] + [few] * size:  # few around many: a machine that slows down slows both
            began = time.perf_counter()
            caption(count)()
            seconds[count].append((time.perf_counter() - began) / count)
            if len(peaks[count]) < 2:
                peaks[count].append(peak_mb_of(caption(count), self.device, warm=False))
        taken = {f"{count} images": [statistics.median(each)] for count, each in seconds.items()}
        rows = rows_of("time per image, 8 tokens", taken, f"{few} images")
        for row, peak in zip(rows, peaks.values(), strict=True):
            self.add([row | {"peak_mb": peak[-1]}])

    # --- training

    def measure_train(self) -> None:
        """A step with one caption per image."""
        self._train(1, self.options.batch)

    def measure_train_ten(self) -> None:
        """A step with ten captions per image."""
        self._train(10, max(1, self.options.batch // 4))

    def _train(self, captions: int, count: int) -> None:
        packed, separate = make_batch(self.model, count, captions)
        loss_model = LossModel(self.model, 0.1)
        own = make_optimizer(parameter_groups(self.model, TrainConfig()), self.device, lr=0.0)
        plain = torch.optim.AdamW(parameter_groups(self.model, TrainConfig()), lr=0.0)  # what the recipe makes

        def ours(lower: bool = False) -> Tensor:
            with self.autocast(lower):
                loss = loss_model(packed).mean()
            loss.backward()
            return loss.detach()

        def reference(lower: bool = False) -> Tensor:
            with self.autocast(lower):
                parts = (separate[name] for name in ("images", "ids", "padding", "chosen", "targets"))
                loss = reference_losses(self.model, *parts).mean()
            loss.backward()
            return loss.detach()

        def step(work: Callable[[], Tensor], optimizer: torch.optim.Optimizer = own) -> Callable[[], None]:
            def whole() -> None:
                work()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            return whole

        same = bool(torch.allclose(ours(), reference(), rtol=1e-4))
        self.model.zero_grad(set_to_none=True)
        ways = {"reference": step(reference, plain), "ours": step(ours)}
        if self.lower:
            ways[f"ours {self.lower_name}"] = step(lambda: ours(True))
        if self.lower and self.device.type == "cuda":
            ways[f"reference {self.lower_name}"] = step(lambda: reference(True), plain)
        seconds = take_turns(ways, self.options.repeats, self.device)
        rows = rows_of(f"training step, {count} images x {captions}", seconds, same_loss=same)
        flops = count_flops(ours)
        self.model.zero_grad(set_to_none=True)
        for row in rows:
            if row["way"].startswith("ours"):
                dtype = self.lower if row["way"] != "ours" else torch.float32
                rate = matmul_rate(self.device, dtype, 8192 if self.device.type == "cuda" else 2048)
                row["share_of_matmul_rate"] = round(flops / row["seconds"] / rate, 3)
        self.add(rows)

    def measure_shortcuts(self) -> None:
        """What each shortcut brings: ours beside ours without it."""
        from beit3lib.data.aspects import ASPECTS

        ten = [(subject, aspect) for subject in ("vehicle", "pedestrian") for aspect in ASPECTS]
        image, lower = self.images[:1], bool(self.lower)
        if self.device.type == "cpu":
            for precision in ("fp32", self.lower_name)[: 1 + lower]:
                work = lambda precision=precision: self.ours(self.images, precision != "fp32")  # noqa: E731
                self._shortcut(f"oneDNN and weights in its order, {precision}", work, _without_onednn(work))
        self._shortcut(
            "an image once for ten descriptions",
            lambda: self.ours(image, lower, ten),
            lambda: [self.ours(image, lower, [description]) for description in ten],
        )
        loss_model = LossModel(self.model, 0.1)
        packed, apart = (make_batch(self.model, *size)[0] for size in ((2, 10), (20, 1)))
        self._shortcut(
            "ten captions in one row",
            lambda: loss_model(packed).mean().backward(),
            lambda: loss_model(apart).mean().backward(),
        )
        fused = make_optimizer(parameter_groups(self.model, TrainConfig()), self.device, lr=0.0)
        plain = torch.optim.AdamW(parameter_groups(self.model, TrainConfig()), lr=0.0)
        self._shortcut("AdamW in one pass", fused.step, plain.step)
        self.model.zero_grad(set_to_none=True)

    def _shortcut(self, name: str, work: Callable[[], Any], without: Callable[[], Any]) -> None:
        seconds = take_turns({"without": without, "with": work}, self.options.repeats, self.device)
        self.add(rows_of(name, seconds, "without"))

    def measure_memory(self) -> None:
        """Peak memory of the loss over the whole vocabulary, forward and backward, and of a training step."""
        count = 64 if self.options.quick else 2048
        head = torch.nn.Linear(self.model.config.width, self.model.config.vocab_size, device=self.device)
        states = torch.randn(count, self.model.config.width, device=self.device, requires_grad=True)
        targets = torch.arange(count, device=self.device) % self.model.config.vocab_size
        ways = {
            "reference": lambda: full_losses(head(states), targets).mean().backward(),
            "ours": lambda: head_losses(head, states, targets, 0.1).mean().backward(),
        }
        self._add_memory(f"loss of {count} positions", ways, copies_of_mb=count * self.model.config.vocab_size * 4 / 1e6)
        packed, separate = make_batch(self.model, max(1, self.options.batch // 4), 10)
        parts = [separate[name] for name in ("images", "ids", "padding", "chosen", "targets")]
        loss_model = LossModel(self.model, 0.1)
        ways = {
            "reference": lambda: reference_losses(self.model, *parts).mean().backward(),
            "ours": lambda: loss_model(packed).mean().backward(),
        }
        self._add_memory(f"forward and backward, {len(packed.images)} images x 10", ways)
        self.model.zero_grad(set_to_none=True)

    def _add_memory(self, quantity: str, ways: dict[str, Callable[[], Any]], copies_of_mb: float = 0.0) -> None:
        seconds = take_turns(ways, 1, self.device)
        for row in rows_of(quantity, seconds):
            peak = peak_mb_of(ways[row["way"]], self.device)
            copies = {"logit_copies": round(peak / copies_of_mb, 1)} if copies_of_mb and peak is not None else {}
            self.add([row | {"peak_mb": peak} | copies])

    def measure_fit(self) -> None:
        """Whether the recipe's batch of 32 fits: a whole step in the lower precision, activations kept or computed again.

        `peak_mb` counts everything: weights, gradients, AdamW's state and what lies between the two passes.
        """
        optimizer = make_optimizer(parameter_groups(self.model, TrainConfig()), self.device, lr=0.0)
        loss_model, count = LossModel(self.model, 0.1).train(), 2 if self.options.quick else 32
        plain, precision = self.model.config, self.lower_name if self.lower else "fp32"
        ways = {f"{way} {precision}": again for way, again in FIT_WAYS.items()}
        for captions in (1, 10):
            packed = make_batch(self.model, count, captions)[0]

            def step(again: bool, packed: Batch = packed) -> None:
                self.model.config = replace(plain, checkpoint_activations=again)
                with self.autocast(bool(self.lower)):
                    loss = loss_model(packed).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            seconds = take_turns({way: partial(step, again) for way, again in ways.items()}, 1, self.device)
            for row in rows_of(f"step of {count} images x {captions}", seconds, next(iter(ways))):
                peak = peak_mb_of(partial(step, ways[row["way"]]), self.device, warm=False)
                held = sum(p.nbytes for p in self.model.parameters()) + _state_bytes(optimizer)
                self.add([row | {"peak_mb": None if peak is None else peak + round(held / 1e6)}])
        self.model.config = plain
        self.model.eval()

    # --- other captioners

    def measure_peers(self) -> None:
        """Generation of BLIP-base and GIT-base with random weights, as many new tokens, beams and pixels."""
        new, peers = self.options.tokens - 1, make_peers(self.model.config.image_size, self.options.quick)
        for lower in (False, True)[: 1 + bool(self.lower)]:
            ways: dict[str, Callable[[], Any]] = {"ours": lambda lower=lower: self.ours(self.images, lower)}
            for name, peer in peers.items():
                ways[name] = self._captioning(peer.to(self.device).eval(), new, lower)
            seconds = take_turns(ways, max(1, self.options.repeats // 2), self.device)
            precision = self.lower_name if lower else "fp32"
            self.add(rows_of(f"generate, batch {len(self.images)}, {precision}", seconds, "ours"))

    def _captioning(self, peer: torch.nn.Module, new: int, lower: bool) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def caption() -> Tensor:
            with self.autocast(lower):
                return peer.generate(
                    pixel_values=self.images, num_beams=3, min_new_tokens=new, max_new_tokens=new, length_penalty=0.6
                )

        return caption

    # --- around the model

    def measure_images(self) -> None:
        """Pictures decoded and augmented per second by one process, beside a plain resize."""
        import tempfile

        from PIL import Image

        rng, augment = np.random.default_rng(0), Augmentation(self.model.config.image_size, TrainConfig(randaug=True))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.jpg"
            noise = rng.integers(0, 256, (28, 28, 3), np.uint8)
            Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC).save(path, quality=92)
            size = self.model.config.image_size
            plain = lambda: [to_tensor(load_image(path), size) for _ in range(64)]  # noqa: E731
            both = lambda: [to_tensor(augment(load_image(path), rng, True), size) for _ in range(64)]  # noqa: E731
            seconds = take_turns({"resized": plain, "augmented": both}, self.options.repeats, self.device)
        for row in rows_of("64 pictures", seconds, "resized"):
            self.add([row | {"per_s": round(64 / row["seconds"])}])

    def measure_scoring(self) -> None:
        """The official score of 100 pairs, each way in this process alone."""
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
        from nltk.translate.meteor_score import meteor_score
        from rouge_score.rouge_scorer import RougeScorer

        from beit3lib.track2 import metrics

        rng = np.random.default_rng(0)
        words = "the a vehicle pedestrian road turns walks left right wet dry near far bright dark slowly street is on".split()
        texts = [" ".join(rng.choice(words, 90)) + "." for _ in range(200)]
        pairs = list(zip(texts[:100], texts[100:], strict=True))
        smooth, rouge = SmoothingFunction().method3, RougeScorer(["rougeL"], use_stemmer=True)

        def official() -> None:
            for said, reference in pairs:
                a, b = metrics._treebank().tokenize(said), metrics._treebank().tokenize(reference)
                sentence_bleu([b], a, smoothing_function=smooth)
                meteor_score([b], a)
                rouge.score(reference, said)

        if metrics.find_wordnet() is None:
            print("scoring: left out, WordNet is not here")
            return

        def ours() -> None:
            metrics.forget()  # what earlier turns looked up
            metrics.score_pairs(*map(list, zip(*pairs, strict=True)), jobs=1)

        ways = {"reference": official, "ours": ours}
        self.add(rows_of("score of 100 pairs", take_turns(ways, self.options.repeats, self.device)))


def make_peers(image_size: int, small: bool) -> dict[str, torch.nn.Module]:
    """{name: model} of other captioners from their own configurations, random weights; `small` for a quick look."""
    from transformers import BlipConfig, BlipForConditionalGeneration, GitConfig, GitForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128} if small else {}
    vision = {"image_size": image_size, "patch_size": min(16, image_size // 4), **sizes}
    blip = BlipConfig(vision_config=vision, text_config={"encoder_hidden_size": vision.get("hidden_size", 768), **sizes})
    git = GitConfig(vision_config=vision, **sizes)
    torch.manual_seed(0)
    return {"BLIP-base": BlipForConditionalGeneration(blip), "GIT-base": GitForCausalLM(git)}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", help="base, large, tiny, or a model's full name [base]")
    parser.add_argument("--only", nargs="+", choices=QUANTITIES, help="some quantities [all]")
    parser.add_argument("--batch", type=int, default=8, help="images at once [8]")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a caption, with <s> [64]")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count [3]")
    parser.add_argument("--precision", choices=("bf16", "fp16"), help="lower precision to measure beside fp32 [by capability]")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads [as PyTorch chooses]")
    parser.add_argument("--cpu", action="store_true", help="no GPU")
    parser.add_argument("--quick", action="store_true", help="small peers and few images: to see that it works")
    parser.add_argument("--out", default="bench.json", help="where figures go [bench.json]")
    options = parser.parse_args(arguments)
    for name, least in {"batch": 1, "tokens": 3, "repeats": 1, "threads": 0}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name}: expected {least} or more, found {getattr(options, name)}")
    if SHORT.get(options.model, options.model) not in MODELS:
        parser.error(f"--model {options.model}: expected one of {', '.join([*SHORT, *MODELS])}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """`python -m benchmarks.speed`."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    result = Bench(options).run()
    write_json(options.out, result)
    print(json.dumps(result["machine"]))


if __name__ == "__main__":
    main()
