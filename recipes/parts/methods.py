"""The methods that ``method=`` selects: how each builds its loss, and what it wants of sampler and optimiser.

A new method is one function, one entry in ``METHODS`` and one file ``configs/method/NAME.yaml`` with its defaults: the
constants of the public code of each method, see the docstring of its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.objectives import LossModule

from torchrl_smore import SMORELoss
from torchrl_smore.modules import (
    STANDARDIZED_CLIP,
    Precision,
    Standardize,
    make_contrastive_networks,
    make_discriminator,
    make_networks,
)
from torchrl_smore.objectives import (
    ActionableModelsLoss,
    ContrastiveRLLoss,
    ContrastiveTDLoss,
    GCEQLLoss,
    GCIQLLoss,
    GCSLLoss,
    GCSQLLoss,
    GCXQLLoss,
    GoFARLoss,
    WGCSLLoss,
)


@dataclass(frozen=True)
class Setting:
    """What a loss is built from.

    ``options`` are keyword arguments for the loss that the user has given; ``statistics`` standardise inputs, which
    ``clip`` bounds; ``precision`` is that of hidden layers, ``kernels`` what the losses that have kernels run.
    """

    specs: tuple[Composite, TensorSpec]
    preset: str
    statistics: dict[str, tuple[Tensor, Tensor]] | None
    deactivate_vmap: bool
    options: dict[str, Any]
    precision: Precision = "float32"
    kernels: str = "auto"
    clip: float | None = STANDARDIZED_CLIP

    def networks(self) -> Any:
        """Score (or Q), value and actor networks."""
        options = {"preset": self.preset, "statistics": self.statistics, "precision": self.precision, "clip": self.clip}
        return make_networks(*self.specs, **options)  # type: ignore[arg-type]

    def standardized(self, module: TensorDictModule) -> TensorDictModule:
        """A network with standardised inputs, for builders that know no statistics."""
        if self.statistics is None:
            return module
        scales = [self.statistics.get(key) for key in module.in_keys]
        return TensorDictModule(Standardize(module.module, scales, self.clip), module.in_keys, module.out_keys)


@dataclass(frozen=True)
class Method:
    """One method: its loss, the options it takes, and what it wants of the sampler.

    ``accepts`` names the options of the recipe that ``build`` passes on; ``target_network`` says whether the loss has
    one; ``rewards`` are those of a step off and at the goal; ``actor_goals`` says whether the actor may pursue goals
    other than those of score and value.
    """

    text: str
    build: Callable[[Setting], LossModule]
    accepts: tuple[str, ...] = ()
    target_network: bool = True
    cosine: bool = True
    rewards: tuple[float, float] | None = None
    terminate_at_goal: bool = False
    goal_transitions: bool = False
    strategy: str = "future"
    extras: tuple[str, ...] = ()
    actor_goals: bool = False


def smore(setting: Setting) -> LossModule:
    """SMORe."""
    networks = setting.networks()
    options = {"deactivate_vmap": setting.deactivate_vmap, "kernels": setting.kernels, **setting.options}
    return SMORELoss(networks.actor, networks.score, networks.value, **options)


def in_sample(loss: type[LossModule], *, fused: bool = False) -> Callable[[Setting], LossModule]:
    """GC-IQL and its relatives; ``fused`` says that the loss has kernels."""

    def build(setting: Setting) -> LossModule:
        networks = setting.networks()
        options = {"deactivate_vmap": setting.deactivate_vmap, **setting.options}
        if fused:
            options["kernels"] = setting.kernels
        return loss(networks.actor, networks.score, networks.value, **options)

    return build


def gcsl(setting: Setting) -> LossModule:
    """Goal-conditioned supervised learning."""
    return GCSLLoss(setting.networks().actor, **setting.options)


def behaviour_cloning(setting: Setting) -> LossModule:
    """Maximum likelihood of the dataset's actions for the goals they were taken for."""
    return GCSLLoss(setting.networks().actor, regression="nll", **setting.options)


def wgcsl(setting: Setting) -> LossModule:
    """Weighted GCSL, GoFAR's port."""
    networks = setting.networks()
    return WGCSLLoss(networks.actor, networks.score[0], **setting.options)


def wgcsl_original(setting: Setting) -> LossModule:
    """Weighted GCSL with the best-advantage threshold, as in AWGCSL."""
    networks = setting.networks()
    original = {"threshold": "percentile", "advantage": "online", "target_bounds": "symmetric"}
    return WGCSLLoss(networks.actor, networks.score[0], **{**original, **setting.options})


