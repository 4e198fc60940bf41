"""Reads pickles of NumPy arrays without running any code that a pickle names.

A pickle is a program that calls whatever importable object it names. This unpickler knows seven names, and none of them
leads to NumPy: each is answered by a stand-in from this file that checks its arguments and builds the array from bytes.
So not even NumPy's own ``__setstate__``, which trusts its input, sees the file.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from torchrl_smore.data.errors import DatasetError

_PLAIN_DTYPE = re.compile(r"f[248]|[iu][1248]|b1")
_BYTE_ORDERS = ("<", ">", "=", "|")


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads arrays of real numbers from a pickled dictionary, written by any protocol and NumPy 1 or 2.

    Args:
        path: the file. Pickles of Python 2 are read as latin-1.
        names: the arrays to return; the rest is left out.

    Returns:
        The arrays by name; they may be read-only.

    Raises:
        DatasetError: if the file is missing, truncated or corrupt, or holds anything else. Nothing in it is executed.
    """
    try:
        with open(path, "rb") as stream:
            content = _ArrayUnpickler(stream).load()
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"cannot read {path} as a pickle of arrays: {reason}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a dictionary of arrays, found {type(content).__name__}.")
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        if name not in content:
            raise DatasetError(f"{path}: expected an array {name!r}, found only {list(content)}.")
        value = content[name]
        if not isinstance(value, _Array) or value.array is None:
            raise DatasetError(f"{path}: {name!r}: expected an array, found {type(value).__name__}.")
        arrays[name] = value.array
    return arrays


class _StandIn:
    """Base of what the pickle gets to hold: nothing about it can be changed from a pickle but by ``__setstate__``."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"refused to change the state of {type(self).__name__}.")


class _Function(_StandIn):
    # a function of its own right would let the pickle set its __defaults__
    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _Dtype(_StandIn):
    __slots__ = ("name", "order")

    def __init__(self, name: Any) -> None:
        if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"refused an array of dtype {name!r}: expected real numbers or booleans.")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        # version, byte order, subarray, names, fields, ...: plain numbers have none of the last three
        if (
            not isinstance(state, tuple)
            or len(state) < 5
            or state[1] not in _BYTE_ORDERS
            or state[2:5] != (None, None, None)
        ):
            raise pickle.UnpicklingError(f"refused a dtype with state {state!r}: expected real numbers or booleans.")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.name)


class _Array(_StandIn):
    __slots__ = ("array",)

    array: np.ndarray | None

    def __init__(self) -> None:
        self.array = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = _array_of(content, dtype, shape, "F" if is_fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="latin1")
        ndarray, reconstruct = _Function(_refuse_call), _Function(_reconstruct)
        scalar, frombuffer = _Function(_scalar), _Function(_frombuffer)
        self._globals: dict[tuple[str, str], _Function] = {
            ("numpy", "ndarray"): ndarray,
            ("numpy", "dtype"): _Function(_make_dtype),
            ("_codecs", "encode"): _Function(_encode),
        }
        for core in ("numpy.core", "numpy._core"):
            self._globals[f"{core}.multiarray", "_reconstruct"] = reconstruct
            self._globals[f"{core}.multiarray", "scalar"] = scalar
            self._globals[f"{core}.numeric", "_frombuffer"] = frombuffer

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise pickle.UnpicklingError(f"refused the global {module}.{name}: only arrays of numbers are read.")
        return self._globals[module, name]


def _refuse_call(*args: Any) -> Any:
    raise pickle.UnpicklingError("refused a direct call of numpy.ndarray.")


def _reconstruct(*_: Any) -> _Array:
    # the arguments describe an empty array, whose contents __setstate__ then replaces
    return _Array()


def _make_dtype(name: Any, *_: Any) -> _Dtype:
    return _Dtype(name)


def _encode(text: Any, encoding: Any) -> bytes:
    # protocols 0 to 2 write bytes this way; other codecs would import modules by name
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"refused the encoding {encoding!r}: expected text in 'latin1'.")
    return text.encode("latin1")


def _scalar(dtype: Any, content: Any) -> _Array:
    result = _Array()
    result.array = _array_of(content, dtype, (), "C")
    return result


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    result = _Array()
    result.array = _array_of(content, dtype, shape, "F" if order == "F" else "C")
    if order == "K" and axis_order is not None:
        result.array = result.array.transpose(axis_order)
    return result


def _array_of(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Views ``content`` as an array, without a copy."""
    if isinstance(content, str):  # Python 2 wrote bytes and text alike
        content = content.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError(f"refused an array made of {type(content).__name__}: expected bytes.")
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise pickle.UnpicklingError(f"refused an array of shape {shape!r}.")
    expected = math.prod(shape) * dtype.dtype.itemsize
    if len(content) != expected:
        raise pickle.UnpicklingError(f"expected {expected} bytes for an array {shape}, found {len(content)}.")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)
