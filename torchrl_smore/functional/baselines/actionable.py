"""Terms of Actionable Models, as functions of tensors only.

Source: Chebotar et al. (2021), arXiv:2104.07749, as coded in ``JasonMa2016/GoFAR`` (``actionablemodel_agent.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_choice(qvalue: Tensor, uniform: Tensor) -> Tensor:
    """Value of one action of K, drawn with probability ``softmax(Q)``: ``[M, K, *B]`` to ``[M, *B]``.

    Gradient flows through the value that was drawn, not through the draw.

    Args:
        qvalue: values of K actions, for every member of an ensemble, shape ``[M, K, *B]``.
        uniform: random numbers in ``[0, 1)``, shape ``[K, *B]``; the members draw by the same.

    Returns:
        Shape ``[M, *B]``.
    """
    # the Gumbel-max trick; the floor keeps both logarithms finite
    tiny = torch.finfo(uniform.dtype).tiny
    gumbel = -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
    chosen = (qvalue.detach() + gumbel).argmax(1, keepdim=True)
    return qvalue.gather(1, chosen).squeeze(1)


def chained(own: Tensor, other: Tensor, ratio: float) -> Tensor:
    """Expectation over rows of which a fraction ``ratio`` pursues another row's goal.

    Args:
        own: loss of each row with its own goal, shape ``[*B]``.
        other: the same with the other row's goal, shape ``[*B]``.
        ratio: in ``[0, 1]``.

    Returns:
        Shape ``[*B]``.
    """
    return (1.0 - ratio) * own + ratio * other
