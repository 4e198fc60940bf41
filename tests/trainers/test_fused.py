"""The fused update against the plain one, one seed against several, and one graph for all of it."""

from __future__ import annotations

import copy
import functools
import io
import logging
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.utils.parametrizations import spectral_norm
from torchrl.modules import ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate

from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.modules import ConcatMLP, goal_specs, make_contrastive_networks, make_discriminator, make_networks
from torchrl_smore.objectives import (
    ActionableModelsLoss,
    ContrastiveRLLoss,
    ExpectileValueLoss,
    GCIQLLoss,
    GCSLLoss,
    GoFARLoss,
    SMORELoss,
    WGCSLLoss,
)
from torchrl_smore.trainers import ActorPolicy, CheckpointError, FusedUpdate, Update, adam
from torchrl_smore.trainers.stacked import StackedLosses

# tensordict says so whenever torch.vmap meets stacked parameters in a compiled graph
pytestmark = pytest.mark.filterwarnings("ignore:Using lock_:UserWarning")
SPECS = goal_specs(3, 2, 2)
STATISTICS = {"observation": (torch.zeros(3), torch.ones(3))}


def near(achieved_goal, goal):
    return (achieved_goal - goal).norm(dim=-1) <= 0.5


def state(loss):
    """Every parameter, target parameter and coefficient, copied."""
    return {name: value.clone() for name, value in loss.state_dict().items()}


def assert_close(ours, reference, **tolerances):
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(ours[name], value, msg=lambda m, name=name: f"{name}: {m}", **tolerances)


def run(update, updates):
    outs = [{key: value.clone() for key, value in update().items()} for _ in range(updates)]
    return outs, [state(loss) for loss in update.losses]


@pytest.fixture
def make_fused(make_loss, data):
    """Returns a factory of fused updates of small SMORe losses, one for each seed."""

    def make(*seeds, loss_options=None, **options):
        losses = [make_loss(seed, **(loss_options or {})) for seed in seeds]
        options = {"lr": 1e-3, "total_steps": 15, "tau": 0.05, **options}
        return FusedUpdate(losses, GoalBatchSampler(data, 16), seeds=seeds, **options)

    return make


@pytest.fixture
def plain(make_loss, data):
    """Losses, diagnostics and end state of 20 plain updates of seed 1: the schedule ends at the 15th."""
    loss = make_loss(1)
    optimizer, scheduler = adam(loss, lr=1e-3, total_steps=15)
    updater = SoftUpdate(loss, tau=0.05)
    outs, (end,) = run(
        Update(loss, GoalBatchSampler(data, 16, seed=1), optimizer, scheduler=scheduler, target_updater=updater), 20
    )
    return outs, end


# sums in another order, and a quotient of moments that float32 leaves uncertain where gradients nearly vanish
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.mark.parametrize("map_seeds", ["loop", "vmap"])
@pytest.mark.parametrize("seeds", [(1,), (0, 1, 2)], ids=str)
def test_twenty_updates_equal_those_of_the_plain_update(make_fused, plain, seeds, map_seeds):
    update = make_fused(*seeds, map_seeds=map_seeds)
    before = state(update.losses[seeds.index(1)])
    outs, ends = run(update, 20)
    assert_close(ends[seeds.index(1)], plain[1], **CLOSE)
    for ours, reference in zip(outs, plain[0]):
        assert all(value.shape == (len(seeds),) and not value.requires_grad for value in ours.values())
        assert_close({key: value[seeds.index(1)] for key, value in ours.items()}, reference, rtol=1e-3, atol=1e-4)
    # every network and the target moved much farther than the tolerance
    moved = {
        name.split("_params")[0] for name, v in before.items() if (ends[seeds.index(1)][name] - v).abs().max() > 1e-3
    }
    assert {"actor_network", "value_network", "score_network", "target_score_network"} <= moved


