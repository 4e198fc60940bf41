"""Readers of dataset files in the wild, one module a format; each has a ``read`` that returns a trajectory store."""

from torchrl_smore.data.readers import wgcsl

__all__ = ["wgcsl"]
