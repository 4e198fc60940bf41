import pytest

from torchrl_smore.envs import ACTION_NOISES, MIXTURES, collect, mixture_counts


@pytest.mark.parametrize(
    ("mixture", "small", "paper"),
    [
        ("expert10", (400, 3600), (4000, 36000)),
        ("expert5", (200, 3800), (2000, 38000)),
        ("expert2.5", (100, 3900), (1000, 39000)),
        ("expert1", (40, 3960), (400, 39600)),
        ("expert0", (0, 4000), (0, 40000)),
    ],
)
@pytest.mark.parametrize("task", ["FetchPush", "FetchPick", "FetchSlide", "HandReach"])
def test_counts_add_up_to_the_published_two_million_transitions(task, mixture, small, paper):
    assert mixture_counts(task, mixture) == small
    assert mixture_counts(task, mixture, "paper") == paper
    assert sum(paper) * 50 == 2_000_000


def test_every_mixture_and_noise_of_the_paper_has_a_name():
    assert list(MIXTURES.values()) == [0.1, 0.05, 0.025, 0.01, 0.0]
    assert ACTION_NOISES == (0.5, 1.0, 1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("FetchPush", "expert20"), "unknown mixture 'expert20'"),
        (("FetchPush", "expert10", "papre"), "unknown size 'papre'.*Did you mean 'paper'"),
        (("PointReach", "expert10", "paper"), "FetchSlide, HandReach, got PointReach; give num_trajectories"),
        (("FetchPusch",), "Did you mean 'FetchPush'"),
    ],
)
def test_unknown_names_and_sizes_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        mixture_counts(*arguments)


def test_one_worker_and_eight_make_the_same_noisy_store_and_record_its_composition():
    request = {"expert_episodes": 20, "random_episodes": 180, "seed": 5, "action_noise": ACTION_NOISES[0]}
    one = collect("PointReach", **request, workers=1, progress=False)
    eight = collect("PointReach", **request, workers=8, progress=False)
    assert one.sha256 == eight.sha256
    assert one.meta == eight.meta
    assert one.meta["expert_fraction"] == 0.1
    assert one.meta["action_noise"] == 0.5
    reward = one.data["next", "reward"].reshape(200, 50)
    for part, rows in zip(one.meta["composition"], (reward[:20], reward[20:]), strict=True):
        assert part["fraction"] == len(rows) / 200
        assert part["success"] == pytest.approx(rows[:, -1].mean().item())
