"""The thirteen quirks of a WTS download, each on a tree made here; then views, boxes, splits, speed.

python -m pytest tests/test_wts.py [-m "not slow"]
"""

import json
import time
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

from beit3lib.data.motion_blur import image_name
from beit3lib.data.wts import (
    PHASES,
    choose_views,
    parse_phase,
    read_boxes,
    read_wts,
    recording_group,
    split_by_group,
    video_stem,
)

SCENE = "20230707_1_AB1_T1"
SHARED = Path(__file__).parents[3] / "shared"


def phase(label, start, end, **captions):
    """One entry of event_phase, as the download writes it: times are text."""
    texts = {"caption_pedestrian": f"A person in phase {label}.", "caption_vehicle": f"A car in phase {label}."}
    return {"labels": [label], **(texts | captions), "start_time": str(start), "end_time": str(end)}


FIVE = [phase(str(n), n, n + 1) for n in range(5)]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def touch(path):
    return write(path, "")


def add_view(root, view, videos, phases=FIVE, scenario=SCENE, split="train", between="", listed=None):
    """Write one view of a WTS scenario: its caption file and its videos (empty files: reading a tree opens none)."""
    listed = videos if listed is None else listed
    content = {"id": 1, "overhead_videos": listed} if view == "overhead_view" else {"vehicle_view": listed[0]}
    for video in videos:
        touch(root / "videos" / split / between / scenario / view / video)
    folder = root / "annotations/caption" / split / between / scenario / view
    return write(folder / f"{scenario}_caption.json", content | {"event_phase": phases})


def add_bdd(root, number, phases=FIVE, split="train", place="external/BDD_PC_5K", caption="caption", fps="30.0"):
    base = root / place
    touch(base / "videos" / split / f"video{number}.mp4")
    content = {"video_name": f"video{number}.mp4", "fps": fps, "event_phase": phases}
    return write(base / "annotations" / caption / split / f"video{number}_caption.json", content)


def overhead(number, scenario=SCENE):
    return f"{scenario}_Camera{number}_0.mp4"


def vehicle(scenario=SCENE):
    return f"{scenario}_vehicle_view.mp4"


def problems(table):
    return [str(problem) for problem in table.attrs["problems"]]


def assert_counts_add_up(table):
    counts = table.attrs["counts"]
    for kind in ("caption_files", "phases", "videos"):
        assert counts[kind] == counts[f"{kind}_used"] + counts[f"{kind}_left_out"], (kind, counts)
    assert counts["rows_expected"] == counts["rows"] + counts["rows_left_out"]
    assert counts["rows"] == len(table)


# ---- the thirteen quirks


def test_quirk_01_times_differ_between_views(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("0", 32.21, 33.527)])
    add_view(tmp_path, "vehicle_view", [vehicle()], [phase("0", 0.0, 1.317)])
    table = read_wts(tmp_path).set_index("view")
    assert table.loc["overhead_view", ["start_s", "end_s"]].tolist() == [32.21, 33.527]
    assert table.loc["vehicle_view", ["start_s", "end_s"]].tolist() == [0.0, 1.317]
    assert table["caption_vehicle"].tolist() == ["A car in phase 0."] * 2


def test_quirk_02_labels_are_digits_or_words_or_both(tmp_path):
    mixed = [phase("avoidance", 4, 5), phase("0", 0, 1), phase("judgement", 2, 3)]
    add_bdd(tmp_path, 1, mixed, split="test")
    table = read_wts(tmp_path)
    assert table["label"].tolist() == ["0", "judgement", "avoidance"]
    assert table["phase"].tolist() == [0, 2, 4]
    assert [parse_phase(word) for word in PHASES] == [0, 1, 2, 3, 4] == [parse_phase(n) for n in "01234"]
    assert [parse_phase(label) for label in (3, " Action ")] == [3, 3]
    assert [parse_phase(label) for label in ("5", "-1", "crash", None, "²", [])] == [None] * 6


