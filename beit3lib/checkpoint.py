"""Read public BEiT-3 checkpoints; write and read our own, a folder each.

Public: `.pth`, the same renamed to `.zip`, without an ending, or unpacked into a folder, as Kaggle does it;
`{"model": …}`, `{"module": …}`, `{"state_dict": …}` or the bare state dict; also those that the recipe saved while
fine-tuning, and folders in the format of Hugging Face. Nothing is unpickled beyond tensors and plain values.

Ours: `model.safetensors`, `sentencepiece.bpe.model` and a readable `meta.json`, written completely or not at all.

    python -m beit3lib.checkpoint runs/mine/best mine.pth        export to the public format
    python -m beit3lib.checkpoint runs/mine/best mine            export a folder with a model card for the Hugging Face Hub
"""

import argparse
import math
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
import yaml
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from beit3lib.captioner import Captioner
from beit3lib.device import choose_device
from beit3lib.files import (
    atomic_folder,
    atomic_path,
    check_regular_file,
    exit_on_error,
    file_hash,
    read_json,
    readable_folder,
    write_json,
    write_text,
)
from beit3lib.model import CaptionModel, ModelConfig, initialize_weights
from beit3lib.tokenizer import SPM_NAME, load_tokenizer

WEIGHTS_NAME, META_NAME = "model.safetensors", "meta.json"
TEXT_EMBEDDINGS = "beit3.text_embed.weight"
IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
EXTRA_POSITIONS = (
    3  # rows of IMAGE_POSITIONS before the patches: two unused (positions start at 2), and the class token
)
WRAPPER_PREFIXES = (
    "module.",
    "_orig_mod.",
)  # put before names by DistributedDataParallel and by torch.compile
HUB_NAMES = (
    WEIGHTS_NAME,
    "pytorch_model.bin",
)  # weights in a folder of Hugging Face, or with .index.json: their shards
# Parameter names of the conversions to Hugging Face transformers, and their original names. The earlier conversion
# (github.com/huggingface/transformers/pull/22289) has "first" and "second", the later one (pull/39534) "image" and "text".
HUB_PARAMETERS = {
    **{"text_embedding.": "text_embed.", "vision_embedding.projection.": "vision_embed.proj."},
    **{
        "vision_embedding.": "vision_embed.",
        "mlm_classifier.": "mlm_head.",
        "encoder.fc_norm.": "encoder.layer_norm.",
    },
    **{
        "query_proj.": "q_proj.",
        "key_proj.": "k_proj.",
        "value_proj.": "v_proj.",
        "beit3.pooler.": "pooler.",
    },
    **{".image.": ".A.", ".first.": ".A.", ".text.": ".B.", ".second.": ".B."},
}
MAX_COMPRESSION = 100  # weights compress by less than 2; a zip bomb reaches 1,000

# Everything that the recipe saves beside tensors: its options, and learning rates as numpy numbers, whose unpickling
# function has another module name in numpy 1 than in numpy 2. None of these runs code when it is unpickled.
NUMPY_NUMBER = np.float64().__reduce__()[0]
HARMLESS_GLOBALS = [
    argparse.Namespace,
    (NUMPY_NUMBER, "numpy.core.multiarray.scalar"),
    (NUMPY_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
]


class CheckpointError(ValueError):
    """The file is not a checkpoint that this model can load; the message names the file and what to do."""


@dataclass(frozen=True)
class LoadReport:
    """Names of parameters that `load_pretrained` loaded, resized, initialized because they are missing, and skipped."""

    loaded: list[str]
    resized: list[str]
    fresh: list[str]
    skipped: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for names, what in (
            (self.resized, "resized"),
            (self.fresh, "initialized"),
            (self.skipped, "skipped"),
        ):
            if names:
                parts.append(f"{what}: {', '.join(names)}")
        return "; ".join(parts)


def read_state(
    path: str | Path, model_key: str = "model|module", model_prefix: str = ""
) -> dict[str, Tensor]:
    """Read the state dict of a public checkpoint, of a folder of Hugging Face or of ours: {name: tensor} on the CPU.

    `model_key`: keys that may hold it, tried in order and before "state_dict"; otherwise the file itself is the state dict.
    `model_prefix` is removed from the names that have it, and so are the prefixes of wrapper classes. Parameter names of
    the conversions to Hugging Face transformers become the original ones.
    """
    path = Path(path)
    first, *others = [
        _load_safetensors(f) if f.suffix == ".safetensors" else _load_pickle(f) for f in weight_files(path)
    ]
    content = (
        {name: value for shard in (first, *others) for name, value in shard.items()} if others else first
    )
    for key in (*model_key.split("|"), "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: expected a state dict, or one under {model_key!r}; found {found[:300] or 'an empty file'}. "
            "If the file holds one under another key, pass it as --model_key."
        )
    state = {str(name).removeprefix(model_prefix): value for name, value in content.items()}
    for prefix in WRAPPER_PREFIXES * 2:  # either order
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if "beit3.text_embedding.weight" in state:
        for found, original in HUB_PARAMETERS.items():
            state = {name.replace(found, original): value for name, value in state.items()}
    return state


def weight_files(path: str | Path) -> list[Path]:
    """Return the files with the weights in a folder of Hugging Face or of ours, several if they are sharded; else `path`."""
    for file in (Path(path, name) for name in HUB_NAMES):
        index = Path(path, f"{file.name}.index.json")
        if file.is_file():
            return [file]
        if index.is_file():
            shards = read_json(index, dict).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CheckpointError(
                    f"{index}: expected a weight_map with the names of files, found none. Copy it again."
                )
            return [Path(path, Path(str(name)).name) for name in sorted(set(map(str, shards.values())))]
    return [Path(path)]


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(check_regular_file(path))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: expected safetensors, found a damaged or incomplete file ({error}). Copy or train it again."
        ) from None


