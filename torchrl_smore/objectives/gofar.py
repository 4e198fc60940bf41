"""GoFAR: goal-conditioned f-advantage regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.baselines.gofar import (
    GoFARDivergence,
    bellman_error,
    discriminator_loss,
    gofar_dual,
    gofar_value_loss,
    gradient_penalty,
)
from torchrl_smore.functional.losses import awr_weight, expectile_loss
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.gcsl import GCSLLoss, Regression
from torchrl_smore.objectives.qvalue import check_discount

GoFARReward = Literal["discriminator", "binary"]
ActorWeight = Literal["dual", "expectile_awr"]


class GoFARLoss(GCSLLoss):
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
        regression: see :class:`~torchrl_smore.objectives.gcsl.GCSLLoss`.
        gamma: discount, in ``(0, 1)``.
        gradient_penalty_coef: weight of the gradient penalty, on random interpolates of the two classes (drawn from the
            global generator); 0 switches it off.
        expectile: for ``"expectile_awr"``; schedulable by assignment.
        temperature: for ``"expectile_awr"``; schedulable by assignment.
        weight_clip: for ``"expectile_awr"``, largest weight.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_value``, ``loss_actor`` and, with a discriminator, ``loss_discriminator``; detached: mean ``value``,
        ``reward``, ``bellman_error`` (root mean square), ``actor_weight``, and ``action_error`` or ``log_prob``.
    """

    @dataclass
    class _AcceptedKeys(GCSLLoss._AcceptedKeys):
        """Keys of :class:`GoFARLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; also what the actor writes.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            achieved_goal: goal achieved before the transition, ``[*B, G]``; with a discriminator.
            initial_observation: first observation of the row's trajectory, ``[*B, O]``; for ``"dual"``. It replaces
                the one input of the value network that is not the goal.
            value: written by the value network, ``[*B, 1]``.
            logit: written by the discriminator, ``[*B, 1]``.
            reward: ``[*B, 1]``; for ``reward="binary"``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        desired_goal: NestedKey = "desired_goal"
        achieved_goal: NestedKey = "achieved_goal"
        initial_observation: NestedKey = "initial_observation"
        value: NestedKey = "state_value"
        logit: NestedKey = "logit"
        reward: NestedKey = ("next", "reward")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    _schedulable_buffers = frozenset({"expectile", "temperature"})

    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    discriminator_network: TensorDictModule
    discriminator_network_params: TensorDictParams
    target_discriminator_network_params: TensorDictParams
    expectile: Tensor
    temperature: Tensor

    def __init__(
        self,
        actor_network: TensorDictModule,
        value_network: TensorDictModule,
        discriminator_network: TensorDictModule | None = None,
        *,
        divergence: GoFARDivergence = "chi2",
        reward: GoFARReward = "discriminator",
        actor_weight: ActorWeight = "dual",
        regression: Regression = "mse",
        gamma: float = 0.98,
        gradient_penalty_coef: float = 0.01,
        expectile: float = 0.8,
        temperature: float = 3.0,
        weight_clip: float = 100.0,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        for name, chosen, valid in (("reward", reward, GoFARReward), ("actor_weight", actor_weight, ActorWeight)):
            if chosen not in get_args(valid):
                raise unknown_name(name, chosen, get_args(valid))
        if (discriminator_network is None) != (reward == "binary"):
            given = "none" if discriminator_network is None else "one"
            raise ValueError(f"reward='discriminator' needs a discriminator_network and 'binary' none, got {given}.")
        if not gradient_penalty_coef >= 0.0:
            raise ValueError(f"gradient_penalty_coef must not be negative, got {gradient_penalty_coef}.")
        check_discount(gamma)
        self.dual = gofar_dual(divergence)
        self.reward, self.actor_weight, self.gamma = reward, actor_weight, gamma
        self.gradient_penalty_coef, self.weight_clip = gradient_penalty_coef, weight_clip
        if actor_weight == "expectile_awr":
            self._set_coefficient("expectile", expectile, 0.0 < expectile < 1.0, "lie in (0, 1)")
            self._set_coefficient("temperature", temperature, temperature >= 0.0, "not be negative")
        self._add_regression_term(actor_network, regression)
        self._add_network("value_network", value_network, create_target_params=True)
        if discriminator_network is not None:
            self._add_network("discriminator_network", discriminator_network)
        self.out_keys = self._kept(self._output_names(discriminator_network is not None))
        self._make_vmap()
        self._set_in_keys()

    def _output_names(self, discriminator: bool) -> list[str]:
        losses = ["loss_value", "loss_actor", *(["loss_discriminator"] if discriminator else [])]
        error = "action_error" if self.regression == "mse" else "log_prob"
        return [*losses, "value", "reward", "bellman_error", "actor_weight", error]

    def _read_keys(self) -> Iterable[NestedKey]:
        keys = self.tensor_keys
        inputs = [*self.actor_network.in_keys, *self.value_network.in_keys, keys.action]
        extra = [*self._next_keys(self.value_network.in_keys)]
        if self.actor_weight == "dual":
            extra.append(keys.initial_observation)
        extra += [keys.reward] if self.reward == "binary" else self.discriminator_network.in_keys
        return [*inputs, *extra]

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Value loss with the current reward, and its metadata (``error`` is the residual, ``[*B]``)."""
        return self._value_term(self._rows(tensordict))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted regression loss at the current residual, and its metadata."""
        batch = self._rows(tensordict)
        with torch.no_grad():
            _, metadata = self._value_term(batch)
        return self._actor_term(batch, metadata["error"])

    def discriminator_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and gradient penalty; no metadata."""
        return self._discriminator_term(self._rows(tensordict)), {}

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses at the same parameters; see the class."""
        batch = self._rows(tensordict)
        loss_value, value = self._value_term(batch)
        error = value.pop("error")
        loss_actor, actor = self._actor_term(batch, error)
        losses = {"loss_value": loss_value, "loss_actor": loss_actor}
        if self.reward == "discriminator":
            losses["loss_discriminator"] = self._discriminator_term(batch)
        return self._finish(losses, {**value, **actor}, batch)

    def _logit(self, batch: TensorDictBase, achieved: Tensor | None = None) -> Tensor:
        """Discriminator on the achieved goal, or on another in its place, ``[*B]``."""
        entries = {} if achieved is None else {self.tensor_keys.achieved_goal: achieved}
        inputs = self._inputs(batch, self.discriminator_network.in_keys, entries)
        return self._call("discriminator_network", inputs, self.tensor_keys.logit, self.discriminator_network_params)

    @torch.no_grad()
    def _rewards(self, batch: TensorDictBase) -> Tensor:
        if self.reward == "binary":
            return batch[self.tensor_keys.reward].squeeze(-1)
        return self._logit(batch)

    def _values(self, inputs: TensorDictBase, params: TensorDictParams) -> Tensor:
        return self._call("value_network", inputs, self.tensor_keys.value, params)

    def _at_start(self, batch: TensorDictBase) -> TensorDictBase:
        """Inputs of the value network at the first state of the trajectory, with the goal of the row."""
        state = self._state_keys(self.value_network.in_keys)
        if len(state) != 1:
            raise ValueError(
                f"value_network must read one entry besides the goal {self.tensor_keys.desired_goal!r}, which "
                f"{self.tensor_keys.initial_observation!r} replaces; got {state}."
            )
        return self._inputs(batch, self.value_network.in_keys, {state[0]: batch[self.tensor_keys.initial_observation]})

    def _value_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        value = self._values(batch, self.value_network_params)
        with torch.no_grad():
            after = self._after_step(batch, self.value_network.in_keys)
            next_value = self._values(after, self.target_value_network_params)
        reward = self._rewards(batch).to(value.dtype)
        error = bellman_error(reward, value, next_value, self.gamma)
        if self.actor_weight == "dual":
            initial = self._values(self._at_start(batch), self.value_network_params)
            conjugate = self.dual.conjugate(error, self._row_weight(batch, error))
            rows = gofar_value_loss(initial, conjugate, self.gamma)
        else:
            rows = expectile_loss(error, self.expectile)
        metadata = {
            "error": error.detach(),
            "value": value.detach().mean(),
            "reward": reward.mean(),
            "bellman_error": error.detach().square().mean().sqrt(),
        }
        return self._reduce_row_loss(rows, batch), metadata

    def _actor_term(self, batch: TensorDictBase, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.actor_weight == "dual":
            weight = self.dual.weight(error)
        else:
            weight = awr_weight(error, self.temperature, self.weight_clip)
        loss, metadata = self._regression_term(batch, weight)
        return loss, {"actor_weight": weight.mean(), **metadata}

    def _discriminator_term(self, batch: TensorDictBase) -> Tensor:
        goal = batch[self.tensor_keys.desired_goal]
        rows = discriminator_loss(self._logit(batch, goal), self._logit(batch))
        if self.gradient_penalty_coef > 0.0:
            rows = rows + self.gradient_penalty_coef * gradient_penalty(self._interpolate_gradient(batch))
        return self._reduce_row_loss(rows, batch)

    def _interpolate_gradient(self, batch: TensorDictBase) -> Tensor:
        """Gradient of the logit with respect to both inputs, between the two classes, ``[*B, 2 G]``."""
        keys = self.tensor_keys
        goal, achieved = batch[keys.desired_goal], batch[keys.achieved_goal]
        part = self._draw_uniform(goal)

        def total(pair: Tensor) -> Tensor:
            first, second = pair.chunk(2, -1)
            entries = {keys.achieved_goal: first, keys.desired_goal: second}
            inputs = self._inputs(batch, self.discriminator_network.in_keys, entries)
            return self._call("discriminator_network", inputs, keys.logit, self.discriminator_network_params).sum()

        # torch.func and not autograd.grad, which would need a graph break
        mixed = torch.cat([part * goal + (1.0 - part) * achieved, goal], -1).detach()
        gradient: Tensor = torch.func.grad(total)(mixed)
        return gradient

    def _draw_uniform(self, like: Tensor) -> Tensor:
        """One number in ``[0, 1)`` for each row, ``[*B, 1]``."""
        return torch.rand(*like.shape[:-1], 1, dtype=like.dtype, device=like.device)
