"""The command of a decision: its payload follows from what is issued, never from what was wanted (design §9)."""

from __future__ import annotations

from schemas.enums import CircuitBreakerState, SeedOperation
from schemas.tamiyo import (
    AdaptationCommand,
    CommandCircuitBreaker,
    CommandOptimizerAdjustment,
    CommandSeedOperation,
)
from tamiyo_stream.policy.actions import COMMAND_TYPES, Action
from tamiyo_stream.policy.facts import Stamp, StepFacts
from tamiyo_stream.policy.parameters import LR_CHANGE, germination_parameters, learning_rate_change
from tamiyo_stream.policy.selection import Selection

RATIONALE = "policy_action"

_DESIRED_STATES = {
    Action.BREAKER_OPEN: CircuitBreakerState.OPEN,
    Action.BREAKER_CLOSE: CircuitBreakerState.CLOSED,
}


def build_command(
    facts: StepFacts, stamp: Stamp, issued: Selection, annotations: dict[str, str]
) -> AdaptationCommand:
    """Return the unsigned command for what is ``issued``."""
    return AdaptationCommand(
        command_id=stamp.command_id,
        command_type=COMMAND_TYPES[issued.action],
        target_seed_id=facts.seeds[issued.seed].seed_id if issued.seed is not None else "",
        execution_deadline_ms=stamp.execution_deadline_ms,
        issued_at=stamp.issued_at,
        run_id=facts.packet.run_id,
        packet_id=facts.packet.packet_id,
        global_step=facts.packet.global_step,
        superseded_packet_ids=list(facts.superseded_packet_ids),
        seed_operation=_seed_operation(facts, issued),
        optimizer_adjustment=_optimizer_adjustment(facts, issued, stamp.lr_change_max),
        circuit_breaker=_circuit_breaker(issued),
        annotations=annotations,
    )


def _seed_operation(facts: StepFacts, issued: Selection) -> CommandSeedOperation | None:
    if issued.action is Action.CULL:
        return CommandSeedOperation(operation=SeedOperation.CULL)
    if issued.kernel is None or issued.seed is None or issued.blending is None:
        return None
    kernel = facts.kernels[issued.kernel]
    return CommandSeedOperation(
        operation=SeedOperation.GERMINATE,
        blueprint_id=kernel.blueprint_id,
        parameters=germination_parameters(
            issued.blending, kernel.descriptor, facts.seeds[issued.seed].allowed_parameters, issued.params
        ),
    )


def _optimizer_adjustment(
    facts: StepFacts, issued: Selection, largest_change: float
) -> CommandOptimizerAdjustment | None:
    """Return a learning-rate change relative to the present rate; a downgrade never raises it."""
    if issued.action is not Action.OPTIMIZER:
        return None
    change = learning_rate_change(issued.param, largest_change, raise_allowed=not issued.downgraded)
    return CommandOptimizerAdjustment(
        optimizer_id=facts.optimizer_families[0], hyperparameters={LR_CHANGE: change}
    )


def _circuit_breaker(issued: Selection) -> CommandCircuitBreaker | None:
    desired = _DESIRED_STATES.get(issued.action)
    return CommandCircuitBreaker(desired_state=desired, rationale=RATIONALE) if desired is not None else None
