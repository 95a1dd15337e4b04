"""Image folders: what is read, and what is refused in one line that says what to do."""

import numpy as np
import pytest
import torch
from PIL import Image

from mixerbench.config.schema import Run
from mixerbench.data.loader import eval_loader
from mixerbench.data.source import open_images


def names(images) -> list[str]:
    return [images.name(index) for index in range(len(images.targets))]


def test_folders_are_classes_in_alphabetical_order(folder):
    splits = open_images(folder())
    assert splits.train.classes == splits.val.classes == ["flower", "temple"]
    assert names(splits.train) == [
        *("flower/0.JPEG", "flower/1.JPEG"),
        *("temple/0.JPEG", "temple/1.JPEG", "temple/2.JPEG"),
    ]
    assert list(splits.train.targets) == [0, 0, 1, 1, 1]
    assert names(splits.val) == ["flower/0.JPEG", "temple/0.JPEG"]
    assert list(splits.val.targets) == [0, 1]


def test_jpeg_is_decoded_by_pillow(folder, tree):
    image = Image.fromarray(open_images(folder()).train.load(3))
    with Image.open(tree.root / "train/temple/1.JPEG") as expected:
        assert (image.mode, image.size) == ("RGB", (48, 40))
        assert (np.asarray(image) == np.asarray(expected)).all()


@pytest.mark.parametrize(
    ("mode", "file", "tolerance"),
    [
        ("L", "grey.jpg", 0),
        ("CMYK", "cmyk.jpg", 12),  # JPEG's own loss, at quality 100 and four inks
        ("LA", "grey-alpha.png", 0),
        ("RGBA", "alpha.png", 0),
        ("P", "palette.png", 0),
        ("1", "bits.png", 0),
    ],
)
def test_every_kind_of_image_becomes_rgb(mode, file, tolerance, folder, tree, crops):
    original = crops(5).convert(mode)
    if mode in ("LA", "RGBA"):
        original.putalpha(Image.linear_gradient("L").resize(original.size))
    path = tree.root / "train/flower" / file
    original.save(path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))
    images = open_images(folder()).train
    image = Image.fromarray(images.load(names(images).index(f"flower/{file}")))
    assert (image.mode, image.size) == ("RGB", (48, 40))
    with Image.open(path) as stored:
        assert stored.mode == mode
    if mode == "L":  # JPEG is lossy: compare the channels with each other, and roughly
        red, green, blue = image.split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()
        tolerance = 12
    # Transparency is dropped, not blended: the colours are those of the file.
    wanted = np.asarray(original.convert("RGB")).astype(int)
    assert np.abs(np.asarray(image).astype(int) - wanted).max() <= tolerance


def test_images_of_all_sizes_make_one_batch(folder, tree):
    Image.new("RGB", (31, 77)).save(tree.root / "val/flower/thin.png")
    Image.new("L", (640, 64)).save(tree.root / "val/temple/wide.png")
    protocol = folder(image_size=64)
    (batch,) = eval_loader(open_images(protocol).val, protocol, Run(workers=0), torch.device("cpu"))
    assert batch[0].shape == (4, 3, 64, 64)


def test_root_may_be_in_the_home_folder(folder, tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.root.parent))
    splits = open_images(folder(data__root="~/images"))
    assert names(splits.val) == ["flower/0.JPEG", "temple/0.JPEG"]
    assert splits.val.load(0).shape == (40, 48, 3)


# --- refusals -------------------------------------------------------------------------------


def test_no_root_is_refused(folder, refusal):
    message = refusal(lambda: open_images(folder(data__root=None)))
    assert "'folder' has no root: set protocol.data.root=FOLDER" in message
    assert "train/<class>/" in message


def test_missing_root_is_refused(folder, tree, refusal):
    message = refusal(lambda: open_images(folder(data__root=str(tree.root / "nowhere"))))
    assert f"there is no folder {tree.root / 'nowhere' / 'train'}" in message
    assert "set protocol.data.root=" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_split_is_refused(split, folder, tree, refusal):
    (tree.root / split).rename(tree.root / "elsewhere")
    message = refusal(lambda: open_images(folder()))
    assert f"there is no folder {tree.root / split}" in message
    assert "set protocol.data.root=" in message


def test_split_without_class_folders_is_refused(folder, tree, crops, refusal):
    (tree.root / "val").rename(tree.root / "elsewhere")
    (tree.root / "val").mkdir()
    crops(0).save(tree.root / "val" / "image.png")
    message = refusal(lambda: open_images(folder()))
    assert f"{tree.root / 'val'} has no class folders: set protocol.data.root=" in message


@pytest.mark.parametrize("content", [None, "notes.txt", "0.JPEG.part", "image.gif"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_class_folder_without_images_is_named(split, content, folder, tree, crops, refusal):
    for other in {"train", "val"} - {split}:
        tree.add(other, "empty", 1)
    (tree.root / split / "empty").mkdir()
    if content is not None:
        crops(0).save(tree.root / split / "empty" / content, "GIF")
    message = refusal(lambda: open_images(folder()))
    assert str(tree.root / split) in message
    assert "classes empty" in message
    assert ".jpg" in message  # which files would do


def test_split_without_any_image_is_refused(folder, tree, refusal):
    for image in (tree.root / "val").rglob("*.JPEG"):
        image.rename(image.with_suffix(".txt"))
    assert "for the classes flower, temple" in refusal(lambda: open_images(folder()))


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_of_one_split_only_is_named(split, folder, tree, refusal):
    tree.add(split, "bridge", 1)
    message = refusal(lambda: open_images(folder()))
    assert "different classes, 'bridge' among them: both need the same class folders" in message


def test_wrong_number_of_classes_is_refused(folder, refusal):
    message = refusal(lambda: open_images(folder(data__num_classes=1000)))
    assert "has 2 classes and the settings say 1000: set protocol.data.num_classes" in message
    assert open_images(folder(data__num_classes=2))  # and the right one is not


def test_fewer_images_than_a_batch_are_refused(folder, refusal):
    message = refusal(lambda: open_images(folder(recipe__batch__size=6)))
    assert "5 training images, fewer than one batch of 6: set protocol.recipe.batch.size" in message
    assert open_images(folder(recipe__batch__size=5))
