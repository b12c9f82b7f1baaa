"""Read boxes of every kind, and choose cameras by each of the five values of `views`."""

import pytest
from wts_tree import SCENE, add_bdd, add_boxes, add_view, overhead, vehicle, write

from beit3lib.data.views import choose_views, read_boxes
from beit3lib.data.wts import read_wts
from beit3lib.files import FileError


@pytest.fixture
def root(tmp_path):
    """A scenario with three overhead cameras and a vehicle view, one with a single camera, a BDD video."""
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
    return {choice.scenario: choice.why for choice in chosen.choices}


def test_boxes_of_every_kind_and_source_are_read(root, phases):
    add_boxes(root, overhead(1), {0: 10, 3: 0})  # no area (quirk 11)
    add_boxes(root, overhead(1), {0: 10, 1: 11}, kind="generated")
    add_boxes(root, overhead(2), {4: 12}, subject="vehicle")
    add_boxes(root, "stranger.mp4", {4: 12})
    box = {"image_id": 7, "bbox": [1, 2, 3, 4], "phase_number": "avoidance"}
    bdd = root / "external/BDD_PC_5K/annotations/bbox_annotated/train/video1_bbox.json"
    write(bdd, {"annotations": [box, {"bbox": "?"}]})
    broken = write(add_boxes(root, overhead(3), {4: 12}), '{"annotations": [')
    boxes, problems = read_boxes(root, phases)
    assert sorted(boxes[["video", "subject", "kind", "phase", "frame"]].values.tolist()) == [
        [overhead(1), "pedestrian", "annotated", 0, 0],
        [overhead(1), "pedestrian", "generated", 0, 0],
        [overhead(1), "pedestrian", "generated", 1, 1],
        [overhead(2), "vehicle", "annotated", 4, 4],
        ["video1.mp4", "pedestrian", "annotated", 4, 7],
    ]
    empty, unread, skipped = map(str, problems)
    assert overhead(1)[:-4] in empty and "1 of 2 boxes" in empty
    assert broken.name in unread and "expected JSON" in unread
    assert "video1_bbox.json" in skipped and "1 of 2" in skipped


def test_views_all_vehicle_and_overhead_keep_every_scenario(phases):
    others = {"solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    assert videos(choose_views(phases).phases) == videos(phases)
    assert videos(choose_views(phases, "vehicle").phases) == {SCENE: [vehicle()]} | others
    chosen = choose_views(phases, "overhead")
    assert videos(chosen.phases) == {SCENE: [overhead(n) for n in (1, 2, 3)]} | others
    assert reasons(chosen)[SCENE] == "overhead_view" and "no overhead_view" in reasons(chosen)["video1"]


@pytest.mark.parametrize("name", ["", "_for_multiview_scenario"])
def test_views_main_keeps_the_videos_of_the_csv(root, phases, name):
    rows = ["\ufeffScene,Viewpoint1,Viewpoint2", f"{SCENE},{overhead(3)},,{overhead(9)} ,", "", "other,x.mp4"]
    text = "\r\n".join(rows).replace(",", ";" if name else ",")  # European spreadsheets save semicolons
    (root / f"view_used_as_main_reference{name}.csv").write_text(text, encoding="utf-8")
    main = choose_views(phases, "main", root=root)
    assert videos(main.phases) == {SCENE: [overhead(3)], "solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    assert overhead(9) in reasons(main)[SCENE] and "no camera listed" in reasons(main)["solo"]


@pytest.mark.parametrize(
    "content", [None, b"", b"Scene,Viewpoint1\nother,x.mp4\n", "Scène,x.mp4".encode("latin-1")]
)
def test_a_list_that_matches_no_scenario_is_an_error(root, phases, content):
    if content is not None:
        (root / "view_used_as_main_reference.csv").write_bytes(content)
    with pytest.raises(FileError, match="expected"):
        choose_views(phases, "main", root=root)
    bdd = phases[phases["source"] == "bdd"]  # its folder has no list
    assert videos(choose_views(bdd, "main", root=root).phases) == {"video1": ["video1.mp4"]}


def test_views_best_prefers_boxes_in_most_phases_then_the_largest(root, phases):
    def best():
        return videos(choose_views(phases, "best", root=root).phases)

    assert best() == {SCENE: [vehicle()], "solo": ["solo.mp4"], "video1": ["video1.mp4"]}
    add_boxes(root, overhead(1), {0: 500})
    add_boxes(root, overhead(2), {0: 10, 1: 10})
    add_boxes(root, overhead(3), {0: 10, 1: 11})
    add_boxes(root, overhead(3), {0: 900}, subject="vehicle")
    assert best()[SCENE] == [overhead(3)]
    assert "2 phases, the largest of 121 px²" in reasons(choose_views(phases, "best", root=root))[SCENE]
    add_boxes(root, overhead(2), {n: 5 for n in range(5)}, kind="generated")
    assert best()[SCENE] == [overhead(3)], "annotated boxes come first"
    add_boxes(root, vehicle(), {n: 5 for n in range(5)}, view="vehicle_view", kind="generated")
    assert best()[SCENE] == [vehicle()]
