"""Image files become arrays of pixels, or one line that says why they cannot."""

from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mixerbench.data.jpeg import decode_jpeg
from mixerbench.errors import Refusal
from mixerbench.process import allow_large_images

allow_large_images()


class UnreadableImageError(Refusal):
    """A file that cannot be decoded as an image: one line with its path and the reason."""

    def __init__(self, message: str, reason: str = "") -> None:  # a loader passes the message only
        super().__init__(message)
        self.reason = reason


def decode(file: BinaryIO, exif_orientation: bool) -> np.ndarray:
    """Decode an image file of any format that Pillow reads.

    Args:
        file: open for reading bytes, at its beginning.
        exif_orientation: turn the image upright as its EXIF tag says.

    Returns:
        (height, width, 3) of uint8: red, green, blue.

    Raises:
        Exception: nearly every kind, if the file is damaged.
    """
    data = file.read()
    # Where Pillow would find an orientation: an EXIF block, or XMP.
    has_tag = exif_orientation and (b"Exif\0\0" in data or b"tiff:Orientation" in data)
    if not has_tag and (pixels := decode_jpeg(data)) is not None:
        return pixels
    file.seek(0)
    with Image.open(file) as image:
        if image.format != "PNG":
            return np.asarray(_rgb(image, exif_orientation))
        image.verify()  # PNG has checksums, which Pillow skips otherwise
    file.seek(0)
    with Image.open(file) as image:  # verify() has used the other one up
        return np.asarray(_rgb(image, exif_orientation))


def _rgb(image: Image.Image, exif_orientation: bool) -> Image.Image:
    """The first frame as RGB. Transparency is dropped, not blended with a background."""
    image.load()  # Pillow turns TIFF files here, whatever the setting
    if exif_orientation and (tag := _orientation(image)) in _TURNS:
        image = image.transpose(_TURNS[tag])
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow makes white of all above 255
        grey = np.asarray(image) // 256
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of that EXIF orientation upright."""


def _orientation(image: Image.Image) -> Any:
    # ImageOps.exif_transpose rewrites all tags as well, and fails on those that are damaged.
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata do not mean damaged pixels
        return None


def reason_of(error: Exception) -> str:
    """Why an image cannot be decoded, without its path."""
    if isinstance(error, UnidentifiedImageError):  # its message is only the path
        return "cannot be identified as an image"
    if isinstance(error, OSError) and error.strerror:  # its message ends with the path
        return error.strerror
    return f"{type(error).__name__}: {error}"


def printable(text: str) -> str:
    """``text`` with its line breaks, tabs and bytes that are no UTF-8 written as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
