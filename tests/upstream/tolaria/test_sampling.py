"""How far apart sampled steps are: as asked, or by what they turn out to cost."""

from __future__ import annotations

import pytest

from tamiyo_stream.upstream.tolaria.sampling import BUDGET, LONGEST, SHORTEST, SamplingInterval


def sampled_steps(interval, plain_s, sampled_s, steps):
    """Return which of ``steps`` steps are sampled; the first one is."""
    chosen, sampled = [], True
    for step in range(steps):
        if sampled:
            chosen.append(step)
        sampled = interval.next_is_sampled(sampled_s if sampled else plain_s, sampled)
    return chosen


@pytest.mark.parametrize("every", [1, 2, 7])
def test_a_fixed_interval_is_kept_whatever_it_costs(every):
    assert sampled_steps(SamplingInterval(every), 0.001, 1.0, 30) == list(range(0, 30, every))


def test_cheap_sampling_happens_at_the_shortest_interval():
    assert sampled_steps(SamplingInterval(), 0.1, 0.11, 35) == [0, SHORTEST, 2 * SHORTEST, 3 * SHORTEST]


def test_dear_sampling_stays_within_the_budget():
    chosen = sampled_steps(SamplingInterval(), 0.1, 0.3, 1000)
    spent = 0.2 * len(chosen)

    assert spent <= 1.05 * BUDGET * 0.1 * 1000
    assert chosen[2] - chosen[1] == pytest.approx(0.2 / (BUDGET * 0.1), abs=1)


def test_one_slow_step_does_not_stop_sampling():
    interval = SamplingInterval()
    interval.next_is_sampled(0.1, False)
    for seconds in (30.0, 0.11, 0.11):  # an evaluation fell into the first sampled step
        interval.next_is_sampled(seconds, True)

    assert interval.steps == SHORTEST


def test_the_interval_is_bounded():
    assert sampled_steps(SamplingInterval(), 0.001, 10.0, 2 * LONGEST) == [0, LONGEST]


def test_unknown_times_change_nothing():
    assert sampled_steps(SamplingInterval(), None, None, 21) == [0, SHORTEST, 2 * SHORTEST]
