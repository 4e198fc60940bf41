"""Losses, updates and policies whose observations and goals are pictures."""

import copy

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate

from torchrl_smore import SMORELoss
from torchrl_smore.data import PixelBatchSampler
from torchrl_smore.envs import collect, get_task, paint
from torchrl_smore.modules import PixelEncoder, make_pixel_networks
from torchrl_smore.objectives import ContrastiveRLLoss, ContrastiveTDLoss, GCIQLLoss, GCSLLoss
from torchrl_smore.trainers import (
    ActorPolicy,
    FusedUpdate,
    load_policy,
    load_value,
    record_policy,
    save_checkpoint,
)

ACTIONS = Bounded(-1.0, 1.0, (2,))


@pytest.fixture(scope="module")
def store():
    plain = collect("PointReach", expert_episodes=4, random_episodes=4, seed=0, progress=False)
    return paint(plain, get_task("PointReach").painter(36))


def make_loss(name, shared=False, seed=0, **options):
    torch.manual_seed(seed)
    contrastive = name.startswith("crl")
    std = 0.15 if name == "crl_td" else None
    networks = make_pixel_networks(
        ACTIONS,
        pixels=36,
        latent=16,
        hidden=(16,),
        shared=bool(shared),
        own_actor=shared == "critics",
        embeddings=contrastive,
        cold=False,
        std=std,
    )
    if name == "bc":
        loss = GCSLLoss(networks.actor, regression="nll")
        if shared:
            loss.share_encoder(networks.encoder, actor="trained")
        return loss
    if name == "crl_td":
        loss = ContrastiveTDLoss(networks.actor, networks.score, sample_action=False, deactivate_vmap=True)
    elif contrastive:
        value, actor = (networks.value, "awr") if name == "crl_awr" else (None, "ddpgbc")
        loss = ContrastiveRLLoss(networks.actor, networks.score, value, actor=actor, deactivate_vmap=True)
    else:
        kind = {"smore": SMORELoss, "iql": GCIQLLoss}[name]
        loss = kind(networks.actor, networks.score, networks.value, deactivate_vmap=True, **options)
    if shared:
        loss.share_encoder(networks.encoder, actor={True: "frozen", "joint": "trained", "critics": "own"}[shared])
    if contrastive and name != "crl_td":
        return loss
    SoftUpdate(loss, tau=0.005)  # which tells the loss that its targets are looked after
    return loss


def make_sampler(store, name, **options):
    rewards = {"success": "identity", "reward_values": (-1.0, 0.0), "terminate_at_goal": True} if name == "iql" else {}
    return PixelBatchSampler(store, 16, q=name == "smore", crop_prob=0.5, **rewards, **options)


@pytest.mark.parametrize("name", ["bc", "smore", "iql", "crl_td"])
def test_losses_take_pictures_as_they_are(store, name):
    loss = make_loss(name)
    out = loss(make_sampler(store, name)())
    total = sum(value for key, value in out.items() if key.startswith("loss_"))
    assert torch.isfinite(total)
    total.backward()
    encoders = [parameter for key, parameter in loss.named_parameters() if "encoder" in key]
    assert len(encoders) >= 8
    assert all(parameter.grad is not None for parameter in encoders)


@pytest.mark.parametrize("name", ["bc", "smore"])
def test_an_update_goes_on_exactly_from_its_state(store, name):
    def update():
        return FusedUpdate(make_loss(name), make_sampler(store, name), tau=None if name == "bc" else 0.005)

    first, second = update(), update()
    first()
    state = copy.deepcopy(first.state_dict())
    expected = [first() for _ in range(2)]
    second.load_state_dict(state)
    for out in expected:
        found = second()
        for key, value in out.items():
            torch.testing.assert_close(found[key], value, rtol=0.0, atol=0.0)


def test_the_policy_of_a_loss_keeps_pictures_as_they_are(store):
    policy = ActorPolicy(make_loss("bc"))
    frames = store.frames[:3].numpy()
    action = policy({"observation": frames, "desired_goal": frames[::-1]})
    assert action.shape == (3, 2)
    with pytest.raises(ValueError, match=r"expected 2 pictures of uint8, got 0"):
        policy({"observation": frames.astype(np.float64), "desired_goal": frames.astype(np.float64)})


SHARING = ["smore", "smore_score", "iql", "crl", "crl_awr", "crl_td"]


def make_shared(name, **options):
    if name == "smore_score":
        return make_loss("smore", shared=True, actor="score", **options)
    return make_loss(name, shared=True, **options)


def encoder_gradient(loss, out, names):
    """Of the sum of some losses; one number for each parameter of the encoder."""
    parameters = list(loss.encoder_network_params.parameters())
    total = sum(out[name] for name in names)
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    return [0.0 if gradient is None else gradient.abs().sum().item() for gradient in gradients]


