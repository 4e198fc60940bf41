"""Soft actor-critic by TorchRL components, for experts that run as fast as they can."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

Array = NDArray[Any]


class Sac:
    """Networks, loss, optimiser and replay buffer of one run of soft actor-critic.

    Twin critics with targets, learned entropy coefficient, target entropy ``-da``. Source: Haarnoja et al. (2018),
    arXiv:1812.05905; the settings are those of its Appendix D.

    Args:
        observation_dim: columns of an observation.
        action_dim: components of an action, each in ``[-1, 1]``.
        hidden: width of the two hidden layers of each network.
        capacity: transitions that the buffer holds; then the oldest are replaced.
        batch_size: transitions of an update.
        learning_rate: of Adam, for all parameters.
        gamma: discount of the objective, in ``(0, 1)``.
        target_rate: Polyak rate of the target critics, in ``(0, 1]``.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        hidden: int,
        capacity: int,
        batch_size: int,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        target_rate: float = 0.005,
    ) -> None:
        network = nn.Sequential(
            MLP(observation_dim, 2 * action_dim, num_cells=[hidden, hidden], activation_class=nn.ReLU),
            NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=math.exp(-5.0)),
        )
        self.actor = ProbabilisticActor(
            TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            return_log_prob=True,
        )
        critics = [
            ValueOperator(
                MLP(observation_dim + action_dim, 1, num_cells=[hidden, hidden], activation_class=nn.ReLU),
                in_keys=["observation", "action"],
            )
            for _ in range(2)
        ]
        self.loss = SACLoss(
            self.actor,
            critics,
            loss_function="l2",
            target_entropy=-float(action_dim),
            action_spec=Bounded(-1.0, 1.0, (action_dim,)),
            # on a CPU two plain matrix products are faster than the batched one that vmap makes of twins
            deactivate_vmap=True,
        )
        self.loss.make_value_estimator(gamma=gamma)
        self.targets = SoftUpdate(self.loss, tau=target_rate)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=learning_rate)
        self.buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity), batch_size=batch_size)
        self.updates = 0

    @torch.no_grad()
    def act(self, observation: Array, *, explore: bool) -> Array:
        """Actions ``[n, da]`` for observations ``[n, ds]``: drawn from the policy, or its mode."""
        batch = TensorDict({"observation": torch.from_numpy(observation)}, [len(observation)])
        kind = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
        with set_exploration_type(kind):
            action: Array = self.actor(batch)["action"].numpy()
        return action

    def remember(self, observation: Array, action: Array, reward: Array, following: Array, terminated: Array) -> None:
        """Stores n transitions; ``terminated`` marks those after which nothing more can be earned."""
        ended = torch.from_numpy(terminated)[:, None]
        after = {
            "observation": torch.from_numpy(following),
            "reward": torch.from_numpy(reward.astype(np.float32))[:, None],
            "terminated": ended,
            "done": ended,
        }
        row = {"observation": torch.from_numpy(observation), "action": torch.from_numpy(action), "next": after}
        self.buffer.extend(TensorDict(row, [len(action)]))  # type: ignore[arg-type]

    def update(self) -> TensorDict:
        """One update of critics, actor and entropy coefficient on a batch of the buffer; returns the losses."""
        losses = self.loss(self.buffer.sample())
        self.optimizer.zero_grad()
        (losses["loss_qvalue"] + losses["loss_actor"] + losses["loss_alpha"]).backward()
        self.optimizer.step()
        self.targets.step()
        self.updates += 1
        return losses.detach()

    def layers(self) -> list[tuple[Array, Array]]:
        """Weights of the actor from the observation to its mean before tanh, for ``write_actor``."""
        linear = [module for module in self.actor.modules() if isinstance(module, nn.Linear)]
        arrays = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in linear]
        weight, bias = arrays[-1]
        half = len(bias) // 2  # the rest is the scale
        return [*arrays[:-1], (weight[:half], bias[:half])]

    def state_dict(self) -> dict[str, Any]:
        """Everything that further updates depend on, but for the state of the global random generators."""
        return {
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "buffer": self._rows().to_dict(),
        }

    def _rows(self) -> TensorDict:
        """The transitions held, the oldest first, without the unused rest of the storage."""
        held = len(self.buffer)
        if not held:
            return TensorDict({}, [0])
        oldest = self.buffer.writer.state_dict()["_cursor"]  # held, while the buffer is not full
        return self.buffer[(torch.arange(held) + oldest) % held].exclude("index")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self.buffer.empty()
        if state["buffer"]:
            rows = TensorDict(state["buffer"])
            rows.auto_batch_size_(1)
            self.buffer.extend(rows)
