"""What every step writes: files that are whole or absent, problems that are listed, `meta.json` beside each result."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import beit3lib


class Problem(NamedTuple):
    """One thing that could not be used: where it is, what was expected and found, and what to do about it."""

    where: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.todo})" if self.todo else "")


@contextmanager
def in_one_sentence(*more: type[Exception]) -> Iterator[None]:
    """For commands, also as a decorator: an error that says what to do ends them with its message, not with a traceback."""
    try:
        yield
    except (OSError, ValueError, *more) as error:
        sys.exit(f"{type(error).__name__}: {error}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name when the block ends, and vanishes when it raises.

    The temporary name keeps the ending of `path`, so that writers which go by it (Pillow, PyAV) do the same for both.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep_up(path: str | Path) -> None:
    """Remove what a process that was killed inside `atomic_path(path)` left; nobody else may be writing it now."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.stem}.????????{path.suffix}"):  # mkstemp's eight letters
        leftover.unlink(missing_ok=True)


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


_UMASK = _read_umask()  # mkstemp makes files for their owner alone; results are for everyone the user lets in


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, whole or not at all; NaN is an error, because other readers refuse it."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a file that is missing or cut off is named in the error."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a JSON file here, found none") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path}: expected a JSON file, found a folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, found a file that cannot be read as such ({error})") from None


def versions() -> dict[str, str]:
    """Of torch and of this package, as they stand beside results."""
    return {"torch": metadata.version("torch"), "beit3lib": beit3lib.__version__}


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new empty folder beside `path` that takes its place when the block ends, and vanishes when it raises.

    A folder cannot be replaced in one step: the old one steps aside to `.<name>.old` first, and `recover_folder` puts
    it back if the process died in between. What a killed process left is swept up first.
    """
    path = recover_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_UMASK)
        old = _aside(path)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: str | Path) -> Path:
    """Put back what `atomic_folder` had set aside when killed between its two steps, and sweep up its leftovers."""
    path = Path(path)
    if not path.exists() and _aside(path).exists():
        os.replace(_aside(path), path)
    for leftover in path.parent.glob(f".{path.name}.*.new"):
        shutil.rmtree(leftover, ignore_errors=True)
    return path


def readable_folder(path: str | Path) -> Path:
    """Where to read a folder that `atomic_folder` writes: what it had set aside, where it was killed between its two steps.

    Changes nothing, so that another process may be writing meanwhile.
    """
    path = Path(path)
    return _aside(path) if not path.exists() and _aside(path).exists() else path


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
