"""Sparse Q-learning with goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_smore.functional.baselines.iql import sql_value_loss, sql_weight
from torchrl_smore.functional.losses import ActorWeight, weighed
from torchrl_smore.objectives._construction import check_positive
from torchrl_smore.objectives.base import Reduction, ScalarOutputMode
from torchrl_smore.objectives.baselines.in_sample import InSampleQLoss, ValueFit


@final
class GCSQLLoss(InSampleQLoss):
    r"""Goal-conditioned sparse Q-learning (Xu et al., 2023, arXiv:2303.15810).

    See :func:`~torchrl_smore.functional.baselines.iql.sql_value_loss`. The actor weight is the advantage itself,
    0 below the value: there is no temperature, and actions below the value are not imitated at all.

    In-sample: the value is fitted to the smallest target Q by a convex function of ``(Q - V) / alpha`` instead of an
    expectile, the actor regresses on the dataset actions, every Q is fitted to ``r + gamma (1 - terminated) V(s', g)``.
    No action outside the data is ever evaluated. :meth:`forward` computes the three at the same parameters; calling
    :meth:`value_loss`, :meth:`actor_loss` and :meth:`qvalue_loss` with an optimiser step in between is the sequential
    order of the public code. Nothing is written to the input.

    Defaults of the public code (``ryanxhr/IVR``): gamma 0.99, target rate 0.005, Adam 3e-4 with a cosine for the
    actor, batch 256, LayerNorm in the value network. Its goal-conditioned version is unreleased: relabelling (0.8) and
    the reward ({0, 1} or {-1, 0}) are the sampler's.

    Args:
        actor_network: stochastic actor, reads state and goal.
        qvalue_network: ``Q(s, a, g)``, one network or a sequence (twins).
        value_network: ``V(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        alpha: strength of the regularisation, positive, in units of the return.
        gamma: discount, in ``(0, 1)``.
        weight_clip: largest actor weight.
        huber_delta: see :func:`~torchrl_smore.functional.baselines.iql.td_loss`.
        use_terminated: whether ``tensor_keys.terminated`` stops the bootstrap.

    Returns (forward):
        ``loss_qvalue``, ``loss_value``, ``loss_actor``; detached: mean ``qvalue`` and ``value``, root mean square
        ``td_error``, and those of :class:`~torchrl_smore.objectives.AWRActorLoss`.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for a constant outside its range.
    """

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule,
        *,
        alpha: float = 1.0,
        gamma: float = 0.99,
        weight_clip: float = 100.0,
        huber_delta: float | None = None,
        use_terminated: bool = True,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_positive(alpha=alpha)
        self.alpha = alpha
        self._set_up(
            actor_network,
            qvalue_network,
            value_network,
            gamma=gamma,
            temperature=None,
            weight_clip=weight_clip,
            huber_delta=huber_delta,
            use_terminated=use_terminated,
        )
        self._ready(self.out_keys)

    def _value_term(self, rows: TensorDictBase) -> ValueFit:
        """Sparse Q-learning's value loss."""
        value, qvalue = self._value_and_target(rows)
        return self._fit(rows, sql_value_loss(qvalue, value, self.alpha), value, qvalue)

    def _weight(self, advantage: Tensor) -> ActorWeight:
        """The advantage itself, without a temperature."""
        return weighed(advantage, sql_weight(advantage, self.weight_clip), self.weight_clip)
