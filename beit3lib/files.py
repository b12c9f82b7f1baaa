"""Read files that anyone may have made, write files that are never half there, and lock folders.

Every text file, JSON file and folder of this project goes through these functions: reading accepts only regular files
of bounded size and names the file in every error; writing goes to a temporary name and is renamed when it is complete.
"""

import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import filelock

import beit3lib

MAX_TEXT_BYTES = (
    2_000_000_000  # far above WTS (its largest index is about 100 MB), far below what fills a host's memory
)


class FileError(ValueError):
    """A file that cannot be read as what it should be; the message names the file, what was expected and what to do."""


class Problem(NamedTuple):
    """One input that was skipped: where it is, what was expected and found, and what to do about it."""

    where: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.todo})" if self.todo else "")


def check_regular_file(path: str | Path, max_bytes: int | None = None) -> Path:
    """Return `path` if it is a regular file of at most `max_bytes`; links to such a file are fine.

    A FIFO or a device would block or never end, so they are refused before they are opened. Raises `FileNotFoundError`
    or `FileError`.
    """
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a file here, found none") from None
    except OSError as error:  # a loop of links, a folder without permission, a name that is too long
        raise FileError(f"{path}: expected a readable file, found {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise FileError(
            f"{path}: expected a regular file, found {'a folder' if path.is_dir() else 'a pipe or device'}"
        )
    if max_bytes is not None and status.st_size > max_bytes:
        raise FileError(
            f"{path}: expected at most {max_bytes / 1e6:.0f} MB, found {status.st_size / 1e6:.0f} MB"
        )
    return path


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read UTF-8 text, with or without a byte order mark. Line ends stay as they are in the file."""
    path = check_regular_file(path, max_bytes)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: expected UTF-8 text, found another encoding ({error.reason} at byte {error.start})"
        ) from None
    except OSError as error:
        raise FileError(f"{path}: expected a readable file, found {error.strerror}") from None


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; `where` (a path, or a path and line) begins the error message. NaN and infinity are not JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise FileError(f"{where}: expected JSON, found lists or objects nested too deeply") from None
    except ValueError as error:
        raise FileError(
            f"{where}: expected JSON, found text that is not ({error}). Make or download the file again."
        ) from None


def read_json(path: str | Path, kind: type | None = None, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file; with `kind` (dict or list) also check what its top level is."""
    value = parse_json(read_text(path, max_bytes), str(path))
    if kind is not None and not isinstance(value, kind):
        name = {dict: "an object {…}", list: "a list […]"}[kind]
        raise FileError(f"{path}: expected {name} at the top level, found {type(value).__name__}")
    return value


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object per line. Only \\n ends a line: captions may contain U+2028 and other Unicode line ends."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise FileError(
                    f"{path}, line {number}: expected an object {{…}}, found {type(row).__name__}"
                )
            rows.append(row)
    return rows


def printable(text: str) -> str:
    """Replace NUL and lone surrogates by U+FFFD: older pandas cuts a CSV field at NUL, and surrogates are not UTF-8."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


def finite(value: Any) -> float | None:
    """Return `value` (a number, or text of one) as a finite float, or None if it is not."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with check_regular_file(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` when the block ends without an error.

    The temporary name is always the same, so what a killed process left is overwritten by the next write, and it keeps
    the suffix of `path`, by which Pillow and PyAV choose the format. The content is synced to disk before the rename.
    An error of the disk, such as a full one, names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # writing and syncing do not set it
            error.filename = str(path)
        raise


@contextmanager
def atomic_folder(path: str | Path, keep_previous: bool = False) -> Iterator[Path]:
    """Yield a new empty folder that replaces the folder `path` when the block ends without an error.

    A folder cannot be replaced in one step: the old one becomes `previous_folder(path)` first. It stays there with
    `keep_previous`, and is removed otherwise. If `path` is a link, for example to a larger disk, its target is replaced.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    new, previous = path.with_name(f".{path.name}.new"), previous_folder(path)
    shutil.rmtree(new, ignore_errors=True)  # left by a killed process
    new.mkdir()
    try:
        yield new
        for file in sorted(new.rglob("*")):
            _sync(file)
        _sync(new)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(path, previous)
        os.replace(new, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if not keep_previous:
        shutil.rmtree(previous, ignore_errors=True)


def previous_folder(path: str | Path) -> Path:
    """Where `atomic_folder` keeps the folder that was at `path` before."""
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    return path.with_name(f".{path.name}.previous")


def readable_folder(path: str | Path) -> Path:
    """Return `path`, or the previous folder if a process was killed between the two renames of `atomic_folder`."""
    return previous_folder(path) if not Path(path).exists() and previous_folder(path).exists() else Path(path)


def _sync(path: Path) -> None:
    """Flush a file or folder to disk, so that a power cut after the rename cannot leave an empty file."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 with \\n line ends, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, completely or not at all; NaN is an error, because other readers refuse it."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of torch and of this package, for meta.json."""
    return {"torch": metadata.version("torch"), "beit3lib": beit3lib.__version__}


class FolderInUse(RuntimeError):
    """Another process holds the lock of a folder; the message names it."""


@contextmanager
def lock_folder(folder: str | Path, purpose: str, name: str = "") -> Iterator[None]:
    """Hold the only lock of `folder`, or of its file `name`, while the block runs: `lock_folder(run, "training")`.

    Raises `FolderInUse` at once, naming purpose, process, host and start time of the holder, if another process has it.
    The lock is released by the operating system when its process ends, however it ends.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f".{name}.lock" if name else ".lock")
    owner, lock = path.with_name(f"{path.name}.owner"), filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise FolderInUse(
            f"{folder / name}: in use by {holder}. Wait until it ends, stop it, or use another folder."
        ) from None
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(owner, f"{purpose} (process {os.getpid()} on {socket.gethostname()}, since {started})")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def exit_on_error(*more: type[Exception]) -> Iterator[None]:
    """Decorate a command's `main`: an expected error ends the process with one line instead of a traceback."""
    try:
        yield
    except (OSError, ValueError, FolderInUse, *more) as error:
        sys.exit(f"{type(error).__name__}: {error}")
