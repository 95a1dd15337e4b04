"""A training step of our loop, against the same step in a bare loop; and the start of a run.

Peer of ``deit_tiny``: timm's model in a bare loop with timm's optimizer, mixup, loss and moving
average of weights, as timm's own training script has them. Peer of ``bare``: our own model,
optimizer and calls in a bare loop; what our loop takes beyond is its overhead. The real loop
runs, in a thread that waits after each step for its turn; images are made before, for both.
Peer of the start: a process that imports PyTorch and timm and takes one step.

    python benchmarks/train_step.py [--rounds 15]
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import Benchmark, Turn, compare, interleave, spread
from timm import create_model as create_timm_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.data.loader import ImageBatch
from mixerbench.data.order import SampleOrder
from mixerbench.data.source import open_images
from mixerbench.devices import autocast
from mixerbench.models.build import build_model
from mixerbench.objectives import CLASSIFICATION
from mixerbench.objectives.classification.loss import create_loss
from mixerbench.recipe.mixup import create_mixup
from mixerbench.recipe.optimization import create_ema, create_optimizer
from mixerbench.tracking.journal import Silence
from mixerbench.training import trainer
from mixerbench.training.group import ALONE
from mixerbench.training.prepare import Prepared

STEPS = 10_000  # more than there are turns
Step = Callable[[], object]


class OurLoop:
    """``Trainer.train``, one step a call."""

    def __init__(self, settings: Settings, batch: ImageBatch, folder: Path) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        arguments = (settings, batch, folder)
        threading.Thread(target=self._train, args=arguments, daemon=True).start()

    def check(self) -> None:
        """What the loop asks of a ``Preemption`` after each step: here, to wait."""
        self._done.release()
        self._go.acquire()

    def __call__(self) -> None:
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise SystemExit(f"our loop stopped: {self._error}")

    def _train(self, settings: Settings, batch: ImageBatch, folder: Path) -> None:
        self._go.acquire()
        try:
            splits = open_images(settings.protocol)
            model = build_model(settings, len(splits.train.classes))
            prepared = Prepared(settings, CLASSIFICATION, splits, model, None, None)
            with_batches(batch)
            trainer.Trainer(prepared, folder, Silence(), self, ALONE).train()  # type: ignore
        except BaseException as error:
            self._error = error
            self._done.release()


def with_batches(batch: ImageBatch) -> None:
    """Let the loop's loader give copies of one batch: loading is another benchmark's."""

    class Batches:
        def __iter__(self) -> Iterator[ImageBatch]:
            while True:
                yield batch._replace(images=batch.images.clone())

    def train_loader(images: Any, protocol: Any, run: Any, *_: Any) -> Any:
        recipe = protocol.recipe
        return Batches(), SampleOrder(len(images.targets), recipe.batch, 1, run.seed)

    trainer.train_loader = train_loader  # type: ignore[assignment]


def bare(settings: Settings, batch: ImageBatch) -> Step:
    """Our model and calls, and nothing around them."""
    recipe, run = settings.protocol.recipe, settings.run
    device = batch.images.device
    model = build_model(settings, int(settings.protocol.data.num_classes or 0)).to(device)
    optimizer, ema, loss_of = create_optimizer(recipe, model), create_ema(recipe, model), None
    loss_of, mixup = create_loss(recipe), create_mixup(recipe, model.num_classes)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        images, targets = mixup(batch.images.clone(), batch.targets)  # type: ignore[misc]
        with autocast(device, run.precision):
            loss = loss_of(model(images), targets)
        loss.backward()
        optimizer.step()
        ema.update(model)

    return step


def timms(settings: Settings, batch: ImageBatch) -> Step:
    """timm's deit_tiny and parts, with the arguments of DeiT's recipe."""
    classes, device = int(settings.protocol.data.num_classes or 0), batch.images.device
    model = create_timm_model(
        "deit_tiny_patch16_224",
        num_classes=classes,
        drop_path_rate=0.1,
        img_size=settings.protocol.image_size,
    )
    model.to(device).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    ema = ModelEmaV3(model, decay=0.99996)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=classes)
    loss_of = SoftTargetCrossEntropy()

    def step() -> None:
        images, targets = mixup(batch.images.clone(), batch.targets)
        with autocast(device, settings.run.precision):
            loss = loss_of(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)

    return step


def settings_for(size: str, image_size: int, batch: int, options: Any, *more: str) -> Settings:
    return compose(
        [
            "protocol=synthetic",
            "mixer=attention",
            f"size={size}",
            f"protocol.image_size={image_size}",
            f"recipe.batch.size={batch}",
            f"recipe.batch.micro_batch_size={batch}",
            f"data.train_images={STEPS * batch}",
            f"run.device={options.device}",
            f"run.precision={options.precision}",
            "run.log_every_steps=10",
            *more,
        ]
    )


def example(settings: Settings, device: torch.device) -> ImageBatch:
    count, side = settings.protocol.recipe.batch.size, settings.protocol.image_size
    draws = torch.Generator().manual_seed(0)
    numbers = torch.arange(count)
    classes = int(settings.protocol.data.num_classes or 0)
    return ImageBatch(
        torch.randn(count, 3, side, side, generator=draws).to(device),
        torch.randint(classes, (count,), generator=draws).to(device),
        numbers,
        numbers,
    )


START = """
import resource, sys
from mixerbench.training import preemption
def check(self):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime)
    sys.stdout.flush()
    import os; os._exit(0)
