"""Soft actor-critic: TorchRL's loss in one fused update, for experts that run as fast as they can."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss

from parts.experts import linear_arrays
from torchrl_smore.modules import ConcatMLP, Precision
from torchrl_smore.trainers import Compile, FusedUpdate

Array = NDArray[Any]


class TwinSACLoss(SACLoss):
    """TorchRL's loss with its critics run one after the other.

    ``deactivate_vmap`` does so as well, but changes a global registry in each call, for which ``torch.compile``
    compiles anew.
    """

    def _make_vmap(self) -> None:
        self._vmap_qnetworkN0 = self._each_critic

    def _each_critic(self, batch: TensorDictBase, params: TensorDictBase) -> TensorDictBase:
        critic, out = self.qvalue_network, []
        for member in params.unbind(0):
            with member.to_module(critic, preserve_module_state=False):
                out.append(critic(batch.select(*critic.in_keys)))
        return torch.stack(out)


class ReplayTable:
    """The last transitions as rows of one table, drawn uniformly; a sampler in two parts for ``FusedUpdate``.

    Args:
        observation_dim: columns of an observation.
        action_dim: components of an action.
        capacity: transitions held; then the oldest are replaced.
        batch_size: transitions of a batch.
        seed: of the generator of batches.
    """

    def __init__(self, observation_dim: int, action_dim: int, *, capacity: int, batch_size: int, seed: int) -> None:
        self.pieces = [observation_dim, action_dim, observation_dim, 1, 1]
        self.table = torch.zeros(capacity, sum(self.pieces))
        self.batch_size, self.seed = batch_size, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.written = 0
        self.held = torch.zeros(())  # a tensor: a number would be a constant of the compiled update

    def __len__(self) -> int:
        """Transitions held."""
        return min(self.written, len(self.table))

    def extend(self, rows: Tensor) -> None:
        """Stores ``rows``: observation, action, next observation, reward and end, side by side."""
        self.table[(self.written + torch.arange(len(rows))) % len(self.table)] = rows
        self.written += len(rows)
        self.held.fill_(len(self))

    def rows(self) -> Tensor:
        """The rows held, the oldest first, a copy."""
        oldest = self.written % len(self.table) if self.written > len(self.table) else 0
        return self.table[(torch.arange(len(self)) + oldest) % len(self.table)]

    def draw(self) -> Tensor:
        """Random numbers of one batch."""
        return torch.rand(self.batch_size, generator=self.generator)

    def gather(self, uniform: Tensor) -> TensorDict:
        """The batch that belongs to them."""
        row = self.table[(uniform * self.held).long().clamp(max=self.table.shape[0] - 1)]
        observation, action, following, reward, end = row.split(self.pieces, -1)
        ended = end > 0.5
        after = {"observation": following, "reward": reward, "terminated": ended, "done": ended}
        batch = [self.batch_size]
        return TensorDict({"observation": observation, "action": action, "next": TensorDict(after, batch)}, batch)

    def with_seed(self, seed: int) -> ReplayTable:
        """An empty table of the same shape under another seed."""
        sizes = {"capacity": len(self.table), "batch_size": self.batch_size}
        return ReplayTable(self.pieces[0], self.pieces[1], **sizes, seed=seed)

    def state_dict(self) -> dict[str, Any]:
        """Rows held and the generator's state."""
        return {"rows": self.rows(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.written = 0
        self.extend(state["rows"])
        self.generator.set_state(state["generator"])


class Sac:
    """Networks, loss, update and replay table of one run of soft actor-critic.

    Twin critics with targets, learned entropy coefficient, target entropy ``-da``. Source: Haarnoja et al. (2018),
    arXiv:1812.05905; the settings are those of its Appendix D.

    Args:
        observation_dim: columns of an observation.
        action_dim: components of an action, each in ``[-1, 1]``.
        hidden: width of the two hidden layers of each network.
        capacity: transitions that the table holds; then the oldest are replaced.
        batch_size: transitions of an update.
        seed: of the batches; networks and exploration follow PyTorch's global generator.
        compile: see :class:`~torchrl_smore.trainers.FusedUpdate`.
        precision: of the hidden layers.
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
        seed: int = 0,
        compile: Compile = "off",
        precision: Precision = "float32",
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        target_rate: float = 0.005,
    ) -> None:
        def mlp(inputs: int, outputs: int) -> ConcatMLP:
            return ConcatMLP(inputs, outputs, (hidden, hidden), precision=precision)

        self.network = nn.Sequential(
            mlp(observation_dim, 2 * action_dim),
            NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=math.exp(-5.0)),
        )
        actor = ProbabilisticActor(
            TensorDictModule(self.network, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            distribution_kwargs={"safe_tanh": False},  # which a compiled update cannot contain
            return_log_prob=True,
        )
        critics = [
            ValueOperator(mlp(observation_dim + action_dim, 1), in_keys=["observation", "action"]) for _ in range(2)
        ]
        self.loss = TwinSACLoss(
            actor,
            critics,
            loss_function="l2",
            target_entropy=-float(action_dim),
            action_spec=Bounded(-1.0, 1.0, (action_dim,)),
        )
        self.loss.make_value_estimator(gamma=gamma)
        _ = self.loss.target_entropy  # makes the buffer, which must be there before the update takes hold of the loss
        self.table = ReplayTable(observation_dim, action_dim, capacity=capacity, batch_size=batch_size, seed=seed)
        self.update = FusedUpdate(self.loss, self.table, lr=learning_rate, tau=target_rate, compile=compile)

    @property
    def updates(self) -> int:
        """Updates done."""
        return int(self.update.step)

    @torch.no_grad()
    def act(self, observation: Array, *, explore: bool) -> Array:
        """Actions ``[n, da]`` for observations ``[n, ds]``: drawn from the policy, or its mode."""
        loc, scale = self.network(torch.from_numpy(observation))
        action: Array = (loc + scale * torch.randn_like(loc) if explore else loc).tanh().numpy()
        return action

    def remember(self, observation: Array, action: Array, reward: Array, following: Array, terminated: Array) -> None:
        """Stores n transitions; ``terminated`` marks those after which nothing more can be earned."""
        columns = (observation, action, following, reward[:, None], terminated[:, None])
        self.table.extend(torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")))

    def layers(self) -> list[tuple[Array, Array]]:
        """Weights of the actor from the observation to its mean before tanh, for ``write_actor``."""
        *arrays, (weight, bias) = linear_arrays(self.network)
        half = len(bias) // 2  # the rest is the scale
        return [*arrays, (weight[:half], bias[:half])]

    def state_dict(self) -> dict[str, Any]:
        """Everything that further updates depend on, but for the state of the global random generators."""
        return self.update.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.update.load_state_dict(dict(state))
