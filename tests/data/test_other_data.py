"""CIFAR in its published files, random images, and the digest of all splits."""

import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from mixerbench.data.images import Splits
from mixerbench.data.source import open_images

# --- CIFAR ----------------------------------------------------------------------------------


def write_cifar(folder: Path, file: str, label: str, first: int, count: int, classes: int) -> None:
    """One of CIFAR's pickles: rows of 1024 red, 1024 green, 1024 blue values."""
    rows = [np.full(3072, first + number, dtype=np.uint8) for number in range(count)]
    for row in rows:
        row[:1024] = 200  # red
        row[1024] = 7  # the first green
    labels = [(first + number) % classes for number in range(count)]
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(pickle.dumps({"data": np.stack(rows), label: labels}, protocol=2))


@pytest.fixture
def cifar(tmp_path, monkeypatch, protocol):
    """Tiny archives in the published layout; torchvision is told not to expect their checksums."""

    def get(name: str):
        cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        folder = tmp_path / cls.base_folder
        classes = [f"class-{number}" for number in range(10 if name == "cifar10" else 100)]
        label = "labels" if name == "cifar10" else "fine_labels"
        splits = {"train": [file for file, _ in cls.train_list], "test": [cls.test_list[0][0]]}
        first = 0
        for split, files in splits.items():
            for file in files:
                write_cifar(folder, file, label, first, 4, len(classes))
                first += 4
            monkeypatch.setattr(cls, f"{split}_list", [[file, None] for file in files])
        meta = cls.meta | {"md5": None}
        (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: classes}, protocol=2))
        monkeypatch.setattr(cls, "meta", meta)
        return protocol(name, data__root=str(tmp_path), data__download=False, recipe__batch__size=4)

    return get


@pytest.mark.parametrize(("name", "classes", "train"), [("cifar10", 10, 20), ("cifar100", 100, 4)])
def test_cifar_is_read_from_its_published_files(name, classes, train, cifar):
    splits = open_images(cifar(name))
    assert len(splits.train.classes) == len(splits.val.classes) == classes
    assert splits.train.classes[3] == "class-3"
    assert list(splits.train.targets) == [number % classes for number in range(train)]
    assert list(splits.val.targets) == [number % classes for number in range(train, train + 4)]
    image = splits.train.load(3)
    assert image.shape == (32, 32, 3)
    assert image[0, 0].tolist() == [200, 7, 3]
    assert image[0, 1].tolist() == [200, 3, 3]
    assert splits.val.name(2) == "2"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_is_refused(name, protocol, tmp_path, refusal):
    settings = protocol(name, data__root=str(tmp_path), data__download=False)
    message = refusal(lambda: open_images(settings))
    assert f"{name!r} is not in {tmp_path}" in message
    assert "set protocol.data.root" in message


def test_cifar_that_cannot_be_downloaded_is_refused(protocol, tmp_path, monkeypatch, refusal):
    def fail(self: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    settings = protocol("cifar10", data__root=str(tmp_path))
    assert settings.data.download
    message = refusal(lambda: open_images(settings))
    assert "could not be downloaded" in message
    assert "no route to host" in message


# --- synthetic ------------------------------------------------------------------------------


def test_random_images_are_always_the_same(small):
    first, second = open_images(small()), open_images(small())
    for one, other in ((first.train, second.train), (first.val, second.val)):
        for index in range(7):
            assert one.load(index).tobytes() == other.load(index).tobytes()
    assert first.digest() == second.digest()


def test_random_images_are_as_many_and_as_large_as_the_settings_say(small):
    splits = open_images(small())
    assert (len(splits.train.targets), len(splits.val.targets)) == (24, 7)
    assert list(splits.train.targets)[:7] == [0, 1, 2, 3, 4, 0, 1]
    assert len(splits.train.classes) == 5
    assert (splits.train.load(0).dtype, splits.train.load(0).shape) == (np.uint8, (32, 32, 3))


def test_random_images_differ_from_each_other(small):
    splits = open_images(small())
    pixels = [images.load(i).tobytes() for images in (splits.train, splits.val) for i in range(7)]
    assert len(set(pixels)) == 14


@pytest.mark.parametrize("field", ["train_images", "val_images", "num_classes"])
def test_random_images_without_a_number_are_refused(field, small, refusal):
    message = refusal(lambda: open_images(small(**{f"data__{field}": None})))
    assert field in message


# --- digest ---------------------------------------------------------------------------------


class Listing:
    """Images of which only names and labels matter."""

    def __init__(self, *rows: tuple[str, int]) -> None:
        self.rows = rows
        self.targets = [target for _, target in rows]
        self.classes = ["a", "b"]

    def load(self, index: int) -> Image.Image:
        raise AssertionError("a digest reads no pixels")

    def name(self, index: int) -> str:
        return self.rows[index][0]


TRAIN, VAL = (("one", 0), ("two", 1)), (("three", 0),)


def test_digest_is_frozen():
    assert Splits(Listing(*TRAIN), Listing(*VAL)).digest() == "78a646d98d278811"


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ((("one", 1), ("two", 1)), VAL),
        ((("one", 0), ("too", 1)), VAL),
        ((("two", 1), ("one", 0)), VAL),
        ((("one", 0),), VAL),
        (TRAIN, (("three", 1),)),
        (TRAIN, (("four", 0),)),
        ((*TRAIN, *VAL), ()),
        (VAL, TRAIN),
        ((("one0", 0), ("two", 1)), VAL),
    ],
    ids=[
        *("label", "name", "order", "missing", "label of val", "name of val", "other split"),
        *("splits swapped", "boundary"),
    ],
)
def test_digest_changes_with_every_name_label_and_split(train, val):
    digest = Splits(Listing(*train), Listing(*val)).digest()
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert digest != Splits(Listing(*TRAIN), Listing(*VAL)).digest()


def test_digest_of_folders_changes_with_a_file_that_is_renamed_or_moved(folder, tree):
    before = open_images(folder()).digest()
    assert open_images(folder()).digest() == before
    image = tree.root / "train/temple/2.JPEG"
    image.rename(tree.root / "train/temple/9.JPEG")
    renamed = open_images(folder()).digest()
    (tree.root / "train/temple/9.JPEG").rename(tree.root / "train/flower/9.JPEG")
    assert len({before, renamed, open_images(folder()).digest()}) == 3


def test_digest_does_not_depend_on_where_the_folders_are(folder, tree, tmp_path):
    before = open_images(folder()).digest()
    tree.root.rename(tmp_path / "moved")
    assert open_images(folder(data__root=str(tmp_path / "moved"))).digest() == before
