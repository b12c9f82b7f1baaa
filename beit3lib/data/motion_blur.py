"""A video and its phases → one motion-blur image per phase, in one pass over the video.

    from beit3lib.data.motion_blur import blur_table, motion_blur
    images = motion_blur("clip.mp4", [(0.0, 1.3), (1.3, 2.6)])      # two 224 × 224 pictures
    table = blur_table(read_wts("data/wts"), "runs/mine/images")    # every video of a download

An image is the weighted mean of the frames of a phase, each resized to a square as OpenCV does by default. Averaging,
resizing and colour conversion are linear, so their order is free: a frame is read at the pixels that the small image
needs, averaged as luma and chroma, and only the mean is turned into RGB. How fast that is beside seeking and decoding
each phase with OpenCV (needs opencv-python-headless; figures come as JSON):

    python -m beit3lib.data.motion_blur --bench
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import joblib
import numpy as np
import pandas as pd
from PIL import Image

from beit3lib.data.wts import video_stem
from beit3lib.files import Problem, atomic_path

WEIGHTS = ("linear", "equal")
PREFIX = "avg"
ROUNDING_S = 0.0005  # annotations give milliseconds, so a frame 0.3 ms before a start belongs to it
GAP_S = 10.0  # x264's usual distance of keyframes; seeking over less than that can cost more than decoding
SEEK_AHEAD_S = 0.5  # indexes go by decoding time, which runs a few frames ahead

Span = tuple[float, float]


class Blur(NamedTuple):
    """Images (RGB, size × size) in the order of the spans, how many frames each is made of, and what was odd."""

    images: list[Image.Image]
    frames: list[int]
    problems: list[Problem]


def motion_blur(video_path: str | Path, spans_s: Sequence[Span], size: int = 224, weights: str = "linear") -> list[Image.Image]:
    """Average the frames of each span (start, end) in seconds from the video's first frame: one RGB image per span.

    `weights`: "linear" gives the n frames of a span the weights 1 … n, normalised, so that later frames weigh more;
    "equal" gives all the same. Spans may overlap, come in any order, have no length or end past the video; one without
    a frame of its own gets the frame nearest to it. Raises FileNotFoundError or ValueError for an unusable video.
    """
    return blur_phases(video_path, spans_s, size, weights).images


def blur_phases(
    video_path: str | Path,
    spans_s: Sequence[Span],
    size: int = 224,
    weights: str = "linear",
    names: Sequence[str] | None = None,
    threads: int = 0,
) -> Blur:
    """Do what `motion_blur` does, and tell how many frames each image has and which spans were odd, by `names`.

    `threads` of the decoder: 0 leaves the choice to it; 1 is best where many videos are read at once.
    """
    _check_options(spans_s, size, weights)
    if not spans_s:
        return Blur([], [], [])
    means = [_Mean(float(start), float(end), weights == "linear") for start, end in spans_s]
    with _open_video(video_path, threads) as video:
        sampler = None
        for time_s, frame in video.frames(spans_s):
            wanted = [mean for mean in means if mean.wants(time_s, frame)]
            sampler = sampler or _Sampler(frame, size)
            sample = sampler.sample(frame) if wanted else None
            for mean in wanted:
                mean.add(sample)
        if sampler is None:
            raise ValueError(f"{video_path}: expected a video, found no frame that can be decoded ({video.damage})")
        images = [sampler.image(mean.value(sampler)) for mean in means]
        names = names or [f"{start:g}–{end:g} s" for start, end in spans_s]
        return Blur(images, [mean.frames for mean in means], list(_oddities(video, means, names)))


def _check_options(spans_s: Sequence[Span], size: int, weights: str) -> None:
    if weights not in WEIGHTS:
        raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, found {weights!r}")
    if not (isinstance(size, int) and size > 0):
        raise ValueError(f"size: expected a number of pixels above 0, found {size!r}")
    for start, end in spans_s:
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise ValueError(f"spans_s: expected start ≤ end in seconds, found {start!r}–{end!r}")


def _oddities(video: "_Video", means: list["_Mean"], names: Sequence[str]) -> Iterator[Problem]:
    for mean, name in zip(means, names, strict=True):
        where = f"{video.name}, phase {name}"
        if not mean.frames:
            what = f"no frame in {mean.start_s:g}–{mean.end_s:g} s"
            yield Problem(where, f"{what}; made from the nearest one, at {mean.nearest_s:.3f} s")
        elif video.ended and mean.end_s - video.last_s > 1.5 * video.interval_s:
            what = f"ends at {mean.end_s:g} s, the video at {video.last_s + video.interval_s:.3f} s"
            yield Problem(where, f"{what}; made from the {mean.frames} frames there are")
    if video.damaged:
        yield Problem(video.name, f"{video.damaged} damaged packets were skipped ({video.damage})", "download it again")


# ---- averaging


class _Mean:
    """The running mean over the frames of one span; holds one sum, however long the span."""

    def __init__(self, start_s: float, end_s: float, linear: bool):
        self.start_s, self.end_s, self.linear = start_s, end_s, linear
        self.frames = 0
        self.weight, self.total = 0, 0.0
        self.nearest_s, self.nearest, self.distance_s = math.nan, None, math.inf

    def wants(self, time_s: float, frame: av.VideoFrame) -> bool:
        """Tell whether the frame is one of the span's; until the first such, remember the frame nearest to the span."""
        if self.start_s - ROUNDING_S <= time_s < self.end_s - ROUNDING_S:
            self.nearest = None
            return True
        distance_s = max(self.start_s - time_s, time_s - self.end_s, 0.0)
        if not self.frames and distance_s < self.distance_s:
            self.nearest_s, self.nearest, self.distance_s = time_s, frame, distance_s
        return False

    def add(self, sample: np.ndarray) -> None:
        self.frames += 1
        weight = self.frames if self.linear else 1
        self.weight += weight
        self.total = self.total + weight * sample.astype(np.float64)  # float64: 10,000 frames make sums of 10^10

    def value(self, sampler: "_Sampler") -> np.ndarray:
        return self.total / self.weight if self.frames else sampler.sample(self.nearest)


