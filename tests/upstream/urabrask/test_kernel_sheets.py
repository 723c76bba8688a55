"""Safety sheets of the catalogue: safe kernels pass, hazardous ones show their own hazard, failures are said."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import torch
from torch import nn

from schemas.entry import decode_entry, encode_entry
from schemas.enums import BlueprintTier, HandlingClass, HazardBand, Provenance, ResourceProfile
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from tamiyo_stream.upstream.urabrask.crucible import evaluate_kernel, probe_module
from tamiyo_stream.upstream.urabrask.trial import KernelInterfaceBroken, TrialPlan
from tamiyo_stream.upstream.urza.catalogue import KERNELS
from tamiyo_stream.upstream.urza.kernel import KernelParameterInvalid, KernelWidthInvalid

WIDTH = 64
ALL_OK = {
    "grad_instability": "ok",
    "nan_inf": "ok",
    "precision": "ok",
    "oscillation": "ok",
    "memory_watermark": "ok",
    "oom_risk": "ok",
}
OWN_HAZARDS = {
    "exploding_gradient": {"grad_instability": "explode"},
    "vanishing_gradient": {"grad_instability": "vanish"},
    "nan_injector": {"nan_inf": "present"},
    "oscillator": {"oscillation": "high"},
    "memory_hog": {"memory_watermark": "high", "oom_risk": "risk"},
    "precision_sensitive": {"precision": "sensitive"},
}
BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def of_tier(tier):
    return pytest.mark.parametrize(
        "kernel", [k for k in KERNELS if k.descriptor.tier is tier], ids=lambda kernel: kernel.name
    )


def with_module(factory):
    """Return a kernel of the safe tier whose module is ``factory()``."""
    return replace(BY_NAME["norm_linear"], factory=lambda *_: factory())


@of_tier(BlueprintTier.SAFE)
def test_a_safe_kernel_passes_every_probe(kernel):
    sheet = evaluate_kernel(kernel, WIDTH, issued_at=3)

    assert sheet.hazards == ALL_OK
    assert sheet.risk_score == kernel.descriptor.risk
    assert sheet.hazard_band in {HazardBand.LOW, HazardBand.MEDIUM}
    assert sheet.handling_class is HandlingClass.STANDARD
    assert (sheet.provenance, sheet.issued_at) == (Provenance.URABRASK, 3)
    assert sheet.recommendation is None


@of_tier(BlueprintTier.EXPERIMENTAL)
def test_an_experimental_kernel_is_restricted_for_its_descriptors_risk(kernel):
    sheet = evaluate_kernel(kernel, WIDTH)

    assert sheet.hazards == ALL_OK
    assert (sheet.hazard_band, sheet.handling_class) == (HazardBand.HIGH, HandlingClass.RESTRICTED)
    assert "optimizer downgrade" in sheet.recommendation


@of_tier(BlueprintTier.HIGH_RISK)
@pytest.mark.parametrize("width", [8, WIDTH])
def test_a_hazardous_kernel_shows_its_own_hazard_and_goes_to_quarantine(kernel, width):
    sheet = evaluate_kernel(kernel, width)

    assert sheet.hazards.items() >= OWN_HAZARDS[kernel.name].items()
    assert (sheet.hazard_band, sheet.handling_class) == (HazardBand.CRITICAL, HandlingClass.QUARANTINE)
    assert sheet.risk_score == 1.0


@of_tier(BlueprintTier.HIGH_RISK)
def test_a_hazardous_kernel_is_found_out_by_its_behaviour_alone(kernel):
    """Also where its descriptor claims that it is harmless."""
    descriptor = msgspec.structs.replace(kernel.descriptor, risk=0.0, quarantine_only=False)
    sheet = evaluate_kernel(replace(kernel, descriptor=descriptor), WIDTH)

    assert sheet.risk_score >= 0.2
    assert sheet.hazards.items() >= OWN_HAZARDS[kernel.name].items()


@of_tier(BlueprintTier.HIGH_RISK)
def test_the_hazard_is_there_at_both_ends_of_the_parameters(kernel):
    for end in ("minimum", "maximum"):
        parameters = {tunable.name: getattr(tunable, end) for tunable in kernel.tunables}
        sheet = evaluate_kernel(kernel, 16, parameters=parameters)
        assert sheet.hazards.items() >= OWN_HAZARDS[kernel.name].items(), end


def test_what_a_nan_made_unmeasurable_is_left_out():
    assert evaluate_kernel(BY_NAME["nan_injector"], WIDTH).hazards.keys() == {
        "nan_inf",
        "memory_watermark",
        "oom_risk",
    }


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_sheet_reaches_its_reader_whole(kernel):
    sheet = evaluate_kernel(kernel, 8, issued_at=1)
    read = decode_entry(encode_entry(sheet, None), None).message

    assert isinstance(read, BlueprintSafetySheet)
    for name in ("blueprint_id", "risk_score", "hazard_band", "handling_class", "resource_profile", "hazards"):
        assert getattr(read, name) == getattr(sheet, name)
    assert read.mitigation.recommendation
    assert read.mitigation.cooldown_ms > 0.0
    assert "gradient ratio" in read.mitigation.notes
    assert len(encode_entry(sheet, None)[b"payload"]) < 4096


def test_sheets_are_the_same_every_time():
    first = evaluate_kernel(BY_NAME["dropout_mlp"], 16, issued_at=1)
    torch.manual_seed(99)
    second = evaluate_kernel(BY_NAME["dropout_mlp"], 16, issued_at=1)

    def without_time(sheet):
        return sheet.mitigation.notes.rpartition(", time")[0]

    assert first.risk_score == second.risk_score
    assert without_time(first) == without_time(second) != ""


def test_the_random_state_and_the_thread_count_are_left_as_they_were():
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    evaluate_kernel(BY_NAME["dropout_mlp"], 16)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 2


def test_the_module_on_trial_is_left_as_it_was():
    module = BY_NAME["oscillator"].build(16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    probe_module(module, 16)

    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_heavy_arithmetic_asks_for_a_gpu_and_memory_for_memory():
    profiles = {
        name: evaluate_kernel(BY_NAME[name], width).resource_profile
        for name, width in (("scale_shift", 64), ("gelu_mlp", 192), ("memory_hog", 8))
    }
    assert profiles == {
        "scale_shift": ResourceProfile.CPU,
        "gelu_mlp": ResourceProfile.MIXED,
        "memory_hog": ResourceProfile.MEMORY_HEAVY,
    }


class Raising(nn.Module):
    def forward(self, _):
        raise ZeroDivisionError("no such thing")


class Narrowing(nn.Module):
    def forward(self, features):
        return features[..., :1]


class Deaf(nn.Module):
    """Puts out what it learned, whatever the features: no gradient passes."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))

    def forward(self, features):
        return self.shift.expand(features.shape)


