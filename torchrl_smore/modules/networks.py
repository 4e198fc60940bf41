"""Score, value and actor networks, built from specs in one call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.modules import ProbabilisticActor

from torchrl_smore._errors import unknown_name
from torchrl_smore.modules.distributions import policy_distribution
from torchrl_smore.modules.linear import Matmul
from torchrl_smore.modules.precision import Precision, check_precision, run_layers

Preset = Literal["paper", "official"]
#: Bounds of the state-independent standard deviation in the official code (``policy.py``): of its logarithm -5 and 2.
MIN_STD, MAX_STD = math.exp(-5.0), math.exp(2.0)
#: Default bound of standardised inputs, in standard deviations, as in GoFAR's and WGCSL's normaliser.
STANDARDIZED_CLIP = 5.0
#: Bound of the weights of a last layer that begins cold, as in stable contrastive RL (arXiv:2306.03346).
COLD = 1e-12


class ConcatMLP(nn.Module):
    """Multi-layer perceptron with ReLU on the concatenation of its inputs along the last dimension.

    Args:
        num_inputs: total size of the inputs' last dimensions.
        num_outputs: size of the output.
        hidden: widths of the hidden layers.
        layer_norm: normalise each hidden layer before its ReLU.
        orthogonal: orthogonal weights of gain sqrt(2) and zero biases, output layer included (official code), instead
            of PyTorch's default.
        cold: weights of the last layer within ``COLD`` of 0, and its bias 0.
        precision: of the hidden layers, see :func:`~torchrl_smore.modules.precision.run_layers`.
        matmul: see :func:`~torchrl_smore.modules.linear.linear`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (256, 256),
        *,
        layer_norm: bool = False,
        orthogonal: bool = False,
        cold: bool = False,
        precision: Precision = "float32",
        matmul: Matmul = "auto",
    ) -> None:
        super().__init__()
        self.num_inputs, self.num_outputs, self.hidden = num_inputs, num_outputs, tuple(hidden)
        self.layer_norm, self.precision, self.matmul = layer_norm, check_precision(precision), matmul
        layers: list[nn.Module] = []
        width = num_inputs
        for cells in hidden:
            layers.append(nn.Linear(width, cells))
            if layer_norm:
                layers.append(nn.LayerNorm(cells))
            layers.append(nn.ReLU())
            width = cells
        layers.append(nn.Linear(width, num_outputs))
        self.layers = nn.Sequential(*layers)
        self.orthogonal, self.cold = orthogonal, cold
        if orthogonal:
            self.reset_parameters()
        elif cold:
            self._cool()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights; those of an ensemble, stacked along leading dimensions, each for itself."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                weights = layer.weight.view(-1, *layer.weight.shape[-2:])
                for weight, bias in zip(weights, layer.bias.view(-1, layer.bias.shape[-1])):
                    initialize(weight, bias, orthogonal=self.orthogonal)
        if self.cold:
            self._cool()

    @torch.no_grad()
    def _cool(self) -> None:
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.uniform_(last.weight, -COLD, COLD)
        nn.init.zeros_(last.bias)

    def plain_layers(self) -> list[tuple[Tensor, Tensor]] | None:
        """Weight and bias of each linear layer where ReLU alone lies between them, else ``None``; as an export asks."""
        if not all(isinstance(layer, (nn.Linear, nn.ReLU)) for layer in self.layers):
            return None
        return [(layer.weight, layer.bias) for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs of shape ``[*B, d_i]`` to ``[*B, num_outputs]``."""
        return run_layers(self.layers, torch.cat(inputs, -1), precision=self.precision, matmul=self.matmul)


def initialize(weight: Tensor, bias: Tensor, *, orthogonal: bool) -> None:
    """Fill one linear layer in place: orthogonal with gain sqrt(2), or as PyTorch does, then also several stacked."""
    if orthogonal:
        nn.init.orthogonal_(weight, math.sqrt(2.0))
        nn.init.zeros_(bias)
    else:
        bound = 1.0 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)


class GaussianHead(nn.Module):
    """Mean ``tanh(trunk(inputs))`` and a state-independent standard deviation, as in the official code.

    The log standard deviation is a parameter, initially 0; it is clipped, at 2 from above. Samples are not squashed.
    Bounds other than ``[-1, 1]`` move and stretch both, so that the mean covers the box; losses and policies read them
    from ``low`` and ``high``.

    Args:
        trunk: its output is ``[*B, action_dim]``.
        action_dim: number of action components.
        low: smallest action, ``[action_dim]``, or ``None`` for -1.
        high: largest action, likewise; given with ``low`` or not at all.
        min_std: smallest standard deviation, in ``(0, e^2)``, in the unit of actions in ``[-1, 1]``; the official
            code's is ``e^-5``.

    Raises:
        ValueError: for a ``min_std`` outside its range.
    """

    center: Tensor
    half_range: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        action_dim: int,
        low: Tensor | None = None,
        high: Tensor | None = None,
        *,
        min_std: float = MIN_STD,
    ) -> None:
        super().__init__()
        if not 0.0 < min_std < MAX_STD:
            raise ValueError(f"min_std must lie in (0, {MAX_STD:.3g}), got {min_std}.")
        self.trunk, self.action_dim = trunk, action_dim
        self.min_std = min_std
        self.stretched = low is not None and high is not None
        if low is not None and high is not None:
            self.register_buffer("center", (low + high) / 2.0)
            self.register_buffer("half_range", (high - low) / 2.0)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    @property
    def low(self) -> Tensor | None:
        """Smallest action, ``[action_dim]``, or ``None`` for -1."""
        return self.center - self.half_range if self.stretched else None

    @property
    def high(self) -> Tensor | None:
        """Largest action, ``[action_dim]``, or ``None`` for 1."""
        return self.center + self.half_range if self.stretched else None

    def reset_parameters(self) -> None:
        """Set the log standard deviation to 0 again; the trunk resets itself."""
        nn.init.zeros_(self.log_std)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale, each ``[*B, action_dim]``."""
        loc = self.trunk(*inputs).tanh()
        scale = self.log_std.clamp(math.log(self.min_std), math.log(MAX_STD)).exp()
        if self.stretched:
            loc, scale = self.center + self.half_range * loc, self.half_range * scale
        return loc, scale.expand_as(loc)


class Standardize(nn.Module):
    """Applies ``(x - mean) / std``, clipped, to each input, then a network; statistics are buffers, part of its state.

    The clip is GoFAR's and WGCSL's: a column that hardly ever moves, such as the rotational velocity of a block, lies
    tens of standard deviations out just when something happens.

    Args:
        network: takes the standardised inputs.
        statistics: mean and standard deviation of each input, or ``None`` to pass it as it is.
        clip: largest absolute value of a standardised input, in standard deviations, positive; ``None``: no bound.

    Raises:
        ValueError: if ``clip`` is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        statistics: Sequence[tuple[Tensor, Tensor] | None],
        clip: float | None = STANDARDIZED_CLIP,
    ) -> None:
        super().__init__()
        if clip is not None and not clip > 0.0:
            raise ValueError(f"clip must be positive or None, got {clip}.")
        self.network = network
        self.clip = clip
        for position, pair in enumerate(statistics):
            if pair is not None:
                self.register_buffer(f"mean_{position}", pair[0].clone())
                self.register_buffer(f"std_{position}", pair[1].clone())
        self.standardized = [pair is not None for pair in statistics]

    @property
    def statistics(self) -> list[tuple[Tensor, Tensor] | None]:
        """Mean and standard deviation of each input, or ``None`` where it passes as it is."""
        return [
            (getattr(self, f"mean_{i}"), getattr(self, f"std_{i}")) if own else None
            for i, own in enumerate(self.standardized)
        ]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the network's output.

        Raises:
            ValueError: if an input is not as wide as its statistics.
        """
        out: Tensor | tuple[Tensor, Tensor] = self.network(*self._scaled(*inputs))
        return out

    @property
    def precision(self) -> Precision:
        """Of the network."""
        return cast("Precision", self.network.precision)

    def _scaled(self, *inputs: Tensor) -> list[Tensor]:
        return [self._standard(i, x) if self.standardized[i] else x for i, x in enumerate(inputs)]

    def _standard(self, position: int, x: Tensor) -> Tensor:
        mean, std = getattr(self, f"mean_{position}"), getattr(self, f"std_{position}")
        if x.shape[-1] != mean.shape[-1]:
            # one column would be taken for all
            raise ValueError(f"expected input {position} of {mean.shape[-1]} columns, got {list(x.shape)}.")
        scaled = (x - mean) / std
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class Networks:
    """What :func:`make_networks` builds.

    Attributes:
        actor: reads ``observation`` and ``desired_goal``, stochastic; writes ``action``, ``[*B, A]``.
        score: a network for each member of the ensemble; reads the action as well and writes ``score``, ``[*B, 1]``.
        value: reads ``observation`` and ``desired_goal``, writes ``state_value``, ``[*B, 1]``.
    """

    actor: ProbabilisticTensorDictSequential
    score: list[TensorDictModule]
    value: TensorDictModule


@dataclass(frozen=True)
class PixelNetworks(Networks):
    """What :func:`make_pixel_networks` builds.

    Attributes:
        encoder: the one that the networks share, for a loss's ``share_encoder``; ``None`` if each has its own.
    """

    encoder: TensorDictModule | None = None


def goal_specs(observation_dim: int, goal_dim: int, action_dim: int) -> tuple[Composite, Bounded]:
    """Observation and action specs of a goal-conditioned task with actions in ``[-1, 1]``.

    Args:
        observation_dim: width O of the observation.
        goal_dim: width G of achieved and desired goal.
        action_dim: width A of the action.

    Returns:
        A :class:`~torchrl.data.Composite` with ``observation``, ``achieved_goal`` and ``desired_goal``, and a
        :class:`~torchrl.data.Bounded`.
    """
    observation = Composite(
        observation=Unbounded((observation_dim,)),
        achieved_goal=Unbounded((goal_dim,)),
        desired_goal=Unbounded((goal_dim,)),
    )
    return observation, Bounded(-1.0, 1.0, (action_dim,))


def make_networks(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    preset: Preset = "paper",
    hidden: Sequence[int] | None = None,
    value_layer_norm: bool | None = None,
    score_layer_norm: bool = False,
    actor_layer_norm: bool = False,
    num_score_nets: int = 2,
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    clip: float | None = STANDARDIZED_CLIP,
    contamination: float = 0.0,
    min_std: float = MIN_STD,
    precision: Precision = "float32",
    matmul: Matmul = "auto",
) -> Networks:
    """Build score, value and Gaussian actor networks for SMORe.

    ``preset="paper"``: two hidden layers of 256 (Table 4), PyTorch's initialisation. ``preset="official"``: three of
    256, LayerNorm in the value network, orthogonal initialisation (``gcrl_config.py``, ``value_net.py``). The actor
    head is that of the official code in both; the paper does not name one.

    Args:
        observation_spec: has ``observation`` ``[O]`` and ``desired_goal`` ``[G]``.
        action_spec: ``[A]``, with finite bounds: the actor's mean covers them, and the score sees actions scaled to
            ``[-1, 1]``. Without bounds they are taken to be ``[-1, 1]``. Actions that are sampled from the actor, as a
            collector does, may lie beyond: they are to be clipped.
        preset: ``"paper"`` or ``"official"``.
        hidden: widths of the hidden layers, instead of the preset's.
        value_layer_norm: LayerNorm in the value network, instead of the preset's.
        score_layer_norm: LayerNorm in the score networks, as OGBench has in all critics.
        actor_layer_norm: LayerNorm in the actor.
        num_score_nets: size of the score ensemble.
        statistics: mean and standard deviation by key (``observation``, ``desired_goal``) to standardise inputs with,
            tensors or lists of numbers; they become float32 buffers of every network.
        clip: bound of standardised inputs, see :class:`Standardize`; at least 1 where bounds of actions are scaled.
        contamination: share of dataset actions that the actor's likelihood takes to be uniform noise, in ``[0, 1)``;
            see :class:`~torchrl_smore.modules.ContaminatedNormal`.
        min_std: smallest standard deviation of the actor, see :class:`GaussianHead`.
        precision: ``"float32"``, or ``"bf16"`` for the hidden layers; parameters are float32 in both.
        matmul: see :func:`~torchrl_smore.modules.linear.linear`.

    Returns:
        Networks with in_keys ``observation``, ``desired_goal`` (and ``action`` for the score) and out keys ``score``,
        ``state_value`` and ``action``.

    Raises:
        ValueError: for discrete actions, an unknown preset or precision, a ``min_std`` outside its range, bounds of
            actions that are not finite or not in order, a ``clip`` that would cut them, or statistics of an unknown
            key, of another width, or with a deviation that is not positive and finite.
        KeyError: if the spec lacks an entry.
    """
    if preset not in get_args(Preset):
        raise unknown_name("preset", preset, get_args(Preset))
    official = preset == "official"
    hidden = tuple(hidden) if hidden is not None else (256,) * (3 if official else 2)
    layer_norm = official if value_layer_norm is None else value_layer_norm
    state_keys = ["observation", "desired_goal"]
    num_state = sum(observation_spec[key].shape[-1] for key in state_keys)
    action_spec = continuous(action_spec)
    action_dim = action_spec.shape[-1]
    bounds = _action_bounds(action_spec)
    statistics = as_statistics(statistics or {})
    _check_statistics(
        statistics, {**{key: observation_spec[key].shape[-1] for key in state_keys}, "action": action_dim}
    )
    if bounds is not None and "action" not in statistics:
        if clip is not None and 0.0 < clip < 1.0:
            raise ValueError(f"clip={clip} would cut actions, which are scaled to [-1, 1]: expected 1 or more.")
        low, high = bounds
        statistics["action"] = ((low + high) / 2.0, (high - low) / 2.0)
    scales = [statistics.get(key) for key in [*state_keys, "action"]]

    def build(num_inputs: int, num_outputs: int, norm: bool = False) -> nn.Module:
        options = {"layer_norm": norm, "orthogonal": official, "precision": precision, "matmul": matmul}
        return ConcatMLP(num_inputs, num_outputs, hidden, **options)  # type: ignore[arg-type]

    def scaled(network: nn.Module, num_keys: int) -> nn.Module:
        known = any(pair is not None for pair in scales[:num_keys])
        return Standardize(network, scales[:num_keys], clip) if known else network

    score = [
        TensorDictModule(
            scaled(build(num_state + action_dim, 1, score_layer_norm), 3), [*state_keys, "action"], ["score"]
        )
        for _ in range(num_score_nets)
    ]
    value = TensorDictModule(scaled(build(num_state, 1, layer_norm), 2), state_keys, ["state_value"])
    trunk = build(num_state, action_dim, actor_layer_norm)
    gaussian = GaussianHead(trunk, action_dim, *(bounds or ()), min_std=min_std)
    actor = ProbabilisticActor(
        TensorDictModule(scaled(gaussian, 2), state_keys, ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        return_log_prob=False,
        **policy_distribution(contamination, gaussian.low, gaussian.high, action_dim),
    )
    return Networks(actor, score, value)


def continuous(action_spec: TensorSpec) -> TensorSpec:
    """The spec of actions ``[A]``, which may be the only leaf of a composite one.

    Raises:
        ValueError: for discrete actions, or several leaves.
    """
    spec = action_spec
    while isinstance(spec, Composite):
        if len(spec.keys()) != 1:
            raise ValueError(f"expected one action_spec, got one of {sorted(map(str, spec.keys()))}.")
        spec = next(iter(spec.values()))
    if spec.domain != "continuous" or not spec.shape:
        raise ValueError(f"expected an action_spec of continuous actions [A], got {spec}.")
    return spec


def _action_bounds(spec: TensorSpec) -> tuple[Tensor, Tensor] | None:
    """Smallest and largest action, ``[A]`` each; ``None`` where they are -1 and 1, or the spec has none."""
    if not isinstance(spec, Bounded):
        return None
    size = spec.shape[-1:]
    low, high = (bound.detach().float().expand(spec.shape).reshape(-1, *size)[0] for bound in (spec.low, spec.high))
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
        raise ValueError(
            f"action_spec must have finite bounds, each low below its high, got {low.tolist()} and {high.tolist()}."
        )
    return None if bool((low == -1.0).all() and (high == 1.0).all()) else (low.clone(), high.clone())


def as_statistics(statistics: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Statistics, a pair for each key or an array ``[2, D]``, as float32 tensors, whose dtype networks share.

    Raises:
        ValueError: for another entry than a mean and a deviation.
    """
    found = {}
    for key, pair in statistics.items():
        try:
            mean, std = [] if isinstance(pair, (str, Mapping)) else [*pair]
        except (TypeError, ValueError):
            raise ValueError(f"statistics of {key!r} must be a mean and a deviation, got {pair!r}.") from None
        found[key] = (torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32))
    return found


def _check_statistics(statistics: Mapping[str, tuple[Tensor, Tensor]], widths: Mapping[str, int]) -> None:
    for key, (mean, std) in statistics.items():
        if key not in widths:
            raise unknown_name("key of statistics", key, widths)
        if mean.shape != (widths[key],) or std.shape != (widths[key],):
            raise ValueError(
                f"statistics of {key!r} must be of shape [{widths[key]}] each, got mean {list(mean.shape)} and "
                f"deviation {list(std.shape)}."
            )
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0.0).all()):
            raise ValueError(f"statistics of {key!r} must be finite with positive deviations, got {std.tolist()}.")
