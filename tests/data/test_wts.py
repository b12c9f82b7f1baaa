"""Read a WTS download: its quirks (11, boxes, in test_views.py), layouts, damage, the train/val split."""

import os
from pathlib import Path

import pytest
from wts_tree import SCENE, add_bdd, add_view, overhead, phase, touch, vehicle, write

from beit3lib.data.schema import PHASES
from beit3lib.data.wts import find_wts, list_segments, parse_phase, read_wts, recording_group, split_by_group

REAL = Path(__file__).parents[3] / "shared/data/wts_real"
NORMAL = "20231013_105827_normal_192.168.0.14_1"
CAPTIONS = ["caption_vehicle", "caption_pedestrian"]


def problems(table):
    return [str(problem) for problem in table.problems]


def values(table, *columns):
    return table.phases[list(columns)].values.tolist()


def assert_nothing_is_lost(root, table):
    """Each video on disk is used, or its name or scenario is in a problem."""
    videos = {str(path) for path in root.rglob("[!.]*.mp4")}
    listed = "\n".join(problems(table))
    for path in map(Path, videos - set(table.phases["video_path"])):
        assert any(name in listed for name in (path.stem, path.parents[1].name)), path


def test_01_12_each_view_keeps_its_own_times_and_captions(tmp_path):
    text, other = "A van is present.Overall, the road is dry.  Two spaces", "It has stopped."
    same = {"caption_vehicle": text, "caption_pedestrian": "He walks."}
    add_view(
        tmp_path, "overhead_view", [overhead(1)], [phase("04", 32.21, 33.527, **same), phase("1", 30, 31)]
    )
    entries = [phase("4", 0, 1.317, **same), phase("1", 7, 8, caption_vehicle=other)]
    add_view(tmp_path, "vehicle_view", [vehicle()], entries)
    table = read_wts(tmp_path)
    assert values(table, "view", "start_s", "end_s", "label", "phase", "caption_vehicle") == [
        ["overhead_view", 30, 31, "1", 1, "A car in phase 1."],
        ["overhead_view", 32.21, 33.527, "04", 4, text],
        ["vehicle_view", 7, 8, "1", 1, other],
        ["vehicle_view", 0, 1.317, "04", 4, text],
    ]
    segments = list_segments(table.phases)
    assert segments[["scenario", "label", "phase"]].values.tolist() == [[SCENE, "1", 1], [SCENE, "04", 4]]
    (problem,) = problems(table)
    assert problem.startswith(f"{SCENE} phase 1: captions of views differ")


def test_02_labels_are_digits_or_words(tmp_path):
    add_bdd(tmp_path, 1, [phase("avoidance", 4, 5), phase("0", 0, 1), phase("judgement", 2, 3)], split="test")
    assert values(read_wts(tmp_path), "label", "phase") == [["0", 0], ["judgement", 2], ["avoidance", 4]]
    assert [parse_phase(word) for word in PHASES] == [0, 1, 2, 3, 4] == [parse_phase(n) for n in "01234"]
    assert [parse_phase(label) for label in (3, " Action ", "04", "000")] == [3, 3, 4, 0]
    assert {parse_phase(label) for label in ("5", "-1", "crash", None, "²", "٣", ())} == {None}


def test_03_to_07_times_and_orders_are_kept_as_written(tmp_path):
    """A phase without length, an end after the video, fps (unused), one to four phases that overlap."""
    add_bdd(tmp_path, 1, [phase("0", 19.025, 19.025), phase("1", 19.025, 1e4)], fps="59.04")
    add_bdd(tmp_path, 2, [phase(n, int(n), int(n) + 1.5) for n in "3120"], fps=None)
    add_bdd(tmp_path, 3, [phase("4", 0, 1)])
    table = read_wts(tmp_path)
    times = [
        ["0", 19.025, 19.025],
        ["1", 19.025, 1e4],
        *([str(n), n, n + 1.5] for n in range(4)),
        ["4", 0, 1],
    ]
    assert values(table, "label", "start_s", "end_s") == times and not table.problems


def test_08_missing_and_unlisted_videos_are_reported(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1), overhead(3)], listed=[overhead(1), overhead(2)])
    for name in ("videos/train/.DS_Store", f"videos/train/{SCENE}/overhead_view/._{overhead(1)}"):
        touch(tmp_path / name)
    touch(tmp_path / f"annotations/caption/train/{SCENE}/overhead_view/._{SCENE}_caption.json")
    table = read_wts(tmp_path)
    assert sorted(table.phases["video"].unique()) == [overhead(1), overhead(3)]
    missing, unlisted = problems(table)
    assert overhead(2) in missing and "not on disk" in missing
    assert overhead(3) in unlisted and "not listed" in unlisted
    assert_nothing_is_lost(tmp_path, table)
    kept = read_wts(tmp_path, keep_missing=True)
    assert kept.phases.loc[kept.phases["video"] == overhead(2), "video_path"].tolist() == [""] * 5
    assert problems(kept) == problems(table)


def test_10_train_and_val_share_no_recording(tmp_path):
    splits = {f"{NORMAL}_event_1": "train", f"{NORMAL}_event_2": "val", "20230707_2_CD2_T3": "train"}
    for scenario, split in splits.items():
        add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario, split=split)
    assert recording_group("20230707_2_CD2_T3") == recording_group("20230707_2_CD2_T12") == "20230707_2_CD2"
    apart = split_by_group(read_wts(tmp_path).phases)
    assert set(apart.phases["scenario"]) == {f"{NORMAL}_event_2", "20230707_2_CD2_T3"}
    (shared,) = problems(apart)
    assert shared.startswith(f"{NORMAL}:") and "5 train rows skipped" in shared and "_event_1" in shared
    assert apart.phases["split"].value_counts().to_dict() == {"train": 5, "val": 5}