class _Taps:
    """Bilinear resizing of one axis as OpenCV's default does it: two source pixels for each target pixel, no more."""

    def __init__(self, source: int, target: int):
        position = (np.arange(target) + 0.5) * source / target - 0.5
        low = np.floor(position)
        self.share = (position - low).astype(np.float32)  # of the second pixel
        pixels = np.concatenate([low, low + 1])  # all first pixels, then all second ones
        self.index = np.clip(pixels, 0, source - 1).astype(np.intp)
        self.chroma = self.index // 2  # in 4:2:0 a chroma pixel serves two pixels each way


class _Sampler:
    """Reads frames of one video at the pixels that a size × size image needs.

    4:2:0 video, which is nearly all there is, is sampled as it lies in memory; anything else goes through RGB.
    """

    def __init__(self, frame: av.VideoFrame, size: int):
        self.size, self.rotation = size, frame.rotation
        planar = frame.format.name in ("yuv420p", "yuvj420p") and int(frame.colorspace) in _LUMA
        self.format = frame.format.name if planar else "rgb24"
        self.to_rgb = _rgb_matrix(frame) if planar else None
        self.shape = None

    def sample(self, frame: av.VideoFrame) -> np.ndarray:
        """Resize a frame → (3, size, size) float32, luma and chroma or RGB."""
        if frame.format.name != self.format:
            frame = frame.reformat(format=self.format)
        if self.shape != (frame.height, frame.width):
            self.shape = (frame.height, frame.width)
            self.rows, self.columns = (_Taps(length, self.size) for length in self.shape)
        if self.to_rgb is None:
            rgb = frame.to_ndarray().take(self.rows.index, axis=0).take(self.columns.index, axis=1)
            return np.stack([self._mix(rgb[..., channel]) for channel in range(3)])
        luma, *chroma = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes)
        planes = [luma.take(self.rows.index, axis=0).take(self.columns.index, axis=1)]
        planes += [plane.take(self.rows.chroma, axis=0).take(self.columns.chroma, axis=1) for plane in chroma]
        return np.stack([self._mix(plane) for plane in planes])

    def _mix(self, taps: np.ndarray) -> np.ndarray:
        """Mix the pixels at the taps, (2·size, 2·size) uint8, along rows and columns → (size, size) float32."""
        values, size = taps.astype(np.float32), self.size
        mixed = values[size:]  # (size, 2·size)
        mixed -= values[:size]
        mixed *= self.rows.share[:, None]
        mixed += values[:size]
        both = mixed[:, size:]  # (size, size)
        both -= mixed[:, :size]
        both *= self.columns.share
        both += mixed[:, :size]
        return both

    def image(self, mean: np.ndarray) -> Image.Image:
        """Turn a mean of samples into an RGB picture, upright as the video's metadata wants it."""
        if self.to_rgb is not None:
            matrix, offset = self.to_rgb
            mean = np.tensordot(matrix, mean, axes=1) + offset[:, None, None]
        pixels = np.clip(np.rint(mean), 0, 255).astype(np.uint8).transpose(1, 2, 0)  # (size, size, 3)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return image.rotate(self.rotation) if self.rotation else image


