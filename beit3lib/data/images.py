"""Open images that anyone may have made; all other modules open such images with this one.

from beit3lib.data.images import open_image
image = open_image("photo.jpg")    # PIL image, RGB, upright
"""

import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from beit3lib.data.schema import PHASES
from beit3lib.data.wts import video_stem
from beit3lib.files import FileError, check_regular_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # of images of phases, in lower or upper case
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # not EPS, for which Pillow runs Ghostscript
MAX_PIXELS = 178_956_970  # where Pillow raises an error (twice its MAX_IMAGE_PIXELS): about 540 MB as RGB
MAX_BYTES = 1_000_000_000


class ImageError(ValueError):
    """A file that cannot be opened as an image; the message names it."""


def open_image(image: str | Path | Image.Image) -> Image.Image:
    """Return an image (a path, or an image that Pillow opened) as RGB, rotated upright by its EXIF orientation.

    16-bit gray and float values are scaled to 8 bit. Raises FileNotFoundError, or ImageError for a file that is not a
    regular file, is damaged, or has more than `MAX_PIXELS`.
    """
    name = "image" if isinstance(image, Image.Image) else str(image)
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(image)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # Pillow warns from half of MAX_PIXELS on
            with Image.open(check_regular_file(image, MAX_BYTES), formats=FORMATS) as opened:
                return _to_rgb(opened)
    except FileNotFoundError:
        raise FileNotFoundError(f"{image}: expected an image here, found nothing") from None
    except FileError as error:
        raise ImageError(str(error)) from None
    except (
        Exception
    ) as error:  # Pillow's decoders raise ValueError, SyntaxError, struct.error and others for bad files
        reason = str(error).replace(f" '{image}'", "")
        raise ImageError(
            f"{name}: expected an image, found a file that cannot be opened ({reason})"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels, more than {MAX_PIXELS:,}")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # convert("RGB") would clip the values at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        # A file does not state its range of values, so it is inferred from the maximum: white is the smallest of 1, 255 and
        # 65,535 that is not exceeded (for integers 65,535), or else the maximum itself.
        limits = (1, 255, 65535) if image.mode == "F" else (65535,)
        high = next((limit for limit in limits if values.max() <= limit), values.max())
        image = Image.fromarray((values / high * 255).round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def list_images(folder: str | Path) -> dict[str, Path]:
    """Return {stem: path} of the images in a folder; of two files with one stem, the first by name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected a folder of motion-blur images, found none. Run notebook 1 first."
        )
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            images.setdefault(path.stem, path)
    return images


def find_image(
    images: dict[str, Path], video: str, *labels: object, prefixes: tuple[str, ...] = ("avg", "")
) -> Path | None:
    """Return the image of a phase among those of `list_images`, by its name `{prefix}{video stem}phase{label}`; else None."""
    stems = (f"{prefix}{video_stem(video)}phase{label}" for label in labels for prefix in prefixes)
    return next((images[stem] for stem in stems if stem in images), None)


def is_phase_image(path: Path) -> bool:
    """Return whether a file is named like an image of a phase, unlike the chart `phases.png` of a run."""
    return (
        path.suffix.lower() in IMAGE_SUFFIXES
        and re.search(rf"phase(\d+|{'|'.join(PHASES)})$", path.stem) is not None
    )
