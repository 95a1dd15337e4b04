"""The transforms of ``augmentation`` in two halves: bytes of one image, then floats of a batch.

A loader process hands over an image as bytes, a quarter of the size of floats, together with the
boxes that are to be erased. Normalising and erasing follow for a whole batch, on the device.

``data.pixels`` says how the bytes are computed. Its three levels draw the same random numbers:

``exact``
    DeiT's pixels, to the bit: Pillow resizes and turns.
``same-law``
    PyTorch resizes: the same filter in other fixed-point arithmetic, within 1 level of 255 but
    for 1 value in 10,000, of which none was seen more than 4 levels off.
``same-law-opencv``
    In addition OpenCV shears, shifts and turns. Its cubic filter is another one (a = -0.75 for
    Pillow's -0.5, in steps of 1/32 pixel), and it blends the fill colour in at the border.
"""

import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_modes_mapping

from mixerbench.config.schema import Data, Protocol
from mixerbench.recipe.augmentation import eval_transform, operations_of, train_transform

Resize = Callable[[np.ndarray, tuple[int, int], InterpolationMode], Image.Image]

_GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")  # how their names begin


class Erased(NamedTuple):
    """Boxes of one image that random erasing fills with noise after normalising."""

    boxes: list[tuple[int, int, int, int]]  # top, left, height, width
    noise: list[Tensor]  # (3, height, width) each


class TrainPixels:
    """The first half of ``train_transform``: from (H, W, 3) uint8 to (size, size, 3) uint8.

    Random numbers are drawn from the same global generators as there, in the same order.
    """

    def __init__(self, protocol: Protocol) -> None:
        steps, rest = _halves(train_transform(protocol))
        self._size = protocol.image_size
        self._crop, self._steps = steps[0], steps[1:]
        self._erasing: RandomErasing | None = rest[1] if len(rest) > 1 else None
        level = protocol.data.pixels
        self._resize: Resize = _resize_by_pillow if level == "exact" else _resize_by_torch
        if level == "same-law-opencv":
            for step in self._steps:
                for operation in operations_of(step):
                    if operation.name.startswith(_GEOMETRIC):
                        operation.aug_fn = _Warp(operation.aug_fn)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, Erased]:
        if isinstance(self._crop, RandomResizedCropAndInterpolation):
            image = self._resized_crop(pixels)
        else:
            image = self._crop(Image.fromarray(pixels))
        for step in self._steps:
            image = step(image)
        erased = _Erasing(self._size)
        if self._erasing is not None:
            self._erasing(erased)
        return np.asarray(image), erased.result

    def _resized_crop(self, pixels: np.ndarray) -> Image.Image:
        crop = self._crop
        shape = torch.empty(()).expand(3, *pixels.shape[:2])  # takes no memory
        top, left, height, width = crop.get_params(shape, crop.scale, crop.ratio)
        interpolation = crop.interpolation
        if isinstance(interpolation, Sequence):
            interpolation = random.choice(interpolation)
        box = pixels[top : top + height, left : left + width]
        return self._resize(box, crop.size, interpolation)


class EvalPixels:
    """The first half of ``eval_transform``: from (H, W, 3) uint8 to (size, size, 3) uint8.

    It is the same at every level of ``data.pixels``, so that accuracies can be compared.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._steps, _ = _halves(eval_transform(protocol))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels)
        for step in self._steps:
            image = step(image)
        return np.asarray(image)


class Normalize:
    """The second half: from (B, H, W, 3) uint8 anywhere to normalised (B, 3, H, W) on a device.

    On a GPU the result is in ``torch.channels_last`` layout, in which the convolutions of a stem
    are faster; on a CPU they are not.
    """

    def __init__(self, data: Data, device: torch.device, dtype: torch.dtype) -> None:
        # A tensor, since CUDA divides by a Python number as a product with its reciprocal.
        self._white = torch.tensor(255.0, device=device)
        self._mean = torch.tensor(data.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(data.std, device=device).view(3, 1, 1)
        self._device, self._dtype = device, dtype
        levels = torch.arange(256, dtype=torch.float32, device=device).expand(3, 1, -1)
        self._table = self._normalized(levels).cpu().numpy()[:, 0]  # (3, 256)
        self._look_up = _by_opencv if data.pixels == "same-law-opencv" else _by_numpy

    def __call__(self, images: Tensor) -> Tensor:
        if self._device.type == "cpu":  # a table of the 256 levels takes two thirds of the time
            floats = np.empty((len(images), 3, *images.shape[1:3]), dtype=np.float32)
            for image, planes in zip(images.numpy(), floats, strict=True):
                self._look_up(self._table, image, planes)
            return torch.from_numpy(floats).to(self._dtype)
        planes = images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return self._normalized(planes.to(torch.float32)).to(self._dtype)

    def _normalized(self, levels: Tensor) -> Tensor:
        """Rounded three times, as torchvision's ToTensor and Normalize do."""
        return (levels / self._white).sub_(self._mean).div_(self._std)


