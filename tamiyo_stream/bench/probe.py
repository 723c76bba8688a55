"""What the Tolaria probe costs a training step."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from tamiyo_stream.demo.training import CharacterTraining
from tamiyo_stream.upstream.tolaria.overhead import measure_overhead


def probe_overhead(steps: int) -> dict[str, Any]:
    """Measure what the probe costs a step of the demo's model, against the same steps without it."""
    torch.set_num_threads(1)  # as in the demo: the other core is the worker's
    return asdict(measure_overhead(CharacterTraining, steps))
