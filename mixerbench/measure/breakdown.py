"""Where the time and the memory of a training step go: by part, inside the blocks, by operator.

Parts are timed where they run, in whole training steps, so that each finds its input in the
caches and the order of a real step, and all of them add up to it. Hooks on the modules say which
part the forward pass is in. For the backward pass, autograd numbers its nodes as the forward
pass makes them and runs them in falling order (a node of a higher number never waits for one of
a lower), hence a stamp where the part of a node is not that of the node before is enough.
"""

import os
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import median
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType, _get_sequence_nr
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.autograd.profiler import profile as operator_profiler
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from mixerbench.devices import autocast
from mixerbench.measure._state import cross_entropy, images_shape, measuring, without_a_trace
from mixerbench.measure.flops import MacCount, count_macs
from mixerbench.measure.memory import MIB
from mixerbench.measure.model_costs import OWN, ModuleRow, count_parameters, module_rows, parts
from mixerbench.measure.peak import peak_flops, training_flops
from mixerbench.measure.speed import Spread
from mixerbench.models.backbone import Backbone
from mixerbench.models.parts import ChannelMixer
from mixers import TokenMixer

OTHERS: Final = "(others)"
"""The row of the operators that are not among the slowest."""
OPERATORS: Final = 10
"""Rows of operators beside ``OTHERS``."""

_NORMS: Final = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
_ROLES: Final = ("mixer", "channel mixer", "norms", "other", OWN)


@dataclass(frozen=True)
class PartCost(ModuleRow):
    """What a part takes of a training step of the batch."""

    forward_ms: float
    backward_ms: float
    time_share: float
    """Of the step's forward and backward time: over all parts, 1."""
    activations_mib: float
    """Kept for the backward pass, counted with the part that kept it first. No weights, but
    their copies in half precision."""
    peak_share: float
    """Of the device's measured peak, by ``training_flops``."""


@dataclass(frozen=True)
class OperatorCost:
    """What all calls of an operator take of a training step, without those it calls itself."""

    name: str
    calls: int
    ms: float
    time_share: float  # of the time inside operators: over all rows, 1


@dataclass(frozen=True)
class Breakdown:
    """A training step (forward, cross-entropy, backward) of a batch and what it consists of."""

    step_ms: Spread
    peak_gflops: float  # 1e9 FLOP/s of a large matrix product
    mfu: float  # share of it that the model's own FLOPs reach
    parts: tuple[PartCost, ...]
    """They add up to the step; the last is the model's own code, and the loss."""
    blocks: int
    inside_blocks: tuple[PartCost, ...]
    """Summed over all blocks by what it is there (``name``) and its class (``kind``)."""
    operators: tuple[OperatorCost, ...]

    @property
    def total(self) -> PartCost:
        """All parts together."""
        return _sum("total", "", self.parts, self.mfu)


