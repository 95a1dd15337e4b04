"""What a loaded class says of itself: the counterpart of ``mixers.core.source``."""

import inspect
import sys
from abc import ABC
from pathlib import Path
from typing import Any

from mixers.core.errors import Refusal
from mixers.core.spec import MISSING, Spec, split_parameters, summary_of

_FOREIGN = ("abc", "builtins", "timm", "torch", "typing")


def spec_of(kind: str, name: str, cls: type) -> Spec:
    """The facts and options of ``cls``.

    Raises:
        Refusal: an option has no type, or a fact has a value that it cannot have.
    """
    line = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in _FOREIGN]
    facts: dict[str, Any] = {}
    for base in reversed(line):
        public = {key: value for key, value in vars(base).items() if not key.startswith("_")}
        facts |= {key: value for key, value in public.items() if _is_plain(value)}
    documented = [base.__doc__ for base in line if base.__doc__ and ABC not in base.__bases__]
    options, given = split_parameters(
        {parameter.name: (_annotation(kind, name, parameter), _default(parameter))
         for parameter in inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
         if parameter.kind is parameter.KEYWORD_ONLY}
    )  # fmt: skip
    return Spec(
        kind=kind,
        name=name,
        class_name=cls.__name__,
        summary=summary_of(inspect.cleandoc(documented[0]) if documented else None),
        facts=facts,
        options=options,
        given=given,
        path=Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__),
    )


def _annotation(kind: str, name: str, parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        raise Refusal(f"{kind} {name!r}: option {parameter.name!r} has no type.")
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(parameter: inspect.Parameter) -> Any:
    return MISSING if parameter.default is parameter.empty else parameter.default


def _is_plain(value: Any) -> bool:
    """Is it what a literal in source text can say?"""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (tuple, list, set)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, complex, str, bytes)
