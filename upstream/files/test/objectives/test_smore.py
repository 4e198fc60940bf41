# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import dataclasses
import importlib.util
import inspect

import pytest
import torch
from _objectives_common import _check_td_steady, LossModuleTestBase
from tensordict import assert_allclose_td, TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import HardUpdate, SMORELoss, SoftUpdate
from torchrl.testing import get_default_devices

_has_hydra = importlib.util.find_spec("hydra") is not None

FORMULATIONS = ["in_sample", "dual", "official", "official_stable"]


class _Joined(nn.Module):
    """A network of several inputs, with one sub-module for all of them."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        return self.network(torch.cat(inputs, -1))


class TestSMORE(LossModuleTestBase):
    seed = 0
    obs_dim, goal_dim, action_dim = 3, 2, 4

    def _create_mock_actor(self, device="cpu", goal_key="desired_goal"):
        net = nn.Sequential(
            nn.Linear(self.obs_dim + self.goal_dim, 2 * self.action_dim),
            NormalParamExtractor(),
        )
        module = TensorDictModule(
            _Joined(net), in_keys=["observation", goal_key], out_keys=["loc", "scale"]
        )
        actor = ProbabilisticActor(
            module=module,
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
        )
        return actor.to(device)

    def _create_mock_score(
        self, device="cpu", goal_key="desired_goal", out_key="score"
    ):
        module = MLP(self.obs_dim + self.goal_dim + self.action_dim, 1, num_cells=[8])
        return ValueOperator(
            module, in_keys=["observation", goal_key, "action"], out_keys=[out_key]
        ).to(device)

    def _create_mock_value(
        self, device="cpu", goal_key="desired_goal", out_key="state_value"
    ):
        module = MLP(self.obs_dim + self.goal_dim, 1, num_cells=[8])
        return ValueOperator(
            module, in_keys=["observation", goal_key], out_keys=[out_key]
        ).to(device)

    def _create_mock_data_smore(self, batch=8, device="cpu", goal_key="desired_goal"):
        def rows():
            return TensorDict(
                {
                    "observation": torch.randn(batch, self.obs_dim),
                    goal_key: torch.randn(batch, self.goal_dim),
                    "action": torch.randn(batch, self.action_dim).clamp(-0.9, 0.9),
                    "next": {"observation": torch.randn(batch, self.obs_dim)},
                },
                batch_size=[batch],
                device=device,
            )

        return rows().set("q", rows())

    def _create_loss(self, device="cpu", **kwargs):
        loss = SMORELoss(
            self._create_mock_actor(device),
            self._create_mock_score(device),
            self._create_mock_value(device),
            **kwargs,
        )
        if loss.delay_score:
            SoftUpdate(loss, tau=0.05)
        return loss

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_reset_parameters_recursive(self, formulation):
        self.reset_parameters_recursive_test(self._create_loss(formulation=formulation))

    @pytest.mark.parametrize("device", get_default_devices())
    @pytest.mark.parametrize("formulation", FORMULATIONS)
    @pytest.mark.parametrize("num_score_nets", [1, 2])
    @pytest.mark.parametrize("delay_score", [True, False])
    def test_smore(self, formulation, num_score_nets, delay_score, device):
        torch.manual_seed(self.seed)
        loss_fn = self._create_loss(
            device,
            formulation=formulation,
            num_score_nets=num_score_nets,
            delay_score=delay_score,
        )
        td = self._create_mock_data_smore(device=device)
        with _check_td_steady(td):
            loss = loss_fn(td)
        assert set(loss.keys()) == set(loss_fn.out_keys)

        # each loss reaches the parameters of one network
        for name in ("actor", "value", "score"):
            loss_fn.zero_grad()
            loss[f"loss_{name}"].backward(retain_graph=True)
            for key, p in loss_fn.named_parameters():
                if key.startswith(f"{name}_network_params"):
                    continue
                assert p.grad is None or (p.grad == 0).all(), f"{name}: {key}"
            assert any(
                p.grad is not None and (p.grad != 0).any()
                for key, p in loss_fn.named_parameters()
                if key.startswith(f"{name}_network_params")
            )
        for key, value in loss.items():
            assert value.requires_grad == key.startswith("loss_"), key

    def test_smore_in_sample_score_loss(self):
        """The score loss of constant networks, worked out by hand (Eq. 10 in sample)."""
        beta, gamma, coef = 0.5, 0.9, 0.25
        loss_fn = self._create_loss(
            num_score_nets=1,
            beta=beta,
            gamma=gamma,
            residual_coef=coef,
            score_bounds=None,
            delay_score=False,
        )
        # S = 3 and M = 2 everywhere
        with torch.no_grad():
            for params, constant in (
                (loss_fn.score_network_params, 3.0),
                (loss_fn.value_network_params, 2.0),
            ):
                params.apply_(lambda p: p.zero_())
                biases = [k for k in params.keys(True, True) if k[-1] == "bias"]
                params.get(max(biases, key=lambda k: k[-2])).fill_(constant)
        residual = gamma * 2.0 - 3.0
        # each mean of the mixture weighs q by beta and rho by 1 - beta
        expected = beta * (1 - gamma) * 3.0 - beta * 3.0 + coef * residual**2
        loss = loss_fn(self._create_mock_data_smore())
        torch.testing.assert_close(loss["loss_score"], torch.tensor(expected))

    def test_smore_deactivate_vmap(self):
        torch.manual_seed(self.seed)
        loss_vmap = self._create_loss()
        loss_loop = self._create_loss(deactivate_vmap=True)
        loss_loop.load_state_dict(loss_vmap.state_dict())
        td = self._create_mock_data_smore()
        assert_allclose_td(loss_vmap(td), loss_loop(td), rtol=1e-5, atol=1e-5)

    def test_smore_state_dict(self):
        torch.manual_seed(self.seed)
        loss_fn, loss_fn2 = self._create_loss(), self._create_loss()
        loss_fn2.load_state_dict(loss_fn.state_dict())
        td = self._create_mock_data_smore()
        assert_allclose_td(loss_fn(td), loss_fn2(td))

    def test_smore_tensordict_keys(self):
        loss_fn = self._create_loss()
        self.tensordict_keys_test(
            loss_fn, default_keys=dict(vars(loss_fn.default_keys()))
        )

    @pytest.mark.parametrize("nested", [False, True])
    def test_smore_set_keys(self, nested):
        torch.manual_seed(self.seed)
        loss_fn = self._create_loss()
        td = self._create_mock_data_smore()
        expected = loss_fn(td)
        goal, score, value, q_key = (
            ("agent", name) if nested else name for name in ("goal", "s", "m", "other")
        )
        other = SMORELoss(
            self._create_mock_actor(goal_key=goal),
            self._create_mock_score(goal_key=goal, out_key=score),
            self._create_mock_value(goal_key=goal, out_key=value),
        )
        SoftUpdate(other, tau=0.05)
        other.set_keys(desired_goal=goal, score=score, value=value, q=q_key)
        other.load_state_dict(loss_fn.state_dict())
        q = td.pop("q").rename_key_("desired_goal", goal)
        td.rename_key_("desired_goal", goal).set(q_key, q)
        assert_allclose_td(other(td), expected)

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_smore_notensordict(self, formulation):
        torch.manual_seed(self.seed)
        loss_fn = self._create_loss(formulation=formulation)
        td = self._create_mock_data_smore()
        expected = loss_fn(td)
        flat = td.select(*loss_fn.in_keys).flatten_keys("_")
        assert sorted(flat.keys()) == sorted(self._flatten_in_keys(loss_fn.in_keys))
        values = loss_fn(**flat.to_dict())
        for key, value in zip(loss_fn.out_keys, values):
            torch.testing.assert_close(value, expected[key])
        loss_fn.select_out_keys("loss_actor", "loss_value")
        loss_actor, loss_value = loss_fn(**flat.to_dict())
        torch.testing.assert_close(loss_actor, expected["loss_actor"])
        torch.testing.assert_close(loss_value, expected["loss_value"])

    @pytest.mark.parametrize("reduction", [None, "none", "mean", "sum"])
    def test_smore_reduction(self, reduction):
        torch.manual_seed(self.seed)
        loss_fn = self._create_loss(reduction=reduction, scalar_output_mode="exclude")
        td = self._create_mock_data_smore()
        loss = loss_fn(td)
        for key in ("loss_actor", "loss_value", "loss_score"):
            assert loss[key].shape == (td.shape if reduction == "none" else ())

    @pytest.mark.parametrize("updater", ["soft", "hard"])
    def test_smore_target_update(self, updater):
        torch.manual_seed(self.seed)
        loss_fn = SMORELoss(
            self._create_mock_actor(),
            self._create_mock_score(),
            self._create_mock_value(),
        )
        if updater == "soft":
            step = SoftUpdate(loss_fn, tau=0.25)
        else:
            step = HardUpdate(loss_fn, value_network_update_interval=1)
        before = loss_fn.target_score_network_params.data.clone()
        with torch.no_grad():
            for p in loss_fn.parameters():
                p += 1.0
        assert_allclose_td(loss_fn.target_score_network_params.data, before)
        # a hard update comes after the interval: with the second step
        for _ in range(1 if updater == "soft" else 2):
            step.step()
        moved = before + (0.25 if updater == "soft" else 1.0) * (
            loss_fn.score_network_params.data - before
        )
        assert_allclose_td(loss_fn.target_score_network_params.data, moved)

    @pytest.mark.skipif(not _has_hydra, reason="hydra is not installed")
    def test_smore_config(self):
        """Fields of the config are the arguments of the loss, with their defaults."""
        from torchrl.trainers.algorithms.configs import SMORELossConfig

        parameters = inspect.signature(SMORELoss.__init__).parameters
        fields = {field.name: field for field in dataclasses.fields(SMORELossConfig)}
        assert fields.pop("_target_").default == "torchrl.objectives.SMORELoss"
        fields.pop("_partial_")
        assert list(fields) == [name for name in parameters if name != "self"]
        for name, field in fields.items():
            default = parameters[name].default
            if default is inspect.Parameter.empty:
                default = None
            assert field.default == default, name

    @pytest.mark.parametrize(
        "kwargs, match",
        [
            ({"formulation": "in-sample"}, "formulation"),
            ({"divergence": "chi3"}, "divergence"),
            ({"beta": 0.0}, "beta"),
            ({"expectile": 1.0}, "expectile"),
            ({"temperature": -1.0}, "temperature"),
            ({"gamma": 1.0}, "gamma"),
            ({"reduction": "average"}, "reduction"),
        ],
    )
    def test_smore_bad_arguments(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            self._create_loss(**kwargs)


if __name__ == "__main__":
    pytest.main([__file__, "--capture", "no", "--exitfirst"])
