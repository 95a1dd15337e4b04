"""Where images come from."""

from mixerbench.config.checks import check_data
from mixerbench.config.schema import Protocol
from mixerbench.data.images import Splits
from mixerbench.data.sources.cifar import open_cifar
from mixerbench.data.sources.digits import open_digits
from mixerbench.data.sources.folder import open_folder
from mixerbench.data.sources.synthetic import open_synthetic
from mixerbench.errors import Refusal


def open_images(protocol: Protocol) -> Splits:
    """Open the protocol's data set; CIFAR is downloaded where it is missing.

    Raises:
        Refusal: it is not there, or its splits or classes do not fit the settings.
    """
    data = protocol.data
    check_data(data)
    if data.source == "digits":
        splits = open_digits()
    elif data.source == "folder":
        splits = open_folder(data)
    elif data.source == "synthetic":
        splits = open_synthetic(data, protocol.image_size)
    else:
        splits = open_cifar(data)
    found = len(splits.train.classes)
    if data.num_classes is not None and found != data.num_classes:
        raise Refusal(
            f"data set {data.name!r} has {found} classes and the settings say {data.num_classes}: "
            "set protocol.data.num_classes, or point protocol.data.root to the right folder."
        )
    batch = protocol.recipe.batch.size
    if len(splits.train.targets) < batch:
        raise Refusal(
            f"data set {data.name!r} has {len(splits.train.targets)} training images, fewer than "
            f"one batch of {batch}: set protocol.recipe.batch.size (and micro_batch_size) lower."
        )
    return splits
