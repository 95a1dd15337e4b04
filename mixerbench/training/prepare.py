"""What a run is made of, opened, built and checked before it has a folder."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mixerbench.config.checks import check_processes
from mixerbench.config.schema import Settings
from mixerbench.data.images import Splits
from mixerbench.data.source import images_of
from mixerbench.errors import Refusal, first_line
from mixerbench.measure.flops import MacCount, count_macs
from mixerbench.models.backbone import Backbone
from mixerbench.models.build import build_model
from mixerbench.objectives import Objective, objective_of
from mixerbench.recipe.augmentation import eval_transform, train_transform
from mixerbench.recipe.optimization import create_optimizer
from mixerbench.tracking.store import check_reachable, resolve_uri
from mixerbench.training.folder import complete
from mixerbench.training.group import Group
from mixers.core.conformance import check_mixers


@dataclass(frozen=True)
class Prepared:
    """What a run is made of; its settings are complete."""

    settings: Settings
    objective: Objective
    splits: Splits
    model: Backbone  # freshly initialised, on any device, the same in all processes
    teacher: nn.Module | None  # what the recipe distils from
    macs: MacCount | None  # of one image's forward pass; None: not counted in this process


def prepare(settings: Settings, group: Group) -> Prepared:
    """Open the images and build the model; complete the settings.

    Raises:
        Refusal: something does not fit, before there is a folder.
    """
    protocol = settings.protocol
    group.device(settings.run.device)
    splits = images_of(settings)
    check_processes(protocol.recipe.batch, group.size)
    classes = len(splits.train.classes)
    model = build_model(settings, classes)
    macs = None
    if group.is_first:
        check_mixers(model)
    if settings.run.measure and group.is_first:  # what cannot be counted fails now
        macs = count_macs(model, protocol.image_size)
    objective = objective_of(protocol)
    teacher = objective.create_teacher(protocol.recipe, classes)
    complete(protocol, splits, teacher)
    _check_names_of_timm(settings, model)
    if not settings.tracking.offline and group.is_first:
        check_reachable(resolve_uri(settings.tracking.uri), settings.tracking.timeout_seconds)
    return Prepared(settings, objective, splits, model, teacher, macs)


def _check_names_of_timm(settings: Settings, model: nn.Module) -> None:
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
