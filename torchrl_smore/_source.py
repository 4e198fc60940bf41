"""Digest of the source that this process runs. Imported before the rest of the package, since it notes the time."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

_IMPORTED_AT = time.time()


def source_digest(*packages: str) -> str:
    """SHA-256 of the names and contents of all source files of the imported ones among ``packages``.

    Raises:
        RuntimeError: if a file has changed since this process imported the package: what runs is not what is read.
    """
    digest = hashlib.sha256()
    for package in packages:
        module = sys.modules.get(package)
        if module is None or module.__file__ is None:
            continue
        folder = Path(module.__file__).parent
        for path in sorted(folder.rglob("*.py")):
            found = path.stat()
            # a file that was moved here keeps its time of writing
            if max(found.st_mtime, found.st_ctime) > _IMPORTED_AT:
                raise RuntimeError(f"{path} has changed since it was imported")
            content = path.read_bytes()
            digest.update(f"{package}/{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
