"""The rest of the platform beside the training run: Urza's kernels, Urabrask's sheets, Kasmina's seeds."""

from __future__ import annotations

from schemas.command_verifier import CommandVerifier
from schemas.signing import Keyring
from tamiyo_stream.demo.options import Service
from tamiyo_stream.demo.training import CharacterTraining
from tamiyo_stream.upstream.kasmina.host import SeedHost
from tamiyo_stream.upstream.kasmina.lifecycle import Limits
from tamiyo_stream.upstream.kasmina.site import SeedSite
from tamiyo_stream.upstream.publisher import Publisher
from tamiyo_stream.upstream.tolaria.blueprint import host_blueprint_id
from tamiyo_stream.upstream.urabrask.crucible import evaluate_host, evaluate_kernel, publish_sheets
from tamiyo_stream.upstream.urza.artifact import publish_catalogue
from tamiyo_stream.upstream.urza.catalogue import catalogue

#: Short stages: a seed lives through all of them within a demo of a few hundred steps.
DEMO_LIMITS = Limits(training_steps=15, blending_steps=15, shadowing_steps=8, probation_steps=12, embargo_s=2.0)
#: A host batch of the crucible is smaller than one of the run: what is probed is the model, not the machine.
_PROBE_SAMPLES = 4


def publish_tables(
    publisher: Publisher, training: CharacterTraining, run_id: str, without: frozenset[Service]
) -> None:
    """Publish what does not change during the run: the kernels, and the safety sheets of kernels and host."""
    kernels = catalogue()
    if Service.URZA not in without:
        publish_catalogue(publisher, training.model.width)
    if Service.URABRASK not in without:
        inputs, targets = training.example(_PROBE_SAMPLES)
        host = evaluate_host(
            host_blueprint_id(run_id), training.model, lambda model: training.loss_of(model, inputs, targets)
        )
        sheets = [evaluate_kernel(kernel, training.model.width) for kernel in kernels.values()]
        publish_sheets(publisher, [host, *sheets])


def plant_seeds(
    publisher: Publisher,
    training: CharacterTraining,
    run_id: str,
    without: frozenset[Service],
    keyring: Keyring | None,
) -> SeedHost | None:
    """Attach a dormant seed to every block of the model; None without Kasmina. Without Urza there is no kernel."""
    if Service.KASMINA in without:
        return None
    kernels = {} if Service.URZA in without else {name: kernel.build for name, kernel in catalogue().items()}
    sites = [
        SeedSite(f"seed-{number}", f"blocks.{number}", specialization=kind)
        for number, kind in zip(range(len(training.model.blocks)), _SPECIALISATIONS, strict=False)
    ]
    return SeedHost.attach(
        training.model,
        training.optimizer,
        sites,
        kernels,
        run_id=run_id,
        publisher=publisher,
        verifier=CommandVerifier(keyring),
        limits=DEMO_LIMITS,
        export_every=5,
    )


_SPECIALISATIONS = ("syntax", "words", "structure", "context")
