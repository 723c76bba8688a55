"""What Tamiyo publishes: commands and field reports (``domain.md`` §2.6, §2.7)."""

from __future__ import annotations

from typing import Annotated

from schemas.enums import CircuitBreakerState, CommandType, FieldReportOutcome, SeedOperation
from schemas.record import Identifier, Message, Record, TimestampNs, doc


class CommandSeedOperation(Record, frozen=True, kw_only=True):
    operation: SeedOperation
    blueprint_id: Annotated[str, doc("Kernel to graft; empty where the operation needs none")] = ""
    parameters: Annotated[dict[str, float], doc("Named scalars, finite")] = {}


class CommandOptimizerAdjustment(Record, frozen=True, kw_only=True):
    optimizer_id: str
    hyperparameters: Annotated[dict[str, float], doc("Relative changes, finite and bounded")] = {}


class CommandCircuitBreaker(Record, frozen=True, kw_only=True):
    desired_state: CircuitBreakerState
    rationale: str = ""


class AdaptationCommand(Message, frozen=True, kw_only=True):
    """One decision: what the training run is told after a step, and why (annotations, ``domain.md`` §4.8).

    At most one payload is set and it fits ``command_type``. A PAUSE without ``target_seed_id`` changes nothing.
    ``superseded_packet_ids`` are older packets of the run that this decision also answers: a step is either
    decided or superseded, never both.

    Raises:
        ValueError: a payload that does not belong to the command type.
    """

    command_id: Annotated[Identifier, doc("UUID; doubles as replay nonce")]
    command_type: CommandType
    target_seed_id: Annotated[str, doc("Required for SEED and for PAUSE/resume of one seed")] = ""
    execution_deadline_ms: Annotated[int, doc("Not to be executed later than this after issued_at", "ms")]
    issued_at: TimestampNs
    issued_by: str = "tamiyo"
    run_id: Annotated[Identifier, doc("Training run addressed")]
    packet_id: Annotated[Identifier, doc("SystemStatePacket answered")]
    global_step: Annotated[int, doc("Step answered")]
    superseded_packet_ids: list[str] = []
    seed_operation: CommandSeedOperation | None = None
    optimizer_adjustment: CommandOptimizerAdjustment | None = None
    circuit_breaker: CommandCircuitBreaker | None = None
    rollback_payload: dict[str, float | str | bool | None] | None = None
    annotations: dict[str, str] = {}

    def __post_init__(self) -> None:
        for payload, owner in PAYLOAD_OWNER.items():
            given = getattr(self, payload) is not None
            if given and self.command_type is not owner:
                raise ValueError(
                    f"payload `{payload}` belongs to {owner.name}, not to {self.command_type.name}; remove it"
                )
            if not given and self.command_type is owner:
                raise ValueError(f"a {owner.name} command needs its payload `{payload}`")


#: The payload each command type carries; the other types carry none.
PAYLOAD_OWNER: dict[str, CommandType] = {
    "seed_operation": CommandType.SEED,
    "optimizer_adjustment": CommandType.OPTIMIZER,
    "circuit_breaker": CommandType.CIRCUIT_BREAKER,
    "rollback_payload": CommandType.ROLLBACK,
}


class MitigationAction(Record, frozen=True, kw_only=True):
    action_type: Annotated[str, doc("As CONSERVATIVE_MODE")]
    rationale: str = ""


class FieldReport(Message, frozen=True, kw_only=True):
    """What became of a command: Simic learns from these."""

    report_id: Annotated[Identifier, doc("UUID")]
    command_id: Identifier
    training_run_id: Identifier
    seed_id: str = ""
    blueprint_id: str = ""
    outcome: FieldReportOutcome = FieldReportOutcome.UNSPECIFIED
    metrics: Annotated[dict[str, float], doc("Finite values; loss_delta first")] = {}
    observation_window_epochs: int = 1
    issued_at: TimestampNs
    tamiyo_policy_version: str
    follow_up_actions: list[MitigationAction] = []
    notes: str = ""
