from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SCRIPT = pathlib.Path(__file__).with_name("compile_for_cuda.py")


@pytest.mark.slow
def test_kernels_compile_for_hopper_without_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, SCRIPT, "90"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 + 3 + 2 + 2 * 4
    # a block has 227 KB of shared memory, and at the recipes' width tensor cores get their operands without spills
    assert all(int(line.split(", ")[-1].split()[0]) <= 227 * 1024 for line in lines)
    assert all(", 0 bytes of stack" in line for line in lines if "mlp" in line and "fp32" not in line)