def _by_numpy(tables: np.ndarray, image: np.ndarray, planes: np.ndarray) -> None:
    for channel, (table, plane) in enumerate(zip(tables, planes, strict=True)):
        np.take(table, image[..., channel], out=plane, mode="clip")


def _by_opencv(tables: np.ndarray, image: np.ndarray, planes: np.ndarray) -> None:
    cv2 = _opencv()
    for table, channel, plane in zip(tables, cv2.split(image), planes, strict=True):
        cv2.LUT(channel, table, dst=plane)  # the same, in two thirds of the time


def _halves(chain: Any) -> tuple[list[Any], list[Any]]:
    """The steps that take Pillow images, and those that take tensors."""
    steps = list(chain.transforms)
    middle = next(i for i, step in enumerate(steps) if isinstance(step, MaybeToTensor))
    return steps[:middle], steps[middle + 1 :]


class _Erasing:
    """Stands in for an image in timm's RandomErasing, and notes what would be written into it."""

    dtype = torch.float32

    def __init__(self, size: int) -> None:
        self._size = size
        self.result = Erased([], [])

    def size(self) -> tuple[int, int, int]:
        return 3, self._size, self._size

    def __setitem__(self, index: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = index
        height, width = rows.stop - rows.start, columns.stop - columns.start
        self.result.boxes.append((rows.start, columns.start, height, width))
        self.result.noise.append(noise.expand(3, height, width))


# --- what depends on the level ---------------------------------------------------------------


def _resize_by_pillow(
    pixels: np.ndarray, size: tuple[int, int], interpolation: InterpolationMode
) -> Image.Image:
    height, width = size
    return Image.fromarray(pixels).resize((width, height), pil_modes_mapping[interpolation])


def _resize_by_torch(
    pixels: np.ndarray, size: tuple[int, int], interpolation: InterpolationMode
) -> Image.Image:
    kernel = _TORCH.get(interpolation)
    if kernel is None:
        return _resize_by_pillow(pixels, size, interpolation)
    # F.interpolate with antialias=True, but interleaved as images are: it returns separate planes,
    # which takes four times as long.
    image = torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1).unsqueeze(0)
    resized = torch.empty(1, *size, pixels.shape[2], dtype=torch.uint8)
    kernel(image, size, False, out=resized.permute(0, 3, 1, 2))
    return Image.fromarray(resized[0].numpy())


_TORCH = {
    InterpolationMode.BILINEAR: torch.ops.aten._upsample_bilinear2d_aa.out,
    InterpolationMode.BICUBIC: torch.ops.aten._upsample_bicubic2d_aa.out,
}


@cache
def _opencv() -> Any:
    """OpenCV, an optional package, limited to one thread, as several loaders work at a time."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


class _Warp:
    """One of timm's geometric operations, computed by OpenCV.

    timm's function calls methods of the image that it is given; ``_Warped`` computes them.
    """

    def __init__(self, operation: Callable[..., Any]) -> None:
        self._operation = operation

    def __call__(self, image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        return self._operation(_Warped(image), *arguments, **options)  # type: ignore[no-any-return]


class _Warped:
    """An image with those methods of Pillow's that timm's geometric operations call."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.size = image.size

    def transform(
        self,
        size: tuple[int, int],
        method: Image.Transform,
        matrix: Sequence[float],
        resample: Image.Resampling,
        fillcolor: tuple[int, ...],
    ) -> Image.Image:
        """Pixel (x, y) of the result is taken from ``matrix`` times (x, y, 1) in the image."""
        cv2 = _opencv()
        a, b, c, d, e, f = matrix
        # Whole coordinates are the corners of pixels in Pillow and their centres in OpenCV.
        centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
        filters = {
            Image.Resampling.NEAREST: cv2.INTER_NEAREST,
            Image.Resampling.BILINEAR: cv2.INTER_LINEAR,
            Image.Resampling.BICUBIC: cv2.INTER_CUBIC,
        }
        warped = cv2.warpAffine(
            np.asarray(self._image),
            centred,
            size,
            flags=filters[resample] | cv2.WARP_INVERSE_MAP,
            borderValue=fillcolor,
        )
        return Image.fromarray(warped)

    def rotate(
        self, degrees: float, resample: Image.Resampling, fillcolor: tuple[int, ...]
    ) -> Image.Image:
        """Anticlockwise around the centre, as ``Image.rotate``."""
        cos, sin = math.cos(math.radians(-degrees)), math.sin(math.radians(-degrees))
        x, y = self.size[0] / 2, self.size[1] / 2
        matrix = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
        return self.transform(self.size, Image.Transform.AFFINE, matrix, resample, fillcolor)
