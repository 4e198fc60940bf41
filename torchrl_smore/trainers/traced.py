"""A digest of everything that tracing a method can read: objects, code, libraries, processor and global state."""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import importlib.metadata
import platform
import sys
import types
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensordict
import torch
import torchrl
from torch import Tensor
from torch._C._dynamo.guards import GlobalStateGuard

from torchrl_smore._source import source_digest

#: Packages whose code a digest covers: ours by content, the others by version.
_OWN = ("torchrl_smore", "smore_kernels")
_KNOWN = {*_OWN, "torch", "tensordict", "torchrl", "numpy", "triton", *sys.stdlib_module_names} - {"__main__"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, types.EllipsisType, range, slice)
_REPRESENTED = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_BUILTIN = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType)
_LARGEST_ARRAY = 4096  # bytes of an array that count by value
#: Of PyTorch's settings: folders that hang on the working directory, and that no code for a CPU is made from.
_NOT_READ = {"debug_dir_root", "xpu.cutlass_dir"}


class UndescribedError(Exception):
    """Tracing may read something that no digest can stand for; says what and where."""


def traced_digest(roots: Mapping[str, Any], settings: Any) -> str:
    """SHA-256 of what tracing a method can read, hexadecimal.

    Tensors count by type, shape, strides and place, not by value; plain values and code count as they are. Random
    generators count by device. Code must lie in this package, torch, tensordict, torchrl, numpy, triton or Python; a
    function replaced in one of our modules or classes by one from elsewhere is noticed, one replaced in a library's
    module is not.

    Args:
        roots: objects by name, and all that can be reached from them.
        settings: of the compiler.

    Raises:
        UndescribedError: if something cannot be described, or the state of PyTorch is none to compile in.
    """
    try:
        source = source_digest(*_OWN)
    except RuntimeError as error:
        raise UndescribedError(str(error)) from error
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise UndescribedError("a mode that changes torch's functions is active")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UndescribedError("a transform of torch.func is active")
    description = _Description()
    description.add(source, "source")
    description.add(_versions(), "versions")
    description.add(_processor(), "processor")
    description.add(_global_state(), "global state")
    for config in (torch._inductor.config, torch._dynamo.config, torch._functorch.config):
        values = {name: value for name, value in config.get_config_copy().items() if name not in _NOT_READ}
        description.add(values, config.__name__)
    description.add_own_modules()
    description.add(settings, "settings")
    description.add(dict(roots), "")
    return description.hexdigest()


def _versions() -> dict[str, Any]:
    return {
        "python": (sys.version, sys.implementation.cache_tag),
        "torch": (torch.__version__, torch.version.git_version, torch.version.cuda, torch.__config__.show()),
        "others": [tensordict.__version__, torchrl.__version__, np.__version__, _triton_version()],
    }


def _triton_version() -> str | None:
    """Of the package that our kernels, where they are imported, take functions from."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _processor() -> tuple[str, ...]:
    """Processor and its instructions, which compiled code is made for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        lines = [line for line in text.splitlines() if line.split("\t")[0] in ("vendor_id", "model name", "flags")]
    except OSError:
        lines = []
    # where the system does not tell, code stays with the machine that it was made on
    found = lines or list(platform.uname())
    return (platform.machine(), torch.backends.cpu.get_cpu_capability(), *found)


def _global_state() -> tuple[Any, ...]:
    guard: Any = GlobalStateGuard()
    return (
        guard.__getstate__(),
        str(torch.get_default_device()),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        [torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic],  # type: ignore[attr-defined]
        torch.is_anomaly_enabled(),
    )


