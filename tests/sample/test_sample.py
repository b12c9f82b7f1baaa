"""The sample is a WTS download in small: same tree, same JSON, and what captions say is what the pictures show."""

import hashlib
import json

import numpy as np
import pytest

from beit3lib.data.wts import read_boxes, read_wts
from beit3lib.sample import draw as sample
from beit3lib.sample.draw import VALUES, Camera, Scene, describe, draw_blur, draw_frames, full_caption, patch_labels

SMALL = {"train": (3, 1, 1), "val": (1, 0, 1), "test": (1, 0, 1)}
STILL = Camera(0.0, 0.0, 1.0, 0, 7)
REAL_KEYS = {"labels", "caption_pedestrian", "caption_vehicle", "start_time", "end_time"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return sample.write_sample(tmp_path_factory.mktemp("sample") / "wts", SMALL, jobs=2)


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Scene(**sample.draw_values(rng)) for _ in range(count)]


def test_reads_as_a_download_without_problems(root):
    table = read_wts(root)
    assert table.attrs["problems"] == []
    planned = sample.plan(SMALL)
    assert set(table["scenario"]) == {s.name for s in planned}
    assert set(table["split"]) == {"train", "val", "test"} and set(table["source"]) == {"wts", "bdd"}
    assert set(table[table["source"] == "bdd"]["label"]) <= set(sample.PHASES)


def test_caption_files_have_every_key_of_the_real_ones(root):
    wts = json.loads(next((root / "annotations/caption/train").glob("2*/overhead_view/*.json")).read_text())
    assert set(wts) == {"id", "overhead_videos", "event_phase"} and set(wts["event_phase"][0]) == REAL_KEYS
    assert isinstance(wts["event_phase"][0]["start_time"], str)
    bdd = json.loads(next((root / "external/BDD_PC_5K/annotations/caption/train").glob("*.json")).read_text())
    assert set(bdd) == {"video_name", "fps", "event_phase"}
    test = json.loads(next((root / "annotations/caption/test/public_challenge").glob("*/*/*.json")).read_text())
    assert set(test["event_phase"][0]) == REAL_KEYS - {"caption_pedestrian", "caption_vehicle"}


def test_views_of_a_scenario_have_different_clocks_and_one_caption(root):
    table = read_wts(root, "train")
    both = table.groupby(["scenario", "phase"]).filter(lambda rows: rows["view"].nunique() == 2)
    for _, rows in both.groupby(["scenario", "phase"]):
        assert rows["start_s"].nunique() == 2 and rows["caption_vehicle"].nunique() == 1


def test_boxes_lie_where_things_stand(root):
    table = read_wts(root)
    boxes = read_boxes(root, table)
    assert len(boxes) and (boxes["bbox_xywh_px"].map(lambda b: b[0] + b[2]) <= sample.WIDTH_PX).all()


def test_the_same_seed_gives_the_same_sample(root, tmp_path):
    again = sample.write_sample(tmp_path / "again", SMALL, jobs=1)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        twin = again / path.relative_to(root)
        assert hashlib.md5(path.read_bytes()).digest() == hashlib.md5(twin.read_bytes()).digest(), path


@pytest.mark.parametrize("subject", ["vehicle", "pedestrian"])
def test_captions_read_back_as_drawn(subject):
    for scene in scenes(200):
        for aspect, text in describe(scene, subject).items():
            assert sample.states_correctly(text, scene, subject, aspect), text


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_noticed(name):
    for scene in scenes(30):
        for value in set(VALUES[name]) - {getattr(scene, name)}:
            told = Scene(**{**vars(scene), name: value})
            wrong = [
                (subject, aspect)
                for subject in ("vehicle", "pedestrian")
                for aspect in sample.ATTRIBUTES
                if not sample.states_correctly(describe(told, subject).get(aspect, ""), scene, subject, aspect)
            ]
            assert wrong, (name, value)


def test_an_aspect_left_out_must_stay_unsaid():
    dark = Scene(light="dark")
    assert "pedestrian_description" not in describe(dark, "vehicle")
    assert sample.states_correctly("", dark, "vehicle", "pedestrian_description")
    assert not sample.states_correctly("a red jacket and black slacks", dark, "vehicle", "pedestrian_description")


def test_the_rules_sort_every_sentence_to_the_aspect_it_was_written_for():
    from beit3lib.data.aspects import split_caption

    for scene in scenes(60):
        for subject in ("vehicle", "pedestrian"):
            assert split_caption(full_caption(scene, subject), subject) == describe(scene, subject)


@pytest.mark.parametrize("name", VALUES)
def test_every_attribute_changes_the_picture(name):
    """Each value against each other, all else equal: some patch of 8 x 8 pixels changes by more than sensor noise."""
    pictures = [np.float32(draw_blur(Scene(**{name: value}), STILL)) for value in VALUES[name]]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            patches = np.abs(a - b).reshape(8, 8, 8, 8, 3).mean((1, 3, 4))
            assert patches.max() > 8


def test_standing_things_are_sharp_and_fast_ones_leave_a_trail():
    still = list(draw_frames(Scene(), STILL, 4))
    assert all(np.array_equal(still[0], frame) for frame in still)
    moving = list(draw_frames(Scene(vehicle_motion="fast"), STILL, 4))
    assert not np.array_equal(moving[0], moving[1]) and np.array_equal(moving[-1], still[-1])


def test_patch_labels_follow_the_scene():
    labels = patch_labels(Scene(upper="yellow", vehicle_motion="slow"), STILL).reshape(8, 8, 3)
    assert {1, 3} <= set(labels[..., 0].flat)  # a vehicle, and a jacket of the second colour
    assert set(labels[labels[..., 0] == 1][:, 1]) == {2}


def test_attribute_shares_tell_own_images_from_shuffled_ones():
    import pandas as pd

    drawn = {(f"s{i}", 0): scene for i, scene in enumerate(scenes(60, seed=3))}
    rows = [
        (name, 0, subject, aspect, describe(scene, subject).get(aspect, ""))
        for (name, _), scene in drawn.items()
        for subject in ("vehicle", "pedestrian")
        for aspect in sample.ATTRIBUTES
    ]
    table = pd.DataFrame(rows, columns=["scenario", "phase", "subject", "aspect", "caption"])
    shares = sample.attribute_shares(table, drawn)
    assert (shares["own"] == 1).all() and (shares["shuffled"] < 0.6).all()
    assert ((shares["shuffled"] - shares["chance"]).abs() < 0.15).all()


def test_weights_are_small_public_and_made_by_the_documented_command():
    assert sample.SPM_PATH.stat().st_size + sample.CHECKPOINT_PATH.stat().st_size < 4e6
    from beit3lib.checkpoint import load_pretrained
    from beit3lib.model import Captioner, model_config

    report = load_pretrained(Captioner(model_config(sample.MODEL)), sample.CHECKPOINT_PATH)
    assert not (report.fresh or report.left_out or report.resized)


@pytest.mark.slow
def test_pretraining_runs(tmp_path):
    result = sample.pretrain(tmp_path, steps=3, batch_size=4)
    assert result["loss"] > 0 and (tmp_path / sample.CHECKPOINT_PATH.name).is_file()
