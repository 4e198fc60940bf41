"""Errors that several layers word alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
