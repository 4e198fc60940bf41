"""Compiled updates that are kept in a folder: the key, the file, and what a second process finds."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.functional import losses
from torchrl_smore.objectives import SMORELoss
from torchrl_smore.trainers import FusedUpdate
from torchrl_smore.trainers.compiled import _head, checked_folder
from torchrl_smore.trainers.traced import UndescribedError, traced_digest

KEY = "5" * 64
posix = pytest.mark.skipif(os.name != "posix", reason="needs owners and modes of files")


@pytest.fixture
def make_update(make_loss, data):
    """Returns a factory of updates of small losses: ``make(loss=options, sampler=options, **options)``."""

    def make(seeds=(0,), loss=None, sampler=None, **options):
        made = [make_loss(seed, **(loss or {})) for seed in seeds]
        options = {"lr": 1e-3, "total_steps": 15, "tau": 0.05, **options}
        return FusedUpdate(
            made, GoalBatchSampler(data, **{"batch_size": 16, **(sampler or {})}), seeds=seeds, **options
        )

    return make


def key(update, settings="default"):
    return traced_digest(update._traced(), settings)


def test_the_key_is_that_of_another_object_of_the_same_kind(make_update):
    first = make_update()
    assert key(first) == key(make_update())
    # seeds, values of tensors and generators do not count
    first()
    assert key(first) == key(make_update())
    assert key(make_update(seeds=(5,))) == key(make_update())


def test_a_folder_without_compilation_is_refused(make_update, tmp_path):
    with pytest.raises(ValueError, match="of no use with compile='off'"):
        make_update(compile_cache=tmp_path)


def test_kernels_that_were_imported_leave_an_update_describable(make_update):
    pytest.importorskip("triton")
    import smore_kernels

    # its modules hold functions of Triton's
    assert smore_kernels.bellman_residual.__name__ in sys.modules
    assert key(make_update()) == key(make_update())


@pytest.mark.parametrize(
    "options",
    [
        {"loss": {"weight_clip": 7.0}},
        {"loss": {"formulation": "official"}},
        {"loss": {"advantage_unit": "horizon"}},
        {"loss": {"kernels": "reference"}},
        {"sampler": {"batch_size": 8}},
        {"sampler": {"her_ratio": 0.5}},
        {"sampler": {"strategy": {"future": 0.5, "random": 0.5}}},
        {"sampler": {"anchors": torch.ones(76, dtype=torch.float64)}},
        {"lr": 2e-3},
        {"total_steps": 16},
        {"cosine": ()},
        {"tau": 0.1},
        {"tau": None},
        {"seeds": (0, 1)},
        {"seeds": (0, 1), "map_seeds": "vmap"},
    ],
    ids=str,
)
def test_an_option_changes_the_key(make_update, options):
    if "anchors" in options.get("sampler", {}):
        options = {"sampler": {"anchors": torch.ones(len(make_update().samplers[0]), dtype=torch.float64)}}
    assert key(make_update(**options)) != key(make_update())


def test_what_is_set_on_an_object_changes_the_key(make_update):
    update, before = make_update(), key(make_update())
    update._adam["eps"] = 1e-3
    assert key(update) != before
    update = make_update()
    update.loss.reduction = "sum"
    assert key(update) != before
    update = make_update()
    update.loss.value_network.module.train(not update.loss.value_network.module.training)
    assert key(update) != before
    update = make_update()
    update.samplers[0]._table = update.samplers[0]._table.T.contiguous().T
    assert key(update) != before
    update = make_update()
    # which tensors share memory is compiled in
    update.targets["score_network"] = update.params["score_network"]
    assert key(update) != before


def test_the_state_of_torch_changes_the_key(make_update):
    update = make_update()
    before = key(update)
    with torch.no_grad():
        assert key(update) != before
    with torch.autocast("cpu"):
        assert key(update) != before
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert key(update) != before
    finally:
        torch.set_num_threads(threads)
    with torch._inductor.config.patch(fallback_random=True):
        assert key(update) != before
    assert key(update, "max") != before
    assert key(update) == before


def test_a_global_constant_changes_the_key(make_update, monkeypatch):
    before = key(make_update())
    monkeypatch.setattr("torchrl_smore._dispatch.AUTO_ON_CUDA", "triton")
    assert key(make_update()) != before


class OwnLoss(SMORELoss):
    """Code that no digest covers."""


def own_function(*args, **kwargs):
    return None


def test_code_from_elsewhere_is_refused(make_update, make_loss, data, success, monkeypatch):
    def refused(update, said):
        with pytest.raises(UndescribedError, match=said):
            key(update)

    update = make_update()
    update.loss.__class__ = OwnLoss
    refused(update, r"losses\[0\] is of class OwnLoss of .*test_compiled")
    refused(make_update(sampler={"success": success}), "the function near of .*conftest")
    update = make_update()
    update.loss.register_forward_hook(own_function)
    refused(update, "_forward_hooks.* the function own_function")
    update = make_update()
    update.loss.handle = iter(())
    refused(update, "losses.*handle is a builtins.tuple_iterator, which shows no state")
    monkeypatch.setattr(SMORELoss, "forward", own_function)
    refused(make_update(), "SMORELoss.forward is a function of .*test_compiled")
    monkeypatch.undo()
    monkeypatch.setattr(losses, "expectile_awr", own_function)
    refused(make_update(), "functional.losses.expectile_awr is a function of")


def test_a_source_that_changed_after_the_import_is_refused(make_update, monkeypatch):
    monkeypatch.setattr("torchrl_smore._source._IMPORTED_AT", 0.0)
    with pytest.raises(UndescribedError, match=r"\.py has changed since it was imported"):
        key(make_update())


@posix
def test_a_folder_that_others_write_is_refused(make_update, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    with pytest.raises(PermissionError, match=r"must belong to user .* writable by nobody else .* with mode 770"):
        make_update(compile="default", compile_cache=tmp_path / "shared")
    assert checked_folder(tmp_path / "new").stat().st_mode & 0o777 == 0o700


#: A process that trains 20 updates of two seeds and writes losses, parameters and what Dynamo has traced; if asked,
#: then the same of an update that is compiled without a folder.
RUN = """
import sys, torch, logging
logging.basicConfig(level=logging.INFO)
sys.path.insert(0, sys.argv[3])
from conftest import ACTION, GOAL, OBSERVATION, data
from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss
from torchrl_smore.trainers import FusedUpdate
rows = data.__wrapped__() if hasattr(data, "__wrapped__") else data.__pytest_wrapped__.obj()
def make(seed):
    torch.manual_seed(seed)
    networks = make_networks(*goal_specs(OBSERVATION, GOAL, ACTION), hidden=(8,))
    return SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True)