def test_13_a_broken_file_is_named_and_all_others_are_read(tmp_path):
    whole = add_view(tmp_path, "overhead_view", [overhead(1)])
    half = add_view(tmp_path, "overhead_view", ["b.mp4"], scenario="20230707_2_CD2_T1")
    half.write_text(whole.read_text()[:200])
    add_bdd(tmp_path, 1).write_text("[]")
    add_bdd(tmp_path, 2).write_bytes(b"\xff\xfe\x00")
    pipe = add_bdd(tmp_path, 3)
    pipe.unlink()
    os.mkfifo(pipe)
    table = read_wts(tmp_path)
    assert set(table.phases["scenario"]) == {SCENE} and len(table.phases) == 5
    names = [half.name, *(f"video{n}_caption.json" for n in (1, 2, 3))]
    assert all(name in problem for name, problem in zip(names, sorted(problems(table)), strict=True))
    assert_nothing_is_lost(tmp_path, table)


def test_09_every_split_source_and_spelling_is_read(tmp_path):
    add_view(tmp_path, "overhead_view", [overhead(1)])
    upper = tmp_path / "videos/train" / SCENE / "overhead_view" / overhead(1)
    upper.rename(upper.with_suffix(".MP4"))
    add_view(
        tmp_path, "vehicle_view", [vehicle(NORMAL)], scenario=NORMAL, split="val", between="normal_trimmed"
    )
    add_bdd(tmp_path, 1)
    add_bdd(tmp_path, 2, folder="BDD_PC_5k", split="val", caption="")
    add_bdd(tmp_path, 3, folder="BDD_TC_5K", split="val")
    table = read_wts(tmp_path)
    rows = table.phases[["scenario", "split", "source", "view", "video"]].drop_duplicates().values.tolist()
    assert rows == [
        [SCENE, "train", "wts", "overhead_view", overhead(1)],
        [NORMAL, "val", "wts", "vehicle_view", vehicle(NORMAL)],
        ["video1", "train", "bdd", "vehicle_view", "video1.mp4"],
        ["video2", "val", "bdd", "vehicle_view", "video2.mp4"],
        ["video3", "val", "bdd", "vehicle_view", "video3.mp4"],
    ]
    assert not table.problems and len(table.phases) == 25
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
    assert table.phases[CAPTIONS].isna().all(axis=None)


def test_a_download_is_found_from_inside_or_its_absence_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="expected a WTS download .* found nothing"):
        read_wts(tmp_path)
    assert find_wts(tmp_path) is None and find_wts(tmp_path / "nothing") is None
    root = tmp_path / "wts"
    caption = add_view(root, "overhead_view", [overhead(1)])
    assert find_wts(root) == root and find_wts(tmp_path) == tmp_path
    assert find_wts(caption.parent) == find_wts(root / "videos") == root
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(root)
    assert find_wts("~/wts") == root and len(read_wts("~/link").phases) == 5
    (root / "videos").rename(root / "films")
    assert find_wts(root) is None


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
    expected = (
        f"caption/train/{SCENE}/{SCENE}_caption.json: expected …/caption/<split>",
        "b/annotations",
        "found 5 phases and 0 videos",
        "videos/train: 1 videos without a caption file",
        "videos/val: 3 videos without a caption file, such as s0.mp4",
    )
    assert len(table.problems) == len(expected)
    assert all(any(text in problem for problem in problems(table)) for text in expected), problems(table)


def test_bad_phase_entries_are_skipped_and_listed(tmp_path):
    bad = [phase("crash", 0, 1), phase("0", "soon", 1), phase("4", "nan", 1), "text", phase("2", 1, 2)]
    add_view(tmp_path, "overhead_view", [overhead(1)], [phase("2", 2, 3, caption_vehicle=" . "), *bad])
    table = read_wts(tmp_path)
    assert values(table, "label", "start_s", "caption_vehicle") == [["2", 2, None]]
    assert len(table.problems) == len(bad) + 1


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real WTS scenario at {REAL}")
def test_the_real_scenario_is_read():
    table = read_wts(REAL)
    assert len(table.phases) == 15 and table.phases["video"].nunique() == 3
    first, second = problems(table)
    assert "Camera2_1" in first and "Camera3_3" in second
    assert "not on disk" in first and "not on disk" in second
    assert_nothing_is_lost(REAL, table)


def test_a_drawn_validation_split_shares_no_recording(tmp_path):
    for number in range(20):
        scenario = f"2023_{number // 2}_AB_T{number % 2}"
        add_view(tmp_path, "overhead_view", [f"{scenario}.mp4"], scenario=scenario)
    for number in range(5):
        add_bdd(tmp_path, number, split="val")
    add_bdd(tmp_path, 99, split="test")
    phases = read_wts(tmp_path).phases
    drawn, again = (split_by_group(phases, 0.2).phases for _ in range(2))
    assert drawn["split"].tolist() == again["split"].tolist() and len(drawn) == len(phases)
    assert (drawn.groupby(drawn["scenario"].map(recording_group))["split"].nunique() == 1).all()
    val = drawn[drawn["split"] == "val"]
    assert val.groupby("source")["scenario"].nunique().to_dict() == {"wts": 4, "bdd": 1}
    assert drawn.loc[drawn["split"] == "test", "scenario"].unique().tolist() == ["video99"]
