"""Relabelling worked by hand on batches of known rows."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_smore.data import GoalTransition, HindsightGoalTransform, stored_goal_reached


def success(achieved_goal, goal):
    return (achieved_goal - goal).norm(dim=-1) <= 1.0


def four_rows(size=1, **reward):
    """``size`` equal samples: rows that enter 1, 5, 7 and 9 and store the goals 1.5, 30, 40 and 9.5."""
    rows = TensorDict(
        {
            "observation": torch.tensor([[0.0], [4.0], [6.0], [8.0]]),
            "desired_goal": torch.tensor([[1.5], [30.0], [40.0], [9.5]]),
            "next": {
                "achieved_goal": torch.tensor([[1.0], [5.0], [7.0], [9.0]]),
                "reward": torch.tensor([[1.0], [0.0], [0.0], [1.0]]),
                "done": torch.tensor([[True], [False], [False], [True]]),
                "terminated": torch.tensor([[False], [False], [False], [True]]),
                "truncated": torch.tensor([[True], [False], [False], [False]]),
            },
        },
        [4],
    )
    return torch.stack([rows] * size)


def test_relabelled_rows_pursue_the_goal_row_and_the_goal_they_enter():
    out = HindsightGoalTransform(1.0)(four_rows())
    assert out.batch_size == (1,)
    assert out["observation"].item() == 0.0
    assert out["desired_goal"].item() == out["next", "desired_goal"].item() == 5.0
    q = out["q"]
    assert q["observation"].item() == 6.0
    assert q["desired_goal"].item() == q["next", "desired_goal"].item() == q["next", "achieved_goal"].item() == 7.0


def test_kept_rows_pursue_their_stored_goal_and_q_reaches_it():
    out = HindsightGoalTransform(0.0)(four_rows())
    assert out["desired_goal"].item() == out["next", "desired_goal"].item() == 1.5
    q = out["q"]
    assert q["observation"].item() == 8.0
    assert q["desired_goal"].item() == q["next", "desired_goal"].item() == 9.5


@pytest.mark.parametrize(
    ("her_ratio", "terminate", "reward", "terminated", "done"),
    [
        (1.0, True, -1.0, False, True),  # enters 1, goal 5: not there; the truncation stays
        (0.0, True, 0.0, True, True),  # enters 1, goal 1.5: there
        (0.0, False, 0.0, False, True),
    ],
)
def test_reward_and_termination_are_those_of_the_new_goal(her_ratio, terminate, reward, terminated, done):
    transform = HindsightGoalTransform(
        her_ratio, success=success, reward_values=(-1.0, 0.0), terminate_at_goal=terminate
    )
    out = transform(four_rows())
    assert out["next", "reward"].item() == reward
    assert out["next", "reward"].dtype == torch.float32
    assert out["next", "terminated"].item() is terminated
    assert out["next", "done"].item() is done
    q = out["q"]
    assert q["next", "reward"].item() == 0.0
    # the row that reaches its stored goal was terminated by its environment, and stays so under any goal
    ended = terminate or her_ratio == 0.0
    assert q["next", "terminated"].item() is ended
    assert q["next", "done"].item() is ended
    for rows in (out, q):
        assert rows["next", "reward"].shape == rows["next", "done"].shape == (1, 1)


def test_without_a_success_rule_what_belonged_to_the_old_goal_is_dropped():
    out = HindsightGoalTransform(0.5)(four_rows(8))
    for rows in (out, out["q"]):
        assert set(rows["next"].keys()) == {"achieved_goal", "desired_goal"}


def test_the_share_of_relabelled_rows_is_her_ratio_and_independent_in_rho_and_q():
    size = 20_000
    out = HindsightGoalTransform(0.8)(four_rows(size))
    rho, q = (out["desired_goal"] == 5.0).float(), (out["q", "desired_goal"] == 7.0).float()
    for share, probability in ((rho.mean(), 0.8), (q.mean(), 0.8), ((rho * q).mean(), 0.64)):
        # five standard deviations
        assert abs(share - probability) < 5 * (probability * (1 - probability) / size) ** 0.5


@pytest.mark.parametrize("rule", [None, success])
def test_q_is_relabelled_where_no_row_reaches_its_stored_goal(rule):
    rows = four_rows(50)
    rows["next", "reward"][:, 3] = 0.0
    rows["desired_goal"][:, 3] = 100.0
    out = HindsightGoalTransform(0.0, success=rule)(rows)
    assert bool((out["q", "desired_goal"] == 7.0).all())
    assert bool((out["desired_goal"] == 1.5).all())


def test_the_sampled_rows_are_not_written_to():
    rows = four_rows(3)
    before = rows.clone()
    HindsightGoalTransform(0.5, success=success)(rows)
    assert bool((rows == before).all())


def test_other_key_names_are_read_and_written():
    rows = four_rows().rename_key_("desired_goal", ("task", "goal"))
    rows.rename_key_(("next", "achieved_goal"), ("next", "reached_at"))
    out = HindsightGoalTransform(
        1.0, achieved_goal_key="reached_at", desired_goal_key=("task", "goal"), q_key="arrivals"
    )(rows)
    assert out["task", "goal"].item() == out["next", "task", "goal"].item() == 5.0
    assert out["arrivals", "task", "goal"].item() == 7.0


def test_the_mask_is_reproducible_from_its_generator_and_its_state_is_saved():
    transform = HindsightGoalTransform(0.5, generator=torch.Generator().manual_seed(1))
    transform(four_rows(64))
    state = transform.state_dict()
    first = transform(four_rows(64))["desired_goal"]
    torch.manual_seed(99)
    other = HindsightGoalTransform(0.5, generator=torch.Generator())
    other.load_state_dict(state)
    torch.testing.assert_close(other(four_rows(64))["desired_goal"], first)
    assert HindsightGoalTransform(0.5).get_extra_state() is None


@pytest.mark.parametrize("her_ratio", [-0.1, 1.1, float("nan")])
def test_a_her_ratio_outside_its_range_is_refused(her_ratio):
    with pytest.raises(ValueError, match=r"her_ratio must lie in \[0, 1\]"):
        HindsightGoalTransform(her_ratio)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 4, 1)], ids=str)
def test_a_batch_of_another_shape_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"\[B, 4\] batch from GoalTransition.*\[" + ", ".join(map(str, shape))):
        HindsightGoalTransform()(TensorDict({}, shape))


def test_a_buffer_without_the_unit_is_told_what_is_missing(store):
    rb = ReplayBuffer(storage=LazyTensorStorage(17), batch_size=4, transform=HindsightGoalTransform())
    rb.extend(store.data)
    with pytest.raises(ValueError, match="from GoalTransition"):
        rb.sample()


def test_the_unit_and_the_transform_agree_on_a_store(store):
    rb = ReplayBuffer(
        storage=LazyTensorStorage(17),
        sample_unit=GoalTransition(),
        transform=HindsightGoalTransform(0.5),
        batch_size=128,
    )
    rb.extend(store.data)
    out = rb.sample()
    assert out["observation"].shape == out["q", "observation"].shape == (128, 4)
    assert out["desired_goal"].shape == (128, 2)


@pytest.mark.parametrize("shape", [(), (3,), (4, 4), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("size", [4, 64])
def test_goals_of_any_shape_are_relabelled_row_by_row(shape, size):
    rows = four_rows(size)
    numbers = {"desired_goal": rows["desired_goal"], ("next", "achieved_goal"): rows["next", "achieved_goal"]}
    for key, value in numbers.items():
        rows[key] = value.reshape(size, 4, *(1 for _ in shape)).expand(size, 4, *shape).clone()
    out = HindsightGoalTransform(0.5)(rows)
    assert out["desired_goal"].shape == (size, *shape)
    flat = out["desired_goal"].reshape(size, -1)
    assert bool((flat == flat[:, :1]).all())
    assert set(flat[:, 0].tolist()) <= {1.5, 5.0}
    assert set(out["q", "desired_goal"].reshape(size, -1)[:, 0].tolist()) <= {7.0, 9.5}


def test_the_reward_of_integer_goals_is_a_float():
    rows = four_rows()
    for key in ("desired_goal", ("next", "achieved_goal")):
        rows[key] = rows[key].to(torch.uint8)
    out = HindsightGoalTransform(1.0, success=lambda a, g: (a == g).all(-1), reward_values=(-1.0, 0.0))(rows)
    assert out["next", "reward"].item() == -1.0
    assert out["q", "next", "reward"].item() == 0.0


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        (lambda a, g: (a - g).abs(), TypeError, "bool tensor, got torch.float32"),
        (lambda a, g: torch.ones(len(a), 2, dtype=torch.bool), ValueError, r"shape \[8\] or \[8, 1\] .* got \[8, 2\]"),
        (lambda a, g: True, TypeError, "got bool"),
    ],
)
def test_a_success_rule_of_another_shape_or_type_is_refused(rule, kind, message):
    with pytest.raises(kind, match=message):
        HindsightGoalTransform(1.0, success=rule)(four_rows(8))


def test_a_success_rule_that_keeps_a_dimension_counts_rows_and_not_pairs_of_rows():
    out = HindsightGoalTransform(1.0, success=lambda a, g: (a - g).abs() < 0.1)(four_rows(8))
    assert out["next", "reward"].shape == (8, 1)


def test_a_fall_stays_terminated_under_any_goal():
    rows = four_rows()
    rows["next", "terminated"][:, 0] = True
    out = HindsightGoalTransform(1.0, success=success)(rows)
    assert out["next", "terminated"].item() is True
    assert out["next", "done"].item() is True


def test_other_entries_that_depend_on_the_goal_are_dropped():
    rows = four_rows().set(("next", "is_success"), torch.ones(1, 4, 1, dtype=torch.bool))
    assert "is_success" not in HindsightGoalTransform(1.0)(rows)["next"]
    kept = HindsightGoalTransform(1.0, stale=())(rows)
    assert "is_success" in kept["next"]


def test_a_missing_goal_is_named_and_a_stored_goal_is_not_needed_where_all_is_relabelled():
    rows = four_rows().exclude("desired_goal")
    assert HindsightGoalTransform(1.0)(rows)["desired_goal"].item() == 5.0
    with pytest.raises(KeyError, match="reads 'desired_goal', which the batch does not have"):
        HindsightGoalTransform(0.5)(rows)
    with pytest.raises(KeyError, match=r"\('next', 'achieved_goal'\)"):
        HindsightGoalTransform(1.0)(four_rows().exclude(("next", "achieved_goal")))


def test_a_unit_with_another_rule_of_what_is_reached_is_noticed():
    rows = four_rows(4)
    rows["next", "reward"][:2, 3] = 0.0
    transform = HindsightGoalTransform(0.5)
    for _ in range(2):  # each time, and not the first alone
        with pytest.raises(ValueError, match="only 2 of 4 rows that the unit says reach their stored goal"):
            transform(rows)


def test_a_batch_whose_rewards_are_not_positive_is_no_news(caplog):
    rows = four_rows(4)
    rows["next", "reward"] -= 1.0
    transform = HindsightGoalTransform(0.5)
    out = transform(rows)
    # no row counts as one at its goal: every q enters the goal that it is given
    assert (out["q", "desired_goal"] == out["q", "next", "achieved_goal"]).all()
    transform(rows.exclude(("next", "reward")))
    assert not caplog.records


def test_stored_rows_are_read_from_the_storage_and_not_through_the_transform(store):
    rb = ReplayBuffer(
        storage=LazyTensorStorage(17), sample_unit=GoalTransition(), transform=HindsightGoalTransform(), batch_size=4
    )
    rb.extend(store.data)
    with pytest.raises(ValueError, match=r"got batch size \[10\]\. What is stored is read from .*buffer\.storage\["):
        rb[:10]
    assert bool((rb.storage[:10]["observation"] == store.data["observation"][:10]).all())


def test_a_rule_that_answers_on_another_device_is_named():
    rows = four_rows()
    with pytest.raises(ValueError, match="must return a tensor on cpu, as the goals are, got meta"):
        HindsightGoalTransform(1.0, success=lambda a, g: (a == g).all(-1).to("meta"))(rows)
    rows = TensorDict(rows.to_dict(), rows.batch_size, device="cpu")
    with pytest.raises(ValueError, match="reached must return a tensor on cpu, as the data are, got meta"):
        HindsightGoalTransform(0.5, reached=lambda data: stored_goal_reached(data).to("meta"))(rows)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["[N]", "[N, 1]"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
def test_flags_of_other_shapes_and_types_belong_to_their_rows(shape, dtype):
    rows = torch.cat([four_rows(), four_rows()])
    # of two samples the second one fell, and the first one's time was up
    for name, ends in {"terminated": [False, True], "truncated": [True, False], "done": [True, True]}.items():
        flag = torch.tensor(ends).unsqueeze(-1).expand(2, 4)
        rows["next", name] = flag.reshape(2, 4, *shape).to(dtype)
    out = HindsightGoalTransform(1.0, success=success)(rows)
    for each in (out, out["q"]):
        assert each["next", "terminated"].tolist() == [[False], [True]]
        assert each["next", "done"].tolist() == [[True], [True]]


@pytest.mark.parametrize("shape", [(), (3,), (1, 1)], ids=str)
def test_goals_of_two_shapes_are_refused_where_both_are_used(shape):
    rows = four_rows(5)
    rows["desired_goal"] = torch.zeros(5, 4, *shape)
    with pytest.raises(
        ValueError,
        match=rf"'desired_goal' and .*'achieved_goal'.* one shape, got \[{str(shape)[1:-1].rstrip(',')}\] and \[1\]",
    ):
        HindsightGoalTransform(0.5)(rows)
    assert HindsightGoalTransform(1.0)(rows)["desired_goal"].tolist() == [[5.0]] * 5


def test_steps_to_the_goal_are_those_between_the_rows_and_minus_one_for_a_kept_goal():
    rows = four_rows(3)
    # the goals lie 4, 0 and 2 steps ahead
    rows["step_count"] = torch.tensor([[3, 7, 1, 9], [3, 3, 0, 0], [0, 2, 8, 8]]).unsqueeze(-1)
    out = HindsightGoalTransform(1.0, step_key="step_count")(rows)
    assert out["goal_offset"].tolist() == [[4], [0], [2]]
    assert out["goal_offset"].dtype == torch.int64
    assert HindsightGoalTransform(0.0, step_key="step_count")(rows)["goal_offset"].tolist() == [[-1]] * 3
    assert "goal_offset" not in HindsightGoalTransform(1.0)(rows)


def test_the_steps_of_a_batch_with_both_kinds_of_goals_belong_to_their_rows():
    rows = four_rows(200)
    rows["count"] = torch.tensor([5, 7, 0, 0]).expand(200, 4)
    out = HindsightGoalTransform(0.5, step_key="count")(rows)
    kept = out["desired_goal"] == 1.5
    assert 60 < kept.sum() < 140
    assert torch.equal(out["goal_offset"], torch.where(kept, -1, 2))


def test_the_goal_of_a_sixth_row_is_the_actor_s_unless_the_row_keeps_its_stored_one():
    rows = torch.cat([four_rows(), four_rows()[:, :2]], 1)
    rows["next", "achieved_goal"][:, 5] = 11.0
    for her_ratio, goal, actor_goal in ((1.0, 5.0, 11.0), (0.0, 1.5, 1.5)):
        out = HindsightGoalTransform(her_ratio)(rows)
        assert (out["desired_goal"].item(), out["actor_goal"].item()) == (goal, actor_goal)
        assert "actor_goal" not in out["q"]
    assert "actor_goal" not in HindsightGoalTransform(1.0)(rows[:, :5])


def test_the_observation_of_a_fifth_row_is_the_initial_one():
    rows = torch.cat([four_rows(2), four_rows(2)[:, :1]], 1)
    rows["observation"][:, 4] = torch.tensor([[-3.0], [-5.0]])
    for her_ratio, goal, observation in ((1.0, 5.0, 6.0), (0.0, 1.5, 8.0)):
        out = HindsightGoalTransform(her_ratio)(rows)
        assert out["initial_observation"].tolist() == [[-3.0], [-5.0]]
        assert out["desired_goal"].tolist() == [[goal]] * 2
        # a goal transition is still the third row or the fourth
        assert out["q", "observation"].tolist() == [[observation]] * 2
    other = rows.rename_key_("observation", ("seen", "state"))
    out = HindsightGoalTransform(1.0, observation_key=("seen", "state"))(other)
    assert out["initial_observation"].tolist() == [[-3.0], [-5.0]]
    with pytest.raises(KeyError, match="reads 'observation', which the batch does not have; name it by key"):
        HindsightGoalTransform(1.0)(other)


def test_what_counts_no_steps_is_refused():
    rows = four_rows(3)
    with pytest.raises(KeyError, match=r"reads 'step_count' \(step_key=\).*StepCounter.*step_count=True"):
        HindsightGoalTransform(1.0, step_key="step_count")(rows)
    rows["step_count"] = torch.zeros(3, 4, 2)
    with pytest.raises(ValueError, match=r"one number for each row in 'step_count' \(step_key=\), got \[2\]"):
        HindsightGoalTransform(1.0, step_key="step_count")(rows)
    rows["step_count"] = torch.tensor([[3, 7, 0, 0], [3, 2, 0, 0], [3, 0, 0, 0]])
    transform = HindsightGoalTransform(1.0, step_key="step_count")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"is smaller in the row of the goal .* in 2 of 3 samples"):
            transform(rows)


def test_goals_of_two_dtypes_are_refused_where_both_are_used():
    rows = four_rows(5)
    rows["desired_goal"] = rows["desired_goal"].double()
    said = r"'desired_goal' and .*'achieved_goal'.* one dtype, got torch.float64 and torch.float32"
    with pytest.raises(ValueError, match=said):
        HindsightGoalTransform(0.5)(rows)
    assert HindsightGoalTransform(1.0)(rows)["desired_goal"].dtype == torch.float32
