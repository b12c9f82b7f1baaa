"""Make the images of the README from a finished run.

    python -m benchmarks.pictures runs/demo

Copies the run's charts and takes screenshots of its gallery with headless Chromium. Every image shows real output.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from beit3lib.data.predictions import read_predictions
from beit3lib.viz.gallery import storyboard

DOCS = Path(__file__).parents[2] / "docs"
CHARTS = ("learning_curve", "attributes", "attention")
WIDTH_PX = 1280  # GitHub shows a README about 900 px wide
COLORS = 200  # a palette of 200 colors looks the same as true color and takes a third of the bytes
CHROMIUM = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars --virtual-time-budget=8000"
NO_NETWORK = "--disable-background-networking --disable-component-update --disable-sync"
MAX_BYTES = 1_500_000


def save(image: Image.Image, name: str) -> int:
    """Write `docs/<name>.png` at most WIDTH_PX wide and return its size in bytes."""
    image = image.convert("RGB")
    if image.width > WIDTH_PX:
        image = image.resize((WIDTH_PX, round(image.height * WIDTH_PX / image.width)), Image.Resampling.LANCZOS)
    path = DOCS / f"{name}.png"
    image.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height} px, {path.stat().st_size / 1e3:.0f} kB")
    return path.stat().st_size


def screenshot(page: Path, width: int, height: int, fragment: str = "") -> Image.Image:
    """Return what a browser window of that size shows of an HTML file, without empty rows at the bottom."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
        flags = [*CHROMIUM.split(), *NO_NETWORK.split(), f"--user-data-dir={folder}/profile"]
        address = page.resolve().as_uri() + fragment
        command = [browser, *flags, f"--window-size={width},{height}", f"--screenshot={shot}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(shot).convert("RGB")
    background = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    box = ImageChops.difference(image, background).getbbox() or (0, 0, *image.size)
    return image.crop((0, 0, image.width, min(image.height, box[3] + 16)))
