from PIL import Image, ImageOps
from beit3lib.files import FileError, check_regular_file
class ImageError(ValueError): pass
def open_image(path):
    if isinstance(path, Image.Image): return path.convert("RGB")
    try:
        with Image.open(check_regular_file(path)) as im: return ImageOps.exif_transpose(im).convert("RGB")
    except Exception as e: raise ImageError(f"{path}: expected an image, found {e}") from None
