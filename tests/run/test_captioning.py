"""Captioning may be stopped at any moment and ends with the same bytes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import draw_run

from beit3lib import caption as command
from beit3lib.caption import caption_run
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_captioner, load_pretrained, save_captioner
from beit3lib.data.predictions import read_meta, read_predictions
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.files import lock_folder
from beit3lib.model import CaptionModel, model_config
from beit3lib.run import captioning
from beit3lib.run.captioning import caption_images, images_to_caption, partial_path
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH
from beit3lib.tokenizer import load_tokenizer

TYPES = [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint folder of a tiny model with ten caption types."""
    model = CaptionModel(model_config(MODEL)).eval()
    load_pretrained(model, CHECKPOINT_PATH)
    captioner = Captioner(model, load_tokenizer(SPM_PATH), TYPES, max_tokens=8)
    return save_captioner(captioner, tmp_path_factory.mktemp("saved") / "best", SPM_PATH)


@pytest.fixture(scope="module")
def captioner(saved):
    return load_captioner(saved, "cpu")


@pytest.fixture
def run(drawn, saved, tmp_path):
    """A run folder with 8 train and 4 val images and a checkpoint, for the test to change."""
    shutil.copytree(drawn, tmp_path / "run")
    shutil.copytree(saved, tmp_path / "run" / "best")
    return tmp_path / "run"


def caption(captioner, run, splits=("train", "val"), output=None, meta=None, **options):
    images, options = images_to_caption(run, splits, captioner), {"num_beams": 2, "batch_size": 2, **options}
    output, meta = output or run / "predictions.json", meta or {"checkpoint": "best"}
    return caption_images(captioner, images, run, output, meta, **{"num_workers": 0, **options})


