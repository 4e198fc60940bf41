"""Goal-conditioned supervised learning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.baselines.wgcsl import action_error
from torchrl_smore.functional.losses import awr_loss
from torchrl_smore.objectives.base import Reduction, ScalarOutputMode
from torchrl_smore.objectives.goal_loss import GoalLoss, require_stochastic

Regression = Literal["mse", "nll"]


class GCSLLoss(GoalLoss):
    """Imitation of the dataset actions given a goal (Ghosh et al., 2019, arXiv:1912.06088).

    On relabelled data (ratio 1) this is GCSL, on the stored goals goal-conditioned behaviour cloning. Defaults of
    GoFAR's port (``gcsl_agent.py``): squared error of a deterministic actor, Adam 5e-4, batch 512, three hidden layers
    of 256, goals uniform over the future. No reward is read. Nothing is written to the input.

    Args:
        actor_network: writes ``tensor_keys.action`` from state and goal; stochastic for ``"nll"``.
        regression: ``"mse"`` is the squared error of the actor's deterministic action, averaged over action
            dimensions; ``"nll"`` the negative log-likelihood (OGBench's GCBC).
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_actor``; detached: mean ``action_error`` for ``"mse"`` or mean ``log_prob`` for ``"nll"``.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`GCSLLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; also what the actor writes.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_actor", "action_error"]

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModule,
        *,
        regression: Regression = "mse",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        self._add_regression_term(actor_network, regression)
        if regression == "nll":
            self.out_keys = self._kept(["loss_actor", "log_prob"])
        self._make_vmap()
        self._set_in_keys()

    def _add_regression_term(
        self, actor_network: TensorDictModule, regression: Regression, *, delay_actor: bool = False
    ) -> None:
        if regression not in get_args(Regression):
            raise unknown_name("regression", regression, get_args(Regression))
        if regression == "nll":
            require_stochastic(actor_network)
        self.regression = regression
        self._add_network("actor_network", actor_network, create_target_params=delay_actor)

    def _read_keys(self) -> Iterable[NestedKey]:
        return [*self.actor_network.in_keys, self.tensor_keys.action]

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced regression loss, and its detached scalar diagnostics as metadata."""
        return self._regression_term(self._rows(tensordict))

    def _regression_term(
        self, tensordict: TensorDictBase, weight: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of every row times its weight (``[*B]``, a constant), reduced."""
        action = tensordict[self.tensor_keys.action]
        if self.regression == "nll":
            log_prob = self._distribution(tensordict).log_prob(action)
            rows = awr_loss(log_prob, log_prob.new_ones(()) if weight is None else weight)
            metadata = {"log_prob": log_prob.detach().mean()}
        else:
            rows = action_error(self._policy_action(tensordict, self.actor_network_params), action)
            metadata = {"action_error": rows.detach().mean()}
            if weight is not None:
                rows = weight.detach() * rows
        return self._reduce_row_loss(rows, tensordict), metadata

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        tensordict = self._rows(tensordict)
        loss, metadata = self._regression_term(tensordict)
        return self._finish({"loss_actor": loss}, metadata, tensordict)
