"""Reads what a pickle describes, as inert values: no name is looked up, nothing is called, no object is built."""

from __future__ import annotations

import math
import pickletools
import re
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from torchrl_smore.envs.experts._base import Array

_MAX_INSTRUCTIONS: Final = 1 << 20
_PLAIN_DTYPE = re.compile(r"f[48]|[iu][1248]|b1")
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES: Final = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NUMBERED_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ADD_ALL: Final = {"APPENDS", "ADDITEMS"}
_MARK: Final = object()


@dataclass(frozen=True)
class Name:
    """Something importable that a pickle names, as ``module.name``."""

    text: str


@dataclass(eq=False)
class Made:
    """What a pickle says to build.

    Attributes:
        by: what it says to call, a :class:`Name` in an honest pickle.
        arguments: of that call.
        state: what the object is then given, or ``None``.
        items: entries with a text as their key that are then put into it.
    """

    by: Any
    arguments: Any
    state: Any = None
    items: dict[str, Any] = field(default_factory=dict)

    def is_by(self, *names: str) -> bool:
        """Whether one of these names makes it."""
        return isinstance(self.by, Name) and self.by.text in names


def described(content: bytes) -> Any:
    """What a pickle describes.

    Args:
        content: the pickle, of protocol 2 or later.

    Returns:
        Numbers, text, bytes, tuples, lists and dictionaries (of the entries with a text as their key) as they are;
        :class:`Name` and :class:`Made` for everything else.

    Raises:
        ValueError: if it is damaged, or has an instruction that plain objects are written without.
    """
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count == _MAX_INSTRUCTIONS:
            raise ValueError(f"expected at most {_MAX_INSTRUCTIONS} instructions in a pickle, found more")
        machine.step(opcode.name, argument)
    return machine.pop()


def array_of(value: Any) -> Array:
    """The array of numbers that a :class:`Made` describes, as NumPy 1 and 2 write them.

    Raises:
        ValueError: if it describes something else, or another number of bytes than its shape has.
    """
    if isinstance(value, (int, float)):
        return np.asarray(value)
    found: tuple[Any, ...] = ()
    if isinstance(value, Made):
        if value.is_by(*_numpy("multiarray._reconstruct")) and isinstance(value.state, tuple):
            found = value.state[1:]
        elif value.is_by(*_numpy("multiarray.scalar")) and len(value.arguments) == 2:
            found = ((), value.arguments[0], False, value.arguments[1])
        elif value.is_by(*_numpy("numeric._frombuffer")) and len(value.arguments) == 4:
            content, dtype, shape, order = value.arguments
            found = (shape, dtype, order == "F", content)
    if len(found) != 4:
        raise ValueError("expected an array of numbers, found something else")
    shape, dtype, is_fortran, content = found
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("expected the shape of an array, found something else")
    kind = _dtype_of(dtype)
    expected = math.prod(shape) * kind.itemsize
    if not isinstance(content, (bytes, bytearray)) or len(content) != expected:
        raise ValueError(f"expected {expected} bytes for an array {list(shape)[:8]}, found something else")
    return np.frombuffer(content, kind).reshape(shape, order="F" if is_fortran else "C")


def _numpy(name: str) -> tuple[str, str]:
    return f"numpy.core.{name}", f"numpy._core.{name}"


def _dtype_of(value: Any) -> np.dtype:
    name = value.arguments[0] if isinstance(value, Made) and value.is_by("numpy.dtype") and value.arguments else None
    if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
        raise ValueError("expected an array of numbers, found one of something else")
    # of the state, the second entry is the byte order
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    if order not in ("<", ">", "=", "|"):
        raise ValueError("expected a byte order of <, >, = or |")
    return np.dtype(order + name)


class _Machine:
    """The stack machine of pickles, on inert values."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Runs one instruction."""
        push = self._stack.append
        if name in ("PROTO", "FRAME", "STOP"):
            return
        if name in _VALUES:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            push([])
        elif name == "EMPTY_DICT":
            push({})
        elif name == "MARK":
            push(_MARK)
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name in ("LIST", "FROZENSET"):
            push(self._pop_to_mark())
        elif name in _NUMBERED_TUPLES:
            push(tuple([self.pop() for _ in range(_NUMBERED_TUPLES[name])][::-1]))
        elif name == "APPEND":
            self._extend([self.pop()])
        elif name in _ADD_ALL:
            self._extend(self._pop_to_mark())
        elif name == "SETITEM":
            self._put([self.pop(), self.pop()][::-1])
        elif name == "SETITEMS":
            self._put(self._pop_to_mark())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self._memo:
                raise ValueError(f"expected a value under the number {argument} of a pickle, found none")
            push(self._memo[argument])
        else:
            self._make(name, argument)

    def _make(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name == "GLOBAL":
            push(Name(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            last, module = self.pop(), self.pop()
            push(Name(f"{module}.{last}" if isinstance(module, str) and isinstance(last, str) else ""))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, by = self.pop(), self.pop()
            push(Made(by, arguments if isinstance(arguments, tuple) else ()))
        elif name == "NEWOBJ_EX":
            _, arguments, by = self.pop(), self.pop(), self.pop()
            push(Made(by, arguments if isinstance(arguments, tuple) else ()))
        elif name == "BUILD":
            state = self.pop()
            if not isinstance(self._top(), Made):
                raise ValueError("expected an object whose state a pickle sets, found something else")
            self._top().state = state
        elif name == "BINPERSID":
            push(Made(Name("persistent"), (self.pop(),)))
        else:
            raise ValueError(f"refused the instruction {name} of a pickle")

    def pop(self) -> Any:
        """The value on top, taken off."""
        value = self._top()
        self._stack.pop()
        return value

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise ValueError("expected a value on the stack of a pickle, found none")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while self._stack and self._stack[-1] is not _MARK:
            values.append(self._stack.pop())
        if not self._stack:
            raise ValueError("expected a mark on the stack of a pickle, found none")
        self._stack.pop()
        return values[::-1]

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self._top(), list):
            self._top().extend(values)
        elif not isinstance(self._top(), Made):
            raise ValueError("expected a list that a pickle adds to, found something else")

    def _put(self, values: list[Any]) -> None:
        target = self._top().items if isinstance(self._top(), Made) else self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("expected a dictionary, and pairs of key and value, in a pickle")
        target.update({key: value for key, value in zip(values[::2], values[1::2]) if isinstance(key, str)})
