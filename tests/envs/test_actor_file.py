import itertools
import re
import zipfile

import numpy as np
import pytest

from torchrl_smore.envs.experts import ActorExpert, write_actor


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
