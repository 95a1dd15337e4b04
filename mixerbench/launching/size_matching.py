"""Answers ``match=params:22M`` for settings: counts what sizes cost, says which one it chose.

Knows torch only while it does: a command line without a match does not wait for it.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from mixerbench.config.cost_target import Target
from mixerbench.config.schema import Settings, fingerprint
from mixerbench.config.sizes import Size, read_size
from mixerbench.config.sources import check_data, known_classes
from mixerbench.errors import Refusal
from mixerbench.process import limit_threads
from mixers.core.plan import plan_name

if TYPE_CHECKING:
    from torch import nn


class Matcher:
    """Finds the size for ``match=...``; the same model is searched once, for all its seeds.

    Args:
        say: gets a line for each size that is found.
        prepare: may refuse settings before torch is loaded.
    """

    def __init__(
        self,
        say: Callable[[str], None] = print,
        prepare: Callable[[Settings], object] = lambda settings: None,
    ) -> None:
        self._say, self._prepare = say, prepare
        self._found: dict[str, Size] = {}

    def __call__(self, settings: Settings, target: Target) -> Size:
        """The size that the settings' model is to have.

        Raises:
            Refusal: none is within 1 %, or the model's parts do not fit each other.
        """
        protocol = dataclasses.asdict(settings.protocol)
        key = fingerprint([settings.model, protocol, settings.plugins, target.kind, target.value])
        if key not in self._found:
            self._prepare(settings)
            self._found[key] = self._search(settings, target)
        return self._found[key]

    def _search(self, settings: Settings, target: Target) -> Size:
        limit_threads(settings.run.threads)
        import torch

        from mixerbench.config.plugins import load_plugins
        from mixerbench.models.size_search import NoMatchError, match_size

        torch.set_num_threads(settings.run.threads)
        load_plugins(settings)  # not on the meta device, where models are built below
        start = read_size(settings.model["size"])
        try:
            found = match_size(start, target.value, _Counter(settings, target.kind))
        except NoMatchError as error:
            nearest = _described(settings, target, error.nearest.size, error.nearest.cost)
            raise Refusal(
                f"match={target.text}: no size is within 1 %. The nearest found is {nearest}. "
                "Start from another size (size=..., size.depth=...), or choose another number."
            ) from None
        self._say(f"match={target.text}: {_described(settings, target, found.size, found.cost)}")
        return found.size


class _Counter:
    """What a model of the settings costs in another size, as the leaderboard will count it."""

    def __init__(self, settings: Settings, kind: str) -> None:
        self._settings, self._kind = settings, kind
        self._on_meta = True
        classes = known_classes(settings.protocol.data)
        if classes is None:
            check_data(settings.protocol.data)  # says what is missing
        self._classes = int(classes or 0)

    def __call__(self, size: Size) -> int:
        """
        Raises:
            ValueError: the model does not take this size, or cannot be counted.
        """
        from mixerbench.measure.flops import count_macs, on_cpu
        from mixerbench.measure.model_costs import count_parameters
        from mixers.core.conformance import check_mixers

        model = self._build(size)
        if self._kind == "params":
            return count_parameters(model)
        try:
            return count_macs(on_cpu(model), self._settings.protocol.image_size).total
        except RuntimeError:  # of the forward pass: is it a mixer's?
            self._on_meta = False
            check_mixers(self._build(size))
            raise

    def _build(self, size: Size) -> "nn.Module":
        import torch

        from mixerbench.models.build import build_model
        from mixers.core.errors import BrokenCodeError

        given = self._settings.model["size"]
        numbers = {"name": given["name"], **size.written_as(given)}
        model = {**self._settings.model, "size": numbers}
        settings = dataclasses.replace(self._settings, model=model)
        if self._on_meta:
            try:
                with torch.device("meta"):  # shapes only: no memory, no random numbers
                    return build_model(settings, self._classes)
            except (RuntimeError, NotImplementedError, BrokenCodeError):
                self._on_meta = False  # a plugin looks at values while it is built
        return build_model(settings, self._classes)


def _described(settings: Settings, target: Target, size: Size, cost: int) -> str:
    """``patch_ff dim=396 (small has 384) depth=12 ...: 22,031,114 parameters, +0.14 % of ...``"""
    given = settings.model["size"]
    words = [plan_name(settings.model["mixer"])]
    for key, number in size.written_as(given).items():
        before = "" if number == given[key] else f" (from {_shown(given[key])})"
        words.append(f"{key} {_shown(number)}{before},")
    share = 100 * (cost - target.value) / target.value
    text = " ".join(words).removesuffix(",")
    return f"{text}: {cost:,} {target.unit}, {share:+.2f} % of {target.value:,}"


def _shown(number: int | list[int]) -> str:
    return "/".join(map(str, number)) if isinstance(number, list) else str(number)
