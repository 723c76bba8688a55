"""The same network on CUDA: device time, recorded graphs, kernels per forward, memory. Nothing without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tamiyo_stream.bench.pairs import percentiles, ratio_of, time_pairs
from tamiyo_stream.graph.structures import StepGraph
from tamiyo_stream.inference.collate import collate
from tamiyo_stream.inference.engine import InferenceEngine
from tamiyo_stream.inference.forward import evaluate_batch
from tamiyo_stream.model.network import build_network

_WARM_UPS = 5
_MAX_PAIRS = 100
#: What is compared with the eager network, and whether ``torch.compile`` is attempted for it.
_WAYS = {"graphs": False, "compiled": True}


def cuda_figures(graphs: Sequence[StepGraph], passes: int, seed: int) -> dict[str, float | int | str]:
    """Return the figures of each way on CUDA, against the network run eagerly in float32; empty without CUDA."""
    figures: dict[str, float | int | str] = {}
    if not torch.cuda.is_available():
        return figures
    eager = _eager(graphs, seed)
    for name, compile_model in _WAYS.items():
        torch.cuda.reset_peak_memory_stats()
        engine = InferenceEngine(
            build_network(seed=seed),
            policy_version="bench",
            policy_digest="bench",
            device="cuda",
            compile_model=compile_model,
        )
        figures |= _way(name, lambda engine=engine: engine.infer(graphs), eager, passes)  # type: ignore[misc]
        figures[f"cuda.{name}.compile"] = engine.statistics().compile.reason or "as asked for"
    return figures


def _way(
    name: str, forward: Callable[[], object], eager: Callable[[], object], passes: int
) -> dict[str, float | int | str]:
    for _ in range(_WARM_UPS):
        forward()
    slow, fast = time_pairs(eager, forward, min(passes, _MAX_PAIRS))
    return {
        **percentiles(f"cuda.{name}", fast),
        **ratio_of(slow, fast).figures(f"cuda.eager_over_{name}"),
        f"cuda.{name}.device_ms": _device_ms(forward),
        f"cuda.{name}.kernels": _kernels(forward),
        f"cuda.{name}.peak_mb": torch.cuda.max_memory_allocated() / 2**20,
    }


def _eager(graphs: Sequence[StepGraph], seed: int) -> Callable[[], object]:
    network, device = build_network(seed=seed).to("cuda"), torch.device("cuda")

    def forward() -> object:
        with torch.inference_mode():
            outputs = evaluate_batch(network, collate(graphs).to(device))
            return {name: value.cpu() for name, value in outputs.items()}

    for _ in range(_WARM_UPS):
        forward()
    return forward


def _device_ms(forward: Callable[[], object]) -> float:
    """Return the milliseconds between events around one forward, transfers included."""
    start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
    start.record()
    forward()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _kernels(forward: Callable[[], object]) -> int:
    """Return how many kernels and copies one forward runs on the device."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        forward()
    return sum(event.count for event in profiled.key_averages() if event.device_type == DeviceType.CUDA)
