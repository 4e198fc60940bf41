"""Names of the networks and coefficients that losses have."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModule, TensorDictParams
from torch import Tensor


class Networks:
    """Annotations that TorchRL asks for: each network, its parameters and targets; and those of shared coefficients."""

    actor_network: Any
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    score_network: TensorDictModule
    score_network_params: TensorDictParams
    target_score_network_params: TensorDictParams
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    critic_network: TensorDictModule
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams
    discriminator_network: TensorDictModule
    discriminator_network_params: TensorDictParams
    target_discriminator_network_params: TensorDictParams
    encoder_network: TensorDictModule | None = None
    encoder_network_params: TensorDictParams
    target_encoder_network_params: TensorDictParams
    expectile: Tensor
    temperature: Tensor
    weight_clip: float
    tensor_keys: Any
