"""Image files that Pillow alone would show wrongly, or refuse."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixerbench.recipe.augmentation import train_transform

# --- 16 bits --------------------------------------------------------------------------------

GREY = np.linspace(0, 65535, 48 * 40).round().astype(np.uint16).reshape(40, 48)
"""A gradient that holds black, white and most levels between."""


def write_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG of 16 bits a channel, which Pillow writes for grey only."""
    height, width, channels = pixels.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]  # grey and alpha, RGB, RGBA
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name + data)
            file.write(struct.pack(">I", zlib.crc32(name + data)))


@pytest.mark.parametrize(
    ("file", "mode", "stored"),
    [
        ("grey.png", "I;16", "I;16"),
        ("grey.tif", "I;16", "I;16"),
        ("motorola.tif", "I;16B", "I;16B"),
        ("integers.tif", "I", "I"),
        ("grey.pgm", "I;16", "I"),
    ],
)
def test_16_bits_of_grey_keep_their_gradient(file, mode, stored, tree, decode):
    path = tree.root / "train/flower" / file
    order = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    Image.frombytes(mode, (48, 40), GREY.astype(order).tobytes()).save(path)
    with Image.open(path) as image:
        assert image.mode == stored
    pixels = np.asarray(decode(f"flower/{file}"))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (pixels == GREY[..., None] // 256).all()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_a_channel_keep_their_colours(channels, tree, decode):
    colours = np.stack([GREY, GREY[::-1], GREY[:, ::-1], GREY[::-1, ::-1]], axis=-1)[..., :channels]
    write_png(tree.root / "train/flower/deep.png", colours)
    visible = colours[..., [0, 0, 0]] if channels == 2 else colours[..., :3]
    assert (np.asarray(decode("flower/deep.png")) == visible // 256).all()


def test_integers_outside_of_16_bits_are_black_or_white(tree, decode):
    values = np.array([[-(2**31), -1, 0, 65535, 65536, 2**31 - 1]], dtype=np.int32)
    Image.fromarray(values).save(tree.root / "train/flower/wide.tif")
    red = np.asarray(decode("flower/wide.tif"))[0, :, 0]
    assert red.tolist() == [0, 0, 0, 255, 255, 255]


# --- EXIF orientation -----------------------------------------------------------------------

STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),  # to be shown turned clockwise
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""How a camera stores an image under each tag (EXIF 2.32, 4.6.4.A: where row and column 0 are)."""

LOSSLESS = {".png": {}, ".webp": {"lossless": True}, ".tif": {}}
AS_JPEG = {"quality": 100, "subsampling": 0}


def save_with(tag: int, pixels: np.ndarray, path: Path, **options: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)


@pytest.mark.parametrize("suffix", [".JPEG", ".png", ".webp"])
@pytest.mark.parametrize("tag", STORED)
def test_an_image_is_turned_as_its_tag_says_or_not_at_all(tag, suffix, tree, crops, decode):
    upright = np.asarray(crops(3))
    stored = STORED[tag](upright)
    file, tolerance = f"flower/turned{suffix}", 6 if suffix == ".JPEG" else 0
    save_with(tag, stored, tree.root / "train" / file, **LOSSLESS.get(suffix, AS_JPEG))
    for setting, wanted in ((True, upright), (False, stored)):
        pixels = np.asarray(decode(file, data__exif_orientation=setting)).astype(int)
        assert pixels.shape == wanted.shape
        assert np.abs(pixels - wanted).max() <= tolerance


@pytest.mark.parametrize("setting", [True, False])
@pytest.mark.parametrize("tag", STORED)
def test_tiff_is_turned_once_and_always(tag, setting, tree, crops, decode):
    # Pillow does so while it loads one, in everybody's loaders.
    upright = np.asarray(crops(3))
    save_with(tag, STORED[tag](upright), tree.root / "train/flower/turned.tif")
    pixels = np.asarray(decode("flower/turned.tif", data__exif_orientation=setting))
    assert np.array_equal(pixels, upright)


def test_16_bits_of_grey_are_turned_too(tree, decode):
    save_with(6, np.rot90(GREY), tree.root / "train/flower/turned.png")
    assert (np.asarray(decode("flower/turned.png"))[..., 0] == GREY // 256).all()


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_a_tag_without_a_meaning_turns_nothing(tag, tree, crops, decode):
    stored = np.asarray(crops(3))
    save_with(tag, stored, tree.root / "train/flower/odd.png")
    assert np.array_equal(np.asarray(decode("flower/odd.png")), stored)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"MM\0", b"MM\0*\0\0\0\x08\0", b"II*\0", b"Exif\0\0noise"])
def test_damaged_metadata_do_not_spoil_an_image(exif, tree, crops, decode):
    path = tree.root / "train/flower/noted.png"
    crops(3).save(path, exif=exif)
    assert np.array_equal(np.asarray(decode("flower/noted.png")), np.asarray(crops(3)))


def test_folders_are_turned_and_imagenet_is_not(protocol):
    # DeiT's, timm's and torchvision's loaders ignore the tag: the published numbers hold for that.
    assert protocol("folder").data.exif_orientation
    assert not protocol("imagenet_deit").data.exif_orientation


# --- several frames, wrong suffixes ---------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_the_first_frame_counts(suffix, tree, crops, decode):
    path = tree.root / "train/flower" / f"film{suffix}"
    later = [crops(number) for number in (2, 3)]
    crops(1).save(path, save_all=True, append_images=later, **LOSSLESS[suffix])
    with Image.open(path) as film:
        assert film.n_frames == 3
    assert np.array_equal(np.asarray(decode(f"flower/film{suffix}")), np.asarray(crops(1)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_a_suffix_may_lie(kind, tree, crops, decode):
    # One of ImageNet's .JPEG files is a PNG.
    original = crops(1).quantize(64).convert("RGB")  # few enough colours for a GIF
    original.save(tree.root / "train/flower/other.JPEG", kind)
    assert np.array_equal(np.asarray(decode("flower/other.JPEG")), np.asarray(original))


# --- large images ---------------------------------------------------------------------------


def test_a_panorama_is_decoded(tree, crops, decode):
    panorama = crops(1).resize((30_000, 20))
    panorama.save(tree.root / "train/flower/panorama.JPEG", **AS_JPEG)
    image = decode("flower/panorama.JPEG")
    assert image.size == (30_000, 20)
    difference = np.asarray(image).astype(int) - np.asarray(panorama)
    assert np.abs(difference).max() <= 6


@pytest.mark.slow
def test_a_large_image_is_no_attack(tree, folder, decode):
    path = tree.root / "train/flower/large.png"
    large = Image.new("L", (20_000, 9_000), 40)  # Pillow warns from 89 megapixels, refuses from 179
    large.paste(200, (10_000, 0, 20_000, 9_000))
    large.save(path, compress_level=1)
    del large
    whole = train_transform(
        folder(
            image_size=16, recipe__augmentation__scale=[1, 1], recipe__augmentation__ratio=[2, 3]
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode("flower/large.png")
        assert image.size == (20_000, 9_000)
        assert image.getpixel((9_999, 8_999)) == (40, 40, 40)
        assert image.getpixel((10_000, 0)) == (200, 200, 200)
        assert whole(image).shape == (3, 16, 16)  # a crop of nearly all of it