@pytest.fixture(scope="module")
def uninterrupted(drawn, captioner, tmp_path_factory):
    """The bytes of predictions.json of the drawn run, captioned without interruption."""
    output = tmp_path_factory.mktemp("uninterrupted") / "predictions.json"
    caption(captioner, drawn, output=output)
    return output.read_bytes()


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of the batches that are decoded; `limit` of them end the process, `largest` fits in memory."""

    class Sizes(list):
        limit, largest = None, 100

    sizes, generate = Sizes(), Captioner.generate

    def counted(self, x, *arguments, **options):
        if len(sizes) == sizes.limit:
            raise KeyboardInterrupt
        size = len(x if isinstance(x, torch.Tensor) else x.keys[0])
        if size > sizes.largest:
            raise torch.OutOfMemoryError("no room")
        sizes.append(size)
        return generate(self, x, *arguments, **options)

    monkeypatch.setattr(Captioner, "generate", counted)
    return sizes


def stop(captioner, run, sizes, batches):
    """Start captioning, stopped after so many batches of 2 images; the next call is not stopped."""
    sizes.limit = batches
    with pytest.raises(KeyboardInterrupt):
        caption(captioner, run)
    sizes.clear()
    sizes.limit = None


def test_every_image_has_a_scored_prediction_of_every_caption_type(run, captioner, sizes, capsys):
    table = caption(captioner, run)
    assert len(table) == 12 * 10 and table["official_score"].notna().all()
    assert set(table["split"]) == {"train", "val"}
    assert list(zip(table["subject"], table["aspect"], strict=True)) == TYPES * 12
    first = table.iloc[0]
    assert first["reference"].startswith("The vehicle") and first["phase"] == 0
    assert len(first["word_probs"]) == len(first["caption"].split())
    meta = read_meta(run / "predictions.json")
    assert meta["checkpoint"] == "best" and meta["batch_size"] == 2 and meta["skipped"] == []
    sizes.clear()
    pd.testing.assert_frame_equal(caption(captioner, run), table)
    assert not sizes and "complete. Delete it to caption these images again" in capsys.readouterr().out
    assert first["caption"] == captioner.caption(run / first["image"], "vehicle", "moving", num_beams=2)


def test_running_out_of_memory_halves_the_batch(run, captioner, monkeypatch, sizes):
    # In bf16 the size of the batch decides between the nearly equal tokens of random weights.
    monkeypatch.setattr(captioning, "inference_precision", lambda device: nullcontext())
    expected = caption(captioner, run)["caption"].tolist()
    (run / "predictions.json").unlink()
    sizes.clear()
    sizes.largest = 1
    assert caption(captioner, run)["caption"].tolist() == expected and sizes == [1] * 12


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_a_stopped_run_resumes_and_ends_with_the_same_bytes(run, captioner, sizes, uninterrupted, batches):
    stop(captioner, run, sizes, batches)
    assert not (run / "predictions.json").exists()
    caption(captioner, run, num_workers=2)
    assert (run / "predictions.json").read_bytes() == uninterrupted and len(sizes) == 6 - batches


def test_a_partial_file_is_used_as_far_as_it_is_complete(run, captioner, sizes, uninterrupted):
    """A power cut left zeros at its end, so the last batch is decoded again."""
    stop(captioner, run, sizes, 3)
    path = partial_path(run / "predictions.json")
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    stop(captioner, run, sizes, 1)
    caption(captioner, run)
    assert (run / "predictions.json").read_bytes() == uninterrupted and len(sizes) == 3
    assert not list(run.glob("predictions.partial*"))


@pytest.mark.parametrize(
    "options, named",
    [({"meta": {"checkpoint": "last"}}, "checkpoint was best, is last"), ({}, "images_sha256 was ")],
)
def test_changed_options_or_images_start_from_scratch(run, captioner, sizes, capsys, options, named):
    stop(captioner, run, sizes, 3)
    before = partial_path(run / "predictions.json").read_bytes()
    if not options:
        first, other = sorted((run / "images").iterdir())[:4:3]
        shutil.copyfile(other, first)
    caption(captioner, run, **options)
    assert f"starts from scratch, because {named}" in capsys.readouterr().out and sizes == [2] * 6
    assert (run / "predictions.old.jsonl").read_bytes() == before
    caption(captioner, run)  # a complete file, too, is replaced if it is of other options
    assert ("starts from scratch" in capsys.readouterr().out) == bool(options)


def test_max_minutes_stops_between_batches_and_the_next_start_resumes(run, captioner, capsys, uninterrupted):
    table = caption(captioner, run, max_minutes=1e-6)
    assert len(table) == 2 * 10 and "2 of 12 images captioned. Rerun" in capsys.readouterr().out
    assert not (run / "predictions.json").exists() and partial_path(run / "predictions.json").exists()
    assert len(caption(captioner, run)) == 12 * 10
    assert (run / "predictions.json").read_bytes() == uninterrupted


def test_a_full_disk_keeps_finished_images(run, captioner, sizes, uninterrupted):
    """A file may not grow past the header and two and a half batches: writing fails as on a full disk."""
    caption(captioner, run, max_minutes=1e-6)
    header, *batch = map(len, partial_path(run / "predictions.json").read_bytes().split(b"\n"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(header + 2.5 * sum(batch)), limits[1]))
    try:
        with pytest.raises(OSError, match="partial.jsonl: File too large. Finished captions are kept"):
            caption(captioner, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sizes.clear()
    caption(captioner, run)
    assert len(sizes) == 4 and (run / "predictions.json").read_bytes() == uninterrupted


def test_unreadable_images_are_listed_and_the_others_captioned(run, captioner, capsys):
    images = [path for i, path in enumerate(sorted((run / "images").iterdir())) if i in (0, 5, 6, 7)]
    images[0].unlink()
    for path in images[1:]:
        path.write_text("no image")
    table = caption(captioner, run)
    assert len(table) == 8 * 10 and "4 images cannot be read and have no captions" in capsys.readouterr().out
    skipped = read_meta(run / "predictions.json")["skipped"]
    assert [entry["image"] for entry in skipped] == [f"images/{path.name}" for path in images]
    assert str(run) not in json.dumps(skipped)  # the file does not depend on where the run folder is


def test_an_interrupted_command_ends_with_130(run, sizes, capsys):
    sizes.limit = 1
    with pytest.raises(SystemExit) as stopped:
        command.main([str(run), "--batch_size", "1", "--num_workers", "0", "--device", "cpu"])
    assert stopped.value.code == 130 and "rerun the same command to resume" in capsys.readouterr().out


def test_a_preview_leaves_the_predictions_alone(run):
    (run / "predictions.json").write_text("hours of work")
    table = caption_run(run, max_images=1, splits=("train", "val"), num_beams=1, device="cpu")
    assert len(table) == 2 * 10 and len(read_predictions(run / "predictions.quick.json")) == 2 * 10
    assert (run / "predictions.json").read_text() == "hours of work"


def test_errors_of_the_command_are_one_line(run):
    with lock_folder(run, "captioning", "predictions.json"):
        for options in (["--checkpoint", "none"], ["--splits", "test"], []):
            with pytest.raises(SystemExit, match="expected|in use by captioning") as error:
                command.main([str(run), "--device", "cpu", *options])
            assert "\n" not in error.value.code


def start(run, *arguments, code="from beit3lib.caption import main; main()"):
    words = [sys.executable, "-c", code, str(run), "--device", "cpu", "--batch_size", "4", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, **streams)


def wait_for_images(process, run, count):
    """Wait until so many more images are in the files; returns the children of the process."""

    def finished():
        return sum(path.read_bytes().count(b"\n") for path in run.glob("predictions.partial*.jsonl"))

    before, limit = finished(), time.monotonic() + 300
    while finished() < before + count and process.poll() is None:
        assert time.monotonic() < limit, process.kill() or process.stdout.read()
        time.sleep(0.02)
    return psutil.Process(process.pid).children(recursive=True)


def kill(process, children):
    for each in [*children, process]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def draw_many(saved, run, count):
    """A run folder with a checkpoint and an index of `count` different images."""
    draw_run(run, train=0, val=count)
    shutil.copytree(saved, run / "best")


@pytest.mark.parametrize(
    "images, kills",
    [
        pytest.param(80, (2, 1), marks=pytest.mark.slow),
        pytest.param(3000, (1, 1, 2, 1, 1, 2, 2, 1), marks=pytest.mark.long),
    ],
)
def test_killed_at_random_moments_it_ends_as_an_uninterrupted_run(saved, tmp_path, images, kills):
    """One SIGKILL for each number of processes in `kills`. The last start has one process."""
    rng, run, whole = np.random.default_rng(0), tmp_path / "run", tmp_path / "whole"
    draw_many(saved, run, images)
    shutil.copytree(run, whole)
    assert start(whole).wait() == 0
    for processes in kills:
        process = start(run, "--num_gpus", str(processes))
        children = wait_for_images(process, run, int(rng.integers(0, images // (len(kills) + 1))))
        time.sleep(rng.random())
        kill(process, children)
        assert not (run / "predictions.json").exists()
    assert start(run).wait() == 0
    assert (run / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()
    assert len(read_predictions(run / "predictions.json")) == 10 * images and not list(run.glob("*.partial*"))


FAILING = """
from beit3lib.run import captioning
from beit3lib.caption import main
append, count = captioning._append, []

def fail(*lines):
    count.append(1)
    if len(count) == 3:
        raise ZeroDivisionError
    append(*lines)

captioning._append = fail
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "cause", [pytest.param("exception", marks=pytest.mark.long), "killed worker", signal.SIGTERM]
)
def test_it_ends_within_seconds_though_workers_load_images(saved, tmp_path, cause):
    draw_many(saved, tmp_path / "run", 60)
    code = {"code": FAILING} if cause == "exception" else {}
    process = start(tmp_path / "run", "--batch_size", "2", "--num_workers", "2", **code)
    children = wait_for_images(process, tmp_path / "run", 2)
    assert children
    if cause == "killed worker":
        children[0].kill()
    elif cause != "exception":
        process.send_signal(cause)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)
    status, alive = process.poll(), psutil.wait_procs(children, timeout=20)[1]
    kill(process, children)
    assert status and not alive, process.stdout.read()
