"""Open any image as upright 8-bit RGB, or raise one error that names the file."""

import os

import numpy as np
import pytest
from PIL import Image, features

from beit3lib.data.images import ImageError, find_image, list_images, open_image, parse_image_name


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


def test_every_mode_becomes_8_bit_rgb(tmp_path, photo):
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"):
        assert open_image(photo.convert("RGBA" if mode == "LA" else "RGB").convert(mode)).mode == "RGB"
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    assert np.abs(np.asarray(open_image(tmp_path / "deep.png"))[..., 0] - ramp * 255).max() <= 1


def test_avif_is_read_and_heic_names_its_package(tmp_path, photo):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(ImageError, match="photo.jpg: expected an image.*pillow-heif"):
        open_image(path)
    if not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    photo.save(path, format="AVIF", quality=95)
    assert np.abs(np.asarray(open_image(path), float) - np.asarray(photo)).mean() < 5


BROKEN = {
    "empty": lambda path, photo: path.write_bytes(b""),
    "text": lambda path, photo: path.write_text("no image"),
    "folder": lambda path, photo: path.mkdir(),
    "pipe": lambda path, photo: os.mkfifo(path),
    "EPS": lambda path, photo: photo.save(path, "EPS"),  # Pillow would run Ghostscript
}


@pytest.mark.parametrize("kind", [*BROKEN, "JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_broken_image_is_an_error_with_its_name(tmp_path, photo, kind):
    path = tmp_path / "broken.png"
    if kind in BROKEN:
        BROKEN[kind](path, photo)
    else:
        photo.save(path, kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="broken.png: expected"):
        open_image(path)
    with pytest.raises(FileNotFoundError, match="nothing.jpg: expected"):
        open_image(tmp_path / "nothing.jpg")


@pytest.mark.parametrize("name", ["avgaphase4.JPG", "aphase4.Png", "avgaphaseavoidance.jpeg", "aphase04.PNG"])
def test_images_of_a_phase_are_found_in_every_spelling(tmp_path, photo, name):
    for file in (name, "avgbphase4.jpg", "phases.png", ".avgaphase4.tmp.jpg"):
        photo.save(tmp_path / file)
    (tmp_path / "avgcphase4.jpg").mkdir()
    os.mkfifo(tmp_path / "avgdphase4.jpg")
    images = list_images(tmp_path)
    assert find_image(images, "a.mp4", 4, "avoidance", "04") == tmp_path / name
    assert find_image(images, "a.mp4", 3) is None and len(images) == 3
    assert parse_image_name(tmp_path / name)[0] == "a.mp4"
    assert parse_image_name(tmp_path / "phases.png") is None