def break_down(
    model: nn.Module,
    image_size: int | tuple[int, int],
    *,
    num_classes: int,
    batch_size: int,
    seconds: float,
    precision: str,
    device: torch.device | str,
    in_chans: int = 3,
    macs: MacCount | None = None,
) -> Breakdown:
    """Time a training step of ``model`` on ``device``, and each part of the model in it.

    Plain steps give the time of a step, and steps with time stamps in them the share of each
    part; the two alternate. Medians are reported. Gradients, buffers, modes and random numbers are
    left as they were.

    Args:
        seconds: for these steps, of which there are at least two; one more step comes before
            them and one after.
        macs: of the model, where they are known; else they are counted.

    Raises:
        CountingError: as ``count_macs``.
    """
    macs = macs or count_macs(model, image_size, in_chans)
    layout = _Layout(model)
    with measuring(model, training=True, device=device) as target, without_a_trace(model):
        # Not zeros: GPUs multiply them with less power, hence at higher clocks.
        draws = torch.Generator(target).manual_seed(0)
        shape = images_shape(batch_size, in_chans, image_size)
        step = _TrainingStep(
            model,
            torch.randn(shape, device=target, generator=draws),
            # Soft targets, as mixup makes them.
            torch.full((batch_size, num_classes), 1 / num_classes, device=target),
            precision,
        )
        kept = _kept_bytes(step, layout.modules)  # first: it warms up, too
        times, shares = _alternate(step, layout.modules, seconds)
        operators = _by_operator(step)
        peak = peak_flops(target, precision)
    step_ms = Spread.of([1e3 * duration for duration in times])

    def cost(row: ModuleRow, paths: Sequence[str]) -> PartCost:
        forward, backward = (
            sum(shares.get((path, phase), 0.0) for path in paths) for phase in _PHASES
        )
        ms = (forward + backward) * step_ms.median
        flops = training_flops(row.gmacs * 1e9 * batch_size)
        return PartCost(
            row.name,
            row.kind,
            row.parameters,
            row.gmacs,
            forward_ms=forward * step_ms.median,
            backward_ms=backward * step_ms.median,
            time_share=forward + backward,
            activations_mib=sum(kept[path] for path in paths) / MIB,
            peak_share=flops / (1e-3 * ms) / peak if ms > 0 else 0.0,
        )

    rows = {row.name: row for row in module_rows(model, macs)}
    own = rows.pop(OWN, ModuleRow(OWN, type(model).__name__, 0, 0.0))
    inside = _inside_blocks(model, layout, macs)
    return Breakdown(
        step_ms=step_ms,
        peak_gflops=peak / 1e9,
        mfu=training_flops(macs.total * batch_size) / (1e-3 * step_ms.median) / peak,
        parts=(
            *(cost(row, [row.name, *layout.blocks.get(row.name, ())]) for row in rows.values()),
            cost(own, [_MODEL]),
        ),
        blocks=len(layout.blocks),
        inside_blocks=tuple(cost(row, paths) for row, paths in inside),
        operators=operators,
    )


# --- which modules are timed --------------------------------------------------------------------

_MODEL: Final = ""  # the path of the model itself, and of the loss


class _Layout:
    """The modules that are timed: the model's parts, and the parts of its blocks."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = parts(model)
        self.blocks: dict[str, dict[str, nn.Module]] = {}
        """Path of a block -> path of what is in it, from the model -> the module."""
        blocks = set(model.blocks_in_order()) if isinstance(model, Backbone) else set()
        for path, part in tuple(self.modules.items()):
            if part in blocks:
                inside = {f"{path}.{name}": module for name, module in _inside(part).items()}
                if inside:
                    self.blocks[path] = inside
                    self.modules |= inside


def _inside(block: nn.Module) -> dict[str, nn.Module]:
    """``parts`` of a block; what is wrapped around a mixer is opened until it is found."""
    found: dict[str, nn.Module] = {}
    for name, part in parts(block).items():
        is_mixer = isinstance(part, TokenMixer | ChannelMixer)
        if not is_mixer and any(isinstance(m, TokenMixer | ChannelMixer) for m in part.modules()):
            found |= {f"{name}.{path}": module for path, module in _inside(part).items()}
        else:
            found[name] = part
    return found


def _role(module: nn.Module) -> str:
    if isinstance(module, TokenMixer):
        return "mixer"
    if isinstance(module, ChannelMixer):
        return "channel mixer"
    return "norms" if isinstance(module, _NORMS) else "other"


def _inside_blocks(
    model: nn.Module, layout: _Layout, macs: MacCount
) -> list[tuple[ModuleRow, list[str]]]:
    """Each kind of module inside the blocks, summed, and where it is."""
    parameters: Counter[tuple[str, str]] = Counter()
    multiplies: Counter[tuple[str, str]] = Counter()
    paths: dict[tuple[str, str], list[str]] = {}
    for block, inside in layout.blocks.items():
        module = model.get_submodule(block)
        whole = (OWN, type(module).__name__)
        parameters[whole] += count_parameters(module)
        multiplies[whole] += macs.by_module[block]
        paths.setdefault(whole, []).append(block)
        for path, part in inside.items():
            key = (_role(part), type(part).__name__)
            paths.setdefault(key, []).append(path)
            for counter, amount in (
                (parameters, count_parameters(part)),
                (multiplies, macs.by_module[path]),
            ):
                counter[key] += amount
                counter[whole] -= amount
    return [
        (ModuleRow(*key, parameters[key], multiplies[key] / 1e9), paths[key])
        for key in sorted(paths, key=lambda key: _ROLES.index(key[0]))
    ]


def _sum(name: str, kind: str, rows: Sequence[PartCost], peak_share: float) -> PartCost:
    return PartCost(
        name,
        kind,
        sum(row.parameters for row in rows),
        sum(row.gmacs for row in rows),
        forward_ms=sum(row.forward_ms for row in rows),
        backward_ms=sum(row.backward_ms for row in rows),
        time_share=sum(row.time_share for row in rows),
        activations_mib=sum(row.activations_mib for row in rows),
        peak_share=peak_share,
    )


# --- the step -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TrainingStep:
    model: nn.Module
    images: Tensor
    targets: Tensor
    precision: str

    def loss(self) -> Tensor:
        with autocast(self.images.device, self.precision):
            return cross_entropy(self.model(self.images), self.targets)

    def __call__(self) -> None:
        self.loss().backward()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients, so that the next step makes new ones, as in training."""
        self.model.zero_grad(set_to_none=True)


