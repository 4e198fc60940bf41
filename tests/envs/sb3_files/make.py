"""Writes the agents of this folder by Stable-Baselines3 itself, and what they do: ``python make.py [FOLDER]``.

Needs an environment with ``stable-baselines3`` and ``sb3-contrib`` (2.9.2 wrote the files that are here), which neither
the package nor its tests need. The agents are trained for some steps only: what counts is how they are written.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import TQC, TRPO
from stable_baselines3 import PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common import save_util
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

ROWS = 20
SMALL = {"net_arch": [8, 7]}
ON = {"n_steps": 32, "batch_size": 16, "policy_kwargs": SMALL, "seed": 0, "device": "cpu"}
OFF = {"learning_starts": 20, "batch_size": 8, "buffer_size": 100, "seed": 0, "device": "cpu"}
HER = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}}


def box(*shape: int) -> spaces.Box:
    """A space of any numbers."""
    return spaces.Box(-np.inf, np.inf, shape, np.float64)


class Drift(gymnasium.Env):
    """Random observations around (3, 3, ...), episodes of eight steps."""

    def __init__(self, low: list[float], high: list[float]) -> None:
        self.action_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        self.observation_space: spaces.Space = box(5)
        self.time = 0

    def reset(self, *, seed=None, options=None):
        """Begins an episode."""
        super().reset(seed=seed)
        self.time = 0
        return self.seen(), {}

    def step(self, action):
        """Goes on."""
        self.time += 1
        return self.seen(), float(-np.square(action).sum()), False, self.time == 8, {}

    def seen(self):
        """An observation."""
        return self.np_random.normal(3.0, 2.0, 5)


class GoalDrift(Drift):
    """The same with the observations of FetchReach."""

    widths = {"observation": 10, "achieved_goal": 3, "desired_goal": 3}

    def __init__(self) -> None:
        super().__init__([-1.0] * 4, [1.0] * 4)
        self.observation_space = spaces.Dict({key: box(width) for key, width in self.widths.items()})

    def seen(self):
        """An observation with its goals."""
        return {key: self.np_random.normal(1.0, 2.0, width) for key, width in self.widths.items()}

    def compute_reward(self, achieved, desired, info):
        """As HER asks for it."""
        return -np.linalg.norm(achieved - desired, axis=-1)


def main(folder: Path) -> None:
    """Trains and writes every agent."""
    # a member of each file would describe the machine
    save_util.get_system_info = lambda print_info: ({}, "")
    unit = [-1.0] * 2, [1.0] * 2
    makers = {
        "ppo": lambda: PPO("MlpPolicy", VecNormalize(DummyVecEnv([lambda: Drift(*unit)])), **ON),
        "trpo": lambda: TRPO("MlpPolicy", DummyVecEnv([lambda: Drift([-0.5, -2.0], [3.5, 4.0])]), **ON),
        "td3": lambda: TD3(
            "MlpPolicy", DummyVecEnv([lambda: Drift([-2.0] * 2, [2.0] * 2)]), policy_kwargs=SMALL, **OFF
        ),
        "sac": lambda: SAC("MultiInputPolicy", DummyVecEnv([GoalDrift]), policy_kwargs=SMALL, **HER, **OFF),
        "tqc": lambda: TQC(
            "MultiInputPolicy", VecNormalize(DummyVecEnv([GoalDrift])), policy_kwargs=SMALL | {"n_quantiles": 5}, **OFF
        ),
    }
    arrays = {}
    rng = np.random.default_rng(0)
    for name, make in makers.items():
        model = make()
        model.learn(64)
        if name in ("ppo", "trpo"):  # their first actions are all but 0
            torch.nn.init.normal_(model.policy.action_net.weight)
        model.save(folder / f"{name}.zip")
        space = model.observation_space
        widths = {key: part.shape[0] for key, part in space.items()} if isinstance(space, spaces.Dict) else 5
        if isinstance(widths, dict):
            seen = {key: rng.normal(1.0, 2.0, (ROWS, width)).astype(np.float32) for key, width in widths.items()}
        else:
            seen = {"observation": rng.normal(3.0, 2.0, (ROWS, widths)).astype(np.float32)}
        arrays |= {f"{name}/{key}": value for key, value in seen.items()}
        given = seen if isinstance(space, spaces.Dict) else seen["observation"]
        normalization = model.get_vec_normalize_env()
        if normalization is not None:
            (folder / name).mkdir(exist_ok=True)
            normalization.save(str(folder / name / "vecnormalize.pkl"))
            given = normalization.normalize_obs(given)
        arrays[f"{name}/action"] = model.predict(given, deterministic=True)[0]
    np.savez(folder / "expected.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
