"""Make one motion-blur image per phase of a video, in one pass over the video.

    from beit3lib.data.motion_blur import blur_table, motion_blur
    images = motion_blur("clip.mp4", [(0.0, 1.3), (1.3, 2.6)]).images    # two 224 × 224 images
    phases, problems = blur_table(phases, "runs/mine/images")            # every video of a download

An image is the weighted mean of the frames of a phase. As in the original repository each frame is resized to a square,
which squeezes a 16:9 frame. One pass is about twice as fast as seeking to each phase (measured by tests/clips.py).

`blur_table` runs on the active joblib backend, for example on a Dask cluster of several machines that have the videos and
the folder of images under the same paths:

    from dask.distributed import Client
    client = Client("tcp://scheduler:8786")
    with joblib.parallel_config("dask"):
        phases, problems = blur_table(phases, "/shared/runs/mine/images")
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import joblib
import numpy as np
import pandas as pd
from av.sidedata.sidedata import Type as SideDataType
from joblib.externals.loky.process_executor import TerminatedWorkerError
from PIL import Image
from tqdm import tqdm

from beit3lib.data.wts import video_stem
from beit3lib.files import Problem, atomic_path, check_regular_file

WEIGHTS = ("linear", "equal")
ROUNDING_S = (
    0.0005  # annotations are rounded to 1 ms, so a frame 0.3 ms before the start of a phase belongs to it
)
# Over a gap shorter than the distance of two keyframes, seeking saves nothing: x264's default is 250 frames.
GAP_S = 10.0
SEEK_AHEAD_S = (
    0.5  # seek earlier by this: files are indexed by decoding time, a few frames before presentation time
)

Span = tuple[float, float]


class Blur(NamedTuple):
    """One RGB image (size × size) per span, the number of frames in each span, and the problems of each span."""

    images: list[Image.Image]
    frames: list[int]
    problems: list[list[Problem]]


def motion_blur(
    video_path: str | Path,
    spans_s: Sequence[Span],
    image_size: int = 224,
    weights: str = "linear",
    names: Sequence[str] | None = None,
    threads: int = 0,
) -> Blur:
    """Average the frames of each span (start, end), in seconds from the video's first frame.

    `weights`: "linear" gives the n frames of a span the weights 1 … n, normalized, so that later frames weigh more;
    "equal" gives all frames the same weight. Spans may overlap, be in any order, have no length or end after the video; a
    span without a frame gets the frame nearest to it. Problems contain the `names` of the spans. `threads` is the number
    of threads that decode (0: the decoder chooses). Raises FileNotFoundError or ValueError for an unusable video.
    """
    _check_options(spans_s, image_size, weights)
    if not spans_s:
        return Blur([], [], [])
    names = names or [f"{start:g}–{end:g} s" for start, end in spans_s]
    means = [_Mean(float(start), float(end), image_size, weights == "linear") for start, end in spans_s]
    video = _Video(check_regular_file(video_path), threads)
    with closing(video.container):
        for time_s, frame in video.frames(spans_s):
            wanted = [mean for mean in means if mean.wants(time_s, frame)]
            pixels = (
                _resize(frame, image_size) if wanted else None
            )  # once, for all spans that contain the frame
            for mean in wanted:
                mean.add(pixels)
        if video.first is None:
            raise ValueError(
                f"{video_path}: expected a video, found no frame that can be decoded ({video.damage})"
            )
        images = [_upright(mean.value(), video.first) for mean in means]
        problems = [list(video.problems(mean, name)) for mean, name in zip(means, names, strict=True)]
        return Blur(images, [mean.frames for mean in means], problems)


def _check_options(spans_s: Sequence[Span], image_size: int, weights: str) -> None:
    if weights not in WEIGHTS:
        raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, found {weights!r}")
    if not (isinstance(image_size, int) and image_size > 0):
        raise ValueError(f"image_size: expected a number of pixels above 0, found {image_size!r}")
    for start, end in spans_s:
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise ValueError(f"spans_s: expected start ≤ end in seconds, found {start!r}–{end!r}")


def _resize(frame: av.VideoFrame, size: int) -> np.ndarray:
    return cv2.resize(frame.to_ndarray(format="rgb24"), (size, size))  # (size, size, 3) uint8, bilinear


class _Mean:
    """The weighted mean of the frames of one span, as a running sum: memory does not grow with the span."""

    def __init__(self, start_s: float, end_s: float, size: int, linear: bool):
        self.start_s, self.end_s, self.size, self.linear = start_s, end_s, size, linear
        self.frames, self.weight = 0, 0
        self.total = np.zeros(
            (size, size, 3)
        )  # float64: a sum of 10,000 weighted frames exceeds the 24 bits of float32
        self.nearest_s, self.nearest, self.distance_s = math.nan, None, math.inf

    def wants(self, time_s: float, frame: av.VideoFrame) -> bool:
        """Return whether the frame is in the span; until the first such frame, keep the one nearest to the span."""
        if self.start_s - ROUNDING_S <= time_s < self.end_s - ROUNDING_S:
            self.nearest = None
            return True
        distance_s = max(self.start_s - time_s, time_s - self.end_s, 0.0)
        if not self.frames and distance_s < self.distance_s:
            self.nearest_s, self.nearest, self.distance_s = time_s, frame, distance_s
        return False

    def add(self, pixels: np.ndarray) -> None:
        self.frames += 1
        weight = self.frames if self.linear else 1
        self.weight += weight
        self.total += weight * pixels.astype(np.float64)

    def value(self) -> np.ndarray:
        return self.total / self.weight if self.frames else _resize(self.nearest, self.size)


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> Image.Image:
    """Round to 8 bit, and rotate or mirror by the display matrix of the video (ISO 14496-12, tkhd)."""
    pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if (matrix := frame.side_data.get(SideDataType.DISPLAYMATRIX)) is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]  # x' = a·x + c·y, y' = b·x + d·y
        if abs(int(b)) > abs(int(a)):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return Image.fromarray(np.ascontiguousarray(pixels))


class _Video:
    """An open video: yields its frames by time, and counts damage."""

    def __init__(self, path: Path, threads: int):
        self.name = path.name
        try:
            self.container = av.open(str(path))
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(
                f"{path}: expected a video, found a file that cannot be opened ({error.strerror})"
            ) from None
        self.stream = self.container.streams.best("video")  # not the first one, which may be cover art
        if self.stream is None:
            self.container.close()
            raise ValueError(f"{path}: expected a video, found a file without a video stream")
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = threads
        self.origin = self.stream.start_time or 0
        self.interval_s = (
            float(1 / self.stream.average_rate) if self.stream.average_rate else 0.04
        )  # 25 frames a second
        # AVI has no presentation times, and those of FFmpeg are out of order with B-frames. But its frame rate is constant.
        self.counts_frames = self.container.format.name == "avi"
        self.first: av.VideoFrame | None = None
        self.last_s, self.ended = -math.inf, False
        self.damaged_packets, self.damaged_frames, self.damage = 0, 0, "the stream is empty"

    def frames(self, spans_s: Sequence[Span]) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield (time in s, frame) in order, each frame once: those of all spans, and the ones before and after each span.

        Long stretches without a span are skipped by seeking to a keyframe; the frames of the spans are the same.
        """
        for start_s, end_s in _merge(spans_s):
            if self.ended:
                return
            for time_s, frame in self._from(start_s):
                if (
                    time_s <= self.last_s
                ):  # a seek to the keyframe led back to frames that were yielded before
                    continue
                self.first = self.first or frame
                self.last_s = time_s
                yield time_s, frame
                if time_s >= end_s:
                    break
            else:
                self.ended = True

    def _from(self, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield (time in s, frame) from the last keyframe before `start_s`."""
        if self.counts_frames:
            self._seek(0.0)
        elif start_s > SEEK_AHEAD_S:
            self._seek(start_s - SEEK_AHEAD_S)
            frames = self._decode()
            first = next(frames, None)
            if first and first[0] <= start_s:
                yield first
                yield from frames
                return
            self._seek(0.0)  # the index of this file is wrong: it led to a frame after `start_s`
        yield from self._decode()

    def _seek(self, time_s: float) -> None:
        try:
            self.container.seek(
                self.origin + int(time_s / self.stream.time_base), stream=self.stream, backward=True
            )
        except av.error.FFmpegError:
            return  # a file without an index cannot seek; decoding from the current position is slow but correct

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        packets, number = self.container.demux(self.stream), 0
        while True:
            try:
                if (packet := next(packets, None)) is None:
                    return
                frames = packet.decode()
            except (
                av.error.FFmpegError
            ) as error:  # a damaged packet or a truncated file: all other frames are used
                self.damaged_packets, self.damage = self.damaged_packets + 1, str(error.strerror)
                continue
            for frame in frames:
                self.damaged_frames += frame.is_corrupt
                if self.counts_frames:
                    yield number * self.interval_s, frame
                elif frame.pts is None:
                    raise ValueError(
                        f"{self.name}: expected timestamps, found none. Remux: ffmpeg -i IN -c copy OUT.mp4"
                    )
                else:
                    yield float((frame.pts - self.origin) * self.stream.time_base), frame
                number += 1

    def problems(self, mean: _Mean, name: str) -> Iterator[Problem]:
        where = f"{self.name}, phase {name}"
        if not mean.frames:
            what = f"no frame in {mean.start_s:g}–{mean.end_s:g} s"
            yield Problem(where, f"{what}; made from the nearest one, at {mean.nearest_s:.3f} s")
        elif self.ended and mean.end_s - self.last_s > 1.5 * self.interval_s:
            what = f"ends at {mean.end_s:g} s, the video at {self.last_s + self.interval_s:.3f} s"
            yield Problem(where, f"{what}; made from the {mean.frames} frames that exist")
        if self.damaged_packets:
            yield Problem(
                self.name,
                f"{self.damaged_packets} damaged packets skipped ({self.damage})",
                "download it again",
            )
        if self.damaged_frames:  # FFmpeg fills damaged parts from other frames, which looks plausible
            yield Problem(
                self.name, f"{self.damaged_frames} damaged frames; images may be wrong", "download it again"
            )


def _merge(spans_s: Sequence[Span]) -> list[Span]:
    """Sort the spans, and join those with less than `GAP_S` between them, so that each stretch of video is read once."""
    merged: list[Span] = []
    for start_s, end_s in sorted(spans_s):
        if merged and start_s - merged[-1][1] <= GAP_S:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def image_name(video: str, phase: int) -> str:
    """Name the image of a phase as the original repository does: `avg{video stem}phase{phase}.jpg`, phase 0–4."""
    return f"avg{video_stem(video)}phase{phase}.jpg"


class ImageTable(NamedTuple):
    """The phases that have an image, with its file name in the column `image`, and the problems."""

    phases: pd.DataFrame
    problems: list[Problem]


class _Done(NamedTuple):
    """The names of the images of one video that exist now, how many of them were made, and the problems."""

    images: list[str]
    made: int
    problems: list[Problem]


def blur_table(
    phases: pd.DataFrame,
    folder: str | Path,
    image_size: int = 224,
    jobs: int | None = None,
    weights: str = "linear",
) -> ImageTable:
    """Make the image of every row of a WTS table, in `jobs` processes (None: one per core, or the active backend's).

    An existing image that was made with the same times, size, weights and video file is kept, and its problems are listed
    again. A video that cannot be read, or that ends its process, is a problem; all others are read. Two videos of one name
    in different scenarios get images of different names.
    """
    _check_options([], image_size, weights)
    folder = Path(
        folder
    ).resolve()  # and absolute videos: the processes of a cluster have other working directories
    folder.mkdir(parents=True, exist_ok=True)
    phases, problems = _name_images(phases)
    videos = list(phases.groupby(["scenario", "video", "video_path"], sort=False))
    processes = max(1, min(jobs or joblib.effective_n_jobs(-1), len(videos)))
    options = (folder, image_size, weights, 1 if processes > 1 else 0)
    work = [(rows, str(Path(path).resolve()) if path else "", *options) for (*_, path), rows in videos]
    existing, made = set(), 0
    with tqdm(total=len(work), desc="motion blur", unit=" video", mininterval=1, file=sys.stdout) as bar:
        for done in _run(work, processes):
            existing.update(done.images)
            made += done.made
            problems += done.problems
            bar.set_postfix_str(
                f"{made} images made, {len(existing) - made} found, {len(problems)} problems", refresh=False
            )
            bar.update()
    return ImageTable(phases[phases["image"].isin(existing)].reset_index(drop=True), sorted(set(problems)))


def _name_images(phases: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Add the column `image`, with the scenario in the name where another scenario has a video of the same name."""
    rows = list(zip(phases["scenario"], phases["video"], phases["phase"], strict=True))
    short = pd.Series([image_name(video, phase) for _, video, phase in rows], phases.index, dtype=object)
    long = pd.Series(
        [image_name(f"{scenario}_{video}", phase) for scenario, video, phase in rows],
        phases.index,
        dtype=object,
    )
    phases = phases.assign(image=short.where(~short.duplicated(), long))
    double = phases.duplicated("image") | phases.duplicated(["scenario", "video", "video_path", "phase"])
    where = [f"{row.scenario}/{row.video}, phase {row.phase}" for row in phases[double].itertuples()]
    return phases[~double], [
        Problem(name, "a second row for the same video and phase; skipped") for name in where
    ]


def _run(work: list[tuple], processes: int) -> Iterator[_Done]:
    """Yield the result of every video as soon as it is ready; a video whose process is killed is read once more, alone."""
    left = dict(enumerate(work))
    while left:
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
        try:
            for number, done in parallel(
                joblib.delayed(_blur_video)(number, *args) for number, args in list(left.items())
            ):
                del left[number]
                yield done
        except TerminatedWorkerError:
            # joblib starts jobs in order and at most 2 × processes ahead, so one of these killed its process
            for number in list(left)[: 2 * processes]:
                args = left.pop(number)
                try:
                    ((_, done),) = joblib.Parallel(n_jobs=2)([joblib.delayed(_blur_video)(number, *args)])
                except TerminatedWorkerError:
                    what = "its process was killed twice while reading it (a crash of the decoder, or out of memory); skipped"
                    done = _Done(
                        [], 0, [Problem(args[0]["video"].iloc[0], what, "check the video, or use fewer jobs")]
                    )
                yield done


def _blur_video(
    number: int, rows: pd.DataFrame, path: str, folder: Path, size: int, weights: str, threads: int
) -> tuple[int, _Done]:
    """Make the images of one video that are absent or out of date, in a process of its own; return `number` unchanged."""
    if threads:
        cv2.setNumThreads(threads)
    video, existing = rows["video"].iloc[0], {}  # {name of an image that is up to date: its problems}
    try:
        if not path:
            raise FileNotFoundError("expected a video, found none on disk")
        status = check_regular_file(path).stat()
        record = {
            "weights": weights,
            "size": size,
            "video_bytes": status.st_size,
            "video_mtime_ns": status.st_mtime_ns,
        }
        spans_s = zip(rows["start_s"].tolist(), rows["end_s"].tolist(), strict=True)
        records = {
            name: record | {"span_s": list(span_s)}
            for name, span_s in zip(rows["image"], spans_s, strict=True)
        }
        for name in records:
            if (problems := _read_record(folder / name, records[name], size)) is not None:
                existing[name] = problems
        todo = rows[~rows["image"].isin(list(existing))]
        spans_s = [records[name]["span_s"] for name in todo["image"]]
        blur = motion_blur(path, spans_s, size, weights, todo["phase"].astype(str).tolist(), threads)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        what = f"{len(rows) - len(existing)} of {len(rows)} phases skipped: {reason}"
        return number, _Done(list(existing), 0, [Problem(video, what, "download it again")])
    for name, image, problems in zip(todo["image"], blur.images, blur.problems, strict=True):
        comment = json.dumps(records[name] | {"problems": problems}).encode()
        try:
            with atomic_path(folder / name) as temporary:
                image.save(temporary, quality=95, subsampling=0, comment=comment)
        except OSError as error:  # a full or read-only disk ends the stage; Pillow's error has no file name
            raise OSError(error.errno, error.strerror or str(error), str(folder / name)) from None
    problems = [problem for listed in [*existing.values(), *blur.problems] for problem in listed]
    return number, _Done(list(records), len(todo), problems)


def _read_record(path: Path, record: dict, size: int) -> list[Problem] | None:
    """Return the problems of an image, which are in its JPEG comment, or None if it must be made (again).

    The comment must also contain `record`: the options, the times, and the size and modification time of the video.
    """
    try:
        with Image.open(path) as image:
            found = json.loads(image.info.get("comment", b""))
            same = image.size == (size, size) and {name: found.get(name) for name in record} == record
            return [Problem(*problem) for problem in found["problems"]] if same else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):  # missing, damaged, or not made here
        return None