def gofar(setting: Setting) -> LossModule:
    """GoFAR with its discriminator, or with the sparse reward in its place."""
    networks = setting.networks()
    options = dict(setting.options)
    # what SMORe calls Pearson's chi-squared is GoFAR's
    divergence = options.pop("divergence", "pearson_chi2")
    options["divergence"] = "chi2" if divergence == "pearson_chi2" else divergence
    if options.get("reward") == "binary":
        return GoFARLoss(networks.actor, networks.value, **options)
    # both inputs of the discriminator are goals: one scale serves them
    goal = None if setting.statistics is None else setting.statistics["desired_goal"]
    discriminator = make_discriminator(setting.specs[0], precision=setting.precision)
    if goal is not None:
        scaled = Standardize(discriminator.module, [goal] * len(discriminator.in_keys), setting.clip)
        discriminator = TensorDictModule(scaled, discriminator.in_keys, discriminator.out_keys)
    return GoFARLoss(networks.actor, networks.value, discriminator, **options)


def contrastive(setting: Setting) -> LossModule:
    """Contrastive RL; its networks are narrower than OGBench's 3 x 512, like those of the other methods here."""
    networks = make_contrastive_networks(*setting.specs, hidden=(256, 256), latent=64, precision=setting.precision)
    critics = [setting.standardized(critic) for critic in networks.critic]
    value = setting.standardized(networks.value) if setting.options.get("actor") == "awr" else None
    actor = setting.networks().actor
    return ContrastiveRLLoss(actor, critics, value, deactivate_vmap=setting.deactivate_vmap, **setting.options)


def contrastive_td(setting: Setting) -> LossModule:
    """Stable contrastive RL on states, with the narrow networks of :func:`contrastive`."""
    networks = make_contrastive_networks(*setting.specs, hidden=(256, 256), latent=64, std=0.15)
    critics = [setting.standardized(critic) for critic in networks.critic]
    head = networks.actor.module[0]
    head.module = setting.standardized(head).module
    return ContrastiveTDLoss(networks.actor, critics, deactivate_vmap=setting.deactivate_vmap, **setting.options)


def actionable(setting: Setting) -> LossModule:
    """Actionable Models."""
    networks = setting.networks()
    return ActionableModelsLoss(networks.actor, networks.score[0], **setting.options)


_SPARSE = (-1.0, 0.0)
_SMORE_OPTIONS = ("formulation", "divergence", "beta", "residual_coef", "score_bounds", "actor", "value_target")
_GOFAR_OPTIONS = ("divergence", "reward", "actor_weight", "expectile", "temperature", "gamma")

METHODS: dict[str, Method] = {
    "smore": Method(
        "SMORe (Sikchi et al., 2024)",
        smore,
        accepts=(*_SMORE_OPTIONS, "expectile", "temperature", "gamma", "weight_clip", "advantage_unit"),
        goal_transitions=True,
        actor_goals=True,
    ),
    "gc_iql": Method(
        "IQL with hindsight goals",
        in_sample(GCIQLLoss, fused=True),
        accepts=("expectile", "temperature", "gamma", "weight_clip", "advantage_unit"),
        rewards=_SPARSE,
        terminate_at_goal=True,
        actor_goals=True,
    ),
    "gc_sql": Method(
        "sparse Q-learning", in_sample(GCSQLLoss), accepts=("gamma",), rewards=_SPARSE, terminate_at_goal=True
    ),
    "gc_eql": Method(
        "exponential Q-learning", in_sample(GCEQLLoss), accepts=("gamma",), rewards=_SPARSE, terminate_at_goal=True
    ),
    "gc_xql": Method(
        "extreme Q-learning", in_sample(GCXQLLoss), accepts=("gamma",), rewards=_SPARSE, terminate_at_goal=True
    ),
    "gcsl": Method("GCSL", gcsl, target_network=False, cosine=False),
    "hindsight_bc": Method(
        "behaviour cloning of hindsight goals: SMORe's actor without weights, its control",
        behaviour_cloning,
        target_network=False,
    ),
    "gc_bc": Method("behaviour cloning of stored goals", behaviour_cloning, target_network=False),
    "wgcsl": Method(
        "weighted GCSL (GoFAR's port)",
        wgcsl,
        accepts=("gamma",),
        cosine=False,
        rewards=_SPARSE,
        extras=("goal_offset",),
    ),
    "wgcsl_original": Method(
        "weighted GCSL with the best-advantage threshold",
        wgcsl_original,
        accepts=("gamma",),
        cosine=False,
        rewards=(0.0, 1.0),
        extras=("goal_offset",),
    ),
    "gofar": Method(
        "GoFAR, chi-squared with discriminator",
        gofar,
        accepts=_GOFAR_OPTIONS,
        cosine=False,
        extras=("achieved_goal", "initial_observation"),
    ),
    "crl": Method(
        "contrastive RL, DDPG+BC actor",
        contrastive,
        accepts=("contrast", "energy", "bc_coef", "actor", "temperature"),
        target_network=False,
        strategy="geometric",
    ),
    "crl_td": Method(
        "stable contrastive RL, temporal differences",
        contrastive_td,
        accepts=("energy", "gamma"),
        cosine=False,
        strategy="geometric",
    ),
    "am": Method(
        "Actionable Models",
        actionable,
        accepts=("gamma",),
        cosine=False,
        rewards=_SPARSE,
    ),
}
