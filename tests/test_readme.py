"""The README's example runs as it is printed: it trains a policy and evaluates it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_example_is_short_trains_every_network_and_evaluates_a_policy_that_reaches_its_goals(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 35
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)

    losses = {key for key, _ in names["losses"].items() if key.startswith("loss_")}
    assert losses == {"loss_score", "loss_value", "loss_actor"}
    assert all(torch.isfinite(names["losses"][key]) for key in losses)
    moved = [
        not torch.equal(p, names["loss"].target_score_network_params.get(k))
        for k, p in names["loss"].score_network_params.items(True, True)
    ]
    assert all(moved)
    # random actions end at their goal in 3 of 100 episodes
    assert names["evaluation"].metrics["success_last"] > 0.9
    assert str(names["evaluation"].metrics["success_last"]) in capsys.readouterr().out
