"""Rules that choose anchors, on data worked by hand."""

from __future__ import annotations

import pytest
import torch

from torchrl_smore.data import ANCHOR_RULES, GoalBatchSampler, anchor_weights


@pytest.fixture
def data(make_store):
    """Trajectories of 4 and 3 rows: the goal of the first moves in its third step, that of the second never."""
    data = make_store((4, 3), goal_dim=1).data
    data["next", "achieved_goal"] = torch.tensor([[0.0], [0.1], [1.0], [1.0], [5.0], [5.1], [5.2]])
    data["next", "reward"] = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0], [0.0], [0.0]])
    return data


def test_moving_chooses_the_rows_after_which_the_goal_still_moves_away(data):
    weights = anchor_weights("moving", data, threshold=0.5, share=0.8)
    rest = 0.2 / 7
    expected = torch.tensor([0.4 + rest, 0.4 + rest] + [rest] * 5, dtype=torch.float64)
    torch.testing.assert_close(weights, expected)


def test_reaching_chooses_the_trajectories_that_reach_their_goal_at_some_time(data):
    weights = anchor_weights("reaching", data, share=1.0)
    torch.testing.assert_close(weights, torch.tensor([0.0] * 4 + [1 / 3] * 3, dtype=torch.float64))


def test_arriving_leaves_out_trajectories_that_begin_at_their_goal(make_store):
    data = make_store((3, 3, 2), goal_dim=1).data
    # one comes to its goal and leaves it, one is there from its first step, one never gets there
    data["next", "reward"] = torch.tensor([[0.0], [1.0], [0.0], [1.0], [0.0], [1.0], [0.0], [0.0]])
    expected = torch.tensor([1 / 3] * 3 + [0.0] * 5, dtype=torch.float64)
    torch.testing.assert_close(anchor_weights("arriving", data, share=1.0), expected)


def test_uniform_is_no_weights(data):
    assert anchor_weights("uniform", data) is None


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("movin", {}, "unknown anchor rule 'movin'.*'moving'"),
        ("moving", {}, "needs the task's threshold"),
        ("moving", {"threshold": 0.5, "share": 1.5}, r"share must lie in \[0, 1\], got 1.5"),
        ("moving", {"threshold": 9.0}, "chooses none of 7 rows: it needs an achieved goal that moves"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused_before_anything_is_sampled(data, rule, options, message):
    with pytest.raises(ValueError, match=message):
        anchor_weights(rule, data, **options)


def test_a_rule_that_chooses_nothing_may_fall_back_and_says_so(data, caplog):
    with caplog.at_level("WARNING", "torchrl_smore"):
        assert anchor_weights("moving", data, threshold=9.0, or_uniform=True) is None
    assert "chooses none of 7 rows" in caplog.text
    assert "all draws are from all rows, in place of 20% of them" in caplog.text
    data["next", "reward"].zero_()
    with pytest.raises(ValueError, match="it needs a trajectory with a positive reward"):
        anchor_weights("reaching", data)
    data["next", "reward"][4] = 1.0
    with pytest.raises(ValueError, match="with its first positive reward after its first step"):
        anchor_weights("arriving", data)


def test_the_table_draws_anchors_of_rho_and_q_by_weights(data):
    weights = torch.tensor([0.0, 0.0, 1.0, 0.0, 3.0, 0.0, 0.0])
    batch = GoalBatchSampler(data, 4000, her_ratio=1.0, strategy="current", anchors=weights)()
    for rows in (batch, batch["q"]):
        share = (rows["next", "achieved_goal"] == 5.0).float().mean().item()
        assert share == pytest.approx(0.75, abs=0.03)
        assert set(rows["next", "achieved_goal"].flatten().tolist()) == {1.0, 5.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(6), "one anchor weight for each of 7 rows, got shape"),
        (-torch.ones(7), "finite and not negative, got -1.0 in row 0"),
        (torch.zeros(7), "at least one weight must be positive"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(data, weights, message):
    with pytest.raises(ValueError, match=message):
        GoalBatchSampler(data, 4, anchors=weights)


@pytest.mark.parametrize("key", [None, "episode"])
def test_a_rule_looks_at_trajectories_as_they_are_told_apart(data, key):
    expected = [anchor_weights(rule, data, threshold=0.5, share=1.0) for rule in ("moving", "reaching")]
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3])
    mixed = data[order].exclude("traj_start", "traj_stop")
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 1])[order]
    mixed[("collector", "traj_ids") if key is None else key] = ids
    # flags that end the last row alone would make one trajectory of it
    mixed["next", "done"] = torch.tensor([[False]] * 6 + [[True]])
    found = [
        anchor_weights(rule, mixed, threshold=0.5, share=1.0, trajectory_key=key) for rule in ("moving", "reaching")
    ]
    for weights, ordered in zip(found, expected):
        torch.testing.assert_close(weights, ordered[order])


def test_weights_follow_their_rows_where_trajectories_are_interleaved(data):
    data["collector", "traj_ids"] = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    weights = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    batch = GoalBatchSampler(data, 50, her_ratio=1.0, strategy="current", anchors=weights)()
    assert bool((batch["next", "achieved_goal"] == 5.0).all())


def test_the_sampler_gives_the_actor_goals_of_its_own(data):
    batch = GoalBatchSampler(data, 200, her_ratio=1.0, strategy="current", actor_strategy="final")()
    torch.testing.assert_close(batch["desired_goal"], batch["next", "achieved_goal"])
    assert set(batch["actor_goal"].flatten().tolist()) == {1.0, torch.tensor(5.2).item()}
    kept = GoalBatchSampler(data, 200, her_ratio=0.0, strategy="current", actor_strategy="final")()
    torch.testing.assert_close(kept["actor_goal"], kept["desired_goal"])


def test_away_needs_a_threshold(data):
    with pytest.raises(ValueError, match="'away' needs a threshold"):
        GoalBatchSampler(data, 4, strategy={"away": 0.5, "future": 0.5})
    batch = GoalBatchSampler(data, 500, her_ratio=1.0, strategy="away", threshold=0.5)()
    moved = (batch["desired_goal"] - batch["next", "achieved_goal"]).abs().flatten()
    first_two = batch["next", "achieved_goal"].flatten() < 0.5
    assert bool((moved[first_two] > 0.5).all())


def test_every_rule_says_what_it_chooses():
    assert all(rule.text and rule.needs for rule in ANCHOR_RULES.values())