class Float32Only(nn.Module):
    """Refuses every other precision."""

    def forward(self, features):
        if features.dtype is not torch.float32:
            raise RuntimeError("not implemented")
        return features * 0.5


class OverflowingInBfloat16(nn.Module):
    def forward(self, features):
        return features if features.dtype is not torch.bfloat16 else features * torch.inf


def test_a_kernel_that_raises_has_failed_with_its_reason():
    verdict = evaluate_kernel(with_module(Raising), 8, issued_at=4)

    assert isinstance(verdict, BlueprintSafetyFailed)
    assert (verdict.blueprint_id, verdict.issued_at) == ("BP004", 4)
    assert verdict.reason == "ZeroDivisionError: no such thing"
    assert decode_entry(encode_entry(verdict, None), None).message.reason == verdict.reason


def test_a_kernel_that_changes_the_shape_has_failed():
    reason = evaluate_kernel(with_module(Narrowing), 8).reason

    assert "KernelInterfaceBroken" in reason
    assert "[32, 8, 1] for features [32, 8, 8]" in reason
    with pytest.raises(KernelInterfaceBroken):
        probe_module(Narrowing(), 8)


def test_a_kernel_that_outlasts_its_time_has_failed():
    verdict = evaluate_kernel(BY_NAME["gelu_mlp"], 8, plan=TrialPlan(budget_s=0.0))

    assert verdict.reason.startswith("TrialTooSlow: ")
    assert "of 16 steps took" in verdict.reason


def test_a_kernel_through_which_no_gradient_passes_vanishes():
    assert evaluate_kernel(with_module(Deaf), 8).hazards["grad_instability"] == "vanish"


def test_a_precision_that_a_kernel_does_not_support_is_not_held_against_it():
    sheet = evaluate_kernel(with_module(Float32Only), 8)

    assert "precision" not in sheet.hazards
    assert sheet.hazards["nan_inf"] == "ok"


def test_an_overflow_in_bfloat16_alone_is_a_matter_of_precision():
    hazards = evaluate_kernel(with_module(OverflowingInBfloat16), 8).hazards

    assert (hazards["precision"], hazards["nan_inf"]) == ("sensitive", "ok")


def test_what_the_caller_got_wrong_is_raised():
    with pytest.raises(KernelParameterInvalid):
        evaluate_kernel(BY_NAME["gelu_mlp"], 8, parameters={"expansion": 99})
    with pytest.raises(KernelWidthInvalid):
        evaluate_kernel(BY_NAME["gelu_mlp"], 0)