def test_the_actor_alone_shrinks_by_its_decay_times_its_rate(make_fused):
    plain, decayed = make_fused(0, total_steps=None), make_fused(0, total_steps=None, actor_weight_decay=20.0)
    before = state(plain.losses[0])
    (without,), (with_decay,) = run(plain, 1)[1], run(decayed, 1)[1]
    of_actor = {name for name, _ in plain.losses[0].named_parameters() if name.startswith("actor_network")}
    assert len(of_actor) == 7  # three layers and the standard deviation
    for name, value in without.items():
        shrunk = 1e-3 * 20.0 * before[name] if name in of_actor else torch.zeros_like(value)
        torch.testing.assert_close(value - with_decay[name], shrunk, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("map_seeds", ["loop", "vmap"])
def test_updates_with_decay_equal_those_of_torchs_optimiser(make_fused, make_loss, data, map_seeds):
    loss = make_loss(1)
    optimizer, scheduler = adam(loss, lr=1e-3, total_steps=15, actor_weight_decay=5.0)
    updater = SoftUpdate(loss, tau=0.05)
    sampler = GoalBatchSampler(data, 16, seed=1)
    _, (reference,) = run(Update(loss, sampler, optimizer, scheduler=scheduler, target_updater=updater), 20)
    ends = run(make_fused(0, 1, map_seeds=map_seeds, actor_weight_decay=5.0), 20)[1]
    assert_close(ends[1], reference, **CLOSE)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_a_decay_that_is_none_is_refused(make_fused, make_loss, decay):
    for make in (lambda: make_fused(0, actor_weight_decay=decay), lambda: adam(make_loss(0), actor_weight_decay=decay)):
        with pytest.raises(ValueError, match=f"actor_weight_decay must be at least 0 and finite, got {decay}"):
            make()


def test_a_decay_of_the_actor_needs_an_actor():
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(8,))
    value = ExpectileValueLoss(networks.value)
    with pytest.raises(ValueError, match=r"actor_weight_decay=0\.1: the loss has no actor"):
        adam(value, actor_weight_decay=0.1)


def test_four_seeds_are_four_runs_with_all_that_the_recipe_can_add(make_quick_update):
    together = run(make_quick_update(0, 1, 2, 3, total_steps=10), 10)[1]
    for seed, own in enumerate(together):
        (alone,) = run(make_quick_update(seed, total_steps=10), 10)[1]
        assert_close(own, alone, rtol=0.0, atol=0.0)


