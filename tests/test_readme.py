"""The README's example runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_example_is_short_runs_and_trains_every_network():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 15
    code = code.replace("range(200)", "range(3)")
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