@pytest.mark.parametrize("name", SHARING)
def test_a_shared_encoder_is_trained_by_score_and_value_and_not_by_the_actor(store, name):
    loss = make_shared(name)
    out = loss(make_sampler(store, name.partition("_")[0])())
    parts = [key for key, _ in out.items() if key.startswith("loss_") and key != "loss_actor"]
    assert len(parts) == (1 if name in ("crl", "crl_td") else 2)
    for part in parts:
        assert min(encoder_gradient(loss, out, [part])) > 0.0
    assert encoder_gradient(loss, out, ["loss_actor"]) == [0.0] * 16
    actor = list(loss.actor_network_params.parameters())
    gradients = torch.autograd.grad(out["loss_actor"], actor, allow_unused=True)
    # the standard deviation has none where the action is the mean
    assert sum(gradient is not None for gradient in gradients) >= len(actor) - 1


def by_hand(loss, batch):
    """The encoder, and what the loss is of a batch that it has encoded, every picture with its gradient."""
    encoder = PixelEncoder(pixels=36, latent=16)
    encoder.load_state_dict(
        {
            key.removeprefix("encoder_network_params.module."): value
            for key, value in loss.state_dict().items()
            if key.startswith("encoder_network_params.")
        }
    )
    plain = copy.deepcopy(loss)
    plain.encoder_network = None
    return encoder, plain(batch.apply(lambda entry: encoder(entry) if entry.dtype == torch.uint8 else entry))


def assert_encoder_gradient(loss, found, encoder, expected):
    """The two losses have the same gradient with respect to the two encoders."""
    right = torch.autograd.grad(expected, list(encoder.parameters()), retain_graph=True)
    known = dict(zip((name for name, _ in encoder.named_parameters()), right))
    own = dict(loss.encoder_network_params.named_parameters())
    for name, gradient in zip(own, torch.autograd.grad(found, list(own.values()), retain_graph=True)):
        at_hand = known[name.removeprefix("module.")]
        # sums over the pixels of a batch: single components cancel to less than their rounding
        assert float((gradient - at_hand).norm()) < 1e-4 * float(at_hand.norm()), name


@pytest.mark.parametrize("name", SHARING)
def test_with_a_shared_encoder_a_loss_is_that_of_the_encoded_batch_and_so_is_its_gradient(store, name):
    loss, batch = make_shared(name), make_sampler(store, name.partition("_")[0])()
    shared = loss(batch)
    encoder, expected = by_hand(loss, batch)
    torch.testing.assert_close(dict(expected.items()), dict(shared.items()))
    for part in [key for key, _ in shared.items() if key.startswith("loss_") and key != "loss_actor"]:
        assert_encoder_gradient(loss, shared[part], encoder, expected[part])


@pytest.mark.parametrize("name", ["bc", "smore", "iql"])
def test_a_joint_encoder_is_trained_by_the_actor_too(store, name):
    loss = make_loss(name, shared="joint")
    goals = {"actor_strategy": "final"} if name == "smore" else {}
    if goals:
        loss.set_keys(actor_goal="actor_goal")
    batch = make_sampler(store, name, **goals)()
    joint = loss(batch)
    encoder, expected = by_hand(loss, batch)
    torch.testing.assert_close(dict(expected.items()), dict(joint.items()))
    assert_encoder_gradient(loss, joint["loss_actor"], encoder, expected["loss_actor"])


def test_the_score_of_an_actors_loss_does_not_train_a_joint_encoder(store):
    loss = make_loss("smore", shared="joint", actor="score")
    batch = make_sampler(store, "smore")()
    # an actor that does not look passes no gradient on, and the score, which does, none either
    loss.actor_network.module[0].module.register_forward_hook(lambda *_: tuple(torch.zeros(2, 16, 2).requires_grad_()))
    assert encoder_gradient(loss, loss(batch), ["loss_actor"]) == [0.0] * 16


