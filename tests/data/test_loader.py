"""Loaders: what a sample becomes depends on the sample, not on who loads it or when."""

import random
import zlib
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from mixerbench.config.schema import Protocol, Run
from mixerbench.data.loader import MAX_WORKERS, _workers, eval_loader, train_loader
from mixerbench.data.order import Sample, SampleOrder
from mixerbench.data.source import open_images

CPU = torch.device("cpu")


def epoch_of(
    protocol: Protocol, *, workers: int = 0, at: tuple[int, int] = (0, 0)
) -> list[list[Tensor]]:
    images = open_images(protocol).train
    loader, order = train_loader(images, protocol, Run(workers=workers), CPU)
    order.start_at(*at)
    return list(loader)


def disturb() -> None:
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


def assert_equal(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def whole(small) -> list[list[Tensor]]:
    """Epoch 1, in one process."""
    return epoch_of(small(), at=(1, 0))


@pytest.fixture
def dataset(small):
    protocol = small()

    def get(seed: int = 0):
        images = open_images(protocol).train
        return train_loader(images, protocol, Run(seed=seed, workers=0), CPU)[0].loader.dataset

    def of_one(seed: int = 0):
        return lambda sample: get(seed).__getitems__([sample])

    of_one.together = lambda samples: get().__getitems__(samples)
    return of_one


def test_batches_follow_the_order_that_is_returned(small):
    protocol = small()
    splits = open_images(protocol)
    loader, order = train_loader(splits.train, protocol, Run(seed=5), CPU)
    order.start_at(2)
    expected = SampleOrder(24, protocol.recipe.batch, 3, seed=5)
    expected.start_at(2)
    batches = list(loader)
    assert len(batches) == 12
    for (images, targets, indices, sources), samples in zip(batches, expected, strict=True):
        assert images.shape == (2, 3, 32, 32)
        assert images.dtype == torch.float32
        assert indices.tolist() == sources.tolist() == [sample.image for sample in samples]
        assert targets.tolist() == [splits.train.targets[sample.image] for sample in samples]


@pytest.mark.parametrize("workers", [1, 2])
def test_tensors_are_the_same_bytes_whoever_loads_them(workers, small, whole):
    assert_equal(epoch_of(small(), workers=workers, at=(1, 0)), whole)


def test_tensors_do_not_depend_on_the_generators_or_the_time(small, whole):
    disturb()
    assert_equal(epoch_of(small(), at=(1, 0)), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_continued_at_a_step_has_the_same_tensors(workers, small, whole):
    assert_equal(epoch_of(small(), workers=workers, at=(1, 4)), whole[4 * 2 :])


def test_workers_that_persist_follow_the_order_into_the_next_epoch(small, whole):
    protocol = small()
    loader, order = train_loader(open_images(protocol).train, protocol, Run(workers=2), CPU)
    order.start_at(0)
    list(islice(loader, 3))
    order.start_at(1)
    assert_equal(list(loader), whole)


def test_samples_may_come_in_any_order(dataset):
    samples = [Sample(image, 0, repeat) for image in range(6) for repeat in range(3)]
    forwards = {sample: dataset()(sample) for sample in samples}
    same = dataset()
    for sample in reversed(samples):
        disturb()
        chunk = same(sample)
        assert all(map(torch.equal, chunk, forwards[sample]))
        assert [column.item() for column in chunk[1:4]] == [sample.image % 5, *2 * [sample.image]]


def test_a_chunk_of_many_samples_is_that_of_each(dataset):
    samples = [Sample(image, 2, repeat) for image in (4, 1, 7) for repeat in range(3)]
    together = dataset.together(samples)
    for place, sample in enumerate(samples):
        alone = dataset()(sample)
        own = together.every(len(samples), place)
        assert all(map(torch.equal, own[:4], alone[:4]))
        boxes = zip(own.boxes.tolist(), alone.boxes.tolist(), strict=True)
        for (*box, begin), (*expected, at) in boxes:
            assert box == expected
            size = 3 * box[3] * box[4]
            assert torch.equal(own.noise[begin : begin + size], alone.noise[at : at + size])
    assert len(together.boxes) > 0


def test_copies_epochs_and_seeds_are_augmented_differently(dataset):
    base = dataset()(Sample(3, 0, 0)).pixels
    assert torch.equal(dataset()(Sample(3, 0, 0)).pixels, base)
    for seed, sample in [(0, Sample(3, 0, 1)), (0, Sample(3, 1, 0)), (1, Sample(3, 0, 0))]:
        assert not torch.equal(dataset(seed)(sample).pixels, base)


def test_evaluation_sees_every_image_once_and_in_order(small):
    protocol = small()
    splits = open_images(protocol)
    run = Run(evaluation_batch_size=3, workers=0)
    batches = list(eval_loader(splits.val, protocol, run, CPU))
    assert [len(images) for images, *_ in batches] == [3, 3, 1]  # the last is not left out
    images, targets, indices, checksums = (
        torch.cat(column) for column in zip(*batches, strict=True)
    )
    assert indices.tolist() == list(range(7))
    decoded = [splits.val.load(index).tobytes() for index in range(7)]
    assert checksums.tolist() == [zlib.crc32(pixels) for pixels in decoded]
    assert targets.tolist() == list(splits.val.targets)
    pixels = torch.from_numpy(splits.val.load(4) / 255.0).permute(2, 0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (protocol.data.mean, protocol.data.std))
    protocol.evaluation.crop_ratio = 1.0  # then nothing is resized
    loader = eval_loader(splits.val, protocol, run, CPU)
    plain = torch.cat([images for images, *_ in loader])
    torch.testing.assert_close(plain[4].double(), (pixels - mean) / std, rtol=0, atol=1e-5)
    assert not torch.equal(plain, images)


def test_evaluation_is_the_same_with_workers(small):
    protocol = small()
    val = open_images(protocol).val
    alone, helped = (
        list(eval_loader(val, protocol, Run(evaluation_batch_size=3, workers=workers), CPU))
        for workers in (0, 2)
    )
    assert_equal(helped, alone)


def test_workers_are_none_on_the_cpu_and_one_per_core_beside_a_gpu(monkeypatch):
    gpu = torch.device("cuda")
    for cores, expected in [(4, 4), (64, MAX_WORKERS), (None, 1)]:
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert _workers(Run(), gpu) == expected
        assert _workers(Run(), CPU) == 0
    assert _workers(Run(workers=3), gpu) == _workers(Run(workers=3), CPU) == 3


def test_a_loader_that_begins_in_the_middle_reads_nothing_that_was_used(small, monkeypatch):
    protocol = small()
    images = open_images(protocol).train
    loader, order = train_loader(images, protocol, Run(workers=0), CPU)
    read: list[int] = []
    load = type(images).load
    monkeypatch.setattr(
        type(images), "load", lambda self, index: (read.append(index), load(self, index))[1]
    )
    order.start_at(0, 4)
    seen = [index for batch in loader for index in batch[2].tolist()]
    assert set(read) == set(seen)
    assert len(seen) == (order.steps_per_epoch - 4) * order.batch_size
    assert len(read) < len(seen)  # neighbouring copies are decoded once
