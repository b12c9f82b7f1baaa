"""Files and folders are complete or absent, reading names the file in errors, and a folder has one writer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from beit3lib.files import (
    FileError,
    atomic_folder,
    atomic_path,
    lock_folder,
    read_json,
    read_json_lines,
    read_text,
    readable_folder,
    write_text,
)

# C sources that imitate the errors of network file systems.
SHIMS = Path(__file__).parents[2] / "shared/data/cases"


def python(code, *arguments, **environment):
    command = [sys.executable, "-c", f"import os, sys, beit3lib.files as f\n{code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file(tmp_path, error):
    path = write_text(tmp_path / "a.jpg", "old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".jpg"
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.jpg"]


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path):
    (tmp_path / ".best.new").mkdir()  # left by a killed process
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "best") as folder:
            (folder / "weights").write_text(content)
    with pytest.raises(OSError), atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("half")
        raise OSError
    assert (tmp_path / "best" / "weights").read_text() == "new" and names(tmp_path) == ["best"]


def test_a_folder_survives_a_kill_between_its_two_renames(tmp_path):
    kill = "replace = os.replace\n"
    kill += "os.replace = lambda old, new: os._exit(9) if str(old).endswith('.new') else replace(old, new)\n"
    kill += "with f.atomic_folder(sys.argv[1]) as new: (new / 'weights').write_text('2')"
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("1")
    assert python(kill, tmp_path / "best").returncode == 9 and not (tmp_path / "best").exists()
    assert (readable_folder(tmp_path / "best") / "weights").read_text() == "1"
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("3")
    assert readable_folder(tmp_path / "best") == tmp_path / "best" and names(tmp_path) == ["best"]


def test_a_link_is_not_replaced_because_its_target_may_hold_other_files(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "captions").symlink_to(tmp_path / "photos")
    with pytest.raises(FileExistsError, match="captions: expected a folder to replace, found a link"):
        with atomic_folder(tmp_path / "captions"):
            pass
    assert names(tmp_path / "photos") == ["a.jpg"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": [1, 2', "expected JSON, found"),
        (b"\xff\xfe\x00", "expected UTF-8 text, found another encoding"),
        (b"[1]", r"expected an object \{…\}, found list"),
    ],
)
def test_a_broken_json_file_is_named_with_the_reason(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.json: {message}"):
        read_json(tmp_path / "a.json", dict)
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n' + content)  # after a byte order mark
    with pytest.raises(FileError, match=rf"a\.jsonl.*: {message}"):
        read_json_lines(tmp_path / "a.jsonl")


def test_pipes_devices_and_folders_are_refused_before_they_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(FileError, match="expected a regular file"):
            read_text(path)
    with pytest.raises(FileNotFoundError, match=r"none\.json: expected a file here, found none"):
        read_json(tmp_path / "none.json")


def test_a_second_process_is_refused_with_the_holder_of_the_folder(tmp_path):
    lock = "with f.lock_folder(sys.argv[1], 'preparation'): pass"
    with lock_folder(tmp_path / "run", "training"):
        assert f"in use by training (process {os.getpid()} on " in python(lock, tmp_path / "run").stderr
    assert python(lock, tmp_path / "run").returncode == 0


def test_the_lock_is_free_after_its_block_though_a_loader_worker_has_a_copy_of_the_file(tmp_path):
    with lock_folder(tmp_path, "captioning"):
        child = os.fork()
        while not child:
            signal.pause()
    try:
        with lock_folder(tmp_path, "training"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(PermissionError, match="/run'. Use another folder, or change its permissions"):
        with lock_folder(tmp_path / "run", "training"):
            pass


@pytest.mark.skipif(not SHIMS.is_dir(), reason=f"no {SHIMS}")
@pytest.mark.parametrize("call, number", [("flock", "37"), ("flock", "95"), ("fsync", "22")])
def test_a_network_file_system_without_locks_or_syncs_of_folders(tmp_path, call, number):
    library = tmp_path / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", SHIMS / f"shim_{call}.c", "-o", library, "-ldl"], check=True)
    code = "with f.lock_folder(sys.argv[1], 'a'), f.atomic_folder(sys.argv[1] + '/best'): print('inside')"
    done = python(code, tmp_path, LD_PRELOAD=str(library), SHIM_ERRNO=number)
    assert done.returncode == 0 and done.stdout.endswith("inside\n"), done.stderr
    assert done.stdout.count("Do not start a second process") == (call == "flock")
