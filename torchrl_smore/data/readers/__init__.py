"""Readers of dataset files in the wild, one module per format; each has a ``read`` that returns a trajectory store.

:func:`read` recognises the format.
"""

from torchrl_smore.data.readers import csv, d4rl, minari, ogbench, wgcsl
from torchrl_smore.data.readers._goals import Goals
from torchrl_smore.data.readers._recognise import FORMATS, read, recognise
from torchrl_smore.data.readers.csv import TableColumns

__all__ = ["FORMATS", "Goals", "TableColumns", "csv", "d4rl", "minari", "ogbench", "read", "recognise", "wgcsl"]
