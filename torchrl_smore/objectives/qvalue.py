"""Temporal-difference loss of a goal-conditioned Q-function, given the value to bootstrap from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.iql import td_loss, td_target
from torchrl_smore.objectives.base import Reduction, ScalarOutputMode
from torchrl_smore.objectives.goal_loss import GoalLoss


class QValueLoss(GoalLoss):
    r"""Fits every ``Q_i(s, a, g)`` to ``r + gamma (1 - terminated) V(s', g)``; the losses of the members are added.

    See :func:`~torchrl_smore.functional.baselines.iql.td_target` and
    :func:`~torchrl_smore.functional.baselines.iql.td_loss`. The part that the value-based baselines share.

    Args:
        qvalue_network: writes ``tensor_keys.qvalue``, ``[*B, 1]``; one network, or a sequence as an ensemble (for
            example ``make_networks(...).score``).
        gamma: discount, in ``(0, 1)``; a coefficient and not a value estimator: the value to bootstrap from is another
            network's, or another action's, and part of each method.
        target_bounds: smallest and largest target, or ``None``.
        huber_delta: see :func:`~torchrl_smore.functional.baselines.iql.td_loss`.
        use_terminated: whether ``tensor_keys.terminated`` stops the bootstrap.
        delay_qvalue: keep target parameters for a Polyak updater.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_qvalue``; detached: mean ``qvalue``, root mean square ``td_error``.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`QValueLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            qvalue: written by the Q networks, ``[*B, 1]``.
            next_value: value of the next state, ``[*B, 1]``, taken as a constant.
            reward: ``[*B, 1]``.
            terminated: bool, ``[*B, 1]``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        qvalue: NestedKey = "score"
        next_value: NestedKey = ("next", "state_value")
        reward: NestedKey = ("next", "reward")
        terminated: NestedKey = ("next", "terminated")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_qvalue", "qvalue", "td_error"]

    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        *,
        gamma: float = 0.99,
        target_bounds: tuple[float, float] | None = None,
        huber_delta: float | None = None,
        use_terminated: bool = True,
        delay_qvalue: bool = False,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        self._add_qvalue_term(
            qvalue_network,
            gamma,
            target_bounds=target_bounds,
            huber_delta=huber_delta,
            use_terminated=use_terminated,
            delay_qvalue=delay_qvalue,
        )
        self._make_vmap()
        self._set_in_keys()

    def _add_qvalue_term(
        self,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        gamma: float,
        *,
        target_bounds: tuple[float, float] | None = None,
        huber_delta: float | None = None,
        use_terminated: bool = True,
        delay_qvalue: bool = True,
    ) -> None:
        check_discount(gamma)
        if target_bounds is not None and not target_bounds[0] < target_bounds[1]:
            raise ValueError(f"target_bounds must be (lower, upper) with lower < upper, got {target_bounds}.")
        if huber_delta is not None and not huber_delta > 0.0:
            raise ValueError(f"huber_delta must be positive, got {huber_delta}.")
        self.gamma = gamma
        self.target_bounds = target_bounds
        self.huber_delta = huber_delta
        self.use_terminated = use_terminated
        self._add_network("qvalue_network", qvalue_network, create_target_params=delay_qvalue)

    def _ensembles(self) -> tuple[str, ...]:
        return ("qvalue_network",)

    def _reward_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        return [keys.reward, keys.terminated] if self.use_terminated else [keys.reward]

    def _read_keys(self) -> Iterable[NestedKey]:
        return [*self.qvalue_network.in_keys, *self._reward_keys(), self.tensor_keys.next_value]

    def _qvalues(self, tensordict: TensorDictBase, params: TensorDictParams) -> Tensor:
        """Q of every member, ``[M, *B]``."""
        return self._call_ensemble("qvalue_network", tensordict, self.tensor_keys.qvalue, params)

    def _td_target(self, tensordict: TensorDictBase) -> Tensor:
        keys = self.tensor_keys
        reward, next_value = tensordict[keys.reward].squeeze(-1), tensordict[keys.next_value].squeeze(-1)
        terminated = tensordict[keys.terminated].squeeze(-1) if self.use_terminated else None
        return td_target(
            reward.to(next_value.dtype), next_value, self.gamma, terminated=terminated, bounds=self.target_bounds
        )

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced loss, and its detached scalar diagnostics as metadata."""
        return self._qvalue_term(self._rows(tensordict))

    def _qvalue_term(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        qvalue = self._qvalues(tensordict, self.qvalue_network_params)
        error = qvalue - self._td_target(tensordict)
        loss = td_loss(error, self.huber_delta).sum(0)
        metadata = {"qvalue": qvalue.detach().mean(), "td_error": error.detach().square().mean().sqrt()}
        return self._reduce_row_loss(loss, tensordict), metadata

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        tensordict = self._rows(tensordict)
        loss, metadata = self._qvalue_term(tensordict)
        return self._finish({"loss_qvalue": loss}, metadata, tensordict)


def check_discount(gamma: float) -> None:
    """Raises ``ValueError`` for a discount outside ``(0, 1)``."""
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie in (0, 1), got {gamma}.")


def return_bounds(gamma: float) -> tuple[float, float]:
    """Range of the discounted return of rewards in {-1, 0}."""
    check_discount(gamma)
    return -1.0 / (1.0 - gamma), 0.0
