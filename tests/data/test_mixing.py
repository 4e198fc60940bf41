from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.mixing import _rounded, hold_out, mix, split_by_behaviour
from torchrl_smore.data.trajectories import TrajectoryStore


@pytest.fixture
def expert(make_store):
    return make_store([2, 3, 4, 5], seed=1, meta={"task": "A", "behaviour": "expert", "seed": 1})


@pytest.fixture
def random(make_store):
    return make_store([6, 2, 3, 2, 4, 2], seed=2, meta={"task": "A", "behaviour": "random", "seed": 2})


def lengths(store: TrajectoryStore) -> list[int]:
    start, stop = store.trajectory_bounds
    return (stop - start).tolist()


def assert_equal(left: TrajectoryStore, right: TrajectoryStore) -> None:
    assert (left.data == right.data).all()


def test_the_first_trajectories_of_each_store_follow_one_another(make_episodes, expert, random):
    mixed = mix([expert, random], [2, 3])
    episodes = make_episodes([2, 3, 4, 5], seed=1)[:2] + make_episodes([6, 2, 3, 2, 4, 2], seed=2)[:3]
    assert_equal(mixed, TrajectoryStore.from_episodes(episodes))


def test_a_share_is_held_out_at_random_and_nothing_is_in_both_parts(make_store):
    store = make_store([2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    rest, held_out = hold_out(store, 0.3, seed=1)
    # a length is that of one trajectory alone
    assert len(lengths(held_out)) == 3
    assert sorted(lengths(rest) + lengths(held_out)) == list(range(2, 12))
    assert lengths(rest) == sorted(lengths(rest))
    assert lengths(held_out) == sorted(lengths(held_out))
    first = lengths(rest).index(lengths(rest)[0])
    number = lengths(store).index(lengths(rest)[first])
    assert_equal(rest.select_trajectories([first]), store.select_trajectories([number]))
    assert_equal(hold_out(store, 0.3, seed=1)[1], held_out)
    assert len({tuple(lengths(hold_out(store, 0.3, seed=seed)[1])) for seed in range(8)}) > 4


@pytest.mark.parametrize(("share", "said"), [(0.0, "got 0"), (1.0, "got 1"), (0.04, "are 0"), (0.96, "are 10")])
def test_a_share_that_leaves_a_part_empty_is_refused(make_store, share, said):
    with pytest.raises(ValueError, match=f"share.*{said}"):
        hold_out(make_store([2] * 10), share)


def test_the_composition_says_what_came_from_where(expert, random):
    mixed = mix([expert, random], [1, 4])
    assert mixed.meta == {
        "task": "A",
        "mixing": {"order": "first"},
        "composition": [
            {
                "source": "expert",
                "behaviour": "expert",
                "num_trajectories": 1,
                "fraction": 0.2,
                "sha256": expert.sha256,
            },
            {
                "source": "random",
                "behaviour": "random",
                "num_trajectories": 4,
                "fraction": 0.8,
                "sha256": random.sha256,
            },
        ],
    }


def test_fractions_of_a_total_give_counts_that_add_up(expert, random):
    assert_equal(mix([expert, random], fractions=[0.4, 0.6], total=5), mix([expert, random], [2, 3]))
    # 0.5 and 4.5: both have remainder one half, and the first store gets the trajectory
    assert lengths(mix([expert, random], fractions=[0.1, 0.9], total=5)) == [2, 6, 2, 3, 2]


@given(
    weights=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any),
    total=st.integers(1, 40_000),
)
def test_rounded_counts_add_up_and_miss_their_share_by_less_than_one(weights, total):
    fractions = [weight / sum(weights) for weight in weights]
    counts = _rounded(fractions, total)
    assert sum(counts) == total
    assert all(abs(count - fraction * total) < 1 + 1e-5 for count, fraction in zip(counts, fractions))
    assert all(count == 0 for count, weight in zip(counts, weights) if weight == 0)


@pytest.mark.parametrize(("fraction", "total"), [(0.07, 100), (0.29, 100), (0.1, 40_000), (0.025, 40_000)])
def test_exact_shares_survive_floating_point(fraction, total):
    assert _rounded([fraction, 1 - fraction], total)[0] == round(fraction * total)


def test_equal_remainders_favour_the_first_store_and_fractions_need_not_add_up_to_the_last_digit():
    assert _rounded([0.93, 0.07], 50) == [47, 3]  # 46.5 and 3.5, of which the second is 3.5000000000000004
    assert _rounded([0.07, 0.93], 50) == [4, 46]
    assert sum(_rounded([0.3333333] * 3, 40_000_000)) == 40_000_000


def test_a_source_may_give_nothing(expert, random):
    mixed = mix([expert, random], fractions=[0.0, 1.0], total=6)
    assert_equal(mixed, random)
    assert [part["num_trajectories"] for part in mixed.meta["composition"]] == [0, 6]
    assert list(split_by_behaviour(mixed)) == ["random"]


def test_a_random_order_takes_a_subset_that_depends_on_the_seed_alone(make_store):
    store = make_store(list(range(2, 32)))  # the length tells the trajectory
    chosen = lengths(mix([store], [10], order="random", seed=3))
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen)
    torch.manual_seed(123)
    assert lengths(mix([store], [10], order="random", seed=3)) == chosen
    assert lengths(mix([store], [10], order="random", seed=4)) != chosen
    assert mix([store], [10], order="random", seed=3).meta["mixing"] == {"order": "random", "seed": 3}


