"""The methods that ``method=`` selects: how each builds its loss, and what it wants of sampler and optimiser.

A new method is one entry in ``METHODS`` and one file ``configs/method/NAME.yaml`` with what its defaults differ in from
those of its loss: the constants of its public code. Its options, and the networks that it is built of, are those of the
loss's constructor; only a loss of other networks needs a function that makes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.objectives import LossModule

from torchrl_smore.modules import (
    MIN_STD,
    STANDARDIZED_CLIP,
    EncoderSize,
    Precision,
    Standardize,
    make_contrastive_networks,
    make_discriminator,
    make_networks,
    make_pixel_networks,
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
    SMORELoss,
    WGCSLLoss,
)


@dataclass(frozen=True)
class PixelSetting:
    """How networks see pictures of ``size`` by ``size``; see :func:`~torchrl_smore.modules.make_pixel_networks`.

    ``encoder_is`` says which networks have one encoder: none; all; all, and the actor trains it; all but the actor.
    """

    size: int
    encoder_is: Literal["separate", "shared", "joint", "critics"] = "separate"
    encoder: EncoderSize = "small"
    layer_norm: bool = True
    cold: bool = True


@dataclass(frozen=True, eq=False)
class Setting:
    """What a loss is built from.

    ``options`` are keyword arguments for the loss that the user has given; ``statistics`` standardise inputs, which
    ``clip`` bounds; ``contamination`` and ``min_std`` are those of the actor's likelihood, ``precision`` that of hidden
    layers, ``kernels`` what the losses that have kernels run. ``layer_norm`` names the networks of states that have
    LayerNorm (``"critics"``, ``"actor"``, ``"all"``, ``"none"``), ``ensemble`` how many scores (Q, critics) there are,
    or the method's number.
    """

    specs: tuple[Composite, TensorSpec]
    preset: str
    statistics: dict[str, tuple[Tensor, Tensor]] | None
    deactivate_vmap: bool
    options: dict[str, Any]
    precision: Precision = "float32"
    kernels: str = "auto"
    clip: float | None = STANDARDIZED_CLIP
    contamination: float = 0.0
    min_std: float = MIN_STD
    pixels: PixelSetting | None = None
    layer_norm: str | None = None
    ensemble: int | None = None

    @property
    def num_scores(self) -> int:
        """How many scores (Q, critics) are made; a method that takes one takes the first."""
        return self.ensemble or 2

    def networks(self) -> dict[str, Any]:
        """Actor, score (or Q) and value networks by the names that losses give them.

        They are of states, or of ``pixels`` with the encoder that they share, if any.
        """
        if self.pixels is not None:
            return self._of_pictures(embeddings=False)
        options: dict[str, Any] = {"contamination": self.contamination, "min_std": self.min_std}
        options |= {"preset": self.preset, "statistics": self.statistics, "clip": self.clip}
        options["num_score_nets"] = self.num_scores
        if self.layer_norm in ("critics", "all"):
            options |= {"score_layer_norm": True, "value_layer_norm": True}
        options["actor_layer_norm"] = self.layer_norm in ("actor", "all")
        made = make_networks(*self.specs, precision=self.precision, **options)
        named = {"actor_network": made.actor, "value_network": made.value}
        return {**named, "score_network": made.score, "qvalue_network": made.score}

    def contrastive_pictures(self, std: float | None = None) -> dict[str, Any]:
        """Actor, critics and value of embeddings of ``pixels``, by the names that contrastive losses give them.

        ``std`` is the actor's, a constant; ``None``: it is learnt.
        """
        return self._of_pictures(embeddings=True, std=std)

    def _of_pictures(self, *, embeddings: bool, std: float | None = None) -> dict[str, Any]:
        assert self.pixels is not None
        made = make_pixel_networks(
            self.specs[1],
            pixels=self.pixels.size,
            num_score_nets=self.num_scores,
            encoder=self.pixels.encoder,
            shared=self.pixels.encoder_is != "separate",
            own_actor=self.pixels.encoder_is == "critics",
            embeddings=embeddings,
            layer_norm=self.pixels.layer_norm,
            cold=self.pixels.cold,
            contamination=self.contamination,
            min_std=self.min_std,
            std=std,
            precision=self.precision,
        )
        names = ("critic_network",) if embeddings else ("score_network", "qvalue_network")
        scores = dict.fromkeys(names, made.score)
        return {"actor_network": made.actor, "value_network": made.value, **scores, "encoder_network": made.encoder}

    def embeddings(self) -> dict[str, Any]:
        """Sizes of contrastive networks of states: as narrow as those of other methods here (OGBench: 3 x 512)."""
        return {"hidden": (256, 256), "latent": 64, "num_critics": self.num_scores}

    def standardized(self, module: TensorDictModule) -> TensorDictModule:
        """A network with standardised inputs, for builders that know no statistics."""
        if self.statistics is None:
            return module
        scales = [self.statistics.get(key) for key in module.in_keys]
        return TensorDictModule(Standardize(module.module, scales, self.clip), module.in_keys, module.out_keys)


#: What the actor makes of an encoder that other networks share, by the option ``encoder``.
_SIGHT: dict[str, Any] = {"shared": "frozen", "joint": "trained", "critics": "own"}

#: Keyword arguments of losses that :class:`Setting` decides, beside those that are options of the recipe.
_HANDED = ("kernels", "deactivate_vmap", "num_score_nets")


@dataclass(frozen=True)
class Method:
    """One method: its loss and what it wants of the sampler.

    Attributes:
        loss: its class; what the constructor takes by keyword are the method's options.
        networks: makes the networks, by the names of the constructor's other parameters.
        fixed: keyword arguments that make this method of a loss that has several; they are no options.
        options: turns the options of the recipe into those of the loss where they differ.
        ensemble: how many scores (Q, critics) it has where no number is asked for; 0: it has none.
        norms: networks of states that may have LayerNorm by an option.
        target_network: whether the loss has one.
        cosine: whether the actor's learning rate is decayed where no ``schedule`` is chosen.
        rewards: those of a step off and at the goal, or ``None`` for a loss that reads none.
        terminate_at_goal: whether reaching the goal ends the bootstrap.
        goal_transitions: whether the loss reads goal transitions.
        strategy: hindsight goals where none are chosen.
        extras: further entries that the loss reads.
        pictures: whether it learns from pictures; others read something of a state, or goals that no frame shows.
        likelihood: whether its loss reads the likelihood of its actor of states, ``contamination`` and ``min_std``.
        reached_goals: whether its loss takes a hindsight goal for one that its trajectory reaches.
        preset: whether its networks of states follow ``networks``.
        idle: options of no use, by an option and the value of it under which they are.
    """

    loss: type[LossModule]
    networks: Callable[[Setting], dict[str, Any]] = Setting.networks
    fixed: Mapping[str, Any] = field(default_factory=dict)
    options: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ensemble: int = 2
    norms: tuple[str, ...] = ("critics", "actor", "all")
    target_network: bool = True
    cosine: bool = True
    rewards: tuple[float, float] | None = None
    terminate_at_goal: bool = False
    goal_transitions: bool = False
    strategy: str = "future"
    extras: tuple[str, ...] = ()
    pictures: bool = False
    likelihood: bool = True
    reached_goals: bool = False
    preset: bool = True
    idle: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def accepts(self) -> dict[str, Any]:
        """Options of the loss by name, with their defaults."""
        hidden = {*self.fixed, *_HANDED}
        return {name: given.default for name, given in _parameters(self.loss, keyword=True) if name not in hidden}

    @property
    def actor_goals(self) -> bool:
        """Whether the actor may pursue goals other than those of score and value."""
        return hasattr(self.loss.default_keys, "actor_goal")

    def build(self, setting: Setting) -> LossModule:
        """Networks and loss."""
        made = self.networks(setting)
        if self.ensemble == 1 and setting.ensemble in (None, 1):
            made["qvalue_network"] = made["qvalue_network"][0]
        handed: dict[str, Any] = {"kernels": setting.kernels, "deactivate_vmap": setting.deactivate_vmap}
        handed["num_score_nets"] = setting.num_scores
        taken = {name for name, _ in _parameters(self.loss, keyword=True)}
        options = {name: value for name, value in handed.items() if name in taken}
        networks = {name: made.get(name) for name, _ in _parameters(self.loss, keyword=False)}
        loss = self.loss(**networks, **options, **self.fixed, **self.options(setting.options))
        if made.get("encoder_network") is not None:
            assert setting.pixels is not None
            loss.share_encoder(made["encoder_network"], actor=_SIGHT[setting.pixels.encoder_is])
        return loss


@cache
def _parameters(loss: type[LossModule], *, keyword: bool) -> list[tuple[str, inspect.Parameter]]:
    """The parameters of a loss that are given by keyword alone, or all others."""
    parameters = list(inspect.signature(loss.__init__).parameters.items())[1:]
    return [item for item in parameters if (item[1].kind is inspect.Parameter.KEYWORD_ONLY) == keyword]


def gofar_networks(setting: Setting) -> dict[str, Any]:
    """GoFAR's, with its discriminator unless the sparse reward stands in its place."""
    made = setting.networks()
    if setting.options.get("reward") == "binary":
        return made
    options: dict[str, Any] = {"statistics": setting.statistics, "clip": setting.clip, "precision": setting.precision}
    discriminator = make_discriminator(setting.specs[0], **options)
    return {**made, "discriminator_network": discriminator}