# Shares of red and blue in luma by FFmpeg's colour space number: BT.709, none given (read as BT.601), BT.601 twice
_LUMA = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114)}
# FFmpeg's own conversion, through which other readers get their frames, rounds down each product: so much on average
_ROUNDED_DOWN = np.array([1.0, 1.5, 1.0])


def _rgb_matrix(frame: av.VideoFrame) -> tuple[np.ndarray, np.ndarray]:
    """YCbCr → RGB as (matrix, offset), by ITU-R BT.601 / BT.709, for the range and colour space of the frame."""
    red, blue = _LUMA[int(frame.colorspace)]
    full = frame.format.name == "yuvj420p" or int(frame.color_range) == 2
    luma, chroma = (1.0, 1.0) if full else (255 / 219, 255 / 224)
    matrix = np.array([[1, 0, 2 * (1 - red)], [1, 0, 0], [1, 2 * (1 - blue), 0]])
    matrix[1] = (np.array([1, 0, 0]) - red * matrix[0] - blue * matrix[2]) / (1 - red - blue)
    matrix *= [luma, chroma, chroma]
    return matrix, -matrix @ [0 if full else 16, 128, 128] - (0.5 if full else 1) * _ROUNDED_DOWN


# ---- reading


class _Video:
    """An open video: its frames by time, and what was seen on the way."""

    def __init__(self, container: av.container.InputContainer, name: str, threads: int):
        self.container, self.name = container, name
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = threads
        self.origin = self.stream.start_time or 0
        self.interval_s = float(1 / self.stream.average_rate) if self.stream.average_rate else 0.04
        self.last_s, self.ended = -math.inf, False
        self.damaged, self.damage = 0, "no frame in it"

    def __enter__(self) -> "_Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def frames(self, spans_s: Sequence[Span]) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield (time in s, frame) once each, in order: all of the spans, one or more before and one after each.

        Long stretches without a span are skipped by keyframe; what is yielded inside the spans never depends on that.
        """
        for start_s, end_s in _merge(spans_s):
            if self.ended:
                return
            for time_s, frame in self._from(start_s):
                if time_s <= self.last_s:  # decoded again after a seek
                    continue
                self.last_s = time_s
                yield time_s, frame
                if time_s >= end_s:
                    break
            else:
                self.ended = True

    def _from(self, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decode from the last keyframe before `start_s`."""
        if start_s > SEEK_AHEAD_S:
            self._seek(start_s - SEEK_AHEAD_S)
            frames = self._decode()
            first = next(frames, None)
            if first and first[0] <= start_s:
                yield first
                yield from frames
                return
            self._seek(0.0)  # the index of this file leads too far
        yield from self._decode()

    def _seek(self, time_s: float) -> None:
        try:
            self.container.seek(self.origin + int(time_s / self.stream.time_base), stream=self.stream, backward=True)
        except av.error.FFmpegError:  # a file without an index is read on from where it stands, which is slow but right
            return

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                self._note(error)
                continue
            for frame in frames:
                if frame.pts is None:
                    raise ValueError(f"{self.name}: expected time stamps, found none. Remux: ffmpeg -i IN -c copy OUT.mp4")
                yield float((frame.pts - self.origin) * self.stream.time_base), frame

    def _packets(self) -> Iterator[av.Packet]:
        try:
            yield from self.container.demux(self.stream)
        except av.error.FFmpegError as error:  # a file that breaks off: what came before is used
            self._note(error)

    def _note(self, error: av.error.FFmpegError) -> None:
        self.damaged, self.damage = self.damaged + 1, str(error.strerror)


