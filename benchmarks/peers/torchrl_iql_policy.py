"""TorchRL's ``IQLLoss`` on its ``HERReplayBuffer``, from nothing to an evaluated policy: a peer of the training recipe.

    python benchmarks/peers/torchrl_iql_policy.py OUT BEGUN task=FetchReach steps=4000

Does the work of ``recipes/smore_offline.py`` on the same data, with the same networks, standardised inputs, learning
rate and batch, evaluated on the same episodes at the same updates; eager, as TorchRL's own script runs by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import policy as peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from parts.options import Config

    from torchrl_smore import TrajectoryStore
    from torchrl_smore.envs import Task


def learner(config: Config, task: Task, store: TrajectoryStore) -> tuple[Callable[[], None], peer.Policy]:
    """One update, and the mean action."""
    import torch
    from tensordict import TensorDict
    from torchrl.data import HERReplayBuffer, LazyTensorStorage
    from torchrl.objectives import IQLLoss, SoftUpdate

    from torchrl_smore.data import standardization
    from torchrl_smore.modules import goal_specs, make_networks

    specs = goal_specs(task.observation_dim, task.goal_dim, task.action_dim)
    networks = make_networks(*specs, statistics=standardization(store.data))
    loss = IQLLoss(
        networks.actor,
        networks.score,
        networks.value,
        num_qvalue_nets=2,
        loss_function="l2",
        temperature=peer.TEMPERATURE,
        expectile=peer.EXPECTILE,
    )
    loss.set_keys(state_action_value="score", value="state_value")
    loss.make_value_estimator(gamma=peer.GAMMA)
    target = SoftUpdate(loss, tau=peer.POLYAK)
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
    def act(observation: dict[str, object]) -> object:
        read = {key: torch.as_tensor(observation[key], dtype=torch.float32) for key in networks.actor.in_keys}
        with loss.actor_network_params.to_module(loss.actor_network):
            dist = loss.actor_network.get_dist(TensorDict(read, [len(read["observation"])]))
        return dist.mean.clamp(-1.0, 1.0).numpy()

    return update, act


if __name__ == "__main__":
    peer.run(learner)
