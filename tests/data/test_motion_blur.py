"""Motion-blur images: the right frames with the right weights, whatever the video; many videos; what goes wrong.

python -m pytest tests/test_motion_blur.py [-m "not slow"]
"""

import subprocess
import sys
import tracemalloc

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beit3lib.data import motion_blur as module
from beit3lib.data.motion_blur import (
    BENCH_SPANS_S,
    blur_by_seeking,
    blur_phases,
    blur_table,
    image_name,
    measure_speed,
    motion_blur,
    write_clip,
)

SIZE = 32


def write_grey(path, levels, times=None, rate=10, keyframes=10):
    """Write a clip of evenly grey frames; `times` are their time stamps in 1/1000 s, from 0 at `rate` by default."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000 if times else rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"qp": "4", "g": str(keyframes), "bf": "2", "sc_threshold": "0"}
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            if times:
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def level(image):
    return np.asarray(image, np.float64).mean()


def difference(image, other):
    return np.abs(np.asarray(image, np.float32) - np.asarray(other, np.float32)).mean()


@pytest.fixture(scope="session")
def ramp(tmp_path_factory):
    """Three seconds at 10 frames a second; frame n has the grey level 40 + 5·n."""
    return write_grey(tmp_path_factory.mktemp("ramp") / "ramp.mp4", [40 + 5 * n for n in range(30)])


@pytest.fixture(scope="session")
def textured(tmp_path_factory):
    """Four seconds of a moving texture at 30 frames a second."""
    return write_clip(tmp_path_factory.mktemp("textured") / "clip.mp4", 4, 320, 180, g="20")


# ---- the right frames with the right weights


def test_weights_are_1_to_n_and_later_frames_weigh_more(ramp):
    levels = np.array([40 + 5 * n for n in range(10, 20)])
    (linear,) = motion_blur(ramp, [(1.0, 2.0)], SIZE)
    (equal,) = motion_blur(ramp, [(1.0, 2.0)], SIZE, weights="equal")
    assert linear.size == (SIZE, SIZE) and linear.mode == "RGB"
    assert level(linear) == pytest.approx(np.average(levels, weights=np.arange(1, 11)), abs=1.5)
    assert level(equal) == pytest.approx(levels.mean(), abs=1.5)


@pytest.mark.parametrize("weights", ["linear", "equal"])
@pytest.mark.parametrize("size", [224, 31, 400])
def test_equal_to_seeking_with_opencv(textured, weights, size):
    spans = [(2.0, 3.1), (0.0, 0.7), (0.5, 2.5), (3.5, 4.0)]
    ours = motion_blur(textured, spans, size, weights)
    theirs = blur_by_seeking(textured, spans, size, weights)
    for image, other in zip(ours, theirs, strict=True):
        assert difference(image, other) < 1
        assert abs(level(image) - other.mean()) < 0.5


@pytest.mark.parametrize(
    "pix_fmt, params",
    [
        ("yuv420p", "colormatrix=bt709"),
        ("yuvj420p", "range=pc"),
        ("yuvj420p", "range=pc:colormatrix=bt709"),
        ("yuv444p", ""),
        ("yuv420p10le", ""),
        ("gray", ""),
    ],
)
def test_colours_as_opencv_reads_them(tmp_path, pix_fmt, params):
    path = tmp_path / "clip.mp4"
    colours = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(colours).resize((160, 120), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, pix_fmt
        stream.options = {"crf": "5", "x264-params": params}
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)))
        container.mux(stream.encode())
    (ours,), (theirs,) = motion_blur(path, [(0, 0.5)], 64), blur_by_seeking(path, [(0, 0.5)], 64)
    assert difference(ours, theirs) < 1.5


def test_spans_overlapping_and_in_any_order_equal_one_at_a_time(textured):
    spans = [(3.0, 4.0), (0.2, 1.7), (1.0, 3.3), (0.2, 1.7)]
    together = motion_blur(textured, spans, SIZE)
    alone = [motion_blur(textured, [span], SIZE)[0] for span in spans]
    assert [np.array_equal(a, b) for a, b in zip(together, alone, strict=True)] == [True] * 4
    assert motion_blur(textured, [], SIZE) == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_phases_of_one_to_three_frames(ramp, number):
    blur = blur_phases(ramp, [(1.0, 1.0 + number / 10)], SIZE)
    levels = [40 + 5 * n for n in range(10, 10 + number)]
    assert blur.frames == [number] and not blur.problems
    assert level(blur.images[0]) == pytest.approx(np.average(levels, weights=range(1, number + 1)), abs=1.5)


@pytest.mark.parametrize(
    "span, nearest", [((1.0, 1.0), 10), ((1.02, 1.03), 10), ((1.07, 1.08), 11), ((2.95, 9.0), 29), ((50.0, 60.0), 29)]
)
def test_a_phase_without_a_frame_gets_the_nearest(ramp, span, nearest):
    blur = blur_phases(ramp, [span], SIZE, names=["3"])
    assert blur.frames == [0]
    assert level(blur.images[0]) == pytest.approx(40 + 5 * nearest, abs=1.5)
    (problem,) = blur.problems
    assert problem.where == "ramp.mp4, phase 3" and f"{nearest / 10:.3f} s" in problem.what


def test_an_end_past_the_video_uses_what_is_there_and_says_so(ramp):
    blur = blur_phases(ramp, [(0.0, 1.0), (2.5, 3.0), (2.0, 3.7)], SIZE, names=["0", "1", "2"])
    assert blur.frames == [10, 5, 10]
    (problem,) = blur.problems
    assert problem.where == "ramp.mp4, phase 2" and "3.7 s" in problem.what and "10 frames" in problem.what


def test_frames_go_by_time_stamps_not_by_a_rate(tmp_path):
    times = [0, 40, 80, 120, 1000, 1500, 2000, 2010, 2020, 2500]
    path = write_grey(tmp_path / "uneven.mp4", range(50, 250, 20), times)
    blur = blur_phases(path, [(0, 1), (1, 2), (2, 2.4)], SIZE, "equal")
    assert blur.frames == [4, 2, 3]
    assert [level(image) for image in blur.images] == pytest.approx([80, 140, 190], abs=2)


def test_times_count_from_the_first_frame(tmp_path):
    path = write_grey(tmp_path / "late.mp4", [50, 100, 150, 200], [7000, 8000, 9000, 10000])
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time > 0
    blur = blur_phases(path, [(0, 0.5), (2, 2.5)], SIZE)
    assert blur.frames == [1, 1]
    assert [level(image) for image in blur.images] == pytest.approx([50, 150], abs=2)


def test_milliseconds_rounded_in_the_annotation_do_not_lose_a_frame(tmp_path):
    path = write_grey(tmp_path / "thirds.mp4", range(40, 220, 2), rate=30)  # frame 50 stands at 1.6666… s
    assert blur_phases(path, [(1.667, 2.0)], SIZE).frames == [10]


def test_a_rotated_video_is_turned_upright(tmp_path, textured):
    data = textured.read_bytes()
    upright = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = b"".join(n.to_bytes(4, "big") for n in (0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30))
    place = data.index(upright, data.index(b"tkhd"))
    path = tmp_path / "turned.mp4"
    path.write_bytes(data[:place] + turned + data[place + len(turned) :])
    (ours,), (theirs,) = motion_blur(path, [(0, 1)]), blur_by_seeking(path, [(0, 1)])
    (straight,) = motion_blur(textured, [(0, 1)])
    assert difference(ours, theirs) < 1 < 10 < difference(ours, straight)


# ---- one pass


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory):
    """A minute at 10 frames a second, a keyframe every second."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_grey(path, [30 + n * 37 % 200 for n in range(600)])


