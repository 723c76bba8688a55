"""Tolaria, the training orchestrator: the state of one training step (``domain.md`` §2.3, §2.4).

10 000 layers with every column take 250 000 bytes, which is why ratios and times are float16: larger entries hold
up a single-threaded Redis for everybody.
"""

from __future__ import annotations

from typing import Annotated

from schemas.kasmina import SeedState
from schemas.record import (
    ColumnSet,
    Count,
    Float16Column,
    Float32Column,
    Identifier,
    Message,
    Record,
    TimestampNs,
    UInt8Column,
    doc,
)


class HardwareContext(Record, frozen=True, kw_only=True):
    """The device the run trains on. Every field is optional: absent means not measured."""

    device_type: Annotated[str | None, doc("cuda, cpu or tpu")] = None
    device_id: Annotated[str | None, doc("Index or name of the device")] = None
    total_memory_gb: Annotated[float | None, doc("Device memory", "GB")] = None
    available_memory_gb: Annotated[float | None, doc("Free device memory", "GB")] = None
    temperature_celsius: Annotated[float | None, doc("Device temperature", "Cel")] = None
    utilization_percent: Annotated[float | None, doc("Device utilisation", "%")] = None
    compute_capability: Annotated[Count | None, doc("CUDA compute capability times ten")] = None


class LayerTelemetry(ColumnSet, frozen=True, kw_only=True):
    """This step's columns, one element per layer in the blueprint's order (requirements ``002`` §2, §3)."""

    gradient_norm: Annotated[Float32Column | None, doc("L2 norm of the layer's weight gradients")] = None
    gradient_variance: Annotated[Float32Column | None, doc("Exponentially weighted variance of gradient_norm")] = (
        None
    )
    gradient_instability: Annotated[UInt8Column | None, doc("GradientInstability number; 0 = unknown")] = None
    weight_norm: Annotated[Float32Column | None, doc("L2 norm of the layer's weights")] = None
    update_frequency: Annotated[
        Float16Column | None, doc("Share of recent steps in which the weights changed", "1")
    ] = None
    latency_ms: Annotated[Float16Column | None, doc("Forward time of the layer, at most 65 504", "ms")] = None
    data_flow_volume: Annotated[Float32Column | None, doc("Bytes of the layer's output", "By")] = None
    loss_contribution: Annotated[
        Float32Column | None,
        doc("First-order share of the loss change, |gradient . update|; ranks layers for monitors"),
    ] = None


class ActivationTelemetry(ColumnSet, frozen=True, kw_only=True):
    """This step's columns, one element per activation in the blueprint's order (requirements ``002`` §2)."""

    saturation_rate: Annotated[Float16Column | None, doc("Share of saturated outputs", "1")] = None
    saturation_events: Annotated[
        Float32Column | None, doc("Steps of the last interval with saturation_rate above its threshold")
    ] = None
    activation_frequency: Annotated[Float16Column | None, doc("Share of non-zero outputs", "1")] = None
    gradient_flow: Annotated[
        Float16Column | None, doc("Gradient norm behind / before the activation, clamped to 1", "1")
    ] = None
    gradient_contribution: Annotated[
        Float32Column | None, doc("L2 norm of the gradient that flows through the activation")
    ] = None
    nonlinearity_strength: Annotated[
        Float16Column | None, doc("1 - |correlation| of input and output: 0 = linear", "1")
    ] = None
    stability: Annotated[
        Float16Column | None, doc("1 - relative spread of the output's scale over recent steps", "1")
    ] = None


class ParameterTelemetry(ColumnSet, frozen=True, kw_only=True):
    """This step's columns, one element per parameter group in the blueprint's order (requirements ``002`` §2)."""

    learning_rate: Annotated[Float32Column | None, doc("Learning rate in force")] = None
    momentum: Annotated[Float32Column | None, doc("Momentum, or Adam's first beta", "1")] = None
    gradient_variance: Annotated[
        Float32Column | None, doc("Exponentially weighted variance of the group's gradient norm")
    ] = None
    convergence_rate: Annotated[
        Float32Column | None, doc("Relative decrease of the update magnitude per step", "1")
    ] = None
    update_magnitude: Annotated[
        Float32Column | None, doc("|change of weights| / |weights| of the last update", "1")
    ] = None


