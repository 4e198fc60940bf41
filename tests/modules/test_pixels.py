import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from torchrl_smore.modules import ConcatMLP, Encoded, PixelEncoder, make_pixel_networks
from torchrl_smore.modules.networks import COLD
from torchrl_smore.modules.pixels import MappedGroupNorm
from torchrl_smore.objectives import SMORELoss

ACTIONS = Bounded(-1.0, 1.0, (4,))


def pictures(*batch, pixels=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*batch, pixels, pixels, 3), dtype=torch.uint8, generator=generator)


def batch_of(*size):
    return TensorDict(
        {"observation": pictures(*size), "desired_goal": pictures(*size, seed=1), "action": torch.rand(*size, 4)}, size
    )


def test_an_encoder_maps_pictures_of_any_batch_to_vectors():
    encoder = PixelEncoder(latent=32)
    many = pictures(2, 3)
    assert encoder(many).shape == (2, 3, 32)
    torch.testing.assert_close(encoder(many)[1, 2], encoder(many[1, 2]))
    assert encoder(many[:0]).shape == (0, 3, 32)
    assert PixelEncoder(2, pixels=64, size="medium", latent=8)(
        pictures(5, pixels=64), pictures(5, pixels=64)
    ).shape == (
        5,
        8,
    )


@pytest.mark.parametrize("size", ["small", "impala"])
def test_an_encoder_sees_height_and_width_as_they_are_and_numbers_between_minus_and_plus_a_half(size):
    torch.manual_seed(0)
    encoder, picture = PixelEncoder(size=size), pictures(2)
    scaled = torch.stack([picture[..., channel] for channel in range(3)], 1) / 255.0 - 0.5
    assert (scaled.shape, scaled.min(), scaled.max()) == ((2, 3, 48, 48), -0.5, 0.5)
    expected = encoder.trunk(encoder.convolutions(scaled))
    torch.testing.assert_close(encoder(picture), expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(encoder(picture).square().sum(), [encoder.convolutions[0].weight])
    (explicit,) = torch.autograd.grad(expected.square().sum(), [encoder.convolutions[0].weight])
    torch.testing.assert_close(gradient, explicit, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((pictures(2).float(),), r"expected pictures of uint8 and shape \[\*, 48, 48, 3\], got torch.float32"),
        ((pictures(2).permute(0, 3, 1, 2),), r"and \[2, 3, 48, 48\]"),
        ((pictures(2, pixels=64),), r"and \[2, 64, 64, 3\]"),
        ((pictures(2), pictures(2)), "expected 1 pictures, got 2"),
    ],
)
def test_anything_but_its_pictures_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        PixelEncoder()(*given)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="unknown size of encoders 'smal'"):
        PixelEncoder(size="smal")
    with pytest.raises(ValueError, match="36 pixels or more in each direction, got 35"):
        PixelEncoder(pixels=35)
    assert PixelEncoder(pixels=36)(pictures(1, pixels=36)).shape == (1, 128)


def test_pictures_are_encoded_and_other_inputs_pass():
    encoder = PixelEncoder(latent=8)
    network = Encoded(encoder, ConcatMLP(8 + 4 + 8, 2, (16,)))
    one, other, action = pictures(3), pictures(3, seed=1), torch.rand(3, 4)
    expected = network.network(encoder(one), action, encoder(other))
    torch.testing.assert_close(network(one, action, other), expected)
    together = Encoded(PixelEncoder(2, latent=8), ConcatMLP(8, 2, (16,)))
    torch.testing.assert_close(together(one, other), together.network(together.encoder(one, other)))


def test_networks_write_what_losses_read():
    networks = make_pixel_networks(ACTIONS, hidden=(16,), num_score_nets=2)
    batch = batch_of(3)
    for score in networks.score:
        assert score(batch.clone())["score"].shape == (3, 1)
    assert networks.value(batch.clone())["state_value"].shape == (3, 1)
    assert networks.actor(batch.clone())["action"].shape == (3, 4)
    ids = [{id(p) for p in network.parameters()} for network in (networks.actor, networks.value, *networks.score)]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_the_score_is_an_inner_product_that_starts_at_0_and_has_a_gradient():
    score = make_pixel_networks(ACTIONS, hidden=(16,), representation=5, num_score_nets=1).score[0]
    batch = batch_of(3)
    pair = score.module.network.embedding(
        score.module.encoder(batch["observation"]), batch["action"], score.module.encoder(batch["desired_goal"])
    )
    assert pair.shape == (3, 2, 5)
    out = score(batch)["score"]
    torch.testing.assert_close(out.squeeze(-1), (pair[:, 0] * pair[:, 1]).sum(-1), rtol=1e-4, atol=1e-12)
    assert out.abs().max() < 5 * 16 * COLD * 10
    out.sum().backward()
    psi = score.module.network.embedding.psi.layers[-1]
    assert psi.weight.detach().abs().max() <= COLD
    assert psi.weight.grad.abs().max() > 1e-3


