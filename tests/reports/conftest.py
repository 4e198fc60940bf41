"""Results that tests of tables and claims share."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_smore.reports import Paper, Result


@pytest.fixture(scope="session")
def make_result():
    """A result with every field filled; keyword arguments replace some."""

    def make(**fields):
        defaults = {
            **{"table": "1", "task": "FetchReach", "method": "SMORe", "setting": "default", "seed": 0},
            **{"metric": "discounted_return_0.99", "value": 35.5, "steps": 1000, "episodes": 50},
            **{"commit": "abc", "versions": "torch=2.13.0", "note": ""},
        }
        return Result(**{**defaults, **fields})

    return make


@pytest.fixture
def paper_as_results(make_result):
    """The paper's means as runs of ``seeds`` seeds, spread by ``spread`` around them, for some tables.

    Those of locomotion are returns at 0.999, by which it is judged.
    """

    def make(*tables, seeds=10, spread=0.001):
        return [
            make_result(
                **{"table": cell.table, "task": cell.task, "method": cell.method, "setting": cell.setting},
                **{"seed": seed, "value": entry.mean + spread * (seed - (seeds - 1) / 2)},
                metric=f"discounted_return_{0.999 if 'TgtVel' in cell.task else 0.99}",
            )
            for cell, entry in Paper().cells.items()
            if cell.table in tables and entry.mean is not None
            for seed in range(seeds)
        ]

    return make


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are composed, and of a file only the first bytes of a PNG written: most of the time goes there."""
    from matplotlib.figure import Figure

    def write_signature(figure, path, **options):
        Path(path).write_bytes(bytes.fromhex("89504e470d0a1a0a"))

    monkeypatch.setattr(Figure, "savefig", write_signature)
