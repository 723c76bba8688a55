"""What the comparison of two policies on the same graphs reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tamiyo_stream.inference.output import NonFiniteOutput
from tamiyo_stream.inference.shadow import Comparison
from tests.inference.test_stage import GRAPHS, output_of

LOW = np.array([50, 0, 0, 0, 0], np.float32)
HIGH = np.array([0, 0, 0, 0, 50], np.float32)


def answer(action: int = 0, value: float = 0.0, risk: np.ndarray = LOW):
    return replace(
        output_of(GRAPHS[0]),
        policy_logits=np.eye(32, dtype=np.float32)[action],
        value_estimate=value,
        risk_logits=risk,
    )


def compared(old, new, **times):
    comparison = Comparison()
    comparison.add_batch(old, new, **{"old_ms": 2.0, "new_ms": 2.0, **times})
    return comparison.report()


def test_the_same_answers_agree_without_drift() -> None:
    report = compared([answer(3, 1.0)], [answer(3, 1.0)])
    assert (report.graphs, report.agreement, report.value_drift, report.risk_drift) == (1, 1.0, 0.0, 0.0)


def test_agreement_is_the_share_of_equal_best_actions() -> None:
    report = compared([answer(1), answer(2), answer(3), answer(4)], [answer(1), answer(2), answer(3), answer(5)])
    assert report.agreement == 0.75


def test_drifts_are_mean_absolute_differences() -> None:
    report = compared([answer(value=1.0), answer(value=1.0)], [answer(value=0.0), answer(value=4.0, risk=HIGH)])
    assert report.value_drift == 2.0
    assert report.risk_drift == pytest.approx(0.5)


def test_the_latency_ratio_is_the_median_over_batches() -> None:
    comparison = Comparison()
    for new_ms in (1.0, 3.0, 50.0):
        comparison.add_batch([answer()], [answer()], old_ms=2.0, new_ms=new_ms)
    assert comparison.report().latency_ratio == 1.5


def test_only_an_answer_that_the_old_policy_could_give_counts_against_the_new_one() -> None:
    broken = NonFiniteOutput("run", "risk_logits")
    report = compared([answer(), broken, broken], [broken, broken, answer()])
    assert (report.graphs, report.non_finite, report.agreement) == (0, 1, None)
