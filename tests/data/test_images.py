"""Open any image as upright 8-bit RGB, or raise one error that names the file."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from beit3lib.data.images import ImageError, find_image, is_phase_image, list_images, open_image


@pytest.fixture
def photo():
    """60 × 40 pixels, red on the left and blue on the right, darker towards the bottom."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = pixels[:, 30:, 2] = np.linspace(255, 100, 40, dtype=np.uint8)[:, None]
    return Image.fromarray(pixels)


TURN = {  # the stored image of an upright photo, by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURN)
@pytest.mark.parametrize("opened", [False, True])
def test_the_exif_orientation_is_applied(tmp_path, photo, orientation, opened):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.transpose(TURN[orientation]).save(path, exif=exif, quality=95, subsampling=0)
    image = open_image(Image.open(path) if opened else path)
    assert image.mode == "RGB" and image.size == photo.size
    assert np.abs(np.asarray(image, float) - np.asarray(photo)).mean() < 5


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
DEEP = {
    "16 bit": ((RAMP * 65535).astype(np.uint16), "png"),
    "16 bit TIFF": ((RAMP * 65535).astype(np.uint16), "tif"),
    "32 bit": ((RAMP * 65535).astype(np.int32), "tif"),
    "float up to 1": (RAMP.astype(np.float32), "tif"),
    "float up to 255": ((RAMP * 255).astype(np.float32), "tif"),
    "float with NaN": (np.where(RAMP == 0, np.nan, RAMP).astype(np.float32), "tif"),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_gray_and_float_values_are_scaled_to_8_bit(tmp_path, name):
    values, suffix = DEEP[name]
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    pixels = np.asarray(open_image(path))
    assert pixels.shape == (16, 16, 3) and np.abs(pixels[..., 0] - RAMP * 255).max() <= 1


def test_a_dark_16_bit_image_stays_dark():
    assert np.asarray(open_image(Image.fromarray(np.full((4, 4), 2570, np.uint16)))).max() == 10


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(photo, mode):
    image = photo.convert("RGBA").convert(mode) if mode in ("LA",) else photo.convert(mode)
    assert open_image(image).mode == "RGB"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_gigapixels(path, photo):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def write_text_bomb(path, photo):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 50_000_000, zip=True)
    photo.save(path, pnginfo=info)


BROKEN = {
    "gigapixels": write_gigapixels,
    "text bomb": write_text_bomb,
    "empty": lambda path, photo: path.write_bytes(b""),
    "text": lambda path, photo: path.write_text("no image"),
    "folder": lambda path, photo: path.mkdir(),
    "pipe": lambda path, photo: os.mkfifo(path),
    "device": lambda path, photo: path.symlink_to("/dev/zero"),
    "link to itself": lambda path, photo: path.symlink_to(path.name),
    "postscript": lambda path, photo: photo.save(path, format="EPS"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_not_an_image_is_an_error_with_its_name(tmp_path, photo, kind):
    path = tmp_path / "broken.png"
    BROKEN[kind](path, photo)
    with pytest.raises(ImageError, match="broken.png: expected") as error:
        open_image(path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif"])
def test_a_truncated_image_is_an_error(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="half"):
        open_image(path)


def test_a_missing_image_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.jpg: expected an image here, found nothing"):
        open_image(tmp_path / "nothing.jpg")


@pytest.mark.parametrize(
    "name", ["avgaphase4.jpg", "avgaphase4.JPG", "aphase4.Png", "avgaphaseavoidance.jpeg", "aphase04.PNG"]
)
def test_images_of_a_phase_are_found_in_every_spelling(tmp_path, photo, name):
    for file in (name, "avgbphase4.jpg", "phases.png", ".avgaphase4.tmp.jpg"):
        photo.save(tmp_path / file)
    images = list_images(tmp_path)
    assert find_image(images, "a.mp4", 4, "avoidance", "04") == tmp_path / name
    assert find_image(images, "a.mp4", 3) is None
    assert is_phase_image(tmp_path / name) and not is_phase_image(tmp_path / "phases.png")
    with pytest.raises(
        FileNotFoundError, match="expected a folder of motion-blur images, found none. Run notebook 1 first"
    ):
        list_images(tmp_path / "nothing")
