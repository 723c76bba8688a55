"""Acting on Tamiyo's commands: which operation on the seeds each asks for, or why it is refused.

How Kasmina acts on each type: ``domain.md`` §2.6. The inbox has verified signature, run and uniqueness; here a
command must still be in time, fit the seed's stage and pass its gate. A refused command changes nothing. Learning
rates are the training loop's business (:mod:`tamiyo_stream.upstream.tolaria.learning_rate`); Leyline's other seed
operations, which the prototype accepts and ignores, are refused, for a seed takes these steps by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.command_verifier import CommandRefusal
from schemas.enums import CommandType, SeedOperation
from schemas.tamiyo import AdaptationCommand
from tamiyo_stream.upstream.kasmina.blending import ScheduleInvalid
from tamiyo_stream.upstream.kasmina.lifecycle import GateFailed, IllegalMove
from tamiyo_stream.upstream.kasmina.mixing import BlendConfig, BlendInvalid, BlendMode
from tamiyo_stream.upstream.kasmina.seedbed import Seedbed, SeedUnknown

#: Longest ``alpha_vec`` annotation that is read (``domain.md`` §4.3).
MAX_ALPHA_VEC_CHARS = 1024


class Refusal(StrEnum):
    """Why a command changed nothing."""

    LATE = "execution_deadline_passed"
    UNSUPPORTED = "unsupported_command"
    NOT_FOR_SEEDS = "optimizer_adjust"
    SEED_UNKNOWN = "seed_unknown"
    ILLEGAL_MOVE = "illegal_move"
    GATE_FAILED = "gate_failed"
    PARAMETERS_INVALID = "parameters_invalid"


@dataclass(frozen=True, slots=True)
class Applied:
    """A command that was carried out, and what it did, in a few words."""

    command_id: str
    effect: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that changed nothing; ``detail`` is for people."""

    command_id: str
    reason: Refusal | CommandRefusal
    detail: str


class _Unsupported(Exception):
    """Nothing here acts on the command; carries the refusal."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.refusal = refusal


#: Carries a command out on the seeds and returns what it did.
Handler = Callable[[Seedbed, AdaptationCommand], str]

_REFUSALS: Mapping[type[Exception], Refusal] = {
    SeedUnknown: Refusal.SEED_UNKNOWN,
    IllegalMove: Refusal.ILLEGAL_MOVE,
    GateFailed: Refusal.GATE_FAILED,
    ScheduleInvalid: Refusal.PARAMETERS_INVALID,
    BlendInvalid: Refusal.PARAMETERS_INVALID,
}


def apply_command(bed: Seedbed, command: AdaptationCommand, *, now_ns: int | None = None) -> Applied | Refused:
    """Carry ``command`` out on the seeds of ``bed``, or refuse it and change nothing.

    ``now_ns``: Unix time; where given, a command past its ``execution_deadline_ms`` is refused.
    """
    if now_ns is not None and now_ns > command.issued_at + command.execution_deadline_ms * 1_000_000:
        return Refused(command.command_id, Refusal.LATE, f"{command.execution_deadline_ms} ms after it was issued")
    try:
        return Applied(command.command_id, _HANDLERS.get(command.command_type, _unsupported)(bed, command))
    except _Unsupported as error:
        return Refused(command.command_id, error.refusal, str(error))
    except tuple(_REFUSALS) as error:
        return Refused(command.command_id, _REFUSALS[type(error)], str(error))


def blend_of(annotations: Mapping[str, str]) -> BlendConfig:
    """Return the blend that a command's annotations ask for; an unknown mode is convex, as Kasmina has it.

    Raises:
        BlendInvalid: an annotation that is no number, or a steepness or margin below 0.
    """
    name = annotations.get("blend_mode", "")
    mode = BlendMode(name) if name in BlendMode.__members__ else BlendMode.CONVEX
    if mode is BlendMode.CHANNEL:
        return BlendConfig(mode, alpha_vec=_alphas(annotations.get("alpha_vec", "")))
    if mode is not BlendMode.CONFIDENCE:
        return BlendConfig(mode)
    low, high = (_clamped(_number(annotations, key, at)) for key, at in (("alpha_lo", 0.0), ("alpha_hi", 1.0)))
    gate_k, gate_tau = (_number(annotations, key, at) for key, at in (("gate_k", 4.0), ("gate_tau", 0.2)))
    return BlendConfig(mode, gate_k, gate_tau, min(low, high), max(low, high))


def _seed(bed: Seedbed, command: AdaptationCommand) -> str:
    operation = command.seed_operation.operation if command.seed_operation is not None else SeedOperation.UNKNOWN
    return _OPERATIONS.get(operation, _unsupported)(bed, command)


def _germinate(bed: Seedbed, command: AdaptationCommand) -> str:
    asked = command.seed_operation
    if asked is None:
        return _unsupported(bed, command)
    bed.germinate(
        command.target_seed_id,
        asked.blueprint_id,
        asked.parameters,
        blend=blend_of(command.annotations),
        policy_version=command.annotations.get("policy_version", ""),
    )
    return f"{command.target_seed_id} germinated with {asked.blueprint_id}"


def _cull(bed: Seedbed, command: AdaptationCommand) -> str:
    bed.cull(command.target_seed_id)
    return f"{command.target_seed_id} culled"


def _pause(bed: Seedbed, command: AdaptationCommand) -> str:
    if not command.target_seed_id:
        return "no change"
    if command.annotations.get("resume") == "true":
        bed.resume(command.target_seed_id)
        return f"{command.target_seed_id} resumed"
    bed.pause(command.target_seed_id)
    return f"{command.target_seed_id} paused"


def _leave_to_the_loop(_: Seedbed, __: AdaptationCommand) -> str:
    raise _Unsupported(Refusal.NOT_FOR_SEEDS, "the training loop changes the optimizer, no seed does")


def _unsupported(_: Seedbed, command: AdaptationCommand) -> str:
    asked = command.command_type.name
    if command.seed_operation is not None:
        asked = f"{asked} {command.seed_operation.operation.name}"
    raise _Unsupported(Refusal.UNSUPPORTED, f"this seed host has nothing that acts on {asked}")


_HANDLERS: Mapping[CommandType, Handler] = {
    CommandType.SEED: _seed,
    CommandType.PAUSE: _pause,
    CommandType.OPTIMIZER: _leave_to_the_loop,
}
_OPERATIONS: Mapping[SeedOperation, Handler] = {
    SeedOperation.GERMINATE: _germinate,
    SeedOperation.CULL: _cull,
    SeedOperation.CANCEL: _cull,
}


def _number(annotations: Mapping[str, str], key: str, default: float) -> float:
    try:
        return float(annotations.get(key, default))
    except ValueError:
        raise BlendInvalid(f"annotation {key} is {annotations[key]!r}; send a number") from None


def _alphas(text: str) -> tuple[float, ...]:
    """Return the alphas of a JSON list, or of numbers with commas between; empty: none."""
    if len(text) > MAX_ALPHA_VEC_CHARS:
        raise BlendInvalid(f"alpha_vec has {len(text)} characters; at most {MAX_ALPHA_VEC_CHARS} are read")
    if not text.strip():
        return ()
    try:
        values = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
        return tuple(_clamped(float(value)) for value in values)
    except (TypeError, ValueError) as error:
        raise BlendInvalid(f"annotation alpha_vec cannot be read ({error}); send a list of numbers") from None


def _clamped(value: float) -> float:
    """Return ``value`` limited to 0..1; NaN stays, to be refused."""
    return value if math.isnan(value) else min(max(value, 0.0), 1.0)
