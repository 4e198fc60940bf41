"""Checkpoints: whole or absent, rotated, and refused when damaged, foreign or hostile."""

from __future__ import annotations

import errno
import hashlib
import http
import json
import os
import pickle
import random
import shutil
import zipfile
from collections import Counter, OrderedDict
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_smore.trainers import (
    CheckpointError,
    clear_leftovers,
    latest_checkpoint,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from torchrl_smore.trainers.checkpoint import check_fits

STATE = {"step": 3, "nested": {"weight": torch.arange(4.0), "list": [1, None, "text", 2.5]}}


def names(root):
    return sorted(os.listdir(root))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = save_checkpoint(tmp_path / "runs" / "a", 3, STATE, {"task": "FetchReach"})
    state, meta = load_checkpoint(path, {"task": "FetchReach"})
    torch.testing.assert_close(state["nested"]["weight"], STATE["nested"]["weight"])
    assert (state["step"], state["nested"]["list"]) == (3, [1, None, "text", 2.5])
    assert (meta["task"], meta["step"], meta["format_version"]) == ("FetchReach", 3, 3)
    assert latest_checkpoint(tmp_path / "runs" / "a") == path


def test_the_newest_checkpoints_are_kept_in_the_order_of_their_steps(tmp_path):
    for step in (999_999_998, 999_999_999, 1_000_000_000):
        save_checkpoint(tmp_path, step, STATE, {}, keep=2)
    assert names(tmp_path) == ["step_1000000000", "step_999999999"]
    assert load_checkpoint(latest_checkpoint(tmp_path))[1]["step"] == 1_000_000_000


def test_checkpoints_of_a_future_that_was_left_are_dropped(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, STATE, {}, keep=3)
    save_checkpoint(tmp_path, 15, STATE, {}, keep=2)  # resumed from 10
    assert names(tmp_path) == ["step_000000010", "step_000000015"]


def test_other_folders_are_neither_taken_for_checkpoints_nor_removed(tmp_path):
    (tmp_path / "step_best").mkdir()
    (tmp_path / "step_best" / "meta.json").write_text("{}")
    (tmp_path / "step_000000099").mkdir()  # without meta.json: not whole
    save_checkpoint(tmp_path, 1, STATE, {}, keep=1)
    save_checkpoint(tmp_path, 2, STATE, {}, keep=1)
    assert names(tmp_path) == ["step_000000002", "step_000000099", "step_best"]
    assert latest_checkpoint(tmp_path).name == "step_000000002"


def fail_in_save(monkeypatch):
    def save(state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)


def fail_in_rename(monkeypatch):
    def replace(source, target, plain=os.replace):
        if os.path.exists(os.path.join(source, "meta.json")) and "replaced" not in str(source) + str(target):
            raise OSError(errno.EIO, "Input/output error")
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)


