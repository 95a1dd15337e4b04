"""The checks that a mixer must pass before anything that it computes is ranked.

``check_mixers(model)`` finds every mixer of a model, ``check_mixer(mixer)`` judges one. They
work on a copy, on the CPU, in float32, in well under a second: the mixer itself, its
statistics and gradients, and all random numbers stay as they are.

A check is a function with the decorator ``@check("name")``; a new one needs nothing else.
It must refuse no sound design:

- All parameters are moved a little first, so that what starts at zero (an output projection,
  a bias table, a scale) hides nothing, neither a gradient nor a fault.
- A dead parameter, or no mixing, may be the grid's fault: one token has nobody to hear of, and
  a wide step leaves a small grid. Then the same mixer, built for 8 x 8 tokens, is asked.
- Grids of more than 400 tokens are judged on a smaller one. On their own, one image runs.
- In evaluation no image may depend on another. In training only BatchNorm may mix them.

Axis letters: B batch, N tokens (prefix first), C channels.
"""

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from math import ceil
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixers.core.contract import TokenGrid, TokenMixer
from mixers.core.errors import BrokenCodeError, Refusal
from mixers.core.registry import MIXERS, broken_code, files_of

_IMAGES: Final = 2
_MOST_TOKENS: Final = 400
_ROOMY: Final = 8
"""Tokens a side of a grid on which every mixer can show what it does."""
_NOISE: Final = 0.02
"""Standard deviation of what is added to parameters: that of initial weights."""
_SAME: Final = 1e-4
"""Of the largest output: two orders of the same float32 sums are nearer, other sums are not."""
_REACHED: Final = 1e-5
"""Of the largest output: a smaller change is the rounding of a Fourier transform, say."""
_ATTEMPTS: Final = 3
"""With other tokens each time: a router sends nothing to some of its experts by chance."""


class NonconformingMixer(Refusal):
    """A mixer fails a check: the message says which mixer, which check, what and why."""


class Subject:
    """A mixer that may be tampered with, its tokens, and its outputs, each computed once."""

    def __init__(self, mixer: TokenMixer, grid: TokenGrid, name: str) -> None:
        self.mixer, self.grid, self.name = mixer, grid, name
        self.x = torch.randn(_IMAGES, grid.tokens, mixer.dim)
        self.overwrites = False  # the tokens that it is given

    @cached_property
    def initial(self) -> Tensor:
        """(1, N', C): of the first image, with the weights that the mixer was built with."""
        given = self.x[:1].clone()
        y = self.run(given)
        self.overwrites = not torch.equal(given, self.x[:1])
        return y

    @cached_property
    def alone(self) -> Tensor:
        """(1, N', C): of the first image, with weights that were moved a little."""
        before = [parameter.detach().clone() for parameter in self.mixer.parameters()]
        with torch.no_grad():
            for parameter in self.mixer.parameters():
                parameter.add_(_NOISE * torch.randn_like(parameter))
        moved = self.run(self.x[:1])
        if not moved.isfinite().all() and self.initial.isfinite().all():
            with torch.no_grad():  # such as the root of what started at zero
                for parameter, old in zip(self.mixer.parameters(), before, strict=True):
                    parameter.copy_(old)
            moved = self.run(self.x[:1])
        return moved

    @cached_property
    def trained(self) -> "_Trained":
        """A training step, seen from the first of the images."""
        _ = self.alone  # moves the weights
        leaf = self.x.clone().requires_grad_()
        y = self.run(leaf.clone(), training=True)
        parameters = {n: p for n, p in self.mixer.named_parameters() if p.requires_grad}
        if not y.requires_grad:
            return _Trained(y, None, dict.fromkeys(parameters))
        score = (y[0] * torch.randn_like(y[0])).sum()
        wanted = [leaf, *parameters.values()]
        of_input, *others = torch.autograd.grad(score, wanted, allow_unused=True)
        return _Trained(y.detach(), of_input, dict(zip(parameters, others, strict=True)))

    def run(self, x: Tensor, *, training: bool = False, grid: TokenGrid | None = None) -> Tensor:
        """The mixer's output for ``x``; gradients are recorded where ``x`` requires them.

        Raises:
            BrokenCodeError: its code raised; the line says what and where.
        """
        self.mixer.train(training)
        try:
            with torch.set_grad_enabled(x.requires_grad), torch.autocast("cpu", enabled=False):
                return self.mixer(x, grid or self.grid)
        except (Exception, SystemExit) as error:
            what = f"mixer {self.name!r}, on {grid or self.grid} tokens: its forward"
            raise broken_code(what, error, files_of(type(self.mixer))) from error

    def shape(self, samples: int, grid: TokenGrid) -> tuple[int, int, int]:
        """Of an output."""
        stride = self.mixer.stride
        rows, columns = ceil(grid.height / stride), ceil(grid.width / stride)
        return samples, grid.prefix + rows * columns, self.mixer.dim

    def refuse(self, check: str, expected: str, found: str) -> NonconformingMixer:
        return NonconformingMixer(
            f"mixer {self.name!r} ({self.mixer.dim} channels, {self.grid} tokens) fails the check "
            f"'{check}': expected {expected}, found {found}."
        )

    def rebuilt(self, grid: TokenGrid) -> "Subject | None":
        """The same mixer as the registry builds it for ``grid``; None if that is not possible."""
        built_as = self.mixer.built_as
        if built_as is None:
            return None
        numbers = (self.mixer.dim, grid, self.mixer.num_heads)
        try:
            mixer = MIXERS.build(built_as, *numbers, **self.mixer.given)
            other = Subject(mixer, grid, self.name)
            _ = other.alone
        except ValueError:
            return None
        return other

    @cached_property
    def roomy(self) -> "list[Subject]":
        """For a second opinion: with room on the grid, and with a prefix where it takes one."""
        prefixes = {self.grid.prefix, max(self.grid.prefix, int(self.mixer.mixes_prefix))}
        grids = [TokenGrid(_ROOMY, _ROOMY, prefix) for prefix in sorted(prefixes)]
        rebuilt = [self.rebuilt(grid) for grid in grids if grid != self.grid]
        return [subject for subject in rebuilt if subject is not None]


