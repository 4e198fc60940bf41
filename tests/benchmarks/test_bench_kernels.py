"""The kernel benchmark on a machine without a GPU: it says so, checks results, and does not report wrong ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_kernels.py"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the benchmark would time the kernels here")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs the script with arguments, in a scratch folder; its exit status."""
    spec = importlib.util.spec_from_file_location("bench_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "bench_kernels", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *arguments])
        return module.main()

    run.module = module
    return run


def test_without_cuda_it_exits_with_status_2_and_says_what_would_run(bench, capsys):
    assert bench() == 2
    assert "CUDA device and found none; --interpret" in capsys.readouterr().err


def test_interpreted_it_checks_every_kernel_and_writes_no_timing(bench, capsys, tmp_path):
    assert bench("--interpret") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("bellman_residual", "expectile_awr", "adam_polyak", "score_mlp fp32", "bf16"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_kernel_is_named_and_the_status_is_1(factor, bench, capsys, monkeypatch):
    import smore_kernels

    right = smore_kernels.expectile_awr

    def wrong(*args, **kwargs):
        out = right(*args, **kwargs)
        return out._replace(mean_value=out.mean_value * factor)

    monkeypatch.setattr(smore_kernels, "expectile_awr", wrong)
    monkeypatch.setattr(bench.module, "cases", lambda device, small: [bench.module.expectile_case(50, 1, device)])
    assert bench("--interpret") == 1
    captured = capsys.readouterr()
    assert "expectile_awr, 1 x 50" in captured.out
    assert "WRONG" in captured.out
    assert "1 results differ" in captured.err


def test_each_of_many_cases_is_compiled_for_its_own_sizes(bench, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, compiled = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, fullgraph: compiled(call, fullgraph=fullgraph, backend=counter))
    module = bench.module
    # on a CPU nothing is captured, and nothing takes any time
    monkeypatch.setattr(module, "captured", lambda call: call)
    monkeypatch.setattr(module, "microseconds", lambda run, repeats: run() and 1.0)
    sizes = range(2, 12)
    for rows in sizes:
        measured = module.measure(module.expectile_case(rows, 1, "cpu"), 1, lambda: [1])
        assert [row["implementation"] for row in measured] == ["triton", "compile", "eager"]
    assert counter.frame_count == len(sizes)
    shapes = [
        node.meta["example_value"].shape
        for graph in counter.graphs
        for node in graph.graph.find_nodes(op="placeholder")
    ]
    assert {size for shape in shapes for size in shape} == set(sizes)


def test_measured_rows_become_a_csv_and_a_plot(bench, tmp_path):
    rows = [
        {"kernel": "adam_polyak", "size": "8", "implementation": name, "median_us": 2.0, "over_compile": ratio}
        for name, ratio in (("triton", 1.5), ("compile", 1.0))
    ]
    bench.module.write(rows, tmp_path / "out", "a device")
    assert (tmp_path / "out" / "kernels.csv").read_text().splitlines() == [
        "kernel,size,implementation,median_us,over_compile",
        "adam_polyak,8,triton,2.0,1.5",
        "adam_polyak,8,compile,2.0,1.0",
    ]
    assert (tmp_path / "out" / "kernels.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("out/*.part*"))
