"""The networks of a loss: what they read of a batch, the parameters lent to them for a call, and what holds them."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictParams
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.data import Bounded, Composite
from torchrl.modules import TanhModule
from torchrl.objectives import LossModule

#: How an actor sees where an encoder is shared: vectors that it does not train, vectors that it trains, or pictures.
ActorSight = Literal["frozen", "trained", "own"]
#: Where the pictures are that an actor with an encoder of its own reads; no name that a user's entry has.
PICTURES = "_pictures_of_actor"

Replaced = Mapping[NestedKey, Tensor]
#: Parameters and buffers by their path in a TensorDict.
Entries = dict[tuple[str, ...], Tensor]
#: The dictionary of a module that holds an entry, and the entry's name there.
_Place = tuple[dict[str, Any], str]
_places: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], _Place]] = weakref.WeakKeyDictionary()


class Networks(LossModule):
    """A loss that holds networks: registers them with their parameters and targets, and calls them with these.

    Those of which a loss may have several with stacked parameters are named in ``ensembles``. TorchRL asks for an
    annotation of each.
    """

    actor_network: Any
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    score_network: TensorDictModule
    score_network_params: TensorDictParams
    target_score_network_params: TensorDictParams
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    critic_network: TensorDictModule
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams
    discriminator_network: TensorDictModule
    discriminator_network_params: TensorDictParams
    target_discriminator_network_params: TensorDictParams
    encoder_network: TensorDictModule | None = None
    #: How the actor sees where an encoder is shared, see ``OfflineLoss.share_encoder``.
    actor_sight: ActorSight = "frozen"
    #: Whether the actor is asked about other states or goals than those of the rows.
    asks_actor_elsewhere: bool = False
    encoder_network_params: TensorDictParams
    target_encoder_network_params: TensorDictParams
    _lowest_action: Tensor | None
    _highest_action: Tensor | None
    expectile: Tensor
    temperature: Tensor
    weight_clip: float
    tensor_keys: Any
    deactivate_vmap: bool
    #: Networks of which there may be several, with stacked parameters.
    ensembles: tuple[str, ...] = ()

    def _add_network(
        self,
        name: str,
        network: TensorDictModule | Sequence[TensorDictModule],
        *,
        size: int | None = None,
        delay: bool = False,
    ) -> None:
        """Register a network, or an ensemble: a sequence keeps its initialisation, of one network ``size`` are made.

        Raises:
            ValueError: for a sequence of another length, of several where the loss takes one network, or of networks
                that share parameters.
        """
        if isinstance(network, Sequence):
            given, kind = list(network), name.removesuffix("_network")
            if size is not None and len(given) != size:
                raise ValueError(f"expected {size} {kind} networks, got {len(given)}.")
            if not given:
                raise ValueError(f"{name} must be a network or a sequence of at least one, got an empty sequence.")
            if len(given) > 1 and name not in self.ensembles:
                raise ValueError(f"{type(self).__name__} takes one {name}, got a sequence of {len(given)}.")
            if len(given) > 1:
                _check_apart(name, given)
            network, size = given[0] if len(given) == 1 else given, len(given)
        elif size is not None and size > 1:
            _check_apart(name, [network])
            network = _redrawn(network, size)
        self.convert_to_functional(network, name, None if size == 1 else size, create_target_params=delay)

    def _for_actor(self, inputs: TensorDictBase) -> TensorDictBase:
        """What the score or Q of an actor's loss reads: its gradient stops before a shared encoder."""
        return inputs if self.encoder_network is None else inputs.detach()

    def _seen(self, inputs: TensorDictBase) -> TensorDictBase:
        """What the actor reads: vectors of a shared encoder, before which its gradient stops or not, or pictures."""
        keys = self.actor_network.in_keys
        if self.encoder_network is None or self.actor_sight == "trained":
            return inputs.select(*keys)
        return inputs[PICTURES].select(*keys) if self.actor_sight == "own" else inputs.select(*keys).detach()

    def _call(
        self, name: str, inputs: TensorDictBase, out_key: NestedKey, params: TensorDictBase | None = None
    ) -> Tensor:
        """``out_key`` of a network, ``[*B]``, or of each member of an ensemble, ``[members, *B]``.

        A trailing dimension of 1 is dropped; ``params`` are by default the current ones.
        """
        network: TensorDictModule = getattr(self, name)
        params = getattr(self, f"{name}_params") if params is None else params

        def output(member: TensorDictBase | Entries) -> Tensor:
            with lent(network, member):
                return output_of(network, inputs, out_key).squeeze(-1)

        if not params.ndim:
            return output(params)[None] if name in self.ensembles else output(params)
        if self.deactivate_vmap:
            # a plain loop and not torchrl's pseudo-vmap, which makes torch.compile recompile on every call
            return torch.stack([output(member) for member in members(params)])
        entries = _entries(params)
        each = torch.vmap(lambda *own: output(dict(zip(entries, own))), randomness=self.vmap_randomness)
        return each(*entries.values())

    def _policy_action(self, inputs: TensorDictBase, params: TensorDictBase | None = None) -> Tensor:
        """Deterministic action of the policy (the forward of a loss runs in deterministic mode), ``[*B, A]``."""
        with lent(self.actor_network, self.actor_network_params if params is None else params):
            return self.actor_network(self._seen(inputs))[self.tensor_keys.action]

    def _trained_action(self, inputs: TensorDictBase) -> Tensor:
        """:meth:`_policy_action` where the actor learns by its gradient, ``[*B, A]``.

        Raises:
            ValueError: if the action has none, as one of a distribution over discrete actions.
        """
        action = self._policy_action(inputs)
        if not torch.compiler.is_compiling() and torch.is_grad_enabled() and not action.requires_grad:
            entries = self.actor_network_params.values(True, True)
            if any(entry.requires_grad for entry in entries if isinstance(entry, Tensor)):
                raise ValueError(
                    f"{type(self).__name__} trains its actor through the action of the policy, and that of this "
                    "actor_network has no gradient, as with discrete actions: take a likelihood instead "
                    "(regression='nll', or actor='awr'), or a loss that has one."
                )
        return action

    def _distribution(self, inputs: TensorDictBase) -> torch.distributions.Distribution:
        """Action distribution of the current policy."""
        with lent(self.actor_network, self.actor_network_params):
            return self.actor_network.get_dist(self._seen(inputs))

    def _action_range(self, like: Tensor) -> tuple[Any, Any]:
        """Smallest and largest action as actions are, those that the actor tells, ``[A]`` or 0-d each, or -1 and 1."""
        bounds = _own_bounds(self.actor_network, self.actor_network_params, self.tensor_keys.action)
        low, high = (self._lowest_action, self._highest_action) if bounds is None else bounds
        return (-1.0, 1.0) if low is None or high is None else (low.to(like), high.to(like))

    def _keep_stated_bounds(self) -> None:
        """Keeps what an actor states of its actions as buffers, which go where the loss goes; no part of its state."""
        actor = getattr(self, "actor_network", None)
        bounds = None if actor is None else stated_bounds(actor, self.tensor_keys.action)
        for name, bound in zip(("_lowest_action", "_highest_action"), bounds or (None, None)):
            self.register_buffer(name, None if bound is None else bound.clone(), persistent=False)

    def _make_vmap(self) -> None:
        """What TorchRL asks for after a change of ``vmap_randomness``, which is found out before it is traced."""
        _ = self.vmap_randomness

    def train(self, mode: bool = True) -> Networks:
        """Sets the mode of the loss and of its functional networks, which TorchRL's own method does not reach."""
        super().train(mode)
        for network in vars(self).values():
            if isinstance(network, nn.Module):
                network.train(mode)
        return self


