"""Hydra configs of losses, goal sampling and trainer, beside those of ``torchrl.trainers.algorithms.configs``.

Importing this module registers them in Hydra's ``ConfigStore``, in TorchRL's groups:

=============== =========================================================================================
group           names
=============== =========================================================================================
``loss``        those of :data:`LOSSES`
``sample_unit`` ``goal_transition``
``transform``   ``hindsight_goal``
``storage``     ``trajectories``
``model``       ``goal_actor``, ``goal_score``, ``goal_value``
``trainer``     ``offline``
=============== =========================================================================================

Every argument of a loss, transform, unit or maker of networks is a field of its config, under its name and with its
default: these configs are made of the signatures, that of each public loss as ``<class>Config``.
``recipes/configs/torchrl/smore.yaml`` composes all of them with TorchRL's own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch.optim.lr_scheduler import LRScheduler
from torchrl.data import ReplayBuffer, TensorStorage
from torchrl.objectives import LossModule, TargetNetUpdater
from torchrl.record.loggers import Logger
from torchrl.trainers import TrainerHookBase

try:
    from hydra.core.config_store import ConfigStore
    from omegaconf import MISSING
    from torchrl.trainers.algorithms.configs.common import ConfigBase
    from torchrl.trainers.algorithms.configs.data import SampleUnitConfig, StorageConfig
    from torchrl.trainers.algorithms.configs.objectives import LossConfig
    from torchrl.trainers.algorithms.configs.trainers import TrainerConfig
    from torchrl.trainers.algorithms.configs.transforms import TransformConfig
except ImportError as error:
    raise ImportError("configs need hydra-core: pip install torchrl-smore[recipes]") from error

from torchrl_smore import objectives
from torchrl_smore.data import GoalTransition, HindsightGoalTransform, TrajectoryStore
from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.modules.networks import MIN_STD, STANDARDIZED_CLIP
from torchrl_smore.trainers.evaluation import Evaluator
from torchrl_smore.trainers.offline import OfflineTrainer, OnDivergence
from torchrl_smore.trainers.update import Compile

#: Names in the group ``loss`` of those that have another than their class's in snake case, without ``Loss``.
_NAMES = {"GCEQL": "gc_eql", "GCIQL": "gc_iql", "GCSQL": "gc_sql", "GCXQL": "gc_xql", "GoFAR": "gofar"}
_PLAIN = (bool, int, float, str)


def _config(target: type, base: type) -> type[Any]:
    """A config dataclass ``<target>Config`` with a field for each argument of ``target``."""
    hints = get_type_hints(target.__init__)  # type: ignore[misc] # of a class, and not of an instance
    fields: list[tuple[str, Any, Any]] = []
    for name, parameter in list(inspect.signature(target.__init__).parameters.items())[1:]:  # type: ignore[misc]
        fields.append((name, _field_type(hints[name]), _field_default(parameter.default)))
    public = f"{target.__module__.split('.')[0]}.{target.__module__.split('.')[1]}.{target.__name__}"
    # Hydra's lists as Python's, which is what the classes take
    fields += [("_target_", str, public), ("_convert_", str, "all")]
    made = make_dataclass(f"{target.__name__}Config", fields, bases=(base,))
    made.__module__ = __name__
    made.__doc__ = f"Hydra configuration for :class:`~{public}`, whose every argument is a field here."
    return made


def _field_type(hint: Any) -> Any:
    """What Hydra can check: plain types, and closed sets of strings as strings."""
    if get_origin(hint) is Literal and all(isinstance(value, str) for value in get_args(hint)):
        return str
    return hint if hint in _PLAIN else Any


def _field_default(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return MISSING
    if inspect.isfunction(default):
        path = f"{default.__module__}.{default.__qualname__}"
        return field(default_factory=lambda: {"_target_": "hydra.utils.get_method", "path": path})
    return default


def _name(loss: str) -> str:
    """The name of a loss's config: ``ActionFreeSMORELoss`` is ``action_free_smore``."""
    plain = loss.removesuffix("Loss")
    return _NAMES.get(plain) or re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain).lower()


#: Every public loss, by its name in the group ``loss``.
LOSSES: dict[str, type[LossModule]] = {_name(loss): getattr(objectives, loss) for loss in objectives.__all__}
_LOSS_CONFIGS = {name: _config(loss, LossConfig) for name, loss in LOSSES.items()}
globals().update({made.__name__: made for made in _LOSS_CONFIGS.values()})
GoalTransitionConfig = _config(GoalTransition, SampleUnitConfig)
HindsightGoalTransformConfig = _config(HindsightGoalTransform, TransformConfig)


@dataclass
class GoalActorConfig(ConfigBase):
    """Hydra configuration for the actor of :func:`~torchrl_smore.make_networks`.

    TorchRL's own model configs serve for scores and values; its actors take one input, and these take state and goal.

    Attributes:
        observation_dim: width of ``observation``.
        goal_dim: width of ``desired_goal``.
        action_dim: width of ``action``.

    The other fields are arguments of :func:`~torchrl_smore.make_networks`.
    """

    observation_dim: int = MISSING
    goal_dim: int = MISSING
    action_dim: int = MISSING
    preset: str = "paper"
    hidden: Any = None
    value_layer_norm: bool | None = None
    score_layer_norm: bool = False
    actor_layer_norm: bool = False
    num_score_nets: int = 2
    statistics: Any = None
    clip: float | None = STANDARDIZED_CLIP
    contamination: float = 0.0
    min_std: float = MIN_STD
    precision: str = "float32"
    matmul: str = "auto"
    part: str = "actor"
    _target_: str = "torchrl_smore.trainers.configs._make_network"
    _convert_: str = "all"

    def __post_init__(self) -> None:
        """Part of the interface."""


