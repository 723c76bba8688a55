"""The structure of a model by symbolic tracing (torch.fx): which layers feed which, as ``forward`` says.

Tracing runs the model's ``forward`` once with stand-ins for tensors. Nothing is computed, and the model is left as
it was: attributes that ``forward`` writes are put back, the random state is kept, hooks of the user do not run.
While it lasts (milliseconds) torch.fx replaces ``nn.Module.__call__`` in the whole process: do not run another
model meanwhile.
"""

from __future__ import annotations

import dis
import inspect
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from tamiyo_stream.upstream.tolaria.flow import flow_through
from tamiyo_stream.upstream.tolaria.layer_types import is_leaf
from tamiyo_stream.upstream.tolaria.module_tree import structure_of_module_tree
from tamiyo_stream.upstream.tolaria.structure import ModelStructure, ModelWithoutParameters

log = logging.getLogger("tamiyo.probe")

#: Functions without a tensor argument: only by wrapping their names can a traced size pass through them.
_FACTORIES = (
    *(torch.arange, torch.linspace, torch.zeros, torch.ones, torch.full, torch.empty),
    *(torch.rand, torch.randn),
)
#: torch.fx patches nn.Module for the whole process: two probes must not do so at once.
_TRACING = threading.Lock()


def derive_structure(model: nn.Module) -> ModelStructure:
    """Return the structure of ``model``: traced, or along its module tree where that fails (said in a log line).

    Raises:
        ModelWithoutParameters: nothing in ``model`` can be trained.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelWithoutParameters(
            f"{type(model).__name__} has no trainable parameter; attach the probe to the model that is trained"
        )
    if is_leaf(model):
        return structure_of_module_tree(model, "")
    try:
        return trace_structure(model)
    except Exception as error:  # noqa: BLE001 - the user's forward may raise anything on a stand-in
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    log.warning(
        "%s cannot be traced (%s): its graph follows the module tree, without branches and shortcuts",
        type(model).__name__,
        reason,
    )
    return structure_of_module_tree(model, reason)


def trace_structure(model: nn.Module) -> ModelStructure:
    """Return the structure of ``model`` by tracing.

    Raises:
        Exception: whatever the model's ``forward`` raises on a symbolic input; loops and branches on data do.
    """
    with _TRACING, _left_as_found(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about specialised arguments; they are meant
        tracer = _StructureTracer()
        graph = tracer.trace(model, concrete_args=_defaults_of(model))
        return flow_through(graph, model, tracer.node_name_to_scope)


class _StructureTracer(fx.Tracer):
    """Looks into every module down to the leaves of :mod:`layer_types`."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(autowrap_functions=_FACTORIES)
        self._autowrap_search.append(torch)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - torch.fx's signature
        return is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # Past the module's hooks (which `forward` would run): they belong to the user and expect tensors.
        traced = next((function for kind, function in _TRACED_AS.items() if isinstance(m, kind)), None)
        forward = m.forward if traced is None else lambda *given, **named: traced(m, *given, **named)
        return super().call_module(m, forward, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        # An assertion on a shape is not a branch: it holds, or training would not run.
        frame = inspect.currentframe()
        caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
        if caller is not None and _is_asserting(caller.f_code, caller.f_lasti):
            return True
        return super().to_bool(obj)


def _is_asserting(code: CodeType, offset: int) -> bool:
    """Return whether the conditional jump at ``offset`` of ``code`` is that of an ``assert``."""
    following = [step for step in dis.get_instructions(code) if step.offset >= offset and step.opname != "CACHE"]
    jump = next((place for place, step in enumerate(following) if step.opname.endswith("IF_TRUE")), len(following))
    # 3.12 and later convert to bool (TO_BOOL) in front of the jump
    return jump <= 1 and any(step.opname == "LOAD_ASSERTION_ERROR" for step in following[jump + 1 : jump + 2])


def _encoder(encoder: Any, src: Any, *_: Any, **__: Any) -> Any:
    for layer in encoder.layers:
        src = layer(src)
    return encoder.norm(src) if encoder.norm is not None else src


def _decoder(decoder: Any, tgt: Any, memory: Any, *_: Any, **__: Any) -> Any:
    for layer in decoder.layers:
        tgt = layer(tgt, memory)
    return decoder.norm(tgt) if decoder.norm is not None else tgt


def _transformer(transformer: Any, src: Any, tgt: Any, *_: Any, **__: Any) -> Any:
    return transformer.decoder(tgt, transformer.encoder(src))


#: torch's own containers whose forward inspects sizes and masks before it does the obvious.
_TRACED_AS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
    nn.Transformer: _transformer,
}


def _defaults_of(model: nn.Module) -> dict[str, Any]:
    """Return the arguments of ``forward`` that have a plain default: the usual call leaves them out."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is None or isinstance(parameter.default, bool | int | float | str)
    }


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Undo whatever tracing leaves behind: attributes and buffers set, constants added, random numbers drawn."""
    saved = [_Attributes(module) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fast path of torch's transformer layers is for inference and asks questions that a stand-in cannot
    # answer.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for attributes in saved:
            attributes.restore()


class _Attributes:
    """A module's attributes as they were, with the content of its registers (parameters, children, hooks, …).

    The registers themselves stay the same objects: handles of the user's hooks refer to them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(module.__dict__)
        self._registers = [
            (value, dict(value))
            for name, value in module.__dict__.items()
            if name.startswith("_") and isinstance(value, dict)
        ]

    def restore(self) -> None:
        self._module.__dict__.clear()
        self._module.__dict__.update(self._attributes)
        for register, content in self._registers:
            register.clear()
            register.update(content)