def count_decoded(monkeypatch):
    """Count the frames that come out of the decoder."""
    counted = []
    decode = module._Video._decode

    def counting(video):
        for time_s, frame in decode(video):
            counted.append(time_s)
            yield time_s, frame

    monkeypatch.setattr(module._Video, "_decode", counting)
    return counted


def test_seeking_skips_what_no_phase_needs_and_changes_nothing(long_clip, monkeypatch):
    spans = [(30.0, 32.5), (2.0, 3.0), (55.0, 56.0), (31.0, 31.0), (44.2, 44.25)]
    counted = count_decoded(monkeypatch)
    seeking = blur_phases(long_clip, spans, SIZE)
    assert len(counted) < 200
    monkeypatch.setattr(module, "SEEK_AHEAD_S", 1e9)  # never seek: decode from the beginning
    monkeypatch.setattr(module, "GAP_S", 1e9)
    counted.clear()
    plain = blur_phases(long_clip, spans, SIZE)
    assert 540 < len(counted) <= 600
    assert seeking.frames == plain.frames and seeking.problems == plain.problems
    assert all(np.array_equal(a, b) for a, b in zip(seeking.images, plain.images, strict=True))


def test_each_frame_is_decoded_once_for_all_phases(textured, monkeypatch):
    counted = count_decoded(monkeypatch)
    blur_phases(textured, [(0, 2), (1, 3), (2, 4), (0, 4)], SIZE)
    assert len(counted) == len(set(counted)) == 120