def test_the_gradient_of_an_inner_product_asks_the_device_nothing():
    score = make_pixel_networks(ACTIONS, hidden=(16,), num_score_nets=1, shared=True).score[0]
    rows = TensorDict({key: torch.randn(3, 128) for key in ("observation", "desired_goal")}, [3])
    out = score(rows.set("action", torch.rand(3, 4)))["score"].sum()
    with torch.profiler.profile() as profile:
        out.backward()
    # which a CUDA graph cannot capture
    assert not {"aten::item", "aten::_local_scalar_dense"} & {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("size", ["small", "impala"])
def test_a_reset_ensemble_has_the_scale_of_fresh_networks_and_is_as_cold(size):
    networks = make_pixel_networks(ACTIONS, hidden=(16,), num_score_nets=2, encoder=size)
    loss = SMORELoss(networks.actor, networks.score, networks.value)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    loss.reset_parameters_recursive()
    for name, p in loss.named_parameters():
        if not (name.endswith("weight") and before[name].std() > 0.0):
            continue
        assert not torch.equal(p, before[name])
        # of 48 numbers or more, all uniform
        torch.testing.assert_close(p.std(), before[name].std(), rtol=0.25, atol=0.0)
        own = before[name].std(tuple(range(1, p.ndim))) if name.startswith("score") else torch.ones(())
        assert own.min() > 0.0
    convolution = loss.score_network_params["module", "encoder", "convolutions", "0", "weight"]
    # fan-in: three channels and the kernel
    bound = 1.0 / convolution[0, 0].numel() ** 0.5
    assert 0.9 * bound < convolution.abs().max() <= bound
    assert not torch.equal(convolution[0], convolution[1])
    psi = loss.score_network_params["module", "network", "embedding", "psi", "layers", "3", "weight"]
    assert 0.9 * COLD < psi.abs().max() <= COLD


def test_networks_of_a_shared_encoder_read_its_vectors():
    networks = make_pixel_networks(ACTIONS, hidden=(16,), latent=8, shared=True)
    assert (networks.encoder.in_keys, networks.encoder.out_keys) == (["pixels"], ["latent"])
    latent = networks.encoder(TensorDict({"pixels": pictures(3)}, [3]))["latent"]
    assert latent.shape == (3, 8)
    batch = TensorDict({"observation": latent, "desired_goal": latent, "action": torch.rand(3, 4)}, [3])
    assert networks.score[1](batch.clone())["score"].shape == (3, 1)
    assert networks.value(batch.clone())["state_value"].shape == (3, 1)
    assert networks.actor(batch.clone())["action"].shape == (3, 4)
    assert make_pixel_networks(ACTIONS, hidden=(16,)).encoder is None


@pytest.mark.parametrize("size", ["small", "medium", "impala"])
@pytest.mark.parametrize("pixels", [36, 48, 64])
def test_every_encoder_takes_pictures_of_every_size_and_bf16_is_near_float32(size, pixels):
    torch.manual_seed(0)
    encoder = PixelEncoder(size=size, pixels=pixels, latent=32)
    lower = PixelEncoder(size=size, pixels=pixels, latent=32, precision="bf16")
    lower.load_state_dict(encoder.state_dict())
    seen = pictures(4, pixels=pixels)
    out, approximate = encoder(seen), lower(seen)
    assert out.dtype == approximate.dtype == torch.float32
    # 8 bits of mantissa, outputs of unit deviation
    assert (out - approximate).abs().mean() < 0.05
    approximate.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lower.parameters())


@pytest.mark.parametrize("size", ["small", "impala"])
def test_an_encoder_of_another_dtype_computes_in_it(size):
    encoder = PixelEncoder(size=size, latent=32)
    expected = encoder(pictures(3))
    out = encoder.double()(pictures(3))
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), expected, rtol=1e-4, atol=1e-5)


