"""Updates per second, sampling included: by formulation, compilation, precision and seeds, beside the peers.

    python benchmarks/bench_update.py --jax-python /path/to/venv-with-jax/bin/python
    python benchmarks/bench_update.py --formulations in_sample --compile off default fused --precision float32 bf16

Variants take turns (A B C A B C ...), one active at a time; medians over turns are printed with their range, and ratios
are taken within a turn. Peers, each in its own process: the released SMORe update written anew in JAX
(``peers/smore_jax.py``, with ``--jax-python``) and TorchRL's ``IQLLoss`` with its recipe's replay buffer. ``by hand``
is the ``in_sample`` update in plain PyTorch (``functional_update.py``). Before anything is timed, the hand-written
losses and those of the JAX peer are compared with ours on equal weights and rows.

``--seeds K`` trains K seeds in one update; peers and ``by hand`` have one, and are then left out.

FLOPs are PyTorch's count of what an update runs, one multiply-add being two. The floor is that count at the peak of a
large product of the same precision, the faster of MKL's and oneDNN's, timed in the same turns and in the CSV.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import functional_update
import harness
import numpy as np
import torch
from harness import ACTION, GOAL, OBSERVATION
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchrl.objectives import SoftUpdate

from torchrl_smore import GoalBatchSampler, SMORELoss, goal_specs, make_networks
from torchrl_smore.trainers import FusedUpdate, Update, adam

FORMULATIONS: dict[str, dict[str, Any]] = {
    "in_sample": {"formulation": "in_sample"},
    "dual_eq10": {"formulation": "dual", "residual_coef": 1.0},
    "official": {"formulation": "official"},
    "official_stable": {"formulation": "official_stable"},
}
#: ``off``, ``default``, ``max`` are :class:`Update`; ``fused`` is :class:`FusedUpdate` compiled, ``fused_off`` eager.
MODES = ("off", "default", "max", "fused", "fused_off")
STEPS = 1_000_000
RTOL = 1e-4


def make_loss(formulation: str, width: int = 256, **network_options: Any) -> SMORELoss:
    """A loss with fresh networks, the same at every call."""
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(OBSERVATION, GOAL, ACTION), hidden=(width, width), **network_options)
    loss = SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True, **FORMULATIONS[formulation])
    return loss


def make_update(loss: SMORELoss, data: TensorDict, batch_size: int, mode: str, seeds: int = 1) -> Callable[[], Any]:
    """An update in a mode of ``MODES``; several seeds are one :class:`FusedUpdate` in all of them."""
    sampler = GoalBatchSampler(data, batch_size)
    if mode.startswith("fused") or seeds > 1:
        formulation = next(name for name, kw in FORMULATIONS.items() if loss.objective.formulation in kw.values())
        width = loss.value_network_params["module", "layers", "0", "bias"].shape[-1]
        precision = loss.value_network.module.precision
        losses = [loss, *(make_loss(formulation, width, precision=precision) for _ in range(seeds - 1))]
        compiled = {"fused": "default", "fused_off": "off"}.get(mode, mode)
        names = range(seeds) if seeds > 1 else None
        return FusedUpdate(
            losses if seeds > 1 else loss, sampler, seeds=names, total_steps=STEPS, tau=0.005, compile=compiled
        )
    optimizer, scheduler = adam(loss, total_steps=STEPS)
    target = SoftUpdate(loss, tau=0.005)
    return Update(loss, sampler, optimizer, scheduler=scheduler, target_updater=target, compile=mode)


class FlopCount(TorchDispatchMode):
    """Adds up the FLOPs of every operator below it (FlopCounterMode trips over TensorDictParams)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Counts one operator and runs it."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(formulation: str, batch_size: int, width: int) -> int:
    """FLOPs of one update with one seed."""
    # PyTorch's own products, which its registry has formulas for
    update = make_update(make_loss(formulation, width, matmul="torch"), harness.random_dataset(4), batch_size, "off")
    with FlopCount() as counter:
        update()
    return counter.total


def total_loss(out: TensorDict) -> torch.Tensor:
    """Sum of the losses."""
    return sum(value for key, value in out.items() if key.startswith("loss_"))


