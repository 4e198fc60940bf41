import copy
import json

import numpy as np
import pytest
import torch

from torchrl_smore._files import digest_without
from torchrl_smore.data import DatasetError, GoalBatchSampler, PixelBatchSampler, TrajectoryStore, mix, writers
from torchrl_smore.data.pixels import shifted_frames

LENGTHS = (5, 3, 2, 7)


def numbered(num, size=6):
    """Frames whose every pixel has the number of its frame in its first channel, and its row and column in others."""
    frames = torch.zeros(num, size, size, 3, dtype=torch.uint8)
    frames[..., 0] = torch.arange(num, dtype=torch.uint8)[:, None, None]
    frames[..., 1] = torch.arange(size, dtype=torch.uint8)[None, :, None]
    frames[..., 2] = torch.arange(size, dtype=torch.uint8)[None, None]
    return frames


@pytest.fixture
def pictured(store):
    return store.with_frames(numbered(17 + 4))


def number(pictures):
    return pictures[:, 0, 0, 0].long()


def test_every_state_has_one_frame_and_that_of_the_next_state_follows(pictured):
    # trajectories of 5, 3, 2 and 7 steps have 6, 4, 3 and 8 states
    expected = [*range(5), *range(6, 9), *range(10, 12), *range(13, 20)]
    assert pictured.frame_index.tolist() == expected
    assert pictured.data is not None
    assert pictured.with_frames(None).frames is None
    assert "frames of 6 x 6 pixels" in pictured.summary()


def test_frames_go_with_their_trajectories(pictured):
    chosen = pictured.select_trajectories(torch.tensor([3, 1, 1]))
    assert number(chosen.frames).tolist() == [*range(13, 21), *range(6, 10), *range(6, 10)]
    assert chosen.frame_index.tolist() == [*range(7), *range(8, 11), *range(12, 15)]
    mixed = mix([pictured, pictured], num_trajectories=[1, 2], order="first")
    assert number(mixed.frames).tolist() == [*range(6), *range(10)]


def test_stores_with_and_without_frames_are_not_mixed(store, pictured):
    with pytest.raises(DatasetError, match="frames of one size, or none, in all stores"):
        mix([pictured, store], num_trajectories=[1, 1], names=["a", "b"])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (numbered(21).float(), "expected dtype torch.uint8, found torch.float32"),
        (np.zeros((21, 6, 6, 3), np.uint8), "expected dtype torch.uint8, found ndarray"),
        (numbered(20), "expected 21, one for each transition and one more for each trajectory, found 20"),
        (numbered(17), "expected 21"),
        (numbered(21)[..., 0], r"expected shape \[21, height, width, 3\], found \[21, 6, 6\]"),
        (numbered(21).permute(0, 3, 1, 2), r"expected shape \[21, height, width, 3\], found \[21, 3, 6, 6\]"),
        (numbered(21)[:, :0], r"expected shape \[21, height, width, 3\]"),
    ],
)
def test_frames_of_another_kind_are_refused(store, frames, message):
    with pytest.raises(DatasetError, match=message):
        store.with_frames(frames)


def test_a_store_with_frames_is_saved_and_mapped_again(pictured, store, tmp_path):
    pictured.save(tmp_path / "store")
    loaded = TrajectoryStore.load(tmp_path / "store")
    assert loaded.frames.dtype == torch.uint8
    assert torch.equal(loaded.frames, pictured.frames)
    assert loaded.sha256 == pictured.sha256 != store.sha256
    assert (tmp_path / "store" / "frames.memmap").stat().st_size == 21 * 6 * 6 * 3
    assert torch.equal(TrajectoryStore.load(tmp_path / "store", verify=False).frames, pictured.frames)
    assert json.loads((tmp_path / "store" / "meta.json").read_text())["format_version"] == 2
    # what older versions can read they still do
    store.save(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "meta.json").read_text())["format_version"] == 1
    assert TrajectoryStore.load(tmp_path / "plain").frames is None


