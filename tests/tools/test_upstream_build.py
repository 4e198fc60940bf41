"""One module out of several, and its place in a clone of TorchRL."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    "low.py": '''
        """Low."""
        from __future__ import annotations
        import math
        from collections.abc import Callable

        #: Half of it.
        HALF = 0.5
        Reduce = Callable[[float], float]


        def twice(x: float) -> float:
            """Twice :func:`halved`; see :class:`~torchrl_smore.high.Thing`."""
            # a comment inside
            return halved(x) / HALF**2


        def halved(x: float) -> float:
            return x * HALF


        def unused(x: float) -> float:
            return math.sqrt(x)
        ''',
    "_dispatch.py": '''
        from __future__ import annotations
        from collections.abc import Callable
        from typing import Literal
        from torchrl_smore import low

        Kernels = Literal["auto"]
        Reduce = Callable[[float], float]


        def resolve_kernels(kernels: Kernels) -> str:
            return "reference"


        def twice(x: float, *, add: float = 0.0, kernels: Kernels = "auto") -> float:
            """Dispatched.

            Args:
                x: a number.
                kernels: see :func:`resolve_kernels`,
                    over two lines.

            Raises:
                ValueError: see :func:`resolve_kernels`.
            """
            if resolve_kernels(kernels) == "reference":
                # of the reference
                y = low.twice(x)
                return y + add
            import fast_kernels

            return fast_kernels.twice(x)
        ''',
    "high.py": """
        from __future__ import annotations
        from typing import Any
        from torchrl_smore._dispatch import Kernels, Reduce, twice


        class Base:
            actor_network: Any
            critic_network: Any
            target_critic_network_params: Any

            def _used(self) -> float:
                return 1.0

            # goes with the method
            def _unused(self) -> float:
                return 2.0

            def _set_kernels(self, kernels: Kernels) -> None:
                self.kernels = kernels

            def public(self) -> str:
                return "actor_network"


        class Thing(Base):
            kernels: Kernels = "auto"

            def __init__(self, x: float, *, kernels: Kernels = "auto", scale: float = 1.0) -> None:
                self.x, self.scale = x, scale
                self._set_kernels(kernels)

            def value(self, reduce: Reduce = float) -> float:
                return reduce(self.scale * twice(self.x, add=self._used(), kernels=self.kernels))
        """,
}


def _module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "upstream"))
    try:
        yield _module("upstream_build", ROOT / "upstream" / "build.py")
    finally:
        sys.path.remove(str(ROOT / "upstream"))


@pytest.fixture(scope="module")
def flatten(tool):
    return sys.modules["flatten"]


@pytest.fixture
def package(tmp_path):
    """Returns a function that writes the small package, some modules replaced."""

    def write(**changed):
        folder = tmp_path / "torchrl_smore"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for name, text in {**MODULES, **{f"{name}.py": text for name, text in changed.items()}}.items():
            (folder / name).write_text(inspect.cleandoc(text) + "\n")
        return tmp_path

    return write


def test_a_class_and_what_it_needs_run_as_one_module(flatten, package, tmp_path):
    text = flatten.flatten(package(), "torchrl_smore.high", "Thing")
    names: dict = {"__name__": "one"}
    exec(compile(text, "one", "exec"), names)
    thing = names["Thing"](3.0, scale=10.0)
    # twice(3) is 1.5 / .25 = 6, and 1 is added
    assert thing.value() == 70.0
    assert list(inspect.signature(names["Thing"]).parameters) == ["x", "scale"]


def test_what_is_not_reached_stays_behind_and_comments_come_along(flatten, package):
    text = flatten.flatten(package(), "torchrl_smore.high", "Thing")
    for gone in ("unused", "kernels", "Kernels", "math", "torchrl_smore", "critic_network", "goes with", "Raises"):
        assert gone not in text, gone
    for kept in ("#: Half of it.", "# a comment inside", "# of the reference", "actor_network: Any", "def public"):
        assert kept in text, kept
    assert "Twice ``halved``; see ``Thing``." in text
    assert text.index("HALF = 0.5") < text.index("def halved") < text.index("def twice(") < text.index("class Base:")
    assert text.count("Reduce = Callable") == 1


def test_two_definitions_of_one_name_get_names_of_their_own(flatten, package):
    text = flatten.flatten(package(), "torchrl_smore.high", "Thing")
    assert "def _twice_of_low(x: float)" in text
    assert "y = _twice_of_low(x)" in text
    assert "def twice(x: float, *, add: float = 0.0) -> float:" in text


def test_what_one_module_cannot_say_is_refused(flatten, package):
    root = package(high="from torchrl_smore import low\n\n\ndef thing():\n    return low.missing(1.0)\n")
    with pytest.raises(flatten.FlattenError, match=r"uses low\.missing, which is no definition of torchrl_smore\.low"):
        flatten.flatten(root, "torchrl_smore.high", "thing")
    with pytest.raises(flatten.FlattenError, match=r"torchrl_smore\.high has no Thing"):
        flatten.flatten(root, "torchrl_smore.high", "Thing")


def test_a_reference_that_falls_through_is_refused(flatten):
    text = 'def f(x):\n    if resolve_kernels(x) == "reference":\n        y = 1\n    return y\n'
    with pytest.raises(flatten.FlattenError, match="the reference is not all of its branch"):
        flatten.without_kernels(text)


CLONE = {
    "torchrl/objectives/iql.py": "",
    "torchrl/objectives/__init__.py": (
        "from torchrl.objectives.sac import DiscreteSACLoss, SACLoss\n"
        "from torchrl.objectives.td3 import TD3Loss\n\n"
        '__all__ = [\n    "SACLoss",\n    "TD3Loss",\n]\n'
    ),
    "docs/source/reference/objectives_offline.rst": "    IQLLoss\n    DiscreteIQLLoss\n    TD3BCLoss\n",
    "docs/source/reference/config.rst": "    PPOLossConfig\n    SACLossConfig\n    DQNLossConfig\n",
    "sota-implementations/README.md": "- [REDQ](redq/redq.py)\n- [SAC](sac/sac.py)\n- [TD3](td3)\n",
    "sota-check/run_sac.sh": (
        "#SBATCH --job-name=sac\n#SBATCH --output=logs/sac_%j.txt\n"
        "python $PYTHONPATH/sota-implementations/sac/sac.py \\\n  logger.backend=wandb\n"
    ),
    "sota-check/submitit-release-check.sh": "scripts=(\n    run_sac.sh\n    run_td3.sh\n)\n",
    ".github/unittest/linux_sota/scripts/run_all.sh": 'uv pip install "gymnasium[mujoco]>=1.1.0"\n',
    ".github/unittest/linux_sota/scripts/test_sota.py": (
        'import os\n\ncommands = {\n    "sac": """python sac.py \\\n  logger.backend=\n""",\n}\n'
    ),
    "torchrl/trainers/algorithms/configs/objectives.py": "from dataclasses import dataclass\n",
    "torchrl/trainers/algorithms/configs/__init__.py": (
        "from torchrl.trainers.algorithms.configs.objectives import (\n    SACLossConfig,\n    TD3LossConfig,\n)\n\n"
        '__all__ = [\n    "SACLossConfig",\n    "TD3LossConfig",\n]\n\n\n'
        "def _register_configs():\n"
        '    cs.store(group="loss", name="sac", node=SACLossConfig)\n'
        '    cs.store(group="loss", name="td3", node=TD3LossConfig)\n'
    ),
    "benchmarks/test_objectives_benchmarks.py": (
        "from torchrl.objectives import (\n    SACLoss,\n    TD3Loss,\n)\n\n\n"
        'def test_one(benchmark):\n    pass\n\n\nif __name__ == "__main__":\n    pass\n'
    ),
}


@pytest.fixture
def clone(tmp_path):
    for name, text in CLONE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "clone"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_clone_gets_every_file_and_entry_and_a_second_build_changes_nothing(tool, clone):
    written = {path.relative_to(clone).as_posix() for path in tool.build(clone)}
    first = contents(clone)
    assert written == set(first) - {"torchrl/objectives/iql.py", "sota-check/run_sac.sh"}
    assert written - set(CLONE) == {
        "torchrl/objectives/smore.py",
        "test/objectives/test_smore.py",
        *(f"sota-implementations/smore/{name}" for name in ("README.md", "offline_config.yaml", "smore_offline.py")),
        "sota-implementations/smore/utils.py",
        "sota-check/run_smore.sh",
    }
    lines = first["torchrl/objectives/__init__.py"].splitlines()
    assert lines.index("from torchrl.objectives.smore import SMORELoss") == 1
    assert lines[lines.index('    "SACLoss",') + 1] == '    "SMORELoss",'
    assert (
        "    DiscreteIQLLoss\n    SMORELoss\n    TD3BCLoss\n" in first["docs/source/reference/objectives_offline.rst"]
    )
    registered = first["torchrl/trainers/algorithms/configs/__init__.py"]
    assert registered.count("SMORELossConfig") == 3
    assert '    cs.store(group="loss", name="smore", node=SMORELossConfig)\n' in registered
    speed = first["benchmarks/test_objectives_benchmarks.py"]
    assert speed.index("def test_one") < speed.index("def test_smore_speed(") < speed.index("if __name__")
    for name, text in first.items():
        if name.endswith(".py"):
            ast.parse(text)
            assert "torchrl_smore" not in text, name
    tool.build(clone)
    assert contents(clone) == first


def test_the_script_is_among_those_that_torchrl_runs_and_names(tool, clone):
    release = clone / "sota-check/submitit-release-check.sh"
    release.chmod(0o755)
    tool.build(clone)
    assert release.read_text() == "scripts=(\n    run_sac.sh\n    run_smore.sh\n    run_td3.sh\n)\n"
    # sbatch's list is run by hand
    assert release.stat().st_mode & 0o777 == 0o755
    assert (clone / "sota-check/run_smore.sh").read_text() == (
        "#SBATCH --job-name=smore\n#SBATCH --output=logs/smore_%j.txt\n"
        "python $PYTHONPATH/sota-implementations/smore/smore_offline.py \\\n  logger.backend=wandb\n"
    )
    scripts = clone / ".github/unittest/linux_sota/scripts"
    names: dict = {}
    exec((scripts / "test_sota.py").read_text(), names)
    assert list(names["commands"]) == ["smore", "sac"]
    program, script, *options = names["commands"]["smore"].split()
    assert program == "python"
    assert (clone / script).is_file()
    config = (clone / script).with_name("offline_config.yaml").read_text()
    for option in options:
        group, name = option.split("=")[0].split(".")
        assert re.search(rf"^{group}:\n(?:  .*\n)*?  {name}:", config, re.MULTILINE), option
    assert "uv pip install gymnasium-robotics\n" in (scripts / "run_all.sh").read_text()
    assert "    SACLossConfig\n    SMORELossConfig\n" in (clone / "docs/source/reference/config.rst").read_text()
    assert "(sac/sac.py)\n- [SMORe](smore/)\n" in (clone / "sota-implementations/README.md").read_text()


def test_no_function_imports_what_is_no_optional_dependency(tool, clone):
    # TorchRL's house rule; hydra is optional, and its configs need it
    optional = {"hydra.utils", "torchrl.trainers.algorithms.configs"}
    for path in tool.build(clone):
        if path.suffix != ".py":
            continue
        tree = ast.parse(path.read_text())
        top = {id(node) for node in tree.body}
        inside = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if (isinstance(node, ast.ImportFrom) and node.module not in optional) or isinstance(node, ast.Import)
            if id(node) not in top
        ]
        assert not inside, path.name


def test_another_release_check_than_expected_is_refused(tool, clone):
    (clone / "sota-check/run_sac.sh").write_text("python sac.py\n")
    before = contents(clone)
    with pytest.raises(tool.BuildError, match=r"run_sac\.sh runs no sac/sac\.py"):
        tool.build(clone)
    assert contents(clone) == before


def test_the_loss_has_torchrls_header_and_its_config_every_argument(tool, clone):
    tool.build(clone)
    loss = (clone / "torchrl/objectives/smore.py").read_text()
    assert loss.startswith("# Copyright (c) Meta Platforms, Inc. and affiliates.\n#\n# This source code is licensed")
    assert loss.splitlines()[4] == "from __future__ import annotations"
    config = (clone / "torchrl/trainers/algorithms/configs/objectives.py").read_text()
    fields = {
        node.target.id: ast.unparse(node.annotation)
        for each in ast.parse(config).body
        if isinstance(each, ast.ClassDef)
        for node in each.body
        if isinstance(node, ast.AnnAssign)
    }
    from torchrl_smore.objectives import SMORELoss

    assert list(fields) == [
        *(name for name in inspect.signature(SMORELoss).parameters if name != "kernels"),
        "_target_",
    ]
    assert fields["beta"] == "float"
    assert fields["formulation"] == "str"
    assert fields["reduction"] == "str | None"
    assert fields["score_bounds"] == fields["score_network"] == "Any"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchrl/objectives/iql.py", "is no work tree of pytorch/rl"),
        ("benchmarks/test_objectives_benchmarks.py", r"has no benchmarks/test_objectives_benchmarks\.py"),
    ],
)
def test_what_is_no_clone_is_refused_before_anything_is_written(tool, clone, name, said):
    (clone / name).unlink()
    before = contents(clone)
    with pytest.raises(tool.BuildError, match=said):
        tool.build(clone)
    assert contents(clone) == before


def test_a_clone_without_the_neighbour_of_an_entry_is_refused_before_anything_is_written(tool, clone):
    path = clone / "docs/source/reference/objectives_offline.rst"
    path.write_text("    IQLLoss\n")
    before = contents(clone)
    with pytest.raises(tool.BuildError, match=r"objectives_offline\.rst: found no line like"):
        tool.build(clone)
    assert contents(clone) == before