def check_functional(data: TensorDict, width: int) -> None:
    """Compares the hand-written losses and their gradients with the loss module.

    Raises:
        AssertionError: if they differ by more than rounding.
    """
    loss = make_loss("in_sample", width)
    SoftUpdate(loss, tau=0.005)
    batch = GoalBatchSampler(data, 64)()
    out, params = loss(batch), functional_update.parameters(loss)
    ours = functional_update.losses(params, functional_update.as_batch(batch), *loss.score_bounds)
    for name, value in zip(("loss_score", "loss_value", "loss_actor"), ours):
        torch.testing.assert_close(value, out[name], rtol=RTOL, atol=1e-5)
    sum(ours).backward()
    total_loss(out).backward()
    norms = [
        torch.stack([p.grad.norm() for p in group if p.grad is not None]).norm()
        for group in (loss.parameters(), (p for network in params.values() for p in network))
    ]
    torch.testing.assert_close(*norms, rtol=RTOL, atol=1e-5)


def check_jax(peer: harness.Peer, data: TensorDict, width: int) -> None:
    """Compares the JAX peer's losses and norms of gradients with ``official_stable`` on equal weights and rows.

    Raises:
        AssertionError: if they differ by more than rounding.
    """
    torch.manual_seed(1)
    networks = make_networks(*goal_specs(OBSERVATION, GOAL, ACTION), hidden=(width, width))
    loss = SMORELoss(
        networks.actor,
        networks.score,
        networks.value,
        formulation="official_stable",
        score_bounds=None,
        deactivate_vmap=True,
    )
    SoftUpdate(loss, tau=0.005)
    with torch.no_grad():
        # unlike the online networks, so that a peer that mixed them up would be found out
        loss.target_score_network_params.apply_(lambda p: p.add_(0.02 * torch.randn_like(p)))
    batch = GoalBatchSampler(data, 64)()
    out, params = loss(batch), functional_update.parameters(loss)
    state, action, following, *q = functional_update.as_batch(batch)
    arrays = {
        "state": torch.cat([state, q[0]]),
        "action": torch.cat([action, q[1]]),
        "next_state": torch.cat([following, q[2]]),
        "rho": torch.cat([torch.ones(64), torch.zeros(64)]),
        "log_std": params["actor"][-1],
    }
    for name, layers in params.items():
        for i, tensor in enumerate(layers[:6]):
            arrays[f"{name}.{i // 2}.{('weight', 'bias')[i % 2]}"] = tensor
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/case.npz"
        np.savez(path, **{name: tensor.detach().numpy() for name, tensor in arrays.items()})
        peer.ask(f"check {path}")
        found = dict(np.load(path + ".out.npz"))
    for name in ("value", "actor", "score"):
        loss.zero_grad()
        out[f"loss_{name}"].backward(retain_graph=True)
        grads = [p.grad for p in loss.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in grads]).norm()
        for ours, theirs in ((out[f"loss_{name}"], found[name]), (norm, found[f"{name}_norm"])):
            torch.testing.assert_close(ours.detach(), torch.as_tensor(theirs), rtol=RTOL, atol=1e-5)


def variants(args: argparse.Namespace, data: TensorDict) -> dict[str, tuple[Callable[[], Any], int, str]]:
    """Our updates: name -> (update, FLOPs, precision)."""
    made: dict[str, tuple[Callable[[], Any], int, str]] = {}
    for formulation in args.formulations:
        flops = count_flops(formulation, args.batch_size, args.width) * args.seeds
        for precision in args.precision:
            for mode in args.compile:
                loss = make_loss(formulation, args.width, precision=precision, matmul=args.matmul)
                name = f"{formulation}, {precision}, {mode}"
                made[name] = make_update(loss, data, args.batch_size, mode, args.seeds), flops, precision
    if args.by_hand:
        loss = make_loss("in_sample", args.width)
        SoftUpdate(loss, tau=0.005)
        flops = count_flops("in_sample", args.batch_size, args.width)
        made["in_sample, by hand"] = functional_update.make_update(loss, data, args.batch_size), flops, "float32"
    return made