def test_quirk_03_phase_of_zero_length_stays(tmp_path):
    add_bdd(tmp_path, 1, [phase("0", 19.025, 19.025), phase("1", 19.025, 19.09)])
    table = read_wts(tmp_path)
    assert table[["start_s", "end_s"]].values.tolist() == [[19.025, 19.025], [19.025, 19.09]]


@pytest.mark.parametrize("labels", ["0123", "4", "234"])
def test_quirk_04_fewer_than_five_phases(tmp_path, labels):
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase(label, 1, 2) for label in labels])
    assert read_wts(tmp_path)["label"].tolist() == list(labels)


def test_quirk_05_phases_in_any_order_and_overlapping(tmp_path):
    phases = [phase("4", 8, 9), phase("1", 1.3, 2.6), phase("0", 0, 1.3), phase("2", 2.5, 3.9), phase("3", 3, 8)]
    add_view(tmp_path, "vehicle_view", [vehicle()], phases)
    table = read_wts(tmp_path)
    assert table["phase"].tolist() == [0, 1, 2, 3, 4]
    assert table["start_s"].tolist() == [0, 1.3, 2.5, 3, 8] and table["end_s"].tolist() == [1.3, 2.6, 3.9, 8, 9]


def test_quirk_06_end_past_the_video_is_kept_as_written(tmp_path):
    """The reader opens no video; motion_blur uses what is there and says so (test_motion_blur)."""
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("0", 0, 1e4)])
    assert read_wts(tmp_path)["end_s"].tolist() == [1e4]


@pytest.mark.parametrize("fps", ["59.04", "0", "", None])
def test_quirk_07_fps_of_the_json_changes_nothing(tmp_path, fps):
    add_bdd(tmp_path, 1, [phase("0", 1.5, 2.5)], fps=fps)
    table = read_wts(tmp_path)
    assert table[["start_s", "end_s"]].values.tolist() == [[1.5, 2.5]] and not problems(table)


def test_quirk_08_missing_views_and_videos_unlisted_videos_hidden_files(tmp_path):
    listed = [overhead(1), overhead(2)]
    add_view(tmp_path, "overhead_view", [overhead(1), overhead(3)], listed=listed)
    folder = tmp_path / "videos/train" / SCENE
    for path in (folder / ".DS_Store", folder / f"overhead_view/._{overhead(1)}", tmp_path / "videos/train/.DS_Store"):
        touch(path)
    touch(tmp_path / "annotations/caption/train/.DS_Store")
    touch(tmp_path / f"annotations/caption/train/{SCENE}/overhead_view/._{SCENE}_caption.json")
    table = read_wts(tmp_path)
    assert sorted(table["video"].unique()) == [overhead(1), overhead(3)]
    missing, unlisted = problems(table)
    assert overhead(2) in missing and "not on disk" in missing
    assert overhead(3) in unlisted and "not listed" in unlisted
    assert table.attrs["counts"]["videos_left_out"] == 1 and table.attrs["counts"]["rows_left_out"] == 5
    assert_counts_add_up(table)
    kept = read_wts(tmp_path, keep_missing=True)
    assert kept.loc[kept["video"] == overhead(2), "video_path"].tolist() == [""] * 5
    assert problems(kept) == problems(table)


def test_quirk_09_dots_inside_names(tmp_path):
    scenario = "20231013_105827_normal_192.168.0.14_1_event_2"
    videos = [f"{scenario}.mp4"]
    add_view(tmp_path, "overhead_view", videos, scenario=scenario, between="normal_trimmed")
    add_view(tmp_path, "vehicle_view", [vehicle(scenario)], scenario=scenario, between="normal_trimmed")
    table = read_wts(tmp_path)
    assert set(table["scenario"]) == {scenario} and table["normal"].all() and not problems(table)
    assert sorted(table["video"].unique()) == [f"{scenario}.mp4", f"{scenario}_vehicle_view.mp4"]
    assert video_stem("a_192.168.0.28_3.mp4") == "a_192.168.0.28_3" and video_stem("a_192.168.0.28_3") == "a_192.168.0.28_3"
    assert image_name("a_192.168.0.28_3.mp4", 4) == "avga_192.168.0.28_3phase4.jpg"


