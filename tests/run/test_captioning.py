"""Captioning as a job that may be stopped at any moment, and validation by the same code."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from accelerate import Accelerator
from test_dataset import Config, recipe_table

from beit3lib import caption as command
from beit3lib.caption import caption_run
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_captioner, load_pretrained, save_captioner
from beit3lib.data.index import read_index
from beit3lib.data.predictions import COLUMNS, read_meta, read_predictions
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.dataset import CaptionDataset
from beit3lib.files import FolderInUse, lock_folder
from beit3lib.model import CaptionModel, model_config
from beit3lib.run import captioning
from beit3lib.run.captioning import (
    CaptionJob,
    caption_images,
    choose_batch_size,
    images_to_caption,
    partial_path,
)
from beit3lib.run.validation import validate
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer
from beit3lib.track2.metrics import score_predictions

KINDS = [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]
OPTIONS = {"num_beams": 2, "batch_size": 2, "num_workers": 0}


def tiny_captioner(caption_types=KINDS):
    tokenizer = load_tokenizer(sample.SPM_PATH)
    torch.manual_seed(0)
    model = CaptionModel(model_config("beit3_tiny_patch8_64", vocab_size=len(tokenizer) + 8))
    load_pretrained(model, sample.CHECKPOINT_PATH)
    return Captioner(model.eval(), tokenizer, caption_types, max_tokens=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint folder of a tiny model with ten caption types."""
    folder = tmp_path_factory.mktemp("saved") / "best"
    save_captioner(tiny_captioner(), folder, sample.SPM_PATH, {})
    return folder


@pytest.fixture(scope="module")
def captioner(saved):
    return load_captioner(saved, "cpu")


@pytest.fixture
def run(drawn, saved, tmp_path):
    """A run folder with 8 train and 4 val images and a checkpoint, for the test to change."""
    shutil.copytree(drawn, tmp_path / "run")
    shutil.copytree(saved, tmp_path / "run" / "best")
    return tmp_path / "run"


