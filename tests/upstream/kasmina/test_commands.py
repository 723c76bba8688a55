"""Commands become operations on the seeds, or are refused with a reason and change nothing."""

from __future__ import annotations

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalogue import Stream
from schemas.command_verifier import CommandRefusal, CommandVerifier, sign_command
from schemas.entry import encode_entry
from schemas.enums import CircuitBreakerState, CommandType, SeedOperation, TelemetryLevel
from schemas.signing import Keyring
from schemas.tamiyo import (
    AdaptationCommand,
    CommandCircuitBreaker,
    CommandOptimizerAdjustment,
    CommandSeedOperation,
)
from tamiyo_stream.upstream.commands import CommandInbox
from tamiyo_stream.upstream.kasmina.commands import Applied, Refusal, Refused, blend_of
from tamiyo_stream.upstream.kasmina.lifecycle import Stage
from tamiyo_stream.upstream.kasmina.mixing import BlendConfig, BlendInvalid, BlendMode
from tests.upstream.kasmina.gardens import WIDTH, Garden
from tests.upstream.waiting import wait_until

ISSUED_AT = 1_000_000_000_000


def command(kind=CommandType.PAUSE, target="s1", **fields):
    return AdaptationCommand(
        command_id="c-1",
        command_type=kind,
        target_seed_id=target,
        execution_deadline_ms=45,
        issued_at=ISSUED_AT,
        run_id="run",
        packet_id="run-step-1",
        global_step=1,
        **fields,
    )


def seed_command(operation=SeedOperation.GERMINATE, target="s1", annotations=None, **fields):
    return command(
        CommandType.SEED,
        target,
        seed_operation=CommandSeedOperation(operation=operation, **fields),
        annotations=annotations or {},
    )


def germinate(target="s1", blueprint_id="identity", parameters=None, **annotations):
    return seed_command(
        target=target, blueprint_id=blueprint_id, parameters=parameters or {}, annotations=annotations
    )


def test_germinate_grafts_the_kernel_as_the_decision_asks_for():
    garden = Garden(export_every=1).train(6)
    parameters = {"blending_method_index": 1.0, "blending_schedule_start": 0.25, "blending_schedule_end": 0.75}

    result = garden.host.apply(germinate(parameters=parameters, policy_version="v7", blend_mode="RESIDUAL"))
    seed = garden.train().exported()

    assert result == Applied("c-1", "s1 germinated with identity")
    assert (seed.stage, seed.blueprint_id, seed.policy_version) == (Stage.GERMINATED, "identity", "v7")
    assert (seed.alpha_schedule.method, seed.alpha_schedule.start, seed.alpha_schedule.end) == (
        "cosine",
        0.25,
        0.75,
    )
    assert garden.host._bed.seed("s1").graft.blend == BlendConfig(BlendMode.RESIDUAL)


@pytest.mark.parametrize("operation", [SeedOperation.CULL, SeedOperation.CANCEL])
def test_cull_and_cancel_take_the_kernel_away(operation):
    garden = Garden().germinated()

    assert garden.host.apply(seed_command(operation)) == Applied("c-1", "s1 culled")
    assert garden.host.stage("s1") is Stage.CULLED


def test_pause_and_resume_act_on_their_seed():
    garden = Garden().germinated().until(Stage.BLENDING).train(4)

    assert garden.host.apply(command()) == Applied("c-1", "s1 paused")
    assert garden.host._bed.seed("s1").alpha == 0.0
    assert garden.host.apply(command(annotations={"resume": "true"})) == Applied("c-1", "s1 resumed")
    assert garden.host._bed.seed("s1").alpha > 0.0


def test_a_pause_without_target_changes_nothing():
    assert Garden().host.apply(command(target="")) == Applied("c-1", "no change")