@pytest.mark.parametrize("name", ["smore", "iql", "crl"])
def test_an_actor_with_an_encoder_of_its_own_sees_the_pictures_of_its_goal(store, name):
    loss = make_loss(name, shared="critics")
    goals = {} if name == "crl" else {"actor_strategy": "final"}
    if goals:
        loss.set_keys(actor_goal="actor_goal")
    batch = make_sampler(store, name, **goals)()
    out = loss(batch)
    assert encoder_gradient(loss, out, ["loss_actor"]) == [0.0] * 16
    actor = dict(loss.actor_network_params.named_parameters())
    gradients = torch.autograd.grad(out["loss_actor"], list(actor.values()), retain_graph=True, allow_unused=True)
    assert sum("encoder" in key and found.abs().sum() > 0.0 for key, found in zip(actor, gradients)) >= 8
    if name == "crl":
        return
    # the regression by hand: weights of the encoded batch, likelihood of the pictures
    own = TensorDict({"observation": batch["observation"], "desired_goal": batch["actor_goal"]}, [16])
    with loss.actor_network_params.to_module(loss.actor_network):
        log_prob = loss.actor_network.get_dist(own).log_prob(batch["action"])
    weight = (loss.advantage(batch) * loss.temperature).exp().clamp(max=loss.weight_clip)
    torch.testing.assert_close(out["loss_actor"], -(weight * log_prob).mean())
    for part in [key for key, _ in out.items() if key.startswith("loss_") and key != "loss_actor"]:
        assert min(encoder_gradient(loss, out, [part])) > 0.0


def test_an_actor_with_an_encoder_of_its_own_cannot_answer_for_other_states():
    with pytest.raises(ValueError, match="ContrastiveTDLoss asks its actor about other states or goals"):
        make_loss("crl_td", shared="critics")
    with pytest.raises(ValueError, match="SMORELoss asks its actor about other states or goals"):
        make_loss("smore", shared="critics", formulation="dual")
    networks = make_pixel_networks(ACTIONS, pixels=36, latent=16, hidden=(16,), shared=True)
    with pytest.raises(ValueError, match=r"unknown sight of the actor 'train': expected one of frozen, trained, own."):
        GCIQLLoss(networks.actor, networks.score, networks.value).share_encoder(networks.encoder, actor="train")


def test_what_is_one_picture_is_encoded_once_and_what_is_not_read_not_at_all(store):
    loss = make_loss("smore", shared=True)
    loss.set_keys(actor_goal="actor_goal")
    batch = make_sampler(store, "smore", actor_strategy="future")()
    seen = []
    loss.encoder_network.module.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    loss(batch)
    # observations and goals of both kinds of rows; then the next observation and the actor's goal
    assert seen == [4 * 16, 2 * 16]
    assert batch["observation"].dtype == torch.uint8


def test_a_shared_encoder_needs_a_loss_that_trains_it(store):
    networks = make_pixel_networks(ACTIONS, pixels=36, latent=16, hidden=(16,), shared=True)
    with pytest.raises(ValueError, match="GCSLLoss has an actor alone"):
        GCSLLoss(networks.actor).share_encoder(networks.encoder)
    loss = make_loss("iql", shared=True)
    with pytest.raises(ValueError, match="GCIQLLoss has an encoder already"):
        loss.share_encoder(networks.encoder)


