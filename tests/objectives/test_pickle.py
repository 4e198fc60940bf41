"""Losses are copied, saved whole and sent to other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest
import torch
from tensordict import TensorDict

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss


def make_loss(**options):
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(8,))
    loss = SMORELoss(networks.actor, networks.score, networks.value, **options)
    loss.target_networks_updated = True
    return loss


def make_batch():
    torch.manual_seed(1)

    def rows():
        following = TensorDict({"observation": torch.randn(6, 3)}, [6])
        values = {"observation": torch.randn(6, 3), "action": torch.rand(6, 2), "desired_goal": torch.randn(6, 2)}
        return TensorDict({**values, "next": following}, [6])

    return TensorDict({**rows().to_dict(), "q": rows()}, [6])


def through_pickle(loss, path):
    return pickle.loads(pickle.dumps(loss))


def through_a_file(loss, path):
    torch.save(loss, path / "loss.pt")
    return torch.load(path / "loss.pt", weights_only=False)


def through_a_copy(loss, path):
    return copy.deepcopy(loss)


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("way", [through_pickle, through_a_file, through_a_copy])
@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_a_loss_comes_back_as_it_was_and_on_its_own(tmp_path, way, deactivate_vmap):
    loss, batch = make_loss(deactivate_vmap=deactivate_vmap), make_batch()
    want = loss(batch)
    other = way(loss, tmp_path)
    out = other(batch)
    assert set(out.keys()) == set(want.keys())
    for key, value in want.items():
        torch.testing.assert_close(out[key], value)
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert all(parameter.grad is None for parameter in loss.parameters())
    other.set_vmap_randomness("different")
    other(batch)


def answer(loss, batch, results):
    results.put(float(loss(batch)["loss_score"].detach()))


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_a_loss_is_sent_to_a_spawned_process():
    loss, batch = make_loss(), make_batch()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=answer, args=(loss, batch, results))
    process.start()
    found = results.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    torch.testing.assert_close(found, float(loss(batch)["loss_score"].detach()))
