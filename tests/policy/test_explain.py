"""A command in words."""

from __future__ import annotations

import msgspec
import numpy as np

from schemas.enums import CircuitBreakerState, SeedLifecycleStage
from tamiyo_stream.policy.decision import decide
from tamiyo_stream.policy.explain import explain
from tamiyo_stream.policy.facts import Guard
from tests.policy.samples import STAMP, facts, graft_facts, grafting, kernel, preferring, seed

CALM = np.zeros(5, dtype=np.float32)


def told(given, answer=None, **options) -> str:
    return "\n".join(explain(decide(given, answer, STAMP, **options).command))


def test_a_graft_is_told_with_target_kernel_parameters_and_grounds() -> None:
    text = told(graft_facts(seeds=[seed("a", allowed_blending_methods=["cosine"])]), grafting())
    assert "run r, step 9 (packet p)" in text
    assert "command c-1: germinate seed a with k (alpha 0, blending_method_index 1," in text
    assert "reason: policy" in text
    assert "the network chose graft, seed a, kernel k" in text
    assert "attends to layers: l0 (0.5), l2 (0.3), l1 (0.2)" in text
    assert "rule policy_risk_signal: risk_score" in text
    assert "feature coverage: 0.500; least covered: layer.weight_norm (0.5)" in text


def test_a_downgrade_is_told_with_the_rule_that_caused_it() -> None:
    text = told(graft_facts(loss_delta=0.1), grafting())
    assert "command c-1: adjust adamw (lr_change" in text
    assert "the network chose graft, seed a, kernel k; the risk engine left optimizer" in text
    assert "rule loss_warning: loss_delta 0.1 against 0.075 -> optimizer" in text


def test_a_masked_preference_is_told_with_its_refusal() -> None:
    given = facts(seeds=[seed("a")], kernels=[kernel("k", quarantine_only=True)])
    text = told(given, preferring(8, 7, seeds=1, kernels=1, risk_logits=CALM))
    assert "it would have preferred germinate (slot 8): refused, bp_quarantine" in text


def test_a_failure_is_told() -> None:
    text = told(facts(superseded=["p1", "p2"]), failure="timeout_inference")
    assert "command c-1: pause without target (changes nothing)" in text
    assert "reason: timeout_inference" in text
    assert "rule timeout_inference: failure timeout_inference against timeout_inference -> pause" in text
    assert "also answers 2 older packets" in text


def test_every_kind_of_command_is_told() -> None:
    training = SeedLifecycleStage.TRAINING
    running = [seed("a", training, metrics={"paused": 0.0})]
    paused = [seed("a", training, metrics={"paused": 1.0})]
    assert "cull seed a" in told(facts(seeds=running), preferring(5, seeds=1, risk_logits=CALM))
    assert ": pause seed a" in told(facts(seeds=running), preferring(2, seeds=1, risk_logits=CALM))
    assert ": resume seed a" in told(facts(seeds=paused), preferring(6, seeds=1, risk_logits=CALM))
    closed = Guard(kernel_breaker=CircuitBreakerState.CLOSED)
    assert "set the kernel breaker to OPEN" in told(facts(), preferring(3, risk_logits=CALM), guard=closed)


def test_a_command_without_annotations_or_with_broken_ones_is_still_told() -> None:
    command = decide(facts(), preferring(7, risk_logits=CALM), STAMP).command
    for notes in ({}, {"why": "{", "coverage_map": "[1]", "feature_coverage": "0.5"}, {"why": '{"rules": 3}'}):
        lines = explain(msgspec.structs.replace(command, annotations=notes))
        assert lines[1].startswith("command c-1: pause")
