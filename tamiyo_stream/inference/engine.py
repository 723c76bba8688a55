"""The engine: one forward over a list of graphs on one device (requirements 000 §4 and "Inference Pipeline").

Synchronous and without threads of its own: whoever calls it decides on which thread it runs (``inference.stage``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from tamiyo_stream.graph.structures import FloatArray, StepGraph, Topology
from tamiyo_stream.inference.collate import Batch, collate
from tamiyo_stream.inference.compiled import CompiledNetwork, CompileReason, CompileState, refuse_compile
from tamiyo_stream.inference.cuda_forward import CudaForward
from tamiyo_stream.inference.device import accelerator_failed, resolve_device
from tamiyo_stream.inference.executor import PlanExecutor
from tamiyo_stream.inference.forward import Forward, PlanForward, ReferenceForward
from tamiyo_stream.inference.output import NetworkOutput, NonFiniteOutput
from tamiyo_stream.inference.plan import ExecutionPlan
from tamiyo_stream.inference.plan_cache import PlanCache, PlanStatistics
from tamiyo_stream.inference.products import Candidate, Precision, Products
from tamiyo_stream.inference.self_test import choose_products
from tamiyo_stream.inference.synthetic import REPRESENTATIVE, SMALL, synthetic_graph
from tamiyo_stream.inference.topology_plan import plan_of
from tamiyo_stream.model.network import TamiyoGNN

log = logging.getLogger("tamiyo.inference")

#: Batches of the warm-up, as nodes by type of each graph: one graph, as most steps are, and a few together; small
#: ones and larger.
_WARM_UP_BATCHES = ((SMALL,), (SMALL,) * 4, (REPRESENTATIVE,), (REPRESENTATIVE,) * 2)
#: Outputs that are normalised to sum 1 per graph.
_ATTENTION = ("layer_attention", "seed_attention")


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What the engine runs on, and how it fares.

    ``cpu_answers``: batches answered on the CPU because the accelerator failed; ``device`` is the CPU once it is
    lost. ``non_finite``: graphs whose output was not a number. ``products``: how the plan's products are computed,
    and ``self_test``: what the start-up self-test found of each way; empty where no plan is used.
    """

    device: str
    precision: Precision
    products: str
    self_test: tuple[Candidate, ...]
    compile: CompileState
    plans: PlanStatistics
    cpu_answers: int
    non_finite: int


