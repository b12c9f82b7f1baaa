"""`data_manifest.yaml`: what every input must contain, where it lies here and on Kaggle, where it comes from.

    python -m beit3lib.pipeline.manifest            one table of everything, found or missing
    python -m beit3lib.pipeline.manifest wts        the same for one entry; ends with 1 if it is missing

An entry is a folder (`contains`: glob patterns with the least number of matches), a `file`, or `weights`: names of
checkpoints, which arrive as `.pth`, renamed `.zip`, without an ending, or unpacked into a folder.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from beit3lib.files import in_one_sentence

NAME = "data_manifest.yaml"
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_DEPTHS = ("*", "*/*", "*/*/*", "*/*/*/*")  # <slug>/, datasets/<owner>/<slug>/, and a folder or two inside
WEIGHT_ENDINGS = (".pth", ".zip", ".pt", "", ".safetensors")
KEYS = {"what", "env", "kaggle", "looked_for", "contains", "not_contains", "file", "weights", "from", "terms"}


class ManifestError(ValueError):
    """The manifest itself is wrong; the message names the entry and the key."""


class MissingInput(FileNotFoundError):
    """An input was not found; the message says where it was looked for and where it comes from."""


@dataclass(frozen=True)
class Manifest:
    """The entries of a manifest; `kaggle` is where Kaggle mounts inputs, `here` where relative places begin."""

    path: Path
    entries: dict[str, dict[str, Any]]
    here: Path
    kaggle: Path = KAGGLE_INPUT

    @property
    def hash(self) -> str:
        """Of the file's bytes: it stands in `meta.json` beside what was made."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]

    def find(self, name: str) -> Path | None:
        """Where an input lies, or None."""
        return next((place for place in self._places(name) if not _lacks(self._entry(name), place)), None)

    def locate(self, name: str) -> Path:
        """Where an input lies; `MissingInput` says where it was looked for, and how to get it."""
        found = self.find(name)
        if found is None:
            entry = self._entry(name)
            raise MissingInput(
                f"{name}: expected {entry['what']}, found none.\n  looked in: {', '.join(self._looked_in(name))}\n"
                f"  get it from: {entry['from']}\n  or set {entry['env']} to where it lies; terms: {entry['terms']}"
            )
        return found

    def check(self, name: str) -> pd.DataFrame:
        """A row per thing that the input must contain: entry, needs, found, where, how to get it."""
        entry, place = self._entry(name), self.find(name)
        nearest = place or next((p for p in self._places(name) if p.exists()), None)
        rows = []
        for needs, count in _requirements(entry):
            there = 0 if nearest is None else _count(nearest, needs, 10_000) if count else int(place is not None)
            rows.append((name, needs, there, str(nearest or ""), "" if there >= max(count, 1) else entry["from"]))
        return pd.DataFrame(rows, columns=["input", "needs", "found", "where", "get it from"])

    def table(self) -> pd.DataFrame:
        """Everything at one look: input, what it is, whether and where it was found, where to get it, terms."""
        rows = []
        for name, entry in self.entries.items():
            place = self.find(name)
            source = "" if place else f"{entry['from']}; or set {entry['env']}"
            rows.append((name, entry["what"], "yes" if place else "no", str(place or ""), source, entry["terms"]))
        return pd.DataFrame(rows, columns=["input", "what", "found", "where", "get it from", "terms"]).set_index("input")

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self.entries:
            raise ManifestError(f"{self.path}: no entry {name!r}; it has {', '.join(self.entries)}")
        return self.entries[name]

    def _places(self, name: str) -> Iterator[Path]:
        """Candidates in the order of preference: the variable, local places from here up, Kaggle's mounts."""
        entry = self._entry(name)
        if named := os.environ.get(entry["env"]):
            if not Path(named).exists():
                raise MissingInput(
                    f"{entry['env']}={named}: expected {entry['what']}, found nothing; mend or unset the variable"
                )
            if _lacks(entry, Path(named)):
                raise MissingInput(
                    f"{entry['env']}={named}: expected {entry['what']} ({_described(entry)}), found something else; "
                    "mend or unset the variable"
                )
            yield Path(named)
        for folder in (self.here, *self.here.parents, self.path.parent):
            for place in _local_names(entry):
                yield folder / place
        for folder in self._mounts():
            yield from ([folder / n for n in _file_names(entry)] if "contains" not in entry else [folder])

    def _mounts(self) -> Iterator[Path]:
        for depth in KAGGLE_DEPTHS:
            yield from sorted(p for p in self.kaggle.glob(depth) if p.is_dir())

    def _looked_in(self, name: str) -> list[str]:
        entry = self._entry(name)
        local = [str(self.here / place) for place in _local_names(entry)]
        return [f"${entry['env']}", *local, "the folders above", f"{self.kaggle}/…"]


