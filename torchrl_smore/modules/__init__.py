"""Networks and distributions of actions, and what builds them for a task.

:func:`make_networks` builds actor, scores and value of vectors, :func:`make_pixel_networks` those of pictures, and
:func:`make_contrastive_networks` those of contrastive RL; each reads its entries of a TensorDict by name.
"""

from torchrl_smore.modules.bilinear import (
    GELUMLP,
    BilinearScore,
    ContrastiveNetworks,
    FixedStdHead,
    PairEmbedding,
    make_contrastive_networks,
)
from torchrl_smore.modules.description import build_network, describe_network
from torchrl_smore.modules.discriminator import TanhMLP, make_discriminator
from torchrl_smore.modules.distributions import ContaminatedNormal
from torchrl_smore.modules.networks import (
    MIN_STD,
    STANDARDIZED_CLIP,
    ConcatMLP,
    GaussianHead,
    Networks,
    Standardize,
    goal_specs,
    make_networks,
)
from torchrl_smore.modules.pixels import (
    CHANNELS,
    Encoded,
    EncoderSize,
    PixelEncoder,
    PixelNetworks,
    make_pixel_networks,
)
from torchrl_smore.modules.precision import Precision

__all__ = [
    "CHANNELS",
    "GELUMLP",
    "MIN_STD",
    "STANDARDIZED_CLIP",
    "BilinearScore",
    "ConcatMLP",
    "ContaminatedNormal",
    "ContrastiveNetworks",
    "Encoded",
    "EncoderSize",
    "FixedStdHead",
    "GaussianHead",
    "Networks",
    "PairEmbedding",
    "PixelEncoder",
    "PixelNetworks",
    "Precision",
    "Standardize",
    "TanhMLP",
    "build_network",
    "describe_network",
    "goal_specs",
    "make_contrastive_networks",
    "make_discriminator",
    "make_networks",
    "make_pixel_networks",
]
