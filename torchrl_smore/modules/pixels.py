"""Encoders of pictures, and score, value and actor networks on what they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor

from torchrl_smore._errors import unknown_name
from torchrl_smore.modules.bilinear import BilinearScore, PairEmbedding
from torchrl_smore.modules.distributions import policy_distribution
from torchrl_smore.modules.networks import ConcatMLP, GaussianHead, Networks
from torchrl_smore.modules.precision import Precision

EncoderSize = Literal["small", "medium"]
#: Channels of the convolutions, of kernels 8, 4 and 3 and strides 4, 2 and 1.
CHANNELS: dict[str, tuple[int, int, int]] = {"small": (16, 32, 32), "medium": (32, 64, 64)}
#: Bound of the weights of a last layer that is initialised cold, as in stable contrastive RL (arXiv:2306.03346).
COLD = 1e-12
_KERNELS, _STRIDES = (8, 4, 3), (4, 2, 1)
_GROUP = 8  # channels that are normalised together


class MappedGroupNorm(nn.GroupNorm):
    """``GroupNorm`` that ``torch.vmap`` can map, as an ensemble does; PyTorch's asks a mapped tensor for its layout."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``[*B, channels, height, width]``."""
        groups = input.unflatten(-3, (self.num_groups, -1))
        normalized = nn.functional.layer_norm(groups, groups.shape[-3:], eps=self.eps).flatten(-4, -3)
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