def _merge(spans_s: Sequence[Span]) -> list[Span]:
    """Join spans that overlap or are close, in order, so that each stretch of video is read once."""
    merged: list[list[float]] = []
    for start_s, end_s in sorted(spans_s):
        if merged and start_s - merged[-1][1] <= GAP_S:
            merged[-1][1] = max(merged[-1][1], end_s)
        else:
            merged.append([start_s, end_s])
    return [(start_s, end_s) for start_s, end_s in merged]


def _open_video(video_path: str | Path, threads: int) -> _Video:
    path = _existing(video_path)
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: expected a video, found a file that cannot be opened as one ({error.strerror})") from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path}: expected a video, found a file without a picture track")
    return _Video(container, path.name, threads)


def _existing(video_path: str | Path) -> Path:
    path = Path(video_path)
    if not path.is_file():
        raise FileNotFoundError(f"{video_path or 'no path'}: expected a video here, found none")
    return path


# ---- many videos


def image_name(video: str, phase: int) -> str:
    """Name the image of a phase: `avg{video stem}phase{phase}.jpg`, by the number of the phase in WTS and BDD alike.

    BDD writes its labels as words ("avoidance"); the table keeps those, file names have the number (4).
    """
    return f"{PREFIX}{video_stem(video)}phase{phase}.jpg"


class _Job(NamedTuple):
    """The images to make from one video, one for each span."""

    video: str
    path: str
    spans_s: list[Span]
    phases: list[str]
    images: list[Path]
    size: int
    weights: str
    threads: int


class _Done(NamedTuple):
    """What became of one video: the images that are there now, how many of them were there before, problems."""

    images: list[str]
    found: int
    problems: list[Problem]


def blur_table(
    table: pd.DataFrame,
    image_dir: str | Path,
    size: int = 224,
    jobs: int | None = None,
    weights: str = "linear",
    every_s: float = 5.0,
) -> pd.DataFrame:
    """Make the image of every row of a WTS table, and give the rows that have one, with its file name as `image`.

    Videos are read in parallel by `jobs` processes (None: one per core). An image that is there already, of the same
    times, size, weights and video, is not made again. A video that cannot be read is a problem, and the others go on.
    `.attrs["problems"]` lists what was odd or left out here; `.attrs["counts"]` says rows = made + found + left_out.
    A line of progress is printed about every `every_s` seconds.
    """
    _check_options([], size, weights)
    image_dir = Path(image_dir)
    _make_ready(image_dir)
    table = table.copy()
    table.attrs = {}  # pandas would copy it along with every group of rows
    table["image"] = [image_name(*row) for row in zip(table["video"], table["phase"], strict=True)]
    rows, problems = _drop_double_names(table)
    work = list(_jobs(rows, image_dir, size, weights))
    processes = max(1, min(jobs or joblib.cpu_count(), len(work)))
    threads = 1 if processes > 1 else 0
    parallel = joblib.Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
    done = parallel(joblib.delayed(_blur_video)(job._replace(threads=threads)) for job in work)
    results = list(_with_progress(done, len(work), every_s))
    there = {image for result in results for image in result.images}
    out = rows[rows["image"].isin(there)].reset_index(drop=True)
    found = sum(result.found for result in results)
    problems += [problem for result in results for problem in result.problems]
    out.attrs["problems"] = list(sorted(problems))
    counts = {"videos": len(work), "rows": len(table), "made": len(out) - found, "found": found}
    out.attrs["counts"] = counts | {"left_out": len(table) - len(out)}
    return out


