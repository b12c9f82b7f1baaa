"""The command captions a run, or photos and videos; it may be killed, and says what it could not read."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from clips import write_gray
from test_media import checkpoint  # noqa: F401, a fixture

from beit3lib.caption import main


def test_a_broken_file_is_named_with_exit_status_1(checkpoint, tmp_path, capsys, monkeypatch):  # noqa: F811
    (tmp_path / "media").mkdir()
    write_gray(tmp_path / "media" / "clip.mp4", range(0, 200, 20))
    (tmp_path / "media" / "broken.jpg").write_text("no image")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1 files have no captions: broken.jpg"):
        main([str(checkpoint), "media", "--phases", "0-0.5,0.5-1", "--device", "cpu"])
    output = capsys.readouterr().out
    assert "broken.jpg: expected an image" in output
    assert "20 captions of 2 images; open captions/gallery.html" in output


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_files(checkpoint, tmp_path):  # noqa: F811
    (tmp_path / "media").mkdir()
    for number in range(1, 4):
        write_gray(tmp_path / "media" / f"{number}.mp4", range(0, 250, 5))
    (tmp_path / "q.json").write_text(json.dumps([{"question": "Weather?", "a": "clear", "b": "rainy"}]))

    def start(out):
        options = f"--every 1 --questions q.json --batch_size 1 --device cpu --out {out}".split()
        command = [sys.executable, "-m", "beit3lib.caption", str(checkpoint), "media", *options]
        return subprocess.Popen(command, cwd=tmp_path, start_new_session=True)

    assert start("whole").wait() == 0
    for written in ("images/*.jpg", "parts/*.partial.jsonl", "parts/predictions-*.json"):
        process = start("killed")
        while not list((tmp_path / "killed").glob(written)) and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "captions.json").exists()
    assert start("killed").wait() == 0
    for name in ("captions.json", "answers.json", "1.mp4.vtt", "gallery.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
