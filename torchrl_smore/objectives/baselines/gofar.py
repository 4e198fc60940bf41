"""GoFAR: goal-conditioned f-advantage regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.gofar import (
    GoFARDivergence,
    bellman_error,
    discriminator_loss,
    gofar_dual,
    gofar_value_loss,
    gradient_penalty,
)
from torchrl_smore.functional.losses import awr_weight, expectile_loss
from torchrl_smore.objectives._construction import (
    AdvantageUnit,
    check_choice,
    check_discount,
    check_not_negative,
    check_positive,
    require_stochastic,
    scale_of,
)
from torchrl_smore.objectives._networks import inputs_after, inputs_of, next_keys, state_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.baselines._extras import asked_entry
from torchrl_smore.objectives.baselines.gcsl import Regression
from torchrl_smore.objectives.terms import Term, imitation_term

GoFARReward = Literal["discriminator", "binary"]
GoFARWeight = Literal["dual", "expectile_awr"]
_INITIAL = (
    "HindsightGoalTransform behind GoalTransition(initial=True) and GoalBatchSampler(extras=['initial_observation']) "
    "write 'initial_observation'."
)


@final
class GoFARLoss(OfflineLoss):
    r"""Occupancy matching between achieved and desired goals (Ma et al., 2022, arXiv:2206.03023).

    With ``e = r + gamma V_target(s', g) - V(s, g)``: the discriminator c tells ``(g, g)`` from ``(achieved, g)`` and
    gives the reward ``r = logit c(achieved_t, g)``; the value minimises ``(1 - gamma) V(s0, g) + f*(e)``; the actor
    imitates with weight ``f*'(e)``. See :mod:`torchrl_smore.functional.baselines.gofar`.

    Defaults of the public code: chi-squared, gamma 0.98, Adam 1e-3 (discriminator 5e-4), batch 512, three hidden layers
    of 256, target rate 0.05 once per 20 updates, gradient penalty 0.01, no relabelling. Nothing is terminal.

    SMORe's Table 13 has two variants: ``reward="binary"`` (sparse rewards of the sampler, {-1, 0}, and no
    discriminator), and ``actor_weight="expectile_awr"``, which the paper does not spell out; here the value is the
    expectile of ``r + gamma V_target(s', g)`` and the actor's weight ``exp(temperature e)``. Then no initial state is
    read.

    Args:
        actor_network: writes ``tensor_keys.action`` from state and goal.
        value_network: ``V(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        discriminator_network: reads ``tensor_keys.achieved_goal`` and ``tensor_keys.desired_goal``, writes
            ``tensor_keys.logit``, ``[*B, 1]``; ``None`` for ``reward="binary"``.
        divergence: ``"chi2"`` or ``"kl"``.
        reward: ``"discriminator"`` or ``"binary"``.
        actor_weight: ``"dual"`` or ``"expectile_awr"``.
        regression: see :class:`~torchrl_smore.objectives.GCSLLoss`.
        gamma: discount, in ``(0, 1)``.
        gradient_penalty_coef: weight of the gradient penalty, on random interpolates of the two classes (drawn from the
            global generator); 0 switches it off.
        expectile: for ``"expectile_awr"``; schedulable by assignment.
        temperature: for ``"expectile_awr"``; schedulable by assignment.
        advantage_unit: for ``"expectile_awr"``; see :class:`~torchrl_smore.SMORELoss`.
        weight_clip: for ``"expectile_awr"``, largest weight.

    Returns (forward):
        ``loss_value``, ``loss_actor`` and, with a discriminator, ``loss_discriminator``; detached: mean ``value``,
        ``reward``, ``bellman_error`` (root mean square), ``actor_weight``, and ``action_error`` or ``log_prob``.

    Raises:
        TypeError: for ``regression="nll"`` with an actor without ``get_dist``.
        ValueError: for an unknown name, a constant outside its range, or a discriminator network without
            ``reward="discriminator"`` and the other way round.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`GoFARLoss`."""

        action: NestedKey = "action"  #: Of the dataset, ``[*B, A]``; also what the actor writes.
        desired_goal: NestedKey = "desired_goal"  #: The goal pursued, ``[*B, G]``, at the root also for next states.
        achieved_goal: NestedKey = "achieved_goal"  #: Before the transition, ``[*B, G]``; with a discriminator only.
        initial_observation: NestedKey = "initial_observation"  #: The trajectory's first, ``[*B, O]``; for ``"dual"``.
        value: NestedKey = "state_value"  #: Written by the value network, ``[*B, 1]``.
        logit: NestedKey = "logit"  #: Written by the discriminator network, ``[*B, 1]``.
        reward: NestedKey = ("next", "reward")  #: ``[*B, 1]``; for ``reward="binary"``.
        priority_weight: NestedKey = "priority_weight"  #: Weight of each row, optional, ``[*B]`` or ``[*B, 1]``.

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = [
        *["loss_value", "loss_actor", "loss_discriminator"],
        *["value", "reward", "bellman_error", "actor_weight", "action_error"],
    ]
    _schedulable_buffers = frozenset({"expectile", "temperature"})

    def __init__(
        self,
        actor_network: TensorDictModule,
        value_network: TensorDictModule,
        discriminator_network: TensorDictModule | None = None,
        *,
        divergence: GoFARDivergence = "chi2",
        reward: GoFARReward = "discriminator",
        actor_weight: GoFARWeight = "dual",
        regression: Regression = "mse",
        gamma: float = 0.98,
        gradient_penalty_coef: float = 0.01,
        expectile: float = 0.8,
        temperature: float = 3.0,
        advantage_unit: AdvantageUnit = "score",
        weight_clip: float = 100.0,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_choice(reward=(reward, GoFARReward), actor_weight=(actor_weight, GoFARWeight))
        check_choice(regression=(regression, Regression))
        if (discriminator_network is None) != (reward == "binary"):
            given = "none" if discriminator_network is None else "one"
            raise ValueError(f"reward='discriminator' needs a discriminator_network and 'binary' none, got {given}.")
        check_not_negative(gradient_penalty_coef=gradient_penalty_coef)
        check_positive(weight_clip=weight_clip)
        check_discount(gamma)
        self.dual = gofar_dual(divergence)
        self.advantage_scale = scale_of(advantage_unit, gamma)
        self.reward, self.actor_weight, self.gamma = reward, actor_weight, gamma
        self.gradient_penalty_coef, self.weight_clip = gradient_penalty_coef, weight_clip
        if actor_weight == "expectile_awr":
            self._set_coefficient("expectile", expectile, 0.0 < expectile < 1.0, "lie in (0, 1)")
            self._set_coefficient("temperature", temperature, temperature >= 0.0, "not be negative")
        if regression == "nll":
            require_stochastic(actor_network)
        self.regression = regression
        self._add_network("actor_network", actor_network)
        self._add_network("value_network", value_network, delay=True)
        if discriminator_network is not None:
            self._add_network("discriminator_network", discriminator_network)
        losses = ["loss_value", "loss_actor", *(["loss_discriminator"] if reward == "discriminator" else [])]
        error = "action_error" if regression == "mse" else "log_prob"
        self._ready([*losses, "value", "reward", "bellman_error", "actor_weight", error])

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, value_keys = self.tensor_keys, self.value_network.in_keys
        inputs = [*self.actor_network.in_keys, *value_keys, keys.action, *next_keys(value_keys, keys)]
        initial = [keys.initial_observation] if self.actor_weight == "dual" else []
        return [*inputs, *initial, *([keys.reward] if self.reward == "binary" else self.discriminator_network.in_keys)]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses at the same parameters; see the class."""
        rows = self._rows(tensordict)
        loss_value, error, value_metadata = self._value_term(rows)
        loss_actor, actor_metadata = self._actor_term(rows, error)
        losses = {"loss_value": loss_value, "loss_actor": loss_actor}
        if self.reward == "discriminator":
            losses["loss_discriminator"] = self._discriminator_term(rows)
        return self._finish(losses, {**value_metadata, **actor_metadata}, rows)

    def value_loss(self, tensordict: TensorDictBase) -> Term:
        """Value loss with the current reward, and its metadata (``error`` is the residual, ``[*B]``)."""
        loss, error, metadata = self._value_term(self._rows(tensordict))
        return loss, {"error": error, **metadata}

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Weighted regression loss at the current residual, and its metadata."""
        rows = self._rows(tensordict)
        with torch.no_grad():
            _, error, _ = self._value_term(rows)
        return self._actor_term(rows, error)

    def discriminator_loss(self, tensordict: TensorDictBase) -> Term:
        """Cross-entropy and gradient penalty; no metadata.

        Raises:
            ValueError: for ``reward="binary"``, which has no discriminator.
        """
        if self.reward != "discriminator":
            raise ValueError(f"only reward='discriminator' has a discriminator, got {self.reward!r}.")
        return self._discriminator_term(self._rows(tensordict)), {}

    def _value_term(self, rows: TensorDictBase) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss of the value, Bellman error (detached, ``[*B]``), and diagnostics."""
        keys = self.tensor_keys
        value = self._call("value_network", rows, keys.value)
        with torch.no_grad():
            after = inputs_after(rows, self.value_network.in_keys, keys)
            next_value = self._call("value_network", after, keys.value, self.target_value_network_params)
            reward = rows[keys.reward].squeeze(-1) if self.reward == "binary" else self._logit(rows)
        reward = reward.to(value.dtype)
        error = bellman_error(reward, value, next_value, self.gamma)
        if self.actor_weight == "dual":
            initial = self._call("value_network", self._at_start(rows), keys.value)
            loss = gofar_value_loss(initial, self.dual.conjugate(error, self._row_weight(rows, error)), self.gamma)
        else:
            loss = expectile_loss(error, self.expectile)
        detached = error.detach()
        metadata = {"value": value.detach().mean(), "reward": reward.mean()}
        return self._reducer(rows)(loss), detached, {**metadata, "bellman_error": detached.square().mean().sqrt()}

    def _actor_term(self, rows: TensorDictBase, error: Tensor) -> Term:
        """Regression weighted by the density ratio that the dual finds, or by ``exp(temperature e)``."""
        if self.actor_weight == "dual":
            weight = self.dual.weight(error)
        else:
            weight = awr_weight(self.advantage_scale * error, self.temperature, self.weight_clip)
        policy = self._distribution(rows) if self.regression == "nll" else self._trained_action(rows)
        loss, metadata = imitation_term(policy, rows[self.tensor_keys.action], self._reducer(rows), weight)
        return loss, {"actor_weight": weight.mean(), **metadata}

    def _discriminator_term(self, rows: TensorDictBase) -> Tensor:
        """Cross-entropy of goals at themselves and at what was achieved, with the gradient penalty."""
        real, fake = self._logit(rows, rows[self.tensor_keys.desired_goal]), self._logit(rows)
        loss = discriminator_loss(real, fake)
        if self.gradient_penalty_coef > 0.0:
            gradient = self._interpolate_gradient(rows, fake.dtype)
            loss = loss + self.gradient_penalty_coef * gradient_penalty(gradient)
        return self._reducer(rows)(loss)

    def _logit(self, rows: TensorDictBase, achieved: Tensor | None = None) -> Tensor:
        """Discriminator on the achieved goal, or on another in its place, ``[*B]``."""
        replaced = {} if achieved is None else {self.tensor_keys.achieved_goal: achieved}
        inputs = inputs_of(rows, self.discriminator_network.in_keys, replaced)
        return self._call("discriminator_network", inputs, self.tensor_keys.logit)

    def _at_start(self, rows: TensorDictBase) -> TensorDictBase:
        """Inputs of the value network at the first state of the trajectory, with the goal of the row."""
        keys = self.tensor_keys
        state = state_keys(self.value_network.in_keys, keys)
        if len(state) != 1:
            raise ValueError(
                f"value_network must read one entry besides the goal {keys.desired_goal!r}, which "
                f"{keys.initial_observation!r} replaces; got {state}."
            )
        initial = asked_entry(rows, keys.initial_observation, self, _INITIAL)
        return inputs_of(rows, self.value_network.in_keys, {state[0]: initial})

    def _interpolate_gradient(self, rows: TensorDictBase, dtype: torch.dtype) -> Tensor:
        """Gradient of the logit with respect to both inputs, between the two classes, ``[*B, 2 G]``.

        G counts all numbers of a goal, which may have several dimensions; those of integers are cast to ``dtype``.
        """
        keys = self.tensor_keys
        shape = rows[keys.desired_goal].shape
        pair = [rows[key].flatten(rows.batch_dims) for key in (keys.desired_goal, keys.achieved_goal)]
        goal, achieved = (entry if entry.is_floating_point() else entry.to(dtype) for entry in pair)
        part = self._draw_uniform(goal)

        def total(pair: Tensor) -> Tensor:
            first, second = (each.reshape(shape) for each in pair.chunk(2, -1))
            replaced = {keys.achieved_goal: first, keys.desired_goal: second}
            inputs = inputs_of(rows, self.discriminator_network.in_keys, replaced)
            return self._call("discriminator_network", inputs, keys.logit).sum()

        # torch.func and not autograd.grad, which would need a graph break
        mixed = torch.cat([part * goal + (1.0 - part) * achieved, goal], -1).detach()
        gradient: Tensor = torch.func.grad(total)(mixed)
        return gradient

    def _draw_uniform(self, like: Tensor) -> Tensor:
        """One number in ``[0, 1)`` for each row of ``like``, ``[*B, G]``: ``[*B, 1]``."""
        return torch.rand(*like.shape[:-1], 1, dtype=like.dtype, device=like.device)