@pytest.fixture
def graphs(monkeypatch):
    """Compiles for real, but for the last stage, which takes minutes; counts graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile

    def compile(function, *, fullgraph, options):
        assert fullgraph
        counter.options = {name: value for name, value in options.items() if name != "guard_filter_fn"}
        return compiled(
            function, fullgraph=True, backend=counter, options={"guard_filter_fn": options["guard_filter_fn"]}
        )

    monkeypatch.setattr(torch, "compile", compile)
    return counter


def test_a_step_is_one_graph_for_all_seeds_and_equals_the_plain_update(make_fused, plain, graphs):
    outs, ends = run(make_fused(0, 1, compile="default"), 20)
    assert graphs.frame_count == 1
    assert not graphs.options.get("max_autotune", False)
    assert_close(ends[1], plain[1], **CLOSE)
    assert_close({key: value[1] for key, value in outs[-1].items()}, plain[0][-1], rtol=1e-3, atol=1e-4)


def test_all_that_the_recipe_can_add_is_in_that_one_graph(make_quick_update, graphs):
    reference = run(make_quick_update(0, 1, total_steps=5), 6)
    outs, ends = run(make_quick_update(0, 1, total_steps=5, compile="default"), 6)
    assert graphs.frame_count == 1
    for ours, expected in zip(ends, reference[1]):
        assert_close(ours, expected, **CLOSE)
    assert_close(outs[-1], reference[0][-1], rtol=1e-3, atol=1e-4)


def test_two_compiled_updates_of_equal_shapes_are_each_of_their_own_loss(data, graphs):
    def end(reduction, compile):
        torch.manual_seed(0)
        loss = GCSLLoss(make_networks(*SPECS, hidden=(8,)).actor, reduction=reduction)
        # the large eps lets the size of a gradient count
        update = FusedUpdate(loss, GoalBatchSampler(data, 16), lr=0.1, total_steps=15, compile=compile)
        update._adam["eps"] = 0.1
        return run(update, 3)[1][0]

    ends, references = ([end(each, mode) for each in ("mean", "sum")] for mode in ("default", "off"))
    assert graphs.frame_count == 2
    for ours, reference in zip(ends, references):
        assert_close(ours, reference, **CLOSE)
    assert any(not torch.allclose(ends[0][name], ends[1][name], atol=1e-3) for name in ends[0])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "map_seeds"), [("default", "vmap"), ("max", "loop")])
def test_inductor_gives_what_eager_gives(data, mode, map_seeds, monkeypatch):
    # the smallest loss that has a schedule: it is the C++ compiler that takes the time
    torch._dynamo.reset()
    asked, compiled = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **how: asked.append(how) or compiled(*args, **how))

    def end(compile):
        losses = [make_baseline("gcsl", seed) for seed in (0, 1)]
        options = {"lr": 1e-3, "total_steps": 15, "map_seeds": map_seeds, "compile": compile}
        return run(FusedUpdate(losses, GoalBatchSampler(data, 16), seeds=(0, 1), **options), 20)[1]

    for ours, reference in zip(end(mode), end("off")):
        assert_close(ours, reference, **CLOSE)
    (how,) = asked
    assert how["fullgraph"]
    assert how["options"].get("max_autotune", False) == (mode == "max")
    if map_seeds == "loop":  # as on every CPU
        # the next run finds the code that PyTorch keeps on disk: three quarters of the time of compilation
        torch._dynamo.reset()
        counters.clear()
        end(mode)
        assert counters["inductor"]["fxgraph_cache_hit"] == 1


def make_baseline(name, seed=0):
    torch.manual_seed(seed)
    networks = make_networks(*SPECS, hidden=(8, 8))
    if name == "gc_iql":
        return GCIQLLoss(networks.actor, networks.score, networks.value)
    if name == "gcsl":
        return GCSLLoss(networks.actor)
    if name == "wgcsl":
        return WGCSLLoss(networks.actor, networks.score[0])
    if name == "wgcsl_original":
        return WGCSLLoss(networks.actor, networks.score[0], threshold="percentile", memory_size=32)
    if name == "gofar":
        return GoFARLoss(networks.actor, networks.value, make_discriminator(SPECS[0]))
    if name == "am":
        return ActionableModelsLoss(networks.actor, networks.score[0])
    if name == "crl":
        critics = make_contrastive_networks(*SPECS, hidden=(8,), latent=4).critic
        return ContrastiveRLLoss(networks.actor, critics)
    if name == "no_target":
        return SMORELoss(networks.actor, networks.score, networks.value, delay_score=False)
    return SMORELoss(networks.actor, networks.score, networks.value, formulation="dual")


KINDS = ("gc_iql", "gcsl", "wgcsl", "crl", "no_target", "dual")
CASES = [(name, map_seeds) for name in KINDS for map_seeds in ("loop", "vmap")]
# those that draw random numbers themselves get them in another order from vmap, and a memory is no function's
CASES += [("gofar", "loop"), ("am", "loop"), ("wgcsl_original", "loop")]


@pytest.mark.parametrize(("name", "map_seeds"), CASES)
def test_every_kind_of_loss_trains_as_in_the_plain_update(data, success, name, map_seeds):
    sampler = functools.partial(
        GoalBatchSampler, data, 16, success=success, extras=("achieved_goal", "goal_offset", "initial_observation")
    )
    tau = None if name in ("gcsl", "crl", "no_target") else 0.05
    ours, loss = make_baseline(name), make_baseline(name)
    # the large eps keeps Adam from blowing up the rounding of gradients near 0
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1, eps=0.1)
    updater = None if tau is None else SoftUpdate(loss, tau=tau)
    torch.manual_seed(0)
    _, (reference,) = run(Update(loss, sampler(), optimizer, target_updater=updater), 3)
    update = FusedUpdate(ours, sampler(), lr=0.1, tau=tau, map_seeds=map_seeds)
    update._adam["eps"] = 0.1
    torch.manual_seed(0)
    _, (end,) = run(update, 3)
    assert_close(end, reference, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(end[n], v) for n, v in make_baseline(name).state_dict().items())


@pytest.mark.parametrize("options", [{"map_seeds": "vmap"}, {"compile": "default"}], ids=str)
def test_a_loss_with_a_memory_is_neither_mapped_nor_compiled(data, success, options):
    sampler = GoalBatchSampler(data, 16, success=success, extras=("goal_offset",))
    with pytest.raises(ValueError, match=r"WGCSLLoss writes buffers of its own .*compile='off' and map_seeds='loop'"):
        FusedUpdate(make_baseline("wgcsl_original"), sampler, **options)
    # nor does auto map its seeds, as it does those of others on a GPU
    for name, mapped in (("wgcsl", True), ("wgcsl_original", False)):
        update = FusedUpdate([make_baseline(name, seed) for seed in (0, 1)], sampler, seeds=(0, 1))
        update.device = torch.device("cuda")
        assert update._choose_vmap("auto") is mapped


def test_what_fails_in_a_loss_is_told_as_in_the_plain_update(data):
    narrow = make_networks(*goal_specs(4, 2, 2), hidden=(8,))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        FusedUpdate(GCSLLoss(narrow.actor), GoalBatchSampler(data, 16))()

    class Doubles(GoalBatchSampler):
        def gather(self, uniform):
            return super().gather(uniform).double()

    with pytest.raises(
        RuntimeError, match=r"GCSLLoss: expected torch\.float32.* found 'observation' of torch\.float64"
    ):
        FusedUpdate(make_baseline("gcsl"), Doubles(data, 16))()


class RewardSampler(GoalBatchSampler):
    """Rewards as an online learner stores them."""

    def gather(self, uniform):
        """Rows with a reward and an end."""
        batch = super().gather(uniform)
        reward = near(batch["next", "achieved_goal"], batch["desired_goal"]).float().unsqueeze(-1)
        after = batch["next"].update({"reward": reward, "done": reward > 0, "terminated": reward > 0})
        return batch.exclude("q").set("next", after)


def make_torchrl_loss(seed=0, gamma=0.9):
    """TorchRL's own IQLLoss, whose value estimator holds gamma as a buffer."""
    torch.manual_seed(seed)
    networks = make_networks(*SPECS, hidden=(8,))
    critics = [
        ValueOperator(ConcatMLP(7, 1, (8,)), in_keys=["observation", "desired_goal", "action"]) for _ in range(2)
    ]
    loss = IQLLoss(networks.actor, critics, networks.value, loss_function="l2")
    loss.make_value_estimator(gamma=gamma)
    return loss