def test_a_mixture_comes_apart_again_and_its_expert_share_can_be_lowered(expert, random):
    mixed = mix([expert, random], [4, 6])
    parts = split_by_behaviour(mixed)
    assert list(parts) == ["expert", "random"]
    assert_equal(parts["expert"], expert)
    assert_equal(parts["random"], random)

    lower = mix([parts["expert"], parts["random"]], fractions=[0.25, 0.75], total=4, names=["expert", "random"])
    assert [part["num_trajectories"] for part in lower.meta["composition"]] == [1, 3]
    assert_equal(lower, mix([expert, random], [1, 3]))


def test_a_behaviour_in_two_places_is_one_part(make_store):
    composition = [{"behaviour": name, "num_trajectories": 1} for name in ("a", "b", "a", "c")]
    parts = split_by_behaviour(make_store([2, 3, 4, 5], meta={"composition": composition}))
    assert {name: lengths(part) for name, part in parts.items()} == {"a": [2, 4], "b": [3], "c": [5]}


def test_mixing_mixtures_keeps_the_behaviours_apart(make_store, random):
    composition = [{"behaviour": "expert", "num_trajectories": 2}, {"behaviour": "noisy", "num_trajectories": 2}]
    both = make_store([2, 3, 4, 5], seed=1, meta={"task": "A", "composition": composition})
    mixed = mix([both, random], [3, 2], names=["both", "random"])
    assert [(p["source"], p["behaviour"], p["num_trajectories"], p["fraction"]) for p in mixed.meta["composition"]] == [
        ("both", "expert", 2, 0.4),
        ("both", "noisy", 1, 0.2),
        ("random", "random", 2, 0.4),
    ]


def test_asking_for_more_than_there_is_names_both_numbers(expert, random):
    with pytest.raises(DatasetError, match="'expert' holds 4 trajectories, asked for 5"):
        mix([expert, random], [5, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either num_trajectories, or fractions and total"),
        ({"num_trajectories": [1, 1], "fractions": [0.5, 0.5], "total": 2}, "either num_trajectories"),
        ({"fractions": [0.5, 0.5]}, "either num_trajectories"),
        ({"num_trajectories": [1, 1], "total": 2}, "either num_trajectories"),
        ({"fractions": [0.5, 0.6], "total": 4}, r"add up to 1, got \[0.5, 0.6\] = 1.1"),
        ({"fractions": [1.5, -0.5], "total": 4}, r"must lie in \[0, 1\]"),
        ({"num_trajectories": [1]}, "one number for each of the 2 stores"),
        ({"num_trajectories": [1, -1]}, ">= 0"),
        ({"num_trajectories": [0, 0]}, "not all 0"),
        ({"num_trajectories": [1, 1], "order": "frist"}, "unknown order 'frist'.*Did you mean 'first'"),
        ({"num_trajectories": [1, 1], "names": ["a"]}, "one name for each"),
    ],
)
def test_counts_that_make_no_sense_are_refused(expert, random, arguments, message):
    with pytest.raises(ValueError, match=message):
        mix([expert, random], **arguments)


@pytest.mark.parametrize("dim", ["observation_dim", "goal_dim", "action_dim"])
def test_stores_of_other_dimensions_do_not_mix(make_store, dim):
    with pytest.raises(DatasetError, match=f"{dim} of 'source_1': expected . as in 'source_0', found 9"):
        mix([make_store(), make_store(**{dim: 9})], [1, 1])


def test_stores_of_another_task_do_not_mix_even_if_their_dimensions_agree(make_store):
    stores = [make_store(meta={"task": task}) for task in ("FetchPush", "FetchPick")]
    with pytest.raises(DatasetError, match="'FetchPush' in 'source_0', 'FetchPick' in 'source_1'"):
        mix(stores, [1, 1])


def test_tasks_of_several_words_are_compared_by_what_they_say(make_store):
    one, same, other = (make_store(meta={"task": {"name": name}}) for name in ("Push", "Push", "Pick"))
    assert mix([one, same], [1, 1]).meta["task"] == {"name": "Push"}
    with pytest.raises(DatasetError, match=r"'Push'\} in 'source_0', \{'name': 'Pick'\} in 'source_1'"):
        mix([one, other], [1, 1])


def test_counts_of_rows_of_the_sources_are_not_those_of_the_mixture(make_store):
    stores = [make_store(meta={"task": "A", "clipped_actions": 2, "dropped_rows": 3})] * 2
    assert mix(stores, [1, 1]).meta.keys() == {"task", "composition", "mixing"}


def test_a_store_of_unknown_or_unnamed_composition_does_not_come_apart(make_store):
    with pytest.raises(DatasetError, match="found none"):
        split_by_behaviour(make_store())
    with pytest.raises(DatasetError, match="expected a 'behaviour'"):
        split_by_behaviour(make_store(meta={"composition": [{"num_trajectories": 4}]}))
