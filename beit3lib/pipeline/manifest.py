"""Find every input that `data_manifest.yaml` describes, here and on Kaggle.

    python -m beit3lib.pipeline.manifest            a table of all inputs, found or missing
    python -m beit3lib.pipeline.manifest wts        the same for one input; exit code 1 if it is missing

Weights are found as `.pth`, `.zip`, `.pt`, `.safetensors`, without a suffix, as the folder that Kaggle unpacks, or as a folder
in the format of Hugging Face.
"""

import argparse
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from beit3lib.data.prepared import find_prepared
from beit3lib.data.wts import find_wts
from beit3lib.files import exit_on_error, read_text
from beit3lib.pipeline.mounts import folders_in, kaggle_inputs, kaggle_root

NAME = "data_manifest.yaml"
WEIGHT_SUFFIXES = (".pth", ".zip", ".pt", "", ".safetensors")
# Files of a folder with weights: Kaggle unpacks a .pth file, which is a zip archive; the others are those of Hugging Face.
WEIGHT_FILES = ("**/data.pkl", "model*.safetensors", "pytorch_model*.bin")


def _find_download(folder: Path) -> Path | None:
    """Find the WTS download at `folder`. The drawn sample has the same structure and does not count."""
    found = find_wts(folder)
    is_sample = found is not None and any((inside / "drawn.json").exists() for inside in folders_in(found, 3))
    return None if is_sample else found


def _find_prepared(folder: Path) -> Path | None:
    found = find_prepared(folder)
    return found.root if found else None


READERS: dict[str, Callable[[Path], Path | None]] = {"wts": _find_download, "prepared": _find_prepared}


class ManifestError(ValueError):
    """The manifest itself is wrong; the message names file, entry and key."""


class MissingInput(FileNotFoundError):
    """An input was not found; the message lists the searched paths and the source of the input."""


class Entry(BaseModel):
    """One input of the manifest. The comment at the top of `data_manifest.yaml` explains the keys."""

    model_config = ConfigDict(extra="forbid", strict=True)
    what: str
    env: str
    source: str = Field(alias="from")
    terms: str
    looked_for: list[str]
    kaggle: str | None = None
    contains: dict[str, int] | None = None
    file: str | None = None
    reader: str | None = None
    models: dict[str, list[str]] | None = None
    checkpoints: list[str] | None = Field(None, exclude=True)  # set by `load_manifest`, one entry per model

    @model_validator(mode="after")
    def _one_way_to_recognize(self) -> "Entry":
        given = [name for name in ("contains", "file", "reader", "models") if getattr(self, name) is not None]
        if len(given) != 1 and self.checkpoints is None:
            raise ValueError(
                f"expected exactly one of contains, file, reader, models, got {', '.join(given) or 'none'}"
            )
        if self.reader is not None and self.reader not in READERS:
            raise ValueError(f"reader: expected one of {', '.join(READERS)}, got {self.reader!r}")
        return self

    def lacks(self, path: Path) -> list[str]:
        """Return what is missing at `path`; an empty list means that this input is there."""
        if self.reader is not None:
            return [] if READERS[self.reader](path) else [f"what the reader of {self.reader} data expects"]
        if self.contains is not None:
            return [
                pattern for pattern, least in self.contains.items() if _count(path, pattern, least) < least
            ]
        is_there = path.is_file() or (
            self.checkpoints and any(_count(path, pattern, 1) for pattern in WEIGHT_FILES)
        )
        return [] if is_there else [path.name]

    def paths_in(self, folder: Path) -> list[Path]:
        """Return the paths inside `folder` at which this input may be."""
        if self.checkpoints:
            return [folder / f"{name}{suffix}" for name in self.checkpoints for suffix in WEIGHT_SUFFIXES]
        return [folder / self.file] if self.file else [folder]


