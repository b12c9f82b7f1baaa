"""Time and memory beside the recipe's own code, on the same weights, in one process.

    python tests/benchmarks/speed.py                              base model at 224 pixels, every quantity
    python tests/benchmarks/speed.py --model tiny --only generate train --repeats 5
    python tests/benchmarks/speed.py --precision bf16 --batch 64 --out gpu.json

Quantities: `generate` (one caption per image), `ten` (ten caption types of one image, which the recipe captions ten times),
`train` (a training step with one caption per image), `train_ten` (ten packed captions per image), `memory` (peak memory of a
step, and of the loss over the vocabulary); without the recipe: `limit` (the linear layers of `generate` alone: the share of its
time that they take is the share of the physical limit), `growth` (captions per second for batches of 1 to 128 images, and
images per second of the data loader), `job` (captioning of image files with the sample's model and ten caption types, beside
decoding of the same batches in memory).

The methods of a quantity take turns; seconds are medians, a ratio is the median over turns of the ratio within a turn, and
equality of captions and losses is checked before anything is timed. Seconds are wall time; with `--threads 1` on a CPU they
are CPU time, which other processes hardly change, except in `job` and for the loader. On a GPU the recipe is measured in the
lower precision too. The figures go to a JSON file with hardware and versions.
"""

import argparse
import ctypes
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stdout,
    suppress,
)
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_pretrained
from beit3lib.data.images import open_image
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.dataset import Batch, PackedSequence, collate, pack
from beit3lib.decode import inference_weights
from beit3lib.device import DTYPES, choose_device, choose_precision, inference_precision
from beit3lib.files import write_json
from beit3lib.loss import LossModel, head_losses
from beit3lib.model import MODELS, CaptionModel, model_config
from beit3lib.run.captioning import caption_batches, caption_images, choose_batch_size
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH
from beit3lib.tokenizer import load_tokenizer
from beit3lib.train import keep_freed_memory
from beit3lib.transforms import to_image, to_tensor

QUANTITIES = ("generate", "ten", "train", "train_ten", "memory", "limit", "growth", "job")
GROWTH = (1, 8, 32, 128)  # images per batch
SHORT_NAMES = {
    "tiny": "beit3_tiny_patch8_64",
    "base": "beit3_base_patch16_224",
    "large": "beit3_large_patch16_224",
}
CAPTION_TYPES = [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]
MAX_TOKENS = 64  # the recipe pads every caption to this length

Work = Callable[[], Any]


class FakeTokenizer:
    """The ids that decoding needs, for random weights with any size of vocabulary."""

    bos_token_id, pad_token_id, eos_token_id = 0, 1, 2

    def __init__(self, vocab_size: int) -> None:
        self.mask_token_id = vocab_size - 9

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """One id per word."""
        return [10 + sum(map(ord, word)) % 90 for word in text.split()]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """The ids as text."""
        return " ".join(map(str, ids))


def make_model(name: str, device: torch.device, seed: int = 0) -> CaptionModel:
    """A model with random weights, larger than the recipe's initialization, so that beams differ."""
    model, rng = CaptionModel.empty(model_config(name)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.03, generator=rng)
            else:
                is_norm = "norm" in parameter_name or "_ln." in parameter_name
                parameter.fill_(float(is_norm and parameter_name.endswith("weight")))
    return model.to(device).eval()