def test_a_loss_of_torchrl_trains_as_in_the_plain_update(data):
    reference, loss, untrained = (make_torchrl_loss() for _ in range(3))
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.1, eps=0.1)
    updater = SoftUpdate(reference, tau=0.05)
    _, (expected,) = run(Update(reference, RewardSampler(data, 16), optimizer, target_updater=updater), 3)
    update = FusedUpdate(loss, RewardSampler(data, 16), lr=0.1, tau=0.05)
    update._adam["eps"] = 0.1
    _, (end,) = run(update, 3)
    assert_close(end, expected, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(end[n], v) for n, v in untrained.state_dict().items())


def test_seeds_of_unequal_discounts_are_refused(data):
    losses = [make_torchrl_loss(gamma=gamma) for gamma in (0.9, 0.8)]
    with pytest.raises(
        ValueError, match=r"_value_estimator\.gamma of loss 1 is 0\.8\d*, of loss 0 0\.\d+; expected them"
    ):
        FusedUpdate(losses, RewardSampler(data, 16), seeds=(0, 1))


def test_on_a_cpu_a_seed_trains_among_others_as_it_does_alone(make_fused):
    _, together = run(make_fused(0, 1), 5)
    for seed, end in enumerate(together):
        _, (alone,) = run(make_fused(seed), 5)
        assert_close(end, alone, rtol=0, atol=0)
    assert not torch.equal(*(end["value_network_params.module.network.layers.0.bias"] for end in together))


