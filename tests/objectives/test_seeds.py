"""K losses in one: stacked parameters under torch.vmap equal K separate modules."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict


@pytest.mark.parametrize("deactivate_vmap", [False, True], ids=["nested_vmap", "loop"])
@pytest.mark.parametrize("name", ["smore", "smore_no_target", "smore_dual", "value", "actor", "score"])
def test_stacked_parameters_under_vmap_equal_separate_losses(name, deactivate_vmap, build, batch_for, total):
    losses = [build(name, deactivate_vmap=deactivate_vmap) for _ in range(3)]
    if "temperature" in dict(losses[0].named_buffers()):
        for loss, value in zip(losses, (0.5, 1.0, 2.0)):
            loss.temperature = value
    batches = [batch_for(loss, seed=seed) for seed, loss in enumerate(losses)]
    # lock=False: the parameters of a network are unlocked when they are put into it
    stacked = TensorDict.from_modules(*losses, as_module=False, lock=False)

    def run(parameters, batch):
        with parameters.to_module(losses[0], preserve_module_state=False):
            return losses[0](batch)

    out = torch.vmap(run)(stacked, torch.stack(batches))
    total(out).sum().backward()
    for k, (loss, batch) in enumerate(zip(losses, batches)):
        expected = loss(batch)
        for key, value in expected.items():
            torch.testing.assert_close(out[key][k], value, msg=lambda m, key=key: f"{key}: {m}")
        total(expected).backward()
        for name_, parameter in loss.named_parameters():
            network, *path = name_.split(".")
            stacked_grad = stacked.get((network, *path)).grad
            if parameter.grad is None:
                continue
            torch.testing.assert_close(stacked_grad[k], parameter.grad, rtol=1e-4, atol=1e-6)
