"""Public BEiT-3 checkpoints in and out; our own checkpoints, a folder each.

Public: `.pth`, the same renamed `.zip`, without an ending, or unpacked into a folder, as Kaggle does it;
`{"model": …}`, `{"module": …}` or the bare state dict. Nothing is ever unpickled beyond tensors and plain values.

Ours: `model.safetensors`, `sentencepiece.bpe.model` and a readable `meta.json`, complete or not there.

    python -m beit3lib.checkpoint runs/mine/best mine.pth        ours to the public format
"""

import argparse
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from beit3lib.files import atomic_folder, atomic_path, in_one_sentence, read_json, readable_folder, write_json
from beit3lib.model import Captioner, ModelConfig, choose_device
from beit3lib.tokenizer import SPM_NAME, load_tokenizer

WEIGHTS_NAME, META_NAME = "model.safetensors", "meta.json"
IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
SPECIAL_ROWS = 3  # two unused rows (fairseq's habit) and the class token's


class CheckpointError(ValueError):
    """The file is no BEiT-3 checkpoint for this model."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did: names of parameters loaded, resized, left at their start, and left out."""

    loaded: list[str]
    resized: list[str]
    fresh: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for names, what in ((self.resized, "resized"), (self.fresh, "start fresh"), (self.left_out, "not ours")):
            if names:
                parts.append(f"{what}: {', '.join(names)}")
        return "; ".join(parts)


def read_state(path: str | Path, model_key: str = "model|module", model_prefix: str = "") -> dict[str, Tensor]:
    """The state dict in a public checkpoint, as {name: tensor} on the CPU.

    `model_key`: keys under which it may lie, tried in order, else the file itself is the state dict. `model_prefix` is
    cut off the names that carry it. A folder of ours is taken too.

    `CheckpointError` for anything that is no checkpoint or holds more than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a checkpoint here, found nothing")
    if (path / WEIGHTS_NAME).is_file():
        path = path / WEIGHTS_NAME
    content = load_file(path) if path.suffix == ".safetensors" else _load_tensors(path)
    for key in model_key.split("|"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path}: expected a state dict, or one under {model_key!r}; found {found or 'an empty file'}")
    return {name.removeprefix(model_prefix): value for name, value in content.items()}


def _load_tensors(path: Path):
    try:
        # Namespace: the public recipe saves its options beside the weights; it carries values and runs nothing
        with _packed(path) as file, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = "Unsupported global" in str(error) or "GLOBAL" in str(error)
        why = "it asks to run code or build objects" if wanted else "it is no PyTorch file, or was cut off"
        raise CheckpointError(f"{path}: refused, {why}; expected tensors only, as public BEiT-3 checkpoints are") from None
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises what it meets in a file of another kind: EOFError, KeyError, RuntimeError
        told = isinstance(error, (RuntimeError, OSError)) and str(error)
        reason = str(error).splitlines()[0] if told else "it is no PyTorch file, or was cut off"
        raise CheckpointError(f"{path}: expected a PyTorch checkpoint, found a file that cannot be read: {reason}") from None


@contextmanager
def _packed(path: Path):
    """The file itself; for a folder into which a checkpoint was unpacked, the archive made again."""
    if path.is_file():
        yield path
        return
    roots = [file.parent for file in sorted(path.rglob("data.pkl"))]
    if len(roots) != 1:
        raise CheckpointError(f"{path}: expected a checkpoint file, or one unpacked (data.pkl, data/); found {len(roots)}")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for file in sorted(roots[0].rglob("*")):
                if file.is_file():
                    packed.write(file, Path("archive") / file.relative_to(roots[0]))
        yield archive


def load_pretrained(model: Captioner, path: str | Path, model_key: str = "model|module", model_prefix: str = ""):
    """Load a public checkpoint into `model`; returns a `LoadReport`.

    Position embeddings of another image size are resized. A head that is absent starts fresh; heads of other tasks are
    left out. Anything else that is missing, or of another shape, is a `CheckpointError` that names the keys.
    """
    state = read_state(path, model_key, model_prefix)
    own = model.state_dict()
    resized = _fit_positions(state, own)
    left_out = sorted(name for name in state if name not in own)
    missing = [name for name in own if name not in state]
    fresh = [name for name in missing if name.startswith("mlm_head.")]
    wrong = [
        f"{name}: expected {tuple(own[name].shape)}, found {tuple(state[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    absent = [name for name in missing if name not in fresh]
    inside = [name for name in left_out if name.startswith("beit3.")]
    if absent or wrong or inside:
        raise CheckpointError(_mismatch(path, absent, wrong, inside))
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    return LoadReport([name for name in own if name in state], resized, fresh, left_out)


def _mismatch(path: str | Path, absent: list[str], wrong: list[str], surplus: list[str]) -> str:
    lines = [f"{path}: not a checkpoint of this model; choose the --model that it was made for"]
    for names, what in ((absent, "missing"), (wrong, "of another shape"), (surplus, "unknown")):
        if names:
            more = f", … {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(f"  {len(names)} {what}: {', '.join(names[:5])}{more}")
    return "\n".join(lines)


def _fit_positions(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    if IMAGE_POSITIONS not in state or state[IMAGE_POSITIONS].shape[0] == own[IMAGE_POSITIONS].shape[0]:
        return []
    if state[IMAGE_POSITIONS].shape[1] != own[IMAGE_POSITIONS].shape[1]:
        return []  # another width: the comparison of shapes tells
    state[IMAGE_POSITIONS] = resize_positions(state[IMAGE_POSITIONS], own[IMAGE_POSITIONS].shape[0])
    return [IMAGE_POSITIONS]


def resize_positions(table: Tensor, rows: int) -> Tensor:
    """Position embeddings (3 + s², D) for another square grid: (rows, D), bicubic; the first three rows stay.

    Source: the public recipe's interpolation, `align_corners=False`.
    """
    old, new = (round((count - SPECIAL_ROWS) ** 0.5) for count in (table.shape[0], rows))
    if old * old != table.shape[0] - SPECIAL_ROWS or new * new != rows - SPECIAL_ROWS:
        raise CheckpointError(f"expected a square grid of positions and 3 rows, found {table.shape[0]} for {rows} rows")
    grid = table[SPECIAL_ROWS:].float().T.reshape(1, -1, old, old)  # (1, D, s, s)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:SPECIAL_ROWS], grid.flatten(2)[0].T.to(table.dtype)])


def save_public(model: Captioner, path: str | Path) -> Path:
    """Write the weights in the public format, `{"model": state_dict}`, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save({"model": state}, temporary)
    return Path(path)


