"""Configs in Hydra's store: every argument is there, and one file of them trains."""

from __future__ import annotations

import csv
import inspect
import math
import re
from pathlib import Path

import pytest
import torch

hydra = pytest.importorskip("hydra", reason="configs need the extra [recipes]")
from hydra.core.config_store import ConfigStore  # noqa: E402
from hydra.errors import ConfigCompositionException, InstantiationException  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from torchrl_smore import objectives  # noqa: E402
from torchrl_smore.data import GoalTransition, HindsightGoalTransform, TrajectoryStore  # noqa: E402
from torchrl_smore.modules import goal_specs, make_networks  # noqa: E402
from torchrl_smore.trainers import OfflineTrainer, configs  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "torchrl"
TINY = [
    "widths={observation_dim: 3, goal_dim: 2, action_dim: 2, hidden: [8]}",
    *("steps=20", "replay_buffer.batch_size=16", "trainer.log_interval=10", "trainer.progress_bar=false"),
]
OWN = """
defaults:
  - model@actor: goal_actor
  - replay_buffer@buffer: tensordict
  - storage@buffer.storage: trajectories
  - sample_unit@buffer.sample_unit: goal_transition
  - transform@buffer.transform: hindsight_goal
  - loss@loss: gcsl
  - optimizer@optimizer: sgd
  - hook@counter: count_frames_log
  - trainer@trainer: offline
  - _self_
actor: {observation_dim: 3, goal_dim: 2, action_dim: 2, hidden: [8]}
buffer: {batch_size: 8, sample_unit: {strategy: final}, transform: {her_ratio: 1.0}}
loss: {actor_network: "${actor}"}
optimizer: {lr: 0.1}
counter: {frame_skip: 1}
trainer:
  loss_module: ${loss}
  replay_buffer: ${buffer}
  optimizer: ${optimizer}
  hooks: ["${counter}"]
  total_frames: 4
  progress_bar: false
"""
# the names that a user types
NAMES = {
    *("action_free_smore", "actionable_models", "awr_actor", "contrastive_rl", "contrastive_td", "expectile_value"),
    *("gc_eql", "gc_iql", "gc_sql", "gc_xql", "gcsl", "gofar", "score", "smore", "wgcsl"),
}


@pytest.fixture
def composed(data, tmp_path):
    """Returns a function that composes the file with overrides on a tiny dataset of the disk."""
    TrajectoryStore(data).save(tmp_path / "dataset")

    def compose(*overrides):
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            own = [f"dataset={tmp_path / 'dataset'}", f"trainer.run_dir={tmp_path / 'run'}"]
            return hydra.compose("smore", [*TINY, *own, *overrides])

    return compose


def _parts(target):
    signature = inspect.signature(target.__init__)
    return {name: parameter.default for name, parameter in list(signature.parameters.items())[1:]}


def test_every_public_loss_has_a_config_under_a_name_of_its_own():
    losses = {getattr(objectives, name) for name in objectives.__all__}
    assert set(configs.LOSSES.values()) == losses
    assert set(configs.LOSSES) >= NAMES
    stored = ConfigStore.instance().repo["loss"]
    assert {f"{name}.yaml" for name in NAMES} <= set(stored)
    # and TorchRL's own are still there
    assert {"iql.yaml", "sac.yaml"} <= set(stored)


@pytest.mark.parametrize("target", [*configs.LOSSES.values(), GoalTransition, HindsightGoalTransform])
def test_every_argument_is_a_field_with_its_default(target):
    config = OmegaConf.structured(getattr(configs, f"{target.__name__}Config"))
    arguments = _parts(target)
    assert set(config) - set(arguments) - {"_partial_"} == {"_target_", "_convert_"}
    assert hydra.utils.get_class(config._target_) is target
    for name, default in arguments.items():
        if default is inspect.Parameter.empty:
            assert OmegaConf.is_missing(config, name)
        elif callable(default):
            assert hydra.utils.instantiate(config[name]) is default
        else:
            found = config[name]
            assert found == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("target", [GoalTransition, HindsightGoalTransform])
def test_defaults_make_the_same_object(target):
    made = hydra.utils.instantiate(OmegaConf.structured(getattr(configs, f"{target.__name__}Config")))
    plain = {name: value for name, value in vars(target()).items() if isinstance(value, (float, str, bool))}
    assert {name: getattr(made, name) for name in plain} == plain
    assert made.reached is target().reached


@pytest.mark.parametrize("part", ["actor", "score", "value"])
def test_a_network_config_has_every_argument_of_the_networks(part):
    config = OmegaConf.structured(getattr(configs, f"Goal{part.capitalize()}Config"))
    options = dict(inspect.signature(make_networks).parameters)
    widths = set(inspect.signature(goal_specs).parameters)
    assert set(config) == {"_target_", "_convert_", "part"} | widths | (
        set(options) - {"observation_spec", "action_spec"}
    )
    for name in set(options) - {"observation_spec", "action_spec"}:
        assert config[name] == options[name].default, name
    made = hydra.utils.instantiate(config, observation_dim=3, goal_dim=2, action_dim=2, hidden=[4], num_score_nets=2)
    expected = getattr(make_networks(*goal_specs(3, 2, 2), hidden=[4]), part)
    assert type(made) is type(expected)


