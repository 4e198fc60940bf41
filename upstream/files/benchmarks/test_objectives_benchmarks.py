# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Speed test of SMORe; what follows the marker goes into TorchRL's benchmarks/test_objectives_benchmarks.py.

That file imports what is imported here, and defines ``_maybe_compile``.
"""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule as ProbMod,
    ProbabilisticTensorDictSequential as ProbSeq,
    TensorDictModule as Mod,
)
from torchrl.modules import MLP, TanhNormal
from torchrl.objectives import SMORELoss
from torchrl.objectives.utils import SoftUpdate


# --- test
@pytest.mark.parametrize("backward", [None, "backward"])
@pytest.mark.parametrize("compile", [False, True, "reduce-overhead"])
def test_smore_speed(
    benchmark,
    backward,
    compile,
    n_obs=8,
    n_goal=3,
    n_act=4,
    ncells=128,
    batch=512,
):
    if compile == "reduce-overhead" and backward is not None:
        pytest.skip("reduce-overhead with backward causes segfaults in CI")
    if compile:
        torch._dynamo.reset_code_caches()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    state = ["observation", "desired_goal"]
    cells = [ncells, ncells]
    actor_net = MLP(n_obs + n_goal, 2 * n_act, num_cells=cells, device=device)
    actor = ProbSeq(
        Mod(actor_net, in_keys=state, out_keys=["param"]),
        Mod(NormalParamExtractor(), in_keys=["param"], out_keys=["loc", "scale"]),
        ProbMod(
            in_keys=["loc", "scale"],
            out_keys=["action"],
            distribution_class=TanhNormal,
            distribution_kwargs={"safe_tanh": False},
        ),
    )
    score_net = MLP(n_obs + n_goal + n_act, 1, num_cells=cells, device=device)
    score = Mod(score_net, in_keys=[*state, "action"], out_keys=["score"])
    value_net = MLP(n_obs + n_goal, 1, num_cells=cells, device=device)
    value = Mod(value_net, in_keys=state, out_keys=["state_value"])

    def rows():
        return TensorDict(
            {
                "observation": torch.randn(batch, n_obs),
                "desired_goal": torch.randn(batch, n_goal),
                "action": torch.randn(batch, n_act).clamp(-0.9, 0.9),
                "next": {"observation": torch.randn(batch, n_obs)},
            },
            [batch],
            device=device,
        )

    td = rows().set("q", rows())
    loss = SMORELoss(actor, score, value)
    SoftUpdate(loss, tau=0.005)
    loss(td)
    loss = _maybe_compile(loss, compile, td)

    if backward:

        def loss_and_bw(td):
            losses = loss(td)
            sum(
                [val for key, val in losses.items() if key.startswith("loss")]
            ).backward()

        benchmark.pedantic(
            loss_and_bw,
            args=(td,),
            setup=loss.zero_grad,
            iterations=1,
            warmup_rounds=5,
            rounds=50,
        )
    else:
        benchmark(loss, td)
