"""Reads the pickle of a torch archive without executing anything (design §10, "untrusted bytes").

Two dozen opcodes build plain data, and the three things that torch writes besides become values that describe
them: a tensor's place, a storage's size, an ordered dict. Whatever else a pickle can do, it cannot do here.
Torch's own reader comes after this one: it believes a storage's size, which we compare with the file first.

Containers are never shared, so the result is a tree no larger than its text.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from tamiyo_stream.checkpoints.contents import is_shape, not_a_checkpoint
from tamiyo_stream.checkpoints.refusal import CheckpointRefused, Reason

#: About 30 000 in a checkpoint with young registries, 80 000 with full ones.
MAX_OPCODES = 500_000

#: Global -> type name and bytes per element of the storages that torch writes.
STORAGES: dict[str, tuple[str, int]] = {
    "torch FloatStorage": ("float32", 4),
    "torch DoubleStorage": ("float64", 8),
    "torch HalfStorage": ("float16", 2),
    "torch BFloat16Storage": ("bfloat16", 2),
    "torch LongStorage": ("int64", 8),
    "torch IntStorage": ("int32", 4),
    "torch ShortStorage": ("int16", 2),
    "torch CharStorage": ("int8", 1),
    "torch ByteStorage": ("uint8", 1),
    "torch BoolStorage": ("bool", 1),
}
_U8, _U16, _U32, _I32, _F64 = map(struct.Struct, ("<B", "<H", "<I", "<i", ">d"))
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_GLOBALS = {*STORAGES, _TENSOR, _PARAMETER, _ORDERED_DICT}


class Global(NamedTuple):
    """A name that the pickle refers to; it stands for itself and is never looked up."""

    name: str


class Storage(NamedTuple):
    """Elements in the archive's record ``data/<key>``."""

    key: str
    dtype: str
    element_bytes: int
    elements: int


class StoredTensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(data: bytes) -> Any:
    """Return the tree of dicts, lists, tuples, scalars and :class:`StoredTensor` that ``data`` describes.

    Raises:
        CheckpointRefused: ``unsafe_pickle`` for what a checkpoint never needs, ``not_a_checkpoint`` for damage.
    """
    try:
        return _Machine(data).run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        if isinstance(error, CheckpointRefused):
            raise
        raise not_a_checkpoint(f"its data.pkl is damaged ({type(error).__name__}: {error})") from None


