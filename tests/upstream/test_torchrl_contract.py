"""TorchRL's own test base class applied to the losses of this package.

It lives in TorchRL's repository and not in its wheel. To run this file:

    git clone https://github.com/pytorch/rl
    TORCHRL_TEST_DIR=rl/test/objectives pytest tests/upstream
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss

_FOLDER = os.environ.get("TORCHRL_TEST_DIR")
if not _FOLDER:
    pytest.skip("TORCHRL_TEST_DIR is not set to rl/test/objectives of a clone of pytorch/rl", allow_module_level=True)
if not (Path(_FOLDER) / "_objectives_common.py").is_file():
    pytest.fail(f"TORCHRL_TEST_DIR={_FOLDER} holds no _objectives_common.py", pytrace=False)
sys.path.insert(0, str(Path(_FOLDER).resolve()))
from _objectives_common import LossModuleTestBase  # noqa: E402

# upstream's helpers build locked parameters and class-scoped fixtures that newer versions announce changes for
pytestmark = pytest.mark.filterwarnings("default")

FORMULATIONS = ("in_sample", "dual", "official", "official_stable")


class TestSMORE(LossModuleTestBase):
    """The conventional list; each test does what upstream's test of the same name does for ``IQLLoss``."""

    def _loss(self, **kwargs):
        networks = make_networks(*goal_specs(3, 2, 2), hidden=(8,))
        loss = SMORELoss(networks.actor, networks.score, networks.value, **kwargs)
        if loss.delay_score:
            SoftUpdate(loss, tau=0.05)
        return loss

    def _batch(self, size=8):
        def rows():
            return TensorDict(
                {
                    "observation": torch.randn(size, 3),
                    "desired_goal": torch.randn(size, 2),
                    "action": torch.randn(size, 2),
                    ("next", "observation"): torch.randn(size, 3),
                },
                [size],
            )

        return rows().set("q", rows())

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_reset_parameters_recursive(self, formulation):
        self.reset_parameters_recursive_test(self._loss(formulation=formulation))

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_smore_tensordict_keys(self, formulation):
        loss = self._loss(formulation=formulation)
        self.tensordict_keys_test(loss, default_keys=dict(vars(loss.default_keys())))

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_smore_notensordict(self, formulation):
        loss, batch = self._loss(formulation=formulation), self._batch()
        entries = {key.replace(".", "_"): value for key, value in batch.flatten_keys(".").items()}
        if formulation.startswith("official"):
            entries.pop("q_next_observation")  # no residual on goal transitions
        assert set(self._flatten_in_keys(loss.in_keys)) == set(entries)
        expected = loss(batch)
        torch.testing.assert_close(loss(**entries), tuple(expected[key] for key in loss.out_keys))
        loss.select_out_keys("loss_actor", "loss_value")
        torch.testing.assert_close(loss(**entries), (expected["loss_actor"], expected["loss_value"]))
