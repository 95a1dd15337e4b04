"""What it costs that every draw is a function of seed, step and sample.

Peer: the same steps from PyTorch's plain RandomSampler, with generators that nobody sets, timm's
transform and PyTorch's collate; both decode alike. Both sides train in one process, in turns of
a few steps, on JPEG files of ImageNet's usual size;
``protocol=digits`` among the settings takes the digits, the smallest images there are.

    python benchmarks/virtual_ranks.py [--rounds 20] [SETTING=VALUE ...]
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Benchmark, compare, interleave
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset, RandomSampler

from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.data.images import Images
from mixerbench.data.loader import train_loader
from mixerbench.data.source import open_images
from mixerbench.devices import choose_device
from mixerbench.draws import seed_generators
from mixerbench.models.backbone import without_statistics
from mixerbench.models.build import build_model
from mixerbench.objectives.classification.loss import create_loss
from mixerbench.recipe.augmentation import train_transform
from mixerbench.recipe.mixup import create_mixup
from mixerbench.recipe.optimization import create_optimizer

STEPS = 4  # of one turn
IMAGES = 512
SETTINGS = {"recipe.batch.size": 32, "recipe.batch.micro_batch_size": 8}
TINY = {"recipe.batch.size": 8, "recipe.batch.micro_batch_size": 4, "protocol.image_size": 32}


def make_tree(root: Path, images: int = IMAGES) -> None:
    """Crops of two photographs of 500 x 375 pixels, ImageNet's median, in 8 classes."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(images):
        left, top = 17 * number % 140, 11 * number % 52
        crop = photographs[number % 2].crop((left, top, left + 500, top + 375))
        for split in ("train", "val") if number < 8 else ("train",):
            path = root / split / str(number % 8) / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop.save(path, quality=92)


class Plain(Dataset[Any]):
    def __init__(self, images: Images, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images.targets)

    def __getitem__(self, index: int) -> Any:
        image = Image.fromarray(self.images.load(index))
        return self.transform(image), self.images.targets[index]


class Side:
    """One way of training; a call is a turn of some steps."""

    def __init__(self, settings: Settings, exact: bool, steps: int) -> None:
        self.exact, self.steps = exact, steps
        protocol, run = settings.protocol, settings.run
        self.device = choose_device(run.device)
        splits = open_images(protocol)
        classes = len(splits.train.classes)
        self.model = build_model(settings, classes).to(self.device).train()
        self.optimizer = create_optimizer(protocol.recipe, self.model)
        self.loss = create_loss(protocol.recipe)
        self.mixup = create_mixup(protocol.recipe, classes)
        batch = protocol.recipe.batch
        self.ranks = batch.size // batch.micro_batch_size
        if exact:
            self.loader, self.order = train_loader(splits.train, protocol, run, self.device)
        else:
            data = Plain(splits.train, train_transform(protocol))
            self.loader = DataLoader(
                data, batch.micro_batch_size, sampler=RandomSampler(data), drop_last=True,
                num_workers=run.workers or 0, persistent_workers=bool(run.workers),
            )  # fmt: skip
        self.batches = self.forever()
        self.step = 0

    def forever(self) -> Iterator[Any]:
        epoch = 0
        while True:
            if self.exact:
                self.order.start_at(epoch)
            yield from self.loader
            epoch += 1

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.optimizer.zero_grad(set_to_none=True)
            for rank in range(self.ranks):
                images, targets, *_ = next(self.batches)
                images, targets = images.to(self.device), targets.to(self.device)
                if self.exact:
                    seed_generators("step", 0, self.step, rank)
                images, targets = self.mixup(images, targets)  # type: ignore[misc]
                if self.exact and rank:
                    with without_statistics(self.model):
                        logits = self.model(images)
                else:
                    logits = self.model(images)
                (self.loss(logits, targets) / self.ranks).backward()
            self.optimizer.step()
            self.step += 1


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=20)
    benchmark.parser.add_argument("settings", nargs="*", help="of a run, as mixerbench train's")
    options = benchmark.options()
    images, steps, sizes = (8, 1, TINY) if options.tiny else (IMAGES, STEPS, SETTINGS)
    with tempfile.TemporaryDirectory() as root:
        make_tree(Path(root), images)
        settings = compose(
            [
                "protocol=imagenet_deit",
                f"data.root={root}",
                "data.num_classes=null",
                "mixer=patch_ff",
                "size=micro",
                *(f"{name}={value}" for name, value in sizes.items()),
                f"run.device={options.device}",
                f"run.precision={options.precision}",
                *options.settings,
            ]
        )
        sides = {
            "virtual ranks": Side(settings, True, steps),
            "plain sampler": Side(settings, False, steps),
        }
        turns = interleave(sides, options.rounds, options.device)
    case = f"{steps} steps of {settings.protocol.recipe.batch.size} images"
    rows = compare(case, turns, "plain sampler")
    said = [one for one in settings.overrides if root not in one]
    benchmark.write(options, rows, settings=said)


if __name__ == "__main__":
    main()
