"""The sample is a small WTS download: same tree, same JSON, and images that show what the captions state."""

import hashlib
import json

import numpy as np
import pytest
import sentencepiece

from beit3lib import sample
from beit3lib.data.aspects import split_caption
from beit3lib.data.schema import PHASES, SUBJECTS
from beit3lib.data.views import read_boxes
from beit3lib.data.wts import read_wts
from beit3lib.sample import draw
from beit3lib.sample.draw import VALUES, Camera, Scene, describe, draw_blur, draw_frames, full_caption

SMALL = {"train": (3, 1, 1), "val": (1, 0, 1), "test": (1, 0, 1)}
STILL = Camera(0.0, 0.0, 1.0, 0, 7)
REAL_KEYS = {"labels", "caption_pedestrian", "caption_vehicle", "start_time", "end_time"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw.write_sample(tmp_path_factory.mktemp("sample") / "wts", SMALL, jobs=2)


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Scene(**draw.draw_values(rng)) for _ in range(count)]


def test_the_sample_is_read_as_a_download_without_problems(root):
    table = read_wts(root)
    assert table.problems == []
    assert set(table.phases["scenario"]) == {scenario.name for scenario in draw.plan(SMALL)}
    assert set(table.phases["split"]) == {"train", "val", "test"} and set(table.phases["source"]) == {
        "wts",
        "bdd",
    }
    assert set(table.phases[table.phases["source"] == "bdd"]["label"]) <= set(PHASES)


def test_caption_files_have_every_key_of_real_ones(root):
    wts = json.loads(next((root / "annotations/caption/train").glob("2*/overhead_view/*.json")).read_text())
    assert set(wts) == {"id", "overhead_videos", "event_phase"} and set(wts["event_phase"][0]) == REAL_KEYS
    assert isinstance(wts["event_phase"][0]["start_time"], str)
    bdd = json.loads(next((root / "external/BDD_PC_5K/annotations/caption/train").glob("*.json")).read_text())
    assert set(bdd) == {"video_name", "fps", "event_phase"}
    test = json.loads(
        next((root / "annotations/caption/test/public_challenge").glob("*/*/*.json")).read_text()
    )
    assert set(test["event_phase"][0]) == REAL_KEYS - {"caption_pedestrian", "caption_vehicle"}


def test_views_of_a_scenario_have_different_times_and_one_caption(root):
    phases = read_wts(root).phases.query("split == 'train'")
    both = phases.groupby(["scenario", "phase"]).filter(lambda rows: rows["view"].nunique() == 2)
    assert len(both)
    for _, rows in both.groupby(["scenario", "phase"]):
        assert rows["start_s"].nunique() == 2 and rows["caption_vehicle"].nunique() == 1


def test_boxes_are_inside_the_image(root):
    boxes = read_boxes(root, read_wts(root).phases).boxes
    assert len(boxes) and (boxes["bbox_xywh_px"].map(lambda box: box[0] + box[2]) <= draw.WIDTH_PX).all()


def test_equal_seeds_give_equal_samples(root, tmp_path):
    again = draw.write_sample(tmp_path / "again", SMALL, jobs=1)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        twin = again / path.relative_to(root)
        assert hashlib.md5(path.read_bytes()).digest() == hashlib.md5(twin.read_bytes()).digest(), path


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="expected a new folder or an earlier sample"):
        draw.write_sample(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_in_the_dark_the_vehicle_caption_does_not_mention_clothes():
    assert "pedestrian_description" not in describe(Scene(light="dark"), "vehicle")
    assert "pedestrian_description" in describe(Scene(light="dark"), "pedestrian")


def worded(count):
    """Return scenes with random wordings and conditions, as in the sample."""
    return [scene for scenario in draw.plan({"train": (count, 0, 0)}) for scene in scenario.phases.values()]


def test_every_sentence_is_classified_as_the_aspect_it_was_written_for():
    for scene in [*scenes(60), *worded(60)]:
        for subject in SUBJECTS:
            assert split_caption(full_caption(scene, subject), subject) == describe(scene, subject)


def test_every_fact_has_three_to_five_wordings():
    counts = {
        (fact, value): len(set(texts))
        for fact, values in draw.WORDINGS.items()
        for value, texts in values.items()
    }
    assert all(3 <= count <= 5 for count in counts.values()), counts


def test_wordings_vary_between_scenes_and_optional_facts_are_sometimes_left_out():
    texts = [describe(Scene(wording=n), "pedestrian") for n in range(1, 60)]
    assert len({text["road"] for text in texts}) > 15
    assert len({text["weather"] for text in texts}) == 5
    assert 0.1 < np.mean(["sidewalk" not in text["road"] for text in texts]) < 0.4
    assert describe(Scene(wording=7), "vehicle") == describe(Scene(wording=7), "vehicle")


def test_captions_fit_the_tokens_of_the_tiny_model():
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sample.SPM_PATH))
    lengths = [
        len(processor.encode(text))
        for scene in worded(60)
        for s in SUBJECTS
        for text in describe(scene, s).values()
    ]
    assert max(lengths) <= 40


def test_about_a_fifth_of_the_scenes_is_hard_to_see_and_no_bright_one_is_very_dark():
    conditions = [scene.condition for scene in worded(120)]
    assert (
        set(conditions) == {"plain", *draw.HARD} and 0.12 < np.mean([c != "plain" for c in conditions]) < 0.28
    )
    assert all(scene.light == "dark" for scene in worded(120) if scene.condition == "very dark")


@pytest.mark.parametrize("condition", draw.HARD)
def test_a_hard_scene_shows_the_colors_of_clothes_less(condition):
    def contrast(**changes):
        red, blue = (
            np.float32(draw_blur(Scene(upper=upper, light="dark", **changes), STILL))
            for upper in ("red", "blue")
        )
        return np.abs(red - blue).sum()

    assert contrast(condition=condition) < 0.5 * contrast()


@pytest.mark.parametrize("name", VALUES)
def test_every_attribute_changes_the_image(name):
    """For each pair of values, all else equal, some patch of 8 x 8 pixels changes by more than the noise."""
    images = [np.float32(draw_blur(Scene(**{name: value}), STILL)) for value in VALUES[name]]
    for i, a in enumerate(images):
        for b in images[:i]:
            patches = np.abs(a - b).reshape(8, 8, 8, 8, 3).mean((1, 3, 4))
            assert patches.max() > 8


def test_still_objects_are_sharp_and_moving_ones_leave_a_trail():
    still = list(draw_frames(Scene(), STILL, 4))
    assert all(np.array_equal(still[0], frame) for frame in still)
    moving = list(draw_frames(Scene(vehicle_motion="fast"), STILL, 4))
    assert not np.array_equal(moving[0], moving[1]) and np.array_equal(moving[-1], still[-1])


def test_the_pretrained_files_are_small():
    assert sample.SPM_PATH.stat().st_size + sample.CHECKPOINT_PATH.stat().st_size < 4e6
