"""Read boxes of every kind, and choose cameras by each of the five values of `views`."""

import pandas as pd
import pytest
from wts_tree import SCENE, add_bdd, add_boxes, add_view, overhead, vehicle, write

from beit3lib.data.views import choose_views, read_boxes
from beit3lib.data.wts import read_wts
from beit3lib.files import FileError


@pytest.fixture
def root(tmp_path):
    """A scenario with three overhead cameras and a vehicle view, one without a vehicle view, and a BDD video."""
    add_view(tmp_path, "overhead_view", [overhead(n) for n in (1, 2, 3)])
    add_view(tmp_path, "vehicle_view", [vehicle()])
    add_view(tmp_path, "overhead_view", ["solo.mp4"], scenario="solo")
    add_bdd(tmp_path, 1)
    return tmp_path


@pytest.fixture
def phases(root):
    return read_wts(root).phases


def videos(phases):
    return phases.groupby("scenario")["video"].unique().map(sorted).to_dict()


def reasons(chosen):
    return pd.DataFrame(chosen.choices).set_index("scenario")["why"]


def test_boxes_of_every_kind_and_source_are_read(root, phases):
    add_boxes(root, overhead(1), {0: 10})
    add_boxes(root, overhead(1), {0: 10, 1: 11}, kind="generated")
    add_boxes(root, overhead(2), {4: 12}, subject="vehicle")
    add_boxes(root, "stranger.mp4", {4: 12})
    bdd = root / "external/BDD_PC_5K/annotations/bbox_annotated/train/video1_bbox.json"
    write(
        bdd,
        {"annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4], "phase_number": "avoidance"}, {"bbox": "?"}]},
    )
    broken = add_boxes(root, overhead(3), {4: 12})
    broken.write_text('{"annotations": [')
    boxes = read_boxes(root, phases)
    assert sorted(boxes.boxes[["video", "subject", "kind", "phase", "frame"]].values.tolist()) == [
        [overhead(1), "pedestrian", "annotated", 0, 0],
        [overhead(1), "pedestrian", "generated", 0, 0],
        [overhead(1), "pedestrian", "generated", 1, 1],
        [overhead(2), "vehicle", "annotated", 4, 4],
        ["video1.mp4", "pedestrian", "annotated", 4, 7],
    ]
    found = list(map(str, boxes.problems))
    assert any(broken.name in problem and "expected JSON" in problem for problem in found)
    assert f"{overhead(1)}: no annotated vehicle box in phase 0, 1, 2, 3, 4" in found
    assert not any(vehicle() in problem and "vehicle box" in problem for problem in found), (
        "it carries the camera"
    )
    assert any("video1_bbox.json" in problem and "1 of 2" in problem for problem in found)
    assert boxes.counts == {"boxes": 6, "boxes_used": 5, "boxes_skipped": 1}


@pytest.mark.parametrize("frame", ["Infinity", "1e999", "1" + "0" * 400])
def test_a_box_with_an_infinite_frame_number_is_reported(root, phases, frame):
    path = add_boxes(root, overhead(1), {0: 10, 1: 10})
    path.write_text(path.read_text().replace('"image_id": 1', f'"image_id": {frame}'))
    boxes = read_boxes(root, phases)
    assert any(path.name in problem.where for problem in boxes.problems)
    chosen = choose_views(phases, "best", root=root)
    assert chosen.problems == boxes.problems and len(chosen.phases)


def test_no_boxes_at_all_are_one_problem(root, phases):
    boxes = read_boxes(root, phases)
    assert boxes.boxes.empty and len(boxes.problems) == 1


def test_views_all_vehicle_and_overhead_keep_every_scenario(phases):
    assert videos(choose_views(phases).phases) == videos(phases)
    assert videos(choose_views(phases, "vehicle").phases) == {
        SCENE: [vehicle()],
        "solo": ["solo.mp4"],
        "video1": ["video1.mp4"],
    }
    chosen = choose_views(phases, "overhead")
    assert videos(chosen.phases)[SCENE] == [overhead(n) for n in (1, 2, 3)]
    assert videos(chosen.phases)["video1"] == ["video1.mp4"]
    assert reasons(chosen)[SCENE] == "overhead_view" and "no overhead_view" in reasons(chosen)["video1"]
    with pytest.raises(ValueError, match="'front'"):
        choose_views(phases, "front")


@pytest.mark.parametrize(
    "name", ["view_used_as_main_reference.csv", "view_used_as_main_reference_for_multiview_scenario.csv"]
)
def test_views_main_keeps_the_videos_of_the_csv(root, phases, name):
    header = "\ufeffScene,Viewpoint1,Viewpoint2,Viewpoint3,Viewpoint4"
    rows = [header, f"{SCENE},{overhead(3)},,{overhead(9)} ,", "", "other,x.mp4"]
    (root / name).write_text("\n".join(rows), encoding="utf-8")
    main = choose_views(phases, "main", root=root)
    assert videos(main.phases) == {SCENE: [overhead(3)], "solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    assert overhead(9) in reasons(main)[SCENE] and "not listed" in reasons(main)["solo"]


@pytest.mark.parametrize(
    "content", ["Scène,x.mp4".encode("latin-1"), b"a," + b"x" * 200_000, b'a,"b.mp4\nc,d.mp4\n']
)
def test_a_broken_csv_is_an_error_with_its_name(root, phases, content):
    path = root / "view_used_as_main_reference.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"{path.name}: expected"):
        choose_views(phases, "main", root=root)


def test_views_main_without_a_csv_and_views_best_without_a_root_are_errors(root, phases):
    with pytest.raises(FileNotFoundError, match="view_used_as_main_reference.*best"):
        choose_views(phases, "main", root=root)
    with pytest.raises(ValueError, match="root"):
        choose_views(phases, "best")


def test_views_best_keeps_the_video_with_boxes_in_most_phases_then_the_largest_box(root, phases):
    fallback = choose_views(phases, "best", root=root)
    assert videos(fallback.phases) == {SCENE: [vehicle()], "solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    add_boxes(root, overhead(1), {0: 500})
    add_boxes(root, overhead(2), {0: 10, 1: 10})
    add_boxes(root, overhead(3), {0: 10, 1: 11})
    add_boxes(root, overhead(3), {0: 900}, subject="vehicle")
    best = choose_views(phases, "best", root=root)
    assert videos(best.phases)[SCENE] == [overhead(3)]
    assert "2 phases, the largest of 121 px²" in reasons(best)[SCENE]
    assert videos(choose_views(phases, "best", boxes=read_boxes(root, phases).boxes).phases) == videos(
        best.phases
    )
    add_boxes(root, overhead(2), {n: 5 for n in range(5)}, kind="generated")
    assert videos(choose_views(phases, "best", root=root).phases)[SCENE] == [overhead(3)], (
        "annotated boxes come first"
    )
    add_boxes(root, vehicle(), {n: 5 for n in range(5)}, view="vehicle_view", kind="generated")
    assert videos(choose_views(phases, "best", root=root).phases)[SCENE] == [vehicle()]