def interrupt(monkeypatch):
    def dumps(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", dumps)


@pytest.mark.parametrize("step", [2, 3], ids=["the same step", "another step"])
@pytest.mark.parametrize("fail", [fail_in_save, fail_in_rename, interrupt])
def test_a_failure_leaves_the_older_ones_whole_and_nothing_half_done(tmp_path, monkeypatch, fail, step):
    save_checkpoint(tmp_path, 1, STATE, {})
    save_checkpoint(tmp_path, 2, {**STATE, "step": 2}, {})
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises((OSError, KeyboardInterrupt)):
            save_checkpoint(tmp_path, step, {"step": "new"}, {}, keep=1)
    assert names(tmp_path) == ["step_000000001", "step_000000002"]
    assert load_checkpoint(latest_checkpoint(tmp_path))[0]["step"] == 2


def test_what_a_raw_file_takes_in_part_is_written_to_its_end(tmp_path, monkeypatch):
    opened = Path.open

    class Short(FileIO):
        """Takes 1,000 bytes at most, as Linux takes 2 GiB at most, and as a disk does that is nearly full."""

        def write(self, content):
            return super().write(memoryview(content)[:1000])

    def open_short(path, mode="r", *args, **how):
        return Short(path, "w") if path.name == "state.pt" and mode == "wb" else opened(path, mode, *args, **how)

    monkeypatch.setattr(Path, "open", open_short)
    path = save_checkpoint(tmp_path, 1, {"weight": torch.arange(5000.0)}, {})
    monkeypatch.undo()
    torch.testing.assert_close(load_checkpoint(path)[0]["weight"], torch.arange(5000.0))


def test_a_full_disk_is_an_error_that_spares_what_is_there(tmp_path):
    resource = pytest.importorskip("resource")
    save_checkpoint(tmp_path, 1, STATE, {})
    pid = os.fork()
    if pid == 0:
        # the limit on file sizes fails a write as a full disk does, in a process of its own
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save_checkpoint(tmp_path, 2, {"big": [{"a": torch.zeros(100_000)}]}, {})
        except OSError as error:
            # 100,000 numbers of four bytes
            told = error.errno == errno.EFBIG and "step_000000002" in str(error) and "about 0.40 MB" in str(error)
            os._exit(17 if told else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
    assert names(tmp_path) == ["step_000000001"]
    load_checkpoint(latest_checkpoint(tmp_path))


def test_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, 1, {"step": "old"}, {}, keep=1)
    save_checkpoint(tmp_path, 1, {"step": "new"}, {}, keep=1)
    assert names(tmp_path) == ["step_000000001"]
    assert load_checkpoint(latest_checkpoint(tmp_path))[0]["step"] == "new"


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / ".partial_abc").mkdir()
    (tmp_path / ".partial_abc" / "state.pt").write_bytes(b"half")
    save_checkpoint(tmp_path, 1, STATE, {})
    assert names(tmp_path) == ["step_000000001"]


def test_a_checkpoint_that_a_killed_process_had_moved_aside_is_put_back(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"step": "old"}, {}, keep=1)
    path.rename(tmp_path / ".partial_step_000000001_replaced")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["step_000000001"]
    # where the new one is in its place, the old one goes
    shutil.copytree(path, tmp_path / ".partial_step_000000001_replaced")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["step_000000001"]


@pytest.mark.parametrize("gone", ["state.pt", "meta.json"])
@pytest.mark.parametrize(("saved", "new"), [((1, 2), 3), ((4, 8), 6)], ids=["old", "of a future"])
def test_a_checkpoint_that_is_half_removed_when_the_process_is_killed_is_none(tmp_path, monkeypatch, saved, new, gone):
    for step in saved:
        save_checkpoint(tmp_path, step, STATE, {})
    removed = []

    def killed(path, **options):
        (Path(path) / gone).unlink()
        removed.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, new, STATE, {})
    assert len(removed) == 1
    for path in tmp_path.glob("step_*"):
        load_checkpoint(path)
    assert latest_checkpoint(tmp_path).name == f"step_{new:09d}"
    clear_leftovers(tmp_path)
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize("root", ["empty", "absent"])
def test_without_a_checkpoint_the_folder_is_named(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"no checkpoint in .*{root}"):
        latest_checkpoint(tmp_path / root)


def rewrite_state(path, payload, sign=True):
    (path / "state.pt").write_bytes(payload)
    if sign:
        meta = json.loads((path / "meta.json").read_text())
        meta["sha256"] = hashlib.sha256(payload).hexdigest()
        del meta["meta_sha256"]
        meta["meta_sha256"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
        (path / "meta.json").write_text(json.dumps(meta))


def flip_a_byte(path):
    payload = bytearray((path / "state.pt").read_bytes())
    payload[len(payload) // 2] ^= 1
    rewrite_state(path, bytes(payload), sign=False)


def write_meta(text):
    return lambda path: (path / "meta.json").write_bytes(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "is damaged: its SHA-256"),
        (lambda path: rewrite_state(path, b"", sign=False), "is damaged: its SHA-256"),
        (lambda path: rewrite_state(path, b"no archive"), "more than tensors"),
        (lambda path: rewrite_state(path, b""), "more than tensors"),
        (lambda path: os.remove(path / "state.pt"), "not a whole checkpoint"),
        (lambda path: os.remove(path / "meta.json"), "not a whole checkpoint"),
        (lambda path: shutil.rmtree(path), "not a whole checkpoint"),
        (write_meta(b'{"format_version": 2,'), "not a whole checkpoint"),
        (write_meta(b"\xff\xfe"), "not a whole checkpoint"),
        (write_meta(b"[]"), "must hold a JSON object, found list"),
        (write_meta(b'{"format_version": 1}'), "has checkpoint format 1; this version reads 2 and 3"),
        (write_meta(b"{}"), "has checkpoint format None"),
    ],
)
def test_damage_is_refused_and_named(tmp_path, damage, message):
    path = save_checkpoint(tmp_path, 1, STATE, {})
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_one_number_may_have_another_precision_and_nothing_else_may():
    check_fits({"temperature": torch.tensor(3.0)}, {"temperature": torch.tensor(3.0).double()}, "loss")
    for saved, own in [
        (torch.tensor(3), torch.tensor(3.0)),
        (torch.zeros(1), torch.zeros(1).double()),
        (torch.zeros(()), torch.zeros(1)),
        (3.0, torch.tensor(3.0)),
    ]:
        with pytest.raises(CheckpointError, match=r"loss\.temperature is"):
            check_fits({"temperature": saved}, {"temperature": own}, "loss")