def _make_ready(image_dir: Path) -> None:
    image_dir.mkdir(parents=True, exist_ok=True)
    for leftover in image_dir.glob(f".{PREFIX}*.jpg"):  # of a run that was killed while writing
        leftover.unlink(missing_ok=True)


def _drop_double_names(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Leave out rows whose image would overwrite an earlier row's: two videos of one name, or a row given twice."""
    double = table.duplicated("image")
    problems = [
        Problem(f"{path}, phase {phase}", f"its image {image} is made from another row of the table already; left out")
        for path, phase, image in table.loc[double, ["video_path", "phase", "image"]].itertuples(index=False)
    ]
    return table[~double], problems


def _jobs(table: pd.DataFrame, image_dir: Path, size: int, weights: str) -> Iterator[_Job]:
    for (video, path), rows in table.groupby(["video", "video_path"], sort=False):
        spans_s = list(zip(rows["start_s"].tolist(), rows["end_s"].tolist(), strict=True))
        images = [image_dir / image for image in rows["image"]]
        yield _Job(video, path, spans_s, [str(phase) for phase in rows["phase"]], images, size, weights, 0)


def _blur_video(job: _Job) -> _Done:
    """Make the images of one video that are not there yet. Runs in a process of its own."""
    there: list[str] = []
    try:
        records = _records(job)
        todo = [n for n, image in enumerate(job.images) if not _is_made(image, records[n], job.size)]
        there = [image.name for n, image in enumerate(job.images) if n not in todo]
        spans_s, phases = [job.spans_s[n] for n in todo], [job.phases[n] for n in todo]
        blur = blur_phases(job.path, spans_s, job.size, job.weights, phases, job.threads)
        for n, image in zip(todo, blur.images, strict=True):
            _save(image, job.images[n], records[n])
    except (OSError, ValueError, av.error.FFmpegError) as error:
        what = f"{len(job.images) - len(there)} of {len(job.images)} phases left out: {error}"
        return _Done(there, len(there), [Problem(job.video, what, "download it again")])
    return _Done([image.name for image in job.images], len(there), blur.problems)


def _records(job: _Job) -> list[str]:
    """Say for each image what it is made from: the JPEG's comment, which tells whether an image is up to date."""
    about = f"{job.weights} weights, {job.size} px, video of {_existing(job.path).stat().st_size} bytes"
    return [f"motion blur of {start_s}–{end_s} s, {about}" for start_s, end_s in job.spans_s]


def _is_made(path: Path, record: str, size: int) -> bool:
    try:
        with Image.open(path) as image:
            return image.size == (size, size) and image.info.get("comment") == record.encode()
    except OSError:  # not there, or not a picture
        return False


def _save(image: Image.Image, path: Path, record: str) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, quality=95, subsampling=0, comment=record)