preemption.Preemption.check = check
sys.argv = ["mixerbench", "train", "mixer=attention", "size=micro", "run.progress=false",
            "run.root=" + sys.argv[1], "tracking.uri=sqlite:///" + sys.argv[1] + "/mlflow.db"]
from mixerbench import cli
cli.main()
"""
BARE_START = """
import resource, timm, torch, torchvision
from timm.data import create_transform
torch.set_num_threads(1)
model = timm.create_model("deit_tiny_patch16_224", num_classes=10)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.zeros(1, 3, 224, 224)).sum().backward()
optimizer.step()
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


def start(code: str, rounds: int, bytecode: str) -> list[Turn]:
    """CPU seconds of processes until the end of their first step, modules compiled before."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    turns = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", code, folder],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            )
        turns.append(Turn(float(done.stdout.split()[-1]), float(done.stdout.split()[-1])))
    return turns[1:]


def main() -> None:
    benchmark = Benchmark(__file__, __doc__ or "", rounds=15)
    options = benchmark.options()
    device, rows = options.device, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deit = settings_for("micro" if options.tiny else "tiny", 32 if options.tiny else 224,
                            2 if options.tiny else 8, options,
                            "backbone.pool=token")  # fmt: skip
        batch = example(deit, device)
        turns = interleave(
            {"ours": OurLoop(deit, batch, folder / "deit"), "timm": timms(deit, batch)},
            options.rounds,
            device,
        )
        rows += compare(f"deit_tiny, batch {len(batch.images)}", turns, "timm", bar={"ours": 1.05})

        small = settings_for("micro", 32, 8, options, "size.depth=1")
        batch = example(small, device)
        turns = interleave(
            {"ours": OurLoop(small, batch, folder / "small"), "bare": bare(small, batch)},
            1 if options.tiny else 20 * options.rounds,
            device,
        )
        rows += compare("overhead, one block at 32 pixels", turns, "bare")
        beyond = [
            1e3 * ((one.cpu or 0) - (other.cpu or 0))
            for one, other in zip(turns["ours"], turns["bare"], strict=True)
        ]
        rows[-2 if rows[-2]["candidate"] == "ours" else -1]["overhead_ms"] = spread(beyond)
    if not options.tiny:
        with tempfile.TemporaryDirectory() as bytecode:
            codes = {"ours": START, "PyTorch and timm": BARE_START}
            both = {name: start(code, 5, bytecode) for name, code in codes.items()}
        rows += compare("start to first step, digits", both, "PyTorch and timm")
    benchmark.write(options, rows)


if __name__ == "__main__":
    main()
