"""The one error that datasets raise."""

from __future__ import annotations


class DatasetError(ValueError):
    """A dataset that does not fit the schema or cannot be read; the message says what was expected and what came."""
