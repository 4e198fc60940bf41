"""In-sample Q-learning with a regularised value: GC-SQL, GC-EQL and GC-XQL."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_smore.functional.baselines.iql import eql_value_loss, sql_value_loss, sql_weight, xql_value_loss
from torchrl_smore.functional.losses import awr_loss
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.goal_loss import require_stochastic
from torchrl_smore.objectives.iql import InSampleLoss


class RegularizedValueLoss(InSampleLoss):
    """In-sample losses whose value minimises a convex function of ``(Q - V) / alpha`` instead of an expectile.

    Defaults of the public code (``ryanxhr/IVR``, ``Div99/XQL``): gamma 0.99, target rate 0.005, Adam 3e-4 with a
    cosine for the actor, batch 256, LayerNorm in the value network. Their goal-conditioned versions are unreleased:
    relabelling (0.8) and the reward ({0, 1} or {-1, 0}) are the sampler's.

    Args:
        actor_network: stochastic actor, reads state and goal.
        qvalue_network: ``Q(s, a, g)``, one network or a sequence (twins).
        value_network: ``V(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        alpha: strength of the regularisation, positive, in units of the return (XQL: its beta, the Gumbel temperature,
            tuned per task within 0.6 to 8).
        temperature: multiplies the advantage, non-negative; schedulable by assignment. ``None`` is the method's own:
            10 / alpha for EQL, 3 for XQL. SQL has none.
        gamma: discount, in ``(0, 1)``.
        weight_clip: largest actor weight.
        huber_delta: see :func:`~torchrl_smore.functional.baselines.iql.td_loss`; ``"default"`` is 20 for XQL and the
            squared error for the others.
        use_terminated: see :class:`~torchrl_smore.objectives.qvalue.QValueLoss`.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_qvalue``, ``loss_value``, ``loss_actor``, and the detached diagnostics of the three parts.
    """

    default_huber_delta: float | None = None

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule,
        *,
        alpha: float = 1.0,
        temperature: float | None = None,
        gamma: float = 0.99,
        weight_clip: float = 100.0,
        huber_delta: float | str | None = "default",
        use_terminated: bool = True,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        if not alpha > 0.0:
            raise ValueError(f"alpha must be positive, got {alpha}.")
        if isinstance(huber_delta, str):
            if huber_delta != "default":
                raise ValueError(f"huber_delta must be positive, None or 'default', got {huber_delta!r}.")
            huber_delta = self.default_huber_delta
        self.alpha = alpha
        self._add_weighted_actor(actor_network, temperature, weight_clip)
        self._add_network("value_network", value_network)
        self._add_qvalue_term(qvalue_network, gamma, huber_delta=huber_delta, use_terminated=use_terminated)
        self._make_vmap()
        self._set_in_keys()

    @abstractmethod
    def _add_weighted_actor(
        self, actor_network: ProbabilisticTensorDictSequential, temperature: float | None, weight_clip: float
    ) -> None: ...

    @abstractmethod
    def _value_rows(self, score: Tensor, value: Tensor, tensordict: TensorDictBase) -> Tensor: ...

    def _value_term(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        value = self._call("value_network", tensordict, self.tensor_keys.value, self.value_network_params)
        score = tensordict[self.tensor_keys.target_score].squeeze(-1)
        loss = self._value_rows(score, value, tensordict)
        return self._reduce_row_loss(loss, tensordict), {"state_value": value.detach()}

    def _kept_rows(self, tensordict: TensorDictBase, like: Tensor) -> Tensor:
        return self._row_weight(tensordict, like) > 0.0


class GCSQLLoss(RegularizedValueLoss):
    """Goal-conditioned sparse Q-learning (Xu et al., 2023, arXiv:2303.15810); options as its base class.

    See :func:`~torchrl_smore.functional.baselines.iql.sql_value_loss`. The actor weight is the advantage itself,
    0 below the value: there is no temperature, and actions below the value are not imitated at all.
    """

    def _add_weighted_actor(
        self, actor_network: ProbabilisticTensorDictSequential, temperature: float | None, weight_clip: float
    ) -> None:
        if temperature is not None:
            raise ValueError(f"sparse Q-learning has no temperature, got {temperature}.")
        if not weight_clip > 0.0:
            raise ValueError(f"weight_clip must be positive, got {weight_clip}.")
        require_stochastic(actor_network)
        self._add_network("actor_network", actor_network)
        self.weight_clip = weight_clip

    def _value_rows(self, score: Tensor, value: Tensor, tensordict: TensorDictBase) -> Tensor:
        return sql_value_loss(score, value, self.alpha)

    def _actor_term(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob = self._distribution(tensordict).log_prob(tensordict[self.tensor_keys.action])
        advantage = tensordict[self.tensor_keys.advantage].squeeze(-1).detach()
        weight = sql_weight(advantage, self.weight_clip)
        metadata = {
            "mean_advantage": advantage.mean(),
            "awr_weight": weight.mean(),
            "weight_clipped": (weight >= self.weight_clip).to(weight.dtype).mean(),
            "log_prob": log_prob.detach().mean(),
        }
        return self._reduce_row_loss(awr_loss(log_prob, weight), tensordict), metadata


class GCEQLLoss(RegularizedValueLoss):
    """Goal-conditioned exponential Q-learning (Xu et al., 2023, arXiv:2303.15810); options as its base class.

    See :func:`~torchrl_smore.functional.baselines.iql.eql_value_loss`; actor weight ``exp(10 (Q - V) / alpha)``.
    """

    def _add_weighted_actor(
        self, actor_network: ProbabilisticTensorDictSequential, temperature: float | None, weight_clip: float
    ) -> None:
        self._add_actor_term(actor_network, 10.0 / self.alpha if temperature is None else temperature, weight_clip)

    def _value_rows(self, score: Tensor, value: Tensor, tensordict: TensorDictBase) -> Tensor:
        return eql_value_loss(score, value, self.alpha, keep=self._kept_rows(tensordict, value))


class GCXQLLoss(RegularizedValueLoss):
    """Goal-conditioned extreme Q-learning (Garg et al., 2023, arXiv:2301.02328); options as its base class.

    See :func:`~torchrl_smore.functional.baselines.iql.xql_value_loss`; actor weight ``exp(3 (Q - V))``, Huber's loss
    for Q.
    """

    default_huber_delta = 20.0

    def _add_weighted_actor(
        self, actor_network: ProbabilisticTensorDictSequential, temperature: float | None, weight_clip: float
    ) -> None:
        self._add_actor_term(actor_network, 3.0 if temperature is None else temperature, weight_clip)

    def _value_rows(self, score: Tensor, value: Tensor, tensordict: TensorDictBase) -> Tensor:
        return xql_value_loss(score, value, self.alpha, keep=self._kept_rows(tensordict, value))