def rewrite(path, **shape):
    """Gives the manifest of a store another shape of its frames, with the checksum that belongs to it."""
    manifest = json.loads((path / "meta.json").read_text())
    manifest["columns"]["frames.memmap"] = shape["shape"]
    manifest["manifest_sha256"] = digest_without(manifest, "manifest_sha256")
    (path / "meta.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: (path / "frames.memmap").unlink(), "frames.memmap is missing"),
        (
            lambda path: (path / "frames.memmap").write_bytes((path / "frames.memmap").read_bytes()[:-1]),
            "frames.memmap is truncated or altered: expected 2268 bytes, found 2267",
        ),
        (lambda path: rewrite(path, shape=[42, 6, 3, 3]), "expected 21, one for each transition"),
        (lambda path: rewrite(path, shape=[21, 108]), r"expected shape \[21, height, width, 3\], found \[21, 108\]"),
        (lambda path: rewrite(path, shape=[21, 6, 6, 4]), "expected 2268 bytes, found shape"),
        (lambda path: rewrite(path, shape=[21, 6, 6, 3, 1]), "expected a shape of positive numbers"),
        (lambda path: rewrite(path, shape=None), "expected a shape of positive numbers"),
    ],
)
def test_a_damaged_or_mislabelled_file_of_frames_is_a_clear_error(pictured, tmp_path, break_it, message):
    pictured.save(tmp_path / "store")
    break_it(tmp_path / "store")
    with pytest.raises(DatasetError, match=message) as error:
        TrajectoryStore.load(tmp_path / "store", verify=False)
    assert "frames" in str(error.value)
    # the shape counts in the digest as well
    with pytest.raises(DatasetError, match=f"{message}|'sha256': expected"):
        TrajectoryStore.load(tmp_path / "store")


def test_an_altered_frame_is_found(pictured, tmp_path):
    pictured.save(tmp_path / "store")
    file = tmp_path / "store" / "frames.memmap"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"frames\.memmap is altered"):
        TrajectoryStore.load(tmp_path / "store")


def test_pictures_are_those_of_the_rows_that_the_other_sampler_draws(pictured):
    """With vectors that are the numbers of the frames, both give the same batch."""
    data = pictured.data.clone()
    for key, value in (("observation", pictured.frame_index), (("next", "observation"), pictured.frame_index + 1)):
        data.set(key, value.float().unsqueeze(-1).expand(-1, 4))
    data["next", "achieved_goal"] = (pictured.frame_index + 1).float().unsqueeze(-1).expand(-1, 2)
    data["next", "reward"] = torch.zeros(17, 1)
    options = {"strategy": {"future": 0.5, "random": 0.5}, "actor_strategy": "final", "her_ratio": 1.0}
    plain = GoalBatchSampler(data, 64, **options)
    del options["her_ratio"]
    pixels = PixelBatchSampler(pictured, 64, **options)
    uniform = pixels.draw()
    expected, batch = plain.gather(uniform[:, :8]), pixels.gather(uniform)
    keys = ["observation", "desired_goal", "actor_goal"]
    keys += [("next", name) for name in ("observation", "achieved_goal", "desired_goal")]
    keys += [("q", *(key if isinstance(key, tuple) else (key,))) for key in keys if key != "actor_goal"]
    for key in keys:
        assert batch[key].dtype == torch.uint8
        assert batch[key].shape == (64, 6, 6, 3)
        assert torch.equal(number(batch[key]), expected[key][:, 0].long()), key
    assert torch.equal(batch["action"], expected["action"])
    assert torch.equal(batch["q", "action"], expected["q", "action"])
    assert set(batch.keys(True, True)) == set(expected.keys(True, True))


def test_the_reward_is_the_identity_of_states_or_that_of_the_stored_goals(pictured):
    by_row = PixelBatchSampler(pictured, 256, success="identity", terminate_at_goal=True)()
    same = number(by_row["next", "observation"]) == number(by_row["desired_goal"])
    assert 0 < same.sum() < 256
    assert torch.equal(by_row["next", "reward"].squeeze(-1) > 0, same)
    assert torch.equal(by_row["next", "terminated"].squeeze(-1), same)
    assert (by_row["q", "next", "reward"] == 1.0).all()
    everywhere = PixelBatchSampler(pictured, 16, success=lambda a, g: (a - g).square().sum(-1) < 1e9)()
    assert (everywhere["next", "reward"] == 1.0).all()
    near = PixelBatchSampler(pictured, 256, success=lambda a, g: (a - g).square().sum(-1) == 0.0, reward_values=(-1, 0))
    batch = near()
    same = number(batch["next", "observation"]) == number(batch["desired_goal"])
    assert torch.equal(batch["next", "reward"].squeeze(-1), torch.where(same, 0.0, -1.0))


def test_a_crop_is_that_of_the_picture_padded_by_its_edge():
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (7, 5, 6, 3), dtype=np.uint8))
    index, shift = torch.tensor([3, 0, 6, 3]), torch.tensor([[0, 0], [2, -1], [-2, 2], [-1, 1]])
    cropped = shifted_frames(frames, index, shift, 2)
    for row in range(4):
        padded = np.pad(frames[index[row]].numpy(), ((2, 2), (2, 2), (0, 0)), mode="edge")
        down, across = (shift[row] + 2).tolist()
        np.testing.assert_array_equal(cropped[row].numpy(), padded[down : down + 5, across : across + 6])


