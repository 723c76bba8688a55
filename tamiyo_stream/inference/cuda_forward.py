"""Evaluation on CUDA: pinned copies, bfloat16 under autocast, and the network compiled, recorded or as it is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tamiyo_stream.graph.structures import FloatArray, StepGraph
from tamiyo_stream.inference.collate import Batch
from tamiyo_stream.inference.compiled import CompiledNetwork
from tamiyo_stream.inference.cuda_graphs import GraphCache, RecordedForward
from tamiyo_stream.inference.device import accelerator_failed
from tamiyo_stream.inference.forward import evaluate_batch
from tamiyo_stream.inference.padding import Bucket, pad
from tamiyo_stream.inference.products import Precision
from tamiyo_stream.model.network import TamiyoGNN

log = logging.getLogger("tamiyo.inference")


class CudaForward:
    """A replica of the network on ``device``.

    Batches are padded to buckets: recorded graphs and compiled code both need few distinct shapes. In order of
    preference: compiled, where that was asked for and works; recorded graphs; the network as it is. A batch with a
    sampled graph is always evaluated by the network as it is: the edges a stage uses depend on the ranks' values.

    Args:
        network: stays where it is, so that a lost device takes nothing with it.
        device: a CUDA device.
        precision: ``bf16`` evaluates under autocast.
        compile_model: attempt ``torch.compile`` on the first batch.
    """

    def __init__(
        self, network: TamiyoGNN, device: torch.device, *, precision: Precision, compile_model: bool
    ) -> None:
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        self._device = device
        self._precision = precision
        self._network = copy.deepcopy(network).to(device).eval()
        self.compiled = CompiledNetwork(self._network) if compile_model else None
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: GraphCache | None = GraphCache(self._record, self._eager)

    def __call__(self, graphs: Sequence[StepGraph], batch: Batch) -> Mapping[str, FloatArray]:  # noqa: ARG002 - Forward
        """Return every output of ``batch``."""
        with torch.inference_mode(), torch.cuda.device(self._device), self._autocast():
            on_host = {
                name: value.float().to("cpu", non_blocking=True) for name, value in self._outputs(batch).items()
            }
            torch.cuda.current_stream().synchronize()
            return {name: value.numpy() for name, value in on_host.items()}

    def _outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        if batch.edge_rank_dict:
            return evaluate_batch(self._network, _pinned(batch).to(self._device))
        if self.compiled is not None and self.compiled.state.enabled:
            return self._run(self.compiled, batch)
        if self._graphs is None:
            return self._eager(batch)
        try:
            return self._graphs(batch)
        except RuntimeError as error:
            if accelerator_failed(error) and not _of_recording(error):
                raise
            outputs = self._eager(batch)  # raises as well where the input is at fault
            log.warning("tamiyo_gnn_graphs_disabled: %r; the network runs eagerly", error)
            self._graphs = None
            return outputs

    def _record(self, bucket: Bucket) -> Callable[[Batch], Mapping[str, Tensor]]:
        return RecordedForward(
            lambda batch: evaluate_batch(self._network, batch), bucket, self._device, self._pool
        )

    def _eager(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._run(self._network, batch)

    def _run(self, network: Callable[..., Any], batch: Batch) -> Mapping[str, Tensor]:
        return evaluate_batch(network, _pinned(pad(batch)).to(self._device))

    def _autocast(self) -> AbstractContextManager[None]:
        if self._precision == "fp32":
            return nullcontext()
        # Without the cache of cast weights: a recording must not depend on a cache that ends with this context.
        return torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)


def _of_recording(error: RuntimeError) -> bool:
    """Return whether CUDA refused an operation while a graph was recorded: the device itself is well."""
    return "captur" in str(error)


def _pinned(batch: Batch) -> Batch:
    """Return a copy in page-locked memory; torch keeps such blocks and hands them out again."""
    return replace(
        batch,
        x_dict={name: rows.pin_memory() for name, rows in batch.x_dict.items()},
        edge_index_dict={key: index.pin_memory() for key, index in batch.edge_index_dict.items()},
        edge_attr_dict={key: rows.pin_memory() for key, rows in batch.edge_attr_dict.items()},
        batch=batch.batch.pin_memory(),
        edge_rank_dict={key: ranks.pin_memory() for key, ranks in batch.edge_rank_dict.items()},
    )
