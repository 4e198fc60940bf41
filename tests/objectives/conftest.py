"""Small losses of every kind and batches that hold exactly what each of them reads."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.modules import IndependentNormal, ProbabilisticActor
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_smore.modules import ConcatMLP, GaussianHead, PairEmbedding, TanhMLP
from torchrl_smore.objectives import (
    ActionableModelsLoss,
    ActionFreeSMORELoss,
    AWRActorLoss,
    ContrastiveRLLoss,
    ContrastiveTDLoss,
    ExpectileValueLoss,
    GCEQLLoss,
    GCIQLLoss,
    GCSLLoss,
    GCSQLLoss,
    GCXQLLoss,
    GoFARLoss,
    ScoreLoss,
    SMORELoss,
    WGCSLLoss,
)

OBSERVATION, GOAL, ACTION = 3, 2, 2
HIDDEN = (6,)
ORIGINAL_WGCSL = {
    "threshold": "percentile",
    "advantage": "online",
    "threshold_step": 1.0,
}


def score_nets(keys, num=2):
    inputs = ["observation", keys.get("desired_goal", "desired_goal"), keys.get("action", "action")]
    outputs = [keys.get("score", keys.get("qvalue", "score"))]
    return [TensorDictModule(ConcatMLP(OBSERVATION + GOAL + ACTION, 1, HIDDEN), inputs, outputs) for _ in range(num)]


def value_net(keys):
    inputs = ["observation", keys.get("desired_goal", "desired_goal")]
    return TensorDictModule(ConcatMLP(OBSERVATION + GOAL, 1, HIDDEN), inputs, [keys.get("value", "state_value")])


def actor_net(keys, bounds=None):
    limits = () if bounds is None else (torch.full((ACTION,), bound) for bound in bounds)
    head = GaussianHead(ConcatMLP(OBSERVATION + GOAL, ACTION, HIDDEN), ACTION, *limits)
    return ProbabilisticActor(
        TensorDictModule(head, ["observation", keys.get("desired_goal", "desired_goal")], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[keys.get("action", "action")],
        distribution_class=IndependentNormal,
        return_log_prob=False,
    )


class Deterministic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = ConcatMLP(OBSERVATION + GOAL, ACTION, HIDDEN)

    def forward(self, observation, goal):
        return self.trunk(observation, goal).tanh()


def deterministic_net(keys):
    inputs = ["observation", keys.get("desired_goal", "desired_goal")]
    return TensorDictModule(Deterministic(), inputs, [keys.get("action", "action")])


def _smore(keys, **kwargs):
    num = kwargs.get("num_score_nets", 2)
    return SMORELoss(actor_net(keys), score_nets(keys, num), value_net(keys), **kwargs)


def _action_free(keys, **kwargs):
    return ActionFreeSMORELoss(value_net(keys), actor_net(keys), **kwargs)


def _in_sample(kind):
    return lambda keys, **kw: kind(actor_net(keys), score_nets(keys, kw.pop("num", 2)), value_net(keys), **kw)


def _wgcsl(keys, **kw):
    loss = WGCSLLoss(deterministic_net(keys), score_nets(keys, 1), **kw)
    if loss.threshold == "percentile":
        # half of the remembered advantages lie below 0; the memory moves in training mode only
        loss.advantage_memory[:5], loss.num_updates[...] = torch.linspace(-1.0, 1.0, 5), 50
        loss.eval()
    return loss


class RepeatableGoFAR(GoFARLoss):
    """Random numbers are a function of the row, so that equal rows give equal losses."""

    def _draw_uniform(self, like):
        return like[..., :1].sigmoid()


def _gofar(keys, **kw):
    discriminator = None
    if kw.get("reward") != "binary":
        inputs = [keys.get("achieved_goal", "achieved_goal"), keys.get("desired_goal", "desired_goal")]
        discriminator = TensorDictModule(TanhMLP(2 * GOAL, 1, HIDDEN), inputs, [keys.get("logit", "logit")])
    actor = actor_net(keys) if kw.get("regression") == "nll" else deterministic_net(keys)
    return RepeatableGoFAR(actor, value_net(keys), discriminator, **kw)


class RepeatableContrastiveTD(ContrastiveTDLoss):
    def _draw_action(self, dist):
        return dist.mean + 0.1 * dist.stddev


def pair_net(keys, inputs, num_inputs):
    module = PairEmbedding(ConcatMLP(num_inputs, 4, HIDDEN), ConcatMLP(GOAL, 4, HIDDEN))
    inputs = [*inputs, keys.get("desired_goal", "desired_goal")]
    return TensorDictModule(module, inputs, [keys.get("embedding", "embedding")])


def _contrastive(keys, td=False, num=2, bounds=None, **kw):
    inputs = ["observation", keys.get("action", "action")]
    critic = [pair_net(keys, inputs, OBSERVATION + ACTION) for _ in range(num)]
    if kw.get("actor") == "awr":
        return ContrastiveRLLoss(actor_net(keys), critic, pair_net(keys, ["observation"], OBSERVATION), **kw)
    return (RepeatableContrastiveTD if td else ContrastiveRLLoss)(actor_net(keys, bounds), critic, **kw)


class RepeatableActionableModels(ActionableModelsLoss):
    """Random numbers are a function of the row, so that equal rows give equal losses."""

    def _draw(self, action):
        count = torch.arange(1, self.num_random_actions + 1, dtype=action.dtype)
        count = count.reshape(-1, *[1] * action.ndim)
        return (count * action).sin(), (count * action).cos().abs()[..., 0] * 0.9 + 0.05


def _actionable(keys, num=1, **kw):
    return RepeatableActionableModels(deterministic_net(keys), score_nets(keys, num), **kw)


#: name -> (builder, keyword arguments)
CASES = {
    "value": (lambda keys, **kw: ExpectileValueLoss(value_net(keys), **kw), {}),
    "actor": (lambda keys, **kw: AWRActorLoss(actor_net(keys), **kw), {}),
    "score": (lambda keys, **kw: ScoreLoss(score_nets(keys), **kw), {}),
    "score_dual": (lambda keys, **kw: ScoreLoss(score_nets(keys), **kw), {"formulation": "dual"}),
    "smore": (_smore, {}),
    "smore_one_score": (_smore, {"num_score_nets": 1}),
    "smore_no_target": (_smore, {"delay_score": False}),
    "smore_no_awr": (_smore, {"actor": "score"}),
    "smore_no_awr_no_expectile": (_smore, {"actor": "score", "value_target": "policy", "expectile": 0.5}),
    "smore_dual": (_smore, {"formulation": "dual", "divergence": "kl"}),
    "smore_official": (_smore, {"formulation": "official"}),
    "smore_official_stable": (_smore, {"formulation": "official_stable"}),
    "action_free": (lambda keys, **kw: ActionFreeSMORELoss(value_net(keys), **kw), {}),
    "action_free_actor": (_action_free, {}),
    "action_free_corrected": (_action_free, {"constraint": "corrected"}),
    "gciql": (_in_sample(GCIQLLoss), {}),
    "gciql_one_q": (_in_sample(GCIQLLoss), {"num": 1, "use_terminated": False}),
    "gcsql": (_in_sample(GCSQLLoss), {}),
    "gceql": (_in_sample(GCEQLLoss), {"alpha": 2.0}),
    "gcxql": (_in_sample(GCXQLLoss), {}),
    "gcsl": (lambda keys, **kw: GCSLLoss(deterministic_net(keys), **kw), {}),
    "gcsl_nll": (lambda keys, **kw: GCSLLoss(actor_net(keys), **kw), {"regression": "nll"}),
    "wgcsl": (_wgcsl, {}),
    "wgcsl_original": (_wgcsl, {**ORIGINAL_WGCSL, "target_bounds": (-50.0, 50.0), "memory_size": 20}),
    "crl": (_contrastive, {}),
    "crl_balanced": (_contrastive, {"contrast": "balanced", "num": 1}),
    "crl_infonce": (_contrastive, {"contrast": "infonce", "energy": "l2", "logsumexp_coef": 0.1}),
    "crl_awr": (_contrastive, {"contrast": "symmetric_infonce", "actor": "awr"}),
    "crl_td": (_contrastive, {"td": True}),
    "crl_td_bounds": (_contrastive, {"td": True, "sample_action": False, "bounds": (-2.0, 6.0)}),
    "am": (_actionable, {}),
    "am_twins": (_actionable, {"num": 2, "chain_ratio": 0.0, "num_random_actions": 3}),
    "gofar": (_gofar, {}),
    "gofar_kl": (_gofar, {"divergence": "kl", "regression": "nll"}),
    "gofar_binary": (_gofar, {"reward": "binary"}),
    "gofar_awr": (_gofar, {"actor_weight": "expectile_awr"}),
}


@pytest.fixture(params=CASES)
def case(request):
    """Name of a loss and of its options; a test that asks for it runs once for each."""
    return request.param


@pytest.fixture
def case_names():
    """The names of all losses and of their options."""
    return list(CASES)


@pytest.fixture
def build():
    """Builds a loss by name, its networks and keys named by ``keys``, with an updater if it has target parameters."""

    def build_loss(name: str, *, keys: dict | None = None, updater: bool = True, **kwargs) -> LossModule:
        builder, options = CASES[name]
        loss = builder(keys or {}, **{**options, **kwargs})
        if keys:
            loss.set_keys(**keys)
        if updater and any(name.startswith("target_") for name in loss.state_dict()):
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
            if names.get("actor_goal") is not None:
                # the same goal, so that a loss says the same wherever it is read
                out.set(names["actor_goal"], out.get(names["desired_goal"]).clone())
            out.set(names["action"], draw(ACTION))
            out.set(names.get("advantage", "advantage"), draw(1))
            out.set(names.get("target_score", "target_score"), draw(1))
            out.set(names.get("next_value", ("next", "state_value")), draw(1))
            out.set(names.get("ratio", "mixture_ratio"), draw(1).sigmoid() * 2.0)
            out.set(policy_action, draw(ACTION))
            out.set(("next", *policy_action), draw(ACTION))
            out.set(names.get("reward", ("next", "reward")), draw(1))
            out.set(names.get("terminated", ("next", "terminated")), draw(1) > 0.5)
            steps = torch.randint(-1, 6, (*size, 1), generator=generator)
            out.set(names.get("achieved_goal", "achieved_goal"), draw(GOAL))
            out.set(names.get("next_achieved_goal", ("next", "achieved_goal")), draw(GOAL))
            out.set(names.get("initial_observation", "initial_observation"), draw(OBSERVATION))
            out.set(names.get("goal_offset", "goal_offset"), steps)
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
