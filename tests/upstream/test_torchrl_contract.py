"""What TorchRL's test_objectives asks of a loss, asked of every public loss of this package.

The cases are those of TorchRL's own loss tests, one method each; what a loss does not claim is skipped with the reason.
Two of them are methods of ``LossModuleTestBase``, which lies in TorchRL's repository and not in its wheel:

    git clone https://github.com/pytorch/rl
    TORCHRL_CLONE=rl pytest tests/upstream
"""

from __future__ import annotations

import inspect
from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict, assert_allclose_td
from tensordict.nn import TensorDictParams
from torch import nn
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.objectives import HardUpdate, LossModule, SoftUpdate
from torchrl.objectives.utils import ValueEstimators

from torchrl_smore import objectives

TAU, HARD_INTERVAL = 0.1, 3


def arguments(batch):
    return {key.replace(".", "_"): value for key, value in batch.flatten_keys(".").items()}


def losses_of(out):
    return {key: value for key, value in out.items() if key.startswith("loss_")}


def targets_of(loss):
    """Target parameters by name; an empty dict where the loss has none of its own."""
    return {
        name: value
        for name, value in vars(loss)["_modules"].items()
        if name.startswith("target_") and isinstance(value, TensorDictParams)
    }


def ensembles_of(loss):
    return [name for name in loss._modules if name.endswith("_params") and loss._modules[name].ndim]


def with_targets(loss):
    if not targets_of(loss):
        pytest.skip(f"{type(loss).__name__} has no target network in this form")
    return loss


def with_ensemble(loss):
    if not ensembles_of(loss):
        pytest.skip(f"{type(loss).__name__} has no ensemble in this form: there is nothing to vmap over")
    return loss


def changed(loss):
    """The same loss with every trainable parameter moved."""
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += torch.randn_like(parameter)
    return loss


