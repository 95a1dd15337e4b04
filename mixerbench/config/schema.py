"""The typed schema of the three groups: model, protocol, run. Standard library only.

A field without a default gets its value from ``configs/``; no value stands in two places. A field's
annotation holds all its rules (see `rules.py`): a new setting is one line here.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional, TypeVar

from mixerbench.config.quantities import (
    BatchSize,
    BelowOne,
    Betas,
    Count,
    Deviations,
    Device,
    Epochs,
    FolderName,
    Images,
    Jobs,
    Means,
    Pixels,
    Positive,
    Processes,
    Ratios,
    Seconds,
    Share,
    Shares,
    Steps,
    Times,
    ZeroOrMore,
    above_zero,
    between,
    choice,
)  # fmt: skip
from mixerbench.config.rules import (
    ADDED_LATER,
    FILLED_IN,
    FREE_IN_SUITE,
    LOCAL,
    MEASURED_WITH,
    NOT_HASHED,
    Bound,
    marked,
)

PROTOCOL_VERSION = 2
"""Part of every fingerprint; raised when the code gives a protocol field another meaning.

2: BatchNorm's running statistics are updated once a step, by the first virtual rank.
"""

PIXELS = ("exact", "same-law", "same-law-opencv")
PRECISIONS = ("fp32", "bf16", "fp16", "fp64")


# --- protocol: what must be identical -------------------------------------------------------


@dataclass
class Data:
    """The images. ``root`` and ``download`` say where they are, not what they are."""

    name: str
    source: str  # the name of a data source
    num_classes: Annotated[Optional[Count], FILLED_IN]  # None: as many as there are class folders
    mean: Means  # per channel, of pixels in 0..1
    std: Deviations
    root: Annotated[Optional[str], NOT_HASHED, LOCAL] = None
    download: Annotated[bool, NOT_HASHED] = False
    exif_orientation: bool = False  # turn an image as its tag says, as viewers do; DeiT does not
    # The share of a split's images that may be unreadable; what replaces them is recorded.
    max_corrupt: Annotated[Share, NOT_HASHED] = 0.001
    train_images: Optional[Images] = None  # how many are generated
    val_images: Optional[Images] = None
    digest: Annotated[Optional[str], FILLED_IN] = None  # of the images' names and labels
    # How training images are resized and turned.
    pixels: Annotated[str, choice(*PIXELS), ADDED_LATER] = "exact"
    # What packing did to the training images.
    packed: Annotated[Optional[str], FILLED_IN, ADDED_LATER] = None
    # The sizes of files, or what generates the images.
    content: Annotated[Optional[str], FILLED_IN, ADDED_LATER] = None


@dataclass
class Batch:
    """One optimizer step sees ``size`` images, as size / micro_batch_size virtual ranks.

    Mixup, stochastic depth and batch statistics belong to a virtual rank, so that the
    hardware that happens to do the work does not change them.
    """

    size: BatchSize
    micro_batch_size: BatchSize


@dataclass
class Optimizer:
    name: str
    lr: Positive
    lr_batch_size: Optional[BatchSize]  # lr is for this batch and scales linearly; None: as it is
    offset_lr_scale: Positive  # of weights that compute a deformable convolution's offsets
    momentum: Optional[BelowOne]  # SGD's; this and the next two: None where the optimizer has none
    betas: Optional[Betas]
    eps: Optional[Positive]
    weight_decay: ZeroOrMore
    clip_grad_norm: Optional[Positive]


@dataclass
class Schedule:
    """Linear warm-up, then a cosine."""

    interval: Annotated[str, choice("epoch", "step")]  # how often the learning rate changes
    warmup_epochs: Annotated[int, between(0, 1_000_000)]
    warmup_lr: ZeroOrMore
    min_lr: ZeroOrMore


@dataclass
class Augmentation:
    # resized: a random part, resized; padded: DeiT's choice for 32 pixels and below
    crop: Annotated[str, choice("resized", "padded")]
    scale: Shares  # of the image's area
    ratio: Ratios  # width / height
    hflip: Share
    color_jitter: Optional[ZeroOrMore]
    auto_augment: Optional[str]  # timm's notation
    interpolation: str
    random_erasing: Share
    random_erasing_mode: str
    random_erasing_count: Times
    repeats: Times  # of an image in a row, in the epoch's order


@dataclass
class Mixup:
    mixup: ZeroOrMore  # alpha of mixup's Beta distribution, 0 for none
    cutmix: ZeroOrMore
    prob: Share
    switch_prob: Share
    mode: Annotated[str, choice("batch")]  # timm's other modes take timm's own CutMix box


@dataclass
class Loss:
    name: Annotated[str, choice("cross_entropy", "binary_cross_entropy")]
    label_smoothing: BelowOne


@dataclass
class Regularization:
    drop_path: BelowOne
    drop_path_schedule: Annotated[str, choice("linear", "constant")]  # over depth
    dropout: BelowOne
    layer_scale: Optional[float]


@dataclass
class Ema:
    decay: Share  # per optimizer step


@dataclass
class Distillation:
    kind: Annotated[str, choice("none", "soft", "hard")]
    teacher: str  # a timm model
    # A file of its weights; None: timm's pretrained ones.
    teacher_checkpoint: Annotated[Optional[str], NOT_HASHED, LOCAL]
    alpha: Share
    tau: Positive
    teacher_digest: Annotated[Optional[str], FILLED_IN] = None  # of that file, or those weights


@dataclass
class Recipe:
    name: Annotated[str, NOT_HASHED, FREE_IN_SUITE]
    epochs: Epochs
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule
    augmentation: Augmentation
    mixup: Mixup
    loss: Loss
    regularization: Regularization
    # The share of a micro-batch in BatchNorm's running statistics.
    batch_norm_momentum: Annotated[
        float, Bound("give a number above 0 and up to 1", lambda value: 0 < value <= 1)
    ]
    ema: Ema
    distillation: Distillation
    # Of learned position embeddings when training begins; ViT's.
    position_std: Annotated[ZeroOrMore, ADDED_LATER] = 0.02


@dataclass
class Evaluation:
    crop_ratio: Annotated[float, above_zero(10)]
    interpolation: str
    image_size: Optional[Pixels] = None  # None: the training resolution


@dataclass
class Protocol:
    name: Annotated[FolderName, NOT_HASHED, FREE_IN_SUITE]
    description: Annotated[str, NOT_HASHED, FREE_IN_SUITE]
    image_size: Pixels
    # What stems take unless told otherwise; the model records what it took.
    patch_size: Annotated[Pixels, NOT_HASHED, FREE_IN_SUITE]
    data: Data
    recipe: Recipe
    evaluation: Evaluation


# --- run: what must not matter --------------------------------------------------------------


@dataclass
class Run:
    seed: Annotated[
        int,
        Bound("give a number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        FREE_IN_SUITE,
    ] = 0
    device: Annotated[Device, MEASURED_WITH] = "auto"
    devices: Processes = 1  # on each machine, one process per device
    # ddp: every device holds the model; fsdp: a part of it
    parallel: Annotated[str, choice("ddp", "fsdp")] = "ddp"
    max_restarts: Annotated[int, between(0, 1_000_000)] = 3  # of all processes after one has died
    # fp64 is for checking
    precision: Annotated[str, choice(*PRECISIONS), MEASURED_WITH] = "fp32"
    compile: bool = False
    grad_checkpointing: bool = False
    # Of one process on the CPU; two busy threads on a shared machine cost 7x.
    threads: Annotated[Processes, MEASURED_WITH] = 1
    # Loader processes; None: 0 on the CPU, else up to 16.
    workers: Annotated[Optional[int], between(0, 1024)] = None
    log_every_steps: Steps = 10
    evaluate_every_epochs: Epochs = 1
    checkpoint_every_epochs: Epochs = 1
    checkpoint_every_steps: Optional[Steps] = None  # beside those; None: within epochs none
    keep_checkpoints: Count = 2
    evaluation_batch_size: BatchSize = 256
    measure: bool = True  # MFU while training; FLOPs, throughput, latency and memory after it
    measure_batch_size: Annotated[BatchSize, MEASURED_WITH] = 32
    measure_seconds: Annotated[Seconds, MEASURED_WITH] = 2.0
    # never; auto: the newest unfinished run of these settings; or its folder
    resume: Annotated[str, LOCAL] = "never"
    root: Annotated[str, LOCAL] = "runs"
    progress: bool = True


@dataclass
class Tracking:
    uri: Optional[str] = None  # None: $MLFLOW_TRACKING_URI, else sqlite:///<here>/mlflow.db
    # None: mixerbench-<protocol>
    experiment: Annotated[Optional[str], Bound("give a name, or null for the protocol's", bool)] = (
        None
    )
    offline: bool = False  # write the journal only; 'mixerbench sync' uploads it
    upload_every_seconds: Seconds = 5.0
    timeout_seconds: Seconds = 10.0
    # How long the end of a run waits for a slow server.
    flush_seconds: Annotated[float, between(0, 24 * 60 * 60)] = 60.0
    system_metrics_every_seconds: Seconds = 10.0
    upload_weights: bool = True


@dataclass
class Launcher:
    """Where runs are trained. ``launcher=slurm`` is short for ``launcher.name=slurm``."""

    name: Annotated[str, choice("local", "slurm")] = "local"
    jobs: Optional[Jobs] = None  # runs side by side; None: one per core or GPU; slurm: no limit
    # local: the GPUs to use, run.devices for each run
    devices: Annotated[
        Optional[list[int]],
        Bound("give the numbers of GPUs, from 0", lambda value: min(value, default=0) >= 0),
    ] = None
    # The rest is for slurm.
    nodes: Jobs = 1  # machines of one run, with run.devices processes each
    partition: Optional[str] = None
    account: Optional[str] = None
    # Of one job; a run that needs longer is requeued and goes on.
    minutes: Annotated[int, between(1, 366 * 24 * 60)] = 1440
    # Before the time is over, to save the state; sbatch takes no more than 65535.
    warning_seconds: Annotated[int, between(1, 65535)] = 120
    cpus_per_device: Processes = 8
    memory_gib: Optional[Count] = None  # of each machine; None: the partition's default
    options: list[str] = field(default_factory=list)  # of sbatch: ["--qos=high"]
    setup: list[str] = field(default_factory=list)  # shell lines before the start
    folder: str = "slurm"  # of the jobs' scripts and logs; all machines must see it


# --- all of it ------------------------------------------------------------------------------


@dataclass
class Composed:
    """What Hydra composes, under the names that the command line uses."""

    backbone: Any
    size: Any
    stem: Any
    mixer: Any
    protocol: Protocol
    run: Run = field(default_factory=Run)
    tracking: Tracking = field(default_factory=Tracking)
    launcher: Launcher = field(default_factory=Launcher)
    plugins: list[str] = field(default_factory=list)


@dataclass
class Settings:
    """The resolved settings of one run, as they are saved and handed to worker processes."""

    label: str  # the model in a word: attention_micro_conv
    model: dict[str, Any]  # backbone, size, stem, mixer; digests of plugins, if there are any
    protocol: Protocol
    run: Run
    tracking: Tracking
    plugins: list[str]
    overrides: list[str]  # as the command line gave them
    launcher: Launcher = field(default_factory=Launcher)


UNHASHED = frozenset(marked(Protocol, NOT_HASHED))
"""Protocol fields that are names, paths and tolerances: they do not change a result."""

_HELD_BEFORE = marked(Protocol, ADDED_LATER)
"""Protocol fields that came later, with what held before them."""

MACHINE_PATHS = marked(Settings, LOCAL)
"""Settings that name files of one machine, with what stands in published records instead."""


def fingerprint(content: Any) -> str:
    """A hash of JSON data, independent of the order of keys: 16 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def protocol_fingerprint(
    protocol: Protocol | Mapping[str, Any], version: int = PROTOCOL_VERSION
) -> str:
    """The hash of what must be identical: only runs with the same one are compared.

    Args:
        protocol: as a dataclass, or its fields in a mapping, nested or flat.
        version: what `PROTOCOL_VERSION` was when the run was trained.
    """
    fields = dict(protocol) if isinstance(protocol, Mapping) else dataclasses.asdict(protocol)
    hashed = {
        key: value
        for key, value in flatten(fields)
        if key not in UNHASHED and (key not in _HELD_BEFORE or value != _HELD_BEFORE[key])
    }
    return fingerprint({"version": version, **hashed})


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` -> ``("a.b", 1)``; lists are leaves."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


T = TypeVar("T")


def build(cls: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass from nested mappings, the inverse of ``dataclasses.asdict``.

    Raises:
        TypeError: a field is unknown or missing.
    """
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in content.items():
        inner = hints.get(key)
        nested = isinstance(value, Mapping) and dataclasses.is_dataclass(inner)
        values[key] = build(typing.cast(type, inner), value) if nested else value
    return cls(**values)
