"""Import the original repository's data structure into the tables, images and caption files of a run."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit3lib.data.aspects import split_caption
from beit3lib.data.caption_files import caption_file_name, read_caption_files
from beit3lib.data.index import build_index, index_images, read_index
from beit3lib.data.prepared import find_prepared, import_prepared, list_test_segments, original_index
from beit3lib.data.schema import ASPECTS, PHASE_COLUMNS, SUBJECTS
from beit3lib.data.wts import list_segments
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import load_tokenizer

SCENARIOS = [f"2023070{n}_{n}_SY{n}_T1" for n in range(1, 9)]
TRAIN = {name: [f"{name}_Camera{c}_0.mp4" for c in (1, 2)] for name in SCENARIOS}
VAL = {"20230709_9_SN9_T1": ["20230709_9_SN9_T1_192.168.0.28_3.mp4"], "video77": ["video77.mp4"]}
TEST = {"20230711_12_SN17_T1": ["20230711_12_SN17_T1_Camera1_0.mp4", "20230711_12_SN17_T1_vehicle_view.mp4"]}
LABELS = ("0", "3", "4")
TEXTS = ("It turns left.", "A man in a coat.", "He is near.", "The road is wet.", "It is dark.")
CAPTIONS = dict(zip(ASPECTS, TEXTS, strict=True))


def write_captions(path, scenarios, text, labels=LABELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    caption = [{"label": label, "caption": text} for label in labels]
    content = {name: {"videos": videos, "caption": caption} for name, videos in scenarios.items()}
    path.write_text(json.dumps(content))


def write_images(folder, scenarios, prefix="avg", suffix=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    stems = [video.removesuffix(".mp4") for videos in scenarios.values() for video in videos]
    for name in (f"{stem}phase{label}" for stem in stems for label in LABELS):
        pixels = np.random.default_rng(sum(map(ord, name))).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{prefix}{name}{suffix}")


def write_input(root, kaggle=False, val=True, subjects=SUBJECTS, aspects=ASPECTS):
    """Write `your_input` as in the original README or as Kaggle data sets; return {original name: folder}."""
    prefix, suffix = ("", ".PNG") if kaggle else ("avg", ".jpg")
    names = "avg_normal_244_train avg_normal_244_test test_6 vehicle_caption pedestrian_caption".split()
    folders = {name: root / (name.replace("_", "-") if kaggle else name) for name in names}
    for split in ("train", "test") if kaggle else ():
        folders[f"avg_normal_244_{split}"] /= f"image_aic/{split}"
    write_images(folders["avg_normal_244_train"], TRAIN | VAL, prefix, suffix)
    write_images(folders["avg_normal_244_test"], TEST, prefix, suffix)
    for subject in subjects:
        for aspect in aspects:
            for split, scenarios in {"train": TRAIN, "val": VAL}.items() if val else [("train", TRAIN | VAL)]:
                path = folders[f"{subject}_caption"] / split / caption_file_name(subject, aspect)
                write_captions(path, scenarios, CAPTIONS[aspect])
    write_captions(folders["test_6"] / "for_test.json", TEST, "", [*LABELS, "2"])
    return folders


def import_from(root, run):
    return import_prepared(find_prepared(root), run)


@pytest.fixture
def tokenizer():
    return load_tokenizer(SPM_PATH)


@pytest.mark.parametrize("kaggle", [False, True])
def test_the_original_structure_becomes_a_run(tmp_path, tokenizer, kaggle):
    root, run = tmp_path / "your_input", tmp_path / "run"
    folders = write_input(root, kaggle)
    phases, problems = import_from(root, run)
    assert list(phases.columns) == [*PHASE_COLUMNS, "image"]
    splits = {split: set(part["scenario"]) for split, part in phases.groupby("split")}
    assert splits == {"train": set(TRAIN), "val": set(VAL), "test": set(TEST)}
    assert len(phases) == (16 + 2 + 2) * 3 == len(list((run / "images").glob("avg*.jpg")))
    ((name, videos),) = TEST.items()
    assert [problem.where for problem in problems] == [f"{name}/{video} phase 2" for video in videos]
    captioned, test = phases[phases["split"] != "test"], phases[phases["split"] == "test"]
    assert captioned["caption_vehicle"].notna().all() and test["caption_vehicle"].isna().all()
    assert split_caption(captioned["caption_vehicle"].iloc[0], "vehicle") == CAPTIONS
    assert sorted(p.name for p in (run / "captions").iterdir()) == ["train", "val"]
    for split, lines in {"train": 480, "val": 60}.items():
        out = run / f"coco_captioning.{split}.jsonl"
        report = build_index(run / "captions" / split, run / "images", tokenizer, out, phases)
        assert report.lines == lines and not report.problems
    assert index_images(test, run / "images", run / "coco_captioning.test.jsonl").lines == 6
    segments = list_test_segments(find_prepared(root))
    assert segments["label"].tolist() == ["0", "3", "4", "2"] and set(segments["source"]) == {"wts"}
    assert list(segments.columns) == list(list_segments(phases).columns)
    if not kaggle:
        source = folders["avg_normal_244_train"] / "avgvideo77phase3.jpg"
        assert (run / "images" / source.name).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("renamed", [False, True])
def test_images_in_both_train_and_val_are_one_problem(tmp_path, renamed):
    folders = write_input(tmp_path / "in", subjects=["vehicle"], aspects=["moving"], val=False)
    captions, images = folders["vehicle_caption"], folders["avg_normal_244_train"]
    name = "20230799_1_XX1_T1" if renamed else "video77"
    path = captions / "val" / caption_file_name("vehicle", "moving")
    write_captions(path, {name: [f"{name}.mp4"]}, "It turns.")
    folder = images.with_name("copies_val")
    folder.mkdir()
    for label in LABELS:
        shutil.copy(images / f"avgvideo77phase{label}.jpg", folder / f"avg{name}phase{label}.jpg")
    _, problems = import_from(tmp_path / "in", tmp_path / "run")
    (both,) = [problem for problem in problems if "both train and val" in problem.what]
    assert both.what.startswith("3 images")


@pytest.mark.parametrize("subjects, aspects", [(("vehicle",), ("moving",)), ((), ())])
def test_one_subject_or_aspect_is_enough(tmp_path, subjects, aspects):
    write_input(tmp_path / "in", subjects=subjects, aspects=aspects)
    phases, _ = import_from(tmp_path / "in", tmp_path / "run")
    files = {path.name for path in (tmp_path / "run" / "captions").rglob("*.json")}
    assert files == {caption_file_name(subject, aspect) for subject in subjects for aspect in aspects}
    assert set(phases["split"]) == ({"train", "val", "test"} if subjects else {"test"})
    val = phases[phases["split"] == "val"]
    captioned = {subject for subject in SUBJECTS if val[f"caption_{subject}"].notna().any()}
    assert captioned == set(subjects)


def test_images_and_captions_alone_are_no_data_set(tmp_path):
    path = tmp_path / "captions" / caption_file_name("vehicle", "moving")
    write_captions(path, TRAIN, "It turns.")
    Image.new("RGB", (8, 8)).save(tmp_path / "phases.png")  # the chart of a run
    assert find_prepared(tmp_path) is None and find_prepared(tmp_path / "nothing") is None
    write_images(tmp_path / "images", VAL)
    with pytest.raises(FileNotFoundError, match="expected images of the videos that its caption files list"):
        import_from(tmp_path, tmp_path / "run")
    write_images(tmp_path / "images", TRAIN)
    phases, problems = import_from(tmp_path, tmp_path / "run")
    scenarios = phases.groupby("split")["scenario"].unique().map(set)  # a tenth becomes val
    assert len(phases) == 48 and len(scenarios["val"]) == 1 and not scenarios["val"] & scenarios["train"]
    val = read_caption_files(tmp_path / "run" / "captions" / "val").captions
    assert set(val["scenario"]) == scenarios["val"]
    assert [problem.what for problem in problems] == ["6 images that no caption file lists; not used"]


def test_unmatched_captions_and_images_are_listed(tmp_path):
    folders = write_input(tmp_path / "in")
    images, road = folders["avg_normal_244_train"], caption_file_name("vehicle", "road")
    (images / "avgvideo77phase3.jpg").rename(images / "avgsomething_elsephase0.jpg")
    (images / "avgvideo77phase4.jpg").unlink()
    os.mkfifo(images / "avgvideo77phase4.jpg")
    (folders["vehicle_caption"] / "train" / road).write_text('{"a": {"videos": [["x"]]}}')
    phases, problems = import_from(tmp_path / "in", tmp_path / "run")
    assert len(phases) == 60 - 2
    listed = "\n".join(map(str, problems))
    assert "video77/video77.mp4 phase 3: 10 captions, but no image" in listed
    assert "avgvideo77phase4.jpg: expected a regular file" in listed
    assert "2 images that no caption file lists" in listed and "expected lists videos and caption" in listed


def test_a_second_import_keeps_unchanged_images(tmp_path):
    root, run = tmp_path / "in", tmp_path / "run"
    folders = write_input(root, aspects=["road"])
    import_from(root, run)
    before = {path.name: path.stat().st_ino for path in (run / "images").iterdir()}
    changed = folders["avg_normal_244_train"] / "avg20230701_1_SY1_T1_Camera2_0phase3.jpg"
    Image.new("RGB", (16, 16), (1, 2, 3)).save(changed)
    os.utime(changed, (1, 1))
    for path in root.rglob("val/*.json"):
        path.unlink()
    import_from(root, run)
    after = {path.name: path.stat().st_ino for path in (run / "images").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {changed.name}
    assert (run / "images" / changed.name).read_bytes() == changed.read_bytes()
    assert set(read_caption_files(run / "captions" / "val").captions["scenario"]) <= set(TRAIN)


@pytest.mark.parametrize("kaggle", [False, True])
def test_the_original_index_calls_write_its_index(tmp_path, monkeypatch, capsys, tokenizer, kaggle):
    folders = write_input(tmp_path / "input", kaggle)
    segments = folders["test_6"] / "for_test.json"
    captions = folders["vehicle_caption"] / "train" / "vehicle_caption_moving_datasets.json"
    monkeypatch.chdir(tmp_path)
    for path, split, split_name in ((segments, "test", "val"), (captions, "train", "train")):
        options = {"image_dir": str(folders[f"avg_normal_244_{split}"]), "split_name": split_name, "type": ""}
        original_index(data_path=str(path), tokenizer=tokenizer, **options)
    train, val = (read_index(f"coco_captioning.{split}.jsonl") for split in ("train", "val"))
    prefix, suffix = ("", ".PNG") if kaggle else ("avg", ".jpg")
    expected = []  # the loops of the original repository, with its own spelling of the names
    for item in json.loads(captions.read_text()).values():
        for caption in item["caption"]:
            ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(caption["caption"]))
            for video in item["videos"]:
                name = f"{prefix}{video.replace('.mp4', '')}phase{caption['label']}{suffix}"
                expected.append((str(folders["avg_normal_244_train"] / name), ids))
    assert list(zip(train["image_path"], train["text_segment"], strict=True)) == expected
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in val["image_path"])
    assert len(val) == 6 and set(val["text_segment"]) == {None} and set(train["subject"]) == {None}
    assert train["image_id"].nunique() == train["image_path"].nunique() == 48
    printed = capsys.readouterr().out
    assert "coco_captioning.val.jsonl: 8 captions, 6 lines, 2 skipped, 6 images" in printed
    assert "2 captions without an image" in printed
