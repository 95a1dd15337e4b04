"""What a run records of itself, small, and true: its fingerprints are those of its settings."""

from itertools import count
from typing import NamedTuple

from mixerbench.config.schema import fingerprint, flatten, protocol_fingerprint
from mixerbench.tracking.keys import SCHEMA_VERSION, Param, Tag


class Recorded(NamedTuple):
    tags: dict[str, str]
    params: dict[str, str]


def recorded(
    mixer: str = "attention",
    *,
    size: str = "micro",
    backbone: str = "vit",
    stem: str = "patch",
    seed: int = 0,
    protocol: str = "digits",
    epochs: int = 30,
    synthetic: bool = False,
    option: str = "",
) -> Recorded:
    """Tags and parameters of a run.

    Args:
        option: of the mixer; another one is another model of the same names.
    """
    model = {
        "backbone": {"name": backbone},
        "size": {"name": size, "dim": 8},
        "stem": {"name": stem},
        "mixer": {"name": mixer} | ({"option": option} if option else {}),
    }
    fields = _protocol(epochs, protocol, synthetic) | {"data": _data(synthetic, _NUMBER)}
    tags = {
        Tag.SCHEMA: SCHEMA_VERSION,
        Tag.PROTOCOL: protocol,
        Tag.PROTOCOL_FINGERPRINT: protocol_fingerprint(fields),
        Tag.MODEL: f"{mixer}_{size}_{stem}",
        Tag.MODEL_FINGERPRINT: fingerprint(model),
        Tag.MIXER: mixer,
        Tag.SIZE: size,
        Tag.BACKBONE: backbone,
        Tag.STEM: stem,
        Tag.SEED: str(seed),
        Tag.SYNTHETIC: str(synthetic).lower(),
        Tag.HARDWARE: "2 x CPU",
    }
    groups = {Param.PROTOCOL: fields, Param.MODEL: model, Param.RUN: {"seed": seed}}
    params = {k: str(v) for prefix, group in groups.items() for k, v in flatten(group, prefix)}
    return Recorded(tags, params)


def _protocol(epochs: int, name: str = "digits", synthetic: bool = False) -> dict[str, object]:
    return {"name": name, "recipe": {"epochs": epochs}}


def _data(synthetic: bool, number: int) -> dict[str, object]:
    source = "synthetic" if synthetic else "digits"
    return {"name": "digits", "source": source, "digest": f"{number:016x}"}


def _fingerprint(epochs: int, number: int) -> str:
    return protocol_fingerprint(_protocol(epochs) | {"data": _data(False, number)})


_NUMBER = next(
    number
    for number in count()
    if _fingerprint(30, number)[0] == _fingerprint(40, number)[0] == "a"
)
"""Of the data set: the fingerprints of two protocols begin alike, as may happen."""

DIGITS = recorded().tags[Tag.PROTOCOL_FINGERPRINT]
LONGER = recorded(epochs=40).tags[Tag.PROTOCOL_FINGERPRINT]  # DIGITS with other epochs
RANDOM = recorded(protocol="random", synthetic=True).tags[Tag.PROTOCOL_FINGERPRINT]