class _Following:
    """Calls ``on_change`` with the path of each module that begins to run; a context."""

    def __init__(self, modules: Mapping[str, nn.Module], on_change: Callable[[str], None]) -> None:
        self._modules = modules
        self._on_change = on_change
        self._running = [_MODEL]
        self._handles: list[RemovableHandle] = []

    def hand_over(self, path: str) -> None:
        """``path`` runs, though none of its modules was called: its backward pass."""
        self._running = [path]
        self._on_change(path)

    def __enter__(self) -> "_Following":
        for path, module in self._modules.items():
            self._handles += self._follow(path, module)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _follow(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        def begins(*_: object) -> None:
            self._running.append(path)
            self._on_change(path)

        def ends(*_: object) -> None:
            self._running.pop()
            self._on_change(self._running[-1])

        yield module.register_forward_pre_hook(begins)
        # Also when it raises: checkpointing leaves a block like that once it has what it needs.
        yield module.register_forward_hook(ends, always_call=True)


# --- memory -------------------------------------------------------------------------------------


def _kept_bytes(step: _TrainingStep, modules: Mapping[str, nn.Module]) -> Counter[str]:
    """Path -> bytes of the storages that a forward pass keeps for the backward pass."""
    weights = chain(step.model.parameters(), step.model.buffers())
    known = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: Counter[str] = Counter()
    owner = _MODEL

    def heard(path: str) -> None:
        nonlocal owner
        owner = path

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:  # the graph holds it: no other gets its address
            known.add(storage.data_ptr())
            kept[owner] += storage.nbytes()
        return tensor

    with _Following(modules, heard), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss()
    loss.backward()
    step.forget()
    return kept


# --- time ---------------------------------------------------------------------------------------

_Phase = Literal["forward", "backward"]
_PHASES: Final[tuple[_Phase, ...]] = ("forward", "backward")
_Shares = dict[tuple[str, _Phase], float]


class _Clock:
    """Stamps of what the device has reached; on a GPU they do not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"

    def wait(self) -> None:
        if self._on_cuda:
            torch.cuda.synchronize()

    def now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two stamps, once the device has reached both."""
        return begin.elapsed_time(end) / 1e3 if self._on_cuda else end - begin


def _alternate(
    step: _TrainingStep, modules: Mapping[str, nn.Module], seconds: float
) -> tuple[list[float], _Shares]:
    """Seconds of each plain step; the share of each path and phase in the stamped ones."""
    clock = _Clock(step.images.device)
    plain: list[float] = []
    stamped: list[_Shares] = []
    begin, spent = time.perf_counter(), 0.0
    while not plain or spent * (1 + 1 / len(plain)) < seconds:
        plain.append(_plain_seconds(step, clock))
        durations = _stamped_seconds(step, modules, clock)
        total = sum(durations.values())
        stamped.append({key: duration / total for key, duration in durations.items()})
        spent = time.perf_counter() - begin
    keys = dict.fromkeys(chain.from_iterable(stamped))
    medians = {key: median(shares.get(key, 0.0) for shares in stamped) for key in keys}
    total = sum(medians.values())  # nearly 1
    return plain, {key: share / total for key, share in medians.items()}


def _plain_seconds(step: _TrainingStep, clock: _Clock) -> float:
    clock.wait()
    begin = clock.now()
    step.loss().backward()
    end = clock.now()
    clock.wait()
    step.forget()
    return clock.seconds(begin, end)


def _stamped_seconds(
    step: _TrainingStep, modules: Mapping[str, nn.Module], clock: _Clock
) -> _Shares:
    """Seconds of each path, without what runs in modules below it, by phase."""
    phase: _Phase = "forward"
    stamps: list[tuple[tuple[str, _Phase], Any]] = []
    births: list[tuple[int, str]] = []  # from this number on, nodes are that path's

    def heard(path: str) -> None:
        births.append((_get_sequence_nr(), path))
        stamps.append(((path, phase), clock.now()))

    durations: _Shares = {}

    def add_up() -> None:
        clock.wait()
        for (key, begin), (_, end) in pairwise(stamps):
            durations[key] = durations.get(key, 0.0) + clock.seconds(begin, end)
        stamps.clear()

    with _Following(modules, heard) as following:
        clock.wait()
        following.hand_over(_MODEL)
        loss = step.loss()
        heard(_MODEL)  # the end
        add_up()
        for path, node in _first_nodes(loss, births):
            node.register_prehook(lambda _, path=path: following.hand_over(path))
        phase = "backward"
        following.hand_over(_MODEL)
        loss.backward()
        heard(_MODEL)
        add_up()
    step.forget()
    return durations


def _first_nodes(loss: Tensor, births: Sequence[tuple[int, str]]) -> list[tuple[str, Node]]:
    """The nodes at which the backward pass goes over to another path."""
    numbers = [number for number, _ in births]
    assert loss.grad_fn is not None
    found, ahead = {loss.grad_fn}, [loss.grad_fn]
    while ahead:
        fresh = {node for node, _ in ahead.pop().next_functions if node is not None} - found
        found |= fresh
        ahead += fresh
    # Nodes that add up the gradients of weights are not in the order: they run at once.
    numbered = [(node._sequence_nr(), node) for node in found]
    made = [pair for pair in numbered if pair[0] < _get_sequence_nr()]
    first: list[tuple[str, Node]] = []
    for number, node in sorted(made, key=lambda pair: -pair[0]):
        path = births[bisect_right(numbers, number) - 1][1]
        if not first or first[-1][0] != path:
            first.append((path, node))
    return first


def _by_operator(step: _TrainingStep) -> tuple[OperatorCost, ...]:
    """The operators of one step, the slowest first, and the others in one row."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports on stderr that no GPU is there
    on_cuda = step.images.device.type == "cuda"
    # Not torch.profiler, which takes seconds to begin.
    with operator_profiler(use_device="cuda" if on_cuda else None) as profiler:
        step()
        _Clock(step.images.device).wait()
    found = [
        (
            event.key,
            event.count,
            event.self_device_time_total if on_cuda else event.self_cpu_time_total,
        )
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU  # kernels count with the operators they are of
    ]
    found.sort(key=lambda row: -row[2])
    # What autograd does around the operators is among the others.
    rows = [row for row in found if "autograd::" not in row[0]][:OPERATORS]
    total = sum(microseconds for *_, microseconds in found)
    calls = sum(count for _, count, _ in found) - sum(count for _, count, _ in rows)
    rows.append((OTHERS, calls, total - sum(microseconds for *_, microseconds in rows)))
    return tuple(
        OperatorCost(name.removeprefix("aten::"), count, microseconds / 1e3, microseconds / total)
        for name, count, microseconds in rows
    )
