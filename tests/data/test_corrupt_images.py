"""Files that cannot be decoded: found, counted, listed; in training always the same stand in."""

import io
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mixerbench.config.schema import Protocol, Run
from mixerbench.data.corrupt import CorruptImages, TooManyCorruptError
from mixerbench.data.decode import UnreadableImageError
from mixerbench.data.images import Images
from mixerbench.data.loader import UNREADABLE, eval_loader, train_loader
from mixerbench.data.source import open_images

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores

# --- what cannot be decoded -----------------------------------------------------------------

DAMAGE = {
    "empty": lambda jpeg: b"",
    "signature only": lambda jpeg: jpeg[:3],
    "half": lambda jpeg: jpeg[: len(jpeg) // 2],
    "last byte missing": lambda jpeg: jpeg[:-1],
    "zeros": lambda jpeg: bytes(len(jpeg)),
    "zeros from the middle on": lambda jpeg: jpeg[:300] + bytes(len(jpeg) - 300),
    "noise": lambda jpeg: np.random.RandomState(0).bytes(3000),
    "text": lambda jpeg: b"Permission denied.\n",
    "html": lambda jpeg: b"<!DOCTYPE html><html><title>404 Not Found</title></html>",
    "more pixels than memory": lambda jpeg: b"P6\n1000000000 1000000000\n255\n" + jpeg,
}


def reason_of(load: Callable[[], object], path: Path) -> str:
    """What the refusal to decode ``path`` gives as the reason."""
    with pytest.raises(UnreadableImageError) as caught:
        load()
    message, reason = str(caught.value), caught.value.reason
    assert message == f"{path}: {reason}"
    assert reason.isprintable()
    assert str(path.parent) not in reason  # once is enough
    return reason


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_the_reason(damage, tree, decode):
    path = tree.root / "train/flower/1.JPEG"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert reason_of(lambda: decode("flower/1.JPEG"), path)


@pytest.mark.parametrize(
    ("place", "reason"),
    [(29, "cannot be identified"), (500, "broken PNG file")],
    ids=["of the header", "of the pixels"],
)
def test_a_png_with_a_wrong_checksum_is_unreadable(place, reason, tree, crops, decode):
    path = tree.root / "train/flower/sum.png"
    crops(0).save(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert reason in reason_of(lambda: decode("flower/sum.png"), path)


@pytest.mark.parametrize(
    ("target", "reason"), [("nowhere.JPEG", "No such file"), ("link.JPEG", "Too many levels")]
)
def test_a_file_that_cannot_be_opened_is_unreadable(target, reason, tree, decode):
    path = tree.root / "train/flower/link.JPEG"
    path.symlink_to(path.parent / target)
    assert reason in reason_of(lambda: decode("flower/link.JPEG"), path)


@pytest.mark.parametrize("decoder", ["mixerbench.data.decode.decode_jpeg", "PIL.Image.open"])
def test_want_of_memory_is_no_damage(decoder, tree, decode, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mixerbench.data.decode.decode_jpeg", lambda data: None)
    monkeypatch.setattr(decoder, fail)
    with pytest.raises(MemoryError):
        decode("flower/0.JPEG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = {
    "jpeg": ("JPEG", {"quality": 92}),
    "progressive": ("JPEG", {"quality": 92, "progressive": True}),
    "cmyk": ("JPEG", {}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "gif": ("GIF", {}),
}

properties = settings(
    deadline=None,
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@properties
@given(kind=st.sampled_from(sorted(KINDS)), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_unreadable_or_lacks_nothing_of_the_image(
    kind, share, tree, crops, decode
):
    name, options = KINDS[kind]
    whole = encoded(crops(2).convert("CMYK" if kind == "cmyk" else "RGB"), name, **options)
    path = tree.root / "train/flower/1.JPEG"
    path.write_bytes(whole)
    expected = decode("flower/1.JPEG").tobytes()
    path.write_bytes(whole[: int(share * len(whole))])
    try:
        found = decode("flower/1.JPEG").tobytes()
    except UnreadableImageError:
        return
    assert found == expected


SIGNATURES = [
    *(b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"P5\n", b"P6 4 4 255\n"),
    *(b"II*\0", b"MM\0*", b"RIFF\x24\0\0\0WEBPVP8 ", b"\0\0\0\x20ftypavif", b"8BPS", b"\0\0\1\0"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@properties
@given(signature=st.sampled_from(SIGNATURES), content=st.binary(max_size=300))
def test_arbitrary_bytes_are_decoded_or_unreadable(signature, content, tree, decode):
    path = tree.root / "train/flower/1.JPEG"
    path.write_bytes(signature + content)
    _decoded(decode, path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@properties
@given(
    kind=st.sampled_from(["jpeg", "progressive", "cmyk", "png", "webp", "gif"]),
    flips=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5),
)
def test_flipped_bits_leave_an_image_or_an_unreadable_file(kind, flips, tree, crops, decode):
    name, options = KINDS[kind]
    content = bytearray(encoded(crops(2), name, **options))
    for place in flips:
        bit = int(place * 8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    path = tree.root / "train/flower/1.JPEG"
    path.write_bytes(content)
    image = _decoded(decode, path)
    if kind == "png" and image is not None:  # the one of them that has checksums
        assert image.tobytes() == crops(2).tobytes()


def _decoded(decode: Callable[..., Image.Image], path: Path) -> Image.Image | None:
    try:
        return decode("flower/1.JPEG")  # which checks that it is RGB
    except UnreadableImageError:
        reason_of(lambda: decode("flower/1.JPEG"), path)
        return None


# --- what stands in -------------------------------------------------------------------------

CORRUPT = {1: "last byte missing", 7: "html", 9: "empty"}
"""Of twelve training images: 0 to 6 a bridge, 7 and 8 a flower, 9 to 11 a temple."""

FROZEN = {1: 6, 7: 10, 9: 10}
"""What replaces them: a run that is repeated in another version sees the same images."""


def spoil(images: Images, root: Path, damage: dict[int, str]) -> None:
    for index, kind in damage.items():
        path = root / images.name(index)
        path.write_bytes(DAMAGE[kind](path.read_bytes()))


@pytest.fixture
def spoiled(tree, folder) -> Protocol:
    """Twelve training images of which three are corrupt, six steps of two virtual ranks."""
    tree.add("train", "bridge", 7)
    tree.add("val", "bridge", 3)
    protocol = folder(
        image_size=32, recipe__batch__micro_batch_size=2, recipe__augmentation__repeats=1
    )
    spoil(open_images(protocol).train, tree.root / "train", CORRUPT)
    return protocol


def epochs_of(
    protocol: Protocol, *epochs: int, workers: int = 0, step: int = 0, seed: int = 0
) -> list[list[Tensor]]:
    images = open_images(protocol).train
    loader, order = train_loader(images, protocol, Run(seed=seed, workers=workers), CPU)
    batches = []
    for epoch in epochs:
        order.start_at(epoch, step)
        batches += list(loader)
    return batches


def assert_equal(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def sources_of(batches: list[list[Tensor]]) -> dict[int, int]:
    """The image that was loaded for each; the same one each time."""
    pairs = {
        pair
        for _, _, indices, sources in batches
        for pair in zip(indices.tolist(), sources.tolist(), strict=True)
    }
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_a_corrupt_image_is_replaced_by_a_sound_one_with_its_target(spoiled):
    batches = epochs_of(spoiled, 0)
    sources = sources_of(batches)
    assert sorted(sources) == list(range(12))
    for index, source in sources.items():
        assert (source not in CORRUPT) if index in CORRUPT else (source == index)
    labels = open_images(spoiled).train.targets
    for _, targets, _, loaded in batches:
        assert targets.tolist() == [labels[source] for source in loaded.tolist()]
    assert {labels[index] for index in CORRUPT} != {labels[sources[index]] for index in CORRUPT}


def test_replacements_are_frozen(spoiled):
    sources = sources_of(epochs_of(spoiled, 0))
    assert {index: sources[index] for index in CORRUPT} == FROZEN


def test_replacements_depend_on_neither_epoch_nor_seed_nor_repeat(spoiled):
    first = sources_of(epochs_of(spoiled, 0))
    assert sources_of(epochs_of(spoiled, 0, 1, 5) + epochs_of(spoiled, 2, seed=3)) == first
    spoiled.recipe.augmentation.repeats = 3
    repeated = sources_of(epochs_of(spoiled, *range(9)))  # of four images each
    assert repeated.items() <= first.items()
    assert repeated.keys() >= CORRUPT.keys()


@pytest.mark.parametrize("workers", [1, 3])
def test_replacements_are_the_same_bytes_whoever_loads_them(workers, spoiled):
    assert_equal(epochs_of(spoiled, 0, 1, workers=workers), epochs_of(spoiled, 0, 1))


@pytest.mark.parametrize("workers", [0, 3])
def test_an_epoch_continued_at_a_step_has_the_same_replacements(workers, spoiled):
    rest = epochs_of(spoiled, 1, workers=workers, step=2)
    assert_equal(rest, epochs_of(spoiled, 1)[2 * 2 :])


def test_a_replacement_is_augmented_by_the_draws_of_the_sample_it_stands_for(spoiled, tree):
    batches = epochs_of(spoiled, 0, 1)
    sources = sources_of(batches)
    images = open_images(spoiled).train
    for index in CORRUPT:  # as if the file had held that image from the first
        shutil.copy(
            tree.root / "train" / images.name(sources[index]),
            tree.root / "train" / images.name(index),
        )
    repaired = epochs_of(spoiled, 0, 1)
    assert sources_of(repaired) == {index: index for index in range(12)}
    for (pixels, _, indices, _), (others, _, same, _) in zip(batches, repaired, strict=True):
        assert torch.equal(indices, same)
        assert torch.equal(pixels, others)


@pytest.mark.parametrize("sound", [0, 11])
def test_the_search_goes_on_until_an_image_is_sound(sound, spoiled, tree):
    others = {index: "text" for index in range(12) if index != sound}
    spoil(open_images(spoiled).train, tree.root / "train", others)
    assert sources_of(epochs_of(spoiled, 0)) == dict.fromkeys(range(12), sound)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_split_without_a_sound_image_is_an_error(workers, spoiled, tree):
    for image in (tree.root / "train").rglob("*.JPEG"):
        image.write_text("gone")
    with pytest.raises(UnreadableImageError) as caught:
        epochs_of(spoiled, 0, workers=workers)
    *_, line = str(caught.value).splitlines()
    assert str(tree.root / "train") in line
    assert "last of 100 images that were tried in the place of" in line
    if workers == 0:  # else torch puts the worker's traceback before it
        assert line == str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_other_stands_in_for_a_corrupt_validation_image(workers, spoiled, tree):
    images = open_images(spoiled).val
    spoil(images, tree.root / "val", {3: "noise"})
    run = Run(evaluation_batch_size=2, workers=workers)
    batches = list(eval_loader(images, spoiled, run, CPU))
    pixels, targets, indices, checksums = (torch.cat(part) for part in zip(*batches, strict=True))
    assert indices.tolist() == list(range(5))
    assert targets.tolist() == images.targets  # its own, not those of another
    own = {i: zlib.crc32(images.load(i).tobytes()) for i in (0, 1, 2, 4)}
    assert checksums.tolist() == [own[0], own[1], own[2], UNREADABLE, own[4]]
    assert not any(torch.equal(pixels[3], pixels[index]) for index in own)
    assert pixels[3].flatten(1).std(dim=1).tolist() == [0, 0, 0]  # of one colour


# --- counting, and when it is too much ------------------------------------------------------


def test_what_a_loader_replaced_is_found(spoiled):
    found = CorruptImages(open_images(spoiled).train, "train", 1.0)
    for _, _, indices, sources in epochs_of(spoiled, 0, 1, workers=2):
        found.add(indices, sources)
    assert found.indices == sorted(CORRUPT)


def test_what_a_run_knew_and_what_others_found_are_put_together(spoiled):
    found = CorruptImages(open_images(spoiled).train, "train", 1.0)
    found.restore([9, 1])
    found.merge([7, 9])
    found.add(torch.tensor([0, 4, 9]), torch.tensor([0, 8, 8]))
    assert found.indices == [1, 4, 7, 9]
    found.restore([3])
    assert found.indices == [3]


@pytest.mark.parametrize("setting", [0.01, 0.5, 1.0])
def test_one_in_a_hundred_validation_images_is_all_that_may_be_missing(setting, small, refusal):
    images = open_images(small(data__val_images=200)).val
    found = CorruptImages(images, "val", setting)
    found.merge([3, 4])
    found.check()
    found.merge([5])
    message = refusal(found.check)
    assert "3 of 200 val images could not be read, which is 1.50% and more than" in message
    # Raising the setting is no advice where it does not help.
    assert ("max_corrupt" in message) == (setting == 0.01)
    assert ("the 1.00% of validation images that an accuracy may lack" in message) == (
        setting > 0.01
    )


@pytest.mark.parametrize(
    ("share", "allowed"), [(0.0, 0), (1 / 12, 1), (0.2, 2), (0.25, 3), (1, 12)]
)
def test_a_share_of_corrupt_images_is_allowed_and_no_more(share, allowed, spoiled):
    found = CorruptImages(open_images(spoiled).train, "train", share)
    found.merge(range(allowed))
    found.check()
    if allowed < 12:
        found.merge([allowed])
        with pytest.raises(TooManyCorruptError):
            found.check()


def test_no_rounding_at_the_limit(small):
    images = open_images(small(data__train_images=100)).train
    for allowed in range(100):  # 0.29 * 100 is below 29, for one
        found = CorruptImages(images, "train", float(f"0.{allowed:02}"))
        found.merge(range(allowed))
        found.check()
        found.merge([allowed])
        with pytest.raises(TooManyCorruptError):
            found.check()


def test_too_many_are_refused_with_number_limit_example_and_advice(spoiled, refusal):
    found = CorruptImages(open_images(spoiled).train, "train", 0.2)
    found.merge(CORRUPT)
    message = refusal(found.check)
    assert "3 of 12 train images could not be read, which is 25.00%" in message
    assert "protocol.data.max_corrupt=0.2 (20.00%)" in message
    assert "The first is train/bridge/1.JPEG (OSError: image file is truncated" in message
    assert "Repair or remove such files, or set protocol.data.max_corrupt higher." in message


def test_report_lists_paths_and_reasons(spoiled, tree):
    found = CorruptImages(open_images(spoiled).train, "train", 0.0)
    assert found.report() == ""
    found.merge([*CORRUPT, 8])  # 8 is sound: read again when the disk was back, for example
    lines = [line.split("\t") for line in found.report().splitlines()]
    assert [name for name, _ in lines] == [
        *("train/bridge/1.JPEG", "train/flower/0.JPEG", "train/flower/1.JPEG"),
        "train/temple/0.JPEG",
    ]
    truncated, html, sound, empty = (reason for _, reason in lines)
    assert "truncated" in truncated
    assert html == empty == "cannot be identified as an image"
    assert sound == "it can be read now"


def test_odd_file_names_keep_to_their_line(spoiled, tree):
    names = ["a\tb\n.JPEG", os.fsdecode(b"\xff.JPEG"), "für.JPEG"]
    for name in names:
        (tree.root / "train/temple" / name).write_text("no image")
    images = open_images(spoiled).train
    found = CorruptImages(images, "train", 0.0)
    found.merge(range(len(images.targets)))
    report = found.report()
    assert report.encode()  # a byte that is no UTF-8 can be written down
    rows = [line.split("\t") for line in report.splitlines()]
    assert len(rows) == 15
    assert {len(row) for row in rows} == {2}
    shown = {name for name, _ in rows}
    assert shown >= {
        r"train/temple/a\tb\n.JPEG",
        r"train/temple/\udcff.JPEG",
        "train/temple/für.JPEG",
    }


def test_default_is_one_in_a_thousand(protocol):
    assert protocol("imagenet_deit").data.max_corrupt == 0.001


@pytest.mark.parametrize("value", ["-0.001", "1.5", "nan"])
def test_a_limit_that_is_no_share_is_refused(value, refused):
    message = refused("train", "--cfg", f"protocol.data.max_corrupt={value}")
    assert "protocol.data.max_corrupt" in message
    assert "from 0 to 1" in message
