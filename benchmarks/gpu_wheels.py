"""Gathers the wheels that ``gpu.py`` installs on a machine without a network: what a bare PyTorch lacks.

    python benchmarks/gpu_wheels.py                             into wheels/, for Python 3.12 on x86-64 Linux
    python benchmarks/gpu_wheels.py --with matplotlib numpy     those too, for a machine that has none
    python benchmarks/gpu_wheels.py --python 3.11 --max-mib 200

Versions are those of ``constraints.txt``. PyTorch, Triton and CUDA are the machine's own and never gathered, and so
are the large packages that come with any scientific Python, unless named.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu import ROOT, distribution, normalised, of_the_machine

#: TorchRL and what it needs, MuJoCo and the tasks, the recipes' command line, the test runner.
PACKAGES = (
    *(
        "torchrl",
        "tensordict",
        "pyvers",
        "hoptorch",
        "orjson",
        "importlib-metadata",
        "zipp",
        "cloudpickle",
        "packaging",
    ),
    *("mujoco", "glfw", "pyopengl", "etils", "fsspec", "absl-py", "typing-extensions"),
    *("gymnasium", "gymnasium-robotics", "farama-notifications", "pettingzoo", "jinja2", "markupsafe", "imageio"),
    *("hydra-core", "omegaconf", "antlr4-python3-runtime", "pyyaml", "tqdm"),
    *("pytest", "pluggy", "iniconfig", "pygments"),
)
#: Newest glibc first; pip takes each by its exact number.
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64")


def pinned(constraints: str) -> dict[str, str]:
    """Version by package, the first of each name."""
    found: dict[str, str] = {}
    for line in constraints.splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)==([^\s;#]+)", line)
        if match:
            found.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return found


def gather(name: str, version: str | None, folder: Path, python: str) -> None:
    """Downloads one wheel, or builds a pure one where only the source is offered.

    Raises:
        RuntimeError: with what pip said.
    """
    request = name if version is None else f"{name}=={version}"
    pip = [sys.executable, "-m", "pip"]
    target = ["--python-version", python, "--implementation", "cp"]
    target += [part for platform in PLATFORMS for part in ("--platform", platform)]
    common = ["--quiet", "--no-deps", "--disable-pip-version-check"]
    wheel = [*pip, "download", *common, "--only-binary=:all:", *target, "--dest", str(folder), request]
    done = subprocess.run(wheel, capture_output=True, text=True, check=False)
    if done.returncode:
        before = set(folder.glob("*.whl"))
        built = subprocess.run(
            [*pip, "wheel", *common, "--wheel-dir", str(folder), request], capture_output=True, text=True, check=False
        )
        impure = [path for path in set(folder.glob("*.whl")) - before if not path.name.endswith("-none-any.whl")]
        for path in impure:
            path.unlink()
        if built.returncode or impure:
            raise RuntimeError(f"no wheel of {request} for Python {python}: {done.stderr.strip()[-300:]}")


def remove_others(name: str, version: str | None, folder: Path) -> None:
    """Removes wheels of other versions, of which pip would refuse to install two: those gathered before."""
    own = [path for path in folder.glob("*.whl") if distribution(path) == normalised(name)]
    newest = max(own, key=lambda path: path.stat().st_mtime, default=None)
    for path in own:
        if path != newest if version is None else path.name.split("-")[1] != version:
            path.unlink()


def main(arguments: Sequence[str]) -> int:
    """Gathers what is not there; the exit status: 0, or 1 if something is missing or too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "wheels")
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--with", dest="more", nargs="*", default=[], help="packages that the machine lacks besides")
    parser.add_argument("--without", nargs="*", default=[], help="packages that it is known to have")
    parser.add_argument("--max-mib", type=float, default=64.0, help="of all wheels together")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in dict.fromkeys([*PACKAGES, *args.more]) if name not in args.without]
    refused = sorted(filter(of_the_machine, names))
    if refused:
        print(f"error: {', '.join(refused)} must be the machine's own.", file=sys.stderr)
        return 1
    versions = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    failures = []
    for number, name in enumerate(names, 1):
        print(f"{number} of {len(names)}: {name} {versions.get(normalised(name), '')}", flush=True)
        try:
            gather(name, versions.get(normalised(name)), args.out, args.python)
            remove_others(name, versions.get(normalised(name)), args.out)
        except RuntimeError as error:
            failures.append(str(error))
    wheels = sorted(args.out.glob("*.whl"))
    mib = sum(path.stat().st_size for path in wheels) / 2**20
    print(f"{len(wheels)} wheels, {mib:.1f} MiB: {args.out}")
    if mib > args.max_mib:
        failures.append(f"{mib:.1f} MiB are more than --max-mib {args.max_mib:g}: leave some out by --without")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
