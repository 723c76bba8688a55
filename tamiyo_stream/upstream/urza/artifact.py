"""A kernel on the wire: its traced graph, what it took to run it, and the digest of what is grafted."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterable

import msgspec
import torch
from torch import nn

from schemas.catalogue import Stream
from schemas.codec import canonical_payload
from schemas.enums import BlueprintKind, CompileStatus
from schemas.record import Float32Column
from schemas.urza import Blueprint, BlueprintGraph, BlueprintParameters, CompileReport
from tamiyo_stream.upstream.publisher import Publisher
from tamiyo_stream.upstream.tolaria.blueprint import build_blueprint
from tamiyo_stream.upstream.tolaria.structure import ModelStructure
from tamiyo_stream.upstream.tolaria.tracing import trace_structure
from tamiyo_stream.upstream.urza.catalogue import KERNELS
from tamiyo_stream.upstream.urza.kernel import Kernel

#: Returns a compiled form of a module, as ``torch.compile`` does.
Compiler = Callable[[nn.Module], Callable[[torch.Tensor], torch.Tensor]]

_SAMPLE_SHAPE = (8, 16)


def publish_catalogue(
    publisher: Publisher, width: int, kernels: Iterable[Kernel] = KERNELS, *, issued_at: int | None = None
) -> tuple[Blueprint, ...]:
    """Publish ``kernels`` as built for features of ``width``; return what the publisher took.

    They are kept: a Redis that comes back empty gets them again. Tracing takes some milliseconds each, in which no
    other thread may run a model (:mod:`tamiyo_stream.upstream.tolaria.tracing`): publish before training starts.

    Args:
        publisher: to Oona.
        width: number of features.
        kernels: of the catalogue; all of them unless told otherwise.
        issued_at: Unix time, ns; None = now.

    Raises:
        KernelWidthInvalid: ``width`` is below 1.
    """
    now = time.time_ns() if issued_at is None else issued_at
    blueprints = [kernel_blueprint(kernel, width, issued_at=now) for kernel in kernels]
    return tuple(
        blueprint
        for blueprint in blueprints
        if publisher.publish(Stream.BLUEPRINTS, blueprint, keep_as=f"urza:{blueprint.blueprint_id}")
    )


def kernel_blueprint(kernel: Kernel, width: int, *, issued_at: int, compiler: Compiler | None = None) -> Blueprint:
    """Return the blueprint of ``kernel`` at ``width``, with its default parameters.

    The graph is traced from the built module; its parameter nodes are what may be tuned. ``blueprint_version`` is
    the SHA-256 over everything that lasts: the checksum is part of it, measured times are not.

    Args:
        kernel: the row of the catalogue.
        width: number of features.
        issued_at: Unix time, ns.
        compiler: compiles the kernel, as ``torch.compile``; None leaves it eager, which the report says.

    Raises:
        KernelWidthInvalid: ``width`` is below 1.
    """
    module = kernel.build(width)
    checksum = kernel_checksum(module)  # first: running a kernel may change what it holds
    blueprint = Blueprint(
        blueprint_id=kernel.blueprint_id,
        blueprint_version="-",
        kind=BlueprintKind.KERNEL,
        issued_at=issued_at,
        descriptor=kernel.descriptor,
        graph=_graph_of(kernel, module),
        compiled=_run_first(module, width, compiler),
        checksum=checksum,
        tags=[kernel.family, *(["zero_output"] if kernel.zero_output else []), f"width={width}"],
    )
    return msgspec.structs.replace(blueprint, blueprint_version=_version_of(blueprint))


def kernel_checksum(module: nn.Module) -> str:
    """Return the SHA-256 (hex) over the kernel's tensors and the source file that defines it."""
    digest = hashlib.sha256(inspect.getsource(sys.modules[type(module).__module__]).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _graph_of(kernel: Kernel, module: nn.Module) -> BlueprintGraph:
    structure = trace_structure(module)
    # One group of all parameters makes the columns; a kernel has no optimizer, so the group leaves again.
    group = torch.optim.SGD([{"params": list(module.parameters())}], lr=0.0)
    traced = build_blueprint(structure, module, group, run_id=kernel.blueprint_id, issued_at=0).graph
    if traced is None or traced.adjacency is None:
        raise RuntimeError(f"kernel {kernel.blueprint_id} has no graph; build_blueprint always gives one")
    return msgspec.structs.replace(
        traced,
        layers=msgspec.structs.replace(traced.layers, weight_norm=_weight_norms(structure)),
        parameters=BlueprintParameters(parameter_id=[tunable.name for tunable in kernel.tunables]),
        adjacency=msgspec.structs.replace(traced.adjacency, tunes=None, configures=None, modulates=None),
    )


def _weight_norms(structure: ModelStructure) -> Float32Column:
    return Float32Column.of(
        [
            math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in layer.parameters))
            for layer in structure.layers
        ]
    )


def _run_first(module: nn.Module, width: int, compiler: Compiler | None) -> CompileReport:
    """Run ``module`` on features [8, 16, width], compiled where asked for; report times in ms.

    ``prewarm_ms`` is the first eager forward and backward, ``compile_ms`` the first compiled one: compilation
    happens in it.
    """
    with torch.random.fork_rng(devices=[]):
        prewarm_ms = _timed(module, width)
        if compiler is None:
            return CompileReport(status=CompileStatus.EAGER, prewarm_ms=prewarm_ms)
        try:
            compile_ms = _timed(compiler(module), width)
        except Exception:  # noqa: BLE001 - a compiler raises anything; the kernel still runs eagerly
            return CompileReport(status=CompileStatus.FAILED, prewarm_ms=prewarm_ms)
    return CompileReport(status=CompileStatus.COMPILED, prewarm_ms=prewarm_ms, compile_ms=compile_ms)


def _timed(run: Callable[[torch.Tensor], torch.Tensor], width: int) -> float:
    features = torch.zeros(*_SAMPLE_SHAPE, width, requires_grad=True)
    began = time.perf_counter()
    run(features).sum().backward()  # type: ignore[no-untyped-call]  # torch's backward has no annotations
    return 1000.0 * (time.perf_counter() - began)


def _version_of(blueprint: Blueprint) -> str:
    status = None if blueprint.compiled is None else CompileReport(status=blueprint.compiled.status)
    lasting = msgspec.structs.replace(
        blueprint, blueprint_id="-", blueprint_version="-", issued_at=0, compiled=status
    )
    return hashlib.sha256(canonical_payload(lasting)).hexdigest()
