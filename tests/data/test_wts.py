"""Read a WTS download: its thirteen irregularities, folder layouts, damaged files, and the train/val split."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wts_tree import FIVE, SCENE, add_bdd, add_boxes, add_view, overhead, phase, touch, vehicle, write

from beit3lib.data.schema import PHASES
from beit3lib.data.views import read_boxes
from beit3lib.data.wts import (
    find_wts,
    list_segments,
    locate,
    parse_phase,
    read_wts,
    recording_group,
    split_by_group,
    video_stem,
)

SHARED = Path(__file__).parents[3] / "shared"


def problems(table):
    return [str(problem) for problem in table.problems]


def assert_counts_add_up(table):
    counts = table.counts
    for kind in ("caption_files", "phases", "videos"):
        assert counts[kind] == counts[f"{kind}_used"] + counts[f"{kind}_skipped"], (kind, counts)
    assert counts["rows_expected"] == counts["rows"] + counts["rows_skipped"]
    assert counts["rows"] == len(table.phases)


def test_01_views_of_one_scenario_keep_their_own_times(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("0", 32.21, 33.527)])
    add_view(tmp_path, "vehicle_view", [vehicle()], [phase("0", 0.0, 1.317)])
    phases = read_wts(tmp_path).phases.set_index("view")
    assert phases.loc["overhead_view", ["start_s", "end_s"]].tolist() == [32.21, 33.527]
    assert phases.loc["vehicle_view", ["start_s", "end_s"]].tolist() == [0.0, 1.317]
    assert phases["caption_vehicle"].tolist() == ["A car in phase 0."] * 2


def test_02_labels_are_digits_or_words(tmp_path):
    add_bdd(tmp_path, 1, [phase("avoidance", 4, 5), phase("0", 0, 1), phase("judgement", 2, 3)], split="test")
    phases = read_wts(tmp_path).phases
    assert phases["label"].tolist() == ["0", "judgement", "avoidance"]
    assert phases["phase"].tolist() == [0, 2, 4]
    assert [parse_phase(word) for word in PHASES] == [0, 1, 2, 3, 4] == [parse_phase(n) for n in "01234"]
    assert [parse_phase(label) for label in (3, " Action ", "04", "000")] == [3, 3, 4, 0]
    assert [parse_phase(label) for label in ("5", "-1", "crash", None, "²", "٣", [], "9" * 5000)] == [
        None
    ] * 8


def test_02_labels_04_and_4_are_one_segment(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("04", 4, 5)])
    add_view(tmp_path, "vehicle_view", [vehicle()], [phase("4", 1, 2)])
    phases = read_wts(tmp_path).phases
    assert phases["label"].tolist() == ["04", "04"] and phases["phase"].tolist() == [4, 4]
    assert list_segments(phases)[["scenario", "label", "phase"]].values.tolist() == [[SCENE, "04", 4]]


def test_03_a_phase_of_zero_length_is_kept(tmp_path):
    add_bdd(tmp_path, 1, [phase("0", 19.025, 19.025), phase("1", 19.025, 19.09)])
    assert read_wts(tmp_path).phases[["start_s", "end_s"]].values.tolist() == [
        [19.025, 19.025],
        [19.025, 19.09],
    ]


@pytest.mark.parametrize("labels", ["0123", "4", "234"])
def test_04_fewer_than_five_phases_are_read(tmp_path, labels):
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase(label, 1, 2) for label in labels])
    assert read_wts(tmp_path).phases["label"].tolist() == list(labels)


def test_05_phases_in_any_order_and_overlapping_are_sorted(tmp_path):
    entries = [
        phase("4", 8, 9),
        phase("1", 1.3, 2.6),
        phase("0", 0, 1.3),
        phase("2", 2.5, 3.9),
        phase("3", 3, 8),
    ]
    add_view(tmp_path, "vehicle_view", [vehicle()], entries)
    phases = read_wts(tmp_path).phases
    assert phases["phase"].tolist() == [0, 1, 2, 3, 4]
    assert phases["start_s"].tolist() == [0, 1.3, 2.5, 3, 8] and phases["end_s"].tolist() == [
        1.3,
        2.6,
        3.9,
        8,
        9,
    ]


def test_06_an_end_after_the_video_is_kept_as_written(tmp_path):
    """No video is opened here: motion_blur uses the frames that exist, and reports it."""
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("0", 0, 1e4)])
    assert read_wts(tmp_path).phases["end_s"].tolist() == [1e4]


@pytest.mark.parametrize("fps", ["59.04", "0", "", None])
def test_07_the_fps_of_the_json_is_ignored(tmp_path, fps):
    add_bdd(tmp_path, 1, [phase("0", 1.5, 2.5)], fps=fps)
    table = read_wts(tmp_path)
    assert table.phases[["start_s", "end_s"]].values.tolist() == [[1.5, 2.5]] and not table.problems


def test_08_missing_and_unlisted_videos_are_reported_and_hidden_files_ignored(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1), overhead(3)], listed=[overhead(1), overhead(2)])
    folder = tmp_path / "videos/train" / SCENE
    for path in (
        folder / ".DS_Store",
        folder / f"overhead_view/._{overhead(1)}",
        tmp_path / "videos/train/.DS_Store",
    ):
        touch(path)
    touch(tmp_path / "annotations/caption/train/.DS_Store")
    touch(tmp_path / f"annotations/caption/train/{SCENE}/overhead_view/._{SCENE}_caption.json")
    table = read_wts(tmp_path)
    assert sorted(table.phases["video"].unique()) == [overhead(1), overhead(3)]
    missing, unlisted = problems(table)
    assert overhead(2) in missing and "not on disk" in missing
    assert overhead(3) in unlisted and "not listed" in unlisted
    assert table.counts["videos_skipped"] == 1 and table.counts["rows_skipped"] == 5
    assert_counts_add_up(table)
    kept = read_wts(tmp_path, keep_missing=True)
    assert kept.phases.loc[kept.phases["video"] == overhead(2), "video_path"].tolist() == [""] * 5
    assert problems(kept) == problems(table)


def test_09_dots_in_names_are_kept(tmp_path):
    scenario = "20231013_105827_normal_192.168.0.14_1_event_2"
    add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, between="normal_trimmed")
    add_view(tmp_path, "vehicle_view", [vehicle(scenario)], scenario=scenario, between="normal_trimmed")
    table = read_wts(tmp_path)
    assert set(table.phases["scenario"]) == {scenario} and not table.problems
    assert sorted(table.phases["video"].unique()) == [f"{scenario}.mp4", f"{scenario}_vehicle_view.mp4"]
    assert video_stem("a_192.168.0.28_3.mp4") == "a_192.168.0.28_3" == video_stem("a_192.168.0.28_3")


def test_10_train_and_val_share_no_recording(tmp_path):
    base = "20231013_105827_normal_192.168.0.14_1"
    for scenario, split in (
        (f"{base}_event_1", "train"),
        (f"{base}_event_2", "val"),
        ("20230707_2_CD2_T3", "train"),
    ):
        add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, split=split)
    assert recording_group(f"{base}_event_1") == base
    assert recording_group("20230707_2_CD2_T3") == recording_group("20230707_2_CD2_T12") == "20230707_2_CD2"
    assert recording_group("video1004") == "video1004"
    table = read_wts(tmp_path)
    (shared,) = problems(table)
    assert base in shared and f"{base}_event_1 (train)" in shared and f"{base}_event_2 (val)" in shared
    apart = split_by_group(table.phases)
    assert set(apart.phases["scenario"]) == {f"{base}_event_2", "20230707_2_CD2_T3"}
    assert "5 train rows skipped" in problems(apart)[0]
    assert apart.counts == {"rows": 15, "train": 5, "val": 5, "test": 0, "skipped": 5}


def test_11_boxes_may_be_missing_or_empty(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1), overhead(2)])
    box = {"image_id": 904, "bbox": [10.5, 20, 30, 40], "auto-generated": False}
    entries = [
        box | {"phase_number": "0"},
        box | {"phase_number": 1},
        box | {"phase_number": "2", "bbox": [5, 5, 0, 9]},
    ]
    folder = tmp_path / "annotations/bbox_annotated/pedestrian/train" / SCENE / "overhead_view"
    path = write(folder / f"{SCENE}_Camera1_0_bbox.json", {"annotations": entries})
    boxes = read_boxes(tmp_path, read_wts(tmp_path).phases)
    assert boxes.boxes[["video", "phase", "frame"]].values.tolist() == [
        [overhead(1), 0, 904],
        [overhead(1), 1, 904],
    ]
    assert boxes.boxes["bbox_xywh_px"].tolist() == [(10.5, 20.0, 30.0, 40.0)] * 2
    assert set(boxes.boxes["subject"]) == {"pedestrian"} and set(boxes.boxes["kind"]) == {"annotated"}
    assert boxes.counts == {"boxes": 3, "boxes_used": 2, "boxes_skipped": 1}
    area, first, second = problems(boxes)
    assert path.name in area and "1 of 3 boxes" in area
    assert overhead(1) in first and "phase 2, 3, 4" in first
    assert overhead(2) in second and "phase 0, 1, 2, 3, 4" in second


def test_12_captions_stay_as_written(tmp_path):
    texts = ["A van is present.Overall, the road is dry.  Two spaces", "The road is wet."]
    entries = [phase(str(n), n, n + 1, caption_vehicle=text) for n, text in enumerate(texts)]
    add_view(tmp_path, "overhead_view", [overhead(1)], entries)
    assert read_wts(tmp_path).phases["caption_vehicle"].tolist() == texts


def test_13_a_broken_file_is_named_and_all_others_are_read(tmp_path):
    whole = add_view(tmp_path, "overhead_view", [overhead(1)])
    other = "20230707_2_CD2_T1"
    half = add_view(tmp_path, "overhead_view", [overhead(1, other)], scenario=other)
    half.write_text(whole.read_text()[:200])
    add_bdd(tmp_path, 1).write_text("[]")
    add_bdd(tmp_path, 2).write_bytes(b"\xff\xfe\x00")
    table = read_wts(tmp_path)
    assert set(table.phases["scenario"]) == {SCENE} and len(table.phases) == 5
    assert len(table.problems) == 3
    for name in (half.name, "video1_caption.json", "video2_caption.json"):
        assert sum(name in problem for problem in problems(table)) == 1, name
    assert table.counts["caption_files_skipped"] == table.counts["videos_skipped"] == 3
    assert_counts_add_up(table)


def test_every_split_source_and_spelling_is_read_into_one_table(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    add_view(tmp_path, "vehicle_view", [vehicle("v1")], scenario="v1", split="val")
    add_bdd(tmp_path, 1)
    add_bdd(tmp_path, 2, folder="BDD_PC_5k", split="val", caption="")
    add_bdd(tmp_path, 3, folder="BDD_TC_5K", split="val")
    table = read_wts(tmp_path)
    rows = table.phases[["scenario", "split", "source", "view"]].drop_duplicates().values.tolist()
    assert rows == [
        [SCENE, "train", "wts", "overhead_view"],
        ["v1", "val", "wts", "vehicle_view"],
        ["video1", "train", "bdd", "vehicle_view"],
        ["video2", "val", "bdd", "vehicle_view"],
        ["video3", "val", "bdd", "vehicle_view"],
    ]
    assert not table.problems and table.counts["rows"] == 25
    assert all(Path(path).is_file() for path in table.phases["video_path"])
    assert read_wts(tmp_path, split="val").phases["split"].unique().tolist() == ["val"]
    assert (
        len(read_wts(tmp_path / "external").phases)
        == len(read_wts(tmp_path / "external/BDD_PC_5K").phases)
        == 5
    )


def test_the_public_test_download_has_segments_without_captions(tmp_path):
    root = tmp_path / "SubTask1-Caption/WTS_DATASET_PUBLIC_TEST"
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
    assert table.phases["scenario"].unique().tolist() == [SCENE, normal, "video9"]
    assert set(table.phases["split"]) == {"test"} and len(table.phases) == 6 and not table.problems
    assert table.phases["caption_vehicle"].isna().all() and table.phases["caption_pedestrian"].isna().all()


@pytest.mark.parametrize(
    "path", ["annotations/vqa/train/S/overhead_view/S_caption.json", "a/S_caption.json", "videos/x.mp4"]
)
def test_files_that_are_not_part_of_wts_are_ignored(path):
    assert locate(Path(path)) is None


def test_an_annotations_folder_inside_annotations_is_read(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    (tmp_path / "annotations").rename(tmp_path / "inner")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "inner").rename(tmp_path / "annotations" / "annotations")
    assert len(read_wts(tmp_path).phases) == 5


def test_upper_case_video_suffixes_match_the_listed_names(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    path = tmp_path / "videos/train" / SCENE / "overhead_view" / overhead(1)
    path.rename(path.with_suffix(".MP4"))
    table = read_wts(tmp_path)
    assert set(table.phases["video"]) == {overhead(1)} and not table.problems
    assert set(table.phases["video_path"]) == {str(path.with_suffix(".MP4"))}


def test_linked_scenarios_and_links_one_folder_deeper_are_read(tmp_path):
    add_view(tmp_path / "disk", "overhead_view", [overhead(1)])
    root = tmp_path / "data" / "WTS_DATASET_PUBLIC"
    for top in ("videos/train", "annotations/caption/train"):
        (root / top).mkdir(parents=True)
        (root / top / SCENE).symlink_to(tmp_path / "disk" / top / SCENE)
    assert len(read_wts(tmp_path / "data").phases) == 5
    assert find_wts(tmp_path / "data") == tmp_path / "data"


def test_find_wts_finds_what_read_wts_reads(tmp_path, monkeypatch):
    assert find_wts(tmp_path) is None and find_wts(tmp_path / "nothing") is None
    root = tmp_path / "wts"
    caption = add_view(root, "overhead_view", [overhead(1)])
    assert find_wts(root) == root and find_wts(tmp_path) == tmp_path
    assert find_wts(caption.parent) == find_wts(root / "videos") == root
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_wts("~/wts") == root and len(read_wts("~/wts").phases) == 5
    (root / "videos").rename(root / "films")
    assert find_wts(root) is None


def test_link_loops_are_reported_and_not_followed(tmp_path):
    caption = add_view(tmp_path, "overhead_view", [overhead(1)])
    (tmp_path / "videos/train" / SCENE / "up").symlink_to(tmp_path / "videos")
    (tmp_path / "videos/train/normal_trimmed").symlink_to("normal_trimmed")
    other = caption.parent.parent / "vehicle_view" / caption.name
    other.parent.mkdir()
    other.symlink_to(other.name)
    table = read_wts(tmp_path)
    assert len(table.phases) == 5
    loop, file = sorted(problems(table), reverse=True)
    assert "up: a link to a folder that contains it" in loop and "vehicle_view" in file and "links" in file
    assert_counts_add_up(table)


def test_unreadable_folders_are_reported(tmp_path, monkeypatch):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(
        os, "scandir", refuse
    )  # root may read every folder, so permissions alone do not test this
    table = read_wts(tmp_path)
    assert len(table.phases) == 5
    assert problems(table)[0].startswith("lost+found: expected a readable folder, found Permission denied")


def test_names_that_are_not_utf_8_are_reported(tmp_path):
    caption = add_view(tmp_path, "overhead_view", [overhead(1)])
    folder = os.fsencode(tmp_path / "videos/train" / SCENE / "overhead_view")
    with open(folder + b"/caf\xe9.mp4", "wb"):
        pass
    os.makedirs(os.fsencode(caption.parents[2]) + b"/sc\xe8ne/overhead_view")
    table = read_wts(tmp_path)
    assert len(table.phases) == 5 and len(table.problems) == 2
    assert all("in UTF-8" in problem for problem in problems(table))
    json.dumps(problems(table), ensure_ascii=False).encode("utf-8")


def test_captions_of_one_scenario_in_two_downloads_are_read_once(tmp_path):
    add_view(tmp_path / "a", "overhead_view", [overhead(1)])
    add_view(tmp_path / "b", "overhead_view", [overhead(1)])
    table = read_wts(tmp_path)
    assert len(table.phases) == 5 and "skipped" in problems(table)[0]
    assert_counts_add_up(table)


def test_videos_without_a_caption_file_are_reported(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    touch(tmp_path / "videos/train" / SCENE / "vehicle_view" / vehicle())
    for number in range(3):
        touch(tmp_path / f"videos/val/s{number}/overhead_view/s{number}.mp4")
    table = read_wts(tmp_path)
    assert len(table.phases) == 5 and table.counts["videos_without_captions"] == 4
    one, many = problems(table)
    assert vehicle() in one and "videos/val: 3 videos" in many


def test_a_caption_file_in_an_unknown_folder_is_reported(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    write(tmp_path / f"annotations/caption/train/{SCENE}/{SCENE}_caption.json", {})
    (problem,) = problems(read_wts(tmp_path))
    assert f"{SCENE}/{SCENE}_caption.json: expected" in problem and "<view>" in problem


def test_a_caption_file_without_any_video_is_reported(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    add_view(tmp_path, "vehicle_view", [], listed=[""])
    table = read_wts(tmp_path)
    assert set(table.phases["view"]) == {"overhead_view"}
    (problem,) = problems(table)
    assert "vehicle_view" in problem and "lists no video" in problem


@pytest.mark.parametrize(
    "kind, found",
    [("missing", "nothing"), ("empty", "an empty folder"), ("file", "a file"), ("other", "photos")],
)
def test_a_root_without_wts_is_one_clear_error(tmp_path, kind, found):
    root = tmp_path / "root"
    if kind == "file":
        touch(root)
    elif kind != "missing":
        root.mkdir()
    if kind == "other":
        touch(root / "photos/a.jpg")
    with pytest.raises(FileNotFoundError, match=f"expected .* found {found}") as error:
        read_wts(root)
    assert str(root) in str(error.value)


def test_an_unknown_or_absent_split_is_an_error(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    with pytest.raises(ValueError, match="train, val, test.*'trian'"):
        read_wts(tmp_path, split="trian")
    with pytest.raises(ValueError, match="caption files of val"):
        read_wts(tmp_path, split="val")


def test_the_real_scenario_is_read():
    root = SHARED / "data/wts_real"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist: real WTS data is not part of the project")
    table = read_wts(root)
    assert len(table.phases) == 15 and table.phases["video"].nunique() == 3
    first, second = problems(table)
    assert (
        "Camera2_1" in first and "Camera3_3" in second and "not on disk" in first and "not on disk" in second
    )
    assert_counts_add_up(table)


def test_bad_phase_entries_are_skipped_with_one_problem_each(tmp_path):
    huge = [phase("4", "1" + "0" * 400, 1), phase("4", 0, 17e17), phase("4", "nan", 1), phase("4", 1, "inf")]
    entries = [
        phase("crash", 0, 1),
        phase("0", "soon", 1),
        phase("9" * 5000, 1, 2),
        *huge,
        {"start_time": "0"},
        "text",
    ]
    add_view(tmp_path, "overhead_view", [overhead(1)], [*entries, phase("2", 0, 1), phase("2", 1, 2)])
    table = read_wts(tmp_path)
    assert table.phases["label"].tolist() == ["2"] and table.phases["start_s"].tolist() == [0.0]
    assert len(table.problems) == table.counts["phases_skipped"] == 10
    assert max(map(len, problems(table))) < 400
    assert_counts_add_up(table)


def test_captions_without_words_and_swapped_times_are_reported(tmp_path):
    add_view(
        tmp_path,
        "overhead_view",
        [overhead(1)],
        [phase("0", 3, 2, caption_vehicle=" . ", caption_pedestrian=None)],
    )
    table = read_wts(tmp_path)
    assert table.phases[["start_s", "end_s"]].values.tolist() == [[2.0, 3.0]]
    assert table.phases["caption_vehicle"].isna().all() and table.phases["caption_pedestrian"].isna().all()
    assert len(table.problems) == 3


def test_characters_that_no_file_can_hold_are_replaced_and_reported(tmp_path):
    texts = {"caption_vehicle": "A car \ud800.\r", "caption_pedestrian": "A man\0."}
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("0", 1, 2, **texts)])
    table = read_wts(tmp_path)
    assert table.phases.loc[0, "caption_vehicle"] == "A car \ufffd.\r"
    assert table.phases.loc[0, "caption_pedestrian"] == "A man\ufffd."
    assert len(table.problems) == 2


@pytest.mark.parametrize("listed", [5, {"a": 1}, [1, None, ["x.mp4"]], [overhead(1), "\ud800.mp4"], True])
def test_listed_videos_that_are_not_names_are_reported(tmp_path, listed):
    caption = add_view(tmp_path, "overhead_view", [overhead(1)])
    write(caption, json.loads(caption.read_text()) | {"overhead_videos": listed})
    table = read_wts(tmp_path)
    assert set(table.phases["video"]) == {overhead(1)} and table.problems
    assert_counts_add_up(table)


@pytest.mark.parametrize("kind", ["pipe", "device", "deep", "folder"])
def test_a_caption_file_that_is_not_a_readable_file_is_reported(tmp_path, kind):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    path = add_bdd(tmp_path, 1)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "deep":
        path.write_text("[" * 100_000)
    else:
        path.mkdir()
    table = read_wts(tmp_path)
    assert set(table.phases["scenario"]) == {SCENE}
    assert any("video1" in problem for problem in problems(table))


def test_many_problems_of_one_file_are_counted_and_the_first_hundred_listed(tmp_path):
    path = add_bdd(tmp_path, 1)
    path.write_text('{"event_phase": [' + ",".join(["{}"] * 200_000) + "]}")
    table = read_wts(tmp_path)
    assert len(table.problems) == 101 and "199,900 more problems" in table.problems[-1].what
    assert table.counts["phases_skipped"] == 200_000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["0", "4", "avoidance", "1.5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("labels", "start_time", "end_time", "caption_vehicle", "caption_pedestrian"), JSON
    )
    | {"labels": st.lists(st.sampled_from(["0", "1", "04", "judgement", 9])) | JSON},
)
CAPTION_FILE = JSON | st.fixed_dictionaries({"event_phase": st.lists(JSON | ENTRY), "overhead_videos": JSON})
BOX = JSON | st.fixed_dictionaries(
    {"image_id": JSON, "phase_number": JSON, "bbox": st.lists(JSON, min_size=3, max_size=4)}
)
BOX_FILE = JSON | st.fixed_dictionaries({"annotations": st.lists(BOX)})


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(CAPTION_FILE, BOX_FILE)
def test_any_content_of_caption_and_box_files_is_read_or_listed_and_counts_add_up(tmp_path, caption, box):
    add_view(tmp_path, "vehicle_view", [vehicle()])
    write(add_view(tmp_path, "overhead_view", [overhead(1)]), json.dumps(caption))
    write(add_boxes(tmp_path, vehicle(), {}, view="vehicle_view"), json.dumps(box))
    table = read_wts(tmp_path)
    assert (table.phases["view"] == "vehicle_view").sum() == 5
    assert_counts_add_up(table)
    table.phases.to_csv().encode("utf-8")
    boxes = read_boxes(tmp_path, table.phases)
    assert boxes.counts["boxes"] == boxes.counts["boxes_used"] + boxes.counts["boxes_skipped"]
    assert boxes.counts["boxes_used"] == len(boxes.boxes)


def test_a_drawn_validation_split_shares_no_recording_and_drops_no_row(tmp_path):
    for number in range(10):
        for take in (1, 2):
            scenario = f"2023_{number}_AB{number}_T{take}"
            add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, split="train")
    for number in range(5):
        add_bdd(tmp_path, number, split="val")
    add_bdd(tmp_path, 99, split="test")
    phases = read_wts(tmp_path).phases
    drawn = split_by_group(phases, val_share=0.2, seed=1).phases
    groups = drawn.assign(group=drawn["scenario"].map(recording_group)).groupby("group")["split"].nunique()
    assert (groups == 1).all() and len(drawn) == len(phases)
    val = drawn[drawn["split"] == "val"]
    assert val.groupby("source")["scenario"].nunique().to_dict() == {"wts": 4, "bdd": 1}
    assert drawn.loc[drawn["split"] == "test", "scenario"].unique().tolist() == ["video99"]
    again = split_by_group(phases, val_share=0.2, seed=1).phases
    other = split_by_group(phases, val_share=0.2, seed=2).phases
    assert again["split"].tolist() == drawn["split"].tolist() != other["split"].tolist()
    with pytest.raises(ValueError, match="val_share"):
        split_by_group(phases, val_share=1.5)


def test_a_single_recording_stays_in_train(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)], FIVE)
    drawn = split_by_group(read_wts(tmp_path).phases, val_share=0.5)
    assert set(drawn.phases["split"]) == {"train"} and len(drawn.problems) == 1


def add_many(root, numbers):
    for number in numbers:
        scenario = f"2023_{number}_AB1_T1"
        add_view(
            root, "overhead_view", [overhead(camera, scenario) for camera in range(4)], scenario=scenario
        )
        add_view(root, "vehicle_view", [vehicle(scenario)], scenario=scenario)


@pytest.mark.slow
def test_two_thousand_scenarios_are_read_in_seconds_and_linear_memory(tmp_path):
    def peak_mb():
        tracemalloc.start()
        rows = len(read_wts(tmp_path).phases)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        return rows, peak

    add_many(tmp_path, range(1000))
    rows, half_mb = peak_mb()
    add_many(tmp_path, range(1000, 2000))
    all_rows, all_mb = peak_mb()
    start = time.perf_counter()
    phases = read_wts(tmp_path).phases
    seconds = time.perf_counter() - start
    print(
        f"{len(phases)} rows of 2,000 scenarios in {seconds:.2f} s; peak {half_mb:.1f} MB for half, {all_mb:.1f} for all"
    )
    assert (rows, all_rows) == (25_000, 50_000)
    assert seconds < 20
    assert all_mb < 2.3 * half_mb
