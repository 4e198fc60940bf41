"""Readers of dataset files in the wild, one module a format; each has a ``read`` that returns a trajectory store.

:func:`read` recognises the format.
"""

from torchrl_smore.data.readers import d4rl, minari, ogbench, wgcsl
from torchrl_smore.data.readers._goals import Goals
from torchrl_smore.data.readers._recognise import FORMATS, read, recognise

__all__ = ["FORMATS", "Goals", "d4rl", "minari", "ogbench", "read", "recognise", "wgcsl"]
