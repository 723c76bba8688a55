"""The checkpoint as a value: a policy's weights and everything that gives their numbers a meaning (design §12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self, cast

import torch
from torch import Tensor, nn

from schemas.enums import BLENDING_METHODS
from tamiyo_stream.model.config import POLICY_PARAM_NAMES, TamiyoGNNConfig
from tamiyo_stream.model.digest import state_digest
from tamiyo_stream.model.network import TamiyoGNN, build_network
from tamiyo_stream.policy.actions import ACTION_TABLE
from tamiyo_stream.runs.state import EwmaNorm

#: File name of a checkpoint (requirements ``000`` "State Dict & Checkpoint Handling"); the other form ends in
#: ``.safetensors``.
FILE_NAME = "tamiyo_gnn_v1.pt"
#: The network's weights are of this type, on every device.
DTYPE = "float32"

#: What each of the 32 policy slots does; ``germinate:k`` is the k-th kernel of the catalogue.
ACTIONS: tuple[str, ...] = tuple(
    slot.action.value if slot.kernel is None else f"{slot.action.value}:{slot.kernel}" for slot in ACTION_TABLE
)
#: The outputs of a slot: a share of the change that the policy allows, so without unit.
POLICY_PARAMS: tuple[Mapping[str, str | float], ...] = tuple(
    {"name": name, "unit": "1", "low": -1.0, "high": 1.0} for name in POLICY_PARAM_NAMES
)
#: Meaning of each blending logit.
BLENDING: tuple[str, ...] = tuple(BLENDING_METHODS)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the weights come from.

    ``training_runs`` are run ids; ``parent_digest`` is the state digest of the policy that was trained further;
    ``created_at_ns`` (Unix nanoseconds) is left out unless given, so that equal training gives equal bytes.
    """

    created_by: str
    training_runs: tuple[str, ...] = ()
    parent_digest: str = ""
    note: str = ""
    created_at_ns: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A policy. ``state``: float32 tensors on the CPU by the names of ``TamiyoGNN(config).state_dict()``.

    ``policy_version`` is the trainer's name for these weights; ``registries`` is key -> index by vocabulary;
    ``norms`` are the moving statistics that the next run starts from, by metric.
    """

    config: TamiyoGNNConfig
    state: Mapping[str, Tensor] = field(repr=False)
    policy_version: str
    provenance: Provenance
    registries: Mapping[str, Mapping[str, int]] = field(repr=False)
    norms: Mapping[str, EwmaNorm] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        network: TamiyoGNN,
        *,
        policy_version: str,
        provenance: Provenance,
        registries: Mapping[str, Mapping[str, int]],
        norms: Mapping[str, EwmaNorm] | None = None,
    ) -> Self:
        """Return a checkpoint of ``network`` as it is now: its weights are copied."""
        state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        return cls(network.config, state, policy_version, provenance, registries, norms or {})

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""
        return self.state

    @property
    def digest(self) -> str:
        """Digest of the weights (hex), the one that commands and telemetry carry; computed at every call."""
        return state_digest(cast("nn.Module", self))  # of a module it asks for the state alone

    def network(self) -> TamiyoGNN:
        """Return a network with these weights in evaluation mode.

        Raises:
            RuntimeError: names or shapes are not the network's; a checkpoint that was read fits.
        """
        network = build_network(self.config)
        network.load_state_dict(dict(self.state))
        return network


@lru_cache(maxsize=8)
def expected_shapes(config: TamiyoGNNConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every tensor of the network, by name; nothing is allocated."""
    with torch.device("meta"):
        network = TamiyoGNN(config)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
