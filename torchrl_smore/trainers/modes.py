"""Training and evaluation mode of everything that a loss computes with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torchrl.objectives import LossModule


@contextlib.contextmanager
def in_mode(training: bool, *roots: nn.Module) -> Iterator[None]:
    """Within it, modules are in training or in evaluation mode; afterwards each has the mode that it had before.

    The networks of a loss are functional, so that its own ``train()`` and ``eval()`` may not reach them; this does.

    Args:
        training: the mode.
        *roots: losses or other modules.
    """
    networks = [network for root in roots for network in (root, *networks_of(root))]
    before = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.train(training)
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def networks_of(root: nn.Module) -> list[nn.Module]:
    """Networks that TorchRL keeps beside the registered modules of a loss."""
    losses = [module for module in root.modules() if isinstance(module, LossModule)]
    return [value for loss in losses for value in vars(loss).values() if isinstance(value, nn.Module)]