class _Machine:
    """The pickle machine, cut down to plain data. Malformed input raises whatever Python raises."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self._data[self._position]
            self._position += 1
            if code == _STOP:
                (value,) = self._stack
                return value
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise _unsafe(f"the opcode {_NAMES.get(code, hex(code))}")
            operation(self)
        raise not_a_checkpoint(f"its data.pkl has more than {MAX_OPCODES} opcodes")

    def _take(self, count: int) -> bytes:
        taken = self._data[self._position : self._position + count]
        if len(taken) < count:
            raise ValueError("it ends too early")
        self._position += count
        return taken

    def _number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack_from(self._data, self._position)
        self._position += form.size
        return number

    def _line(self) -> str:
        end = self._data.index(b"\n", self._position)
        return self._take(end + 1 - self._position)[:-1].decode()

    def _pop_marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def skip_protocol(self) -> None:
        self._take(1)

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_number(self, form: struct.Struct) -> None:
        self.push(self._number(form))

    def push_long(self) -> None:
        self.push(int.from_bytes(self._take(self._number(_U8)), "little", signed=True))

    def push_text(self) -> None:
        self.push(self._take(self._number(_U32)).decode())

    def push_global(self) -> None:
        name = f"{self._line()} {self._line()}"
        if name not in _GLOBALS:
            raise _unsafe(f"the name {name[:80].replace(' ', '.')!r}")
        self.push(Global(name))

    def push_tuple(self, length: int) -> None:
        items = tuple(self._stack[-length:])
        if len(items) < length:
            raise ValueError("a tuple is short")
        self._stack[-length:] = [items]

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def push_marked_tuple(self) -> None:
        self.push(tuple(self._pop_marked()))

    def store(self, form: struct.Struct) -> None:
        self._memo[self._number(form)] = self._stack[-1]

    def recall(self, form: struct.Struct) -> None:
        value = self._memo[self._number(form)]
        if isinstance(value, dict | list):
            raise _unsafe("one container in two places")
        self.push(value)

    def set_items(self) -> None:
        items = self._pop_marked()
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(target, dict) or not isinstance(key, str):
                raise TypeError("a dict has a key that is no string")
            target[key] = value

    def set_item(self) -> None:
        self._marks.append(len(self._stack) - 2)
        self.set_items()

    def append_items(self) -> None:
        items = self._pop_marked()
        if not isinstance(self._stack[-1], list):
            raise TypeError("items are appended to no list")
        self._stack[-1].extend(items)

    def append_item(self) -> None:
        self._marks.append(len(self._stack) - 1)
        self.append_items()

    def push_storage(self) -> None:
        kind, storage_type, key, _, elements = self._stack.pop()
        if kind != "storage" or not isinstance(storage_type, Global) or type(elements) is not int:
            raise TypeError("a persistent id names no storage")
        dtype, element_bytes = STORAGES[storage_type.name]
        self.push(Storage(str(key), dtype, element_bytes, elements))

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        builder = _BUILDERS.get(function.name) if isinstance(function, Global) else None
        if builder is None or not isinstance(arguments, tuple):
            raise _unsafe("a call of something that is no tensor")
        self.push(builder(arguments))

    def set_state(self) -> None:
        """What an ordered dict of a module carries beside its items: of no use here."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise _unsafe("an object's state")


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    if not is_shape((offset,)) or not is_shape(shape) or not is_shape(strides) or len(shape) != len(strides):
        raise ValueError("a tensor has no valid shape")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    if not isinstance(arguments[0], StoredTensor):
        raise TypeError("a parameter is no tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise ValueError("an ordered dict is called with arguments")
    return {}


def _unsafe(what: str) -> CheckpointRefused:
    return CheckpointRefused(
        Reason.UNSAFE_PICKLE,
        f"data.pkl uses {what}, which no checkpoint needs; nothing of it was executed. Find out who sent it, and "
        "write checkpoints with tamiyo_stream.checkpoints.writing",
    )


_BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    _TENSOR: _tensor,
    _PARAMETER: _parameter,
    _ORDERED_DICT: _ordered_dict,
}
#: Names of all opcodes, for messages.
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_STOP = ord(".")
#: Opcode -> what it does; names in :mod:`pickletools`.
_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.skip_protocol,
    ord("}"): lambda machine: machine.push({}),
    ord("]"): lambda machine: machine.push([]),
    ord(")"): lambda machine: machine.push(()),
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("K"): lambda machine: machine.push_number(_U8),
    ord("M"): lambda machine: machine.push_number(_U16),
    ord("J"): lambda machine: machine.push_number(_I32),
    ord("G"): lambda machine: machine.push_number(_F64),
    0x8A: _Machine.push_long,
    ord("X"): _Machine.push_text,
    ord("c"): _Machine.push_global,
    ord("("): _Machine.mark,
    ord("t"): _Machine.push_marked_tuple,
    0x85: lambda machine: machine.push_tuple(1),
    0x86: lambda machine: machine.push_tuple(2),
    0x87: lambda machine: machine.push_tuple(3),
    ord("q"): lambda machine: machine.store(_U8),
    ord("r"): lambda machine: machine.store(_U32),
    ord("h"): lambda machine: machine.recall(_U8),
    ord("j"): lambda machine: machine.recall(_U32),
    ord("u"): _Machine.set_items,
    ord("s"): _Machine.set_item,
    ord("e"): _Machine.append_items,
    ord("a"): _Machine.append_item,
    ord("Q"): _Machine.push_storage,
    ord("R"): _Machine.call,
    ord("b"): _Machine.set_state,
}