def test_quirk_10_recordings_are_grouped_and_never_shared(tmp_path):
    base = "20231013_105827_normal_192.168.0.14_1"
    for scenario, split in ((f"{base}_event_1", "train"), (f"{base}_event_2", "val"), ("20230707_2_CD2_T3", "train")):
        add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, split=split)
    assert recording_group(f"{base}_event_1") == base
    assert recording_group("20230707_2_CD2_T3") == recording_group("20230707_2_CD2_T12") == "20230707_2_CD2"
    assert recording_group("video1004") == "video1004"
    table = read_wts(tmp_path)
    (shared,) = problems(table)
    assert base in shared and f"{base}_event_1 (train)" in shared and f"{base}_event_2 (val)" in shared
    apart = split_by_group(table)
    assert set(apart["scenario"]) == {f"{base}_event_2", "20230707_2_CD2_T3"}
    assert "5 train rows left out" in problems(apart)[0]
    assert apart.attrs["counts"] == {"rows": 15, "train": 5, "val": 5, "test": 0, "left_out": 5}


def test_quirk_11_boxes_missing_or_without_area(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1), overhead(2)])
    box = {"image_id": 904, "bbox": [10.5, 20, 30, 40], "auto-generated": False}
    boxes = [box | {"phase_number": "0"}, box | {"phase_number": 1}, box | {"phase_number": "2", "bbox": [5, 5, 0, 9]}]
    folder = tmp_path / "annotations/bbox_annotated/pedestrian/train" / SCENE / "overhead_view"
    path = write(folder / f"{SCENE}_Camera1_0_bbox.json", {"annotations": boxes})
    table = read_boxes(tmp_path, read_wts(tmp_path))
    assert table[["video", "phase", "frame"]].values.tolist() == [[overhead(1), 0, 904], [overhead(1), 1, 904]]
    assert table["bbox_xywh_px"].tolist() == [(10.5, 20.0, 30.0, 40.0)] * 2
    assert set(table["subject"]) == {"pedestrian"} and set(table["kind"]) == {"annotated"}
    assert table.attrs["counts"] == {"boxes": 3, "boxes_used": 2, "boxes_left_out": 1}
    area, first, second = problems(table)
    assert path.name in area and "1 of 3 boxes" in area
    assert overhead(1) in first and "phase 2, 3, 4" in first
    assert overhead(2) in second and "phase 0, 1, 2, 3, 4" in second


def test_quirk_12_captions_stay_as_written(tmp_path):
    text = "A van is present.Overall, the road is dry.  Two spaces"
    texts = [text, "The road is wet."]
    phases = [phase(str(n), n, n + 1, caption_vehicle=text) for n, text in enumerate(texts)]
    add_view(tmp_path, "overhead_view", [overhead(1)], phases)
    assert read_wts(tmp_path)["caption_vehicle"].tolist() == texts


def test_quirk_13_a_broken_file_is_named_and_the_rest_goes_on(tmp_path):
    whole = add_view(tmp_path, "overhead_view", [overhead(1)])
    other = "20230707_2_CD2_T1"
    half = add_view(tmp_path, "overhead_view", [overhead(1, other)], scenario=other)
    half.write_text(whole.read_text()[:200])
    add_bdd(tmp_path, 1).write_text("[]")
    add_bdd(tmp_path, 2).write_bytes(b"\xff\xfe\x00")
    table = read_wts(tmp_path)
    assert set(table["scenario"]) == {SCENE} and len(table) == 5
    named = problems(table)
    assert len(named) == 3
    for name in (half.name, "video1_caption.json", "video2_caption.json"):
        assert sum(name in problem for problem in named) == 1, name
    assert table.attrs["counts"]["caption_files_left_out"] == table.attrs["counts"]["videos_left_out"] == 3
    assert_counts_add_up(table)


