"""Open untrusted images (all other modules use `open_image`), and find the images of phases by their names.

from beit3lib.data.images import open_image
image = open_image("photo.jpg")    # PIL image, RGB, upright
"""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from beit3lib.data.schema import PHASES
from beit3lib.data.wts import video_stem
from beit3lib.files import FileError, check_regular_file

with suppress(ImportError):  # an optional package, which adds HEIC to Pillow's formats
    import pillow_heif

    pillow_heif.register_heif_opener()

# All formats that this Pillow reads (AVIF since 11.3), except EPS, for which it runs Ghostscript, IPTC, which
# may contain EPS, and those that it only names.
Image.init()
EXCLUDED = ("EPS", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")
FORMATS = [name for name in Image.ID if name not in EXCLUDED]
# Suffixes, in lower or upper case, and names of the images of phases.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
NAME = re.compile(rf"(?:avg)?(?P<video>.+)phase(?P<label>0*[0-4]|{'|'.join(PHASES)})")
ImageError = FileError  # a file that cannot be opened as an image; the message names it


def open_image(image: str | Path | Image.Image) -> Image.Image:
    """Return an image (a path, or an image that Pillow opened) as RGB, upright by its EXIF orientation.

    Raises FileNotFoundError, or ImageError for a file that Pillow cannot open or that is damaged.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    path = check_regular_file(image)
    try:
        with Image.open(path, formats=FORMATS) as opened:
            return _to_rgb(opened)
    except Exception as error:  # Pillow's decoders raise ValueError, SyntaxError, struct.error and others
        reason = str(error).replace(f" '{path}'", "")
        with path.open("rb") as file:
            if file.read(8)[4:] == b"ftyp":  # the first box of HEIC and AVIF (ISO 14496-12)
                reason = "HEIC or AVIF; install pillow-heif or Pillow 11.3, or convert it to JPEG"
        raise ImageError(
            f"{path}: expected an image, found a file that Pillow cannot open ({reason})"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray, of which convert("RGB") would clip the values at 255
        image = Image.fromarray(np.clip(np.rint(np.asarray(image) / 257), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def list_images(folder: str | Path) -> dict[str, Path]:
    """Return {stem: path} of the images in a folder; of two files with one stem, the first by name."""
    images: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file():
            images.setdefault(path.stem, path)
    return images


def find_image(
    images: dict[str, Path], video: str, *labels: object, prefixes: tuple[str, ...] = ("avg", "")
) -> Path | None:
    """Return the image `{prefix}{video stem}phase{label}` among those of `list_images`, or None."""
    stems = (f"{prefix}{video_stem(video)}phase{label}" for label in labels for prefix in prefixes)
    return next((images[stem] for stem in stems if stem in images), None)


def parse_image_name(path: Path) -> tuple[str, str] | None:
    """Return (video, label) from the name of a phase's image; None for other files, such as `phases.png`."""
    found = NAME.fullmatch(path.stem) if path.suffix.lower() in IMAGE_SUFFIXES else None
    return (f"{found['video']}.mp4", found["label"]) if found else None
