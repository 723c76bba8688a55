"""Observation windows: true epochs, bounded, and never the deciding step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.enums import CommandType, SeedOperation
from schemas.tamiyo import AdaptationCommand, CommandOptimizerAdjustment, CommandSeedOperation
from tamiyo_stream.policy.windows import (
    Ending,
    StepOutcome,
    WindowRules,
    abandon,
    observe,
    open_window,
)
from tamiyo_stream.runs.state import ObservationWindow

SECOND = 10**9
RULES = WindowRules(target_epochs=2, max_open=3, expiry_s=100)


def command(name: str = "c", kind: CommandType = CommandType.SEED, *, issued_at: int = 0) -> AdaptationCommand:
    payloads = {
        CommandType.SEED: {
            "seed_operation": CommandSeedOperation(operation=SeedOperation.GERMINATE, blueprint_id="k"),
            "target_seed_id": "s",
        },
        CommandType.OPTIMIZER: {"optimizer_adjustment": CommandOptimizerAdjustment(optimizer_id="adamw")},
    }
    return AdaptationCommand(
        command_id=name,
        command_type=kind,
        execution_deadline_ms=1,
        issued_at=issued_at,
        run_id="r",
        packet_id="p",
        global_step=1,
        **payloads.get(kind, {}),
    )


def opened(
    *commands: AdaptationCommand, epoch: int = 3, rules: WindowRules = RULES
) -> dict[str, ObservationWindow]:
    windows: dict[str, ObservationWindow] = {}
    for item in commands:
        windows = open_window(
            windows, item, reason="policy", policy_version="v1", epoch=epoch, rules=rules
        ).windows
    return windows


def step(epoch: int, delta: float | None = None, **given) -> StepOutcome:
    return StepOutcome(**{"epoch": epoch, "now": SECOND, "loss_delta": delta, **given})


@pytest.mark.parametrize(
    ("kind", "opens"), [(CommandType.SEED, True), (CommandType.OPTIMIZER, True), (CommandType.PAUSE, False)]
)
def test_commands_that_are_meant_to_change_something_are_observed(kind, opens) -> None:
    assert (len(opened(command(kind=kind))) == 1) is opens


def test_a_window_remembers_what_was_commanded() -> None:
    (window,) = opened(command(issued_at=7)).values()
    assert window == ObservationWindow("c", "s", "k", "v1", "policy", 3, 2, 7)


def test_it_closes_when_its_epochs_are_over_and_not_after_as_many_steps() -> None:
    windows = opened(command())
    for _ in range(10):
        windows = observe(windows, step(3, -0.1), RULES).windows
    windows = observe(windows, step(4, -0.1), RULES).windows
    assert windows["c"].steps == 11
    change = observe(windows, step(5, 9.0), RULES)
    (closed,) = change.closed
    assert (change.windows, closed.ending) == ({}, Ending.COMPLETE)
    assert closed.window.loss_delta_sum == pytest.approx(-1.1)  # the step that closes it belongs to the next epoch


def test_a_jump_over_epochs_closes_it_too() -> None:
    assert observe(opened(command()), step(99), RULES).closed[0].ending is Ending.COMPLETE


def test_sums_and_extremes_are_those_of_the_steps_seen() -> None:
    windows = opened(command())
    for delta, latency in ((0.5, 10.0), (-0.25, None), (None, 20.0), (math.nan, math.inf)):
        windows = observe(windows, step(3, delta, hook_latency_ms=latency), RULES).windows
    window = windows["c"]
    assert (window.steps, window.loss_delta_sum) == (2, 0.25)
    assert (window.loss_delta_min, window.loss_delta_max) == (-0.25, 0.5)
    assert (window.hook_latency_sum, window.hook_latency_count) == (30.0, 2)


def test_extremes_start_with_the_first_step_not_with_zero() -> None:
    window = observe(opened(command()), step(3, 0.5), RULES).windows["c"]
    assert (window.loss_delta_min, window.loss_delta_max) == (0.5, 0.5)


def test_something_critical_is_remembered() -> None:
    windows = observe(opened(command()), step(3, critical=True), RULES).windows
    assert observe(windows, step(3), RULES).windows["c"].had_critical


def test_a_window_that_no_epoch_closes_expires() -> None:
    windows = opened(command(issued_at=5 * SECOND))
    assert observe(windows, step(3, now=104 * SECOND), RULES).closed == ()
    (closed,) = observe(windows, step(3, now=105 * SECOND), RULES).closed
    assert closed.ending is Ending.EXPIRED


def test_beyond_the_cap_the_oldest_make_room() -> None:
    windows = opened(*(command(f"c{i}") for i in range(3)))
    change = open_window(windows, command("c3"), reason="", policy_version="", epoch=3, rules=RULES)
    assert list(change.windows) == ["c1", "c2", "c3"]
    assert [(item.window.command_id, item.ending) for item in change.closed] == [("c0", Ending.DISPLACED)]


def test_a_command_that_was_never_executed_is_no_longer_observed() -> None:
    change = abandon(opened(command("a"), command("b")), ["b", "unknown"])
    assert list(change.windows) == ["a"]
    assert [(item.window.command_id, item.ending) for item in change.closed] == [("b", Ending.NOT_EXECUTED)]


def test_a_command_is_observed_once() -> None:
    windows = observe(opened(command()), step(3, 0.5), RULES).windows
    again = open_window(windows, command(), reason="", policy_version="", epoch=4, rules=RULES)
    assert (again.windows, again.closed) == (windows, ())


def test_observation_can_be_switched_off() -> None:
    assert opened(command(), rules=WindowRules(target_epochs=0)) == {}


def test_what_was_given_is_never_changed() -> None:
    windows = opened(command())
    observe(windows, step(3, 0.5, critical=True, hook_latency_ms=1.0), RULES)
    assert windows == opened(command())


@pytest.mark.parametrize("given", [{"target_epochs": -1}, {"max_open": 0}, {"expiry_s": 0}])
def test_rules_that_make_no_sense_are_refused(given) -> None:
    with pytest.raises(ValueError, match="give at least"):
        WindowRules(**given)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 60)), max_size=60))
def test_every_window_closes_exactly_once_and_the_cap_holds(history) -> None:
    windows: dict[str, ObservationWindow] = {}
    closed: list[str] = []
    epoch, now, opened_ids = 0, 0, []
    for number, (commands, epochs, seconds) in enumerate(history):
        epoch, now = epoch + epochs, now + seconds * SECOND
        change = observe(windows, step(epoch, 0.1, now=now), RULES)
        closed += [item.window.command_id for item in change.closed]
        windows = change.windows
        if commands:
            opened_ids.append(f"c{number}")
            change = open_window(
                windows,
                command(f"c{number}", issued_at=now),
                reason="",
                policy_version="",
                epoch=epoch,
                rules=RULES,
            )
            closed += [item.window.command_id for item in change.closed]
            windows = change.windows
        assert len(windows) <= RULES.max_open
    assert sorted([*closed, *windows]) == sorted(opened_ids)
