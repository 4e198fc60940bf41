"""Updates per second from pictures: SMORe and cloning, beside the encoders alone.

    python benchmarks/bench_pictures.py

Random pictures of 48 x 48 of 1,000 trajectories of 60 steps, batches of 256 sampled and cropped, encoders of size
``small``. SMORe's score and value share an encoder and its actor has its own (``encoder=critics``); cloning is the
control, which has the actor alone. The floor is what SMORe's pictures cost to encode, forward and backward. Seconds of
CPU time, so that other work on the machine matters little; variants take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from torchrl.data import Bounded

from torchrl_smore.data import PixelBatchSampler, TrajectoryStore
from torchrl_smore.modules.pixels import PixelEncoder, make_pixel_networks
from torchrl_smore.modules.precision import Precision
from torchrl_smore.objectives import GCSLLoss, SMORELoss
from torchrl_smore.trainers import FusedUpdate

PIXELS, LENGTH = 48, 60
#: Distinct pictures in SMORe's batch: state and goal of both kinds of row, which are trained on, and what follows.
TRAINED, CONSTANT = 4, 1
SEEN_BY_ACTOR = 2  # at once, by its own encoder
FLOOR = "floor: SMORe's encoders alone"


def picture_store(num_trajectories: int) -> TrajectoryStore:
    """Random transitions with a random picture of every state."""
    episode = {
        "observation": torch.randn(LENGTH + 1, harness.OBSERVATION),
        "achieved_goal": torch.randn(LENGTH + 1, harness.GOAL),
        "action": torch.rand(LENGTH, harness.ACTION) * 2 - 1,
        "desired_goal": torch.randn(harness.GOAL),
        "reward": torch.zeros(LENGTH),
    }
    frames = torch.randint(0, 256, (num_trajectories * (LENGTH + 1), PIXELS, PIXELS, 3), dtype=torch.uint8)
    return TrajectoryStore.from_episodes([episode] * num_trajectories).with_frames(frames)


def make_update(store: TrajectoryStore, batch_size: int, precision: Precision, *, cloning: bool) -> FusedUpdate:
    """An update of SMORe or of its control, sampling included."""
    torch.manual_seed(0)
    action_spec = Bounded(-1.0, 1.0, (harness.ACTION,))
    options: dict[str, Any] = {"pixels": PIXELS, "precision": precision}
    crops: dict[str, Any] = {"crop_prob": 0.5}
    if cloning:
        actor = make_pixel_networks(action_spec, **options).actor
        sampler = PixelBatchSampler(store, batch_size, q=False, following=False, **crops)
        return FusedUpdate(GCSLLoss(actor, regression="nll"), sampler)
    made = make_pixel_networks(action_spec, shared=True, own_actor=True, **options)
    loss = SMORELoss(made.actor, made.score, made.value, deactivate_vmap=True)
    assert made.encoder is not None
    loss.share_encoder(made.encoder, actor="own")
    return FusedUpdate(loss, PixelBatchSampler(store, batch_size, **crops), tau=0.005)


def encoders_alone(batch_size: int, precision: Precision) -> Callable[[], None]:
    """Forward and backward of all pictures that an update of SMORe encodes."""
    shared, own = (PixelEncoder(number, pixels=PIXELS, precision=precision) for number in (1, SEEN_BY_ACTOR))
    shape = (TRAINED + SEEN_BY_ACTOR, batch_size, PIXELS, PIXELS, 3)
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8)
    trained, constant = pictures[:TRAINED].flatten(0, 1), pictures[:CONSTANT].flatten(0, 1)

    def encode() -> None:
        with torch.no_grad():
            shared(constant)
        (shared(trained).sum() + own(*pictures[TRAINED:]).sum()).backward()

    return encode


def variants(store: TrajectoryStore, batch_size: int, precision: Precision) -> dict[str, Callable[[], Any]]:
    """Name -> one update."""
    found: dict[str, Callable[[], Any]] = {
        name: make_update(store, batch_size, precision, cloning=cloning)
        for name, cloning in (("SMORe", False), ("cloning", True))
    }
    found[FLOOR] = encoders_alone(batch_size, precision)
    return {f"{name}, {precision}": call for name, call in found.items()}


def main() -> None:
    """Times the variants in turns and reports."""
    parser = harness.parser(__doc__, "pictures", blocks=9)
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=5, help="updates in a block")
    args = parser.parse_args()
    if args.smoke:
        args.blocks, args.updates, args.batch_size, args.trajectories = 1, 1, 2, 2
    harness.begin(args)
    store = picture_store(args.trajectories)
    calls: dict[str, Callable[[], Any]] = {}
    for precision in args.precision:
        calls |= variants(store, args.batch_size, precision)
    blocks = {name: harness.rate(call, args.updates, time.process_time) for name, call in calls.items()}
    found = harness.interleave(blocks, args.blocks)
    floors = {f"SMORe, {precision}": found[f"{FLOOR}, {precision}"] for precision in args.precision}
    cells = [
        [name, harness.spread(rates), harness.ratio(floors[name], rates) if name in floors else ""]
        for name, rates in found.items()
    ]
    print("\n" + harness.markdown(["update", "a second of CPU time, median [min, max]", "times the floor"], cells))
    harness.write_csv(
        Path(args.out + ".csv"),
        harness.long_rows(found, "1/s of CPU time", batch_size=args.batch_size, threads=args.threads),
    )
    harness.plot_bars(Path(args.out + ".png"), found, harness.machine(args.threads), "updates per second of CPU time")
    print(f"\n{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