def test_a_seek_back_over_a_phase_counts_its_frames_once(tmp_path):
    """With one keyframe for all, the seek to the second phase leads back before the first."""
    path = tmp_path / "clip.mp4"
    write_grey(path, [30 + n % 200 for n in range(300)], keyframes=1000)
    spans = [(2.0, 4.0), (20.0, 21.0)]
    blur = blur_phases(path, spans, SIZE)
    assert blur.frames == [20, 10]
    assert [level(image) for image in blur.images] == pytest.approx([30 + 20 + 19 * 2 / 3, 30 + 6], abs=1.5)


def test_an_index_that_leads_too_far_is_not_believed(long_clip, monkeypatch):
    expected = motion_blur(long_clip, [(30.0, 32.0)], SIZE)
    seek = module._Video._seek
    monkeypatch.setattr(module._Video, "_seek", lambda video, time_s: seek(video, time_s + 10 if time_s else 0))
    assert np.array_equal(motion_blur(long_clip, [(30.0, 32.0)], SIZE)[0], expected[0])


def test_memory_does_not_grow_with_the_phase(long_clip):
    def peak(span):
        tracemalloc.start()
        motion_blur(long_clip, [span], 128)
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    peak((0, 1))
    assert peak((0, 60)) < 1.5 * peak((0, 1))


# ---- bad input


@pytest.mark.parametrize("spans", [[(2.0, 1.0)], [(0.0, float("nan"))], [(float("-inf"), 1.0)]])
def test_spans_without_sense_are_an_error(ramp, spans):
    with pytest.raises(ValueError, match="start ≤ end"):
        motion_blur(ramp, spans)


def test_unknown_options_are_an_error(ramp):
    with pytest.raises(ValueError, match="linear, equal.*'quadratic'"):
        motion_blur(ramp, [(0, 1)], weights="quadratic")
    with pytest.raises(ValueError, match="pixels above 0, found 0"):
        motion_blur(ramp, [(0, 1)], size=0)