def _load_pickle(path: Path) -> Any:
    with _as_file(path) as file:
        _refuse_zip_bomb(file, path)
        try:
            with torch.serialization.safe_globals(HARMLESS_GLOBALS):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            found = (
                f"an object of {name[1]}, which could run code"
                if name
                else "another kind of file, or a damaged one"
            )
        except Exception as error:  # torch.load raises many types for files of other kinds
            reason = str(error).partition("\n")[0] or type(error).__name__
            found = f"another kind of file, or a damaged one ({reason})"
    raise CheckpointError(
        f"{path}: expected a PyTorch checkpoint with tensors only, found {found}. Download it again."
    )


@contextmanager
def _as_file(path: Path) -> Iterator[Path]:
    """Yield the file itself; for a folder that a checkpoint was unpacked into, the archive packed again."""
    if not path.is_dir():
        yield check_regular_file(path)
        return
    roots = [file.parent for file in sorted(path.rglob("data.pkl"))]
    if len(roots) != 1:
        raise CheckpointError(
            f"{path}: expected a checkpoint file, or the folder of one that was unpacked (data.pkl, data/), found {len(roots)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for file in sorted(roots[0].rglob("*")):
                if file.is_file():
                    packed.write(file, Path("archive") / file.relative_to(roots[0]))
        yield archive


def _refuse_zip_bomb(file: Path, path: Path) -> None:
    """torch.save does not compress, but accepts compressed archives, which could ask for any amount of memory."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_COMPRESSION * file.stat().st_size:
            raise CheckpointError(
                f"{path}: expected a PyTorch checkpoint, found a file of {file.stat().st_size / 1e6:.1f} MB that unpacks to "
                f"{unpacked / 1e6:,.0f} MB. Do not use it."
            )


def load_pretrained(
    model: CaptionModel, path: str | Path, model_key: str = "model|module", model_prefix: str = ""
) -> LoadReport:
    """Load a public checkpoint into `model`.

    Position embeddings of another image size are resized, a missing captioning head is initialized, and heads of other
    tasks are skipped. Raises CheckpointError naming the parameters if anything else is missing, has another shape, or is
    not finite.
    """
    state = read_state(path, model_key, model_prefix)
    own = model.state_dict()
    resized = []
    if state.get(IMAGE_POSITIONS, own[IMAGE_POSITIONS]).shape != own[IMAGE_POSITIONS].shape:
        with suppress(
            ValueError
        ):  # not a square grid: `_check_state` names it as a parameter of another shape
            state[IMAGE_POSITIONS] = resize_positions(state[IMAGE_POSITIONS], len(own[IMAGE_POSITIONS]))
            resized = [IMAGE_POSITIONS]
    fresh = [name for name in own if name not in state and name.startswith("mlm_head.")]
    skipped = sorted(name for name in state if name not in own)
    _check_state(path, state, own, may_miss=fresh)
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    if fresh:
        initialize_weights(model.mlm_head)
    return LoadReport([name for name in own if name in state], resized, fresh, skipped)


def _check_state(
    path: Path | str, state: Mapping[str, Tensor], own: Mapping[str, Tensor], may_miss: Sequence[str] = ()
):
    """Raise CheckpointError, naming the parameters, unless `state` can be loaded into a model with the state dict `own`."""
    shared = [name for name in own if name in state]
    if not shared:
        prefix = next(
            (name.removesuffix(TEXT_EMBEDDINGS) for name in state if name.endswith(TEXT_EMBEDDINGS)), ""
        )
        todo = (
            f"Pass --model_prefix {prefix}"
            if prefix
            else "Use a checkpoint of the BEiT-3 release or its conversion."
        )
        raise CheckpointError(
            f"{path}: expected names such as {TEXT_EMBEDDINGS}, found {', '.join(list(state)[:3])}. {todo}"
        )
    problems = {
        "missing": [name for name in own if name not in state and name not in may_miss],
        "of another shape": [
            f"{name} (expected {tuple(own[name].shape)}, found {tuple(state[name].shape)})"
            for name in shared
            if state[name].shape != own[name].shape
        ],
        "unknown": [name for name in state if name not in own and name.startswith("beit3.")],
        "not finite": [name for name in shared if not state[name].sum(dtype=torch.float64).isfinite()],
    }
    lines = [
        f"  {len(names)} {what}: {', '.join(names[:5])}"
        + (f", … {len(names) - 5} more" if len(names) > 5 else "")
        for what, names in problems.items()
        if names
    ]
    if lines:
        todo = "Choose the --model that it was made for, or copy it again."
        raise CheckpointError("\n".join([f"{path}: expected a checkpoint of this model. {todo}", *lines]))


def resize_positions(table: Tensor, rows: int) -> Tensor:
    """Resize image position embeddings (3 + s², D) to another square grid: (rows, D), bicubic; the first three rows stay.

    Raises ValueError if either grid is not square. Source: the recipe's interpolation, `align_corners=False`.
    """
    old, new = (math.isqrt(max(0, count - EXTRA_POSITIONS)) for count in (len(table), rows))
    if table.ndim != 2 or [EXTRA_POSITIONS + old**2, EXTRA_POSITIONS + new**2] != [len(table), rows]:
        raise ValueError(
            f"position embeddings: expected 3 + s² rows, found shape {tuple(table.shape)}, for {rows} rows"
        )
    grid = table[EXTRA_POSITIONS:].float().T.reshape(1, -1, old, old)  # (1, D, s, s)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:EXTRA_POSITIONS], grid.flatten(2)[0].T.to(table.dtype)])


def save_public(model: CaptionModel, path: str | Path) -> Path:
    """Write the weights in the public format, `{"model": state_dict}`."""
    with atomic_path(path) as temporary:
        torch.save({"model": _cpu_state(model.state_dict())}, temporary)
    return Path(path)


def _cpu_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def save_captioner(
    captioner: Captioner, folder: str | Path, spm_path: str | Path, meta: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint folder; `meta` (plain values) is added to meta.json."""
    own = {
        "caption_types": captioner.caption_types,
        "max_tokens": captioner.max_tokens,
        "length_penalty": captioner.length_penalty,
    }
    with atomic_folder(folder) as new:
        write_captioner_files(
            new, captioner.model.state_dict(), captioner.model.config, spm_path, {**own, **(meta or {})}
        )
    return Path(folder)


def write_captioner_files(
    folder: Path,
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    spm_path: str | Path,
    meta: Mapping[str, Any],
) -> None:
    """Write the files of a checkpoint into a folder that exists, for callers that make the folder atomic themselves.

    `meta` must have `caption_types`, and may have `max_tokens` and `length_penalty`; `model` and `tokenizer_sha256` are added.
    """
    save_file(_cpu_state(state_dict), folder / WEIGHTS_NAME)
    shutil.copyfile(spm_path, folder / SPM_NAME)
    own = {"model": asdict(config), "tokenizer_sha256": file_hash(spm_path)}
    write_json(folder / META_NAME, {**own, **meta})


class _Meta(pydantic.BaseModel):
    """The part of meta.json that loading needs."""

    model: ModelConfig
    caption_types: list[tuple[str, str]]
    max_tokens: Annotated[int, Field(ge=3, le=1022)] = (
        64  # torchscale has 1,024 positions, the first two of them unused
    )
    length_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.6
    tokenizer_sha256: str | None = None


def load_captioner(folder: str | Path, device: str | torch.device | None = None) -> Captioner:
    """Read a folder that `save_captioner` wrote, with the model in eval mode. `device`: default CUDA if there is a GPU."""
    folder = readable_folder(folder)
    missing = [name for name in (WEIGHTS_NAME, META_NAME, SPM_NAME) if not (folder / name).is_file()]
    if missing:
        todo = (
            f"Give {folder / 'best'}."
            if (folder / "best").is_dir()
            else "Give a folder such as runs/demo/best."
        )
        found = "a file" if folder.is_file() else f"no {', '.join(missing)}"
        raise FileNotFoundError(f"{folder}: expected a checkpoint folder, found {found}. {todo}")
    content = read_json(folder / META_NAME, dict)
    try:
        meta = _Meta.model_validate(content)
    except pydantic.ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(
            f"{folder / META_NAME}: {where}: {error.errors()[0]['msg']}. Copy the checkpoint again, or run notebook 3."
        ) from None
    if meta.tokenizer_sha256 not in (None, file_hash(folder / SPM_NAME)):
        raise CheckpointError(
            f"{folder / SPM_NAME}: expected the tokenizer that the model was trained with (sha256 {meta.tokenizer_sha256}), "
            "found another one. Copy the checkpoint again."
        )
    tokenizer = load_tokenizer(folder / SPM_NAME, meta.model.vocab_size)
    with torch.device("meta"):
        model = CaptionModel(replace(meta.model, drop_path=0.0, checkpoint_activations=False))
    state = _load_safetensors(folder / WEIGHTS_NAME)
    _check_state(folder / WEIGHTS_NAME, state, model.state_dict())
    model.load_state_dict(state, strict=False, assign=True)  # checked above
    model = model.to(device or choose_device()).eval()
    return Captioner(model, tokenizer, meta.caption_types, meta.max_tokens, meta.length_penalty, content)


PRIVATE_OPTIONS = {
    "output_dir",
    "data_path",
    "log_dir",
    "sentencepiece_model",
    "resume",
}  # paths on the training machine


def export_folder(folder: str | Path, out: str | Path) -> Path:
    """Copy a checkpoint folder to `out` with a model card (README.md) and without the paths of the training machine.

    `load_captioner` reads the copy. Upload it with `huggingface_hub.upload_folder`. Raises `FileExistsError` if `out` has
    other content than an earlier export.
    """
    captioner, out = load_captioner(folder, "cpu"), Path(out)
    if out.exists() and not (out.is_dir() and ((out / META_NAME).is_file() or not any(out.iterdir()))):
        raise FileExistsError(
            f"{out}: expected a new or empty folder, or an earlier export, found other content. Choose another."
        )
    meta = dict(captioner.meta)
    options = {name: value for name, value in meta.get("options", {}).items() if name not in PRIVATE_OPTIONS}
    if options:
        meta["options"] = options | {"finetune": Path(options.get("finetune") or "").name}
    with atomic_folder(out) as new:
        spm = readable_folder(folder) / SPM_NAME
        write_captioner_files(new, captioner.model.state_dict(), captioner.model.config, spm, meta)
        write_text(new / "README.md", model_card(out.resolve().name, meta))
    return out


def model_card(name: str, meta: Mapping[str, Any]) -> str:
    """Return a model card in the form that the Hugging Face Hub reads: YAML front matter, then Markdown."""
    options, score = meta.get("options", {}), meta.get("best_score")
    front: dict[str, Any] = {
        "library_name": "beit3lib",
        "pipeline_tag": "image-to-text",
        "language": "en",
        "license": "other",
    }
    front["tags"] = ["beit3", "image-captioning", "traffic"]
    if score is not None:
        metric = {
            "type": "aicity-track2",
            "name": "mean score of single validation captions, 0 to 100",
            "value": round(score, 2),
        }
        dataset = {"type": "validation", "name": "validation images; the best epoch"}
        result = {"task": {"type": "image-to-text"}, "dataset": dataset, "metrics": [metric]}
        front["model-index"] = [{"name": name, "results": [result]}]
    size, step = meta["model"]["image_size"], meta.get("step", "unknown")
    types = ", ".join(f"{subject} {aspect.replace('_', ' ')}" for subject, aspect in meta["caption_types"])
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---
# {name}

A BEiT-3 model that captions motion-blur images of traffic scenes, fine-tuned with beit3lib.

| | |
|---|---|
| base model | {options.get("model") or "BEiT-3"}, weights: {options.get("finetune") or "random or unknown"} |
| training data | WTS, the drawn sample, or data of the same form; images of {size} x {size} pixels |
| caption types | {types} |
| training steps | {step} |
| mean score of validation captions, best epoch, 0 to 100 | {"not measured" if score is None else f"{score:.1f}"} |

```python
from huggingface_hub import snapshot_download
from beit3lib.checkpoint import load_captioner

captioner = load_captioner(snapshot_download("your-name/{name}"))
print(captioner.caption("photo.jpg"))
```

BEiT-3's weights are under Microsoft's MIT license. Weights that were trained on WTS are also subject to the WTS terms of use;
check them before you publish this folder, and then set `license` above.
"""


@exit_on_error()
def main() -> None:
    """Export a checkpoint folder to a file in the public format, or to a folder with a model card."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.checkpoint", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint folder, for example runs/mine/best")
    parser.add_argument(
        "out", type=Path, help="a file (.pth, .pt or .bin), or with another name a folder with a model card"
    )
    options = parser.parse_args()
    if options.out.suffix not in (".pth", ".pt", ".bin"):
        print(f"{export_folder(options.folder, options.out)}: a checkpoint folder with a model card")
        return
    path = save_public(load_captioner(options.folder, "cpu").model, options.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, in the public format")


if __name__ == "__main__":
    main()
