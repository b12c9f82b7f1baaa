"""Make motion-blur images: the right frames with the right weights, of many videos and of damaged ones."""

import errno
import os
import wave
from contextlib import ExitStack
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from clips import blur_by_seeking, write_clip, write_gray
from PIL import Image

from beit3lib.data import motion_blur as module
from beit3lib.data.motion_blur import blur_table, motion_blur

SIZE = 32
CHART = Path(__file__).parents[3] / "shared" / "data" / "cases" / "bt709_chart.mp4"


def level(image):
    return np.asarray(image, np.float64).mean()


def difference(image, other):
    return np.abs(np.asarray(image, np.float32) - np.asarray(other, np.float32)).mean()


def blur(path, spans, **options):
    return motion_blur(path, spans, SIZE, **options)


@pytest.fixture(scope="session")
def ramp(tmp_path_factory):
    """Three seconds at 10 frames a second; frame n has the gray level 40 + 5·n."""
    return write_gray(tmp_path_factory.mktemp("ramp") / "ramp.mp4", [40 + 5 * n for n in range(30)])


@pytest.fixture(scope="session")
def textured(tmp_path_factory):
    """Four seconds of a moving texture at 30 frames a second."""
    return write_clip(tmp_path_factory.mktemp("textured") / "clip.mp4", 4, 320, 180, g="20")


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory):
    """A minute at 10 frames a second, a keyframe every second."""
    return write_gray(tmp_path_factory.mktemp("long") / "long.mp4", [30 + n * 37 % 200 for n in range(600)])


@pytest.mark.parametrize("weights, size", [("linear", 224), ("equal", 31)])
def test_images_equal_those_made_by_seeking_with_opencv(textured, weights, size):
    spans = [(2.0, 3.1), (0.0, 0.7), (0.5, 2.5), (3.5, 4.0)]
    ours = motion_blur(textured, spans, size, weights).images
    theirs = blur_by_seeking(textured, spans, size, weights)
    for image, other in zip(ours, theirs, strict=True):
        assert difference(image, other) < 1 and abs(level(image) - other.mean()) < 0.5


def test_bt709_colors_are_right():
    if not CHART.is_file():
        pytest.skip(f"{CHART} does not exist: sample videos are not part of the project")
    (chart,) = motion_blur(CHART, [(0, 0.1)]).middle
    found = np.asarray(chart, int)[chart.height // 2, chart.width // 16 :: chart.width // 8]
    drawn = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)]
    drawn += [(40, 120, 200), (0, 128, 0), (128, 128, 128), (180, 0, 90)]
    assert np.abs(found - drawn).max() < 5, found


def test_full_range_colors_equal_those_of_opencv(tmp_path):
    options = {"crf": "5", "x264-params": "range=pc:colormatrix=bt709"}
    path = write_clip(tmp_path / "clip.mp4", 0.1, 160, 120, 10, pix_fmt="yuvj420p", **options)
    assert difference(blur(path, [(0, 0.1)]).images[0], blur_by_seeking(path, [(0, 0.1)], SIZE)[0]) < 1.5


def test_a_phase_without_frames_gets_the_nearest_and_a_late_end_is_reported(ramp):
    nearest = {(1.0, 1.0): 10, (1.02, 1.03): 10, (1.07, 1.08): 11, (2.95, 9.0): 29, (50.0, 60.0): 29}
    made = blur(ramp, [*nearest, (0.0, 1.0), (2.5, 3.0), (2.0, 3.7)], names="abcdefgh")
    assert made.frames == [0] * 5 + [10, 5, 10] and made.problems[5:7] == [[], []]
    for image, (problem,), number in zip(made.images, made.problems, nearest.values(), strict=False):
        assert level(image) == pytest.approx(40 + 5 * number, abs=1.5)
        assert problem.where.startswith("ramp.mp4, phase ") and f"{number / 10:.3f} s" in problem.what
    (problem,) = made.problems[7]
    assert problem.where == "ramp.mp4, phase h" and "3.7 s" in problem.what and "10 frames" in problem.what


def test_frames_are_chosen_by_timestamps(tmp_path):
    times = [7000 + ms for ms in (0, 40, 80, 120, 1000, 1500, 2000, 2010, 2020, 2500)]
    path = write_gray(tmp_path / "uneven.mp4", range(50, 250, 20), times)
    # A start that was rounded up to 1 ms after a frame includes the frame.
    made = blur(path, [(0, 1), (1, 2), (2.0004, 2.4)], weights="equal")
    assert made.frames == [4, 2, 3]
    assert [level(image) for image in made.images] == pytest.approx([80, 140, 190], abs=2)


