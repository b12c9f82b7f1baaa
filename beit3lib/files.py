"""Read untrusted files, write files atomically, lock folders.

Every text file, JSON file and folder of this project goes through these functions: reading accepts only
regular files and names the file in every error; writing goes to a temporary name, which is renamed when it is
complete.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple


class FileError(ValueError):
    """A file is not what it should be; the message names the file, what was expected and what to do."""


class FolderInUse(RuntimeError):
    """Another process holds the lock of a folder; the message names it."""


class Problem(NamedTuple):
    """One input that was skipped: where it is, what was expected and found, and what to do about it."""

    where: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.todo})" if self.todo else "")


def check_regular_file(path: str | Path) -> Path:
    """Return `path` if it is a regular file, or a link to one.

    Pipes and devices are refused before they are opened, because reading them would block or never end.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file here, found none")
    if not path.is_file():
        raise FileError(f"{path}: expected a regular file, found {'a folder' if path.is_dir() else 'a pipe'}")
    return path


def read_text(path: str | Path) -> str:
    """Read UTF-8 text, with or without a byte order mark. Line ends stay as they are in the file."""
    try:
        return check_regular_file(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected UTF-8 text, found another encoding ({error})") from None


def read_json(path: str | Path, kind: type | None = None) -> Any:
    """Read a JSON file; with `kind` (dict or list), check the type of its top level."""
    return _parse_json(read_text(path), str(path), kind)


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object per line. Only \\n ends a line, because captions may contain U+2028."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [_parse_json(line, f"{path}, line {number}", dict) for number, line in lines if line.strip()]


def _parse_json(text: str, where: str, kind: type | None) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FileError(f"{where}: expected JSON, found {error}. Make or download the file again.") from None
    if kind and not isinstance(value, kind):
        expected = "an object {…}" if kind is dict else "a list […]"
        raise FileError(f"{where}: expected {expected}, found {type(value).__name__}")
    return value


def printable(text: str) -> str:
    """Replace NUL and lone surrogates by U+FFFD: older pandas cuts fields at NUL, UTF-8 has no surrogates."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


def finite(value: Any) -> float | None:
    """Return `value` (a number, or text of one) as a finite float, or None if it is not."""
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(number := float(value)):
            return number
    return None


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

    The temporary name is always the same, so the next write overwrites what a killed process left. It keeps
    the suffix of `path`, by which Pillow and PyAV choose the format. The content is synced to disk before the
    rename. OSErrors such as "disk full" include the path.
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
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new empty folder that replaces the folder `path` when the block ends without an error.

    A folder cannot be replaced in one step: the old one is renamed first and deleted last. `readable_folder`
    finds it if the process is killed in between. A link is refused, because its target may hold other files,
    which would be deleted.
    """
    path = Path(path)
    if path.is_symlink():
        raise FileExistsError(
            f"{path}: expected a folder to replace, found a link. Link the folder above it instead."
        )
    new, previous = path.with_name(f".{path.name}.new"), _previous(path)
    shutil.rmtree(new, ignore_errors=True)  # left by a killed process
    new.mkdir(parents=True)
    try:
        yield new
        for file in filter(Path.is_file, new.rglob("*")):
            _sync(file)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(path, previous)
        os.replace(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def readable_folder(path: str | Path) -> Path:
    """Return `path`, or the old folder if a process was killed between the two renames of `atomic_folder`."""
    path = Path(path)
    return path if path.exists() or not _previous(path).exists() else _previous(path)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _sync(path: Path) -> None:
    """Flush a file to disk, so that a power cut after the rename cannot leave an empty file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 with \\n line ends, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, completely or not at all; NaN is an error, because it is not JSON."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def lock_folder(folder: str | Path, purpose: str, name: str = "") -> Iterator[None]:
    """Hold the only lock of `folder`, or of its file `name`, in the block: `lock_folder(run, "training")`.

    If another process has it, raises `FolderInUse` at once, with purpose, process, host and start time of
    that process. The operating system releases the lock when its process ends, however it ends. On a file
    system without locks, such as some network mounts, a warning is printed instead.
    """
    path = Path(folder, f".{name}.lock" if name else ".lock")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Closing the file is not enough, because a loader worker may have a copy of it.
            stack.callback(fcntl.flock, file, fcntl.LOCK_UN)
        except BlockingIOError:
            file.seek(0)
            holder = f"{path.parent / name}: in use by {file.read()}"
            raise FolderInUse(f"{holder}. Wait until it ends, stop it, or use another folder.") from None
        except OSError as error:
            if error.filename:  # not from flock: a read-only disk, or the folder or lock of another user
                raise PermissionError(f"{error}. Use another folder, or change its permissions.") from None
            print(f"{path}: {error.strerror}. Do not start a second process in this folder.", flush=True)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.truncate(0)
        file.write(f"{purpose} (process {os.getpid()} on {socket.gethostname()}, since {started})")
        file.flush()
        yield


@contextmanager
def exit_on_error(*more: type[Exception]) -> Iterator[None]:
    """Decorate a command's `main`: expected errors end the process with one line instead of a traceback."""
    try:
        yield
    except (OSError, ValueError, FolderInUse, *more) as error:
        sys.exit(f"{type(error).__name__}: {error}")
