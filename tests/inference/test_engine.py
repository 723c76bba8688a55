"""The engine evaluates graphs on a device and never hands on a number that is not one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tamiyo_stream.inference.device import DeviceUnavailable, resolve_device
from tamiyo_stream.inference.engine import InferenceEngine, NonFiniteOutput
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
    with pytest.raises(NonFiniteOutput, match="risk_logits of run 'alpha'") as caught:
        engine_of(network).infer([random_step_graph(1, run_id="alpha")])
    assert (caught.value.run_id, caught.value.head) == ("alpha", "risk_logits")


def test_a_poisoned_graph_is_named_among_healthy_ones(engine: InferenceEngine) -> None:
    poison = random_step_graph(2, run_id="poison")
    poison.x_dict["layer"][:, -1] = np.inf
    with pytest.raises(NonFiniteOutput) as caught:
        engine.infer([random_step_graph(1, run_id="healthy"), poison])
    assert caught.value.run_id == "poison"


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