def gofar_options(options: dict[str, Any]) -> dict[str, Any]:
    """What SMORe calls Pearson's chi-squared is GoFAR's chi-squared."""
    if options.get("divergence") == "pearson_chi2":
        return {**options, "divergence": "chi2"}
    return options


def contrastive_networks(setting: Setting) -> dict[str, Any]:
    """Those of contrastive RL, with the actor of the other methods."""
    awr = setting.options.get("actor") == "awr"
    if setting.pixels is not None:
        made = setting.contrastive_pictures()
        return made if awr else {**made, "value_network": None}
    networks = make_contrastive_networks(*setting.specs, **setting.embeddings(), precision=setting.precision)
    critics = [setting.standardized(critic) for critic in networks.critic]
    value = setting.standardized(networks.value) if awr else None
    actor = setting.networks()["actor_network"]
    return {"actor_network": actor, "critic_network": critics, "value_network": value}


def contrastive_td_networks(setting: Setting) -> dict[str, Any]:
    """Those of stable contrastive RL, with its actor's deviation."""
    std = 0.15
    if setting.pixels is not None:
        return setting.contrastive_pictures(std)
    made = make_contrastive_networks(*setting.specs, **setting.embeddings(), std=std, precision=setting.precision)
    critics = [setting.standardized(critic) for critic in made.critic]
    head = made.actor.module[0]
    head.module = setting.standardized(head).module
    return {"actor_network": made.actor, "critic_network": critics}


