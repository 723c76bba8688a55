"""The engine evaluates graphs on a device and never hands on a number that is not one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tamiyo_stream.inference import engine as engine_module
from tamiyo_stream.inference import plan_cache
from tamiyo_stream.inference.compiled import CompiledNetwork, CompileState
from tamiyo_stream.inference.device import DeviceUnavailable, accelerator_failed, resolve_device
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.forward import ReferenceForward
from tamiyo_stream.inference.output import NonFiniteOutput
from tamiyo_stream.model.network import TamiyoGNN, build_network
from tests.model.samples import evaluate, random_step_graph, with_edges


def engine_of(network: TamiyoGNN) -> InferenceEngine:
    return InferenceEngine(network, policy_version="v3", policy_digest="abc", executor="reference")


@pytest.fixture(scope="module")
def engine(network: TamiyoGNN) -> InferenceEngine:
    return engine_of(network)


def test_outputs_are_the_networks(engine: InferenceEngine, network: TamiyoGNN) -> None:
    graph = random_step_graph(1)
    (output,) = engine.infer([graph])
    expected = evaluate(network, graph)
    for name in ("policy_logits", "policy_params", "risk_logits", "telemetry_embedding", "graph_embedding"):
        np.testing.assert_array_equal(getattr(output, name), expected[name][0].numpy())
    for name in ("seed_scores", "seed_schedule", "blueprint_scores"):
        np.testing.assert_array_equal(getattr(output, name), expected[name].numpy())
    assert output.value_estimate == expected["value_estimate"].item()


def test_every_graph_of_a_batch_gets_its_own_output(engine: InferenceEngine) -> None:
    graphs = [random_step_graph(1, seeds=0), random_step_graph(2, kernels=5), random_step_graph(3, layers=20)]
    outputs = engine.infer(graphs)
    for graph, output in zip(graphs, outputs, strict=True):
        (alone,) = engine.infer([graph])
        np.testing.assert_allclose(output.policy_logits, alone.policy_logits, atol=1e-5)
        np.testing.assert_allclose(output.layer_attention, alone.layer_attention, atol=1e-5)
        assert output.seed_scores.shape == (len(graph.seed_ids),)
        assert output.blueprint_scores.shape == (len(graph.kernel_ids),)
        assert output.batch_size == 3


def test_attention_is_a_distribution_over_a_graphs_nodes(engine: InferenceEngine) -> None:
    for output in engine.infer([random_step_graph(1), random_step_graph(2)]):
        assert output.layer_attention.sum() == pytest.approx(1, abs=1e-5)
        assert output.seed_attention.sum() == pytest.approx(1, abs=1e-5)
    (bare,) = engine.infer([with_edges(random_step_graph(1), {})])
    assert not bare.layer_attention.any()


def test_outputs_name_the_policy(engine: InferenceEngine) -> None:
    (output,) = engine.infer([random_step_graph(1)])
    assert (output.policy_version, output.policy_digest) == ("v3", "abc")
    assert output.latency_ms > 0


def test_a_network_left_in_training_mode_is_evaluated_without_dropout() -> None:
    network = build_network(seed=1)
    engine = engine_of(network)
    network.train()
    first, second = (engine.infer([random_step_graph(1)])[0] for _ in range(2))
    np.testing.assert_array_equal(first.policy_logits, second.policy_logits)


def test_a_part_left_in_training_mode_is_evaluated_without_dropout() -> None:
    network = build_network(seed=1)
    engine = engine_of(network)
    network.stages[3].train()
    first, second = (engine.infer([random_step_graph(1)])[0] for _ in range(2))
    np.testing.assert_array_equal(first.policy_logits, second.policy_logits)


def test_broken_weights_are_reported_with_run_and_head() -> None:
    network = build_network(seed=1)
    with torch.no_grad():
        network.heads.risk[-1].weight[0, 0] = float("nan")
    (outcome,) = engine_of(network).infer([random_step_graph(1, run_id="alpha")])
    assert isinstance(outcome, NonFiniteOutput)
    assert (outcome.run_id, outcome.head) == ("alpha", "risk_logits")
    assert "risk_logits of run 'alpha'" in str(outcome)


@pytest.mark.parametrize("executor", ["plan", "reference"])
def test_a_graph_whose_output_is_not_a_number_fails_alone(network: TamiyoGNN, executor) -> None:
    engine = InferenceEngine(network, policy_version="v", policy_digest="d", executor=executor)
    healthy, poison, other = (random_step_graph(number, run_id=f"run {number}") for number in range(3))
    poison.x_dict["layer"][:, -1] = np.inf
    first, failed, last = engine.infer([healthy, poison, other])
    assert isinstance(failed, NonFiniteOutput)
    assert failed.run_id == "run 1"
    assert engine.statistics().non_finite == 1
    for graph, output in ((healthy, first), (other, last)):
        (alone,) = engine.infer([graph])
        np.testing.assert_allclose(output.policy_logits, alone.policy_logits, atol=1e-5)


def test_warm_up_reports_its_time_and_finds_broken_weights() -> None:
    network = build_network(seed=1)
    assert engine_of(network).warm_up() > 0
    with torch.no_grad():
        network.encoders["blueprint"].linear.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteOutput):
        engine_of(network).warm_up()


def test_the_thread_setting_is_applied(network: TamiyoGNN) -> None:
    InferenceEngine(network, policy_version="v", policy_digest="d", threads=1).infer([random_step_graph(1)])
    assert torch.get_num_threads() == 1


def test_a_prepared_structure_is_not_built_on_the_step_path(network: TamiyoGNN) -> None:
    engine = InferenceEngine(network, policy_version="v", policy_digest="d")
    first, second = (random_step_graph(number) for number in range(2))
    for graph in (first, second):
        assert not engine.is_prepared(graph.topology)
        engine.prepare(graph.topology)
        assert engine.is_prepared(graph.topology)
    engine.infer([first])
    engine.infer([second])
    plans = engine.statistics().plans
    assert (plans.prepared, plans.built_late, plans.hits) == (2, 0, 2)


@pytest.mark.parametrize("large", [False, True])
def test_graphs_that_meet_for_the_first_time_are_answered_apart_or_together_alike(
    network: TamiyoGNN, monkeypatch, large
) -> None:
    if large:
        monkeypatch.setattr(plan_cache, "EDGES_PER_FORWARD", 1)
    engine = InferenceEngine(network, policy_version="v", policy_digest="d")
    graphs = [random_step_graph(number, seeds=number) for number in range(3)]
    alone = [engine.infer([graph])[0] for graph in graphs]
    first = engine.infer(graphs)
    assert engine.wants_preparation is large
    engine.prepare_combinations()
    assert not engine.wants_preparation
    again = engine.infer(graphs[::-1])[::-1]
    for outputs in (first, again):
        for expected, output in zip(alone, outputs, strict=True):
            for head in ("policy_logits", "seed_scores", "layer_attention"):
                np.testing.assert_allclose(getattr(output, head), getattr(expected, head), atol=1e-5)
            assert output.batch_size == 3
    plans = engine.statistics().plans
    assert (plans.misses, plans.hits, plans.built_at_once, plans.prepared) == (4, 1, 1 - large, int(large))


def test_the_reference_needs_no_preparation(network: TamiyoGNN) -> None:
    engine = engine_of(network)
    graph = random_step_graph(1)
    assert engine.is_prepared(graph.topology)
    engine.prepare(graph.topology)
    assert engine.statistics().plans.plans == 0


@pytest.mark.parametrize("executor", ["plan", "reference"])
def test_bf16_on_the_cpu_comes_by_setting_and_stays_close(network: TamiyoGNN, executor) -> None:
    graph = random_step_graph(1)
    (exact,) = engine_of(network).infer([graph])
    engine = InferenceEngine(network, policy_version="v", policy_digest="d", executor=executor, precision="bf16")
    (rough,) = engine.infer([graph])
    assert engine.statistics().precision == "bf16"
    assert engine_of(network).statistics().precision == "fp32"
    assert not np.array_equal(rough.policy_logits, exact.policy_logits)
    np.testing.assert_allclose(rough.policy_logits, exact.policy_logits, atol=0.05)


def test_the_products_of_the_plan_are_chosen_by_the_self_test(network: TamiyoGNN) -> None:
    now = InferenceEngine(network, policy_version="v", policy_digest="d").statistics()
    usable = [candidate for candidate in now.self_test if not candidate.refusal]
    assert now.products == min(usable, key=lambda candidate: candidate.milliseconds).name
    reference = engine_of(network).statistics()
    assert (reference.products, reference.self_test) == ("", ())


class FailingAccelerator:
    """Stands for the forward on CUDA: computes on the CPU until it is told to fail."""

    def __init__(self, network, _device, **_options) -> None:
        self._forward = ReferenceForward(network, network, precision="fp32", threads=1)
        self.compiled = CompiledNetwork(network)
        self.error: Exception | None = None
        self.calls = 0

    def __call__(self, graphs, batch):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self._forward(graphs, batch)


@pytest.fixture
def accelerated(monkeypatch):
    """An engine on a fake CUDA device, and that device."""
    devices: list[FailingAccelerator] = []

    def make(*arguments, **options):
        devices.append(FailingAccelerator(*arguments, **options))
        return devices[-1]

    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(engine_module, "resolve_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(engine_module, "CudaForward", make)
    engine = InferenceEngine(build_network(seed=1), policy_version="v", policy_digest="d", device="cuda")
    return engine, devices[0]


LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_lost_accelerator_costs_no_step_and_one_warning(accelerated, caplog) -> None:
    engine, device = accelerated
    graphs = [random_step_graph(number) for number in range(2)]
    before = engine.infer(graphs)
    device.error = LOST
    during, after = engine.infer(graphs), engine.infer(graphs)
    for expected, found, later in zip(before, during, after, strict=True):
        np.testing.assert_allclose(found.policy_logits, expected.policy_logits, atol=1e-5)
        np.testing.assert_array_equal(found.policy_logits, later.policy_logits)
    assert device.calls == 2
    now = engine.statistics()
    assert (now.device, now.cpu_answers, now.precision) == ("cpu", 1, "fp32")
    assert now.compile == CompileState(reason="runtime_failure")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("accelerator_lost: cuda:0: CUDA error: an illegal memory access")


def test_an_accelerator_that_fails_at_the_start_is_replaced_by_the_cpu(monkeypatch, caplog) -> None:
    def broken(*_, **__):
        raise LOST

    monkeypatch.setattr(engine_module, "resolve_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(engine_module, "CudaForward", broken)
    engine = InferenceEngine(build_network(seed=1), policy_version="v", policy_digest="d", device="cuda")
    (output,) = engine.infer([random_step_graph(1)])
    assert np.isfinite(output.policy_logits).all()
    assert engine.statistics().device == "cpu"
    assert engine.statistics().compile == CompileState(reason="cuda_unavailable")
    assert "accelerator_lost" in caplog.text


def test_full_device_memory_is_answered_by_the_cpu_and_the_device_is_tried_again(accelerated, caplog) -> None:
    engine, device = accelerated
    device.error = FULL
    for _ in range(2):
        engine.infer([random_step_graph(1)])
    device.error = None
    engine.infer([random_step_graph(1)])
    assert device.calls == 3
    assert (engine.statistics().device, engine.statistics().cpu_answers) == ("cuda:0", 2)
    assert len(caplog.records) == 1


def test_full_device_memory_asks_for_a_smaller_batch_first(accelerated) -> None:
    engine, device = accelerated
    device.error = FULL
    with pytest.raises(torch.OutOfMemoryError):
        engine.infer([random_step_graph(1), random_step_graph(2)])


def test_an_error_that_is_not_the_devices_is_raised(accelerated) -> None:
    engine, device = accelerated
    device.error = RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        engine.infer([random_step_graph(1)])
    assert engine.statistics().device == "cuda:0"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LOST, True),
        (FULL, True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_a_device_failure_is_told_from_other_errors(error, expected) -> None:
    assert accelerator_failed(error) is expected


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:99", ""])
def test_a_device_that_does_not_exist_is_refused_by_name(name: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"device is '{name}'"):
        resolve_device(name)


def test_auto_finds_a_device() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_engine_and_network_need_torch_pyg_and_numpy_alone() -> None:
    program = (
        "import sys, tamiyo_stream.inference.engine, tamiyo_stream.model.digest\n"
        "print(*[name for name in ('msgspec', 'redis', 'pydantic', 'structlog', 'anyio', 'msgpack')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
