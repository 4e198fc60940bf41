"""Imports point downwards only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# layer -> top-level packages and own layers that it may import, besides the standard library
ALLOWED = {
    "smore_kernels": {"torch", "triton", "smore_kernels"},
    "functional": {"torch", "functional", "_errors"},
    "_dispatch": {"torch", "functional", "smore_kernels", "_errors", "_dispatch"},
    "_experimental": {"torch", "functional", "_dispatch", "smore_kernels"},
    "modules": {"torch", "tensordict", "torchrl", "functional", "modules", "_errors"},
    "objectives": {"torch", "tensordict", "torchrl", "functional", "_dispatch", "objectives", "_errors"},
    "data": {
        "torch",
        "tensordict",
        "torchrl",
        "numpy",
        "h5py",
        "pyarrow",
        "tqdm",
        "functional",
        "data",
        "_errors",
        "_falls",
        "_files",
    },
    "envs": {
        "numpy",
        "gymnasium",
        "gymnasium_robotics",
        "mujoco",
        "tqdm",
        "torch",
        "data",
        "envs",
        "_errors",
        "_falls",
        "_files",
        "_lock",
        "_worker",
    },
    "trainers": {
        *("torch", "tensordict", "torchrl", "numpy", "hydra", "omegaconf"),
        *("functional", "_dispatch", "modules", "objectives", "data", "trainers"),
        *("_errors", "_files", "_lock", "_source", "_worker"),
    },
    "reports": {"numpy", "matplotlib", "PIL", "imageio", "rliable", "reports", "_errors", "_files"},
    "_errors": set(),
    "_falls": set(),
    "_files": set(),
    "_lock": set(),
    "_source": set(),
    "_worker": set(),
    "__init__": {"data", "functional", "modules", "objectives", "trainers", "_source"},
}
FILES = sorted([*(ROOT / "torchrl_smore").rglob("*.py"), *(ROOT / "kernels" / "smore_kernels").rglob("*.py")])


def _layer(path: Path) -> str:
    if "kernels" in path.relative_to(ROOT).parts:
        return "smore_kernels"
    return path.relative_to(ROOT / "torchrl_smore").parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere; for our own package the layer."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "torchrl_smore":
                names = [f"torchrl_smore.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            found.add(rest.split(".")[0] if top == "torchrl_smore" else top)
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_the_layers_below_it(path):
    assert _imports(path) <= ALLOWED[_layer(path)]


def test_recipes_use_public_names_only():
    for path in (ROOT / "recipes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchrl_smore"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in names), f"{path}: {names}"


def test_the_kernels_folder_does_not_shadow_the_hugging_face_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