_SPARSE = (-1.0, 0.0)
#: What the weights of a regression have.
_OF_WEIGHTS = ("temperature", "weight_clip", "advantage_unit")
_CLONING: dict[str, Any] = {"target_network": False, "ensemble": 0, "norms": ("actor",)}
_ORIGINAL_WGCSL = {"threshold": "percentile", "advantage": "online", "target_bounds": "symmetric"}

METHODS: dict[str, Method] = {
    "smore": Method(SMORELoss, goal_transitions=True, pictures=True, idle={("actor", "score"): _OF_WEIGHTS}),
    "gc_iql": Method(GCIQLLoss, rewards=_SPARSE, terminate_at_goal=True, pictures=True),
    "gc_sql": Method(GCSQLLoss, rewards=_SPARSE, terminate_at_goal=True),
    "gc_eql": Method(GCEQLLoss, rewards=_SPARSE, terminate_at_goal=True),
    "gc_xql": Method(GCXQLLoss, rewards=_SPARSE, terminate_at_goal=True),
    "gcsl": Method(GCSLLoss, **_CLONING, cosine=False, pictures=True),
    # behaviour cloning of hindsight goals: SMORe's actor without weights, its control
    "hindsight_bc": Method(GCSLLoss, fixed={"regression": "nll"}, **_CLONING, pictures=True),
    # of stored goals
    "gc_bc": Method(GCSLLoss, fixed={"regression": "nll"}, **_CLONING),
    "wgcsl": Method(WGCSLLoss, ensemble=1, cosine=False, rewards=_SPARSE, extras=("goal_offset",), reached_goals=True),
    "wgcsl_original": Method(
        WGCSLLoss,
        fixed=_ORIGINAL_WGCSL,
        ensemble=1,
        cosine=False,
        rewards=(0.0, 1.0),
        extras=("goal_offset",),
        reached_goals=True,
    ),
    "gofar": Method(
        GoFARLoss,
        gofar_networks,
        options=gofar_options,
        ensemble=0,
        cosine=False,
        extras=("achieved_goal", "initial_observation"),
        idle={("actor_weight", "dual"): (*_OF_WEIGHTS, "expectile")},
    ),
    # critics of embeddings have LayerNorm anyway
    "crl": Method(
        ContrastiveRLLoss,
        contrastive_networks,
        target_network=False,
        strategy="geometric",
        norms=("actor",),
        pictures=True,
        reached_goals=True,
        idle={("actor", "ddpgbc"): _OF_WEIGHTS, ("actor", "awr"): ("bc_coef",)},
    ),
    # its actor's deviation is a constant
    "crl_td": Method(
        ContrastiveTDLoss,
        contrastive_td_networks,
        cosine=False,
        strategy="geometric",
        norms=(),
        pictures=True,
        likelihood=False,
        reached_goals=True,
        preset=False,
    ),
    # its loss reads the actor's mean alone
    "am": Method(ActionableModelsLoss, ensemble=1, cosine=False, rewards=_SPARSE, likelihood=False),
}
