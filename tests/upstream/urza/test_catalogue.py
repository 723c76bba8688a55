"""The catalogue's table: Karn's bands (domain.md §4.10), and enough of each tier to try Tamiyo's rules on."""

from __future__ import annotations

import pytest

from schemas.enums import BlueprintTier
from tamiyo_stream.upstream.urza.catalogue import KERNELS, catalogue

ALL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
#: tier -> first and last number, least and most risk, least and most stage, approval, quarantine
BANDS = {
    BlueprintTier.SAFE: (1, 35, 0.0, 0.5, 0, 4, False, False),
    BlueprintTier.EXPERIMENTAL: (36, 42, 0.7, 0.8, 5, 5, True, False),
    BlueprintTier.HIGH_RISK: (43, 50, 0.9, 1.0, 6, 6, True, True),
}


@ALL
def test_a_kernel_lies_in_the_band_of_its_number(kernel):
    descriptor = kernel.descriptor
    first, last, least, most, lowest, highest, approval, quarantine = BANDS[descriptor.tier]

    assert first <= int(kernel.blueprint_id.removeprefix("BP")) <= last
    assert least <= descriptor.risk <= most
    assert lowest <= descriptor.stage <= highest
    assert (descriptor.approval_required, descriptor.quarantine_only) == (approval, quarantine)
    assert not descriptor.approved


@ALL
def test_a_descriptor_says_what_the_kernel_is_and_what_may_be_set(kernel):
    assert kernel.descriptor.name == kernel.name
    assert kernel.descriptor.description.endswith(".")
    assert len(kernel.tunables) <= 2
    for tunable in kernel.tunables:
        bounds = kernel.descriptor.allowed_parameters[tunable.name]
        assert bounds.min_value <= tunable.default <= bounds.max_value


def test_ids_and_names_are_unique_and_fit_tamiyos_kernel_slots():
    assert len(catalogue()) == len({kernel.name for kernel in KERNELS}) == len(KERNELS)
    assert list(catalogue().values()) == list(KERNELS)
    assert 14 <= len(KERNELS) <= 24


def test_every_tier_is_there():
    tiers = [kernel.descriptor.tier for kernel in KERNELS]

    assert [tiers.count(tier) for tier in BANDS] == [12, 3, 6]


def test_every_value_that_a_command_may_set_builds_the_kernel():
    for kernel in KERNELS:
        bounds = kernel.descriptor.allowed_parameters
        for end in ("min_value", "max_value"):
            kernel.build(8, {name: getattr(bound, end) for name, bound in bounds.items()})
        assert {name: bound.whole for name, bound in bounds.items()} == {t.name: t.whole for t in kernel.tunables}
