"""Time this package beside the reference implementation, on the same weights, in one process.

    PYTHONPATH=tests python -m benchmarks.speed                   base model at 224 pixels, every quantity
    PYTHONPATH=tests python -m benchmarks.speed --model tiny --only generate train --repeats 5
    PYTHONPATH=tests python -m benchmarks.speed --precision bf16 --batch 64 --out gpu.json

`generate` is one caption per image; `ten` ten caption types of one image, which the reference captions ten
times; `answer` the same ten captions with the answers to 12 questions, beside the captions alone; `train` a
training step with one caption per image, `train_ten` with ten packed captions.

The methods of a quantity take turns. Seconds are medians, and a ratio is the median of the ratios within a
turn. Captions and losses are compared before anything is timed. Seconds are wall time; with `--threads 1` on
a CPU they are CPU time, which other processes hardly change. To compare two commits, run the file of each in
turn and compare their ratios to the reference.
"""

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from beit3lib.captioner import Captioner
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.dataset import Batch, Item, PackedSequence, collate, pack
from beit3lib.decode import inference_weights
from beit3lib.device import DTYPES, choose_device, choose_precision
from beit3lib.files import write_json
from beit3lib.loss import LossModel
from beit3lib.model import CaptionModel, model_config
from beit3lib.question import Question

QUANTITIES = ("generate", "ten", "answer", "train", "train_ten")
MODELS = {
    "tiny": "beit3_tiny_patch8_64",
    "base": "beit3_base_patch16_224",
    "large": "beit3_large_patch16_224",
}
CAPTION_TYPES = [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]
MAX_TOKENS = 64  # the reference pads every caption to this length
Work = Callable[[], Any]


class FakeTokenizer:
    """The ids that decoding needs, for random weights with any size of vocabulary."""

    bos_token_id, pad_token_id, eos_token_id = 0, 1, 2

    def __init__(self, vocab_size: int) -> None:
        self.mask_token_id = vocab_size - 9

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return one id per word."""
        return [10 + sum(map(ord, word)) % 90 for word in text.split()]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the ids as text."""
        return " ".join(map(str, ids))


def make_model(name: str, device: torch.device, seed: int = 0, **changes: Any) -> CaptionModel:
    """Return a model with random weights, larger than BEiT-3's initialization, so that beams differ."""
    model, rng = CaptionModel.empty(model_config(name, **changes)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.03, generator=rng)
            else:
                is_norm = "norm" in parameter_name or "_ln." in parameter_name
                parameter.fill_(float(is_norm and parameter_name.endswith("weight")))
    return model.to(device).eval()


