"""Tags, parameters and files that say what a run is."""

import dataclasses
import json
from pathlib import Path

import torch

from mixerbench.config.plugins import kept_names
from mixerbench.config.schema import Settings, flatten
from mixerbench.data.source import SOURCES
from mixerbench.measure.hardware import hardware_name
from mixerbench.tracking.journal import FILE_NAME, Journal, read
from mixerbench.tracking.keys import SCHEMA_VERSION, Artifact, Param, Tag
from mixerbench.tracking.views import NOTE
from mixerbench.training import provenance
from mixerbench.training.folder import identity_of
from mixerbench.training.group import Group
from mixers import load_plugin
from mixers.core.plan import plan_name


def describe(
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
