"""Hand-written digits that scikit-learn carries."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mixerbench.data.images import Arrays, Splits
from mixerbench.data.source import DataSource, register_data

_VAL_SHARE = 0.3  # of the digits, in each class
_SPLIT_SEED = 0


@register_data("digits")
class Digits(DataSource):
    """scikit-learn's hand-written digits: 1,797 real images of 8 x 8 pixels, part of the package.

    3 of 10 images of each class are for validation; the split never changes.
    """

    def open(self) -> Splits:
        # scikit-learn's file without scikit-learn, whose import takes longer than an epoch.
        folder = find_spec("sklearn").submodule_search_locations[0]  # type: ignore[union-attr,index]
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        table = np.loadtxt(path, delimiter=",", dtype=np.int64)  # 64 levels and the digit
        digits, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
        pixels = np.round(digits * (255 / 16)).astype(np.uint8)  # published as 0..16
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
        val = np.zeros(len(pixels), dtype=bool)
        random = np.random.RandomState(_SPLIT_SEED)  # frozen: the same split in every NumPy version
        for label in range(10):
            members = random.permutation(np.flatnonzero(labels == label))
            val[members[: round(_VAL_SHARE * len(members))]] = True
        classes = [str(label) for label in range(10)]

        def split(chosen: np.ndarray) -> Arrays:
            numbers = np.flatnonzero(chosen)
            names = [str(number) for number in numbers]
            return Arrays(pixels[numbers], labels[numbers].tolist(), classes, names)

        return Splits(split(~val), split(val))
