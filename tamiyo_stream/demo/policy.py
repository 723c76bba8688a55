"""Simic's part of the demo: another policy, published in the middle of the run."""

from __future__ import annotations

import time
from pathlib import Path

from schemas.catalogue import Stream
from tamiyo_stream.checkpoints.checkpoint import FILE_NAME, Checkpoint, Provenance
from tamiyo_stream.checkpoints.publishing import policy_messages
from tamiyo_stream.checkpoints.writing import encode_checkpoint
from tamiyo_stream.graph.registries import Registries
from tamiyo_stream.model.network import build_network
from tamiyo_stream.upstream.publisher import Publisher


class NextPolicy:
    """An untrained policy of another seed; written to ``directory`` before the training begins.

    Args:
        step: after which it is published.
        seed: its initialisation.
    """

    def __init__(self, step: int, seed: int, directory: Path) -> None:
        self._step = step
        self._path = directory / FILE_NAME
        self._checkpoint = Checkpoint.of(
            build_network(seed=seed),
            policy_version=f"demo-seed{seed}",
            provenance=Provenance(created_by="tamiyo-stream demo", note=f"untrained, seed {seed}"),
            registries=Registries().snapshots(),
        )
        self._path.write_bytes(encode_checkpoint(self._checkpoint, self._path.suffix))
        self._published = False

    def publish_when_due(self, step: int, publisher: Publisher) -> None:
        """Announce it once ``step`` has come; not again."""
        if self._published or step < self._step:
            return
        self._published = True
        messages = policy_messages(
            self._path.read_bytes(),
            self._checkpoint,
            uri=self._path.as_uri(),
            issued_at_ns=time.time_ns(),
            policy_id=f"demo-step{step}",
        )
        for message in messages:
            publisher.publish(Stream.POLICY, message)
