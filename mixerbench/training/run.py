"""One run from its settings to its last record."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch

from mixerbench.config.schema import Settings
from mixerbench.data.source import images_of
from mixerbench.errors import Refusal, TrainingStopped, is_out_of_memory
from mixerbench.stopping import Stop
from mixerbench.tracking.journal import Silence
from mixerbench.tracking.keys import Artifact
from mixerbench.training.describe import describe
from mixerbench.training.finished import Finished, keep, measure
from mixerbench.training.folder import identity_of, is_finished, open_folder
from mixerbench.training.group import ALONE, Group
from mixerbench.training.parallel import full_tensor
from mixerbench.training.prepare import prepare
from mixerbench.training.recording import recording, upload_rest
from mixerbench.training.trainer import Trainer


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
        group.first(lambda: images_of(settings) and None)
    prepared = group.together(lambda: prepare(settings, group))
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
                upload_rest(settings, folder)
            return Finished(folder, None)
        device = group.device(settings.run.device)
        with recording(settings, folder) if group.is_first else nullcontext(Silence()) as journal:
            if group.is_first:
                describe(settings, folder, device, group, journal)
            with Stop(group.largest) as stop, _out_of_memory(settings, device):
                result = Trainer(prepared, folder, journal, stop, group).train()
                weights = {
                    name: {key: full_tensor(value) for key, value in module.state_dict().items()}
                    for name, module in ((Artifact.MODEL, result.model), (Artifact.EMA, result.ema))
                }
                stop.check()
            if group.is_first:
                with Stop(at_once=True):
                    keep(prepared, result, weights, folder, journal)
                    if settings.run.measure:
                        measure(prepared, weights[Artifact.MODEL], device, journal)
    return Finished(folder, result)


@contextmanager
def _out_of_memory(settings: Settings, device: torch.device) -> Iterator[None]:
    """Turns an error of missing memory into TrainingStopped, which says what needs less."""
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
