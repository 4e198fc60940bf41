"""Small losses of every kind and batches that hold exactly what each of them reads."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.modules import IndependentNormal, ProbabilisticActor
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_smore.modules import ConcatMLP, GaussianHead
from torchrl_smore.objectives import ActionFreeSMORELoss, AWRActorLoss, ExpectileValueLoss, ScoreLoss, SMORELoss

OBSERVATION, GOAL, ACTION = 3, 2, 2
HIDDEN = (6,)


def score_nets(keys, num=2):
    inputs = ["observation", keys.get("desired_goal", "desired_goal"), keys.get("action", "action")]
    outputs = [keys.get("score", "score")]
    return [TensorDictModule(ConcatMLP(OBSERVATION + GOAL + ACTION, 1, HIDDEN), inputs, outputs) for _ in range(num)]


def value_net(keys):
    inputs = ["observation", keys.get("desired_goal", "desired_goal")]
    return TensorDictModule(ConcatMLP(OBSERVATION + GOAL, 1, HIDDEN), inputs, [keys.get("value", "state_value")])


def actor_net(keys):
    head = GaussianHead(ConcatMLP(OBSERVATION + GOAL, ACTION, HIDDEN), ACTION)
    return ProbabilisticActor(
        TensorDictModule(head, ["observation", keys.get("desired_goal", "desired_goal")], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[keys.get("action", "action")],
        distribution_class=IndependentNormal,
        return_log_prob=False,
    )


def _smore(keys, **kwargs):
    num = kwargs.get("num_score_nets", 2)
    return SMORELoss(actor_net(keys), score_nets(keys, num), value_net(keys), **kwargs)


def _action_free(keys, **kwargs):
    return ActionFreeSMORELoss(value_net(keys), actor_net(keys), **kwargs)


#: name -> (builder, keyword arguments)
CASES = {
    "value": (lambda keys, **kw: ExpectileValueLoss(value_net(keys), **kw), {}),
    "actor": (lambda keys, **kw: AWRActorLoss(actor_net(keys), **kw), {}),
    "score": (lambda keys, **kw: ScoreLoss(score_nets(keys), **kw), {}),
    "score_dual": (lambda keys, **kw: ScoreLoss(score_nets(keys), **kw), {"formulation": "dual"}),
    "smore": (_smore, {}),
    "smore_one_score": (_smore, {"num_score_nets": 1}),
    "smore_no_target": (_smore, {"delay_score": False}),
    "smore_dual": (_smore, {"formulation": "dual", "divergence": "kl"}),
    "smore_dual_policy": (_smore, {"formulation": "dual", "bootstrap": "policy"}),
    "smore_official": (_smore, {"formulation": "official"}),
    "smore_official_stable": (_smore, {"formulation": "official_stable"}),
    "action_free": (lambda keys, **kw: ActionFreeSMORELoss(value_net(keys), **kw), {}),
    "action_free_actor": (_action_free, {}),
    "action_free_corrected": (_action_free, {"constraint": "corrected"}),
}


@pytest.fixture(params=CASES)
def case(request):
    """Name of a loss and of its options; a test that asks for it runs once for each."""
    return request.param


@pytest.fixture
def build():
    """Builds a loss by name, its networks and keys named by ``keys``, with an updater if it has target parameters."""

    def build_loss(name: str, *, keys: dict | None = None, updater: bool = True, **kwargs) -> LossModule:
        builder, options = CASES[name]
        loss = builder(keys or {}, **{**options, **kwargs})
        if keys:
            loss.set_keys(**keys)
        if updater and getattr(loss, "delay_score", False):
            SoftUpdate(loss, tau=0.1)
        return loss

    return build_loss


@pytest.fixture
def batch_for():
    """Makes a batch of what a loss reads and nothing else; the values do not depend on the names of the keys."""

    def make(loss: LossModule, size: int | tuple[int, ...] = 8, seed: int = 0, **extra) -> TensorDictBase:
        generator = torch.Generator().manual_seed(seed)
        size = (size,) if isinstance(size, int) else size
        names = {"desired_goal": "desired_goal", "action": "action", **vars(loss.tensor_keys)}

        def draw(features: int) -> torch.Tensor:
            return torch.randn(*size, features, generator=generator)

        def rows() -> TensorDict:
            policy_action = names.get("policy_action", "policy_action")
            policy_action = policy_action if isinstance(policy_action, tuple) else (policy_action,)
            out = TensorDict(batch_size=size)
            out.set("observation", draw(OBSERVATION))
            out.set(("next", "observation"), draw(OBSERVATION))
            out.set(names["desired_goal"], draw(GOAL))
            out.set(names["action"], draw(ACTION))
            out.set(names.get("advantage", "advantage"), draw(1))
            out.set(names.get("target_score", "target_score"), draw(1))
            out.set(names.get("next_value", ("next", "state_value")), draw(1))
            out.set(names.get("ratio", "mixture_ratio"), draw(1).sigmoid() * 2.0)
            out.set(policy_action, draw(ACTION))
            out.set(("next", *policy_action), draw(ACTION))
            return out

        batch = rows()
        batch.set(names.get("q", "q"), rows())
        return batch.select(*loss.in_keys).update(extra)

    return make


@pytest.fixture
def total():
    """Sum of the losses of an output, as a trainer forms it."""

    def add(out: TensorDictBase) -> torch.Tensor:
        return sum(value for key, value in out.items() if key.startswith("loss_"))

    return add