class _Trained:
    def __init__(
        self, y: Tensor, input_gradient: Tensor | None, gradients: dict[str, Tensor | None]
    ) -> None:
        self.y, self.input_gradient, self.gradients = y, input_gradient, gradients


Check = Callable[[str, Subject], None]
CHECKS: Final[dict[str, Check]] = {}
"""Name -> check, in the order in which they are made: each may rely on those before it."""
_ON_ITS_OWN_GRID: Final[set[str]] = set()


def check(name: str, *, on_its_own_grid: bool = False) -> Callable[[Check], Check]:
    """The decorator of a check, which gets its name and a subject, and raises or returns.

    Args:
        on_its_own_grid: it is cheap enough for any number of tokens.
    """

    def decorate(function: Check) -> Check:
        CHECKS[name] = function
        if on_its_own_grid:
            _ON_ITS_OWN_GRID.add(name)
        return function

    return decorate


def check_mixers(model: nn.Module) -> None:
    """Check each distinct mixer of ``model``: identical ones once.

    Raises:
        NonconformingMixer: one fails a check.
        BrokenCodeError: the code of one raised.
    """
    checked: list[Any] = []
    for mixer in _outermost(model):
        shapes = {name: tensor.shape for name, tensor in mixer.state_dict().items()}
        numbers = (mixer.dim, mixer.grid, mixer.num_heads)
        identity = (type(mixer), mixer.built_as, mixer.given, numbers, shapes)
        if identity not in checked:
            checked.append(identity)
            check_mixer(mixer)


def check_mixer(mixer: TokenMixer, name: str = "", *, seed: int = 0) -> None:
    """Make all checks on a copy of ``mixer``, on the grid that it was built for.

    Args:
        name: what to call it; by default what it is registered as.

    Raises:
        NonconformingMixer: it fails a check.
        BrokenCodeError: its code raised.
    """
    name = name or (mixer.built_as.name if mixer.built_as else type(mixer).__name__)
    with _own_random_numbers(seed):
        large = mixer.grid.tokens > _MOST_TOKENS
        own = Subject(_copied(mixer, name, share_weights=large), mixer.grid, name)
        small = own.rebuilt(_smaller(own.grid)) if large else own
        if small is None:
            small = Subject(_copied(mixer, name), mixer.grid, name)
        for title, function in CHECKS.items():
            function(title, own if title in _ON_ITS_OWN_GRID else small)


def _copied(mixer: TokenMixer, name: str, share_weights: bool = False) -> TokenMixer:
    """Args: share_weights: they are not changed, so that copying gigabytes is saved."""
    weights = list(mixer.parameters())
    share_weights &= all(w.device.type == "cpu" and w.dtype is torch.float32 for w in weights)
    try:
        known = {id(weight): weight for weight in weights if share_weights}
        return copy.deepcopy(mixer, known).cpu().float()
    except Exception as error:  # the moving average of a run is a copy, too
        what = f"mixer {name!r} cannot be copied: it"
        raise broken_code(what, error, files_of(type(mixer))) from error


