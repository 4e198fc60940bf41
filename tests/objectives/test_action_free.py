"""ActionFreeSMORELoss on hand-sized examples: residual, constraint, optional actor."""

from __future__ import annotations

import re

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import ActionFreeSMORELoss


class Table(nn.Module):
    """S(s, g) = weight * s + g."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, observation, goal):
        return self.weight * observation + goal


def rows(observation, after, ratio):
    entries = {"observation": observation, ("next", "observation"): after, "mixture_ratio": ratio}
    batch = TensorDict({key: torch.tensor(value)[:, None] for key, value in entries.items()}, [2])
    return batch.set("desired_goal", torch.zeros(2, 1))


def example():
    # gamma 0.5: S = [1, 2] and y = 0.5 S' - S = [1, -4]; under q y = [2, -3]
    return rows([1.0, 2.0], [4.0, -4.0], [4 / 3, 4 / 3]).set("q", rows([0.0, 3.0], [4.0, 0.0], [0.0, 2 / 3]))


def loss_of(**kwargs):
    network = TensorDictModule(Table(), ["observation", "desired_goal"], ["state_value"])
    return ActionFreeSMORELoss(network, beta=0.25, gamma=0.5, **kwargs)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ("printed", (0.3125 + 2.5) / 2 + (0.75 - 0.25) / 2),
        ("corrected", (0.3125 + 0.25) / 2 + (0.75 - 0.4375) / 2),
    ],
)
def test_the_loss_matches_numbers_worked_by_hand(constraint, expected):
    out = loss_of(constraint=constraint)(example())
    assert out["loss_value"].item() == pytest.approx(expected)
    assert out["value"].item() == 1.5
    assert out["residual"].item() == pytest.approx((17 / 2) ** 0.5)


def test_gradient_flows_through_both_ends_of_the_residual():
    loss = loss_of()
    loss(example())["loss_value"].backward()
    # dy/dw = 0.5 s' - s = [1, -4] and [2, -3]; dL/dy = [0.375, -0.75] and [0.5, 0]; beta (1 - gamma) s = [1/8, 2/8]
    expected = (0.125 + 0.375 + 0.25 + 3.0) / 2 + (1.0 + 0.0) / 2
    assert loss.value_network_params["module", "weight"].grad.item() == pytest.approx(expected)


def test_no_action_is_read_without_an_actor():
    loss = loss_of()
    assert not loss.has_actor
    assert not any("action" in str(key) for key in loss.in_keys)
    assert "loss_actor" not in loss.out_keys


def test_the_actor_is_weighted_by_the_residual_as_a_constant(build, batch_for):
    loss = build("action_free_actor")
    batch = batch_for(loss)
    out = loss(batch)
    residual = loss.value_loss(batch)[1]["residual"]
    assert not residual.requires_grad
    torch.testing.assert_close(out["mean_advantage"], residual.mean())
    torch.testing.assert_close(out["awr_weight"], (3.0 * residual).exp().clamp(max=100.0).mean())
    alone, metadata = loss.actor_loss(batch)
    torch.testing.assert_close(alone, out["loss_actor"])
    torch.testing.assert_close(metadata["mean_advantage"], out["mean_advantage"])


@pytest.mark.parametrize("name", ["kl", "squared_hellinger", "total_variation", "jensen_shannon"])
def test_other_divergences_give_finite_losses_and_gradients(name, build, batch_for, total):
    loss = build("action_free_corrected", divergence=name)
    batch = batch_for(loss)
    batch["observation"] *= 100.0
    out = loss(batch)
    total(out).backward()
    assert out["loss_value"].isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown constraint 'correct'.*Did you mean 'corrected'"):
        loss_of(constraint="correct")
    with pytest.raises(ValueError, match="unknown divergence"):
        loss_of(divergence="chi")


def test_outputs_can_be_selected_before_any_other_loss_was_built(python):
    script = (
        "from torchrl_smore.modules import goal_specs, make_networks;"
        "from torchrl_smore.objectives import ActionFreeSMORELoss;"
        "n = make_networks(*goal_specs(3, 2, 1), hidden=(4,));"
        "loss = ActionFreeSMORELoss(n.value, n.actor); loss.select_out_keys('loss_value'); print(*loss.out_keys)"
    )
    done = python("-c", script)
    assert done.stdout.split() == ["loss_value"], done.stderr


def test_a_loss_without_an_actor_has_no_actors_loss():
    with pytest.raises(ValueError, match="only a loss with an actor_network has an actor's loss"):
        loss_of().actor_loss(example())


class Pictured(nn.Module):
    """S(s, g) = weight * s + the mean of the picture g."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, observation, goal):
        return self.weight * observation[..., :1] + goal.float().mean((-1, -2, -3))[..., None]


class PicturedActor(nn.Module):
    def __init__(self, actor):
        super().__init__()
        self.actor = actor

    def forward(self, observation, goal):
        return self.actor(observation, goal.float().flatten(-3)[..., :2])


@pytest.mark.parametrize("shape", [(5,), (5, 2)], ids=str)
def test_a_ratio_by_keyword_that_is_not_one_number_for_each_row_is_refused(shape):
    loss = ActionFreeSMORELoss(make_networks(*goal_specs(3, 2, 1), hidden=(4,)).value, constraint="corrected")
    given = {"observation": torch.zeros(5, 3), "desired_goal": torch.zeros(5, 2), "next_observation": torch.zeros(5, 3)}
    given |= {"mixture_ratio": torch.ones(shape)}
    given |= {f"q_{name}": entry for name, entry in given.items()}
    with pytest.raises(
        ValueError, match=rf"expects 'mixture_ratio' of shape \[\*B, 1\], got {re.escape(str([*shape]))}"
    ):
        loss(**given)


@pytest.mark.parametrize("batch_size", [(5,), (2, 3)], ids=str)
@pytest.mark.parametrize(("acts", "constraint"), [(True, "printed"), (False, "printed"), (False, "corrected")])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_goals_may_be_pictures_in_a_call_by_keyword(acts, constraint, dtype, batch_size):
    actor = None
    if acts:
        actor = make_networks(*goal_specs(3, 2, 1), hidden=(4,)).actor
        actor.module[0].module = PicturedActor(actor.module[0].module)
    value = TensorDictModule(Pictured(), ["observation", "desired_goal"], ["state_value"])
    loss = ActionFreeSMORELoss(value, actor, constraint=constraint)

    def draw():
        goal = torch.randint(0, 255, (*batch_size, 2, 2, 3)).to(dtype)
        root = {"observation": torch.randn(*batch_size, 3), "next": {"observation": torch.randn(*batch_size, 3)}}
        root |= {"action": torch.randn(*batch_size, 1), "mixture_ratio": torch.rand(*batch_size, 1)}
        return TensorDict({**root, "desired_goal": goal}, batch_size)

    batch = draw().set("q", draw()).select(*loss.in_keys)
    expected = loss(batch)
    given = {key.replace(".", "_"): entry for key, entry in batch.flatten_keys(".").items()}
    if not acts and constraint == "printed" and dtype == torch.float32:
        # nothing tells a picture of floating point from several dimensions of a batch
        with pytest.raises(ValueError, match=r"'desired_goal' of shape .* pass a TensorDict with a batch size"):
            loss(**given)
    else:
        torch.testing.assert_close(loss(**given), tuple(expected[key] for key in loss.out_keys))