def test_seeds_with_a_shared_encoder_train_together_as_alone_and_go_on_from_their_state(store):
    def update(seeds):
        losses = [make_loss("smore", shared=True, seed=seed) for seed in seeds]
        return FusedUpdate(losses, make_sampler(store, "smore"), seeds=seeds, tau=0.005)

    both, alone = update([3, 4]), update([4])
    assert "encoder_network" in both.params
    assert "encoder_network" not in both.targets
    before = both.params["encoder_network"].clone()
    for _ in range(3):
        both()
        alone()
    torch.testing.assert_close(both.params["encoder_network"][1], alone.params["encoder_network"][0])
    assert not torch.equal(both.params["encoder_network"], before)
    again = update([3, 4])
    again.load_state_dict(copy.deepcopy(both.state_dict()))
    torch.testing.assert_close(dict(again().items()), dict(both().items()), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", ["iql", "crl"])
def test_encoding_a_batch_is_one_graph(store, name):
    """What a loss does with its vectors is one in tests/objectives/test_compile.py."""
    loss, batch = make_loss(name, shared=True), make_sampler(store, name)()
    torch._dynamo.reset()
    found = torch.compile(loss.encoded, fullgraph=True, backend="eager")(batch)
    expected = loss.encoded(batch)
    assert expected["observation"].shape == (16, 16)
    torch.testing.assert_close(found.to_dict(), expected.to_dict())


@pytest.mark.slow
def test_an_update_with_a_shared_encoder_is_one_graph(store):
    update = FusedUpdate(make_loss("smore", shared=True), make_sampler(store, "smore"), tau=0.005)
    buffers = (update.params, update.targets, *update._moments)
    rows = [{group: flat[0] for group, flat in flats.items()} for flats in buffers]
    arguments = (rows[0], rows[1], update._stack.constants(0), update.samplers[0].draw())
    update._functional = True
    expected, _ = update._gradients(*arguments)
    compiled = torch.compile(update._gradients, fullgraph=True, backend="eager")
    found, _ = compiled(*arguments)
    for group, own in expected.items():
        # sums over the pixels of a batch: single components cancel to less than their rounding
        assert float((found[group] - own).norm()) < 1e-5 * float(own.norm()), group


def test_seeds_with_a_shared_encoder_can_be_mapped(store):
    def update(how):
        losses = [make_loss("smore", shared=True, seed=seed) for seed in (3, 4)]
        return FusedUpdate(losses, make_sampler(store, "smore"), seeds=[3, 4], tau=0.005, map_seeds=how)

    mapped, looped = update("vmap"), update("loop")
    torch.testing.assert_close(dict(mapped().items()), dict(looped().items()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True, "critics"])
def test_a_run_from_pictures_is_loaded_as_it_was_trained(store, tmp_path, shared):
    loss, frames = make_loss("smore", shared=shared), store.frames[:6].numpy()
    columns = {"observation": ["x", "y"], "desired_goal": ["x", "y"], "action": ["x", "y"]}
    record_policy(tmp_path, loss, columns=columns, about={"method": "smore"})
    save_checkpoint(tmp_path / "checkpoint", 1, {"update": {"loss": loss.state_dict()}}, {"task": None})
    policy, value = load_policy(tmp_path), load_value(tmp_path)
    assert policy.record.pixels == 36
    here, goal = frames[:3], frames[3:]
    expected = ActorPolicy(loss)({"observation": here, "desired_goal": goal})
    np.testing.assert_allclose(policy(here, goal), expected, atol=1e-6)
    np.testing.assert_allclose(policy(here[0], goal[0]), expected[0], atol=1e-6)
    assert policy(torch.from_numpy(here).reshape(3, 1, 36, 36, 3), torch.from_numpy(goal)[:, None]).shape == (3, 1, 2)
    batch = TensorDict(
        {"observation": store.frames[:3], "desired_goal": store.frames[3:6], "action": torch.ones(3, 2)}, [3]
    )
    rows = loss.encoded(batch) if shared else batch
    state_value = loss._call("value_network", rows, "state_value").detach().numpy()
    np.testing.assert_allclose(value(here, goal), state_value, atol=1e-6)
    score = loss._call("score_network", rows, "score").amin(0).detach().numpy()
    np.testing.assert_allclose(value.score(here, goal, np.ones((3, 2))), score, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda frames: frames.astype(np.float32), TypeError, r"observation: expected pictures of uint8.*float32"),
        (lambda frames: frames[:, :30], ValueError, r"uint8 and shape \[..., 36, 36, 3\], got \[2, 30, 36, 3\]"),
        (lambda frames: frames.tolist(), TypeError, "got list"),
        (lambda frames: torch.from_numpy(frames).float(), TypeError, "got dtype torch.float32"),
        (lambda frames: frames[0, 0, 0], ValueError, r"got \[3\]"),
    ],
)
def test_a_loaded_policy_refuses_what_are_not_its_pictures(store, tmp_path, change, error, message):
    loss, frames = make_loss("bc"), store.frames[:2].numpy()
    columns = {"observation": ["x", "y"], "desired_goal": ["x", "y"], "action": ["x", "y"]}
    record_policy(tmp_path, loss, columns=columns)
    save_checkpoint(tmp_path / "checkpoint", 1, {"update": {"loss": loss.state_dict()}}, {"task": None})
    with pytest.raises(error, match=message):
        load_policy(tmp_path)(change(frames), frames)


@pytest.mark.slow
def test_cloning_learns_from_pictures_where_a_point_has_to_go():
    plain = collect("PointReach", expert_episodes=300, random_episodes=0, seed=1, progress=False)
    painter = get_task("PointReach").painter(48)
    # most of an episode is spent at the goal
    moving = (plain.data["action"].abs().amax(-1) > 0.5).float()
    sampler = PixelBatchSampler(paint(plain, painter), 64, q=False, following=False, anchors=moving)
    networks = make_pixel_networks(ACTIONS, pixels=48, latent=64, hidden=(64,))
    loss = GCSLLoss(networks.actor, regression="nll")
    update = FusedUpdate(loss, sampler, lr=1e-3)
    for _ in range(600):
        update()
    rng = np.random.default_rng(0)
    here, goal = rng.uniform(-4.0, 4.0, (2, 200, 2))
    far = np.linalg.norm(goal - here, axis=-1) > 3.0
    action = ActorPolicy(loss)({"observation": painter.states(here), "desired_goal": painter.goals(goal)})[far]
    way = (goal - here)[far]
    cosine = (action * way).sum(-1) / np.linalg.norm(action, axis=-1) / np.linalg.norm(way, axis=-1)
    assert np.median(cosine) > 0.9
