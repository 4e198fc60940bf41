"""What the in-sample Q losses share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.iql import td_target
from torchrl_smore.functional.losses import ActorWeight, actor_weight
from torchrl_smore.objectives._construction import (
    AdvantageUnit,
    add_weighted_actor,
    check_discount,
    check_positive,
    scale_of,
)
from torchrl_smore.objectives._networks import at_actor_goal, inputs_after, next_keys
from torchrl_smore.objectives.base import OfflineLoss
from torchrl_smore.objectives.terms import REGRESSION_KEYS, Term, regression_term, td_term


class ValueFit(NamedTuple):
    """The value fitted to the smallest target Q; everything but ``loss`` is a constant.

    Attributes:
        loss: of the value, reduced.
        value: ``[*B]``.
        mean_value: its mean, 0-d.
        weight: of the actor's regression, with the goals of the value.
    """

    loss: Tensor
    value: Tensor
    mean_value: Tensor
    weight: ActorWeight


class InSampleQLoss(OfflineLoss):
    """Base of GC-SQL, GC-EQL, GC-XQL and GC-IQL: a value, a weighted regression and a TD loss, on the data's actions.

    Every Q is fitted to ``r + gamma (1 - terminated) V(s', g)``, ``V`` to the smallest target Q, the actor regresses on
    the dataset actions. A method says how the value is fitted (``_value_term``), how an advantage weighs an action
    where that is not exponentially (``_weight``), and which of the constants of ``_set_up`` its constructor takes.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of the in-sample Q losses.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            actor_goal: the goal pursued in the regression, ``[*B, G]``; ``None``: that of ``desired_goal``.
            qvalue: written by the Q networks, ``[*B, 1]``.
            value: written by the value network, ``[*B, 1]``.
            reward: ``[*B, 1]``.
            terminated: bool, ``[*B, 1]``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        actor_goal: NestedKey | None = None
        qvalue: NestedKey = "score"
        value: NestedKey = "state_value"
        reward: NestedKey = ("next", "reward")
        terminated: NestedKey = ("next", "terminated")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_qvalue", "loss_value", "loss_actor", "qvalue", "td_error", "value", *REGRESSION_KEYS]
    ensembles = ("qvalue_network",)

    #: Multiplies advantages, which are in the unit of the return, before the temperature does.
    advantage_scale: float = 1.0

    # no constructor: OfflineLoss's warns whoever calls the constructor that calls it
    def _set_up(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule,
        *,
        gamma: float,
        temperature: float | None,
        weight_clip: float,
        advantage_unit: AdvantageUnit = "score",
        huber_delta: float | None = None,
        use_terminated: bool,
    ) -> None:
        """Registers networks and constants; ``None`` is a weight without temperature, or the squared error."""
        if huber_delta is not None:
            check_positive(huber_delta=huber_delta)
        check_discount(gamma)
        self.gamma, self.huber_delta, self.use_terminated = gamma, huber_delta, use_terminated
        self.advantage_scale = scale_of(advantage_unit, gamma)
        add_weighted_actor(self, actor_network, temperature, weight_clip)
        self._add_network("value_network", value_network)
        self._add_network("qvalue_network", qvalue_network, delay=True)

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, value_keys = self.tensor_keys, self.value_network.in_keys
        inputs = [*self.qvalue_network.in_keys, *value_keys, *self.actor_network.in_keys, keys.action]
        rest = [keys.terminated] if self.use_terminated else []
        rest += [] if keys.actor_goal is None else [keys.actor_goal]
        return [*inputs, *next_keys(value_keys, keys), keys.reward, *rest]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the three losses at the same parameters; see the class."""
        rows = self._rows(tensordict)
        fit = self._value_term(rows)
        loss_actor, actor_metadata = self._actor_term(rows, fit)
        loss_qvalue, qvalue_metadata = self._qvalue_term(rows)
        losses = {"loss_qvalue": loss_qvalue, "loss_value": fit.loss, "loss_actor": loss_actor}
        return self._finish(losses, {**qvalue_metadata, "value": fit.mean_value, **actor_metadata}, rows)

    def value_loss(self, tensordict: TensorDictBase) -> Term:
        """Value loss against the current target Q, and ``state_value`` (detached, ``[*B]``) as metadata."""
        fit = self._value_term(self._rows(tensordict))
        return fit.loss, {"state_value": fit.value}

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Regression loss at the current advantage, and its metadata."""
        return self._actor_term(self._rows(tensordict))

    def qvalue_loss(self, tensordict: TensorDictBase) -> Term:
        """Temporal-difference loss bootstrapped from the current value, and its metadata."""
        return self._qvalue_term(self._rows(tensordict))

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase) -> Tensor:
        """Smallest target Q less value at the dataset's actions: what weighs the regression.

        Args:
            tensordict: a batch as for :meth:`forward`; of it what :meth:`actor_loss` reads.

        Returns:
            Shape ``[*B]``, in the unit of the return (``advantage_scale`` is not applied), without gradient.
        """
        return self._advantage(at_actor_goal(self._rows(tensordict), self.tensor_keys, self.in_keys))

    @abstractmethod
    def _value_term(self, rows: TensorDictBase) -> ValueFit:
        """The method's loss of the value, and with it the weights of the regression."""

    def _weight(self, advantage: Tensor) -> ActorWeight:
        """Weights of the regression by an advantage, ``[*B]``, a constant in the unit of the return."""
        return actor_weight(self.advantage_scale * advantage, self.temperature, self.weight_clip)

    def _weight_at(self, rows: TensorDictBase) -> ActorWeight:
        """Weights of the regression, where there is no fit of the value to the same goals."""
        return self._weight(self._advantage(rows))

    @torch.no_grad()
    def _advantage(self, rows: TensorDictBase) -> Tensor:
        """Smallest target Q less value, ``[*B]``."""
        return self._target_qvalue(rows) - self._call("value_network", rows, self.tensor_keys.value)

    @torch.no_grad()
    def _target_qvalue(self, rows: TensorDictBase) -> Tensor:
        """Smallest target Q of the dataset's actions, ``[*B]``."""
        params = self.target_qvalue_network_params
        return self._call("qvalue_network", rows, self.tensor_keys.qvalue, params).amin(0)

    def _value_and_target(self, rows: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Value, and the smallest target Q that it is fitted to, ``[*B]`` each."""
        return self._call("value_network", rows, self.tensor_keys.value), self._target_qvalue(rows)

    def _fit(self, rows: TensorDictBase, loss: Tensor, value: Tensor, qvalue: Tensor) -> ValueFit:
        """What :meth:`_value_term` returns of a loss of rows, the value and its target, ``[*B]`` each."""
        value = value.detach()
        return ValueFit(self._reducer(rows)(loss), value, value.mean(), self._weight(qvalue - value))

    def _actor_term(self, rows: TensorDictBase, fit: ValueFit | None = None) -> Term:
        """Regression with the weights of ``fit``, unless the actor has goals of its own."""
        own = at_actor_goal(rows, self.tensor_keys, self.in_keys)
        weight = fit.weight if fit is not None and own is rows else self._weight_at(own)
        return regression_term(self._log_prob(own), weight, self._reducer(own))

    def _qvalue_term(self, rows: TensorDictBase) -> Term:
        """Every Q fitted to ``r + gamma (1 - terminated) V(s', g)``."""
        keys = self.tensor_keys
        with torch.no_grad():
            after = inputs_after(rows, self.value_network.in_keys, keys)
            next_value = self._call("value_network", after, keys.value)
        terminated = rows[keys.terminated].squeeze(-1) if self.use_terminated else None
        target = td_target(rows[keys.reward].squeeze(-1), next_value, self.gamma, terminated=terminated)
        qvalue = self._call("qvalue_network", rows, keys.qvalue)
        return td_term(qvalue, target, self._reducer(rows), self.huber_delta)
