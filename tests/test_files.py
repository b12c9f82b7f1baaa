"""Files and folders are complete or absent, reading is bounded, and a folder has one writer."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3lib.files import (
    FileError,
    FolderInUse,
    Problem,
    atomic_folder,
    atomic_path,
    file_hash,
    finite,
    lock_folder,
    parse_json,
    previous_folder,
    printable,
    read_json,
    read_json_lines,
    read_text,
    readable_folder,
    write_json,
    write_text,
)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupted_write_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "deep" / "a.jpg") as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".jpg"
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_next_write_replaces_the_temporary_file_of_a_killed_one(tmp_path):
    kill = "import os, sys, beit3lib.files as f\nwith f.atomic_path(sys.argv[1]) as t: t.write_text('half'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", kill, tmp_path / "a.txt"]).returncode == 9
    assert [p.name for p in tmp_path.iterdir()] == [".a.tmp.txt"]
    write_text(tmp_path / "a.txt", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_files_get_the_permissions_of_the_umask(tmp_path):
    path = write_text(tmp_path / "a.txt", "text")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "best"
    (tmp_path / ".best.new").mkdir()  # left by a killed process
    for content in ("old", "new"):
        with atomic_folder(path) as folder:
            (folder / "weights").write_text(content)
    with pytest.raises(OSError), atomic_folder(path) as folder:
        (folder / "weights").write_text("half")
        raise OSError
    assert (path / "weights").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["best"]


def test_the_previous_folder_is_kept_on_request(tmp_path):
    for content in ("1", "2", "3"):
        with atomic_folder(tmp_path / "last", keep_previous=True) as folder:
            (folder / "step").write_text(content)
    assert (tmp_path / "last" / "step").read_text() == "3"
    assert (previous_folder(tmp_path / "last") / "step").read_text() == "2"


def test_a_folder_killed_between_its_two_renames_is_read_from_the_previous_one(tmp_path):
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("old")
    os.replace(tmp_path / "best", previous_folder(tmp_path / "best"))
    assert (readable_folder(tmp_path / "best") / "weights").read_text() == "old"
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").write_text("new")
    assert readable_folder(tmp_path / "best") == tmp_path / "best" and [
        p.name for p in tmp_path.iterdir()
    ] == ["best"]


def test_a_folder_may_be_a_link_to_a_larger_disk(tmp_path):
    disk = tmp_path / "disk" / "last"
    disk.mkdir(parents=True)
    link = tmp_path / "run" / "last"
    link.parent.mkdir()
    link.symlink_to(disk)
    with atomic_folder(link, keep_previous=True) as folder:
        (folder / "step").write_text("1")
    assert link.is_symlink() and (disk / "step").read_text() == "1"
    assert previous_folder(link).parent == disk.parent


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc\u2028\u0085"), inner),
)


@given(st.lists(st.dictionaries(st.text("ab\u2028"), JSON), max_size=5))
def test_json_lines_are_read_back_whatever_they_contain(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_json_lines(path) == rows


def test_json_may_start_with_a_byte_order_mark_and_nan_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", dict) == {"a": 1}
    with pytest.raises(ValueError, match="(?i)nan|not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()
    with pytest.raises(FileError, match="NaN is not a JSON number"):
        parse_json("[NaN]", "a.json")


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": [1, 2', "expected JSON, found text that is not"),
        (b"\xff\xfe\x00", "expected UTF-8 text, found another encoding"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", r"expected an object \{…\} at the top level, found list"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "expected JSON, found text that is not"),
    ],
)
def test_a_broken_json_file_is_named_with_the_reason(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.json: .*{message}"):
        read_json(tmp_path / "a.json", dict)


def test_a_broken_line_is_named_with_its_number(tmp_path):
    write_text(tmp_path / "a.jsonl", '{"a": 1}\n\n[5]\n')
    with pytest.raises(FileError, match=r"a\.jsonl, line 3: expected an object"):
        read_json_lines(tmp_path / "a.jsonl")


def test_pipes_devices_folders_and_large_files_are_refused_before_they_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    write_text(tmp_path / "long.txt", "x" * 11)
    for name, message in (("pipe", "pipe or device"), ("zero", "pipe or device"), (".", "a folder"), ("loop", "found"),
                          ("long.txt", "expected at most")):  # fmt: skip
        with pytest.raises(FileError, match=message):
            read_text(tmp_path / name, max_bytes=10)
    with pytest.raises(FileNotFoundError, match="none.json: expected a file here, found none"):
        read_json(tmp_path / "none.json")


def test_numbers_that_are_not_finite_become_none():
    assert [finite(v) for v in ("1.5", 2, None, "x", float("inf"), 10**400, [])] == [
        1.5,
        2.0,
        None,
        None,
        None,
        None,
        None,
    ]


def test_nul_and_lone_surrogates_are_replaced():
    assert printable("a\udce9b\ud800\0") == "a\ufffdb\ufffd\ufffd" and printable("é") == "é"


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path):
    write_text(tmp_path / "a", "abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_problem_reads_as_a_sentence():
    assert str(Problem("a.mp4", "cut off", "download it again")) == "a.mp4: cut off (download it again)"


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    code = "import sys, beit3lib.files as f\nwith f.lock_folder(sys.argv[1], 'preparation'): pass"
    with lock_folder(tmp_path / "run", "training"):
        second = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True
        )
        assert f"in use by training (process {os.getpid()} on " in second.stderr
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "run"]).returncode == 0


def test_the_lock_of_a_file_leaves_the_folder_and_other_files_free(tmp_path):
    with lock_folder(tmp_path, "captioning", "a.json"), lock_folder(tmp_path, "captioning", "b.json"):
        with (
            lock_folder(tmp_path, "training"),
            pytest.raises(FolderInUse, match=r"a\.json: in use by captioning \(process"),
        ):
            with lock_folder(tmp_path, "captioning", "a.json"):
                pass


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"):
        write_text(tmp_path / "a.txt", "text")
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = "import os, sys, beit3lib.files as f\nwith f.lock_folder(sys.argv[1], 'training'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 9
    with lock_folder(tmp_path, "training"):
        pass
