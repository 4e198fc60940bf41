import itertools
import re
import zipfile

import numpy as np
import pytest

from torchrl_smore.envs.experts import Actor, ActorExpert, read_actor, write_actor
from torchrl_smore.envs.experts.actor_file import without_zero_columns


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(5, 3)), rng.normal(size=5)), (rng.normal(size=(2, 5)), rng.normal(size=2))]


def test_actions_are_those_of_the_network_worked_out_by_hand(tmp_path):
    # hidden: relu(2x - 1), relu(-x); action: tanh(h0 - 3 h1 + 0.5)
    write_actor(
        tmp_path / "a.npz", [(np.array([[2.0], [-1.0]]), np.array([-1.0, 0.0])), (np.array([[1.0, -3.0]]), [0.5])]
    )
    actor = ActorExpert(tmp_path / "a.npz")
    actions = actor({"observation": np.array([[1.0], [0.25], [-0.5]])})
    np.testing.assert_allclose(actions, np.tanh([[1.5], [0.5], [-1.0]]), rtol=1e-6)
    assert actions.dtype == np.float32
    assert (actor.observation_dim, actor.action_dim) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_an_action_does_not_depend_on_the_rest_of_the_batch_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(1)
    widths = (17, 256, 256, 6)
    write_actor(
        tmp_path / "a.npz", [(0.2 * rng.normal(size=(b, a)), rng.normal(size=b)) for a, b in itertools.pairwise(widths)]
    )
    actor = ActorExpert(tmp_path / "a.npz")
    observation = rng.normal(size=(40, 17)).astype(np.float32)
    together = actor({"observation": observation})
    for row in (0, 7, 39):
        np.testing.assert_array_equal(actor({"observation": observation[row : row + 1]})[0], together[row])


def damaged(path, layers):
    write_actor(path, layers)
    path.write_bytes(path.read_bytes()[:-200])


def pickled(path, layers):
    np.savez(path, weight_0=np.array([{"an": "object"}], dtype=object), bias_0=np.zeros(1))


def misfit(path, layers):
    write_actor(path, [layers[0], (np.zeros((2, 4)), np.zeros(2))])


def infinite(path, layers):
    write_actor(path, [layers[0], (layers[1][0], np.array([0.0, np.inf]))])


def foreign(path, layers):
    np.savez(path, w=np.zeros((2, 2)))


def no_zip(path, layers):
    path.write_text("not an archive")


def other_zip(path, layers):
    with zipfile.ZipFile(path, "w") as file:
        for name in ("weight_0.npy", "bias_0.npy"):
            file.writestr(name, "not an array")


def bare_array(path, layers):
    with path.open("wb") as file:
        np.save(file, layers[0][0])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path, layers: None, "expected the file of a trained actor, found none"),
        (damaged, "no file of a trained actor, or a damaged one"),
        (pickled, "no file of a trained actor, or a damaged one"),
        (no_zip, "no file of a trained actor, or a damaged one"),
        (other_zip, "no file of a trained actor, or a damaged one"),
        (bare_array, "no file of a trained actor, or a damaged one"),
        (foreign, "expected arrays weight_0, bias_0"),
        (misfit, r"layer 1: expected float32 \[out, 5\] and \[out\], found float32 \[2, 4\]"),
        (infinite, "layer 1 holds numbers that are not finite"),
    ],
    ids=["missing", "damaged", "pickled", "no zip", "other zip", "bare array", "foreign", "misfit", "infinite"],
)
def test_a_file_that_is_no_actor_is_refused_with_its_name(tmp_path, layers, spoil, said):
    path = tmp_path / "actor.npz"
    spoil(path, layers)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{said}"):
        ActorExpert(path)


def an_actor(**changes):
    rng = np.random.default_rng(3)
    shapes = ((6, 5), (4, 6), (2, 4))
    layers = tuple(
        (rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32)) for b, a in shapes
    )
    return Actor(layers, **changes)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("output", ["tanh", "clip"])
