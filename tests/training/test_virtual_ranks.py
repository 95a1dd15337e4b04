"""The same numbers on any number of processes, loader workers, and after moving between them.

The model has everything that could depend on the hardware: LIT at micro size with BatchNorm
in its deformable mergings, dropout and stochastic depth, under mixup, CutMix, RandAugment,
random erasing and repeated augmentation.
"""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import finish, start_group
from tiny_runs import losses

from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.training import checkpoint

pytestmark = pytest.mark.xdist_group("virtual-ranks")  # which share a run of one process

EVERYTHING = [
    "preset=lit_s", "size=micro", "protocol=digits", "recipe.epochs=1", "data=synthetic",
    "protocol.image_size=32",
    "data.train_images=384", "data.val_images=90", "data.num_classes=10",
    "recipe.batch.size=16", "recipe.batch.micro_batch_size=4", "recipe.regularization.dropout=0.1",
    "recipe.regularization.drop_path=0.2", "recipe.mixup.mixup=0.8", "recipe.mixup.cutmix=1",
    "recipe.mixup.prob=1", "recipe.augmentation.repeats=3",
    "recipe.augmentation.random_erasing=0.25",
    "recipe.augmentation.auto_augment=rand-m9-mstd0.5-inc1",
    "recipe.optimizer.clip_grad_norm=5", "recipe.schedule.warmup_epochs=0",
    "recipe.optimizer.lr=2e-4",
]  # fmt: skip
RUN = ["tracking.offline=true", "run.measure=false", "run.progress=false", "run.log_every_steps=1",
       "run.device=cpu", "run.evaluate_every_epochs=1"]  # fmt: skip
STEPS = 24
RELATIVE = {"fp64": 1e-6, "fp32": 1e-4}
"""Rounding grows as the steps go by: at 1e-3 a difference of 1e-7 is 1e-1 after 70 steps, so
that single precision can be compared at a low rate only; double precision at any."""


def _train(settings: Settings, stop_after: int | None, batches: str) -> None:
    """In each process: train, and write down a hash of every micro-batch as the model sees it."""
    from mixerbench.errors import Preempted
    from mixerbench.objectives.classification import loss
    from mixerbench.training.group import join
    from mixerbench.training.run import run_training

    seen: list[str] = []

    class Watched(loss.DistillationLoss):
        def forward(self, images: Any, logits: Any, targets: Any) -> Any:
            seen.append(hashlib.sha256(_bytes(images) + _bytes(targets)).hexdigest())
            if stop_after is not None and len(seen) == stop_after:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().forward(images, logits, targets)

    loss.DistillationLoss = Watched  # type: ignore[misc]
    with join() as group:
        try:
            run_training(settings, group)
        except Preempted:
            assert stop_after is not None
        with open(f"{batches}-{group.size}-{group.rank}", "a") as file:
            file.write(json.dumps(seen) + "\n")


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().double().numpy().tobytes()


