"""Goal-transition sampling: properties, and exact probabilities, of every way in."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tensordict import TensorDict
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    ListStorage,
    RandomSampler,
    ReplayBuffer,
    TensorDictReplayBuffer,
    TensorStorage,
)

from torchrl_smore.data import (
    GoalBatchSampler,
    GoalTransition,
    GoalTransitionSampler,
    HindsightGoalTransform,
    TrajectoryStore,
    anchor_weights,
    stored_goal_reached,
)
from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss

GAMMA = 0.6


def success(achieved_goal, goal):
    return (achieved_goal - goal).abs().amax(-1) <= 0.5


def labelled(lengths, solved=()):
    """Rows that say who they are: the action is the row's number, the goal that row t of trajectory j enters is
    ``100 j + t + 1``. A solved trajectory stores a goal within 0.5 of its last state, and reward 1 in its last row."""
    episodes, first = [], 0
    for j, steps in enumerate(lengths):
        states = 100.0 * j + np.arange(steps + 1, dtype=np.float32)[:, None]
        goal = states[-1] + 0.25 if j in solved else np.array([-j - 1.0])
        reward = np.zeros(steps, dtype=np.float32)
        reward[-1] = j in solved
        rows = np.arange(first, first + steps, dtype=np.float32)[:, None]
        episodes.append(
            {"observation": states, "achieved_goal": states, "action": rows, "desired_goal": goal, "reward": reward}
        )
        first += steps
    return TrajectoryStore.from_episodes(episodes).data


def unit_buffer(cls, via):
    def sample(data, size, *, her_ratio=0.8, generator=None, success=None, **options):
        transform_options = {key: options[key] for key in ("reached",) if key in options}
        transform_options |= {"step_key": options.pop("step_key", None)}
        transform = HindsightGoalTransform(her_ratio, success=success, generator=generator, **transform_options)
        unit = GoalTransition(**options)
        storage = LazyTensorStorage(data.shape[0])
        common = {"storage": storage, "batch_size": size, "transform": transform, "generator": generator}
        if via == "unit":
            rb = cls(**common, sample_unit=unit)
        elif via == "sampler":
            rb = cls(**common, sampler=GoalTransitionSampler(unit))
        else:
            rb = cls(**common)
            rb.set_sampler(GoalTransitionSampler(unit))
        rb.extend(data)
        return rb.sample

    return sample


def packed(data, size, *, generator=None, seed=0, **options):
    return GoalBatchSampler(data, size, seed=seed, **options)


WAYS = {
    "unit in ReplayBuffer": unit_buffer(ReplayBuffer, "unit"),
    "unit in TensorDictReplayBuffer": unit_buffer(TensorDictReplayBuffer, "unit"),
    "sampler=": unit_buffer(TensorDictReplayBuffer, "sampler"),
    "set_sampler": unit_buffer(ReplayBuffer, "set_sampler"),
    "packed": packed,
}
TWO_WAYS = ["unit in TensorDictReplayBuffer", "packed"]


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def row(rows):
    return rows["action"].squeeze(-1).long()


def check_invariants(batch, data, her_ratio):
    """Everything that must hold of any batch of ``labelled`` data."""
    stop, q, reached = data["traj_stop"], batch["q"], stored_goal_reached(data)
    enters = data["next", "achieved_goal"].squeeze(-1)
    source = {value: number for number, value in enumerate(enters.tolist())}
    for rows in (batch, q):
        # the batch shows unaltered rows of the data, apart from goals
        torch.testing.assert_close(rows["observation"], data["observation"][row(rows)])
        torch.testing.assert_close(rows["next", "observation"], data["next", "observation"][row(rows)])
        torch.testing.assert_close(rows["next", "desired_goal"], rows["desired_goal"])
    for i, goal, stored in zip(row(batch).tolist(), batch["desired_goal"].tolist(), data["desired_goal"][row(batch)]):
        if goal[0] == stored.item():
            assert her_ratio < 1
        else:
            k = source[goal[0]]
            assert her_ratio > 0
            # enters[k] is the state after row k: strictly later than the state of row i, within the trajectory
            assert i <= k < stop[i]
            assert goal[0] > data["achieved_goal"][i].item()
    relabelled = (q["desired_goal"] == q["next", "achieved_goal"]).squeeze(-1)
    kept = ~relabelled
    torch.testing.assert_close(q["desired_goal"][kept], data["desired_goal"][row(q)][kept])
    assert bool(reached[row(q)][kept].all())
    if her_ratio == 1 or not bool(reached.any()):
        assert not bool(kept.any())
    elif her_ratio == 0:
        assert bool(kept.all())


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    solved=st.sets(st.integers(0, 4)),
    name=st.sampled_from(sorted(WAYS)),
    her_ratio=st.sampled_from([0.0, 0.5, 1.0]),
    strategy=st.sampled_from(["future", "geometric", "final"]),
    with_success=st.booleans(),
    size=st.integers(1, 40),
)
def test_goals_are_later_in_the_same_trajectory_and_q_arrives(
    lengths, solved, name, her_ratio, strategy, with_success, size
):
    data = labelled(lengths, solved)
    rule = success if with_success else None
    sample = WAYS[name](data, size, her_ratio=her_ratio, strategy=strategy, success=rule)
    batch = sample()
    assert batch.shape == batch["q"].shape == (size,)
    check_invariants(batch, data, her_ratio)
    if with_success:
        for rows in (batch, batch["q"]):
            reached = success(rows["next", "achieved_goal"], rows["desired_goal"])
            torch.testing.assert_close(rows["next", "reward"].squeeze(-1), reached.float())
        assert bool((batch["q", "next", "reward"] == 1).all())


def goal_probs(strategy, i, stop, num_rows):
    """Probability of each goal row given row i, written down from the definition of the strategy."""
    if strategy == "future":
        return dict.fromkeys(range(i, stop), 1 / (stop - i))
    if strategy == "final":
        return {stop - 1: 1.0}
    if strategy == "random":
        return dict.fromkeys(range(num_rows), 1 / num_rows)
    probs = {k: (1 - GAMMA) * GAMMA ** (k - i) for k in range(i, stop)}
    return probs | {stop - 1: GAMMA ** (stop - 1 - i)}


def expected_probs(data, strategy, her_ratio):
    """Exact probability of every (i, k or None, m, relabelled) where None is the stored goal."""
    stop, num_rows = data["traj_stop"].tolist(), data.shape[0]
    reached = stored_goal_reached(data).nonzero().squeeze(-1).tolist()
    stored = {(m, False): 1 / len(reached) for m in reached}
    entering = Counter()
    for i in range(num_rows):
        for k, p in goal_probs(strategy, i, stop[i], num_rows).items():
            entering[k, True] += p / num_rows
    out = Counter()
    for i in range(num_rows):
        probs = goal_probs(strategy, i, stop[i], num_rows)
        rho = Counter({k: p * her_ratio for k, p in probs.items()})
        rho[None] += 1 - her_ratio
        q = Counter({key: p * (her_ratio if stored else 1.0) for key, p in entering.items()})
        for key, p in stored.items():
            q[key] += p * (1 - her_ratio)
        for (k, p), (key, p_q) in itertools.product(rho.items(), q.items()):
            out[(i, k, *key)] += p / num_rows * p_q
    return {cell: p for cell, p in out.items() if p > 0}


def observed_cells(batch, data):
    source = {value: number for number, value in enumerate(data["next", "achieved_goal"].squeeze(-1).tolist())}
    goals = [source.get(value) for value in batch["desired_goal"].squeeze(-1).tolist()]
    q = batch["q"]
    relabelled = (q["desired_goal"] == q["next", "achieved_goal"]).squeeze(-1).tolist()
    return Counter(zip(row(batch).tolist(), goals, row(q).tolist(), relabelled))


def assert_distributed(counts, probs):
    assert math.isclose(sum(probs.values()), 1.0)
    assert not counts.keys() - probs.keys()
    cells, total = list(probs), sum(counts.values())
    # rare cells are counted together: the test needs a handful of expected draws in each
    rare = [cell for cell in cells if probs[cell] * total < 8]
    common = [cell for cell in cells if probs[cell] * total >= 8]
    observed, expected = [counts[c] for c in common], [probs[c] * total for c in common]
    if rare:
        observed.append(sum(counts[c] for c in rare))
        expected.append(sum(probs[c] for c in rare) * total)
    assert len(observed) == 1 or chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("solved", [(), (0, 2)], ids=["none reached", "two reached"])
@pytest.mark.parametrize("her_ratio", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("name", TWO_WAYS)
def test_every_combination_of_rows_has_its_exact_probability(name, her_ratio, solved):
    data = labelled((2, 4, 3), solved)
    batch = WAYS[name](data, 40_000, her_ratio=her_ratio)()
    assert_distributed(observed_cells(batch, data), expected_probs(data, "future", her_ratio))


@pytest.mark.parametrize("strategy", ["geometric", "final", "random"])
@pytest.mark.parametrize("name", TWO_WAYS)
def test_other_strategies_have_their_exact_probabilities(name, strategy):
    data = labelled((2, 4, 3), (1,))
    batch = WAYS[name](data, 40_000, her_ratio=0.8, strategy=strategy, gamma=GAMMA)()
    assert_distributed(observed_cells(batch, data), expected_probs(data, strategy, 0.8))


def test_the_other_ways_have_the_same_probabilities(way):
    data = labelled((3, 2), (1,))
    batch = way(data, 20_000, her_ratio=0.5, success=success)()
    assert_distributed(observed_cells(batch, data), expected_probs(data, "future", 0.5))


def with_extras(name, data, size, **options):
    """Batches with the steps to the goal and the initial observation."""
    if name == "packed":
        return packed(data, size, extras=("goal_offset", "initial_observation"), **options)
    return WAYS[name](data, size, step_key="step_count", initial=True, **options)


def counted(data):
    """Rows as of :func:`labelled`, with the number of each in its trajectory."""
    return data.copy().set("step_count", (torch.arange(len(data)) - data["traj_start"]).unsqueeze(-1))


@pytest.mark.parametrize("name", WAYS)
def test_extras_of_a_known_trajectory_are_those_worked_by_hand(name):
    # rows 0 to 2 are a trajectory from 0 to 3, rows 3 and 4 one from 100 to 102; goals are the last state of each
    batch = with_extras(name, counted(labelled((3, 2))), 200, her_ratio=1.0, strategy="final")()
    found = {
        (number, *(batch[key][place].item() for key in ("desired_goal", "goal_offset", "initial_observation")))
        for place, number in enumerate(row(batch).tolist())
    }
    assert found == {(0, 3, 2, 0), (1, 3, 1, 0), (2, 3, 0, 0), (3, 102, 1, 100), (4, 102, 0, 100)}


@pytest.mark.parametrize("her_ratio", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("name", TWO_WAYS)
def test_steps_to_the_goal_have_their_exact_probabilities(name, her_ratio):
    data = counted(labelled((2, 4, 3), (0, 2)))
    batch = with_extras(name, data, 40_000, her_ratio=her_ratio)()
    offset, stop = batch["goal_offset"].squeeze(-1), data["traj_stop"].tolist()
    probs = {(i, -1): (1 - her_ratio) / 9 for i in range(9)}
    probs |= {(i, k - i): her_ratio / 9 / (stop[i] - i) for i in range(9) for k in range(i, stop[i])}
    cells = Counter(zip(row(batch).tolist(), offset.tolist()))
    assert_distributed(cells, {cell: p for cell, p in probs.items() if p > 0})
    # and belong to the goals beside them
    kept = offset < 0
    goal = torch.where(kept.unsqueeze(-1), data["desired_goal"][row(batch)], batch["observation"] + offset[:, None] + 1)
    torch.testing.assert_close(batch["desired_goal"], goal)
    torch.testing.assert_close(batch["initial_observation"], data["observation"][data["traj_start"][row(batch)]])


@pytest.mark.parametrize(
    "goals",
    [
        {},
        {"strategy": "away", "threshold": 1.5, "actor_strategy": {"final": 0.3, "future": 0.7}},
        {"stitch": 0.5, "threshold": 1.5, "stitch_width": 40.0, "actor_strategy": "final"},
        {"stitch": 1.0, "threshold": 1.0},
    ],
)
def test_the_unit_and_the_packed_sampler_give_one_batch_for_the_same_random_numbers(goals):
    data, weights = counted(labelled((5, 4, 6), (1,))), torch.ones(15)
    stitched = "stitch" in goals
    extras = ("initial_observation",) if stitched else ("goal_offset", "initial_observation")
    sampler = GoalBatchSampler(data, 300, her_ratio=1.0, anchors=weights, extras=extras, seed=4, **goals)
    storage = TensorStorage(data)
    storage._rng = torch.Generator().manual_seed(4)
    unit = GoalTransition(anchors=lambda rows: weights, initial=True, **goals)
    index, _ = unit.expand(torch.zeros(300, dtype=torch.int64), {}, storage)
    batch = HindsightGoalTransform(1.0, step_key=None if stitched else "step_count")(storage.get(index))
    expected = sampler()
    assert ("actor_goal" in expected) == ("actor_strategy" in goals)
    for key in expected.keys(True, True):
        assert torch.equal(batch[key], expected[key]), key


@pytest.mark.parametrize("name", TWO_WAYS)
def test_the_actor_has_goals_of_its_own_where_a_row_does_not_keep_its_stored_one(name):
    # rows 0 to 2 go from 0 to 3, rows 3 and 4 from 100 to 102
    data = labelled((3, 2))
    batch = WAYS[name](data, 20_000, her_ratio=0.75, strategy="current", actor_strategy="final")()
    found = Counter(
        zip(row(batch).tolist(), *(batch[key].squeeze(-1).tolist() for key in ("desired_goal", "actor_goal")))
    )
    probs = {(i, i + 1, 3): 0.15 for i in range(3)} | {(i, i + 98, 102): 0.15 for i in (3, 4)}
    for number, goal in enumerate(data["desired_goal"].squeeze(-1).tolist()):
        probs[number, goal, goal] = probs.get((number, goal, goal), 0.0) + 0.05
    assert_distributed(found, probs)


def test_the_last_state_is_a_goal_and_the_last_row_its_own_goal_transition(way):
    data = labelled((4,))
    batch = way(data, 500, her_ratio=1.0)()
    assert batch["desired_goal"].max() == 4.0
    last = row(batch) == 3
    assert bool((batch["desired_goal"][last] == 4.0).all())
    assert set(row(batch["q"]).tolist()) == {0, 1, 2, 3}


def test_a_single_trajectory_and_a_batch_of_one_work(way):
    data = labelled((2,), (0,))
    batch = way(data, 1, success=success)()
    assert batch.shape == (1,)
    check_invariants(batch, data, 0.8)


def test_the_batch_feeds_the_loss(way):
    networks = make_networks(*goal_specs(1, 1, 1), hidden=(4,))
    loss = SMORELoss(networks.actor, networks.score, networks.value, delay_score=False)
    out = loss(way(labelled((3, 4), (0,)), 16)())
    total = sum(value for key, value in out.items() if key.startswith("loss_"))
    total.backward()
    assert torch.isfinite(total)
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("name", [name for name in WAYS if name != "packed"])
def test_a_buffer_is_reproducible_from_its_generator(name):
    data = labelled((5, 4, 6), (1,))

    def draws(seed, noise):
        torch.manual_seed(noise)  # the global generator must not matter
        sample = WAYS[name](data, 64, generator=torch.Generator().manual_seed(seed))
        return [observed_cells(sample(), data) for _ in range(3)]

    assert draws(0, 1) == draws(0, 2)
    assert draws(0, 1) != draws(1, 1)


def test_without_a_generator_the_global_seed_decides(way):
    data = labelled((5, 4, 6), (1,))

    def draw():
        torch.manual_seed(3)
        return observed_cells(way(data, 64)(), data)

    assert draw() == draw()


def test_rewards_of_another_convention_are_read_by_the_function_given():
    data = labelled((3, 2), (0,))
    data["next", "reward"] = data["next", "reward"] - 1.0  # -1 before the goal, 0 at it
    batch = WAYS["unit in ReplayBuffer"](
        data, 4000, her_ratio=0.25, reached=lambda rows: (rows["next", "reward"] == 0).squeeze(-1)
    )()
    kept = (batch["q", "desired_goal"] != batch["q", "next", "achieved_goal"]).squeeze(-1)
    assert 0.70 < kept.float().mean() < 0.80
    assert bool((row(batch["q"])[kept] == 2).all())


def test_the_index_names_the_four_rows():
    data = labelled((3, 4), (1,))
    rb = TensorDictReplayBuffer(storage=TensorStorage(data), batch_size=200, sample_unit=GoalTransition())
    rows = rb.sample()
    assert rows.shape == (200, 4)
    torch.testing.assert_close(rows["index"], row(rows))
    i, k, m, arriving = rows["index"].unbind(-1)
    assert bool((arriving == 6).all())
    assert bool(((i <= k) & (k < data["traj_stop"][i])).all())
    # m, the goal row of another anchor, is a later row of the same trajectory as little as any
    assert bool(((m < i) | (m >= data["traj_stop"][i])).any())


def test_without_a_reached_row_the_fourth_column_repeats_the_third():
    rb = ReplayBuffer(storage=TensorStorage(labelled((3, 4))), batch_size=50, sample_unit=GoalTransition())
    index = row(rb.sample())
    torch.testing.assert_close(index[:, 3], index[:, 2])


def test_the_cache_follows_the_storage():
    rb = ReplayBuffer(storage=LazyTensorStorage(20), batch_size=300, sample_unit=GoalTransition())
    rb.extend(labelled((3,), (0,)))
    assert set(row(rb.sample())[:, 3].tolist()) == {2}
    second = labelled((4,), (0,))
    second["action"] += 3
    rb.extend(second)
    rows = row(rb.sample())
    assert set(rows[:, 3].tolist()) == {2, 6}
    assert set(rows[:, 0].tolist()) == set(range(7))
    # the second part brings row numbers of its own, which are wrong here
    assert bool(((rows[:, 0] < 3) == (rows[:, 1] < 3)).all())
    reward = torch.zeros(7, 1)
    reward[4] = 1.0
    rb.set_(("next", "reward"), reward)
    assert set(row(rb.sample())[:, 3].tolist()) == {4}


def reading_of(unit, storage):
    """What a unit knows of a storage."""
    rows = unit._rows(storage)
    return {name: None if value is None else torch.as_tensor(value).tolist() for name, value in vars(rows).items()}


@settings(max_examples=60)
@given(
    writes=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6),
    capacity=st.integers(8, 40),
    changed=st.sets(st.integers(0, 5)),
    named=st.sampled_from(["not", "in turn", "again and again"]),
)
def test_a_unit_that_has_seen_a_storage_grow_knows_what_one_that_sees_it_now_knows(writes, capacity, changed, named):
    unit, rb = GoalTransition(), ReplayBuffer(storage=LazyTensorStorage(capacity), batch_size=4)
    begun = 0
    for number, done in enumerate(writes):
        ends = torch.tensor(done).unsqueeze(-1)
        after = TensorDict({"done": ends, "reward": ends.float(), "achieved_goal": ends.float()}, [len(done)])
        rows = TensorDict({"action": ends.float(), "next": after}, [len(done)])
        ids = begun + torch.cat([ends.new_zeros(1, 1), ends[:-1]]).cumsum(0)
        begun = int(ids[-1] + ends[-1])
        if named != "not":
            rows["collector", "traj_ids"] = ids if named == "in turn" else ids % 3
        rb.extend(rows)
        if number in changed:
            rb._storage.set(0, rb._storage[0].update({"next": {"done": [True], "reward": [1.0]}}), set_cursor=False)
        assert reading_of(unit, rb._storage) == reading_of(GoalTransition(), rb._storage)


def test_a_growing_storage_is_read_once_and_then_only_its_new_rows():
    unit, seen = GoalTransition(reached=lambda data: seen.append(len(data)) or stored_goal_reached(data)), []
    rb = ReplayBuffer(storage=LazyTensorStorage(100), batch_size=4, sample_unit=unit)
    for length in (5, 3, 4):
        rb.extend(labelled((length,)))
        rb.sample()
        rb.sample()
    assert seen == [5, 3, 4]


@pytest.mark.parametrize("named", [False, True])
def test_of_a_full_ring_only_the_new_rows_are_read(named):
    unit, seen = GoalTransition(reached=lambda data: seen.append(len(data)) or stored_goal_reached(data)), []
    rb = ReplayBuffer(storage=LazyTensorStorage(10), batch_size=4, sample_unit=unit)
    for number, length in enumerate((5, 4, 3, 2, 6, 12)):
        data = labelled((length,), (0,))[-10:]
        if named:
            data["collector", "traj_ids"] = torch.full((len(data),), number)
        rb.extend(data)
        rb.sample()
    # of the last write nothing of what was known is left
    assert seen == [5, 4, 3, 2, 6, 10]


def test_one_unit_serves_storages_that_come_and_go():
    unit = GoalTransition()
    for turn in range(4):
        data = labelled((2, 4) if turn % 2 else (4, 2), (0,))
        rb = ReplayBuffer(storage=LazyTensorStorage(6), batch_size=64, sample_unit=unit)
        rb.extend(data)
        rows = row(rb.sample())
        assert bool((rows[:, 1] < data["traj_stop"][rows[:, 0]]).all())
        assert set(rows[:, 3].tolist()) == {1 if turn % 2 else 3}
        del rb
        gc.collect()


def test_a_unit_that_has_sampled_is_copied_and_pickled_without_its_storage():
    unit = GoalTransition("geometric", gamma=0.5)
    rb = ReplayBuffer(storage=TensorStorage(labelled((3,))), batch_size=4, sample_unit=unit)
    rb.sample()
    for other in (pickle.loads(pickle.dumps(unit)), copy.deepcopy(unit)):
        assert (other.strategy, other.gamma, other._cache) == ("geometric", 0.5, None)


def test_row_numbers_serve_where_there_are_no_flags():
    data = labelled((3, 4), (0,)).exclude(("next", "done"))
    rb = ReplayBuffer(storage=TensorStorage(data), batch_size=200, sample_unit=GoalTransition())
    rows = row(rb.sample())
    assert bool((rows[:, 1] < data["traj_stop"][rows[:, 0]]).all())


@pytest.mark.parametrize("name", [name for name in WAYS if name != "packed"])
def test_a_buffer_relabels_an_open_last_trajectory_within_what_is_there(name):
    data = labelled((3, 4))[:-1]
    rows = WAYS[name](data, 300, her_ratio=1.0)()
    assert 103.0 in rows["desired_goal"]
    assert bool((rows["desired_goal"][row(rows) >= 3] > 100.0).all())


def test_a_table_refuses_an_open_last_trajectory():
    with pytest.raises(ValueError, match="must be done"):
        GoalBatchSampler(labelled((3, 4))[:-1], 4)


def test_a_full_ring_is_read_from_its_oldest_row_on():
    rb = ReplayBuffer(storage=LazyTensorStorage(6), batch_size=400, sample_unit=GoalTransition())
    rb.extend(labelled((3, 3)))
    new = labelled((3,))
    # rows 0 and 1 are new and open; row 2 ends an older trajectory of which nothing else is left; 3 to 5 are whole
    rb.extend(new[:2])
    goals = {}
    for row, goal in index_pairs(rb):
        goals.setdefault(row, set()).add(goal)
    assert goals == {0: {0, 1}, 1: {1}, 2: {2}, 3: {3, 4, 5}, 4: {4, 5}, 5: {5}}
    rb.extend(new[2:])
    goals = {}
    for row, goal in index_pairs(rb):
        goals.setdefault(row, set()).add(goal)
    assert goals == {0: {0, 1, 2}, 1: {1, 2}, 2: {2}, 3: {3, 4, 5}, 4: {4, 5}, 5: {5}}


def test_a_trajectory_goes_on_over_the_end_of_a_ring():
    rb = ReplayBuffer(storage=LazyTensorStorage(5), batch_size=400, sample_unit=GoalTransition())
    rb.extend(labelled((4, 3))[:5])
    rb.extend(labelled((4, 3))[5:])
    # the second trajectory lies in rows 4, 0, 1; of the first, rows 2 and 3 are left
    goals = {}
    for row, goal in index_pairs(rb):
        goals.setdefault(row, set()).add(goal)
    assert goals == {4: {4, 0, 1}, 0: {0, 1}, 1: {1}, 2: {2, 3}, 3: {3}}


def test_the_initial_row_is_the_first_that_is_there_of_the_row_s_own_trajectory():
    def first_rows(rb):
        rows, _ = GoalTransition(initial=True).expand(torch.arange(len(rb)), {}, rb._storage)
        assert rows.shape == (len(rb), 5)
        return rows[:, 4].tolist()

    rb = ReplayBuffer(storage=LazyTensorStorage(5))
    rb.extend(labelled((4, 3))[:5])
    assert first_rows(rb) == [0, 0, 0, 0, 4]
    rb.extend(labelled((4, 3))[5:])
    # the second trajectory lies in rows 4, 0, 1; of the first, rows 2 and 3 are left
    assert first_rows(rb) == [4, 4, 2, 2, 4]
    # two environments stepped in turn
    data = labelled((8,))
    data["collector", "traj_ids"] = torch.tensor([0, 1] * 4)
    assert first_rows(ReplayBuffer(storage=TensorStorage(data))) == [0, 1] * 4


@pytest.mark.parametrize("number", [6, 5])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("how", ["state_dict", "dumps"])
def test_a_restored_buffer_is_read_from_its_oldest_row_on(how, used, number, tmp_path):
    rb = ReplayBuffer(storage=LazyTensorStorage(6), batch_size=400, sample_unit=GoalTransition())
    if number == 6:
        # a full ring: row 1 is the newest, of a trajectory that is still open; row 2 ends an older one
        rb.extend(labelled((3, 3)))
        rb.extend(labelled((3,))[:2])
    else:
        # room for one more: rows 3 and 4 are of an open trajectory, which does not go on in row 0
        rb.extend(labelled((3, 3))[:5])
    other = ReplayBuffer(storage=LazyTensorStorage(6), batch_size=400, sample_unit=GoalTransition())
    if used:
        other.extend(labelled((3, 3))[:4])
        other.sample()
    if how == "state_dict":
        other.load_state_dict(rb.state_dict())
    else:
        rb.dumps(tmp_path)
        other.loads(tmp_path)
    goals = {}
    for row, goal in index_pairs(other):
        goals.setdefault(row, set()).add(goal)
    if number == 6:
        assert goals == {0: {0, 1}, 1: {1}, 2: {2}, 3: {3, 4, 5}, 4: {4, 5}, 5: {5}}
    else:
        assert goals == {0: {0, 1, 2}, 1: {1, 2}, 2: {2}, 3: {3, 4}, 4: {4}}
    # and written on where the saved one was left
    for each in (rb, other):
        each.extend(labelled((3,))[2:])
    assert reading_of(other._sample_unit, other._storage) == reading_of(GoalTransition(), rb._storage)


def index_pairs(rb):
    """Pairs of a row and of its goal row, as places in the storage."""
    unit, storage = rb._sample_unit, rb._storage
    index = torch.randint(len(storage), (400,))
    rows, _ = unit.expand(index, {}, storage)
    assert torch.equal(rows[:, 0], index)
    return [tuple(pair) for pair in rows[:, :2].tolist()]


@pytest.mark.parametrize("flag", ["terminated", "truncated", "done"])
def test_any_of_the_three_flags_ends_a_trajectory(flag):
    data = labelled((3, 4))
    ends = data["next", "done"].clone()
    for name in ("terminated", "truncated", "done"):
        data["next", name] = ends if name == flag else torch.zeros_like(ends)
    rows = GoalTransition().expand(torch.zeros(200, dtype=torch.int64), {}, stored(data))[0]
    assert set(rows[:, 1].tolist()) == {0, 1, 2}
    table = GoalBatchSampler(data, 8)
    assert table._stop.tolist() == [3, 3, 3, 7, 7, 7, 7]


@pytest.mark.parametrize("unit_options", [{"strategy": "away"}, {"strategy": "future", "actor_strategy": "away"}])
def test_goals_away_from_rows_among_each_other_are_those_of_rows_in_order(unit_options):
    # one rests and then jumps, the other moves all the time: where goals lie away differs from row to row
    paths = (np.array([0, 0, 0, 0, 5, 5, 5.0]), np.array([100, 103, 106, 109, 112, 115, 118.0]))
    episodes = [
        {"observation": path[:, None], "achieved_goal": path[:, None], "desired_goal": path[-1:], "reward": np.zeros(6)}
        for path in paths
    ]
    for j, episode in enumerate(episodes):
        episode["action"] = np.arange(6 * j, 6 * j + 6)[:, None]
    data = TrajectoryStore.from_episodes(episodes).data
    key = "actor_goal" if "actor_strategy" in unit_options else "desired_goal"

    def pairs(batch):
        return set(zip(row(batch).tolist(), batch[key].squeeze(-1).tolist()))

    expected = pairs(packed(data, 4000, her_ratio=1.0, threshold=1.0, **unit_options)())
    # by hand: a row of the first that rests has the goals of later rows that are at 5; those at the end keep their own
    assert {pair for pair in expected if pair[0] < 6} == {(number, 5.0) for number in range(6)}
    data["traj"] = torch.arange(2).repeat_interleave(6)
    mixed = data[torch.arange(12).reshape(2, 6).T.flatten()]
    way = WAYS["unit in TensorDictReplayBuffer"]
    batch = way(mixed, 4000, her_ratio=1.0, threshold=1.0, trajectory_key="traj", **unit_options)()
    assert pairs(batch) == expected


def crossing():
    """Rows that enter 1, 2, 3; 13, 14; and 23, 22, say which row they are and, as ``traj``, of which trajectory."""
    paths = (np.array([0.0, 1, 2, 3]), np.array([12.0, 13, 14]), np.array([24.0, 23, 22]))
    episodes, first = [], 0
    for path in paths:
        steps = len(path) - 1
        rows = np.arange(first, first + steps, dtype=np.float32)[:, None]
        states = {name: path.astype(np.float32)[:, None] for name in ("observation", "achieved_goal")}
        episodes.append({**states, "action": rows, "desired_goal": np.array([-1.0]), "reward": np.zeros(steps)})
        first += steps
    data = TrajectoryStore.from_episodes(episodes).data
    data["traj"] = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    return data


# of cells 20 wide 1 to 3 are in that around 0, and 13 to 23 in that around 20: only the last two paths meet
MET = {"stitch": 0.5, "threshold": 0.5, "stitch_width": 20.0}


@pytest.mark.parametrize("actor", [False, True])
@pytest.mark.parametrize("how", ["in order", "among each other", "in a ring"])
def test_a_stitched_goal_is_that_of_a_row_of_a_path_that_is_met(how, actor):
    data, options = crossing(), {"trajectory_key": "traj", **MET}
    options |= {"strategy": "current", "actor_strategy": "future"} if actor else {}
    unit, storage = GoalTransition(**options), LazyTensorStorage(7)
    rb = ReplayBuffer(storage=storage, batch_size=30_000, sample_unit=unit, transform=HindsightGoalTransform(1.0))
    if how == "in a ring":
        # which the others then overwrite
        rb.extend(data[:3])
    rb.extend(data[torch.tensor([0, 3, 5, 1, 4, 6, 2])] if how == "among each other" else data)
    assert unit._rows(storage).start == (3 if how == "in a ring" else 0)
    batch = rb.sample()
    goals = batch["actor_goal" if actor else "desired_goal"].squeeze(-1)
    found = Counter(zip(row(batch).tolist(), goals.tolist()))
    # by hand: half of the goals to which something changes, in a cell of n rows each the one gone on from with 1 / n,
    # where that changes something in turn, uniformly to a later row or itself
    within = {0: (1, 2, 3), 1: (2, 3), 2: (3,), 3: (13, 14), 4: (14,), 5: (23, 22), 6: (22,)}
    further = {1: (1, 2, 3), 2: (2, 3), 3: (3,), 13: (13, 14), 14: (14,), 23: (23, 22), 22: (22,)}
    entered = dict(enumerate((1, 2, 3, 13, 14, 23, 22)))
    probs = Counter()
    for number, own in within.items():
        cell = [place for place in further if (place < 10) == (entered[number] < 10)]
        for goal in own:
            p = 1 / 7 / len(own)
            if goal == entered[number]:
                probs[number, goal] += p
                continue
            probs[number, goal] += p / 2
            for met in cell:
                for reached in further[met]:
                    probs[number, reached if reached != met else goal] += p / 2 / len(cell) / len(further[met])
    assert_distributed(found, probs)
    # q enters what it pursues
    assert torch.equal(batch["q", "desired_goal"], batch["q", "next", "achieved_goal"])


def test_a_storage_that_grows_has_further_paths_to_be_met():
    data, unit = crossing(), GoalTransition(**MET | {"stitch_width": 100.0})
    rb = ReplayBuffer(storage=LazyTensorStorage(20), batch_size=4000, sample_unit=unit)
    rb.extend(data[:3])
    assert set(row(rb.sample())[:, 1].tolist()) == {0, 1, 2}
    rb.extend(data[3:])
    rows = row(rb.sample())
    assert {4, 6} <= set(rows[rows[:, 0] == 0, 1].tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stitch": 1.5, "threshold": 0.1}, r"must lie in \[0, 1\], got 1.5"),
        ({"stitch": 0.5}, "need a positive threshold, got None"),
        ({"stitch": 0.5, "threshold": 0.1, "stitch_width": -1.0}, "width of goal cells must be positive .*, got -1.0"),
    ],
)
def test_a_stitch_that_cannot_be_done_is_refused_when_the_unit_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        GoalTransition(**options)


def test_goals_of_whole_numbers_are_stitched():
    data = crossing()
    for key in ("desired_goal", ("next", "achieved_goal")):
        data[key] = data[key].long()
    rows = GoalTransition(**MET).expand(torch.full((4000,), 3), {}, stored(data))[0]
    assert set(rows[:, 1].tolist()) == {3, 4, 6}


def test_goals_of_more_dimensions_are_not_stitched():
    data = crossing()
    data["next", "achieved_goal"] = torch.zeros(7, 2, 2)
    with pytest.raises(ValueError, match=r"need goals of one dimension, got shape \[2, 2\]"):
        GoalTransition(**MET).expand(torch.zeros(4, dtype=torch.int64), {}, stored(data))


def test_interleaved_trajectories_are_told_apart_by_their_key():
    # two environments stepped in turn: even rows belong to one, odd rows to the other
    data = labelled((8,))
    ids = torch.tensor([0, 1] * 4)
    data["collector", "traj_ids"] = ids
    data["next", "done"] = torch.zeros(8, 1, dtype=torch.bool)
    rows = GoalTransition().expand(torch.randint(8, (500,)), {}, stored(data))[0]
    assert torch.equal(ids[rows[:, 0]], ids[rows[:, 1]])
    assert bool((rows[:, 1] >= rows[:, 0]).all())
    data["episode"] = torch.tensor([5, 5, 5, 5, 9, 9, 9, 9])
    rows = GoalTransition(trajectory_key="episode").expand(torch.randint(8, (500,)), {}, stored(data))[0]
    assert torch.equal(data["episode"][rows[:, 0]], data["episode"][rows[:, 1]])
    with pytest.raises(KeyError, match="have no lap"):
        GoalTransition(trajectory_key="lap").expand(torch.zeros(1, dtype=torch.int64), {}, stored(data))


def test_data_without_rewards_reach_no_stored_goal_and_say_so(caplog):
    data = labelled((3,)).exclude(("next", "reward"))
    with caplog.at_level("WARNING", "torchrl_smore"):
        assert stored_goal_reached(data).tolist() == [False] * 3
    assert "no ('next', 'reward') in the data" in caplog.text
    caplog.clear()
    data["next", "reward"] = torch.tensor([[-1.0], [-1.0], [0.0]])
    with caplog.at_level("WARNING", "torchrl_smore"):
        stored_goal_reached(data)
    assert "no reward is positive" in caplog.text


def test_rewards_of_which_none_is_positive_are_told_of_all_rows_and_not_of_each_write(caplog):
    rb = ReplayBuffer(storage=LazyTensorStorage(100), batch_size=4, sample_unit=GoalTransition())
    with caplog.at_level("WARNING", "torchrl_smore"):
        for reward in (-3.0, -2.0, -1.0):
            rows = labelled((3,))
            rows["next", "reward"] = torch.full((3, 1), reward)
            rb.extend(rows)
            rb.sample()
    (said,) = caplog.messages
    assert "no reward is positive (they lie in [-3, -3])" in said


def test_weights_of_a_sampler_are_not_given_to_rows_that_anchors_put_in_place_of_its_own():
    class Weighing(RandomSampler):
        def sample(self, storage, batch_size):
            index, info = super().sample(storage, batch_size)
            return index, {**info, "priority_weight": index + 1.0}

    def buffer(**options):
        storage, unit = LazyTensorStorage(20), GoalTransition(**options)
        rb = TensorDictReplayBuffer(storage=storage, sampler=Weighing(), sample_unit=unit, batch_size=8)
        rb.extend(labelled((12,)))
        return rb

    batch = buffer().sample()
    assert len(batch["priority_weight"]) > 0
    with pytest.raises(ValueError, match=r"weighs the rows that it has drawn .* with anchors= others are drawn"):
        buffer(anchors=functools.partial(anchor_weights, "uniform")).sample()


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_distance_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be a finite distance of at least 0, got"):
        GoalTransition(threshold=threshold)


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (0.0, float("inf")), (0.0,)])
def test_rewards_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match="reward_values must be the finite rewards"):
        HindsightGoalTransform(success=lambda achieved, goal: achieved == goal, reward_values=values)


@pytest.mark.parametrize("kind", [ReplayBuffer, TensorDictReplayBuffer])
@pytest.mark.parametrize("how", ["sample_unit", "sampler"])
def test_a_storage_of_lists_is_refused_at_the_first_sample_with_what_to_use(kind, how):
    drawing = {"sample_unit": GoalTransition()} if how == "sample_unit" else {"sampler": GoalTransitionSampler()}
    # neither making the buffer nor filling it shows the storage to the unit
    rb = kind(storage=ListStorage(10), batch_size=2, transform=HindsightGoalTransform(), **drawing)
    rb.extend(labelled((3,)))
    with pytest.raises(NotImplementedError, match=r"LazyTensorStorage or LazyMemmapStorage, got ListStorage: make the"):
        rb.sample()


def test_anchors_are_drawn_by_weights_in_rho_and_q_and_never_where_the_weight_is_zero():
    data = labelled((4, 4))
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    unit = GoalTransition("current", anchors=lambda stored_data: weights)
    rows = unit.expand(torch.zeros(8000, dtype=torch.int64), {}, stored(data))[0]
    for column in (0, 2):
        counts = torch.bincount(rows[:, column], minlength=8) / 8000
        torch.testing.assert_close(counts, weights / 4.0, atol=0.02, rtol=0.0)


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
@pytest.mark.parametrize("flag", ["done", "truncated"])
def test_anchors_by_a_rule_see_a_trajectory_that_still_grows(storage, flag):
    rule = functools.partial(anchor_weights, "moving", threshold=1.5, share=1.0)
    rb = ReplayBuffer(
        storage=storage(20),
        batch_size=500,
        sample_unit=GoalTransition(anchors=rule),
        transform=HindsightGoalTransform(1.0),
    )
    data = labelled((3, 5))[:-1]
    rb.extend(data.exclude(*(("next", name) for name in ("done", "terminated", "truncated") if name != flag)))
    # steps of 1: of rows 0 to 2 and 3 to 6, the last two of each move by 1 at most from there on
    assert set(row(rb.sample()).tolist()) == {0, 3, 4}


@pytest.mark.parametrize("weights", [np.ones(3), [1.0, 1.0, 1.0]], ids=["array", "list"])
def test_weights_that_are_no_tensor_are_refused(weights):
    unit = GoalTransition(anchors=lambda stored_data: weights)
    for use in (
        lambda: unit.expand(torch.zeros(1, dtype=torch.int64), {}, stored(labelled((3,)))),
        lambda: GoalBatchSampler(labelled((3,)), 2, anchors=weights),
    ):
        with pytest.raises(TypeError, match=rf"weights as a tensor of shape \[3\], got {type(weights).__name__}"):
            use()


def test_rows_of_whole_episodes_are_refused_with_what_to_do():
    rb = ReplayBuffer(storage=LazyTensorStorage(20), batch_size=4, sample_unit=GoalTransition())
    # two environments' batches as a collector gives them, [2, 3]
    rb.extend(torch.stack([labelled((3,)), labelled((3,))]))
    with pytest.raises(ValueError, match=r"one transition in each row .* batch size \[3\]: extend .*reshape\(-1\)"):
        rb.sample()


def test_a_trajectory_key_of_several_numbers_is_refused():
    data = labelled((3,))
    data["episode"] = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"episode was to say .*: expected shape \[3\] or \[3, 1\], got \[3, 2\]"):
        GoalTransition(trajectory_key="episode").expand(torch.zeros(1, dtype=torch.int64), {}, stored(data))


def stored(data):
    storage = LazyTensorStorage(len(data))
    storage.set(range(len(data)), data)
    return storage


def test_storages_of_two_dimensions_are_refused():
    data = TensorDict({"x": torch.zeros(4, 5)}, [4, 5])
    for options in ({"sample_unit": GoalTransition()}, {"sampler": GoalTransitionSampler()}):
        rb = ReplayBuffer(storage=LazyTensorStorage(20, ndim=2), batch_size=4, **options)
        rb.extend(data)
        with pytest.raises(NotImplementedError, match="one-dimensional"):
            rb.sample()


@pytest.mark.parametrize("build", [GoalTransition, lambda name: GoalBatchSampler(labelled((2,)), 2, strategy=name)])
def test_an_unknown_strategy_is_refused_at_once_with_the_nearest_name(build):
    with pytest.raises(ValueError, match=r"futur.*future"):
        build("futur")


@pytest.mark.parametrize(
    "build",
    [
        GoalTransition,
        lambda strategy, **gamma: GoalBatchSampler(labelled((2,)), 2, strategy=strategy, **gamma),
        lambda strategy, **gamma: GoalBatchSampler(labelled((2,)), 2, actor_strategy=strategy, **gamma),
    ],
    ids=["unit", "packed", "actor"],
)
def test_geometric_goals_without_an_end_are_refused_when_the_sampler_is_made(build):
    for strategy in ("geometric", {"future": 0.5, "geometric": 0.5}):
        for gamma in (0.0, 1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"gamma must lie in \(0, 1\) for .*'geometric', got {gamma}"):
                build(strategy, gamma=gamma)
    # of no use where no goal is geometric
    build({"future": 1.0, "geometric": 0.0}, gamma=1.0)
    build("final", gamma=1.0)


def test_a_gamma_that_is_changed_later_is_refused_with_the_next_batch():
    sampler = GoalBatchSampler(labelled((2,)), 2, strategy="geometric")
    sampler.gamma = 1.0
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\) for .*'geometric', got 1.0"):
        sampler()


def test_reached_rows_are_those_with_a_positive_reward():
    data = TensorDict({"next": {"reward": torch.tensor([[0.0], [1.0], [-1.0], [0.5]])}}, [4])
    assert stored_goal_reached(data).tolist() == [False, True, False, True]


def test_goals_that_are_not_there_are_named_where_a_strategy_or_a_rule_reads_them():
    data = labelled((3, 4)).exclude(("next", "achieved_goal"))
    unit = GoalTransition("away", threshold=0.5)
    with pytest.raises(KeyError, match=r"have no \('next', 'achieved_goal'\), .*'away'.*: rename .* observation"):
        unit.expand(torch.zeros(4, dtype=torch.int64), {}, stored(data))
    with pytest.raises(KeyError, match=r"have no \('next', 'achieved_goal'\), .*stitched .* observation"):
        GoalTransition(**MET).expand(torch.zeros(4, dtype=torch.int64), {}, stored(data))
    with pytest.raises(KeyError, match="the anchor rule 'moving'"):
        anchor_weights("moving", data, threshold=0.5)
