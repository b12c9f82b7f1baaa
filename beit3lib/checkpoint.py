"""Read public BEiT-3 checkpoints; write and read our own, a folder each.

Public: `.pth`, the same renamed to `.zip`, without an ending, or unpacked into a folder, as Kaggle does it;
`{"model": …}`, `{"module": …}` or the bare state dict; also the checkpoints that the reference implementation
or DeepSpeed saves while fine-tuning. Nothing is unpickled beyond tensors and plain values.

Ours: `model.safetensors`, `sentencepiece.bpe.model` and a readable `meta.json`, written completely or not at
all.

    python -m beit3lib.checkpoint runs/mine/best mine.pth        export to the public format
    python -m beit3lib.checkpoint runs/mine/best mine            export a folder with a model card for the Hub
"""

import argparse
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelCardData
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
)
from beit3lib.model import CaptionModel, ModelConfig, initialize_weights
from beit3lib.tokenizer import SPM_NAME, load_tokenizer

WEIGHTS_NAME, META_NAME = "model.safetensors", "meta.json"
IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
EXTRA_POSITIONS = 3  # rows of IMAGE_POSITIONS before the patches: two unused ones, and the class token

# Everything that the reference implementation saves beside tensors: its options, and learning rates as numpy
# numbers, whose unpickling function has another module name in numpy 1 than in numpy 2. None of these runs
# code when it is unpickled.
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


def load_pretrained(
    model: CaptionModel, path: str | Path, model_key: str = "model|module", model_prefix: str = ""
) -> str:
    """Load a public checkpoint, or a folder of ours, into `model`; returns a line about its parameters.

    `model_key`: keys that may hold the state dict, tried in order; otherwise the file itself is the state
    dict. `model_prefix` is removed from the names that have it.

    Position embeddings of another image size are resized, a missing captioning head or answer map is
    initialized, and heads of other tasks are skipped. Raises CheckpointError, which names the parameters, if
    anything else is missing, has another shape, or is not finite.
    """
    state, own, other = _read_state(Path(path), model_key, model_prefix), model.state_dict(), {}
    rows = len(own[IMAGE_POSITIONS])
    if IMAGE_POSITIONS in state and len(state[IMAGE_POSITIONS]) != rows:
        state[IMAGE_POSITIONS] = resize_positions(state[IMAGE_POSITIONS], rows)
        other["resized"] = [IMAGE_POSITIONS]
    heads = ("mlm_head.", "answer_map.")
    other["initialized"] = [name for name in own if name not in state and name.startswith(heads)]
    other["skipped"] = sorted(state.keys() - own.keys())
    _check_state(path, state, own, other["initialized"])
    model.load_state_dict(state, strict=False)
    for head in {name.partition(".")[0] for name in other["initialized"]}:
        initialize_weights(getattr(model, head))
    counted = f"{len(own.keys() & state.keys())} tensors loaded"
    return "; ".join([counted, *(f"{what}: {', '.join(names)}" for what, names in other.items() if names)])


