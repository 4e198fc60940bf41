"""The only place that chooses between the reference (``functional``) and the fused kernels (``smore_kernels``)."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional import losses, optim
from torchrl_smore.functional.divergences import get_divergence
from torchrl_smore.functional.losses import ActorWeight, ExpectileAWR
from torchrl_smore.functional.score import Bounds, ScoreObjective, score_rows

Implementation = Literal["triton", "reference"]
Kernels = Literal["auto", "triton", "reference"]
Reduce = Callable[[Tensor], Tensor]

#: What ``"auto"`` runs on CUDA tensors, and why. A kernel is the default only where it beats ``torch.compile`` of its
#: reference on a GPU (``kernels/README.md``).
AUTO_ON_CUDA: Implementation = "reference"
AUTO_REASON = "the kernels have not been timed on a GPU yet"

_logger = logging.getLogger("torchrl_smore")


# constant in a compiled graph: neither the search for triton nor the log entry can be traced
@torch.compiler.assume_constant_result
def resolve_kernels(kernels: Kernels, device: torch.device | str, *, averages: bool = True) -> Implementation:
    """The implementation to run for tensors on ``device``; logs once what ``"auto"`` chose there, and why.

    Args:
        kernels: ``"reference"`` is the functional code on any device, ``"triton"`` the fused kernels or an error,
            ``"auto"`` the faster of the two as far as it has been measured.
        device: where the tensors are.
        averages: whether losses of rows are reduced by :func:`torch.mean`, which is all that the kernels compute.

    Returns:
        ``"triton"`` or ``"reference"``; for ``"triton"`` the kernels have been imported.

    Raises:
        RuntimeError: if ``"triton"`` cannot run there.
        ValueError: for an unknown name, or ``"triton"`` with another reduction.
    """
    if kernels not in get_args(Kernels):
        raise unknown_name("kernels", kernels, get_args(Kernels))
    if not averages:
        if kernels == "triton":
            raise ValueError(
                "kernels='triton' averages over all rows: it needs reduction='mean' and a batch without masks or "
                "priority weights."
            )
        return "reference"
    device_type = torch.device(device).type
    if kernels == "reference":
        return "reference"
    if kernels == "triton":
        missing = _missing_for_triton(device_type)
        if missing is not None:
            raise RuntimeError(f"kernels='triton' cannot run on {device_type} tensors: {missing}.")
        return "triton"
    chosen: Implementation = "reference"
    reason: str | None = "the kernels are for CUDA tensors"
    if device_type == "cuda":
        reason = _missing_for_triton(device_type) if AUTO_ON_CUDA == "triton" else None
        if reason is None:
            chosen, reason = AUTO_ON_CUDA, AUTO_REASON
    _log_once(device_type, chosen, reason)
    return chosen


def score_objective(
    objective: ScoreObjective,
    *,
    score: Tensor,
    next_value: Tensor,
    q_score: Tensor,
    q_next_value: Tensor | None,
    policy_score: Tensor | None = None,
    q_next_policy_score: Tensor | None = None,
    bounds: Bounds | None = None,
    reduce: tuple[Reduce, Reduce] = (torch.mean, torch.mean),
    kernels: Kernels = "auto",
) -> Tensor:
    """Score objective, reduced over rows; see :func:`~torchrl_smore.functional.score.score_rows`.

    Axes of seeds are mapped with ``torch.vmap``. The kernel is differentiable once.

    Args:
        objective: formulation and constants.
        score: see :func:`~torchrl_smore.functional.score.score_rows`.
        next_value: see :func:`~torchrl_smore.functional.score.score_rows`.
        q_score: see :func:`~torchrl_smore.functional.score.score_rows`.
        q_next_value: see :func:`~torchrl_smore.functional.score.score_rows`.
        policy_score: see :func:`~torchrl_smore.functional.score.score_rows`.
        q_next_policy_score: see :func:`~torchrl_smore.functional.score.score_rows`.
        bounds: see :func:`~torchrl_smore.functional.score.score_rows`.
        reduce: of the terms on offline rows and on goal transitions.
        kernels: see :func:`resolve_kernels`.

    Returns:
        The loss, a scalar where ``reduce`` makes one.

    Raises:
        RuntimeError: see :func:`resolve_kernels`.
        ValueError: if the objective lacks a score at the policy's actions, or see :func:`resolve_kernels`.
    """
    if resolve_kernels(kernels, score.device, averages=reduce == (torch.mean, torch.mean)) == "reference":
        terms = score_rows(
            objective,
            score=score,
            next_value=next_value,
            q_score=q_score,
            q_next_value=q_next_value,
            policy_score=policy_score,
            q_next_policy_score=q_next_policy_score,
            bounds=bounds,
        )
        return reduce[0](terms[0]) + reduce[1](terms[1])
    if q_next_value is None:
        if objective.needs_q_residual:
            raise ValueError(f"formulation={objective.formulation!r} needs q_next_value.")
        q_next_value = next_value.new_zeros(q_score.shape[1:])
    import smore_kernels

    rows: Tensor | None = None
    q_rows: Tensor | None = None
    if objective.needs_policy:
        if policy_score is None or q_next_policy_score is None:
            raise ValueError("formulation='dual' needs policy_score and q_next_policy_score.")
        rows, q_rows = policy_score.flatten(1), q_next_policy_score.flatten(1)
    return smore_kernels.mean_score_objective(
        score.flatten(1),
        next_value.flatten(),
        q_score.flatten(1),
        q_next_value.flatten(),
        bounds=bounds,
        policy_score=rows,
        q_next_policy_score=q_rows,
        **kernel_constants(objective),
    )


def expectile_awr(
    score: Tensor,
    value: Tensor,
    *,
    expectile: float | Tensor,
    temperature: float | Tensor | None = None,
    weight_clip: float = 100.0,
    advantage_scale: float = 1.0,
    reduce: Reduce = torch.mean,
    kernels: Kernels = "auto",
) -> ExpectileAWR:
    """Value loss, reduced, and actor weights; see :func:`torchrl_smore.functional.losses.expectile_awr`.

    Axes of seeds are mapped with ``torch.vmap``. The kernel is differentiable once.

    Args:
        score: target of the value, shape ``[*B]``, taken as a constant.
        value: shape ``[*B]``.
        expectile: in ``(0, 1)``, dimensionless, a float or a 0-d tensor on the same device.
        temperature: in one over the unit of the score, non-negative, a float or a 0-d tensor; ``None`` has no weights.
        weight_clip: largest weight, dimensionless, positive.
        advantage_scale: multiplies the advantage before the temperature does.
        reduce: of the value loss of rows.
        kernels: see :func:`resolve_kernels`.

    Raises:
        RuntimeError: see :func:`resolve_kernels`.
        ValueError: see :func:`resolve_kernels`.
    """
    options: dict[str, Any] = {"expectile": expectile, "weight_clip": weight_clip}
    if resolve_kernels(kernels, value.device, averages=reduce is torch.mean) == "reference":
        rows = losses.expectile_awr(score, value, temperature=temperature, advantage_scale=advantage_scale, **options)
        return rows._replace(loss=reduce(rows.loss))
    import smore_kernels

    scaled = None if temperature is None else temperature * advantage_scale
    loss, weight, mean_advantage, *means, mean_value = smore_kernels.expectile_awr(
        score.flatten(), value.flatten(), temperature=scaled, **options
    )
    if weight is None:
        return ExpectileAWR(loss, value.detach(), mean_value, None)
    weights = ActorWeight(weight.reshape(value.shape), mean_advantage * advantage_scale, *means)
    return ExpectileAWR(loss, value.detach(), mean_value, weights)


def adam_polyak_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    kernels: Kernels = "auto",
    **options: Any,
) -> None:
    """One step of Adam and the target update, in place; see :func:`torchrl_smore.functional.optim.adam_polyak_`.

    Args:
        param: parameters, shape ``[*]``, float32; written. The kernel wants every written buffer contiguous.
        grad: their gradient, shape ``[*]``.
        exp_avg: first moment, shape ``[*]``, float32; written.
        exp_avg_sq: second moment, shape ``[*]``, float32; written.
        step: updates done before this one, an integer scalar on the same device; read only.
        kernels: see :func:`resolve_kernels`.
        **options: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``decay_steps``, ``target``, ``tau`` of the reference.

    Raises:
        RuntimeError: see :func:`resolve_kernels`.
    """
    run = optim.adam_polyak_
    if resolve_kernels(kernels, param.device) == "triton":
        import smore_kernels

        run = smore_kernels.adam_polyak_
    run(param, grad, exp_avg, exp_avg_sq, step, **options)


def kernel_constants(objective: ScoreObjective) -> dict[str, Any]:
    """The objective as keyword arguments of the kernels, which know a divergence by its name."""
    divergence = get_divergence(objective.divergence).name
    return {**objective.constants, "formulation": objective.formulation, "divergence": divergence}


def _missing_for_triton(device_type: str) -> str | None:
    """What keeps the kernels from running on tensors of this type of device, or ``None``; imports the kernels."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'torchrl-smore[triton]'"
    if device_type not in ("cuda", "cpu"):
        return "the kernels are for CUDA tensors"
    interpreted = importlib.import_module("smore_kernels").interpreted()
    if device_type == "cuda" and interpreted:
        return "TRITON_INTERPRET=1 has them interpreted, which copies every tensor to the host: unset it"
    if device_type == "cpu" and not interpreted:
        return (
            "on a CPU they run under Triton's interpreter alone (slow, for tests): set TRITON_INTERPRET=1 in the "
            "environment before the process starts, or move the tensors to a CUDA device"
        )
    return None


@cache
def _log_once(device_type: str, chosen: Implementation, reason: str) -> None:
    _logger.info("kernels='auto' runs the %s implementation on %s tensors: %s.", chosen, device_type, reason)