# ---- trees


def test_grouping_a_table_with_many_problems_is_quick(tmp_path):
    """pandas copies attrs with every group; copying each problem each time took a second for 200 groups."""
    add_view(tmp_path, "overhead_view", [overhead(1)], listed=[overhead(n) for n in range(300)])
    table = read_wts(tmp_path)
    first = table.attrs["problems"][0]
    assert len(problems(table)) == 299
    assert all(rows.attrs["problems"][0] is first for _, rows in table.groupby("phase"))


def test_every_split_source_and_spelling_in_one_table(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    add_view(tmp_path, "vehicle_view", [vehicle("v1")], scenario="v1", split="val")
    add_bdd(tmp_path, 1)
    add_bdd(tmp_path, 2, place="BDD_PC_5k", split="val", caption="")
    add_bdd(tmp_path, 3, place="BDD_TC_5K", split="val")
    table = read_wts(tmp_path)
    rows = table[["scenario", "split", "source", "view"]].drop_duplicates().values.tolist()
    assert rows == [
        [SCENE, "train", "wts", "overhead_view"],
        ["v1", "val", "wts", "vehicle_view"],
        ["video1", "train", "bdd", "vehicle_view"],
        ["video2", "val", "bdd", "vehicle_view"],
        ["video3", "val", "bdd", "vehicle_view"],
    ]
    assert not problems(table) and table.attrs["counts"]["rows"] == 25
    assert all(Path(path).is_file() for path in table["video_path"])
    assert read_wts(tmp_path, split="val")["split"].unique().tolist() == ["val"]
    assert len(read_wts(tmp_path / "external")) == len(read_wts(tmp_path / "external/BDD_PC_5K")) == 5


def test_public_test_tree_has_segments_without_captions(tmp_path):
    root = tmp_path / "WTS_DATASET_PUBLIC_TEST"
    bare = [{"labels": [label], "start_time": "1", "end_time": "2"} for label in ("0", "4")]
    content = {"id": 1, "overhead_videos": [overhead(1)], "event_phase": bare}
    touch(root / "videos/test/public" / SCENE / "overhead_view" / overhead(1))
    captions = root / "annotations/caption/test/public_challenge"
    write(captions / SCENE / "overhead_view" / f"{SCENE}_caption.json", content)
    normal = "20231013_1_normal_192.168.0.14_1_event_2"
    touch(root / "videos/test/public/normal_trimmed" / normal / "vehicle_view" / vehicle(normal))
    content = {"vehicle_view": vehicle(normal), "event_phase": bare}
    write(captions / "normal_trimmed" / normal / "vehicle_view" / f"{normal}_caption.json", content)
    bdd = root / "external/BDD_PC_5K"
    touch(bdd / "videos/test/public/video9.mp4")
    write(bdd / "annotations/caption/test/public_challenge/video9_caption.json", {"event_phase": bare})
    table = read_wts(tmp_path)
    assert table["scenario"].unique().tolist() == [SCENE, normal, "video9"]
    assert set(table["split"]) == {"test"} and len(table) == 6 and not problems(table)
    assert table["caption_vehicle"].isna().all() and table["caption_pedestrian"].isna().all()
    assert table.groupby("scenario")["normal"].first().to_dict() == {SCENE: False, normal: True, "video9": False}


def test_bad_entries_are_left_out_one_problem_each(tmp_path):
    bad = [
        phase("crash", 0, 1),
        phase("0", "soon", 1),
        phase("1", "nan", 1),
        phase("3", 1, "inf"),
        {"start_time": "0"},
        "text",
        phase("2", 0, 1),
        phase("2", 1, 2),
    ]
    add_view(tmp_path, "overhead_view", [overhead(1)], bad)
    table = read_wts(tmp_path)
    assert table["label"].tolist() == ["2"] and table["start_s"].tolist() == [0.0]
    assert len(problems(table)) == table.attrs["counts"]["phases_left_out"] == 7
    assert_counts_add_up(table)


def test_captions_without_words_and_times_the_wrong_way_round_are_reported(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("0", 3, 2, caption_vehicle=" . ", caption_pedestrian=None)])
    table = read_wts(tmp_path)
    assert table[["start_s", "end_s"]].values.tolist() == [[2.0, 3.0]]
    assert table["caption_vehicle"].isna().all() and table["caption_pedestrian"].isna().all()
    assert len(problems(table)) == 3


