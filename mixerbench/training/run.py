"""One run from its settings to its last record."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixerbench.config.checks import check_processes
from mixerbench.config.plugins import kept_names, load_plugins
from mixerbench.config.schema import Settings, flatten
from mixerbench.data.images import Splits
from mixerbench.data.source import SOURCES, open_images
from mixerbench.errors import (
    NO_ROOM,
    Preempted,
    Refusal,
    TrainingStopped,
    first_line,
    how_told,
    is_out_of_memory,
    told_to_stop,
)
from mixerbench.files import to_disk
from mixerbench.measure.flops import MacCount, count_macs
from mixerbench.measure.hardware import hardware_name
from mixerbench.measure.profile import measure_model
from mixerbench.models.build import build_model
from mixerbench.recipe.augmentation import eval_transform, train_transform
from mixerbench.recipe.loss import create_teacher
from mixerbench.recipe.optimization import create_optimizer
from mixerbench.stopping import Stop
from mixerbench.tracking.journal import FILE_NAME, Journal, Silence, read
from mixerbench.tracking.keys import SCHEMA_VERSION, Artifact, Metric, Param, Tag
from mixerbench.tracking.measurements import measured
from mixerbench.tracking.passwords import masked, without_password
from mixerbench.tracking.store import check_reachable, resolve_uri
from mixerbench.tracking.upload import BackgroundUpload, sync_command
from mixerbench.tracking.views import NOTE
from mixerbench.training import checkpoint, provenance
from mixerbench.training.folder import complete, identity_of, is_finished, open_folder
from mixerbench.training.group import ALONE, Group
from mixerbench.training.loop import Result, train
from mixerbench.training.parallel import whole
from mixerbench.training.progress import ProgressView
from mixerbench.training.system import SystemMetrics
from mixers import load_plugin
from mixers.core.conformance import check_mixers
from mixers.core.plan import plan_name


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    folder: Path
    result: Result | None  # None: it came there before, and only its upload was left

    def summary(self, settings: Settings) -> str:
        """What a person wants to know of it, in three lines."""
        if self.result is None:
            return (
                f"{settings.label}, seed {settings.run.seed}: was finished before, and nothing is "
                f"trained; run.resume=never trains it again\n{self.folder}"
            )
        final, ema = self.result.final, self.result.final_ema
        return (
            f"{settings.label}, seed {settings.run.seed}: top-1 {final.top1:.2f} % (EMA "
            f"{ema.top1:.2f} %), top-5 {final.top5:.2f} %, {final.counted}\n"
            f"{self.folder}\n'mixerbench leaderboard' compares it with other runs."
        )


def run_training(
    settings: Settings,
    group: Group = ALONE,
    *,
    on_folder: Callable[[Path], None] = lambda folder: None,
) -> Finished:
    """Train, evaluate, measure and record one run.

    Args:
        group: this process among those that do it together.
        on_folder: called with the folder as soon as there is one, by the first process.

    Raises:
        Refusal: the settings do not fit the data, the machine or each other.
        TrainingStopped: training cannot go on; Preempted if it was told to stop.
    """
    if settings.protocol.data.download:  # one process does, before the others look
        group.first(lambda: _open(settings) and None)
    splits, model, teacher, macs = group.together(lambda: _prepare(settings, group))
    if any(other != identity_of(settings) for other in group.gather(identity_of(settings))):
        raise Refusal(
            "the machines do not have the same images, teacher or plugins: give all of them the "
            "same files."
        )

    with ExitStack() as held:

        def claim() -> Path:
            try:
                folder, lock = open_folder(settings)
            except OSError as error:
                raise TrainingStopped(
                    f"cannot write below {settings.run.root} ({error.strerror or error}): make "
                    "room, then start it again."
                ) from None
            held.enter_context(lock)
            on_folder(folder)
            return folder

        folder = group.first(claim)
        if group.first(lambda: is_finished(folder)):
            if group.is_first:
                _upload_rest(settings, folder)
            return Finished(folder, None)
        recorded = masked(dataclasses.asdict(settings))
        about = {"identity": identity_of(settings), "settings": recorded}
        device = group.device(settings.run.device)
        with _recording(settings, folder) if group.is_first else nullcontext(Silence()) as journal:
            if group.is_first:
                _describe(settings, folder, device, group, journal)
            with Stop(group.largest) as stop, _out_of_memory(settings, device):
                result = train(
                    settings,
                    splits,
                    model,
                    teacher,
                    folder,
                    about,
                    journal,
                    stop,
                    group,
                    None if macs is None else macs.total,
                )
                weights = {
                    name: {key: whole(tensor) for key, tensor in module.state_dict().items()}
                    for name, module in ((Artifact.MODEL, result.model), (Artifact.EMA, result.ema))
                }
                stop.check()
            if group.is_first:
                with Stop(at_once=True):
                    _keep(settings, splits, folder, result, weights, about, journal)
                    if settings.run.measure:
                        _measure(settings, splits, weights[Artifact.MODEL], macs, device, journal)
    return Finished(folder, result)


def _open(settings: Settings) -> Splits:
    load_plugins(settings)  # which may hold the source
    return open_images(settings.protocol)


def _prepare(
    settings: Settings, group: Group
) -> tuple[Splits, nn.Module, nn.Module | None, MacCount | None]:
    """The images, the model, the teacher, and the model's multiply-adds where they are counted.

    The settings are complete after it.

    Raises:
        Refusal: something does not fit, before there is a folder.
    """
    group.device(settings.run.device)
    splits = _open(settings)
    check_processes(settings.protocol.recipe.batch, group.size)
    classes = len(splits.train.classes)
    model = build_model(settings, classes)
    macs = None
    if group.is_first:
        check_mixers(model)
    if settings.run.measure and group.is_first:  # what cannot be counted fails now
        macs = count_macs(model, settings.protocol.image_size)
    teacher = create_teacher(settings.protocol.recipe.distillation, classes)
    complete(settings.protocol, splits, teacher)
    _try_names(settings, model)
    if not settings.tracking.offline and group.is_first:
        check_reachable(resolve_uri(settings.tracking.uri), settings.tracking.timeout_seconds)
    return splits, model, teacher, macs


@contextmanager
def _recording(settings: Settings, folder: Path) -> Iterator[Journal]:
    """The journal of a run, shown on the terminal and uploaded meanwhile; says how it ended."""
    tracking = settings.tracking
    with _disk_full(folder):
        journal = Journal(folder / FILE_NAME)
        upload = None if tracking.offline else BackgroundUpload(folder, tracking)
        system = SystemMetrics(journal, tracking.system_metrics_every_seconds)
        status = "FAILED"
        try:
            with ProgressView(settings.run.progress) as view:
                journal.listen(lambda record: view.show(settings.label, record))
                yield journal
            status = "FINISHED"
        except Preempted:
            status = "KILLED"
            raise
        except KeyboardInterrupt as stop:
            status = "KILLED"
            message = f"{how_told(stop)}. Continue with run.resume={folder}"
            raise told_to_stop(stop, message) from None
        finally:
            system.close()
            try:
                journal.end(status)  # raises if FINISHED could not be written, else never
            finally:
                journal.close()
                if upload is not None:
                    _close(upload, settings, folder)


def _upload_rest(settings: Settings, folder: Path) -> None:
    """What the store of a finished run has missed."""
    if not settings.tracking.offline:
        _close(BackgroundUpload(folder, settings.tracking), settings, folder)


def _close(upload: BackgroundUpload, settings: Settings, folder: Path) -> None:
    """Send the rest; what does not arrive in time, or before a signal, is said."""
    try:
        done = upload.close(settings.tracking.flush_seconds)
    except KeyboardInterrupt:
        done = False
    if not done:
        print(_not_uploaded(folder, upload.error, settings.tracking.uri), file=sys.stderr)


@contextmanager
def _disk_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise TrainingStopped(
            f"cannot write to {folder} ({error.strerror or error}). What was written before is "
            f"whole; make room and continue with run.resume={folder}"
        ) from None


@contextmanager
def _out_of_memory(settings: Settings, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingStopped(_what_would_fit(settings, device)) from error


def _what_would_fit(settings: Settings, device: torch.device) -> str:
    """What a run that is out of memory can change without becoming another one."""
    run, batch = settings.run, settings.protocol.recipe.batch
    ways = {
        "run.grad_checkpointing=true": not run.grad_checkpointing,
        "run.precision=bf16": run.precision not in ("bf16", "fp16"),
        "run.parallel=fsdp with more run.devices": run.parallel != "fsdp",
    }
    left = [way for way, is_new in ways.items() if is_new] or ["a device with more memory"]
    return (
        f"{device} has no room for a micro-batch of {batch.micro_batch_size} images, of which a "
        f"batch of {batch.size} accumulates {batch.size // batch.micro_batch_size}. These keep the "
        f"protocol and the result: {', '.join(left)}. Continue with run.resume=auto."
    )


def _try_names(settings: Settings, model: nn.Module) -> None:
    """Refuse names that only timm can judge, before there is a folder.

    Raises:
        Refusal: which settings, and what timm says.
    """
    protocol = settings.protocol
    attempts: dict[str, Callable[[], object]] = {
        f"recipe.optimizer.name={protocol.recipe.optimizer.name}": lambda: create_optimizer(
            protocol.recipe, model
        ),
        f"recipe.augmentation={dataclasses.asdict(protocol.recipe.augmentation)}": lambda: (
            train_transform(protocol)
        ),
        f"evaluation.interpolation={protocol.evaluation.interpolation}": lambda: eval_transform(
            protocol
        ),
    }
    for given, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            reason = first_line(error)
            raise Refusal(f"protocol.{given}: timm does not take it ({reason}).") from None


def _describe(
    settings: Settings, folder: Path, device: torch.device, group: Group, journal: Journal
) -> None:
    """Tags, parameters and files that say what the run is."""
    model, protocol = settings.model, settings.protocol
    identity = identity_of(settings)
    tags = {
        Tag.SCHEMA: SCHEMA_VERSION,
        Tag.PROTOCOL: protocol.name,
        Tag.PROTOCOL_FINGERPRINT: identity["protocol_fingerprint"],
        Tag.MODEL: settings.label,
        Tag.MODEL_FINGERPRINT: identity["model_fingerprint"],
        Tag.MIXER: plan_name(model["mixer"]),
        Tag.SIZE: model["size"]["name"],
        Tag.STEM: model["stem"]["name"],
        Tag.BACKBONE: model["backbone"]["name"],
        Tag.SEED: str(settings.run.seed),
        Tag.SYNTHETIC: str(SOURCES.get(protocol.data.source).is_noise).lower(),
        Tag.HARDWARE: hardware_name(device, settings.run.precision),
        Tag.PROCESSES: str(group.size),
        Tag.COMMAND: provenance.command(settings),
        Tag.RUN_DIR: str(folder),
        NOTE: _note(settings),
    }
    tags |= provenance.git_tags()
    environment = provenance.environment()
    groups = {
        Param.MODEL: model,
        Param.PROTOCOL: dataclasses.asdict(protocol),
        Param.RUN: dataclasses.asdict(settings.run),
        Param.ENVIRONMENT: environment,
    }
    params = {
        prefix + key: str(value)
        for prefix, group in groups.items()
        for key, value in flatten(group)
    }
    # MLflow writes a parameter once. A resume may change run settings: say so in a tag.
    records = (record for record, _ in read(folder / FILE_NAME))
    recorded = next((r["values"] for r in records if r["kind"] == "params"), None)
    before = params if recorded is None else recorded
    drift = {key: value for key, value in params.items() if before.get(key) != value}
    if drift:
        tags[Tag.CONFIG_DRIFT] = json.dumps(drift)
    journal.tags(tags)
    if recorded is None:
        (folder / Artifact.ENVIRONMENT).write_text(provenance.installed_packages())
        journal.artifact(folder / Artifact.ENVIRONMENT)
        for plugin, name in kept_names(settings.plugins).items():
            copy = folder / Artifact.PLUGINS / name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(load_plugin(plugin))  # what was run, whatever the file is by now
            journal.artifact(copy, Artifact.PLUGINS)
        journal.params(params)  # last: a process that was killed before describes itself anew
    journal.artifact(folder / Artifact.CONFIG)


def _note(settings: Settings) -> str:
    protocol = settings.protocol
    return (
        f"**{settings.label}**, seed {settings.run.seed}, under protocol **{protocol.name}** "
        f"({protocol.description}).\n\nRepeat it: `{provenance.command(settings)}`"
    )


def _keep(
    settings: Settings,
    splits: Splits,
    folder: Path,
    result: Result,
    weights: Mapping[str, Mapping[str, Tensor]],
    about: dict[str, Any],
    journal: Journal,
) -> None:
    """Write the predictions, the final weights, and what could not be read."""
    result.final.write_predictions(folder / Artifact.PREDICTIONS, splits.val)
    result.final.write_hardest(folder / Artifact.HARDEST, splits.val)
    to_disk(folder / Artifact.PREDICTIONS, folder / Artifact.HARDEST)
    for name in (Artifact.PREDICTIONS, Artifact.HARDEST):
        journal.artifact(folder / name)
    pixels = result.final.pixels(splits.val)
    if pixels is not None:
        journal.tags({Tag.VAL_PIXELS: pixels})
    for name, tensors in weights.items():
        checkpoint.save(folder / name, tensors, about)
        if settings.tracking.upload_weights:
            journal.artifact(folder / name)
    corrupt = sum(len(split.indices) for split in result.corrupt)
    if corrupt:
        report = "".join(split.report() for split in result.corrupt)
        (folder / Artifact.CORRUPT).write_text(report, encoding="utf-8")
        journal.artifact(folder / Artifact.CORRUPT)
    journal.metrics(0, {Metric.CORRUPT_IMAGES: corrupt})


def _measure(
    settings: Settings,
    splits: Splits,
    weights: Mapping[str, Tensor],
    macs: MacCount | None,
    device: torch.device,
    journal: Journal,
) -> None:
    model = build_model(settings, len(splits.train.classes))
    model.load_state_dict(weights)
    measures = measure_model(
        model.to(device),
        settings.protocol.image_size,
        num_classes=int(settings.protocol.data.num_classes or 0),
        batch_size=settings.run.measure_batch_size,
        seconds=settings.run.measure_seconds,
        precision=settings.run.precision,
        device=device,
        macs=macs,
    )
    journal.metrics(0, measured(measures))


def _not_uploaded(folder: Path, error: Exception | None, uri: str | None) -> str:
    reason = f" ({without_password(first_line(error))})" if error else ""
    return (
        f"MLflow did not take everything in time{reason}; nothing is lost: "
        f"'{sync_command(folder, uri)}' uploads the rest."
    )