def _read_state(path: Path, model_key: str, model_prefix: str) -> dict[str, Tensor]:
    path = path / WEIGHTS_NAME if (path / WEIGHTS_NAME).is_file() else path
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    content = _load_pickle(path)
    if isinstance(content, dict):
        content = next((content[key] for key in model_key.split("|") if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path}: expected a state dict under {model_key}, found {found[:300]}. Pass another --model_key."
        )
    return {name.removeprefix(model_prefix): value for name, value in content.items()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(check_regular_file(path))
    except SafetensorError as error:
        found = f"a damaged file ({error})"
        raise CheckpointError(f"{path}: expected safetensors, found {found}. Copy it again.") from None


def _load_pickle(path: Path) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = _pack(path, Path(folder)) if path.is_dir() else check_regular_file(path)
        try:
            with torch.serialization.safe_globals(HARMLESS_GLOBALS):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many types for files of other kinds
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            found = f"{name[1]}, which could run code" if name else "a damaged file, or another kind of file"
    raise CheckpointError(f"{path}: expected a checkpoint of tensors, found {found}. Download it again.")


def _pack(path: Path, folder: Path) -> Path:
    """Pack a checkpoint that was unpacked into the folder `path` into an archive again."""
    pickles = list(path.rglob("data.pkl"))
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: expected an unpacked checkpoint, found {len(pickles)} data.pkl in it")
    root, archive = pickles[0].parent, folder / "archive.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in filter(Path.is_file, root.rglob("*")):
            packed.write(file, Path("archive") / file.relative_to(root))
    return archive


def _check_state(
    path: str | Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor], may_miss=()
) -> None:
    """Raise CheckpointError unless `state` can be loaded into a model with the state dict `own`."""
    wrong = [f"{name} is missing" for name in own if name not in state and name not in may_miss]
    wrong += [f"{name} is unknown" for name in state if name not in own and name.startswith("beit3.")]
    for name in own.keys() & state.keys():
        if state[name].shape != own[name].shape:
            wrong.append(f"{name} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}")
        elif not state[name].sum(dtype=torch.float64).isfinite():
            wrong.append(f"{name} is not finite")
    if wrong:
        raise CheckpointError(
            f"{path}: expected a checkpoint of this model, found {len(wrong)} parameters that differ: "
            f"{'; '.join(sorted(wrong)[:5])}. Choose another --model or --model_prefix, or copy it again."
        )


def resize_positions(table: Tensor, rows: int) -> Tensor:
    """Resize image position embeddings (3 + s², D) to another square grid: (rows, D); three rows stay.

    Source: the reference implementation's interpolation, bicubic with `align_corners=False`.
    """
    old, new = (math.isqrt(count - EXTRA_POSITIONS) for count in (len(table), rows))
    grid = table[EXTRA_POSITIONS:].float().T.reshape(1, -1, old, old)  # (1, D, s, s)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:EXTRA_POSITIONS], grid.flatten(2)[0].T.to(table.dtype)])


def save_public(model: CaptionModel, path: str | Path) -> Path:
    """Write the weights in the public format, `{"model": state_dict}`."""
    with atomic_path(path) as temporary:
        torch.save({"model": {name: value.cpu() for name, value in model.state_dict().items()}}, temporary)
    return Path(path)


def save_captioner(captioner: Captioner, folder: str | Path, spm_path: str | Path) -> Path:
    """Write a checkpoint folder. Its meta.json includes `captioner.meta` (plain values)."""
    with atomic_folder(folder) as new:
        write_captioner_files(new, captioner.model.state_dict(), spm_path, captioner_meta(captioner))
    return Path(folder)


def captioner_meta(captioner: Captioner) -> dict[str, Any]:
    """Return the content of meta.json: size of the model, how to caption with it, and `captioner.meta`."""
    return {
        **captioner.meta,
        "model": asdict(captioner.model.config),
        "caption_types": captioner.caption_types,
        "max_tokens": captioner.max_tokens,
        "length_penalty": captioner.length_penalty,
    }


