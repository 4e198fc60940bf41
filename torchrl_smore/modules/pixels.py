"""Encoders of pictures, and score, value and actor networks on what they see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor

from torchrl_smore._errors import unknown_name
from torchrl_smore.modules.bilinear import BilinearScore, FixedStdHead, PairEmbedding
from torchrl_smore.modules.distributions import policy_distribution
from torchrl_smore.modules.linear import widened
from torchrl_smore.modules.networks import MIN_STD, ConcatMLP, GaussianHead, PixelNetworks, continuous
from torchrl_smore.modules.precision import Precision, check_precision

#: Sizes of :class:`PixelEncoder`: three convolutions, wider ones, OGBench's small residual network.
EncoderSize = Literal["small", "medium", "impala"]
#: Channels of the convolutions; for ``"small"`` and ``"medium"`` of kernels 8, 4 and 3 and strides 4, 2 and 1.
CHANNELS: dict[str, tuple[int, int, int]] = {"small": (16, 32, 32), "medium": (32, 64, 64), "impala": (16, 32, 32)}
_KERNELS, _STRIDES = (8, 4, 3), (4, 2, 1)
_GROUP = 8  # channels that are normalised together


class MappedGroupNorm(nn.GroupNorm):
    """``GroupNorm`` that ``torch.vmap`` can map, as an ensemble does; PyTorch's asks a mapped tensor for its layout.

    Where nothing is mapped it is PyTorch's, which takes channels last in memory as they are. Of bfloat16 that takes a
    CPU nine times as long as channels first, which it therefore gets; of float32 the move costs more than it saves.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``[*B, channels, height, width]``."""
        mapped = torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(input)
        if input.ndim == 4 and not mapped:
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            input = input.contiguous() if input.dtype == torch.bfloat16 else input
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)
        groups = input.unflatten(-3, (self.num_groups, -1))
        normalized = F.layer_norm(groups, groups.shape[-3:], eps=self.eps).flatten(-4, -3)
        return normalized * self.weight.to(input.dtype)[:, None, None] + self.bias.to(input.dtype)[:, None, None]


class _Residual(nn.Module):
    """``x + conv(relu(conv(relu(x))))``, kernels of 3, size kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[*B, channels, height, width]`` to the same shape."""
        return input + _convolved(self.second, _convolved(self.first, input.relu()).relu())


def _convolved(layer: nn.Conv2d, input: Tensor) -> Tensor:
    """The layer in the dtype of its input; its parameters keep theirs."""
    if input.dtype == layer.weight.dtype:
        return layer(input)  # type: ignore[no-any-return]
    assert layer.bias is not None
    weight, bias = layer.weight.to(input.dtype), layer.bias.to(input.dtype)
    return widened(partial(F.conv2d, stride=layer.stride, padding=layer.padding), input, weight, bias)


class PixelEncoder(nn.Module):
    """Convolutions, a linear layer and LayerNorm: pictures to a vector.

    ``"small"`` and ``"medium"`` are three convolutions with GroupNorm, ``"impala"`` is the small ResNet of IMPALA
    (arXiv:1802.01561) as OGBench has it: three times a convolution, maximum over 3 x 3 at every second place, and one
    residual block.

    Pictures come as uint8 and become floating point in ``[-0.5, 0.5]`` here, on the device of the parameters. Several
    are stacked along their channels.

    Args:
        pictures: how many it takes at once, at least 1.
        pixels: height and width of a picture, at least 36.
        latent: size of the output.
        size: ``"small"``, ``"medium"`` or ``"impala"``, see ``CHANNELS``.
        precision: ``"float32"``, or ``"bf16"`` for all but the input's scaling and the last norm; output and parameters
            are float32 in both.

    Raises:
        ValueError: for an unknown size or precision, or pictures that are too small for the convolutions.
    """

    def __init__(
        self,
        pictures: int = 1,
        *,
        pixels: int = 48,
        latent: int = 128,
        size: EncoderSize = "small",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if size not in get_args(EncoderSize):
            raise unknown_name("size of encoders", size, get_args(EncoderSize))
        if pixels < 36:
            raise ValueError(f"expected pictures of 36 pixels or more in each direction, got {pixels}.")
        self.pictures, self.pixels, self.latent, self.size = pictures, pixels, latent, size
        self.precision = check_precision(precision)
        channels, side = CHANNELS[size], pixels
        layers: list[nn.Module] = []
        if size == "impala":
            for before, after in zip((3 * pictures, *channels), channels):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, 2, padding=1), _Residual(after)]
                side = (side - 1) // 2 + 1
            layers.append(nn.ReLU())
        else:
            for before, after, kernel, stride in zip((3 * pictures, *channels), channels, _KERNELS, _STRIDES):
                # TorchRL's ConvNet takes no norm whose size goes with that of the layer
                layers += [nn.Conv2d(before, after, kernel, stride), MappedGroupNorm(after // _GROUP, after), nn.ReLU()]
                side = (side - kernel) // stride + 1
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.trunk = nn.Sequential(nn.Linear(channels[-1] * side * side, latent), nn.LayerNorm(latent), nn.ReLU())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights as PyTorch does; those of an ensemble, stacked along leading dimensions, each for itself."""
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                assert layer.bias is not None
                own = layer.weight.shape[-3:] if isinstance(layer, nn.Conv2d) else layer.weight.shape[-1:]
                bound = 1.0 / math.sqrt(math.prod(own))
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.uniform_(layer.bias, -bound, bound)

    def forward(self, *pictures: Tensor) -> Tensor:
        """Maps ``pictures`` pictures, uint8 ``[*B, pixels, pixels, 3]`` each, to ``[*B, latent]``.

        Raises:
            ValueError: for another number of pictures, shape or dtype.
        """
        expected = (self.pixels, self.pixels, 3)
        if len(pictures) != self.pictures:
            raise ValueError(f"expected {self.pictures} pictures, got {len(pictures)}.")
        for picture in pictures:
            if picture.dtype != torch.uint8 or picture.shape[-3:] != expected:
                raise ValueError(
                    f"expected pictures of uint8 and shape [*, {self.pixels}, {self.pixels}, 3], got {picture.dtype} "
                    f"and {list(picture.shape)}."
                )
        joined = pictures[0] if len(pictures) == 1 else torch.cat(pictures, -1)
        batch = joined.shape[:-3]
        # of one leading dimension and with channels last in memory, which is how pictures are stored
        raw = joined.reshape(-1, *joined.shape[-3:]).permute(0, 3, 1, 2)
        layers = list(self.convolutions)
        assert isinstance(layers[0], nn.Conv2d)
        last, norm = self.trunk[0], self.trunk[1]
        assert isinstance(last, nn.Linear)
        dtype = torch.bfloat16 if self.precision == "bf16" else last.weight.dtype
        x = self._scaled_convolution(layers[0], raw, dtype)
        for layer in layers[1:]:
            x = _convolved(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
        x = widened(F.linear, x, last.weight.to(x.dtype), last.bias.to(x.dtype))
        latent: Tensor = norm(x.to(last.weight.dtype)).relu()
        return latent if joined.ndim == 4 else latent.reshape(*batch, self.latent)

    @staticmethod
    def _scaled_convolution(layer: nn.Conv2d, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer on ``raw / 255 - 0.5`` in ``dtype``; bfloat16 too holds whole numbers up to 255 exactly."""
        if layer.padding != (0, 0):
            # the padding is 0 after the scaling
            return _convolved(layer, (raw.to(layer.weight.dtype) / 255.0 - 0.5).to(dtype))
        assert layer.bias is not None
        # the scaling is linear: in the parameters it costs nothing, over the pictures it takes a fifth of an update
        weight, bias = layer.weight / 255.0, layer.bias - 0.5 * layer.weight.sum((1, 2, 3))
        return widened(partial(F.conv2d, stride=layer.stride), raw.to(dtype), weight.to(dtype), bias.to(dtype))


class Encoded(nn.Module):
    """A network on encoded pictures: inputs of uint8 are encoded, all others pass as they are.

    Args:
        encoder: of one picture, which then encodes each input by itself, all in one call, or of as many as there are,
            which encodes them together to one vector, the network's first input.
        network: takes the vectors in the place of pictures.
    """

    def __init__(self, encoder: PixelEncoder, network: nn.Module) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The network's output for ``inputs``.

        Raises:
            ValueError: if fewer of them are pictures than the encoder takes.
        """
        pictures = [value for value in inputs if value.dtype == torch.uint8]
        if len(pictures) < self.encoder.pictures:
            raise ValueError(f"expected {self.encoder.pictures} pictures of uint8, got {len(pictures)}.")
        if self.encoder.pictures > 1:
            rest = [value for value in inputs if value.dtype != torch.uint8]
            return self.network(self.encoder(*pictures), *rest)  # type: ignore[no-any-return]
        latents = iter(self.encoder(torch.stack(pictures)))
        return self.network(  # type: ignore[no-any-return]
            *(next(latents) if value.dtype == torch.uint8 else value for value in inputs)
        )


def make_pixel_networks(
    action_spec: TensorSpec,
    *,
    pixels: int = 48,
    encoder: EncoderSize = "small",
    latent: int = 128,
    hidden: Sequence[int] = (256, 256),
    representation: int = 16,
    num_score_nets: int = 2,
    shared: bool = False,
    own_actor: bool = False,
    embeddings: bool = False,
    layer_norm: bool = True,
    cold: bool = True,
    contamination: float = 0.0,
    min_std: float = MIN_STD,
    std: float | None = None,
    precision: Precision = "float32",
) -> PixelNetworks:
    """Build score, value and Gaussian actor networks whose observations and goals are pictures.

    The score is ``phi(s, a)^T psi(g)``, of dimension 16 in the paper (Table 5).

    Separate encoders are one for each network; score and value see the two pictures one by one, an actor's own encoder
    sees them together. A shared one is a network of its own, which a loss takes by
    :meth:`~torchrl_smore.objectives.base.OfflineLoss.share_encoder`: the networks then read its vectors.

    Args:
        action_spec: ``[A]``, for actions in ``[-1, 1]``.
        pixels: height and width of pictures.
        encoder: see :class:`PixelEncoder`.
        latent: see :class:`PixelEncoder`.
        hidden: widths of the hidden layers.
        representation: dimension of ``phi`` and ``psi``.
        num_score_nets: size of the score ensemble.
        shared: whether all networks have one encoder.
        own_actor: whether the actor has one of its own all the same.
        embeddings: whether score networks write both embeddings, ``[*B, 2, D]``, as contrastive losses read them, and
            the value network those of the state alone and the goal.
        layer_norm: whether hidden layers are normalised, as in stable contrastive RL (arXiv:2306.03346).
        cold: whether the last layer of ``psi`` begins near 0, as there; that of ``phi`` does not: of two cold factors
            neither would have a gradient.
        contamination: see :func:`make_networks`.
        min_std: see :func:`make_networks`.
        std: the actor's standard deviation, a constant, positive, in the unit of actions, with a mean that is not
            squashed (stable contrastive RL: 0.15); ``None``: it is learnt.
        precision: of encoders and hidden layers, see :class:`PixelEncoder` and
            :func:`~torchrl_smore.modules.precision.run_layers`.

    Returns:
        Networks with in_keys ``observation``, ``desired_goal`` (and ``action`` for the score), uint8
        ``[*B, pixels, pixels, 3]`` or, of a shared encoder, float32 ``[*B, latent]``, and out keys ``score``,
        ``state_value`` (both ``embedding`` for ``embeddings``) and ``action``.

    Raises:
        ValueError: for an unknown size or precision, pictures that are too small, or a ``std`` that is not positive.
    """
    action_dim = continuous(action_spec).shape[-1]

    def eyes(pictures: int = 1) -> PixelEncoder:
        return PixelEncoder(pictures, pixels=pixels, latent=latent, size=encoder, precision=precision)

    actor_shares = shared and not own_actor

    def seeing(make: Callable[[], nn.Module]) -> nn.Module:
        return make() if shared else Encoded(eyes(), make())

    def mlp(num_inputs: int, num_outputs: int, *, cold: bool = False) -> ConcatMLP:
        return ConcatMLP(num_inputs, num_outputs, hidden, layer_norm=layer_norm, cold=cold, precision=precision)

    def pair(num_inputs: int) -> PairEmbedding:
        psi = mlp(latent, representation, cold=cold)
        return PairEmbedding(mlp(num_inputs, representation), psi)

    def bilinear() -> nn.Module:
        both = pair(latent + action_dim)
        return both if embeddings else BilinearScore(both)

    state_keys = ["observation", "desired_goal"]
    score_keys, out_keys = ["observation", "action", "desired_goal"], ["embedding" if embeddings else "score"]
    score = [TensorDictModule(seeing(bilinear), score_keys, out_keys) for _ in range(num_score_nets)]
    if embeddings:
        value = TensorDictModule(seeing(lambda: pair(latent)), state_keys, ["embedding"])
    else:
        value = TensorDictModule(seeing(lambda: mlp(2 * latent, 1)), state_keys, ["state_value"])

    def head() -> nn.Module:
        trunk = mlp(2 * latent if actor_shares else latent, action_dim)
        return GaussianHead(trunk, action_dim, min_std=min_std) if std is None else FixedStdHead(trunk, std)

    actor = ProbabilisticActor(
        TensorDictModule(head() if actor_shares else Encoded(eyes(2), head()), state_keys, ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        return_log_prob=False,
        **policy_distribution(contamination, None, None, action_dim),
    )
    common = TensorDictModule(eyes(), ["pixels"], ["latent"]) if shared else None
    return PixelNetworks(actor, score, value, common)
