"""What Tamiyo publishes: commands and field reports (``domain.md`` §2.6, §2.7)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.enums import CircuitBreakerState, CommandType, FieldReportOutcome, SeedOperation
from schemas.record import Count, Identifier, Message, Record, TimestampNs, doc, require_finite


class CommandSeedOperation(Record, frozen=True, kw_only=True):
    """What a seed shall do. Kasmina refuses parameters that are not finite."""

    operation: SeedOperation
    blueprint_id: Annotated[str, doc("Kernel to graft; empty where the operation needs none")] = ""
    parameters: Annotated[dict[str, float], doc("Named scalars, finite")] = {}

    def __post_init__(self) -> None:
        require_finite(self.parameters, "parameters")


class CommandOptimizerAdjustment(Record, frozen=True, kw_only=True):
    """Changes of the optimizer's hyperparameters, as ``lr_change`` -0.1 for ten per cent less."""

    optimizer_id: Annotated[str, doc("Optimizer family addressed, as sgd")]
    hyperparameters: Annotated[dict[str, float], doc("Relative changes, finite and bounded", "1")] = {}

    def __post_init__(self) -> None:
        require_finite(self.hyperparameters, "hyperparameters")


class CommandCircuitBreaker(Record, frozen=True, kw_only=True):
    """State that Kasmina's kernel breaker shall take."""

    desired_state: CircuitBreakerState
    rationale: Annotated[str, doc("Why, as policy_action")] = ""


class AdaptationCommand(Message, frozen=True, kw_only=True):
    """One decision: what the training run is told after a step, and why (annotations, ``domain.md`` §4.8).

    At most one payload is set and it fits ``command_type``. A PAUSE without ``target_seed_id`` changes nothing.
    ``superseded_packet_ids`` are older packets of the run that this decision also answers: a step is either
    decided or superseded, never both.

    Raises:
        ValueError: a payload that does not belong to the command type, a command type without its payload, or a
            SEED command without target.
    """

    command_id: Annotated[Identifier, doc("UUID; doubles as replay nonce")]
    command_type: CommandType
    target_seed_id: Annotated[str, doc("Required for SEED and for PAUSE/resume of one seed")] = ""
    execution_deadline_ms: Annotated[Count, doc("Not to be executed later than this after issued_at", "ms")]
    issued_at: TimestampNs
    issued_by: Annotated[str, doc("Publisher")] = "tamiyo"
    run_id: Annotated[Identifier, doc("Training run addressed")]
    packet_id: Annotated[Identifier, doc("SystemStatePacket answered")]
    global_step: Annotated[Count, doc("Step answered", "{step}")]
    superseded_packet_ids: Annotated[list[str], doc("Older packets that this decision also answers")] = []
    seed_operation: Annotated[CommandSeedOperation | None, doc("Payload of SEED")] = None
    optimizer_adjustment: Annotated[CommandOptimizerAdjustment | None, doc("Payload of OPTIMIZER")] = None
    circuit_breaker: Annotated[CommandCircuitBreaker | None, doc("Payload of CIRCUIT_BREAKER")] = None
    rollback_payload: Annotated[dict[str, float | str | bool] | None, doc("Payload of ROLLBACK")] = None
    annotations: Annotated[dict[str, str], doc("Why and with what coverage (domain.md §4.8); signature last")] = {}

    def __post_init__(self) -> None:
        for payload, owner in PAYLOAD_OWNER.items():
            given = getattr(self, payload) is not None
            if given and self.command_type is not owner:
                raise ValueError(
                    f"payload `{payload}` belongs to {owner.name}, not to {self.command_type.name}; remove it"
                )
            if not given and self.command_type is owner:
                raise ValueError(f"a {owner.name} command has no `{payload}`; add it")
        if self.command_type is CommandType.SEED and not self.target_seed_id:
            raise ValueError("`target_seed_id` of a SEED command is empty; name the seed")


#: The payload each command type carries; the other types carry none.
PAYLOAD_OWNER: dict[str, CommandType] = {
    "seed_operation": CommandType.SEED,
    "optimizer_adjustment": CommandType.OPTIMIZER,
    "circuit_breaker": CommandType.CIRCUIT_BREAKER,
    "rollback_payload": CommandType.ROLLBACK,
}


class MitigationAction(Record, frozen=True, kw_only=True):
    """What is done about a regression."""

    action_type: Annotated[str, doc("As CONSERVATIVE_MODE")]
    rationale: Annotated[str, doc("Why")] = ""


class FieldReport(Message, frozen=True, kw_only=True):
    """What became of a command: Simic learns from these.

    Raises:
        ValueError: a metric that is not finite.
    """

    report_id: Annotated[Identifier, doc("UUID")]
    command_id: Annotated[Identifier, doc("Command reported on")]
    training_run_id: Annotated[Identifier, doc("Run that was told")]
    seed_id: Annotated[str, doc("Seed addressed; empty = none")] = ""
    blueprint_id: Annotated[str, doc("Kernel addressed; empty = none")] = ""
    outcome: FieldReportOutcome = FieldReportOutcome.UNSPECIFIED
    metrics: Annotated[dict[str, float], doc("Finite values; loss_delta first")] = {}
    observation_window_epochs: Annotated[int, Meta(ge=1), doc("Epochs observed", "{epoch}")] = 1
    issued_at: TimestampNs
    tamiyo_policy_version: Annotated[str, doc("Policy that decided")]
    follow_up_actions: Annotated[list[MitigationAction], doc("What is done about it")] = []
    notes: Annotated[str, doc("Text for people")] = ""

    def __post_init__(self) -> None:
        require_finite(self.metrics, "metrics")
