"""Writes SMORe into a clone of TorchRL, as a pull request would have it, and runs its tests there.

python upstream/build.py PATH              PATH is a clone of https://github.com/pytorch/rl
python upstream/build.py PATH --no-tests   only write

The loss is made from this package (``flatten.py``), its release check from one of the clone's; what is TorchRL's own in
style (tests, script, speed test) lies in ``files/``. Running it again writes the same files again; ``git -C PATH add
-A`` and ``git -C PATH diff --cached`` show what a pull request would.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from flatten import FlattenError, flatten

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HEADER = """\
# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""
LOSS = "torchrl/objectives/smore.py"
TESTS = "test/objectives/test_smore.py"
SCRIPT = "sota-implementations/smore"
CONFIGS = "torchrl/trainers/algorithms/configs"
BENCHMARKS = "benchmarks/test_objectives_benchmarks.py"
CHECKS = "sota-check"
CI = ".github/unittest/linux_sota/scripts"
# the script in seconds, here and in TorchRL's CI
SHORT = ("optim.gradient_steps=10", "replay_buffer.episodes=4", "logger.eval_iter=10", "logger.backend=")
# what the docstrings say of parts of this package that stay behind
REWORDED = (
    # of score (Eq. 10), value (Eq. 9) and actor (Eq. 11)
    (
        r", which ``ScoreLoss`` (.*), ``ExpectileValueLoss`` (.*) and\s+``AWRActorLoss`` (.*) give alone",
        r": of score \1, value \2 and\n    actor \3",
    ),
    (r", as ``HindsightGoalTransform`` makes it", ""),
    (
        r"(writes ``tensor_keys\.score``, ``\[\*B, 1\]``); see ``ScoreLoss``\.",
        r"\1. A list keeps its\n            initialisation; a single one is cloned and resampled.",
    ),
    (
        r"; see ``ScoreLoss``\.",
        ', to which bootstrapped values are\n            clipped; ``"auto"`` is the range of the closed form.',
    ),
    (r"(?:; see)?;? ``docs/paper_code_ours\.md``", ""),
    (r"those of the losses that give one part\s+alone; of", "of score, value and\n        actor; of"),
    (r"as the losses of this package do", "as this module's loss does"),
    (r" \(erratum E\d+\)", ""),
    (r"erratum E\d+ shows to be", "are"),
    (
        r"Base of the losses in this package, all of which are final\.\n(?s:.*?)base of their own\.\n",
        "What :class:`SMORELoss` has beside its terms: keys, networks, reduction, masks.\n",
    ),
    (r"\n +Arguments that every loss takes are explained at the constructor here(?s:.*?)inherit it\.", ""),
    (
        r"(goals there \(OGBench samples them apart\)\.\n)",
        r"""\1
    Paper: `Sikchi et al. (2024), Score Models for Offline Goal-Conditioned Reinforcement Learning
    <https://arxiv.org/abs/2311.02013>`_. See also :class:`~torchrl.trainers.algorithms.configs.SMORELossConfig`.
""",
    ),
)
LEFT_BEHIND = re.compile(
    r"torchrl_smore|ScoreLoss|ExpectileValueLoss|AWRActorLoss|HindsightGoal|GoalTransition|\w+\.md|kernel"
    r"|this package|errat",
    re.IGNORECASE,
)
_PLAIN = ("bool", "int", "float", "str")


class BuildError(RuntimeError):
    """The clone does not look as expected."""


def loss_module(root: Path) -> str:
    """Text of ``torchrl/objectives/smore.py``: the loss and all that it needs of the package below ``root``."""
    text = flatten(root, "torchrl_smore.objectives", "SMORELoss")
    networks = (HERE / "files" / "networks_of_example.txt").read_text(encoding="utf-8")
    # the example's networks and imports are of this package
    text = re.sub(r"( +)>>> from torchrl_smore\.modules import .*\n", lambda _: networks, text)
    text = text.replace("from torchrl_smore.objectives import SMORELoss", "from torchrl.objectives import SMORELoss")
    text = re.sub(r" +>>> networks = make_networks\(.*\n", "", text)
    text = text.replace("SMORELoss(networks.actor, networks.score, networks.value,", "SMORELoss(actor, score, value,")
    for pattern, new in REWORDED:
        text = re.sub(pattern, new, text)
    text = with_shared_arguments(text)
    for line in text.splitlines():
        if found := LEFT_BEHIND.search(line):
            raise BuildError(f"the loss still names {found[0]}, which stays behind: {line.strip()}")
    return formatted(HEADER + text)


def with_shared_arguments(text: str) -> str:
    """``text`` with what the base's constructor says of its arguments in the loss's docstring too.

    TorchRL's reference shows the docstring of the class, and the base is not in it.
    """
    after = "\n\n    Returns (forward):"
    shared = re.search(r'"""Arguments of every loss.*?\n +Args:\n(.*?)\n\n +Raises:', text, re.DOTALL)
    if shared is None or text.count(after) != 1:
        raise BuildError("found not where the loss's docstring takes the arguments of its base.")
    lines = textwrap.indent(textwrap.dedent(shared[1]), " " * 8)
    return text.replace(after, f"\n{lines}{after}")


