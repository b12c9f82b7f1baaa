"""Read a WTS download: its thirteen quirks, folder layouts, damaged files, and the train/val split."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wts_tree import SCENE, add_bdd, add_boxes, add_view, overhead, phase, touch, vehicle, write

from beit3lib.data.schema import PHASES
from beit3lib.data.views import read_boxes
from beit3lib.data.wts import (
    find_wts,
    list_segments,
    parse_phase,
    read_wts,
    recording_group,
    split_by_group,
    video_stem,
)

SHARED = Path(__file__).parents[3] / "shared"
NORMAL = "20231013_105827_normal_192.168.0.14_1"


def problems(table):
    return [str(problem) for problem in table.problems]


def times(table):
    return table.phases[["start_s", "end_s"]].values.tolist()


def assert_nothing_is_lost(root, table):
    """Counts equal the files on disk; the name or scenario of each skipped video is in a problem."""
    files = [path for path in root.rglob("*") if not path.name.startswith(".")]
    videos, used = {str(path) for path in files if path.suffix == ".mp4"}, set(table.phases["video_path"])
    listed = "\n".join(problems(table))
    for path in map(Path, videos - used):
        assert any(name in listed for name in (path.stem, path.parents[1].name)), path
    counts = table.counts
    assert counts["caption_files"] == sum(path.name.endswith("_caption.json") for path in files)
    assert counts["videos"] >= len(videos) and counts["videos_used"] == len(used)
    assert counts["rows"] == len(table.phases)


def test_01_views_of_a_scenario_keep_their_own_times_and_share_segments(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("04", 32.21, 33.527)])
    add_view(tmp_path, "vehicle_view", [vehicle()], [phase("4", 0.0, 1.317)])
    table = read_wts(tmp_path)
    assert table.phases["view"].tolist() == ["overhead_view", "vehicle_view"]
    assert times(table) == [[32.21, 33.527], [0.0, 1.317]]
    assert table.phases["label"].tolist() == ["04", "04"] and table.phases["phase"].tolist() == [4, 4]
    segments = list_segments(table.phases)
    assert segments[["scenario", "label", "phase"]].values.tolist() == [[SCENE, "04", 4]]


def test_02_labels_are_digits_or_words(tmp_path):
    add_bdd(tmp_path, 1, [phase("avoidance", 4, 5), phase("0", 0, 1), phase("judgement", 2, 3)], split="test")
    phases = read_wts(tmp_path).phases
    assert phases["label"].tolist() == ["0", "judgement", "avoidance"]
    assert phases["phase"].tolist() == [0, 2, 4]
    assert [parse_phase(word) for word in PHASES] == [0, 1, 2, 3, 4] == [parse_phase(n) for n in "01234"]
    assert [parse_phase(label) for label in (3, " Action ", "04", "000")] == [3, 3, 4, 0]
    assert {parse_phase(label) for label in ("5", "-1", "crash", None, "²", "٣", ())} == {None}


@pytest.mark.parametrize("fps", ["59.04", "0", None])
def test_03_06_07_times_are_kept_as_written(tmp_path, fps):
    """A phase of zero length, an end after the video, and an unused fps: no video is opened here."""
    add_bdd(tmp_path, 1, [phase("0", 19.025, 19.025), phase("1", 19.025, 1e4)], fps=fps)
    table = read_wts(tmp_path)
    assert times(table) == [[19.025, 19.025], [19.025, 1e4]] and not table.problems


@pytest.mark.parametrize("labels", ["3120", "4", "243"])
def test_04_05_fewer_than_five_phases_in_any_order_are_read(tmp_path, labels):
    entries = [phase(label, int(label), int(label) + 1.5) for label in labels]  # they overlap
    add_view(tmp_path, "overhead_view", [overhead(1)], entries)
    table = read_wts(tmp_path)
    assert table.phases["label"].tolist() == sorted(labels)
    assert times(table) == [[int(label), int(label) + 1.5] for label in sorted(labels)]


def test_08_missing_and_unlisted_videos_are_reported_and_hidden_files_ignored(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1), overhead(3)], listed=[overhead(1), overhead(2)])
    for name in ("videos/train/.DS_Store", f"videos/train/{SCENE}/overhead_view/._{overhead(1)}"):
        touch(tmp_path / name)
    touch(tmp_path / f"annotations/caption/train/{SCENE}/overhead_view/._{SCENE}_caption.json")
    table = read_wts(tmp_path)
    assert sorted(table.phases["video"].unique()) == [overhead(1), overhead(3)]
    missing, unlisted = problems(table)
    assert overhead(2) in missing and "not on disk" in missing
    assert overhead(3) in unlisted and "not listed" in unlisted
    assert table.counts["videos"] == 3
    assert_nothing_is_lost(tmp_path, table)
    kept = read_wts(tmp_path, keep_missing=True)
    assert kept.phases.loc[kept.phases["video"] == overhead(2), "video_path"].tolist() == [""] * 5
    assert problems(kept) == problems(table)


def test_09_dots_in_names_are_kept(tmp_path):
    scenario = f"{NORMAL}_event_2"
    add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, between="normal_trimmed")
    add_view(tmp_path, "vehicle_view", [vehicle(scenario)], scenario=scenario, between="normal_trimmed")
    table = read_wts(tmp_path)
    assert set(table.phases["scenario"]) == {scenario} and not table.problems
    assert sorted(table.phases["video"].unique()) == [f"{scenario}.mp4", f"{scenario}_vehicle_view.mp4"]
    assert video_stem("a_192.168.0.28_3.mp4") == "a_192.168.0.28_3" == video_stem("a_192.168.0.28_3")


def test_10_train_and_val_share_no_recording(tmp_path):
    splits = {f"{NORMAL}_event_1": "train", f"{NORMAL}_event_2": "val", "20230707_2_CD2_T3": "train"}
    for scenario, split in splits.items():
        add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, split=split)
    assert recording_group(f"{NORMAL}_event_1") == NORMAL and recording_group("video1004") == "video1004"
    assert recording_group("20230707_2_CD2_T3") == recording_group("20230707_2_CD2_T12") == "20230707_2_CD2"
    apart = split_by_group(read_wts(tmp_path).phases)
    assert set(apart.phases["scenario"]) == {f"{NORMAL}_event_2", "20230707_2_CD2_T3"}
    (shared,) = problems(apart)
    assert shared.startswith(f"{NORMAL}:") and "5 train rows skipped" in shared and "_event_1" in shared
    assert apart.counts == {"rows": 15, "train": 5, "val": 5, "test": 0, "skipped": 5}


def test_11_boxes_may_be_missing_or_empty(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1), overhead(2)])
    box = {"image_id": 904, "bbox": [10.5, 20, 30, 40], "auto-generated": False}
    empty = {"phase_number": "2", "bbox": [5, 5, 0, 9]}
    entries = [box | {"phase_number": "0"}, box | {"phase_number": 1}, box | empty]
    path = write(add_boxes(tmp_path, overhead(1), {}), {"annotations": entries})
    boxes = read_boxes(tmp_path, read_wts(tmp_path).phases)
    assert boxes.boxes[["video", "phase", "frame"]].values.tolist() == [[overhead(1), n, 904] for n in (0, 1)]
    assert boxes.boxes["bbox_xywh_px"].tolist() == [[10.5, 20.0, 30.0, 40.0]] * 2
    assert set(boxes.boxes["subject"]) == {"pedestrian"} and set(boxes.boxes["kind"]) == {"annotated"}
    (problem,) = problems(boxes)
    assert path.name in problem and "1 of 3 boxes" in problem


def test_12_captions_stay_as_written_and_those_of_views_may_differ(tmp_path):
    texts = ["A van is present.Overall, the road is dry.  Two spaces", "The car turns left."]
    entries = [phase(str(n), n, n + 1, caption_vehicle=text) for n, text in enumerate(texts)]
    add_view(tmp_path, "overhead_view", [overhead(1)], entries)
    entries[1] = phase("1", 1, 2, caption_vehicle="The car has stopped.")
    add_view(tmp_path, "vehicle_view", [vehicle()], entries)
    table = read_wts(tmp_path)
    assert table.phases["caption_vehicle"].tolist() == [*texts, texts[0], "The car has stopped."]
    (problem,) = problems(table)
    assert problem.startswith(f"{SCENE} phase 1: captions of views differ")


def test_13_a_broken_file_is_named_and_all_others_are_read(tmp_path):
    whole = add_view(tmp_path, "overhead_view", [overhead(1)])
    other = "20230707_2_CD2_T1"
    half = add_view(tmp_path, "overhead_view", [overhead(1, other)], scenario=other)
    half.write_text(whole.read_text()[:200])
    add_bdd(tmp_path, 1).write_text("[]")
    add_bdd(tmp_path, 2).write_bytes(b"\xff\xfe\x00")
    pipe = add_bdd(tmp_path, 3)
    pipe.unlink()
    os.mkfifo(pipe)
    table = read_wts(tmp_path)
    assert set(table.phases["scenario"]) == {SCENE} and len(table.phases) == 5 and len(table.problems) == 4
    for name in (half.name, "video1_caption.json", "video2_caption.json", "video3_caption.json"):
        assert sum(name in problem for problem in problems(table)) == 1, name
    assert table.counts["caption_files"] == table.counts["videos"] == 5
    assert table.counts["caption_files_used"] == table.counts["videos_used"] == 1
    assert_nothing_is_lost(tmp_path, table)


def test_every_split_source_and_spelling_is_read_into_one_table(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    upper = tmp_path / "videos/train" / SCENE / "overhead_view" / overhead(1)
    upper.rename(upper.with_suffix(".MP4"))
    add_view(tmp_path, "vehicle_view", [vehicle("v1")], scenario="v1", split="val")
    add_bdd(tmp_path, 1)
    add_bdd(tmp_path, 2, folder="BDD_PC_5k", split="val", caption="")
    add_bdd(tmp_path, 3, folder="BDD_TC_5K", split="val")
    table = read_wts(tmp_path)
    rows = table.phases[["scenario", "split", "source", "view", "video"]].drop_duplicates().values.tolist()
    assert rows == [
        [SCENE, "train", "wts", "overhead_view", overhead(1)],
        ["v1", "val", "wts", "vehicle_view", vehicle("v1")],
        ["video1", "train", "bdd", "vehicle_view", "video1.mp4"],
        ["video2", "val", "bdd", "vehicle_view", "video2.mp4"],
        ["video3", "val", "bdd", "vehicle_view", "video3.mp4"],
    ]
    assert not table.problems and table.counts["rows"] == 25
    assert all(Path(path).is_file() for path in table.phases["video_path"])
    assert len(read_wts(tmp_path / "external/BDD_PC_5K").phases) == 5


def test_the_public_test_download_has_segments_without_captions(tmp_path):
    root = tmp_path / "SubTask1-Caption/WTS_DATASET_PUBLIC_TEST"
    bare = [{"labels": [label], "start_time": "1", "end_time": "2"} for label in ("0", "4")]
    normal, bdd = f"normal_trimmed/{NORMAL}/vehicle_view/{NORMAL}", "external/BDD_PC_5K/"
    for base, name, video, listed in (
        ("", f"{SCENE}/overhead_view/{SCENE}", f"{SCENE}/overhead_view/{overhead(1)}", [overhead(1)]),
        ("", normal, f"{normal}_vehicle_view.mp4", []),
        (bdd, "video9", "video9.mp4", []),
    ):
        touch(root / base / "videos/test/public" / video)
        content = {"overhead_videos": listed, "vehicle_view": vehicle(NORMAL), "event_phase": bare}
        write(root / base / "annotations/caption/test/public_challenge" / f"{name}_caption.json", content)
    table = read_wts(tmp_path)
    assert table.phases["scenario"].unique().tolist() == [SCENE, NORMAL, "video9"]
    assert set(table.phases["split"]) == {"test"} and len(table.phases) == 6 and not table.problems
    assert table.phases[["caption_vehicle", "caption_pedestrian"]].isna().all(axis=None)


def test_find_wts_finds_what_read_wts_reads(tmp_path, monkeypatch):
    assert find_wts(tmp_path) is None and find_wts(tmp_path / "nothing") is None
    root = tmp_path / "wts"
    caption = add_view(root, "overhead_view", [overhead(1)])
    assert find_wts(root) == root and find_wts(tmp_path) == tmp_path
    assert find_wts(caption.parent) == find_wts(root / "videos") == root
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_wts("~/wts") == root and len(read_wts("~/wts").phases) == 5
    (tmp_path / "link").symlink_to(root)
    assert len(read_wts(tmp_path / "link").phases) == 5
    (root / "videos").rename(root / "films")
    assert find_wts(root) is None


def test_unreadable_folders_are_reported(tmp_path, monkeypatch):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder, so permissions do not test this
    table = read_wts(tmp_path)
    assert len(table.phases) == 5
    assert problems(table)[0].startswith("lost+found: expected a readable folder, found Permission denied")


def test_files_that_cannot_be_matched_are_reported(tmp_path):
    add_view(tmp_path / "a", "overhead_view", [overhead(1)])
    add_view(tmp_path / "b", "overhead_view", [overhead(1)])  # the same scenario in a second download
    add_view(tmp_path / "a", "overhead_view", [], scenario="empty", listed=[""])
    write(tmp_path / f"annotations/caption/train/{SCENE}/{SCENE}_caption.json", {})
    touch(tmp_path / "a/videos/train" / SCENE / "vehicle_view" / vehicle())
    for number in range(3):
        touch(tmp_path / f"a/videos/val/s{number}/overhead_view/s{number}.mp4")
    table = read_wts(tmp_path)
    assert len(table.phases) == 5
    listed = problems(table)
    assert len(listed) == 5
    for text in (
        f"caption/train/{SCENE}/{SCENE}_caption.json: expected …/caption/<split>",
        "b/annotations",
        "found 5 phases and 0 videos",
        "videos/train: 1 videos without a caption file",
        "videos/val: 3 videos without a caption file, such as s0.mp4",
    ):
        assert any(text in problem for problem in listed), text


@pytest.mark.parametrize("names, found", [((), "nothing"), (("photos/a.jpg",), "photos")])
def test_a_root_without_wts_is_one_clear_error(tmp_path, names, found):
    for name in names:
        touch(tmp_path / "root" / name)
    with pytest.raises(FileNotFoundError, match=f"root: expected a WTS download .* found {found}"):
        read_wts(tmp_path / "root")


def test_the_real_scenario_is_read():
    root = SHARED / "data/wts_real"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist: real WTS data is not part of the project")
    table = read_wts(root)
    assert len(table.phases) == 15 and table.phases["video"].nunique() == 3
    first, second = problems(table)
    assert "Camera2_1" in first and "Camera3_3" in second
    assert "not on disk" in first and "not on disk" in second
    assert_nothing_is_lost(root, table)


def test_bad_phase_entries_are_skipped_and_odd_ones_reported(tmp_path):
    bad = [phase("crash", 0, 1), phase("0", "soon", 1), phase("4", "nan", 1), {"start_time": "0"}, "text"]
    swapped = phase("2", 3, 2, caption_vehicle=" . ", caption_pedestrian=None)
    add_view(tmp_path, "overhead_view", [overhead(1)], [*bad, swapped, phase("2", 1, 2)])
    table = read_wts(tmp_path)
    assert table.phases["label"].tolist() == ["2"] and times(table) == [[2.0, 3.0]]
    assert table.phases[["caption_vehicle", "caption_pedestrian"]].isna().all(axis=None)
    assert len(table.problems) == len(bad) + 4 and max(map(len, problems(table))) < 400
    assert table.counts["phases"] == 7 and table.counts["phases_used"] == 1


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["0", "4"])
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
KEYS = ("labels", "start_time", "end_time", "caption_vehicle", "caption_pedestrian")
LABELS = st.lists(st.sampled_from(["0", "1", "04", "judgement", 9]))
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON) | {"labels": LABELS | JSON})
CAPTION_FILE = JSON | st.fixed_dictionaries({"event_phase": st.lists(JSON | ENTRY), "overhead_videos": JSON})
BOX = st.fixed_dictionaries({"image_id": JSON, "phase_number": JSON, "bbox": st.lists(JSON, min_size=4)})
BOX_FILE = JSON | st.fixed_dictionaries({"annotations": st.lists(JSON | BOX)})


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CAPTION_FILE, BOX_FILE)
def test_any_content_of_caption_and_box_files_is_read_or_listed(tmp_path, caption, box):
    add_view(tmp_path, "vehicle_view", [vehicle()])
    write(add_view(tmp_path, "overhead_view", [overhead(1)]), json.dumps(caption))
    write(add_boxes(tmp_path, vehicle(), {}, view="vehicle_view"), json.dumps(box))
    table = read_wts(tmp_path)
    assert (table.phases["view"] == "vehicle_view").sum() == 5
    assert_nothing_is_lost(tmp_path, table)
    table.phases.to_csv().encode("utf-8")
    boxes = read_boxes(tmp_path, table.phases)
    assert boxes.problems or len(boxes.boxes) or box["annotations"] == []


def test_a_drawn_validation_split_shares_no_recording_and_drops_no_row(tmp_path):
    for number in range(10):
        for take in (1, 2):
            scenario = f"2023_{number}_AB{number}_T{take}"
            add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario)
    for number in range(5):
        add_bdd(tmp_path, number, split="val")
    add_bdd(tmp_path, 99, split="test")
    phases = read_wts(tmp_path).phases
    drawn, again, other = (split_by_group(phases, 0.2, seed).phases for seed in (1, 1, 2))
    assert drawn["split"].tolist() == again["split"].tolist() != other["split"].tolist()
    assert (drawn.groupby(drawn["scenario"].map(recording_group))["split"].nunique() == 1).all()
    assert len(drawn) == len(phases)
    val = drawn[drawn["split"] == "val"]
    assert val.groupby("source")["scenario"].nunique().to_dict() == {"wts": 4, "bdd": 1}
    assert drawn.loc[drawn["split"] == "test", "scenario"].unique().tolist() == ["video99"]
    single = split_by_group(phases[phases["scenario"] == "video1"], val_share=0.5)
    assert set(single.phases["split"]) == {"train"} and len(single.problems) == 1


@pytest.mark.slow
def test_two_thousand_scenarios_are_read_in_seconds(tmp_path):
    for number in range(2000):
        scenario = f"2023_{number}_AB1_T1"
        cameras = [overhead(camera, scenario) for camera in range(4)]
        add_view(tmp_path, "overhead_view", cameras, scenario=scenario)
        add_view(tmp_path, "vehicle_view", [vehicle(scenario)], scenario=scenario)
    start = time.perf_counter()
    phases = read_wts(tmp_path).phases
    seconds = time.perf_counter() - start
    print(f"{len(phases)} rows of 2,000 scenarios in {seconds:.2f} s")
    assert len(phases) == 50_000 and seconds < 20