def caption(captioner, run, output="predictions.json", meta=None, splits=("train", "val"), **options):
    images = images_to_caption(run, splits, captioner)
    return caption_images(
        captioner, images, run, run / output, meta or {"checkpoint": "best"}, **{**OPTIONS, **options}
    )


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): the process "dies" after n batches are appended."""
    append, count = CaptionJob.append, [0]

    def stop(n):
        def counted(self, *batch):
            if count[0] == n:
                raise KeyboardInterrupt
            append(self, *batch)
            count[0] += 1

        monkeypatch.setattr(CaptionJob, "append", counted)

    yield stop
    monkeypatch.setattr(CaptionJob, "append", append)


def stopped(captioner, run, stop_after, monkeypatch, n=3, **options):
    """Start captioning `run`, stopped after n batches of 2 images; the next call is not stopped."""
    stop_after(n)
    with pytest.raises(KeyboardInterrupt):
        caption(captioner, run, **options)
    monkeypatch.undo()


@pytest.fixture(scope="module")
def uninterrupted(drawn, captioner, tmp_path_factory):
    """The bytes of predictions.json of the drawn run, captioned without interruption."""
    output = tmp_path_factory.mktemp("uninterrupted") / "predictions.json"
    images = images_to_caption(drawn, ("train", "val"), captioner)
    caption_images(captioner, images, drawn, output, {"checkpoint": "best"}, **OPTIONS)
    return output.read_bytes()


def test_every_image_has_a_scored_prediction_of_every_caption_type(run, captioner):
    table = caption(captioner, run)
    assert (
        len(table) == 12 * 10
        and table["official_score"].notna().all()
        and set(table["split"]) == {"train", "val"}
    )
    assert list(zip(table["subject"], table["aspect"], strict=True)) == KINDS * 12
    pd.testing.assert_frame_equal(read_predictions(run / "predictions.json"), table)
    first = table.iloc[0]
    assert first["caption"] == captioner.caption(run / first["image"], "vehicle", "moving", num_beams=2)
    assert (
        first["reference"].startswith("The vehicle")
        and first["view"] == "overhead_view"
        and first["phase"] == 0
    )
    assert len(first["word_probs"]) == len(first["caption"].split())
    meta = read_meta(run / "predictions.json")
    assert (
        meta["checkpoint"] == "best"
        and meta["batch_size"] == 2
        and meta["images"] == 12
        and meta["skipped"] == []
    )
    assert not partial_path(run / "predictions.json").exists()


def test_loader_workers_change_nothing(run, captioner, uninterrupted):
    caption(captioner, run, num_workers=2)
    assert (run / "predictions.json").read_bytes() == uninterrupted


def test_running_out_of_memory_halves_the_batch(run, captioner, monkeypatch):
    # In bf16 the size of the batch decides between the nearly equal tokens of random weights.
    monkeypatch.setattr(captioning, "inference_precision", lambda device: nullcontext())
    expected = caption(captioner, run)["caption"].tolist()
    (run / "predictions.json").unlink()
    generate, sizes = Captioner.generate, []

    def limited(self, pixels, *args, **options):
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(pixels))
        return generate(self, pixels, *args, **options)

    monkeypatch.setattr(Captioner, "generate", limited)
    table = caption(captioner, run)
    assert sizes == [1] * 12
    assert table["caption"].tolist() == expected


def test_scores_need_a_reference_and_an_absent_aspect_needs_an_empty_caption():
    text = "The road is wide and dry."
    table = pd.DataFrame(
        {"caption": [text, text, "", text, ""], "reference": [text, None, "", "", text]}, dtype=object
    )
    scores = score_predictions(table)["official_score"]
    assert scores[0] > 99 and np.isnan(scores[1]) and scores[2:].tolist() == [100.0, 0.0, 0.0]


def test_a_single_caption_type_keeps_images_without_its_reference(run):
    captioner = tiny_captioner([("vehicle", "road")])
    lines = (run / "coco_captioning.val.jsonl").read_text().splitlines()
    (run / "coco_captioning.val.jsonl").write_text(
        "".join(line + "\n" for line in lines if '"aspect": "road"' not in line)
    )
    table = caption(captioner, run, splits=["val"])
    assert len(table) == 4 and table["reference"].isna().all() and table["official_score"].isna().all()


def test_the_recipes_index_is_captioned_though_its_references_are_null(run, captioner, drawn):
    recipe_table(drawn, run, "val", null=lambda number: number != 2)
    table = caption(tiny_captioner([("", "")]), run, splits=["val"])
    assert len(table) == 4 and table["reference"].notna().sum() == table["official_score"].notna().sum() == 1
    assert table["scenario"].str.startswith("avg2023").all()


def test_a_run_without_the_index_of_a_split_names_the_files(run, captioner):
    assert set(images_to_caption(run, ("val", "test"), captioner)["split"]) == {"val"}
    with pytest.raises(FileNotFoundError, match="expected coco_captioning.test.jsonl, found none of them"):
        images_to_caption(run, ("test",), captioner)


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_a_stopped_job_continues_and_ends_with_the_same_bytes(
    run, captioner, stop_after, monkeypatch, uninterrupted, batches
):
    stopped(captioner, run, stop_after, monkeypatch, batches)
    assert not (run / "predictions.json").exists()
    generate, calls = Captioner.generate, []
    monkeypatch.setattr(
        Captioner, "generate", lambda self, x, **options: calls.append(len(x)) or generate(self, x, **options)
    )
    caption(captioner, run)
    assert (run / "predictions.json").read_bytes() == uninterrupted and len(calls) == 6 - batches


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 100])


def damage(path):
    lines = path.read_bytes().split(b"\n")
    lines[2] = b'{"batch": "no number", \xff'
    path.write_bytes(b"\n".join(lines))


def spread_over_two_files(path):
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(header + lines[0])
    path.with_name("predictions.partial.1.jsonl").write_text(header + "".join(lines[1:]))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("change", [cut, damage, spread_over_two_files, empty])
def test_a_damaged_partial_file_changes_nothing_in_the_result(
    run, captioner, stop_after, monkeypatch, capsys, uninterrupted, change
):
    stopped(captioner, run, stop_after, monkeypatch)
    change(partial_path(run / "predictions.json"))
    caption(captioner, run)
    scratch = "starts from scratch, because its first line is damaged. Finished captions are kept in "
    assert (scratch in capsys.readouterr().out) == (change == empty)
    assert (run / "predictions.json").read_bytes() == uninterrupted
    left = {path.name for path in run.glob("predictions*")} - {
        "predictions.json",
        "predictions.partial.old.jsonl",
    }
    assert not left


@pytest.mark.parametrize(
    "options, named",
    [
        ({"meta": {"checkpoint": "last"}}, "checkpoint was best, is last"),
        ({"num_beams": 1}, "num_beams was 2, is 1"),
        ({"batch_size": 3}, "batch_size was 2, is 3"),
    ],
)
def test_other_options_start_from_scratch_and_are_named(
    run, captioner, stop_after, monkeypatch, capsys, options, named
):
    stopped(captioner, run, stop_after, monkeypatch)
    before = partial_path(run / "predictions.json").read_bytes()
    caption(captioner, run, **options)
    assert f"starts from scratch, because {named}" in capsys.readouterr().out
    assert (run / "predictions.partial.old.jsonl").read_bytes() == before
    own = (run / "predictions.json").read_bytes()
    (run / "predictions.json").unlink()
    caption(captioner, run, **options)
    assert (run / "predictions.json").read_bytes() == own


def test_a_batch_size_chosen_at_the_first_start_is_kept(
    run, captioner, stop_after, monkeypatch, uninterrupted
):
    stopped(captioner, run, stop_after, monkeypatch)
    caption(captioner, run, batch_size=None)
    assert (run / "predictions.json").read_bytes() == uninterrupted


def test_only_the_batch_of_a_changed_image_is_captioned_again(run, captioner, stop_after, monkeypatch):
    stopped(captioner, run, stop_after, monkeypatch, n=5)
    first, other = sorted((run / "images").iterdir())[:4:3]
    shutil.copyfile(other, first)
    calls, generate = [], Captioner.generate
    monkeypatch.setattr(
        Captioner, "generate", lambda self, x, **options: calls.append(len(x)) or generate(self, x, **options)
    )
    table = caption(captioner, run)
    assert calls == [2, 2] and table["caption"][:10].tolist() == table["caption"][30:40].tolist()


def test_complete_captions_of_another_checkpoint_are_replaced_and_the_difference_is_named(
    run, captioner, capsys
):
    caption(captioner, run)
    caption(captioner, run, meta={"checkpoint": "last"}, num_beams=1)
    assert (
        "predictions.json: will be replaced, because checkpoint was best, is last; num_beams"
        in capsys.readouterr().out
    )
    meta = read_meta(run / "predictions.json")
    assert meta["checkpoint"] == "last" and meta["num_beams"] == 1


def test_a_complete_file_is_not_captioned_again(run, captioner, monkeypatch, capsys):
    table = caption(captioner, run)
    monkeypatch.setattr(Captioner, "generate", None)
    pd.testing.assert_frame_equal(caption(captioner, run), table)
    assert "complete. Delete it to caption these images again" in capsys.readouterr().out


def test_a_broken_output_is_replaced(run, captioner, uninterrupted):
    (run / "predictions.json").write_text("{")
    caption(captioner, run)
    assert (run / "predictions.json").read_bytes() == uninterrupted


def test_max_minutes_stops_between_batches_and_the_next_start_continues(
    run, captioner, capsys, uninterrupted
):
    table = caption(captioner, run, max_minutes=1e-6)
    assert (
        len(table) == 2 * 10
        and "2 of 12 images captioned. Run the same command again" in capsys.readouterr().out
    )
    assert not (run / "predictions.json").exists() and partial_path(run / "predictions.json").exists()
    assert (
        len(caption(captioner, run)) == 12 * 10 and (run / "predictions.json").read_bytes() == uninterrupted
    )


@pytest.mark.parametrize("syncs, file", [(2, "predictions.partial.jsonl"), (3, "predictions.json")])
def test_a_full_disk_keeps_finished_batches(run, captioner, monkeypatch, uninterrupted, syncs, file):
    """The disk is full after the lock and the header are written, or when the result is written."""
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > syncs:
            raise OSError(28, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"{file}: No space left on device. Finished captions are kept"):
            caption(captioner, run)
    caption(captioner, run)
    assert (run / "predictions.json").read_bytes() == uninterrupted


def test_a_disk_that_is_full_within_a_batch_keeps_the_batches_before(run, captioner, capsys, uninterrupted):
    """A file may not grow past the header and two and a half batches: what writing meets on a full disk."""
    caption(captioner, run, max_minutes=1e-6)
    header, batch = map(len, partial_path(run / "predictions.json").read_bytes().splitlines())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(header + 2.5 * batch), limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"predictions\.partial\.jsonl: File too large. Finished captions are kept"
        ):
            caption(captioner, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not partial_path(run / "predictions.json").read_bytes().endswith(b"\n")
    caption(captioner, run)
    assert "4/12" in capsys.readouterr().out and (run / "predictions.json").read_bytes() == uninterrupted


def test_a_second_job_for_the_same_file_is_refused(run, captioner):
    with (
        lock_folder(run, "captioning", "predictions.json"),
        pytest.raises(FolderInUse, match="json: in use by captioning"),
    ):
        caption(captioner, run)


def test_unreadable_images_are_listed_and_the_others_captioned(run, captioner, capsys):
    images = sorted((run / "images").iterdir())
    images[0].unlink()
    images[5].write_text("no image")
    table = caption(captioner, run)
    assert len(table) == 10 * 10 and "2 images cannot be read and have no captions" in capsys.readouterr().out
    skipped = read_meta(run / "predictions.json")["skipped"]
    assert [entry["image"] for entry in skipped] == [f"images/{path.name}" for path in (images[0], images[5])]
    assert str(run) not in json.dumps(skipped)  # the file does not depend on where the run folder is


@pytest.mark.parametrize("options", [{"num_beams": 0}, {"batch_size": -1}])
def test_options_out_of_range_are_refused(run, captioner, options):
    with pytest.raises(ValueError, match=f"{list(options)[0]}: expected 1 or more"):
        caption(captioner, run, **options)


def test_batch_size_is_a_power_of_two_that_fits_memory(captioner, monkeypatch):
    def free(gigabytes):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: type("Memory", (), {"available": gigabytes * 1e9})
        )
        return choose_batch_size(captioner, 3)

    assert free(0) == 1 and free(1000) == 16 and free(0.02) in (1, 2, 4, 8)
    one_type = Captioner(captioner.model, captioner.tokenizer, captioner.caption_types[:1])
    free(1000)
    assert choose_batch_size(one_type, 3) == 32


def test_the_command_writes_the_file_of_a_run(run, capsys):
    command.main([str(run), "--num_beams", "1", "--batch_size", "2", "--num_workers", "0", "--device", "cpu"])
    table, out = read_predictions(run / "predictions.json"), capsys.readouterr().out
    assert (
        len(table) == 4 * 10 and list(table) == list(COLUMNS) and "100%" in out and "4 images on cpu" in out
    )
    assert len(read_meta(run / "predictions.json")["checkpoint_sha256"]) == 64


def test_a_quick_look_leaves_the_predictions_alone(run):
    (run / "predictions.json").write_text("hours of work")
    table = caption_run(run, max_images=1, splits=("train", "val"), num_beams=1, device="cpu")
    assert len(table) == 2 * 10 and len(read_predictions(run / "predictions.quick.json")) == 2 * 10
    assert (run / "predictions.json").read_text() == "hours of work"


def test_interrupting_the_command_says_how_to_continue(run, stop_after, capsys):
    stop_after(1)
    with pytest.raises(SystemExit) as stopped:
        command.main([str(run), "--batch_size", "1", "--num_workers", "0", "--device", "cpu"])
    assert stopped.value.code == 130 and "run the same command again to continue" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["RUN", "--checkpoint", "none"], ["RUN", "--splits", "test"]]
)
def test_errors_of_the_command_are_one_line(run, arguments):
    with pytest.raises(SystemExit) as error:
        command.main([*(argument.replace("RUN", str(run)) for argument in arguments), "--device", "cpu"])
    assert "expected" in error.value.code and "\n" not in error.value.code


def val_set(run, tokenizer, split="val", train=False, **options):
    return CaptionDataset(
        read_index(run / f"coco_captioning.{split}.jsonl"), run, tokenizer, 64, Config(**options), train
    )


def validated(captioner, run, train=True, **options):
    defaults = {
        "val_images": 0,
        "samples": 2,
        "num_beams": 2,
        "batch_size": 4,
        "eval_batch_size": 2,
        "num_workers": 0,
    }
    config = Config(dist_eval=True, **{**defaults, **options})
    train_set = val_set(run, captioner.tokenizer, "train", True) if train else None
    return validate(captioner, val_set(run, captioner.tokenizer), train_set, config, Accelerator(cpu=True))


def test_validation_captions_and_scores_as_the_job_does(run, captioner, monkeypatch):
    monkeypatch.setattr(
        captioning, "inference_precision", lambda device: torch.autocast("cpu", enabled=False)
    )
    table = caption(captioner, run, splits=["val"])
    found = validated(captioner, run)
    assert (
        found["score"] == pytest.approx(table["official_score"].mean(), abs=0.01) and found["captions"] == 40
    )
    means = table.groupby(["subject", "aspect"])["official_score"].mean()
    assert found["by_caption_type"] == {
        " ".join(kind): pytest.approx(means[kind], abs=0.01) for kind in KINDS
    }
    assert {entry["image"] for entry in found["samples"]} == set(table["image"].unique()[[0, 3]])
    first = found["samples"][0]
    assert first["caption"] == table["caption"][0] and first["reference"] == table["reference"][0]
    assert 0 < found["distinct"] <= 1 and 0 <= found["references"]["copied"] <= 1 and found["seconds"] >= 0


def test_validation_of_a_model_that_copies_training_captions(run, captioner, monkeypatch):
    """Two caption types, one text for all: one distinct caption of four, and it is a training caption."""
    train = val_set(run, captioner.tokenizer, "train", True)
    text = train.reference(0)["vehicle", "road"]
    generate = Captioner.generate
    copied = lambda self, x, **options: [c._replace(text=text) for c in generate(self, x, **options)]  # noqa: E731
    monkeypatch.setattr(Captioner, "generate", copied)
    found = validated(captioner, run)
    assert found["distinct"] == pytest.approx(10 / 40) and 1 / 10 <= found["copied"] < 1


def test_validation_without_references_has_captions_and_no_score(run, captioner, drawn, capsys):
    recipe_table(drawn, run, "val", null=lambda number: True)
    found = validated(tiny_captioner([("", "")]), run, train=False)
    assert (
        found["score"] is None
        and found["captions"] == 4
        and found["copied"] == 0
        and found["by_caption_type"] == {}
    )
    assert "4 of 4 captions have no reference" in capsys.readouterr().out and len(found["samples"]) == 2
    json.dumps(found, allow_nan=False)


def test_validation_skips_an_unreadable_image(run, captioner, capsys):
    sorted((run / "images").glob("*val*"))[0].write_text("no image")
    assert validated(captioner, run)["captions"] == 30 and "Validation skips it" in capsys.readouterr().out


@pytest.mark.parametrize("val_images, captions", [(0, 40), (3, 30), (100, 40)])
def test_validation_spreads_its_images_over_the_split(run, captioner, val_images, captions):
    assert validated(captioner, run, val_images=val_images, samples=0)["captions"] == captions


def start(run, *arguments):
    command = [
        sys.executable,
        "-m",
        "beit3lib.caption",
        str(run),
        "--device",
        "cpu",
        "--batch_size",
        "4",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def complete(run):
    """Caption until `run` is complete; returns the output of the command."""
    process = start(run)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return out


def kill_after(process, run, batches, seconds):
    """SIGKILL the process and its children once `batches` more batches are on disk, and `seconds` later."""

    def count():
        return sum(path.read_bytes().count(b"\n") for path in run.glob("predictions.partial*.jsonl"))

    before, limit = count(), time.monotonic() + 300
    while count() < before + batches and process.poll() is None:
        assert time.monotonic() < limit, process.kill() or process.stdout.read()
        time.sleep(0.02)
    time.sleep(seconds)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            pass
    process.wait()


def draw_test_images(saved, run, count):
    """A run folder with a checkpoint and an index of `count` different images without captions."""
    rng, lines = np.random.default_rng(0), []
    (run / "images").mkdir(parents=True)
    shutil.copytree(saved, run / "best")
    for number in range(count):
        name = f"images/avg{number:04d}phase0.jpg"
        scene = sample.Scene(**sample.draw_values(rng))
        sample.draw_blur(scene, sample.draw_camera(rng)).save(run / name)
        lines.append(json.dumps({"image_path": name, "text_segment": None, "image_id": number}) + "\n")
    (run / "coco_captioning.test.jsonl").write_text("".join(lines))


@pytest.mark.parametrize(
    "images, kills",
    [
        pytest.param(80, (2, 1), marks=pytest.mark.slow),
        pytest.param(3000, (1, 1, 2, 1, 1, 2, 2, 1), marks=pytest.mark.long),
    ],
)
def test_captioning_killed_at_random_moments_ends_with_the_bytes_of_an_uninterrupted_run(
    saved, tmp_path, images, kills
):
    """10 caption types per image; one kill for each number of processes in `kills`. The last start has one process."""
    rng, run, batches = np.random.default_rng(0), tmp_path / "run", images // 4
    draw_test_images(saved, run, images)
    shutil.copytree(run, tmp_path / "whole")
    complete(tmp_path / "whole")
    for processes in kills:
        number = int(rng.integers(0, batches // (len(kills) + 1)))
        kill_after(start(run, "--num_gpus", str(processes)), run, number, float(rng.random()))
        assert not (run / "predictions.json").exists()
    complete(run)
    assert (run / "predictions.json").read_bytes() == (tmp_path / "whole" / "predictions.json").read_bytes()
    assert len(read_predictions(run / "predictions.json")) == 10 * images and not list(run.glob("*.partial*"))


DELAYED = """
import sys, time
from beit3lib import caption as command
from beit3lib.run.captioning import CaptionJob

