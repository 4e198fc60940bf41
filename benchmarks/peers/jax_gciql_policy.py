"""Goal-conditioned IQL in plain JAX, from nothing to an evaluated policy: a peer of the training recipe.

    jaxvenv/bin/python benchmarks/peers/jax_gciql_policy.py OUT BEGUN task=FetchReach steps=4000

Its update is that of OGBench's GCIQL with an advantage-weighted actor, written anew: one loss of three parts (expectile
value, twin critics, actor), one Adam for all, one compiled call for each batch that numpy has drawn. The work is that
of ``recipes/smore_offline.py``: same data, widths, standardised inputs, learning rate and batch, evaluated on the same
episodes at the same updates. Data and episodes are those of this library, so its imports are counted beside JAX's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import policy as peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from parts.options import Config

    from torchrl_smore import TrajectoryStore
    from torchrl_smore.envs import Task

if os.environ.get("OMP_NUM_THREADS") == "1":
    # before jax is imported: XLA reads it once
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np

WIDTHS, MAX_WEIGHT = (256, 256), 100.0


def mlp(layers, x):
    """ReLU between linear layers ``[(weight [I, O], bias [O]), ...]``."""
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def critic(networks, state, action):
    """Both scores, ``[2, N]``."""
    x = jnp.concatenate([state, action], -1)
    return jnp.stack([mlp(network, x)[:, 0] for network in networks])


def log_prob(actor, state, action):
    """Of a Gaussian with a deviation for each dimension of the action."""
    log_std = jnp.clip(actor["log_std"], -5.0, 2.0)
    z = (action - jnp.tanh(mlp(actor["trunk"], state))) / jnp.exp(log_std)
    return (-0.5 * z**2 - log_std - 0.5 * jnp.log(2.0 * jnp.pi)).sum(-1)


def loss(params, target, batch):
    """Expectile value, Bellman error of the critics, weighted likelihood; each has gradients for its own network."""
    state, action, still = batch["state"], batch["action"], jax.lax.stop_gradient(params)
    gap = critic(target, state, action).min(0) - mlp(params["value"], state)[:, 0]
    value = (jnp.where(gap > 0.0, peer.EXPECTILE, 1.0 - peer.EXPECTILE) * gap**2).mean()
    following = peer.GAMMA * (1.0 - batch["reached"]) * mlp(still["value"], batch["next_state"])[:, 0]
    goal_reward = batch["reached"] - 1.0
    critics = ((critic(params["critic"], state, action) - (goal_reward + following)) ** 2).sum(0).mean()
    advantage = critic(still["critic"], state, action).min(0) - mlp(still["value"], state)[:, 0]
    weight = jnp.minimum(jnp.exp(peer.TEMPERATURE * advantage), MAX_WEIGHT)
    actor = -(weight * log_prob(params["actor"], state, action)).mean()
    return value + critics + actor


def update(state, batch, rate):
    """One step of Adam on the sum, then one of the target."""
    step = state["step"] + 1.0
    grads = jax.grad(loss)(state["params"], state["target"], batch)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["first"], grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["second"], grads)
    unbias1, unbias2 = 1.0 - 0.9**step, 1.0 - 0.999**step
    params = jax.tree.map(
        lambda p, m, v: p - rate * (m / unbias1) / (jnp.sqrt(v / unbias2) + 1e-8), state["params"], first, second
    )
    target = jax.tree.map(lambda old, new: old + peer.POLYAK * (new - old), state["target"], params["critic"])
    return {"params": params, "target": target, "first": first, "second": second, "step": step}


def new_state(seed, num_states, num_actions):
    """Fresh networks and zero moments."""

    def network(key, num_inputs, num_outputs):
        widths = [num_inputs, *WIDTHS, num_outputs]
        bounded = jax.nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
        keys = jax.random.split(key, len(widths) - 1)
        return [(bounded(k, (i, o)), jnp.zeros(o)) for k, i, o in zip(keys, widths, widths[1:])]

    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "value": network(keys[0], num_states, 1),
        "actor": {"trunk": network(keys[1], num_states, num_actions), "log_std": jnp.zeros(num_actions)},
        "critic": [network(key, num_states + num_actions, 1) for key in keys[2:]],
    }
    first, second = jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
    # a copy: donated buffers may not be shared
    target = jax.tree.map(jnp.copy, params["critic"])
    return {"params": params, "target": target, "first": first, "second": second, "step": jnp.zeros(())}


class Sampler:
    """Rows drawn uniformly, ``HINDSIGHT`` of them with the goal of a later row of their trajectory."""

    def __init__(self, config: Config, task: Task, store: TrajectoryStore) -> None:
        from torchrl_smore.data import standardization

        data, statistics = store.data, standardization(store.data)
        self._observed, self._goal = (
            tuple(map(np.asarray, statistics[key])) for key in ("observation", "desired_goal")
        )
        self._rng, self._size, self._reached = np.random.default_rng(config.seed), config.batch_size, task.reached
        self._observation, self._next = (each["observation"].numpy() for each in (data, data["next"]))
        self._action, self._desired = data["action"].numpy(), data["desired_goal"].numpy()
        self._achieved, self._stop = data["next", "achieved_goal"].numpy(), data["traj_stop"].numpy()

    def state(self, observation, goal):
        """What the networks read: both standardised, side by side."""
        parts = ((observation, *self._observed), (goal, *self._goal))
        return np.concatenate([(value - mean) / std for value, mean, std in parts], -1, dtype=np.float32)

    def __call__(self):
        """One batch."""
        rng = self._rng
        rows = rng.integers(len(self._action), size=self._size)
        later = rows + (rng.random(self._size) * (self._stop[rows] - rows)).astype(np.int64)
        hindsight = rng.random(self._size) < peer.HINDSIGHT
        goal = np.where(hindsight[:, None], self._achieved[later], self._desired[rows])
        return {
            "state": self.state(self._observation[rows], goal),
            "next_state": self.state(self._next[rows], goal),
            "action": self._action[rows],
            "reached": self._reached(self._achieved[rows], goal).reshape(-1).astype(np.float32),
        }


def learner(config: Config, task: Task, store: TrajectoryStore) -> tuple[Callable[[], None], peer.Policy]:
    """One update, and the mean action."""
    sampler = Sampler(config, task, store)
    step = jax.jit(update, donate_argnums=0)
    mode = jax.jit(lambda actor, state: jnp.tanh(mlp(actor["trunk"], state)))
    state = new_state(config.seed, task.observation_dim + task.goal_dim, task.action_dim)

    def one() -> None:
        nonlocal state
        # waited for, or the clock would count it where its result is used
        state = jax.block_until_ready(step(state, sampler(), config.learning_rate))

    def act(observation: dict[str, np.ndarray]) -> np.ndarray:
        seen = sampler.state(observation["observation"], observation["desired_goal"])
        return np.array(mode(state["params"]["actor"], seen))

    return one, act


if __name__ == "__main__":
    peer.run(learner)