@check("output shape", on_its_own_grid=True)
def _shape(title: str, subject: Subject) -> None:
    y: Any = subject.initial
    expected = subject.shape(1, subject.grid)
    if not isinstance(y, Tensor):
        raise subject.refuse(title, f"a tensor of shape {expected}", f"a {type(y).__name__}")
    if y.shape != expected:
        raise subject.refuse(title, f"{expected} of (1, N, C)", f"{tuple(y.shape)}")


@check("output type", on_its_own_grid=True)
def _type(title: str, subject: Subject) -> None:
    if subject.initial.dtype != subject.x.dtype:
        given, found = subject.x.dtype, subject.initial.dtype
        raise subject.refuse(title, f"{given}, as the tokens are", f"{found}")


@check("finite output", on_its_own_grid=True)
def _finite(title: str, subject: Subject) -> None:
    wrong = int((~subject.initial.isfinite()).sum())
    if wrong:
        found = f"{wrong:,} of {subject.initial.numel():,} NaN or infinite"
        raise subject.refuse(title, "finite numbers", found)


@check("untouched input", on_its_own_grid=True)
def _untouched(title: str, subject: Subject) -> None:
    if subject.overwrites:
        raise subject.refuse(title, "the tokens it is given as they were", "them overwritten")


@check("same output twice")
def _deterministic(title: str, subject: Subject) -> None:
    difference = _difference(subject.alone, subject.run(subject.x[:1]))
    if difference > _SAME:
        raise subject.refuse(
            title, "one output for one input in evaluation", f"two, {difference:.1%} apart"
        )


@check("batch independence")
def _batch(title: str, subject: Subject) -> None:
    together = subject.run(subject.x)
    shape = subject.shape(_IMAGES, subject.grid)
    if together.shape != shape:
        raise subject.refuse(title, f"the shape {shape}", f"{tuple(together.shape)}")
    difference = _difference(subject.alone, together[:1])
    if difference > _SAME:
        difference = _in_float64(subject, difference)
    if difference > _SAME:
        raise subject.refuse(
            title,
            f"an image's output to be the same alone and among {_IMAGES} in evaluation",
            f"a difference of {difference:.1%}",
        )


@check("batch independence in training")
def _batch_in_training(title: str, subject: Subject) -> None:
    batch_norm = any(isinstance(module, _BatchNorm) for module in subject.mixer.modules())
    if batch_norm or subject.mixer.batch_statistics:
        return
    expected = "an image's output not to depend on others of its batch (only BatchNorm may)"
    trained = subject.trained
    if trained.input_gradient is not None and trained.input_gradient[1:].any():
        raise subject.refuse(title, expected, "a gradient from one image to another")
    # What no gradient shows, such as detached statistics, and dropout would hide.
    together = trained.y[:1]
    if _difference(subject.alone, together) <= _SAME:
        return
    first, second = (subject.run(subject.x[:1], training=True) for _ in range(2))
    if _difference(first, second) > _SAME:
        return  # it draws random numbers
    difference = _difference(first, together)
    if difference > _SAME:
        raise subject.refuse(title, expected, f"a difference of {difference:.1%} to it alone")


@check("gradients")
def _gradients(title: str, subject: Subject) -> None:
    expected = "a gradient for every parameter"
    broken = [n for n, g in subject.trained.gradients.items() if g is not None and _is_wild(g)]
    if broken:
        raise subject.refuse(title, expected, f"NaN or infinite ones for {_listed(broken)}")
    silent = _silent(subject)
    for attempt in range(1, _ATTEMPTS):
        if silent:
            other = Subject(subject.mixer, subject.grid, subject.name)
            other.x = other.x * 2.0**attempt
            silent &= _silent(other)
    if silent:
        for other in subject.roomy:
            silent &= _silent(other)
    if silent:
        names = [name for name in subject.trained.gradients if name in silent]
        raise subject.refuse(title, expected, f"none for {_listed(names)}")


@check("mixing")
def _mixing(title: str, subject: Subject) -> None:
    if not subject.mixer.mixes_tokens:
        return
    opinions = [_reached(subject)]
    if opinions[0]:
        return
    side = min(subject.grid.height, subject.grid.width)
    if side < _ROOMY:
        opinions += map(_reached, subject.roomy)
    if any(opinions) or opinions == [None]:
        return
    raise subject.refuse(
        title,
        "tokens to hear of others (if none should: mixes_tokens = False)",
        "that no token changes when half of the others do",
    )