@pytest.mark.parametrize("clip", [None, 1.5, np.inf])
@pytest.mark.parametrize(("goal_dim", "achieved_dim"), [(0, 0), (2, 0), (1, 3), (0, 1)])
def test_an_actor_comes_back_from_its_file_and_acts_as_its_equations_say(
    tmp_path, activation, output, clip, goal_dim, achieved_dim
):
    mean, std = np.arange(5, dtype=np.float32), np.array([1.0, 0.5, 2.0, 0.1, 1.0], np.float32)
    scale = {} if clip is None else {"mean": mean, "std": std, "clip": clip}
    written = an_actor(activation=activation, output=output, goal_dim=goal_dim, achieved_dim=achieved_dim, **scale)
    write_actor(tmp_path / "a.npz", written)
    actor = ActorExpert(tmp_path / "a.npz")
    own = 5 - goal_dim - achieved_dim
    assert (actor.observation_dim, actor.goal_dim, actor.achieved_dim, actor.action_dim) == (
        own,
        goal_dim,
        achieved_dim,
        2,
    )

    x = np.random.default_rng(4).normal(size=(20, 5)).astype(np.float32)
    seen = {
        "observation": x[:, :own],
        # what it has no columns of is not looked at
        "desired_goal": x[:, own : own + goal_dim] if goal_dim else np.full((20, 2), np.nan),
        "achieved_goal": x[:, own + goal_dim :] if achieved_dim else np.full((20, 2), np.nan),
    }
    h = x.astype(np.float64)
    if clip is not None:
        h = np.minimum(np.maximum((h - mean) / std, -clip), clip)
    for number, (weight, bias) in enumerate(written.layers):
        h = h @ weight.T.astype(np.float64) + bias
        if number < 2:
            h = np.maximum(h, 0.0) if activation == "relu" else np.tanh(h)
    expected = np.tanh(h) if output == "tanh" else np.minimum(np.maximum(h, -1.0), 1.0)
    np.testing.assert_allclose(actor(seen), expected, atol=2e-5)


def test_a_file_of_layers_alone_is_an_actor_with_relu_tanh_and_raw_observations(tmp_path, layers):
    arrays = {
        f"{name}_{n}": array.astype(np.float32)
        for n, layer in enumerate(layers)
        for name, array in zip(("weight", "bias"), layer, strict=True)
    }
    np.savez(tmp_path / "old.npz", **arrays)
    actor = read_actor(tmp_path / "old.npz")
    assert (actor.activation, actor.output, actor.goal_dim, actor.mean) == ("relu", "tanh", 0, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": np.array("gelu")}, "activation: expected one of relu, tanh, found 'gelu'"),
        ({"output": np.array(3)}, "output: expected one of tanh, clip, found '3'"),
        ({"goal_dim": np.array(5)}, r"goal_dim: expected an integer in \[0, 5\), found 5"),
        ({"goal_dim": np.array(-1)}, r"goal_dim: expected an integer in \[0, 5\), found -1"),
        ({"goal_dim": np.array(1.0)}, r"goal_dim: expected an integer in \[0, 5\), found 1.0"),
        (
            {"goal_dim": np.array(2), "achieved_dim": np.array(3)},
            r"achieved_dim: expected an integer in \[0, 3\), found 3",
        ),
        ({"mean": None}, "expected mean, std and clip together, found std and clip"),
        ({"std": np.zeros(5, np.float32)}, r"std: expected positive float32 \[5\], found float32 \[5\]"),
        ({"std": np.full(5, np.nan, np.float32)}, r"std: expected positive float32 \[5\]"),
        ({"std": np.full(5, np.inf, np.float32)}, r"std: expected positive float32 \[5\]"),
        ({"mean": np.full(5, np.nan, np.float32)}, r"mean: expected finite float32 \[5\]"),
        ({"mean": np.zeros(4, np.float32)}, r"mean: expected finite float32 \[5\], found float32 \[4\]"),
        ({"mean": np.zeros(5)}, r"mean: expected finite float32 \[5\], found float64 \[5\]"),
        ({"clip": np.array(0.0, np.float32)}, r"clip: expected positive float32 \[\]"),
        ({"clip": np.array(np.nan, np.float32)}, r"clip: expected positive float32 \[\]"),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else None,
)
def test_settings_outside_their_range_are_refused_with_their_name(tmp_path, changes, said):
    path = tmp_path / "actor.npz"
    write_actor(path, an_actor(mean=np.zeros(5), std=np.ones(5), clip=5.0))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {said}"):
        read_actor(path)


@pytest.mark.parametrize("goal_dim", [0, 2])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_columns_that_are_always_0_can_be_left_out(goal_dim, clip):
    mean, std = np.linspace(-1, 1, 5, dtype=np.float32), np.linspace(0.5, 1.5, 5, dtype=np.float32)
    scale = {} if clip is None else {"mean": mean, "std": std, "clip": clip}
    whole = an_actor(goal_dim=goal_dim, output="clip", **scale)
    part = ActorExpert(without_zero_columns(whole, 1))
    assert (part.observation_dim, part.goal_dim) == (4 - goal_dim, goal_dim)
    x = np.random.default_rng(5).normal(size=(20, 5)).astype(np.float32)
    x[:, 4 - goal_dim] = 0.0  # the last of the observation
    seen = {"observation": x[:, : 5 - goal_dim], "desired_goal": x[:, 5 - goal_dim :]}
    fewer = {"observation": x[:, : 4 - goal_dim], "desired_goal": seen["desired_goal"]}
    np.testing.assert_allclose(part(fewer), ActorExpert(whole)(seen), atol=1e-5)
    assert without_zero_columns(whole, 0) is whole
