"""The folder of an unfinished collection, after whatever may have happened to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torchrl_smore import _files
from torchrl_smore.envs import collect
from torchrl_smore.envs._partial import PartialFolder, chunk_path, write_chunk

ARRAYS = {"observation": np.arange(600.0).reshape(20, 30), "reward": np.zeros((20, 5))}


@pytest.fixture
def folder(tmp_path):
    made = PartialFolder(tmp_path / "a.partial", {"seed": 3})
    for number in range(3):
        write_chunk(made.path, number, ARRAYS)
    return made


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty_archive(path):
    # what zipfile takes for a whole archive
    path.write_bytes(b"PK\x05\x06" + bytes(18))


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        empty_archive,
        lambda path: path.write_bytes(b"torn"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["flipped", "no array", "torn", "empty", "cut", "folder"],
)
def test_a_damaged_chunk_is_collected_anew_and_that_is_said(folder, damage, caplog):
    assert folder.missing(4) == [3]
    assert not caplog.messages
    damage(chunk_path(folder.path, 1))
    assert folder.missing(4) == [1, 3]
    (said,) = caplog.messages
    assert "chunk_000001.npz is damaged and is collected anew" in said
    if damage is not flip and chunk_path(folder.path, 1).is_dir():
        return
    write_chunk(folder.path, 1, ARRAYS)
    assert folder.missing(3) == []
    np.testing.assert_array_equal(folder.read(1)["observation"], ARRAYS["observation"])


def test_bytes_are_on_disk_before_the_name_is(folder, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def note_sync(descriptor):
        done.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def note_rename(path, target):
        done.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_chunk(folder.path, 7, ARRAYS)
    temporary = f".chunk_000007.npz.{os.getpid()}.partial"
    assert done == [("sync", temporary), ("rename", "chunk_000007.npz"), ("sync", "a.partial")]


def test_what_a_killed_process_was_writing_is_removed_at_the_next_start(folder):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    left = folder.path / f".chunk_000003.npz.{ended.pid}.partial"
    own = folder.path / f".chunk_000004.npz.{os.getpid()}.partial"
    for path in (left, own, folder.path / "notes"):
        path.write_bytes(b"half")
    PartialFolder(folder.path, {"seed": 3})
    assert not left.exists()
    assert own.exists()
    assert (folder.path / "notes").exists()


def test_a_folder_that_is_half_removed_when_the_process_is_killed_is_none(tmp_path, monkeypatch):
    options = {"expert_episodes": 2, "random_episodes": 2, "seed": 0, "out": tmp_path / "a", "progress": False}

    def killed(path, **_):
        (Path(path) / "request.json").write_bytes(b"")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            collect("PointReach", **options)
    # the store is whole; made anew, it does not stumble over the half, which goes
    collect("PointReach", **options, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("content", [b"", b'{"seed": 3', b"[" * 10**6, b"[1]", b"\xff"])
def test_a_damaged_request_names_the_folder_to_delete(folder, content):
    (folder.path / "request.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.partial/request.json.*: .*delete the folder"):
        PartialFolder(folder.path, {"seed": 3})
