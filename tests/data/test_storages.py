"""Storages that gather rows give what TorchRL's give."""

from __future__ import annotations

import pickle

import pytest
import torch
from tensordict import MemoryMappedTensor, NonTensorData, TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer, TensorStorage

from torchrl_smore.data import GrowingRowStorage, RowStorage, TrajectoryStore


def rows(number=6):
    count = torch.arange(number)
    after = TensorDict({"image": torch.rand(number, 2, 3), "done": count.unsqueeze(-1) % 3 == 2}, [number])
    return TensorDict({"observation": torch.rand(number, 4), "count": count, "next": after}, [number])


def both(data, room=0):
    """Our storage and TorchRL's, with the same content."""
    pair = (GrowingRowStorage(len(data) + room), LazyTensorStorage(len(data) + room))
    for storage in pair:
        storage.set(range(len(data)), data)
    return pair


@pytest.mark.parametrize("room", [0, 3])
@pytest.mark.parametrize(
    "index",
    [
        *(torch.tensor([4, 0, 0]), torch.tensor([[1, 2], [5, 5], [0, 3]]), torch.zeros(0, dtype=torch.int64)),
        *(torch.tensor([-1, 2]), torch.tensor([True, False, True, False, False, True]), torch.tensor(2), 3),
        *(slice(1, 5, 2), range(2), [5, 1], torch.tensor([1, 2], dtype=torch.int32)),
    ],
    ids=str,
)
def test_any_index_gives_the_rows_that_torchrl_gives(index, room):
    ours, reference = (storage.get(index) for storage in both(rows(), room))
    assert ours.batch_size == reference.batch_size
    assert bool((ours == reference).all())
    assert set(ours.keys(True, True)) == set(reference.keys(True, True))


@pytest.mark.parametrize("index", [torch.tensor([6]), torch.tensor([[0, 9]]), torch.tensor([-7])], ids=str)
def test_rows_that_are_not_written_are_refused(index):
    for storage in both(rows(), room=3):
        with pytest.raises((IndexError, RuntimeError)):
            storage.get(index)


def test_rows_are_copied_and_gathered_without_torchrls_index(monkeypatch):
    data = rows()
    ours, _ = both(data)
    monkeypatch.setattr(TensorStorage, "get", lambda *_: pytest.fail("TorchRL's"))
    found = ours.get(torch.tensor([[2, 1]]))
    found["next", "image"].zero_()
    assert bool((ours._storage == data).all())


def test_what_is_no_plain_tensor_is_left_to_torchrl():
    data = rows().set("text", NonTensorData("a", batch_size=[6]))
    ours, reference = (storage.get(torch.tensor([3, 1])) for storage in both(data))
    assert ours["text"] == reference["text"]
    torch.testing.assert_close(ours["count"], torch.tensor([3, 1]))


def test_a_storage_of_two_dimensions_is_torchrls():
    data = TensorDict({"x": torch.arange(12).reshape(3, 4)}, [3, 4])
    storage = GrowingRowStorage(12, ndim=2)
    storage.set(range(3), data)
    assert storage.get((torch.tensor([2]), torch.tensor([1])))["x"].tolist() == [9]
    assert storage.get(torch.tensor([1]))["x"].tolist() == [[4, 5, 6, 7]]


def test_a_store_gives_such_a_storage_from_memory_and_from_disk(store, tmp_path):
    store.save(tmp_path / "store")
    for each in (store, TrajectoryStore.load(tmp_path / "store")):
        storage = each.to_storage()
        assert type(storage) is RowStorage
        found = storage.get(torch.tensor([[3, 0], [1, 1]]))
        assert not isinstance(found["action"], MemoryMappedTensor)
        torch.testing.assert_close(found["action"], each.data["action"][torch.tensor([[3, 0], [1, 1]])].clone())


def test_a_row_of_a_growing_storage_is_one_piece_of_memory_for_each_type():
    data = rows().set("none", torch.zeros(6, 0))
    ours, reference = both(data, room=2)
    floats = [ours._storage.get(key) for key in ("observation", ("next", "image"), "none")]
    assert [column.stride(0) for column in floats] == [4 + 2 * 3] * 3
    assert len({column.untyped_storage().data_ptr() for column in floats}) == 1
    for storage in (ours, reference):
        storage.set([7, 2], data[:2])
        storage._len = 8
    index = torch.tensor([[2, 0], [7, 5]])
    found, expected = ours.get(index), reference.get(index)
    assert bool((found.exclude("none") == expected.exclude("none")).all())
    assert found["none"].shape == (2, 2, 0)


def test_a_batch_can_be_saved(tmp_path):
    ours, reference = both(rows())
    torch.save(ours.get(torch.tensor([3, 1])), tmp_path / "batch")
    found = torch.load(tmp_path / "batch", weights_only=False)
    assert bool((found == reference.get(torch.tensor([3, 1]))).all())


def test_a_column_that_is_added_is_gathered_and_one_that_is_removed_is_not():
    ours, _ = both(rows())
    ours._storage.del_("count")
    index = torch.tensor([5, 3])
    assert set(ours.get(index).keys()) == {"observation", "next"}
    ours._storage.set("added", torch.arange(6))
    assert ours.get(index)["added"].tolist() == [5, 3]


def test_a_column_that_is_put_in_the_place_of_another_is_gathered():
    ours, _ = both(rows())
    ours._storage["next"].set("done", torch.ones(6, 1, dtype=torch.bool))
    assert bool(ours.get(torch.tensor([5, 3]))["next", "done"].all())


@pytest.mark.parametrize("how", ["pickle", "state", "checkpoint"])
def test_a_growing_storage_goes_on_from_what_was_saved(how, tmp_path):
    ours, _ = both(rows(), room=994)
    other = GrowingRowStorage(1000)
    if how == "pickle":
        text = pickle.dumps(ours)
        # 1,000 rows of 10 float32, one int64 and one bool, once
        assert 49_000 < len(text) < 60_000
        other = pickle.loads(text)
    elif how == "state":
        torch.save(ours.state_dict(), tmp_path / "state")
        assert 49_000 < (tmp_path / "state").stat().st_size < 60_000
        other.set(range(6), rows().zero_())
        other.load_state_dict(torch.load(tmp_path / "state", weights_only=False))
    else:
        ours.dumps(tmp_path / "folder")
        other.loads(tmp_path / "folder")
    assert len(other) == 6
    index = torch.tensor([4, 0, 5])
    assert bool((other.get(index) == ours.get(index)).all())
    other.set([6], rows(1))
    assert len(other) == 7
    assert bool((other.get(torch.tensor([6])) == other.get(slice(6, 7))).all())


def test_a_buffer_on_it_is_filled_over_its_end_and_sampled():
    buffer = TensorDictReplayBuffer(storage=GrowingRowStorage(8), batch_size=64)
    buffer.extend(rows(6))
    assert set(buffer.sample()["count"].tolist()) == set(range(6))
    buffer.extend(rows(6))
    assert set(buffer.sample()["index"].tolist()) == set(range(8))
