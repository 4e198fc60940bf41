"""Milliseconds of an update against batch, width, seeds and dataset size: a plot with four panels.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --compile fused

The points of a panel take turns. Beside each the local exponent: 1 is proportional cost, 0 none.
"""

from __future__ import annotations

import argparse
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
from bench_update import MODES, make_loss, make_update

PANELS: dict[str, tuple[int, ...]] = {
    "batch": (32, 128, 512, 2048),
    "width": (64, 128, 256, 512),
    "seeds": (1, 2, 4, 8),
    "trajectories": (200, 2000, 20_000, 40_000),
}
SMOKE: dict[str, tuple[int, ...]] = {"batch": (2, 4), "width": (2, 4), "seeds": (1, 2), "trajectories": (2, 4)}
DEFAULTS = {"batch": 512, "width": 256, "seeds": 1, "trajectories": 2000}


def panel(name: str, values: tuple[int, ...], args: argparse.Namespace) -> dict[int, list[float]]:
    """Milliseconds of an update at each value, the other sizes at their defaults."""
    blocks = {}
    for value in values:
        size = {**DEFAULTS, **({"batch": 4, "width": 4, "trajectories": 2} if args.smoke else {}), name: value}
        data = harness.random_dataset(size["trajectories"])
        loss = make_loss(args.formulation, size["width"], precision=args.precision)
        # one seed of several is a fused update too
        mode = (
            {"off": "fused_off", "default": "fused"}.get(args.compile, args.compile)
            if name == "seeds"
            else args.compile
        )
        update = make_update(loss, data, size["batch"], mode, size["seeds"])
        for _ in range(1 if args.smoke else 2):
            update()
        blocks[str(value)] = harness.rate(update, args.updates)
    found = harness.interleave(blocks, args.blocks)
    return {int(value): [1e3 / rate for rate in rates] for value, rates in found.items()}


def exponents(found: dict[int, list[float]]) -> list[float | None]:
    """Slope between neighbours in the logarithms of value and median cost."""
    points = [(math.log(value), math.log(statistics.median(cost))) for value, cost in found.items()]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
    return [None, *slopes]


def plot(path: Path, panels: dict[str, dict[int, list[float]]], title: str) -> None:
    """Medians with their range, both axes logarithmic."""
    figure, axes = harness.subplots(1, len(panels), figsize=(4 * len(panels), 3.6))
    for axis, (name, found) in zip(axes, panels.items()):
        middle = [statistics.median(cost) for cost in found.values()]
        axis.plot(list(found), middle, marker="o")
        axis.fill_between(list(found), list(map(min, found.values())), list(map(max, found.values())), alpha=0.2)
        proportional = [middle[-1] * value / max(found) for value in found]
        axis.plot(list(found), proportional, linestyle=":", color="grey", label="proportional")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms per update (median, range)")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Times the panels one after the other and reports."""
    parser = harness.parser(__doc__, "scaling", blocks=5)
    parser.add_argument("--formulation", default="in_sample")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--compile", default="off", choices=MODES)
    parser.add_argument("--panels", nargs="+", default=list(PANELS), choices=PANELS)
    parser.add_argument("--updates", type=int, default=10, help="updates in a block")
    args = parser.parse_args()
    if args.smoke:
        args.blocks, args.updates = 1, 1
    harness.begin(args)
    panels = {name: panel(name, (SMOKE if args.smoke else PANELS)[name], args) for name in args.panels}
    rows: list[dict[str, Any]] = []
    for name, found in panels.items():
        cells = [
            [value, harness.spread(cost), "" if slope is None else f"{slope:.2f}"]
            for (value, cost), slope in zip(found.items(), exponents(found))
        ]
        print("\n" + harness.markdown([name, "ms per update median [min, max]", "local exponent"], cells))
        by_value = {str(value): cost for value, cost in found.items()}
        rows += harness.long_rows(by_value, "ms", panel=name, compile=args.compile, precision=args.precision)
    harness.write_csv(Path(args.out + ".csv"), rows)
    sizes = ", ".join(f"{name} {value:,}" for name, value in DEFAULTS.items())
    plot(
        Path(args.out + ".png"), panels, f"{harness.machine(args.threads)}\n{args.formulation}, {args.compile}; {sizes}"
    )
    print(f"\n{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
