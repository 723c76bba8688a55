"""What a training step costs: bytes of tensors alive at once, and floating-point operations.

Both are counted at torch's dispatcher, not taken from the process: the resident set depends on what the allocator
kept from before, counted bytes are the same on every run.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class CostMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no annotations
    """Counts while it is entered, for tensors that are created meanwhile.

    Attributes:
        held_bytes: of the tensors that are alive now.
        peak_bytes: most that were alive at once.
        flops: floating-point operations of matrix products, convolutions and attention.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.held_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it made."""
        given = kwargs or {}
        before = {_address(tensor) for tensor in tree_leaves((args, given)) if isinstance(tensor, Tensor)}
        result = func(*args, **given)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **given, out_val=result))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor) not in before:
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()  # the storage's identity: views share it
        if address in self._alive:
            return

        def release(_: weakref.ref[torch.UntypedStorage]) -> None:
            if self._alive.pop(address, None) is not None:
                self.held_bytes -= size

        self._alive[address] = weakref.ref(storage, release)
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
