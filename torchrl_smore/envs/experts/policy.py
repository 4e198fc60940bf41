"""Trained actors of every kind of file that ``expert_policy`` may name."""

from __future__ import annotations

from pathlib import Path

from torchrl_smore.envs.experts.actor_file import Actor, read_actor
from torchrl_smore.envs.experts.sb3_file import normalization_file, read_sb3


def read_policy(path: str | Path) -> Actor:
    """Reads an actor: a ``.zip`` as a file of Stable-Baselines3, anything else as a file of ``write_actor``.

    Raises:
        ValueError: if the file is missing, damaged, or holds something else. Nothing in it is executed.
    """
    return read_sb3(path) if Path(path).suffix == ".zip" else read_actor(path)


def policy_files(path: str | Path) -> list[Path]:
    """The files that decide how the actor of ``path`` acts, among those that there are."""
    path = Path(path)
    files = [path, normalization_file(path)] if path.suffix == ".zip" else [path]
    return [file for file in files if file.is_file()]
