"""A part of ``run_mutations.py``, which reads 20,000 files and more when it is run by itself."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from torchrl_smore.data.errors import DatasetError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork")


def failures(suite, cases, folder):
    ended = list(suite.outcomes(cases, folder))
    assert len(ended) == len(cases)
    return [f"{outcome}: {case.name}: {detail}" for case, outcome, detail, _ in ended if outcome not in suite.GOOD]


def test_damaged_files_are_refused_or_read_as_what_they_are(suite, tmp_path):
    assert failures(suite, list(suite.mutation_cases(tmp_path / "made", 560, seed=1)), tmp_path / "damaged") == []


def test_hostile_files_and_folders_are_refused(suite, tmp_path):
    assert failures(suite, list(suite.hostile_cases(1, seed=1)), tmp_path / "damaged") == []


def test_every_specimen_is_read_as_other_code_reads_it(suite, tmp_path):
    for specimen in suite.specimens(tmp_path / "made"):
        suite._write(specimen.files, tmp_path / "whole")
        found = specimen.columns(specimen.read(tmp_path / "whole"))
        assert "settings" in found or len(found["observation"]) >= 15
        if specimen.judge is not None:
            assert suite._same(found, specimen.judge(tmp_path / "whole")), specimen.name


def test_the_same_seed_damages_the_same_bytes(suite):
    content = bytes(range(256)) * 20
    for kind in ("flip", "truncate", "splice", "field"):
        first, again, other = (
            [suite.mutated(np.random.default_rng((seed, n)), content, [content], kind=kind) for n in range(20)]
            for seed in (0, 0, 1)
        )
        assert first == again != other
        assert all(len(damaged) <= len(content) + 2048 for damaged in first)


def test_hangs_crashes_and_greed_are_told_apart(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "SECONDS", 0.3)

    def refuse(folder):
        raise DatasetError(f"{folder}: no")

    def fail(folder):
        raise KeyError("raw")

    runs = {
        "refused": lambda folder: "refused",
        "hang": lambda folder: time.sleep(60),
        "crash": lambda folder: os.abort(),
        "memory": lambda folder: str(len(bytearray(2 * suite.BYTES))),
        "other error": fail,
        "wrong": lambda folder: "wrong\twhy",
        "as it was": lambda folder: "as it was",
    }
    cases = [suite.Case("group", name, run) for name, run in runs.items()]
    ended = [(case.name, outcome, detail) for case, outcome, detail, _ in suite.outcomes(cases, tmp_path)]
    assert [(name, outcome) for name, outcome, _ in ended] == [(name, name) for name in runs]
    assert ended[4][2] == "KeyError: 'raw'"
    assert ended[5][2] == "why"