@check("class token")
def _class_token(title: str, subject: Subject) -> None:
    prefix = subject.grid.prefix
    if not (prefix and subject.mixer.mixes_prefix):
        return
    x = subject.x[:1].clone()
    x[:, prefix:] = torch.randn_like(x[:, prefix:])
    changed = subject.run(x)
    for token in range(prefix):
        before, after = subject.alone[:, token], changed[:, token]
        if not _moved(before, after, subject.alone):
            zero = "" if before.any() else ": it is always zero"
            raise subject.refuse(
                title,
                f"prefix token {token} to hear of the image, as mixes_prefix = True says",
                f"that it does not{zero}",
            )


@check("any grid")
def _any_grid(title: str, subject: Subject) -> None:
    built_as, mixer = subject.mixer.built_as, subject.mixer
    options = built_as.options if built_as else {}
    if not mixer.any_grid or any(options.get(option) for option in mixer.grid_options):
        return
    grid = TokenGrid(7, 10, subject.grid.prefix)
    if grid == subject.grid:
        grid = TokenGrid(10, 7, subject.grid.prefix)
    expected = f"finite output on {grid} tokens too, as any_grid = True says"
    try:
        y = subject.run(torch.randn(1, grid.tokens, mixer.dim), grid=grid)
    except BrokenCodeError as error:
        raise subject.refuse(title, expected, f"that {error}") from error
    shape = subject.shape(1, grid)
    if y.shape != shape:
        raise subject.refuse(title, expected, f"the shape {tuple(y.shape)} for {shape}")
    if not y.isfinite().all():
        raise subject.refuse(title, expected, "NaN or infinite ones")


def _difference(expected: Tensor, actual: Tensor) -> float:
    """The largest, as a share of the largest value."""
    scale = float(expected.abs().max())
    return float((expected - actual).abs().max()) / scale if scale else float(actual.abs().max())


def _moved(before: Tensor, after: Tensor, scale: Tensor) -> bool:
    return bool((before - after).abs().max() > _REACHED * scale.abs().max())


def _in_float64(subject: Subject, difference: float) -> float:
    """How far an image alone and among others are apart in float64, if the mixer runs in it.

    Rounding turns some of a hundred thousand hard decisions (signs, ranks) in float32.
    """
    precise = Subject(copy.deepcopy(subject.mixer).double(), subject.grid, subject.name)
    x = subject.x.double()
    try:
        return _difference(precise.run(x[:1]), precise.run(x)[:1])
    except BrokenCodeError:
        return difference


def _silent(subject: Subject) -> set[str]:
    """The parameters whose gradient is missing or zero."""
    gradients = subject.trained.gradients
    return {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}


def _is_wild(gradient: Tensor) -> bool:
    return not bool(gradient.isfinite().all())


def _reached(subject: Subject) -> bool | None:
    """Does a token change when half of the others do? None where there is no other."""
    grid, mixer = subject.grid, subject.mixer
    positions = grid.height * grid.width
    changed = grid.prefix + torch.randperm(positions)[: ceil(positions / 2)]
    kept = torch.ones(grid.tokens, dtype=torch.bool)
    kept[changed] = False
    x = subject.x[:1].clone()
    x[:, changed] = torch.randn_like(x[:, changed])
    # Of a mixer that halves the grid, the tokens at even rows and columns have an output.
    image = kept[grid.prefix :].unflatten(0, grid[:2])[:: mixer.stride, :: mixer.stride]
    kept = torch.cat([kept[: grid.prefix], image.flatten()])
    if not kept.any():
        return None
    before, after = subject.alone, subject.run(x)
    return _moved(before[:, kept], after[:, kept], before)


def _smaller(grid: TokenGrid) -> TokenGrid:
    while grid.tokens > _MOST_TOKENS:
        grid = TokenGrid(ceil(grid.height / 2), ceil(grid.width / 2), grid.prefix)
    return grid


def _outermost(module: nn.Module) -> Iterator[TokenMixer]:
    """Its mixers, without those that are a part of another."""
    for child in module.children():
        if isinstance(child, TokenMixer):
            yield child
        else:
            yield from _outermost(child)


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Random numbers of ``seed``; afterwards everybody's go on as if there had been none."""
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            if numpy:
                numpy.random.set_state(before[1])
