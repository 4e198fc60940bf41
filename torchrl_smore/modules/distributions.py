"""The likelihood of actions of which some were replaced by noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, register_kl
from torchrl.modules import IndependentNormal


class ContaminatedNormal(IndependentNormal):
    r"""A normal policy whose likelihood allows for a share of actions that are not its own but uniform noise.

    .. math:: \log p(a) = \log \left( (1 - \epsilon) \, \mathcal{N}(a; \mu, \sigma) + \epsilon / V \right)

    with ``V`` the volume of the box of actions: the contamination model of Huber (1964), "Robust Estimation of a
    Location Parameter". A normal's squared error is ruled by the actions that lie far from its mean; a regression by
    this likelihood leaves them out. Offline data have such actions by design: the experts of the Fetch and Hand
    datasets act at random in a share of their steps. Mean, mode and samples are the policy's, without the noise.

    Args:
        loc: mean of the policy, ``[*B, A]``, in the unit of actions.
        scale: its standard deviation, ``[*B, A]``, positive.
        contamination: the share, in ``(0, 1)``, dimensionless.
        log_volume: logarithm of ``V``.
        **kwargs: see :class:`torchrl.modules.IndependentNormal`.

    Raises:
        ValueError: for a contamination outside ``(0, 1)``.
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, contamination: float, log_volume: float, **kwargs: Any) -> None:
        check_contamination(contamination)
        self.own = math.log1p(-contamination)
        self.noise = math.log(contamination) - log_volume
        super().__init__(loc, scale, **kwargs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-likelihood of actions ``[*B, A]``, shape ``[*B]``."""
        own = self._own_log_prob(value)
        return torch.logaddexp(own, torch.full_like(own, self.noise))

    def noise_share(self, value: Tensor) -> Tensor:
        """Probability that actions ``[*B, A]`` are noise and not the policy's own, in ``[0, 1]``, shape ``[*B]``.

        A regression learns from an action by as much as this lacks to 1.
        """
        return torch.sigmoid(self.noise - self._own_log_prob(value))

    def _own_log_prob(self, value: Tensor) -> Tensor:
        own: Tensor = super().log_prob(value) + self.own
        return own

    def entropy(self) -> Tensor:
        """There is no closed form.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("the entropy of a contaminated normal has no closed form.")


@register_kl(ContaminatedNormal, ContaminatedNormal)
@register_kl(ContaminatedNormal, Independent)
@register_kl(Independent, ContaminatedNormal)
def _no_divergence(p: Independent, q: Independent) -> Tensor:
    # that of the normals, which PyTorch would find by their class, is another number
    raise NotImplementedError("the KL divergence of a contaminated normal has no closed form.")


def check_contamination(contamination: float) -> None:
    """Raises ``ValueError`` for a share outside ``(0, 1)``."""
    if not 0.0 < contamination < 1.0:
        raise ValueError(f"contamination must lie in (0, 1), got {contamination}.")


def policy_distribution(contamination: float, low: Tensor | None, high: Tensor | None, size: int) -> dict[str, Any]:
    """The distribution of an actor: what :class:`~torchrl.modules.ProbabilisticActor` wants to know of it.

    Args:
        contamination: see :class:`ContaminatedNormal`; 0: :class:`torchrl.modules.IndependentNormal`.
        low: smallest action, ``[A]``; ``None``: -1.
        high: largest action, likewise.
        size: number of action components.

    Returns:
        Keyword arguments ``distribution_class`` and, if it takes any, ``distribution_kwargs``.

    Raises:
        ValueError: for a contamination outside ``[0, 1)``.
    """
    if contamination == 0.0:
        return {"distribution_class": IndependentNormal}
    check_contamination(contamination)
    volume = size * math.log(2.0) if low is None or high is None else float((high - low).log().sum())
    options = {"contamination": contamination, "log_volume": volume}
    return {"distribution_class": ContaminatedNormal, "distribution_kwargs": options}
