"""What every loss owes to TorchRL, checked for each of them alike."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import unravel_key
from torchrl.modules import OneHotCategorical, ProbabilisticActor
from torchrl.objectives.utils import SoftUpdate, ValueEstimators

from torchrl_smore.modules import goal_specs, make_discriminator, make_networks
from torchrl_smore.objectives import (
    AWRActorLoss,
    ExpectileValueLoss,
    GCIQLLoss,
    GCSLLoss,
    GoFARLoss,
    SMORELoss,
    WGCSLLoss,
)

NETWORK_OF = {"loss_score": "score_network", "loss_value": "value_network", "loss_actor": "actor_network"}
NETWORK_OF |= {"loss_qvalue": "qvalue_network", "loss_discriminator": "discriminator_network"}
NETWORK_OF |= {"loss_critic": "critic_network"}
Q = ["q.observation", "q.desired_goal"]
IN_KEYS = {
    "value": ["observation", "desired_goal", "target_score"],
    "actor": ["observation", "desired_goal", "action", "advantage"],
    "score": ["observation", "desired_goal", "action", "next.state_value", *Q, "q.action", "q.next.state_value"],
    "score_dual": [
        *["observation", "desired_goal", "action", "next.state_value", "policy_action"],
        *[*Q, "q.action", "q.next.state_value", "q.next.observation", "q.next.policy_action"],
    ],
    "smore": ["observation", "desired_goal", "action", "next.observation", *Q, "q.action", "q.next.observation"],
    # the official code has no residual on q, so nothing is read after its transitions
    "smore_official": ["observation", "desired_goal", "action", "next.observation", *Q, "q.action"],
    "smore_official_stable": ["observation", "desired_goal", "action", "next.observation", *Q, "q.action"],
    "action_free": ["observation", "desired_goal", "next.observation", *Q, "q.next.observation"],
    "action_free_actor": ["observation", "desired_goal", "next.observation", "action", *Q, "q.next.observation"],
    "action_free_corrected": [
        *["observation", "desired_goal", "next.observation", "mixture_ratio", "action"],
        *[*Q, "q.next.observation", "q.mixture_ratio"],
    ],
}
SGA = ["observation", "desired_goal", "action"]
IN_KEYS |= {
    "gciql_one_q": [*SGA, "next.observation", "next.reward"],
}
TD = [*SGA, "next.observation", "next.reward", "next.terminated"]
IN_KEYS |= {"gciql": TD, "gcsql": TD, "gceql": TD, "gcxql": TD}
WGCSL = [*SGA, "next.observation", "next.reward", "goal_offset"]
IN_KEYS |= {"gcsl": SGA, "gcsl_nll": SGA, "wgcsl": WGCSL, "wgcsl_original": WGCSL}
AM = [*SGA, "next.observation", "next.reward"]
IN_KEYS |= {"am": AM, "am_twins": AM}
CRL = ["observation", "action", "desired_goal"]
IN_KEYS |= {"crl": CRL, "crl_balanced": CRL, "crl_infonce": CRL, "crl_awr": CRL}
CRL_TD = [*CRL, "next.observation", "next.achieved_goal"]
IN_KEYS |= {"crl_td": CRL_TD, "crl_td_bounds": CRL_TD}
GOFAR = [*SGA, "next.observation"]
IN_KEYS |= {
    "gofar": [*GOFAR, "initial_observation", "achieved_goal"],
    "gofar_kl": [*GOFAR, "initial_observation", "achieved_goal"],
    "gofar_binary": [*GOFAR, "initial_observation", "next.reward"],
    "gofar_awr": [*GOFAR, "achieved_goal"],
}


def loss_keys(out):
    return [key for key, _ in out.items() if key.startswith("loss_")]


def has_q(batch):
    return batch.get("q", None) is not None


def dotted(keys):
    return [key if isinstance(key, str) else ".".join(key) for key in keys]


def arguments(batch):
    return {key.replace(".", "_"): value for key, value in batch.flatten_keys(".").items()}


def assert_same(out, other):
    assert list(out.keys()) == list(other.keys())
    for key, value in out.items():
        torch.testing.assert_close(value, other[key], msg=lambda m, key=key: f"{key}: {m}")


def test_reset_parameters_recursive_changes_every_parameter(case, build):
    loss = build(case)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += 1000.0
    old = {name: parameter.clone() for name, parameter in loss.named_parameters()}
    loss.reset_parameters_recursive()
    for name, parameter in loss.named_parameters():
        assert (parameter != old[name]).all(), name


def test_a_reset_ensemble_has_the_scale_of_a_fresh_network(build):
    loss = build("smore")
    before = {name: p.abs().max().item() for name, p in loss.named_parameters()}
    loss.reset_parameters_recursive()
    for name, p in loss.score_network_params.flatten_keys(".").items():
        fan_in = p.shape[-1] if "weight" in name else None
        assert not torch.equal(p[0], p[1])
        if fan_in:
            assert 0.5 / fan_in**0.5 < p.abs().max().item() <= 1.0 / fan_in**0.5
    assert before.keys() == dict(loss.named_parameters()).keys()


def test_each_sub_loss_reaches_the_parameters_of_its_own_network_and_of_no_other(case, build, batch_for):
    loss = build(case)
    out = loss(batch_for(loss))
    for key in loss_keys(out):
        loss.zero_grad()
        out[key].backward(retain_graph=True)
        for name, parameter in loss.named_parameters():
            reached = parameter.grad is not None and bool((parameter.grad != 0).any())
            # a ReLU may be dead on this batch, but the output bias never is
            own = name.startswith(f"{NETWORK_OF[key]}_params")
            assert own or not reached, f"{key} reaches {name}"
            # where the actor climbs the score at its mode, its standard deviation is not trained
            spread = name.endswith("log_std") and getattr(loss, "actor", None) != "score"
            if own and (name.endswith("layers.2.bias") or spread):
                assert reached, f"{key} does not reach {name}"


def test_outputs_are_the_out_keys_and_diagnostics_carry_no_gradient(case, build, batch_for):
    loss = build(case)
    out = loss(batch_for(loss))
    assert list(loss.out_keys) == list(out.keys())
    assert out.batch_size == torch.Size([])
    for key, value in out.items():
        assert value.shape == torch.Size([])
        assert value.isfinite(), key
        assert value.requires_grad == key.startswith("loss_"), key


def test_in_keys_are_an_ordered_list_without_repetition(case, build):
    keys = build(case).in_keys
    assert isinstance(keys, list)
    assert len(keys) == len(set(keys))
    name = "smore" if case not in IN_KEYS and case.startswith("smore") else case
    assert dotted(keys) == IN_KEYS.get(name, dotted(keys))


def test_in_keys_do_not_depend_on_the_hash_seed(python, build):
    script = (
        "import json, torchrl_smore.objectives as o; from torchrl_smore.modules import goal_specs, make_networks;"
        "n = make_networks(*goal_specs(3, 2, 2), hidden=(6,));"
        "l = o.SMORELoss(n.actor, n.score, n.value, formulation='dual');"
        "print(json.dumps([l.in_keys, l.out_keys]))"
    )
    done = python("-c", script)
    assert done.status == 0, done.stderr
    printed = done.stdout
    loss = build("smore", formulation="dual")
    assert json.loads(printed.splitlines()[-1]) == json.loads(json.dumps([loss.in_keys, loss.out_keys]))


def test_keyword_and_positional_calls_equal_the_tensordict_call(case, build, batch_for):
    loss = build(case)
    batch = batch_for(loss)
    expected = loss(batch)
    by_name = loss(**arguments(batch))
    assert len(by_name) == len(loss.out_keys)
    for key, value in zip(loss.out_keys, by_name):
        torch.testing.assert_close(value, expected[key])
    by_position = loss(*(batch.get(key) for key in loss.in_keys))
    torch.testing.assert_close(by_position, by_name)


def test_a_dispatched_batch_whose_size_equals_its_features_is_read_right(case, build, batch_for):
    # 3 rows of 3-dimensional observations: sizes alone do not tell the batch from the features
    loss = build(case)
    batch = batch_for(loss, 3)
    expected = loss(batch)
    torch.testing.assert_close(loss(**arguments(batch)), tuple(expected[key] for key in loss.out_keys))


@pytest.mark.parametrize("size", [1, (2, 3)], ids=str)
def test_one_row_and_two_batch_dimensions_are_fine(case, size, build, batch_for):
    loss = build(case)
    batch = batch_for(loss, size)
    out = loss(batch)
    assert_same(out, loss(batch.reshape(-1)))
    assert_same(out, loss(TensorDict(dict(batch.items()), batch_size=[])))


def test_select_out_keys_filters_both_kinds_of_call(case, build, batch_for):
    loss = build(case)
    batch = batch_for(loss)
    expected = loss(batch)
    first, last = loss.out_keys[0], loss.out_keys[-1]
    loss.select_out_keys(first, last)
    selected = loss(**arguments(batch))
    torch.testing.assert_close(selected, (expected[first], expected[last]))
    # an output named like an input is kept by TensorDict: the mean advantage of AWRActorLoss
    assert set(loss(batch).keys()) - set(loss.in_keys) == {first, last} - set(loss.in_keys)


def accepted_keys(loss):
    return list(loss.default_keys.__dataclass_fields__)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_every_accepted_key_can_be_renamed_and_none_restores_its_default(case, nested, build, batch_for):
    reference = build(case)
    expected = reference(batch_for(reference))
    defaults = vars(reference.default_keys())
    for field in accepted_keys(reference):
        keys = {field: ("deep", f"my_{field}") if nested else f"my_{field}"}
        loss = build(case, keys=keys)
        loss.load_state_dict(reference.state_dict())
        assert getattr(loss.tensor_keys, field) == keys[field]
        batch = batch_for(loss)
        assert_same(loss(batch), expected)
        flat = "_".join(keys[field]) if nested else keys[field]
        if field not in ("priority_weight", "policy_action") and any(
            flat in "_".join(k) for k in map(_t, loss.in_keys)
        ):
            # the loss really reads the renamed entry
            broken = batch.clone()
            for key in loss.in_keys:
                if flat in "_".join(_t(key)):
                    broken.set(key, broken.get(key) + 1.0)
            changed = loss(broken)
            assert any(not torch.equal(changed[key], expected[key]) for key in list(expected.keys())), field
    loss = build(case)
    for field in accepted_keys(loss):
        loss.set_keys(**{field: "other"})
        loss.set_keys(**{field: None})
        assert getattr(loss.tensor_keys, field) == defaults[field]
    assert loss.in_keys == reference.in_keys


def _t(key):
    return key if isinstance(key, tuple) else (key,)


def test_an_unknown_key_is_refused(case, build):
    loss = build(case)
    nearest = next(iter(loss._AcceptedKeys.__dataclass_fields__))
    with pytest.raises(
        ValueError, match=f"not an accepted tensordict key: .*expected one of .*Did you mean '{nearest}'"
    ):
        loss.set_keys(**{f"{nearest}s": "r"})


def test_no_value_estimator_is_supported(case, build):
    loss = build(case)
    for kind in ValueEstimators:
        with pytest.raises(NotImplementedError, match=rf"{type(loss).__name__} has no value estimator: .*gamma"):
            loss.make_value_estimator(kind)


def test_the_input_is_not_mutated_even_when_locked(case, build, batch_for):
    loss = build(case)
    for batch in (batch_for(loss), TensorDict(dict(batch_for(loss).items()), batch_size=[])):
        copy, sizes = batch.clone(), [value.batch_size for value in batch.values() if hasattr(value, "batch_size")]
        batch.lock_()
        for method in [getattr(loss, name) for name in ("forward", "value_loss") if hasattr(loss, name)]:
            method(batch)
        assert set(batch.keys(True)) == set(copy.keys(True))
        assert (batch == copy).all()
        assert sizes == [value.batch_size for value in batch.values() if hasattr(value, "batch_size")]


def test_mean_and_sum_are_those_of_the_unreduced_losses(case, build, batch_for):
    reference = build(case, reduction="none", scalar_output_mode="exclude")
    batch = batch_for(reference)
    rows = reference(batch)
    assert rows.batch_size == batch.batch_size
    assert set(rows.keys()) == {key for key in reference.out_keys if key.startswith("loss_")}
    for reduction in (None, "mean", "sum"):
        loss = build(case, reduction=reduction)
        loss.load_state_dict(reference.state_dict())
        out = loss(batch)
        for key, value in rows.items():
            assert value.shape == batch.batch_size
            expected = value.sum() if reduction == "sum" else value.mean()
            torch.testing.assert_close(out[key], expected, msg=lambda m, key=key: f"{key}: {m}")


def test_unreduced_losses_handle_their_scalars_as_asked(case, build, batch_for):
    with pytest.warns(UserWarning, match="drops its scalar diagnostics"):
        loss = build(case, reduction="none")
    batch = batch_for(loss)
    assert len(loss(**arguments(batch)) if len(loss.out_keys) > 1 else [1]) == len(loss.out_keys)
    kept = build(case, reduction="none", scalar_output_mode="non_tensor")
    kept.load_state_dict(loss.state_dict())
    reduced = build(case)
    reduced.load_state_dict(loss.state_dict())
    out, expected = kept(batch), reduced(batch)
    for key, value in expected.items():
        if not key.startswith("loss_"):
            torch.testing.assert_close(out.get_non_tensor(key), value)
    assert len(kept(**arguments(batch))) == len(kept.out_keys)


def test_a_bad_reduction_is_refused(case, build):
    with pytest.raises(ValueError, match="reduction must be one of none, mean, sum, got 'average'"):
        build(case, reduction="average")


def test_a_bad_scalar_output_mode_is_refused(case, build):
    with pytest.raises(ValueError, match="scalar_output_mode must be one of exclude, non_tensor or None, got 'drop'"):
        build(case, reduction="none", scalar_output_mode="drop")


def test_actions_without_a_dimension_of_their_components_are_refused(case, build, batch_for):
    loss = build(case)
    for key in [key for key in map(unravel_key, loss.in_keys) if key in ("action", ("q", "action"))]:
        batch = batch_for(loss)
        batch[key] = batch[key][..., 0]
        with pytest.raises(ValueError, match=rf"{type(loss).__name__} expects 'action' of shape \[8, A\].* got \[8\]"):
            loss(batch)


@pytest.mark.parametrize(
    "make",
    [
        lambda built, _: AWRActorLoss(built.actor),
        lambda built, _: GCSLLoss(built.actor),
        lambda built, _: GCSLLoss(built.actor, regression="nll"),
        lambda built, discriminator: GoFARLoss(built.actor, built.value, discriminator),
        lambda built, discriminator: GoFARLoss(built.actor, built.value, discriminator, regression="nll"),
    ],
    ids=["awr", "gcsl", "gcsl nll", "gofar", "gofar nll"],
)
def test_actions_that_would_broadcast_are_refused_by_keyword_too(make):
    # no entry but the action tells the batch size, and one of one component is read by no critic
    specs = goal_specs(3, 2, 1)
    loss = make(make_networks(*specs, hidden=(4,)), make_discriminator(specs[0], hidden=(4,)))
    if isinstance(loss, GoFARLoss):
        SoftUpdate(loss, tau=0.1)
    rows = {"observation": torch.randn(5, 3), "desired_goal": torch.randn(5, 2), "action": torch.randn(5, 1)}
    rows |= {"advantage": torch.randn(5, 1), "initial_observation": torch.randn(5, 3)}
    rows |= {"achieved_goal": torch.randn(5, 2), "next_observation": torch.randn(5, 3)}
    read = {"_".join(_t(key)) for key in loss.in_keys}
    given = {name: entry for name, entry in rows.items() if name in read}
    assert all(value.isfinite() for value in loss(**given))
    with pytest.raises(ValueError, match=r"\[\*B, A\]"):
        loss(**{**given, "action": given["action"][:, 0]})


@pytest.mark.parametrize("case", [c for c in IN_KEYS if any(k.startswith("q.") for k in IN_KEYS[c])], indirect=True)
def test_another_number_of_goal_transitions_than_of_rows_is_refused_by_keyword(case, build, batch_for):
    loss = build(case)
    given = arguments(batch_for(loss))
    more = {name: entry.repeat(2, 1) if name.startswith("q_") else entry for name, entry in given.items()}
    said = rf"{type(loss).__name__} reads the batch size \[8\] .*\('q', .* of shape \[16, .*as many goal transitions"
    with pytest.raises(ValueError, match=said):
        loss(**more)


#: Every class that has buffers of its own.
WITH_BUFFERS = {
    "smore": lambda built: SMORELoss(built.actor, built.score, built.value, expectile=0.7, temperature=0.1),
    "value": lambda built: ExpectileValueLoss(built.value, expectile=0.7),
    "actor": lambda built: AWRActorLoss(built.actor, temperature=0.1),
    "gciql": lambda built: GCIQLLoss(built.actor, built.score, built.value, expectile=0.7, temperature=0.1),
    "gofar": lambda built: GoFARLoss(
        *(built.actor, built.value),
        reward="binary",
        actor_weight="expectile_awr",
        expectile=0.7,
        temperature=0.1,
    ),
    "wgcsl": lambda built: WGCSLLoss(built.actor, built.score, threshold="percentile", memory_size=4),
}


def _small_networks():
    return make_networks(*goal_specs(3, 2, 1), hidden=(4,))


@pytest.mark.parametrize("name", WITH_BUFFERS)
def test_coefficients_and_memories_are_where_the_networks_are(name):
    built = _small_networks()
    for network in (built.actor, built.value, *built.score):
        network.to("meta")
    loss = WITH_BUFFERS[name](built)
    assert loss._buffers
    assert {entry.device.type for entry in (*loss.parameters(), *loss.buffers())} == {"meta"}


@pytest.mark.parametrize("name", WITH_BUFFERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_coefficients_are_as_exact_as_the_networks_and_never_less_than_float32(name, dtype):
    built = _small_networks()
    for network in (built.actor, built.value, *built.score):
        network.to(dtype)
    own = {key: entry for key, entry in WITH_BUFFERS[name](built)._buffers.items() if entry is not None}
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert {entry.dtype for entry in own.values() if entry.is_floating_point()} == {exact}
    for coefficient, value in {"expectile": 0.7, "temperature": 0.1}.items():
        if coefficient in own:
            assert own[coefficient].item() == torch.tensor(value, dtype=exact).item()


@pytest.mark.parametrize("trailing", [False, True], ids=["mask_B", "mask_B1"])
def test_a_mask_at_the_root_drops_rows_of_rho_only_even_if_they_hold_nan(case, trailing, build, batch_for, total):
    loss = build(case)
    batch = batch_for(loss)
    mask = torch.tensor([True] * 5 + [False] * 3)
    kept = batch[:5].clone()
    masked = batch.clone()
    for key in loss.in_keys:
        if _t(key)[0] != "q" and masked.get(key).is_floating_point():
            masked.get(key)[5:] = float("nan")
    masked.set(("collector", "mask"), mask[:, None] if trailing else mask)
    out = loss(masked)
    total(out).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert all(value.isfinite() for value in out.values())
    if not has_q(batch):
        assert_close_losses(out, loss(kept))
        return
    # other rows in the dropped places change nothing; q is whole
    full = torch.cat([batch[:5], batch[:3]], 0)
    full["q"] = batch["q"]
    full.set(("collector", "mask"), mask)
    assert_close_losses(loss(full), out)
    small = batch[:5].clone()
    small["q"] = batch["q"][:5]
    both = batch.clone()
    both.set(("collector", "mask"), mask)
    both.set(("q", "collector", "mask"), mask)
    assert_close_losses(loss(both), loss(small))


def test_a_batch_of_dropped_rows_alone_is_nothing_to_learn_from(case, build, batch_for, total):
    loss = build(case)
    batch = batch_for(loss)
    for part in (batch, batch["q"]) if has_q(batch) else (batch,):
        part.set(("collector", "mask"), torch.zeros(8, dtype=torch.bool))
    out = loss(batch)
    assert all(out[key] == 0.0 for key in loss_keys(out))
    total(out).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_an_empty_batch_is_refused(case, build, batch_for):
    loss = build(case)
    with pytest.raises(ValueError, match=rf"{type(loss).__name__} expects at least one row, got batch size \[0\]"):
        loss(batch_for(loss)[:0])


def assert_close_losses(out, other):
    for key in loss_keys(out):
        torch.testing.assert_close(out[key], other[key], msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("case", [c for c in IN_KEYS if any(k.startswith("q.") for k in IN_KEYS[c])], indirect=True)
def test_a_mask_under_q_drops_rows_of_q_only(case, build, batch_for, total):
    loss = build(case)
    batch = batch_for(loss)
    mask = torch.tensor([True] * 5 + [False] * 3)
    masked = batch.clone()
    masked.set(("q", "collector", "mask"), mask)
    # what q holds in the dropped rows does not matter, what rho holds does
    poisoned = masked.clone()
    for key in loss.in_keys:
        if _t(key)[0] == "q":
            poisoned.get(key)[5:] = float("nan")
    out = loss(poisoned)
    assert_close_losses(out, loss(masked))
    total(out).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
    other = masked.clone()
    for key in loss.in_keys:
        if _t(key)[0] != "q":
            other.get(key)[5:] += 1.0
    key = loss_keys(out)[0]
    assert not torch.equal(loss(other)[key], out[key])


def test_the_mask_key_can_be_named_or_switched_off(build, batch_for):
    loss = build("value")
    batch = batch_for(loss)
    full = loss(batch)["loss_value"]
    batch.set(("collector", "mask"), torch.tensor([True] * 5 + [False] * 3))
    loss.loss_mask_key = None
    torch.testing.assert_close(loss(batch)["loss_value"], full)
    loss.loss_mask_key = "valid"
    batch.set("valid", torch.tensor([[True]] * 2 + [[False]] * 6))
    torch.testing.assert_close(loss(batch)["loss_value"], loss(batch[:2])["loss_value"])


@pytest.mark.parametrize("key", ["priority_weight", ("sampler", "weight")], ids=str)
def test_priority_weights_at_the_root_weigh_rho_and_those_under_q_weigh_q(case, key, build, batch_for):
    loss = build(case)
    loss.set_keys(priority_weight=key)
    batch = batch_for(loss)
    plain = loss(batch)
    for column in (False, True):
        ones = batch.clone().set(key, torch.full((8, 1) if column else (8,), 2.0))
        assert_close_losses(loss(ones), plain)
        # a weight of zero drops a row
        weight = torch.tensor([1.0] * 5 + [0.0] * 3)
        weighted = batch.clone().set(key, weight[:, None] if column else weight)
        masked = batch.clone().set(("collector", "mask"), weight.bool())
        assert_close_losses(loss(weighted), loss(masked))
        if has_q(batch):
            weighted = batch.clone()
            weighted.get("q").set(key, weight[:, None] if column else weight)
            masked = batch.clone()
            masked.get("q").set(("collector", "mask"), weight.bool())
            assert_close_losses(loss(weighted), loss(masked))
    loss.use_prioritized_weights = False
    ignored = batch.clone().set(key, torch.rand(8))
    assert_close_losses(loss(ignored), plain)
    loss.use_prioritized_weights = True
    with pytest.raises(KeyError, match=r"was to weigh rows by .*which the batch does not have"):
        loss(batch)


def test_a_masked_row_with_a_nan_weight_is_dropped(build, batch_for):
    loss = build("smore")
    batch = batch_for(loss)
    weight = torch.tensor([1.0] * 7 + [float("nan")])
    weighted = batch.clone().set("priority_weight", weight).set(("collector", "mask"), torch.arange(8) < 7)
    masked = batch.clone().set(("collector", "mask"), torch.arange(8) < 7)
    assert_close_losses(loss(weighted), loss(masked))


def test_a_state_dict_restores_parameters_coefficients_and_outputs(case, build, batch_for):
    loss, other = build(case), build(case)
    if "temperature" in dict(loss.named_buffers()):
        loss.temperature = 1.5
    state = loss.state_dict()
    other.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True)
    batch = batch_for(loss)
    assert_same(other(batch), loss(batch))
    assert list(other.state_dict()) == list(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_kept_and_agree(case, dtype, build, batch_for, total):
    loss = build(case)
    batch = batch_for(loss)
    expected = loss(batch)
    out = loss.to(dtype)(batch.to(dtype))
    total(out).backward()
    for key, value in out.items():
        assert value.dtype == dtype, key
        if dtype == torch.float64:
            torch.testing.assert_close(value.float(), expected[key], rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(value.float(), expected[key], rtol=0.1, atol=0.1)
    assert all(p.grad is None or p.grad.dtype == dtype for p in loss.parameters())


def test_entries_of_another_dtype_than_the_networks_are_named(case, build, batch_for):
    loss = build(case)
    batch = batch_for(loss)
    batch["observation"] = batch["observation"].double()
    said = rf"^{type(loss).__name__}: expected torch.float32, .* found 'observation' of torch.float64: .*\.float\(\)"
    for call in (lambda: loss(batch), lambda: loss(**arguments(batch))):
        with pytest.raises(RuntimeError, match=said) as caught:
            call()
        # torch's own words stay
        assert str(caught.value.__cause__) in str(caught.value)


def test_an_error_of_something_else_is_left_as_it_is(case, build, batch_for, monkeypatch):
    loss = build(case)
    batch = batch_for(loss)
    batch["observation"] = batch["observation"].double()
    error = RuntimeError("no memory is left")

    def fail(rows):
        raise error

    monkeypatch.setattr(loss, "_rows", fail)
    with pytest.raises(RuntimeError) as caught:
        loss(batch)
    assert caught.value is error


def test_schedulable_coefficients_are_buffers_changed_in_place(case, build, batch_for):
    loss = build(case)
    batch = batch_for(loss)
    for name, key in (("temperature", "loss_actor"), ("expectile", "loss_value")):
        if name not in dict(loss.named_buffers()):
            continue
        buffer, before = getattr(loss, name), loss(batch)
        setattr(loss, name, 0.3)
        assert getattr(loss, name) is buffer
        assert buffer.item() == pytest.approx(0.3)
        after = loss(batch)
        assert not torch.equal(after[key], before[key])


def test_no_warning_is_raised_in_a_plain_call(case, build, batch_for):
    loss = build(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(batch_for(loss))


def test_a_missing_entry_is_named(case, build, batch_for):
    loss = build(case)
    for key in loss.in_keys:
        with pytest.raises(KeyError, match=unravel_key(key)[-1] if isinstance(key, tuple) else key):
            loss(batch_for(loss).exclude(key))


@pytest.mark.parametrize("name", ["crl_td", "smore_actor_goal", "gciql_actor_goal"])
def test_a_goal_that_is_replaced_where_no_network_reads_it_is_refused(build, batch_for, name):
    kind, _, own = name.partition("_actor")
    loss, keys = build(kind, keys={"desired_goal": "goal"}), {"actor_goal": "actor_goal"} if own else {}
    loss.set_keys(**keys)
    batch = batch_for(loss)
    assert torch.isfinite(loss(batch)["loss_actor"])
    batch["desired_goal"] = batch["goal"].clone()
    loss.set_keys(desired_goal="desired_goal")
    with pytest.raises(
        ValueError, match=r"was to read another 'desired_goal' .*, and reads .*'goal'.*: name the entry"
    ):
        loss(batch)


@pytest.mark.parametrize("name", ["smore_no_awr", "smore_no_awr_no_expectile", "am", "wgcsl", "crl", "score_dual"])
def test_an_action_that_is_replaced_where_no_network_reads_it_is_refused(build, batch_for, name):
    loss = build(name)
    batch = batch_for(loss)
    # as a score that reads scaled actions beside an actor that writes them as they are
    for part in (batch, batch["q"]) if "q" in batch else (batch,):
        part["scaled"] = part["action"].clone()
    networks = [each for name, each in vars(loss).items() if name in NETWORK_OF.values()]
    for network in networks:
        network.in_keys = ["scaled" if key == "action" else key for key in network.in_keys]
    with pytest.raises(ValueError, match="was to read another 'action'"):
        loss(batch)


@pytest.mark.parametrize("name", ["smore_no_awr", "am", "wgcsl", "gofar", "gcsl"])
def test_an_actor_whose_action_has_no_gradient_is_refused_where_it_learns_by_that(build, batch_for, name):
    loss = build(name)
    batch = batch_for(loss)
    assert loss(batch)["loss_actor"].requires_grad
    whole = loss._policy_action
    loss._policy_action = lambda *inputs: (whole(*inputs) > 0).float()
    with pytest.raises(
        ValueError, match=rf"{type(loss).__name__.removeprefix('Repeatable')}.* has no gradient, as with"
    ):
        loss(batch)
    with torch.no_grad():
        loss(batch)
    # one that is not to learn needs none
    loss.actor_network_params.requires_grad_(False)
    loss(batch)


def test_one_hot_actions_are_learnt_by_their_likelihood_alone():
    torch.manual_seed(0)
    head = TensorDictModule(torch.nn.Linear(4, 3), ["both"], ["logits"])
    both = TensorDictModule(lambda *parts: torch.cat(parts, -1), ["observation", "desired_goal"], ["both"])
    trunk = TensorDictSequential(both, head)
    actor = ProbabilisticActor(trunk, ["logits"], distribution_class=OneHotCategorical)
    batch = TensorDict(
        {
            **{key: torch.randn(8, 2) for key in ("observation", "desired_goal")},
            "action": torch.nn.functional.one_hot(torch.arange(8) % 3, 3).float(),
        },
        [8],
    )
    with pytest.raises(ValueError, match="take a likelihood instead"):
        GCSLLoss(actor)(batch)
    loss = GCSLLoss(actor, regression="nll")
    out = loss(batch)["loss_actor"]
    logits = head.module(torch.cat([batch["observation"], batch["desired_goal"]], -1))
    torch.testing.assert_close(out, torch.nn.functional.cross_entropy(logits, batch["action"].argmax(-1)))
    out.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
