"""Networks."""

from torchrl_smore.modules.networks import ConcatMLP, GaussianHead, Networks, Standardize, goal_specs, make_networks

__all__ = ["ConcatMLP", "GaussianHead", "Networks", "Standardize", "goal_specs", "make_networks"]
