"""SampleOrder: repeated augmentation as DeiT's RASampler has it, for any number of devices."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.data import create_loader
from timm.data.dataset import ImageDataset

from mixerbench.config.schema import Batch
from mixerbench.data.order import Sample, SampleOrder, evaluation_batches

IMAGENET = 1_281_167

RANKS = st.sampled_from([1, 2, 3, 4, 8])
MICRO = st.integers(1, 5)
REPEATS = st.integers(1, 4)


def permutation(images: int, seed: int, epoch: int) -> list[int]:
    """The order of the images before repeats: what one image a step and no repeats give."""
    order = SampleOrder(images, Batch(1, 1), repeats=1, seed=seed)
    order.start_at(epoch)
    return [sample.image for batch in order for sample in batch]


def ra_sampler(shuffled: list[int], ranks: int, rank: int, repeats: int) -> list[Sample]:
    """What DeiT's RASampler (samplers.py) hands a rank in an epoch, in order.

    Beside the image, the number of its copy: RASampler has no need of it.
    """
    copies = []
    for image in shuffled:
        for repeat in range(repeats):
            copies.append(Sample(image, 0, repeat))
    length = math.ceil(len(shuffled) * repeats / ranks) * ranks
    copies += copies[: length - len(copies)]
    mine = []
    for position in range(rank, length, ranks):
        mine.append(copies[position])
    return mine[: len(shuffled) // 256 * 256 // ranks]


@pytest.mark.parametrize("images", [256, 300, 600])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("repeats", [1, 3])
def test_each_rank_gets_the_batches_of_deits_sampler(images, ranks, repeats):
    order = SampleOrder(images, Batch(32, 32 // ranks), repeats, seed=3)
    batches = list(order)
    shuffled = permutation(images, seed=3, epoch=0)
    steps = images // 256 * 256 // 32  # RASampler rounds the epoch to 256 images
    for rank in range(ranks):
        theirs = ra_sampler(shuffled, ranks, rank, repeats)
        ours = [sample for step in range(steps) for sample in batches[step * ranks + rank]]
        assert ours == theirs
    # Where 256 do not divide the images, DeiT leaves out steps that could be filled.
    assert steps <= order.steps_per_epoch == len(batches) // ranks == images // 32


@settings(deadline=None)
@given(
    steps=st.integers(1, 6),
    size=st.sampled_from([4, 6, 12, 24]),
    repeats=REPEATS,
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 400),
)
def test_a_step_is_the_same_set_for_any_number_of_virtual_ranks(steps, size, repeats, seed, epoch):
    images = steps * size + size // 2
    found = []
    for ranks in (1, 2, size // 2, size):
        order = SampleOrder(images, Batch(size, size // ranks), repeats, seed)
        order.start_at(epoch)
        batches = list(order)
        assert len(batches) == steps * ranks
        assert {len(batch) for batch in batches} == {size // ranks}
        samples = list(itertools.chain(*batches))
        found.append([Counter(samples[i * size : (i + 1) * size]) for i in range(steps)])
    assert all(sets == found[0] for sets in found)


@settings(deadline=None)
@given(
    images=st.integers(1, 60),
    ranks=RANKS,
    micro=MICRO,
    repeats=REPEATS,
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 400),
    data=st.data(),
)
def test_continuing_at_a_step_is_as_if_it_had_never_stopped(
    images, ranks, micro, repeats, seed, epoch, data
):
    batch = Batch(ranks * micro, micro)
    assume(images >= batch.size)
    whole = SampleOrder(images, batch, repeats, seed)
    whole.start_at(epoch)
    step = data.draw(st.integers(0, whole.steps_per_epoch))
    rest = SampleOrder(images, batch, repeats, seed)
    rest.start_at(epoch, step)
    expected = list(whole)[step * ranks :]
    assert len(rest) == len(expected)
    assert list(rest) == expected


@settings(deadline=None)
@given(images=st.integers(8, 60), ranks=RANKS, micro=MICRO, repeats=REPEATS)
def test_an_epoch_sees_each_sample_once_and_one_in_repeats_of_the_images(
    images, ranks, micro, repeats
):
    batch = Batch(ranks * micro, micro)
    assume(images >= batch.size)
    samples = [sample for part in SampleOrder(images, batch, repeats, seed=0) for sample in part]
    seen = images // batch.size * batch.size
    assert len(samples) == len(set(samples)) == seen
    assert len({sample.image for sample in samples}) == math.ceil(seen / repeats)
    assert all(0 <= sample.image < images and 0 <= sample.repeat < repeats for sample in samples)


def test_divergence_10_one_device_sees_the_repeats_that_timm_and_deit_keep_for_several(tmp_path):
    # DeiT's main.py takes RandomSampler unless it is distributed; timm refuses:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "empty.png").touch()
    with pytest.raises(AssertionError, match="not currently supported in non-distributed"):
        create_loader(
            ImageDataset(str(tmp_path)),
            input_size=(3, 32, 32),
            batch_size=2,
            is_training=True,
            num_aug_repeats=3,
            use_prefetcher=False,
        )
    (first, *_) = SampleOrder(30, Batch(6, 6), repeats=3, seed=0)
    assert [sample.repeat for sample in first] == [0, 1, 2, 0, 1, 2]
    assert len({sample.image for sample in first}) == 2


@settings(deadline=None)
@given(
    images=st.integers(8, 60),
    processes=st.sampled_from([1, 2, 4]),
    ranks_each=st.integers(1, 3),
    micro=MICRO,
    repeats=REPEATS,
    epoch=st.integers(0, 9),
)
def test_chunks_hold_a_steps_samples_with_their_copies_together(
    images, processes, ranks_each, micro, repeats, epoch
):
    batch = Batch(processes * ranks_each * micro, micro)
    assume(images >= batch.size)
    for process in range(processes):
        order = SampleOrder(images, batch, repeats, 3, process, processes)
        order.start_at(epoch)
        micro_batches, chunks = list(order), list(order.chunks())
        assert len(chunks) == len(order.chunks()) == len(micro_batches)
        assert {len(chunk) for chunk in chunks} <= {micro}
        for step in range(order.steps_per_epoch):
            own = slice(step * ranks_each, (step + 1) * ranks_each)
            samples = list(itertools.chain(*chunks[own]))
            dealt = [samples[rank::ranks_each] for rank in range(ranks_each)]
            assert dealt == micro_batches[own]
            images_in_order = [image for image, _ in itertools.groupby(s.image for s in samples)]
            assert len(images_in_order) == len(set(images_in_order))  # never apart


def test_the_copies_of_an_image_go_to_different_ranks():
    batches = list(SampleOrder(40, Batch(8, 2), repeats=3, seed=0))
    for step in range(5):
        rank_of: dict[int, list[int]] = {}
        for rank, batch in enumerate(batches[4 * step : 4 * step + 4]):
            for sample in batch:
                rank_of.setdefault(sample.image, []).append(rank)
        assert all(len(set(ranks)) == len(ranks) for ranks in rank_of.values())


def test_order_depends_on_the_seed_and_on_the_epoch_which_deits_does_not():
    orders = [tuple(permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == tuple(permutation(50, 0, 0))


def test_samples_carry_their_epoch():
    order = SampleOrder(8, Batch(4, 4), repeats=3, seed=0)
    order.start_at(7)
    assert {sample.epoch for batch in order for sample in batch} == {7}


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]),
        (0, 1, [9, 4, 0, 8, 1, 5, 3, 2, 6, 7]),
        (1, 0, [2, 9, 8, 3, 6, 7, 1, 4, 0, 5]),
    ],
)
def test_order_is_frozen_whatever_the_version_of_numpy(seed, epoch, expected):
    assert permutation(10, seed, epoch) == expected


def test_an_epoch_of_imagenet_has_deits_1251_steps():
    order = SampleOrder(IMAGENET, Batch(1024, 128), repeats=3, seed=0)
    per_rank = IMAGENET // 256 * 256 // 8  # RASampler's, of which DeiT drops the last batch
    assert order.steps_per_epoch == per_rank // 128 == 1251
    assert len(order) == 1251 * 8
    order.start_at(0, 1250)
    last = list(order)
    assert len(last) == 8
    assert len({sample for batch in last for sample in batch}) == 1024


@given(
    processes=st.sampled_from([1, 2, 4, 8]),
    images=st.integers(32, 90),
    seed=st.integers(0, 5),
    first_step=st.integers(0, 1),
)
def test_processes_share_the_virtual_ranks_of_every_step(
    processes: int, images: int, seed: int, first_step: int
) -> None:
    batch = Batch(size=16, micro_batch_size=2)
    whole = SampleOrder(images, batch, 3, seed)
    shares = [SampleOrder(images, batch, 3, seed, own, processes) for own in range(processes)]
    for order in (whole, *shares):
        order.start_at(2, first_step)
    each = 8 // processes
    dealt = [iter(share) for share in shares]
    together = [
        samples
        for _ in range(whole.steps_per_epoch - first_step)
        for share in dealt
        for samples in [next(share) for _ in range(each)]
    ]
    assert together == list(whole)
    assert [len(share) for share in shares] == [len(whole) // processes] * processes
    rank, step = 5, whole.steps_per_epoch - 1
    assert whole.micro_batch(2, step, rank) == together[(step - first_step) * 8 + rank]


@given(images=st.integers(1, 60), size=st.integers(1, 20), processes=st.integers(1, 9))
def test_evaluation_deals_out_whole_batches_and_calls_everybody_equally_often(
    images: int, size: int, processes: int
) -> None:
    alone = evaluation_batches(images, size)
    assert [index for batch in alone for index in batch] == list(range(images))
    shares = [evaluation_batches(images, size, own, processes) for own in range(processes)]
    assert len({len(share) for share in shares}) == 1
    dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert dealt[: len(alone)] == alone
    assert all(batch == alone[0] for share in shares for batch in share if batch not in alone[1:])
