"""From settings to the model that they describe."""

from mixerbench.config.plugins import load_plugins
from mixerbench.config.schema import Settings
from mixerbench.draws import seed_generators
from mixerbench.models.backbone import Backbone
from mixerbench.models.factory import create_model


def build_model(settings: Settings, num_classes: int) -> Backbone:
    """The model of the settings, its plugins loaded, initialised from the run's seed.

    Raises:
        Refusal: its parts do not fit each other, or a plugin is not what it was.
    """
    load_plugins(settings)
    protocol, model = settings.protocol, settings.model
    regularization = protocol.recipe.regularization
    seed_generators("init", settings.run.seed)
    built = create_model(
        model["mixer"],
        model["size"],
        image_size=protocol.image_size,
        num_classes=num_classes,
        stem=model["stem"],
        backbone=model["backbone"],
        drop_path=regularization.drop_path,
        drop_path_schedule=regularization.drop_path_schedule,
        dropout=regularization.dropout,
        layer_scale=regularization.layer_scale,
        position_std=protocol.recipe.position_std,
    )
    if settings.run.grad_checkpointing:
        built.set_grad_checkpointing()
    if protocol.recipe.distillation.kind != "none":
        built.set_distilled_training()
    return built
