"""The counted cost of a plan is that of the products that a forward along it computes."""

from __future__ import annotations

import pytest

from tamiyo_stream.inference.collate import collate
from tamiyo_stream.inference.cost import count_bytes, count_flops
from tamiyo_stream.inference.executor import PlanExecutor
from tamiyo_stream.inference.products import Products, plain
from tamiyo_stream.model.heads import HEADS_BY_INPUT
from tamiyo_stream.model.network import build_network
from tests.inference.samples import graph_of, plan_of
from tests.model.samples import with_edges


class Counter:
    """Products that count their operations."""

    def __init__(self) -> None:
        self.flops = 0

    def products(self) -> Products:
        def prepare(weight, bias):
            linear = plain().prepare(weight, bias)

            def counted(x):
                self.flops += 2 * len(x) * weight.numel()
                return linear(x)

            return counted

        return Products("counting", "fp32", prepare)


@pytest.mark.parametrize("shape", ["every relation", "one to one", "crowded", "wide"])
def test_the_operations_are_those_of_the_executor_without_heads(shape) -> None:
    counter = Counter()
    network = build_network(seed=1)
    executor = PlanExecutor(network, products=counter.products())
    batch = collate([graph_of(shape)])
    plan = plan_of(batch)
    executor(batch, plan)
    rows = {"graph": 1, "seeds": len(batch.x_dict["seed"]), "blueprints": len(batch.x_dict["blueprint"])}
    heads = 0
    for key, names in HEADS_BY_INPUT.items():
        outputs = sum(getattr(network.heads, name)[-1].out_features for name in names)
        heads += 2 * rows[key] * 64 * len(names) * (128 + outputs)
    assert count_flops(plan, batch) == counter.flops - heads


def test_bytes_grow_with_the_edges_and_shrink_with_the_precision() -> None:
    graph = graph_of("wide")
    whole, bare = collate([graph]), collate([with_edges(graph, {})])
    moved = count_bytes(plan_of(whole), whole, "fp32")
    assert moved > count_bytes(plan_of(bare), bare, "fp32") > 0
    features = sum(4 * rows.numel() for rows in whole.x_dict.values())
    assert count_bytes(plan_of(whole), whole, "bf16") - features == (moved - features) / 2