class PixelEncoder(nn.Module):
    """Three convolutions with GroupNorm, a linear layer and LayerNorm: pictures to a vector.

    Pictures come as uint8 and become floating point in ``[-0.5, 0.5]`` here, on the device of the parameters. Several
    are stacked along their channels.

    Args:
        pictures: how many it takes at once, at least 1.
        pixels: height and width of a picture, at least 36.
        latent: size of the output.
        size: ``"small"`` or ``"medium"``, see ``CHANNELS``.

    Raises:
        ValueError: for an unknown size, or pictures that are too small for the convolutions.
    """

    def __init__(self, pictures: int = 1, *, pixels: int = 48, latent: int = 128, size: EncoderSize = "small") -> None:
        super().__init__()
        if size not in get_args(EncoderSize):
            raise unknown_name("size of encoders", size, get_args(EncoderSize))
        if pixels < 36:
            raise ValueError(f"expected pictures of 36 pixels or more in each direction, got {pixels}.")
        self.pictures, self.pixels, self.latent, self.size = pictures, pixels, latent, size
        channels, side = CHANNELS[size], pixels
        for kernel, stride in zip(_KERNELS, _STRIDES):
            side = (side - kernel) // stride + 1
        layers: list[nn.Module] = []
        for before, after, kernel, stride in zip((3 * pictures, *channels), channels, _KERNELS, _STRIDES):
            # TorchRL's ConvNet takes no norm whose size goes with that of the layer
            layers += [nn.Conv2d(before, after, kernel, stride), MappedGroupNorm(after // _GROUP, after), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.trunk = nn.Sequential(nn.Linear(channels[-1] * side * side, latent), nn.LayerNorm(latent), nn.ReLU())

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
        scaled = joined.reshape(-1, *joined.shape[-3:]).permute(0, 3, 1, 2).float() / 255.0 - 0.5
        latent: Tensor = self.trunk(self.convolutions(scaled))
        return latent.reshape(*batch, self.latent)


class Encoded(nn.Module):
    """A network on encoded pictures: inputs of uint8 are encoded, all others pass as they are.

    Args:
        encoder: of one picture, which then encodes each input by itself, all in one call, or of as many as there are,
            which encodes them together to one vector, the network's first input.
        network: takes the vectors in the place of pictures.
        frozen: whether the encoder is left alone by this network's gradient: it belongs to others, which train it.
    """

    def __init__(self, encoder: PixelEncoder, network: nn.Module, *, frozen: bool = False) -> None:
        super().__init__()
        self.encoder, self.network, self.frozen = encoder, network, frozen

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The network's output for ``inputs``.

        Raises:
            ValueError: if fewer of them are pictures than the encoder takes.
        """
        pictures = [value for value in inputs if value.dtype == torch.uint8]
        if len(pictures) < self.encoder.pictures:
            raise ValueError(f"expected {self.encoder.pictures} pictures of uint8, got {len(pictures)}.")
        if self.encoder.pictures > 1:
            latent = self._encode(*pictures)
            rest = [value for value in inputs if value.dtype != torch.uint8]
            return self.network(latent, *rest)  # type: ignore[no-any-return]
        latents = iter(self._encode(torch.stack(pictures)))
        return self.network(  # type: ignore[no-any-return]
            *(next(latents) if value.dtype == torch.uint8 else value for value in inputs)
        )

    def _encode(self, *pictures: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            latent: Tensor = self.encoder(*pictures)
        return latent


@torch.no_grad()
def cool(network: ConcatMLP) -> ConcatMLP:
    """The network, its last layer's weights drawn anew from ``U(-1e-12, 1e-12)`` and its bias 0."""
    last = network.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.uniform_(last.weight, -COLD, COLD)
    nn.init.zeros_(last.bias)
    return network


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
    contamination: float = 0.0,
    precision: Precision = "float32",
) -> Networks:
    """Build score, value and Gaussian actor networks whose observations and goals are pictures.

    The score is ``phi(s, a)^T psi(g)``, of dimension 16 in the paper (Table 5), with a cold last layer of ``psi``
    alone: of two cold factors neither would have a gradient. Hidden layers are normalised by LayerNorm.

    Separate encoders are one for each network; score and value see the two pictures one by one, the actor's own encoder
    sees them together. A shared one serves all of them and is trained by score and value: the actor's gradient stops
    before it. :class:`~torchrl_smore.trainers.FusedUpdate` takes networks that share no parameters, and an ensemble
    stacks its members, so a shared encoder goes with one score network and
    :class:`~torchrl_smore.trainers.Update`.

    Args:
        action_spec: ``[A]``, for actions in ``[-1, 1]``.
        pixels: height and width of pictures.
        encoder: see :class:`PixelEncoder`.
        latent: see :class:`PixelEncoder`.
        hidden: widths of the hidden layers.
        representation: dimension of ``phi`` and ``psi``.
        num_score_nets: size of the score ensemble.
        shared: whether all networks have one encoder.
        contamination: see :func:`make_networks`.
        precision: of the hidden layers behind the encoder, see :func:`~torchrl_smore.modules.precision.run_layers`.

    Returns:
        Networks with in_keys ``observation``, ``desired_goal`` (and ``action`` for the score), uint8
        ``[*B, pixels, pixels, 3]``, and out keys ``score``, ``state_value`` and ``action``.

    Raises:
        ValueError: for an unknown size or precision, or a shared encoder with several score networks.
    """
    if shared and num_score_nets != 1:
        raise ValueError(f"an encoder is shared with one score network alone, got num_score_nets={num_score_nets}.")
    action_dim = action_spec.shape[-1]
    common = PixelEncoder(pixels=pixels, latent=latent, size=encoder) if shared else None

    def eyes(pictures: int = 1) -> PixelEncoder:
        return common or PixelEncoder(pictures, pixels=pixels, latent=latent, size=encoder)

    def mlp(num_inputs: int, num_outputs: int) -> ConcatMLP:
        return ConcatMLP(num_inputs, num_outputs, hidden, layer_norm=True, precision=precision)

    def bilinear() -> BilinearScore:
        psi = cool(mlp(latent, representation))
        return BilinearScore(PairEmbedding(mlp(latent + action_dim, representation), psi))

    state_keys = ["observation", "desired_goal"]
    score = [
        TensorDictModule(Encoded(eyes(), bilinear()), ["observation", "action", "desired_goal"], ["score"])
        for _ in range(num_score_nets)
    ]
    value = TensorDictModule(Encoded(eyes(), mlp(2 * latent, 1)), state_keys, ["state_value"])
    sight = eyes(2)
    trunk = mlp(2 * latent if shared else latent, action_dim)
    actor = ProbabilisticActor(
        TensorDictModule(Encoded(sight, GaussianHead(trunk, action_dim), frozen=shared), state_keys, ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        return_log_prob=False,
        **policy_distribution(contamination, None, None, action_dim),
    )
    return Networks(actor, score, value)
