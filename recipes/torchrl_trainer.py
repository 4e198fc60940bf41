"""SMORe, or another loss of this package, by TorchRL's config system: every part is of one of its config groups.

python recipes/torchrl_trainer.py dataset=FOLDER                      of a saved dataset
python recipes/torchrl_trainer.py dataset=FOLDER loss.beta=0.25 optimizer=adamw
python recipes/torchrl_trainer.py --config-dir . --config-name own    a file of one's own, with another loss
python recipes/torchrl_trainer.py --help                              every group and option

For datasets, evaluation and films see ``recipes/smore_offline.py``; this is for who has configs of TorchRL's trainers.
"""

from __future__ import annotations

import warnings
from typing import Any

import hydra
import torch
import torchrl.trainers.algorithms.configs  # noqa: F401 - registers TorchRL's groups
from omegaconf import OmegaConf

import torchrl_smore.trainers.configs  # noqa: F401 - registers ours
from torchrl_smore import TrajectoryStore
from torchrl_smore.trainers import OfflineTrainer, record_policy, write_text


@hydra.main(version_base="1.3", config_path="configs/torchrl", config_name="smore")
def main(config: Any) -> None:
    """Trains what the config describes."""
    # before the networks are made
    torch.manual_seed(config.seed)
    trainer = hydra.utils.instantiate(config.trainer)
    if getattr(trainer, "run_dir", None) is not None:
        # as training begins: until then the folder may be another run's, which is refused
        text = OmegaConf.to_yaml(config)
        trainer.register_op("setup", lambda: write_text(trainer.run_dir / "config.yaml", text))
        if config.get("dataset") is not None and getattr(trainer.loss_module, "actor_network", None) is not None:
            trainer.register_op("setup", lambda: make_loadable(trainer, config.dataset))
    trainer.train()


def make_loadable(trainer: OfflineTrainer, dataset: str) -> None:
    """Writes ``policy.json`` into the run folder, with the names of columns that the dataset tells, or their numbers.

    A run of what it cannot describe is trained nevertheless, and a warning says so.

    Args:
        trainer: of the run.
        dataset: a saved store.
    """
    try:
        _record(trainer, dataset)
    except (OSError, TypeError, ValueError) as error:
        warnings.warn(f"load_policy will not take this run: {error}", stacklevel=1)


def _record(trainer: OfflineTrainer, dataset: str) -> None:
    assert trainer.run_dir is not None
    store = TrajectoryStore.load(dataset, verify=False)
    names = {"observation": "observation", "desired_goal": "goal", "action": "action"}
    widths = {key: store.data.get(key).shape[-1] for key in names}
    columns = {
        key: store.meta.get(f"{name}_columns") or [f"{name} {number}" for number in range(widths[key])]
        for key, name in names.items()
    }
    goals = torch.cat([store.data["desired_goal"], store.data["next", "achieved_goal"]])
    record_policy(
        trainer.run_dir,
        trainer.loss_module,
        columns=columns,
        goal_range=(goals.amin(0), goals.amax(0)),
        about={
            "task": store.meta.get("task"),
            "method": type(trainer.loss_module).__name__,
            "data": {"sha256": store.sha256},
        },
    )


if __name__ == "__main__":
    main()