@pytest.mark.parametrize(
    ("asked", "refusal", "detail"),
    [
        (germinate(target="s9"), Refusal.SEED_UNKNOWN, "no seed 's9'"),
        (germinate(blueprint_id="BP050"), Refusal.GATE_FAILED, "kernel_unknown"),
        (germinate(parameters={"blending_method_index": 7.0}), Refusal.PARAMETERS_INVALID, "use 0 to 3"),
        (germinate(blend_mode="CHANNEL", alpha_vec="[1, 1]"), Refusal.PARAMETERS_INVALID, "2 values, the site 12"),
        (seed_command(SeedOperation.CULL), Refusal.ILLEGAL_MOVE, "cannot become CULLED"),
        (command(), Refusal.ILLEGAL_MOVE, "nothing to pause"),
        (seed_command(SeedOperation.FOSSILIZE), Refusal.UNSUPPORTED, "acts on SEED FOSSILIZE"),
        (command(CommandType.EMERGENCY), Refusal.UNSUPPORTED, "acts on EMERGENCY"),
        (
            command(
                CommandType.CIRCUIT_BREAKER,
                circuit_breaker=CommandCircuitBreaker(desired_state=CircuitBreakerState.OPEN),
            ),
            Refusal.UNSUPPORTED,
            "acts on CIRCUIT_BREAKER",
        ),
        (
            command(CommandType.OPTIMIZER, optimizer_adjustment=CommandOptimizerAdjustment(optimizer_id="adam")),
            Refusal.NOT_FOR_SEEDS,
            "training loop",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Refusal) else "",
)
def test_a_refused_command_says_why_and_changes_nothing(asked, refusal, detail):
    garden = Garden().train(6)

    result = garden.host.apply(asked)

    assert isinstance(result, Refused)
    assert result.reason is refusal
    assert detail in result.detail
    assert [garden.host.stage(seed_id) for seed_id in ("s1", "s2")] == [Stage.DORMANT] * 2
    assert len(garden.training.optimizer.param_groups) == 1


def test_a_command_past_its_deadline_is_refused():
    garden = Garden().train(6)

    assert garden.host.apply(germinate(), now_ns=ISSUED_AT + 46_000_000).reason is Refusal.LATE
    assert isinstance(garden.host.apply(germinate(), now_ns=ISSUED_AT + 45_000_000), Applied)


@pytest.mark.parametrize(
    ("asked", "code", "level"),
    [
        (germinate(target="s9"), "command_rejected", TelemetryLevel.ERROR),
        (command(CommandType.EMERGENCY), "unsupported_command", TelemetryLevel.WARNING),
    ],
)
def test_a_refusal_is_told_in_the_next_steps_telemetry_once(asked, code, level):
    garden = Garden(telemetry_every=1000).train(6)
    garden.host.apply(asked)
    garden.train(3)

    [event] = garden.events(code)
    assert event.level is level
    assert event.attributes["command_id"] == "c-1"


def test_what_the_optimizer_is_asked_for_is_no_alarm():
    garden = Garden(telemetry_every=4).train(1)
    garden.host.apply(
        command(CommandType.OPTIMIZER, optimizer_adjustment=CommandOptimizerAdjustment(optimizer_id="adam"))
    )
    garden.train(2)
    assert not garden.events("optimizer_adjust")
    garden.train(2)

    assert [event.level for event in garden.events("optimizer_adjust")] == [TelemetryLevel.INFO]


@pytest.mark.parametrize(
    ("annotations", "blend"),
    [
        ({}, BlendConfig()),
        ({"blend_mode": "SOMETHING"}, BlendConfig()),
        ({"blend_mode": "RESIDUAL", "alpha_vec": "[9]"}, BlendConfig(BlendMode.RESIDUAL)),
        ({"blend_mode": "CONFIDENCE"}, BlendConfig(BlendMode.CONFIDENCE)),
        (
            {"blend_mode": "CONFIDENCE", "gate_k": "1.0", "gate_tau": "0.5", "alpha_lo": "2", "alpha_hi": "0.25"},
            BlendConfig(BlendMode.CONFIDENCE, 1.0, 0.5, 0.25, 1.0),
        ),
        ({"blend_mode": "CHANNEL", "alpha_vec": "[0.5, 7]"}, BlendConfig(BlendMode.CHANNEL, alpha_vec=(0.5, 1.0))),
        ({"blend_mode": "CHANNEL", "alpha_vec": "0.5,-1"}, BlendConfig(BlendMode.CHANNEL, alpha_vec=(0.5, 0.0))),
        ({"blend_mode": "CHANNEL"}, BlendConfig(BlendMode.CHANNEL)),
    ],
)  # fmt: skip
def test_annotations_name_the_blend(annotations, blend):
    assert blend_of(annotations) == blend


@pytest.mark.parametrize(
    "annotations",
    [
        {"blend_mode": "CONFIDENCE", "gate_k": "many"},
        {"blend_mode": "CONFIDENCE", "gate_k": "nan"},
        {"blend_mode": "CONFIDENCE", "alpha_lo": "nan"},
        {"blend_mode": "CHANNEL", "alpha_vec": "[nan]"},
        {"blend_mode": "CHANNEL", "alpha_vec": '{"a": 1}'},
        {"blend_mode": "CHANNEL", "alpha_vec": "[[1]]"},
        {"blend_mode": "CHANNEL", "alpha_vec": "1," * 600},
    ],
)
def test_annotations_that_cannot_be_read_are_refused(annotations):
    with pytest.raises(BlendInvalid):
        blend_of(annotations)


@given(st.sampled_from(["alpha_vec", "gate_k", "gate_tau", "alpha_lo", "alpha_hi"]), st.text(max_size=40))
def test_no_annotation_raises_anything_else(key, text):
    for mode in BlendMode:
        try:
            blend_of({"blend_mode": mode, key: text})
        except BlendInvalid:
            continue


def test_a_command_travels_from_redis_to_the_seed(redis_url):
    garden = Garden().train(6)
    vector = ",".join(["0.5"] * WIDTH)
    with CommandInbox(redis_url, "run") as inbox, redis.Redis.from_url(redis_url) as client:
        asked = germinate(blend_mode="CHANNEL", alpha_vec=vector)
        client.xadd(Stream.COMMANDS, encode_entry(asked, None))
        wait_until(lambda: inbox.statistics().waiting, "the command arrived")
        [received] = inbox.receive()
    garden.host.apply(received.command)

    assert garden.until(Stage.FOSSILIZED).exported().blueprint_id == "identity"


def test_a_host_with_a_verifier_acts_once_on_fresh_and_authentic_commands_only():
    keyring = Keyring({"k1": b"secret"})
    garden = Garden(verifier=CommandVerifier(keyring)).train(6)
    fresh = ISSUED_AT + 1_000_000
    asked = germinate()
    signed = sign_command(asked, keyring)

    refused = garden.host.apply(asked, now_ns=fresh)
    assert (refused.reason, garden.host.stage("s1")) == (CommandRefusal.MISSING_SIGNATURE, Stage.DORMANT)
    late = garden.host.apply(signed, now_ns=ISSUED_AT + 120 * 10**9)
    assert (late.reason, garden.host.stage("s1")) == (CommandRefusal.STALE_COMMAND, Stage.DORMANT)
    assert isinstance(garden.host.apply(signed, now_ns=fresh), Applied)
    assert garden.host.apply(signed, now_ns=fresh).reason is CommandRefusal.NONCE_REPLAYED
