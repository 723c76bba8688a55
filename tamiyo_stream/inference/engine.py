"""The engine: one forward over a list of graphs on one device (requirements 000 "Inference Pipeline").

Synchronous and without threads of its own: whoever calls it decides on which thread it runs (``inference.stage``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tamiyo_stream.graph.structures import FloatArray, StepGraph
from tamiyo_stream.inference.collate import Batch, collate
from tamiyo_stream.inference.device import resolve_device
from tamiyo_stream.inference.executor import PlanExecutor
from tamiyo_stream.inference.output import NetworkOutput
from tamiyo_stream.inference.plan import ExecutionPlan, build_plan
from tamiyo_stream.inference.synthetic import synthetic_graph
from tamiyo_stream.model.network import TamiyoGNN

#: Combinations of structures whose plans are kept: runs times the batches they meet in.
MAX_PLANS = 256
#: Batches of the warm-up: one graph, as most steps are, and a few together.
_WARM_UP_BATCHES = (1, 4)
#: Outputs that are normalised to sum 1 per graph.
_ATTENTION = ("layer_attention", "seed_attention")


class NonFiniteOutput(ArithmeticError):
    """The network answered NaN or infinity for a graph: its input or the weights are broken."""

    def __init__(self, run_id: str, head: str) -> None:
        super().__init__(
            f"{head} of run {run_id!r} is not finite; check the graph's features and the checkpoint's weights"
        )
        self.run_id = run_id
        self.head = head


class InferenceEngine:
    """Evaluates a network on step graphs.

    The network is moved to the device and put into evaluation mode, and stays there: every call enforces it, so
    that dropout is never live. On CUDA products run in bfloat16 under autocast, on the CPU in float32.

    Args:
        network: the reference network.
        policy_version: version of the weights, copied into every output.
        policy_digest: digest of the weights, copied into every output.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        threads: CPU threads of an operation, set on the calling thread. One by default: a training process usually
            owns the other cores, and a second thread that waits for a busy core is slower than none.
        executor: ``plan`` evaluates along cached execution plans on the CPU, ``reference`` the plain network;
            on CUDA it is always the network.

    Raises:
        DeviceUnavailable: the device does not exist.
    """

    def __init__(
        self,
        network: TamiyoGNN,
        *,
        policy_version: str,
        policy_digest: str,
        device: str = "cpu",
        threads: int = 1,
        executor: Literal["plan", "reference"] = "plan",
    ) -> None:
        self.policy_version = policy_version
        self.policy_digest = policy_digest
        self.device = resolve_device(device)
        self._threads = threads
        self._network = network.to(self.device).eval()
        fused = executor == "plan" and self.device.type == "cpu"
        self._executor = PlanExecutor(self._network) if fused else None
        self._plans: dict[tuple[str, ...], ExecutionPlan] = {}
        self._modules = tuple(network.modules())  # looked through at every call: eval() itself takes milliseconds
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True

    def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput]:
        """Return the output of every graph, in order, from one forward over all.

        ``latency_ms`` of each output is the time of the whole batch, collation included.

        Raises:
            ValueError: no graph, or rows of a width other than the feature table's.
            NonFiniteOutput: a head is NaN or infinite for some graph; the first one is named.
        """
        started = time.perf_counter()
        batch = collate(graphs)
        shares = list(batch.split(self._forward(batch, self._plan_of(graphs, batch))))
        for graph, share in zip(graphs, shares, strict=True):
            _require_finite(graph.run_id, share)
        latency_ms = (time.perf_counter() - started) * 1000
        return [self._output(share, latency_ms, batch.batch_size) for share in shares]

    def warm_up(self) -> float:
        """Evaluate small synthetic graphs that have every relation; return the milliseconds it took.

        Raises:
            NonFiniteOutput: the weights are broken.
        """
        started = time.perf_counter()
        for size in _WARM_UP_BATCHES:
            self.infer([synthetic_graph(seed=number, run_id="warm-up") for number in range(size)])
        return (time.perf_counter() - started) * 1000

    def _plan_of(self, graphs: Sequence[StepGraph], batch: Batch) -> ExecutionPlan | None:
        """Return the plan of this combination of structures, from the cache where it was seen before."""
        if self._executor is None:
            return None
        key = tuple(graph.topology.structure_hash for graph in graphs)
        plan = self._plans.pop(key, None)
        if plan is None:
            counts = {name: len(rows) for name, rows in batch.x_dict.items()}
            plan = build_plan(batch.edge_index_dict, counts, self._network.config.attention_heads)
        self._plans[key] = plan  # now the newest
        while len(self._plans) > MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def _forward(self, batch: Batch, plan: ExecutionPlan | None) -> dict[str, FloatArray]:
        if torch.get_num_threads() != self._threads:  # a setting of the calling thread
            torch.set_num_threads(self._threads)
        if any(module.training for module in self._modules):  # dropout must never be live here
            self._network.eval()
        with torch.inference_mode(), self._precision():
            outputs = (
                self._reference(batch) if self._executor is None or plan is None else self._executor(batch, plan)
            )
            return {name: value.float().cpu().numpy() for name, value in outputs.items()}

    def _reference(self, batch: Batch) -> Mapping[str, Tensor]:
        moved = batch.to(self.device)
        outputs: Mapping[str, Tensor] = self._network(
            moved.x_dict,
            moved.edge_index_dict,
            moved.edge_attr_dict,
            moved.batch,
            moved.batch_size,
            with_attention=True,
        )
        return outputs

    def _precision(self) -> AbstractContextManager[None]:
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def _output(self, share: Mapping[str, FloatArray], latency_ms: float, batch_size: int) -> NetworkOutput:
        arrays = {name: value for name, value in share.items() if name != "value_estimate"}
        return NetworkOutput(
            **(arrays | {name: _normalised(share[name]) for name in _ATTENTION}),
            value_estimate=float(share["value_estimate"][0]),
            policy_version=self.policy_version,
            policy_digest=self.policy_digest,
            latency_ms=latency_ms,
            batch_size=batch_size,
        )


def _require_finite(run_id: str, share: Mapping[str, FloatArray]) -> None:
    for head, value in share.items():
        if not np.isfinite(value).all():
            raise NonFiniteOutput(run_id, head)


def _normalised(mass: FloatArray) -> FloatArray:
    total = mass.sum()
    return mass / total if total > 0 else mass
