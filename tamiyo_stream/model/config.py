"""The network's dimensions and the names of its outputs (requirements 000 "Module Skeleton"; ``domain.md`` B1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

ARCHITECTURE_VERSION = "tamiyo_gnn_v1"

#: Last axis of ``policy_params``: one value in [-1, 1] per action and name; policy gives units and bounds. They
#: change the learning rate, the initial alpha of a graft, and the start and end of its blending schedule.
POLICY_PARAM_NAMES: tuple[str, ...] = ("lr_change", "alpha_change", "start_shift", "end_shift")


@dataclass(frozen=True, slots=True)
class TamiyoGNNConfig:
    """Dimensions of :class:`~tamiyo_stream.model.network.TamiyoGNN`.

    Raw and encoded widths of the node types are the feature table's (``graph.features``); here stands what the
    tables do not say. Dropouts are probabilities and act in training mode only.
    """

    architecture_version: str = ARCHITECTURE_VERSION
    hidden_width: int = 256
    activation_width: int = 128
    attention_width: int = 128
    attention_heads: int = 4
    head_width: int = 64
    telemetry_width: int = 64
    num_actions: int = 32
    num_policy_params: int = len(POLICY_PARAM_NAMES)
    num_risk_classes: int = 5
    num_blending_methods: int = 4
    dropout: float = 0.2
    attention_dropout: float = 0.1
    head_dropout: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, as a checkpoint stores them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a config from :meth:`to_dict`.

        Raises:
            ValueError: a field is unknown, or the architecture is another one.
        """
        unknown = sorted(values.keys() - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"network config has unknown fields {unknown}; it was written by a newer version")
        config = cls(**values)
        if config.architecture_version != ARCHITECTURE_VERSION:
            raise ValueError(
                f"architecture_version is {config.architecture_version!r}, this network is "
                f"{ARCHITECTURE_VERSION!r}; train or export a checkpoint for it"
            )
        return config
