"""Implicit Q-learning with goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule

from torchrl_smore._dispatch import Kernels, expectile_awr
from torchrl_smore.functional.losses import ActorWeight
from torchrl_smore.objectives._construction import AdvantageUnit
from torchrl_smore.objectives.base import Reduction, ScalarOutputMode
from torchrl_smore.objectives.baselines.in_sample import InSampleQLoss, ValueFit


@final
class GCIQLLoss(InSampleQLoss):
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
        self._set_up(
            actor_network,
            qvalue_network,
            value_network,
            gamma=gamma,
            temperature=temperature,
            weight_clip=weight_clip,
            advantage_unit=advantage_unit,
            use_terminated=use_terminated,
        )
        self._set_coefficient("expectile", expectile, 0.0 < expectile < 1.0, "lie in (0, 1)")
        self._set_kernels(kernels)
        self._ready(self.out_keys)

    def _value_term(self, rows: TensorDictBase) -> ValueFit:
        """The value fitted to an expectile of the target Q; the weights are of the same difference."""
        fit = expectile_awr(
            self._target_qvalue(rows),
            self._call("value_network", rows, self.tensor_keys.value),
            expectile=self.expectile,
            temperature=self.temperature,
            weight_clip=self.weight_clip,
            advantage_scale=self.advantage_scale,
            reduce=self._reducer(rows),
            kernels=self.kernels,
        )
        assert fit.weight is not None
        return ValueFit(fit.loss, fit.value, fit.mean_value, fit.weight)

    @torch.no_grad()
    def _weight_at(self, rows: TensorDictBase) -> ActorWeight:
        # by the kernel too, which computes both
        return self._value_term(rows).weight
