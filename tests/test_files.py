from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_smore._files import digest_without, put_in_place, remove_leftovers, replacing, write_text

ROOT = Path(__file__).parents[1]
# they put back what put_in_place of a killed process had moved aside
PUT_BACK = {"torchrl_smore/data/_disk.py", "torchrl_smore/trainers/checkpoint.py"}


@pytest.fixture
def ended():
    """Number of a process that is no longer there."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_and_not_before(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert names(tmp_path) == [f".a.csv.{os.getpid()}.partial", "a.csv"]
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_all_is_as_before(tmp_path, error, folder):
    (tmp_path / "a").write_text("old")

    def fail():
        with replacing(tmp_path / "a") as beside:
            if folder:
                beside.mkdir()
                beside = beside / "part"
            beside.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_takes_its_place_whole(tmp_path):
    with replacing(tmp_path / "a") as beside:
        (beside / "b").mkdir(parents=True)
        (beside / "b" / "c").write_text("text")
    assert (tmp_path / "a" / "b" / "c").read_text() == "text"
    assert names(tmp_path) == ["a"]


def test_bytes_are_on_disk_before_the_name_and_the_name_at_the_end(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def note_sync(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def note_replace(source, target):
        done.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_text(tmp_path / "new" / "a", "text")
    with replacing(tmp_path / "b") as beside:
        beside.mkdir()
        (beside / "c").touch()
    first, second = f".a.{os.getpid()}.partial", f".b.{os.getpid()}.partial"
    assert done == [
        *(("sync", first), ("replace", "a"), ("sync", "new")),
        *(("sync", "c"), ("sync", second), ("replace", "b"), ("sync", tmp_path.name)),
    ]


def test_the_next_writer_of_a_file_removes_what_a_killed_one_left_and_nothing_else(tmp_path, ended):
    kept = [f".a[1].{os.getppid()}.partial", f".a1.{ended}.partial", ".a[1].notes.partial", "b"]
    # the second is of a function that writes the file beside it, as it were the file itself
    for name in (f".a[1].{ended}.partial", f"..a[1].{ended}.partial.{ended}.partial", *kept):
        (tmp_path / name).touch()
    write_text(tmp_path / "a[1]", "")
    assert names(tmp_path) == sorted([*kept, "a[1]"])


def test_leftovers_of_any_file_and_whole_folders_are_removed(tmp_path, ended):
    (tmp_path / f".a.{ended}.partial").touch()
    (tmp_path / f".b.{ended}.partial" / "c").mkdir(parents=True)
    (tmp_path / f".own.{os.getpid()}.partial").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [f".own.{os.getpid()}.partial"]


def test_an_error_of_the_disk_names_the_file_and_one_of_another_file_that_one(tmp_path):
    def fill_the_disk():
        with replacing(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "No space left on device")

    def read_another():
        with replacing(tmp_path / "a"):
            (tmp_path / "b").read_text()

    with pytest.raises(OSError, match=r"No space left on device: '[^']*/a'$"):
        fill_the_disk()
    with pytest.raises(FileNotFoundError, match=r"/absent/a'$"), replacing(tmp_path / "absent" / "a") as beside:
        beside.write_text("")
    with pytest.raises(FileNotFoundError, match=r"/b'$"):
        read_another()


def test_a_folder_is_replaced_by_another(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    put_in_place(tmp_path / "new", tmp_path / "old", tmp_path / "aside")
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == ["new"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "old" / "content").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "absent", tmp_path / "old", tmp_path / "aside")
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == ["content"]


def test_a_digest_is_that_of_all_but_its_own_entry_however_they_are_laid_out():
    # of {"a": [1, null], "b": "\u00e9"}, by sha256sum
    expected = "a7ecfa31489e9c28927c541bb96de73d43f080fb97dde6fddaf3f838b2826bce"
    assert digest_without({"b": "\u00e9", "a": (1, None), "sha256": "x"}, "sha256") == expected
    assert digest_without({"a": [1, None], "b": "\u00e9"}, "sha256") == expected
    assert digest_without({"a": [1, None], "b": "e"}, "sha256") != expected


def test_nothing_else_renames_what_it_has_written():
    found = set()
    for top in ("torchrl_smore", "kernels", "recipes", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    module = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
                    method = node.func.attr == "rename" or (node.func.attr == "replace" and len(node.args) == 1)
                    dataclass = ast.unparse(node.func.value) == "dataclasses"
                    if (module and node.func.attr in ("replace", "rename", "move")) or (method and not dataclass):
                        found.add(path.relative_to(ROOT).as_posix())
    assert found == {"torchrl_smore/_files.py", *PUT_BACK}
