"""The pictures of the README, from a finished run: small, and real output.

    python docs/pictures.py runs/demo [bench.json] [ablation.png, of a study of flips]

Chromium with its driver takes the gallery's picture (Debian: chromium, chromium-driver).
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageStat

from beit3lib.viz import figures
from beit3lib.viz.gallery import read_predictions

DOCS = Path(__file__).parents[2] / "docs"
WIDTH_PX, COLOURS = 1280, 160
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,900")


def save(image: Image.Image, name: str, colours: int | None = COLOURS) -> None:
    """A PNG at most `WIDTH_PX` wide; with so many `colours` it is a fraction of the size, to the eye the same."""
    image = image.convert("RGB")
    if image.width > WIDTH_PX:
        image = image.resize((WIDTH_PX, round(image.height * WIDTH_PX / image.width)), Image.Resampling.LANCZOS)
    path = DOCS / name
    image = image.quantize(colours, dither=Image.Dither.NONE) if colours else image
    image.save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height} px, {path.stat().st_size / 1e3:.0f} kB")


def take_gallery(page: Path) -> Image.Image:
    """What a browser shows of a gallery first."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        for flag in (*FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        browser.get(f"{page.resolve().as_uri()}#order=up")  # the lowest score first: there is something to see
        browser.save_screenshot(f"{folder}/gallery.png")
        browser.quit()
        return Image.open(f"{folder}/gallery.png").copy()


def brightness(path: Path) -> float:
    """Mean grey level, 0 to 255."""
    with Image.open(path) as image:
        return ImageStat.Stat(image.convert("L")).mean[0]


def take_storyboard(run: Path) -> Image.Image:
    """Of the events with most phases the brightest: how the vehicle moves and where it stands."""
    predictions = read_predictions(run / "predictions.json")
    predictions = predictions[predictions["split"] == "val"]
    phases = predictions.groupby("scenario", sort=False)["phase"].nunique()
    first = predictions[predictions["scenario"].isin(phases.index[phases == phases.max()])].drop_duplicates("scenario")
    story = max(zip(first["scenario"], first["image"], strict=True), key=lambda pair: brightness(run / pair[1]))[0]
    figure = figures.storyboard(predictions, story, run, subject="vehicle", aspect=["moving", "position"])
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        figure.savefig(file.name, dpi=130)
        return Image.open(file.name).copy()


def main(run: Path, *measured: Path) -> None:
    """All of them; of what was measured those that are given."""
    save(take_storyboard(run), "storyboard.png")
    for name in ("learning_curve", "attributes", "attention-1"):
        save(Image.open(run / f"{name}.png"), f"{name}.png", None)
    save(take_gallery(run / "gallery.html"), "gallery.png")
    for bench in (path for path in measured if path.suffix == ".json"):
        rows = json.loads(bench.read_text())["rows"]
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            figures.speed_bars(rows).savefig(file.name, dpi=110)
            save(Image.open(file.name), "bench.png")
    for flips in (path for path in measured if path.suffix == ".png"):
        save(Image.open(flips), "flip.png", None)  # fewer colours would lose that of the words that are wrong


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
