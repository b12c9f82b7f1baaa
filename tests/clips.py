"""Write test clips, and make motion-blur images by seeking with OpenCV, to compare with.

python tests/clips.py     time one pass against OpenCV's seeking on a 1080p clip; prints JSON
"""

import json
import math
import tempfile
import time

import av
import cv2
import numpy as np
from PIL import Image

from beit3lib.data.motion_blur import ROUNDING_S, motion_blur

# Phases that follow each other and cover the whole minute, as (start, end) in seconds
BENCH_SPANS_S = [(0.0, 12.0), (12.0, 24.0), (24.0, 36.0), (36.0, 48.0), (48.0, 60.0)]


def write_gray(path, levels, times=None, rate=10, keyframes=10):
    """Write a clip of evenly gray frames; `times` are their timestamps in ms, from 0 at `rate` by default."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000 if times else rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"qp": "4", "g": str(keyframes), "bf": "2", "sc_threshold": "0"}
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts = times[number] if times else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_clip(path, seconds, width, height, fps=30, pix_fmt="yuv420p", **options):
    """Draw an H.264 clip: a textured ground that pans, and a block. `options` are libx264's."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 8 + 1, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, pix_fmt, options
        for number in range(round(seconds * fps)):
            pan = round((1 + math.sin(number / 60)) * width / 2)
            image = ground[:, pan : pan + width].copy()
            left, top = number * 5 % (width - width // 8), number * 3 % (height - height // 4)
            image[top : top + height // 4, left : left + width // 8] = number * 2 % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def blur_by_seeking(video_path, spans_s, size=224, weights="linear"):
    """Make the image of each span (RGB floats) by OpenCV's seeking, as the original repository does."""
    capture = cv2.VideoCapture(str(video_path))
    images = []
    for start_s, end_s in spans_s:
        capture.set(cv2.CAP_PROP_POS_MSEC, start_s * 1000)
        frames = []
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


def measure_speed(video_path, spans_s, size=224):
    """Time one pass against seeking with OpenCV, and compare the images in gray levels (0–255)."""
    seconds, cpu_seconds, images = [], [], []
    for method in (blur_by_seeking, lambda *arguments: motion_blur(*arguments).images):
        start, cpu_start = time.perf_counter(), time.process_time()
        images.append(method(video_path, spans_s, size))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    theirs, ours = (np.array([np.asarray(image, np.float32) for image in made]) for made in images)
    return {
        "opencv_s": round(seconds[0], 3),
        "one_pass_s": round(seconds[1], 3),
        "cpu_speedup": round(cpu_seconds[0] / cpu_seconds[1], 2),  # steadier than wall time on a busy machine
        "mean_difference": round(float(np.abs(ours - theirs).mean()), 3),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        video = write_clip(f"{folder}/a.mp4", 60, 1920, 1080, preset="veryfast")
        print(json.dumps(measure_speed(video, BENCH_SPANS_S)))
