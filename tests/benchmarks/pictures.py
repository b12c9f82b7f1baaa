"""Write docs/: the images of the README and the executed notebooks, from a run that `make demo` finished.

    python -m benchmarks.pictures runs/demo

Charts and notebooks are copies of files of the run; headless Chromium takes screenshots of its captions. All
of it is real output, and `make docs` renews it.
"""

import argparse
import base64
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from PIL import Image, ImageChops

from beit3lib.data.predictions import read_predictions
from beit3lib.viz.gallery import storyboard, with_facts

DOCS = Path(__file__).parents[2] / "docs"
CHARTS = ("learning_curve", "attributes")
WIDTH_PX = 1280  # GitHub shows a README about 900 px wide
COLORS = 200  # a palette of 200 colors looks the same as true color and takes a third of the bytes
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars --disable-sync "
    "--virtual-time-budget=8000 --disable-background-networking --disable-component-update"
).split()
STYLE = "margin: 16px; background: white; font: 15px/1.45 system-ui, sans-serif"
MAX_NOTEBOOK_BYTES = 400_000
SMALL_PX = 160


def save(image: Image.Image, name: str) -> None:
    """Write `docs/<name>.png`, at most WIDTH_PX wide."""
    image = image.convert("RGB")
    if image.width > WIDTH_PX:
        image = image.resize(
            (WIDTH_PX, round(image.height * WIDTH_PX / image.width)), Image.Resampling.LANCZOS
        )
    path = DOCS / f"{name}.png"
    image.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height} px, {path.stat().st_size / 1e3:.0f} kB")


def screenshot(page: Path, width: int, height: int, fragment: str = "") -> Image.Image:
    """Return what a browser window of this size shows of an HTML file, without empty rows at the bottom."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
        flags = [*CHROMIUM, f"--user-data-dir={folder}/profile"]
        command = [browser, *flags, f"--window-size={width},{height}", f"--screenshot={shot}"]
        subprocess.run(
            [*command, page.resolve().as_uri() + fragment], check=True, capture_output=True, timeout=120
        )
        image = Image.open(shot).convert("RGB")
    background = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    box = ImageChops.difference(image, background).getbbox() or (0, 0, *image.size)
    return image.crop((0, 0, image.width, min(image.height, box[3] + 16)))


def screenshot_of_html(html: str, width: int, height: int) -> Image.Image:
    """Return a screenshot of a fragment that notebooks show."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f'<meta charset="utf-8"><body style="{STYLE}">{html}', encoding="utf-8")
        return screenshot(page, width, height)


def captions_of_scenario(predictions: pd.DataFrame, run: Path) -> Image.Image:
    """Return the strip of a bright scenario of one camera, in which exactly one caption has a wrong fact."""
    shown = with_facts(predictions[predictions["aspect"].isin(["moving", "pedestrian_description"])])
    shown = shown[shown["subject"] == "pedestrian"]
    bright = predictions.loc[predictions["reference"].str.contains(r"\bbright\b", na=False), "video"]
    shown = shown[shown["video"].isin(bright)]
    of_video = shown.groupby("video").agg(
        phases=("phase", "nunique"), wrong=("kind", lambda kinds: (kinds == "wrong").sum())
    )
    one = of_video[of_video["wrong"] >= 1].sort_values(["wrong", "phases"], ascending=[True, False])
    strip = shown[shown["video"] == one.index[0]]
    return screenshot_of_html(storyboard(strip, strip["scenario"].iloc[0], run).data, 1100, 2400)


def smaller_jpeg(encoded: str, share: float = 0.0) -> str:
    """Return an image as a JPEG of a share of its size, or of SMALL_PX; base64 in and out."""
    image, buffer = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), io.BytesIO()
    size = (round(image.width * share), round(image.height * share)) if share else (SMALL_PX, SMALL_PX)
    image.thumbnail(size, Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def shrink(output: nbformat.NotebookNode) -> None:
    """Shrink the images of an output in place: charts, and photos, which notebooks show at 100 to 200 px.

    A palette of few colors would make charts as small, but merges the colors of curves and of color bars.
    """
    data = output.get("data", {})
    if "image/png" in data:
        data["image/jpeg"] = smaller_jpeg(data.pop("image/png"), 2 / 3)
    if "text/html" in data:
        photo = r"(?<=data:image/jpeg;base64,)[\w+/=]+"
        data["text/html"] = re.sub(photo, lambda match: smaller_jpeg(match[0]), data["text/html"])


def is_shown(output: nbformat.NotebookNode) -> bool:
    """Leave out empty lines, and the frame with the gallery, which is not in the repository."""
    return "<iframe" not in output.get("data", {}).get("text/html", "") and bool(
        output.get("text", "shown").strip()
    )


def copy_notebooks(run: Path) -> None:
    """Copy the executed notebooks of a run without times, paths and progress bars, which always change."""
    (DOCS / "executed").mkdir(parents=True, exist_ok=True)
    for path in sorted(run.glob("0*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("papermill", None)
        for cell in notebook.cells:
            cell.metadata = {"tags": ["parameters"]} if "parameters" in cell.metadata.get("tags", []) else {}
            CoalesceStreamsPreprocessor().preprocess_cell(
                cell, {}, 0
            )  # of a progress bar only the last state is left
            for output in cell.get("outputs", []):
                shrink(output)
            if "outputs" in cell:
                cell.outputs = [output for output in cell.outputs if is_shown(output)]
        target = DOCS / "executed" / path.name
        target.write_text(nbformat.writes(notebook).replace(f"{DOCS.parent}/", "") + "\n", encoding="utf-8")
        if target.stat().st_size > MAX_NOTEBOOK_BYTES:
            raise SystemExit(
                f"{target}: expected at most {MAX_NOTEBOOK_BYTES} bytes, got {target.stat().st_size}."
            )


def main() -> None:
    """Write all images and notebooks of docs/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=main.__doc__)
    parser.add_argument(
        "run", type=Path, nargs="?", default=Path("runs/demo"), help="finished run [runs/demo]"
    )
    run = parser.parse_args().run
    predictions = read_predictions(run / "predictions.json")
    predictions = predictions[predictions["reference"].notna()]
    images = {name: Image.open(run / f"{name}.png") for name in CHARTS}
    images |= {
        "captions": captions_of_scenario(predictions, run),
        "gallery": screenshot(run / "gallery.html", 1280, 900),
    }
    for name, image in images.items():
        save(image, name)
    copy_notebooks(run)


if __name__ == "__main__":
    main()
