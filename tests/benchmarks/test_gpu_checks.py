"""The checks that a GPU is to pass, on a GPU; and without one, that they see what is wrong and are not too strict."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
BENCHMARKS = str(ROOT / "benchmarks")
sys.path.insert(0, BENCHMARKS)
gpu_plan = importlib.import_module("gpu_plan")
sys.path.remove(BENCHMARKS)
PLAN = list(gpu_plan.check_items(gpu_plan.Options(), dry_run=False))
ITEMS = [item for item in PLAN if "/tests/" not in item.key]
KERNELS = [item for item in ITEMS if item.kind == "gpu_checks.kernel"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def load(monkeypatch):
    """``load(name) -> module`` of a benchmark script."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def checks(load):
    return load("gpu_checks")


@pytest.fixture
def wrong(load):
    return load("gpu_rows").Wrong


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.key)
def test_it_is_right_on_a_gpu(item, checks):
    getattr(checks, item.kind.partition(".")[2])(device="cuda", **item.params)


def small(item):
    return max(item.params["rows"], item.params.get("q_rows", 0)) <= 4096


@pytest.mark.parametrize("kernel", sorted({item.params["kernel"] for item in KERNELS}))
def test_the_reference_in_float32_is_within_the_tolerance(kernel, checks):
    # not that of products in fewer bits, which the reference takes from the device
    items = [item for item in KERNELS if item.params["kernel"] == kernel and small(item)]
    items = [item for item in items if item.params.get("precision", "fp32") == "fp32"]
    assert len(items) >= 4
    for item in items:
        checks.kernel(kernel, "cpu", implementation="reference", **without_kernel(item.params))


def without_kernel(params):
    return {name: value for name, value in params.items() if name != "kernel"}


CASES = {item.params["kernel"]: item for item in gpu_plan.kernel_items(dry_run=True)}


@pytest.mark.parametrize("kernel", CASES)
def test_a_kernel_that_is_off_by_one_in_a_thousand_is_found(kernel, checks, wrong, monkeypatch):
    real = checks.CASES[kernel]

    def off(**params):
        inputs, call, _ = real(**params)

        def wrong_call(tensors, implementation):
            out = call(tensors, implementation)
            last = list(out)[-1]
            return {**out, last: out[last] * 1.001} if implementation == "triton" else out

        return inputs, wrong_call, 1e-4

    params = {**without_kernel(CASES[kernel].params)}
    params |= {name: "fp32" for name in ("precision",) if name in params}
    params |= {name: "float32" for name in ("dtype",) if name in params}
    monkeypatch.setitem(checks.CASES, kernel, off)
    with pytest.raises(wrong, match="is off by"):
        checks.kernel(kernel, "cpu", **params)


def test_a_number_that_is_none_is_never_right(checks, wrong):
    expected = {"a": torch.ones(3), "b": torch.ones(3)}
    with pytest.raises(wrong) as fault:
        checks.judged({"a": torch.ones(3), "b": torch.tensor([1.0, 1.0, torch.nan])}, expected, 1.0)
    assert fault.value.values["worst"] == "b"
    # norms: a difference of (0, 3, 4) over (0, 0, 50)
    found = checks.judged({"a": torch.tensor([0.0, 3.0, 54.0])}, {"a": torch.tensor([0.0, 0.0, 50.0])}, 1.0)
    assert found["error"] == pytest.approx(0.1)


def test_of_a_file_of_cpu_tests_those_with_the_marker_are_run(checks, tmp_path):
    file = tmp_path / "test_both.py"
    file.write_text("import pytest\n\n\n@pytest.mark.gpu\ndef test_a():\n    pass\n\n\ndef test_b():\n    pass\n")
    assert checks.tests("cuda", str(file), marked=True)["passed"] == 1
    assert checks.tests("cuda", str(file), marked=False)["passed"] == 2
    # a file of the kernels has none, and runs whole
    found = {item.params["path"]: item.params["marked"] for item in PLAN if item.kind == "gpu_checks.tests"}
    assert {path: "@pytest.mark.gpu" in (ROOT / path).read_text() for path in found} == found


def test_memory_that_a_kernel_forgets_shows(checks):
    with checks.poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2)).isnan().all()
    assert not torch.zeros(3).isnan().any()


def test_steps_that_differ_are_found(checks, wrong):
    start, end = torch.zeros(1, 4), torch.tensor([[0.0, 3.0, 0.0, 4.0]])
    assert checks.drift({"actor": (start, end * 1.01)}, {"actor": (start, end)})["error"] == pytest.approx(0.5)
    with pytest.raises(wrong, match=r"actor is off by 2\.5 times the tolerance"):
        checks.drift({"actor": (start, end * 1.05)}, {"actor": (start, end)})
    with pytest.raises(wrong, match="actor begins at another place"):
        checks.drift({"actor": (start + 1.0, end)}, {"actor": (start, end)})


@pytest.mark.parametrize(("bits", "precision"), [(7, "bf16"), (10, "tf32")])
def test_factors_lose_the_bits_that_a_precision_has_not(bits, precision, checks):
    x = torch.tensor([1.0 + 2.0**-bits, 1.0 + 0.75 * 2.0**-bits, -3.0], dtype=torch.float64, requires_grad=True)
    # on a CPU bfloat16 is cut off, and the other is float32
    expected = [1.0 + 2.0**-bits, 1.0, -3.0] if precision == "bf16" else x.tolist()
    out = checks.rounded(x, precision)
    assert out.tolist() == expected
    out.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_the_floor_is_the_longest_of_three(load, monkeypatch):
    bench = load("gpu_bench")
    monkeypatch.setattr(bench, "_peaks", {"copy_gb_per_s": 1000.0, "float32_tflop_per_s": 50.0, "launch_us": 2.0})
    # 1e9 / 5e13 = 20 us of products, 1e7 / 1e12 = 10 us of bytes, 30 launches of 2 us
    found = bench.floor(120e-6, 1e9, 1e7, 30, "float32", "cuda")
    assert (found["floor"], found["over_floor"]) == ("launches", pytest.approx(2.0))
    assert found["flops_floor_us"] == pytest.approx(20.0)
    assert found["bytes_floor_us"] == pytest.approx(10.0)
    assert bench.floor(120e-6, 1e9, 1e7, 5, "float32", "cuda")["floor"] == "flops"
