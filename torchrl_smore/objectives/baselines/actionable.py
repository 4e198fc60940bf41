"""Actionable Models: conservative Q-learning with goal chaining."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.actionable import chained, softmax_choice
from torchrl_smore.functional.baselines.iql import return_bounds, td_loss, td_target
from torchrl_smore.functional.baselines.rows import successor
from torchrl_smore.objectives._construction import check_bounds, check_discount, check_not_negative
from torchrl_smore.objectives._networks import constant, inputs_after, inputs_of, next_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import Term


@final
class ActionableModelsLoss(OfflineLoss):
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
        num_random_actions: uniform actions for each row (from the global generator), within the bounds that the actor
            tells, as a :class:`~torchrl_smore.modules.GaussianHead`, the ``low`` and ``high`` of its distribution or
            its spec do, or in ``[-1, 1]``.
        target_bounds: of the TD target; ``"auto"`` is ``(-1 / (1 - gamma), 0)``.

    Returns (forward):
        ``loss_qvalue``, ``loss_actor``; detached: mean ``qvalue``, root mean square ``td_error``, mean
        ``random_qvalue`` (at the actions pushed down) and ``policy_qvalue``, all with the rows' own goals.

    Raises:
        ValueError: for a constant outside its range.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`ActionableModelsLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; also what the actor writes.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            qvalue: written by the Q networks, ``[*B, 1]``.
            reward: ``[*B, 1]``, -1 away from the goal and 0 at it.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        qvalue: NestedKey = "score"
        reward: NestedKey = ("next", "reward")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_qvalue", "loss_actor", "qvalue", "td_error", "random_qvalue", "policy_qvalue"]
    ensembles = ("qvalue_network",)
    asks_actor_elsewhere = True

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
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_discount(gamma)
        if not 0.0 <= chain_ratio <= 1.0:
            raise ValueError(f"chain_ratio must lie in [0, 1], got {chain_ratio}.")
        check_not_negative(conservative_coef=conservative_coef)
        if num_random_actions < 1:
            raise ValueError(f"num_random_actions must be positive, got {num_random_actions}.")
        self.chain_ratio, self.conservative_coef = chain_ratio, conservative_coef
        self.num_random_actions = num_random_actions
        self.gamma = gamma
        self.target_bounds = check_bounds(return_bounds(gamma) if target_bounds == "auto" else target_bounds)
        self._add_network("actor_network", actor_network, delay=True)
        self._add_network("qvalue_network", qvalue_network, delay=True)
        self._ready(self.out_keys)

    def _read_keys(self) -> Iterable[NestedKey]:
        keys = self.tensor_keys
        inputs = [*self.qvalue_network.in_keys, *self.actor_network.in_keys, keys.action]
        return [*inputs, *next_keys(inputs, keys), keys.reward]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute both losses at the same parameters; see the class."""
        goals = self._goals(self._rows(tensordict))
        loss_qvalue, qvalue_metadata = self._qvalue_term(goals)
        loss_actor, actor_metadata = self._actor_term(goals)
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": loss_actor}
        return self._finish(losses, {**qvalue_metadata, **actor_metadata}, goals[0])

    def qvalue_loss(self, tensordict: TensorDictBase) -> Term:
        """Conservative TD loss, and its metadata."""
        return self._qvalue_term(self._goals(self._rows(tensordict)))

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Loss of the policy gradient through the current Q, and its metadata."""
        return self._actor_term(self._goals(self._rows(tensordict)))

    def _goals(self, rows: TensorDictBase) -> list[TensorDictBase]:
        """The rows and, with chaining, the rows with every goal of the next one and the reward that belongs to it."""
        if self.chain_ratio == 0.0:
            return [rows]
        keys = self.tensor_keys
        goal = rows[keys.desired_goal]
        following = successor(self._row_weight(rows, goal).flatten() > 0.0)
        other = rows.copy().set(keys.desired_goal, goal.flatten(0, rows.batch_dims - 1)[following].reshape(goal.shape))
        with torch.no_grad():
            reward = self._qvalues(other).amin(0)
        return [rows, other.set(keys.reward, reward.unsqueeze(-1))]

    def _qvalues(self, inputs: TensorDictBase, params: TensorDictParams | None = None) -> Tensor:
        """Q of every member, ``[M, *B]``."""
        return self._call("qvalue_network", inputs, self.tensor_keys.qvalue, params)

    @torch.no_grad()
    def _target(self, rows: TensorDictBase) -> Tensor:
        """``r + gamma Q_target(s', pi_target(s', g), g)`` within the bounds, ``[*B]``."""
        keys = self.tensor_keys
        after = inputs_after(rows, self.actor_network.in_keys, keys)
        action = self._policy_action(after, self.target_actor_network_params)
        inputs = inputs_after(rows, self.qvalue_network.in_keys, keys, {keys.action: action})
        value = self._qvalues(inputs, self.target_qvalue_network_params).amin(0)
        return td_target(rows[keys.reward].squeeze(-1), value, self.gamma, bounds=self.target_bounds)

    def _mixed(self, losses: list[Tensor]) -> Tensor:
        """Losses of rows with their own goals and, with chaining, with those of the next row."""
        return losses[0] if len(losses) == 1 else chained(losses[0], losses[1], self.chain_ratio)

    def _qvalue_term(self, goals: list[TensorDictBase]) -> Term:
        """Q fitted to its target and pushed down at a uniform action; diagnostics with the rows' own goals."""
        losses: list[Tensor] = []
        metadata: dict[str, Tensor] = {}
        for rows in reversed(goals):
            qvalue = self._qvalues(rows)
            error = qvalue - self._target(rows)
            random = self._random_qvalue(rows)
            losses.insert(0, (td_loss(error) + self.conservative_coef * random).sum(0))
            metadata = {
                "qvalue": qvalue.detach().mean(),
                "td_error": error.detach().square().mean().sqrt(),
                "random_qvalue": random.detach().mean(),
            }
        return self._reducer(goals[0])(self._mixed(losses)), metadata

    def _random_qvalue(self, rows: TensorDictBase) -> Tensor:
        """Q of one uniform action per row, ``[M, *B]``."""
        action, uniform = self._draw(rows[self.tensor_keys.action])
        num = self.num_random_actions
        inputs = TensorDict({}, batch_size=[num, *rows.batch_size])
        for key in self.qvalue_network.in_keys:
            entry = rows[key]
            inputs.set(key, action if key == self.tensor_keys.action else entry.expand(num, *entry.shape))
        return softmax_choice(self._qvalues(inputs), uniform)

    def _draw(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform actions, ``[K, *B, A]``, and the numbers in ``[0, 1)`` that choose among them, ``[K, *B]``."""
        size = (self.num_random_actions, *action.shape)
        uniform = torch.rand(size[:-1], dtype=action.dtype, device=action.device)
        low, high = self._action_range(action)
        return low + (high - low) * torch.rand(size, dtype=action.dtype, device=action.device), uniform

    def _actor_term(self, goals: list[TensorDictBase]) -> Term:
        """Ascent of the smallest Q at the policy's action; the parameters of Q are constants."""
        params, losses = constant(self.qvalue_network_params), []
        for rows in goals:
            replaced = {self.tensor_keys.action: self._trained_action(rows)}
            inputs = inputs_of(self._for_actor(rows), self.qvalue_network.in_keys, replaced)
            losses.append(-self._qvalues(inputs, params).amin(0))
        return self._reducer(goals[0])(self._mixed(losses)), {"policy_qvalue": -losses[0].detach().mean()}