def make_images(model: CaptionModel, count: int, seed: int = 1) -> Tensor:
    """Return random images (B, 3, S, S) that differ from each other."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(model.config.image_size,) * 2).to(model.device)


def make_batch(
    model: CaptionModel, images: int, captions: int, seed: int = 2
) -> tuple[Batch, dict[str, Tensor]]:
    """Return the same masked captions twice: packed, and for the reference a sequence of 64 tokens each."""
    mask_id, rng = FakeTokenizer(model.config.vocab_size).mask_token_id, np.random.default_rng(seed)
    items, singles = [], []
    for image in make_images(model, images).cpu():
        lengths = rng.integers(14, 31, captions)  # aspects of WTS captions have 22 tokens on average
        ids = [([0, *rng.integers(10, mask_id, length).tolist(), 2], 0) for length in lengths]
        packed = pack(ids, 0.7, mask_id, rng)
        items.append(Item(image, packed, [], ""))
        for number in range(captions):
            single = PackedSequence(*(part[packed.doc_ids == number] for part in packed))
            singles.append(Item(image, single, [], ""))
    separate = collate(singles)
    masked = torch.zeros(separate.input_ids.numel(), dtype=torch.bool)
    masked[separate.mask_positions] = True
    parts = {"input_ids": (separate.input_ids, 1), "labels": (separate.labels, 1)}
    parts |= {"padding": ((separate.doc_ids < 0).long(), 1)}
    parts |= {"masked": (masked.view_as(separate.input_ids), False)}
    fill = MAX_TOKENS - separate.input_ids.shape[1]
    padded = {
        name: F.pad(part, (0, fill), value=value).to(model.device) for name, (part, value) in parts.items()
    }
    return collate(items).to(model.device), {"images": separate.images.to(model.device), **padded}


def take_turns(
    methods: dict[str, Work],
    repeats: int,
    device: torch.device,
    prepare: Callable[[str], AbstractContextManager] = nullcontext,
) -> dict[str, list[float]]:
    """Return the seconds of each method in each turn. The order alternates; the first turn does not count.

    Each call runs inside `prepare(name of the method)`, which is entered and left outside the measured time.
    """
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repeats + 1):
        for name in methods if turn % 2 else reversed(methods):
            with prepare(name):
                synchronize()
                started = clock()
                methods[name]()
                synchronize()
                taken = clock() - started
            if turn:
                seconds[name].append(taken)
    return seconds


def summarize(
    quantity: str, seconds: dict[str, list[float]], base: str = "reference", **more: Any
) -> list[dict[str, Any]]:
    """Return a row per method: median seconds, and the ratio to the method `base` (above 1: faster)."""
    rows = []
    for name, taken in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(taken, seconds[base], strict=True))
        about = {"quantity": quantity, "method": name, "seconds": statistics.median(taken), "ratio": ratio}
        rows.append(about | more)
    return rows


class Benchmark:
    """The model, ours and the reference's, on one device, and the rows measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        import reference  # skips the tests that import it if beit3-gml is not installed

        self.options, self.rows, self.reference = options, [], reference
        self.device = choose_device("cpu" if options.cpu else "auto")
        self.model = make_model(MODELS[options.model], self.device)
        self.theirs = reference.captioning_model(self.model)
        self.tokenizer = FakeTokenizer(self.model.config.vocab_size)
        self.images = make_images(self.model, options.batch)
        self.lower = options.precision or choose_precision("auto", self.device)[0]

    def run(self) -> dict[str, Any]:
        """Measure the quantities asked for, and write the file after each."""
        for name in self.options.only:
            for row in self.measure(name):
                self.rows.append(row)
                values = [f"{value:.3f}" if isinstance(value, float) else value for value in row.values()]
                print(*values, sep="  ", flush=True)
            write_json(self.options.out, self.result())
        return self.result()

    def measure(self, quantity: str) -> list[dict[str, Any]]:
        """Return the rows of a quantity; the reference has no prompts and captions an image ten times."""
        batch = self.options.batch
        if quantity == "generate":
            return self.generate(self.images, [])
        if quantity == "ten":
            return self.generate(self.images[:1], CAPTION_TYPES)
        if quantity == "answer":
            return self.answer()
        return self.train(batch, 1) if quantity == "train" else self.train(max(1, batch // 4), 10)

    def result(self) -> dict[str, Any]:
        """Return the figures so far, with hardware and versions."""
        gpu = torch.cuda.get_device_properties(self.device) if self.device.type == "cuda" else None
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        packages = ("torch", "transformers", "timm", "beit3-gml")
        machine = {
            "device": gpu.name if gpu else cpu[1] if cpu else platform.processor(),
            "threads": torch.get_num_threads(),
            "versions": {name: metadata.version(name) for name in packages},
        }
        return {"machine": machine, "options": vars(self.options), "rows": self.rows}

    def autocast(self, precision: str) -> AbstractContextManager:
        """Return the context of a precision."""
        return torch.autocast(self.device.type, DTYPES[precision]) if precision in DTYPES else nullcontext()

    def methods(self, ours: Callable[[str], Any], theirs: Callable[[str], Any]) -> dict[str, Work]:
        """Return both in fp32 and in the lower precision; in that the reference is much slower on a CPU."""
        methods: dict[str, Work] = {"reference": partial(theirs, "fp32"), "ours": partial(ours, "fp32")}
        if self.lower in DTYPES:
            methods[f"ours {self.lower}"] = partial(ours, self.lower)
            if self.device.type == "cuda":
                methods[f"reference {self.lower}"] = partial(theirs, self.lower)
        return methods

    @contextmanager
    def captioning_job(self, method: str, model: CaptionModel | None = None) -> Iterator[None]:
        """Prepare our weights for the precision of a method, which a job of many images does once."""
        if method.startswith("reference"):
            yield
            return
        with self.autocast(method.split()[-1]), inference_weights(model or self.model):
            yield

    def generate(self, images: Tensor, caption_types: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """Time captions of these types of every image."""
        tokens = self.options.tokens
        captioner = Captioner(self.model, self.tokenizer, caption_types, tokens)

        def ours(precision: str) -> list[list[int]]:
            with self.autocast(precision):
                return [caption.ids for caption in captioner.generate(images)]

        def theirs(precision: str) -> list[list[int]]:
            with self.autocast(precision):
                for _ in captioner.caption_types:
                    ids = self.reference.generate(self.theirs, images, self.tokenizer, max_tokens=tokens)
            return ids

        more = {} if caption_types else {"same_captions": ours("fp32") == theirs("fp32")}
        seconds = take_turns(
            self.methods(ours, theirs), self.options.repeats, self.device, self.captioning_job
        )
        return summarize(
            f"generate, {len(images)} x {len(captioner.caption_types)} captions", seconds, **more
        )

    def answer(self) -> list[dict[str, Any]]:
        """Ten caption types of one image, and the answers to 12 questions of four options beside them."""
        model, rng = (
            make_model(MODELS[self.options.model], self.device, answers=True),
            np.random.default_rng(3),
        )
        captioner = Captioner(model, self.tokenizer, CAPTION_TYPES, self.options.tokens)
        asked = [
            [Question(ids[:20], ids[20:].reshape(4, 5).tolist(), 0) for ids in rng.integers(10, 99, (12, 40))]
        ]

        def work(questions: list, precision: str) -> list[list[int]]:
            with self.autocast(precision), torch.inference_mode():
                memory = model.encode_image(self.images[:1])
                captioner.log_probs(memory, questions)
                return [caption.ids for caption in captioner.generate(memory)]

        methods: dict[str, Work] = {}
        for precision in ("fp32", self.lower) if self.lower in DTYPES else ("fp32",):
            methods |= {f"captions {precision}": partial(work, [[]], precision)}
            methods |= {f"with answers {precision}": partial(work, asked, precision)}
        same = methods["captions fp32"]() == methods["with answers fp32"]()
        prepare = partial(self.captioning_job, model=model)
        seconds = take_turns(methods, self.options.repeats, self.device, prepare)
        return summarize("10 captions, 12 questions", seconds, "captions fp32", same_captions=same)

    def train(self, images: int, captions: int) -> list[dict[str, Any]]:
        """Time a training step on so many images with so many packed captions each."""
        packed, separate = make_batch(self.model, images, captions)
        loss_model, their_loss = LossModel(self.model, 0.1), self.reference.loss_function(0.1)
        inputs = [separate[name] for name in ("images", "input_ids", "padding", "masked")]
        labels = separate["labels"][separate["masked"]]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        fused, plain = torch.optim.AdamW(trained, lr=0.0, fused=True), torch.optim.AdamW(trained, lr=0.0)

        def ours(precision: str) -> Tensor:
            with self.autocast(precision):
                return loss_model(packed).captions.mean()

        def theirs(precision: str) -> Tensor:
            with self.autocast(precision):
                return their_loss(self.reference.logits(self.theirs, *inputs), labels, 0)

        def step(loss: Callable[[str], Tensor], optimizer: torch.optim.Optimizer, precision: str) -> None:
            loss(precision).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        same = bool(torch.allclose(ours("fp32"), theirs("fp32"), rtol=1e-4))
        methods = self.methods(partial(step, ours, fused), partial(step, theirs, plain))
        seconds = take_turns(methods, self.options.repeats, self.device)
        rows = summarize(f"training step, {images} x {captions} captions", seconds, same_loss=same)
        if self.device.type == "cuda":  # weights, both optimizers' states and the batches included
            for row in rows:
                torch.cuda.reset_peak_memory_stats()
                methods[row["method"]]()
                row["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
        return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", choices=MODELS, help="[base]")
    parser.add_argument("--only", nargs="+", choices=QUANTITIES, default=QUANTITIES, help="quantities [all]")
    parser.add_argument("--batch", type=int, default=8, help="images per batch [8]")
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS, help=f"longest caption [{MAX_TOKENS}]")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count [3]")
    parser.add_argument(
        "--precision", choices=tuple(DTYPES), help="lower precision, beside fp32 [native one]"
    )
    parser.add_argument("--threads", type=int, help="CPU threads [PyTorch's choice]")
    parser.add_argument("--cpu", action="store_true", help="ignore a GPU")
    parser.add_argument("--out", default="speed.json", help="file for the figures [speed.json]")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(json.dumps(Benchmark(options).run()["machine"]))


if __name__ == "__main__":
    main()
