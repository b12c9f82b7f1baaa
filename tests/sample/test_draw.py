"""The sample is a small WTS download: same tree, same JSON, and images that show what the captions state."""

import numpy as np
import pytest

from beit3lib import sample
from beit3lib.data.aspects import split_caption
from beit3lib.data.schema import PHASES, SUBJECTS
from beit3lib.data.views import read_boxes
from beit3lib.data.wts import read_wts
from beit3lib.files import read_json
from beit3lib.sample import draw
from beit3lib.sample.draw import VALUES, Camera, Scene, describe, draw_blur, full_caption
from beit3lib.tokenizer import load_tokenizer

SMALL = {"train": (3, 1, 1), "val": (1, 0, 1), "test": (1, 0, 1)}
STILL = Camera(0.0, 0.0, 1.0, 0, 7)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw.write_sample(tmp_path_factory.mktemp("sample") / "wts", SMALL, jobs=2)


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Scene(**draw.draw_values(rng)) for _ in range(count)]


def worded(count):
    """Return scenes with random wordings and conditions, as in the sample."""
    return [scene for scenario in draw.plan({"train": (count, 0, 0)}) for scene in scenario.phases.values()]


def test_the_sample_is_read_as_a_download_without_problems(root):
    phases, problems = read_wts(root)
    assert problems == [] and set(phases["split"]) == {"train", "val", "test"}
    assert set(phases["scenario"]) == {scenario.name for scenario in draw.plan(SMALL)}
    assert set(phases.loc[phases["source"] == "bdd", "label"]) <= set(PHASES)
    boxes = read_boxes(root, phases).boxes
    assert len(boxes) and (boxes["bbox_xywh_px"].map(lambda box: box[0] + box[2]) <= draw.WIDTH_PX).all()
    views = phases[phases["split"] == "train"].groupby(["scenario", "phase"])
    both = views.filter(lambda rows: rows["view"].nunique() == 2).groupby(["scenario", "phase"])
    assert set(both["start_s"].nunique()) == {2} and set(both["caption_vehicle"].nunique()) == {1}


@pytest.mark.parametrize(
    "pattern, keys",
    [
        ("annotations/caption/train/2*/overhead_view/*", {"id", "overhead_videos"}),
        ("annotations/caption/train/2*/vehicle_view/*", {"vehicle_view"}),
        ("external/BDD_PC_5K/annotations/caption/train/*", {"video_name", "fps"}),
    ],
)
def test_caption_files_have_every_key_of_real_ones(root, pattern, keys):
    content = read_json(next(root.glob(pattern)))
    of_phase = {"labels", "caption_pedestrian", "caption_vehicle", "start_time", "end_time"}
    assert set(content) == {*keys, "event_phase"} and set(content["event_phase"][0]) == of_phase


def test_every_scenario_has_its_own_cameras_and_one_in_nine_lacks_the_vehicle_view():
    scenarios = [(s.kind, [videos for _, videos, _ in s.views()]) for s in draw.plan() if s.kind != "bdd"]
    cameras = {camera for _, views in scenarios for camera in views[0].values()}
    lacking = [kind for kind, views in scenarios if len(views) == 1]
    second = [kind for kind, views in scenarios if len(views[0]) == 2]
    assert len(scenarios) == 64 + 8 + 16 + 4 + 4 + 2 and len(cameras) == len(scenarios) + len(second)
    assert 7 <= len(lacking) <= 15 and lacking.count("normal") <= 3 and 7 <= len(second) <= 16


def test_equal_counts_give_equal_samples(root, tmp_path):
    other = draw.write_sample(tmp_path / "other", SMALL, jobs=1)
    for path in (path for path in root.rglob("*") if path.is_file()):
        assert path.read_bytes() == (other / path.relative_to(root)).read_bytes(), path


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="expected a new folder or an earlier sample"):
        draw.write_sample(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_captions_are_sentences_of_their_aspects_that_fit_the_tiny_model():
    tokenizer, lengths = load_tokenizer(sample.SPM_PATH), []
    for scene in [*scenes(60), *worded(60)]:
        for subject in SUBJECTS:
            parts = describe(scene, subject)
            assert split_caption(full_caption(scene, subject), subject) == parts
            seen = subject == "pedestrian" or scene.light == "bright"
            assert ("pedestrian_description" in parts) == seen
            lengths += [len(tokenizer.encode(text)) for text in parts.values()]
    assert max(lengths) <= 42


@pytest.mark.parametrize("name", VALUES)
def test_every_attribute_changes_the_image(name):
    """For each pair of values, all else equal, some patch of 8 x 8 pixels changes by more than the noise."""
    images = [np.float32(draw_blur(Scene(**{name: value}), STILL)) for value in VALUES[name]]
    for i, a in enumerate(images):
        for b in images[:i]:
            assert np.abs(a - b).reshape(8, 8, 8, 8, 3).mean((1, 3, 4)).max() > 8
