"""What the tests of the data share: composed protocols and a few small real images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mixerbench.config.schema import Protocol
from mixerbench.data.source import open_images


@pytest.fixture(scope="session")
def small(protocol) -> Callable[..., Protocol]:
    """DeiT's whole recipe on 24 random images of 32 pixels, four of them a step, in two ranks."""

    def get(**fields: object) -> Protocol:
        return protocol(
            "synthetic",
            **{
                "image_size": 32,
                "data__num_classes": 5,
                "data__train_images": 24,
                "data__val_images": 7,
                "recipe__batch__size": 4,
                "recipe__batch__micro_batch_size": 2,
            }
            | fields,
        )

    return get


@pytest.fixture(scope="session")
def crops() -> Callable[[int], Image.Image]:
    """Crops of scikit-learn's photographs, 48 x 40 pixels."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]

    def crop(number: int) -> Image.Image:
        left, top = 37 * number % 500, 29 * number % 300
        return photographs[number % 2].crop((left, top, left + 48, top + 40))

    return crop


@dataclass
class ImageTree:
    """root/train/<class> and root/val/<class>, with JPEG files."""

    root: Path
    crops: Callable[[int], Image.Image]

    def add(self, split: str, label: str, count: int) -> None:
        folder = self.root / split / label
        folder.mkdir(parents=True)
        for number in range(count):
            self.crops(number).save(folder / f"{number}.JPEG", quality=92)


@pytest.fixture
def tree(tmp_path, crops) -> ImageTree:
    """Two classes, 3 and 2 images for training, 1 each for validation."""
    tree = ImageTree(tmp_path / "images", crops)
    tree.add("train", "temple", 3)
    tree.add("train", "flower", 2)
    tree.add("val", "temple", 1)
    tree.add("val", "flower", 1)
    return tree


@pytest.fixture
def folder(protocol, tree) -> Callable[..., Protocol]:
    """The protocol ``folder`` on that tree, with a batch that it can fill."""

    def get(**fields: object) -> Protocol:
        plain = {"data__root": str(tree.root), "recipe__batch__size": 4}
        return protocol("folder", **plain | fields)

    return get


@pytest.fixture
def decode(folder) -> Callable[..., Image.Image]:
    """What a training image of that name becomes, such as ``flower/0.JPEG``."""

    def get(name: str, **fields: object) -> Image.Image:
        images = open_images(folder(**fields)).train
        names = [images.name(index) for index in range(len(images.targets))]
        return Image.fromarray(images.load(names.index(name)), "RGB")

    return get


@pytest.fixture(scope="session")
def refusal() -> Callable[[Callable[[], object]], str]:
    """The message of the ValueError that a call raises: one line."""

    def message(call: Callable[[], object]) -> str:
        with pytest.raises(ValueError) as caught:
            call()
        text = str(caught.value)
        assert text and "\n" not in text
        return text

    return message
