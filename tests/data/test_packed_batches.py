"""A packed data set in the place of its folder: the same images in the same order."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixerbench.config.schema import Protocol, Run, protocol_fingerprint
from mixerbench.config.sources import known_classes
from mixerbench.data.loader import ImageBatch, eval_loader, train_loader
from mixerbench.data.packing.settings import Packing
from mixerbench.data.packing.writing import pack
from mixerbench.data.source import open_images
from mixerbench.training.folder import complete

CPU = torch.device("cpu")
SHORT_SIDE = 32


@pytest.fixture
def packed(tree, folder, tmp_path) -> Callable[..., Protocol]:
    """The protocol of the folder, and of what becomes of it in packing."""
    tree.add("train", "bridge", 7)
    tree.add("val", "bridge", 3)

    def get(packing: Packing | None, **fields: object) -> Protocol:
        protocol = folder(image_size=24, recipe__batch__micro_batch_size=2, **fields)
        if packing is not None:
            out = tmp_path / packing.format / str(packing.short_side)
            splits = open_images(protocol)
            pack(splits, tree.root, out, packing, protocol.data.exif_orientation, jobs=1)
            protocol.data.root = str(out)
        complete(protocol, open_images(protocol))
        return protocol

    return get


def batches_of(protocol: Protocol) -> list[ImageBatch]:
    splits = open_images(protocol)
    training, order = train_loader(splits.train, protocol, Run(seed=3), CPU)
    order.start_at(1)
    return [*training, *eval_loader(splits.val, protocol, Run(), CPU)]


@pytest.mark.parametrize("pixels", ["exact", "same-law"])
@pytest.mark.parametrize("how", [Packing(), Packing(format="raw")], ids=str)
def test_unchanged_images_give_the_folders_batches_and_fingerprint(how, pixels, packed):
    plain, other = packed(None, data__pixels=pixels), packed(how, data__pixels=pixels)
    assert protocol_fingerprint(other) == protocol_fingerprint(plain)
    assert known_classes(other.data) == 3
    for one, another in zip(batches_of(plain), batches_of(other), strict=True):
        assert all(map(torch.equal, one, another))


@pytest.mark.parametrize("format", ["jpeg", "raw"])
def test_smaller_images_come_in_the_same_order_under_a_fingerprint_of_their_own(format, packed):
    plain, small = packed(None), packed(Packing(SHORT_SIDE, format=format))
    assert small.data.digest == plain.data.digest
    assert protocol_fingerprint(small) != protocol_fingerprint(plain)
    assert f"short_side={SHORT_SIDE}" in str(small.data.packed)
    for one, another in zip(batches_of(plain), batches_of(small), strict=True):
        assert all(map(torch.equal, one[1:], another[1:]))
    of_folder, of_shards = open_images(plain).val, open_images(small).val
    for index in range(len(of_folder.targets)):  # never resized: evaluation is the same
        assert (of_folder.load(index) == of_shards.load(index)).all()


def test_an_unfinished_packing_is_refused(packed, refusal):
    protocol = packed(Packing())
    root = Path(str(protocol.data.root))
    (root / "pack.json").rename(root / "packing.jsonl")
    assert "run the same 'mixerbench pack' again" in refusal(lambda: open_images(protocol))