def train(folder):
    torch._dynamo.utils.counters.clear()
    update = FusedUpdate([make(0), make(1)], GoalBatchSampler(rows, 16), seeds=(0, 1), tau=0.05, total_steps=15,
                         compile="default", compile_cache=folder)
    outs = []
    for _ in range(10):
        outs.append({name: value.clone() for name, value in update().items()})
    update.load_state_dict(update.state_dict())
    for _ in range(10):
        outs.append({name: value.clone() for name, value in update().items()})
    traced = dict(torch._dynamo.utils.counters["stats"])
    return {"outs": outs, "state": update.state_dict(), "traced": traced}
trained = [train(folder) for folder in ([sys.argv[2], None] if sys.argv[4:] == ["plain"] else [sys.argv[2]])]
torch.save(trained, sys.argv[1])
"""


def assert_same_bits(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same_bits(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            assert_same_bits(ours, theirs)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@posix
@pytest.mark.slow
def test_a_second_process_traces_nothing_and_gets_the_same_bits(tmp_path):
    # interpreters of their own: forks would have the hash seed in common, and a key must not need it
    def run(*options):
        command = [sys.executable, "-c", RUN, tmp_path / "out.pt", tmp_path / "kept", Path(__file__).parent, *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / "out.pt", weights_only=True), done.stderr

    (first,), log = run()
    assert "is kept in" in log
    assert first["traced"]["unique_graphs"] == 1
    (second, plain), log = run("plain")
    assert "was found in" in log
    assert second["traced"] == {}
    assert plain["traced"]["unique_graphs"] == 1
    for found in (first, second):
        assert_same_bits(found["outs"], plain["outs"])
        assert_same_bits(found["state"], plain["state"])
    (path,) = (tmp_path / "kept").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def kept(make_update, tmp_path, monkeypatch):
    """An update whose compiler is replaced: ``calls`` names what was run."""
    calls = []

    class Made:
        def __init__(self, name):
            self.name = name

        def __call__(self, *args):
            calls.append(self.name)
            return {"loss_value": torch.zeros(())}

    monkeypatch.setattr("torchrl_smore.trainers.compiled.traced_digest", lambda roots, settings: KEY)
    monkeypatch.setattr("torchrl_smore.trainers.compiled.compiled", lambda *args: Made("plain"))
    monkeypatch.setattr("torchrl_smore.trainers.compiled._from_bytes", lambda code, method: Made(code.decode()))
    monkeypatch.setattr("torchrl_smore.trainers.compiled.KeptMethod._make", lambda self, path, key, args: Made("made"))
    update = make_update(compile="default", compile_cache=tmp_path / "kept")
    return update, calls


BODY = pickle.dumps((b"kept", {}))


@posix
@pytest.mark.parametrize(
    ("changed", "ran"),
    [
        (lambda content: content, "kept"),
        (lambda content: content[:-1], "made"),
        (lambda content: b"", "made"),
        (lambda content: content[:20], "made"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "made"),
        (lambda content: content.replace(b"update 1", b"update 2"), "made"),
    ],
    ids=["whole", "cut", "empty", "head", "bit", "version"],
)
def test_only_a_whole_file_is_used(kept, tmp_path, changed, ran):
    update, calls = kept
    (tmp_path / "kept" / f"{KEY}.compiled").write_bytes(changed(_head(KEY, BODY) + BODY))
    update()
    assert calls == [ran]


@posix
def test_a_file_of_another_key_is_not_used(kept, tmp_path, caplog):
    update, calls = kept
    (tmp_path / "kept" / f"{KEY}.compiled").write_bytes(_head("0" * 64, BODY) + BODY)
    with caplog.at_level(logging.WARNING, logger="torchrl_smore"):
        update()
    assert calls == ["made"]
    assert "damaged or of another update" in caplog.text


@posix
def test_a_file_that_others_can_write_is_not_used(kept, tmp_path, caplog):
    update, calls = kept
    path = tmp_path / "kept" / f"{KEY}.compiled"
    path.write_bytes(_head(KEY, BODY) + BODY)
    path.chmod(0o666)
    with caplog.at_level(logging.WARNING, logger="torchrl_smore"):
        update()
    assert calls == ["made"]
    assert "cannot be read" in caplog.text


@posix
def test_another_batch_or_state_of_torch_compiles_anew(kept):
    update, calls = kept
    update()
    with torch.no_grad():
        update()
    update()
    assert calls == ["made", "plain", "plain"]


@posix
def test_a_changed_batch_size_compiles_anew(kept):
    update, calls = kept
    update()
    update.samplers[0].batch_size = 4
    update()
    assert calls == ["made", "plain"]


@posix
def test_what_cannot_be_described_is_compiled_without_a_file(kept, monkeypatch, caplog):
    update, calls = kept

    def refuse(roots, settings):
        raise UndescribedError("losses[0] is the function near")

    monkeypatch.setattr("torchrl_smore.trainers.compiled.traced_digest", refuse)
    with caplog.at_level(logging.WARNING, logger="torchrl_smore"):
        update()
    assert calls == ["plain"]
    assert "is not kept: " in caplog.text
    assert "the function near" in caplog.text