def test_without_seeds_the_sampler_is_used_as_it_is(make_loss, data):
    sampler, other = GoalBatchSampler(data, 16, seed=7), GoalBatchSampler(data, 16, seed=7)
    update = FusedUpdate(make_loss(0), sampler, tau=0.05)
    update()
    other.draw()
    assert update.seeds == (0,)
    assert torch.equal(sampler.draw(), other.draw())


@pytest.mark.parametrize("map_seeds", ["loop", "vmap"])
def test_the_modules_stay_in_step_with_the_buffers(make_fused, map_seeds):
    update = make_fused(0, 1, map_seeds=map_seeds)
    policy = ActorPolicy(update.losses[1])
    observation = {"observation": torch.ones(1, 3).numpy(), "desired_goal": torch.ones(1, 2).numpy()}
    before = policy(observation)
    update()
    assert (policy(observation) != before).all()
    # written in place from outside: the next update goes on from there, and for that seed alone
    other = make_fused(5, 6, map_seeds=map_seeds)
    other.losses[0].load_state_dict(update.losses[0].state_dict())
    for row, buffer in (("params", other.params), ("targets", other.targets)):
        for group, flat in buffer.items():
            assert torch.equal(flat[0], getattr(update, row)[group][0])
            assert not torch.equal(flat[1], getattr(update, row)[group][1])


@pytest.mark.parametrize("map_seeds", ["loop", "vmap"])
def test_a_coefficient_changed_on_one_loss_counts_for_that_seed(make_fused, map_seeds):
    changed, kept = make_fused(0, 1, map_seeds=map_seeds), make_fused(0, 1, map_seeds=map_seeds)
    changed.losses[1].expectile = 0.99
    out, reference = changed(), kept()
    assert torch.equal(out["loss_value"][0], reference["loss_value"][0])
    assert out["loss_value"][1] != reference["loss_value"][1]


@pytest.mark.parametrize("map_seeds", ["loop", "vmap"])
def test_a_coefficient_replaced_by_a_tensor_is_read_and_stays_where_it_was(make_fused, map_seeds):
    given, number = make_fused(0, 1, map_seeds=map_seeds), make_fused(0, 1, map_seeds=map_seeds)
    place = given.losses[1].expectile.data_ptr()
    given(), number()
    given.losses[1].expectile, number.losses[1].expectile = torch.tensor(0.99), 0.99
    for ours, theirs in zip(run(given, 2)[0], run(number, 2)[0]):
        assert_close(ours, theirs, rtol=0, atol=0)
    assert given.losses[1].expectile.data_ptr() == place


def test_losses_that_share_a_network_are_refused_before_anything_is_moved(make_loss, data):
    loss, sampler = make_loss(0), GoalBatchSampler(data, 16)
    networks = make_networks(*SPECS, hidden=(4,))
    both = [SMORELoss(networks.actor, networks.score, networks.value) for _ in range(2)]
    with pytest.raises(ValueError, match=r"losses 0 and 1 share (actor|value)_network\S*; expected networks that"):
        FusedUpdate(both, sampler, seeds=(0, 1))
    before = next(loss.parameters()).data_ptr()
    with pytest.raises(ValueError, match="losses 0 and 1 share"):
        FusedUpdate([loss, loss], sampler, seeds=(0, 1))
    assert next(loss.parameters()).data_ptr() == before