def write_captioner_files(
    folder: Path, weights: Mapping[str, Tensor], spm_path: str | Path, meta: Mapping[str, Any]
) -> None:
    """Write the files of a checkpoint into a folder that exists."""
    save_file({name: value.cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS_NAME)
    shutil.copyfile(spm_path, folder / SPM_NAME)
    write_json(folder / META_NAME, {**meta, "tokenizer_sha256": file_hash(spm_path)})


class _Meta(pydantic.BaseModel):
    """The part of meta.json that loading needs."""

    model: ModelConfig
    caption_types: list[tuple[str, str]]
    # torchscale has 1,024 positions, the first two of them unused
    max_tokens: Annotated[int, Field(ge=3, le=1022)] = 64
    length_penalty: pydantic.NonNegativeFloat = 0.6
    tokenizer_sha256: str | None = None


def load_captioner(folder: str | Path, device: str | torch.device | None = None) -> Captioner:
    """Read a folder that `save_captioner` wrote, in eval mode. `device`: default CUDA if there is a GPU."""
    folder = readable_folder(folder)
    missing = [name for name in (WEIGHTS_NAME, META_NAME, SPM_NAME) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected a checkpoint folder such as runs/demo/best, found no {', '.join(missing)}"
        )
    content = read_json(folder / META_NAME, dict)
    meta = _Meta(**content)
    if meta.tokenizer_sha256 not in (None, file_hash(folder / SPM_NAME)):
        raise CheckpointError(
            f"{folder / SPM_NAME}: expected the tokenizer that the model was trained with, found another. "
            "Copy the checkpoint again."
        )
    tokenizer = load_tokenizer(folder / SPM_NAME, meta.model.vocab_size)
    with torch.device("meta"):
        model = CaptionModel(replace(meta.model, drop_path=0.0, checkpoint_activations=False))
    state = _load_safetensors(folder / WEIGHTS_NAME)
    _check_state(folder / WEIGHTS_NAME, state, model.state_dict())
    model.load_state_dict(state, strict=False, assign=True)  # checked above
    model = model.to(device or choose_device()).eval()
    return Captioner(model, tokenizer, meta.caption_types, meta.max_tokens, meta.length_penalty, content)


def export_folder(folder: str | Path, out: str | Path) -> Path:
    """Copy a checkpoint folder to `out`, with a model card (README.md) and without the folders of paths.

    `load_captioner` reads the copy. Upload it with `huggingface_hub.upload_folder`. An earlier export is
    replaced. Raises `FileExistsError` if `out` has other content, such as the weights of a training run.
    """
    captioner, folder, out = load_captioner(folder, "cpu"), readable_folder(folder), Path(out)
    is_export = (out / META_NAME).is_file() and read_json(out / META_NAME, dict).get("export")
    if out.exists() and not is_export and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out}: expected a new folder or an earlier export, found other content")
    options = captioner.meta.get("options", {}).items()
    options = {name: Path(value).name if "/" in str(value) else value for name, value in options}
    meta = captioner.meta | {"export": True, "options": options}
    with atomic_folder(out) as new:
        for name in (WEIGHTS_NAME, SPM_NAME):
            shutil.copyfile(folder / name, new / name)
        write_json(new / META_NAME, meta)
        _model_card(out.resolve().name, meta).save(new / "README.md")
    return out


def _model_card(name: str, meta: Mapping[str, Any]) -> ModelCard:
    types = ", ".join(f"{subject} {aspect.replace('_', ' ')}" for subject, aspect in meta["caption_types"])
    tags = ["beit3", "image-captioning", "traffic"]
    front = ModelCardData(library_name="beit3lib", pipeline_tag="image-to-text", license="other", tags=tags)
    return ModelCard(f"""---
{front}
---
# {name}

BEiT-3, fine-tuned with beit3lib to caption motion-blur images of traffic scenes.

- model: {meta["options"].get("model")}, initial weights: {meta["options"].get("finetune")}
- caption types: {types}
- mean score of the validation captions, 0 to 100: {meta.get("best_score")}

```python
from huggingface_hub import snapshot_download
from beit3lib.checkpoint import load_captioner

captioner = load_captioner(snapshot_download("your-name/{name}"))
print(captioner.caption("photo.jpg"))
```

BEiT-3's weights are under the MIT license; weights that were trained on WTS also under WTS's terms of use.
""")


@exit_on_error()
def main() -> None:
    """Export a checkpoint folder to a file in the public format, or to a folder with a model card."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.checkpoint", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint folder, for example runs/mine/best")
    parser.add_argument("out", type=Path, help="a new file (.pth, .pt or .bin), or else a folder")
    options = parser.parse_args()
    if options.out.suffix not in (".pth", ".pt", ".bin"):
        print(f"{export_folder(options.folder, options.out)}: a checkpoint folder with a model card")
    elif options.out.exists():
        raise FileExistsError(f"{options.out}: expected a new file, found one. Choose another name.")
    else:
        path = save_public(load_captioner(options.folder, "cpu").model, options.out)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, in the public format")


if __name__ == "__main__":
    main()