MATRICES = {  # entries a, b, c, d of the display matrix, and the same turn of an array (height, width, 3)
    (-1, 0, 0, 1): lambda pixels: pixels[:, ::-1],
    (0, 1, -1, 0): lambda pixels: np.rot90(pixels, -1),
}


def encode_matrix(a, b, c, d):
    """Return a display matrix as in the track header of an MP4: 16.16 and 2.30 fixed-point numbers."""
    return np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotated_and_mirrored_videos_are_turned_upright(tmp_path, textured, matrix):
    path, (head, tkhd, tail) = tmp_path / "turned.mp4", textured.read_bytes().partition(b"tkhd")
    path.write_bytes(head + tkhd + tail.replace(encode_matrix(1, 0, 0, 1), encode_matrix(*matrix), 1))
    ours, straight = motion_blur(path, [(0, 1)], 64), motion_blur(textured, [(0, 1)], 64)
    for turned, upright in ((ours.images, straight.images), (ours.middle, straight.middle)):
        assert np.array_equal(np.asarray(turned[0]), MATRICES[matrix](np.asarray(upright[0])))
    assert difference(ours.images[0], straight.images[0]) > 5
    if matrix == (0, 1, -1, 0):  # OpenCV rotates, too
        assert difference(ours.images[0], blur_by_seeking(path, [(0, 1)], 64)[0]) < 1


def test_seeking_changes_nothing(tmp_path, long_clip, monkeypatch):
    """Damage is reported if a phase needs that part; other frames are used, skipped parts not read."""
    data, damaged = bytearray(long_clip.read_bytes()), tmp_path / "damaged.mp4"
    start = data.index(b"mdat") + len(data) // 4
    data[start : start + 500] = bytes(500)
    damaged.write_bytes(data)
    spans = [(30.0, 32.5), (2.0, 3.0), (55.0, 56.0), (31.0, 31.0), (44.2, 44.25)]
    seeking, broken = blur(damaged, spans), blur(damaged, [(0, 22), *spans])
    assert "damaged parts skipped" in str(broken.problems[0][0])
    monkeypatch.setattr(module, "SEEK_AHEAD_S", 1e9)  # never seek: decode from the beginning
    plain = blur(long_clip, spans)
    assert seeking.frames == plain.frames == broken.frames[1:] and not any(seeking.problems[:3])
    for images in (seeking.images, broken.images[1:]):
        assert all(np.array_equal(a, b) for a, b in zip(images, plain.images, strict=True))


def test_a_seek_back_uses_no_frame_twice(tmp_path):
    """With one keyframe in the file, the seek to the second phase leads back before the first."""
    path = write_gray(tmp_path / "clip.mp4", [30 + n % 200 for n in range(300)], keyframes=1000)
    made = blur(path, [(2.0, 4.0), (20.0, 21.0)])
    assert made.frames == [20, 10]
    assert [level(image) for image in made.images] == pytest.approx([30 + 20 + 19 * 2 / 3, 30 + 6], abs=1.5)


COLUMNS = ["scenario", "video", "video_path", "label", "phase", "start_s", "end_s"]


@pytest.fixture
def table(tmp_path, ramp):
    """Three videos of three phases each: two whole ones and a broken one."""
    rows = []
    for name in ("a_192.168.0.14_1.mp4", "broken.mp4", "video7.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no video" if name == "broken.mp4" else ramp.read_bytes())
        for phase, label in enumerate(("0", "1", "judgement")):
            rows.append((name[:-4], name, str(path), label, phase, phase * 0.8, phase * 0.8 + 1.0))
    return pd.DataFrame(rows, columns=COLUMNS)


