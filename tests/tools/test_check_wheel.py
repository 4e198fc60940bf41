"""The script that tries the wheel: what it refuses, and the wheel of this checkout."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools" / "check_wheel.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_wheel"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_wheel"]


@pytest.fixture(scope="module")
def wheel(tool, tmp_path_factory):
    """Built by the setuptools that torch brings, since nothing may be downloaded here."""
    return tool.build_wheel(sys.executable, tmp_path_factory.mktemp("wheel") / "wheel", "--no-build-isolation")


@pytest.fixture
def changed(wheel, tmp_path):
    """Returns a function that copies the wheel with some entries left out, added or replaced."""

    def change(leave=(), add=None, replace=("", "")):
        copy = tmp_path / wheel.name
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(copy, "w") as target:
            for name in source.namelist():
                if name not in leave:
                    target.writestr(name, source.read(name).replace(replace[0].encode(), replace[1].encode()))
            for name in add or ():
                target.writestr(name, "")
        return copy

    return change


def test_the_wheel_has_both_packages_every_file_and_the_metadata(tool, wheel):
    tool.check_content(wheel)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "\nAuthor: The torchrl_smore authors\n" in metadata
    assert "\nProject-URL: Paper, https://arxiv.org/abs/2311.02013\n" in metadata
    assert "\nClassifier: Typing :: Typed\n" in metadata
    assert not (ROOT / "build" / "lib").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"leave": ["smore_kernels/py.typed"]}, "lacks smore_kernels/py.typed"),
        (
            {"leave": ["torchrl_smore/reports/paper/paper_tables.csv"]},
            "lacks torchrl_smore/reports/paper/paper_tables.csv",
        ),
        ({"add": ["recipes/__init__.py"]}, r"nothing else, got \['recipes', 'smore_kernels', 'torchrl_smore'\]"),
        ({"replace": ("Project-URL", "X-URL")}, "has no Project-URL"),
    ],
)
def test_a_wheel_that_lacks_something_is_refused(tool, changed, change, said):
    with pytest.raises(tool.CheckError, match=said):
        tool.check_content(changed(**change))


def test_a_shim_that_only_complains_is_no_interpreter(tool, tmp_path, monkeypatch):
    shim = tmp_path / "python3.9"
    shim.write_text("#!/bin/sh\necho 'python3.9: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    own = "{}.{}".format(*sys.version_info)
    (tmp_path / f"python{own}").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.find_python("3.9") is None
    assert tool.find_python(own) == str(tmp_path / f"python{own}")


def test_an_installer_that_is_not_there_is_named_before_anything_is_built(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tool, "build_wheel", lambda *_: pytest.fail("a wheel was built"))
    with pytest.raises(SystemExit):
        tool.main(["--installer", "uv"])
    assert "there is no uv on the PATH" in capsys.readouterr().err


def test_a_version_that_cannot_be_had_is_said_plainly(tool):
    rows = [
        tool.Row("3.9", "core", error="there is no such interpreter here."),
        tool.Row("3.11", "all", "2.13.0", 60.0),
    ]
    lines = tool.table(rows).splitlines()
    assert lines[2] == "| 3.9 | core |  |  |  |  |  |  | failed |"
    assert lines[3] == "| 3.11 | all | 2.13.0 | 60 |  |  |  |  | works |"
    assert lines[-1] == "Python 3.9, core: there is no such interpreter here."


def test_what_a_failed_command_said_last_is_quoted_and_the_checkout_is_out_of_reach(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(tool.CheckError, match="exit status 3:\nthe reason"):
        tool.run([sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"], tmp_path)
    code = "import sys; print(sys.path)"
    assert f"'{ROOT}'" not in tool.run([sys.executable, "-c", code], tmp_path)