def _is_known(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _KNOWN


class _Description:
    """A running digest of a graph of objects, each of which is described once and named by its number afterwards."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._numbers: dict[int, int] = {}
        self._held: list[Any] = []  # lest an id be given again
        self._storages: dict[int, int] = {}
        self._classes: set[type] = set()

    def hexdigest(self) -> str:
        """The digest of what was added."""
        return self._digest.hexdigest()

    def _write(self, *words: Any) -> None:
        text = "\0".join(map(repr, words))
        self._digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))

    def add(self, value: Any, path: str) -> None:
        """Describes a value; ``path`` says in messages where it is.

        Raises:
            UndescribedError: if that cannot be done.
        """
        kind = type(value)
        if kind in _PLAIN or isinstance(value, _REPRESENTED):
            self._write(kind.__name__, value)
        elif isinstance(value, enum.Enum):
            self._add_class(kind, path)
            self._write(value.name)
        elif kind is torch.Size:
            self._write("size", *value)
        elif isinstance(value, np.generic):
            self._write("number", str(value.dtype), value.tobytes())
        elif id(value) in self._numbers:
            self._write("seen", self._numbers[id(value)])
        else:
            self._numbers[id(value)] = len(self._numbers)
            self._held.append(value)
            self._add_new(value, path)

    def _add_new(self, value: Any, path: str) -> None:
        if isinstance(value, type):
            self._add_class(value, path)
        elif isinstance(value, types.FunctionType):
            self._add_function(value, path)
        elif isinstance(value, types.MethodType):
            self._write("method")
            self.add(value.__func__, path)
            self.add(value.__self__, f"{path}.__self__")
        elif isinstance(value, _BUILTIN):
            self._write("builtin", value.__qualname__)
            self.add(getattr(value, "__self__", None), f"{path}.__self__")
        elif isinstance(value, types.ModuleType):
            self._check_known(value.__name__, path, "module")
            self._write("module", value.__name__)
        elif isinstance(value, functools.partial):
            self._write("partial")
            self.add((value.func, value.args, value.keywords), path)
        elif isinstance(value, weakref.ref):
            self._write("weak reference")
            self.add(value(), path)
        elif isinstance(value, torch.Generator):
            self._write("generator", str(value.device))
        elif isinstance(value, np.ndarray) and value.dtype != object and value.nbytes <= _LARGEST_ARRAY:
            self._write("array", str(value.dtype), value.shape, value.strides, value.tobytes())
        elif isinstance(value, Tensor):
            self._add_tensor(value, path)
        else:
            self._add_object(value, path)

    def _check_known(self, module: Any, path: str, what: str) -> None:
        if not _is_known(module):
            raise UndescribedError(f"{path} is {what} of {module}, whose code no digest covers")

    def _add_function(self, value: types.FunctionType, path: str) -> None:
        self._check_known(value.__globals__.get("__name__"), path, f"the function {value.__qualname__}")
        self._write("function", value.__module__, value.__qualname__, value.__code__.co_firstlineno)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        for name, part in (("defaults", value.__defaults__), ("options", value.__kwdefaults__), ("closure", cells)):
            self.add(part, f"{path}.{name}")
        self._add_items(vars(value), path)

    def _add_class(self, value: type, path: str) -> None:
        self._write("class", value.__module__, value.__qualname__)
        for base in value.__mro__:
            if base in self._classes:
                continue
            self._classes.add(base)
            self._check_known(base.__module__, path, f"of class {base.__qualname__}")
            if base.__module__.partition(".")[0] in _OWN:
                self._check_functions(vars(base), f"{base.__module__}.{base.__qualname__}")

    def _check_functions(self, namespace: Mapping[str, Any], path: str) -> None:
        """Refuses functions of elsewhere that stand in for our own."""
        for name, value in list(namespace.items()):
            value = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(value, types.FunctionType):
                self._check_known(value.__globals__.get("__name__"), f"{path}.{name}", "a function")

    def add_own_modules(self) -> None:
        """Describes plain values in our modules, which code reads as globals."""
        for name, module in sorted(sys.modules.items()):
            if name.partition(".")[0] in _OWN and module is not None:
                self._check_functions(vars(module), name)
                if name == source_digest.__module__:
                    continue  # it holds the time
                plain = {n: v for n, v in vars(module).items() if type(v) in _PLAIN and not n.startswith("__")}
                self._write(name, sorted(plain.items()))

    def _add_tensor(self, value: Tensor, path: str) -> None:
        self._add_class(type(value), path)
        if torch._C._functorch.is_functorch_wrapped_tensor(value) or value.layout != torch.strided:
            raise UndescribedError(f"{path} is a tensor of a kind that cannot be described")
        storage = value.untyped_storage()
        # which tensors share memory is compiled in
        number = self._storages.setdefault(storage._cdata, len(self._storages))
        self._held.append(storage)
        place = (value.storage_offset(), value.data_ptr() % 16)
        self._write(value.dtype, tuple(value.shape), value.stride(), str(value.device), number, *place)
        self._write(value.requires_grad, value.is_leaf, value.is_inference(), value.is_conj(), value.is_neg())
        self._write(value.is_leaf and value.grad is not None)
        self._add_items(vars(value), path)

    def _add_items(self, items: Mapping[Any, Any], path: str) -> None:
        self._write(len(items))
        for key, item in items.items():
            self.add(key, f"a key of {path}")
            if isinstance(key, str) and "hooks" in key and isinstance(item, dict):
                # their keys count hooks of the whole process
                self._write("hooks")
                self._add_each(item.values(), f"{path}.{key}")
            else:
                self.add(item, f"{path}.{key}" if path else str(key))

    def _add_each(self, items: Iterable[Any], path: str) -> None:
        listed = list(items)
        self._write(len(listed))
        for number, item in enumerate(listed):
            self.add(item, f"{path}[{number}]")

    def _add_object(self, value: Any, path: str) -> None:
        """A container, or an object by its attributes."""
        kind = type(value)
        self._add_class(kind, path)
        described = False
        for plain in (int, float, str, bytes):
            if isinstance(value, plain):
                self._write(plain.__repr__(value))  # type: ignore[arg-type]
                described = True
        if isinstance(value, dict):
            self._add_items(dict(value), path)
            described = True
        elif isinstance(value, (list, tuple, collections.deque)):
            self._add_each(value, path)
            described = True
        elif isinstance(value, (set, frozenset)):
            if not all(type(item) in _PLAIN or isinstance(item, _REPRESENTED) for item in value):
                raise UndescribedError(f"{path} is a set of more than plain values")
            self._write(*sorted(map(repr, value)))
            described = True
        elif isinstance(value, types.MappingProxyType):
            self._add_items(dict(value), path)
            described = True
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            self._add_items(own, path)
            described = True
        for base in kind.__mro__:
            slots = vars(base).get("__slots__")
            if slots is None:
                continue
            for name in (slots,) if isinstance(slots, str) else slots:
                described = True
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    self._write(name)
                    self.add(getattr(value, name), f"{path}.{name}")
        if not described and kind is not object:
            raise UndescribedError(f"{path} is a {kind.__module__}.{kind.__qualname__}, which shows no state")
