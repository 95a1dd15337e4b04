"""Registering a data source is one decorator; opening its images is one call."""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mixerbench.config.plugins import load_plugins
from mixerbench.config.schema import Data, Protocol, Settings
from mixerbench.config.sources import check_class_folders
from mixerbench.data.images import Splits
from mixerbench.errors import Refusal
from mixers.core.registry import Registry


class DataSource(ABC):
    """Where images come from: one class, one file, one ``@register_data("name")``.

    The keyword-only arguments of its ``__init__`` are what it takes from the settings: fields of
    ``protocol.data``, or ``image_size`` (of the models' input, in pixels). A field that is null
    counts as not given.
    """

    class_folders: ClassVar[bool] = False
    """Images lie in root/train/<class>/ and root/val/<class>/: a light check finds what is
    missing, their classes are known before they are opened, and they can be packed."""

    is_noise: ClassVar[bool] = False
    """Labels have nothing to do with images: accuracy means nothing, and boards say so."""

    generator_version: ClassVar[int | None] = None
    """For images that are computed, not stored: raised whenever other pixels come out. It is part
    of the protocol's fingerprint, with the source's name and its arguments."""

    @abstractmethod
    def open(self) -> Splits:
        """The training and validation images.

        Raises:
            Refusal: they are not there, or not as the settings say.
        """


class _SourceRegistry(Registry[DataSource]):
    def register(self, name: str) -> Any:
        decorate = super().register(name)

        def check(cls: type[DataSource]) -> type[DataSource]:
            unknown = sorted(set(_options(cls)) - _SETTINGS)
            if unknown:
                raise Refusal(
                    f"data source {name!r} asks for {unknown[0]!r}, which is no setting: it may "
                    f"ask for {', '.join(sorted(_SETTINGS))}."
                )
            return decorate(cls)

        return check


_SETTINGS = {field.name for field in dataclasses.fields(Data)} | {"image_size"}

SOURCES = _SourceRegistry("data", "mixerbench.data.sources")
register_data = SOURCES.register


def _options(cls: type[DataSource]) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def images_of(settings: Settings) -> Splits:
    """Open the images of a run; its plugins are loaded first, as one may hold the source.

    Raises:
        Refusal: as ``open_images``, or a plugin has changed or cannot be loaded.
    """
    load_plugins(settings)
    return open_images(settings.protocol)


def open_images(protocol: Protocol) -> Splits:
    """Open the protocol's data set; CIFAR is downloaded where it is missing.

    Raises:
        Refusal: it is not there, or its splits or classes do not fit the settings.
    """
    data = protocol.data
    settings = {**vars(data), "image_size": protocol.image_size}
    source = SOURCES.get(data.source)
    if source.class_folders:
        check_class_folders(data)
    given = {name: settings[name] for name in _options(source) if settings[name] is not None}
    splits = SOURCES.create(data.source, **given).open()
    if source.generator_version is not None:
        arguments = "".join(f" {name}={value}" for name, value in sorted(given.items()))
        generator = f"{data.source} version={source.generator_version}{arguments}"
        splits = dataclasses.replace(splits, content=generator)
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
