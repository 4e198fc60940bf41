"""The units and transforms in buffers that are filled the way users of TorchRL fill theirs."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer, TensorDictReplayBuffer
from torchrl.envs import GymWrapper, SerialEnv, StepCounter, TransformedEnv

from torchrl_smore.data import GoalTransition, HindsightGoalTransform
from torchrl_smore.envs import get_task


def make_env():
    """Episodes of 7 steps, which the time limit ends: truncated, and terminated never."""
    return TransformedEnv(GymWrapper(get_task("PointReach").make_env()), StepCounter(max_steps=7))


@pytest.fixture(scope="module")
def batches():
    """What a collector gives of two environments that are stepped together: ``[2, 10]`` each, four times."""
    env = SerialEnv(2, make_env)
    options = {"frames_per_batch": 20, "total_frames": 80, "auto_register_policy_transforms": False}
    collector = Collector(env, None, **options)
    collected = [batch.clone() for batch in collector]
    collector.shutdown()
    assert [list(batch.shape) for batch in collected] == [[2, 10]] * 4
    return collected


def rows_of(buffer):
    """The rows of many samples: of the transition, of its goal, and of the goal transition."""
    index = torch.arange(len(buffer)).repeat(100)
    rows, _ = buffer._sample_unit.expand(index, {}, buffer._storage)
    return rows


@pytest.mark.parametrize("max_size", [80, 50])
@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
def test_what_a_collector_of_two_environments_gives_is_relabelled_within_its_episode(batches, storage, max_size):
    buffer = TensorDictReplayBuffer(
        storage=storage(max_size),
        batch_size=256,
        sample_unit=GoalTransition(),
        transform=HindsightGoalTransform(her_ratio=1.0),
    )
    for batch in batches:
        # episodes go on in the next batch, behind those of the other environment; a buffer of 50 wraps
        buffer.extend(batch.reshape(-1))
        stored = buffer.storage[:]
        ids, step = stored["collector", "traj_ids"], stored["next", "step_count"][:, 0]
        row, goal = rows_of(buffer)[:, :2].unbind(-1)
        assert torch.equal(ids[row], ids[goal])
        assert bool((step[goal] >= step[row]).all())
        # every later step that is still there comes as a goal
        pairs = {tuple(pair) for pair in torch.stack([row, goal], -1).tolist()}
        for first in range(0, len(stored), 7):
            later = (ids == ids[first]) & (step >= step[first])
            assert {goal for row, goal in pairs if row == first} == set(later.nonzero()[:, 0].tolist())
        sample = buffer.sample()
        entered = stored["next", "achieved_goal"]
        assert bool((sample["desired_goal"][:, None] == entered).all(-1).any(-1).all())
    assert buffer.sample()["q", "desired_goal"].shape == (256, 2)


def test_steps_and_initial_observations_are_those_that_the_environments_saw(batches):
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(80),
        batch_size=256,
        sample_unit=GoalTransition(initial=True),
        transform=HindsightGoalTransform(her_ratio=1.0, step_key="step_count"),
    )
    for batch in batches:
        buffer.extend(batch.reshape(-1))
    stored, sample = buffer.storage[:], buffer.sample()
    step, ids = stored["step_count"][:, 0], stored["collector", "traj_ids"]
    same = sample["collector", "traj_ids"][:, None] == ids
    # of each trajectory the row so many steps ahead, and the one of step 0
    ahead = (same & (step == sample["step_count"] + sample["goal_offset"])).int().argmax(1)
    torch.testing.assert_close(sample["desired_goal"], stored["next", "achieved_goal"][ahead])
    begun = (same & (step == 0)).int().argmax(1)
    torch.testing.assert_close(sample["initial_observation"], stored["observation"][begun])
    assert set(sample["goal_offset"][:, 0].tolist()) == set(range(7))


def test_pictures_as_goals_stay_with_their_rows():
    # every picture is of one colour, which is the number of its row
    number = torch.arange(64, dtype=torch.uint8)
    picture = number[:, None, None, None].expand(64, 3, 64, 64)
    ends = (torch.arange(64) % 8 == 7)[:, None]
    after = {"observation": number[:, None] + 1.0, "achieved_goal": picture, "truncated": ends}
    data = TensorDict(
        {"observation": number[:, None] + 0.0, "action": torch.zeros(64, 1), "desired_goal": picture + 100}
        | {"next": TensorDict({**after, "done": torch.zeros(64, 1, dtype=torch.bool)}, [64])},
        [64],
    )
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(64),
        batch_size=64,
        sample_unit=GoalTransition(),
        transform=HindsightGoalTransform(her_ratio=1.0),
    )
    buffer.extend(data)
    batch = buffer.sample()
    assert batch["desired_goal"].shape == (64, 3, 64, 64)
    colour = batch["desired_goal"].flatten(1)
    assert bool((colour == colour[:, :1]).all())
    row, goal = batch["observation"][:, 0].long(), colour[:, 0].long()
    assert torch.equal(row // 8, goal // 8)
    assert bool((goal >= row).all())
