"""SMORELoss against its formulas written out once more with plain modules, and what is its own among the losses."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import ConcatMLP, goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss

GAMMA, BETA, EXPECTILE, TEMPERATURE = 0.9, 0.3, 0.7, 2.0
KWARGS = {"gamma": GAMMA, "beta": BETA, "expectile": EXPECTILE, "temperature": TEMPERATURE}


def networks(num_score_nets=2, **kwargs):
    specs = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    return make_networks(*specs, hidden=(6,), num_score_nets=num_score_nets, **kwargs)


def plain(built):
    """Copies of the bare modules, before a loss takes their parameters."""
    score = [copy.deepcopy(network.module) for network in built.score]
    head = copy.deepcopy(built.actor.module[0].module)
    return score, copy.deepcopy(built.value.module), head


class Plain:
    """Every quantity of the algorithm as an ordinary function of plain modules: no TensorDict network, no vmap."""

    def __init__(self, built, batch, target_shift):
        self.score, self.value, self.head = plain(built)
        self.targets = copy.deepcopy(self.score)
        with torch.no_grad():
            for network in self.targets:
                for parameter in network.parameters():
                    parameter += target_shift
        self.rho, self.q = batch, batch["q"]

    def at(self, rows):
        s, g, a, after = rows["observation"], rows["desired_goal"], rows["action"], rows["next", "observation"]
        return s, g, a, after

    def losses(self, formulation, bounds, coef=0.25):
        (s, g, a, after), (q_s, q_g, q_a, q_after) = self.at(self.rho), self.at(self.q)
        with torch.no_grad():
            target = (
                torch.minimum(*[t(s, g, a) for t in self.targets])
                if len(self.targets) > 1
                else self.targets[0](s, g, a)
            )
            m, q_m = self.value(after, g).clamp(*bounds), self.value(q_after, q_g).clamp(*bounds)
            policy, q_next_policy = (self.head(*x)[0] for x in ((s, g), (q_after, q_g)))
        value = self.value(s, g)
        difference = target - value
        weight = torch.where(difference > 0, EXPECTILE, 1 - EXPECTILE)
        loss_value = (weight * difference**2).mean()
        loc, scale = self.head(s, g)
        log_prob = (-0.5 * ((a - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1, keepdim=True)
        awr = (TEMPERATURE * difference.detach()).exp().clamp(max=100.0)
        loss_actor = -(awr * log_prob).mean()
        loss_score = 0.0
        for network in self.score:
            score, q_score = network(s, g, a), network(q_s, q_g, q_a)
            y, q_y = GAMMA * m - score, GAMMA * q_m - q_score
            mix = (1 - BETA) * (y**2).mean() + BETA * (q_y**2).mean()
            if formulation == "in_sample":
                part = BETA * (1 - GAMMA) * score.mean() - BETA * q_score.mean() + coef * mix
            elif formulation == "dual":  # Eq. 10
                at_policy = network(s, g, policy).mean()
                after_q = network(q_after, q_g, q_next_policy).mean()
                part = BETA * (1 - GAMMA) * at_policy + BETA * (GAMMA * after_q - q_score.mean()) + coef * mix
            elif formulation == "official":
                part = -q_score.mean() + 1e-4 * score.mean() + 0.5 * (y**2).mean()
            else:
                bellman = (score - (-2 + GAMMA * m)) ** 2
                part = ((q_score - 2 / (1 - GAMMA)) ** 2).mean()
                part = part + (1 - GAMMA) * 1e-4 * (score**2).mean() + 0.5 * bellman.mean()
            loss_score = loss_score + part
        return {"loss_score": loss_score, "loss_value": loss_value, "loss_actor": loss_actor}

    def grads(self, losses):
        sum(losses.values()).backward()
        score = [torch.stack([p.grad for p in twins]) for twins in zip(*[n.parameters() for n in self.score])]
        return score, [p.grad for p in self.value.parameters()], [p.grad for p in self.head.parameters()]


def random_batch(size=8):
    def rows():
        return TensorDict(
            {
                "observation": torch.randn(size, 3),
                "desired_goal": torch.randn(size, 2),
                "action": torch.randn(size, 2),
                ("next", "observation"): torch.randn(size, 3),
            },
            [size],
        )

    return rows().set("q", rows())


@pytest.mark.parametrize("deactivate_vmap", [False, True], ids=["vmap", "loop"])
@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize(
    ("formulation", "coef"),
    [("in_sample", 0.25), ("in_sample", 1.0), ("dual", 1.0), ("official", 0.25), ("official_stable", 0.25)],
)
def test_losses_and_gradients_equal_a_computation_with_plain_modules(formulation, coef, num, deactivate_vmap):
    built, batch = networks(num), random_batch()
    reference = Plain(built, batch, target_shift=0.1)
    loss = SMORELoss(
        built.actor,
        built.score,
        built.value,
        formulation=formulation,
        residual_coef=coef,
        num_score_nets=num,
        deactivate_vmap=deactivate_vmap,
        **KWARGS,
    )
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():
        for target in loss.target_score_network_params.values(True, True):
            target += 0.1
    lower, upper = (-math.inf, math.inf) if loss.score_bounds is None else loss.objective.range
    out = loss(batch)
    expected = reference.losses(formulation, (lower, upper), coef)
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")

    sum(out[key] for key in expected).backward()
    score, value, actor = reference.grads(expected)
    found = {name: parameter.grad for name, parameter in loss.named_parameters()}
    for prefix, grads in (("score", score), ("value", value), ("actor", actor)):
        ours = [grad for name, grad in found.items() if name.startswith(f"{prefix}_network_params")]
        assert len(ours) == len(grads)
        # ours come in alphabetic order of the names: compare by what they hold
        key = lambda g: (g.numel(), g.double().sum().item())  # noqa: E731
        for mine, theirs in zip(sorted(ours, key=key), sorted(grads, key=key)):
            torch.testing.assert_close(mine.reshape(theirs.shape), theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["smore", "smore_dual", "smore_official_stable"])
def test_the_methods_give_the_losses_of_forward_one_by_one(name, build, batch_for):
    loss = build(name)
    batch = batch_for(loss)
    out = loss(batch)
    for key, method in (
        ("loss_value", loss.value_loss),
        ("loss_actor", loss.actor_loss),
        ("loss_score", loss.score_loss),
    ):
        value, metadata = method(batch)
        torch.testing.assert_close(value, out[key])
        assert not any(entry.requires_grad for entry in metadata.values())


def test_the_sequential_order_sees_the_parameters_of_the_steps_before(build, batch_for):
    loss = build("smore")
    batch = batch_for(loss)
    joint = loss(batch)
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss.value_loss(batch)[0].backward()
    optimiser.step()
    assert not torch.equal(loss.actor_loss(batch)[0], joint["loss_actor"])
    assert not torch.equal(loss.score_loss(batch)[0], joint["loss_score"])


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "one_network"])
def test_a_list_keeps_the_initialisation_and_a_single_network_is_resampled(as_list):
    built = networks()
    first = built.score[0].module.layers[0].weight.detach().clone()
    second = built.score[1].module.layers[0].weight.detach().clone()
    loss = SMORELoss(built.actor, built.score if as_list else built.score[0], built.value, delay_score=False)
    weight = loss.score_network_params["module", "layers", "0", "weight"]
    assert weight.shape == (2, *first.shape)
    assert torch.equal(weight[0], first) == as_list
    assert torch.equal(weight[1], second) == as_list
    assert not torch.equal(weight[0], weight[1])
    assert loss(random_batch())["loss_score"].isfinite()


@pytest.mark.parametrize("num", [1, 3])
def test_a_list_of_another_length_is_refused(num):
    built = networks()
    with pytest.raises(ValueError, match=f"expected {num} score networks, got 2"):
        SMORELoss(built.actor, built.score, built.value, num_score_nets=num)


def test_value_and_actor_fit_the_smallest_target_score_and_not_the_live_one(build, batch_for):
    loss = build("smore")
    batch = batch_for(loss)
    before = loss(batch)
    with torch.no_grad():
        # the live scores move the score loss alone, the targets move value and actor alone
        loss.score_network_params["module", "layers", "2", "bias"].add_(1.0)
    live = loss(batch)
    assert torch.equal(live["loss_value"], before["loss_value"])
    assert torch.equal(live["loss_actor"], before["loss_actor"])
    assert not torch.equal(live["loss_score"], before["loss_score"])
    with torch.no_grad():
        loss.target_score_network_params["module", "layers", "2", "bias"][0].add_(1e3)
    one = loss(batch)
    assert one["mean_advantage"] < 100.0  # the other, smaller member rules


def test_targets_without_an_updater_warn_as_upstream_does(build, batch_for):
    loss = build("smore", updater=False)
    with pytest.warns(UserWarning, match="No target network updater"):
        loss(batch_for(loss))
    SoftUpdate(loss, tau=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(batch_for(loss))


def test_without_delay_the_targets_are_the_live_scores_and_no_updater_is_possible(build, batch_for):
    loss = build("smore_no_target")
    delayed = build("smore")
    delayed.load_state_dict(loss.state_dict(), strict=False)
    delayed.target_score_network_params.data.update_(loss.score_network_params.data)
    batch = batch_for(loss)
    for key, value in loss(batch).items():
        torch.testing.assert_close(value, delayed(batch)[key])
    assert not any("target" in name for name in loss.state_dict())
    with pytest.raises((RuntimeError, ValueError)):
        SoftUpdate(loss, tau=0.1)


def test_a_deep_copy_is_independent(build, batch_for, total):
    loss = build("smore_no_target")
    other = copy.deepcopy(loss)
    batch = batch_for(loss)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert loss(batch)["loss_score"] != 0.0
    assert other(batch)["loss_score"] == 0.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"formulation": "insample"}, "unknown formulation"),
        ({"divergence": "chi"}, "unknown divergence"),
        ({"beta": 0.0}, "beta must lie"),
        ({"gamma": 1.0}, "gamma must lie"),
        ({"expectile": 1.0}, r"expectile must lie in \(0, 1\), got 1.0"),
        ({"temperature": -1.0}, "temperature must not be negative, got -1.0"),
        ({"temperature": math.nan}, "temperature must not be negative"),
        ({"weight_clip": 0.0}, "weight_clip must be positive, got 0.0"),
        ({"score_bounds": (1.0, 1.0)}, "lower < upper"),
        ({"score_bounds": "automatic"}, "score_bounds must be 'auto', None or"),
    ],
    ids=str,
)
def test_bad_options_are_refused_when_the_loss_is_built(kwargs, message):
    built = networks()
    with pytest.raises(ValueError, match=message):
        SMORELoss(built.actor, built.score, built.value, **kwargs)


def test_a_deterministic_actor_is_refused():
    built = networks()
    with pytest.raises(TypeError, match="must be stochastic"):
        SMORELoss(built.value, built.score, built.value)


def test_a_key_that_a_part_and_the_whole_read_has_one_name(build):
    whole = vars(build("smore").default_keys())
    shared = {
        name for part in ("value", "actor", "score") for name in vars(build(part).default_keys()) if name in whole
    }
    assert shared == {"action", "desired_goal", "q", "score", "value", "priority_weight"}
    for part in ("value", "actor", "score"):
        for name, key in vars(build(part).default_keys()).items():
            assert key == whole.get(name, key)


def test_training_on_one_batch_lowers_the_score_loss_and_keeps_the_scores_in_range(build, batch_for, total):
    loss = build("smore", gamma=0.5)
    batch = batch_for(loss, 64)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    history = []
    for _ in range(60):
        out = loss(batch)
        optimiser.zero_grad()
        total(out).backward()
        optimiser.step()
        history.append(out["loss_score"].item())
    assert history[-1] < history[0]
    assert out["score_outside"] < 0.5


@pytest.mark.parametrize("name", ["smore", "gciql"])
def test_the_actor_pursues_goals_of_its_own_and_score_and_value_do_not_see_them(name, build, batch_for):
    keyed = build(name)
    batch = batch_for(keyed)
    shared = keyed(batch)
    other = batch["desired_goal"] + 1.0
    # the same loss on rows whose goal is the actor's, for the actor alone
    expected = keyed(batch.clone().set("desired_goal", other))["loss_actor"]

    keyed.set_keys(actor_goal="actor_goal")
    assert "actor_goal" in keyed.in_keys
    out = keyed(batch.clone().set("actor_goal", other))
    torch.testing.assert_close(out["loss_actor"], expected)
    assert not torch.isclose(out["loss_actor"], shared["loss_actor"])
    for key in ("loss_value", "loss_score" if name == "smore" else "loss_qvalue"):
        torch.testing.assert_close(out[key], shared[key])
    loss_actor, _ = keyed.actor_loss(batch.clone().set("actor_goal", other))
    torch.testing.assert_close(loss_actor, expected)


@pytest.mark.parametrize("name", ["smore", "gciql"])
@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_in_horizons_a_temperature_is_that_many_times_one_less_gamma(name, kernels, build, batch_for):
    outs = []
    for options in ({"temperature": 30.0, "advantage_unit": "horizon"}, {"temperature": 3.0}):
        torch.manual_seed(0)
        loss = build(name, gamma=0.9, kernels=kernels, **options)
        outs.append(loss(batch_for(loss)))
    torch.testing.assert_close(outs[0]["loss_actor"], outs[1]["loss_actor"])
    torch.testing.assert_close(outs[0]["awr_weight"], outs[1]["awr_weight"])
    # what is reported is in the unit that the temperature multiplies
    torch.testing.assert_close(outs[0]["mean_advantage"], 0.1 * outs[1]["mean_advantage"])
    torch.testing.assert_close(outs[0]["loss_value"], outs[1]["loss_value"])


@pytest.mark.parametrize("name", ["actor", "action_free_actor", "gofar_awr"])
def test_every_loss_with_a_temperature_takes_it_in_horizons(name, build, batch_for):
    outs = []
    for options in ({"temperature": 20.0, "advantage_unit": "horizon"}, {"temperature": 4.0}):
        torch.manual_seed(0)
        loss = build(name, gamma=0.8, **options)
        torch.manual_seed(1)  # GoFAR's gradient penalty draws
        outs.append(loss(batch_for(loss)))
    for key in set(outs[0].keys()) - {"mean_advantage"}:
        torch.testing.assert_close(outs[0][key], outs[1][key])
    torch.manual_seed(0)
    loss = build(name, gamma=0.8, temperature=4.0, advantage_unit="horizon")
    torch.manual_seed(1)
    assert not torch.isclose(loss(batch_for(loss))["loss_actor"], outs[1]["loss_actor"])


@pytest.mark.parametrize("name", ["actor", "smore", "action_free_actor", "gciql", "gofar_awr"])
def test_an_unknown_unit_of_the_advantage_is_refused(name, build):
    with pytest.raises(ValueError, match=r"unknown advantage_unit 'horizons'.*'horizon'"):
        build(name, advantage_unit="horizons")


def test_what_does_not_read_goal_transitions_does_without_them(build, batch_for):
    loss = build("smore")
    batch = batch_for(loss)
    alone = batch.exclude("q")
    for method in (loss.value_loss, loss.actor_loss):
        assert torch.equal(method(alone)[0], method(batch)[0])
    assert torch.equal(loss.advantage(alone), loss.advantage(batch))
    for method in (loss.score_loss, loss):
        with pytest.raises(KeyError, match=r"SMORELoss reads goal transitions under 'q', .* a nested TensorDict"):
            method(alone)


@pytest.mark.parametrize("reader", ["score", "actor"])
def test_the_dual_reads_after_goal_transitions_what_score_or_actor_alone_read(reader):
    built = networks()
    state = ["observation", "desired_goal"]
    score, wide = ["observation", "action"], ["observation", "desired_goal", "extra", "action"]
    nets = [
        TensorDictModule(
            ConcatMLP(9 if reader == "score" else 5, 1, (6,)), wide if reader == "score" else score, ["score"]
        )
        for _ in range(2)
    ]
    value = TensorDictModule(ConcatMLP(3, 1, (6,)), ["observation"], ["state_value"])
    loss = SMORELoss(built.actor, nets, value, formulation="dual", delay_score=False)
    assert built.actor.in_keys == state

    def rows():
        after = {"observation": torch.randn(8, 3), "extra": torch.randn(8, 2)}
        root = {"observation": torch.randn(8, 3), "extra": torch.randn(8, 2), "action": torch.randn(8, 2)}
        return TensorDict({**root, "desired_goal": torch.randn(8, 2), "next": after}, [8])

    batch = rows().set("q", rows())
    expected = loss(batch)
    chosen = batch.select(*loss.in_keys)
    assert (("q", "next", "extra") in loss.in_keys) == (reader == "score")
    torch.testing.assert_close(loss(chosen)["loss_score"], expected["loss_score"])
    given = {key.replace(".", "_"): entry for key, entry in chosen.flatten_keys(".").items()}
    torch.testing.assert_close(loss(**given), tuple(expected[key] for key in loss.out_keys))
