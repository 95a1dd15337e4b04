"""What packing does to the training images."""

from dataclasses import dataclass
from typing import Any

import PIL
from PIL import features

from mixerbench.data.packing.format import description_of
from mixerbench.errors import Refusal

FORMATS = ("jpeg", "raw")
QUALITY = 90  # of JPEGs, when none is given
SUBSAMPLING = "4:2:0"  # of colours; Pillow's default, and what most photographs have anyway
_INTERPOLATION = "bicubic"  # with Pillow's antialiasing; DeiT's evaluation resizes by it too


@dataclass(frozen=True)
class Packing:
    """What is done to the training images; validation images keep their files.

    Args:
        short_side: in pixels; images with a longer shorter side are resized to it. None: no
            image is resized.
        format: jpeg or raw. Only resized images become JPEGs; the others keep their files.
        quality: of the new JPEGs, 1..100. None: the default, or no image becomes a JPEG.
        shard_images: number of images in each shard. None: as many as take about 256 MiB for
            ImageNet.

    Raises:
        Refusal: a value does not fit; the message says which ones do.
    """

    short_side: int | None = None
    format: str = "jpeg"
    quality: int | None = None
    shard_images: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise Refusal(f"format={self.format}: choose one of {', '.join(FORMATS)}.")
        for name in ("short_side", "shard_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise Refusal(f"{name}={value}: give 1 or more.")
        if self.quality is not None:
            if not self._encodes:
                raise Refusal(
                    f"quality={self.quality} is for images that become other JPEGs: set "
                    "short_side=PIXELS and format=jpeg beside it, or leave it out."
                )
            if not 1 <= self.quality <= 100:
                raise Refusal(f"quality={self.quality}: give a number from 1 to 100.")

    @property
    def _encodes(self) -> bool:
        return self.short_side is not None and self.format == "jpeg"

    @property
    def description(self) -> str | None:
        """How pixels change, for the protocol's fingerprint; None if they do not."""
        return description_of(self.settings(exif_orientation=False))

    def settings(self, exif_orientation: bool) -> dict[str, Any]:
        """All that the shards' bytes depend on, apart from the images.

        ``exif_orientation`` is None where files are kept: they are turned when they are read.
        """
        turned = self.short_side is not None or self.format == "raw"
        default = {
            "jpeg": 4096 if self.short_side else 2048,
            "raw": 1024 if self.short_side else 512,
        }
        encoder = f"libjpeg {features.version('libjpeg_turbo') or features.version('jpg')}"
        return {
            "short_side": self.short_side,
            "format": self.format if turned else "files",
            "quality": self.quality or QUALITY if self._encodes else None,
            "subsampling": SUBSAMPLING if self._encodes else None,
            "interpolation": _INTERPOLATION if self.short_side else None,
            "exif_orientation": exif_orientation if turned else None,
            "shard_images": self.shard_images or default[self.format],
            # A packing is not continued by another version: its pixels may differ.
            "pillow": PIL.__version__ if self.short_side else None,
            "encoder": encoder if self._encodes else None,
        }