def _local_names(entry: dict[str, Any]) -> list[str]:
    if "weights" in entry:
        return [f"{folder}{name}" for folder in ("data/", "") for name in _file_names(entry)]
    return entry["looked_for"]


def _file_names(entry: dict[str, Any]) -> list[str]:
    if "weights" in entry:
        return [stem + ending for stem in entry["weights"] for ending in WEIGHT_ENDINGS]
    return [entry["file"]]


def _requirements(entry: dict[str, Any]) -> list[tuple[str, int]]:
    if "contains" in entry:
        return list(entry["contains"].items())
    return [(entry.get("file") or " or ".join(entry["weights"]), 0)]


def _described(entry: dict[str, Any]) -> str:
    without = f", without {entry['not_contains']}" if "not_contains" in entry else ""
    return " and ".join(needs for needs, _ in _requirements(entry)) + without


def _lacks(entry: dict[str, Any], place: Path) -> bool:
    if "contains" not in entry:
        return not (place.is_file() or (place.is_dir() and any(place.rglob("data.pkl"))))
    if not place.is_dir() or ("not_contains" in entry and _count(place, entry["not_contains"], 1)):
        return True
    return any(_count(place, pattern, least) < least for pattern, least in entry["contains"].items())


def _count(place: Path, pattern: str, enough: int) -> int:
    """Matches of a pattern, counted up to `enough`: a download has tens of thousands."""
    return sum(1 for _ in islice(place.glob(pattern), enough)) if place.is_dir() else 0


def load_manifest(path: str | Path | None = None, here: Path | None = None, kaggle: Path = KAGGLE_INPUT) -> Manifest:
    """Read a manifest; without `path` the project's own, beside the package or in the working folder."""
    path = Path(path) if path else _own_path()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ManifestError(f"{path}: expected YAML, found a file that cannot be read as such ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("entries"), dict):
        raise ManifestError(f"{path}: expected a mapping with `version` and `entries`")
    for name, entry in content["entries"].items():
        _check_entry(path, name, entry)
    return Manifest(path, content["entries"], (here or Path.cwd()), kaggle)


def _own_path() -> Path:
    places = [Path(__file__).parents[2] / NAME, Path.cwd() / NAME]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise MissingInput(f"{NAME}: expected it beside the folder beit3lib, looked in {', '.join(map(str, places))}")
    return found


def _check_entry(path: Path, name: str, entry: Any) -> None:
    where = f"{path}, entry {name}"
    if not isinstance(entry, dict):
        raise ManifestError(f"{where}: expected a mapping, found {type(entry).__name__}")
    unknown, absent = sorted(set(entry) - KEYS), sorted({"what", "env", "from", "terms"} - set(entry))
    if unknown or absent:
        raise ManifestError(f"{where}: unknown keys: {unknown or 'none'}; missing keys: {absent or 'none'}")
    if sum(key in entry for key in ("contains", "file", "weights")) != 1:
        raise ManifestError(f"{where}: expected exactly one of contains, file, weights")
    if "weights" not in entry and not isinstance(entry.get("looked_for"), list):
        raise ManifestError(f"{where}: looked_for: expected a list of places")
    counts = entry.get("contains", {"": 1})
    if not isinstance(counts, dict) or not all(isinstance(n, int) and n > 0 for n in counts.values()):
        raise ManifestError(f"{where}: contains: expected patterns with how many at least, as in {{'*.mp4': 1}}")


@in_one_sentence()
def main() -> int:
    """`python -m beit3lib.pipeline.manifest [entry …]`."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.manifest", description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="*", help="inputs to look for; ends with 1 where one is missing [all, ends with 0]")
    wanted = parser.parse_args().entries
    manifest = load_manifest()
    names = wanted or list(manifest.entries)
    table = pd.concat([manifest.check(name) for name in names])
    print(table.to_string(index=False, max_colwidth=70))
    return int(bool(wanted) and any(manifest.find(name) is None for name in names))


if __name__ == "__main__":
    sys.exit(main())