def test_another_task_is_refused_with_both_names(tmp_path):
    path = save_checkpoint(tmp_path, 1, STATE, {"task": "FetchPush"})
    with pytest.raises(CheckpointError, match="task='FetchPush'; expected 'FetchReach'"):
        load_checkpoint(path, {"task": "FetchReach"})
    with pytest.raises(CheckpointError, match="method=None; expected 'smore'"):
        load_checkpoint(path, {"method": "smore"})


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1, np.zeros(3)]}}, r"state\.a\.b\.1 is a numpy\.ndarray"),
        ({"lr": np.float64(0.1)}, r"state\.lr is a numpy\.float64"),
        ({"kind": (1, http.HTTPStatus.OK)}, r"state\.kind\.1 is a http\.HTTPStatus"),
        ({"names": frozenset("a")}, r"state\.names is a builtins\.frozenset"),
        ({np.int64(3): 1}, r"state: a key is a numpy\.int64"),
    ],
)
def test_a_state_that_could_not_be_read_again_is_refused_by_its_place(tmp_path, state, where):
    with pytest.raises(TypeError, match=where):
        save_checkpoint(tmp_path, 1, state, {})
    assert not list(tmp_path.iterdir())


def test_what_is_not_refused_can_be_read_again(tmp_path):
    plain = {"b": b"1", "c": 1j, 3: None, "t": (True, {2.5}), "s": torch.Size([2]), "d": torch.float64}
    state = {**plain, "o": OrderedDict(a=1), "n": Counter("aab"), "dev": torch.device("cpu")}
    assert load_checkpoint(save_checkpoint(tmp_path, 1, state, {}))[0] == state


def test_a_meta_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"meta must be expressible in JSON, got .*Path"):
        save_checkpoint(tmp_path, 1, {}, {"path": Path("a")})
    assert not list(tmp_path.iterdir())


def test_what_json_changes_is_not_a_difference(tmp_path):
    meta = {"hidden": (8, 8), "by_key": {1: 2}}
    path = save_checkpoint(tmp_path, 1, STATE, meta)
    load_checkpoint(path, meta)


class Hostile:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "plain pickle"])
def test_a_hostile_pickle_is_refused_and_leaves_no_trace(tmp_path, legacy):
    path = save_checkpoint(tmp_path / "run", 1, STATE, {})
    trace = tmp_path / "trace"
    hostile = {"step": Hostile(trace)}
    if legacy:
        payload = pickle.dumps(hostile, protocol=2)
    else:
        torch.save(hostile, tmp_path / "hostile.pt")
        payload = (tmp_path / "hostile.pt").read_bytes()
        assert zipfile.is_zipfile(tmp_path / "hostile.pt")
    rewrite_state(path, payload)
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(hostile))  # the pickle does what it is meant to
    assert trace.exists()


def test_the_global_generators_go_round_through_a_file(tmp_path):
    np.random.standard_normal()  # noqa: NPY002 - leaves a second normal number waiting in the state
    random.gauss(0, 1)

    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.standard_normal(3).tolist(),  # noqa: NPY002
            [random.gauss(0, 1) for _ in range(3)],
        )

    path = save_checkpoint(tmp_path, 1, {"rng": rng_state()}, {})
    expected = draw()
    assert draw() != expected
    set_rng_state(load_checkpoint(path)[0]["rng"])
    assert draw() == expected