@pytest.mark.parametrize("do", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_not_copied(make_fused, do):
    with pytest.raises(TypeError, match="neither copied nor pickled: its buffers are the memory of its losses"):
        do(make_fused(0))


class Normalised(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        first = torch.nn.Linear(5, 4)
        layers = [first, torch.nn.BatchNorm1d(4)] if kind == "BatchNorm1d" else [spectral_norm(first)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(4, 1))

    def forward(self, observation, goal):
        return self.layers(torch.cat([observation, goal], -1))


@pytest.mark.parametrize("kind", ["BatchNorm1d", "_SpectralNorm"])
def test_networks_that_write_their_buffers_train_in_a_loop_alone(kind, data):
    def make(**options):
        networks = make_networks(*SPECS, hidden=(4,))
        value = TensorDictModule(Normalised(kind), ["observation", "desired_goal"], ["state_value"])
        loss = SMORELoss(networks.actor, networks.score, value, deactivate_vmap=True)
        return FusedUpdate(loss, GoalBatchSampler(data, 16), tau=0.05, **options)

    for options in ({"compile": "default"}, {"map_seeds": "vmap"}):
        with pytest.raises(ValueError, match=rf"layers\S* is a {kind}, which writes buffers in every call: Update can"):
            make(**options)
    assert make()()["loss_value"].isfinite()


@pytest.mark.parametrize(
    "damage",
    [lambda saved: [], lambda saved: [None, None], lambda saved: [{}, {}], lambda saved: saved[:1]],
    ids=["none", "nothing", "empty", "of one seed"],
)
def test_state_without_that_of_its_samplers_changes_nothing(make_fused, damage):
    first, second = make_fused(0, 1), make_fused(0, 1)
    run(first, 2)
    saved = first.state_dict()
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(CheckpointError, match="the checkpoint does not fit this run: update"):
        second.load_state_dict({**saved, "samplers": damage(saved["samplers"])})
    after = second.state_dict()
    for ours, theirs in zip(after["losses"], before["losses"]):
        assert_close(ours, theirs, rtol=0, atol=0)
    assert_close(after["exp_avg"], before["exp_avg"], rtol=0, atol=0)
    assert after["step"] == 0
    assert torch.equal(after["samplers"][1]["generator"], before["samplers"][1]["generator"])


def test_state_comes_back_in_every_bit(make_fused):
    first, second = make_fused(0, 1), make_fused(0, 1)
    run(first, 3)
    run(second, 1)
    saved = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in first.state_dict().items()}
    second.load_state_dict(saved)
    (outs, ends), (others, theirs) = run(first, 3), run(second, 3)
    for ours, reference in zip([*outs, *ends], [*others, *theirs]):
        assert_close(ours, reference, rtol=0, atol=0)
    assert second.step == 6


def test_state_of_other_seeds_is_refused(make_fused):
    with pytest.raises(ValueError, match=r"expected the state of seeds \[0, 2\], got that of \[0, 1\]"):
        make_fused(0, 2).load_state_dict(make_fused(0, 1).state_dict())
    with pytest.raises(ValueError, match=r"expected the state of seeds \[0\], got that of None"):
        make_fused(0).load_state_dict({"loss": {}})


def test_frozen_parameters_stay_and_the_rest_trains(make_loss, data):
    loss = make_loss(0)
    frozen = loss.value_network_params.get(("module", "network", "layers", "0", "weight"))
    frozen.requires_grad_(False)
    before = state(loss)
    FusedUpdate(loss, GoalBatchSampler(data, 16), lr=0.1, tau=0.05)()
    after = state(loss)
    name = "value_network_params.module.network.layers.0"
    assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])
    assert not torch.equal(after[f"{name}.bias"], before[f"{name}.bias"])


def test_a_cuda_graph_is_refused_on_a_cpu(make_fused):
    with pytest.raises(RuntimeError, match="cuda_graph=True cannot run on cpu: a CUDA graph records work of a CUDA"):
        make_fused(0, cuda_graph=True)