def inputs_of(rows: TensorDictBase, in_keys: Iterable[NestedKey], replaced: Replaced | None = None) -> TensorDict:
    """Inputs of a network under their names at the root, some of them replaced.

    Raises:
        ValueError: for a replaced entry that the network does not read: it would be left out in silence.
    """
    _check_read(in_keys, replaced)
    out = TensorDict({}, batch_size=rows.batch_size)
    for key in in_keys:
        out.set(key, replaced[key] if replaced and key in replaced else rows[key])
    return out


def _check_read(in_keys: Iterable[NestedKey], replaced: Iterable[NestedKey] | None) -> None:
    for key in replaced or ():
        if key not in in_keys:
            raise ValueError(
                f"a network was to read another {key!r} than the batch has, and reads {', '.join(map(repr, in_keys))}: "
                "name the entry by set_keys as the networks do, for example set_keys(desired_goal='goal')."
            )


def inputs_after(
    rows: TensorDictBase, in_keys: Iterable[NestedKey], keys: Any, replaced: Replaced | None = None
) -> TensorDict:
    """:func:`inputs_of` at the next state, with the goal of the root: a transition and its successor pursue the same.

    Args:
        rows: has what changes with the step under ``next``.
        in_keys: of the network.
        keys: ``tensor_keys`` of the loss, with ``action`` and ``desired_goal``.
        replaced: entries in place of those of ``rows``; for the action there is no other.

    Raises:
        ValueError: see :func:`inputs_of`.
    """
    _check_read(in_keys, replaced)
    out = TensorDict({}, batch_size=rows.batch_size)
    for key in in_keys:
        if replaced and key in replaced:
            out.set(key, replaced[key])
        else:
            stays = key in (keys.action, keys.desired_goal)
            out.set(key, rows[key if stays else unravel_key(("next", key))])
    return out