class EdgeTelemetry(ColumnSet, frozen=True, kw_only=True):
    """Measured columns of the ``connects`` edges, in the blueprint's order; for upstreams that measure edges.

    Absent columns fall back to the source layer's ``data_flow_volume`` and ``latency_ms`` (requirements ``002``
    §3).
    """

    connection_strength: Annotated[
        Float32Column | None, doc("Weight of the connection; normalised by the largest fan-out")
    ] = None
    data_flow_volume: Annotated[Float32Column | None, doc("Bytes per step", "By")] = None
    latency_ms: Annotated[Float32Column | None, doc("Transfer time", "ms")] = None


class SystemStatePacket(Message, frozen=True, kw_only=True):
    """The state of one training step. Triggers exactly one decision (design §2).

    ``run_id`` orders and partitions; ``global_step`` must rise within a run. ``blueprint_id`` names the host
    model's :class:`~schemas.urza.Blueprint`, ``blueprint_version`` its content digest, to which the telemetry
    columns are aligned. ``training_metrics`` holds what this step measured, as ``loss`` and ``loss_delta`` (loss),
    ``gradient_norm``, ``samples_per_s`` (1/s), ``hook_latency_ms`` (ms), ``optimizer_lr``, ``cpu_util_percent``
    (%); all names: ``domain.md`` §2.4. Unknown keys are kept, keys that were not measured are left out.

    Raises:
        ValueError: a negative step, or a ``training_run_id`` other than ``run_id``.
    """

    run_id: Annotated[Identifier, doc("Training run: ordering and partition key")]
    packet_id: Annotated[Identifier, doc("Correlation id; the decision answers it")]
    global_step: Annotated[Count, doc("Optimizer steps taken; strictly rising within a run", "{step}")]
    timestamp_ns: TimestampNs
    blueprint_id: Annotated[str | None, doc("The host model's blueprint")] = None
    blueprint_version: Annotated[str | None, doc("Content digest the columns are aligned to")] = None
    current_epoch: Annotated[Count | None, doc("Epoch index", "{epoch}")] = None
    training_loss: Annotated[float | None, doc("Loss of this step's batch; NaN = diverged")] = None
    validation_loss: Annotated[float | None, doc("Newest validation loss")] = None
    validation_accuracy: Annotated[float | None, doc("Newest validation accuracy, 0 to 1", "1")] = None
    hardware_context: Annotated[HardwareContext | None, doc("Device the run trains on")] = None
    training_metrics: Annotated[dict[str, float], doc("Step metrics by name (domain.md §2.4)")] = {}
    seed_states: Annotated[list[SeedState] | None, doc("Seeds, where Kasmina does not export them")] = None
    source_subsystem: Annotated[str, doc("Publisher")] = "tolaria"
    training_run_id: Annotated[str | None, doc("Leyline's name of run_id; must equal it when sent")] = None
    experiment_name: Annotated[str | None, doc("Name for people; decides nothing")] = None
    layers: Annotated[LayerTelemetry | None, doc("Columns of the blueprint's layers")] = None
    activations: Annotated[ActivationTelemetry | None, doc("Columns of the blueprint's activations")] = None
    parameters: Annotated[ParameterTelemetry | None, doc("Columns of the blueprint's parameters")] = None
    edges: Annotated[EdgeTelemetry | None, doc("Columns of the blueprint's connects edges")] = None

    def __post_init__(self) -> None:
        if self.global_step < 0:
            raise ValueError(f"global_step is {self.global_step}; send a step counter of 0 or more")
        if self.training_run_id not in (None, self.run_id):
            raise ValueError(
                f"training_run_id {self.training_run_id!r} differs from run_id {self.run_id!r}; send one of them"
            )
