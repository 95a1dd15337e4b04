"""The typed schema of the three groups: model, protocol, run. Standard library only.

A field without a default gets its value from ``configs/``; no value stands in two places.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

PROTOCOL_VERSION = 2
"""Part of every fingerprint; raised when the code gives a protocol field another meaning.

2: BatchNorm's running statistics are updated once a step, by the first virtual rank.
"""


# --- protocol: what must be identical -------------------------------------------------------


@dataclass
class Data:
    """The images. ``root`` and ``download`` say where they are, not what they are."""

    name: str
    source: str  # the name of a data source
    num_classes: Optional[int]  # None: as many as there are class folders
    mean: list[float]  # per channel, of pixels in 0..1
    std: list[float]
    root: Optional[str] = None
    download: bool = False
    exif_orientation: bool = False  # turn an image as its tag says, as viewers do; DeiT does not
    max_corrupt: float = 0.001  # share of a split's images that may be unreadable, and replaced
    train_images: Optional[int] = None  # synthetic only
    val_images: Optional[int] = None
    digest: Optional[str] = None  # of the images' names and labels; filled in when they are opened
    pixels: str = "exact"  # one of PIXELS: how training images are resized and turned
    packed: Optional[str] = None  # what packing did to the training images; filled in likewise


@dataclass
class Batch:
    """One optimizer step sees ``size`` images, as size / micro_batch_size virtual ranks.

    Mixup, stochastic depth and batch statistics belong to a virtual rank, so that the
    hardware that happens to do the work does not change them.
    """

    size: int
    micro_batch_size: int


@dataclass
class Optimizer:
    name: str
    lr: float
    lr_batch_size: Optional[int]  # lr is for this batch and scales linearly; None: as it stands
    offset_lr_scale: float  # weights of deformable convolutions' offsets: a multiple of the others'
    momentum: Optional[float]  # SGD's; this and the next two: None where the optimizer has none
    betas: Optional[list[float]]
    eps: Optional[float]
    weight_decay: float
    clip_grad_norm: Optional[float]


@dataclass
class Schedule:
    """Linear warm-up, then a cosine."""

    interval: str  # epoch: one value per epoch; step: one per optimizer step
    warmup_epochs: int
    warmup_lr: float
    min_lr: float


@dataclass
class Augmentation:
    crop: str  # resized: a random part, resized; padded: DeiT's choice for 32 pixels and below
    scale: list[float]  # of the image's area
    ratio: list[float]  # width / height
    hflip: float
    color_jitter: Optional[float]
    auto_augment: Optional[str]  # timm's notation
    interpolation: str
    random_erasing: float
    random_erasing_mode: str
    random_erasing_count: int
    repeats: int  # times that an image stands in a row in the epoch's order


@dataclass
class Mixup:
    mixup: float  # alpha of mixup's Beta distribution, 0 for none
    cutmix: float
    prob: float
    switch_prob: float
    mode: str


@dataclass
class Loss:
    name: str  # cross_entropy or binary_cross_entropy
    label_smoothing: float


@dataclass
class Regularization:
    drop_path: float
    drop_path_schedule: str  # linear over depth, or constant
    dropout: float
    layer_scale: Optional[float]


@dataclass
class Ema:
    decay: float  # per optimizer step


@dataclass
class Distillation:
    kind: str  # none, soft or hard
    teacher: str  # a timm model
    teacher_checkpoint: Optional[str]  # a file of its weights; None: timm's pretrained ones
    alpha: float
    tau: float
    teacher_digest: Optional[str] = None  # of that file, or those weights; filled in


@dataclass
class Recipe:
    name: str
    epochs: int
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule
    augmentation: Augmentation
    mixup: Mixup
    loss: Loss
    regularization: Regularization
    batch_norm_momentum: float  # share of a micro-batch in BatchNorm's running statistics
    ema: Ema
    distillation: Distillation
    position_std: float = 0.02  # ViT's; of learned position embeddings when training begins


@dataclass
class Evaluation:
    crop_ratio: float
    interpolation: str
    image_size: Optional[int] = None  # None: the training resolution


@dataclass
class Protocol:
    name: str
    description: str
    image_size: int
    patch_size: int  # what stems take unless told otherwise
    data: Data
    recipe: Recipe
    evaluation: Evaluation


UNHASHED = frozenset(
    {
        "name",
        "description",
        "patch_size",  # a default of the stem; the model records what it took
        "data.root",
        "data.download",
        "data.max_corrupt",  # a tolerance; what was replaced is recorded with the run
        "recipe.name",
        "recipe.distillation.teacher_checkpoint",
    }
)
"""Protocol fields that are names, places and tolerances: they do not change a result."""


ADDED_LATER = {"data.pixels": "exact", "data.packed": None, "recipe.position_std": 0.02}
"""Protocol fields that came later, with what held before: left out of the hash where it holds."""


PIXELS = ("exact", "same-law", "same-law-opencv")
PRECISIONS = ("fp32", "bf16", "fp16", "fp64")
PARALLEL = ("ddp", "fsdp")
LAUNCHERS = ("local", "slurm")


# --- run: what must not matter --------------------------------------------------------------


@dataclass
class Run:
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    devices: int = 1  # processes on each machine, one per device
    parallel: str = "ddp"  # one of PARALLEL: every device holds the model, or a part of it
    max_restarts: int = 3  # of all processes after one of several has died
    precision: str = "fp32"  # one of PRECISIONS; fp64 is for checking
    compile: bool = False
    grad_checkpointing: bool = False
    threads: int = 1  # of one process on the CPU; two busy threads on a shared machine cost 7x
    workers: Optional[int] = None  # loader processes; None: 0 on the CPU, else up to 16
    log_every_steps: int = 10
    evaluate_every_epochs: int = 1
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: Optional[int] = None  # beside those; None: within epochs none
    keep_checkpoints: int = 2
    evaluation_batch_size: int = 256
    measure: bool = True  # MFU while training; FLOPs, throughput, latency and memory after it
    measure_batch_size: int = 32
    measure_seconds: float = 2.0
    resume: str = "never"  # never; auto: the newest unfinished run of these settings; or its folder
    root: str = "runs"
    progress: bool = True


@dataclass
class Tracking:
    uri: Optional[str] = None  # None: $MLFLOW_TRACKING_URI, else sqlite:///<here>/mlflow.db
    experiment: Optional[str] = None  # None: mixerbench-<protocol>
    offline: bool = False  # write the journal only; 'mixerbench sync' uploads it
    upload_every_seconds: float = 5.0
    timeout_seconds: float = 10.0
    flush_seconds: float = 60.0  # how long the end of a run waits for a slow server
    system_metrics_every_seconds: float = 10.0
    upload_weights: bool = True


@dataclass
class Launcher:
    """Where runs are trained. ``launcher=slurm`` stands for ``launcher.name=slurm``."""

    name: str = "local"  # one of LAUNCHERS
    jobs: Optional[int] = None  # runs side by side; None: one per core or GPU; slurm: no limit
    devices: Optional[list[int]] = None  # local: the GPUs to use, run.devices for each run
    # The rest is for slurm.
    nodes: int = 1  # machines of one run, with run.devices processes each
    partition: Optional[str] = None
    account: Optional[str] = None
    minutes: int = 1440  # of one job; a run that needs longer is requeued and goes on
    warning_seconds: int = 120  # before the time is over, to save the state
    cpus_per_device: int = 8
    memory_gib: Optional[int] = None  # of each machine; None: the partition's default
    options: list[str] = field(default_factory=list)  # of sbatch: ["--qos=high"]
    setup: list[str] = field(default_factory=list)  # shell lines before the start
    folder: str = "slurm"  # of the jobs' scripts and logs; all machines must see it


# --- all of it ------------------------------------------------------------------------------


@dataclass
class Composed:
    """What Hydra composes: the command line's names."""

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
    """The resolved settings of one run, as they are written down and handed to workers."""

    label: str  # the model in a word: attention_micro_conv
    model: dict[str, Any]  # backbone, size, stem, mixer; digests of plugins, if there are any
    protocol: Protocol
    run: Run
    tracking: Tracking
    plugins: list[str]
    overrides: list[str]  # what the command line said, for saying it again
    launcher: Launcher = field(default_factory=Launcher)


def fingerprint(content: Any) -> str:
    """16 hex digits that are equal if and only if the content is."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def protocol_fingerprint(
    protocol: Protocol | Mapping[str, Any], version: int = PROTOCOL_VERSION
) -> str:
    """What a leaderboard holds: runs of one fingerprint may be compared, no others.

    Args:
        version: what `PROTOCOL_VERSION` was when the run was trained.
    """
    fields = dict(protocol) if isinstance(protocol, Mapping) else dataclasses.asdict(protocol)
    hashed = {
        key: value
        for key, value in flatten(fields)
        if key not in UNHASHED and (key not in ADDED_LATER or value != ADDED_LATER[key])
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
