"""Make one motion-blur image per phase of a video, in one pass over the video.

    from beit3lib.data.motion_blur import blur_table, motion_blur
    images = motion_blur("clip.mp4", [(0.0, 1.3), (1.3, 2.6)]).images    # two 224 × 224 images
    phases, problems = blur_table(phases, "runs/mine/images")            # every video of a download

An image is the weighted mean of the frames of a phase. As in the original repository each frame is resized to
a square, which squeezes a 16:9 frame. One pass is about twice as fast as seeking to each phase (measured by
tests/clips.py).

`blur_table` runs on the active joblib backend, for example on a Dask cluster of several machines that have
the videos and the folder of images under the same paths: `with joblib.parallel_config("dask"): blur_table(…)`
after creating a `dask.distributed.Client`.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
# Annotations are rounded to 1 ms, so a frame 0.3 ms before the start of a phase belongs to it.
ROUNDING_S = 0.0005
# Over a gap shorter than the distance of two keyframes, seeking saves nothing: x264's default is 250 frames.
GAP_S = 10.0
# Seek earlier by this, because files are indexed by decoding time, a few frames before presentation time.
SEEK_AHEAD_S = 0.5
MAX_FRAME_PX = 1280  # the longest side of a frame that `blur_table` writes beside the image

Span = tuple[float, float]


class Blur(NamedTuple):
    """What `motion_blur` returns; each list has one entry per span."""

    images: list[Image.Image]  # RGB, size × size
    middle: list[Image.Image]  # the frame in the middle of the span, in full resolution
    frames: list[int]  # number of frames in the span
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

    `weights`: "linear" gives the n frames of a span the weights 1 … n, normalized, so that later frames weigh
    more; "equal" gives all frames the same weight. Spans may overlap, be in any order, have no length or end
    after the video; a span without a frame gets the frame nearest to it. Problems contain the `names` of the
    spans. `threads` is the number of threads that decode (0: the decoder chooses). A file that is not a video
    raises ValueError or PyAV's error.
    """
    assert weights in WEIGHTS, f"weights: expected one of {', '.join(WEIGHTS)}, found {weights!r}"
    path = check_regular_file(video_path)
    names = names or [f"{start:g}–{end:g} s" for start, end in spans_s]
    # Running sums, so that memory does not grow with the spans; 10,000 frames exceed the 24 bits of float32.
    sums, counts = np.zeros((len(spans_s), image_size, image_size, 3)), [0] * len(spans_s)
    # The frame nearest to the middle of each span: its distance, its time, and the frame.
    middle = [(math.inf, 0.0, None)] * len(spans_s)
    first, last_s, damage = None, -math.inf, []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")  # not the first one, which may be cover art
        if stream is None:
            raise ValueError(f"{path}: expected a video, found a file without a video stream")
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        interval_s = float(1 / (stream.average_rate or 25))
        for last_s, frame in _frames(container, stream, spans_s, damage):
            first, pixels = first or frame, None
            for i, (start_s, end_s) in enumerate(spans_s):
                distance_s = abs(last_s - (start_s + end_s) / 2)
                if distance_s < middle[i][0]:
                    middle[i] = (distance_s, last_s, frame)
                if start_s - ROUNDING_S <= last_s < end_s - ROUNDING_S:
                    pixels = _resize(frame, image_size) if pixels is None else pixels  # once for all spans
                    counts[i] += 1
                    sums[i] += pixels * float(counts[i] if weights == "linear" else 1)
    if first is None:
        raise ValueError(f"{path}: expected a video, found no frame that can be decoded")
    blur = Blur([], [], counts, [])
    for (start_s, end_s), name, count, total, (_, time_s, frame) in zip(
        spans_s, names, counts, sums, middle, strict=True
    ):
        what, weight = "", count * (count + 1) / 2 if weights == "linear" else count
        if not count:
            what = f"no frame in {start_s:g}–{end_s:g} s; made from the nearest one, at {time_s:.3f} s"
        elif end_s - last_s > 1.5 * interval_s:
            what = f"ends at {end_s:g} s, the video at {last_s + interval_s:.3f} s; "
            what += f"made from the {count} frames that exist"
        blur.images.append(_upright(np.rint(total / weight) if count else _resize(frame, image_size), first))
        blur.middle.append(_upright(frame.to_ndarray(format="rgb24"), first))
        blur.problems.append(damage + ([Problem(f"{path.name}, phase {name}", what)] if what else []))
    return blur


