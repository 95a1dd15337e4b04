"""The fast JPEG decoder against Pillow, bit by bit, and what it leaves to Pillow."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from mixerbench.data.decode import decode
from mixerbench.data.jpeg import decode_jpeg

PHOTOGRAPHS = [Image.fromarray(pixels) for pixels in load_sample_images().images]


def jpeg(mode: str = "RGB", size: tuple[int, int] = (61, 47), **options: object) -> bytes:
    file = io.BytesIO()
    image = PHOTOGRAPHS[0].crop((200, 90, 200 + size[0], 90 + size[1]))
    image.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    mode=st.sampled_from(["RGB", "L"]),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    restart=st.integers(0, 3),
)
def test_pixels_are_pillows_to_the_bit(
    mode, width, height, quality, subsampling, progressive, restart
):
    data = jpeg(
        mode,
        (width, height),
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_rows=restart,
    )
    pixels = decode_jpeg(data)
    assert pixels is not None
    assert np.array_equal(pixels, by_pillow(data))


LEFT_TO_PILLOW = {
    "four inks": lambda: jpeg("CMYK"),
    "RGB without a transform": lambda: jpeg(keep_rgb=True),
    "another format": lambda: b"\x89PNG\r\n\x1a\n",
    "nothing": lambda: b"",
    "half of the file": lambda: jpeg()[:700],
    "no end": lambda: jpeg()[:-2],
    "noise": lambda: b"\xff\xd8" + np.random.RandomState(0).bytes(500),
}


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_what_is_rare_or_damaged_is_left_to_pillow(kind):
    assert decode_jpeg(LEFT_TO_PILLOW[kind]()) is None


def test_pillows_limit_holds(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 47 - 1)
    assert decode_jpeg(jpeg()) is None


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_file_is_what_pillow_makes_of_it(mode, turn):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    for data, turned in ((jpeg(mode), False), (jpeg(mode, exif=exif), turn)):
        expected = np.rot90(by_pillow(data), -1) if turned else by_pillow(data)
        assert np.array_equal(decode(io.BytesIO(data), turn), expected)
