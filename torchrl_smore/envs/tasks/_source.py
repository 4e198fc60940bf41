"""The source of a task that is not of this package: what its data depend on and it does not declare."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import json
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

# by what register_task has made of a user's environment, it is told from the package's own
_OF_USERS = "torchrl_smore.envs.register"
# of these a store holds the versions
_VERSIONED = {"torchrl_smore", "gymnasium", "gymnasium_robotics", "mujoco", "numpy", "torch"}


def source_sha256(parts: Iterable[Any]) -> str | None:
    """SHA-256 of the files that define functions and classes, and of the names and plain values that they come with.

    Args:
        parts: functions, classes, instances and values, also inside :func:`functools.partial`; ``None`` is nothing. Of
            instances but those of dataclasses the class alone counts.

    Returns:
        The digest; ``None`` where all are of this package.
    """
    words: list[str] = []
    modules: set[str] = set()
    for part in parts:
        _look_at(part, words, modules)
    foreign = sorted(name for name in modules if name.partition(".")[0] not in _VERSIONED)
    if not foreign and _OF_USERS not in modules:
        return None
    digest = hashlib.sha256(json.dumps(words).encode())
    for name in foreign:
        # of what was typed into an interpreter there is no file
        with contextlib.suppress(OSError, TypeError):
            digest.update(Path(getattr(sys.modules.get(name), "__file__", None)).read_bytes())  # type: ignore[arg-type]
    return digest.hexdigest()


def _look_at(part: Any, words: list[str], modules: set[str], ids: frozenset[str] = frozenset()) -> None:
    """Adds the name of a part, or its value, and the modules in which it and its bases are defined.

    ``ids`` are those of gymnasium's registry that are being looked at: one may be among its own arguments.
    """
    if isinstance(part, functools.partial):
        for inner in (part.func, *part.args, part.keywords):
            _look_at(inner, words, modules, ids)
    elif isinstance(part, (tuple, list)):
        # how much belongs to it: ([1, 2], 3) is not [1, (2, 3)]
        words.append(f"sequence of {len(part)}")
        for inner in part:
            _look_at(inner, words, modules, ids)
    elif isinstance(part, Mapping):
        words.append(f"mapping of {len(part)}")
        _look_at_unordered(part.items(), words, modules, ids)
    elif isinstance(part, (set, frozenset)):
        words.append(f"set of {len(part)}")
        _look_at_unordered(part, words, modules, ids)
    elif isinstance(part, enum.Enum):
        _look_at((type(part), part.name), words, modules, ids)
    elif isinstance(part, (np.ndarray, np.generic)):
        _look_at((str(part.dtype), part.shape, part.tolist()), words, modules, ids)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        _look_at((type(part), [(f.name, getattr(part, f.name)) for f in dataclasses.fields(part)]), words, modules, ids)
    elif part is None or isinstance(part, (bool, int, float, complex, bytes, range, slice, PurePath, str)):
        words.append(repr(part))
        # not imported: where gymnasium knows the id, it is there
        spec = getattr(sys.modules.get("gymnasium"), "registry", {}).get(str(part).rpartition(":")[2])
        if spec is not None and spec.id not in ids:
            entry = spec.entry_point
            modules.update([entry.partition(":")[0]] if isinstance(entry, str) else _modules(entry))
            _look_at(spec.kwargs, words, modules, ids | {spec.id})
    else:
        if isinstance(part, types.MethodType):
            _look_at(part.__self__, words, modules, ids)
        named = part if hasattr(part, "__qualname__") else type(part)
        words.append(f"{named.__module__}.{named.__qualname__}")
        modules.update(_modules(named))


def _look_at_unordered(parts: Iterable[Any], words: list[str], modules: set[str], ids: frozenset[str]) -> None:
    """The same of parts that have no order, in one that depends on them alone."""
    found: list[list[str]] = []
    for part in parts:
        own: list[str] = []
        _look_at(part, own, modules, ids)
        found.append(own)
    words.extend(word for own in sorted(found) for word in own)


def _modules(named: Any) -> set[str]:
    found = {str(each.__module__) for each in (named, *getattr(named, "__mro__", ()))}
    return {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}
