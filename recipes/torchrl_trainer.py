"""SMORe, or another loss of this package, by TorchRL's config system: every part is of one of its config groups.

python recipes/torchrl_trainer.py dataset=FOLDER                      of a saved dataset
python recipes/torchrl_trainer.py dataset=FOLDER loss.beta=0.25 optimizer=adamw
python recipes/torchrl_trainer.py --config-dir . --config-name own    a file of one's own, with another loss
python recipes/torchrl_trainer.py --help                              every group and option

For datasets, evaluation and films see ``recipes/smore_offline.py``; this is for who has configs of TorchRL's trainers.
"""

from __future__ import annotations

from typing import Any

import hydra
import torch
import torchrl.trainers.algorithms.configs  # noqa: F401 - registers TorchRL's groups
from omegaconf import OmegaConf

import torchrl_smore.trainers.configs  # noqa: F401 - registers ours
from torchrl_smore.trainers import write_text


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
    trainer.train()


if __name__ == "__main__":
    main()