def test_a_trainer_config_has_every_argument_of_the_trainer():
    fields = set(OmegaConf.structured(configs.OfflineTrainerConfig)) - {"_target_", "_convert_", "hooks"}
    ours = {"loss": "loss_module", "sampler": "replay_buffer", "total_steps": "total_frames"}
    ours["target_updater"] = "target_net_updater"
    # a ready update and policies of one's own are objects that no config names
    absent = {"update", "policy"}
    assert fields == {ours.get(name, name) for name in _parts(OfflineTrainer)} - absent
    config = OmegaConf.structured(configs.OfflineTrainerConfig)
    for name, default in _parts(OfflineTrainer).items():
        if name in fields and name != "optimizer":
            assert config[name] == default, name


def test_one_file_composes_and_trains_the_losses_of_a_smore_actor(composed, tmp_path):
    torch.manual_seed(0)
    config = composed()
    trainer = hydra.utils.instantiate(config.trainer)
    before = {name: value.clone() for name, value in trainer.loss_module.state_dict().items()}
    trainer.train()

    assert isinstance(trainer, OfflineTrainer)
    assert isinstance(trainer.loss_module, objectives.SMORELoss)
    assert (trainer.loss_module.objective.gamma, trainer.loss_module.objective.beta) == (0.9, 0.5)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20"]
    assert all(math.isfinite(float(row[key])) for row in rows for key in ("loss_score", "loss_value", "loss_actor"))
    after = trainer.loss_module.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    for network in ("actor_network", "score_network", "value_network", "target_score_network"):
        assert any(name.startswith(f"{network}_params") for name in moved), network
    # of TorchRL's logger
    assert list((tmp_path / "run").rglob("scalars/*.csv"))


def test_rates_follow_the_schedule_that_a_file_names(composed):
    schedule = "{_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 8, gamma: 0.5}"
    trainer = hydra.utils.instantiate(composed(f"+trainer.scheduler={schedule}", "optimizer.lr=0.001").trainer)
    trainer.train()
    # 20 updates: halved after the 8th and the 16th
    assert [group["lr"] for group in trainer.update.optimizer.param_groups] == [0.00025]


def test_a_file_of_ones_own_takes_another_loss_another_optimizer_and_hooks(data, tmp_path):
    TrajectoryStore(data).save(tmp_path / "dataset")
    (tmp_path / "own.yaml").write_text(OWN)
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = hydra.compose("own", [f"buffer.storage.path={tmp_path / 'dataset'}"])
    trainer = hydra.utils.instantiate(config.trainer)
    trainer.train()
    assert isinstance(trainer.loss_module, objectives.GCSLLoss)
    assert isinstance(trainer.update.optimizer, torch.optim.SGD)
    assert trainer.step == 4
    # of the hook
    assert trainer._log_dict["n_frames"][-1] == 4


def test_a_buffer_gives_the_entries_that_only_some_baselines_read(data, tmp_path):
    TrajectoryStore(data).save(tmp_path / "dataset")
    (tmp_path / "own.yaml").write_text(OWN)
    options = ["storage.step_count=true", "sample_unit.initial=true", "transform.step_key=step_count"]
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = hydra.compose("own", [f"buffer.{option}" for option in [f"storage.path={tmp_path}/dataset", *options]])
    batch = hydra.utils.instantiate(config.buffer).sample()
    assert bool((batch["goal_offset"] >= 0).all())
    assert batch["initial_observation"].shape == batch["observation"].shape


def test_a_hook_that_is_none_is_refused(composed):
    config = composed("trainer.hooks=[{_target_: torch.nn.Identity}]")
    with pytest.raises(InstantiationException, match="hooks must be TorchRL trainer hooks, got Identity"):
        hydra.utils.instantiate(config.trainer)


def test_what_is_wrong_is_said_by_its_key(composed):
    with pytest.raises(ConfigCompositionException, match=r"loss\.beta=much"):
        composed("loss.beta=much")
    with pytest.raises((InstantiationException, OmegaConfBaseException), match=r"replay_buffer\.storage\.path"):
        hydra.utils.instantiate(composed("dataset=???").trainer)
    with pytest.raises(ConfigCompositionException, match=r"loss\.betta"):
        composed("loss.betta=0.5")


@pytest.mark.parametrize("name", ["docs/torchrl_configs.md", "recipes/torchrl_trainer.py"])
def test_overrides_that_a_page_shows_are_taken(name):
    text = (CONFIGS.parents[2] / name).read_text(encoding="utf-8")
    shown = re.findall(r"^ *python recipes/torchrl_trainer\.py (dataset=.*?)(?:  .*)?$", text, re.MULTILINE)
    assert any("adamw" in overrides for overrides in shown)
    for overrides in shown:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra.compose("smore", overrides.split())
        assert ("AdamW" in config.optimizer._target_) == ("adamw" in overrides)


def test_help_says_what_the_command_does_and_how_it_is_given():
    header = OmegaConf.load(CONFIGS / "smore.yaml").hydra.help.header
    docstring = (CONFIGS.parents[1] / "torchrl_trainer.py").read_text(encoding="utf-8").split('"""')[1]
    assert header == docstring.split("\n\nFor datasets")[0] + "\n"
