"""What several constructors do: checks of options, and the actor of an advantage-weighted regression."""

from __future__ import annotations

from typing import Any, Literal, get_args

from tensordict.nn import TensorDictModule

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.score import Bounds
from torchrl_smore.objectives.base import OfflineLoss

#: What an advantage is measured in before the temperature multiplies it: the unit of the score, or ``1 / (1 - gamma)``
#: of it, so that it is a share of the range that scores can have.
AdvantageUnit = Literal["score", "horizon"]


def add_weighted_actor(
    loss: OfflineLoss, actor_network: TensorDictModule, temperature: float | None, weight_clip: float
) -> None:
    """Registers a stochastic actor with the constants of its weights; ``None`` is a weight without temperature.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for a constant outside its range.
    """
    require_stochastic(actor_network)
    check_positive(weight_clip=weight_clip)
    loss._add_network("actor_network", actor_network)
    if temperature is not None:
        loss._set_coefficient("temperature", temperature, temperature >= 0.0, "not be negative")
    loss.weight_clip = weight_clip


def require_stochastic(actor_network: TensorDictModule) -> None:
    """Raises ``TypeError`` for an actor without ``get_dist``."""
    if not hasattr(actor_network, "get_dist"):
        raise TypeError(f"actor_network must be stochastic (have get_dist), got {type(actor_network).__name__}.")


def check_choice(**choices: tuple[Any, Any]) -> None:
    """Raises ``ValueError`` for a value outside its ``Literal``; ``name=(value, Literal)``."""
    for name, (value, valid) in choices.items():
        if value not in get_args(valid):
            raise unknown_name(name, value, get_args(valid))


def check_positive(**values: float) -> None:
    """Raises ``ValueError`` for a value that is not positive; ``name=value``."""
    for name, value in values.items():
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value}.")


def check_not_negative(**values: float) -> None:
    """Raises ``ValueError`` for a value that is negative; ``name=value``."""
    for name, value in values.items():
        if not value >= 0.0:
            raise ValueError(f"{name} must not be negative, got {value}.")


def check_discount(gamma: float) -> None:
    """Raises ``ValueError`` for a discount outside ``(0, 1)``."""
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie in (0, 1), got {gamma}.")


def scale_of(unit: AdvantageUnit, gamma: float) -> float:
    """What an advantage is multiplied by to be measured in a unit; raises ``ValueError`` for another unit.

    The range of scores grows with the horizon, and with it the noise in them, so a temperature that is right at one
    discount ruins the regression at another; in horizons the range is the same at all.
    """
    check_choice(advantage_unit=(unit, AdvantageUnit))
    return 1.0 - gamma if unit == "horizon" else 1.0


def check_bounds(bounds: Bounds | None) -> Bounds | None:
    """Bounds of a target as they are; raises ``ValueError`` if the lower is not below the upper."""
    if bounds is not None and (isinstance(bounds, str) or len(bounds) != 2 or not bounds[0] < bounds[1]):
        raise ValueError(f"target_bounds must be (lower, upper) with lower < upper, got {bounds!r}.")
    return bounds
