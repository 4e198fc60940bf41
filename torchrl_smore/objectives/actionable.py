"""Actionable Models: conservative Q-learning with goal chaining."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.actionable import chained, softmax_choice
from torchrl_smore.functional.baselines.iql import td_loss
from torchrl_smore.functional.baselines.rows import successor
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.qvalue import QValueLoss, return_bounds


class ActionableModelsLoss(QValueLoss):
    r"""Actionable Models (Chebotar et al., 2021, arXiv:2104.07749), as in GoFAR's port (``actionablemodel_agent.py``).

    Q is fitted to ``clip(r + gamma Q_target(s', pi_target(s', g), g))`` and pushed down at one of ten uniform actions,
    drawn with probability ``softmax(Q)``; the actor maximises Q. With *goal chaining* a row pursues the goal of another
    row, and its reward is the current ``Q(s, a, g)`` (added to the bootstrap as in the port).

    Defaults of the port: gamma 0.98, rewards {-1, 0} (``reward_values`` of the sampler), relabelling 0.5, Adam 1e-3,
    batch 512, target rate 0.05 once per 20 updates, one Q, three hidden layers of 256, half of the batch chained.

    Departure: instead of shuffling the goals of the second half, every row counts with its own goal and with that of
    the next row, weighted ``1 - chain_ratio`` and ``chain_ratio``: the same expectation, independent of the order of
    rows, at twice the work. The bootstrap of a chained row pursues the chained goal too; the port's pursues the row's
    own, which is no longer that of the ``Q`` it is fitted to.

    Args:
        actor_network: writes ``tensor_keys.action`` from state and goal.
        qvalue_network: ``Q(s, a, g)``, one network or a sequence, of which the smallest counts.
        gamma: discount, in ``(0, 1)``.
        chain_ratio: fraction of chained goals, in ``[0, 1]``; 0 switches chaining off.
        conservative_coef: weight of the push-down, not negative; 0 switches it off.
        num_random_actions: uniform actions in ``[-1, 1]`` for each row (from the global generator).
        target_bounds: of the TD target; ``"auto"`` is ``(-1 / (1 - gamma), 0)``.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_qvalue``, ``loss_actor``; detached: mean ``qvalue``, root mean square ``td_error``, mean
        ``random_qvalue`` (at the actions pushed down) and ``policy_qvalue``, all with the rows' own goals.
    """

    @dataclass
    class _AcceptedKeys(QValueLoss._AcceptedKeys):
        """Keys of :class:`ActionableModelsLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; also what the actor writes.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            qvalue: written by the Q networks, ``[*B, 1]``.
            next_value: internal, ``Q(s', pi(s', g), g)`` of the target networks.
            reward: ``[*B, 1]``, -1 away from the goal and 0 at it.
            terminated: not read.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_qvalue", "loss_actor", "qvalue", "td_error", "random_qvalue", "policy_qvalue"]

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        *,
        gamma: float = 0.98,
        chain_ratio: float = 0.5,
        conservative_coef: float = 1.0,
        num_random_actions: int = 10,
        target_bounds: Literal["auto"] | tuple[float, float] | None = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        if not 0.0 <= chain_ratio <= 1.0:
            raise ValueError(f"chain_ratio must lie in [0, 1], got {chain_ratio}.")
        if not conservative_coef >= 0.0:
            raise ValueError(f"conservative_coef must not be negative, got {conservative_coef}.")
        if num_random_actions < 1:
            raise ValueError(f"num_random_actions must be positive, got {num_random_actions}.")
        self.chain_ratio, self.conservative_coef = chain_ratio, conservative_coef
        self.num_random_actions = num_random_actions
        bounds = return_bounds(gamma) if target_bounds == "auto" else target_bounds
        self._add_network("actor_network", actor_network, create_target_params=True)
        self._add_qvalue_term(qvalue_network, gamma, target_bounds=bounds, use_terminated=False)
        self._make_vmap()
        self._set_in_keys()

    def _read_keys(self) -> Iterable[NestedKey]:
        inputs = [*self.qvalue_network.in_keys, *self.actor_network.in_keys, self.tensor_keys.action]
        return [*inputs, *self._next_keys(inputs), *self._reward_keys()]

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Conservative TD loss, and its metadata."""
        return self._conservative_term(*self._goals(self._rows(tensordict)))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the policy gradient through the current Q, and its metadata."""
        return self._policy_term(*self._goals(self._rows(tensordict)))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute both losses at the same parameters; see the class."""
        goals = self._goals(self._rows(tensordict))
        loss_qvalue, qvalue_metadata = self._conservative_term(*goals)
        loss_actor, actor_metadata = self._policy_term(*goals)
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": loss_actor}
        return self._finish(losses, {**qvalue_metadata, **actor_metadata}, goals[0])

    @torch.no_grad()
    def _goals(self, batch: TensorDictBase) -> tuple[TensorDictBase, ...]:
        """The batch and, with chaining, the batch with every goal of the next row and the reward that belongs to it."""
        if self.chain_ratio == 0.0:
            return (self._with_next_value(batch),)
        keys = self.tensor_keys
        goal = batch[keys.desired_goal]
        following = successor(self._row_weight(batch, goal).flatten() > 0.0)
        other = batch.copy().set(keys.desired_goal, goal.flatten(0, -2)[following].reshape(goal.shape))
        reward = self._qvalues(other, self.qvalue_network_params).amin(0)
        other.set(keys.reward, reward.unsqueeze(-1))
        return self._with_next_value(batch), self._with_next_value(other)

    def _with_next_value(self, batch: TensorDictBase) -> TensorDictBase:
        action = self._policy_action(
            self._after_step(batch, self.actor_network.in_keys), self.target_actor_network_params
        )
        inputs = self._after_step(batch, self.qvalue_network.in_keys, {self.tensor_keys.action: action})
        value = self._qvalues(inputs, self.target_qvalue_network_params).amin(0)
        return batch.set(self.tensor_keys.next_value, value.unsqueeze(-1))

    def _mixed(self, rows: list[Tensor]) -> Tensor:
        return rows[0] if len(rows) == 1 else chained(rows[0], rows[1], self.chain_ratio)

    def _conservative_term(self, *goals: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        rows: list[Tensor] = []
        metadata: dict[str, Tensor] = {}
        for batch in reversed(goals):  # the metadata that stays is that of the rows' own goals
            qvalue = self._qvalues(batch, self.qvalue_network_params)
            error = qvalue - self._td_target(batch)
            random = self._random_qvalue(batch)
            rows.insert(0, (td_loss(error) + self.conservative_coef * random).sum(0))
            metadata = {
                "qvalue": qvalue.detach().mean(),
                "td_error": error.detach().square().mean().sqrt(),
                "random_qvalue": random.detach().mean(),
            }
        return self._reduce_row_loss(self._mixed(rows), goals[0]), metadata

    def _random_qvalue(self, batch: TensorDictBase) -> Tensor:
        """Q of one uniform action per row, ``[M, *B]``."""
        action, uniform = self._draw(batch[self.tensor_keys.action])
        num = self.num_random_actions
        inputs = TensorDict({}, batch_size=[num, *batch.batch_size])
        for key in self.qvalue_network.in_keys:
            entry = batch[key]
            inputs.set(key, action if key == self.tensor_keys.action else entry.expand(num, *entry.shape))
        return softmax_choice(self._qvalues(inputs, self.qvalue_network_params), uniform)

    def _draw(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform actions in ``[-1, 1]``, ``[K, *B, A]``, and the numbers that choose among them, ``[K, *B]``."""
        size = (self.num_random_actions, *action.shape)
        uniform = torch.rand(size[:-1], dtype=action.dtype, device=action.device)
        return torch.rand(size, dtype=action.dtype, device=action.device) * 2.0 - 1.0, uniform

    def _policy_term(self, *goals: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        params = self._constant("qvalue_network_params")
        rows = []
        for batch in goals:
            action = self._policy_action(batch, self.actor_network_params)
            inputs = self._inputs(batch, self.qvalue_network.in_keys, {self.tensor_keys.action: action})
            rows.append(-self._qvalues(inputs, params).amin(0))
        return self._reduce_row_loss(self._mixed(rows), goals[0]), {"policy_qvalue": -rows[0].detach().mean()}
