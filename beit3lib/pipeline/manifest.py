"""Find every input that `data_manifest.yaml` describes, here and on Kaggle.

python -m beit3lib.pipeline.manifest            all inputs, found or missing
python -m beit3lib.pipeline.manifest wts        one input; exit code 1 if it is missing
python -m beit3lib.pipeline.manifest beit3_large_patch16_480        the weights for one model
"""

import argparse
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import BaseModel, Field, ValidationError

from beit3lib.data.prepared import find_prepared
from beit3lib.data.wts import find_wts
from beit3lib.files import exit_on_error, read_text
from beit3lib.pipeline.mounts import folders_in, kaggle_inputs

NAME = "data_manifest.yaml"
SUFFIXES = ("", ".pth", ".zip", ".pt", ".safetensors")
# In a folder with weights: a .pth file is a zip archive, which Kaggle unpacks; best/ of a run.
UNPACKED = ("**/data.pkl", "model.safetensors")


def _find_download(folder: Path) -> Path | None:
    """Find the WTS download at `folder`. The drawn sample has the same structure and does not count."""
    found = find_wts(folder)
    return None if found and any((at / "drawn.json").exists() for at in folders_in(found, 3)) else found


def _find_prepared(folder: Path) -> Path | None:
    found = find_prepared(folder)
    return found.root if found else None


READERS: dict[str, Callable[[Path], Path | None]] = {"wts": _find_download, "prepared": _find_prepared}


class ManifestError(ValueError):
    """The manifest itself is wrong, or has no such entry."""


class MissingInput(FileNotFoundError):
    """An input was not found; the message lists the searched paths and the source of the input."""


class Entry(BaseModel, extra="forbid", strict=True):
    """One input of the manifest. The comment at the top of `data_manifest.yaml` explains the keys."""

    description: str
    env: str
    source: str = Field(alias="from")
    terms: str
    paths: list[str]
    kaggle: str | None = None
    contains: list[str] = []
    names: list[str] = []
    reader: Literal[tuple(READERS)] | None = None

    def missing(self, path: Path) -> list[str]:
        """Return what is missing at `path`; an empty list means that this input is there."""
        if self.reader:
            return [] if READERS[self.reader](path) else [f"{self.reader} data"]
        if self.names:
            found = path.is_file() or any(any(path.glob(pattern)) for pattern in UNPACKED)
            return [] if found else [path.name]
        return [pattern for pattern in self.contains if not any(path.glob(pattern))]

    def candidates(self, folder: Path) -> list[Path]:
        """Return the paths inside `folder` at which this input may be."""
        return [folder / (name + suffix) for name in self.names for suffix in SUFFIXES] or [folder]


class Manifest(BaseModel, extra="forbid"):
    """The entries of a manifest. Relative paths start at the working folder and at every folder above."""

    version: Literal[3]
    entries: dict[str, Entry]
    path: Path

    def entry(self, name: str) -> Entry:
        """Return the entry of an input; for the name of a model, that of the weights which suit it."""
        if name in self.entries:
            return self.entries[name]
        weights, size = self.entries["weights"], name.split("_patch")[0] + "_"  # beit3_base_
        names = [file for file in weights.names if file.startswith(size)]
        if not names:
            known = ", ".join(self.entries)
            raise ManifestError(f"{self.path}: expected one of {known} or a model, got {name!r}.")
        names.sort(key=lambda file: not file.startswith(name))
        return weights.model_copy(update={"names": names, "description": f"{weights.description} for {name}"})

    def search(self, name: str, near: str | Path = "", required: bool = False) -> tuple[Path | None, str]:
        """Return the path of an input, or None and what is missing in a folder that has a part of it.

        In this order are searched: the path in the environment variable alone; the folder `near`, the working
        folder and those above it; Kaggle's mounts. Raises `MissingInput` if nothing is found although the
        input is `required`, or although the environment variable is set.
        """
        entry, incomplete = self.entry(name), []
        named = os.environ.get(entry.env)
        for path in [Path(named).expanduser()] if named else self._candidates(entry, near):
            if path.exists():
                missing = entry.missing(path)
                if not missing:
                    return READERS[entry.reader](path) if entry.reader else path, ""
                incomplete = incomplete or missing
        if required or named:
            searched = ", ".join(entry.paths) + f" of {Path.cwd()}, above it, or on Kaggle's mounts"
            where = f"{entry.env}={named}" if named else searched
            found = f"no {', '.join(incomplete)}" if incomplete else "none"
            raise MissingInput(
                f"{name}: expected {entry.description} in {where}, found {found}. Get it from {entry.source} "
                f"(terms: {entry.terms}), or set {entry.env} to its path."
            )
        return None, ", ".join(incomplete)

    def _candidates(self, entry: Entry, near: str | Path) -> Iterator[Path]:
        for folder in (*filter(None, [near]), Path.cwd(), *Path.cwd().parents, self.path.parent):
            for name in entry.paths:
                yield from entry.candidates(Path(folder, name))
        for top in kaggle_inputs():  # a reader searches all folders in `top` itself
            for folder in folders_in(top, 0 if entry.reader else 3):
                yield from entry.candidates(folder)

    def table(self, names: Iterable[str] = ()) -> pd.DataFrame:
        """Return a row per input: description, path, what is missing in an incomplete one, source, terms."""
        rows = []
        for name in names or self.entries:
            entry, (found, missing) = self.entry(name), self.search(name)
            source = "" if found else f"{entry.source}; or set {entry.env}"
            rows.append((name, entry.description, str(found or ""), missing, source, entry.terms))
        columns = ["input", "description", "found in", "missing", "get it from", "terms"]
        return pd.DataFrame(rows, columns=columns).set_index("input")


def load_manifest(path: Path | None = None) -> Manifest:
    """Read a manifest; by default the one beside the package, in the working folder, or as installed."""
    # Installed data are below /usr/local on Debian, unlike sys.prefix.
    share = Path(sysconfig.get_path("data")) / "share" / "beit3lib"
    own = [Path(__file__).parents[2] / NAME, Path.cwd() / NAME, share / NAME]
    path = path or next(filter(Path.is_file, own), own[0])
    try:
        return Manifest(**yaml.safe_load(read_text(path)), path=path)
    except (yaml.YAMLError, TypeError, ValidationError) as error:  # TypeError: a list, or text alone
        found = " ".join(str(error).split())[:200]
        expected = f"version 3 of the project's {NAME}"
        raise ManifestError(f"{path}: expected {expected}, found {found}. Correct it.") from None


@exit_on_error()
def main() -> int:
    """List inputs that were found and that are missing."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.pipeline.manifest", description=main.__doc__)
    parser.add_argument("entries", nargs="*", help="inputs to look for; exit code 1 if one is missing [all]")
    names = parser.parse_args().entries
    table = load_manifest().table(names)
    for name, row in table.iterrows():
        print(name, *(f"  {key}: {value}" for key, value in row.items() if value), sep="\n")
    return int(bool(names) and (table["found in"] == "").any())


if __name__ == "__main__":
    sys.exit(main())