def test_videos_without_a_caption_file_are_reported(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    touch(tmp_path / "videos/train" / SCENE / "vehicle_view" / vehicle())
    for number in range(3):
        touch(tmp_path / f"videos/val/s{number}/overhead_view/s{number}.mp4")
    table = read_wts(tmp_path)
    assert len(table) == 5 and table.attrs["counts"]["videos_without_captions"] == 4
    one, many = problems(table)
    assert vehicle() in one and "videos/val: 3 videos" in many


def test_a_caption_file_without_any_video_is_reported(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    add_view(tmp_path, "vehicle_view", [], listed=[""])
    table = read_wts(tmp_path)
    assert set(table["view"]) == {"overhead_view"}
    (problem,) = problems(table)
    assert "vehicle_view" in problem and "names no video" in problem


def test_the_same_scenario_twice_counts_once(tmp_path):
    add_view(tmp_path / "a", "overhead_view", [overhead(1)])
    add_view(tmp_path / "b", "overhead_view", [overhead(1)])
    table = read_wts(tmp_path)
    assert len(table) == 5 and "left out" in problems(table)[0]
    assert_counts_add_up(table)


@pytest.mark.parametrize("what", ["missing", "empty", "file", "other"])
def test_a_root_without_wts_is_one_clear_error(tmp_path, what):
    root = tmp_path / "root"
    if what == "file":
        touch(root)
    elif what != "missing":
        root.mkdir()
    if what == "other":
        touch(root / "photos/a.jpg")
    with pytest.raises(FileNotFoundError, match="expected .* found") as error:
        read_wts(root)
    assert str(root) in str(error.value)
    assert {"missing": "nothing", "empty": "an empty folder", "file": "a file", "other": "photos"}[what] in str(error.value)


def test_unknown_or_absent_split_is_an_error(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    with pytest.raises(ValueError, match="train, val, test.*'trian'"):
        read_wts(tmp_path, split="trian")
    with pytest.raises(ValueError, match="caption files of val"):
        read_wts(tmp_path, split="val")


def test_real_scenario():
    root = SHARED / "data/wts_real"
    if not root.is_dir():
        pytest.skip(f"{root} is not here: real WTS data is no part of the project")
    table = read_wts(root)
    assert len(table) == 15 and table["video"].nunique() == 3
    assert len(problems(table)) == 2 and all("not on disk" in problem for problem in problems(table))
    assert {name for name in ("Camera2_1", "Camera3_3") for problem in problems(table) if name in problem} == {
        "Camera2_1",
        "Camera3_3",
    }
    assert_counts_add_up(table)


# ---- drawing a validation split


def test_drawn_split_shares_no_recording_and_loses_nothing(tmp_path):
    for number in range(10):
        for take in (1, 2):
            scenario = f"2023_{number}_AB{number}_T{take}"
            add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, split="train")
    for number in range(5):
        add_bdd(tmp_path, number, split="val")
    add_bdd(tmp_path, 99, split="test")
    table = read_wts(tmp_path)
    drawn = split_by_group(table, val_share=0.2, seed=1)
    groups = drawn.assign(group=drawn["scenario"].map(recording_group)).groupby("group")["split"].nunique()
    assert (groups == 1).all() and len(drawn) == len(table)
    val = drawn[drawn["split"] == "val"]
    assert val.groupby("source")["scenario"].nunique().to_dict() == {"wts": 4, "bdd": 1}
    assert drawn.loc[drawn["split"] == "test", "scenario"].unique().tolist() == ["video99"]
    again = split_by_group(table, val_share=0.2, seed=1)
    other = split_by_group(table, val_share=0.2, seed=2)
    assert again["split"].tolist() == drawn["split"].tolist() != other["split"].tolist()
    with pytest.raises(ValueError, match="val_share"):
        split_by_group(table, val_share=1.5)


def test_a_single_recording_stays_in_train(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    drawn = split_by_group(read_wts(tmp_path), val_share=0.5)
    assert set(drawn["split"]) == {"train"} and len(problems(drawn)) == 1


# ---- boxes and views


def add_boxes(root, video, sizes, view="overhead_view", scenario=SCENE, kind="annotated", subject="pedestrian"):
    """Write square boxes: {phase: side in px}."""
    entries = [{"image_id": n, "bbox": [0, 0, side, side], "phase_number": n} for n, side in sizes.items()]
    folder = root / f"annotations/bbox_{kind}" / subject / "train" / scenario / view
    return write(folder / f"{video_stem(video)}_bbox.json", {"annotations": entries})


@pytest.fixture
def many_views(tmp_path):
    """A scenario with three overhead cameras and a vehicle view, one without a vehicle view, and a BDD video."""
    add_view(tmp_path, "overhead_view", [overhead(n) for n in (1, 2, 3)])
    add_view(tmp_path, "vehicle_view", [vehicle()])
    add_view(tmp_path, "overhead_view", ["solo.mp4"], scenario="solo")
    add_bdd(tmp_path, 1)
    return tmp_path


def chosen(table):
    return table.groupby("scenario")["video"].unique().map(sorted).to_dict()


def test_boxes_of_every_kind_and_source(many_views):
    add_boxes(many_views, overhead(1), {0: 10})
    add_boxes(many_views, overhead(1), {0: 10, 1: 11}, kind="generated")
    add_boxes(many_views, overhead(2), {4: 12}, subject="vehicle")
    add_boxes(many_views, "stranger.mp4", {4: 12})
    bdd = many_views / "external/BDD_PC_5K/annotations/bbox_annotated/train/video1_bbox.json"
    write(bdd, {"annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4], "phase_number": "avoidance"}, {"bbox": "?"}]})
    broken = add_boxes(many_views, overhead(3), {4: 12})
    broken.write_text('{"annotations": [')
    boxes = read_boxes(many_views, read_wts(many_views))
    rows = boxes[["video", "subject", "kind", "phase", "frame"]].values.tolist()
    assert sorted(rows) == [
        [overhead(1), "pedestrian", "annotated", 0, 0],
        [overhead(1), "pedestrian", "generated", 0, 0],
        [overhead(1), "pedestrian", "generated", 1, 1],
        [overhead(2), "vehicle", "annotated", 4, 4],
        ["video1.mp4", "pedestrian", "annotated", 4, 7],
    ]
    assert any(broken.name in problem and "expected JSON" in problem for problem in problems(boxes))
    lacking = f"{overhead(1)}: no annotated vehicle box in phase 0, 1, 2, 3, 4"
    assert lacking in problems(boxes)
    assert not any(vehicle() in problem and "vehicle box" in problem for problem in problems(boxes)), "it carries the camera"
    assert any("video1_bbox.json" in problem and "1 of 2" in problem for problem in problems(boxes))
    assert boxes.attrs["counts"] == {"boxes": 6, "boxes_used": 5, "boxes_left_out": 1}


def test_no_boxes_at_all_is_one_problem(many_views):
    boxes = read_boxes(many_views, read_wts(many_views))
    assert boxes.empty and len(problems(boxes)) == 1


def test_views_all_vehicle_overhead_lose_no_scenario(many_views):
    table = read_wts(many_views)
    assert chosen(choose_views(table)) == chosen(table)
    vehicles = choose_views(table, "vehicle")
    assert chosen(vehicles) == {SCENE: [vehicle()], "solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    overheads = choose_views(table, "overhead")
    assert chosen(overheads)[SCENE] == [overhead(n) for n in (1, 2, 3)] and chosen(overheads)["video1"] == ["video1.mp4"]
    shown = pd.DataFrame(overheads.attrs["views"]).set_index("scenario")["why"]
    assert shown[SCENE] == "overhead_view" and "no overhead_view" in shown["video1"]
    with pytest.raises(ValueError, match="'front'"):
        choose_views(table, "front")


@pytest.mark.parametrize("name", ["view_used_as_main_reference.csv", "view_used_as_main_reference_for_multiview_scenario.csv"])
def test_views_main_are_those_of_the_csv(many_views, name):
    rows = [
        "\ufeffScene,Viewpoint1,Viewpoint2,Viewpoint3,Viewpoint4",
        f"{SCENE},{overhead(3)},,{overhead(9)} ,",
        "",
        "other,x.mp4",
    ]
    (many_views / name).write_text("\n".join(rows), encoding="utf-8")
    main = choose_views(read_wts(many_views), "main", root=many_views)
    assert chosen(main) == {SCENE: [overhead(3)], "solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    why = pd.DataFrame(main.attrs["views"]).set_index("scenario")["why"]
    assert overhead(9) in why[SCENE] and "does not name" in why["solo"]


def test_views_main_without_csv_or_root_says_what_to_do(many_views):
    table = read_wts(many_views)
    with pytest.raises(FileNotFoundError, match="view_used_as_main_reference.*best"):
        choose_views(table, "main", root=many_views)
    with pytest.raises(ValueError, match="root"):
        choose_views(table, "best")


def test_view_best_has_boxes_in_most_phases_then_the_largest(many_views):
    table = read_wts(many_views)
    fallback = choose_views(table, "best", root=many_views)
    assert chosen(fallback) == {SCENE: [vehicle()], "solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    add_boxes(many_views, overhead(1), {0: 500})
    add_boxes(many_views, overhead(2), {0: 10, 1: 10})
    add_boxes(many_views, overhead(3), {0: 10, 1: 11})
    add_boxes(many_views, overhead(3), {0: 900}, subject="vehicle")
    best = choose_views(table, "best", root=many_views)
    assert chosen(best)[SCENE] == [overhead(3)]
    assert "2 phases, the largest of 121 px²" in pd.DataFrame(best.attrs["views"]).set_index("scenario")["why"][SCENE]
    assert chosen(choose_views(table, "best", boxes=read_boxes(many_views, table))) == chosen(best)
    add_boxes(many_views, overhead(2), {n: 5 for n in range(5)}, kind="generated")
    assert chosen(choose_views(table, "best", root=many_views))[SCENE] == [overhead(3)], "boxes by hand come first"
    add_boxes(many_views, vehicle(), {n: 5 for n in range(5)}, view="vehicle_view", kind="generated")
    assert chosen(choose_views(table, "best", root=many_views))[SCENE] == [vehicle()]


# ---- size


def add_many(root, numbers):
    for number in numbers:
        scenario = f"2023_{number}_AB1_T1"
        add_view(root, "overhead_view", [overhead(camera, scenario) for camera in range(4)], scenario=scenario)
        add_view(root, "vehicle_view", [vehicle(scenario)], scenario=scenario)


def read_peak_mb(root):
    tracemalloc.start()
    rows = len(read_wts(root))
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return rows, peak


@pytest.mark.slow
def test_two_thousand_scenarios_in_seconds_and_linear_memory(tmp_path):
    add_many(tmp_path, range(1000))
    rows, half_mb = read_peak_mb(tmp_path)
    add_many(tmp_path, range(1000, 2000))
    all_rows, all_mb = read_peak_mb(tmp_path)
    start = time.perf_counter()
    table = read_wts(tmp_path)
    seconds = time.perf_counter() - start
    print(f"{len(table)} rows of 2,000 scenarios in {seconds:.2f} s; peak {half_mb:.1f} MB for half, {all_mb:.1f} for all")
    assert (rows, all_rows) == (25_000, 50_000)
    assert seconds < 20
    assert all_mb < 2.3 * half_mb
