"""TorchRL's ``IQLLoss`` on its ``HERReplayBuffer``, from nothing to an evaluated policy: a peer of the training recipe.

    python benchmarks/peers/torchrl_iql_policy.py OUT BEGUN task=FetchReach steps=4000

Does the work of ``recipes/smore_offline.py`` on the same data, with the same networks, standardised inputs, learning
rate and batch, evaluated on the same episodes at the same updates; eager, as TorchRL's own script runs by default.
Rewards are -1, and 0 at the goal; four fifths of the goals are later ones of the trajectory. Discount, expectile and
temperature are those of GC-IQL in the recipe, in the unit of the value. Writes seconds by part to ``OUT``; see
``bench_time_to_policy.py``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "benchmarks")]
GAMMA, EXPECTILE, TEMPERATURE = 0.9, 0.7, 1.0


def main(out: str, begun: float, options: list[str]) -> None:
    """Trains, evaluates, and leaves what :meth:`Clock.finished` gives."""
    import torch
    from bench_time_to_policy import Clock
    from parts.build import make_dataset
    from parts.cli import typed
    from parts.options import Config, with_defaults
    from tensordict import TensorDict
    from torchrl.data import HERReplayBuffer, LazyTensorStorage
    from torchrl.objectives import IQLLoss, SoftUpdate

    from torchrl_smore.data import standardization
    from torchrl_smore.envs import EnvPool, get_task
    from torchrl_smore.modules import goal_specs, make_networks
    from torchrl_smore.trainers import Evaluator

    clock = Clock(begun)
    clock.parts["imports"] = time.time() - begun
    given = {name: json.loads(text) if text[0].isdigit() else text for name, _, text in map(_split, options)}
    for name, value in given.items():
        typed(Config, name, value, "options")
    config = with_defaults(Config(method="gc_iql", **given))
    task = get_task(config.task)
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    with clock.part("data"):
        store = make_dataset(config, task)
    specs = goal_specs(task.observation_dim, task.goal_dim, task.action_dim)
    networks = make_networks(*specs, statistics=standardization(store.data))
    loss = IQLLoss(
        networks.actor,
        networks.score,
        networks.value,
        num_qvalue_nets=2,
        loss_function="l2",
        temperature=TEMPERATURE,
        expectile=EXPECTILE,
    )
    loss.set_keys(state_action_value="score", value="state_value")
    loss.make_value_estimator(gamma=GAMMA)
    target = SoftUpdate(loss, tau=0.005)
    optimizer = torch.optim.Adam(loss.parameters(), lr=config.learning_rate)

    def reward(rows: TensorDict) -> torch.Tensor:
        reached = task.reached(rows["next", "achieved_goal"], rows["desired_goal"])
        return reached.reshape(-1, 1).float() - 1.0

    data = store.data.select(
        *("observation", "action", "achieved_goal", "desired_goal"),
        *(("next", name) for name in ("observation", "achieved_goal", "done", "terminated", "truncated")),
    )
    data["next", "reward"] = torch.zeros(len(data), 1)
    data["next", "desired_goal"] = data["desired_goal"].clone()
    buffer = HERReplayBuffer(reward_fn=reward, storage=LazyTensorStorage(len(data)), batch_size=config.batch_size)
    buffer.extend(data)

    def update() -> None:
        rows = buffer.sample()
        rows["next", "desired_goal"] = rows["desired_goal"]
        found = loss(rows)
        optimizer.zero_grad()
        sum(value for key, value in found.items() if key.startswith("loss_")).backward()
        optimizer.step()
        target.step()

    @torch.no_grad()
    def policy(observation: dict[str, object]) -> object:
        read = {key: torch.as_tensor(observation[key], dtype=torch.float32) for key in networks.actor.in_keys}
        with loss.actor_network_params.to_module(loss.actor_network):
            dist = loss.actor_network.get_dist(TensorDict(read, [len(read["observation"])]))
        return dist.mean.clamp(-1.0, 1.0).numpy()

    with EnvPool(task, min(config.eval_episodes, 50), num_workers=config.env_workers) as pool:
        evaluator = Evaluator(pool, episodes=config.eval_episodes, horizon=task.horizon, gammas=task.gammas)
        for number in range(1, config.steps + 1):
            with clock.part("updates" if number > 1 else "compilation"):
                update()
            if number % config.eval_interval == 0:
                with clock.part("evaluations"):
                    found = evaluator.run(policy).metrics
                clock.successes.append((time.time() - begun, found["success_last"]))
                print(f"update {number:,}: {found}", flush=True)
    Path(out).write_text(json.dumps(clock.finished()))


def _split(option: str) -> tuple[str, str, str]:
    return option.partition("=")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
