"""The Pythons that this project names are the same everywhere, and make takes the one that it is given."""

from __future__ import annotations

import ast
import gc
import os
import re
import shutil
import subprocess
from multiprocessing import get_context, resource_tracker
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# written once more by hand: what every other place is held against
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def test_the_metadata_names_every_python_and_no_other():
    assert tuple(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)) == PYTHONS
    assert 'requires-python = ">=3.10,<3.14"' in PYPROJECT


def test_the_wheel_is_tried_on_every_python():
    tree = ast.parse((ROOT / "tools" / "check_wheel.py").read_text(encoding="utf-8"))
    (value,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PYTHONS"
    ]
    assert ast.literal_eval(value) == PYTHONS


def test_types_are_checked_against_the_oldest_python():
    """Its standard library has least; ruff takes its target from ``requires-python`` by itself."""
    assert re.findall(r'^python_version = "(.*)"', PYPROJECT, re.MULTILINE) == [PYTHONS[0]]
    assert "target-version" not in PYPROJECT


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", ".ci/run"])
def test_ci_and_contributors_know_every_python(name):
    assert "3.10, 3.11, 3.12 and 3.13" in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/start.md"])
def test_pages_name_the_first_and_the_last_python(name):
    assert "Python 3.10 to 3.13" in (ROOT / name).read_text(encoding="utf-8")


def test_the_table_of_installations_has_every_python_and_extra():
    table = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    found = set(re.findall(r"^\| (3\.\d+) \| (core|envs|all) \|", table, re.MULTILINE))
    assert found == {(version, extra) for version in PYTHONS for extra in ("core", "envs", "all")}


@pytest.mark.skipif(not hasattr(resource_tracker, "ReentrantCallError"), reason="this Python says nothing of the sort")
def test_a_semaphore_that_is_collected_while_another_is_registered_fails_no_test():
    semaphore = get_context("spawn").Lock()
    with resource_tracker._resource_tracker._lock:
        del semaphore
        gc.collect()


def test_no_property_is_refused_for_the_time_that_it_takes():
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check
    for path in (ROOT / "tests").rglob("test_*.py"):
        for listed in re.findall(r"suppress_health_check=(\[.*?\])", path.read_text(encoding="utf-8"), re.DOTALL):
            assert "HealthCheck.too_slow" in listed, f"{path}: its own list replaces that of conftest.py"


@pytest.fixture
def make(tmp_path):
    """Returns a function that runs make beside interpreters which only say a version and what they were asked to do."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()

    def interpreter(path, version):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; else echo "{version}: $*"; fi\n')
        path.chmod(0o755)

    def run(*arguments, installed=None, **variables):
        for name, version in [("python3", "3.11"), *((f"python{version}", version) for version in PYTHONS)]:
            interpreter(tmp_path / "bin" / name, version)
        if installed is not None:
            interpreter(tmp_path / ".venv" / "bin" / "python", installed)
            (tmp_path / ".venv" / ".installed").touch()
        own = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "MAKEFLAGS", "MAKEOVERRIDES")}
        own |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables}
        command = ["make", "--silent", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False, timeout=60)

    return run


@needs_make
@pytest.mark.parametrize("variables", [{}, {"PYTHON": "python3.12"}])
def test_make_runs_the_environment_of_the_python_that_was_asked_for(make, variables):
    done = make("demo", installed="3.12", **variables)
    assert (done.returncode, done.stdout) == (0, "3.12: recipes/smore_offline.py\n")


@needs_make
def test_make_builds_the_environment_of_the_python_that_was_asked_for(make):
    done = make("demo", "PYTHON=python3.13")
    assert done.stdout == "3.13: -m venv .venv\n"
    assert done.returncode  # since that interpreter makes no environment


@needs_make
@pytest.mark.parametrize(("arguments", "variables"), [(["PYTHON=python3.10"], {}), ([], {"PYTHON": "python3.10"})])
def test_make_does_not_run_an_environment_of_another_python(make, arguments, variables):
    done = make("demo", *arguments, installed="3.12", **variables)
    assert done.returncode
    assert done.stdout == (
        "PYTHON=python3.10 is Python 3.10, but .venv was made of Python 3.12: make clean removes it\n"
    )


@needs_make
def test_make_takes_the_environment_that_is_there_if_no_python_is_asked_for(make):
    assert make("demo", installed="3.12").stdout == "3.12: recipes/smore_offline.py\n"


@needs_make
def test_make_says_that_there_is_no_such_python(make):
    done = make("demo", "PYTHON=python3.99", installed="3.12")
    assert done.returncode
    assert "python3.99" in done.stderr
    assert done.stdout == ""


def test_no_dataclass_compares_tensors_or_arrays():
    # from 3.13 on == compares each field of a dataclass, where tuples before took the same object to be equal
    held = re.compile(r"(Tensor|np\.ndarray)( \| None)?")
    found = []
    for path in (
        path
        for folder in ("torchrl_smore", "kernels", "recipes", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            made = [ast.unparse(each) for each in node.decorator_list if ast.unparse(each).startswith("dataclass")]
            types = [ast.unparse(field.annotation) for field in node.body if isinstance(field, ast.AnnAssign)]
            if made and any(map(held.fullmatch, types)):
                found.append((node.name, "eq=False" in made[0]))
    assert len(found) > 5
    assert [name for name, identity in found if not identity] == []
