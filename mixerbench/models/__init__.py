"""Stems, blocks and backbones that any mixer plugs into; knows neither Hydra nor MLflow."""

from mixerbench.models import timm_models
from mixerbench.models.factory import create_model
from mixerbench.models.official import convert_official

__all__ = ["convert_official", "create_model", "timm_models"]
