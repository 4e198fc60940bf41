import torch
from tensordict import TensorDict

from torchrl_smore.data.padding import repeat_last_transition


def test_rows_after_an_end_become_the_transition_that_led_to_it_and_others_stay():
    # trajectories of rows 0-3, 4-5 and 6-8; the first ends in row 1, the last in row 6, the middle one never
    rows = torch.arange(9.0)[:, None]
    start = torch.tensor([0, 0, 0, 0, 4, 4, 6, 6, 6])
    done = torch.tensor([0, 0, 0, 1, 0, 1, 0, 0, 1], dtype=torch.bool)[:, None]
    following = {"observation": rows + 1, "achieved_goal": rows + 2, "reward": rows % 2, "done": done.clone()}
    columns = {key: rows.clone() for key in ("observation", "action", "achieved_goal", "desired_goal")}
    data = TensorDict({**columns, "next": following, "traj_start": start.clone()}, [9])
    ended = torch.tensor([0, 1, 1, 1, 0, 0, 1, 0, 1], dtype=torch.bool)

    repeat_last_transition(data, ended)

    source = torch.tensor([0.0, 1, 1, 1, 4, 5, 6, 6, 6])[:, None]
    for key in ("observation", "action", "achieved_goal"):
        torch.testing.assert_close(data[key], source, rtol=0.0, atol=0.0)
    torch.testing.assert_close(data["next", "observation"], source + 1)
    torch.testing.assert_close(data["next", "achieved_goal"], source + 2)
    torch.testing.assert_close(data["next", "reward"], source % 2)
    assert torch.equal(data["next", "done"], done)
    assert torch.equal(data["traj_start"], start)
    assert torch.equal(data["desired_goal"], rows)
