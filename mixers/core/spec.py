"""What a registered class says of itself, whoever reads it: source text or the loaded class.

No torch here.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mixers.core.errors import Refusal
from mixers.core.names import nearest

MISSING: Any = object()
"""The default of an option that has none."""

GIVEN: Mapping[str, str] = {"place": "Place", "stride": "Stride"}
"""Keyword-only parameters that a backbone fills, and their types: no options."""

Family = Literal[
    "attention", "convolution", "mlp", "shift", "fourier", "recurrence", "pooling", "none", "other"
]
"""What kind of operation mixes the tokens."""


@dataclass(frozen=True)
class Option:
    """One keyword-only argument of a registered class."""

    name: str
    annotation: str
    default: Any

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that ``Literal`` in the annotation allows; empty without a ``Literal``."""
        return _choices(ast.parse(self.annotation, mode="eval").body) or ()


@dataclass(frozen=True)
class Spec:
    """One registered class.

    Its facts are the class attributes that are literals, its options the keyword-only arguments
    of ``__init__``; both are inherited as Python inherits them. ``given`` names the arguments
    that a backbone fills if the class asks for them: ``place`` and ``stride``.
    """

    kind: str
    name: str
    class_name: str
    summary: str
    facts: Mapping[str, Any]
    options: tuple[Option, ...]
    given: tuple[str, ...]
    path: Path = field(compare=False)

    def __post_init__(self) -> None:
        families = get_args(Family)
        if self.facts.get("family", "other") not in families:
            raise Refusal(
                f"{self.kind} {self.name!r}: family is {_listed(families)}, "
                f"not {self.facts['family']!r}."
            )

    @property
    def paper(self) -> str:
        return str(self.facts.get("paper", ""))

    @property
    def formula(self) -> str:
        return str(self.facts.get("formula", ""))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the class does not have, misses, or cannot have that value.

        Raises:
            Refusal: which option, and what is expected.
        """
        known = {option.name: option for option in self.options}
        for name in options:
            if name not in known:
                raise Refusal(
                    f"{self.kind} {self.name!r} has no option {name!r}. "
                    + (nearest(name, known) if known else "It has none.")
                )
        for name, option in known.items():
            if name not in options:
                if option.default is MISSING:
                    raise Refusal(
                        f"{self.kind} {self.name!r} has no default for {name!r}: give one."
                    )
            elif option.choices and options[name] not in option.choices:
                raise Refusal(
                    f"{self.kind} {self.name!r}: {name} is {_listed(option.choices)}, "
                    f"not {options[name]!r}."
                )


def split_parameters(
    parameters: Mapping[str, tuple[str, Any]],
) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    """Options and given arguments, of keyword-only parameters: name -> (annotation, default)."""
    given = tuple(
        name
        for name, (annotation, _) in parameters.items()
        if GIVEN.get(name) == annotation.rpartition(".")[2]
    )
    options = tuple(Option(n, *rest) for n, rest in parameters.items() if n not in given)
    return options, given


def summary_of(docstring: str | None) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


def last_name(node: ast.expr) -> str:
    """``b`` of ``a.b`` and of ``b``; empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _choices(node: ast.expr) -> tuple[Any, ...] | None:
    """The values of ``Literal[...]``, ``Literal[...] | None``; None if any value may come."""
    if isinstance(node, ast.Constant) and node.value is None:
        return (None,)
    if isinstance(node, ast.BinOp):
        sides = _choices(node.left), _choices(node.right)
        return None if None in sides else tuple(value for side in sides for value in side or ())
    if isinstance(node, ast.Subscript) and last_name(node.value) == "Optional":
        inner = _choices(node.slice)
        return None if inner is None else (*inner, None)
    if isinstance(node, ast.Subscript) and last_name(node.value) == "Literal":
        values = ast.literal_eval(node.slice)
        return values if isinstance(values, tuple) else (values,)
    return None


def _listed(values: tuple[Any, ...]) -> str:
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}" if first else last