def report(args: argparse.Namespace, found: dict[str, list[float]], ours: dict[str, tuple[Any, int, str]]) -> None:
    """Prints the table and leaves CSV and PNG."""
    peaks = {name: found.pop(f"peak {name}") for name in ("float32", "bf16") if f"peak {name}" in found}
    for name, values in peaks.items():
        print(f"peak of a large {name} product: {harness.spread([value / 1e9 for value in values])} GFLOP/s")
    rows = []
    for name, values in found.items():
        cells = [name, harness.spread(values), "", "", "", ""]
        if "JAX" in found and name != "JAX":
            cells[2] = harness.ratio(values, found["JAX"])
        if "in_sample, by hand" in found and name == "in_sample, float32, off":
            overhead = [hand / value - 1.0 for hand, value in zip(found["in_sample, by hand"], values)]
            cells[3] = f"{statistics.median(overhead):+.1%}"
        if name in ours:
            _, flops, precision = ours[name]
            cells[4] = f"{flops / 1e9:.3f}"
            # seconds of an update over seconds of its products at peak
            over = [peak / (value * flops) for value, peak in zip(values, peaks[precision])]
            cells[5] = harness.spread(over)
        rows.append(cells)
    header = ["variant", "updates/s median [min, max]", "ratio to JAX", "over by hand", "GFLOP", "time / GEMM floor"]
    print("\n" + harness.markdown(header, rows))
    common = {"batch": args.batch_size, "width": args.width, "threads": args.threads, "seeds": args.seeds}
    of_peaks = {**dict.fromkeys(common, ""), "threads": args.threads}
    # with the peaks the floor can be worked out again, turn by turn
    table = harness.long_rows(found, "updates/s", **common)
    table += harness.long_rows({f"peak {name}": values for name, values in peaks.items()}, "FLOP/s", **of_peaks)
    harness.write_csv(Path(args.out + ".csv"), table)
    title = f"{harness.machine(args.threads)}\nbatch {args.batch_size}, width {args.width}, {args.seeds} seed(s)"
    harness.plot_bars(Path(args.out + ".png"), found, title, "updates/s (median, range)")
    print(f"\n{args.out}.csv, {args.out}.png")


def main() -> None:
    """Builds, checks, times and reports."""
    parser = harness.parser(__doc__, "update", blocks=9)
    parser.add_argument("--formulations", nargs="*", default=["in_sample", "official_stable"], choices=FORMULATIONS)
    parser.add_argument("--compile", nargs="+", default=["off", "fused"], choices=MODES)
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    parser.add_argument("--matmul", default="auto", choices=["auto", "torch", "onednn"], help="see modules.linear")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=1, help="seeds in one update; rates count updates of all of them")
    parser.add_argument("--trajectories", type=int, default=4000)
    parser.add_argument("--updates", type=int, default=15, help="updates in a block")
    parser.add_argument("--jax-python", default=None, help="a Python that has jax: adds the JAX peer")
    parser.add_argument("--no-iql", dest="iql", action="store_false", help="leave out TorchRL's IQLLoss")
    parser.add_argument("--no-by-hand", dest="by_hand", action="store_false", help="leave out the hand-written update")
    args = parser.parse_args()
    if args.smoke:
        args.batch_size, args.width, args.trajectories, args.blocks, args.updates = 8, 8, 4, 1, 1
        args.compile, args.iql = ["off"], False
    harness.begin(args)
    if args.seeds > 1:
        print(f"peers and by hand are left out: an update of theirs is of one seed, and of ours of {args.seeds}")
        args.by_hand, args.iql, args.jax_python = False, False, None
    data = harness.random_dataset(args.trajectories)
    check_functional(data, args.width)
    common = {"batch_size": args.batch_size, "width": args.width, "trajectories": args.trajectories}
    peers: dict[str, harness.Peer] = {}
    if args.jax_python:
        peers["JAX"] = harness.Peer(args.jax_python, "smore_jax.py", args.threads, **common)
        check_jax(peers["JAX"], data, args.width)
        print(f"JAX peer agrees with official_stable on equal weights; {peers['JAX'].hello}")
    if args.iql:
        peers["TorchRL IQLLoss"] = harness.Peer(sys.executable, "torchrl_iql.py", args.threads, **common)
    ours = variants(args, data)
    for update, *_ in ours.values():
        for _ in range(1 if args.smoke else 4):
            update()
    blocks = {
        "peak float32": harness.matmul_peak(),
        **({"peak bf16": harness.matmul_peak(torch.bfloat16)} if "bf16" in args.precision else {}),
        **{name: peer.block(args.updates) for name, peer in peers.items()},
        **{name: harness.rate(update, args.updates) for name, (update, *_) in ours.items()},
    }
    found = harness.interleave(blocks, args.blocks)
    for peer in peers.values():
        peer.close()
    report(args, found, ours)


if __name__ == "__main__":
    main()