def test_pictures_are_scaled_before_they_are_rounded(monkeypatch):
    seen = []
    original = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda x, *args, **kwargs: (seen.append(x), original(x, *args, **kwargs))[1]
    )
    PixelEncoder(size="impala", latent=32, precision="bf16")(pictures(2))
    expected = (pictures(2).permute(0, 3, 1, 2) / 255.0 - 0.5).to(torch.bfloat16)
    torch.testing.assert_close(seen[0].to(torch.bfloat16), expected, rtol=0.0, atol=0.0)


def test_without_products_of_bf16_every_product_of_an_encoder_is_one_of_float32(monkeypatch):
    multiplied = []
    for name in ("conv2d", "linear"):
        original = getattr(torch.nn.functional, name)

        def recorded(x, *args, original=original, **kwargs):
            multiplied.append(x.dtype)
            return original(x, *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, name, recorded)
    monkeypatch.setattr("torchrl_smore.modules.linear._HAS_BF16_PRODUCTS", False)
    encoders = [PixelEncoder(size=size, latent=32, precision="bf16") for size in ("small", "impala")]
    for encoder, products in zip(encoders, (4, 10)):
        multiplied.clear()
        encoder(pictures(2))
        assert multiplied == [torch.float32] * products


def test_embeddings_are_what_contrastive_losses_read_and_options_change_what_they_say():
    networks = make_pixel_networks(ACTIONS, hidden=(16,), representation=5, embeddings=True)
    assert networks.score[0](batch_of(3))["embedding"].shape == (3, 2, 5)
    assert networks.value(batch_of(3))["embedding"].shape == (3, 2, 5)
    psi = networks.score[0].module.network.psi.layers
    assert psi[-1].weight.detach().abs().max() <= COLD
    assert any(isinstance(layer, torch.nn.LayerNorm) for layer in psi)
    plain = make_pixel_networks(ACTIONS, hidden=(16,), embeddings=True, layer_norm=False, cold=False)
    psi = plain.score[0].module.network.psi.layers
    assert psi[-1].weight.detach().abs().max() > 0.1
    assert not any(isinstance(layer, torch.nn.LayerNorm) for layer in psi)


def test_the_deviation_of_an_actor_is_learnt_or_a_constant():
    learnt = make_pixel_networks(ACTIONS, hidden=(16,)).actor
    assert "module.0.module.network.log_std" in dict(learnt.named_parameters())
    constant = make_pixel_networks(ACTIONS, hidden=(16,), std=0.15).actor
    assert not any("log_std" in name for name, _ in constant.named_parameters())
    torch.testing.assert_close(constant(batch_of(3))["scale"], torch.full((3, 4), 0.15))
    with pytest.raises(ValueError, match="std must be positive and finite, got 0"):
        make_pixel_networks(ACTIONS, std=0.0)


def test_a_separate_encoder_is_trained_by_its_actor():
    actor = make_pixel_networks(ACTIONS, hidden=(16,)).actor
    actor(batch_of(4))["loc"].square().sum().backward()
    assert all(p.grad is not None for p in actor.module[0].module.encoder.parameters())


def group_norms():
    torch.manual_seed(0)
    ours, theirs = MappedGroupNorm(2, 8), torch.nn.GroupNorm(2, 8)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_group_norm_is_torchs_and_can_be_mapped():
    ours, theirs = group_norms()
    pictures = torch.randn(3, 5, 8, 4, 6)
    expected = torch.stack([theirs(batch) for batch in pictures])
    torch.testing.assert_close(ours(pictures), expected)
    torch.testing.assert_close(torch.vmap(ours)(pictures), expected)


def test_group_norm_of_bfloat16_is_that_of_float32_but_for_its_rounding():
    ours, theirs = group_norms()
    # channels last in memory, as convolutions of stored pictures give them
    pictures = torch.randn(5, 8, 4, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    found = ours(pictures)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous()  # channels first, which is faster
    assert not ours(pictures.float()).is_contiguous()
    # eight bits of mantissa: input, weight and bias are exact or rounded once, the result is rounded once
    torch.testing.assert_close(found.float(), theirs(pictures.float()), rtol=2**-7, atol=2**-6)
