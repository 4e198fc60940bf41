"""Writers of the formats that :mod:`torchrl_smore.data.readers` reads, for other people's programs.

Each module has a ``write(store, path, ...)``; a path that exists is refused, and what fails leaves nothing behind.
"""

from torchrl_smore.data.writers import d4rl, minari, ogbench, wgcsl

__all__ = ["d4rl", "minari", "ogbench", "wgcsl"]