def break_in_half(path, ramp):
    path.write_bytes(ramp.read_bytes()[: ramp.stat().st_size // 2])


def write_sound(path, ramp):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


BROKEN = {
    "empty": lambda path, ramp: path.write_bytes(b""),
    "text": lambda path, ramp: path.write_text("no video at all\n" * 100),
    "half": break_in_half,
    "sound": write_sound,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_video_is_named_with_the_reason(tmp_path, ramp, kind):
    path = tmp_path / "broken.mp4"
    BROKEN[kind](path, ramp)
    with pytest.raises(ValueError, match="broken.mp4: expected a video, found"):
        motion_blur(path, [(0, 1)])
    with pytest.raises(FileNotFoundError, match="nothing.mp4: expected a video here, found none"):
        motion_blur(tmp_path / "nothing.mp4", [(0, 1)])


def test_damage_inside_a_video_is_told_and_the_rest_used(tmp_path, long_clip):
    data = bytearray(long_clip.read_bytes())
    start = data.index(b"mdat") + len(data) // 4
    data[start : start + 3000] = b"\x00" * 3000
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    blur = blur_phases(path, [(0, 30), (50, 52)], SIZE)
    (whole,) = motion_blur(long_clip, [(50, 52)], SIZE)
    assert np.array_equal(blur.images[1], whole)
    assert any("damaged packets" in problem.what for problem in blur.problems)


# ---- many videos


@pytest.fixture
def table(tmp_path, ramp):
    """Three videos of three phases each: two whole, one broken."""
    rows = []
    for name in ("a_192.168.0.14_1.mp4", "broken.mp4", "video7.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no video" if name == "broken.mp4" else ramp.read_bytes())
        for phase, label in enumerate(("0", "1", "judgement")):
            rows.append((name, str(path), label, phase, phase * 0.8, phase * 0.8 + 1.0))
    return pd.DataFrame(rows, columns=["video", "video_path", "label", "phase", "start_s", "end_s"])


def snapshot(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_table_of_images_counts_and_the_broken_video(tmp_path, table, capsys):
    images = tmp_path / "images"
    out = blur_table(table, images, SIZE, jobs=1)
    assert out["image"].tolist() == [f"avg{stem}phase{n}.jpg" for stem in ("a_192.168.0.14_1", "video7") for n in range(3)]
    assert sorted(path.name for path in images.iterdir()) == sorted(out["image"])
    assert out.attrs["counts"] == {"videos": 3, "rows": 9, "made": 6, "found": 0, "left_out": 3}
    (problem,) = out.attrs["problems"]
    assert problem.where == "broken.mp4" and "3 of 3 phases left out" in problem.what
    with Image.open(images / "avgvideo7phase2.jpg") as image:
        (expected,) = motion_blur(table["video_path"].iloc[-1], [(1.6, 2.6)], SIZE)
        assert difference(image, expected) < 2
    assert "motion blur: 3/3 videos, 6 images made, 0 were there, 1 problems" in capsys.readouterr().out


def test_second_run_makes_nothing_again_and_says_so(tmp_path, table, capsys):
    images = tmp_path / "images"
    first = blur_table(table, images, SIZE, jobs=1)
    before = snapshot(images)
    again = blur_table(table, images, SIZE, jobs=1)
    assert snapshot(images) == before and again["image"].tolist() == first["image"].tolist()
    assert again.attrs["counts"] == {"videos": 3, "rows": 9, "made": 0, "found": 6, "left_out": 3}
    assert "0 images made, 6 were there" in capsys.readouterr().out
    (images / "avgvideo7phase1.jpg").unlink()
    assert blur_table(table, images, SIZE, jobs=1).attrs["counts"]["made"] == 1


@pytest.mark.parametrize("change", ["size", "weights", "times", "half image"])
def test_an_image_made_otherwise_is_made_again(tmp_path, table, change):
    images = tmp_path / "images"
    blur_table(table, images, SIZE, jobs=1)
    options = {"size": SIZE, "weights": "linear"}
    if change == "times":
        table.loc[table["video"] == "video7.mp4", "end_s"] += 0.1
    elif change == "half image":
        path = images / "avgvideo7phase1.jpg"
        path.write_bytes(path.read_bytes()[:20])
    else:
        options |= {"size": 16} if change == "size" else {"weights": "equal"}
    out = blur_table(table, images, jobs=1, **options)
    assert out.attrs["counts"]["made"] == {"size": 6, "weights": 6, "times": 3, "half image": 1}[change]
    with Image.open(images / "avgvideo7phase1.jpg") as image:
        image.load()
        assert image.size == (options["size"],) * 2


def test_a_killed_run_leaves_no_half_image(tmp_path, table, monkeypatch):
    images = tmp_path / "images"

    def half(image, path, **options):
        path.write_bytes(b"\xff\xd8\xff half an image")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half)
        with pytest.raises(KeyboardInterrupt):
            blur_table(table, images, SIZE, jobs=1)
    assert list(images.iterdir()) == []
    (images / ".avgvideo7phase1.x1y2.jpg").write_bytes(b"\xff\xd8\xff what a kill -9 leaves")
    out = blur_table(table, images, SIZE, jobs=1)
    assert sorted(path.name for path in images.iterdir()) == sorted(out["image"])


def test_parallel_equals_one_by_one(tmp_path, table):
    one, two = (blur_table(table, tmp_path / str(jobs), SIZE, jobs=jobs) for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert one.attrs == two.attrs
    for image in one["image"]:
        assert (tmp_path / "1" / image).read_bytes() == (tmp_path / "2" / image).read_bytes()


def test_two_videos_of_one_name_do_not_overwrite_each_other(tmp_path, table, ramp):
    other = tmp_path / "other/video7.mp4"
    other.parent.mkdir()
    other.write_bytes(ramp.read_bytes())
    double = table.assign(video_path=str(other), video="video7.mp4").iloc[:1]
    out = blur_table(pd.concat([table, double]), tmp_path / "images", SIZE, jobs=1)
    assert out.attrs["counts"] == {"videos": 3, "rows": 10, "made": 6, "found": 0, "left_out": 4}
    assert str(other) in [problem.where.split(",")[0] for problem in out.attrs["problems"]]


def test_rows_of_videos_that_are_not_there_are_named(tmp_path, table):
    missing = table.assign(video_path="")  # as read_wts(…, keep_missing=True) gives them
    out = blur_table(missing, tmp_path / "images", SIZE, jobs=1)
    assert out.empty and out.attrs["counts"]["left_out"] == 9
    assert [problem.where for problem in out.attrs["problems"]] == sorted(table["video"].unique())
    assert all("expected a video here, found none" in problem.what for problem in out.attrs["problems"])


def test_an_empty_table_makes_nothing(tmp_path, table):
    out = blur_table(table.iloc[:0], tmp_path / "images", SIZE)
    assert out.empty and out.attrs["counts"] == {"videos": 0, "rows": 0, "made": 0, "found": 0, "left_out": 0}


def test_image_names_have_the_number_of_the_phase():
    assert image_name("video7.mp4", 4) == "avgvideo7phase4.jpg"
    assert image_name("a_192.168.0.14_1.MP4", 0) == "avga_192.168.0.14_1phase0.jpg"


def test_neither_torch_nor_transformers_is_loaded():
    code = "import sys, beit3lib.data.motion_blur; print({'torch', 'transformers', 'cv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# ---- speed


@pytest.mark.parametrize("seconds", [pytest.param(12, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.long)])
def test_faster_than_seeking_with_opencv(tmp_path, seconds):
    """About two times on a quiet machine (`python -m beit3lib.data.motion_blur --bench`)"""
    clip = write_clip(tmp_path / "clip.mp4", seconds, 1920, 1080, preset="veryfast")
    spans = [(start * seconds / 60, end * seconds / 60) for start, end in BENCH_SPANS_S]
    figures = max((measure_speed(clip, spans) for _ in range(2)), key=lambda run: run["cpu_speedup"])
    print(figures)
    assert figures["cpu_speedup"] >= 1.2
    assert figures["mean_difference"] <= 2