def state_keys(in_keys: Iterable[NestedKey], keys: Any) -> list[NestedKey]:
    """Those inputs that change with the step."""
    return [key for key in in_keys if key not in (keys.action, keys.desired_goal)]


def next_keys(in_keys: Iterable[NestedKey], keys: Any) -> list[NestedKey]:
    """Where they are read after the step."""
    return [unravel_key(("next", key)) for key in state_keys(in_keys, keys)]


def _check_apart(name: str, networks: Sequence[nn.Module]) -> None:
    """Refuses members of an ensemble that share parameters, between them or within: stacked, each place has its own."""
    owned = [{id(parameter) for parameter in network.parameters()} for network in networks]
    if len(set().union(*owned)) < sum(map(len, owned)):
        raise ValueError(
            f"the {len(networks)} networks of {name} share parameters, which would not be trained: give each its own. "
            "An encoder that several networks read is given by share_encoder."
        )
    for network, own in zip(networks, owned):
        if len([*network.named_parameters(remove_duplicate=False)]) > len(own):
            raise ValueError(
                f"a network of {name} has one parameter in two places, which an ensemble would train apart: give each "
                "place its own, or take one network alone."
            )


def _redrawn(network: TensorDictModule, size: int) -> TensorDictModule | list[TensorDictModule]:
    """Copies of a network, each drawn anew as it draws itself; the network, for TorchRL to redraw, if it cannot."""
    if not all(_draws_itself(child) for child in network.children()) or not any(True for _ in network.parameters()):
        return network
    copies = [copy.deepcopy(network) for _ in range(size)]
    for each in copies:
        each.reset_parameters_recursive()
    return copies


def _draws_itself(module: nn.Module) -> bool:
    """Whether what draws the parameters of a module is its own ``reset_parameters``, and not that of PyTorch's layers.

    These would draw by PyTorch's default what their owner may have drawn otherwise.
    """
    # the class is asked, since a TensorDictModule has whatever its module has
    if hasattr(type(module), "reset_parameters") and not type(module).__module__.startswith("torch.nn."):
        return True
    return not module._parameters and all(_draws_itself(child) for child in module.children())


def at_actor_goal(rows: TensorDictBase, keys: Any, in_keys: Sequence[NestedKey]) -> TensorDictBase:
    """``rows``, which pursue the goals of the actor where it has its own (``keys.actor_goal``).

    Raises:
        ValueError: if it has, and none of ``in_keys``, which the networks read, is that of goals.
    """
    if keys.actor_goal is None:
        return rows
    _check_read(in_keys, [keys.desired_goal])
    own = rows.copy().set(keys.desired_goal, rows[keys.actor_goal])
    pictures = own.get(PICTURES, None)
    if pictures is not None:
        own.set(PICTURES, at_actor_goal(pictures, keys, in_keys))
    return own


def action_bounds(
    actor_network: nn.Module, params: TensorDictBase, action: NestedKey = "action"
) -> tuple[Tensor, Tensor] | None:
    """Smallest and largest action, ``[A]`` or 0-d each.

    They are ``low`` and ``high`` of the part of an actor whose class has both, those of a
    :class:`torchrl.modules.TanhModule`, else :func:`stated_bounds`.

    Args:
        actor_network: of a loss, made functional.
        params: its parameters and buffers; where the bounds are buffers, the network alone does not have them.
        action: where it writes actions.

    Returns:
        Both, or ``None`` for an actor that tells no bounds.
    """
    return _own_bounds(actor_network, params, action) or stated_bounds(actor_network, action)


def stated_bounds(actor_network: Any, action: NestedKey) -> tuple[Tensor, Tensor] | None:
    """Bounds of actions that are no part of an actor's state, ``[A]`` or 0-d each, or ``None``.

    They are ``low`` and ``high`` of the arguments of its distribution, as a :class:`torchrl.modules.TanhNormal` has
    them, else those of the entry for the key ``action`` of its spec, if finite.
    """
    parts = list(actor_network.modules()) if isinstance(actor_network, nn.Module) else []
    for part in parts:
        options = getattr(part, "distribution_kwargs", {}) if isinstance(part, ProbabilisticTensorDictModule) else {}
        if options.get("low") is not None and options.get("high") is not None:
            return torch.as_tensor(options["low"]), torch.as_tensor(options["high"])
    for part in parts:
        spec = part.spec if hasattr(type(part), "spec") else None
        # by its name: a scale has bounds too
        leaf = spec.get(action, None) if isinstance(spec, Composite) else None
        if isinstance(leaf, Bounded) and leaf.ndim == 1 and leaf.low.isfinite().all() and leaf.high.isfinite().all():
            return leaf.low, leaf.high
    return None