def save_captioner(model: Captioner, folder: str | Path, spm_path: str | Path, meta: Mapping | None = None) -> Path:
    """Write our checkpoint folder, complete or not at all; `meta` (plain values) goes beside the model's config."""
    with atomic_folder(folder) as new:
        write_captioner(model, new, spm_path, meta)
    return Path(folder)


def write_captioner(
    model: Captioner,
    folder: Path,
    spm_path: str | Path,
    meta: Mapping | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """The files of a checkpoint, into a folder that exists; for callers that add files of their own.

    `weights` stand in for the model's own, where these are spread over several processes or averaged.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in (weights or model.state_dict()).items()}
    save_file(state, folder / WEIGHTS_NAME)
    shutil.copyfile(spm_path, folder / SPM_NAME)
    described = {"model": model.meta(), "descriptions": model.descriptions, "vocabulary": model.vocabulary}
    write_json(folder / META_NAME, {**described, **(meta or {})})


def load_captioner(folder: str | Path, device: str | torch.device | None = None) -> Captioner:
    """Read a folder that `save_captioner` wrote: the model in eval mode, with its tokenizer and descriptions.

    `device`: default CUDA where there is one.
    """
    folder = readable_folder(folder)
    absent = [name for name in (WEIGHTS_NAME, META_NAME, SPM_NAME) if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder}: expected a checkpoint folder, found none with {', '.join(absent)}; run notebook 3")
    meta = read_json(folder / META_NAME)
    config = ModelConfig(**{**meta["model"], "drop_path": 0.0, "checkpoint_activations": False})
    with torch.device("meta"):  # no time spent on a random start that is replaced at once
        model = Captioner(config)
    model.load_state_dict(load_file(folder / WEIGHTS_NAME), strict=True, assign=True)
    model.tokenizer = load_tokenizer(folder / SPM_NAME, config.vocab_size)
    model.descriptions = [tuple(pair) for pair in meta["descriptions"]]
    model.vocabulary = meta.get("vocabulary", [])
    taught = meta.get("options", {})
    model.max_tokens = taught.get("num_max_bpe_tokens", model.max_tokens)
    model.length_penalty = taught.get("length_penalty", model.length_penalty)
    return model.to(device or choose_device()).eval()


@in_one_sentence()
def main() -> None:
    """`python -m beit3lib.checkpoint FOLDER FILE`."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.checkpoint", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint of ours, such as runs/mine/best")
    parser.add_argument("file", type=Path, help="the file to write in the public format, such as mine.pth")
    options = parser.parse_args()
    if options.file.is_dir():
        raise IsADirectoryError(f"{options.file}: expected the name of a file to write, found a folder")
    path = save_public(load_captioner(options.folder, "cpu"), options.file)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, in the public format")


if __name__ == "__main__":
    main()
