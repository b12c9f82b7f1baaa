"""Import the original repository's data structure into the tables, images and caption files of a run."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit3lib.data.aspects import split_caption
from beit3lib.data.caption_files import caption_file_name, read_caption_files
from beit3lib.data.index import build_index, index_images, read_index
from beit3lib.data.prepared import find_prepared, import_prepared, list_test_segments
from beit3lib.data.prepared import original_index as _make_captioning_coco_karpathy_dataset_index
from beit3lib.data.schema import ASPECTS, PHASE_COLUMNS, SUBJECTS
from beit3lib.data.wts import list_segments

SPM = Path(__file__).parents[2] / "beit3lib" / "sample" / "pretrained" / "sample.spm"
TRAIN = {
    f"2023070{n}_{n}_SY{n}_T1": [f"2023070{n}_{n}_SY{n}_T1_Camera{c}_0.mp4" for c in (1, 2)]
    for n in range(1, 9)
}
VAL = {"20230709_9_SN9_T1": ["20230709_9_SN9_T1_192.168.0.28_3.mp4"], "video77": ["video77.mp4"]}
TEST = {"20230711_12_SN17_T1": ["20230711_12_SN17_T1_Camera1_0.mp4", "20230711_12_SN17_T1_vehicle_view.mp4"]}
LABELS = ("0", "3", "4")
CAPTIONS = {
    "moving": "It turns left.",
    "pedestrian_description": "A man in a coat.",
    "position": "He is near.",
    "road": "The road is wet.",
    "weather": "It is dark.",
}


def write_captions(path, scenarios, text, labels=LABELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    caption = [{"label": label, "caption": text} for label in labels]
    path.write_text(
        json.dumps({name: {"videos": videos, "caption": caption} for name, videos in scenarios.items()})
    )


def write_images(folder, scenarios, prefix, suffix, labels=LABELS):
    folder.mkdir(parents=True, exist_ok=True)
    for number, (video, label) in enumerate(
        (v, label) for videos in scenarios.values() for v in videos for label in labels
    ):
        color = (number * 7 % 256, len(str(folder)) % 256, 9)
        Image.new("RGB", (16, 16), color).save(
            folder / f"{prefix}{video.removesuffix('.mp4')}phase{label}{suffix}"
        )


def write_input(root, kaggle=False, val=True, subjects=SUBJECTS, aspects=ASPECTS, test=True):
    """Write `your_input`, as in the original README or as Kaggle data sets."""
    prefix, suffix = ("", ".PNG") if kaggle else ("avg", ".jpg")
    inner = "image_aic/" if kaggle else ""

    def folder(name):
        return root / (name.replace("_", "-") if kaggle else name)

    write_images(
        folder("avg_normal_244_train") / (inner + "train" if kaggle else ""), TRAIN | VAL, prefix, suffix
    )
    write_images(folder("avg_normal_244_test") / (inner + "test" if kaggle else ""), TEST, prefix, suffix)
    for subject in subjects:
        for aspect in aspects:
            for split, scenarios in {"train": TRAIN, "val": VAL}.items() if val else [("train", TRAIN | VAL)]:
                path = folder(f"{subject}_caption") / split / caption_file_name(subject, aspect)
                write_captions(path, scenarios, CAPTIONS[aspect])
    if test:
        write_captions(folder("test_6") / "for_test.json", TEST, "", [*LABELS, "2"])
    folder("beit_base_224").mkdir(parents=True, exist_ok=True)
    (folder("beit_base_224") / "beit3.spm").write_bytes(SPM.read_bytes())
    return root


@pytest.fixture
def tokenizer():
    from beit3lib.tokenizer import load_tokenizer

    return load_tokenizer(SPM)


@pytest.mark.parametrize("kaggle", [False, True])
def test_the_original_structure_becomes_a_run(tmp_path, tokenizer, kaggle):
    prepared = find_prepared(write_input(tmp_path / "your_input", kaggle))
    run = tmp_path / "run"
    phases, problems = import_prepared(prepared, run)
    assert list(phases.columns) == [*PHASE_COLUMNS, "image"]
    splits = {split: set(part["scenario"]) for split, part in phases.groupby("split")}
    assert splits == {"train": set(TRAIN), "val": set(VAL), "test": set(TEST)}
    assert len(phases) == (16 + 2 + 2) * 3 == len(list((run / "images").glob("avg*.jpg")))
    assert [problem.where for problem in problems] == [
        f"{name}/{video} phase 2" for name in TEST for video in TEST[name]
    ]
    captioned = phases[phases["split"] != "test"]
    assert (
        captioned["caption_vehicle"].notna().all()
        and phases.loc[phases["split"] == "test", "caption_vehicle"].isna().all()
    )
    assert split_caption(captioned["caption_vehicle"].iloc[0], "vehicle") == CAPTIONS
    assert sorted(p.name for p in (run / "captions").iterdir()) == ["train", "val"]
    train = read_caption_files(run / "captions" / "train")
    assert len(train.captions) == 16 * 3 * 10 and not train.problems
    for split in ("train", "val"):
        out = run / f"coco_captioning.{split}.jsonl"
        report = build_index(run / "captions" / split, run / "images", tokenizer, out, phases)
        assert report.lines == (480 if split == "train" else 60) and not report.skipped
    test = index_images(phases[phases["split"] == "test"], run / "images", run / "coco_captioning.test.jsonl")
    assert test.lines == 6
    segments = list_test_segments(prepared)
    assert segments["label"].tolist() == ["0", "3", "4", "2"] and set(segments["source"]) == {"wts"}
    assert list(segments.columns) == list(list_segments(phases).columns)


def test_images_are_copied_unchanged_or_converted_to_jpeg(tmp_path):
    root = write_input(tmp_path / "in")
    source = root / "avg_normal_244_train" / "avgvideo77phase3.jpg"
    other = source.with_name("avgvideo77phase4.jpg")
    Image.fromarray(np.full((16, 16), 25700, np.uint16)).save(other.with_suffix(".png"))
    other.unlink()
    import_prepared(find_prepared(root), tmp_path / "run")
    images = tmp_path / "run" / "images"
    assert (images / source.name).read_bytes() == source.read_bytes()
    with Image.open(images / other.name) as image:
        assert image.format == "JPEG" and image.getpixel((8, 8)) == (100, 100, 100)


def test_a_tenth_of_train_becomes_val_only_where_there_is_none(tmp_path):
    phases, _ = import_prepared(find_prepared(write_input(tmp_path / "in", val=False)), tmp_path / "run")
    scenarios = phases.groupby("split")["scenario"].nunique()
    assert (
        scenarios["val"] == 1
        and scenarios["train"] == 9
        and phases.groupby("scenario")["split"].nunique().eq(1).all()
    )
    val = read_caption_files(tmp_path / "run" / "captions" / "val").captions
    assert set(val["scenario"]) == set(phases.loc[phases["split"] == "val", "scenario"])
    assert not list((tmp_path / "run").rglob("captions/test"))


@pytest.mark.parametrize(
    "subjects, aspects", [(("vehicle",), ("moving",)), (("pedestrian",), ASPECTS), (SUBJECTS, ("road",))]
)
def test_one_subject_or_aspect_is_enough(tmp_path, subjects, aspects):
    root = write_input(tmp_path / "in", subjects=subjects, aspects=aspects)
    phases, problems = import_prepared(find_prepared(root), tmp_path / "run")
    files = {path.name for path in (tmp_path / "run" / "captions" / "train").iterdir()}
    assert files == {caption_file_name(subject, aspect) for subject in subjects for aspect in aspects}
    val = phases[phases["split"] == "val"]
    for subject in SUBJECTS:
        assert val[f"caption_{subject}"].notna().all() == (subject in subjects)
    assert len(problems) == 2


def test_one_folder_of_images_and_one_of_captions_are_found(tmp_path):
    write_images(tmp_path / "data" / "images", TRAIN, "avg", ".jpg")
    write_captions(
        tmp_path / "data" / "captions" / caption_file_name("vehicle", "moving"), TRAIN, CAPTIONS["moving"]
    )
    prepared = find_prepared(tmp_path / "data")
    phases, problems = import_prepared(prepared, tmp_path / "run")
    assert set(phases["split"]) == {"train", "val"} and len(phases) == 48 and not problems
    assert list_test_segments(prepared).empty


def test_segments_to_caption_alone_are_enough(tmp_path):
    root = write_input(tmp_path / "in", subjects=())
    phases, problems = import_prepared(find_prepared(root), tmp_path / "run")
    assert set(phases["split"]) == {"test"} and len(phases) == 6 and len(problems) == 3
    assert not list((tmp_path / "run" / "captions").iterdir())


def test_captions_without_any_image_are_one_error(tmp_path):
    write_captions(tmp_path / caption_file_name("vehicle", "moving"), TRAIN, "It turns.")
    write_images(tmp_path / "images", VAL, "avg", ".jpg")
    with pytest.raises(
        FileNotFoundError, match="expected images of the videos that its caption files list, found none"
    ):
        import_prepared(find_prepared(tmp_path), tmp_path / "run")


def test_the_chart_of_a_run_is_not_a_prepared_image(tmp_path):
    write_captions(tmp_path / caption_file_name("vehicle", "moving"), TRAIN, "It turns.")
    Image.new("RGB", (8, 8)).save(tmp_path / "phases.png")
    assert find_prepared(tmp_path) is None
    assert find_prepared(tmp_path / "nothing") is None


def test_captions_without_image_and_images_without_caption_are_listed(tmp_path):
    root = write_input(tmp_path / "in", test=False)
    gone = root / "avg_normal_244_train" / "avgvideo77phase3.jpg"
    gone.rename(gone.with_name("avgsomething_elsephase0.jpg"))
    (root / "avg_normal_244_train" / "avgvideo77phase4.jpg").write_bytes(b"no image")
    (root / "vehicle_caption" / "train" / caption_file_name("vehicle", "road")).write_text(
        '{"a": {"videos": [["x"]]}}'
    )
    (root / "vehicle_caption" / "val" / caption_file_name("vehicle", "road")).write_text("[" * 100_000)
    phases, problems = import_prepared(find_prepared(root), tmp_path / "run")
    assert len(phases) == 54 - 2
    listed = "\n".join(map(str, problems))
    assert "video77/video77.mp4 phase 3: 9 captions, but no image" in listed
    assert (
        "avgvideo77phase4.jpg: expected an image" in listed
        and "8 images that no caption file lists" in listed
    )
    assert "nested too deeply" in listed and "expected lists videos and caption" in listed


def test_a_second_import_replaces_captions_and_keeps_unchanged_images(tmp_path):
    root, run = write_input(tmp_path / "in"), tmp_path / "run"
    import_prepared(find_prepared(root), run)
    before = {path.name: path.stat().st_ino for path in (run / "images").iterdir()}
    changed = root / "avg_normal_244_train" / "avg20230701_1_SY1_T1_Camera2_0phase3.jpg"
    Image.new("RGB", (16, 16), (1, 2, 3)).save(changed)
    os.utime(changed, (1, 1))
    for path in root.rglob("val/*.json"):
        path.unlink()
    import_prepared(find_prepared(root), run)
    after = {path.name: path.stat().st_ino for path in (run / "images").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {changed.name}
    assert (run / "images" / changed.name).read_bytes() == changed.read_bytes()
    assert set(read_caption_files(run / "captions" / "val").captions["scenario"]) <= set(TRAIN)


def test_two_scenarios_with_a_video_of_one_name_keep_their_own_images(tmp_path):
    write_images(tmp_path / "train", {"a": ["x.mp4"]}, "avg", ".jpg", ["0"])
    write_images(tmp_path / "longer_val", {"b": ["x.mp4"]}, "avg", ".jpg", ["0"])
    for split, scenario in (("train", "a"), ("val", "b")):
        write_captions(
            tmp_path / "c" / split / caption_file_name("vehicle", "road"),
            {scenario: ["x.mp4"]},
            "It is wet.",
            ["0"],
        )
    phases, _ = import_prepared(find_prepared(tmp_path), tmp_path / "run")
    assert phases.set_index("scenario")["image"].to_dict() == {"a": "avgxphase0.jpg", "b": "avgb_xphase0.jpg"}
    copied = (tmp_path / "run" / "images" / "avgb_xphase0.jpg").read_bytes()
    assert copied == (tmp_path / "longer_val" / "avgxphase0.jpg").read_bytes()


@pytest.mark.parametrize("kaggle", [False, True])
def test_the_original_index_calls_write_its_index(tmp_path, monkeypatch, capsys, tokenizer, kaggle):
    root = write_input(tmp_path / "input", kaggle)
    images = {split: root / f"avg_normal_244_{split}" for split in ("train", "test")}
    captions, segments = root / "vehicle_caption", root / "test_6"
    if kaggle:
        images = {split: root / f"avg-normal-244-{split}/image_aic/{split}" for split in images}
        captions, segments = root / "vehicle-caption", root / "test-6"
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")

    _make_captioning_coco_karpathy_dataset_index(
        data_path=str(segments / "for_test.json"),
        tokenizer=tokenizer,
        image_dir=str(images["test"]),
        split_name="val",
        type="",
    )
    _make_captioning_coco_karpathy_dataset_index(
        data_path=str(captions / "train" / "vehicle_caption_moving_datasets.json"),
        tokenizer=tokenizer,
        image_dir=str(images["train"]),
        split_name="train",
        type="",
    )

    train, val = (read_index(f"coco_captioning.{split}.jsonl") for split in ("train", "val"))
    prefix, suffix = ("", ".PNG") if kaggle else ("avg", ".jpg")
    expected = []  # the loops of the original repository, with its own spelling of the names
    for item in json.loads(
        (captions / "train" / "vehicle_caption_moving_datasets.json").read_text()
    ).values():
        for caption in item["caption"]:
            ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(caption["caption"]))
            for video in item["videos"]:
                name = f"{prefix}{video.replace('.mp4', '')}phase{caption['label']}{suffix}"
                expected.append((str(images["train"] / name), ids))
    assert list(zip(train["image_path"], train["text_segment"], strict=True)) == expected
    assert all(
        Path(path).is_absolute() and Path(path).is_file()
        for path in [*train["image_path"], *val["image_path"]]
    )
    assert len(val) == 6 and set(val["text_segment"]) == {None} and set(train["subject"]) == {None}
    assert train["image_id"].nunique() == train["image_path"].nunique() == 48
    printed = capsys.readouterr().out
    assert "coco_captioning.val.jsonl: 8 captions, 6 lines, 2 skipped, 6 images" in printed
    assert "2 captions without an image" in printed


def test_an_index_call_without_its_caption_file_is_an_error_with_its_name(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        _make_captioning_coco_karpathy_dataset_index(tmp_path / "nothing.json", tokenizer, tmp_path)
