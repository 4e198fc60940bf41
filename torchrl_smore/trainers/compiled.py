"""Compiled methods, and a folder that keeps them between runs."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import stat
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import GlobalStateGuard

from torchrl_smore._files import replacing
from torchrl_smore.trainers.traced import UndescribedError, traced_digest

_MAGIC = b"torchrl_smore compiled update 1\n"
_logger = logging.getLogger("torchrl_smore")

#: Of the compiled function: its tensors and PyTorch's global state. The others, hundreds, are on the modules.
_GUARDS = {"TENSOR_MATCH", "GLOBAL_STATE", "GRAD_MODE", "DETERMINISTIC_ALGORITHMS", "TORCH_FUNCTION_STATE", "SHAPE_ENV"}


def _keep_guards(entries: Sequence[Any]) -> list[bool]:
    """Which guards are checked in every call: to check all takes 0.6 ms, a twentieth of an update."""
    return [entry.guard_type in _GUARDS for entry in entries]


def _keep_none(entries: Sequence[Any]) -> list[bool]:
    return [False] * len(entries)


def compiled(
    method: types.MethodType, mode: str, guards: Callable[[Sequence[Any]], list[bool]] = _keep_guards
) -> Callable[..., Any]:
    """A method as one graph of its object as that is now.

    Args:
        method: what to compile.
        mode: of :func:`torch.compile`.
        guards: which of the guards are checked in every call.
    """
    # compiled code is found by code object, and no guard tells two objects of this class apart
    function: Any = method.__func__
    copy = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    options = {**torch._inductor.list_mode_options(mode), "guard_filter_fn": guards}
    found: Callable[..., Any] = torch.compile(types.MethodType(copy, method.__self__), fullgraph=True, options=options)
    return found


def checked_folder(folder: str | Path) -> Path:
    """The folder, made for its owner alone if it is missing.

    Raises:
        PermissionError: if it belongs to, or can be written by, somebody else: what is read from it is run.
        NotImplementedError: on a system that does not say who may write a folder.
    """
    if not hasattr(os, "getuid"):
        raise NotImplementedError("compile_cache= needs a system that says who may write a folder; this one does not.")
    folder = Path(folder).expanduser().absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder, folder.stat())
    return folder


def _check_own(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{path} holds compiled code, which is run: it must belong to user {os.getuid()} and be writable by nobody "
            f"else (chmod go-w), but belongs to {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}."
        )


class KeptMethod:
    """A compiled method whose code is kept in a folder and found again, under a key of all that tracing it reads.

    At the first call the key is taken and the code read or made; later changes count as they do for :func:`compiled`.
    Where something cannot be described, or a file cannot be read or written, the method is compiled as without a
    folder, and a line is logged. Code is kept for a CPU alone: nothing else was tried.

    Args:
        method: takes tensors in dictionaries and as they are; the last argument is a tensor.
        mode: of :func:`torch.compile`.
        folder: see :func:`checked_folder`.
        roots: what the method reads of its object, called at the first call.

    Raises:
        PermissionError: see :func:`checked_folder`.
        NotImplementedError: see :func:`checked_folder`.
    """

    def __init__(
        self, method: types.MethodType, mode: str, folder: str | Path, roots: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._method = method
        self._mode = mode
        self._folder = checked_folder(folder)
        self._roots = roots
        self._plain = compiled(method, mode)
        self._kept: Callable[..., Any] | None = None
        self._state: Any = None
        self._last: tuple[Any, ...] = ()
        self._first = True

    def __call__(self, *arguments: Any) -> Any:
        """Runs the method."""
        if self._first:
            self._first = False
            self._kept = self._find(arguments)
        if self._kept is not None and not self._fits(arguments):
            _logger.info("PyTorch's state or the batch has changed: the update is compiled anew.")
            self._kept = None
        if self._kept is None:
            return self._plain(*arguments)
        return self._kept(self._method.__self__, *arguments)

    def _fits(self, arguments: tuple[Any, ...]) -> bool:
        last = arguments[-1]
        return bool(self._state.check()) and (last.shape, last.dtype, last.device) == self._last

    def _find(self, arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
        """Code that was kept, or that is kept from now on; ``None`` where that cannot be."""
        last: Tensor = arguments[-1]
        if last.device.type != "cpu":
            _logger.info("compiled code is kept for CPUs alone, not for %s.", last.device)
            return None
        self._last, self._state = (last.shape, last.dtype, last.device), GlobalStateGuard()
        try:
            key = traced_digest({**self._roots(), "arguments": arguments}, self._mode)
        except UndescribedError as error:
            _logger.warning("the compiled update is not kept: %s.", error)
            return None
        path = self._folder / f"{key}.compiled"
        found = self._read(path, key)
        if found is None:
            found = self._make(path, key, arguments)
        return found

    def _read(self, path: Path, key: str) -> Callable[..., Any] | None:
        """The code in a file, if it is whole, ours and of this key."""
        try:
            with path.open("rb") as file:
                _check_own(path, os.fstat(file.fileno()))
                content = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            _logger.warning("the compiled update in %s cannot be read (%s): it is compiled anew.", path, error)
            return None
        head, body = content[: len(_head(key, b""))], content[len(_head(key, b"")) :]
        if head != _head(key, body):
            _logger.warning("%s is damaged or of another update: it is compiled anew.", path)
            return None
        try:
            code, libraries = pickle.loads(body)
            _put_libraries(libraries)
            found = _from_bytes(code, self._method)
        except Exception as error:  # whatever PyTorch meets in what it wrote itself
            _logger.warning("the compiled update in %s cannot be used (%r): it is compiled anew.", path, error)
            return None
        _logger.info("the compiled update was found in %s.", path)
        return found

    def _make(self, path: Path, key: str, arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
        """Compiles, and writes the code."""
        from torch._dynamo.aot_compile import AOTCompiledFunction

        # the attribute is read when torch.compile is called
        with torch._dynamo.config.patch(enable_aot_compile=True):
            entry: Any = compiled(self._method, self._mode, _keep_none)
        try:
            made = entry.aot_compile((arguments, {}))
            made.disable_guard_check()
            code = AOTCompiledFunction.serialize(made).serialized_data
            body = pickle.dumps((code, _libraries()))
        except Exception as error:  # a graph of which PyTorch cannot write every part
            _logger.warning("the compiled update is not kept: %s: %s", type(error).__name__, error)
            return None
        try:
            with replacing(path) as beside:
                descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_head(key, body) + body)
        except OSError as error:
            _logger.warning("the compiled update is not kept: %s", error)
        else:
            _logger.info("the compiled update is kept in %s.", path)
        run: Callable[..., Any] = made
        return run


def _head(key: str, body: bytes) -> bytes:
    return _MAGIC + f"{key}\n{hashlib.sha256(body).hexdigest()}\n".encode()


def _from_bytes(code: bytes, method: types.MethodType) -> Callable[..., Any]:
    from torch._dynamo.aot_compile import AOTCompiledFunction

    function: Any = method.__func__
    found = AOTCompiledFunction.deserialize(code, function.__globals__)
    found.disable_guard_check()
    run: Callable[..., Any] = found
    return run


def _library(name: str) -> Path:
    """Where Inductor looks for a compiled library, by the name that it gives it."""
    from torch._inductor.codecache import get_path

    return Path(get_path(name, "main.so")[2])


def _libraries() -> dict[str, bytes]:
    """The libraries that Inductor has loaded in this process, those of the update among them."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    places = {name: _library(name) for name in CppPythonBindingsCodeCache.cache}
    return {name: place.read_bytes() for name, place in places.items() if place.is_file()}


def _put_libraries(libraries: Mapping[str, bytes]) -> None:
    """Puts libraries where Inductor looks before it calls the C++ compiler."""
    for name, content in libraries.items():
        place = _library(name)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as beside:
                beside.write_bytes(content)
                beside.chmod(0o700)
