"""The update of the released SMORe code, written anew in plain JAX, as the peer that ``bench_update.py`` times.

It stands in for that code, which carries no licence to redistribute it, and shares no line with it. What it keeps:
networks of (256, 256) without LayerNorm; the two critic losses; value, then actor at the new value, then critic at the
new value, then target; Adam, with the actor's cosine; numpy sampling of offline and goal transitions. And its amount of
work: the two halves of a batch run through every network together, and each loss masks the half that it has no use
for, so 2 x 512 rows cost 2.35 GFLOP in products: score 2 x forward and backward 0.876, target 2 x forward 0.303 (one
evaluation serves value and actor), value forward and backward 0.434, value forward twice 0.299, actor forward and
backward 0.438. The mask is an argument of the compiled function, so XLA cannot drop those rows.

Reads commands from its standard input; see ``harness.Peer``. ``check FILE`` takes weights and a batch as ``.npz`` and
writes losses and gradients, all at the same parameters, to ``FILE.out.npz``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 1), ("batch-size", 512), ("width", 256), ("trajectories", 4000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--critic", default="stable", choices=["stable", "plain"])
    return parser.parse_args()


ARGS = _arguments()
if ARGS.threads == 1:
    # before jax is imported: XLA reads both once
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

GAMMA, EXPECTILE, TEMPERATURE, MAX_WEIGHT = 0.99, 0.8, 3.0, 100.0
RATE, POLYAK, DECAY_STEPS = 3e-4, 0.005, 1_000_000
OBSERVATION, GOAL, ACTION, LENGTH = 25, 3, 4, 50


def mlp(layers, x):
    """ReLU between linear layers ``[(weight [I, O], bias [O]), ...]``."""
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def scores(networks, state, action):
    """Scores ``[2, N]``."""
    x = jnp.concatenate([state, action], -1)
    return jnp.stack([mlp(network, x)[:, 0] for network in networks])


def masked_mean(values, mask):
    """Mean over the rows where the mask is 1."""
    return (values * mask).sum() / mask.sum()


def value_loss(value, target, batch):
    """Expectile regression to the smaller target score."""
    diff = scores(target, batch["state"], batch["action"]).min(0) - mlp(value, batch["state"])[:, 0]
    return masked_mean(jnp.where(diff > 0, EXPECTILE, 1.0 - EXPECTILE) * diff**2, batch["rho"])


def actor_loss(actor, value, target, batch):
    """Advantage-weighted log-likelihood of a diagonal Gaussian."""
    advantage = scores(target, batch["state"], batch["action"]).min(0) - mlp(value, batch["state"])[:, 0]
    weight = jnp.minimum(jnp.exp(TEMPERATURE * advantage), MAX_WEIGHT)
    log_std = jnp.clip(actor["log_std"], -5.0, 2.0)
    z = (batch["action"] - jnp.tanh(mlp(actor["trunk"], batch["state"]))) / jnp.exp(log_std)
    log_prob = (-0.5 * z**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)
    return -masked_mean(weight * log_prob, batch["rho"])


def critic_loss(score, value, batch):
    """Released objective of the chosen name, summed over the twins."""
    following = GAMMA * mlp(value, batch["next_state"])[:, 0]
    total = 0.0
    for s in scores(score, batch["state"], batch["action"]):
        if ARGS.critic == "stable":
            pull = masked_mean((s - 2.0 / (1.0 - GAMMA)) ** 2, 1.0 - batch["rho"])
            residual = s - (-2.0 + following)
            push = (1.0 - GAMMA) * 1e-4 * masked_mean(s**2, batch["rho"])
        else:
            pull = -masked_mean(s, 1.0 - batch["rho"])
            residual = s - following
            push = 1e-4 * masked_mean(s, batch["rho"])
        total += pull + push + 0.5 * masked_mean(residual**2, batch["rho"])
    return total


def adam(params, grads, moments, step, rate):
    """One step of Adam; returns parameters and moments."""
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], grads)
    unbias1, unbias2 = 1.0 - 0.9**step, 1.0 - 0.999**step
    moved = jax.tree.map(
        lambda p, m, v: p - rate * (m / unbias1) / (jnp.sqrt(v / unbias2) + 1e-8), params, first, second
    )
    return moved, (first, second)


def update(state, batch):
    """One update of everything, in the order of the released code."""
    params, moments, target, step = state["params"], dict(state["moments"]), state["target"], state["step"] + 1.0
    losses = {}

    def fit(name, loss, *rest, rate=RATE):
        losses[name], grads = jax.value_and_grad(loss)(params[name], *rest)
        moved, moments[name] = adam(params[name], grads, moments[name], step, rate)
        return moved

    value = fit("value", value_loss, target, batch)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum((step - 1.0) / DECAY_STEPS, 1.0)))
    actor = fit("actor", actor_loss, value, target, batch, rate=RATE * cosine)
    score = fit("score", critic_loss, value, batch)
    target = jax.tree.map(lambda old, new: (1.0 - POLYAK) * old + POLYAK * new, target, score)
    params = {"value": value, "actor": actor, "score": score}
    return {"params": params, "moments": moments, "target": target, "step": step}, losses


def new_state(key, width):
    """Fresh networks and zero moments."""

    def network(key, num_inputs, num_outputs):
        widths = [num_inputs, width, width, num_outputs]
        orthogonal = jax.nn.initializers.orthogonal(2**0.5)
        return [(orthogonal(k, (i, o)), jnp.zeros(o)) for k, i, o in zip(jax.random.split(key, 3), widths, widths[1:])]

    k = jax.random.split(key, 4)
    state = OBSERVATION + GOAL
    params = {
        "value": network(k[0], state, 1),
        "actor": {"trunk": network(k[1], state, ACTION), "log_std": jnp.zeros(ACTION)},
        "score": [network(k[2], state + ACTION, 1), network(k[3], state + ACTION, 1)],
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    moments = {name: (zeros[name], zeros[name]) for name in params}
    # a copy: donated buffers may not be shared
    target = jax.tree.map(jnp.copy, params["score"])
    return {"params": params, "moments": jax.tree.map(jnp.copy, moments), "target": target, "step": jnp.zeros(())}


class Sampler:
    """Offline transitions with hindsight goals and goal transitions, indexed with numpy; random data."""

    def __init__(self, num_trajectories):
        self.rng = np.random.default_rng(0)
        shape = (num_trajectories, LENGTH + 1)
        draw = self.rng.standard_normal
        self.observation = draw((*shape, OBSERVATION), dtype=np.float32)
        self.achieved = draw((*shape, GOAL), dtype=np.float32)
        self.goal = draw((num_trajectories, GOAL), dtype=np.float32)
        self.action = self.rng.uniform(-1, 1, (num_trajectories, LENGTH, ACTION)).astype(np.float32)
        self.reached = np.argwhere(self.rng.random((num_trajectories, LENGTH)) < 0.1)

    def __call__(self, size):
        """Batch of ``size`` offline transitions, then ``size`` goal transitions."""
        rng, count = self.rng, len(self.goal)
        trajectory, step = rng.integers(count, size=2 * size), rng.integers(LENGTH, size=2 * size)
        later = step + 1 + (rng.random(2 * size) * (LENGTH - step)).astype(np.int64)
        hindsight = rng.random(2 * size) < 0.8
        goal = np.where(hindsight[:, None], self.achieved[trajectory, later], self.goal[trajectory])
        # a goal transition enters its goal: the one drawn as above, or the stored one that was reached
        stored = self.reached[rng.integers(len(self.reached), size=size)]
        relabelled = hindsight[size:]
        trajectory[size:] = np.where(relabelled, trajectory[size:], stored[:, 0])
        step[size:] = np.where(relabelled, later[size:] - 1, stored[:, 1])
        goal[size:] = np.where(relabelled[:, None], goal[size:], self.goal[trajectory[size:]])
        return {
            "state": np.concatenate([self.observation[trajectory, step], goal], -1),
            "next_state": np.concatenate([self.observation[trajectory, step + 1], goal], -1),
            "action": self.action[trajectory, step],
            "rho": np.concatenate([np.ones(size, np.float32), np.zeros(size, np.float32)]),
        }


def check(path):
    """Losses and gradients at given weights, all at the same parameters."""
    given = np.load(path)

    def layers(prefix):
        return [
            (jnp.asarray(given[f"{prefix}.{i}.weight"].T), jnp.asarray(given[f"{prefix}.{i}.bias"])) for i in range(3)
        ]

    batch = {name: jnp.asarray(given[name]) for name in ("state", "next_state", "action", "rho")}
    target = [layers("target0"), layers("target1")]
    value, score = layers("value"), [layers("score0"), layers("score1")]
    actor = {"trunk": layers("actor"), "log_std": jnp.asarray(given["log_std"])}
    out = {}
    for name, loss, params, rest in (
        ("value", value_loss, value, (target, batch)),
        ("actor", actor_loss, actor, (value, target, batch)),
        ("score", critic_loss, score, (value, batch)),
    ):
        out[name], grads = jax.value_and_grad(loss)(params, *rest)
        out[f"{name}_norm"] = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    np.savez(path + ".out.npz", **{name: np.asarray(value) for name, value in out.items()})


def main() -> None:
    """Answers commands until the input ends."""
    sampler, state = Sampler(ARGS.trajectories), new_state(jax.random.key(0), ARGS.width)
    step = jax.jit(update, donate_argnums=0).lower(state, sampler(ARGS.batch_size)).compile()
    cost = step.cost_analysis()
    flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
    where = f"jax {jax.__version__} on {jax.default_backend()}"
    print(f"ok {where}, {flops / 1e9:.3f} GFLOP per update by XLA's count", flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "check":
            check(argument)
            print("ok", argument, flush=True)
            continue
        start = time.perf_counter()
        for _ in range(int(argument)):
            state, losses = step(state, sampler(ARGS.batch_size))
        jax.block_until_ready((state, losses))
        print("ok", time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
