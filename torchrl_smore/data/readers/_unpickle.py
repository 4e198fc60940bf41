"""Reads pickles of NumPy arrays without running any code that a pickle names, or building what it describes.

A pickle is a program for a stack machine that calls whatever importable object it names. The machine here knows the
instructions that dictionaries of arrays are written with, in every protocol, and seven names, each answered by a
function of this file. It keeps numbers, short text, short tuples and dictionaries; of everything else only the kind.
Bytes of arrays stay in the file until the program has ended, and are then read for the arrays that are asked for.
"""

from __future__ import annotations

import codecs
import math
import pickletools
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from torchrl_smore.data._files import check_regular, open_regular, quoted, reading
from torchrl_smore.data.errors import DatasetError

_PLAIN_DTYPE = re.compile(r"f[248]|[iu][1248]|b1")
_INTEGER = re.compile(rb"-?[0-9]+")
_BYTE_ORDERS = ("<", ">", "=", "|")
_MAX_INSTRUCTIONS: Final = 1 << 18  # a dictionary of arrays takes about a hundred
_MAX_PROTOCOL: Final = 5
_MAX_SHORT: Final = 1 << 10  # bytes of text that are kept in memory
_MAX_TUPLE: Final = 16
_MAX_DEPTH: Final = 3  # of tuples within tuples: the state of an array holds its shape
_MAX_INTEGER: Final = 1 << 63


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads arrays of real numbers from a pickled dictionary, written by any protocol and NumPy 1 or 2.

    Args:
        path: the file. Pickles of Python 2 are read as latin-1.
        names: the arrays to return; the rest is left out.

    Returns:
        The arrays by name.

    Raises:
        DatasetError: if the file is missing, truncated or corrupt, or holds anything else. Nothing in it is executed.
    """
    with reading(path, "a pickle of arrays"), open_regular(path) as stream:
        content = _Machine(stream, check_regular(path)).run()
        if not isinstance(content, dict):
            raise DatasetError(f"{path}: expected a dictionary of arrays, found {_kind(content)}.")
        arrays: dict[str, np.ndarray] = {}
        for name in names:
            if name not in content:
                raise DatasetError(f"{path}: expected an array {name!r}, found only {quoted(list(content))}.")
            value = content[name]
            if not isinstance(value, _Array) or value.content is None:
                raise DatasetError(f"{path}: {name!r}: expected an array, found {_kind(value)}.")
            arrays[name] = value.load(stream)
    return arrays


class _Refused(ValueError):
    """What a pickle of arrays has no use for."""


@dataclass(frozen=True)
class _Other:
    """Something of which only the kind is known."""

    kind: str


@dataclass(frozen=True)
class _Stored:
    """Bytes or text too long to be kept; where they lie in the file, and how they are written there."""

    offset: int
    length: int
    codec: str

    def read(self, stream: BinaryIO) -> bytes:
        stream.seek(self.offset)
        content = stream.read(self.length)
        return content if self.codec == "bytes" else _as_bytes(_decoded(content, self.codec))


@dataclass(frozen=True)
class _Function:
    name: str
    call: Callable[..., Any]


class _Dtype:
    def __init__(self, name: Any, *options: Any) -> None:
        plain = isinstance(name, str) and _PLAIN_DTYPE.fullmatch(name)
        if not plain or len(options) > 2 or any(option not in (0, 1) for option in options):
            raise _Refused(f"refused an array of dtype {quoted(name)}: expected real numbers or booleans.")
        self.name, self.order = name, "="

    def set_state(self, state: Any) -> None:
        # version, byte order, subarray, names, fields, size, alignment, flags: the last six as plain numbers have them
        plain = isinstance(state, tuple) and len(state) == 8 and state[2:] == (None, None, None, -1, -1, 0)
        if not plain or state[0] != 3 or state[1] not in _BYTE_ORDERS:
            raise _Refused(f"refused a dtype with state {quoted(state)}: expected real numbers or booleans.")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.name)


class _Array:
    """An array whose bytes are still in the file."""

    def __init__(self) -> None:
        self.content: bytes | str | _Stored | None = None
        self._dtype = np.dtype(np.float64)
        self._shape: tuple[int, ...] = ()
        self._order = "C"
        self._axes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, content: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> _Array:
        array = cls()
        array.set_content(content, dtype, shape, order)
        if axes is not None:
            if not isinstance(axes, tuple) or sorted(axes) != list(range(len(shape))):
                raise _Refused(f"refused an array with its axes in order {quoted(axes)}.")
            array._axes = axes
        return array

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1 or type(state[3]) not in (bool, int):
            raise _Refused(f"refused an array with state {quoted(state)}.")
        _, shape, dtype, is_fortran, content = state
        self.set_content(content, dtype, shape, "F" if is_fortran else "C")

    def set_content(self, content: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, str, _Stored)):
            raise _Refused(f"refused an array made of {_kind(content)}: expected bytes.")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise _Refused(f"refused an array of shape {quoted(shape)}.")
        self.content, self._dtype, self._shape, self._order = content, dtype.dtype, shape, order
        if isinstance(content, bytes):
            self._check_length(len(content))
        elif isinstance(content, _Stored) and content.codec == "bytes":
            self._check_length(content.length)

    def _check_length(self, found: int) -> None:
        expected = math.prod(self._shape) * self._dtype.itemsize
        if found != expected:
            raise _Refused(f"expected {expected} bytes for an array {self._shape}, found {found}.")

    def load(self, stream: BinaryIO) -> np.ndarray:
        """The array; no second copy of its bytes is made."""
        content = self.content
        assert content is not None
        if isinstance(content, _Stored):
            content = content.read(stream)
        content = _as_bytes(content)
        self._check_length(len(content))
        array = np.frombuffer(content, self._dtype).reshape(self._shape, order="F" if self._order == "F" else "C")
        return array if self._axes is None else array.transpose(self._axes)


def _as_bytes(content: bytes | str) -> bytes:
    """Python 2 wrote bytes and text alike, and protocols 0 to 2 write bytes as text."""
    return content if isinstance(content, bytes) else content.encode("latin1")


def _kind(value: Any) -> str:
    if isinstance(value, _Other):
        return value.kind
    if isinstance(value, _Stored):
        return "bytes" if value.codec == "bytes" else "str"
    return type(value).__name__.lstrip("_")


def _refuse_call(*_: Any) -> Any:
    raise _Refused("refused a direct call of numpy.ndarray.")


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> _Array:
    if kind is not _NDARRAY or shape != (0,) or dtype not in ("b", b"b"):
        raise _Refused(f"refused an array that is not empty at first: {_kind(kind)}, {quoted(shape)}, {quoted(dtype)}.")
    return _Array()


def _encode(text: Any, encoding: Any) -> Any:
    # protocols 0 to 2 write bytes this way; other codecs would import modules by name
    if not isinstance(text, (str, _Stored)) or encoding != "latin1":
        raise _Refused(f"refused the encoding {quoted(encoding)}: expected text in 'latin1'.")
    return text.encode("latin1") if isinstance(text, str) else text


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    if order not in ("C", "F", "K") or (order == "K") != (axes is not None):
        raise _Refused(f"refused an array in order {quoted(order)} with axes {quoted(axes)}.")
    return _Array.of(content, dtype, shape, order, axes)


_NDARRAY: Final = _Function("numpy.ndarray", _refuse_call)
_FUNCTIONS: Final = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Function("numpy.dtype", _Dtype),
    ("_codecs", "encode"): _Function("_codecs.encode", _encode),
} | {
    (f"{core}.{module}", name): _Function(name, call)
    for core in ("numpy.core", "numpy._core")
    for module, name, call in (
        # the arguments describe an empty array, whose contents its state then replaces
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", lambda dtype, content: _Array.of(content, dtype, (), "C")),
        ("numeric", "_frombuffer", _from_buffer),
    )
}
_MARK: Final = object()


def _decoded(content: bytes, codec: str) -> str:
    if codec == "quoted":  # a text of Python 2 as its source would show it
        if len(content) < 2 or content[:1] not in (b"'", b'"') or content[:1] != content[-1:]:
            raise _Refused("expected a text in quotes.")
        return codecs.escape_decode(content[1:-1])[0].decode("latin1")
    return content.decode(codec)


def _small(number: int) -> int:
    if not -_MAX_INTEGER <= number < _MAX_INTEGER:
        raise _Refused("refused an integer of more than 64 bits.")
    return number


class _Machine:
    """Runs a pickle; every instruction that is not in the table below is refused by name."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._stream.read(1)
            if code == b".":
                return self._pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise _Refused(f"refused the instruction {_name_of(code)}: arrays of numbers are written without it.")
            instruction(self)
        raise _Refused(f"expected at most {_MAX_INSTRUCTIONS} instructions, found more.")

    # reading

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _bytes(self, length: int) -> bytes:
        content = self._stream.read(length)
        if len(content) != length:
            raise _Refused("the pickle ends before its end.")
        return content

    def _line(self) -> bytes:
        line = self._stream.readline(_MAX_SHORT)
        if not line.endswith(b"\n"):
            raise _Refused(f"expected a line of at most {_MAX_SHORT} bytes.")
        return line[:-1]

    def _text_line(self, codec: str) -> None:
        """Text up to the end of the line, of any length."""
        offset = self._stream.tell()
        length = 0
        while not (part := self._stream.readline(1 << 20)).endswith(b"\n"):
            if not part:
                raise _Refused("the pickle ends before its end.")
            length += len(part)
        self._take(offset, length + len(part) - 1, codec)
        self._stream.seek(offset + length + len(part))

    def _counted(self, layout: str, codec: str) -> None:
        """Bytes or text that are preceded by their length."""
        length = self._number(layout)
        offset = self._stream.tell()
        if not 0 <= length <= self._size - offset:
            raise _Refused(f"the pickle ends before its end: expected {length} bytes at {offset} of {self._size}.")
        self._take(offset, length, codec)
        self._stream.seek(offset + length)

    def _take(self, offset: int, length: int, codec: str) -> None:
        if length > _MAX_SHORT:
            self._stack.append(_Stored(offset, length, codec))
            return
        self._stream.seek(offset)
        content = self._bytes(length)
        self._stack.append(content if codec == "bytes" else _decoded(content, codec))

    def _protocol(self) -> None:
        if (protocol := self._number("<B")) > _MAX_PROTOCOL:
            raise _Refused(f"expected a protocol of at most {_MAX_PROTOCOL}, found {protocol}.")

    def _frame(self) -> None:
        if (length := self._number("<Q")) > self._size - self._stream.tell():
            raise _Refused(f"the pickle ends before its end: expected a frame of {length} bytes.")

    # the stack

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Refused("expected a value on the stack, found none.")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while self._stack and self._stack[-1] is not _MARK:
            values.append(self._stack.pop())
        if not self._stack:
            raise _Refused("expected a mark on the stack, found none.")
        self._stack.pop()
        return values[::-1]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _integer_line(self, *, long: bool) -> None:
        line = self._line()
        if not long and line in (b"00", b"01"):
            self._push(line == b"01")
            return
        if len(line) > 24:
            raise _Refused("refused an integer of more than 64 bits.")
        digits = line.removesuffix(b"L") if long else line
        if not _INTEGER.fullmatch(digits):
            raise _Refused(f"expected an integer, found {quoted(line)}.")
        self._push(_small(int(digits)))

    def _long(self) -> None:
        self._push(_small(int.from_bytes(self._bytes(self._number("<B")), "little", signed=True)))

    def _float_line(self) -> None:
        line = self._line()
        if b"_" in line:
            raise _Refused(f"expected a number, found {quoted(line)}.")
        self._push(float(line))

    def _tuple(self, values: list[Any]) -> None:
        depth = 1 + max((_depth(value) for value in values), default=0)
        short = len(values) <= _MAX_TUPLE and depth <= _MAX_DEPTH
        self._push(tuple(values) if short else _Other("tuple"))

    def _put_items(self, items: list[Any]) -> None:
        if not self._stack or not isinstance(self._stack[-1], dict) or len(items) % 2:
            raise _Refused("expected a dictionary and pairs of key and value.")
        for key, value in zip(items[::2], items[1::2]):
            if isinstance(key, str):
                self._stack[-1][key] = value
            elif type(key) not in (int, float, bool):
                raise _Refused(f"refused a dictionary key of type {_kind(key)}: expected text.")

    def _add_to_list(self, count: int | None) -> None:
        if count is None:
            self._pop_to_mark()
        else:
            self._pop()
        if not self._stack or self._stack[-1] != _LIST:
            raise _Refused("expected a list to add to.")

    def _new_dict(self, items: list[Any]) -> None:
        self._push({})
        self._put_items(items)

    def _new_list(self) -> None:
        self._pop_to_mark()
        self._push(_LIST)

    def _remember(self, index: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Refused("expected a value on the stack, found none.")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise _Refused(f"expected a value under the number {index}, found none.")
        self._push(self._memo[index])

    def _memo_line(self) -> int:
        line = self._line()
        if not line.isdigit() or len(line) > 20:
            raise _Refused("expected the number of a value.")
        return int(line)

    # calls

    def _push_function(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in _FUNCTIONS:
            known = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "without a name"
            raise _Refused(f"refused the global {known[:_MAX_SHORT]}: only arrays of numbers are read.")
        self._push(_FUNCTIONS[module, name])

    def _global(self) -> None:
        self._push_function(self._line().decode(), self._line().decode())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._push_function(module, name)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise _Refused(f"refused a call of {_kind(function)} with {_kind(arguments)}.")
        self._push(function.call(*arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        if not isinstance(target, (_Dtype, _Array)):
            name = target.name if isinstance(target, _Function) else _kind(target)
            raise _Refused(f"refused to change the state of {name}.")
        target.set_state(state)
        self._push(target)


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, tuple) else 0


def _name_of(code: bytes) -> str:
    if not code:
        raise _Refused("the pickle ends before its end.")
    known = next((known for known in pickletools.opcodes if known.code == code.decode("latin1")), None)
    return known.name if known else f"{code!r}, which is none of a pickle"


_LIST: Final = _Other("list")
_INSTRUCTIONS: Final[dict[bytes, Callable[[_Machine], Any]]] = {
    b"\x80": lambda m: m._protocol(),
    b"\x95": lambda m: m._frame(),
    b"(": lambda m: m._push(_MARK),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    # numbers
    b"I": lambda m: m._integer_line(long=False),
    b"L": lambda m: m._integer_line(long=True),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": lambda m: m._long(),
    b"F": lambda m: m._float_line(),
    b"G": lambda m: m._push(m._number(">d")),
    # text
    b"S": lambda m: m._text_line("quoted"),
    b"V": lambda m: m._text_line("raw-unicode-escape"),
    b"T": lambda m: m._counted("<i", "latin1"),
    b"U": lambda m: m._counted("<B", "latin1"),
    b"X": lambda m: m._counted("<I", "utf-8"),
    b"\x8c": lambda m: m._counted("<B", "utf-8"),
    b"\x8d": lambda m: m._counted("<Q", "utf-8"),
    # bytes
    b"B": lambda m: m._counted("<I", "bytes"),
    b"C": lambda m: m._counted("<B", "bytes"),
    b"\x8e": lambda m: m._counted("<Q", "bytes"),
    b"\x96": lambda m: m._counted("<Q", "bytes"),
    # tuples, lists, dictionaries
    b")": lambda m: m._push(()),
    b"t": lambda m: m._tuple(m._pop_to_mark()),
    b"\x85": lambda m: m._tuple([m._pop()]),
    b"\x86": lambda m: m._tuple([m._pop(), m._pop()][::-1]),
    b"\x87": lambda m: m._tuple([m._pop(), m._pop(), m._pop()][::-1]),
    b"]": lambda m: m._push(_LIST),
    b"l": lambda m: m._new_list(),
    b"a": lambda m: m._add_to_list(1),
    b"e": lambda m: m._add_to_list(None),
    b"}": lambda m: m._push({}),
    b"d": lambda m: m._new_dict(m._pop_to_mark()),
    b"s": lambda m: m._put_items([m._pop(), m._pop()][::-1]),
    b"u": lambda m: m._put_items(m._pop_to_mark()),
    # the memo
    b"p": lambda m: m._remember(m._memo_line()),
    b"q": lambda m: m._remember(m._number("<B")),
    b"r": lambda m: m._remember(m._number("<I")),
    b"\x94": lambda m: m._remember(len(m._memo)),
    b"g": lambda m: m._recall(m._memo_line()),
    b"h": lambda m: m._recall(m._number("<B")),
    b"j": lambda m: m._recall(m._number("<I")),
    # calls
    b"c": lambda m: m._global(),
    b"\x93": lambda m: m._stack_global(),
    b"R": lambda m: m._reduce(),
    b"b": lambda m: m._build(),
}