def make_images(model: CaptionModel, count: int, seed: int = 1) -> Tensor:
    """Random images (B, 3, S, S) that differ from each other."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(model.config.image_size,) * 2).to(model.device)


def make_batch(
    model: CaptionModel, images: int, captions: int, seed: int = 2
) -> tuple[Batch, dict[str, Tensor]]:
    """The same masked captions twice: packed, a sequence per image, and for the recipe a sequence of 64 tokens per caption."""
    mask_id, rng = FakeTokenizer(model.config.vocab_size).mask_token_id, np.random.default_rng(seed)
    samples, singles = [], []
    for image in make_images(model, images).cpu():
        lengths = rng.integers(14, 31, captions)  # aspects of WTS captions have 22 tokens on average
        ids = [([0, *rng.integers(10, mask_id, length).tolist(), 2], 0) for length in lengths]
        packed = pack(ids, 0.7, mask_id, rng)
        samples.append((image, packed, ""))
        for index in range(captions):
            singles.append((image, PackedSequence(*(part[packed.doc_ids == index] for part in packed)), ""))
    separate = collate(singles)
    masked = torch.zeros(separate.input_ids.numel(), dtype=torch.bool)
    masked[separate.mask_positions] = True
    parts = {
        "input_ids": (separate.input_ids, 1),
        "labels": (separate.labels, 1),
        "padding": ((separate.doc_ids < 0).long(), 1),
        "masked": (masked.view_as(separate.input_ids), False),
    }
    fill = MAX_TOKENS - separate.input_ids.shape[1]
    padded = {
        name: F.pad(part, (0, fill), value=value).to(model.device) for name, (part, value) in parts.items()
    }
    return collate(samples).to(model.device), {"images": separate.images.to(model.device), **padded}


def take_turns(
    methods: dict[str, Work],
    repeats: int,
    device: torch.device,
    prepare: Callable[[str], AbstractContextManager] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each method in each turn. The order alternates; the first turn is a warm-up that does not count.

    Each call runs inside `prepare(name of the method)`, which is entered and left outside the measured time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repeats + 1):
        for name in methods if turn % 2 else reversed(methods):
            with prepare(name) if prepare else nullcontext():
                _synchronize(device)
                started = clock()
                methods[name]()
                _synchronize(device)
                taken = clock() - started
            if turn:
                seconds[name].append(taken)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def summarize(
    quantity: str, seconds: dict[str, list[float]], base: str = "recipe", **more: Any
) -> list[dict[str, Any]]:
    """A row per method: median seconds, and the ratio to the method `base` (above 1: faster)."""
    rows = []
    for name, taken in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(taken, seconds[base], strict=True))
        rows.append(
            {
                "quantity": quantity,
                "method": name,
                "seconds": statistics.median(taken),
                "ratio": ratio,
                **more,
            }
        )
    return rows


def peak_mb(work: Work, device: torch.device) -> int | None:
    """Most memory that a call needs beyond what was allocated before; None where the system does not report it."""
    work()  # allocates what stays between calls
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6)
    with suppress(
        AttributeError
    ):  # return freed memory to the system, in which new tensors would be invisible (glibc)
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak of this process
    except OSError:
        return None
    before = _status_kb("VmRSS")
    work()
    return round((_status_kb("VmHWM") - before) * 1024 / 1e6)


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large matrix products: the rate that model FLOPs utilization (MFU) is compared with."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = take_turns({"matmul": lambda: a @ b}, 5, device)["matmul"]
    return 2 * size**3 / min(seconds)


def write_images(model: CaptionModel, folder: Path, count: int) -> list[Path]:
    """Random images as JPEG files of the size of the model, as preparation writes them."""
    paths = [folder / f"{index:04}.jpg" for index in range(count)]
    for path, pixels in zip(paths, make_images(model, count), strict=True):
        to_image(pixels).save(path, quality=95, subsampling=0)
    return paths


def import_reference() -> ModuleType:
    """tests/reference.py, which is not on the path when this file is run as a script."""
    sys.path.append(str(Path(__file__).parents[1]))
    import reference

    return reference


class Benchmark:
    """The model, ours and the recipe's, on one device, and the rows measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.rows, self.reference = options, [], import_reference()
        self.device = choose_device("cpu" if options.cpu else "auto")
        if self.device.type == "cpu":
            keep_freed_memory()  # as in training, for both methods
        self.model = make_model(SHORT_NAMES.get(options.model, options.model), self.device)
        self.recipe = self.reference.captioning_model(self.model)
        self.tokenizer = FakeTokenizer(self.model.config.vocab_size)
        self.images = make_images(self.model, options.batch)
        self.lower = options.precision or choose_precision("auto", self.device)[0]
        one_thread = self.device.type == "cpu" and torch.get_num_threads() == 1
        self.turns = partial(take_turns, clock=time.process_time if one_thread else time.perf_counter)

    def run(self) -> dict[str, Any]:
        """Measure the quantities asked for."""
        for name in self.options.only or QUANTITIES:
            for row in getattr(self, name)():
                self.rows.append(row)
                extra = "  ".join(
                    f"{k} {v}" for k, v in row.items() if k not in ("quantity", "method", "seconds", "ratio")
                )
                times = f"{row['seconds']:9.3f} s {row['ratio']:7.2f}x"
                print(f"{row['quantity']:34}{row['method']:12}{times}  {extra}", flush=True)
            write_json(self.options.out, self.result())
        return self.result()

    def result(self) -> dict[str, Any]:
        """The figures so far, with hardware and versions."""
        gpu = torch.cuda.get_device_properties(self.device) if self.device.type == "cuda" else None
        found = {package.metadata["Name"]: package.version for package in metadata.distributions()}
        packages = ("torch", "transformers", "accelerate", "timm", "torchscale", "beit3-gml")
        machine = {
            "device": gpu.name if gpu else _cpu_name(),
            "gpu_memory_mb": gpu and round(gpu.total_memory / 1e6),
            "threads": torch.get_num_threads(),
            "versions": {name: found.get(name) for name in packages} | {"python": platform.python_version()},
            "cuda": torch.version.cuda if gpu else None,
        }
        return {"machine": machine, "options": vars(self.options), "rows": self.rows}

    def autocast(self, precision: str):
        """The context of a precision."""
        return torch.autocast(self.device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()

    def methods(self, ours: Callable[[str], Any], recipe: Callable[[str], Any]) -> dict[str, Work]:
        """Both in fp32, ours in the lower precision, and the recipe in it on a GPU: on a CPU it takes several times longer."""
        methods: dict[str, Work] = {"recipe": partial(recipe, "fp32"), "ours": partial(ours, "fp32")}
        if self.lower in DTYPES:
            methods[f"ours {self.lower}"] = partial(ours, self.lower)
            if self.device.type == "cuda":
                methods[f"recipe {self.lower}"] = partial(recipe, self.lower)
        return methods

    @contextmanager
    def captioning_job(self, method: str) -> Iterator[None]:
        """For our methods, weights in the precision of the method: a job of many images prepares them once."""
        with ExitStack() as stack:
            if method.startswith("ours"):
                stack.enter_context(self.autocast(method.removeprefix("ours ")))
                stack.enter_context(inference_weights(self.model))
            yield

    def _recipe_captions(self, images: Tensor, precision: str = "fp32") -> list[list[int]]:
        with self.autocast(precision):
            return self.reference.generate(
                self.recipe, images, self.tokenizer, max_tokens=self.options.tokens
            )

    def generate(self) -> list[dict[str, Any]]:
        """One caption per image, 3 beams."""
        captioner = Captioner(self.model, self.tokenizer, [], self.options.tokens)

        def ours(precision: str) -> list[list[int]]:
            with self.autocast(precision):
                return [caption.ids for caption in captioner.generate(self.images)]

        same = ours("fp32") == self._recipe_captions(self.images)
        methods = self.methods(ours, lambda precision: self._recipe_captions(self.images, precision))
        seconds = self.turns(methods, self.options.repeats, self.device, self.captioning_job)
        return summarize(f"generate, {len(self.images)} images", seconds, same_captions=same)

    def ten(self) -> list[dict[str, Any]]:
        """Ten caption types of one image; the recipe, which has no prompts, captions the image ten times."""
        captioner = Captioner(self.model, self.tokenizer, CAPTION_TYPES, self.options.tokens)
        image = self.images[:1]

        def ours(precision: str) -> None:
            with self.autocast(precision):
                captioner.generate(image)

        def recipe(precision: str) -> None:
            for _ in CAPTION_TYPES:
                self._recipe_captions(image, precision)

        seconds = self.turns(
            self.methods(ours, recipe), self.options.repeats, self.device, self.captioning_job
        )
        return summarize("generate, 10 captions of an image", seconds)

    def train(self) -> list[dict[str, Any]]:
        """A training step with one caption per image."""
        return self._train(self.options.batch, 1)

    def train_ten(self) -> list[dict[str, Any]]:
        """A training step with ten packed captions per image."""
        return self._train(max(1, self.options.batch // 4), 10)

    def _losses(self, images: int, captions: int) -> tuple[Callable[[str], Tensor], Callable[[str], Tensor]]:
        packed, separate = make_batch(self.model, images, captions)
        loss_model, recipe_loss = LossModel(self.model, 0.1), self.reference.loss_function(0.1)

        def ours(precision: str) -> Tensor:
            with self.autocast(precision):
                return loss_model(packed).mean()

        inputs, masked = (
            [separate[name] for name in ("images", "input_ids", "padding", "masked")],
            separate["masked"],
        )

        def recipe(precision: str) -> Tensor:
            with self.autocast(precision):
                logits = self.reference.logits(self.recipe, *inputs)
                return recipe_loss(logits, separate["labels"][masked], 0)

        return ours, recipe

    def _train(self, images: int, captions: int) -> list[dict[str, Any]]:
        ours, recipe = self._losses(images, captions)
        same = bool(torch.allclose(ours("fp32"), recipe("fp32"), rtol=1e-4))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        fused, plain = torch.optim.AdamW(trained, lr=0.0, fused=True), torch.optim.AdamW(trained, lr=0.0)

        def step(loss: Callable[[str], Tensor], optimizer: torch.optim.Optimizer, precision: str) -> None:
            loss(precision).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        methods = self.methods(partial(step, ours, fused), partial(step, recipe, plain))
        seconds = self.turns(methods, self.options.repeats, self.device)
        with FlopCounterMode(display=False) as counter:
            ours("fp32").backward()
        self.model.zero_grad(set_to_none=True)
        rows = summarize(f"training step, {images} x {captions} captions", seconds, same_loss=same)
        rates = {
            name: matmul_rate(self.device, DTYPES.get(name, torch.float32)) for name in {"fp32", self.lower}
        }
        for row in rows:
            if row["method"].startswith("ours"):
                precision = self.lower if row["method"] != "ours" else "fp32"
                row["mfu"] = round(counter.get_total_flops() / row["seconds"] / rates[precision], 3)
        return rows

    def memory(self) -> list[dict[str, Any]]:
        """Peak memory of forward and backward pass, and of the loss over the vocabulary for 2,048 tokens."""
        images = max(1, self.options.batch // 4)
        ours, recipe = self._losses(images, 10)
        rows = self._memory(
            f"memory, {images} x 10 captions",
            lambda: recipe("fp32").backward(),
            lambda: ours("fp32").backward(),
        )
        self.model.zero_grad(set_to_none=True)
        head, tokens = self.model.mlm_head, 2048 if self.options.model != "tiny" else 64
        states = torch.randn(tokens, self.model.config.width, device=self.device, requires_grad=True)
        targets = torch.arange(tokens, device=self.device) % self.model.config.vocab_size
        recipe_loss = self.reference.loss_function(0.1)
        rows += self._memory(
            f"memory, loss of {tokens} tokens",
            lambda: recipe_loss(head(states), targets, 0).backward(),
            lambda: head_losses(head, states, targets, 0.1).mean().backward(),
        )
        self.model.zero_grad(set_to_none=True)
        return rows

    def _memory(self, quantity: str, recipe: Work, ours: Work) -> list[dict[str, Any]]:
        methods = {"recipe": recipe, "ours": ours}
        rows = summarize(quantity, take_turns(methods, 1, self.device))
        return [row | {"peak_mb": peak_mb(methods[row["method"]], self.device)} for row in rows]

    def _precisions(self) -> list[str]:
        return ["fp32", self.lower] if self.lower in DTYPES else ["fp32"]

    def limit(self) -> list[dict[str, Any]]:
        """`generate`, and its linear layers alone: the same weights and shapes in the same order, from prepared inputs."""
        captioner, rows = Captioner(self.model, self.tokenizer, [], self.options.tokens), []
        for precision in self._precisions():
            calls: list[tuple[nn.Linear, torch.Size]] = []

            def record(module: nn.Module, inputs: tuple[Tensor], calls=calls) -> None:
                if isinstance(module, nn.Linear):
                    calls.append((module, inputs[0].shape))

            with self.captioning_job(f"ours {precision}"):
                hook = nn.modules.module.register_module_forward_pre_hook(record)
                captioner.generate(self.images)
                hook.remove()
                dtype = DTYPES.get(precision, torch.float32)
                inputs = {shape: torch.randn(shape, device=self.device).to(dtype) for _, shape in calls}

                @torch.inference_mode()
                def linear_layers(calls=calls, inputs=inputs) -> None:
                    for layer, shape in calls:
                        layer(inputs[shape])

                methods = {
                    "linear layers": linear_layers,
                    "generate": partial(captioner.generate, self.images),
                }
                seconds = self.turns(methods, self.options.repeats, self.device)
            found = summarize(f"limit, {len(self.images)} images, {precision}", seconds, "generate")
            rows += [row | {"share": round(1 / row["ratio"], 3)} for row in found]
        return rows

    def growth(self) -> list[dict[str, Any]]:
        """One caption per image for growing batches, and the data loader of a captioning job without a model."""
        captioner, rows = Captioner(self.model, self.tokenizer, [], self.options.tokens), []
        for count in GROWTH:
            images = make_images(self.model, count)
            methods = {
                f"ours {name}": partial(self._captions, captioner, images, name)
                for name in self._precisions()
            }
            seconds = self.turns(methods, self.options.repeats, self.device, self.captioning_job)
            found = summarize(f"growth, batch of {count}", seconds, "ours fp32")
            rows += [row | {"per_second": round(count / row["seconds"], 2)} for row in found]
        no_model = SimpleNamespace(model=self.model, generate=lambda pixels, num_beams: [])
        count, batch = self.options.images, self.options.batch
        with TemporaryDirectory() as folder:
            paths = write_images(self.model, Path(folder), count)
            batches = [range(i, min(i + batch, count)) for i in range(0, count, batch)]
            load = {"loader": lambda: list(caption_batches(no_model, paths, batches, 3, 10))}
            found = summarize(
                f"growth, {count} files", take_turns(load, self.options.repeats, self.device), "loader"
            )
        return rows + [row | {"per_second": round(count / row["seconds"], 2)} for row in found]

    def _captions(self, captioner: Captioner, images: Tensor, precision: str) -> None:
        with self.autocast(precision):
            captioner.generate(images)

    def job(self) -> list[dict[str, Any]]:
        """A captioning job with its loader workers and its files, and decoding of the same batches in memory."""
        model = CaptionModel(model_config(MODEL)).eval()
        load_pretrained(model, CHECKPOINT_PATH)
        captioner = Captioner(model.to(self.device), load_tokenizer(SPM_PATH), CAPTION_TYPES)
        size = choose_batch_size(captioner, 3)
        with TemporaryDirectory() as folder:
            output, paths = (
                Path(folder, "predictions.json"),
                write_images(model, Path(folder), self.options.images),
            )
            table = pd.DataFrame({"image": [path.name for path in paths]})
            batches = torch.stack(
                [to_tensor(open_image(path), model.config.image_size) for path in paths]
            ).split(size)

            def decode() -> list[str]:
                with inference_precision(self.device), inference_weights(model):
                    return [caption.text for pixels in batches for caption in captioner.generate(pixels)]

            def caption_files() -> list[str]:
                output.unlink(missing_ok=True)  # a complete job would not be repeated
                with redirect_stdout(io.StringIO()):
                    return list(caption_images(captioner, table, folder, output, {})["caption"])

            same = decode() == caption_files()
            seconds = take_turns(
                {"decoding": decode, "job": caption_files}, self.options.repeats, self.device
            )
        return summarize(f"job, {len(table)} files", seconds, "decoding", same_captions=same)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="base", help="base, large, tiny, or the full name of a model [base]"
    )
    parser.add_argument("--only", nargs="+", choices=QUANTITIES, help="some quantities [all]")
    parser.add_argument("--batch", type=int, default=8, help="images per batch [8]")
    parser.add_argument("--images", type=int, default=250, help="image files of `growth` and `job` [250]")
    parser.add_argument(
        "--tokens", type=int, default=MAX_TOKENS, help=f"num_max_bpe_tokens of generation [{MAX_TOKENS}]"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns that count [3]")
    parser.add_argument(
        "--precision", choices=tuple(DTYPES), help="lower precision, beside fp32 [the device's native one]"
    )
    parser.add_argument("--threads", type=int, help="CPU threads [PyTorch's choice]")
    parser.add_argument("--cpu", action="store_true", help="ignore a GPU")
    parser.add_argument("--out", default="speed.json", help="the file for the figures [speed.json]")
    options = parser.parse_args(arguments)
    for name, least in {"batch": 1, "images": 1, "tokens": 3, "repeats": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    if SHORT_NAMES.get(options.model, options.model) not in MODELS:
        parser.error(f"--model: expected one of {', '.join([*SHORT_NAMES, *MODELS])}, got {options.model}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = Benchmark(options).run()
    print(json.dumps(result["machine"]))


if __name__ == "__main__":
    main()
