"""Compilation is attempted where it was asked for; where it fails the network runs as it is, and says so once."""

from __future__ import annotations

import functools
import logging

import pytest
import torch

from tamiyo_stream.inference.collate import collate
from tamiyo_stream.inference.compiled import CompiledNetwork, CompileState
from tamiyo_stream.inference.engine import InferenceEngine
from tests.model.samples import forward, random_step_graph

BATCH = collate([random_step_graph(1)])


class Compiler:
    """Stands for ``torch.compile``: calls go through, until one of the numbered calls fails."""

    def __init__(self, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.fails_at, self.error = fails_at, error or RuntimeError("no C++ compiler")
        self.options: dict[str, object] = {}
        self.calls = 0

    def __call__(self, network, **options):
        self.options = options

        @functools.wraps(network.forward)
        def compiled(*arguments, **keywords):
            self.calls += 1
            if self.fails_at is not None and self.calls >= self.fails_at:
                raise self.error
            return network(*arguments, **keywords)

        return compiled


def install(monkeypatch, *arguments) -> Compiler:
    compiler = Compiler(*arguments)
    monkeypatch.setattr(torch, "compile", compiler)
    return compiler


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_compiled_network_is_used_with_the_mode_that_is_required(network, monkeypatch, caplog) -> None:
    compiler = install(monkeypatch)
    compiled = CompiledNetwork(network)
    with torch.inference_mode():
        found, expected = forward(compiled, BATCH), forward(network, BATCH)
    assert torch.equal(found["policy_logits"], expected["policy_logits"])
    assert compiler.options == {"dynamic": True, "mode": "reduce-overhead"}
    assert (compiler.calls, compiled.state) == (1, CompileState(enabled=True))
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(("fails_at", "reason"), [(1, "compile_error"), (2, "runtime_failure")])
def test_a_failure_is_answered_eagerly_and_warned_of_once(network, monkeypatch, caplog, fails_at, reason) -> None:
    compiler = install(monkeypatch, fails_at)
    compiled = CompiledNetwork(network)
    with torch.inference_mode():
        expected = forward(network, BATCH)["policy_logits"]
        answers = [forward(compiled, BATCH)["policy_logits"] for _ in range(4)]
    assert all(torch.equal(answer, expected) for answer in answers)
    assert compiled.state == CompileState(enabled=False, reason=reason)
    assert compiler.calls == fails_at
    (warning,) = warnings_in(caplog)
    assert f"reason={reason}" in warning
    assert "no C++ compiler" in warning


def test_a_compiler_that_is_not_there_is_a_compile_error(network, monkeypatch, caplog) -> None:
    def missing(*_, **__):
        raise ImportError("no inductor")

    monkeypatch.setattr(torch, "compile", missing)
    compiled = CompiledNetwork(network)
    assert compiled.state.reason == "compile_error"
    with torch.inference_mode():
        assert forward(compiled, BATCH)["policy_logits"].shape == (1, 32)
    assert len(warnings_in(caplog)) == 1


def test_bad_input_does_not_end_compilation(network, monkeypatch, caplog) -> None:
    install(monkeypatch)
    compiled = CompiledNetwork(network)
    with pytest.raises(ValueError, match="rows of 3 slots"):
        compiled({"layer": torch.zeros(2, 3)}, {})
    assert compiled.state.enabled
    assert warnings_in(caplog) == []


def test_a_lost_device_is_not_blamed_on_the_compiler(network, monkeypatch, caplog) -> None:
    install(monkeypatch, 1, torch.AcceleratorError("CUDA error: unspecified launch failure"))
    compiled = CompiledNetwork(network)
    with pytest.raises(torch.AcceleratorError):
        forward(compiled, BATCH)
    assert compiled.state.enabled
    assert warnings_in(caplog) == []


def engine_with(network, **options) -> InferenceEngine:
    return InferenceEngine(network, policy_version="v", policy_digest="d", **options)


def test_compilation_is_not_attempted_on_the_cpu_unless_asked_for(network, monkeypatch, caplog) -> None:
    compiler = install(monkeypatch)
    engine = engine_with(network, executor="reference")
    engine.infer([random_step_graph(1)])
    assert engine.statistics().compile == CompileState()
    assert compiler.calls == 0
    assert warnings_in(caplog) == []


def test_asked_for_on_the_cpu_the_reference_network_is_compiled_and_its_warm_up_timed(
    network, monkeypatch
) -> None:
    compiler = install(monkeypatch)
    engine = engine_with(network, executor="reference", compile_model=True)
    engine.warm_up()
    assert compiler.calls == 8
    assert engine.statistics().compile.enabled
    assert engine.statistics().compile.warm_ms > 0


def test_a_failing_compiler_leaves_the_engine_answering(network, monkeypatch, caplog) -> None:
    install(monkeypatch, 1)
    engine = engine_with(network, executor="reference", compile_model=True)
    engine.warm_up()
    assert engine.statistics().compile == CompileState(enabled=False, reason="compile_error")
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize(("device", "reason"), [("cpu", "device_not_cuda"), ("auto", "cuda_unavailable")])
def test_plans_on_the_cpu_are_not_compiled_and_that_is_said_once(
    network, monkeypatch, caplog, device, reason
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = engine_with(network, device=device, compile_model=True)
    for _ in range(2):
        engine.infer([random_step_graph(1)])
    assert engine.statistics().compile == CompileState(enabled=False, reason=reason)
    (warning,) = warnings_in(caplog)
    assert f"reason={reason}" in warning
