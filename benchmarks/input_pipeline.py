"""Training images per second of one core, from JPEG files to normalised batches.

Peer: DeiT's pipeline, which is torchvision's ImageFolder, timm's transform and PyTorch's collate.
All candidates see the same images with the same random draws, load in the training process, and
end with the same thing: floats, normalised and erased. ``exact`` is compared with the peer to the
bit before anything is timed. Packed images are read from shards of short side 256, which
are other images: smaller ones. The second case is DeiT's recipe: repeated augmentation, whose
copies of an image the virtual ranks of one process decode once.

    python benchmarks/input_pipeline.py [--rounds 15]
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import Benchmark, compare, interleave
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets.folder import default_loader
from virtual_ranks import IMAGES, make_tree

from mixerbench.commands._packing import pack_folder
from mixerbench.config.compose import compose
from mixerbench.config.schema import PIXELS, Settings
from mixerbench.data.loader import train_loader
from mixerbench.data.order import SampleOrder
from mixerbench.data.source import open_images
from mixerbench.draws import seed_generators
from mixerbench.recipe.augmentation import train_transform

CPU = torch.device("cpu")
BATCH = 32
CASES = {1: "every image once", 3: "three times, in 4 virtual ranks"}
BARS = {
    "exact": 1.25,
    "same-law": 1.45,
    "same-law-opencv": 1.8,
    "same-law-opencv, packed as jpeg": 2.4,
    "same-law-opencv, packed as raw": 3.0,
}


class DeiT:
    """DeiT's data set, with the draws of our samples."""

    def __init__(self, settings: Settings) -> None:
        root = Path(settings.protocol.data.root or "") / "train"
        images = open_images(settings.protocol).train
        self._paths = [root / images.name(index) for index in range(len(images.targets))]
        self._targets = images.targets
        self._transform = train_transform(settings.protocol)

    def __getitem__(self, sample: tuple[int, int, int]) -> Any:
        index, epoch, repeat = sample
        image = default_loader(str(self._paths[index]))
        seed_generators("sample", 0, epoch, index, repeat)
        return self._transform(image), self._targets[index]


def forever(start: Callable[[int], Any]) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from start(epoch)
        epoch += 1


def ours(settings: Settings) -> Iterator[torch.Tensor]:
    images = open_images(settings.protocol).train
    batches, order = train_loader(images, settings.protocol, settings.run, CPU)

    def start(epoch: int) -> Any:
        order.start_at(epoch)
        return (batch.images for batch in batches)

    return forever(start)


def deits(settings: Settings) -> Iterator[torch.Tensor]:
    recipe = settings.protocol.recipe
    data = DeiT(settings)
    order = SampleOrder(len(data._targets), recipe.batch, recipe.augmentation.repeats, seed=0)
    loader: Any = DataLoader(data, batch_sampler=order, collate_fn=default_collate)  # type: ignore

    def start(epoch: int) -> Any:
        order.start_at(epoch)
        return (images for images, _ in loader)

    return forever(start)


def settings_for(
    root: Path, repeats: int, ranks: int, batch: int, pixels: str = "exact"
) -> Settings:
    return compose(
        [
            "protocol=imagenet_deit",
            f"data.root={root}",
            "data.num_classes=null",
            f"data.pixels={pixels}",
            f"recipe.augmentation.repeats={repeats}",
            f"recipe.batch.size={ranks * batch}",
            f"recipe.batch.micro_batch_size={batch}",
            "run.workers=0",
            "mixer=attention",
            "size=micro",
        ]
    )


def turn(batches: Iterator[torch.Tensor], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            next(batches)

    return run


def main() -> None:
    benchmark = Benchmark(__file__, __doc__ or "", rounds=15)
    options = benchmark.options()
    batch, rows = 4 if options.tiny else BATCH, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_tree(root / "files", 16 if options.tiny else IMAGES)
        places = {"": root / "files"}
        for kind in ("jpeg", "raw"):
            places[f", packed as {kind}"] = root / kind
            data = ["data=imagenet", f"data.root={root / 'files'}", "data.num_classes=null"]
            pack_folder([*data, f"out={root / kind}", "short_side=256", f"format={kind}"])
        for repeats, ranks in ((1, 1), (3, 4)):
            peer = settings_for(root / "files", repeats, ranks, batch)
            first, expected = next(ours(peer)), next(deits(peer))
            if not torch.equal(first, expected):
                raise SystemExit("'exact' differs from DeiT's pipeline: nothing was measured.")
            candidates = {"DeiT": turn(deits(peer), ranks)}
            for place, path in places.items():
                for pixels in PIXELS:
                    settings = settings_for(path, repeats, ranks, batch, pixels)
                    candidates[f"{pixels}{place}"] = turn(ours(settings), ranks)
            turns = interleave(candidates, options.rounds)
            speed = {
                name: ranks * batch / statistics.median(one.cpu or 0 for one in own)
                for name, own in turns.items()
            }
            bars = BARS if repeats > 1 else {}  # those of DeiT's recipe
            rows += compare(CASES[repeats], turns, "DeiT", images_per_second=speed, bar=bars)
    benchmark.write(options, rows)


if __name__ == "__main__":
    main()
