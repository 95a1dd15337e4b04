"""Everything that a run must remember to go on as if it had never stopped."""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mixerbench.errors import UserError
from mixerbench.training import checkpoint


@dataclass
class Progress:
    """The numbers beside the tensors."""

    step: int = 0  # optimizer steps done
    training_seconds: float = 0.0
    best_top1: float = 0.0
    evaluated: int = 0  # the step of the last evaluation
    unlogged: list[float] = field(default_factory=list)  # losses since the last line of the log


class TrainingState:
    """Weights, their moving average, the optimizer, the loss scaler, and the progress.

    There are no random states in it: every draw is a function of the seed and the step.
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

    def save(self, folder: Path, about: dict[str, Any], keep: int) -> Path:
        """Write a checkpoint of this step, ``about`` in its header; older than ``keep`` go."""
        path = checkpoint.path_of(folder, self.progress.step)
        optimizer_tensors, optimizer_rest = _split(self.optimizer.state_dict())
        tensors = {
            **checkpoint.with_prefix("model", self.model.state_dict()),
            **checkpoint.with_prefix("ema", self.ema.module.state_dict()),
            **checkpoint.with_prefix("optimizer", optimizer_tensors),
        }
        header = {
            **about,
            "progress": asdict(self.progress),
            "optimizer": optimizer_rest,
            "scaler": self.scaler.state_dict(),
        }
        checkpoint.save(path, tensors, header)
        checkpoint.prune(folder, keep)
        return path

    def load_newest(self, folder: Path, identity: dict[str, Any]) -> Path | None:
        """Continue from the newest whole checkpoint, if there are any; returns its path.

        Raises:
            UserError: all are damaged, or it is of another model, protocol or seed.
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
            raise UserError(
                f"{folder} has no whole checkpoint: {damaged[0]} Remove the folder of the run to "
                "start again."
            )
        return None

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            DamagedError: it cannot be read as it was written.
            UserError: it is of another model, protocol or seed.
        """
        tensors, header = checkpoint.load(path)
        for key, value in identity.items():
            if header.get("identity", {}).get(key) != value:
                raise UserError(
                    f"{path} belongs to another run: its {key} is "
                    f"{header.get('identity', {}).get(key)!r}, this run's is {value!r}."
                )
        self.model.load_state_dict(checkpoint.under_prefix("model", tensors))
        self.ema.module.load_state_dict(checkpoint.under_prefix("ema", tensors))
        self.optimizer.load_state_dict(
            _join(checkpoint.under_prefix("optimizer", tensors), header["optimizer"])
        )
        self.scaler.load_state_dict(header["scaler"])
        self.progress = Progress(**header["progress"])


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