def video_length(video_path: str | Path) -> float:
    """Return the time from a video's first frame to the end of its last one, in seconds.

    It is read from the packets, because some containers, such as those that browsers record, do not state it.
    Raises ValueError or PyAV's error for a file that is not a video.
    """
    path = check_regular_file(video_path)
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        packets = container.demux(stream) if stream else ()
        spans = [
            (packet.pts, packet.pts + (packet.duration or 0)) for packet in packets if packet.pts is not None
        ]
        if not spans:
            raise ValueError(f"{path}: expected a video, found a file without frames")
        return float((max(end for _, end in spans) - min(start for start, _ in spans)) * stream.time_base)


def _resize(frame: av.VideoFrame, size: int) -> np.ndarray:
    return cv2.resize(frame.to_ndarray(format="rgb24"), (size, size))  # (size, size, 3) uint8, bilinear


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> Image.Image:
    """Rotate or mirror by the display matrix of the video (ISO 14496-12, tkhd)."""
    if (matrix := frame.side_data.get(SideDataType.DISPLAYMATRIX)) is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]  # x' = a·x + c·y, y' = b·x + d·y
        if abs(int(b)) > abs(int(a)):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))


def _frames(
    container: Any, stream: Any, spans_s: Sequence[Span], damage: list[Problem]
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield (time in s, frame) in order, each frame once: those of all spans, and those around each span.

    Long stretches without a span are skipped by seeking to a keyframe; the frames of the spans are the same.
    """
    stretches: list[Span] = []  # spans with less than GAP_S between them, joined
    for start_s, end_s in sorted(spans_s):
        if stretches and start_s - stretches[-1][1] <= GAP_S:
            start_s, end_s = stretches[-1][0], max(stretches.pop()[1], end_s)
        stretches.append((start_s, end_s))
    origin, last_s = stream.start_time or 0, -math.inf
    for start_s, end_s in stretches:
        if start_s > SEEK_AHEAD_S:
            container.seek(origin + int((start_s - SEEK_AHEAD_S) / stream.time_base), stream=stream)
        for frame in _decode(container, stream, damage):
            time_s = float((frame.pts - origin) * stream.time_base)
            if time_s > last_s:  # a seek to a keyframe may lead back to frames that were yielded before
                last_s = time_s
                yield time_s, frame
                if time_s >= end_s:
                    break


def _decode(container: Any, stream: Any, damage: list[Problem]) -> Iterator[av.VideoFrame]:
    """Yield the frames from the current position on; damaged packets are skipped, and are one problem."""
    for packet in container.demux(stream):
        try:
            yield from (frame for frame in packet.decode() if frame.pts is not None)
        except av.error.FFmpegError as error:
            what = f"damaged parts skipped ({error.strerror})"
            damage[:] = [Problem(Path(container.name).name, what, "download it again")]


def image_name(video: str, phase: int) -> str:
    """Name the image of a phase as in the original repository: `avg{video stem}phase{phase}.jpg`."""
    return f"avg{video_stem(video)}phase{phase}.jpg"


class ImageTable(NamedTuple):
    """The phases that have an image, with its file name in the column `image`, and the problems."""

    phases: pd.DataFrame
    problems: list[Problem]


def blur_table(
    phases: pd.DataFrame,
    folder: str | Path,
    image_size: int = 224,
    jobs: int | None = None,
    weights: str = "linear",
    frames_dir: str | Path | None = None,
) -> ImageTable:
    """Make the image of every row of a WTS table in `jobs` processes (None: as many as the backend has).

    Adds the columns image, frame_width_px and frame_height_px. An existing image that was made with the same
    times, size, weights and video file is kept, and its problems are listed again. A video that cannot be
    read, or that ends its process, is a problem; all others are read. Two videos of one name in different
    scenarios get images of different names.

    With `frames_dir` the frame in the middle of each phase is written there under the same name, sharp, in
    its own aspect ratio and with at most `MAX_FRAME_PX` pixels a side.
    """
    # Processes of a cluster have other working directories, so all paths are absolute.
    folders = [Path(path).resolve() for path in (folder, frames_dir) if path]
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
    phases, problems = _name_images(phases)
    videos = list(phases.groupby(["scenario", "video", "video_path"], sort=False))
    processes = max(1, min(jobs or joblib.effective_n_jobs(-1), len(videos)))
    options = (folders, image_size, weights, 1 if processes > 1 else 0)
    work = [(rows, str(Path(path).resolve()) if path else "", *options) for (*_, path), rows in videos]
    existing, made = {}, 0
    with tqdm(total=len(work), desc="motion blur", unit=" video", mininterval=1, file=sys.stdout) as bar:
        for images, made_now, listed in _run(work, processes):
            existing |= images
            made += made_now
            problems += listed
            counts = f"{made} images made, {len(existing) - made} found, {len(problems)} problems"
            bar.set_postfix_str(counts, refresh=False)
            bar.update()
    phases = phases[phases["image"].isin(list(existing))].reset_index(drop=True)
    sizes = np.array([existing[name] for name in phases["image"]], np.int64).reshape(-1, 2)
    phases = phases.assign(frame_width_px=sizes[:, 0], frame_height_px=sizes[:, 1])
    return ImageTable(phases, sorted(set(problems)))


def _name_images(phases: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Add the column `image`; the name has the scenario where an earlier row has a video of the same name."""
    short, long = (
        pd.Series(map(image_name, videos, phases["phase"]), phases.index)
        for videos in (phases["video"], phases["scenario"] + "_" + phases["video"])
    )
    phases = phases.assign(image=short.where(~short.duplicated(), long))
    double, what = phases["image"].duplicated(), "a third row for videos of this name and phase; skipped"
    where = (f"{row.scenario}/{row.video}, phase {row.phase}" for row in phases[double].itertuples())
    return phases[~double], [Problem(place, what) for place in where]


def _run(work: list[tuple], processes: int) -> Iterator[tuple]:
    """Yield the result of every video; a video whose process is killed is read once more, alone."""
    count = 0
    while count < len(work):
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator", batch_size=1)
        try:
            for done in parallel(joblib.delayed(_blur_video)(*args) for args in work[count:]):
                count += 1
                yield done
        except TerminatedWorkerError:
            # joblib starts jobs in order, some 2 × processes ahead, so one of these probably killed its own.
            for args in work[count : count + 2 * processes]:
                count += 1
                try:
                    (done,) = joblib.Parallel(n_jobs=2)([joblib.delayed(_blur_video)(*args)])
                except TerminatedWorkerError:
                    what = "its process was killed twice (a crash of the decoder, or out of memory); skipped"
                    todo = "check the video, or use fewer jobs"
                    done = {}, 0, [Problem(args[0]["video"].iloc[0], what, todo)]
                yield done


def _blur_video(
    rows: pd.DataFrame, path: str, folders: list[Path], size: int, weights: str, threads: int
) -> tuple[dict[str, list[int]], int, list[Problem]]:
    """Make the images of one video that are absent or out of date, in a process of its own.

    Return {name: [width, height] of the video's frames, upright}, how many were made, and the problems.
    """
    if threads:
        cv2.setNumThreads(threads)
    blur, todo, existing, problems = Blur([], [], [], []), {}, {}, []
    try:
        if not path:
            raise FileNotFoundError("expected a video, found none on disk")
        status = check_regular_file(path).stat()
        options = {"weights": weights, "size": size, "video_bytes": status.st_size}
        options["video_mtime_ns"] = status.st_mtime_ns
        for row in rows.itertuples():
            record = options | {"phase": str(row.phase), "span_s": [row.start_s, row.end_s]}
            found = _read_record(folders, row.image, record)
            (todo if found is None else existing)[row.image] = found or record
        spans_s, names = ([record[key] for record in todo.values()] for key in ("span_s", "phase"))
        blur = motion_blur(path, spans_s, size, weights, names, threads) if todo else blur
    except (OSError, ValueError, OverflowError, av.error.FFmpegError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).removeprefix(f"{path}: ")
        what = f"{len(rows) - len(existing)} of {len(rows)} phases skipped: {reason}"
        problems.append(Problem(rows["video"].iloc[0], what, "download it again"))
    for name, image, middle, listed in zip(todo, blur.images, blur.middle, blur.problems, strict=False):
        existing[name] = todo[name] | {"frame_px": middle.size, "problems": listed}
        middle.thumbnail((MAX_FRAME_PX, MAX_FRAME_PX))
        for folder in folders[1:]:
            with atomic_path(folder / name) as temporary:
                middle.save(temporary, quality=90)
        with atomic_path(folders[0] / name) as temporary:
            comment = json.dumps(existing[name]).encode()
            image.save(temporary, quality=95, subsampling=0, comment=comment)
    problems += [Problem(*problem) for found in existing.values() for problem in found["problems"]]
    frames_px = {name: found["frame_px"] for name, found in existing.items()}
    return frames_px, len(blur.images), problems


def _read_record(folders: list[Path], name: str, record: dict) -> dict | None:
    """Return the JPEG comment of an image, or None if the image must be made (again).

    The comment must contain `record`: the options, the times, and the size and modification time of the
    video.
    """
    if not all((folder / name).is_file() for folder in folders):
        return None
    try:
        with Image.open(folders[0] / name) as image:
            found = json.loads(image.info.get("comment", b""))
        return found if found.items() >= record.items() else None
    except (OSError, ValueError, AttributeError):  # damaged, or not made here
        return None