def test_all_pictures_of_a_row_are_cropped_alike_and_rows_apart(pictured):
    sampler = PixelBatchSampler(pictured, 400, crop_prob=0.5, pad=2, actor_strategy="future")
    batch = sampler()
    inner = batch["observation"][:, 2, 2, 1:].long() - 2  # what was there before lies this far down and across
    for key in ("desired_goal", "actor_goal", ("next", "observation"), ("q", "observation"), ("q", "desired_goal")):
        assert torch.equal(batch[key][:, 2, 2, 1:].long() - 2, inner)
    moved = (inner != 0).any(-1)
    # half of the rows, of which one in 25 is moved by nothing
    assert 0.4 < moved.float().mean() < 0.56
    assert set(inner.flatten().tolist()) == {-2, -1, 0, 1, 2}
    assert (PixelBatchSampler(pictured, 400, crop_prob=1.0, pad=0)()["observation"][:, 2, 2, 1:] == 2).all()


@pytest.mark.parametrize("view", ["channels first", "part"])
def test_frames_that_are_views_of_other_memory_are_cropped_as_their_copies_are(pictured, view):
    frames = pictured.frames
    if view == "channels first":
        views = frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    else:
        views = torch.nn.functional.pad(frames, (0, 0, 1, 2, 1, 2))[:, 1:-2, 1:-2]
    assert not views.is_contiguous()
    ours, expected = (PixelBatchSampler(pictured.with_frames(each), 8, crop_prob=1.0)() for each in (views, frames))
    for key in ("observation", "desired_goal", ("q", "observation")):
        assert torch.equal(ours[key], expected[key])


def test_what_follows_is_left_out_where_nobody_reads_it(pictured):
    whole, without = (PixelBatchSampler(pictured, 8, q=True, following=given)() for given in (True, False))
    gone = {("next", name) for name in ("observation", "achieved_goal", "desired_goal")}
    assert set(whole.keys(True, True)) - set(without.keys(True, True)) == gone
    assert torch.equal(whole["desired_goal"], without["desired_goal"])
    assert torch.equal(whole["q", "next", "observation"], without["q", "next", "observation"])


def test_the_rows_do_not_depend_on_the_crop(pictured):
    plain, cropped = (PixelBatchSampler(pictured, 64, crop_prob=prob, seed=3)() for prob in (0.0, 1.0))
    assert torch.equal(number(plain["observation"]), number(cropped["observation"]))
    assert torch.equal(plain["action"], cropped["action"])


def test_a_seed_and_a_state_say_what_is_drawn(pictured):
    sampler = PixelBatchSampler(pictured, 8, crop_prob=1.0, seed=1)
    other = PixelBatchSampler(pictured, 8, crop_prob=1.0, seed=2).with_seed(1)
    assert torch.equal(sampler()["observation"], other()["observation"])
    state = copy.deepcopy(sampler.state_dict())
    first = sampler()
    sampler.load_state_dict(state)
    assert torch.equal(sampler()["observation"], first["observation"])
    assert len(sampler) == 17


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"crop_prob": 1.5}, r"crop_prob must lie in \[0, 1\], got 1.5"),
        ({"pad": -1}, "pad must not be negative, got -1"),
        ({"strategy": "away"}, "needs a threshold"),
        ({"strategy": "geometric", "gamma": 1.0}, "gamma must lie in .* for the goal strategy 'geometric', got 1.0"),
        ({"strategy": "futur"}, "unknown goal strategy"),
    ],
)
def test_arguments_out_of_range_are_refused(pictured, options, message):
    with pytest.raises(ValueError, match=message):
        PixelBatchSampler(pictured, **{"batch_size": 4} | options)


@pytest.mark.parametrize("name", ["d4rl", "minari", "ogbench", "wgcsl"])
def test_formats_without_frames_do_not_lose_them_silently(make_store, tmp_path, name):
    pictured = make_store((4, 4)).with_frames(numbered(10))
    where = (tmp_path, "pictured-v0") if name == "minari" else (tmp_path / "file",)
    with pytest.raises(DatasetError, match=r"written without frames: write store.with_frames\(None\)"):
        getattr(writers, name).write(pictured, *where)
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_frames_is_refused(store):
    with pytest.raises(ValueError, match="expected a store with frames"):
        PixelBatchSampler(store, 4)