def loss_config(loss: str) -> str:
    """Text of ``SMORELossConfig``, with a field for each argument of the loss, in their order."""
    (init,) = (
        node
        for each in ast.parse(loss).body
        if isinstance(each, ast.ClassDef) and each.name == "SMORELoss"
        for node in each.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    literals = {
        target.id
        for node in ast.parse(loss).body
        if isinstance(node, ast.Assign) and re.fullmatch(r"Literal\[('\w+'(, )?)+\]", ast.unparse(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    arguments = init.args
    networks = [(each, None) for each in arguments.args[1:]]
    lines = []
    for argument, default in [*networks, *zip(arguments.kwonlyargs, arguments.kw_defaults)]:
        hint = ast.unparse(argument.annotation) if argument.annotation else "Any"
        optional = hint.endswith(" | None")
        plain = hint.removesuffix(" | None")
        plain = "str" if plain in literals else plain
        kind = "Any"
        if plain in _PLAIN:
            kind = f"{plain} | None" if optional else plain
        value = "None" if default is None else ast.unparse(default).replace("'", '"')
        lines.append(f"    {argument.arg}: {kind} = {value}")
    fields = "\n".join(lines)
    return f'''

@dataclass
class SMORELossConfig(LossConfig):
    """Hydra configuration for :class:`~torchrl.objectives.SMORELoss`.

    Every kwarg accepted by ``SMORELoss.__init__`` is exposed as a field here.
    """

{fields}
    _target_: str = "torchrl.objectives.SMORELoss"
'''


def formatted(text: str) -> str:
    """The text with sorted imports and TorchRL's line length."""
    beside = Path(sys.executable).with_name("ruff")
    ruff = str(beside) if beside.exists() else shutil.which("ruff")
    if ruff is None:
        raise BuildError("ruff formats the module, and is not installed: pip install torchrl-smore[dev]")
    options = ["--isolated", "--line-length", "88", "--quiet"]
    for command in (["check", "--select", "F401,I", "--fix"], ["format"]):
        done = subprocess.run([ruff, *command, *options, "-"], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"ruff {command[0]}: {done.stdout or done.stderr}")
        text = done.stdout
    return text


def insert_line(text: str, line: str, after: str, where: str) -> str:
    """``text`` with ``line`` below the last line that ``after`` matches, unless it is there.

    Raises:
        BuildError: if nothing matches.
    """
    lines = text.splitlines()
    if line in lines:
        return text
    found = [number for number, each in enumerate(lines) if re.fullmatch(after, each)]
    if not found:
        raise BuildError(f"{where}: found no line like {after!r} to put {line.strip()!r} below.")
    lines.insert(found[-1] + 1, line)
    return "\n".join(lines) + "\n"


def without_block(text: str, begin: str) -> str:
    """``text`` without the definition of an earlier build, decorators included, whose line begins so."""
    for node in ast.parse(text).body:
        if text.splitlines()[node.lineno - 1].startswith(begin):
            lines = text.splitlines(keepends=True)
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
            return "".join([*lines[:first], *lines[node.end_lineno :]]).replace("\n\n\n\n\n", "\n\n\n")
    return text


def edits(loss: str) -> dict[str, Callable[[str], str]]:
    """By file of the clone, what becomes of its text."""

    def objectives(text: str) -> str:
        where = "torchrl/objectives/__init__.py"
        imported = "from torchrl.objectives.smore import SMORELoss"
        text = insert_line(text, imported, r"from torchrl\.objectives\.sac import .*", where)
        return insert_line(text, '    "SMORELoss",', r' +"SACLoss",', where)

    def reference(text: str) -> str:
        return insert_line(text, "    SMORELoss", r" +DiscreteIQLLoss", "objectives_offline.rst")

    def config_reference(text: str) -> str:
        return insert_line(text, "    SMORELossConfig", r" +SACLossConfig", "config.rst")

    def examples(text: str) -> str:
        return insert_line(text, "- [SMORe](smore/)", r"- \[SAC\].*", "sota-implementations/README.md")

    def checked(text: str) -> str:
        return insert_line(text, "    run_smore.sh", r" +run_sac\.sh", f"{CHECKS}/submitit-release-check.sh")

    def smoke(text: str) -> str:
        options = " \\\n  ".join((f"python {SCRIPT}/smore_offline.py", *SHORT))
        before, found, after = re.sub(r' +"smore": """(?s:.*?)""",\n', "", text).partition("\ncommands = {\n")
        if not found:
            raise BuildError(f"{CI}/test_sota.py: found no commands to put the script among.")
        return f'{before}{found}    "smore": """{options}\n""",\n{after}'

    def installed(text: str) -> str:
        # the script's task
        return insert_line(
            text, "uv pip install gymnasium-robotics", r'uv pip install "gymnasium\[.*', f"{CI}/run_all.sh"
        )

    def config(text: str) -> str:
        return without_block(text, "class SMORELossConfig").rstrip("\n") + "\n" + loss_config(loss)

    def registered(text: str) -> str:
        where = f"{CONFIGS}/__init__.py"
        text = insert_line(text, "    SMORELossConfig,", r" +SACLossConfig,", where)
        text = insert_line(text, '    "SMORELossConfig",', r' +"SACLossConfig",', where)
        stored = '    cs.store(group="loss", name="smore", node=SMORELossConfig)'
        return insert_line(text, stored, r' +cs\.store\(group="loss", name="sac", .*', where)

    def speed(text: str) -> str:
        added = (HERE / "files" / BENCHMARKS).read_text(encoding="utf-8").split("# --- test\n")[1]
        text = insert_line(text, "    SMORELoss,", r" +SACLoss,", BENCHMARKS)
        before, found, after = without_block(text, "def test_smore_speed").partition('\n\nif __name__ == "__main__":')
        if not found:
            raise BuildError(f"{BENCHMARKS}: found no main block to put the speed test before.")
        return f"{before.rstrip()}\n\n\n{added.strip()}\n{found}{after}"

    return {
        "torchrl/objectives/__init__.py": objectives,
        "docs/source/reference/objectives_offline.rst": reference,
        "docs/source/reference/config.rst": config_reference,
        "sota-implementations/README.md": examples,
        f"{CHECKS}/submitit-release-check.sh": checked,
        f"{CI}/test_sota.py": smoke,
        f"{CI}/run_all.sh": installed,
        f"{CONFIGS}/objectives.py": config,
        f"{CONFIGS}/__init__.py": registered,
        BENCHMARKS: speed,
    }


def release_check(text: str) -> str:
    """``run_smore.sh`` from the text of the clone's ``run_sac.sh``.

    Raises:
        BuildError: if that runs another script than expected.
    """
    if f"{Path(SCRIPT).parent}/sac/sac.py" not in text:
        raise BuildError(f"{CHECKS}/run_sac.sh runs no sac/sac.py.")
    return text.replace("sac/sac.py", "smore/smore_offline.py").replace("sac", "smore")


def build(clone: Path, root: Path = ROOT) -> list[Path]:
    """Writes everything into the clone; returns the files. Nothing is written before all of it is made.

    Args:
        clone: work tree of pytorch/rl.
        root: folder that holds ``torchrl_smore``.

    Raises:
        BuildError: if the clone is none, or has not what the entries are put beside.
    """
    if not (clone / "torchrl" / "objectives" / "iql.py").is_file():
        raise BuildError(f"{clone} is no work tree of pytorch/rl: torchrl/objectives/iql.py is not there.")
    loss = loss_module(root)
    new = {LOSS: loss}
    for path in sorted((HERE / "files").rglob("*")):
        name = path.relative_to(HERE / "files").as_posix()
        if path.is_file() and name.startswith((TESTS, SCRIPT)) and "__pycache__" not in name:
            new[name] = path.read_text(encoding="utf-8")
    made = {f"{CHECKS}/run_smore.sh": (f"{CHECKS}/run_sac.sh", release_check)}
    made |= {name: (name, edit) for name, edit in edits(loss).items()}
    for name, (source, edit) in made.items():
        if not (clone / source).is_file():
            raise BuildError(f"{clone} has no {source}.")
        new[name] = edit((clone / source).read_text(encoding="utf-8"))
    written = []
    for name, text in new.items():
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.partial")
        beside.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
        written.append(path)
    return written


def run_tests(clone: Path) -> int:
    """Runs the loss's tests and a few updates of the script with the clone's own TorchRL; returns the exit status.

    TorchRL's C++ extension is not built for it: nothing here needs prioritised replay.
    """
    clone = clone.resolve()
    environment = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    versions = (
        "import importlib.metadata as m, pathlib, torch, torchrl, tensordict;"
        "print('torchrl of', pathlib.Path(torchrl.__file__).parents[1], '; installed: torchrl', m.version('torchrl'), "
        "'tensordict', tensordict.__version__, 'torch', torch.__version__)"
    )
    commit = subprocess.run(
        ["git", "-C", str(clone), "describe", "--always"], capture_output=True, text=True, check=False
    )
    of_clone = (clone / "version.txt").read_text().strip() if (clone / "version.txt").is_file() else "unknown"
    print(f"clone: version {of_clone}, commit {commit.stdout.strip() or 'unknown'}", flush=True)
    # what Hydra and the loggers leave is no part of a pull request
    with tempfile.TemporaryDirectory() as left:
        commands = [
            ([sys.executable, "-c", versions], clone),
            ([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS], clone),
            ([sys.executable, "smore_offline.py", *SHORT, f"hydra.run.dir={left}"], clone / SCRIPT),
        ]
        for command, folder in commands:
            status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
            if status:
                return status
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, and runs the tests unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="work tree of pytorch/rl")
    parser.add_argument("--no-tests", action="store_true", help="only write")
    options = parser.parse_args(arguments)
    try:
        for path in build(options.clone):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            print(f"{path.relative_to(options.clone)}: {lines:,} lines")
    except (BuildError, FlattenError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if options.no_tests else run_tests(options.clone)


if __name__ == "__main__":
    raise SystemExit(main())
