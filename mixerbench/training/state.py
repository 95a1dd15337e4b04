"""Everything that a run must remember to go on as if it had never stopped."""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mixerbench.errors import Refusal, TrainingStopped
from mixerbench.models.weights import check_numbers
from mixerbench.training import checkpoint
from mixerbench.training.group import ALONE, Group
from mixerbench.training.parallel import full_tensor, spread_like

_BEST = "best_top1"


@dataclass
class Progress:
    """The part of the state that is no tensor."""

    step: int = 0  # optimizer steps done
    training_seconds: float = 0.0
    best: float = 0.0  # the largest headline score of all evaluations
    evaluated: int = 0  # the step of the last evaluation
    unlogged: list[float] = field(default_factory=list)  # losses since the last line of the log
    corrupt: list[int] = field(default_factory=list)  # training images that could not be read

    def as_header(self) -> dict[str, Any]:
        """What a checkpoint's header says; files have always called the best score so."""
        fields = asdict(self)
        return {_BEST if name == "best" else name: value for name, value in fields.items()}

    @classmethod
    def from_header(cls, fields: dict[str, Any]) -> "Progress":
        return cls(**{"best" if name == _BEST else name: fields[name] for name in fields})


_NONE = torch.empty(0, dtype=torch.int64)


class TrainingState:
    """Weights, their moving average, the optimizer, the loss scaler, and the progress.

    There are no random states in it: every draw is a function of the seed and the step. Its
    files do not depend on the number of processes that write them: any number can go on.
    """

    def __init__(
        self,
        model: nn.Module,
        ema: ModelEmaV3,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.model, self.ema, self.optimizer, self.scaler = model, ema, optimizer, scaler
        self.progress = Progress()
        self.val_checksums = _NONE  # of every validation image, once they were evaluated

    def save(
        self, folder: Path, run_header: dict[str, Any], keep: int, group: Group = ALONE
    ) -> Path:
        """Write a checkpoint of this step, ``run_header`` in its header; keep the newest ``keep``.

        Raises:
            TrainingStopped: it cannot be written; the earlier ones are as they were.
        """
        path = checkpoint.path_of(folder, self.progress.step)
        optimizer_tensors, optimizer_rest = _split(self.optimizer.state_dict())
        parts = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": optimizer_tensors,
            "val": {"checksums": self.val_checksums},
        }
        tensors = {
            name: full_tensor(tensor)
            for part, content in parts.items()
            for name, tensor in checkpoint.with_prefix(part, content).items()
        }
        header = {
            **run_header,
            "progress": self.progress.as_header(),
            "optimizer": optimizer_rest,
            "scaler": self.scaler.state_dict(),
        }

        def write() -> None:
            try:
                checkpoint.save(path, tensors, header)
            except OSError as error:
                raise TrainingStopped(
                    f"cannot write the checkpoint {path} ({error.strerror or error}). The earlier "
                    f"ones are whole; make room and continue with run.resume={folder.parent}"
                ) from None
            checkpoint.prune(folder, keep)

        group.first(write)
        return path

    def load_newest(self, folder: Path, identity: dict[str, Any]) -> Path | None:
        """Continue from the newest whole checkpoint, if there are any; returns its path.

        Raises:
            Refusal: all are damaged, or it is of another model, protocol or seed.
        """
        damaged: list[str] = []
        for path in checkpoint.newest_first(folder):
            try:
                self.load(path, identity)
            except checkpoint.DamagedError as error:
                damaged.append(str(error))
                continue
            for message in damaged:
                print(f"mixerbench: {message} Continuing from {path.name}.", file=sys.stderr)
            return path
        if damaged:
            raise Refusal(
                f"{folder} has no whole checkpoint: {damaged[0]} Remove the folder of the run to "
                "start again."
            )
        return None

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            DamagedError: it cannot be read as it was written.
            Refusal: it is of another model, protocol or seed, or holds no weights.
        """
        tensors, header = checkpoint.load(path)
        for key, value in identity.items():
            if header.get("identity", {}).get(key) != value:
                raise Refusal(
                    f"{path} belongs to another run: its {key} is "
                    f"{header.get('identity', {}).get(key)!r}, this run's is {value!r}."
                )
        for part, module in (("model", self.model), ("ema", self.ema.module)):
            own = module.state_dict()
            content = checkpoint.under_prefix(part, tensors)
            try:
                check_numbers(content, own)
            except ValueError as error:
                raise Refusal(f"{path}, {part}: {error}") from None
            module.load_state_dict(
                {
                    name: spread_like(tensor, own.get(name, tensor))
                    for name, tensor in content.items()
                }
            )
        optimizer = _join(checkpoint.under_prefix("optimizer", tensors), header["optimizer"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, values in optimizer["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    values[name] = spread_like(value, parameters[number])
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(header["scaler"])
        self.progress = Progress.from_header(header["progress"])
        self.val_checksums = tensors.get("val.checksums", _NONE)  # older ones have none


def _split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by ``<parameter>.<name>``, and the JSON-able rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else rest)[f"{parameter}.{name}"] = value
    groups = [
        {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()}
        for group in state["param_groups"]
    ]
    return tensors, {"state": rest, "param_groups": groups}


def _join(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["state"]}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    groups = [
        {k: tuple(v) if k == "betas" else v for k, v in group.items()}
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