def test_each_broken_video_is_one_problem_and_all_others_are_read(tmp_path, table, capsys):
    images, videos = tmp_path / "images", tmp_path / "videos"
    whole = (videos / "video7.mp4").read_bytes()
    with wave.open(str(videos / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(2000))
    os.mkfifo(videos / "pipe.mp4")
    broken = {"empty.mp4": b"", "half.mp4": whole[: len(whole) // 2], "page.mp4": b"<html>" * 99}
    for name, content in broken.items():
        (videos / name).write_bytes(content)
    paths = {name: str(videos / name) for name in (*broken, "sound.mp4", "pipe.mp4")}
    paths |= {"missing.mp4": "", "far.mp4": str(videos / "video7.mp4")}  # times of far.mp4 are nanoseconds
    more = [(name[:-4], name, path, "0", 0, 17e17, 17e17) for name, path in paths.items()]
    table = pd.concat([table, pd.DataFrame(more, columns=COLUMNS)])
    out, problems = blur_table(table, images, SIZE, jobs=1)
    wanted = [f"avg{stem}phase{n}.jpg" for stem in ("a_192.168.0.14_1", "video7") for n in range(3)]
    assert out["image"].tolist() == wanted == sorted(path.name for path in images.iterdir())
    assert out[["frame_width_px", "frame_height_px"]].drop_duplicates().values.tolist() == [[64, 48]]
    assert [problem.where for problem in problems] == sorted(["broken.mp4", *paths])
    assert all("phases skipped: " in problem.what for problem in problems)
    with Image.open(images / "avgvideo7phase2.jpg") as image:
        assert difference(image, blur(videos / "video7.mp4", [(1.6, 2.6)]).images[0]) < 2
    assert f"6 images made, 0 found, {len(problems)} problems" in capsys.readouterr().out


CHANGES = {"nothing": 0, "weights": 6, "times": 3, "half": 1, "video": 3}


@pytest.mark.parametrize("change, count", CHANGES.items())
def test_images_are_kept_unless_their_input_has_changed(tmp_path, table, change, count, capsys):
    images = tmp_path / "images"
    path = images / "avgvideo7phase1.jpg"
    first = blur_table(table, images, SIZE, jobs=1)
    before = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    weights = "equal" if change == "weights" else "linear"
    if change == "times":
        table.loc[table["video"] == "video7.mp4", "end_s"] += 0.1
    elif change == "half":
        path.write_bytes(path.read_bytes()[:20])
    elif change == "video":  # a preallocated download has its final size before it is complete
        os.utime(tmp_path / "videos" / "video7.mp4", (1, 1))
    second = blur_table(table, images, SIZE, 1, weights)
    assert sum(path.stat().st_mtime_ns != before.get(path.name) for path in images.iterdir()) == count
    assert f"{count} images made, {6 - count} found" in capsys.readouterr().out
    assert len(second.phases) == 6 and second.problems == first.problems
    with Image.open(path) as image:
        image.load()
        assert image.size == (SIZE, SIZE)


def test_a_full_disk_names_the_file_and_leaves_no_half_image(tmp_path, table, monkeypatch):
    def refuse(image, path, **options):
        path.write_bytes(b"\xff\xd8\xff half an image")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(OSError, match="No space left on device: .*avga_192.168.0.14_1phase0.jpg"):
        blur_table(table, tmp_path / "images", SIZE, jobs=1)
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize("backend", ["loky", pytest.param("dask", marks=pytest.mark.slow)])
def test_several_processes_make_the_same_images_as_one(tmp_path, table, backend):
    one = blur_table(table, tmp_path / "one", SIZE, jobs=1)
    with ExitStack() as stack:
        if backend == "dask":
            distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
            options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
            cluster = distributed.LocalCluster(**options, local_directory=str(tmp_path))
            stack.enter_context(distributed.Client(stack.enter_context(cluster)))
        with joblib.parallel_config(backend):
            two = blur_table(table, tmp_path / "two", SIZE, jobs=None if backend == "dask" else 2)
    pd.testing.assert_frame_equal(one.phases, two.phases)
    assert one.problems == two.problems
    for image in one.phases["image"]:
        assert (tmp_path / "one" / image).read_bytes() == (tmp_path / "two" / image).read_bytes()


class Killer(str):
    """A video's name that ends the worker process that unpickles it."""

    def __reduce__(self):
        return eval, ("__import__('os')._exit(9)",)


def test_a_killed_worker_loses_at_most_its_own_video(tmp_path, table):
    parts = []
    for name in ("0.mp4", "1.mp4", Killer("video7.mp4"), *(f"{n}.mp4" for n in range(3, 8))):
        videos = pd.Series([name] * 3, table.index[6:], dtype=object)
        parts.append(table[6:].assign(scenario=str(len(parts)), video=videos))
    out, problems = blur_table(pd.concat(parts, ignore_index=True), tmp_path / "images", SIZE, jobs=2)
    assert len(out) == 21 and [problem.where for problem in problems] == ["video7.mp4"]


def test_videos_of_one_name_get_different_images(tmp_path, table, textured):
    double = table[6:].assign(scenario="other", video_path=str(textured))
    out, problems = blur_table(pd.concat([table[6:], double, double[:1]]), tmp_path / "images", SIZE, jobs=1)
    wanted = [f"avg{stem}phase{n}.jpg" for stem in ("video7", "other_video7") for n in range(3)]
    assert out["image"].tolist() == wanted
    with Image.open(tmp_path / "images" / "avgother_video7phase0.jpg") as image:
        assert difference(image, blur(textured, [(0.0, 1.0)]).images[0]) < 3
    assert [problem.where for problem in problems] == ["other/video7.mp4, phase 0"]
