"""Where the frames of a store go one after the other, while they are read or painted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from torchrl_smore.data.errors import DatasetError


class FrameSink:
    """Takes the frames of a store in their order, to memory or to a file that is mapped into it; a context manager.

    The file is removed if an exception leaves the context.

    Args:
        shape: of all of them, ``(frames, height, width, 3)``.
        folder: where the file is made, which has to be there for as long as the frames are used; ``None``: memory.

    Raises:
        DatasetError: if there is no such folder when the context is entered.
    """

    def __init__(self, shape: tuple[int, ...], folder: str | Path | None) -> None:
        self._shape, self._folder, self._taken = shape, folder, 0
        self._frames: Tensor | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> FrameSink:
        if self._folder is None:
            self._frames = torch.empty(self._shape, dtype=torch.uint8)
        else:
            if not Path(self._folder).is_dir():
                raise DatasetError(f"expected a folder that is there to keep frames in, found none at {self._folder}.")
            # plain writes: a full disk turns a write to a mapped page into a signal
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, suffix=".frames", delete=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            if kind is not None:
                Path(self._file.name).unlink(missing_ok=True)

    def take(self, pictures: np.ndarray) -> None:
        """Appends uint8 ``[n, height, width, 3]``."""
        if self._file is None:
            assert self._frames is not None
            self._frames[self._taken : self._taken + len(pictures)] = torch.from_numpy(np.array(pictures))
        else:
            self._file.write(np.ascontiguousarray(pictures).data)
        self._taken += len(pictures)

    def frames(self) -> Tensor:
        """All of them, once that many were taken."""
        if self._file is None:
            assert self._frames is not None
            return self._frames
        self._file.close()
        mapped = torch.from_file(self._file.name, shared=False, size=int(np.prod(self._shape)), dtype=torch.uint8)
        return mapped.view(self._shape)