class Run:
    """What a run of some processes has left behind."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (self.folder,) = place.glob("runs/*/*")

    def losses(self) -> list[float]:
        return losses(self.folder)

    def value(self, key: str) -> float:
        records = [r["values"] for r, _ in read(self.folder / FILE_NAME) if r["kind"] == "metrics"]
        return [values[key] for values in records if key in values][-1]

    def batches(self, size: int) -> list[str]:
        """The hashes of all micro-batches, step by step, within a step by virtual rank."""
        own = []
        for rank in range(size):
            lines = (self.place / f"batches-{size}-{rank}").read_text().splitlines()
            seen = [one for line in lines for one in json.loads(line)]
            each = 4 // size
            own.append([seen[start : start + each] for start in range(0, len(seen), each)])
        return [one for step in zip(*own, strict=True) for share in step for one in share]

    def tensors(self, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
        return checkpoint.load(self.folder / name)[0]


Train = Callable[..., Run]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train on so many processes, to the end or until so many micro-batches of each are seen."""

    def run(
        size: int, *overrides: str, stop_after: int | None = None, again: Run | None = None
    ) -> Run:
        place = again.place if again else tmp_path / str(len(os.listdir(tmp_path)))
        place.mkdir(exist_ok=True)
        resume = [f"run.resume={again.folder}"] if again else []
        settings = compose([*EVERYTHING, *RUN, f"run.root={place}/runs", *resume, *overrides])
        processes = start_group(_train, size, settings, stop_after, f"{place}/batches")
        assert finish(processes) == [0] * size
        return Run(place)

    return run


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of one process without loader workers, once for each precision."""
    runs: dict[str, Run] = {}

    def get(precision: str) -> Run:
        if precision not in runs:
            place = tmp_path_factory.mktemp("alone")
            overrides = [f"run.root={place}/runs", f"run.precision={precision}"]
            settings = compose([*EVERYTHING, *RUN, *overrides])
            processes = start_group(_train, 1, settings, None, f"{place}/batches")
            assert finish(processes) == [0]
            runs[precision] = Run(place)
        return runs[precision]

    return get


def _agree(run: Run, reference: Run, precision: str) -> None:
    assert len(run.losses()) == STEPS
    assert run.losses() == pytest.approx(reference.losses(), rel=RELATIVE[precision])
    for name in ("model.safetensors", "ema.safetensors"):
        own, others = run.tensors(name), reference.tensors(name)
        assert own.keys() == others.keys()
        # Adam makes steps of a bias before BatchNorm, whose gradient is rounding alone.
        for key, tensor in own.items() if precision == "fp64" else ():
            torch.testing.assert_close(tensor, others[key], rtol=1e-4, atol=1e-5, msg=key)
    assert run.value("final/top1") == reference.value("final/top1")
    assert run.value("final/loss") == pytest.approx(
        reference.value("final/loss"), rel=RELATIVE[precision]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "workers"),
    [
        *((1, 0), (2, 1)),
        *(pytest.param(*row, marks=pytest.mark.everything) for row in ((1, 3), (4, 0), (4, 3))),
    ],
)
def test_processes_and_workers_change_neither_batches_nor_losses(
    size: int, workers: int, train: Train, alone: Callable[[str], Run]
) -> None:
    reference = alone("fp64")
    if (size, workers) == (1, 0):
        assert len(reference.batches(1)) == STEPS * 4
        assert len(set(reference.batches(1))) == STEPS * 4  # they do differ
        return
    run = train(size, "run.precision=fp64", f"run.workers={workers}")
    assert run.batches(size) == reference.batches(1)
    _agree(run, reference, "fp64")


@pytest.mark.everything  # long matrix
@pytest.mark.parametrize("size", [2, 4])
def test_single_precision_agrees_to_its_own_rounding(
    size: int, train: Train, alone: Callable[[str], Run]
) -> None:
    _agree(train(size), alone("fp32"), "fp32")


@pytest.mark.slow
def test_a_run_moves_from_1_to_4_to_2_processes_within_an_epoch(
    train: Train, alone: Callable[[str], Run]
) -> None:
    # 8 steps of four micro-batches, 8 steps of one, the rest of the epoch.
    fp64 = "run.precision=fp64"
    first = train(1, fp64, stop_after=32)
    assert len(first.losses()) == 8
    train(4, fp64, "run.workers=1", stop_after=8, again=first)
    assert len(first.losses()) == 16
    train(2, fp64, again=first)
    moved = first.batches(1) + first.batches(4) + first.batches(2)
    assert moved == alone("fp64").batches(1)
    _agree(first, alone("fp64"), "fp64")


@pytest.mark.slow
def test_parameters_in_parts_train_as_whole_ones(train: Train, alone: Callable[[str], Run]) -> None:
    """FSDP2, and its checkpoint continued by DDP on another number of processes."""
    fp64 = "run.precision=fp64"
    sharded = train(2, fp64, "run.parallel=fsdp", stop_after=16)
    assert len(sharded.losses()) == 8
    train(4, fp64, "run.parallel=fsdp", stop_after=8, again=sharded)
    assert len(sharded.losses()) == 16
    train(2, fp64, again=sharded)
    _agree(sharded, alone("fp64"), "fp64")


@pytest.mark.slow
def test_on_the_same_number_of_processes_a_resumed_run_is_bit_identical(train: Train) -> None:
    whole = train(4)
    stopped = train(4, stop_after=10)
    train(4, again=stopped)
    assert stopped.losses() == whole.losses()
    last = f"checkpoints/step-{STEPS:09d}.safetensors"
    for name in ("model.safetensors", "ema.safetensors", last):
        own, others = stopped.tensors(name), whole.tensors(name)
        assert own.keys() == others.keys()
        assert all(torch.equal(own[key], others[key]) for key in own)