@dataclass
class GoalScoreConfig(GoalActorConfig):
    """The same for the scores."""

    part: str = "score"


@dataclass
class GoalValueConfig(GoalActorConfig):
    """The same for the value."""

    part: str = "value"


def _make_network(
    part: Literal["actor", "score", "value"], observation_dim: int, goal_dim: int, action_dim: int, **options: Any
) -> TensorDictModule | list[TensorDictModule]:
    networks = make_networks(*goal_specs(observation_dim, goal_dim, action_dim), **options)
    made: TensorDictModule | list[TensorDictModule] = getattr(networks, part)
    return made


@dataclass
class TrajectoryStorageConfig(StorageConfig):
    """Hydra configuration for the storage of a saved :class:`~torchrl_smore.data.TrajectoryStore`.

    Attributes:
        path: folder of the store.
        device: where the rows shall lie; in memory by default.
        step_count: whether they have a ``"step_count"``.
    """

    path: str = MISSING
    device: Any = None
    step_count: bool = False
    _target_: str = "torchrl_smore.trainers.configs._make_trajectory_storage"


def _make_trajectory_storage(
    path: str, device: torch.device | str | None = None, step_count: bool = False
) -> TensorStorage:
    return TrajectoryStore.load(path).to_storage(device, step_count=step_count)


@dataclass
class OfflineTrainerConfig(TrainerConfig):
    """Hydra configuration for :class:`~torchrl_smore.trainers.OfflineTrainer`, with TorchRL's names for its parts.

    Attributes:
        loss_module: the loss.
        replay_buffer: the buffer, or any function that returns a batch.
        optimizer: an optimiser, or what makes one of ``params=``, as TorchRL's optimiser configs do.
        total_frames: updates; a "frame" of this trainer is one.
        scheduler: a schedule of rates, or what makes one of ``optimizer=``; ``None`` keeps them constant.
        target_net_updater: an updater, or what makes one of the loss; ``None`` for a loss without target networks.
        hooks: TorchRL hooks, each of which registers itself.

    The other fields are arguments of :class:`~torchrl_smore.trainers.OfflineTrainer`.
    """

    loss_module: Any = MISSING
    replay_buffer: Any = MISSING
    optimizer: Any = MISSING
    total_frames: int = MISSING
    scheduler: Any = None
    target_net_updater: Any = None
    hooks: Any = None
    run_dir: Any = None
    evaluator: Any = None
    log_interval: int = 100
    eval_interval: int = 1000
    save_interval: int = 1000
    keep_checkpoints: int = 2
    compile: str = "off"
    meta: Any = None
    on_divergence: str = "stop"
    logger: Any = None
    progress_bar: bool = True
    _target_: str = "torchrl_smore.trainers.configs._make_offline_trainer"
    _convert_: str = "all"


def _make_offline_trainer(
    *,
    loss_module: LossModule,
    replay_buffer: ReplayBuffer | Callable[[], TensorDictBase],
    optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer],
    total_frames: int,
    scheduler: LRScheduler | Callable[..., LRScheduler] | None,
    target_net_updater: TargetNetUpdater | Callable[[LossModule], TargetNetUpdater] | None,
    hooks: Sequence[TrainerHookBase] | None,
    run_dir: str | None,
    evaluator: Evaluator | None,
    log_interval: int,
    eval_interval: int,
    save_interval: int,
    keep_checkpoints: int,
    compile: Compile,
    meta: dict[str, Any] | None,
    on_divergence: OnDivergence,
    logger: Logger | None,
    progress_bar: bool,
) -> OfflineTrainer:
    # target parameters are copies that the updater makes: before the optimiser, as TorchRL's trainers do
    if target_net_updater is not None and not isinstance(target_net_updater, TargetNetUpdater):
        target_net_updater = target_net_updater(loss_module)
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(params=loss_module.parameters())
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        scheduler = scheduler(optimizer=optimizer)
    trainer = OfflineTrainer(
        loss_module,
        replay_buffer.sample if isinstance(replay_buffer, ReplayBuffer) else replay_buffer,
        optimizer,
        total_steps=total_frames,
        run_dir=run_dir,
        scheduler=scheduler,
        target_updater=target_net_updater,
        evaluator=evaluator,
        log_interval=log_interval,
        eval_interval=eval_interval,
        save_interval=save_interval,
        keep_checkpoints=keep_checkpoints,
        compile=compile,
        meta=meta,
        on_divergence=on_divergence,
        logger=logger,
        progress_bar=progress_bar,
    )
    for hook in hooks or ():
        if not isinstance(hook, TrainerHookBase):
            raise TypeError(f"hooks must be TorchRL trainer hooks, got {type(hook).__name__}.")
        hook.register(trainer)
    return trainer


def _register() -> None:
    store = ConfigStore.instance()
    for name, config in _LOSS_CONFIGS.items():
        store.store(group="loss", name=name, node=config)
    store.store(group="sample_unit", name="goal_transition", node=GoalTransitionConfig)
    store.store(group="transform", name="hindsight_goal", node=HindsightGoalTransformConfig)
    store.store(group="storage", name="trajectories", node=TrajectoryStorageConfig)
    for part, config in (("actor", GoalActorConfig), ("score", GoalScoreConfig), ("value", GoalValueConfig)):
        store.store(group="model", name=f"goal_{part}", node=config)
    store.store(group="trainer", name="offline", node=OfflineTrainerConfig)


_register()