class TestLoss:
    """One method for each case, run for every loss."""

    def test_the_cases_cover_every_public_loss(self, build):
        from smore_objectives_fixtures import CASES

        built = [type(build(name)) for name in CASES]
        public = {getattr(objectives, name) for name in objectives.__all__}
        losses = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, LossModule)}
        covered = {kind for kind in losses if any(issubclass(one, kind) for one in built)}
        assert losses == covered

    def test_reset_parameters_recursive(self, case, build, upstream_base):
        upstream_base.reset_parameters_recursive_test(build(case))

    def test_tensordict_keys(self, case, build, upstream_base):
        loss = build(case)
        upstream_base.tensordict_keys_test(loss, dict(vars(loss.default_keys())))

    def test_tensordict(self, case, build, batch_for, total):
        loss = build(case)
        batch = batch_for(loss)
        before = batch.clone()
        out = loss(batch)
        assert_allclose_td(batch, before)
        assert set(out.keys()) == set(loss.out_keys)
        total(out).backward()
        for name, parameter in loss.named_parameters():
            assert not name.startswith("target_")
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
        for name, target in targets_of(loss).items():
            assert all(value.grad is None for value in target.values(True, True)), name

    def test_notensordict(self, case, build, batch_for):
        loss = build(case)
        batch = batch_for(loss)
        flat = ["_".join([key] if isinstance(key, str) else key) for key in loss.in_keys]
        assert sorted(flat) == sorted(arguments(batch))
        expected = loss(batch)
        out = loss(**arguments(batch))
        torch.testing.assert_close(out if isinstance(out, tuple) else (out,), tuple(expected[k] for k in loss.out_keys))
        first = next(iter(losses_of(expected)))
        loss.select_out_keys(first)
        torch.testing.assert_close(loss(**arguments(batch)), expected[first])

    def test_set_keys_before_and_after_a_call(self, case, build, batch_for):
        loss = build(case)
        expected = loss(batch_for(loss))
        keys = {name: ("renamed", name) for name in vars(loss.default_keys()) if vars(loss.tensor_keys)[name]}
        renamed = build(case, keys=keys)
        renamed.load_state_dict(loss.state_dict())
        assert set(renamed.in_keys) != set(loss.in_keys) or not keys
        out = renamed(batch_for(renamed))
        for key, value in losses_of(expected).items():
            torch.testing.assert_close(out[key], value)
        renamed.set_keys(**dict.fromkeys(keys))
        assert renamed.tensor_keys == loss.tensor_keys

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_reduction(self, case, reduction, build, batch_for):
        loss = build(case, reduction=reduction, scalar_output_mode="exclude")
        batch = batch_for(loss)
        for key, value in losses_of(loss(batch)).items():
            assert value.shape == (batch.shape if reduction == "none" else ()), key

    def test_state_dict(self, case, build, batch_for):
        loss, other = build(case), changed(build(case))
        state = deepcopy(loss.state_dict())
        other.load_state_dict(state)
        batch = batch_for(loss)
        expected, out = loss(batch), other(batch)
        for key, value in losses_of(expected).items():
            torch.testing.assert_close(out[key], value, rtol=0.0, atol=0.0)
        changed(loss)
        assert any(not torch.equal(value, loss.state_dict()[name]) for name, value in state.items() if value.ndim)

    def test_targets_stay_when_parameters_move(self, case, build):
        loss = with_targets(build(case))
        before = {name: value.clone() for name, value in targets_of(loss).items()}
        changed(loss)
        for name, value in targets_of(loss).items():
            assert (value == before[name]).all(), name

    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_target_updates(self, case, kind, build):
        loss = with_targets(build(case, updater=False))
        updater = (
            SoftUpdate(loss, tau=TAU)
            if kind == "soft"
            else HardUpdate(loss, value_network_update_interval=HARD_INTERVAL)
        )
        changed(loss)
        names = list(targets_of(loss))
        live = {name: loss._modules[name.removeprefix("target_")].data.clone() for name in names}
        before = {name: targets_of(loss)[name].data.clone() for name in names}
        # TorchRL counts from 0: so many steps lie between two hard updates
        for step in range(1, HARD_INTERVAL + 2):
            updater.step()
            for name in names:
                if kind == "hard":
                    expected = live[name] if step > HARD_INTERVAL else before[name]
                else:
                    share = (1.0 - TAU) ** step
                    expected = before[name] * share + live[name] * (1.0 - share)
                assert_allclose_td(targets_of(loss)[name].data, expected, rtol=1e-5, atol=1e-6)
        assert_allclose_td(loss._modules[names[0].removeprefix("target_")].data, live[names[0]])

    def test_deactivate_vmap(self, case, build, batch_for, total):
        loss = with_ensemble(build(case))
        looped = build(case, deactivate_vmap=True)
        looped.load_state_dict(loss.state_dict())
        batch = batch_for(loss)
        out, other = loss(batch), looped(batch)
        for key, value in out.items():
            torch.testing.assert_close(other[key], value)
        total(out).backward()
        total(other).backward()
        for (name, one), (_, two) in zip(loss.named_parameters(), looped.named_parameters()):
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)

    def test_ensemble_members_differ_and_each_is_trained(self, case, build, batch_for, total):
        loss = with_ensemble(build(case))
        total(loss(batch_for(loss))).backward()
        for name in ensembles_of(loss):
            if name.startswith("target_"):
                continue
            for key, value in loss._modules[name].items(True, True):
                assert not value.requires_grad or not torch.equal(value[0], value[1]) or not value.any(), key
            grads = [value.grad for value in loss._modules[name].values(True, True) if value.grad is not None]
            assert grads
            for member in range(len(grads[0])):
                assert any(bool(grad[member].any()) for grad in grads), f"{name}[{member}]"

    def test_vmap_randomness(self, case, build):
        loss = with_ensemble(build(case))
        assert loss.vmap_randomness == "error"
        loss.set_vmap_randomness("different")
        assert loss.vmap_randomness == "different"

    def test_vmap_over_stacked_parameters(self, case, build, batch_for):
        losses = [build(case) for _ in range(2)]
        batches = [batch_for(loss, seed=seed) for seed, loss in enumerate(losses)]
        expected = [losses_of(deepcopy(loss)(batch)) for loss, batch in zip(losses, batches)]
        stacked = TensorDict.from_modules(*losses, as_module=False, lock=False)

        def run(parameters, batch):
            with parameters.to_module(losses[0], preserve_module_state=False):
                return losses[0](batch)

        out = torch.vmap(run, randomness="different")(stacked, torch.stack(batches))
        for number, values in enumerate(expected):
            for key, value in values.items():
                torch.testing.assert_close(out[key][number], value, rtol=1e-4, atol=1e-5)

    def test_functional(self, case, build, batch_for):
        """Parameters live in ``*_params`` and nowhere else: what a network itself holds plays no part."""
        loss = build(case)
        assert loss.functional
        batch = batch_for(loss)
        expected = losses_of(loss(batch))
        networks = [name.removesuffix("_params") for name in loss._modules if not name.startswith("target_")]
        networks = [name for name in networks if isinstance(vars(loss).get(name), nn.Module)]
        assert networks
        for name in networks:
            assert name not in loss._modules
            for module in vars(loss)[name].modules():
                for key, value in module._parameters.items():
                    if value is not None:
                        module._parameters[key] = nn.Parameter(torch.full_like(value, torch.nan))
        for key, value in losses_of(loss(batch)).items():
            torch.testing.assert_close(value, expected[key], rtol=0.0, atol=0.0)

    def test_functional_copies_are_frozen(self, case, build, batch_for):
        loss = build(case)
        if "functional" in inspect.signature(type(loss).__init__).parameters:
            pytest.fail("a loss that takes functional=False needs a case of it here")
        expected = losses_of(loss(batch_for(loss)))
        copy = deepcopy(loss)
        changed(copy)
        for key, value in losses_of(loss(batch_for(loss))).items():
            torch.testing.assert_close(value, expected[key], rtol=0.0, atol=0.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    def test_parameters_and_buffers_keep_apart_when_cast(self, case, dtype, build):
        loss = build(case)
        parameters, buffers = set(loss.parameters()), dict(loss.named_buffers())
        assert not parameters & set(buffers.values())
        loss.to(dtype)
        # the same parameters, so that an optimiser made before still holds them
        assert set(loss.parameters()) == parameters
        assert list(dict(loss.named_buffers())) == list(buffers)
        for name, parameter in loss.named_parameters():
            assert isinstance(parameter, nn.Parameter), name
            assert parameter.dtype == dtype, name
        for name, value in loss.named_buffers():
            assert not isinstance(value, nn.Parameter), name
            assert not value.requires_grad, name
            assert value.dtype == (dtype if buffers[name].is_floating_point() else buffers[name].dtype), name
        for name, target in targets_of(loss).items():
            for key, value in target.items(True, True):
                assert f"{name}.{'.'.join(key if isinstance(key, tuple) else (key,))}" in buffers, key
                assert value.dtype == dtype, key

    def test_make_value_estimator(self, case, build):
        """No loss of this package claims one: the bootstrap is part of each objective."""
        loss = build(case)
        assert loss.default_value_estimator is None
        for kind in ValueEstimators:
            with pytest.raises(NotImplementedError):
                loss.make_value_estimator(kind)

    def test_weights_update(self, case, build, batch_for, total):
        """An optimiser step moves every network that has a loss, and no target and no coefficient."""
        loss = build(case)
        batch = batch_for(loss)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
        before = deepcopy(loss.state_dict())
        buffers = {name for name, _ in loss.named_buffers()}
        out = loss(batch)
        kept = deepcopy(loss.state_dict())
        total(out).backward()
        optimizer.step()
        after = loss.state_dict()
        moved = {name for name, value in kept.items() if not value.allclose(after[name], 0.0, 0.0, equal_nan=True)}
        assert moved
        for name in moved:
            assert not name.startswith("target_"), name
            assert name.split(".")[0].endswith("_params"), name
        trained = {name.split(".")[0] for name in moved}
        assert trained == {
            name for name in loss._modules if name.endswith("_params") and not name.startswith("target_")
        }
        assert set(before) == set(after)
        assert not moved & buffers

    def test_single_losses_reach_their_own_networks_only(self, case, build, batch_for):
        loss = build(case)
        out = loss(batch_for(loss))
        reached = {}
        for key, value in losses_of(out).items():
            loss.zero_grad()
            value.backward(retain_graph=True)
            reached[key] = {
                name.split(".")[0]
                for name, parameter in loss.named_parameters()
                if parameter.grad is not None and bool(parameter.grad.any())
            }
            assert len(reached[key]) == 1, f"{key} reaches {sorted(reached[key])}"
        assert len({next(iter(names)) for names in reached.values()}) == len(reached)

    def test_exploration(self, case, build, batch_for, monkeypatch):
        """Inside a loss actors are in the mode that the loss names, whatever it is outside."""
        loss = build(case)
        actor = vars(loss).get("actor_network")
        if actor is None:
            pytest.skip(f"{type(loss).__name__} has no actor")
        seen = []
        actor.register_forward_pre_hook(lambda *_: seen.append(exploration_type()))
        for name in ("get_dist", "forward"):
            if hasattr(actor, name):
                original = getattr(actor, name)
                monkeypatch.setattr(
                    actor, name, lambda *a, _f=original, **k: (seen.append(exploration_type()), _f(*a, **k))[1]
                )
        with set_exploration_type(ExplorationType.RANDOM):
            loss(batch_for(loss))
            assert exploration_type() == ExplorationType.RANDOM
        assert seen
        assert set(seen) == {loss.deterministic_sampling_mode}

    def test_schedulable_coefficients(self, case, build):
        loss = build(case)
        names = [name for name, value in loss.named_buffers(recurse=False) if value.ndim == 0]
        names = [name for name in names if loss._buffers[name].is_floating_point()]
        if not names:
            pytest.skip(f"{type(loss).__name__} has no scalar coefficient in this form")
        for name in names:
            buffer = loss._buffers[name]
            setattr(loss, name, 0.25)
            assert loss._buffers[name] is buffer
            assert buffer.item() == 0.25
