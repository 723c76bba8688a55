"""Ways to evaluate a batch on the CPU; ``inference.cuda_forward`` has those on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch

from tamiyo_stream.graph.structures import FloatArray, StepGraph
from tamiyo_stream.inference.collate import Batch, collate
from tamiyo_stream.inference.executor import PlanExecutor
from tamiyo_stream.inference.plan import ExecutionPlan
from tamiyo_stream.inference.plan_cache import PlanCache
from tamiyo_stream.inference.products import Precision
from tamiyo_stream.model.network import TamiyoGNN


class Forward(Protocol):
    """Evaluates batches on one device."""

    def __call__(self, graphs: Sequence[StepGraph], batch: Batch) -> Mapping[str, FloatArray]:
        """Return every output of ``batch``, which holds ``graphs`` in order; further rows are padding."""


class ReferenceForward:
    """The network itself, or what stands for it (a compiled one)."""

    def __init__(
        self, network: TamiyoGNN, evaluate: Callable[..., Any], *, precision: Precision, threads: int
    ) -> None:
        self._modules = tuple(network.modules())  # looked through at every call: eval() itself takes milliseconds
        self._network = network
        self._evaluate = evaluate
        self._precision = precision
        self._threads = threads

    def __call__(self, graphs: Sequence[StepGraph], batch: Batch) -> Mapping[str, FloatArray]:  # noqa: ARG002 - Forward
        """Return every output of ``batch``."""
        use_threads(self._threads)
        if any(module.training for module in self._modules):  # dropout must never be live here
            self._network.eval()
        with torch.inference_mode(), self._autocast():
            outputs = evaluate_batch(self._evaluate, batch)
            return {name: value.float().numpy() for name, value in outputs.items()}

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self._precision == "bf16" else nullcontext()


class PlanForward:
    """The network's products along cached execution plans.

    Large graphs that have not met in a batch before are evaluated one by one: building their common plan would
    take longer.
    """

    def __init__(self, executor: PlanExecutor, plans: PlanCache[ExecutionPlan], *, threads: int) -> None:
        self._executor = executor
        self._plans = plans
        self._threads = threads

    def __call__(self, graphs: Sequence[StepGraph], batch: Batch) -> Mapping[str, FloatArray]:
        """Return every output of ``batch``."""
        use_threads(self._threads)
        plan = self._plans.plan_together([graph.topology for graph in graphs])
        if plan is not None:
            return self._run(batch, plan)
        alone = [self._run(collate([graph]), self._plans.plan_of(graph.topology)) for graph in graphs]
        return {name: np.concatenate([outputs[name] for outputs in alone]) for name in alone[0]}

    def _run(self, batch: Batch, plan: ExecutionPlan) -> Mapping[str, FloatArray]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in self._executor(batch, plan).items()}


def evaluate_batch(network: Callable[..., Any], batch: Batch) -> Mapping[str, torch.Tensor]:
    """Return the outputs of ``network``, called as the reference is, attention masses included."""
    outputs: Mapping[str, torch.Tensor] = network(
        batch.x_dict,
        batch.edge_index_dict,
        batch.edge_attr_dict,
        batch.batch,
        batch.batch_size,
        edge_rank_dict=batch.edge_rank_dict,
        with_attention=True,
    )
    return outputs


def use_threads(threads: int) -> None:
    """Let operations of the calling thread use ``threads`` CPU threads."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