class InferenceEngine:
    """Evaluates a network on step graphs.

    Evaluation mode is enforced: dropout is never live. Where the accelerator fails in the middle of a step, the
    CPU answers that step: for good where the device is lost, once where its memory was full. A device that fails
    at the start is never used.

    Args:
        network: the reference network; it stays on the CPU, devices get a copy.
        policy_version: version of the weights, copied into every output.
        policy_digest: digest of the weights, copied into every output.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        threads: CPU threads of an operation, set on the calling thread. One by default: a training process usually
            owns the other cores, and a second thread that waits for a busy core is slower than none.
        executor: ``plan`` evaluates along cached execution plans on the CPU, ``reference`` the plain network;
            on CUDA it is always the network.
        precision: of the products; ``auto`` is ``bf16`` on CUDA and ``fp32`` on the CPU.
        compile_model: attempt ``torch.compile``; None = on CUDA alone. On the CPU it applies to the reference
            network only: plans are faster than what it makes of the network there.

    Raises:
        DeviceUnavailable: the device does not exist.
        NoProducts: this CPU cannot compute products of this precision exactly enough.
    """

    def __init__(  # noqa: PLR0913 - the policy's knobs, each with a default
        self,
        network: TamiyoGNN,
        *,
        policy_version: str,
        policy_digest: str,
        device: str = "cpu",
        threads: int = 1,
        executor: Literal["plan", "reference"] = "plan",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        compile_model: bool | None = None,
    ) -> None:
        self.policy_version = policy_version
        self.policy_digest = policy_digest
        self.device = resolve_device(device)
        self._network = network.eval()
        self._threads = threads
        self._executor = executor
        self._cpu_precision: Precision = "fp32" if precision == "auto" else precision
        self._cuda_precision: Precision = "bf16" if precision == "auto" else precision
        self._products: Products | None = None
        self._plans: PlanCache[ExecutionPlan] = PlanCache(partial(plan_of, heads=network.config.attention_heads))
        self._compiled: CompiledNetwork | None = None
        self._compile_state = CompileState()
        self._cpu: Forward | None = None
        self._cpu_answers = self._non_finite = 0
        self._warned: set[str] = set()
        if self.device.type == "cuda":
            self._forward = self._on_cuda(compile_model)
        else:
            self._forward = self._on_cpu(compile_model, device)

    def infer(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput | NonFiniteOutput]:
        """Return the outcome of every graph, in order, from one forward over all.

        A graph for which some head is NaN or infinite gets a :class:`NonFiniteOutput`, the others their outputs.
        ``latency_ms`` of each output is the time of the whole batch, collation included.

        Raises:
            ValueError: no graph, or rows of a width other than the feature table's.
        """
        started = time.perf_counter()
        # In one order whatever the order of arrival, so that the same graphs find the same plan.
        order = sorted(range(len(graphs)), key=lambda position: graphs[position].topology.structure_hash)
        ordered = [graphs[position] for position in order]
        batch = collate(ordered)
        shares = dict(zip(order, batch.split(self._evaluate(ordered, batch)), strict=True))
        latency_ms = (time.perf_counter() - started) * 1000
        return [
            self._outcome(graph.run_id, shares[position], latency_ms, len(graphs))
            for position, graph in enumerate(graphs)
        ]

    def is_prepared(self, topology: Topology) -> bool:
        """Whether a forward over ``topology`` finds its plan; never blocks."""
        return not isinstance(self._forward, PlanForward) or topology in self._plans

    def prepare(self, topology: Topology) -> None:
        """Build the plan of ``topology`` where it is needed and missing; may run while another thread infers."""
        if not self.is_prepared(topology):
            self._plans.prepare(topology)

    @property
    def wants_preparation(self) -> bool:
        """Whether :meth:`prepare_combinations` has something to do; never blocks."""
        return self._plans.wants

    def prepare_combinations(self) -> None:
        """Build plans for batches whose graphs met for the first time; may run while another thread infers."""
        self._plans.prepare_combinations()

    def warm_up(self) -> float:
        """Evaluate synthetic graphs of representative sizes with every relation; return the milliseconds it took.

        Each batch comes twice: the second time it finds what the first one left behind, a plan or a recording.

        Raises:
            NonFiniteOutput: the weights are broken.
        """
        started = time.perf_counter()
        for number, sizes in enumerate(_WARM_UP_BATCHES):
            graphs = [synthetic_graph(size, seed=seed, run_id="warm-up") for seed, size in enumerate(sizes)]
            for outcome in [*self.infer(graphs), *self._again(graphs)]:
                if isinstance(outcome, NonFiniteOutput):
                    raise outcome
            if number == 0 and self._compiled is not None:
                self._compiled.warmed((time.perf_counter() - started) * 1000)
        return (time.perf_counter() - started) * 1000

    def statistics(self) -> EngineStatistics:
        """Return what the engine runs on and the counts since its start."""
        return EngineStatistics(
            device=str(self.device),
            precision=self._cpu_precision if self.device.type == "cpu" else self._cuda_precision,
            products="" if self._products is None else self._products.name,
            self_test=() if self._products is None else self._products.report,
            compile=self._compile_state if self._compiled is None else self._compiled.state,
            plans=self._plans.statistics(),
            cpu_answers=self._cpu_answers,
            non_finite=self._non_finite,
        )

    def _again(self, graphs: Sequence[StepGraph]) -> list[NetworkOutput | NonFiniteOutput]:
        self._plans.prepare_combinations()
        return self.infer(graphs)

    def _on_cuda(self, compile_model: bool | None) -> Forward:
        try:
            forward = CudaForward(
                self._network,
                self.device,
                precision=self._cuda_precision,
                compile_model=compile_model is not False,
            )
        except RuntimeError as error:
            if not accelerator_failed(error):
                raise
            self._warn_once("accelerator_lost", f"{self.device}: {error}; the CPU answers from now on")
            self.device = torch.device("cpu")
            if compile_model is not False:
                self._compile_state = CompileState(reason="cuda_unavailable")
            return self._cpu_forward()
        self._compiled = forward.compiled
        return forward

    def _on_cpu(self, compile_model: bool | None, wanted: str) -> Forward:
        if compile_model and self._executor == "plan":
            reason: CompileReason = "device_not_cuda" if wanted == "cpu" else "cuda_unavailable"
            self._compile_state = refuse_compile(
                reason, f"device {wanted!r} is the CPU, where plans replace what is compiled"
            )
        elif compile_model:
            self._compiled = CompiledNetwork(self._network)
        return self._cpu_forward()

    def _cpu_forward(self) -> Forward:
        precision, threads = self._cpu_precision, self._threads
        if self._executor == "plan":
            self._products = choose_products(precision, threads)
            executor = PlanExecutor(self._network, products=self._products, precision=precision)
            return PlanForward(executor, self._plans, threads=threads)
        evaluate = self._network if self.device.type == "cuda" else self._compiled or self._network
        return ReferenceForward(self._network, evaluate, precision=precision, threads=threads)

    def _evaluate(self, graphs: Sequence[StepGraph], batch: Batch) -> Mapping[str, FloatArray]:
        try:
            return self._forward(graphs, batch)
        except RuntimeError as error:
            if self.device.type == "cpu" or not accelerator_failed(error):
                raise
            if isinstance(error, torch.OutOfMemoryError) and len(graphs) > 1:
                raise  # the stage halves the batch, which needs less memory
            return self._answer_on_cpu(graphs, batch, error)

    def _answer_on_cpu(
        self, graphs: Sequence[StepGraph], batch: Batch, error: RuntimeError
    ) -> Mapping[str, FloatArray]:
        """Evaluate the step that the accelerator failed at on the CPU, and all later ones where it is lost."""
        full = isinstance(error, torch.OutOfMemoryError)
        self._warn_once(
            "accelerator_memory_full" if full else "accelerator_lost",
            f"{self.device}: {error}; the CPU answers {'this step' if full else 'from now on'}",
        )
        self._cpu_answers += 1
        if self._cpu is None:
            self._cpu = self._cpu_forward()
        if not full:
            self.device, self._forward = torch.device("cpu"), self._cpu
            if self._compiled is not None and self._compiled.state.enabled:
                self._compiled, self._compile_state = None, CompileState(reason="runtime_failure")
        return self._cpu(graphs, batch)

    def _warn_once(self, event: str, detail: str) -> None:
        if event not in self._warned:
            self._warned.add(event)
            log.warning("%s: %s", event, detail)

    def _outcome(
        self, run_id: str, share: Mapping[str, FloatArray], latency_ms: float, batch_size: int
    ) -> NetworkOutput | NonFiniteOutput:
        for head, value in share.items():
            if not np.isfinite(value).all():
                self._non_finite += 1
                return NonFiniteOutput(run_id, head)
        arrays = {name: value for name, value in share.items() if name != "value_estimate"}
        return NetworkOutput(
            **(arrays | {name: _normalised(share[name]) for name in _ATTENTION}),
            value_estimate=float(share["value_estimate"][0]),
            policy_version=self.policy_version,
            policy_digest=self.policy_digest,
            latency_ms=latency_ms,
            batch_size=batch_size,
        )


def _normalised(mass: FloatArray) -> FloatArray:
    total = mass.sum()
    return mass / total if total > 0 else mass
