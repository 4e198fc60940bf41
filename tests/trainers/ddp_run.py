"""One of two processes that train one loss, for ``test_ddp.py``: ``python ddp_run.py RANK STORE OUT``."""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed
from tensordict import TensorDict
from torch.nn.parallel import DistributedDataParallel
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss


def make_loss():
    """The same loss in every process."""
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(8,))
    loss = SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True)
    SoftUpdate(loss, tau=0.05)
    return loss


def make_batches():
    """Three batches of eight rows; each process takes half of each."""
    torch.manual_seed(1)

    def rows():
        following = TensorDict({"observation": torch.randn(8, 3)}, [8])
        values = {"observation": torch.randn(8, 3), "action": torch.rand(8, 2), "desired_goal": torch.randn(8, 2)}
        return TensorDict({**values, "next": following}, [8])

    return [TensorDict({**rows().to_dict(), "q": rows()}, [8]) for _ in range(3)]


def train(loss, call, batches):
    """One step of SGD for each batch; its gradient is the mean over rows."""
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for batch in batches:
        out = call(batch)
        optimizer.zero_grad()
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in loss.named_parameters()}


def main(rank, store, out):
    warnings.simplefilter("error")
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loss = make_loss()
    parts = [batch[4 * rank : 4 * rank + 4] for batch in make_batches()]
    torch.save(train(loss, DistributedDataParallel(loss), parts), f"{out}.{rank}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
