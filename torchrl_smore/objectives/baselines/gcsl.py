"""Goal-conditioned supervised learning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch

from torchrl_smore.objectives._construction import check_choice, require_stochastic
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import Term, imitation_term

Regression = Literal["mse", "nll"]


@final
class GCSLLoss(OfflineLoss):
    """Imitation of the dataset actions given a goal (Ghosh et al., 2019, arXiv:1912.06088).

    On relabelled data (ratio 1) this is GCSL, on the stored goals goal-conditioned behaviour cloning. Defaults of
    GoFAR's port (``gcsl_agent.py``): squared error of a deterministic actor, Adam 5e-4, batch 512, three hidden layers
    of 256, goals uniform over the future. No reward is read. Nothing is written to the input.

    Args:
        actor_network: writes ``tensor_keys.action`` from state and goal; stochastic for ``"nll"``.
        regression: ``"mse"`` is the squared error of the actor's deterministic action, averaged over action
            dimensions; ``"nll"`` the negative log-likelihood (OGBench's GCBC).

    Returns (forward):
        ``loss_actor``; detached: mean ``action_error`` for ``"mse"`` or mean ``log_prob`` for ``"nll"``.

    Raises:
        TypeError: for ``"nll"`` with an actor without ``get_dist``.
        ValueError: for an unknown name.
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
        check_choice(regression=(regression, Regression))
        if regression == "nll":
            require_stochastic(actor_network)
        self.regression = regression
        self._add_network("actor_network", actor_network)
        self._ready(["loss_actor", "action_error" if regression == "mse" else "log_prob"])

    def _read_keys(self) -> Iterable[NestedKey]:
        return [*self.actor_network.in_keys, self.tensor_keys.action]

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced regression loss, and its detached scalar diagnostics as metadata."""
        return self._actor_term(self._rows(tensordict))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        rows = self._rows(tensordict)
        loss, metadata = self._actor_term(rows)
        return self._finish({"loss_actor": loss}, metadata, rows)

    def _actor_term(self, rows: TensorDictBase) -> Term:
        """Regression on the dataset's actions, all rows alike."""
        policy = self._distribution(rows) if self.regression == "nll" else self._trained_action(rows)
        return imitation_term(policy, rows[self.tensor_keys.action], self._reducer(rows))