def _own_bounds(actor_network: nn.Module, params: TensorDictBase, action: NestedKey) -> tuple[Tensor, Tensor] | None:
    for part in actor_network.modules():
        if isinstance(part, TanhModule) and action in part.out_keys:
            name = action if isinstance(action, str) else "_".join(action)
            with lent(actor_network, params):
                return getattr(part, f"{name}_low"), getattr(part, f"{name}_high")
        # the class is asked, since a module that lacks an attribute takes its time to say so
        if hasattr(type(part), "low") and hasattr(type(part), "high"):
            with lent(actor_network, params):
                low, high = part.low, part.high
            if isinstance(low, Tensor) and isinstance(high, Tensor):
                return low, high
    return None


def constant(params: TensorDictParams) -> TensorDictParams:
    """Detached parameters, through which gradient flows to the inputs of a network alone."""
    # not .detach(), which tensordict caches across .to(), and not .data, which torch.vmap forbids
    return cast("TensorDictParams", params.apply(torch.Tensor.detach))


@contextlib.contextmanager
def lent(network: nn.Module, params: TensorDictBase | Entries) -> Iterator[None]:
    """Within it, ``network`` computes with ``params``; afterwards it has what it had before.

    ``to_module`` serves any module in any state, at 50 to 100 us a call and half the time of tracing a loss; this puts
    tensors where the module reads them. What does not match the module entry by entry is left to ``to_module``.

    Args:
        network: of a loss, made functional.
        params: its parameters and buffers, or one of :func:`members`.
    """
    entries = params if isinstance(params, dict) else _entries(params)
    places = _places_of(network)
    if entries.keys() == places.keys():
        before = []
        try:
            for key, (holder, name) in places.items():
                before.append(holder[name])
                holder[name] = entries[key]
            yield
        finally:
            for (holder, name), entry in zip(places.values(), before):
                holder[name] = entry
        return
    if isinstance(params, dict):
        nested = TensorDict({})
        for key, entry in params.items():
            nested.set(key, entry)
        params = nested
    with params.to_module(network, preserve_module_state=False):  # type: ignore[arg-type]
        yield


def members(params: TensorDictBase) -> Sequence[Entries]:
    """The parameters of each member of an ensemble; those of all are stacked along the first dimension."""
    parts: list[Entries] = [{} for _ in range(params.shape[0])]
    for key, entry in _entries(params).items():
        for part, own in zip(parts, entry.unbind(0)):
            part[key] = own
    return parts


def output_of(network: TensorDictModule, inputs: TensorDictBase, out_key: NestedKey) -> Tensor:
    """``network(inputs)[out_key]``, where ``network`` sees its ``in_keys`` alone.

    A network that does no more than to call its module and to write ``out_key`` is called with tensors: the TensorDicts
    around a small one take longer than the network, and most of the time of tracing it.
    """
    plain = (
        type(network) is TensorDictModule
        and network.out_keys == [out_key]
        and network.method is None
        and not (network._kwargs or network.method_kwargs or network._forward_hooks or network._forward_pre_hooks)
    )
    if not plain:
        return network(inputs.select(*network.in_keys))[out_key]
    out = network.module(*[inputs[key] for key in network.in_keys])
    if isinstance(out, Tensor):
        return out
    return out[0] if isinstance(out, tuple) else out[out_key]


def _entries(params: TensorDictBase) -> Entries:
    """What ``params.items(True, True)`` gives, level by level, without its checks of each entry."""
    found: Entries = {}
    nodes: list[tuple[tuple[str, ...], TensorDictBase]] = [((), params)]
    for path, node in nodes:
        for name, entry in node.items():
            place = (*path, name)
            if isinstance(entry, Tensor):
                found[place] = entry
            else:
                nodes.append((place, entry))
    return found


def _places_of(network: nn.Module) -> dict[tuple[str, ...], _Place]:
    if torch.compiler.is_compiling():
        return _find_places(network)
    places = _places.get(network)
    if places is None:
        places = _places[network] = _find_places(network)
    return places


def _find_places(network: nn.Module) -> dict[tuple[str, ...], _Place]:
    return {
        (*(path.split(".") if path else ()), name): (holder, name)
        for path, module in network.named_modules()
        for holder in (module._parameters, module._buffers)
        for name, entry in holder.items()
        if entry is not None
    }
