"""The policy that replays: the one the recording's worker started with, or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from tamiyo_stream.checkpoints.compatibility import registries_to_adopt
from tamiyo_stream.checkpoints.reading import read_checkpoint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.replay.recording import Header
from tamiyo_stream.replay.replaying import Policy
from tamiyo_stream.settings import Settings, load_settings
from tamiyo_stream.worker.service import build_engine


def recorded_settings(header: Header) -> Settings:
    """Return the settings of the recording; keys and places are those of here.

    Raises:
        SettingsError: this release knows one of them no more.
    """
    return load_settings(**header.settings)


def recorded_policy(header: Header, settings: Settings) -> Policy:
    """Return the policy that the recording's settings name: its checkpoint, else the untrained network.

    Raises:
        RegistryRenumbered: the recording's vocabularies contradict those numbered in advance.
        CheckpointRefused: the checkpoint that the worker started with cannot be read here.
    """
    registries = registries_of(header)
    return Policy(build_engine(settings, registries), registries)


def checkpoint_policy(path: Path, header: Header, settings: Settings) -> Policy:
    """Return the policy in a checkpoint file, signed or not: nothing of it is executed, and it decides offline.

    Raises:
        CheckpointRefused: it cannot be used with the recording's vocabularies, or at all.
        RegistryRenumbered: as :func:`recorded_policy`.
    """
    registries = registries_of(header)
    checkpoint = read_checkpoint(path, registries=registries)
    for name, entries in registries_to_adopt(checkpoint.registries, registries).items():
        registries[name].adopt(entries)
    engine = InferenceEngine(
        checkpoint.network(),
        policy_version=checkpoint.policy_version,
        policy_digest=checkpoint.digest,
        device=settings.device,
        threads=settings.threads,
        executor=settings.executor,
        precision=settings.precision,
        compile_model=settings.compile_model,
    )
    return Policy(engine, registries)


def registries_of(header: Header) -> Registries:
    """Return the vocabularies of a recording.

    Raises:
        RegistryRenumbered: they contradict those numbered in advance.
    """
    registries = Registries()
    for registry in registries:
        if registry.name in header.registries:
            registry.adopt(header.registries[registry.name])
    return registries
