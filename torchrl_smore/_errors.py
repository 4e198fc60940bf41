"""Errors that several layers word alike, and a check that raises one."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import SupportsIndex


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> ValueError:
    """Builds the error for a name outside a closed set, with the nearest valid one.

    Args:
        kind: what was named, for example ``"task"``.
        name: what the caller gave.
        valid: every name that would have been accepted.

    Returns:
        The exception, to be raised by the caller.
    """
    names = list(valid)
    by_lowercase = {choice.lower(): choice for choice in names}
    near = difflib.get_close_matches(str(name).lower(), by_lowercase, n=1, cutoff=0.5)
    hint = f" Did you mean {by_lowercase[near[0]]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(names)}.{hint}")


def check_whole(name: str, value: SupportsIndex) -> int:
    """A whole number of any library as an int.

    Args:
        name: what the error calls it.
        value: an int, or what says that it is one, as NumPy's integers do.

    Raises:
        TypeError: for anything else, also for a float that is whole.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}.") from None