class Manifest:
    """The entries of a manifest. Relative paths in it start at the folder `here` and at every folder above."""

    def __init__(self, path: Path, entries: dict[str, Entry], here: Path) -> None:
        self.path, self.entries, self.here = path, entries, here

    def find(self, name: str) -> Path | None:
        """Return the path of an input, or None."""
        entry = self._entry(name)
        found = next((path for path in self._candidates(entry) if not entry.lacks(path)), None)
        return READERS[entry.reader](found) if found and entry.reader else found

    def locate(self, name: str) -> Path:
        """Return the path of an input, or raise `MissingInput` with every path that was tried and how to get the input."""
        entry, found = self._entry(name), self.find(name)
        if found is None:
            tried = [
                f"${entry.env}",
                *(str(self.here / path) for path in entry.looked_for),
                "the same in the folders above",
            ]
            raise MissingInput(
                f"{name}: expected {entry.what}, found nothing in {', '.join([*tried, str(kaggle_root())])}. "
                f"Get it from {entry.source} (terms: {entry.terms}), or set {entry.env} to its path."
            )
        return found

    def table(self, names: list[str] | None = None) -> pd.DataFrame:
        """Return a row per input: what it is, where it was found, what is missing in an incomplete one, where to get it."""
        rows = []
        for name in names or self.entries:
            entry, found = self._entry(name), self.find(name)
            near = (
                next((path for path in self._candidates(entry) if path.exists()), None)
                if found is None
                else None
            )
            lacks = ", ".join(entry.lacks(near)) if near and entry.contains else ""
            source = "" if found else f"{entry.source}; or set {entry.env}"
            rows.append(
                (name, entry.what, "yes" if found else "no", str(found or ""), lacks, source, entry.terms)
            )
        columns = ["input", "what", "found", "where", "lacks", "get it from", "terms"]
        return pd.DataFrame(rows, columns=columns).set_index("input")

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise ManifestError(f"{self.path}: expected one of {', '.join(self.entries)}, got {name!r}.")
        return self.entries[name]

    def _candidates(self, entry: Entry) -> Iterator[Path]:
        """Paths in order of preference: the environment variable, folders from `here` upwards, Kaggle's mounts."""
        if named := os.environ.get(entry.env):
            path = Path(named).expanduser()
            if lacks := entry.lacks(path):
                found = f"no {' and no '.join(lacks)}" if path.exists() else "nothing"
                raise MissingInput(
                    f"{entry.env}={named}: expected {entry.what}, found {found}. Correct or unset {entry.env}."
                )
            yield path
        for folder in (self.here, *self.here.parents, self.path.parent):
            for name in entry.looked_for:
                yield from entry.paths_in(folder / name)
        for top in kaggle_inputs():  # a reader searches all folders in `top` itself
            for folder in folders_in(top, 0 if entry.reader else 3):
                yield from entry.paths_in(folder)


def _count(folder: Path, pattern: str, enough: int) -> int:
    """Count the files that match `pattern`. Stop at `enough`, because a download has tens of thousands."""
    return sum(1 for _ in islice(folder.glob(pattern), enough)) if folder.is_dir() else 0


def load_manifest(path: str | Path | None = None, here: Path | None = None) -> Manifest:
    """Read a manifest; by default `data_manifest.yaml` beside the package, in the working folder, or as installed."""
    share = (
        Path(sysconfig.get_path("data")) / "share" / "beit3lib"
    )  # on Debian below /usr/local, unlike sys.prefix
    own = [Path(__file__).parents[2] / NAME, Path.cwd() / NAME, share / NAME]
    path = Path(path) if path else next((p for p in own if p.is_file()), own[0])
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ManifestError(
            f"{path}: expected YAML, found text that is not ({reason}). Correct the file."
        ) from None
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ManifestError(f"{path}: expected a mapping with `version` and `entries`. Correct the file.")
    return Manifest(path, dict(_checked(path, entries)), here or Path.cwd())


def _checked(path: Path, entries: dict) -> Iterator[tuple[str, Entry]]:
    """Yield the name and the checked form of every entry; an entry with `models` becomes one entry per model."""
    for name, values in entries.items():
        try:
            entry = Entry.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ", ".join(
                [f"{path}, entry {str(name)[:50]}", *(f"key {part}" for part in first["loc"][:1])]
            )
            problem = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            raise ManifestError(f"{where}: {problem}. Correct the file.") from None
        if entry.models is None:
            yield str(name), entry
        for model, checkpoints in (entry.models or {}).items():
            short = model.removeprefix("beit3_").replace("_patch16", "").upper()  # BASE_224
            change = {"what": f"{entry.what} for {model}", "env": entry.env.replace("{model}", short)}
            yield model, entry.model_copy(update={**change, "checkpoints": checkpoints})


@exit_on_error()
def main() -> int:
    """`python -m beit3lib.pipeline.manifest [entry …]`."""
    parser = argparse.ArgumentParser(
        prog="python -m beit3lib.pipeline.manifest", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "entries", nargs="*", help="inputs to look for; exit code 1 if one is missing [all, exit code 0]"
    )
    names = parser.parse_args().entries
    table = load_manifest().table(names or None)
    for name, row in table.iterrows():
        print(
            f"{name}: {row.pop('what')}",
            *(f"  {key}: {value}" for key, value in row.items() if value),
            sep="\n",
        )
    return int(bool(names) and (table["found"] == "no").any())


if __name__ == "__main__":
    sys.exit(main())