def test_the_choice_of_auto_is_logged(make_fused, caplog):
    with caplog.at_level(logging.INFO, logger="torchrl_smore"):
        make_fused(0, 1)
    assert "trains 2 seeds one after the other (loop) on cpu" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"compile": "fast"}, ValueError, "compile mode 'fast'"),
        ({"map_seeds": "bmm"}, ValueError, "map_seeds 'bmm'"),
        ({"seeds": (0,)}, ValueError, r"for each of 2 losses, got \(0,\)"),
        ({"seeds": (3, 3)}, ValueError, r"a seed of its own for each of 2 losses, got \(3, 3\)"),
        ({"seeds": None}, ValueError, "for each of 2 losses"),
        ({"tau": 0.0}, ValueError, r"tau must lie in \(0, 1\], got 0.0"),
        ({"tau": 1.5}, ValueError, r"tau must lie in \(0, 1\], got 1.5"),
        ({"lr": -0.1}, ValueError, "lr must be at least 0 and finite, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be at least 0 and finite, got nan"),
        ({"total_steps": 0}, ValueError, "total_steps must be positive, or None for a constant rate, got 0"),
    ],
)
def test_bad_options_are_refused(make_loss, data, options, error, said):
    with pytest.raises(error, match=said):
        FusedUpdate([make_loss(0), make_loss(1)], GoalBatchSampler(data, 4), **{"seeds": (0, 1), **options})


def test_a_sampler_in_one_part_is_refused(make_loss):
    with pytest.raises(
        TypeError, match=r"needs a sampler with draw, gather and with_seed .* got function; Update takes"
    ):
        FusedUpdate(make_loss(0), lambda: TensorDict({}))