append = CaptionJob.append
CaptionJob.append = lambda self, *batch: (time.sleep(1.5 * self.rank), append(self, *batch))
command.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_bar_counts_the_images_of_all_processes_also_of_slower_ones(run, tmp_path):
    """Each of two processes captions 6 of 12 images; the second one takes at least 4.5 s."""
    (tmp_path / "delayed.py").write_text(DELAYED)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        tmp_path / "delayed.py",
    ]
    options = ["--device", "cpu", "--batch_size", "2", "--num_beams", "1", "--splits", "train", "val"]
    done = subprocess.run([*command, run, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bars = [
        (int(count), int(seconds)) for count, seconds in re.findall(r"(\d+)/12 \[00:(\d\d)<", done.stdout)
    ]
    assert bars[-1][0] == 12 and bars[-1][1] >= 4 and any(6 <= count < 12 for count, _ in bars), done.stdout
    assert [count for count, _ in bars] == sorted(count for count, _ in bars)


MEASURED = """
import re, sys
from pathlib import Path
from beit3lib import caption as command
from beit3lib.run.captioning import CaptionJob

append, finished = CaptionJob.append, 0

def measured(self, number, captions):
    global finished
    append(self, number, captions)
    finished += len(captions)
    print("PEAK", finished, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], flush=True)

CaptionJob.append = measured
command.main(sys.argv[1:])
"""


@pytest.mark.long
def test_captioning_5000_images_takes_no_more_memory_than_500(saved, tmp_path):
    """The peak of the process without its loader workers; names are links to 50 images. Scoring at the end is not included."""
    run, lines = tmp_path / "run", []
    draw_test_images(saved, run, 50)
    for number in range(5000):
        name = f"images/link{number:04d}.jpg"
        os.link(run / f"images/avg{number % 50:04d}phase0.jpg", run / name)
        lines.append(json.dumps({"image_path": name, "text_segment": None, "image_id": number}) + "\n")
    (run / "coco_captioning.test.jsonl").write_text("".join(lines))
    command = [
        sys.executable,
        "-c",
        MEASURED,
        str(run),
        "--device",
        "cpu",
        "--num_beams",
        "1",
        "--batch_size",
        "10",
    ]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = {
        int(count): int(kilobytes) / 1024 for count, kilobytes in re.findall(r"PEAK (\d+) (\d+)", done.stdout)
    }
    print({count: round(peaks[count]) for count in (500, 2500, 5000)}, "MB")
    assert peaks[5000] < peaks[500] + 20, peaks
