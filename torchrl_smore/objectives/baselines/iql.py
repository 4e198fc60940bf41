"""Implicit Q-learning with goals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from torchrl_smore._dispatch import Kernels, expectile_awr
from torchrl_smore.functional.baselines.iql import td_target
from torchrl_smore.functional.losses import ExpectileAWR
from torchrl_smore.objectives._construction import AdvantageUnit, add_weighted_actor, check_discount, scale_of
from torchrl_smore.objectives._networks import at_actor_goal, inputs_after, next_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import REGRESSION_KEYS, Term, regression_term, td_term


@final
class GCIQLLoss(OfflineLoss):
    """Goal-conditioned implicit Q-learning (Kostrikov et al., 2021, arXiv:2110.06169) on relabelled data.

    ``V`` is an upper expectile of the smallest target Q, the actor is advantage-weighted regression: the same two
    terms as :class:`~torchrl_smore.objectives.SMORELoss`, around a TD loss that reads a reward. The script of the SMORe
    paper's GC-IQL is unreleased; defaults are IQL's and SMORe's: expectile 0.7 (CORL; OGBench 0.9), temperature 3,
    gamma 0.99, target rate 0.005, Adam 3e-4 with a cosine for the actor, batch 256, relabelling 0.8. Rewards are what
    the sampler writes, {0, 1} or {-1, 0}.

    Args:
        actor_network: stochastic actor, reads state and goal.
        qvalue_network: ``Q(s, a, g)``, one network or a sequence (twins).
        value_network: ``V(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        expectile: in ``(0, 1)``, dimensionless; schedulable by assignment.
        temperature: multiplies the advantage, non-negative; schedulable by assignment.
        gamma: discount, in ``(0, 1)``.
        weight_clip: largest actor weight.
        advantage_unit: see :class:`~torchrl_smore.objectives.SMORELoss`.
        use_terminated: whether ``tensor_keys.terminated`` stops the bootstrap.
        kernels: ``"auto"``, ``"triton"`` or ``"reference"``; see :class:`~torchrl_smore.objectives.ScoreLoss`.

    Returns (forward):
        ``loss_qvalue``, ``loss_value``, ``loss_actor``; detached: mean ``qvalue`` and ``value``, root mean square
        ``td_error``, and those of :class:`~torchrl_smore.objectives.AWRActorLoss`.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for a constant outside its range, or an unknown name.

    Examples:
        >>> from torchrl_smore.modules import goal_specs, make_networks
        >>> networks = make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=1))
        >>> loss = GCIQLLoss(networks.actor, networks.score, networks.value)
        >>> [".".join(key) if isinstance(key, tuple) else key for key in loss.in_keys][3:]
        ['next.observation', 'next.reward', 'next.terminated']
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`GCIQLLoss`.

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
    _schedulable_buffers = frozenset({"expectile", "temperature"})

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule,
        *,
        expectile: float = 0.7,
        temperature: float = 3.0,
        gamma: float = 0.99,
        weight_clip: float = 100.0,
        advantage_unit: AdvantageUnit = "score",
        use_terminated: bool = True,
        kernels: Kernels = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_discount(gamma)
        self.gamma, self.use_terminated = gamma, use_terminated
        self.advantage_scale = scale_of(advantage_unit, gamma)
        add_weighted_actor(self, actor_network, temperature, weight_clip)
        self._add_network("value_network", value_network)
        self._set_coefficient("expectile", expectile, 0.0 < expectile < 1.0, "lie in (0, 1)")
        self._set_kernels(kernels)
        self._add_network("qvalue_network", qvalue_network, delay=True)
        self._ready(self.out_keys)

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
        rows = at_actor_goal(self._rows(tensordict), self.tensor_keys)
        return self._target_qvalue(rows) - self._call("value_network", rows, self.tensor_keys.value)

    @torch.no_grad()
    def _target_qvalue(self, rows: TensorDictBase) -> Tensor:
        """Smallest target Q of the dataset's actions, ``[*B]``."""
        params = self.target_qvalue_network_params
        return self._call("qvalue_network", rows, self.tensor_keys.qvalue, params).amin(0)

    def _value_term(self, rows: TensorDictBase) -> ExpectileAWR:
        """The value fitted to an expectile of the target Q, and with it the weights of the regression."""
        return expectile_awr(
            self._target_qvalue(rows),
            self._call("value_network", rows, self.tensor_keys.value),
            expectile=self.expectile,
            temperature=self.temperature,
            weight_clip=self.weight_clip,
            advantage_scale=self.advantage_scale,
            reduce=self._reducer(rows),
            kernels=self.kernels,
        )

    def _actor_term(self, rows: TensorDictBase, fit: ExpectileAWR | None = None) -> Term:
        """Regression with the weights of ``fit``, unless the actor has goals of its own."""
        own = at_actor_goal(rows, self.tensor_keys)
        with torch.no_grad():
            weight: Any = (fit if fit is not None and own is rows else self._value_term(own)).weight
        log_prob = self._distribution(own).log_prob(own[self.tensor_keys.action])
        return regression_term(log_prob, weight, self._reducer(own))

    def _qvalue_term(self, rows: TensorDictBase) -> Term:
        """Every Q fitted to ``r + gamma (1 - terminated) V(s', g)``."""
        keys = self.tensor_keys
        with torch.no_grad():
            after = inputs_after(rows, self.value_network.in_keys, keys)
            next_value = self._call("value_network", after, keys.value)
        terminated = rows[keys.terminated].squeeze(-1) if self.use_terminated else None
        target = td_target(rows[keys.reward].squeeze(-1), next_value, self.gamma, terminated=terminated)
        qvalue = self._call("qvalue_network", rows, keys.qvalue)
        return td_term(qvalue, target, self._reducer(rows))