def test_losses_that_cannot_be_stacked_are_refused(make_loss):
    with pytest.raises(ValueError, match="at least one loss"):
        StackedLosses([])
    with pytest.raises(ValueError, match="loss 1 differs from loss 0 in target_score_network_params"):
        StackedLosses([make_loss(0), make_loss(0, delay_score=False)])
    with pytest.raises(ValueError, match=r"must be float32, got torch\.float64"):
        StackedLosses([make_loss(0).double()])
    frozen = make_loss(0)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters to train"):
        StackedLosses([frozen])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0.5}, r"objective\.gamma of loss 1 is 0\.5, of loss 0 0\.99"),
        ({"beta": 0.25}, r"objective\.beta of loss 1 is 0\.25"),
        ({"divergence": "kl"}, r"objective\.divergence\.name of loss 1 is 'kl'"),
        ({"residual_coef": 3.0}, r"objective\.residual_coef of loss 1 is 3\.0"),
        ({"weight_clip": 0.01}, r"weight_clip of loss 1 is 0\.01, of loss 0 100\.0"),
        ({"reduction": "sum"}, r"reduction of loss 1 is 'sum', of loss 0 'mean'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_losses_of_other_options_are_refused(make_loss, options, said):
    with pytest.raises(ValueError, match=said):
        StackedLosses([make_loss(0), make_loss(1, **options)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip": 2.0}, r"actor_network\..*module\.clip of loss 1 is 2\.0, of loss 0 5\.0"),
        ({"contamination": 0.2}, r"distribution_kwargs\.contamination of loss 1 is 0\.2, of loss 0 0\.1"),
        ({"min_std": 0.1}, r"min_std of loss 1 is 0\.1"),
        ({"precision": "bf16"}, "precision of loss 1 is 'bf16', of loss 0 'float32'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_networks_of_other_options_are_refused(data, options, said):
    losses = []
    for own in ({}, options):
        networks = make_networks(*SPECS, **{"hidden": (8,), "contamination": 0.1, "statistics": STATISTICS, **own})
        losses.append(SMORELoss(networks.actor, networks.score, networks.value))
    with pytest.raises(ValueError, match=said):
        StackedLosses(losses)


def test_what_a_loss_has_worked_out_or_who_updates_its_targets_is_no_difference(data):
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks = make_networks(*SPECS, hidden=(8,))
        qvalue = ValueOperator(ConcatMLP(5, 1, (8,)), in_keys=["observation", "action"])
        value = ValueOperator(ConcatMLP(3, 1, (8,)), in_keys=["observation"])
        losses.append(IQLLoss(networks.actor, qvalue, value, deactivate_vmap=True))
    assert losses[0].in_keys
    SoftUpdate(losses[0], tau=0.05)
    StackedLosses(losses)


class Owned(torch.nn.Linear):
    """Reaches its network through a list, and keeps what it was called with."""

    def forward(self, x):
        self.last = x.detach()
        return super().forward(x)


def owned(layer):
    new = Owned(layer.in_features, layer.out_features)
    new.owner = [torch.nn.Sequential(new)]
    return new


def compiled_layer(layer):
    layer.compile(backend="eager")
    return layer


@pytest.mark.parametrize(
    "wrapped",
    [torch.nn.utils.parametrizations.weight_norm, torch.compile, compiled_layer, owned],
    ids=["parametrised", "compiled", "compiled in place", "owned"],
)
def test_networks_that_pytorch_changes_one_by_one_are_equal(data, wrapped):
    losses = []
    for _ in range(2):
        networks = make_networks(*SPECS, hidden=(8,))
        layers = networks.value.module.layers
        layers[0] = wrapped(layers[0])
        losses.append(SMORELoss(networks.actor, networks.score, networks.value, delay_score=False))
    losses[0].value_loss(GoalBatchSampler(data, 4)())
    StackedLosses(losses)


def test_numbers_and_collections_are_compared_by_value(make_loss):
    StackedLosses([make_loss(0, weight_clip=100), make_loss(1, weight_clip=100.0)])


def test_coefficients_are_those_of_each_loss(make_loss, data):
    losses = [make_loss(0), make_loss(1, expectile=0.2, temperature=0.5)]
    update = FusedUpdate(losses, GoalBatchSampler(data, 16), seeds=(0, 1), tau=0.05)
    alone = FusedUpdate(make_loss(1, expectile=0.2, temperature=0.5), GoalBatchSampler(data, 16), seeds=(1,), tau=0.05)
    for _ in range(3):
        assert_close(update()[1].to_dict(), alone()[0].to_dict(), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_an_update_of_what_no_gradient_can_be_taken_says_so(make_loss, data, kind):
    def step(loss):
        sampler = GoalBatchSampler(data, 8)
        return FusedUpdate(loss, sampler) if kind == "fused" else Update(loss, sampler, adam(loss)[0])

    with pytest.raises(ValueError, match=r"losses that are scalars, got shapes .*'loss_actor': \[8\].*reduction"):
        step(make_loss(reduction="none", scalar_output_mode="exclude", delay_score=False))()
    loss = make_loss(delay_score=False)
    loss.select_out_keys("score")
    with pytest.raises(ValueError, match=r"a loss with loss_\* entries, got one that writes \['score'\]"):
        step(loss)()


def test_networks_that_share_a_parameter_are_refused():
    networks = make_networks(*SPECS, hidden=(8,))
    networks.value.module.layers[0].weight = networks.actor[0].module.trunk.layers[0].weight
    loss = SMORELoss(networks.actor, networks.score, networks.value)
    with pytest.raises(ValueError, match="are one parameter; expected networks that share none"):
        StackedLosses([loss])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("map_seeds", ["loop", "vmap"])
def test_a_captured_step_equals_the_eager_one(make_loss, data, map_seeds):
    def saved(update):
        file = io.BytesIO()
        torch.save(update.state_dict(), file)
        file.seek(0)
        return torch.load(file, weights_only=True, map_location="cpu")

    def end(cuda_graph):
        losses = [make_loss(seed).to("cuda") for seed in (0, 1)]
        options = {"lr": 1e-3, "total_steps": 15, "tau": 0.05, "map_seeds": map_seeds, "cuda_graph": cuda_graph}
        update = FusedUpdate(losses, GoalBatchSampler(data, 16, device="cuda"), seeds=(0, 1), **options)
        first = run(update, 10)
        # loading makes it capture anew, and the generators go on from the saved state
        update.load_state_dict(saved(update))
        return first, run(update, 10)

    for (outs, ends), (others, theirs) in zip(end(True), end(False)):
        for ours, reference in zip([*outs, *ends], [*others, *theirs]):
            assert_close(ours, reference, **CLOSE)