def _with_progress(results: Iterable[_Done], total: int, every_s: float) -> Iterator[_Done]:
    """Pass results on and print now and then, and at the end, how far it is."""
    start = last = time.monotonic()
    made = found = problems = 0
    for number, result in enumerate(results, 1):
        made, found = made + len(result.images) - result.found, found + result.found
        problems += len(result.problems)
        now = time.monotonic()
        if now - last >= every_s or number == total:
            last, seconds = now, now - start
            left = f", about {seconds / number * (total - number):.0f} s left" if number < total else ""
            images = f"{made} images made, {found} were there"
            print(
                f"motion blur: {number}/{total} videos, {images}, {problems} problems, {seconds:.0f} s{left}",
                flush=True,
            )
        yield result


# ---- speed, side by side with the usual way


def blur_by_seeking(
    video_path: str | Path, spans_s: Sequence[Span], size: int = 224, weights: str = "linear"
) -> list[np.ndarray]:
    """Do the same the usual way, to compare with: for each span seek, decode, resize and average, by OpenCV.

    Returns RGB float (size, size, 3) per span. The frames of a span are those of `motion_blur`.
    """
    import cv2  # for tests and comparisons only: opencv-python-headless

    capture = cv2.VideoCapture(str(video_path))
    images = []
    for start_s, end_s in spans_s:
        capture.set(cv2.CAP_PROP_POS_MSEC, start_s * 1000)
        frames: list[np.ndarray] = []
        while True:
            read, frame = capture.read()
            time_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if not read or time_s >= end_s - ROUNDING_S:
                break
            if time_s >= start_s - ROUNDING_S:
                frames.append(cv2.resize(frame, (size, size))[..., ::-1])
        share = np.arange(1, len(frames) + 1) if weights == "linear" else np.ones(len(frames))
        images.append(np.average(np.stack(frames).astype(np.float32), axis=0, weights=share))
    return images


def measure_speed(video_path: str | Path, spans_s: Sequence[Span], size: int = 224) -> dict[str, float]:
    """Time one pass against seeking with OpenCV on one video, and compare the images in grey levels (0–255)."""
    import cv2  # noqa: F401 - loading it is no part of the comparison

    seconds, cpu_seconds, images = [], [], []
    for method in (blur_by_seeking, motion_blur):
        start, cpu_start = time.perf_counter(), time.process_time()
        images.append(method(video_path, spans_s, size))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    differences = [np.abs(np.asarray(ours, np.float32) - theirs).mean() for theirs, ours in zip(*images, strict=True)]
    return {
        "opencv_s": round(seconds[0], 3),
        "one_pass_s": round(seconds[1], 3),
        "speedup": round(seconds[0] / seconds[1], 2),
        "cpu_speedup": round(cpu_seconds[0] / cpu_seconds[1], 2),  # on a busy machine the steadier figure
        "mean_difference": round(float(np.mean(differences)), 3),
    }


# Phases that follow each other and cover the whole minute, as (start, end) in seconds
BENCH_SPANS_S = [(0.0, 12.0), (12.0, 24.0), (24.0, 36.0), (36.0, 48.0), (48.0, 60.0)]


def write_clip(path: str | Path, seconds: float, width: int, height: int, fps: int = 30, **options: str) -> Path:
    """Draw an H.264 test clip: a textured ground that pans, a block that crosses it. `options` are libx264's."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 8 + 1, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", options
        for number in range(round(seconds * fps)):
            pan = round((1 + math.sin(number / 60)) * width / 2)
            picture = ground[:, pan : pan + width].copy()
            left, top = number * 5 % (width - width // 8), number * 3 % (height - height // 4)
            picture[top : top + height // 4, left : left + width // 8] = number * 2 % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", action="store_true", required=True, help="time one pass against OpenCV's seeking")
    parser.add_argument("--video", help="a video of at least 60 s; without it a 1080p clip is drawn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or write_clip(f"{folder}/clip.mp4", 60, 1920, 1080, preset="veryfast")
        print(json.dumps(measure_speed(video, BENCH_SPANS_S)))


if __name__ == "__main__":
    main()
